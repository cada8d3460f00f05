//! Drafts: verified on a state that is only read, then committed as far as they are accepted.

use core::ops::Range;

use super::args::{cw_attention, cw_call, slice, slice_mut};
use super::attention::run;
use super::span::{self, Span, apart, needed};
use super::status::*;
use super::{Result, arguments, guard};
use crate::attention::{Attention, Op, Record};
use crate::tensors::Disjoint;

/// Where the record of a draft lies.
#[derive(Clone, Copy)]
pub(super) struct Draft {
    record: *mut f32,
    bytes: u64,
}

impl Draft {
    /// The record's memory, for a call that only reads its state.
    pub(super) fn check(self, call: &cw_call, attention: &Attention) -> Result<Span> {
        attention.check_draft()?;
        if call.state_in.is_null() && attention.state_len() > 0 {
            return Err(Status(CW_NULL));
        }
        if !call.state_out.is_null() {
            return Err(Status(CW_CONFLICT));
        }
        needed(self.record, self.bytes, attention.record_len())
    }

    /// The records of some heads.
    ///
    /// # Safety
    /// `check` has passed; those of these heads can be written for 'a, by nothing else.
    pub(super) unsafe fn record<'a>(self, attention: &Attention, heads: Range<usize>) -> Record<'a> {
        // SAFETY: the caller's promise.
        let data = unsafe { Disjoint::from_raw(self.record, attention.record_len()) };
        Record { data, layout: attention.record_layout() }.cut(heads)
    }
}

/// All tokens of a draft, of all heads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_verify(
    attention: *const cw_attention,
    call: *const cw_call,
    record: *mut f32,
    record_bytes: u64,
) -> i32 {
    let draft = Draft { record, bytes: record_bytes };
    // SAFETY: the caller's promise, passed on.
    guard(|| unsafe { run(Op::Forward, attention, call, None, Some(draft)) })
}

/// All tokens of a draft, of some heads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_verify_range(
    attention: *const cw_attention,
    call: *const cw_call,
    record: *mut f32,
    record_bytes: u64,
    first: u64,
    count: u64,
) -> i32 {
    let draft = Draft { record, bytes: record_bytes };
    // SAFETY: the caller's promise, passed on.
    guard(|| unsafe { run(Op::Forward, attention, call, Some((first, count)), Some(draft)) })
}

/// The accepted tokens of a draft, of all heads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_commit(
    attention: *const cw_attention,
    call: *const cw_call,
    record: *const f32,
    record_bytes: u64,
    accepted: *const u32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, passed on.
        let (attention, call) = unsafe { arguments(attention, call)? };
        let attention = attention.with(&call)?;
        attention.check_draft()?;
        if !core::ptr::eq(call.state_in, call.state_out) {
            return Err(Status(CW_SHAPE));
        }
        let (records, states) = (attention.record_len(), attention.state_len());
        let sequences = attention.config().shape.batch;
        let state = needed(call.state_out, call.state_bytes, states)?;
        apart(&[state], &[needed(record, record_bytes, records)?, span::of(accepted, sequences)?])?;
        // SAFETY: each span was asked about: not null, aligned, inside the address space, and the state apart from the
        // others. That the memory is there, and that no other thread writes it, is the caller's promise.
        let (record, accepted, state) = unsafe {
            (slice(record, records), slice(accepted, sequences), slice_mut(call.state_out, states))
        };
        Ok(attention.commit(record, accepted, state)?)
    })
}
