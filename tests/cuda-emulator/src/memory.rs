//! Device memory: allocations that the emulator owns, their addresses being the host's.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};

/// Bytes before and after each allocation that belong to none, so that a small overrun meets no neighbour.
const MARGIN: usize = 4096;

/// Aligned bytes at a fixed address. Kernels write through it by address, so it hands out no references.
pub struct Buffer {
    base: *mut u8,
    len: usize,
    layout: Layout,
}

// SAFETY: the pointer is owned and not tied to a thread; all accesses are within calls that the driver's lock orders.
unsafe impl Send for Buffer {}

impl Buffer {
    /// `len` bytes of `fill`, aligned to `align` and to 256 at least.
    pub fn new(len: usize, align: usize, fill: u8) -> Buffer {
        let align = align.max(256).next_power_of_two();
        let margin = MARGIN.next_multiple_of(align);
        let layout =
            Layout::from_size_align(len + 2 * margin, align).expect("a size that the caller has checked");
        // SAFETY: the size is not zero, the margins see to that.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: all within the allocation just made.
        let base = unsafe {
            start.write_bytes(fill, layout.size());
            start.add(margin)
        };
        Buffer { base, len, layout }
    }

    /// As device and host see it.
    pub fn address(&self) -> u64 {
        self.base.expose_provenance() as u64
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills it from its start.
    pub fn copy_from(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len);
        // SAFETY: checked above; the slice is not of this allocation, which hands out none.
        unsafe { self.base.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    /// Its first bytes.
    pub fn copy_to(&self, bytes: &mut [u8]) {
        assert!(bytes.len() <= self.len);
        // SAFETY: as in `copy_from`.
        unsafe { self.base.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let margin = MARGIN.next_multiple_of(self.layout.align());
        // SAFETY: made by `new` of this layout, `margin` bytes before `base`.
        unsafe { dealloc(self.base.sub(margin), self.layout) }
    }
}

/// What a launch may access: disjoint ranges, sorted.
#[derive(Clone, Debug, Default)]
pub struct Map {
    ranges: Vec<(u64, u64)>,
    last: usize,
}

impl Map {
    /// Of ranges as address and length, in any order.
    pub fn new(ranges: impl IntoIterator<Item = (u64, u64)>) -> Map {
        let mut ranges: Vec<_> = ranges.into_iter().map(|(at, len)| (at, at + len)).collect();
        ranges.sort_unstable();
        Map { ranges, last: 0 }
    }

    /// Whether all of the bytes are of one allocation.
    #[inline(always)]
    pub fn holds(&mut self, at: u64, len: u64) -> bool {
        if let Some(&(from, to)) = self.ranges.get(self.last)
            && at >= from
            && at < to
        {
            return to - at >= len;
        }
        self.find(at, len)
    }

    fn find(&mut self, at: u64, len: u64) -> bool {
        let i = self.ranges.partition_point(|&(from, _)| from <= at);
        if i == 0 || at >= self.ranges[i - 1].1 {
            return false;
        }
        self.last = i - 1;
        self.ranges[i - 1].1 - at >= len
    }

    /// Where an address lies, in words.
    pub fn describe(&self, at: u64) -> String {
        let i = self.ranges.partition_point(|&(from, _)| from <= at);
        match i.checked_sub(1).map(|i| self.ranges[i]) {
            Some((from, to)) => format!("{} bytes into an allocation of {}", at - from, to - from),
            None => "before all allocations".to_string(),
        }
    }
}
