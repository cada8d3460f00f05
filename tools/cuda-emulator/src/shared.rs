//! Shared memory of a block, with a record of the warps that wrote and read each byte, and of the times.
//!
//! Time is counted in segments. A segment is the work that a warp does between two barriers, and each has a number of
//! its own. For each pair of warps, the record says up to which segment the work of one is ordered before the work of
//! the other. A barrier for a part of the block therefore orders that part only.

mod asynchronous;
mod cell;
mod order;
mod touch;

pub use order::Arrived;

use crate::fault::{Fault, check};
use cell::{Cell, MANY, SEGMENT};
use std::collections::HashMap;

/// The first address of a block's shared memory. Hardware of capability 8 and higher reserves the first KiB.
pub const START: u32 = 1024;

const WARPS: usize = 32;

/// The kind of an access.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Touch {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An atomic, which does not race with other atomics.
    Atomic,
    /// A store by cp.async.
    Copy,
}

/// Shared memory and its record; the module's documentation says what is recorded.
pub struct Shared {
    data: Vec<u8>,
    size: usize,
    /// The history of each word.
    words: Vec<Cell>,
    /// The histories of the bytes of those words whose bytes have been accessed one by one.
    bytes: HashMap<usize, [Cell; 4]>,
    /// Readers as pairs of warp and segment, by offset, for the cells whose `read_in` is `MANY`.
    many: HashMap<usize, Vec<(usize, u32)>>,
    /// The current segment of each warp.
    segment: [u32; WARPS],
    /// `joined[p][q]` is the last segment of warp q that is ordered before the current segment of warp p.
    joined: [[u32; WARPS]; WARPS],
    /// The number of proxy fences that each warp has executed.
    fences: [u32; WARPS],
    /// `fences_seen[p][q]` is the number of warp q's proxy fences that are ordered before the current segment of p.
    fences_seen: [[u32; WARPS]; WARPS],
    /// The segment that was started last.
    next: u32,
    /// The first segment of the current block.
    first: u32,
    checks: u32,
}

impl Shared {
    /// Creates shared memory of `size` bytes.
    pub fn new(size: usize, checks: u32) -> Shared {
        // wgmma reads are recorded in pieces of 16 bytes.
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

    /// Starts a new block, in which nothing is written yet. Cells of earlier blocks are recognised by their segments
    /// and need no clearing, except for lists of readers and for asynchronous accesses in flight. The latter are left
    /// only by launches that run with checks disabled.
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

    /// Returns the size in bytes.
    pub fn len(&self) -> usize {
        self.size
    }

    /// Returns whether the size is zero.
    pub fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// Returns the offset of an address, or a fault if some bytes lie outside or the address is misaligned.
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

    /// Returns `len` bytes at an offset.
    #[inline(always)]
    pub fn bytes(&self, at: usize, len: usize) -> &[u8] {
        &self.data[at..at + len]
    }

    /// Returns `len` bytes at an offset, for writing.
    #[inline(always)]
    pub fn bytes_mut(&mut self, at: usize, len: usize) -> &mut [u8] {
        &mut self.data[at..at + len]
    }
}

/// Returns the address of an offset, as faults report it.
fn address(offset: usize) -> u64 {
    offset as u64 + u64::from(START)
}
