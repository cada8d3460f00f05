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
/// A caller's may be that of an older header, which has fewer fields: `size` says how many bytes of it there are.
///
/// # Safety
/// It is `repr(C)`, these are its first fields, and every bit pattern is one of its values.
pub unsafe trait Headed: Copy {
    /// What the header's initialiser makes (its arguments are 0): the values of fields that the caller's structure does
    /// not have.
    const DEFAULT: Self;
    /// Where the fields begin and end, in bytes.
    const FIELDS: &'static [[usize; 2]];
}

/// Bytes of the two first fields.
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

        // SAFETY: as defined above, of integers, floats, pointers and the like.
        unsafe impl Headed for $name {
            const DEFAULT: Self =
                Self { size: size_of::<Self>() as u32, abi: CW_ABI_VERSION, $($field: $default,)* };
            const FIELDS: &'static [[usize; 2]] = &[$({
                let begin = core::mem::offset_of!(Self, $field);
                [begin, begin + size_of::<$type>()]
            },)*];
        }

        // A field that is added later must not lie in what is padding now.
        const _: () = assert!($name::FIELDS[$name::FIELDS.len() - 1][1] == size_of::<$name>());
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
    /// What to compute.
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
    /// On what.
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
    /// What to bring.
    cw_sizes {
        state_bytes: u64 = 0,
        state_align: u64 = 0,
        forward_scratch_bytes: u64 = 0,
        decode_scratch_bytes: u64 = 0,
        scratch_align: u64 = 0,
        record_bytes: u64 = 0,
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
    /// What a model takes and gives.
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
    /// On what a model runs.
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
    /// Where a model comes from.
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

/// Checks the head of a structure, and says where it lies.
///
/// # Safety
/// It is null, or as many bytes as it says can be read.
unsafe fn check<T: Headed>(from: *const T) -> Result<Span> {
    span::of(from.cast::<u32>(), 2)?;
    if !from.is_aligned() {
        return Err(Status(CW_MISALIGNED));
    }
    // SAFETY: not null and aligned, just checked; both fields are there, by the trait's promise, whatever size the caller's
    // structure has.
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

/// Checks a structure and copies it: what is written later can't change what was checked. Fields that the caller's does
/// not have take their defaults.
///
/// # Safety
/// It is null, or as many bytes as it says can be read.
pub(super) unsafe fn copy<T: Headed>(from: *const T) -> Result<T> {
    // SAFETY: the caller's promise, passed on.
    let size = unsafe { check(from)? }.bytes;
    let mut value = T::DEFAULT;
    // SAFETY: there are as many bytes by the caller's own word, and no more than the structure has; whatever they are makes
    // a value, by the trait's promise.
    unsafe { (&raw mut value).cast::<u8>().copy_from_nonoverlapping(from.cast(), size) };
    Ok(value)
}

/// A structure of the caller's that is to be written, as far as it goes.
pub(super) struct Output<T> {
    to: *mut T,
    pub(super) span: Span,
}

impl<T: Headed> Output<T> {
    /// Checks its head.
    ///
    /// # Safety
    /// It is null, or as many bytes as it says can be read, and written until [`Output::write`].
    pub(super) unsafe fn new(to: *mut T) -> Result<Self> {
        // SAFETY: the caller's promise, passed on.
        Ok(Self { to, span: unsafe { check(to)? } })
    }

    /// Writes the fields that the caller's structure has; its head stays.
    pub(super) fn write(self, value: T) {
        let (from, size) = ((&raw const value).cast::<u8>(), self.span.bytes);
        // SAFETY: `new` has checked that there are as many bytes by the caller's own word, no more than the structure has and
        // no less than its head; that they can be written is the promise made to `new`.
        unsafe { self.to.cast::<u8>().add(HEAD).copy_from_nonoverlapping(from.add(HEAD), size - HEAD) };
    }
}

impl cw_tensor {
    /// Whether it is `CW_NO_TENSOR`, whose dims and strides play no part.
    pub(super) fn is_none(&self) -> bool {
        self.data.is_null() && self.dtype == 0 && self.rank == 0
    }

    /// The memory of so many elements of its type; none where none are meant, whatever it says.
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

    /// As many elements, to be written by this call alone.
    ///
    /// # Safety
    /// [`cw_tensor::span`] has said yes, and its bytes can be written for 'a by nothing else.
    pub(super) unsafe fn elements_mut<'a>(&self, len: usize) -> ElementsMut<'a> {
        // SAFETY: the caller's promise.
        unsafe {
            match self.dtype {
                CW_BF16 => ElementsMut::Bf16(slice_mut(self.data.cast(), len)),
                CW_F16 => ElementsMut::F16(slice_mut(self.data.cast(), len)),
                _ => ElementsMut::F32(slice_mut(self.data.cast(), len)),
            }
        }
    }

    /// As many elements, to be written.
    ///
    /// # Safety
    /// [`cw_tensor::span`] has said yes, and the rows that are taken can be written for 'a by nothing else.
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
/// [`span::of`] has said yes, and nothing else reaches them for 'a.
pub(super) unsafe fn slice_mut<'a, T>(data: *mut T, len: usize) -> &'a mut [T] {
    // SAFETY: the caller's promise.
    if len == 0 { &mut [] } else { unsafe { core::slice::from_raw_parts_mut(data, len) } }
}
