//! Scratch: memory that the caller provides, cut into aligned parts.

use crate::error::{Result, check_room};

/// Elements in a cache line; parts begin on one, so that no vector load straddles two lines.
const LINE: usize = 64 / size_of::<f32>();

/// Elements of a part, rounded up so that the next part is aligned as well.
pub(crate) const fn padded(len: usize) -> usize {
    round_up(len, LINE)
}

/// The next multiple of `step`, or the largest multiple that fits.
pub(crate) const fn round_up(len: usize, step: usize) -> usize {
    len.saturating_add(step - 1) / step * step
}

/// Elements to provide so that `len` of them can be aligned wherever the slice begins.
pub(crate) const fn with_alignment(len: usize) -> usize {
    if len == 0 { 0 } else { len.saturating_add(LINE - 1) }
}

/// Checks that the caller's scratch is long enough.
pub(crate) fn check(scratch: &[f32], need: usize) -> Result<()> {
    check_room("scratch", need, scratch.len())
}

/// Elements before the first one that begins a cache line.
pub(crate) fn misalignment(memory: &[f32]) -> usize {
    memory.as_ptr().align_offset(64).min(memory.len())
}

/// The slice from its first aligned element on.
pub(crate) fn align(scratch: &mut [f32]) -> &mut [f32] {
    let skip = misalignment(scratch);
    &mut scratch[skip..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_wherever_it_lies() {
        let mut memory = [0.0; 80];
        for from in 0..16 {
            let part = align(&mut memory[from..][..with_alignment(48)]);
            assert!(part.len() >= 48 && part.as_ptr().addr().is_multiple_of(64), "from {from}");
        }
        assert_eq!((padded(0), padded(1), padded(16), padded(17)), (0, 16, 16, 32));
        assert_eq!(round_up(usize::MAX, 16), usize::MAX - 15);
    }
}
