//! cp.async. The bytes arrive in shared memory at the wait, so that a kernel that reads them earlier gets wrong values.

use super::lane::outside;
use crate::block::Block;
use crate::fault::{Fault, check};
use crate::isa::Addr;
use crate::lanes::each;
use crate::warp::{Pending, Warp};

impl Warp {
    /// Starts a copy in each lane of `mask`.
    pub(crate) fn copy_async(
        &mut self,
        block: &mut Block,
        dst: &Addr,
        src: &Addr,
        bytes: u32,
        size: Option<u32>,
        mask: u32,
    ) -> Result<(), Fault> {
        let (dsts, srcs) = (self.addresses(dst), self.addresses(src));
        let (mut reading, mut read) = (0, 0);
        for i in each(mask) {
            let (lane, at) = (i as u32, srcs[i]);
            let size = size.map_or(bytes, |s| self.regs.w[s as usize][i]);
            if size > bytes {
                return Err(Fault::of_lane(format!("cp.async of {size} bytes, the most are {bytes}"), lane));
            }
            let place = block.shared.place(dsts[i], bytes as usize, bytes.into(), lane)?;
            if !at.is_multiple_of(bytes.into()) && block.options.checks & check::ALIGN != 0 {
                return Err(Fault::align(format!("misaligned source of cp.async at {at:#x}"), lane));
            }
            if size > 0 {
                if !block.map.holds(at, size.into()) {
                    return Err(outside(block, at, size, lane));
                }
                reading |= 1 << i;
                read += u64::from(size);
            }
            block.shared.copy_begins(self.id as usize, place, bytes as usize, lane)?;
            let (dst, group) = (place as u32, self.commits[i]);
            self.copies.push(Pending { lane, group, dst, src: at, bytes, size });
        }
        if reading != 0 {
            block.counters.sectors(&srcs, reading);
            block.counters.global_read += read;
        }
        block.counters.banks(&dsts, mask, bytes);
        Ok(())
    }

    /// Completes the copies that a wait of the lanes of `mask` covers.
    pub(crate) fn copy_wait(&mut self, block: &mut Block, left: Option<u32>, mask: u32) -> Result<(), Fault> {
        let mut copies = std::mem::take(&mut self.copies);
        let mut result = Ok(());
        copies.retain(|c| {
            let done = self.commits[c.lane as usize];
            // Groups are counted from 0. Of the `done` groups that are committed, the last `left` may stay in flight.
            let covered = left.is_none_or(|left| c.group < done.saturating_sub(left));
            if mask >> c.lane & 1 == 0 || !covered || result.is_err() {
                return true;
            }
            let (dst, bytes) = (c.dst as usize, c.bytes as usize);
            result = block.shared.copy_ends(self.id as usize, dst, bytes, c.lane);
            let to = block.shared.bytes_mut(dst, bytes);
            to.fill(0);
            let from = std::ptr::with_exposed_provenance::<u8>(c.src as usize);
            // SAFETY: `copy_async` has found these bytes in the launch's map, which does not change while the launch
            // runs; `to` is memory that only the emulator accesses.
            unsafe { to.as_mut_ptr().copy_from_nonoverlapping(from, c.size as usize) };
            false
        });
        self.copies = copies;
        result
    }
}
