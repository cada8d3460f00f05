//! Attention: sizes, forward and decode, whole or in ranges of heads.

use core::ops::Range;

use super::args::{Headed, Output, cw_attention, cw_call, cw_sizes, cw_tensor, slice, slice_mut};
use super::span::{Span, apart, needed};
use super::status::*;
use super::{Result, arguments, bytes, guard, isa, size};
use crate::attention::{Attention, Config, Execution, Op, Part, States};
use crate::element::Elements;
use crate::rule::{FeatureMap, Normaliser, Rule};
use crate::shape::{Shape, Strides};
use crate::tensors::{Disjoint, Tensors};

/// What to bring. Neither data nor state nor scratch of the call is looked at.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_attention_sizes(
    attention: *const cw_attention,
    call: *const cw_call,
    sizes: *mut cw_sizes,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, passed on.
        let (attention, call) = unsafe { arguments(attention, call)? };
        // SAFETY: likewise.
        let sizes = unsafe { Output::new(sizes)? };
        let attention = attention.with(&call)?;
        sizes.write(cw_sizes {
            state_bytes: bytes(attention.state_len())?,
            state_align: align_of::<f32>() as u64,
            forward_scratch_bytes: bytes(attention.scratch_len())?,
            decode_scratch_bytes: bytes(attention.decode_scratch_len())?,
            scratch_align: align_of::<f32>() as u64,
            ..cw_sizes::DEFAULT
        });
        Ok(())
    })
}

/// All tokens of all heads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_forward(attention: *const cw_attention, call: *const cw_call) -> i32 {
    // SAFETY: the caller's promise, passed on.
    guard(|| unsafe { run(Op::Forward, attention, call, None) })
}

/// All tokens of some heads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_forward_range(
    attention: *const cw_attention,
    call: *const cw_call,
    first: u64,
    count: u64,
) -> i32 {
    // SAFETY: the caller's promise, passed on.
    guard(|| unsafe { run(Op::Forward, attention, call, Some((first, count))) })
}

/// One token of all heads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_decode(attention: *const cw_attention, call: *const cw_call) -> i32 {
    // SAFETY: the caller's promise, passed on.
    guard(|| unsafe { run(Op::Decode, attention, call, None) })
}

/// One token of some heads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_decode_range(
    attention: *const cw_attention,
    call: *const cw_call,
    first: u64,
    count: u64,
) -> i32 {
    // SAFETY: the caller's promise, passed on.
    guard(|| unsafe { run(Op::Decode, attention, call, Some((first, count))) })
}

/// `range` is the first of the heads of all sequences, and how many.
unsafe fn run(
    op: Op,
    attention: *const cw_attention,
    call: *const cw_call,
    range: Option<(u64, u64)>,
) -> Result<()> {
    // SAFETY: the caller's promise, passed on.
    let (attention, call) = unsafe { arguments(attention, call)? };
    let whole = attention.with(&call)?;
    if op == Op::Decode {
        if call.state_in.is_null() || call.state_out.is_null() {
            return Err(Status(CW_NULL));
        }
        if call.q.dims[1] != 1 || call.state_in != call.state_out.cast_const() {
            return Err(Status(CW_SHAPE));
        }
    }
    let heads = match range {
        Some((first, count)) => {
            let end = first.checked_add(count).filter(|end| *end <= whole.all_heads() as u64);
            size(first)?..size(end.ok_or(Status(CW_RANGE))?)?
        }
        None => 0..whole.all_heads(),
    };
    let attention = if range.is_some() { whole.on_one_thread() } else { whole };
    let scratch_len = match op {
        Op::Forward => attention.scratch_len(),
        Op::Decode => attention.decode_scratch_len(),
    };

    let [q, k, v, o] = attention.config().shape.reach()?;
    let memory = Memory::new(&call, &attention, heads.clone())?;
    let scratch = needed(call.scratch.cast::<f32>(), call.scratch_bytes, scratch_len)?;
    let read = [call.q.span(q)?, call.k.span(k)?, call.v.span(v)?, memory.read];
    apart(&[call.o.span(o)?, memory.written, scratch], &read)?;

    // SAFETY: each span was asked about: not null, aligned, inside the address space, and what is written apart from all
    // else. That the memory is there, and that no other thread writes it, is the caller's promise; other ranges of the same
    // call have other rows of o and other parts of the state.
    let (tensors, states, scratch): (Tensors<'_>, States<'_>, &mut [f32]) = unsafe {
        (
            Tensors {
                q: call.q.elements(q),
                k: call.k.elements(k),
                v: call.v.elements(v),
                o: call.o.outputs(o),
                g: Elements::default(),
                beta: Elements::default(),
                a_log: &[],
                dt_bias: &[],
                sequences: None,
            },
            memory.states(),
            slice_mut(call.scratch.cast(), scratch_len),
        )
    };
    attention.check_tensors(op, &tensors)?;
    if let Some(initial) = states.initial {
        attention.check_state(initial, heads.clone())?;
    }
    if let Some(carried) = states.carried {
        // SAFETY: nothing else was made of it yet.
        attention.check_state(unsafe { carried.whole() }, heads.clone())?;
    }
    match (range, op) {
        (Some(_), _) => Part::new(&attention, op, heads, tensors, states).run(scratch)?,
        (None, Op::Forward) => attention.run::<false>(&tensors, states, scratch),
        (None, Op::Decode) => attention.run::<true>(&tensors, states, scratch),
    }
    Ok(())
}

/// Where the states of some heads lie.
struct Memory {
    initial: *const f32,
    last: *mut f32,
    len: usize,
    read: Span,
    written: Span,
}

impl Memory {
    fn new(call: &cw_call, attention: &Attention, heads: Range<usize>) -> Result<Self> {
        let (all, head) = (attention.state_len(), attention.head_state_len());
        let (begin, len) = (heads.start * head, heads.len() * head);
        let carried = call.state_in == call.state_out.cast_const();
        let mut memory = Self {
            initial: call.state_in,
            last: call.state_out,
            len,
            read: Span::default(),
            written: Span::default(),
        };
        // Asked about as a whole, taken in part.
        if !call.state_in.is_null() && !carried {
            memory.read = needed(call.state_in, call.state_bytes, all)?;
            memory.initial = call.state_in.wrapping_add(begin);
        }
        if !call.state_out.is_null() {
            memory.written = needed(call.state_out, call.state_bytes, all)?;
            memory.last = call.state_out.wrapping_add(begin);
        }
        if carried {
            memory.initial = memory.last;
        }
        Ok(memory)
    }

    /// # Safety
    /// The spans can be read and written for 'a, by nobody else.
    unsafe fn states<'a>(&self) -> States<'a> {
        // SAFETY: the caller's promise.
        unsafe {
            let last = (!self.last.is_null()).then(|| Disjoint::from_raw(self.last, self.len));
            if self.initial == self.last.cast_const() {
                States { carried: last, ..States::default() }
            } else {
                let initial = (!self.initial.is_null()).then(|| slice(self.initial, self.len));
                States { initial, last, carried: None }
            }
        }
    }
}

impl cw_attention {
    /// With the shapes of a call, on the CPU.
    fn with(&self, call: &cw_call) -> Result<Attention> {
        let config = self.config(call)?;
        if self.products == CW_PRODUCTS_BF16 {
            // Only GPUs have them.
            return Err(Status(CW_UNAVAILABLE));
        }
        Ok(Attention::new(config)?)
    }

    /// The same, not yet checked; `products` is one of its constants.
    pub(super) fn config(&self, call: &cw_call) -> Result<Config> {
        let [batch, len, heads, key] = call.q.dims()?;
        let [.., value] = call.v.dims()?;
        let same = [
            (&call.q, call.q.dims),
            (&call.k, call.q.dims),
            (&call.v, [call.q.dims[0], call.q.dims[1], call.q.dims[2], call.v.dims[3]]),
            (&call.o, [call.q.dims[0], call.q.dims[1], call.q.dims[2], call.v.dims[3]]),
        ];
        for (tensor, dims) in same {
            if !(CW_F32..=CW_F16).contains(&tensor.dtype) {
                return Err(Status(CW_UNKNOWN));
            }
            if tensor.rank != 4 || tensor.dims != dims || tensor.strides[3] != 1 {
                return Err(Status(CW_SHAPE));
            }
        }
        if !(CW_PRODUCTS_F32..=CW_PRODUCTS_BF16).contains(&self.products) || self.reserved != 0 {
            return Err(Status(CW_UNKNOWN));
        }
        let rule = Rule::linear(self.normaliser()?)
            .feature_map(feature_map(self.feature_map, self.feature_eps)?)
            .scale(self.scale)
            .compensated(flag(self.compensated)?);
        let shape = Shape::new(batch, len, heads, key, value)
            .with_inputs(strides(&call.q)?, strides(&call.k)?, strides(&call.v)?)
            .with_output(strides(&call.o)?);
        let execution = Execution { isa: isa(self.isa)?, threads: self.threads as usize };
        Ok(Config { rule, shape, execution })
    }

    fn normaliser(&self) -> Result<Normaliser> {
        let eps = self.normaliser_eps;
        match self.normaliser {
            CW_NONE => Ok(Normaliser::None),
            CW_GLOBAL => Ok(Normaliser::Global { eps }),
            CW_PER_CHUNK => Ok(Normaliser::PerChunk { chunk: size(self.chunk)?, eps }),
            _ => Err(Status(CW_UNKNOWN)),
        }
    }
}

pub(super) fn feature_map(number: u32, eps: f32) -> Result<FeatureMap> {
    match number {
        CW_ELU => Ok(FeatureMap::Elu),
        CW_RELU => Ok(FeatureMap::Relu { eps }),
        CW_IDENTITY => Ok(FeatureMap::Identity),
        _ => Err(Status(CW_UNKNOWN)),
    }
}

/// Yes or no.
pub(super) fn flag(number: u32) -> Result<bool> {
    match number {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Status(CW_UNKNOWN)),
    }
}

fn strides(tensor: &cw_tensor) -> Result<Strides> {
    let [batch, token, head, _] = tensor.strides;
    Ok(Strides { batch: size(batch)?, token: size(token)?, head: size(head)? })
}
