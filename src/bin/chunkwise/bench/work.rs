//! The work that is measured, with everything it needs, and what it should have answered. The criterion benches
//! include this file too: what both measure is written once.
#![allow(dead_code, reason = "each of them uses its part")]

use chunkwise::bench_support::{TILE_ROWS, Tile, feature_map};
use chunkwise::element::Element;
use chunkwise::nn::{BlockWeights, Model, ModelConfig, Weights, init};
use chunkwise::reference::{self, Recurrence};
use chunkwise::{Attention, Config, DecodeStep, FeatureMap, Forward, Isa, Normaliser, Precision, State};
use half::{bf16, f16};

/// Numbers in [-1, 1), the same every time.
pub(crate) fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// A type of element that f32 can be stored in.
pub(crate) trait Number: Element {
    fn store(x: f32) -> Self;
    fn load(self) -> f32;
}

impl Number for f32 {
    fn store(x: f32) -> Self {
        x
    }
    fn load(self) -> f32 {
        self
    }
}

impl Number for bf16 {
    fn store(x: f32) -> Self {
        bf16::from_f32(x)
    }
    fn load(self) -> f32 {
        self.to_f32()
    }
}

impl Number for f16 {
    fn store(x: f32) -> Self {
        f16::from_f32(x)
    }
    fn load(self) -> f32 {
        self.to_f32()
    }
}

fn stored<E: Number>(from: &[f32]) -> Vec<E> {
    from.iter().copied().map(E::store).collect()
}

fn loaded<E: Number>(from: &[E]) -> Vec<f32> {
    from.iter().copied().map(E::load).collect()
}

/// How far a result is from what it should be: `||got - want|| / ||want||`, and the documented bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Error {
    pub(crate) norm: f64,
    pub(crate) allowed: f64,
}

/// The documented bound of f32, and up to how many tokens it holds; beyond them it is let grow with their number.
const BOUND: (f64, usize) = (2e-6, 4096);
/// What a type of 16 bits, or dot products of one, may cost over rounding inputs and outputs.
const OVER_ROUNDING: f64 = 1.5;

impl Error {
    /// Of a sum of a few terms.
    pub(crate) fn of(got: &[f32], want: &[f64]) -> Self {
        Self { norm: norm_error(got, want), allowed: BOUND.0 }
    }

    #[track_caller]
    pub(crate) fn assert(self) {
        assert!(self.norm <= self.allowed, "{self:?}");
    }
}

/// NaN, which no bound allows, where one of the results is.
pub(crate) fn norm_error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "compared element by element");
    let difference: f64 = got.iter().zip(want).map(|(got, want)| (f64::from(*got) - want).powi(2)).sum();
    let size: f64 = want.iter().map(|want| want.powi(2)).sum();
    if difference == 0.0 { 0.0 } else { (difference / size).sqrt() }
}

/// Attention on contiguous `[B, T, H, D]`.
pub(crate) struct Case<E = f32> {
    pub(crate) attention: Attention,
    q: Vec<E>,
    k: Vec<E>,
    v: Vec<E>,
    o: Vec<E>,
    state: Vec<f32>,
    scratch: Vec<f32>,
}

impl<E: Number> Case<E> {
    pub(crate) fn new(config: Config) -> chunkwise::Result<Self> {
        let attention = Attention::new(config)?;
        let [q, k, v] = inputs(&config);
        Ok(Self {
            attention,
            q: stored(&q),
            k: stored(&k),
            v: stored(&v),
            o: vec![E::default(); v.len()],
            state: vec![0.0; attention.state_len()],
            scratch: vec![0.0; attention.scratch_len().max(attention.decode_scratch_len())],
        })
    }

    pub(crate) fn forward(&mut self) {
        let Self { attention, q, k, v, o, scratch, .. } = self;
        attention.forward(Forward { q, k, v, state: State::Zero, o, scratch }).expect("lengths that fit");
    }

    /// The first token of each sequence, on the state that is there.
    pub(crate) fn decode(&mut self) {
        self.decode_token(0);
    }

    fn decode_token(&mut self, t: usize) {
        let Self { attention, q, k, v, o, state, scratch } = self;
        let Config { heads, key, value, .. } = *attention.config();
        let (keys, values) = (t * heads * key, t * heads * value);
        let (q, k, v, o) = (&q[keys..], &k[keys..], &v[values..], &mut o[values..]);
        attention.decode(DecodeStep { q, k, v, state, o, scratch }).expect("lengths that fit");
    }

    /// 4 K V for each token and head, whatever the kernel spends.
    pub(crate) fn recurrent_flops(&self) -> f64 {
        4.0 * self.q.len() as f64 * self.attention.config().value as f64
    }

    /// Bytes of q, k, v and o, each read or written once.
    pub(crate) fn tensor_bytes(&self) -> f64 {
        (size_of::<E>() * 2 * (self.q.len() + self.v.len())) as f64
    }

    /// Bytes of state read and written by one decode.
    pub(crate) fn state_bytes(&self) -> f64 {
        (2 * size_of_val(&self.state[..])) as f64
    }

    /// All tokens at once against the oracle.
    pub(crate) fn forward_error(&mut self) -> Error {
        self.forward();
        self.error()
    }

    /// All tokens, one by one.
    pub(crate) fn decode_error(&mut self) -> Error {
        self.state.fill(0.0);
        for t in 0..self.attention.config().len {
            self.decode_token(t);
        }
        self.error()
    }

    /// Of the first and the last head.
    fn error(&self) -> Error {
        let Config { batch, len, heads, value, .. } = *self.attention.config();
        let exact = inputs(self.attention.config());
        let dots = self.attention.config().precision == Precision::Bf16Dot;
        let rounded_by = |x: f32| if dots { bf16::from_f32(x).to_f32() } else { E::store(x).load() };
        let wide = exact.each_ref().map(|x| x.iter().copied().map(rounded_by).collect());
        let (mut got, mut want, mut rounded) = (Vec::new(), Vec::new(), Vec::new());
        for (b, h) in [(0, 0), (batch - 1, heads - 1)] {
            for t in 0..len {
                got.extend(loaded(&self.o[((b * len + t) * heads + h) * value..][..value]));
            }
            want.extend(self.oracle(&exact, b, h));
            if dots || size_of::<E>() < size_of::<f32>() {
                rounded.extend(self.oracle(&wide, b, h).iter().map(|o| rounded_by(*o as f32)));
            }
        }
        let allowed = match rounded[..] {
            [] => BOUND.0 * (len as f64 / BOUND.1 as f64).max(1.0),
            _ => OVER_ROUNDING * norm_error(&rounded, &want),
        };
        Error { norm: norm_error(&got, &want), allowed }
    }

    /// Outputs of one head, all tokens.
    fn oracle(&self, [q, k, v]: &[Vec<f32>; 3], b: usize, h: usize) -> Vec<f64> {
        let Config { len, heads, key, value, normaliser, feature_map, scale, .. } = *self.attention.config();
        let (s, chunk_s) = (&mut vec![0.0; key * value], &mut vec![0.0; key * value]);
        let (z, chunk_z) = (&mut vec![0.0; key], &mut vec![0.0; key]);
        let scale = f64::from(scale);
        let mut oracle = Recurrence { feature_map, normaliser, scale, s, z, chunk_s, chunk_z, count: 0 };
        let mut outputs = vec![0.0; len * value];
        for (t, o) in outputs.chunks_exact_mut(value).enumerate() {
            let at = (b * len + t) * heads + h;
            let (keys, values) = (at * key..(at + 1) * key, at * value..(at + 1) * value);
            oracle.step(&q[keys.clone()], &k[keys], &v[values], o);
        }
        outputs
    }
}

/// q, k and v before they are rounded to a type.
fn inputs(config: &Config) -> [Vec<f32>; 3] {
    let rows = config.batch * config.len * config.heads;
    let mut all =
        [(1, config.key), (2, config.key), (3, config.value)].map(|(seed, dim)| numbers(seed, rows * dim));
    if config.feature_map == FeatureMap::Identity && config.normaliser != Normaliser::None {
        // Else the denominator may be anywhere near zero.
        all[..2].iter_mut().flatten().for_each(|x| *x = x.abs());
    }
    all
}

/// A model, untrained.
pub(crate) struct Untrained<E = f32> {
    config: ModelConfig,
    flat: Vec<E>,
}

impl<E: Number> Untrained<E> {
    pub(crate) fn new(config: ModelConfig) -> chunkwise::Result<Self> {
        config.check()?;
        let mut flat = vec![0.0; config.parameters_len()];
        init(&config, 1, &mut flat)?;
        Ok(Self { config, flat: stored(&flat) })
    }

    pub(crate) fn blocks(&self) -> Vec<BlockWeights<'_>> {
        vec![BlockWeights::default(); self.config.num_layers]
    }

    pub(crate) fn model<'a>(
        &'a self,
        blocks: &'a mut [BlockWeights<'a>],
        isa: Isa,
        threads: usize,
    ) -> chunkwise::Result<Model<'a>> {
        let weights = Weights::from_flat(&self.config, &self.flat, blocks)?;
        Model::new(self.config, weights, Some(isa), threads)
    }

    /// The same with its dense layers packed, for the program's life.
    pub(crate) fn packed(&'static self, isa: Isa, threads: usize) -> chunkwise::Result<Model<'static>> {
        let weights = Weights::from_flat(&self.config, &self.flat, self.blocks().leak())?;
        let memory = vec![0.0; weights.packed_len(isa)].leak();
        let packed = weights.pack(isa, self.blocks().leak(), memory)?;
        Model::new(self.config, packed, Some(isa), threads)
    }

    pub(crate) fn weights_bytes(&self) -> f64 {
        size_of_val(&self.flat[..]) as f64
    }
}

/// Flops of a model for so many tokens: 2 for each dense weight, and attention by its recurrent flops. All of them,
/// also where only the last time step is returned and the last block could skip a part.
pub(crate) fn model_flops(config: &ModelConfig, tokens: usize) -> f64 {
    let dense: usize = config.parameters().filter(|p| p.field == "kernel").map(|p| p.len()).sum();
    let recurrent = 4 * config.num_layers * config.attention_width() * config.head_dim();
    tokens as f64 * (2 * dense + recurrent) as f64
}

/// A model with one input, and what it needs for all of its tokens at once or for one step.
pub(crate) struct Run<'w> {
    model: Model<'w>,
    batch: usize,
    len: usize,
    input: Vec<f32>,
    output: Vec<f32>,
    state: Vec<f32>,
    scratch: Vec<f32>,
}

impl<'w> Run<'w> {
    pub(crate) fn new(model: Model<'w>, batch: usize, len: usize) -> chunkwise::Result<Self> {
        let scratch = model.scratch_len(batch, len)?.max(model.step_scratch_len(batch)?);
        Ok(Self {
            batch,
            len,
            input: numbers(1, batch * len * model.config().embed_dim),
            output: vec![0.0; model.output_len(batch, len)],
            state: vec![0.0; model.state_len(batch)?],
            scratch: vec![0.0; scratch],
            model,
        })
    }

    pub(crate) fn forward(&mut self) {
        let Self { model, batch, len, input, output, scratch, .. } = self;
        model.forward(*batch, *len, input, output, scratch).expect("lengths that fit");
    }

    /// The first time step of each sequence, once more.
    pub(crate) fn step(&mut self) {
        let Self { model, batch, input, output, state, scratch, .. } = self;
        let input = &input[..*batch * model.config().embed_dim];
        model.step(*batch, input, state, output, scratch).expect("lengths that fit");
    }

    /// All tokens of the input at once: the input and the output.
    pub(crate) fn into_forward(mut self) -> (Vec<f32>, Vec<f32>) {
        self.forward();
        (self.input, self.output)
    }

    /// The same step by step; of a batch of one.
    pub(crate) fn into_steps(mut self) -> (Vec<f32>, Vec<f32>) {
        let Self { model, input, output, state, scratch, .. } = &mut self;
        for x in input.chunks_exact(model.config().embed_dim) {
            model.step(1, x, state, output, scratch).expect("lengths that fit");
        }
        (self.input, self.output)
    }
}

/// One tile product of the prefill: 16 rows of phi(Q) with a state of K rows and V columns.
pub(crate) struct Product {
    isa: Isa,
    key: usize,
    value: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

impl Product {
    pub(crate) fn new(isa: Isa, key: usize, value: usize) -> Self {
        let width = value.next_multiple_of(Tile::panel(isa));
        Self {
            isa,
            key,
            value,
            a: numbers(1, TILE_ROWS * key),
            b: numbers(2, key * width),
            c: vec![0.0; TILE_ROWS * width],
        }
    }

    pub(crate) fn run(&mut self) {
        let Self { isa, a, b, c, .. } = self;
        Tile { a, b, c }.run(*isa);
    }

    /// Those of the columns asked for; a last panel may hold more.
    pub(crate) fn flops(&self) -> f64 {
        (2 * TILE_ROWS * self.key * self.value) as f64
    }

    /// Bytes of A, B and C.
    pub(crate) fn bytes(&self) -> f64 {
        (size_of::<f32>() * (TILE_ROWS * (self.key + self.value) + self.key * self.value)) as f64
    }

    pub(crate) fn error(&mut self) -> Error {
        self.run();
        let (key, panel) = (self.key, Tile::panel(self.isa));
        let mut want = Vec::new();
        for b in self.b.chunks_exact(key * panel) {
            for a in self.a.chunks_exact(key) {
                for j in 0..panel {
                    let terms = a.iter().zip(b.iter().skip(j).step_by(panel));
                    want.push(terms.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum());
                }
            }
        }
        Error::of(&self.c, &want)
    }
}

/// The feature map on rows of K elements.
pub(crate) struct Mapped<E = f32> {
    isa: Isa,
    map: FeatureMap,
    key: usize,
    from: Vec<E>,
    to: Vec<f32>,
}

impl<E: Number> Mapped<E> {
    pub(crate) fn new(isa: Isa, map: FeatureMap, rows: usize, key: usize) -> Self {
        let to = vec![0.0; rows * key.next_multiple_of(isa.lanes())];
        // Up to 4 on either side: exp has to work.
        let from: Vec<f32> = numbers(1, rows * key).iter().map(|x| 4.0 * x).collect();
        Self { isa, map, key, from: stored(&from), to }
    }

    pub(crate) fn run(&mut self) {
        feature_map(self.isa, self.map, E::elements(&self.from), &mut self.to, self.key);
    }

    /// Bytes read and written.
    pub(crate) fn bytes(&self) -> f64 {
        (size_of_val(&self.from[..]) + size_of_val(&self.to[..])) as f64
    }

    pub(crate) fn error(&mut self) -> Error {
        self.run();
        let padded = self.key.next_multiple_of(self.isa.lanes());
        let (mut got, mut want) = (Vec::new(), Vec::new());
        for (from, to) in self.from.chunks_exact(self.key).zip(self.to.chunks_exact(padded)) {
            got.extend(&to[..self.key]);
            want.extend(from.iter().map(|x| reference::phi(self.map, x.load())));
        }
        Error::of(&got, &want)
    }
}
