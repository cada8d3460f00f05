//! Asynchronous accesses, which are in flight until a wait: the writes of cp.async and the reads of wgmma.

use super::cell::{COPIED, COPYING, Cell, SEGMENT, SPLIT, writer};
use super::{Shared, Touch, address};
use crate::fault::{Fault, check};

impl Shared {
    /// Changes the value of `flight` for whole words.
    fn flights(&mut self, at: usize, len: usize, change: impl Fn(u32) -> u32) {
        for word in at / 4..(at + len) / 4 {
            let flight = self.words[word].flight;
            self.words[word].flight = change(flight & !SPLIT) | flight & SPLIT;
            if flight & SPLIT != 0 {
                let cells = self.bytes.get_mut(&word).expect("a split word has cells for its bytes");
                cells.iter_mut().for_each(|c| c.flight = change(c.flight));
            }
        }
    }

    /// Checks an ordinary access to bytes with accesses in flight.
    #[cold]
    pub(super) fn in_flight(&self, flight: u32, at: usize, touch: Touch, lane: u32) -> Result<(), Fault> {
        let at = address(at);
        if flight & COPYING != 0 && self.checks & check::CP_ASYNC != 0 {
            let text =
                format!("shared memory at {at:#x} is touched while a cp.async to it is not waited for");
            return Err(Fault::of_lane(text, lane));
        }
        if flight & !COPYING != 0 && touch != Touch::Read && self.checks & check::PROXY != 0 {
            let text =
                format!("shared memory at {at:#x} is written while a wgmma that reads it is not waited for");
            return Err(Fault::of_lane(text, lane));
        }
        Ok(())
    }

    /// Records the start of a cp.async to these bytes.
    pub fn copy_begins(&mut self, me: usize, at: usize, len: usize, lane: u32) -> Result<(), Fault> {
        self.touch(me, at, len, Touch::Copy, lane)?;
        self.flights(at, len, |f| f | COPYING);
        Ok(())
    }

    /// Records that a cp.async to these bytes has been waited for.
    pub fn copy_ends(&mut self, me: usize, at: usize, len: usize, lane: u32) -> Result<(), Fault> {
        self.flights(at, len, |f| f & !COPYING);
        self.touch(me, at, len, Touch::Copy, lane)
    }

    /// Records the start of a read of 16 bytes by a wgmma of the four warps from `first` on. The bytes must be written,
    /// the writes must be ordered before the wgmma, and a proxy fence must have made them visible to it.
    pub fn async_read(&mut self, first: usize, at: usize) -> Result<(), Fault> {
        for i in (at..at + 16).step_by(4) {
            if self.words[i / 4].flight & SPLIT != 0 {
                let cells = self.bytes[&(i / 4)];
                (0..4).try_for_each(|j| self.async_check(first, i + j, &cells[j]))?;
            } else {
                self.async_check(first, i, &self.words[i / 4])?;
            }
        }
        self.flights(at, 16, |f| f + 4);
        Ok(())
    }

    fn async_check(&self, first: usize, at: usize, cell: &Cell) -> Result<(), Fault> {
        let (at, written) = (address(at), cell.written);
        if cell.flight & COPYING != 0 && self.checks & check::CP_ASYNC != 0 {
            let text =
                format!("wgmma reads shared memory at {at:#x} while a cp.async to it is not waited for");
            return Err(Fault::other(text));
        }
        if written >> SEGMENT < self.first {
            if self.checks & check::UNWRITTEN == 0 {
                return Ok(());
            }
            return Err(Fault::other(format!("wgmma reads shared memory at {at:#x} that was never written")));
        }
        let writer = writer(written);
        let exempt = written & COPIED != 0 && self.checks & check::PROXY_CP_ASYNC == 0;
        for me in first..first + 4 {
            let by =
                format_args!("wgmma of warp {me} reads shared memory at {at:#x}, written by warp {writer}");
            if !self.ordered(me, written) && self.checks & check::RACE != 0 {
                return Err(Fault::other(format!("race: {by} with no barrier between")));
            }
            let seen = if me == writer { self.fences[me] } else { self.fences_seen[me][writer] };
            if seen <= cell.fenced && !exempt && self.checks & check::PROXY != 0 {
                return Err(Fault::other(format!("{by} with no fence.proxy.async (and barrier) between")));
            }
        }
        Ok(())
    }

    /// Records that a warp has waited for a wgmma that read 16 bytes.
    pub fn async_read_ends(&mut self, me: usize, at: usize) -> Result<(), Fault> {
        self.flights(at, 16, |f| f - u32::from(f & !COPYING != 0));
        self.touch(me, at, 16, Touch::Read, 0)
    }
}
