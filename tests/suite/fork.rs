//! Processes that are forked after a call on several threads. A forked process does not have these threads; a
//! call in it must not wait for them, and must compute the same bits.
#![allow(unsafe_code, reason = "fork and related calls")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use chunkwise::bench_support::start_threads;
use chunkwise::{Config, Normaliser, Rule, Shape};

use crate::common::*;

/// The number of seconds after which a child is considered to wait for ever.
const LIMIT: u32 = 60;

/// Whether `check` returns true in a forked process.
fn holds_in_a_child(check: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child computes, allocates and starts threads, which the C libraries of Unix systems allow
    // after a fork although POSIX does not. It takes none of this program's locks, and leaves by `_exit`,
    // which runs no exit handlers.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: a signal ends the child if it takes longer.
            unsafe { libc::alarm(LIMIT) };
            let held = catch_unwind(AssertUnwindSafe(check)).unwrap_or(false);
            // SAFETY: no code follows.
            unsafe { libc::_exit(i32::from(!held)) }
        }
        child => {
            let mut status = -1;
            // SAFETY: this is a child of this process, and nothing else waits for it.
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
