//! The structures of the header, field for field.
#![allow(missing_docs, reason = "documented in the header")]

use core::ffi::{c_char, c_void};

use half::{bf16, f16};

use super::span::{self, Span};
use super::status::*;
use super::{CW_ABI_VERSION, Result, size};
use crate::element::Elements;
use crate::shape::{Disjoint, Outputs};

/// A structure that begins with `size` and `abi`.
///
/// # Safety
/// It is `repr(C)`, these are its first fields, and every bit pattern is one of its values.
pub unsafe trait Headed: Copy {}

macro_rules! headed {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub struct $name {
            pub size: u32,
            pub abi: u32,
            $(pub $field: $type,)*
        }

        // SAFETY: as defined above, of integers, floats, pointers and the like.
        unsafe impl Headed for $name {}
    )*};
}

/// A tensor; `dims` and `strides` beyond `rank` play no part.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct cw_tensor {
    pub data: *mut c_void,
    pub dtype: u32,
    pub rank: u32,
    pub dims: [u64; 4],
    pub strides: [u64; 4],
}

/// A named tensor of a model.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct cw_parameter {
    pub name: *const c_char,
    pub tensor: cw_tensor,
}

headed! {
    /// What to compute.
    cw_attention {
        feature_map: u32,
        normaliser: u32,
        feature_eps: f32,
        normaliser_eps: f32,
        chunk: u64,
        scale: f32,
        compensated: u32,
        products: u32,
        isa: u32,
        threads: u32,
        reserved: u32,
    }
    /// On what.
    cw_call {
        q: cw_tensor,
        k: cw_tensor,
        v: cw_tensor,
        o: cw_tensor,
        state_in: *const f32,
        state_out: *mut f32,
        state_bytes: u64,
        scratch: *mut c_void,
        scratch_bytes: u64,
    }
    /// What to bring.
    cw_sizes {
        state_bytes: u64,
        state_align: u64,
        forward_scratch_bytes: u64,
        decode_scratch_bytes: u64,
        scratch_align: u64,
    }
    /// The options of a model.
    cw_model_config {
        embed_dim: u64,
        hidden_size: u64,
        num_heads: u64,
        num_layers: u64,
        chunk_size: u64,
        seq_len: u64,
        feature_map: u32,
        feature_eps: f32,
        output_mode: u32,
        final_norm: u32,
        layer_norm_eps: f32,
        layer_norm_clip: u32,
    }
    /// What a model takes and gives.
    cw_model_sizes {
        embed_dim: u64,
        hidden_size: u64,
        head_size: u64,
        output_bytes: u64,
        state_bytes: u64,
        forward_scratch_bytes: u64,
        step_scratch_bytes: u64,
        head_scratch_bytes: u64,
        align: u64,
    }
    /// On what a model runs.
    cw_model_call {
        batch: u64,
        len: u64,
        input: *const f32,
        input_bytes: u64,
        output: *mut f32,
        output_bytes: u64,
        state: *mut f32,
        state_bytes: u64,
        scratch: *mut c_void,
        scratch_bytes: u64,
    }
    /// Where a model comes from.
    cw_model_file {
        bytes: *const c_void,
        bytes_len: u64,
        json: *const c_char,
        json_len: u64,
        isa: u32,
        threads: u32,
        message: *mut c_char,
        message_bytes: u64,
    }
}

/// Checks a structure that is to be written or read.
pub(super) unsafe fn check<T: Headed>(from: *const T) -> Result<()> {
    span::of(from, 1)?;
    // SAFETY: not null and aligned, just checked; both fields are there, by the trait's promise, whatever size the caller's
    // structure has.
    let [size, abi] = unsafe { from.cast::<[u32; 2]>().read() };
    if abi != CW_ABI_VERSION {
        return Err(Status(CW_ABI));
    }
    if size as usize != size_of::<T>() {
        return Err(Status(CW_SIZE));
    }
    Ok(())
}

/// Checks a structure and copies it: what is written later can't change what was checked.
pub(super) unsafe fn copy<T: Headed>(from: *const T) -> Result<T> {
    // SAFETY: the caller's promise, passed on.
    unsafe { check(from)? };
    // SAFETY: not null, aligned, and of that size by the caller's own word.
    Ok(unsafe { from.read() })
}

impl cw_tensor {
    /// The memory of so many elements of its type.
    pub(super) fn span(&self, len: usize) -> Result<Span> {
        match self.dtype {
            CW_F32 => span::of(self.data.cast::<f32>(), len),
            CW_BF16 => span::of(self.data.cast::<bf16>(), len),
            CW_F16 => span::of(self.data.cast::<f16>(), len),
            _ => Err(Status(CW_UNKNOWN)),
        }
    }

    pub(super) fn dims(&self) -> Result<[usize; 4]> {
        let [a, b, c, d] = self.dims;
        Ok([size(a)?, size(b)?, size(c)?, size(d)?])
    }

    /// As many elements, to be read.
    ///
    /// # Safety
    /// [`cw_tensor::span`] has said yes, and its bytes can be read for 'a and are not written meanwhile.
    pub(super) unsafe fn elements<'a>(&self, len: usize) -> Elements<'a> {
        // SAFETY: the caller's promise.
        unsafe {
            match self.dtype {
                CW_BF16 => Elements::Bf16(slice(self.data.cast(), len)),
                CW_F16 => Elements::F16(slice(self.data.cast(), len)),
                _ => Elements::F32(slice(self.data.cast(), len)),
            }
        }
    }

    /// As many elements, to be written.
    ///
    /// # Safety
    /// [`cw_tensor::span`] has said yes, and the rows that are taken can be written for 'a by nobody else.
    pub(super) unsafe fn outputs<'a>(&self, len: usize) -> Outputs<'a> {
        // SAFETY: the caller's promise.
        unsafe {
            match self.dtype {
                CW_BF16 => Outputs::Bf16(Disjoint::from_raw(self.data.cast(), len)),
                CW_F16 => Outputs::F16(Disjoint::from_raw(self.data.cast(), len)),
                _ => Outputs::F32(Disjoint::from_raw(self.data.cast(), len)),
            }
        }
    }
}

/// A slice of C, which may have no address where it has no elements.
///
/// # Safety
/// [`span::of`] has said yes, and that many can be read for 'a and are not written meanwhile.
pub(super) unsafe fn slice<'a, T>(data: *const T, len: usize) -> &'a [T] {
    // SAFETY: the caller's promise.
    if len == 0 { &[] } else { unsafe { core::slice::from_raw_parts(data, len) } }
}

/// The same, to be written.
///
/// # Safety
/// [`span::of`] has said yes, and nobody else reaches them for 'a.
pub(super) unsafe fn slice_mut<'a, T>(data: *mut T, len: usize) -> &'a mut [T] {
    // SAFETY: the caller's promise.
    if len == 0 { &mut [] } else { unsafe { core::slice::from_raw_parts_mut(data, len) } }
}
