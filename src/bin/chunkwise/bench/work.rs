//! The work that is measured, with everything it needs, and what it should have answered. The criterion benches
//! include this file too: what both measure is written once.
#![allow(dead_code, reason = "each of them uses its part")]

use chunkwise::element::Element;
use chunkwise::nn::{BlockWeights, Model, ModelConfig, OutputMode, Weights, init};
use chunkwise::reference::Recurrence;
use chunkwise::{Attention, Config, FeatureMap, Isa, Normaliser, Rule, Shape, State, Tensors};
use half::{bf16, f16};

use super::memory::Aligned;

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

/// The same from the beginning of a cache line on.
fn stored_aligned<E: Number>(from: &[f32]) -> Aligned<E> {
    Aligned::copy_of(&stored(from))
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
/// What a type of 16 bits may cost over rounding inputs and outputs.
const OVER_ROUNDING: f64 = 1.5;

impl Error {
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

/// Attention on contiguous `[B, T, H, D]`. Every buffer begins on a cache line, but for a state that is asked to lie off it.
pub(crate) struct Case<E = f32> {
    pub(crate) attention: Attention,
    q: Aligned<E>,
    k: Aligned<E>,
    v: Aligned<E>,
    o: Aligned<E>,
    state: Aligned<f32>,
    scratch: Aligned<f32>,
}

impl<E: Number> Case<E> {
    pub(crate) fn new(config: Config) -> chunkwise::Result<Self> {
        Self::with_state_offset(config, 0)
    }

    /// With a state that lies so many bytes, a multiple of 4, behind the beginning of a cache line.
    pub(crate) fn with_state_offset(config: Config, offset: usize) -> chunkwise::Result<Self> {
        let attention = Attention::new(config)?;
        let [q, k, v] = inputs(&config);
        Ok(Self {
            attention,
            q: stored_aligned(&q),
            k: stored_aligned(&k),
            v: stored_aligned(&v),
            o: Aligned::filled(E::default(), v.len()),
            state: Aligned::with_offset(0.0, attention.state_len(), offset),
            scratch: Aligned::filled(0.0, attention.scratch_len().max(attention.decode_scratch_len())),
        })
    }

    pub(crate) fn forward(&mut self) {
        let Self { attention, q, k, v, o, scratch, .. } = self;
        let tensors = Tensors::new(&q[..], &k[..], &v[..], &mut o[..]);
        attention.forward(tensors, State::Zero, scratch).expect("lengths that fit");
    }

    /// The first token of each sequence, on the state that is there.
    pub(crate) fn decode(&mut self) {
        self.decode_token(0);
    }

    fn decode_token(&mut self, t: usize) {
        let Self { attention, q, k, v, o, state, scratch } = self;
        let Shape { heads, key, value, .. } = attention.config().shape;
        let (keys, values) = (t * heads * key, t * heads * value);
        let tensors = Tensors::new(&q[keys..], &k[keys..], &v[values..], &mut o[values..]);
        attention.decode(tensors, state, scratch).expect("lengths that fit");
    }

    /// 4 K V for each token and head: what the recurrence needs, whatever the kernel spends. Speeds are published in it,
    /// so that they compare.
    pub(crate) fn recurrent_flops(&self) -> f64 {
        4.0 * self.q.len() as f64 * self.attention.config().shape.value as f64
    }

    /// Flops that [`Case::forward`] executes, see [`attention_flops`].
    pub(crate) fn forward_flops(&self) -> f64 {
        let Config { rule, shape, .. } = self.attention.config();
        let past = match rule.normaliser {
            Normaliser::PerChunk { chunk, .. } => shape.len.saturating_sub(chunk),
            _ => 0,
        };
        (shape.batch * shape.heads) as f64 * attention_flops([shape.key, shape.value], shape.len, past)
    }

    /// Flops that [`Case::decode`] executes.
    pub(crate) fn decode_flops(&self) -> f64 {
        let Config { rule, shape, .. } = self.attention.config();
        let past = matches!(rule.normaliser, Normaliser::PerChunk { .. });
        (shape.batch * shape.heads) as f64 * attention_flops([shape.key, shape.value], 1, past.into())
    }

    /// Bytes of q, k, v and o, each read or written once.
    pub(crate) fn tensor_bytes(&self) -> f64 {
        (size_of::<E>() * 2 * (self.q.len() + self.v.len())) as f64
    }

    /// Bytes of the state.
    pub(crate) fn state_size(&self) -> usize {
        size_of_val(&self.state[..])
    }

    /// Bytes of state that one decode reads and writes: every sum is read and written, but those of finished chunks,
    /// which are only read until the current one ends.
    pub(crate) fn state_bytes(&self) -> f64 {
        let Config { rule, shape, .. } = self.attention.config();
        let matrix = shape.key * shape.value;
        let elements = match rule.normaliser {
            Normaliser::None => 2 * matrix,
            // The sums of the current chunk, of the finished ones, and the count of tokens.
            Normaliser::PerChunk { .. } => 3 * (matrix + shape.key) + 2,
            _ => 2 * (matrix + shape.key),
        };
        (size_of::<f32>() * shape.batch * shape.heads * elements) as f64
    }

    /// All tokens at once against the oracle.
    pub(crate) fn forward_error(&mut self) -> Error {
        self.forward();
        self.error()
    }

    /// All tokens, one by one.
    pub(crate) fn decode_error(&mut self) -> Error {
        self.state.fill(0.0);
        for t in 0..self.attention.config().shape.len {
            self.decode_token(t);
        }
        self.error()
    }

    /// Of the first and the last head.
    fn error(&self) -> Error {
        let Shape { batch, len, heads, value, .. } = self.attention.config().shape;
        let exact = inputs(self.attention.config());
        let wide = exact.each_ref().map(|x| x.iter().map(|x| E::store(*x).load()).collect());
        let (mut got, mut want, mut rounded) = (Vec::new(), Vec::new(), Vec::new());
        for (b, h) in [(0, 0), (batch - 1, heads - 1)] {
            for t in 0..len {
                got.extend(loaded(&self.o[((b * len + t) * heads + h) * value..][..value]));
            }
            want.extend(self.oracle(&exact, b, h));
            if size_of::<E>() < size_of::<f32>() {
                rounded.extend(self.oracle(&wide, b, h).iter().map(|o| E::store(*o as f32).load()));
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
        let Config { rule, shape, .. } = self.attention.config();
        let Rule { normaliser, feature_map, scale, .. } = *rule;
        let Shape { len, heads, key, value, .. } = *shape;
        let (s, chunk_s) = (&mut vec![0.0; key * value], &mut vec![0.0; key * value]);
        let (z, chunk_z) = (&mut vec![0.0; key], &mut vec![0.0; key]);
        let scale = f64::from(scale);
        let mut oracle = Recurrence {
            update: rule.update,
            qk_norm: rule.qk_norm,
            feature_map,
            normaliser,
            scale,
            s,
            z,
            chunk_s,
            chunk_z,
            count: 0,
        };
        let mut outputs = vec![0.0; len * value];
        for (t, o) in outputs.chunks_exact_mut(value).enumerate() {
            let row = (b * len + t) * heads + h;
            let (keys, values) = (row * key..(row + 1) * key, row * value..(row + 1) * value);
            oracle.step(&q[keys.clone()], &k[keys], &v[values], o);
        }
        outputs
    }
}

/// Flops that attention executes for so many tokens of one head: 4 K V for each of them, 2 K V to add it to the state and
/// 2 K V to read that; and 2 K V more for each of the `past` tokens, which read the sums of finished chunks besides, as the
/// per-chunk normaliser has it. Those are the tokens behind the first chunk, or all of them where a state is carried on.
///
/// Smaller terms are not counted: feature maps, norms, z, and adding a chunk to the finished ones.
fn attention_flops([key, value]: [usize; 2], tokens: usize, past: usize) -> f64 {
    (4 * tokens + 2 * past) as f64 * key as f64 * value as f64
}

/// q, k and v before they are rounded to a type.
fn inputs(config: &Config) -> [Vec<f32>; 3] {
    let Config { rule, shape, .. } = config;
    let rows = shape.batch * shape.len * shape.heads;
    let mut all =
        [(1, shape.key), (2, shape.key), (3, shape.value)].map(|(seed, dim)| numbers(seed, rows * dim));
    if rule.feature_map == FeatureMap::Identity && rule.normaliser != Normaliser::None {
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

/// The flops that a model executes: 2 for each weight of a dense layer and each row that the layer multiplies, and those of
/// its attention. What a model leaves out is not counted: the rows that the last block need not compute where only the last
/// time step is returned. Layer norms and activations are not counted either, as smaller terms.
pub(crate) struct ModelFlops<'a> {
    pub(crate) config: &'a ModelConfig,
}

impl ModelFlops<'_> {
    /// Rows of a tile, as `nn::Model::forward` takes them: a longer sequence is walked tile by tile on a carried state.
    const TILE: usize = 256;
    /// The shortest tile of which the last block leaves rows out: `Wanted::WORTH` in `nn::block`.
    const WORTH: usize = 16;

    /// All time steps of each sequence at once.
    ///
    /// ```text
    /// each row           the input projection; in each block but the last: qkv, attention, out, up, down
    /// in the last block, where only the last time step is returned:
    ///     each row       k and v, attention (its outputs too, although they are not used)
    ///     the last row   q, out, up, down
    /// ```
    pub(crate) fn forward(&self, batch: usize, len: usize) -> f64 {
        let config = self.config;
        let (projection, block) = (self.dense("input_projection"), self.block());
        let mut sequence = 0.0;
        for begin in (0..len).step_by(Self::TILE) {
            let rows = Self::TILE.min(len - begin);
            // A carried state is read from the first tile on, when it is still zero.
            let past = if len > Self::TILE { rows } else { rows.saturating_sub(config.chunk()) };
            let all = rows as f64 * block + self.attention(rows, past);
            let last = if config.output_mode == OutputMode::LastTimestep && rows >= Self::WORTH {
                let query = 2.0 * (config.hidden_size * config.attention_width()) as f64;
                let asked = if begin + rows == len { 1.0 } else { 0.0 };
                let keys_and_values = rows as f64 * 2.0 * query;
                keys_and_values
                    + self.attention(rows, past)
                    + asked * (query + block - self.dense("attn_qkv"))
            } else {
                all
            };
            sequence += rows as f64 * projection + (config.num_layers - 1) as f64 * all + last;
        }
        batch as f64 * sequence
    }

    /// One time step of each sequence.
    pub(crate) fn step(&self, batch: usize) -> f64 {
        let blocks = self.config.num_layers as f64 * (self.block() + self.attention(1, 1));
        batch as f64 * (self.dense("input_projection") + blocks)
    }

    /// Of one row in the dense layers of a block.
    fn block(&self) -> f64 {
        ["attn_qkv", "attn_out", "ffn_up", "ffn_down"].map(|layer| self.dense(layer)).iter().sum()
    }

    /// Of one row in a dense layer; of a block's layers in the first block.
    fn dense(&self, layer: &str) -> f64 {
        let mut kernels = self.config.parameters().filter(|p| (p.layer, p.field) == (layer, "kernel"));
        kernels.next().map_or(0.0, |kernel| 2.0 * kernel.len() as f64)
    }

    /// Of all heads.
    fn attention(&self, rows: usize, past: usize) -> f64 {
        let dim = self.config.head_dim();
        self.config.num_heads as f64 * attention_flops([dim, dim], rows, past)
    }
}

/// A model with one input, and what it needs for all of its tokens at once or for one step.
pub(crate) struct Run<'w> {
    model: Model<'w>,
    batch: usize,
    len: usize,
    input: Aligned<f32>,
    output: Aligned<f32>,
    state: Aligned<f32>,
    scratch: Aligned<f32>,
}

impl<'w> Run<'w> {
    pub(crate) fn new(model: Model<'w>, batch: usize, len: usize) -> chunkwise::Result<Self> {
        let scratch = model.scratch_len(batch, len)?.max(model.step_scratch_len(batch)?);
        Ok(Self {
            batch,
            len,
            input: Aligned::copy_of(&numbers(1, batch * len * model.config().embed_dim)),
            output: Aligned::filled(0.0, model.output_len(batch, len)),
            state: Aligned::filled(0.0, model.state_len(batch)?),
            scratch: Aligned::filled(0.0, scratch),
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
        (self.input.to_vec(), self.output.to_vec())
    }

    /// The same step by step; of a batch of one.
    pub(crate) fn into_steps(mut self) -> (Vec<f32>, Vec<f32>) {
        let Self { model, input, output, state, scratch, .. } = &mut self;
        for x in input.chunks_exact(model.config().embed_dim) {
            model.step(1, x, state, output, scratch).expect("lengths that fit");
        }
        (self.input.to_vec(), self.output.to_vec())
    }
}
