//! Spreads independent tasks over threads. How tasks are cut never depends on which thread runs them, and the
//! bits are the same for any number of threads.

#[cfg(feature = "std")]
pub(crate) mod pool;

/// The number of tasks, and the largest number of threads on which they run.
#[derive(Clone, Copy)]
pub(crate) struct Tasks {
    pub(crate) count: usize,
    pub(crate) workers: usize,
}

/// Runs `task` for all of `0..count` on up to `workers` threads, of which the caller's is one; each worker
/// has its own part of scratch, `part` elements, which may be 0. Tasks compute in the caller's floating-point
/// mode wherever they run.
#[cfg(feature = "std")]
pub(crate) fn for_each<F>(tasks: Tasks, scratch: &mut [f32], part: usize, task: F)
where
    F: Fn(usize, &mut [f32]) + Sync,
{
    use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    let Tasks { count, workers } = tasks;
    let pool = if workers > 1 { pool::Pool::find() } else { None };
    let Some(pool) = pool else {
        return serial(count, &mut scratch[..part], task);
    };
    // Workers take the next task when they are done with one: a thread that is late costs little.
    let next = AtomicUsize::new(0);
    let work = |scratch: &mut [f32]| {
        loop {
            let i = next.fetch_add(1, Relaxed);
            if i >= count {
                break;
            }
            task(i, scratch);
        }
    };
    let mode = crate::isa::FloatMode::current();
    let workers = workers.min(pool.threads());
    let (own, mut others) = scratch[..workers * part].split_at_mut(part);
    pool.scope(|scope| {
        for _ in 1..workers {
            let scratch = others.split_off_mut(..part).unwrap_or_default();
            scope.spawn(|_| mode.during(|| work(scratch)));
        }
        work(own);
    });
}

/// Runs all tasks on the calling thread.
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

#[cfg(all(test, feature = "std"))]
mod tests {
    use std::collections::HashSet;
    use std::sync::{Barrier, Mutex, Once};
    use std::thread::{self, ThreadId};

    use super::*;

    /// Starts a pool of three threads, whatever the machine has.
    fn three_threads() {
        static STARTED: Once = Once::new();
        STARTED.call_once(|| pool::start(3).unwrap());
    }

    /// The threads that run as many tasks as there are workers, where no task ends before all have begun.
    fn at_once(workers: usize) -> HashSet<ThreadId> {
        let (barrier, threads) = (Barrier::new(workers), Mutex::new(HashSet::new()));
        for_each(Tasks { count: workers, workers }, &mut [0.0; 64], 16, |_, _| {
            barrier.wait();
            threads.lock().unwrap().insert(thread::current().id());
        });
        threads.into_inner().unwrap()
    }

    #[test]
    fn the_caller_s_thread_is_one_of_the_workers() {
        three_threads();
        let rayon = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for workers in [2, 3] {
            let check = || {
                let threads = at_once(workers);
                assert_eq!((threads.len(), threads.contains(&thread::current().id())), (workers, true));
            };
            check();
            rayon.install(check);
        }
    }

    #[test]
    fn a_task_that_panics_ends_the_call_and_not_the_pool() {
        three_threads();
        for culprit in 0..8 {
            let call = || {
                for_each(Tasks { count: 8, workers: 2 }, &mut [0.0; 32], 16, |i, _| assert_ne!(i, culprit));
            };
            std::panic::catch_unwind(call).expect_err("a task panicked");
        }
        assert_eq!(at_once(3).len(), 3);
    }
}
