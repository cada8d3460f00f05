//! Allocations: the core and the model allocate nothing, and readers of files allocate no more than the
//! length of the file bounds. A global allocator counts for each thread separately, so that tests may run at
//! the same time.
#![allow(unsafe_code, reason = "a global allocator is unsafe to implement")]

#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "files")]
#[path = "../weights/mod.rs"]
mod weights;

#[cfg(feature = "files")]
mod hostile;
mod no_alloc;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, which counts the calls of each thread, the bytes that it holds, and the most that
/// it has held.
struct Counting;

thread_local! {
    // These are initialised at compile time and have no destructor, so that access to them allocates nothing.
    static CALLS: Cell<usize> = const { Cell::new(0) };
    static HOLDS: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count() {
    CALLS.set(CALLS.get() + 1);
}

fn holds(more: isize) {
    HOLDS.set(HOLDS.get() + more);
    MOST.set(MOST.get().max(HOLDS.get()));
}

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        holds(layout.size() as isize);
        // SAFETY: the caller guarantees what the system's allocator requires.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        holds(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, from: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // Both blocks exist while one is copied to the other.
        holds(size as isize);
        holds(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.realloc(from, layout, size) }
    }

    unsafe fn dealloc(&self, from: *mut u8, layout: Layout) {
        count();
        holds(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(from, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
