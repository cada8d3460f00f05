//! Processes that were forked after a call on several threads, which they don't have. A call in one must neither wait for
//! them nor compute anything else.
#![allow(unsafe_code, reason = "fork and what belongs to it")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use chunkwise::bench_support::start_threads;
use chunkwise::{Config, Normaliser, Rule, Shape};

use crate::common::*;

/// Seconds after which a child is taken to wait for ever.
const LIMIT: u32 = 60;

/// Whether a forked process finds that `check` holds.
fn holds_in_a_child(check: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child computes, allocates and starts threads, which the C libraries of Unix allow after a fork although
    // POSIX does not; it takes none of this program's locks, and leaves without what is run at the end of a program.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: the child ends by a signal if it is not back in time.
            unsafe { libc::alarm(LIMIT) };
            let held = catch_unwind(AssertUnwindSafe(check)).unwrap_or(false);
            // SAFETY: nothing follows.
            unsafe { libc::_exit(i32::from(!held)) }
        }
        child => {
            let mut status = -1;
            // SAFETY: a child of this process, for which nothing else waits.
            let ended = unsafe { libc::waitpid(child, &mut status, 0) };
            assert!(child > 0 && ended == child, "{}", std::io::Error::last_os_error());
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
        }
    }
}

#[test]
fn a_child_computes_the_same_bits_and_so_does_its_own() {
    start_threads(3).expect("three threads");
    let config = Config::new(Rule::linear(Normaliser::Global { eps: 1e-6 }), Shape::new(1, 800, 6, 64, 64));
    let mut case = Case::new(config, 1);
    let want = case.whole();
    case.config.execution.threads = 3;
    let same = || first_difference(&case.whole(), &want).is_none();
    assert!(same());
    assert!(holds_in_a_child(|| same() && same() && holds_in_a_child(|| same() && same())));
    assert!(same());
}
