//! Memory of a device: the caller's, by address, or a buffer of our own.
#![allow(unsafe_code, reason = "addresses of another memory")]

use std::marker::PhantomData;
use std::vec;
use std::vec::Vec;

use super::device::{Device, Stream};
use super::error::Result;
use crate::element::Element;
use crate::error::check_len;

/// Elements in a device's memory, to be read.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a, E = f32> {
    address: u64,
    len: usize,
    /// Whose memory it is, where that is known.
    device: Option<&'a Device>,
    memory: PhantomData<&'a [E]>,
}

/// Elements in a device's memory, to be written.
#[derive(Debug)]
pub struct SliceMut<'a, E = f32> {
    address: u64,
    len: usize,
    device: Option<&'a Device>,
    memory: PhantomData<&'a mut [E]>,
}

impl<'a, E: Element> Slice<'a, E> {
    /// `len` elements from a device address on: a tensor of torch (`tensor.data_ptr()`), candle or cudarc, used where it lies.
    ///
    /// # Safety
    /// They are in the memory of the device that they are used with, aligned to their size, and stay there and unchanged
    /// until the work that reads them is done.
    pub const unsafe fn from_raw(address: u64, len: usize) -> Self {
        Self { address, len, device: None, memory: PhantomData }
    }

    /// Elements.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device address of the first.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Elements, and whose memory they are in where that is known.
    pub(super) fn place(&self) -> (usize, Option<&'a Device>) {
        (self.len, self.device)
    }

    /// Those from `first` on: of a tensor inside another.
    ///
    /// # Panics
    /// Where there are fewer.
    #[must_use]
    pub fn from(&self, first: usize) -> Self {
        assert!(first <= self.len, "element {first} of {}", self.len);
        Self { address: self.address + (first * size_of::<E>()) as u64, len: self.len - first, ..*self }
    }
}

impl<'a, E: Element> SliceMut<'a, E> {
    /// `len` elements from a device address on.
    ///
    /// # Safety
    /// As for [`Slice::from_raw`]; and nothing else reads or writes them until the work that writes them is done.
    pub const unsafe fn from_raw(address: u64, len: usize) -> Self {
        Self { address, len, device: None, memory: PhantomData }
    }

    /// Elements.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device address of the first.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Elements, and whose memory they are in where that is known.
    pub(super) fn place(&self) -> (usize, Option<&'a Device>) {
        (self.len, self.device)
    }

    /// The same for a shorter time.
    pub fn reborrow(&mut self) -> SliceMut<'_, E> {
        SliceMut { address: self.address, len: self.len, device: self.device, memory: PhantomData }
    }

    /// To be read.
    pub fn as_slice(&self) -> Slice<'_, E> {
        Slice { address: self.address, len: self.len, device: self.device, memory: PhantomData }
    }

    /// The first `at` elements, and the others.
    ///
    /// # Panics
    /// Where there are fewer.
    pub fn split_at(self, at: usize) -> (Self, Self) {
        assert!(at <= self.len, "element {at} of {}", self.len);
        let part = |first: usize, len| Self {
            address: self.address + (first * size_of::<E>()) as u64,
            len,
            device: self.device,
            memory: PhantomData,
        };
        (part(0, at), part(at, self.len - at))
    }
}

/// Memory of a device for those who have none there: allocated here, freed when it is dropped.
#[derive(Debug)]
pub struct Buffer<E: Element = f32> {
    device: Device,
    address: u64,
    len: usize,
    elements: PhantomData<E>,
}

impl<E: Element> Buffer<E> {
    /// `len` zeros.
    ///
    /// # Errors
    /// [`super::Error::OutOfMemory`], and those of the driver.
    pub fn zeros(device: &Device, len: usize) -> Result<Self> {
        let _current = device.current()?;
        let buffer = Self::uninit(device, len)?;
        if len > 0 {
            // SAFETY: it has these bytes.
            unsafe { device.driver().fill(buffer.address, 0, len * size_of::<E>(), Stream::DEFAULT.0)? };
            // So that it is zeros for every stream.
            device.driver().synchronize(Stream::DEFAULT.0)?;
        }
        Ok(buffer)
    }

    /// A copy of these elements.
    ///
    /// # Errors
    /// As for [`Buffer::zeros`].
    pub fn from_slice(device: &Device, from: &[E]) -> Result<Self> {
        let mut buffer = Self::uninit(device, from.len())?;
        buffer.write(from, Stream::DEFAULT)?;
        Ok(buffer)
    }

    fn uninit(device: &Device, len: usize) -> Result<Self> {
        let bytes = len.checked_mul(size_of::<E>()).filter(|bytes| *bytes <= isize::MAX as usize);
        let bytes = bytes.ok_or(crate::Error::Overflow { what: "the buffer" })?;
        let _current = device.current()?;
        // The driver has no memory of 0 bytes.
        let address = if len == 0 { 0 } else { device.driver().alloc(bytes)? };
        Ok(Self { device: device.clone(), address, len, elements: PhantomData })
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies elements there, after the work on the stream, and waits for it.
    ///
    /// # Errors
    /// Another number of elements, and those of the driver.
    pub fn write(&mut self, from: &[E], stream: Stream) -> Result<()> {
        check_len("the buffer", self.len, from.len())?;
        if self.len == 0 {
            return Ok(());
        }
        let _current = self.device.current()?;
        // SAFETY: as many bytes as both have.
        unsafe {
            let bytes = size_of_val(from);
            self.device.driver().copy_to_device(self.address, from.as_ptr().cast(), bytes, stream.0)
        }
    }

    /// The elements, after the work on the stream.
    ///
    /// # Errors
    /// What went wrong in that work, and those of the driver.
    pub fn read(&self, stream: Stream) -> Result<Vec<E>> {
        let mut to = vec![E::default(); self.len];
        if self.len > 0 {
            let _current = self.device.current()?;
            // SAFETY: as many bytes as both have; any bits are an element.
            unsafe {
                let bytes = size_of_val(&to[..]);
                self.device.driver().copy_to_host(to.as_mut_ptr().cast(), self.address, bytes, stream.0)?;
            }
        }
        Ok(to)
    }

    /// To be read by kernels.
    pub fn slice(&self) -> Slice<'_, E> {
        Slice { address: self.address, len: self.len, device: Some(&self.device), memory: PhantomData }
    }

    /// To be written by kernels.
    pub fn slice_mut(&mut self) -> SliceMut<'_, E> {
        SliceMut { address: self.address, len: self.len, device: Some(&self.device), memory: PhantomData }
    }
}

impl<E: Element> Drop for Buffer<E> {
    fn drop(&mut self) {
        if self.len > 0
            && let Ok(_current) = self.device.current()
        {
            // SAFETY: it is not used again: the driver waits for the work that does. A drop can't return an error.
            let _ = unsafe { self.device.driver().free(self.address) };
        }
    }
}
