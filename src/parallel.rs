//! Spreading independent tasks over threads. Tasks are cut from shapes alone, never from what runs where: the
//! bits are the same for any number of threads.

/// How many tasks there are, and on how many threads they run at most.
#[derive(Clone, Copy)]
pub(crate) struct Tasks {
    pub(crate) count: usize,
    pub(crate) workers: usize,
}

/// Runs `task` for all of `0..count` on up to `workers` threads of the current rayon pool, the caller's among
/// them; each worker has its own part of scratch, `part` elements.
#[cfg(feature = "std")]
pub(crate) fn for_each<F>(tasks: Tasks, scratch: &mut [f32], part: usize, task: F)
where
    F: Fn(usize, &mut [f32]) + Sync,
{
    use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use rayon::prelude::*;

    let Tasks { count, workers } = tasks;
    if workers <= 1 {
        return serial(count, &mut scratch[..part], task);
    }
    // Workers take the next task when they are done with one: a thread that is late costs little.
    let next = AtomicUsize::new(0);
    let parts = scratch[..workers * part].par_chunks_exact_mut(part).with_max_len(1);
    parts.for_each(|scratch| {
        loop {
            let i = next.fetch_add(1, Relaxed);
            if i >= count {
                break;
            }
            task(i, scratch);
        }
    });
}

/// Without threads.
#[cfg(not(feature = "std"))]
pub(crate) fn for_each<F>(tasks: Tasks, scratch: &mut [f32], part: usize, task: F)
where
    F: Fn(usize, &mut [f32]) + Sync,
{
    debug_assert!(tasks.workers == 1, "threads without std");
    serial(tasks.count, &mut scratch[..part], task);
}

fn serial(count: usize, scratch: &mut [f32], task: impl Fn(usize, &mut [f32])) {
    for i in 0..count {
        task(i, scratch);
    }
}

/// How many threads a piece of work is worth: one for each `grain` of it, at most `threads`.
pub(crate) fn workers(threads: usize, work: usize, grain: usize) -> usize {
    if cfg!(feature = "std") { threads.min(work / grain).max(1) } else { 1 }
}
