//! The layout of wgmma operands in shared memory.

use crate::fault::Fault;

/// The layout that a matrix descriptor gives.
pub(super) struct Layout {
    base: u64,
    leading: u64,
    stride: u64,
    /// The number of bytes of a swizzled row, or 16 without swizzle.
    row: u64,
    trans: bool,
}

impl Layout {
    pub fn new(desc: u64, trans: bool) -> Result<Layout, Fault> {
        let part = |shift: u32| (desc >> shift & 0x3fff) << 4;
        let row = match desc >> 62 {
            0 => 16,
            1 => 128,
            2 => 64,
            _ => 32,
        };
        if desc >> 49 & 7 != 0 {
            return Err(Fault::other(format!(
                "descriptor {desc:#x} has a base offset, which is not known here"
            )));
        }
        Ok(Layout { base: part(0), leading: part(16), stride: part(32), row, trans })
    }

    /// Returns the address of the element with index `mn` along M or N and `k` along K.
    pub fn at(&self, mn: u64, k: u64) -> u64 {
        // `fast` is the index in the contiguous dimension, and `slow` the index in the other one.
        let (fast, slow) = if self.trans { (mn, k) } else { (k, mn) };
        let per = self.row / 2;
        let offset = if self.row == 16 {
            // The operand consists of pieces of 8 x 8 elements. Whichever dimension is contiguous, `leading` is the
            // step along K and `stride` the step along M or N, as in the canonical layouts.
            let (along_k, along_mn) = (self.leading, self.stride);
            let steps = if self.trans {
                fast / 8 * along_mn + slow / 8 * along_k
            } else {
                fast / 8 * along_k + slow / 8 * along_mn
            };
            steps + slow % 8 * 16 + fast % 8 * 2
        } else {
            slow / 8 * self.stride + slow % 8 * self.row + fast / per * self.leading + fast % per * 2
        };
        let at = self.base + offset;
        // Bits 7 to 9 of the address select the row of the swizzle pattern, wherever the operand starts.
        let swizzle = match self.row {
            128 => 0x70,
            64 => 0x30,
            32 => 0x10,
            _ => 0,
        };
        at ^ (at >> 3 & swizzle)
    }
}
