//! Failures of a GPU's driver, which the emulator simulates: the errors that are returned, with the driver's
//! or the loader's message, and that nothing remains allocated, loaded, retained or current afterwards.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(
    unsafe_code,
    reason = "bad addresses of device memory, and the driver's own functions beside the library's"
)]
mod common;
mod cuda_common;

use std::ffi::c_int;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chunkwise::cuda::{
    self, Attention, Buffer, DecodeStep, Device, Error, Forward, Precision, Slice, State, Stream,
};
use chunkwise::nn::{BlockWeights, Model, ModelConfig, Weights, init};
use chunkwise::{Config, Normaliser};
use common::*;
use cuda_common::{Emulator, Live, config, emulator_path};
use half::bf16;
use libloading::Library;

/// The emulator in its initial state, for one test at a time, because its state belongs to the process.
struct Alone {
    emulator: &'static Emulator,
    _turn: MutexGuard<'static, ()>,
}

impl Alone {
    fn new() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        // The reset also undoes everything that a failed test has left.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let emulator = Emulator::get();
        emulator.reset();
        Self { emulator, _turn: turn }
    }
}

impl std::ops::Deref for Alone {
    type Target = Emulator;
    fn deref(&self) -> &Emulator {
        self.emulator
    }
}

/// Opens a library as the driver.
fn open(path: impl AsRef<Path>, ordinal: usize) -> cuda::Result<Device> {
    // SAFETY: these are the emulator and libraries of the system, whose initialisers do no harm.
    unsafe { Device::open_with(path.as_ref(), ordinal) }
}

fn refused(path: impl AsRef<Path>, ordinal: usize) -> Error {
    open(path, ordinal).expect_err("it must be refused")
}

/// The functions of the driver that the library uses. They are read from its source, so that none is missing.
fn functions() -> Vec<&'static str> {
    let source = include_str!("../src/cuda/driver.rs");
    let (_, list) = source.split_once("\nfunctions! {").expect("the list of functions");
    let (list, _) = list.split_once("\n}").expect("its end");
    let functions: Vec<_> = list.lines().filter_map(|line| line.split('"').nth(1)).collect();
    assert!(functions.len() >= 22 && functions.iter().all(|name| name.starts_with("cu")), "{functions:?}");
    functions
}

/// The name of a function in errors.
fn without_version(function: &str) -> &str {
    function.strip_suffix("_v2").unwrap_or(function)
}

/// Checks that an error is one sentence and contains these words.
fn assert_message(error: &Error, words: &[&str]) {
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text:?} lacks one of {words:?}");
    assert!(
        !text.contains('\n') && !text.ends_with([':', ' ']) && text.len() > 10,
        "{text:?} is no sentence"
    );
    let as_std: &dyn std::error::Error = error;
    assert_eq!(as_std.to_string(), text);
}

// --- opening

#[test]
fn no_driver() {
    let emulator = Alone::new();
    let error = refused("/nowhere/libcuda.so.1", 0);
    let Error::NoDriver { text } = &error else { panic!("{error:?}") };
    assert!(text.contains("/nowhere/libcuda.so.1"), "without the loader's message: {text:?}");
    assert_message(&error, &["no CUDA driver", text]);
    // This file is not a library.
    let error = refused(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"), 0);
    let Error::NoDriver { text } = &error else { panic!("{error:?}") };
    assert!(text.contains("Cargo.toml"), "without the loader's message: {text:?}");
    assert_eq!(emulator.live(), Live::default());
}

#[test]
fn not_the_driver() {
    let _alone = Alone::new();
    for library in ["libm.so.6", "libc.so.6"] {
        let error = refused(library, 0);
        let Error::MissingSymbol { symbol, text } = &error else { panic!("{error:?}") };
        assert_eq!(*symbol, functions()[0], "the first that is missing");
        assert!(text.contains("cuInit"), "without the loader's message: {text:?}");
        assert_message(&error, &["cuInit", text]);
    }
}

#[test]
fn driver_too_old() {
    let emulator = Alone::new();
    for version in [0, 10_020, 10_990] {
        emulator.driver_version(version);
        let error = refused(emulator_path(), 0);
        assert_eq!(error, Error::DriverTooOld { version, need: 11_000 });
    }
    emulator.driver_version(10_020);
    assert_message(&refused(emulator_path(), 0), &["CUDA 10.2", "CUDA 11.0"]);
    assert_eq!(emulator.calls("cuInit"), 0, "nothing was started");
    emulator.driver_version(11_000);
    assert!(open(emulator_path(), 0).is_ok(), "the oldest supported version is refused");
}

#[test]
fn no_device() {
    let emulator = Alone::new();
    let words = "no CUDA-capable device is detected";
    // NVIDIA's driver returns this error already from cuInit.
    emulator.device(0, (9, 0), 132, 232_448);
    let error = refused(emulator_path(), 0);
    assert_eq!(error, Error::NoDevice { ordinal: 0, count: 0, text: words.into() });
    assert_message(&error, &["no CUDA device 0", "there are 0", words]);
    emulator.reset();
    emulator.fail("cuInit", 100, 0);
    assert_eq!(refused(emulator_path(), 0), error);

    // There are devices, but not the one with this ordinal.
    emulator.reset();
    drop(open(emulator_path(), 0).expect("there is one"));
    emulator.device(2, (9, 0), 132, 232_448);
    for ordinal in [2, 3, i32::MAX as usize, i32::MAX as usize + 1, usize::MAX] {
        let error = refused(emulator_path(), ordinal);
        assert_eq!(error, Error::NoDevice { ordinal, count: 2, text: String::new() });
        assert_message(&error, &[&format!("no CUDA device {ordinal}"), "there are 2"]);
    }
    assert_eq!(open(emulator_path(), 1).map(|device| device.multiprocessors()), Ok(132));
    assert_eq!(emulator.live(), Live::default());
}

#[test]
fn capability_too_low() {
    let emulator = Alone::new();
    for capability in [(7, 5), (7, 9), (6, 1), (0, 0)] {
        emulator.device(1, capability, 40, 65_536);
        let error = refused(emulator_path(), 0);
        let name = format!("Emulated sm_{}{}", capability.0, capability.1);
        assert_eq!(error, Error::Capability { name: name.clone(), capability });
        let dotted = format!("{}.{}", capability.0, capability.1);
        assert_message(&error, &[&name, &dotted, "8.0"]);
    }
    assert_eq!(emulator.calls("cuDevicePrimaryCtxRetain"), 0, "a context was made for nothing");
    emulator.device(1, (8, 0), 108, 166_912);
    let device = emulator.open().expect("the least that is needed is enough");
    assert_eq!(
        (device.capability(), device.multiprocessors(), device.shared_memory()),
        ((8, 0), 108, 166_912)
    );
    assert_eq!(device.name(), "Emulated sm_80");
    assert_eq!(format!("{device:?}"), "Device(Emulated sm_80, compute capability 8.0)");
}

// --- memory and modules

#[test]
fn out_of_memory() {
    let emulator = Alone::new();
    emulator.memory(4000);
    let device = emulator.open().expect("a device");
    let held = Buffer::<f32>::from_slice(&device, &[1.0; 500]).expect("2000 bytes");
    for bytes in [2004, 1 << 40] {
        let error = Buffer::<f32>::zeros(&device, bytes / 4).expect_err("more than there is");
        assert_eq!(error, Error::OutOfMemory { bytes, text: "out of memory".into() });
        assert_message(&error, &[&bytes.to_string(), "out of memory"]);
    }
    let error = Buffer::from_slice(&device, &[0f32; 501]).expect_err("more than there is");
    assert_eq!(error, Error::OutOfMemory { bytes: 2004, text: "out of memory".into() });
    // The number of bytes overflows.
    let error = Buffer::<f32>::zeros(&device, usize::MAX / 2).expect_err("more than there is");
    assert_eq!(error, chunkwise::Error::Overflow { what: "the buffer" }.into());
    assert_message(&error, &["the buffer"]);
    // An allocation that fits still succeeds, and the first buffer is unchanged.
    let rest = Buffer::<f32>::zeros(&device, 500).expect("the rest");
    assert_eq!(held.read(Stream::DEFAULT), Ok(vec![1.0; 500]));
    assert_eq!(rest.read(Stream::DEFAULT), Ok(vec![0.0; 500]));
    drop(rest);
    assert!(Buffer::<f32>::zeros(&device, 500).is_ok(), "freed memory can't be allocated again");
    drop((held, device));
    assert_eq!(emulator.live(), Live::default());
}

#[test]
fn unsupported_ptx() {
    let emulator = Alone::new();
    let codes = [
        (209, "no kernel image is available for execution on the device"),
        (218, "a PTX JIT compilation failed"),
        (222, "the provided PTX was compiled with an unsupported toolchain."),
        // The emulator has no message for this code.
        (221, "unknown error"),
    ];
    for (code, words) in codes {
        let mut things = Things::default();
        things.all(&emulator).expect("nothing is wrong yet");
        emulator.reset();
        let mut things = Things::default();
        emulator.fail("cuModuleLoadDataEx", code, 0);
        let error = things.all(&emulator).expect_err("no module");
        assert_eq!(
            error,
            Error::UnsupportedPtx {
                module: "sm_90a/prefill_bf16_dot/prefill_64_global".into(),
                text: words.into()
            }
        );
        assert_message(&error, &["sm_90a/prefill_bf16_dot/prefill_64_global", words]);
        // Now the second module fails.
        emulator.fail("cuModuleLoadDataEx", 0, 0);
        emulator.fail("cuModuleLoadDataEx", code, 1);
        let error = things.all(&emulator).expect_err("no second module");
        assert_eq!(error, Error::UnsupportedPtx { module: "sm_80/decode/scan".into(), text: words.into() });
        // The load is tried again, and succeeds when the driver no longer fails.
        emulator.fail("cuModuleLoadDataEx", 0, 0);
        assert!(things.all(&emulator).is_ok(), "{code} is remembered");
        drop(things);
        assert_eq!(emulator.live(), Live::default());
        emulator.reset();
    }
}

#[test]
fn compiling_is_disabled() {
    let emulator = Alone::new();
    let mut things = Things::default();
    emulator.fail("cuModuleLoadDataEx", 223, 0);
    let error = things.all(&emulator).expect_err("no kernel");
    assert_eq!(error, Error::JitDisabled { text: "PTX JIT compilation was disabled".into() });
    assert_message(&error, &["CUDA_DISABLE_PTX_JIT", "CUDA_DISABLE_JIT", "PTX JIT compilation was disabled"]);
    emulator.fail("cuModuleLoadDataEx", 0, 0);
    assert!(things.all(&emulator).is_ok(), "the failure is remembered");
}

/// Hopper with a driver that is older than Hopper's kernels runs the kernels of older GPUs, as with
/// `without_wgmma`.
#[test]
fn hopper_without_its_own_kernels() {
    let emulator = Alone::new();
    let mut by_mma = Vec::new();
    for (version, ask, wgmma) in
        [(11_080, false, false), (11_990, false, false), (12_000, false, true), (12_000, true, false)]
    {
        emulator.reset();
        emulator.driver_version(version);
        let mut device = emulator.open().expect("a device");
        if ask {
            device = device.without_wgmma();
        }
        assert_eq!((device.has_wgmma(), format!("{device:?}").contains("without wgmma")), (wgmma, !wgmma));
        let mut things = Things { device: Some(device), ..Things::default() };
        let results = things.all(&emulator).unwrap_or_else(|e| panic!("{e}: {}", emulator.fault()));
        assert_eq!(emulator.counters().wgmma > 0, wgmma, "CUDA {version}, asked: {ask}");
        if !wgmma {
            by_mma.push(results);
        }
    }
    assert!(by_mma.windows(2).all(|two| two[0] == two[1]), "the same kernels");
}

/// Errors contain the log of the driver's compiler, here of a driver that is too old for the kernels.
#[test]
fn unsupported_ptx_log() {
    let emulator = Alone::new();
    let mut things = Things::default();
    things.open(&emulator).expect("a device");
    emulator.driver_version(10_020);
    let error = things.all(&emulator).expect_err("too new a text");
    let Error::UnsupportedPtx { module, text } = &error else { panic!("{error:?}") };
    assert_eq!(module, "sm_90a/prefill_bf16_dot/prefill_64_global");
    assert!(text.starts_with("the provided PTX was compiled with an unsupported toolchain. "), "{text}");
    assert!(text.ends_with("PTX ISA 8.0 is newer than the driver"), "without the log: {text}");
    assert_message(&error, &[module, text]);
    drop(things);
    assert_eq!(emulator.live(), Live::default());
}

// --- each function, at each of its calls

const KEY: usize = 8;
/// V: two panels of columns, so that the sums of a carried state are copied before they are overwritten.
const VALUE: usize = 72;
/// T: the tokens of two segments.
const LEN: usize = 512;

/// The number of modules, each of one kernel: prefill, scan, snapshot and decode.
const MODULES: u64 = 4;

/// The objects of a program on a device. They are made one after the other, so that those before a failure
/// remain.
#[derive(Default)]
struct Things {
    device: Option<Device>,
    inputs: Vec<Buffer<bf16>>,
    outputs: Option<Buffer<bf16>>,
    state: Option<Buffer>,
    workspace: Option<Buffer>,
}

impl Things {
    fn config(len: usize) -> Config {
        config([1, len, 1, KEY, VALUE], Normaliser::Global { eps: 1e-6 })
    }

    fn attention(device: &Device, len: usize) -> cuda::Result<Attention> {
        Attention::new(device, Self::config(len), Precision::Bf16Dot)
    }

    fn open(&mut self, emulator: &Emulator) -> cuda::Result<Device> {
        if self.device.is_none() {
            self.device = Some(emulator.open()?);
        }
        Ok(self.device.clone().expect("just opened"))
    }

    /// Makes calls that use every function of the driver and every kernel of attention; returns the outputs
    /// and the state. It can be called again after a failure.
    fn all(&mut self, emulator: &Emulator) -> cuda::Result<(Vec<f32>, Vec<f32>)> {
        let device = self.open(emulator)?;
        self.inputs.clear();
        let case = Case::new(Self::config(LEN), 4);
        for tensor in [&case.q, &case.k, &case.v] {
            self.inputs.push(Buffer::from_slice(&device, &narrow::<bf16>(tensor))?);
        }
        let whole = Self::attention(&device, LEN)?.with_segments(2);
        assert_eq!(whole.segments(), 2, "the scan would not be launched");
        let piece = Self::attention(&device, 64)?.with_segments(1);
        let [q, k, v] = [0, 1, 2].map(|tensor| self.inputs[tensor].slice());
        let o = self.outputs.insert(Buffer::zeros(&device, LEN * VALUE)?);
        let state = self.state.insert(Buffer::zeros(&device, whole.state_len())?);
        let workspace = self.workspace.insert(Buffer::zeros(&device, whole.workspace_len())?);
        state.write(&vec![0.5; whole.state_len()], Stream::DEFAULT)?;
        for attention in [&whole, &piece] {
            let (o, workspace) = (o.slice_mut(), workspace.slice_mut());
            let state = State::Carried(state.slice_mut());
            attention.forward(Forward { q, k, v, state, o, workspace }, Stream::DEFAULT)?;
        }
        let (state_mut, o_mut) = (state.slice_mut(), o.slice_mut());
        whole.decode(DecodeStep { q, k, v, state: state_mut, o: o_mut }, Stream::DEFAULT)?;
        device.synchronize(Stream::DEFAULT)?;
        Ok((widen(&o.read(Stream::DEFAULT)?), state.read(Stream::DEFAULT)?))
    }
}

/// The results of a run without failures, and how often it calls each function: until the drop of its
/// objects, and with the drop.
struct Clean {
    results: (Vec<f32>, Vec<f32>),
    calls: Vec<(&'static str, u64, u64)>,
}

impl Clean {
    fn run(emulator: &Emulator) -> Self {
        emulator.reset();
        let mut things = Things::default();
        let results = things.all(emulator).unwrap_or_else(|error| panic!("{error}: {}", emulator.fault()));
        assert!(results.0.iter().chain(&results.1).all(|x| x.is_finite()));
        let before: Vec<_> = functions().iter().map(|name| emulator.calls(name)).collect();
        assert_eq!(emulator.counters().launches, 6, "sums, scan, outputs; snapshot, outputs; decode");
        drop(things);
        assert_eq!(emulator.live(), Live::default());
        let of = |(name, before): (&'static str, u64)| (name, before, emulator.calls(name));
        Self { results, calls: functions().into_iter().zip(before).map(of).collect() }
    }
}

/// Functions whose failures can't be returned: those that drops call, and the one that returns the text of an
/// error.
const SILENT: [&str; 6] = [
    "cuCtxSynchronize",
    "cuCtxPopCurrent_v2",
    "cuMemFree_v2",
    "cuModuleUnload",
    "cuDevicePrimaryCtxRelease_v2",
    "cuGetErrorString",
];

/// Each function fails from its k-th call on, for each k. The library's call returns the error, and all
/// objects are released.
#[test]
fn every_call_fails() {
    let emulator = Alone::new();
    let clean = Clean::run(&emulator);
    let mut tried = 0;
    for &(function, calls, _) in clean.calls.iter().filter(|(function, ..)| !SILENT.contains(function)) {
        assert!(calls > 0, "{function} is never called");
        for (turn, code, text) in [
            (0, 999, "unknown error"),
            (1, 1, "invalid argument"),
            (2, 700, "an illegal memory access was encountered"),
        ] {
            // All codes are handled in the same way. Each is tried at the first and the last call, and at a
            // third of the others.
            let places = (0..calls).filter(|k| *k == 0 || *k + 1 == calls || k % 3 == turn);
            for k in places {
                tried += 1;
                emulator.reset();
                emulator.fail(function, code, k);
                let mut things = Things::default();
                let result = things.all(&emulator);
                let call = without_version(function);
                let name = format!("call {k} of {function}");
                assert_eq!(result, Err(Error::Driver { call, code, text: text.into() }), "{name}");
                assert_message(&result.expect_err("as above"), &[call, &code.to_string(), text]);
                emulator.fail(function, 0, 0);
                // Where a context can't be entered, a buffer that could not be filled can't be freed either.
                let lost = if function == "cuCtxPushCurrent_v2" { emulator.live().allocations } else { 0 };
                let held = things.inputs.len() as u64
                    + u64::from(things.outputs.is_some())
                    + u64::from(things.state.is_some())
                    + u64::from(things.workspace.is_some());
                drop(things);
                let lost = lost.saturating_sub(held);
                let live = emulator.live();
                assert_eq!(
                    Live { bytes: 0, allocations: live.allocations - lost, ..live },
                    Live::default(),
                    "{name}"
                );
                assert!(lost <= 1, "{name} lost {lost} buffers");
            }
        }
    }
    let places: u64 =
        clean.calls.iter().filter(|(f, ..)| !SILENT.contains(f)).map(|(_, calls, _)| calls).sum();
    report(&format!("{tried} failures of the driver's calls, at {places} places"));
    assert!(tried >= places, "a place was left out");
}

/// After a temporary failure, the same objects work and give the same results.
#[test]
fn failures_pass() {
    let emulator = Alone::new();
    let clean = Clean::run(&emulator);
    for function in [
        "cuModuleGetFunction",
        "cuFuncSetAttribute",
        "cuLaunchKernel",
        "cuStreamSynchronize",
        "cuMemAlloc_v2",
    ] {
        for k in [0, 1, 3] {
            emulator.reset();
            emulator.fail(function, 999, k);
            let mut things = Things::default();
            // The attribute is set only once.
            assert_eq!(things.all(&emulator).is_err(), function != "cuFuncSetAttribute" || k == 0);
            emulator.fail(function, 0, 0);
            let results = things.all(&emulator).expect("no failure any more");
            assert_eq!(first_difference(&results.0, &clean.results.0), None, "{function} {k}");
            assert_eq!(first_difference(&results.1, &clean.results.1), None, "{function} {k}");
            drop(things);
            assert_eq!(emulator.live(), Live::default(), "{function} {k}");
        }
    }
}

/// Functions that fail only in drops: results are returned, nothing panics, and only those objects remain
/// that could not be released.
#[test]
fn drops_fail() {
    let emulator = Alone::new();
    let clean = Clean::run(&emulator);
    for &(function, before, calls) in
        clean.calls.iter().filter(|(f, ..)| SILENT.contains(f) || *f == "cuCtxPushCurrent_v2")
    {
        let silent = SILENT.contains(&function);
        if function == "cuGetErrorString" {
            assert_eq!(calls, 0, "nothing failed in the clean run");
            continue;
        }
        assert!(calls > 0, "{function} is never called");
        for k in if silent { 0 } else { before }..calls {
            emulator.reset();
            emulator.fail(function, 999, k);
            let mut things = Things::default();
            let results = things.all(&emulator).expect("only drops fail");
            assert_eq!(first_difference(&results.0, &clean.results.0), None, "{function}");
            assert_eq!(first_difference(&results.1, &clean.results.1), None, "{function}");
            // The number of calls is the same as without failures.
            drop(things);
            assert_eq!(emulator.calls(function), calls, "{function} was given up, or tried again");
            let failed = calls - k;
            let live = emulator.live();
            let want = match function {
                "cuCtxPopCurrent_v2" => Live { pushed: failed, ..Live::default() },
                "cuMemFree_v2" => Live { allocations: failed, bytes: live.bytes, ..Live::default() },
                // A module whose kernels may still run is not unloaded.
                "cuCtxSynchronize" => Live { modules: MODULES, ..Live::default() },
                "cuModuleUnload" => Live { modules: failed, ..Live::default() },
                "cuDevicePrimaryCtxRelease_v2" => Live { retained: failed, ..Live::default() },
                // Six buffers are dropped before the device. If its context can't be entered, nothing can be
                // freed.
                _ => Live { allocations: failed - 1, bytes: live.bytes, modules: MODULES, ..Live::default() },
            };
            assert_eq!(live, want, "{function} from call {k} on");
        }
    }
}

/// The driver has no text for an error.
#[test]
fn unknown_codes() {
    let emulator = Alone::new();
    emulator.fail("cuGetErrorString", 1, 0);
    emulator.fail("cuLaunchKernel", 999, 0);
    let mut things = Things::default();
    let error = things.all(&emulator).expect_err("no launch");
    assert_eq!(error, Error::Driver { call: "cuLaunchKernel", code: 999, text: "unknown error".into() });
    // The driver does not know this code.
    emulator.fail("cuGetErrorString", 0, 0);
    emulator.fail("cuLaunchKernel", 123_456, 0);
    let error = things.all(&emulator).expect_err("no launch");
    assert_eq!(error, Error::Driver { call: "cuLaunchKernel", code: 123_456, text: "unknown error".into() });
    assert_message(&error, &["cuLaunchKernel", "123456", "unknown error"]);
}

/// The messages of errors that do not come from a driver.
#[test]
fn specific_messages() {
    let _alone = Alone::new();
    assert_message(&Error::Unsupported { what: "the compensated state" }, &["GPU", "the compensated state"]);
    let argument = chunkwise::Error::Zero { what: "heads" };
    assert_message(&argument.into(), &[&argument.to_string()]);
    assert_message(
        &Error::NoDevice { ordinal: 3, count: 1, text: String::new() },
        &["device 3", "there are 1"],
    );
}

// --- faults of kernels

/// A kernel's fault is returned by the next call that waits and by all later calls. A device that is opened
/// again works.
#[test]
fn kernel_faults() {
    let emulator = Alone::new();
    let clean = Clean::run(&emulator);
    for (bad, code, text) in [
        ("nothing is there", 700, "an illegal memory access was encountered"),
        ("longer than the memory", 700, "an illegal memory access was encountered"),
        ("odd", 716, "misaligned address"),
    ] {
        emulator.reset();
        let mut things = Things::default();
        things.all(&emulator).expect("nothing is wrong yet");
        let device = things.device.clone().expect("opened");
        let attention = Things::attention(&device, LEN).expect("legal");
        let short = Buffer::<bf16>::zeros(&device, 64 * KEY).expect("memory");
        let address = match bad {
            "odd" => things.inputs[0].slice().address() + 1,
            "longer than the memory" => short.slice().address(),
            _ => 4096,
        };
        // SAFETY: this is wrong on purpose; the emulator must detect the access.
        let q = unsafe { Slice::from_raw(address, LEN * KEY) };
        let (k, v) = (things.inputs[1].slice(), things.inputs[2].slice());
        let (o, workspace) =
            (things.outputs.as_mut().expect("made"), things.workspace.as_mut().expect("made"));
        let args =
            Forward { q, k, v, state: State::Zero, o: o.slice_mut(), workspace: workspace.slice_mut() };
        assert_eq!(attention.forward(args, Stream::DEFAULT), Ok(()), "launches do not wait");
        let words = emulator.fault();
        assert!(words.contains("prefill_64"), "another kernel than expected: {words}");

        let failed = |call| Error::Driver { call, code, text: text.into() };
        let error = device.synchronize(Stream::DEFAULT).expect_err("the kernel's fault");
        assert_eq!(error, failed("cuStreamSynchronize"));
        assert_message(&error, &["cuStreamSynchronize", &code.to_string(), text]);
        assert_eq!(o.read(Stream::DEFAULT), Err(failed("cuMemcpyDtoHAsync")));
        assert_eq!(short.read(Stream::DEFAULT), Err(failed("cuMemcpyDtoHAsync")));
        assert_eq!(Buffer::<f32>::zeros(&device, 1).err(), Some(failed("cuMemAlloc")));
        drop((short, attention, device, things));
        // Nothing can wait for a broken context, so that its modules are not unloaded.
        let lost = Live { modules: MODULES, ..Live::default() };
        assert_eq!(emulator.live(), lost, "{bad}: after {words}");

        let mut things = Things::default();
        let results = things.all(&emulator).expect("a device that is opened anew");
        assert_eq!(first_difference(&results.0, &clean.results.0), None);
        drop(things);
        assert_eq!(emulator.live(), lost);
    }
}

// --- other users of the driver in the same program

/// The functions of the driver, as another library in the same program calls them.
struct Host(Library);

impl Host {
    fn new() -> Self {
        // SAFETY: this is the emulator.
        Self(unsafe { Library::new(emulator_path()) }.expect("the emulator's library"))
    }

    /// Retains the context of another device, which is then the program's.
    fn retain(&self, device: c_int) -> usize {
        let mut context = 0;
        // SAFETY: this is the function's type, and the pointer is to a handle.
        unsafe {
            let retain = self.0.get::<extern "C" fn(&mut usize, c_int) -> c_int>(b"cuDevicePrimaryCtxRetain");
            assert_eq!(retain.expect("it has it")(&mut context, device), 0);
        }
        context
    }

    fn set(&self, context: usize) {
        // SAFETY: this is the function's type.
        let set = unsafe { self.0.get::<extern "C" fn(usize) -> c_int>(b"cuCtxSetCurrent") };
        assert_eq!(set.expect("it has it")(context), 0);
    }

    fn current(&self) -> usize {
        let mut context = usize::MAX;
        // SAFETY: this is the function's type, and the pointer is to a handle.
        let get = unsafe { self.0.get::<extern "C" fn(&mut usize) -> c_int>(b"cuCtxGetCurrent") };
        assert_eq!(get.expect("it has it")(&mut context), 0);
        context
    }
}

/// The program's current context is current again after every call, whether the call failed or not.
#[test]
fn contexts_are_left_alone() {
    let emulator = Alone::new();
    emulator.device(2, (9, 0), 132, 232_448);
    let host = Host::new();
    let device = emulator.open().expect("a device");
    assert_eq!(host.current(), 0, "opening made a context current");
    let theirs = host.retain(1);
    for context in [0, theirs] {
        host.set(context);
        let mut things = Things::default();
        assert!(things.all(&emulator).is_ok());
        assert_eq!(host.current(), context, "after calls that succeeded");
        for function in [
            "cuMemAlloc_v2",
            "cuLaunchKernel",
            "cuStreamSynchronize",
            "cuModuleGetFunction",
            "cuCtxPushCurrent_v2",
        ] {
            let mut fresh = Things::default();
            emulator.fail(function, 999, 0);
            assert!(fresh.all(&emulator).is_err(), "{function}");
            emulator.fail(function, 0, 0);
            assert_eq!(host.current(), context, "after {function} failed");
            drop(fresh);
            assert_eq!(host.current(), context, "after the drops that followed a failure of {function}");
        }
        drop(things);
        assert_eq!(host.current(), context, "after drops");
    }
    drop(device);
    assert_eq!(host.current(), theirs);
    // Only the program's own context is retained.
    assert_eq!(emulator.live(), Live { retained: 1, ..Live::default() });
    emulator.reset();
}

/// Four threads use one device at the same time and release it in different orders. Each module is loaded
/// once.
#[test]
fn threads() {
    let emulator = Alone::new();
    let clean = Clean::run(&emulator);
    let (emulator, clean) = (emulator.emulator, &clean);
    for order in 0..4 {
        emulator.reset();
        let device = emulator.open().expect("a device");
        let clones: Vec<_> = (0..4).map(|_| device.clone()).collect();
        let late = (order % 2 == 0).then_some(device);
        std::thread::scope(|scope| {
            for (number, device) in clones.into_iter().enumerate() {
                scope.spawn(move || {
                    let mut things = Things { device: Some(device), ..Things::default() };
                    let results =
                        things.all(emulator).unwrap_or_else(|e| panic!("{e}: {}", emulator.fault()));
                    assert_eq!(first_difference(&results.0, &clean.results.0), None, "thread {number}");
                    assert_eq!(first_difference(&results.1, &clean.results.1), None, "thread {number}");
                    // The threads end in ascending or in descending order.
                    let turn = if order < 2 { number } else { 3 - number };
                    std::thread::sleep(std::time::Duration::from_millis(5 * turn as u64));
                    if number % 2 == 0 {
                        // The device is dropped before its buffers, which keep it alive.
                        things.device = None;
                    }
                });
            }
        });
        assert_eq!(emulator.calls("cuModuleLoadDataEx"), MODULES, "modules of the device");
        assert_eq!(emulator.live().retained, u64::from(late.is_some()));
        drop(late);
        assert_eq!(emulator.live(), Live::default());
    }
}

/// A buffer of another device is refused, and the error names the argument. A device that is opened twice is
/// the same device.
#[test]
fn other_devices_memory() {
    let emulator = Alone::new();
    emulator.device(2, (9, 0), 132, 232_448);
    let [here, again, other] = [0, 0, 1].map(|ordinal| open(emulator_path(), ordinal).expect("a device"));
    let attention = Things::attention(&here, 1).expect("a configuration");
    let buffer = |on: &Device, len| Buffer::<f32>::zeros(on, len).expect("memory");
    let names = ["q", "k", "v", "o", "workspace", "state"];
    for wrong in 0..=names.len() {
        let on = |at| if at == wrong { &other } else { &again };
        let [q, k, v, mut o] = [0, 1, 2, 3].map(|at| buffer(on(at), VALUE));
        let (q, k, v) = (q.slice(), k.slice(), v.slice());
        let mut workspace = buffer(on(4), attention.workspace_len());
        let [from, mut to] = [(); 2].map(|()| buffer(on(5), attention.state_len()));
        let mut fine = buffer(&here, attention.state_len());
        let want = names.get(wrong).map_or(Ok(()), |what| Err(Error::OtherDevice { what }));
        for case in 0..4 {
            let state = match case {
                0 => State::Initial(from.slice()),
                1 => State::Final(to.slice_mut()),
                2 => State::InitialFinal(from.slice(), fine.slice_mut()),
                _ => State::Carried(to.slice_mut()),
            };
            let (o, workspace) = (o.slice_mut(), workspace.slice_mut());
            let args = Forward { q, k, v, state, o, workspace };
            assert_eq!(attention.forward(args, Stream::DEFAULT), want, "{case}");
        }
        let want = if wrong == 4 { Ok(()) } else { want };
        let args = DecodeStep { q, k, v, state: to.slice_mut(), o: o.slice_mut() };
        assert_eq!(attention.decode(args, Stream::DEFAULT), want);
        // Slices that are made from a slice belong to the same device.
        let (mut first, _) = o.slice_mut().split_at(VALUE);
        let o = first.reborrow();
        let args = DecodeStep { q: q.from(0), k, v, state: to.slice_mut(), o };
        assert_eq!(attention.decode(args, Stream::DEFAULT), want);
    }
    assert_message(&Error::OtherDevice { what: "q" }, &["q", "another device"]);

    let config = ModelConfig { hidden_size: 8, num_heads: 2, num_layers: 1, ..ModelConfig::new(4) };
    let mut flat = vec![0.0; config.parameters_len()];
    init::init(&config, 3, &mut flat).expect("a configuration");
    let mut blocks = [BlockWeights::EMPTY];
    let weights = Weights::from_flat(&config, &flat, &mut blocks).expect("a flat model");
    let model = Model::new(config, weights, None, 1).expect("a model");
    let model = cuda::Model::new(&here, &model, Precision::F32).expect("memory");
    let workspace_len = model.workspace_len(1, 2).expect("sizes");
    let names = ["input", "output", "workspace"];
    for wrong in 0..=names.len() {
        let on = |at| if at == wrong { &other } else { &again };
        let (input, mut output) = (buffer(on(0), 8), buffer(on(1), 8));
        let mut workspace = buffer(on(2), workspace_len);
        let (input, output) = (input.slice(), output.slice_mut());
        let result = model.forward(1, 2, input, output, workspace.slice_mut(), Stream::DEFAULT);
        assert_eq!(result, names.get(wrong).map_or(Ok(()), |what| Err(Error::OtherDevice { what })));
    }
}

// --- differences between GPUs

/// The outputs and the state of a case on a device.
fn on<E: Number>(
    (device, precision): &(Device, Precision),
    case: &Case,
) -> cuda::Result<(Vec<f32>, Vec<f32>)> {
    let attention = Attention::new(device, case.config, *precision)?.with_segments(1);
    let [q, k, v] = [&case.q, &case.k, &case.v].map(|x| Buffer::from_slice(device, &narrow::<E>(x)));
    let (q, k, v) = (q?, k?, v?);
    let mut o = Buffer::<E>::zeros(device, case.output().len())?;
    let mut state = Buffer::<f32>::zeros(device, attention.state_len())?;
    let mut workspace = Buffer::<f32>::zeros(device, attention.workspace_len())?;
    let args = Forward {
        q: q.slice(),
        k: k.slice(),
        v: v.slice(),
        state: State::Final(state.slice_mut()),
        o: o.slice_mut(),
        workspace: workspace.slice_mut(),
    };
    attention.forward(args, Stream::DEFAULT)?;
    Ok((widen(&o.read(Stream::DEFAULT)?), state.read(Stream::DEFAULT)?))
}

/// Every supported GPU has enough shared memory for every kernel. The number of tiles that are copied ahead
/// does not change the results.
#[test]
fn shared_memory_of_gpus() {
    fn of<E: Number>(emulator: &Emulator, key: usize, precision: Precision) {
        let normaliser = Normaliser::per_chunk(64);
        let case = Case::new(config([1, 70, 1, key, key], normaliser), 8);
        let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
        let mut copied = Vec::new();
        for (capability, shared) in
            [((8, 0), 166_912), ((8, 6), 101_376), ((9, 0), 232_448), ((12, 0), 101_376)]
        {
            emulator.reset();
            emulator.device(1, capability, 20, shared);
            let device = emulator.open().expect("a device");
            let name = format!("{device:?}, {}, {precision:?}, K = V = {key}", E::NAME);
            let (o, state) = on::<E>(&(device, precision), &case)
                .unwrap_or_else(|e| panic!("{e}: {}: {name}", emulator.fault()));
            assert!(o.iter().chain(&state).all(|x| x.is_finite()), "{name}");
            copied.push(emulator.counters().cp_async > 0);
            let (first_o, first_state) = first.get_or_insert_with(|| (o.clone(), state.clone()));
            if capability == (9, 0) && precision == Precision::Bf16Dot {
                // Hopper has its own kernels, whose sums are in another order. tests/cuda.rs compares both
                // with the oracle.
                let wide: Vec<f64> = first_o.iter().copied().map(f64::from).collect();
                assert!(norm_error(&o, &wide) < 2f64.powi(-8), "{name}");
                continue;
            }
            assert_eq!(first_difference(first_o, &o), None, "{name}");
            assert_eq!(first_difference(first_state, &state), None, "{name}, state");
        }
        assert!(copied[2], "nothing is copied ahead where there is most room: {} K {key}", E::NAME);
        report(&format!(
            "{}, {precision:?}, K = V = {key}: copied ahead on 8.0, 8.6, 9.0, 12.0: {copied:?}",
            E::NAME
        ));
    }
    let emulator = Alone::new();
    for key in [64, 128, 256] {
        for precision in [Precision::F32, Precision::Bf16Dot] {
            of::<f32>(&emulator, key, precision);
            of::<bf16>(&emulator, key, precision);
        }
    }
}

/// If there are more blocks than multiprocessors, two blocks share a multiprocessor and have fewer stages
/// each. The bits are the same.
#[test]
fn blocks_that_share_a_multiprocessor() {
    let emulator = Alone::new();
    let case = Case::new(config([2, 150, 3, 64, 64], Normaliser::Global { eps: 1e-6 }), 8);
    let results = [1, 108].map(|multiprocessors| {
        emulator.reset();
        emulator.device(1, (8, 0), multiprocessors, 166_912);
        let device = emulator.open().expect("a device");
        on::<f32>(&(device, Precision::Bf16Dot), &case)
            .unwrap_or_else(|e| panic!("{e}: {}", emulator.fault()))
    });
    assert_eq!(first_difference(&results[0].0, &results[1].0), None);
    assert_eq!(first_difference(&results[0].1, &results[1].1), None);
}
