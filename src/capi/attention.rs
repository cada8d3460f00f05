//! Attention: sizes, forward and decode, whole or in ranges of heads.

use core::ops::Range;

use super::args::{Headed, Output, cw_attention, cw_call, cw_sizes, slice, slice_mut};
use super::draft::Draft;
use super::span::{self, Span, apart, needed};
use super::status::*;
use super::{Result, arguments, bytes, guard, size};
use crate::attention::{Attention, Config, Op, Part, States};
use crate::rule::{Gate, Update};
use crate::tensors::{Disjoint, Tensors};

/// Writes the sizes of the memory that calls need. It does not access the data, the states or the scratch of
/// `call`.
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
        // A size that no memory has room for is one of a call that is refused.
        let backward = attention.check_gradients().map_err(Status::from);
        let backward = backward.and_then(|()| bytes(attention.backward_scratch_len()));
        sizes.write(cw_sizes {
            state_bytes: bytes(attention.state_len())?,
            state_align: align_of::<f32>() as u64,
            forward_scratch_bytes: bytes(attention.scratch_len())?,
            decode_scratch_bytes: bytes(attention.decode_scratch_len())?,
            scratch_align: align_of::<f32>() as u64,
            record_bytes: if attention.check_draft().is_ok() { bytes(attention.record_len())? } else { 0 },
            backward_scratch_bytes: backward.unwrap_or(0),
            ..cw_sizes::DEFAULT
        });
        Ok(())
    })
}

/// Computes the outputs of all tokens of all heads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_forward(attention: *const cw_attention, call: *const cw_call) -> i32 {
    // SAFETY: the caller's promise, passed on.
    guard(|| unsafe { run(Op::Forward, attention, call, None, None) })
}

/// Computes the outputs of all tokens of some heads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_forward_range(
    attention: *const cw_attention,
    call: *const cw_call,
    first: u64,
    count: u64,
) -> i32 {
    // SAFETY: the caller's promise, passed on.
    guard(|| unsafe { run(Op::Forward, attention, call, Some((first, count)), None) })
}

/// Decodes one token of all heads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_decode(attention: *const cw_attention, call: *const cw_call) -> i32 {
    // SAFETY: the caller's promise, passed on.
    guard(|| unsafe { run(Op::Decode, attention, call, None, None) })
}

/// Decodes one token of some heads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_decode_range(
    attention: *const cw_attention,
    call: *const cw_call,
    first: u64,
    count: u64,
) -> i32 {
    // SAFETY: the caller's promise, passed on.
    guard(|| unsafe { run(Op::Decode, attention, call, Some((first, count)), None) })
}

/// `range` is the first head, counted through all sequences, and the number of heads. `draft` is given if the
/// tokens are only verified.
pub(super) unsafe fn run(
    op: Op,
    attention: *const cw_attention,
    call: *const cw_call,
    range: Option<(u64, u64)>,
    draft: Option<Draft>,
) -> Result<()> {
    // SAFETY: the caller's promise, passed on.
    let (attention, call) = unsafe { arguments(attention, call)? };
    let whole = attention.with(&call)?;
    if op == Op::Decode {
        if call.state_in.is_null() || call.state_out.is_null() {
            return Err(Status(CW_NULL));
        }
        let shape = &whole.config().shape;
        if shape.len != shape.one_token().len || call.state_in != call.state_out.cast_const() {
            return Err(Status(CW_SHAPE));
        }
    }
    let record = draft.map(|draft| draft.check(&call, &whole)).transpose()?.unwrap_or_default();
    let heads = heads(range, whole.all_heads())?;
    let attention = if range.is_some() { whole.on_one_thread() } else { whole };
    let scratch_len = match op {
        Op::Forward => attention.scratch_len(),
        Op::Decode => attention.decode_scratch_len(),
    };

    let lengths = Lengths::new(op, &call, attention.config())?;
    let memory = Memory::new(&call, &attention, heads.clone())?;
    let scratch = needed(call.scratch.cast::<f32>(), call.scratch_bytes, scratch_len)?;
    let [q, k, v, g, beta] = lengths.inputs(&call)?;
    let [a_log, dt_bias, sequences] = lengths.parameters(&call)?;
    let read = [q, k, v, g, beta, a_log, dt_bias, sequences, memory.read];
    apart(&[call.o.span(lengths.o)?, memory.written, scratch, record], &read)?;

    // SAFETY: each span has been checked: it is non-null, aligned and inside the address space, and what is
    // written is apart from everything else. That the memory exists, and that no other thread writes it, is
    // the caller's promise; other ranges of the same call have other rows of o and other parts of the state.
    let (tensors, mut states, scratch): (Tensors<'_>, States<'_>, &mut [f32]) =
        unsafe { (lengths.tensors(&call), memory.states(), slice_mut(call.scratch.cast(), scratch_len)) };
    // SAFETY: the record has been checked in the same way.
    states.record = draft.map(|draft| unsafe { draft.record(&attention, heads.clone()) });
    attention.check_tensors(op, &tensors)?;
    if let Some(initial) = states.initial {
        attention.check_state(initial, heads.clone())?;
    }
    if let Some(carried) = states.carried {
        // SAFETY: no other reference to it has been made yet.
        attention.check_state(unsafe { carried.whole() }, heads.clone())?;
    }
    match (range, op) {
        (Some(_), _) => Part::new(&attention, op, heads, tensors, states).run(scratch)?,
        (None, Op::Forward) => attention.run::<false>(&tensors, states, scratch),
        (None, Op::Decode) => attention.run::<true>(&tensors, states, scratch),
    }
    Ok(())
}

/// The heads of a range, which are all of them where there is no range.
fn heads(range: Option<(u64, u64)>, all: usize) -> Result<Range<usize>> {
    let Some((first, count)) = range else { return Ok(0..all) };
    let end = first.checked_add(count).filter(|end| *end <= all as u64);
    Ok(size(first)?..size(end.ok_or(Status(CW_RANGE))?)?)
}

/// The numbers of elements of each array of a call.
struct Lengths {
    q: usize,
    k: usize,
    v: usize,
    o: usize,
    g: usize,
    beta: usize,
    a_log: usize,
    dt_bias: usize,
    sequences: usize,
}

impl Lengths {
    fn new(op: Op, call: &cw_call, config: &Config) -> Result<Self> {
        let Config { rule, shape, .. } = config;
        let [q, k, v, o] = shape.reach()?;
        let row = rule.gate_row(shape.key);
        let given = |parameter: *const f32, len| if parameter.is_null() { 0 } else { len };
        Ok(Self {
            q,
            k,
            v,
            o,
            g: if rule.gate == Gate::None { 0 } else { shape.reach_g(row)? },
            beta: if rule.update == Update::Linear { 0 } else { shape.reach_beta()? },
            a_log: given(call.a_log, shape.heads),
            dt_bias: given(call.dt_bias, shape.heads.saturating_mul(row)),
            // A decode takes one token of each sequence and does not read where the sequences begin.
            sequences: if shape.ragged && op == Op::Forward { shape.batch.saturating_add(1) } else { 0 },
        })
    }

    /// The memory of q, k, v, g and beta.
    fn inputs(&self, call: &cw_call) -> Result<[Span; 5]> {
        Ok([
            call.q.span(self.q)?,
            call.k.span(self.k)?,
            call.v.span(self.v)?,
            call.g.span(self.g)?,
            call.beta.span(self.beta)?,
        ])
    }

    /// The memory of A_log, dt_bias and the token indices at which sequences begin.
    fn parameters(&self, call: &cw_call) -> Result<[Span; 3]> {
        Ok([
            span::of(call.a_log, self.a_log)?,
            span::of(call.dt_bias, self.dt_bias)?,
            span::of(call.sequences, self.sequences)?,
        ])
    }

    /// # Safety
    /// All spans have been checked. For 'a they can be read and are not written, and rows of o can be
    /// written, by nothing else.
    unsafe fn tensors<'a>(&self, call: &cw_call) -> Tensors<'a> {
        // SAFETY: the caller's promise.
        unsafe {
            Tensors {
                q: call.q.elements(self.q),
                k: call.k.elements(self.k),
                v: call.v.elements(self.v),
                o: call.o.outputs(self.o),
                g: call.g.elements(self.g),
                beta: call.beta.elements(self.beta),
                a_log: slice(call.a_log, self.a_log),
                dt_bias: slice(call.dt_bias, self.dt_bias),
                sequences: (self.sequences > 0).then(|| slice(call.sequences, self.sequences)),
            }
        }
    }
}

/// The memory of the states of some heads.
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
        // The spans cover the states of all heads, of which only a part is used.
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
    /// The spans can be read and written for 'a, by nothing else.
    unsafe fn states<'a>(&self) -> States<'a> {
        // SAFETY: the caller's promise.
        unsafe {
            let last = (!self.last.is_null()).then(|| Disjoint::from_raw(self.last, self.len));
            if self.initial == self.last.cast_const() {
                States { carried: last, ..States::default() }
            } else {
                let initial = (!self.initial.is_null()).then(|| slice(self.initial, self.len));
                States { initial, last, ..States::default() }
            }
        }
    }
}
