//! Accesses of warps: each one is checked against the history of its bytes and recorded there.

use super::cell::{ATOMIC, Cell, MANY, SEGMENT, SPLIT, writer};
use super::{Shared, Touch, WARPS, address};
use crate::fault::{Fault, check};

impl Shared {
    /// Checks and records an access of warp `me`.
    #[inline]
    pub fn touch(&mut self, me: usize, at: usize, len: usize, touch: Touch, lane: u32) -> Result<(), Fault> {
        if !(at | len).is_multiple_of(4) {
            return self.touch_bytes(me, at, len, touch, lane);
        }
        for word in at / 4..(at + len) / 4 {
            if self.quick(me, word, touch) {
                continue;
            }
            let cell = self.words[word];
            if cell.flight & SPLIT != 0 {
                self.touch_bytes(me, word * 4, 4, touch, lane)?;
            } else {
                self.words[word] = self.step(cell, me, word * 4, touch, lane)?;
            }
        }
        Ok(())
    }

    /// Does the work of `step` in the common cases. Returns false, and changes nothing, if there may be a fault or if
    /// the case is not a simple one.
    #[inline(always)]
    fn quick(&mut self, me: usize, word: usize, touch: Touch) -> bool {
        let (cell, joined, now) = (&mut self.words[word], &self.joined[me], self.segment[me]);
        let (segment, warp) = (cell.written >> SEGMENT, writer(cell.written));
        if cell.flight != 0 || warp != me && joined[warp] < segment && segment >= self.first {
            return false;
        }
        if touch == Touch::Read {
            if segment < self.first {
                return false;
            }
            if cell.read_in == now {
                cell.read_by |= 1 << me;
                return true;
            }
        }
        if cell.read_in >= self.first {
            let mut others = cell.read_by & !(1 << me);
            while others != 0 {
                if joined[others.trailing_zeros() as usize] < cell.read_in {
                    return false;
                }
                others &= others - 1;
            }
            if cell.read_in == MANY {
                return false;
            }
        }
        if touch == Touch::Read {
            (cell.read_in, cell.read_by) = (now, 1 << me);
        } else {
            cell.write(me, now, self.fences[me], touch);
        }
        true
    }

    /// Returns the cells of a word's bytes. If the bytes have none yet, they start as copies of the word's.
    #[cold]
    fn split(&mut self, word: usize) -> [Cell; 4] {
        let cell = self.words[word];
        if cell.flight & SPLIT != 0 {
            return self.bytes[&word];
        }
        self.words[word].flight |= SPLIT;
        if cell.read_in == MANY {
            let list = self.many[&(word * 4)].clone();
            (1..4).for_each(|i| drop(self.many.insert(word * 4 + i, list.clone())));
        }
        [cell; 4]
    }

    #[cold]
    fn touch_bytes(
        &mut self,
        me: usize,
        at: usize,
        len: usize,
        touch: Touch,
        lane: u32,
    ) -> Result<(), Fault> {
        for i in at..at + len {
            let mut cells = self.split(i / 4);
            cells[i % 4] = self.step(cells[i % 4], me, i, touch, lane)?;
            self.bytes.insert(i / 4, cells);
        }
        Ok(())
    }

    /// Returns the history of a word or byte after one more access.
    #[cold]
    fn step(&mut self, mut cell: Cell, me: usize, at: usize, touch: Touch, lane: u32) -> Result<Cell, Fault> {
        if cell.flight != 0 {
            self.in_flight(cell.flight, at, touch, lane)?;
        }
        let written = cell.written;
        let fresh = written >> SEGMENT < self.first;
        let atomics = touch == Touch::Atomic && written & ATOMIC != 0;
        if !(fresh || self.ordered(me, written) || atomics) {
            self.race(me, at, touch, "written", writer(written), lane)?;
        }
        let now = self.segment[me];
        if touch != Touch::Read {
            self.readers(me, at, touch, lane, &cell)?;
            cell.write(me, now, self.fences[me], touch);
            return Ok(cell);
        }
        if fresh && self.checks & check::UNWRITTEN != 0 {
            return Err(self.unwritten(at, lane));
        }
        if cell.read_in == now {
            cell.read_by |= 1 << me;
        } else if cell.read_in != MANY
            && (cell.read_in < self.first || self.all_ordered(me, cell.read_in, cell.read_by))
        {
            (cell.read_in, cell.read_by) = (now, 1 << me);
        } else {
            self.spill(me, at, now, &mut cell);
        }
        Ok(cell)
    }

    #[cold]
    fn unwritten(&self, at: usize, lane: u32) -> Fault {
        let at = address(at);
        Fault::of_lane(format!("read of shared memory at {at:#x} that was never written"), lane)
    }

    /// Adds a reader to the list of a cell. A list is needed when the readers are of different segments and no barrier
    /// has ordered the earlier ones before the later ones.
    #[cold]
    fn spill(&mut self, me: usize, at: usize, now: u32, cell: &mut Cell) {
        let list = self.many.entry(at).or_default();
        if cell.read_in != MANY {
            list.clear();
            list.extend((0..WARPS).filter(|w| cell.read_by >> w & 1 != 0).map(|w| (w, cell.read_in)));
            cell.read_in = MANY;
        }
        list.retain(|(w, _)| *w != me);
        list.push((me, now));
    }

    /// Checks that a write is ordered after all reads.
    #[inline(always)]
    fn readers(&self, me: usize, at: usize, touch: Touch, lane: u32, cell: &Cell) -> Result<(), Fault> {
        let (read_in, read_by) = (cell.read_in, cell.read_by);
        if read_in < self.first || read_in != MANY && self.all_ordered(me, read_in, read_by) {
            return Ok(());
        }
        let other = if read_in == MANY {
            self.many[&at].iter().find(|(w, s)| *w != me && self.joined[me][*w] < *s).map(|(w, _)| *w)
        } else {
            (0..WARPS).find(|w| *w != me && read_by >> w & 1 != 0 && self.joined[me][*w] < read_in)
        };
        match other {
            Some(other) => self.race(me, at, touch, "read", other, lane),
            None => Ok(()),
        }
    }

    #[cold]
    fn race(
        &self,
        me: usize,
        at: usize,
        touch: Touch,
        did: &str,
        other: usize,
        lane: u32,
    ) -> Result<(), Fault> {
        if self.checks & check::RACE == 0 {
            return Ok(());
        }
        let does = match touch {
            Touch::Read => "reads",
            Touch::Copy => "copies to",
            _ => "writes",
        };
        let at = address(at);
        let text = format!(
            "race: warp {me} {does} shared memory at {at:#x}, {did} by warp {other} with no barrier between"
        );
        Err(Fault::of_lane(text, lane))
    }
}
