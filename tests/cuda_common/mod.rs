//! GPUs for the tests: the emulator, which runs the shipped PTX and checks every access, and a real GPU where
//! there is one.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(unsafe_code, reason = "the emulator's functions are C")]

use std::ffi::{CString, c_char, c_int};
use std::path::PathBuf;
use std::sync::OnceLock;

use chunkwise::cuda::{self, Attention, Device, Precision};
use chunkwise::{Config, Normaliser, Rule, Shape};
use libloading::Library;

use crate::common::{report, test_file};

/// The devices that the environment variable CHUNKWISE_TEST_CUDA selects.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// The variable is not set: the emulator, and a GPU where there is one.
    Anything,
    Gpu,
    Emulator,
    Both,
}

fn asked() -> Asked {
    let value = std::env::var_os("CHUNKWISE_TEST_CUDA");
    match value.as_ref().map(|value| value.to_string_lossy()).as_deref() {
        None => Asked::Anything,
        Some("gpu") => Asked::Gpu,
        Some("emulator") => Asked::Emulator,
        Some("both") => Asked::Both,
        Some(other) => panic!("CHUNKWISE_TEST_CUDA is {other:?}; it must be gpu, emulator or both"),
    }
}

/// Whether tests may use the emulator. Tests that are only possible there check this first, and report what
/// they leave out.
pub(crate) fn with_emulator() -> bool {
    asked() != Asked::Gpu
}

/// The path of the emulator's library, which cargo builds next to the tests.
pub(crate) fn emulator_path() -> PathBuf {
    // This dependency makes cargo rebuild the emulator together with the tests.
    use cuda_emulator as _;
    let test = std::env::current_exe().expect("the test's path");
    test_file("libcuda_emulator.so", test.with_file_name("libcuda_emulator.so"))
}

/// The emulator's settings and counters, which belong to the process.
pub(crate) struct Emulator(Library);

/// The emulator's counters, in the layout of its `Counters`.
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
    pub(crate) group_0: u64,
    pub(crate) group_1: u64,
    pub(crate) group_2: u64,
}

/// The numbers of objects that exist, in the layout of the emulator's `Live`.
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
        assert!(with_emulator(), "this needs the emulator, and CHUNKWISE_TEST_CUDA asks for a GPU alone");
        static EMULATOR: OnceLock<Emulator> = OnceLock::new();
        // SAFETY: this is the emulator, which has no initialisers.
        EMULATOR
            .get_or_init(|| Self(unsafe { Library::new(emulator_path()) }.expect("the emulator's library")))
    }

    fn call<F, R>(&self, name: &str, call: impl FnOnce(&F) -> R) -> R {
        // SAFETY: each caller below gives the type that the function has in control.rs.
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

    /// Makes all calls of a function but the first `after` return `code`; a code of 0 ends that.
    pub(crate) fn fail(&self, function: &str, code: i32, after: u64) {
        let function = CString::new(function).expect("a name");
        type F = extern "C" fn(*const c_char, c_int, u64);
        self.call("emulator_fail", |f: &F| f(function.as_ptr(), code, after));
    }

    /// Makes loads of modules take this number of milliseconds, or until a call with fewer.
    pub(crate) fn hold_loads(&self, milliseconds: u64) {
        self.call("emulator_hold_loads", |f: &extern "C" fn(u64)| f(milliseconds));
    }

    pub(crate) fn memory(&self, bytes: u64) {
        self.call("emulator_memory", |f: &extern "C" fn(u64)| f(bytes));
    }

    /// Sets the order of warps and blocks: 0 is ascending, 1 descending, 2 random, 3 random with switches.
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

    /// The fault of a kernel, or an empty text.
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

    /// Opens a device of the emulator.
    pub(crate) fn open(&self) -> chunkwise::cuda::Result<Device> {
        // SAFETY: the emulator has the functions of the driver.
        unsafe { Device::open_with(emulator_path(), 0) }
    }
}

/// The value of a result; an error panics with the emulator's description of the fault.
pub(crate) fn explained<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| match with_emulator() {
        true => panic!("{error}: {}", Emulator::get().fault()),
        false => panic!("{error}"),
    })
}

/// The emulator's default GPU, a Hopper, and the smallest of the older GPUs that are supported: capability,
/// number of multiprocessors, bytes of shared memory.
const HOPPER: ((i32, i32), i32, i32) = ((9, 0), 132, 232_448);
const AMPERE: ((i32, i32), i32, i32) = ((8, 6), 84, 101_376);

/// Devices of the emulator as these two GPUs.
pub(crate) fn emulated() -> &'static [Device; 2] {
    static DEVICES: OnceLock<[Device; 2]> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let emulator = Emulator::get();
        // The emulator stays the last one, which also loads modules for older GPUs.
        [AMPERE, HOPPER].map(|(capability, multiprocessors, shared)| {
            emulator.device(1, capability, multiprocessors, shared);
            emulator.open().expect("the emulator's device")
        })
    })
}

/// The machine's GPU. It is opened once, because the driver compiles kernels again for each opened device.
fn gpu() -> Result<Device, &'static cuda::Error> {
    static GPU: OnceLock<cuda::Result<Device>> = OnceLock::new();
    GPU.get_or_init(|| Device::open(0)).as_ref().cloned()
}

/// The devices on which tests run, by CHUNKWISE_TEST_CUDA; reports which these are.
pub(crate) fn devices() -> Vec<Device> {
    let asked = asked();
    let mut devices = Vec::new();
    if with_emulator() {
        devices.push(emulated()[1].clone());
    }
    if asked == Asked::Emulator {
        report("on the emulator; NOT on a GPU: CHUNKWISE_TEST_CUDA asks for none");
        return devices;
    }
    match gpu() {
        Ok(device) => {
            let also = if with_emulator() { "and on the emulator" } else { "alone; NOT on the emulator" };
            report(&format!("on {device:?} {also}"));
            devices.push(device);
        }
        Err(error) if asked == Asked::Anything => report(&format!("on the emulator; NOT on a GPU: {error}")),
        Err(error) => panic!("CHUNKWISE_TEST_CUDA asks for a GPU, and there is none: {error}"),
    }
    devices
}

/// A device, and the precision of its products.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) device: Device,
    pub(crate) precision: Precision,
}

impl Target {
    /// Attention with a configuration that the device supports.
    pub(crate) fn attention(&self, config: Config) -> Attention {
        explained(Attention::new(&self.device, config, self.precision))
    }
}

/// All devices with the default precision.
pub(crate) fn precise() -> Vec<Target> {
    devices().into_iter().map(|device| Target { device, precision: Precision::F32 }).collect()
}

/// All devices with every precision, and with the kernels of Hopper and those of older GPUs.
pub(crate) fn targets() -> Vec<Target> {
    let mut targets = Vec::new();
    for device in devices() {
        for precision in [Precision::F32, Precision::Bf16Dot] {
            targets.push(Target { device: device.clone(), precision });
        }
    }
    if with_emulator() {
        targets.push(Target { device: emulated()[0].clone(), precision: Precision::Bf16Dot });
    }
    if asked() != Asked::Emulator
        && let Ok(device) = gpu()
        && device.has_wgmma()
    {
        targets.push(Target { device: device.without_wgmma(), precision: Precision::Bf16Dot });
    }
    targets
}

/// A configuration of these sizes B, T, H, K and V, contiguous.
pub(crate) fn config([batch, len, heads, key, value]: [usize; 5], normaliser: Normaliser) -> Config {
    Config::new(Rule::linear(normaliser), Shape::new(batch, len, heads, key, value))
}
