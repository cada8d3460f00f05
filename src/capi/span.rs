//! Memory that C pointers refer to, which is checked before it is accessed.

use super::Result;
use super::status::*;

/// A range of memory: an address and a number of bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    at: usize,
    pub(super) bytes: usize,
}

/// The memory of `len` elements. Where `len` is 0, `data` may be any pointer.
pub(super) fn of<T>(data: *const T, len: usize) -> Result<Span> {
    if len == 0 {
        return Ok(Span::default());
    }
    if data.is_null() {
        return Err(Status(CW_NULL));
    }
    if !data.is_aligned() {
        return Err(Status(CW_MISALIGNED));
    }
    let bytes = len.checked_mul(size_of::<T>()).filter(|bytes| *bytes <= isize::MAX as usize);
    let bytes = bytes.ok_or(Status(CW_OVERFLOW))?;
    data.addr().checked_add(bytes).ok_or(Status(CW_OVERFLOW))?;
    Ok(Span { at: data.addr(), bytes })
}

/// The memory of the `len` elements that are needed, at a pointer for which the caller has given
/// `given_bytes` bytes.
pub(super) fn needed<T>(data: *const T, given_bytes: u64, len: usize) -> Result<Span> {
    let need = len.checked_mul(size_of::<T>()).ok_or(Status(CW_OVERFLOW))?;
    if given_bytes < need as u64 {
        return Err(Status(CW_TOO_SMALL));
    }
    of(data, len)
}

/// Checks that no written span overlaps a read span or another written span.
pub(super) fn apart(written: &[Span], read: &[Span]) -> Result<()> {
    let meet =
        |a: &Span, b: &Span| a.bytes > 0 && b.bytes > 0 && a.at < b.at + b.bytes && b.at < a.at + a.bytes;
    let overlap = written
        .iter()
        .enumerate()
        .any(|(i, one)| written[i + 1..].iter().chain(read).any(|other| meet(one, other)));
    if overlap { Err(Status(CW_OVERLAP)) } else { Ok(()) }
}
