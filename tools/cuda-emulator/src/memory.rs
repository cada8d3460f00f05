//! Device memory: allocations that the emulator owns. Their addresses are addresses of the host.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};

/// The number of unused bytes before and after each allocation. They keep a small overrun from being an access to the
/// next allocation, which no check would find.
const MARGIN: usize = 4096;

/// Aligned bytes at a fixed address. Since kernels write to them by address, there are no references to them.
pub struct Buffer {
    base: *mut u8,
    len: usize,
    layout: Layout,
}

// SAFETY: the pointer is owned and not tied to a thread; the lock of the driver's state orders all accesses.
unsafe impl Send for Buffer {}

impl Buffer {
    /// Allocates `len` bytes with the value `fill`. The address is a multiple of `align`, and at least of 256.
    pub fn new(len: usize, align: usize, fill: u8) -> Buffer {
        let align = align.max(256).next_power_of_two();
        let margin = MARGIN.next_multiple_of(align);
        let layout =
            Layout::from_size_align(len + 2 * margin, align).expect("a size that the caller has checked");
        // SAFETY: the size is not zero, because the margins are part of it.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: both the range and the pointer are within the new allocation.
        let base = unsafe {
            start.write_bytes(fill, layout.size());
            start.add(margin)
        };
        Buffer { base, len, layout }
    }

    /// Returns the address, which is the same for host and device.
    pub fn address(&self) -> u64 {
        self.base.expose_provenance() as u64
    }

    /// Returns the size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the size is zero.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes to the start of the buffer.
    pub fn copy_from(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len);
        // SAFETY: the length is checked above, and no slice can overlap the buffer, because it gives out no references.
        unsafe { self.base.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    /// Copies bytes from the start of the buffer.
    pub fn copy_to(&self, bytes: &mut [u8]) {
        assert!(bytes.len() <= self.len);
        // SAFETY: the length is checked above, and the slice cannot overlap the buffer, as in `copy_from`.
        unsafe { self.base.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let margin = MARGIN.next_multiple_of(self.layout.align());
        // SAFETY: `new` has made the allocation with this layout, and it starts `margin` bytes before `base`.
        unsafe { dealloc(self.base.sub(margin), self.layout) }
    }
}

/// The memory that a launch may access, as disjoint sorted ranges.
#[derive(Clone, Debug, Default)]
pub struct Map {
    ranges: Vec<(u64, u64)>,
    last: usize,
}

impl Map {
    /// Creates a map from ranges in any order, each with address and length.
    pub fn new(ranges: impl IntoIterator<Item = (u64, u64)>) -> Map {
        let mut ranges: Vec<_> = ranges.into_iter().map(|(at, len)| (at, at + len)).collect();
        ranges.sort_unstable();
        Map { ranges, last: 0 }
    }

    /// Returns whether all of the bytes are in one allocation. The range that was found last is tried first, because
    /// neighbouring lanes mostly access the same one.
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

    /// Describes the position of an address relative to the allocations.
    pub fn describe(&self, at: u64) -> String {
        let i = self.ranges.partition_point(|&(from, _)| from <= at);
        match i.checked_sub(1).map(|i| self.ranges[i]) {
            Some((from, to)) => format!("{} bytes into an allocation of {}", at - from, to - from),
            None => "before all allocations".to_string(),
        }
    }
}
