//! The order between the work of warps, which barriers and fences establish.

use super::cell::{SEGMENT, writer};
use super::{Shared, WARPS};

/// The work that is ordered before the arrival of a warp at a barrier.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// The last segment of each warp that is ordered before.
    work: [u32; WARPS],
    /// The number of proxy fences of each warp that are ordered before.
    fences: [u32; WARPS],
}

impl Shared {
    /// Returns what is ordered before the arrival of a warp at a barrier: its own work so far, and the work of others
    /// that is ordered before it. A new segment starts, because later work of the warp is not ordered by the barrier.
    pub fn arrive(&mut self, warp: usize) -> Arrived {
        let arrived = self.arrived(warp);
        self.next += 1;
        self.segment[warp] = self.next;
        arrived
    }

    fn arrived(&self, warp: usize) -> Arrived {
        let mut arrived = Arrived { work: self.joined[warp], fences: self.fences_seen[warp] };
        arrived.work[warp] = self.segment[warp];
        arrived.fences[warp] = self.fences[warp];
        arrived
    }

    /// Completes a barrier. The warps of the mask have waited for it and continue; `arrivals` are those of the warps
    /// that arrived without waiting.
    pub fn join(&mut self, warps: u32, arrivals: &[Arrived]) {
        let of = || (0..WARPS).filter(|w| warps >> w & 1 != 0);
        let waiting: Vec<_> = of().map(|warp| self.arrived(warp)).collect();
        let (mut all, mut fences) = ([0; WARPS], [0; WARPS]);
        for arrived in waiting.iter().chain(arrivals) {
            for q in 0..WARPS {
                all[q] = all[q].max(arrived.work[q]);
                fences[q] = fences[q].max(arrived.fences[q]);
            }
        }
        self.next += 1;
        for p in of() {
            self.joined[p] = all;
            self.fences_seen[p] = fences;
            self.segment[p] = self.next;
        }
    }

    /// Records a `fence.proxy.async` of a warp.
    pub fn proxy_fence(&mut self, warp: usize) {
        self.fences[warp] += 1;
    }

    /// Returns whether a write, given as a value of `written`, is ordered before the current work of warp `me`.
    #[inline(always)]
    pub(super) fn ordered(&self, me: usize, written: u32) -> bool {
        let warp = writer(written);
        warp == me || self.joined[me][warp] >= written >> SEGMENT
    }

    /// Returns whether the work of other warps in a segment is ordered before the current work of warp `me`.
    pub(super) fn all_ordered(&self, me: usize, segment: u32, warps: u32) -> bool {
        (0..WARPS).all(|w| w == me || warps >> w & 1 == 0 || self.joined[me][w] >= segment)
    }
}
