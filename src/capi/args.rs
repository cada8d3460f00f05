//! The structures of the header, field for field.
#![allow(missing_docs, reason = "documented in the header")]

use core::ffi::{c_char, c_void};
use core::ptr::{null, null_mut};

use half::{bf16, f16};

use super::span::{self, Span};
use super::status::*;
use super::{CW_ABI_VERSION, Result, size};
use crate::element::{Elements, ElementsMut};
use crate::tensors::{Disjoint, Outputs};

/// A structure that begins with `size` and `abi`.
///
/// A caller may have compiled with an older header, whose structure has fewer fields: `size` is the number of
/// bytes that the caller's structure has.
///
/// # Safety
/// The type is `repr(C)`, its first fields are `size` and `abi`, and every bit pattern is a valid value of
/// it.
pub unsafe trait Headed: Copy {
    /// The values that the header's initialiser gives with arguments of 0. Fields that the caller's structure
    /// does not have take them.
    const DEFAULT: Self;
    /// The bytes at which each field after `size` and `abi` begins and ends.
    const FIELDS: &'static [[usize; 2]];
}

/// The bytes of the first two fields, `size` and `abi`.
const HEAD: usize = size_of::<[u32; 2]>();

macro_rules! headed {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty = $default:expr,)* })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub struct $name {
            pub size: u32,
            pub abi: u32,
            $(pub $field: $type,)*
        }

        // SAFETY: defined as above, with fields that are integers, floats, pointers, or structures of these.
        unsafe impl Headed for $name {
            const DEFAULT: Self =
                Self { size: size_of::<Self>() as u32, abi: CW_ABI_VERSION, $($field: $default,)* };
            const FIELDS: &'static [[usize; 2]] = &[$({
                let begin = core::mem::offset_of!(Self, $field);
                [begin, begin + size_of::<$type>()]
            },)*];
        }

        // A field that is added later must not occupy bytes that are padding now.
        const _: () = assert!($name::FIELDS[$name::FIELDS.len() - 1][1] == size_of::<$name>());
    )*};
}

/// A tensor. The entries of `dims` and `strides` beyond `rank` are ignored.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct cw_tensor {
    pub data: *mut c_void,
    pub dtype: u32,
    pub rank: u32,
    pub dims: [u64; 4],
    pub strides: [u64; 4],
}

impl cw_tensor {
    /// `CW_NO_TENSOR`.
    const NONE: Self = Self { data: null_mut(), dtype: 0, rank: 0, dims: [0; 4], strides: [0; 4] };
}

/// A named tensor of a model.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct cw_parameter {
    pub name: *const c_char,
    pub tensor: cw_tensor,
}

headed! {
    /// A configuration of attention: what to compute.
    cw_attention {
        feature_map: u32 = CW_ELU,
        normaliser: u32 = 0,
        feature_eps: f32 = 1e-6,
        normaliser_eps: f32 = 0.0,
        chunk: u64 = 0,
        scale: f32 = 1.0,
        compensated: u32 = 0,
        products: u32 = CW_PRODUCTS_F32,
        isa: u32 = CW_ISA_DEFAULT,
        threads: u32 = 1,
        not_causal: u32 = 0,
        update: u32 = CW_UPDATE_LINEAR,
        gate: u32 = CW_GATE_NONE,
        gate_map: u32 = CW_GATE_MAP_LOG,
        gate_lower: f32 = -5.0,
        beta_map: u32 = CW_BETA_GIVEN,
        head_order: u32 = CW_HEADS_INTERLEAVED,
        qk_norm: u32 = 0,
        qk_norm_eps: f32 = 1e-6,
    }
    /// The tensors, states and scratch of one call of attention.
    cw_call {
        q: cw_tensor = cw_tensor::NONE,
        k: cw_tensor = cw_tensor::NONE,
        v: cw_tensor = cw_tensor::NONE,
        o: cw_tensor = cw_tensor::NONE,
        state_in: *const f32 = null(),
        state_out: *mut f32 = null_mut(),
        state_bytes: u64 = 0,
        scratch: *mut c_void = null_mut(),
        scratch_bytes: u64 = 0,
        g: cw_tensor = cw_tensor::NONE,
        beta: cw_tensor = cw_tensor::NONE,
        a_log: *const f32 = null(),
        dt_bias: *const f32 = null(),
        sequences: *const u32 = null(),
        sequence_count: u64 = 0,
    }
    /// The gradients of one call of attention.
    cw_gradients {
        o: cw_tensor = cw_tensor::NONE,
        q: cw_tensor = cw_tensor::NONE,
        k: cw_tensor = cw_tensor::NONE,
        v: cw_tensor = cw_tensor::NONE,
        g: cw_tensor = cw_tensor::NONE,
        state_out: *const f32 = null(),
        state_in: *mut f32 = null_mut(),
        state_bytes: u64 = 0,
    }
    /// The memory that a call of attention needs, in bytes.
    cw_sizes {
        state_bytes: u64 = 0,
        state_align: u64 = 0,
        forward_scratch_bytes: u64 = 0,
        decode_scratch_bytes: u64 = 0,
        scratch_align: u64 = 0,
        record_bytes: u64 = 0,
        backward_scratch_bytes: u64 = 0,
    }
    /// A causal convolution.
    cw_conv {
        x: cw_tensor = cw_tensor::NONE,
        y: cw_tensor = cw_tensor::NONE,
        weight: *const f32 = null(),
        bias: *const f32 = null(),
        width: u64 = 0,
        activation: u32 = CW_ACTIVATION_NONE,
        isa: u32 = CW_ISA_DEFAULT,
        state_in: *const f32 = null(),
        state_out: *mut f32 = null_mut(),
        state_bytes: u64 = 0,
        sequences: *const u32 = null(),
        sequence_count: u64 = 0,
    }
    /// A gated norm.
    cw_gated_norm {
        x: cw_tensor = cw_tensor::NONE,
        z: cw_tensor = cw_tensor::NONE,
        y: cw_tensor = cw_tensor::NONE,
        eps: f32 = 1e-6,
        gate: u32 = CW_NORM_SILU,
        isa: u32 = CW_ISA_DEFAULT,
        weight: *const f32 = null(),
    }
    /// The options of a model.
    cw_model_config {
        embed_dim: u64 = 0,
        hidden_size: u64 = 256,
        num_heads: u64 = 4,
        num_layers: u64 = 4,
        chunk_size: u64 = 64,
        seq_len: u64 = 64,
        feature_map: u32 = CW_ELU,
        feature_eps: f32 = 1e-6,
        output_mode: u32 = CW_LAST_TIMESTEP,
        final_norm: u32 = 1,
        layer_norm_eps: f32 = 1e-5,
        layer_norm_clip: u32 = 0,
        attention: u32 = CW_LINEAR,
        reserved: u32 = 0,
    }
    /// The sizes of a model's inputs, outputs, state and scratch.
    cw_model_sizes {
        embed_dim: u64 = 0,
        hidden_size: u64 = 0,
        head_size: u64 = 0,
        output_bytes: u64 = 0,
        state_bytes: u64 = 0,
        forward_scratch_bytes: u64 = 0,
        step_scratch_bytes: u64 = 0,
        head_scratch_bytes: u64 = 0,
        align: u64 = 0,
    }
    /// The arguments of one call of a model.
    cw_model_call {
        batch: u64 = 0,
        len: u64 = 0,
        input: *const f32 = null(),
        input_bytes: u64 = 0,
        output: *mut f32 = null_mut(),
        output_bytes: u64 = 0,
        state: *mut f32 = null_mut(),
        state_bytes: u64 = 0,
        scratch: *mut c_void = null_mut(),
        scratch_bytes: u64 = 0,
    }
    /// The source of a model: bytes, JSON and options.
    cw_model_file {
        bytes: *const c_void = null(),
        bytes_len: u64 = 0,
        json: *const c_char = null(),
        json_len: u64 = 0,
        isa: u32 = CW_ISA_DEFAULT,
        threads: u32 = 1,
        message: *mut c_char = null_mut(),
        message_bytes: u64 = 0,
    }
}

/// Checks the first two fields of a structure, and returns its memory.
///
/// # Safety
/// `from` is null, or the number of bytes that its `size` gives can be read.
unsafe fn check<T: Headed>(from: *const T) -> Result<Span> {
    span::of(from.cast::<u32>(), 2)?;
    if !from.is_aligned() {
        return Err(Status(CW_MISALIGNED));
    }
    // SAFETY: `from` is non-null and aligned, as just checked; both fields exist, by the trait's promise,
    // whatever the size of the caller's structure.
    let [size, abi] = unsafe { from.cast::<[u32; 2]>().read() };
    if abi != CW_ABI_VERSION {
        return Err(Status(CW_ABI));
    }
    let size = size as usize;
    let cut = T::FIELDS.iter().any(|[begin, end]| (begin + 1..*end).contains(&size));
    if cut || !(HEAD..=size_of::<T>()).contains(&size) {
        return Err(Status(CW_SIZE));
    }
    span::of(from.cast::<u8>(), size)
}

/// Checks a structure and copies it, so that later writes to it cannot change what was checked. Fields that
/// the caller's structure does not have take their defaults.
///
/// # Safety
/// `from` is null, or the number of bytes that its `size` gives can be read.
pub(super) unsafe fn copy<T: Headed>(from: *const T) -> Result<T> {
    // SAFETY: the caller's promise, passed on.
    let size = unsafe { check(from)? }.bytes;
    let mut value = T::DEFAULT;
    // SAFETY: the caller's structure has this many bytes, by its own `size`, and no more than `T` has. Any
    // bytes make a value, by the trait's promise.
    unsafe { (&raw mut value).cast::<u8>().copy_from_nonoverlapping(from.cast(), size) };
    Ok(value)
}

/// A structure of the caller that is to be written, up to its own size.
pub(super) struct Output<T> {
    to: *mut T,
    pub(super) span: Span,
}

impl<T: Headed> Output<T> {
    /// Checks the first two fields of the structure.
    ///
    /// # Safety
    /// `to` is null, or the number of bytes that its `size` gives can be read, and can be written until
    /// [`Output::write`].
    pub(super) unsafe fn new(to: *mut T) -> Result<Self> {
        // SAFETY: the caller's promise, passed on.
        Ok(Self { to, span: unsafe { check(to)? } })
    }

    /// Writes the fields that the caller's structure has, except for `size` and `abi`.
    pub(super) fn write(self, value: T) {
        let (from, size) = ((&raw const value).cast::<u8>(), self.span.bytes);
        // SAFETY: `new` has checked that the caller's structure has this many bytes, by its own `size`: no
        // more than `T` has and no fewer than `HEAD`. That they can be written is the promise made to `new`.
        unsafe { self.to.cast::<u8>().add(HEAD).copy_from_nonoverlapping(from.add(HEAD), size - HEAD) };
    }
}

/// The variant of an enum over element types that is the tensor's, made of its address and `len`.
macro_rules! by_type {
    ($tensor:ident, $len:ident, $elements:ident, $make:path) => {
        match $tensor.dtype {
            CW_BF16 => $elements::Bf16($make($tensor.data.cast(), $len)),
            CW_F16 => $elements::F16($make($tensor.data.cast(), $len)),
            _ => $elements::F32($make($tensor.data.cast(), $len)),
        }
    };
}

impl cw_tensor {
    /// Whether the tensor is `CW_NO_TENSOR`, whose dims and strides are ignored.
    pub(super) fn is_none(&self) -> bool {
        self.data.is_null() && self.dtype == 0 && self.rank == 0
    }

    /// The memory of the tensor's first `len` elements. It is empty for `CW_NO_TENSOR` with a `len` of 0.
    pub(super) fn span(&self, len: usize) -> Result<Span> {
        match self.dtype {
            _ if self.is_none() && len == 0 => Ok(Span::default()),
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

    /// The tensor's first `len` elements, to be read.
    ///
    /// # Safety
    /// [`cw_tensor::span`] has succeeded for `len`, and these bytes can be read for 'a and are not written
    /// meanwhile.
    pub(super) unsafe fn elements<'a>(&self, len: usize) -> Elements<'a> {
        // SAFETY: the caller's promise.
        unsafe { by_type!(self, len, Elements, slice) }
    }

    /// The tensor's first `len` elements, to be written by this call alone.
    ///
    /// # Safety
    /// [`cw_tensor::span`] has succeeded for `len`, and these bytes can be written for 'a by nothing else.
    pub(super) unsafe fn elements_mut<'a>(&self, len: usize) -> ElementsMut<'a> {
        // SAFETY: the caller's promise.
        unsafe { by_type!(self, len, ElementsMut, slice_mut) }
    }

    /// The tensor's first `len` elements, to be written row by row.
    ///
    /// # Safety
    /// [`cw_tensor::span`] has succeeded for `len`, and the rows that are taken can be written for 'a by
    /// nothing else.
    pub(super) unsafe fn outputs<'a>(&self, len: usize) -> Outputs<'a> {
        // SAFETY: the caller's promise.
        unsafe { by_type!(self, len, Outputs, Disjoint::from_raw) }
    }
}

/// A slice of C memory. Where `len` is 0, `data` may be any pointer.
///
/// # Safety
/// [`span::of`] has succeeded for `data` and `len`, and these elements can be read for 'a and are not written
/// meanwhile.
pub(super) unsafe fn slice<'a, T>(data: *const T, len: usize) -> &'a [T] {
    // SAFETY: the caller's promise.
    if len == 0 { &[] } else { unsafe { core::slice::from_raw_parts(data, len) } }
}

/// A mutable slice of C memory. Where `len` is 0, `data` may be any pointer.
///
/// # Safety
/// [`span::of`] has succeeded for `data` and `len`, and nothing else accesses these elements for 'a.
pub(super) unsafe fn slice_mut<'a, T>(data: *mut T, len: usize) -> &'a mut [T] {
    // SAFETY: the caller's promise.
    if len == 0 { &mut [] } else { unsafe { core::slice::from_raw_parts_mut(data, len) } }
}
