//! The threads that run a call besides the calling thread. If that thread belongs to a rayon pool they are
//! that pool's, so that a program that installs a pool decides where its calls run. Otherwise they belong to
//! a pool that the library keeps for each process, with as many threads as rayon takes for its own
//! (RAYON_NUM_THREADS, or the number that the machine offers).
//!
//! The library does not use rayon's global pool, which is started only once, by its first user: if it could
//! not be started, each later use of it panics, and a process that was forked after its start waits for ever
//! for threads that only its parent has.

use std::boxed::Box;
use std::format;
use std::sync::{PoisonError, RwLock};

use rayon::{Scope, ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// The pool whose threads run a call.
pub(super) enum Pool {
    /// The rayon pool that the calling thread belongs to.
    Current,
    /// The library's own pool.
    Own(&'static ThreadPool),
}

/// The library's pool as one process has started it, or `None` where the start failed.
#[derive(Clone, Copy)]
struct Own {
    process: u32,
    pool: Option<&'static ThreadPool>,
}

/// Calls never wait for this lock, because its holder may be a thread that a forked process does not have.
static OWN: RwLock<Option<Own>> = RwLock::new(None);

impl Pool {
    /// Returns `None` where the call runs on the calling thread alone, because no threads could be started or
    /// because another thread is just starting them.
    pub(super) fn find() -> Option<Self> {
        if rayon::current_thread_index().is_some() {
            return Some(Self::Current);
        }
        let process = process();
        let is_ours = |own: &Own| own.process == process;
        let found = OWN.try_read().ok()?.filter(is_ours);
        if let Some(own) = found {
            return own.pool.map(Self::Own);
        }
        let mut own = OWN.try_write().ok()?;
        let started = own.filter(is_ours).unwrap_or_else(|| Own { process, pool: build(0).ok() });
        *own = Some(started);
        started.pool.map(Self::Own)
    }

    /// The largest number of threads that a call uses, the caller's included.
    pub(super) fn threads(&self) -> usize {
        match self {
            Self::Current => rayon::current_num_threads(),
            Self::Own(pool) => pool.current_num_threads(),
        }
    }

    /// Runs `op` on the calling thread, and the tasks that it spawns on the pool's threads.
    pub(super) fn scope<'scope>(self, op: impl FnOnce(&Scope<'scope>)) {
        match self {
            Self::Current => rayon::in_place_scope(op),
            Self::Own(pool) => pool.in_place_scope(op),
        }
    }
}

/// Starts the library's pool with this number of threads, or replaces it, for benchmarks, which also measure
/// more threads than the machine has cores.
pub(crate) fn start(threads: usize) -> Result<(), ThreadPoolBuildError> {
    let own = Own { process: process(), pool: Some(build(threads)?) };
    *OWN.write().unwrap_or_else(PoisonError::into_inner) = Some(own);
    Ok(())
}

/// The number of this process, which a forked process does not share with its parent.
fn process() -> u32 {
    // WebAssembly has no processes, and `id` panics there.
    if cfg!(target_family = "wasm") { 0 } else { std::process::id() }
}

/// Starts a pool that lives as long as the process; `threads` = 0 stands for rayon's default number.
fn build(threads: usize) -> Result<&'static ThreadPool, ThreadPoolBuildError> {
    let builder = ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("chunkwise {i}"));
    Ok(Box::leak(Box::new(builder.build()?)))
}
