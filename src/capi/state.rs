//! States in C memory: initialisation to zeros, and conversion to and from the layout of other libraries.

use super::args::{slice, slice_mut};
use super::span::{self, apart};
use super::status::*;
use super::{Result, guard, size};
use crate::error::{self, Error};
use crate::state;

/// Sets a state to zeros, which is the state before the first token.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_state_init(state: *mut f32, bytes: u64) -> i32 {
    guard(|| {
        let floats = size(bytes)? / size_of::<f32>();
        if !bytes.is_multiple_of(4) {
            return Err(Status(CW_RANGE));
        }
        span::of(state, floats)?;
        if floats > 0 {
            // SAFETY: non-null, aligned and inside the address space, as just checked; the caller promises
            // that it can be written.
            unsafe { state.write_bytes(0, floats) };
        }
        Ok(())
    })
}

/// Copies `[.., K, V]` to `[.., V, K]`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_state_to_value_major(
    key: u64,
    value: u64,
    from: *const f32,
    to: *mut f32,
    bytes: u64,
) -> i32 {
    // SAFETY: the caller's promise, passed on.
    guard(|| unsafe { transpose(state::to_value_major, [key, value], from, to, bytes) })
}

/// Copies `[.., V, K]` to `[.., K, V]`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_state_from_value_major(
    key: u64,
    value: u64,
    from: *const f32,
    to: *mut f32,
    bytes: u64,
) -> i32 {
    // SAFETY: the caller's promise, passed on.
    guard(|| unsafe { transpose(state::from_value_major, [key, value], from, to, bytes) })
}

type Transpose = fn(usize, usize, &[f32], &mut [f32]) -> error::Result<()>;

/// # Safety
/// If `from` and `to` are not refused, `bytes` bytes can be read at `from` and written at `to`, by nothing
/// else meanwhile.
unsafe fn transpose(
    run: Transpose,
    [key, value]: [u64; 2],
    from: *const f32,
    to: *mut f32,
    bytes: u64,
) -> Result<()> {
    let (key, value, len) = (size(key)?, size(value)?, size(bytes)? / size_of::<f32>());
    if !bytes.is_multiple_of(size_of::<f32>() as u64) {
        return Err(Status(CW_RANGE));
    }
    apart(&[span::of(to, len)?], &[span::of(from, len)?])?;
    // SAFETY: non-null, aligned, inside the address space and apart, as just checked; the rest is the
    // caller's promise.
    let (from, to) = unsafe { (slice(from, len), slice_mut(to, len)) };
    run(key, value, from, to).map_err(|error| match error {
        // Both lengths are `len`, so this error means that it is not a multiple of K V.
        Error::Length { .. } => Status(CW_RANGE),
        other => other.into(),
    })
}
