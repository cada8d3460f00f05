//! The layers around attention: the causal convolution and the gated norm.

use super::args::{copy, cw_conv, cw_gated_norm, cw_tensor, slice, slice_mut};
use super::span::{self, Span, apart, needed};
use super::status::*;
use super::{Result, bytes, guard, isa, size};
use crate::attention::State;
use crate::conv::{self, Activation, CausalConv};
use crate::gated_norm::{self, Gate, GatedNorm};
use crate::shape::Strides;

/// Writes the bytes of the state of a convolution.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_conv_sizes(conv: *const cw_conv, state_bytes: *mut u64) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, passed on.
        let conv = unsafe { copy(conv)? }.checked()?;
        span::of(state_bytes, 1)?;
        let bytes = bytes(conv.state_len())?;
        // SAFETY: non-null and aligned, as just checked; the caller promises that it can be written.
        unsafe { state_bytes.write(bytes) };
        Ok(())
    })
}

/// Computes the convolution of all tokens.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_conv_forward(conv: *const cw_conv) -> i32 {
    // SAFETY: the caller's promise, passed on.
    guard(|| unsafe { copy(conv)?.run(false) })
}

/// Computes the convolution of one token of each sequence.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_conv_decode(conv: *const cw_conv) -> i32 {
    // SAFETY: the caller's promise, passed on.
    guard(|| unsafe { copy(conv)?.run(true) })
}

/// Normalises all rows.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_gated_norm_forward(norm: *const cw_gated_norm) -> i32 {
    // SAFETY: the caller's promise, passed on.
    guard(|| unsafe { copy(norm)?.run() })
}

/// The `rank` dims of a tensor, followed by ones.
fn dims(tensor: &cw_tensor, rank: u32) -> Result<[usize; 4]> {
    if !(CW_F32..=CW_F16).contains(&tensor.dtype) {
        return Err(Status(CW_UNKNOWN));
    }
    if tensor.rank != rank {
        return Err(Status(CW_SHAPE));
    }
    let mut dims = [1; 4];
    for (to, dim) in dims.iter_mut().zip(&tensor.dims[..rank as usize]) {
        *to = size(*dim)?;
    }
    Ok(dims)
}

impl cw_conv {
    fn is_ragged(&self) -> bool {
        !self.sequences.is_null() || self.sequence_count > 0
    }

    fn checked(&self) -> Result<CausalConv> {
        let [batch, len, channels, _] = dims(&self.x, 3)?;
        if dims(&self.y, 3)? != [batch, len, channels, 1] || self.is_ragged() && batch != 1 {
            return Err(Status(CW_SHAPE));
        }
        let batch = if self.is_ragged() { size(self.sequence_count)? } else { batch };
        let strides = |tensor: &cw_tensor| -> Result<conv::Strides> {
            let [batch, token, channel, _] = tensor.strides;
            Ok(conv::Strides { batch: size(batch)?, token: size(token)?, channel: size(channel)? })
        };
        let activation = match self.activation {
            CW_ACTIVATION_NONE => Activation::None,
            CW_ACTIVATION_SILU => Activation::Silu,
            _ => return Err(Status(CW_UNKNOWN)),
        };
        let config = conv::Config::new(batch, len, channels, size(self.width)?)
            .strides(strides(&self.x)?, strides(&self.y)?)
            .activation(activation);
        Ok(CausalConv::new(conv::Config { isa: isa(self.isa)?, ..config })?)
    }

    /// # Safety
    /// The memory that the structure points to exists, and nothing else writes it, or reads what is written.
    unsafe fn run(self, decode: bool) -> Result<()> {
        let conv = self.checked()?;
        let conv::Config { batch, len, channels, width, .. } = *conv.config();
        let carried = self.state_in == self.state_out.cast_const();
        if decode {
            if self.state_in.is_null() && conv.state_len() > 0 {
                return Err(Status(CW_NULL));
            }
            if len != 1 || self.is_ragged() || !carried {
                return Err(Status(CW_SHAPE));
            }
        }
        // All tokens of a ragged batch are in one batch row.
        let [x_len, y_len] = conv.reach(if self.is_ragged() { 1 } else { batch }, len)?;
        let taps = channels.checked_mul(width).ok_or(Status(CW_OVERFLOW))?;
        let biases = if self.bias.is_null() { 0 } else { channels };
        let begins = if self.is_ragged() { batch.saturating_add(1) } else { 0 };
        let state = |given: *const f32| {
            let len = if given.is_null() { 0 } else { conv.state_len() };
            needed(given, if len == 0 { 0 } else { self.state_bytes }, len)
        };
        let last = state(self.state_out)?;
        let initial = if carried { Span::default() } else { state(self.state_in)? };
        apart(
            &[self.y.span(y_len)?, last],
            &[
                self.x.span(x_len)?,
                span::of(self.weight, taps)?,
                span::of(self.bias, biases)?,
                span::of(self.sequences, begins)?,
                initial,
            ],
        )?;
        let states = conv.state_len();
        // SAFETY: each span has been checked: it is non-null, aligned and inside the address space, and what
        // is written is apart from everything else. The rest is the caller's promise.
        unsafe {
            let weight = slice(self.weight, taps);
            let mut tensors = conv::Tensors::new(self.x.elements(x_len), weight, self.y.elements_mut(y_len));
            if biases > 0 {
                tensors = tensors.bias(slice(self.bias, biases));
            }
            if begins > 0 {
                tensors = tensors.sequences(slice(self.sequences, begins));
            }
            if decode {
                return Ok(conv.decode(tensors, slice_mut(self.state_out, states))?);
            }
            let state = match (self.state_in.is_null(), self.state_out.is_null()) {
                (true, true) => State::Zero,
                (false, true) => State::Initial(slice(self.state_in, states)),
                (true, false) => State::Final(slice_mut(self.state_out, states)),
                _ if carried => State::Carried(slice_mut(self.state_out, states)),
                _ => State::InitialFinal(slice(self.state_in, states), slice_mut(self.state_out, states)),
            };
            Ok(conv.forward(tensors, state)?)
        }
    }
}

impl cw_gated_norm {
    /// # Safety
    /// As for [`cw_conv::run`].
    unsafe fn run(self) -> Result<()> {
        let [batch, len, heads, row] = dims(&self.y, 4)?;
        for tensor in [&self.x, &self.z] {
            if dims(tensor, 4)? != [batch, len, heads, row] {
                return Err(Status(CW_SHAPE));
            }
        }
        let strides = |tensor: &cw_tensor| -> Result<Strides> {
            let [batch, token, head, element] = tensor.strides;
            if element != 1 {
                return Err(Status(CW_SHAPE));
            }
            Ok(Strides { batch: size(batch)?, token: size(token)?, head: size(head)? })
        };
        let gate = match self.gate {
            CW_NORM_SILU => Gate::Silu,
            CW_NORM_SIGMOID => Gate::Sigmoid,
            _ => return Err(Status(CW_UNKNOWN)),
        };
        let config = gated_norm::Config::new(batch, len, heads, row)
            .strides(strides(&self.x)?, strides(&self.z)?, strides(&self.y)?)
            .gate(gate)
            .eps(self.eps);
        let norm = GatedNorm::new(gated_norm::Config { isa: isa(self.isa)?, ..config })?;
        let [x_len, z_len, y_len] = norm.reach();
        let same =
            |x: &cw_tensor, y: &cw_tensor| (x.data, x.dtype, x.strides) == (y.data, y.dtype, y.strides);
        let in_place = same(&self.x, &self.y);
        let weights = if self.weight.is_null() { 0 } else { row };
        let x = self.x.span(x_len)?;
        let read = [
            if in_place { Span::default() } else { x },
            self.z.span(z_len)?,
            span::of(self.weight, weights)?,
        ];
        apart(&[self.y.span(y_len)?], &read)?;
        // SAFETY: as in `cw_conv::run`; x either is y or is apart from it.
        unsafe {
            let (z, y) = (self.z.elements(z_len), self.y.elements_mut(y_len));
            let mut tensors = if in_place {
                gated_norm::Tensors::in_place(z, y)
            } else {
                gated_norm::Tensors::new(self.x.elements(x_len), z, y)
            };
            if weights > 0 {
                tensors = tensors.weight(slice(self.weight, weights));
            }
            Ok(norm.forward(tensors)?)
        }
    }
}
