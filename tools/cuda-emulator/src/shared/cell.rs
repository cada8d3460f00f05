//! The history of a word or of a byte.

use super::Touch;

/// The flag of `flight` for a cp.async to the byte. The bits below it count the wgmma reads in flight.
pub(super) const COPYING: u32 = 1 << 15;
/// The flag of `flight` for a word whose bytes have cells of their own.
pub(super) const SPLIT: u32 = 1 << 31;
/// The value of `read_in` for a cell whose readers are in `Shared::many`.
pub(super) const MANY: u32 = u32::MAX;
/// The flag of `written` for an atomic.
pub(super) const ATOMIC: u32 = 1 << 5;
/// The flag of `written` for a cp.async.
pub(super) const COPIED: u32 = 1 << 6;
/// The bit of `written` at which the segment starts.
pub(super) const SEGMENT: u32 = 7;

#[derive(Clone, Copy, Default)]
pub(super) struct Cell {
    /// The last write: the warp, whether it was an atomic or a copy, and the segment.
    pub written: u32,
    /// The number of proxy fences that the writer had executed at that time.
    pub fenced: u32,
    /// The segment of the reads since the last write.
    pub read_in: u32,
    /// The warps that have read in that segment.
    pub read_by: u32,
    /// The asynchronous accesses in flight.
    pub flight: u32,
}

impl Cell {
    /// Records a write by warp `me`. Earlier reads are forgotten, because a later write that is ordered after this one
    /// is ordered after them too.
    #[inline(always)]
    pub fn write(&mut self, me: usize, segment: u32, fences: u32, touch: Touch) {
        let kind = match touch {
            Touch::Atomic => ATOMIC,
            Touch::Copy => COPIED,
            _ => 0,
        };
        self.written = segment << SEGMENT | kind | me as u32;
        self.fenced = fences;
        self.read_in = 0;
    }
}

/// Returns the warp of a value of `written`.
#[inline(always)]
pub(super) fn writer(written: u32) -> usize {
    (written & 31) as usize
}
