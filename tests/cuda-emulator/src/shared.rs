//! Shared memory of a block, and for each byte who wrote and read it when.
//!
//! Time is counted in segments: what a warp does between two barriers. A warp knows of each other warp up to which
//! segment a barrier has ordered that one's work before its own, so that barriers of a part of the block order only
//! that part.

use crate::fault::{Fault, check};
use std::collections::HashMap;

/// The first address of a block's shared memory. Hardware of capability 8 and up keeps the first KiB for itself.
pub const START: u32 = 1024;

const WARPS: usize = 32;
/// A cp.async is on its way to the byte. Below it, the wgmma reads that no one has waited for are counted.
const COPYING: u32 = 1 << 15;
/// The word's bytes have cells of their own.
const SPLIT: u32 = 1 << 31;
/// Readers of the byte are in `many`.
const MANY: u32 = u32::MAX;
const ATOMIC: u32 = 1 << 5;
const COPIED: u32 = 1 << 6;
const SEGMENT: u32 = 7;

/// What an access does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Touch {
    /// Load.
    Read,
    /// Store.
    Write,
    /// Both, in order with others of its kind.
    Atomic,
    /// Store by cp.async.
    Copy,
}

/// The history of a word, or of a byte.
#[derive(Clone, Copy, Default)]
struct Cell {
    /// Last write: segment, whether an atomic or a copy, warp.
    written: u32,
    /// The writer's count of proxy fences then.
    fenced: u32,
    /// Segment of the readers since the last write, and which warps they are.
    read_in: u32,
    read_by: u32,
    flight: u32,
}

/// What a barrier knows of a warp that has arrived: up to which segment each warp's work, and how many of its proxy fences,
/// are ordered before.
#[derive(Clone, Debug)]
pub struct Arrived {
    work: [u32; WARPS],
    fences: [u32; WARPS],
}

/// See the module.
pub struct Shared {
    data: Vec<u8>,
    size: usize,
    words: Vec<Cell>,
    /// Of words whose bytes have been accessed one by one.
    bytes: HashMap<usize, [Cell; 4]>,
    many: HashMap<usize, Vec<(usize, u32)>>,
    segment: [u32; WARPS],
    joined: [[u32; WARPS]; WARPS],
    fences: [u32; WARPS],
    fences_seen: [[u32; WARPS]; WARPS],
    next: u32,
    first: u32,
    checks: u32,
}

impl Shared {
    /// For blocks of that many bytes.
    pub fn new(size: usize, checks: u32) -> Shared {
        // wgmma is recorded by pieces of 16 bytes.
        let bytes = size.next_multiple_of(16);
        Shared {
            data: vec![0xff; bytes],
            size,
            words: vec![Cell::default(); bytes / 4],
            bytes: HashMap::new(),
            many: HashMap::new(),
            segment: [0; WARPS],
            joined: [[0; WARPS]; WARPS],
            fences: [0; WARPS],
            fences_seen: [[0; WARPS]; WARPS],
            next: 0,
            first: 0,
            checks,
        }
    }

    /// A new block: nothing is written. What is recorded of earlier ones is of earlier segments, so nothing is cleared
    /// but lists of readers, and what was in flight, which only a launch without checks leaves.
    pub fn begin(&mut self) {
        if self.next >= 1 << (32 - SEGMENT - 1) {
            self.words.fill(Cell::default());
            self.next = 0;
        }
        for cell in &mut self.words {
            cell.flight = 0;
            if cell.read_in == MANY {
                cell.read_in = 0;
            }
        }
        self.data.fill(0xff);
        self.bytes.clear();
        self.many.clear();
        self.next += 1;
        self.first = self.next;
        self.segment = [self.first; WARPS];
        self.joined = [[self.first - 1; WARPS]; WARPS];
        self.fences = [0; WARPS];
        self.fences_seen = [[0; WARPS]; WARPS];
    }

    /// What is ordered before a warp's arrival at a barrier: its own work so far, and what it knows of others'. Its later work
    /// is of another segment.
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

    /// A barrier at which all these have arrived: the warps of a mask wait for it, and go on.
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

    /// fence.proxy.async of a warp.
    pub fn proxy_fence(&mut self, warp: usize) {
        self.fences[warp] += 1;
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.size
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// Offset of an address, or a fault if bytes lie outside or the address is not aligned.
    #[inline(always)]
    pub fn place(&self, at: u64, len: usize, align: u64, lane: u32) -> Result<usize, Fault> {
        let offset = at.wrapping_sub(START.into());
        if offset.saturating_add(len as u64) > self.size as u64 {
            return Err(self.outside(at, len, lane));
        }
        if at & (align - 1) != 0 && self.checks & check::ALIGN != 0 {
            return Err(Fault::align(
                format!("misaligned access of {len} bytes of shared memory at {at:#x}"),
                lane,
            ));
        }
        Ok(offset as usize)
    }

    #[cold]
    fn outside(&self, at: u64, len: usize, lane: u32) -> Fault {
        let (from, to) = (START, START as usize + self.size);
        let text =
            format!("access of {len} bytes outside of shared memory at {at:#x}, which is {from:#x}..{to:#x}");
        Fault::bounds(text, lane)
    }

    /// Bytes at an offset.
    #[inline(always)]
    pub fn bytes(&self, at: usize, len: usize) -> &[u8] {
        &self.data[at..at + len]
    }

    /// Bytes at an offset.
    #[inline(always)]
    pub fn bytes_mut(&mut self, at: usize, len: usize) -> &mut [u8] {
        &mut self.data[at..at + len]
    }

    #[inline(always)]
    fn ordered(&self, me: usize, tag: u32) -> bool {
        let warp = (tag & 31) as usize;
        warp == me || self.joined[me][warp] >= tag >> SEGMENT
    }

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

    /// What `step` does where all is well and simple; otherwise false, and nothing is done.
    #[inline(always)]
    fn quick(&mut self, me: usize, word: usize, touch: Touch) -> bool {
        let (cell, joined, now) = (&mut self.words[word], &self.joined[me], self.segment[me]);
        let (segment, warp) = (cell.written >> SEGMENT, (cell.written & 31) as usize);
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
            return true;
        }
        let kind = match touch {
            Touch::Atomic => ATOMIC,
            Touch::Copy => COPIED,
            _ => 0,
        };
        cell.written = now << SEGMENT | kind | me as u32;
        cell.fenced = self.fences[me];
        cell.read_in = 0;
        true
    }

    /// The bytes' cells, made of the word's if they are not there.
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

    /// Changes what is in flight to bytes of whole words.
    fn flights(&mut self, at: usize, len: usize, change: impl Fn(u32) -> u32) {
        for word in at / 4..(at + len) / 4 {
            let flight = self.words[word].flight;
            self.words[word].flight = change(flight & !SPLIT) | flight & SPLIT;
            if flight & SPLIT != 0 {
                let cells = self.bytes.get_mut(&word).expect("of a word that is split");
                cells.iter_mut().for_each(|c| c.flight = change(c.flight));
            }
        }
    }

    /// The history of a word or byte after one more access.
    #[cold]
    fn step(&mut self, mut cell: Cell, me: usize, at: usize, touch: Touch, lane: u32) -> Result<Cell, Fault> {
        if cell.flight != 0 {
            self.in_flight(cell.flight, at, touch, lane)?;
        }
        let tag = cell.written;
        let fresh = tag >> SEGMENT < self.first;
        let meant = fresh || self.ordered(me, tag) || touch == Touch::Atomic && tag & ATOMIC != 0;
        if !meant {
            self.race(me, at, touch, "written", (tag & 31) as usize, lane)?;
        }
        let now = self.segment[me];
        if touch == Touch::Read {
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
            return Ok(cell);
        }
        self.readers(me, at, touch, lane, &cell)?;
        let kind = match touch {
            Touch::Atomic => ATOMIC,
            Touch::Copy => COPIED,
            _ => 0,
        };
        cell.written = now << SEGMENT | kind | me as u32;
        cell.fenced = self.fences[me];
        cell.read_in = 0;
        Ok(cell)
    }

    #[cold]
    fn unwritten(&self, at: usize, lane: u32) -> Fault {
        let at = at as u64 + u64::from(START);
        Fault::of_lane(format!("read of shared memory at {at:#x} that was never written"), lane)
    }

    fn all_ordered(&self, me: usize, segment: u32, warps: u32) -> bool {
        (0..WARPS).all(|w| w == me || warps >> w & 1 == 0 || self.joined[me][w] >= segment)
    }

    /// Readers of different segments, none ordered before all: kept one by one.
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

    /// Whether a write is ordered after all reads.
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
        let at = at as u64 + u64::from(START);
        let text = format!(
            "race: warp {me} {does} shared memory at {at:#x}, {did} by warp {other} with no barrier between"
        );
        Err(Fault::of_lane(text, lane))
    }

    #[cold]
    fn in_flight(&self, flight: u32, at: usize, touch: Touch, lane: u32) -> Result<(), Fault> {
        let at = at as u64 + u64::from(START);
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

    /// A cp.async to these bytes begins.
    pub fn copy_begins(&mut self, me: usize, at: usize, len: usize, lane: u32) -> Result<(), Fault> {
        self.touch(me, at, len, Touch::Copy, lane)?;
        self.flights(at, len, |f| f | COPYING);
        Ok(())
    }

    /// And has ended, by its wait.
    pub fn copy_ends(&mut self, me: usize, at: usize, len: usize, lane: u32) -> Result<(), Fault> {
        self.flights(at, len, |f| f & !COPYING);
        self.touch(me, at, len, Touch::Copy, lane)
    }

    /// A wgmma of the warps from `first` on reads 16 bytes: they must be written, ordered, and fenced.
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

    fn async_check(&self, first: usize, i: usize, cell: &Cell) -> Result<(), Fault> {
        let place = i as u64 + u64::from(START);
        if cell.flight & COPYING != 0 && self.checks & check::CP_ASYNC != 0 {
            let text =
                format!("wgmma reads shared memory at {place:#x} while a cp.async to it is not waited for");
            return Err(Fault::other(text));
        }
        let tag = cell.written;
        if tag >> SEGMENT < self.first {
            if self.checks & check::UNWRITTEN != 0 {
                return Err(Fault::other(format!(
                    "wgmma reads shared memory at {place:#x} that was never written"
                )));
            }
            return Ok(());
        }
        {
            let writer = (tag & 31) as usize;
            for me in first..first + 4 {
                if !self.ordered(me, tag) && self.checks & check::RACE != 0 {
                    return Err(Fault::other(format!(
                        "race: wgmma of warp {me} reads shared memory at {place:#x}, written by warp {writer} with no \
                         barrier between"
                    )));
                }
                let seen = if me == writer { self.fences[me] } else { self.fences_seen[me][writer] };
                let exempt = tag & COPIED != 0 && self.checks & check::PROXY_CP_ASYNC == 0;
                if seen <= cell.fenced && !exempt && self.checks & check::PROXY != 0 {
                    return Err(Fault::other(format!(
                        "wgmma of warp {me} reads shared memory at {place:#x}, written by warp {writer} with no \
                         fence.proxy.async (and barrier) between"
                    )));
                }
            }
        }
        Ok(())
    }

    /// A warp has waited for a wgmma that read 16 bytes.
    pub fn async_read_ends(&mut self, me: usize, at: usize) -> Result<(), Fault> {
        self.flights(at, 16, |f| f - u32::from(f & !COPYING != 0));
        self.touch(me, at, 16, Touch::Read, 0)
    }
}
