//! Functions that tests use to set up the emulator and to query it. The library exports them beside the driver API.
//! Settings and counts belong to the process.

use crate::counters::Counters;
use crate::state::{Device, lock, policy_of};
use std::ffi::{CStr, c_char, c_int};

/// The numbers of objects that are alive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Live {
    /// The number of allocations of cuMemAlloc.
    pub allocations: u64,
    /// The size of these allocations in bytes.
    pub bytes: u64,
    /// The number of modules.
    pub modules: u64,
    /// The number of retains of primary contexts that have not been released.
    pub retained: u64,
    /// The number of pushes of contexts by all threads that have not been popped.
    pub pushed: u64,
    /// The number of streams.
    pub streams: u64,
    /// The number of events.
    pub events: u64,
}

/// Destroys all objects, and resets all settings and counts to their defaults.
#[unsafe(no_mangle)]
pub extern "C" fn emulator_reset() {
    lock().reset();
}

/// Sets the number of devices, and the capability, the number of multiprocessors and the shared memory of each. The
/// default is one device of capability 9.0 with 132 multiprocessors.
#[unsafe(no_mangle)]
pub extern "C" fn emulator_device(count: c_int, major: c_int, minor: c_int, sms: c_int, shared: c_int) {
    lock().device = Device { count, major, minor, sms, shared };
}

/// Sets the version of the driver, which limits the PTX ISA of modules. The default is 13000.
#[unsafe(no_mangle)]
pub extern "C" fn emulator_driver_version(version: c_int) {
    lock().driver = version;
}

/// Makes calls of `symbol` return `code` without effect, except for the next `after` calls. A code of 0 ends that.
///
/// # Safety
/// `symbol` must be a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn emulator_fail(symbol: *const c_char, code: c_int, after: u64) {
    // SAFETY: the caller guarantees a C string.
    let symbol = unsafe { CStr::from_ptr(symbol) }.to_string_lossy().into_owned();
    let mut state = lock();
    if code == 0 {
        state.fails.remove(&symbol);
    } else {
        let made = state.calls.get(&symbol).copied().unwrap_or(0);
        state.fails.insert(symbol, (code, made + after));
    }
}

/// Sets the number of bytes that may be allocated at a time.
#[unsafe(no_mangle)]
pub extern "C" fn emulator_memory(limit: u64) {
    lock().memory_limit = limit as usize;
}

/// Sets the order of warps and blocks: 0 is ascending, 1 descending, 2 random, and 3 random with switches of warps
/// after a few instructions.
#[unsafe(no_mangle)]
pub extern "C" fn emulator_schedule(policy: c_int, seed: u64) {
    let mut state = lock();
    (state.options.policy, state.options.seed) = (policy_of(policy), seed);
}

/// Sets the number of warp-instructions after which a launch counts as endless.
#[unsafe(no_mangle)]
pub extern "C" fn emulator_budget(instructions: u64) {
    lock().options.budget = instructions;
}

/// Sets the enabled checks, as bits of `fault::check`. By default all are enabled.
#[unsafe(no_mangle)]
pub extern "C" fn emulator_checks(mask: u32) {
    lock().options.checks = mask;
}

/// Returns the sums of the counts of all launches since the last reset.
#[unsafe(no_mangle)]
pub extern "C" fn emulator_counters(out: Option<&mut Counters>) {
    if let Some(out) = out {
        *out = lock().counters;
    }
}

/// Resets the counts of launches to zero.
#[unsafe(no_mangle)]
pub extern "C" fn emulator_counters_reset() {
    lock().counters = Counters::default();
}

/// Returns the numbers of objects that are alive.
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

/// Copies the text of the last fault, cut to `len` bytes including a zero at the end. Returns the length of the whole
/// text, which is 0 if there was no fault.
///
/// # Safety
/// `out` must have `len` bytes, or be null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn emulator_fault(out: *mut c_char, len: u64) -> u64 {
    let state = lock();
    let text = state.fault_text.as_bytes();
    if !out.is_null() && len > 0 {
        let n = text.len().min(len as usize - 1);
        // SAFETY: n bytes and the zero fit in `len`; the text belongs to the state, which is locked.
        unsafe {
            out.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), n);
            out.add(n).write(0);
        }
    }
    text.len() as u64
}

/// Returns the number of calls of a function of the driver since the last reset.
///
/// # Safety
/// `symbol` must be a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn emulator_calls(symbol: *const c_char) -> u64 {
    // SAFETY: the caller guarantees a C string.
    let symbol = unsafe { CStr::from_ptr(symbol) }.to_string_lossy().into_owned();
    lock().calls.get(&symbol).copied().unwrap_or(0)
}
