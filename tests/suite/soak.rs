//! Streams of very many steps: taking and restoring snapshots at random does not change a bit, and eight
//! threads that share a model get the same bits as one thread.
//!
//! `cargo test --test suite -- --ignored soak::` runs the long tests. They passed on 2026-11-25 on AVX-512,
//! in 162 seconds of processor time.

use chunkwise::nn::{BlockWeights, Model, ModelConfig, OutputMode, Weights, init};
use chunkwise::{Attention, Config, Normaliser, Rule, Shape, Tensors};

use crate::common::normals;

/// The number of steps of the long tests: two days at 60 steps a second.
const LONG: usize = 10_000_000;
/// The number of steps of the other tests.
const SHORT: usize = 100_000;

/// The number of different inputs, which are repeated.
const INPUTS: usize = 1009;

/// A computation in steps, each of which reads input number `at`, updates the state and returns the bits of
/// the output.
trait Stream {
    fn state_len(&self) -> usize;
    fn step(&mut self, at: usize, state: &mut [f32]) -> Vec<u32>;
}

/// The state after this number of steps, and the last output.
fn straight(steps: usize, stream: &mut impl Stream) -> (Vec<u32>, Vec<u32>) {
    let (mut state, mut last) = (vec![0.0; stream.state_len()], Vec::new());
    for at in 0..steps {
        last = stream.step(at, &mut state);
    }
    (bits(&state), last)
}

/// The same results on a detour: the stream sometimes goes back to a snapshot of some steps ago, and
/// sometimes computes other inputs before it is restored.
fn wandering(steps: usize, stream: &mut impl Stream) -> (Vec<u32>, Vec<u32>) {
    let (mut state, mut last) = (vec![0.0; stream.state_len()], Vec::new());
    let (mut at, mut snapshot) = (0, (0, state.clone()));
    let (mut random, mut restored) = (0x9e37_79b9_u64, 0);
    while at < steps {
        // xorshift64
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        match random >> 32 & 127 {
            0..4 => {
                snapshot.0 = at;
                snapshot.1.copy_from_slice(&state);
            }
            4..6 => {
                at = snapshot.0;
                state.copy_from_slice(&snapshot.1);
                restored += 1;
            }
            6 => {
                let before = state.clone();
                for ahead in 0..5 {
                    stream.step(at + 500 + ahead, &mut state);
                }
                assert_ne!(bits(&before), bits(&state));
                state = before;
                restored += 1;
            }
            _ => {}
        }
        last = stream.step(at, &mut state);
        at += 1;
    }
    assert!(restored > steps / 100, "only {restored} snapshots were restored");
    (bits(&state), last)
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

const HEADS: usize = 2;
const DIM: usize = 5;

struct Kernel {
    attention: Attention,
    inputs: [Vec<f32>; 3],
    scratch: Vec<f32>,
}

impl Kernel {
    fn new(normaliser: Normaliser, compensated: bool) -> Self {
        let rule = Rule::linear(normaliser).compensated(compensated);
        let attention = Attention::new(Config::new(rule, Shape::new(1, 1, HEADS, DIM, DIM)));
        let attention = attention.expect("a legal configuration");
        let inputs = [1, 2, 3].map(|seed| normals(seed, INPUTS * HEADS * DIM));
        Self { attention, inputs, scratch: vec![0.0; attention.decode_scratch_len()] }
    }
}

impl Stream for Kernel {
    fn state_len(&self) -> usize {
        self.attention.state_len()
    }

    fn step(&mut self, at: usize, state: &mut [f32]) -> Vec<u32> {
        let Self { attention, inputs, scratch } = self;
        let [q, k, v] = inputs.each_ref().map(|x| &x[at % INPUTS * HEADS * DIM..][..HEADS * DIM]);
        let mut o = [0.0; HEADS * DIM];
        attention.decode(Tensors::new(q, k, v, &mut o), state, scratch).expect("legal arguments");
        bits(&o)
    }
}

fn snapshots(steps: usize) {
    for (normaliser, compensated) in [
        (Normaliser::None, false),
        (Normaliser::Global { eps: 1e-6 }, true),
        (Normaliser::per_chunk(7), false),
    ] {
        let mut kernel = Kernel::new(normaliser, compensated);
        let want = straight(steps, &mut kernel);
        assert!(want.1.iter().all(|o| f32::from_bits(*o).is_finite()));
        assert!(wandering(steps, &mut kernel) == want, "{normaliser:?}: not the same bits");
    }
}

const TINY: ModelConfig = ModelConfig {
    hidden_size: 6,
    num_heads: 2,
    num_layers: 2,
    chunk_size: 7,
    output_mode: OutputMode::Mean,
    ..ModelConfig::new(3)
};

/// A stream of one user, through a model that other users share.
struct User<'a> {
    model: &'a Model<'a>,
    inputs: Vec<f32>,
    scratch: Vec<f32>,
}

impl<'a> User<'a> {
    fn new(model: &'a Model<'a>, user: u64) -> Self {
        let scratch = vec![0.0; model.step_scratch_len(1).expect("a legal size")];
        Self { model, inputs: normals(user, INPUTS * TINY.embed_dim), scratch }
    }
}

impl Stream for User<'_> {
    fn state_len(&self) -> usize {
        self.model.state_len(1).expect("a legal size")
    }

    fn step(&mut self, at: usize, state: &mut [f32]) -> Vec<u32> {
        let Self { model, inputs, scratch } = self;
        let input = &inputs[at % INPUTS * TINY.embed_dim..][..TINY.embed_dim];
        let mut output = [0.0; TINY.hidden_size];
        model.step(1, input, state, &mut output, scratch).expect("legal arguments");
        bits(&output)
    }
}

/// Compares streams on eight threads, of this many steps together, with the same streams on one thread.
fn eight_threads(steps: usize) {
    const USERS: u64 = 8;
    let steps = steps / USERS as usize;
    let mut flat = vec![0.0; TINY.parameters_len()];
    init(&TINY, 1, &mut flat).expect("a flat model");
    let mut blocks = vec![BlockWeights::default(); TINY.num_layers];
    let weights = Weights::from_flat(&TINY, &flat, &mut blocks).expect("a flat model");
    let model = &Model::new(TINY, weights, None, 1).expect("a legal model");
    let together = std::thread::scope(|scope| {
        let users = (0..USERS).map(|user| scope.spawn(move || wandering(steps, &mut User::new(model, user))));
        let users = users.collect::<Vec<_>>();
        users.into_iter().map(|user| user.join().expect("a thread that ends")).collect::<Vec<_>>()
    });
    for (user, got) in (0..USERS).zip(together) {
        assert!(straight(steps, &mut User::new(model, user)) == got, "user {user}: not the same bits");
    }
}

#[test]
fn snapshots_leave_no_trace() {
    snapshots(SHORT);
}

#[test]
fn threads_share_a_model() {
    eight_threads(SHORT);
}

#[test]
#[ignore = "minutes"]
fn snapshots_leave_no_trace_in_ten_million_steps() {
    snapshots(LONG);
}

#[test]
#[ignore = "minutes"]
fn threads_share_a_model_for_ten_million_steps() {
    eight_threads(LONG);
}
