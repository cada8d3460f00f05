//! Memory of a device: the caller's, by address, or a buffer of this library.
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
    /// The device whose memory it is, where that is known.
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

/// What both kinds of slices have.
macro_rules! slice {
    ($name:ident) => {
        impl<'a, E: Element> $name<'a, E> {
            /// The number of elements.
            pub const fn len(&self) -> usize {
                self.len
            }

            /// Whether there are no elements.
            pub const fn is_empty(&self) -> bool {
                self.len == 0
            }

            /// The device address of the first element.
            pub const fn address(&self) -> u64 {
                self.address
            }

            /// The number of elements, and the device whose memory they are in where that is known.
            pub(super) fn len_and_device(&self) -> (usize, Option<&'a Device>) {
                (self.len, self.device)
            }
        }
    };
}

slice!(Slice);
slice!(SliceMut);

impl<'a, E: Element> Slice<'a, E> {
    /// `len` elements from a device address on: a tensor of torch (`tensor.data_ptr()`), candle or cudarc,
    /// used in place.
    ///
    /// # Safety
    /// The elements are in the memory of the device that they are used with, aligned to their size, and stay
    /// there unchanged until the work that reads them is done.
    pub const unsafe fn from_raw(address: u64, len: usize) -> Self {
        Self { address, len, device: None, memory: PhantomData }
    }

    /// The elements from `first` on, for a tensor inside another.
    ///
    /// # Panics
    /// If there are fewer than `first` elements.
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
    /// As for [`Slice::from_raw`]; and nothing else reads or writes the elements until the work that writes
    /// them is done.
    pub const unsafe fn from_raw(address: u64, len: usize) -> Self {
        Self { address, len, device: None, memory: PhantomData }
    }

    /// The same elements, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> SliceMut<'_, E> {
        SliceMut { address: self.address, len: self.len, device: self.device, memory: PhantomData }
    }

    /// The same elements, to be read.
    pub fn as_slice(&self) -> Slice<'_, E> {
        Slice { address: self.address, len: self.len, device: self.device, memory: PhantomData }
    }

    /// The first `at` elements, and the others.
    ///
    /// # Panics
    /// If there are fewer than `at` elements.
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

/// Memory of a device for callers who have none there: allocated by this library, and freed when it is
/// dropped.
#[derive(Debug)]
pub struct Buffer<E: Element = f32> {
    device: Device,
    address: u64,
    len: usize,
    elements: PhantomData<E>,
}

impl<E: Element> Buffer<E> {
    /// A buffer of `len` zeros.
    ///
    /// # Errors
    /// [`super::Error::OutOfMemory`], and errors of the driver.
    pub fn zeros(device: &Device, len: usize) -> Result<Self> {
        let _current = device.current()?;
        let buffer = Self::uninit(device, len)?;
        if len > 0 {
            // SAFETY: the buffer has these bytes.
            unsafe { device.driver().fill(buffer.address, 0, len * size_of::<E>(), Stream::DEFAULT.0)? };
            // The wait makes the zeros visible to every stream.
            device.driver().synchronize(Stream::DEFAULT.0)?;
        }
        Ok(buffer)
    }

    /// A buffer with a copy of these elements.
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
        // The driver does not allocate 0 bytes.
        let address = if len == 0 { 0 } else { device.driver().alloc(bytes)? };
        Ok(Self { device: device.clone(), address, len, elements: PhantomData })
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies elements into the buffer, after the work on the stream, and waits for the copy.
    ///
    /// # Errors
    /// Another number of elements than the buffer has, and errors of the driver.
    pub fn write(&mut self, from: &[E], stream: Stream) -> Result<()> {
        check_len("the buffer", self.len, from.len())?;
        if self.len == 0 {
            return Ok(());
        }
        let _current = self.device.current()?;
        // SAFETY: both have this many bytes.
        unsafe {
            let bytes = size_of_val(from);
            self.device.driver().copy_to_device(self.address, from.as_ptr().cast(), bytes, stream.0)
        }
    }

    /// Copies the elements from the buffer, after the work on the stream, and waits for the copy.
    ///
    /// # Errors
    /// Errors in that work, and errors of the driver.
    pub fn read(&self, stream: Stream) -> Result<Vec<E>> {
        let mut to = vec![E::default(); self.len];
        if self.len > 0 {
            let _current = self.device.current()?;
            // SAFETY: both have this many bytes; any bits are an element.
            unsafe {
                let bytes = size_of_val(&to[..]);
                self.device.driver().copy_to_host(to.as_mut_ptr().cast(), self.address, bytes, stream.0)?;
            }
        }
        Ok(to)
    }

    /// The elements, to be read by kernels.
    pub fn slice(&self) -> Slice<'_, E> {
        Slice { address: self.address, len: self.len, device: Some(&self.device), memory: PhantomData }
    }

    /// The elements, to be written by kernels.
    pub fn slice_mut(&mut self) -> SliceMut<'_, E> {
        SliceMut { address: self.address, len: self.len, device: Some(&self.device), memory: PhantomData }
    }
}

impl<E: Element> Drop for Buffer<E> {
    fn drop(&mut self) {
        if self.len > 0
            && let Ok(_current) = self.device.current()
        {
            // SAFETY: the memory is not used again: the driver waits for the work that uses it. A drop cannot
            // return an error.
            let _ = unsafe { self.device.driver().free(self.address) };
        }
    }
}
