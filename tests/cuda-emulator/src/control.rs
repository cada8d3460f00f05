//! What tests set and ask, beside the driver API in the same library. All of it is of the process.

use crate::counters::Counters;
use crate::state::{Device, lock, policy_of};
use std::ffi::{CStr, c_char, c_int};

/// What is alive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Live {
    /// Allocations of cuMemAlloc.
    pub allocations: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Modules.
    pub modules: u64,
    /// Retains of primary contexts without their releases.
    pub retained: u64,
    /// Pushes of contexts without their pops, of all threads.
    pub pushed: u64,
    /// Streams.
    pub streams: u64,
    /// Events.
    pub events: u64,
}

/// Back to the defaults: everything alive is gone, all settings and counts too.
#[unsafe(no_mangle)]
pub extern "C" fn emulator_reset() {
    lock().reset();
}

/// Devices: how many, and what each is. The default is one of capability 9.0 with 132 multiprocessors.
#[unsafe(no_mangle)]
pub extern "C" fn emulator_device(count: c_int, major: c_int, minor: c_int, sms: c_int, shared: c_int) {
    lock().device = Device { count, major, minor, sms, shared };
}

/// The driver's version, 13000 by default; it bounds the PTX ISA of modules.
#[unsafe(no_mangle)]
pub extern "C" fn emulator_driver_version(version: c_int) {
    lock().driver = version;
}

/// From the call after `after` on since the last reset, calls of `symbol` return `code` and do nothing. 0 ends that.
///
/// # Safety
/// `symbol` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn emulator_fail(symbol: *const c_char, code: c_int, after: u64) {
    // SAFETY: the caller's promise.
    let symbol = unsafe { CStr::from_ptr(symbol) }.to_string_lossy().into_owned();
    let mut state = lock();
    if code == 0 {
        state.fails.remove(&symbol);
    } else {
        let made = state.calls.get(&symbol).copied().unwrap_or(0);
        state.fails.insert(symbol, (code, made + after));
    }
}

/// Bytes that may be allocated at a time.
#[unsafe(no_mangle)]
pub extern "C" fn emulator_memory(limit: u64) {
    lock().memory_limit = limit as usize;
}

/// Order of warps and blocks: 0 ascending, 1 descending, 2 random, 3 random with switches after a few instructions.
#[unsafe(no_mangle)]
pub extern "C" fn emulator_schedule(policy: c_int, seed: u64) {
    let mut state = lock();
    (state.options.policy, state.options.seed) = (policy_of(policy), seed);
}

/// Warp-instructions of a launch before it counts as endless.
#[unsafe(no_mangle)]
pub extern "C" fn emulator_budget(instructions: u64) {
    lock().options.budget = instructions;
}

/// Bits of `fault::check`; all are set by default.
#[unsafe(no_mangle)]
pub extern "C" fn emulator_checks(mask: u32) {
    lock().options.checks = mask;
}

/// Sums of all launches since the last reset.
#[unsafe(no_mangle)]
pub extern "C" fn emulator_counters(out: Option<&mut Counters>) {
    if let Some(out) = out {
        *out = lock().counters;
    }
}

/// Sets them to zero.
#[unsafe(no_mangle)]
pub extern "C" fn emulator_counters_reset() {
    lock().counters = Counters::default();
}

/// What is alive.
#[unsafe(no_mangle)]
pub extern "C" fn emulator_live(out: Option<&mut Live>) {
    let state = lock();
    if let Some(out) = out {
        *out = Live {
            allocations: state.memory.len() as u64,
            bytes: state.used() as u64,
            modules: state.modules.len() as u64,
            retained: state.retained.values().map(|n| u64::from(*n)).sum(),
            pushed: state.pushed.max(0) as u64,
            streams: state.streams.len() as u64,
            events: state.events.len() as u64,
        };
    }
}

/// The text of the last fault, cut to `len` bytes with a zero; returned is its length, 0 if there was none.
///
/// # Safety
/// `out` has `len` bytes, or is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn emulator_fault(out: *mut c_char, len: u64) -> u64 {
    let state = lock();
    let text = state.fault_text.as_bytes();
    if !out.is_null() && len > 0 {
        let n = text.len().min(len as usize - 1);
        // SAFETY: n and the zero are within `len`; the text is the state's own.
        unsafe {
            out.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), n);
            out.add(n).write(0);
        }
    }
    text.len() as u64
}

/// Calls of a function of the driver since the last reset.
///
/// # Safety
/// `symbol` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn emulator_calls(symbol: *const c_char) -> u64 {
    // SAFETY: the caller's promise.
    let symbol = unsafe { CStr::from_ptr(symbol) }.to_string_lossy().into_owned();
    lock().calls.get(&symbol).copied().unwrap_or(0)
}
