//! Divergence: how the lanes of a warp part at branches and come together again.

use super::{Status, Warp};
use crate::block::Block;
use crate::fault::{Fault, check};

/// A group of lanes at another address than the lanes that run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parked {
    pc: u32,
    lanes: u32,
    /// Whether the group has reached an instruction that needs lanes of other groups.
    waits: bool,
}

impl Warp {
    fn park(&mut self, pc: u32, lanes: u32, waits: bool) {
        self.parked.push(Parked { pc, lanes, waits });
        self.next = self.next.min(pc);
    }

    /// Sends the lanes of `mask` to `target` and the other active lanes to the next instruction.
    #[inline(always)]
    pub(super) fn branch(&mut self, target: u32, mask: u32) {
        let rest = self.active & !mask;
        if rest == 0 {
            self.pc = target;
            return;
        }
        let next = self.pc + 1;
        let (first, second) =
            if target < next { ((target, mask), (next, rest)) } else { ((next, rest), (target, mask)) };
        (self.pc, self.active) = first;
        self.park(second.0, second.1, false);
    }

    /// Merges the groups at the same address, and continues with the group at the lowest one.
    pub(super) fn regroup(&mut self) -> Result<(), Fault> {
        if self.active != 0 {
            let (pc, lanes) = (self.pc, self.active);
            self.park(pc, lanes, false);
        }
        self.parked.sort_unstable_by_key(|g| g.pc);
        self.parked.dedup_by(|b, a| {
            let same = a.pc == b.pc;
            if same {
                a.lanes |= b.lanes;
                // The lanes that the group has waited for may be there now.
                a.waits = false;
            }
            same
        });
        let Some(i) = self.parked.iter().position(|g| !g.waits) else {
            let g = self.parked[0];
            (self.pc, self.active) = (g.pc, g.lanes);
            return Err(Fault::other(format!(
                "lanes {:#010x} alone at an instruction that wants others",
                g.lanes
            )));
        };
        let g = self.parked.remove(i);
        (self.pc, self.active) = (g.pc, g.lanes);
        self.next = self.parked.first().map_or(u32::MAX, |g| g.pc);
        Ok(())
    }

    /// Returns whether all lanes of `wanted` execute the instruction. If some of them are at another address, the
    /// active lanes are parked until those arrive; if they cannot arrive, that is a fault.
    pub(super) fn gathered(
        &mut self,
        wanted: u32,
        mask: u32,
        what: &str,
        block: &Block,
    ) -> Result<bool, Fault> {
        if wanted & !mask == 0 || block.options.checks & check::CONVERGENCE == 0 {
            return Ok(true);
        }
        if wanted & self.live & !self.active != 0 {
            let (pc, lanes) = (self.pc, self.active);
            self.park(pc, lanes, true);
            self.active = 0;
            self.regroup()?;
            return Ok(false);
        }
        Err(Fault::other(format!("{what} by lanes {mask:#010x} only, {wanted:#010x} are wanted")))
    }

    /// Ends the lanes of `mask`. Returns whether no lane of the warp is left.
    pub(super) fn exit(&mut self, block: &mut Block, mask: u32) -> Result<bool, Fault> {
        let left = self.copies.iter().find(|c| mask >> c.lane & 1 != 0);
        if let Some(copy) = left
            && block.options.checks & check::CP_ASYNC != 0
        {
            let text = format!("a lane ends with a cp.async to {:#x} that is not waited for", copy.dst);
            return Err(Fault::of_lane(text, copy.lane));
        }
        self.flight.at_exit(block.options.checks)?;
        self.live &= !mask;
        self.active &= !mask;
        // A group that waits for lanes that have returned must look again.
        self.parked.iter_mut().for_each(|g| g.waits = false);
        self.pc += u32::from(self.active != 0);
        if self.active == 0 && self.parked.is_empty() {
            self.status = Status::Done;
            return Ok(true);
        }
        Ok(false)
    }
}
