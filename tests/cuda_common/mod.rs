//! GPUs for the tests: the emulator, which runs the PTX that is shipped and checks what it does, and a real one where there is.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(unsafe_code, reason = "the emulator's functions are C")]

use std::ffi::{CString, c_char, c_int};
use std::path::PathBuf;
use std::sync::OnceLock;

use chunkwise::cuda::{Device, Precision};
use chunkwise::{Config, Normaliser, Rule, Shape};
use libloading::Library;

use crate::common::report;

/// The emulator's library, which cargo builds beside the tests.
pub(crate) fn emulator_path() -> PathBuf {
    // Linked in, so that it is known to be as new as the tests.
    use cuda_emulator as _;
    let test = std::env::current_exe().expect("the test's path");
    test.with_file_name("libcuda_emulator.so")
}

/// The emulator's settings and counts. They are of the process.
pub(crate) struct Emulator(Library);

/// What it counts, as its `Counters`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Counters {
    pub(crate) launches: u64,
    pub(crate) blocks: u64,
    pub(crate) instructions: u64,
    pub(crate) alu: u64,
    pub(crate) control: u64,
    pub(crate) mma_k16: u64,
    pub(crate) mma_k8: u64,
    pub(crate) mma_k4: u64,
    pub(crate) ldmatrix: u64,
    pub(crate) shared: u64,
    pub(crate) global: u64,
    pub(crate) other: u64,
    pub(crate) cp_async: u64,
    pub(crate) barrier: u64,
    pub(crate) wgmma: u64,
    pub(crate) global_read: u64,
    pub(crate) global_written: u64,
    pub(crate) global_sectors: u64,
    pub(crate) global_requests: u64,
    pub(crate) shared_conflicts: u64,
    pub(crate) shared_wavefronts: u64,
    pub(crate) wgmma_k16: u64,
    pub(crate) wgmma_read: u64,
}

/// What is alive, as its `Live`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Live {
    pub(crate) allocations: u64,
    pub(crate) bytes: u64,
    pub(crate) modules: u64,
    pub(crate) retained: u64,
    pub(crate) pushed: u64,
    pub(crate) streams: u64,
    pub(crate) events: u64,
}

impl Emulator {
    pub(crate) fn get() -> &'static Self {
        static EMULATOR: OnceLock<Emulator> = OnceLock::new();
        // SAFETY: the emulator, which has no initialisers.
        EMULATOR
            .get_or_init(|| Self(unsafe { Library::new(emulator_path()) }.expect("the emulator's library")))
    }

    fn call<F, R>(&self, name: &str, call: impl FnOnce(&F) -> R) -> R {
        // SAFETY: each caller below names the type that control.rs has.
        call(&*unsafe { self.0.get::<F>(name.as_bytes()) }.expect("a function of the emulator"))
    }

    pub(crate) fn reset(&self) {
        self.call("emulator_reset", |f: &extern "C" fn()| f());
    }

    pub(crate) fn device(&self, count: i32, (major, minor): (i32, i32), multiprocessors: i32, shared: i32) {
        type F = extern "C" fn(c_int, c_int, c_int, c_int, c_int);
        self.call("emulator_device", |f: &F| f(count, major, minor, multiprocessors, shared));
    }

    pub(crate) fn driver_version(&self, version: i32) {
        self.call("emulator_driver_version", |f: &extern "C" fn(c_int)| f(version));
    }

    /// Calls of a function fail from the one after `after` on; 0 ends that.
    pub(crate) fn fail(&self, function: &str, code: i32, after: u64) {
        let function = CString::new(function).expect("a name");
        type F = extern "C" fn(*const c_char, c_int, u64);
        self.call("emulator_fail", |f: &F| f(function.as_ptr(), code, after));
    }

    /// Loads of modules take so many milliseconds, or until this is called again with fewer.
    pub(crate) fn hold_loads(&self, milliseconds: u64) {
        self.call("emulator_hold_loads", |f: &extern "C" fn(u64)| f(milliseconds));
    }

    pub(crate) fn memory(&self, bytes: u64) {
        self.call("emulator_memory", |f: &extern "C" fn(u64)| f(bytes));
    }

    /// 0 ascending, 1 descending, 2 random, 3 random with switches.
    pub(crate) fn schedule(&self, policy: i32, seed: u64) {
        self.call("emulator_schedule", |f: &extern "C" fn(c_int, u64)| f(policy, seed));
    }

    pub(crate) fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        self.call("emulator_counters", |f: &extern "C" fn(*mut Counters)| f(&mut counters));
        counters
    }

    pub(crate) fn reset_counters(&self) {
        self.call("emulator_counters_reset", |f: &extern "C" fn()| f());
    }

    pub(crate) fn live(&self) -> Live {
        let mut live = Live::default();
        self.call("emulator_live", |f: &extern "C" fn(*mut Live)| f(&mut live));
        live
    }

    /// What a kernel did that it must not, or nothing.
    pub(crate) fn fault(&self) -> String {
        let mut text = [0u8; 1024];
        type F = extern "C" fn(*mut u8, u64) -> u64;
        let len = self.call("emulator_fault", |f: &F| f(text.as_mut_ptr(), text.len() as u64));
        String::from_utf8_lossy(&text[..(len as usize).min(text.len() - 1)]).into()
    }

    pub(crate) fn calls(&self, function: &str) -> u64 {
        let function = CString::new(function).expect("a name");
        self.call("emulator_calls", |f: &extern "C" fn(*const c_char) -> u64| f(function.as_ptr()))
    }

    /// A device of it.
    pub(crate) fn open(&self) -> chunkwise::cuda::Result<Device> {
        // SAFETY: it acts as the driver.
        unsafe { Device::open_with(emulator_path(), 0) }
    }
}

/// What went wrong, with the emulator's words.
pub(crate) fn explained<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("{error}: {}", Emulator::get().fault()))
}

/// What the emulator is at first, a Hopper, and the smallest of the older GPUs that are supported: capability,
/// multiprocessors, bytes of shared memory.
const HOPPER: ((i32, i32), i32, i32) = ((9, 0), 132, 232_448);
const AMPERE: ((i32, i32), i32, i32) = ((8, 6), 84, 101_376);

/// The emulator as both.
fn emulated() -> &'static [Device; 2] {
    static DEVICES: OnceLock<[Device; 2]> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let emulator = Emulator::get();
        // The last one is what the emulator is from then on: it takes modules for older ones as well.
        [AMPERE, HOPPER].map(|(capability, multiprocessors, shared)| {
            emulator.device(1, capability, multiprocessors, shared);
            emulator.open().expect("the emulator's device")
        })
    })
}

/// Devices to test on: the emulator's, and the machine's own where it has one. Says which there were.
pub(crate) fn devices() -> Vec<Device> {
    let mut devices = vec![emulated()[1].clone()];
    match Device::open(0) {
        Ok(device) => {
            report(&format!("on {device:?} and on the emulator"));
            devices.push(device);
        }
        Err(error) => report(&format!("on the emulator; NOT on a GPU: {error}")),
    }
    devices
}

/// A device, and what it multiplies by.
pub(crate) type Target = (Device, Precision);

/// The devices as they are by default.
pub(crate) fn precise() -> Vec<Target> {
    devices().into_iter().map(|device| (device, Precision::F32)).collect()
}

/// The same with what they multiply by: each kernel once, Hopper's own and the older ones.
pub(crate) fn targets() -> Vec<Target> {
    let both = |device: Device| [(device.clone(), Precision::F32), (device, Precision::Bf16Dot)];
    let mut targets: Vec<_> = devices().into_iter().flat_map(both).collect();
    targets.push((emulated()[0].clone(), Precision::Bf16Dot));
    targets
}

/// B, T, H, K and V, contiguous.
pub(crate) fn config([batch, len, heads, key, value]: [usize; 5], normaliser: Normaliser) -> Config {
    Config::new(Rule::linear(normaliser), Shape::new(batch, len, heads, key, value))
}
