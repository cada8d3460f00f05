//! What the benches share: ceilings, inputs, and the check that each makes of its result before it is timed.
#![allow(dead_code, reason = "each bench uses its part")]

use std::hint::black_box;
use std::time::Instant;

use chunkwise::nn::{BlockWeights, Model, ModelConfig, Weights, init};
use chunkwise::reference::Recurrence;
use chunkwise::{Attention, Config, DecodeStep, Forward, Isa, Normaliser, State};
use pulp::{Simd, WithSimd};

/// Runs under an instruction set, as the library does.
fn dispatch<Op: WithSimd>(isa: Isa, op: Op) -> Op::Output {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Avx512(_) => return Simd::vectorize(pulp::x86::V4::try_new().unwrap(), op),
        Isa::Avx2(_) => return Simd::vectorize(pulp::x86::V3::try_new().unwrap(), op),
        _ => {}
    }
    #[cfg(target_arch = "aarch64")]
    if let Isa::Neon(_) = isa {
        return Simd::vectorize(pulp::aarch64::Neon::try_new().unwrap(), op);
    }
    op.with_simd(pulp::Scalar::new())
}

/// Independent chains of multiply-adds: 12 hide a latency of 4 cycles at 2 a cycle, and fit in 16 registers.
struct Fma {
    steps: usize,
}

impl WithSimd for Fma {
    type Output = f32;
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (x, y) = (simd.splat_f32s(black_box(0.999_999)), simd.splat_f32s(black_box(1e-7)));
        let mut acc = [simd.splat_f32s(black_box(0.5)); 12];
        for _ in 0..self.steps {
            for acc in &mut acc {
                *acc = simd.mul_add_e_f32s(*acc, x, y);
            }
        }
        let sum = acc[1..].iter().fold(acc[0], |sum, acc| simd.add_f32s(sum, *acc));
        simd.reduce_sum_f32s(sum)
    }
}

/// One reading of the multiply-add rate, in flops a second; takes about a millisecond.
pub fn fma_rate(isa: Isa) -> f64 {
    let steps = if isa == Isa::Scalar { 40_000 } else { 400_000 };
    let begin = Instant::now();
    black_box(dispatch(isa, Fma { steps }));
    (steps * 12 * 2 * isa.lanes()) as f64 / begin.elapsed().as_secs_f64()
}

/// Reads everything once.
struct Read<'a>(&'a [f32]);

impl WithSimd for Read<'_> {
    type Output = f32;
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let mut acc = [simd.splat_f32s(0.0); 8];
        for row in S::as_simd_f32s(self.0).0.as_chunks::<8>().0 {
            for i in 0..8 {
                acc[i] = simd.add_f32s(acc[i], row[i]);
            }
        }
        let sum = acc[1..].iter().fold(acc[0], |sum, acc| simd.add_f32s(sum, *acc));
        simd.reduce_sum_f32s(sum)
    }
}

/// Seconds of one pass of reading.
pub fn read_seconds(isa: Isa, data: &[f32]) -> f64 {
    let begin = Instant::now();
    black_box(dispatch(isa, Read(black_box(data))));
    begin.elapsed().as_secs_f64()
}

/// Numbers in [-1, 1), the same every time.
pub fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Attention with everything it needs, K = V.
pub struct Case {
    pub attention: Attention,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    o: Vec<f32>,
    state: Vec<f32>,
    scratch: Vec<f32>,
}

impl Case {
    pub fn new(config: Config) -> Self {
        let attention = Attention::new(config).unwrap();
        let rows = config.batch * config.len * config.heads;
        Self {
            attention,
            q: numbers(1, rows * config.key),
            k: numbers(2, rows * config.key),
            v: numbers(3, rows * config.value),
            o: vec![0.0; rows * config.value],
            state: vec![0.0; attention.state_len()],
            scratch: vec![0.0; attention.scratch_len().max(attention.decode_scratch_len())],
        }
    }

    pub fn forward(&mut self) {
        let Self { attention, q, k, v, o, scratch, .. } = self;
        attention.forward(Forward { q, k, v, state: State::Zero, o, scratch }).unwrap();
    }

    pub fn decode(&mut self) {
        let Self { attention, q, k, v, o, state, scratch } = self;
        attention.decode(DecodeStep { q, k, v, state, o, scratch }).unwrap();
    }

    /// 4 K V for each token and head, whatever the kernel spends.
    pub fn recurrent_flops(&self) -> f64 {
        (4 * self.q.len() * self.attention.config().value) as f64
    }

    /// Bytes of state read and written by one decode.
    pub fn state_bytes(&self) -> f64 {
        (2 * size_of::<f32>() * self.state.len()) as f64
    }

    /// Checks the first and the last head of a contiguous `[B, T, H, D]` against the oracle.
    pub fn check(&mut self) {
        let Config { batch, len, heads, key, value, normaliser, feature_map, .. } = *self.attention.config();
        self.forward();
        for (b, h) in [(0, 0), (batch - 1, heads - 1)] {
            let (s, chunk_s) = (&mut vec![0.0; key * value], &mut vec![0.0; key * value]);
            let (z, chunk_z) = (&mut vec![0.0; key], &mut vec![0.0; key]);
            let mut oracle =
                Recurrence { feature_map, normaliser, scale: 1.0, s, z, chunk_s, chunk_z, count: 0 };
            let mut want = vec![0.0; value];
            let (mut difference, mut size) = (0.0, 0.0);
            for t in 0..len {
                let at = (b * len + t) * heads + h;
                let (keys, values) = (at * key..(at + 1) * key, at * value..(at + 1) * value);
                oracle.step(&self.q[keys.clone()], &self.k[keys], &self.v[values.clone()], &mut want);
                for (got, want) in self.o[values].iter().zip(&want) {
                    difference += (f64::from(*got) - want).powi(2);
                    size += want.powi(2);
                }
            }
            let error = (difference / size).sqrt();
            // Longer than the 4096 tokens of the tests, it may err more.
            assert!(error <= 2e-6 * (len as f64 / 4096.0).max(1.0), "norm error {error}");
        }
    }
}

/// The shapes of the targets, `(B, H, T, D)`.
pub const SHAPES: [(usize, usize, usize, usize); 5] =
    [(1, 4, 64, 64), (1, 4, 4096, 64), (1, 8, 2048, 128), (4, 4, 1024, 64), (1, 1, 16384, 64)];

/// The shapes of decode, `(B, H, D)`.
pub const DECODE_SHAPES: [(usize, usize, usize); 3] = [(1, 4, 64), (1, 16, 128), (8, 16, 128)];

pub const NORMALISERS: [(&str, Normaliser); 3] = [
    ("none", Normaliser::None),
    ("global", Normaliser::Global { eps: 1e-6 }),
    ("chunk64", Normaliser::per_chunk(64)),
];

/// A model at its default sizes with embed 256, untrained.
pub struct Sized {
    config: ModelConfig,
    pub flat: Vec<f32>,
}

impl Sized {
    pub fn new() -> Self {
        let config = ModelConfig::new(256);
        let mut flat = vec![0.0; config.parameters_len()];
        init(&config, 1, &mut flat).unwrap();
        Self { config, flat }
    }

    pub fn blocks(&self) -> Vec<BlockWeights<'_>> {
        vec![BlockWeights::default(); self.config.num_layers]
    }

    pub fn model<'a>(&'a self, blocks: &'a mut [BlockWeights<'a>], isa: Isa, threads: usize) -> Model<'a> {
        let weights = Weights::from_flat(&self.config, &self.flat, blocks).unwrap();
        Model::new(self.config, weights, Some(isa), threads).unwrap()
    }

    /// Flops of a forward pass: dense layers, and attention by its recurrent flops.
    pub fn flops(&self, tokens: usize) -> f64 {
        let ModelConfig { hidden_size: h, num_layers, .. } = self.config;
        (2 * tokens * num_layers * (12 * h * h + 2 * h * self.config.head_dim())) as f64
    }
}

/// The best and the median of repeated readings, smallest best.
pub fn best_and_median(mut readings: Vec<f64>) -> (f64, f64) {
    readings.sort_by(f64::total_cmp);
    (readings[0], readings[readings.len() / 2])
}
