//! The compilation of kernels: each is compiled separately, at its first launch or by `prepare`, and does not
//! delay launches of kernels that are compiled already.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod common;
mod cuda_common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use chunkwise::Normaliser;
use chunkwise::cuda::{
    self, Attention, Buffer, DecodeStep, Device, Error, Forward, Precision, State, Stream,
};
use chunkwise::nn::{BlockWeights, Model, ModelConfig, Weights, init};
use common::*;
use cuda_common::{Emulator, config, explained};
use half::{bf16, f16};

const LOAD: &str = "cuModuleLoadDataEx";
/// The driver's error for a load while a stream is captured.
const CAPTURING: i32 = 900;

/// The emulator in its initial state, for one test at a time.
fn alone() -> (MutexGuard<'static, ()>, &'static Emulator) {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let emulator = Emulator::get();
    emulator.reset();
    emulator.hold_loads(0);
    (turn, emulator)
}

/// Attention with more than one panel of V and, if `cut` is set, with two segments.
fn attention(
    device: &Device,
    key: usize,
    normaliser: Normaliser,
    precision: Precision,
    cut: bool,
) -> Attention {
    let shape = [1, if cut { 512 } else { 3 }, 1, key, 72];
    let attention = Attention::new(device, config(shape, normaliser), precision).expect("a configuration");
    let segments = if cut { 2 } else { 1 };
    let attention = attention.with_segments(segments);
    assert_eq!(attention.segments(), segments, "the scan would not be launched");
    attention
}

/// Launches every kernel of an attention: forwards without a state and on a carried state, and a decode.
fn launch_all<E: Number>(device: &Device, attention: &Attention) -> cuda::Result<()> {
    let shape = attention.config().shape;
    let rows = Buffer::<E>::zeros(device, shape.len * shape.key.max(shape.value))?;
    let mut o = Buffer::<E>::zeros(device, shape.len * shape.value)?;
    let mut state = Buffer::zeros(device, attention.state_len())?;
    let mut workspace = Buffer::zeros(device, attention.workspace_len())?;
    let (q, k, v) = (rows.slice(), rows.slice(), rows.slice());
    for carried in [false, true] {
        let state = if carried { State::Carried(state.slice_mut()) } else { State::Zero };
        let (o, workspace) = (o.slice_mut(), workspace.slice_mut());
        attention.forward(Forward { q, k, v, state, o, workspace }, Stream::DEFAULT)?;
    }
    attention.decode(DecodeStep { q, k, v, state: state.slice_mut(), o: o.slice_mut() }, Stream::DEFAULT)?;
    device.synchronize(Stream::DEFAULT)
}

fn prepared<E: Number>(emulator: &Emulator, normaliser: Normaliser, precision: Precision) {
    // Hopper has kernels of its own.
    for (capability, shared) in [((9, 0), 232_448), ((8, 0), 166_912)] {
        for (key, cut) in [(64, true), (64, false), (128, false), (200, false)] {
            emulator.reset();
            emulator.device(1, capability, 100, shared);
            let device = emulator.open().expect("a device");
            let attention = attention(&device, key, normaliser, precision, cut);
            let name = format!("{}, {precision:?}, {normaliser:?}, K = {key}, {device:?}", E::NAME);
            assert_eq!(attention.prepare::<E>(), Ok(()), "{name}");
            let loads = emulator.calls(LOAD);
            emulator.fail(LOAD, CAPTURING, 0);
            assert_eq!(launch_all::<E>(&device, &attention), Ok(()), "{name}: {}", emulator.fault());
            assert_eq!(attention.prepare::<E>(), Ok(()), "{name}, again");
            assert_eq!(emulator.calls(LOAD), loads, "{name}");
            assert_eq!(loads, 2 + u64::from(cut) + u64::from(normaliser != Normaliser::None), "{name}");
        }
    }
}

#[test]
fn what_is_prepared_is_not_loaded_at_a_launch() {
    let (_turn, emulator) = alone();
    for normaliser in [Normaliser::None, Normaliser::Global { eps: 1e-6 }, Normaliser::per_chunk(16)] {
        prepared::<bf16>(emulator, normaliser, Precision::Bf16Dot);
        prepared::<f16>(emulator, normaliser, Precision::F32);
    }
    prepared::<f32>(emulator, Normaliser::None, Precision::F32);
}

#[test]
fn models_are_prepared() {
    let (_turn, emulator) = alone();
    fn of<E: Number>(emulator: &Emulator, model: &ModelConfig, precision: Precision) {
        emulator.reset();
        let device = emulator.open().expect("a device");
        let mut flat = vec![0.0; model.parameters_len()];
        init::init(model, 3, &mut flat).expect("a configuration");
        let flat = narrow::<E>(&flat);
        let mut blocks = vec![BlockWeights::EMPTY; model.num_layers];
        let weights = Weights::from_flat(model, &flat, &mut blocks).expect("a flat model");
        let on_cpu = Model::new(*model, weights, None, 1).expect("a model");
        let on_gpu = explained(cuda::Model::new(&device, &on_cpu, precision));
        // Enough tokens for segments.
        let (len, embed) = (512, model.embed_dim);
        let error = Error::Driver { call: LOAD, code: CAPTURING, text: "unknown error".into() };
        emulator.fail(LOAD, CAPTURING, 0);
        assert_eq!(on_gpu.run(1, len, &vec![0.5; len * embed]), Err(error.clone()), "not prepared");
        assert_eq!(on_gpu.prepare(), Err(error));
        emulator.fail(LOAD, 0, 0);
        assert_eq!(on_gpu.prepare(), Ok(()));
        emulator.fail(LOAD, CAPTURING, 0);
        for len in [1, len] {
            explained(on_gpu.run(1, len, &vec![0.5; len * embed]));
        }
    }
    let small = ModelConfig { hidden_size: 8, num_heads: 2, num_layers: 1, ..ModelConfig::new(4) };
    // No input projection.
    let same = ModelConfig { embed_dim: 8, ..small };
    of::<f32>(emulator, &small, Precision::F32);
    of::<bf16>(emulator, &same, Precision::Bf16Dot);
    of::<f16>(emulator, &small, Precision::Bf16Dot);
}

/// A load that has failed is tried again, and kernels that were loaded before it stay loaded.
#[test]
fn failures_are_not_kept() {
    let (_turn, emulator) = alone();
    for function in [LOAD, "cuModuleGetFunction"] {
        emulator.reset();
        let device = emulator.open().expect("a device");
        let attention = attention(&device, 64, Normaliser::None, Precision::F32, false);
        emulator.fail(function, 999, 1);
        let error = attention.prepare::<f32>().expect_err("the second kernel can't be loaded");
        assert_eq!(error, Error::Driver { call: function, code: 999, text: "unknown error".into() });
        assert_eq!((emulator.calls(LOAD), emulator.live().modules), (2, 1), "{function}");
        emulator.fail(function, 0, 0);
        assert_eq!(launch_all::<f32>(&device, &attention), Ok(()));
        assert_eq!((emulator.calls(LOAD), emulator.live().modules), (3, 2), "{function}");
    }
}

/// Threads that use different kernels load each of them once, and threads that use the same kernel wait for
/// it.
#[test]
fn each_kernel_is_loaded_once() {
    let (_turn, emulator) = alone();
    let device = &emulator.open().expect("a device");
    // This is long enough for all threads to arrive during one load.
    emulator.hold_loads(50);
    let keys = [64, 128, 256];
    thread::scope(|scope| {
        for key in keys.into_iter().cycle().take(4 * keys.len()) {
            scope.spawn(move || {
                let attention = attention(device, key, Normaliser::None, Precision::F32, false);
                assert_eq!(launch_all::<f32>(device, &attention), Ok(()));
            });
        }
    });
    assert_eq!(emulator.calls(LOAD), keys.len() as u64 + 1, "a prefill for each K, and decode");
}

/// While one thread compiles a kernel, another thread launches a kernel that is compiled already.
#[test]
fn compiling_holds_up_no_other_call() {
    let (_turn, emulator) = alone();
    let device = &emulator.open().expect("a device");
    let there = attention(device, 64, Normaliser::None, Precision::F32, false);
    there.prepare::<f32>().expect("nothing is wrong");
    let other = attention(device, 128, Normaliser::None, Precision::F32, false);
    // This is much longer than the launches take, so that they end first unless they wait.
    emulator.hold_loads(20_000);
    let loads = || emulator.calls("emulator_hold_loads");
    let (before, ended) = (loads(), &AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(move || {
            assert_eq!(other.prepare::<f32>(), Ok(()));
            ended.store(true, Ordering::SeqCst);
        });
        while loads() == before {
            thread::yield_now();
        }
        assert_eq!(launch_all::<f32>(device, &there), Ok(()));
        assert!(!ended.load(Ordering::SeqCst), "the launches waited for another kernel to be compiled");
        emulator.hold_loads(0);
    });
    assert!(ended.load(Ordering::SeqCst));
}
