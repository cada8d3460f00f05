//! Drafts: they are verified on a state that is only read, and then committed as far as they are accepted.

use core::ops::Range;

use super::args::{cw_attention, cw_call, slice, slice_mut};
use super::attention::run;
use super::span::{self, Span, apart, needed};
use super::status::*;
use super::{Result, arguments, guard};
use crate::attention::{Attention, Op, Record};
use crate::tensors::Disjoint;

/// The memory of the record of a draft.
#[derive(Clone, Copy)]
pub(super) struct Draft {
    record: *mut f32,
    bytes: u64,
}

impl Draft {
    /// Checks a call that verifies a draft, and returns the memory of its record.
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

    /// The part of the record that belongs to some heads.
    ///
    /// # Safety
    /// `check` has succeeded, and the parts of these heads can be written for 'a, by nothing else.
    pub(super) unsafe fn record<'a>(self, attention: &Attention, heads: Range<usize>) -> Record<'a> {
        // SAFETY: the caller's promise.
        let data = unsafe { Disjoint::from_raw(self.record, attention.record_len()) };
        Record { data, layout: attention.record_layout() }.cut(heads)
    }
}

/// Verifies all tokens of a draft, of all heads.
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

/// Verifies all tokens of a draft, of some heads.
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

/// Commits the accepted tokens of a draft, of all heads.
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
        // SAFETY: each span has been checked: it is non-null, aligned and inside the address space, and the
        // state is apart from the others. That the memory exists, and that no other thread writes it, is the
        // caller's promise.
        let (record, accepted, state) = unsafe {
            (slice(record, records), slice(accepted, sequences), slice_mut(call.state_out, states))
        };
        Ok(attention.commit(record, accepted, state)?)
    })
}
