//! Gradients of attention.

use super::args::{copy, cw_attention, cw_call, cw_gradients, cw_tensor, slice, slice_mut};
use super::span::{self, Span, apart, needed};
use super::status::*;
use super::{Result, arguments, guard};
use crate::attention::Attention;
use crate::backward::{Gradients, Inputs};
use crate::rule::Gate;
use crate::shape::Shape;

/// Computes the gradients of q, k, v, a scalar gate and the initial state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_backward(
    attention: *const cw_attention,
    call: *const cw_call,
    gradients: *const cw_gradients,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, passed on.
        let (attention, call) = unsafe { arguments(attention, call)? };
        // SAFETY: likewise.
        let gradients = unsafe { copy(gradients)? };
        let attention = attention.with(&call)?;
        attention.check_gradients()?;
        if !call.state_out.is_null() {
            return Err(Status(CW_CONFLICT));
        }
        gradients.check(&call)?;
        let memory = Memory::new(&attention, &call, &gradients)?;
        // SAFETY: `Memory::new` has checked each span: it is non-null, aligned and inside the address space,
        // and what is written is apart from everything else. That the memory exists, and that no other thread
        // writes it, is the caller's promise.
        unsafe { memory.run(&attention, &call, &gradients) }
    })
}

impl cw_gradients {
    /// Checks that each gradient has the dims and strides of its tensor in the call, which fit together.
    fn check(&self, call: &cw_call) -> Result<()> {
        let g = (!self.g.data.is_null()).then_some((&self.g, &call.g));
        let all = [(&self.o, &call.o), (&self.q, &call.q), (&self.k, &call.k), (&self.v, &call.v)];
        for (gradient, of) in all.into_iter().chain(g) {
            if !(CW_F32..=CW_F16).contains(&gradient.dtype) {
                return Err(Status(CW_UNKNOWN));
            }
            let layout = |tensor: &cw_tensor| (tensor.rank, tensor.dims, tensor.strides);
            if layout(gradient) != layout(of) {
                return Err(Status(CW_SHAPE));
            }
        }
        Ok(())
    }
}

/// The numbers of elements of each array of a call. They are 0 for a state that is not given.
struct Memory {
    q: usize,
    k: usize,
    v: usize,
    o: usize,
    g: usize,
    /// The gradient of g, if it is wanted.
    g_gradient: Option<usize>,
    sequences: usize,
    /// The initial state.
    initial: Option<usize>,
    /// The gradients of the last and the initial state.
    last: Option<usize>,
    initial_gradient: Option<usize>,
    scratch: usize,
}

impl Memory {
    fn new(attention: &Attention, call: &cw_call, gradients: &cw_gradients) -> Result<Self> {
        let shape: &Shape = &attention.config().shape;
        let [q, k, v, o] = shape.reach()?;
        let given = |state: *const f32| (!state.is_null()).then_some(attention.state_len());
        let g = if attention.config().rule.gate == Gate::None { 0 } else { shape.reach_g(1)? };
        let memory = Self {
            q,
            k,
            v,
            o,
            g,
            g_gradient: (!gradients.g.data.is_null()).then_some(g),
            sequences: if shape.ragged { shape.batch.saturating_add(1) } else { 0 },
            initial: given(call.state_in),
            last: given(gradients.state_out),
            initial_gradient: given(gradients.state_in),
            scratch: attention.backward_scratch_len(),
        };
        memory.check(call, gradients)?;
        Ok(memory)
    }

    fn check(&self, call: &cw_call, gradients: &cw_gradients) -> Result<()> {
        let state = |state: *const f32, bytes: u64, len: Option<usize>| match len {
            Some(len) => needed(state, bytes, len),
            None => Ok(Span::default()),
        };
        let written = [
            gradients.q.span(self.q)?,
            gradients.k.span(self.k)?,
            gradients.v.span(self.v)?,
            gradients.g.span(self.g_gradient.unwrap_or(0))?,
            state(gradients.state_in, gradients.state_bytes, self.initial_gradient)?,
            needed(call.scratch.cast::<f32>(), call.scratch_bytes, self.scratch)?,
        ];
        let read = [
            call.q.span(self.q)?,
            call.k.span(self.k)?,
            call.v.span(self.v)?,
            call.g.span(self.g)?,
            gradients.o.span(self.o)?,
            span::of(call.sequences, self.sequences)?,
            state(call.state_in, call.state_bytes, self.initial)?,
            state(gradients.state_out, gradients.state_bytes, self.last)?,
        ];
        apart(&written, &read)
    }

    /// # Safety
    /// The memory that was checked can be read, and what is written is accessed by nothing else.
    unsafe fn run(&self, attention: &Attention, call: &cw_call, gradients: &cw_gradients) -> Result<()> {
        // SAFETY: the caller's promise.
        let (mut inputs, mut written, scratch) = unsafe {
            (
                Inputs::new(
                    call.q.elements(self.q),
                    call.k.elements(self.k),
                    call.v.elements(self.v),
                    gradients.o.elements(self.o),
                ),
                Gradients::new(
                    gradients.q.elements_mut(self.q),
                    gradients.k.elements_mut(self.k),
                    gradients.v.elements_mut(self.v),
                ),
                slice_mut(call.scratch.cast(), self.scratch),
            )
        };
        // SAFETY: likewise.
        unsafe {
            if self.g > 0 {
                inputs = inputs.gate(call.g.elements(self.g));
            }
            if let Some(len) = self.g_gradient {
                written = written.gate(gradients.g.elements_mut(len));
            }
            if self.sequences > 0 {
                inputs = inputs.sequences(slice(call.sequences, self.sequences));
            }
            if let Some(len) = self.initial {
                inputs = inputs.initial(slice(call.state_in, len));
            }
            if let Some(len) = self.last {
                inputs = inputs.last(slice(gradients.state_out, len));
            }
            if let Some(len) = self.initial_gradient {
                written = written.initial(slice_mut(gradients.state_in, len));
            }
        }
        Ok(attention.backward(inputs, written, scratch)?)
    }
}
