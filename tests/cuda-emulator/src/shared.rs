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
const COPYING: u16 = 1 << 15;
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

/// See the module.
pub struct Shared {
    data: Vec<u8>,
    size: usize,
    /// Last write: segment, whether an atomic or a copy, warp.
    written: Vec<u32>,
    /// The writer's count of proxy fences then.
    fenced: Vec<u32>,
    /// Segment of the readers since the last write, and which warps they are.
    read_in: Vec<u32>,
    read_by: Vec<u32>,
    flight: Vec<u16>,
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
            size,
            data: vec![0xff; bytes],
            written: vec![0; bytes],
            fenced: vec![0; bytes],
            read_in: vec![0; bytes],
            read_by: vec![0; bytes],
            flight: vec![0; bytes],
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

    /// A new block: nothing is written. What is recorded of earlier ones is of earlier segments, so nothing is cleared.
    pub fn begin(&mut self) {
        if self.next >= 1 << (32 - SEGMENT - 1) {
            self.written.fill(0);
            self.read_in.fill(0);
            self.next = 0;
        }
        self.data.fill(0xff);
        self.many.clear();
        self.next += 1;
        self.first = self.next;
        self.segment = [self.first; WARPS];
        self.joined = [[self.first - 1; WARPS]; WARPS];
        self.fences = [0; WARPS];
        self.fences_seen = [[0; WARPS]; WARPS];
    }

    /// A barrier of the warps of a mask.
    pub fn join(&mut self, warps: u32) {
        let of = || (0..WARPS).filter(|w| warps >> w & 1 != 0);
        let (mut all, mut fences) = ([0; WARPS], [0; WARPS]);
        for r in of() {
            for q in 0..WARPS {
                all[q] = all[q].max(self.joined[r][q]);
                fences[q] = fences[q].max(self.fences_seen[r][q]);
            }
        }
        self.next += 1;
        for q in of() {
            all[q] = all[q].max(self.segment[q]);
            fences[q] = fences[q].max(self.fences[q]);
            self.segment[q] = self.next;
        }
        for p in of() {
            self.joined[p] = all;
            self.fences_seen[p] = fences;
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
        // Bytes of one access mostly share their history: then it is looked at once.
        let range = at..at + len;
        let (w, r, b) = (self.written[at], self.read_in[at], self.read_by[at]);
        let uniform = self.written[range.clone()].iter().all(|x| *x == w)
            & self.read_in[range.clone()].iter().all(|x| *x == r)
            & self.read_by[range.clone()].iter().all(|x| *x == b)
            & self.flight[range.clone()].iter().all(|x| *x == 0)
            & (r != MANY);
        if !uniform {
            for i in range {
                self.touch_bytes(me, i, 1, touch, lane)?;
            }
            return Ok(());
        }
        self.touch_bytes(me, at, len, touch, lane)
    }

    /// The same, of bytes with one history.
    #[inline(always)]
    fn touch_bytes(
        &mut self,
        me: usize,
        at: usize,
        len: usize,
        touch: Touch,
        lane: u32,
    ) -> Result<(), Fault> {
        let range = at..at + len;
        let flight = self.flight[at];
        if flight != 0 {
            self.in_flight(flight, at, touch, lane)?;
        }
        let tag = self.written[at];
        let fresh = tag >> SEGMENT < self.first;
        let meant = fresh || self.ordered(me, tag) || touch == Touch::Atomic && tag & ATOMIC != 0;
        if !meant {
            self.race(me, at, touch, "written", (tag & 31) as usize, lane)?;
        }
        let now = self.segment[me];
        if touch == Touch::Read {
            if fresh && self.checks & check::UNWRITTEN != 0 {
                let at = at as u64 + u64::from(START);
                return Err(Fault::of_lane(
                    format!("read of shared memory at {at:#x} that was never written"),
                    lane,
                ));
            }
            let (read_in, read_by) = (self.read_in[at], self.read_by[at]);
            if read_in == now {
                if read_by >> me & 1 == 0 {
                    self.read_by[range].iter_mut().for_each(|b| *b |= 1 << me);
                }
            } else if read_in != MANY && (read_in < self.first || self.all_ordered(me, read_in, read_by)) {
                self.read_in[range.clone()].fill(now);
                self.read_by[range].fill(1 << me);
            } else {
                for i in range {
                    self.spill(me, i, now);
                }
            }
            return Ok(());
        }
        self.readers(me, at, touch, lane)?;
        let kind = match touch {
            Touch::Atomic => ATOMIC,
            Touch::Copy => COPIED,
            _ => 0,
        };
        self.written[range.clone()].fill(now << SEGMENT | kind | me as u32);
        self.fenced[range.clone()].fill(self.fences[me]);
        self.read_in[range].fill(0);
        Ok(())
    }

    fn all_ordered(&self, me: usize, segment: u32, warps: u32) -> bool {
        (0..WARPS).all(|w| w == me || warps >> w & 1 == 0 || self.joined[me][w] >= segment)
    }

    /// Readers of different segments, none ordered before all: kept one by one.
    #[cold]
    fn spill(&mut self, me: usize, at: usize, now: u32) {
        let list = self.many.entry(at).or_default();
        if self.read_in[at] != MANY {
            list.clear();
            list.extend((0..WARPS).filter(|w| self.read_by[at] >> w & 1 != 0).map(|w| (w, self.read_in[at])));
            self.read_in[at] = MANY;
        }
        list.retain(|(w, _)| *w != me);
        list.push((me, now));
    }

    /// Whether a write is ordered after all reads.
    #[inline(always)]
    fn readers(&self, me: usize, at: usize, touch: Touch, lane: u32) -> Result<(), Fault> {
        let (read_in, read_by) = (self.read_in[at], self.read_by[at]);
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
    fn in_flight(&self, flight: u16, at: usize, touch: Touch, lane: u32) -> Result<(), Fault> {
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
        self.flight[at..at + len].iter_mut().for_each(|f| *f |= COPYING);
        Ok(())
    }

    /// And has ended, by its wait.
    pub fn copy_ends(&mut self, me: usize, at: usize, len: usize, lane: u32) -> Result<(), Fault> {
        self.flight[at..at + len].iter_mut().for_each(|f| *f &= !COPYING);
        self.touch(me, at, len, Touch::Copy, lane)
    }

    /// A wgmma of the warps from `first` on reads 16 bytes: they must be written, ordered, and fenced.
    pub fn async_read(&mut self, first: usize, at: usize) -> Result<(), Fault> {
        for i in at..at + 16 {
            let place = i as u64 + u64::from(START);
            if self.flight[i] & COPYING != 0 && self.checks & check::CP_ASYNC != 0 {
                let text = format!(
                    "wgmma reads shared memory at {place:#x} while a cp.async to it is not waited for"
                );
                return Err(Fault::other(text));
            }
            let tag = self.written[i];
            if tag >> SEGMENT < self.first {
                if self.checks & check::UNWRITTEN != 0 {
                    return Err(Fault::other(format!(
                        "wgmma reads shared memory at {place:#x} that was never written"
                    )));
                }
                continue;
            }
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
                if seen <= self.fenced[i] && !exempt && self.checks & check::PROXY != 0 {
                    return Err(Fault::other(format!(
                        "wgmma of warp {me} reads shared memory at {place:#x}, written by warp {writer} with no \
                         fence.proxy.async (and barrier) between"
                    )));
                }
            }
            self.flight[i] += 4;
        }
        Ok(())
    }

    /// A warp has waited for a wgmma that read 16 bytes.
    pub fn async_read_ends(&mut self, me: usize, at: usize) -> Result<(), Fault> {
        self.flight[at..at + 16].iter_mut().for_each(|f| *f -= u16::from(*f & !COPYING != 0));
        self.touch(me, at, 16, Touch::Read, 0)
    }
}
