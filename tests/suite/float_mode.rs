//! Floating-point modes: where the caller flushes denormals to zero, or rounds in another direction than to
//! nearest, all threads compute in its mode, and the bits are the same on any number of threads.
#![allow(unsafe_code, reason = "the register of the mode is written")]

use std::arch::asm;

use chunkwise::bench_support::start_threads;
use chunkwise::{Config, Isa, Normaliser, Rule, Shape};

use crate::common::*;

/// Bits of MXCSR or FPCR: the first mode replaces denormal inputs and outputs by zero, the second rounds
/// towards zero.
#[cfg(target_arch = "x86_64")]
const MODES: [u64; 2] = [0x8040, 0x6000];
#[cfg(target_arch = "aarch64")]
const MODES: [u64; 2] = [1 << 24, 3 << 22];

#[cfg(target_arch = "x86_64")]
fn mode() -> u64 {
    let mut mode = 0_u32;
    // SAFETY: this writes four bytes, the size of `mode`.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut mode, options(nostack)) };
    // The lowest six bits are flags of exceptions that have occurred.
    u64::from(mode & !0x3f)
}

#[cfg(target_arch = "x86_64")]
fn set_mode(mode: u64) {
    let mode = mode as u32;
    // SAFETY: this reads four bytes, the size of `mode`, and sets only bits that every such processor has.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const mode, options(nostack)) };
}

#[cfg(target_arch = "aarch64")]
fn mode() -> u64 {
    let mode;
    // SAFETY: every program may read this register.
    unsafe { asm!("mrs {}, fpcr", out(reg) mode, options(nostack)) };
    mode
}

#[cfg(target_arch = "aarch64")]
fn set_mode(mode: u64) {
    // SAFETY: this sets only bits that every such processor has.
    unsafe { asm!("msr fpcr, {}", in(reg) mode, options(nostack)) };
}

/// The result of `run` in a mode, after a check that `run` has not changed the mode.
#[inline(never)]
fn within<R>(bits: u64, run: impl FnOnce() -> R) -> R {
    let own = mode();
    set_mode(own | bits);
    let result = run();
    assert_eq!(mode(), own | bits, "the caller's mode was changed");
    set_mode(own);
    result
}

fn check() {
    for isa in Isa::available() {
        // These are just enough tokens for five threads, because the test also runs under QEMU.
        let config = Config::new(Rule::linear(Normaliser::None), Shape::new(1, 260, 6, 64, 64)).isa(isa);
        let mut case = Case::new(config, 1);
        // The values are denormals and somewhat larger numbers.
        case.v.iter_mut().for_each(|v| *v *= 1e-38);
        let default = case.whole();
        for bits in MODES {
            case.config.execution.threads = 1;
            let want = within(bits, || case.whole());
            assert!(first_difference(&want, &default).is_some(), "mode {bits:#x} changes nothing on {isa}");
            for threads in [2, 5] {
                case.config.execution.threads = threads;
                let got = within(bits, || case.whole());
                assert_eq!(first_difference(&got, &want), None, "mode {bits:#x}, {threads} threads, {isa}");
                // The other threads are in their own mode again.
                assert_eq!(first_difference(&case.whole(), &default), None, "after {bits:#x}, {isa}");
            }
        }
    }
}

#[test]
fn on_the_library_s_threads() {
    start_threads(5).expect("five threads");
    check();
}

#[test]
fn on_threads_of_the_caller_s_pool() {
    rayon::ThreadPoolBuilder::new().num_threads(5).build().expect("five threads").install(check);
}
