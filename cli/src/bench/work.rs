//! Attention that is measured, with everything that it needs, and the errors of its results. The criterion
//! benches include this file too, so that what both measure is defined once.
#![allow(dead_code, reason = "each program uses a part of this file")]

use chunkwise::{Attention, Config, Gate, Normaliser, Shape, State, Tensors, Update};

use super::inputs::{Inputs, gate_row, is_constant};
use super::memory::Aligned;
use super::numbers::{Error, Number, allowed_f32, loaded, norm_error, over_rounding, stored_aligned};

/// Attention on contiguous `[B, T, H, D]`; g and beta, where there are any, are f32. Every buffer begins on a
/// cache line, except for a state that is given an offset.
pub(crate) struct Case<E = f32> {
    pub(crate) attention: Attention,
    q: Aligned<E>,
    k: Aligned<E>,
    v: Aligned<E>,
    g: Aligned<f32>,
    beta: Aligned<f32>,
    o: Aligned<E>,
    state: Aligned<f32>,
    /// The record of a draft; empty where there are more tokens than a draft may have.
    record: Aligned<f32>,
    scratch: Aligned<f32>,
}

impl<E: Number> Case<E> {
    pub(crate) fn new(config: Config) -> chunkwise::Result<Self> {
        Self::with_state_offset(config, 0)
    }

    /// A case whose state begins `offset` bytes, a multiple of 4, after the beginning of a cache line.
    pub(crate) fn with_state_offset(config: Config, offset: usize) -> chunkwise::Result<Self> {
        let attention = Attention::new(config)?;
        let Inputs { q, k, v, g, beta } = Inputs::new(&config);
        let Shape { batch, len, groups, value, .. } = config.shape;
        Ok(Self {
            attention,
            q: stored_aligned(&q),
            k: stored_aligned(&k),
            v: stored_aligned(&v),
            g: Aligned::copy_of(&g),
            beta: Aligned::copy_of(&beta),
            o: Aligned::filled(E::default(), batch * len * groups.output() * value),
            state: Aligned::with_offset(0.0, attention.state_len(), offset),
            record: Aligned::filled(
                0.0,
                if len <= Attention::MAX_DRAFT { attention.record_len() } else { 0 },
            ),
            scratch: Aligned::filled(0.0, attention.scratch_len().max(attention.decode_scratch_len())),
        })
    }

    pub(crate) fn forward(&mut self) {
        let Self { attention, q, k, v, g, beta, o, scratch, .. } = self;
        let tensors = Tensors::new(&q[..], &k[..], &v[..], &mut o[..]).gate(&g[..]).beta(&beta[..]);
        attention.forward(tensors, State::Zero, scratch).expect("lengths that fit");
    }

    /// Decodes the first token of each sequence, on the current state.
    pub(crate) fn decode(&mut self) {
        self.decode_token(0);
    }

    fn decode_token(&mut self, t: usize) {
        let Self { attention, q, k, v, g, beta, o, state, scratch, .. } = self;
        let Config { rule, shape, .. } = attention.config();
        let Shape { heads, groups, key, value, .. } = shape;
        // A gate has a row for each token, or one for all.
        let gates = if is_constant(shape) { 0 } else { t * heads * gate_row(attention.config()) };
        let g = if rule.gate == Gate::None { &[] } else { &g[gates..] };
        let beta = if rule.update == Update::Delta { &beta[t * heads..] } else { &[] };
        let tensors = Tensors::new(
            &q[t * groups.query * key..],
            &k[t * groups.key * key..],
            &v[t * groups.value * value..],
            &mut o[t * groups.output() * value..],
        );
        let tensors = tensors.gate(g).beta(beta);
        attention.decode(tensors, state, scratch).expect("lengths that fit");
    }

    /// Verifies all tokens on the current state, then commits them to it.
    pub(crate) fn draft(&mut self) {
        let Self { attention, q, k, v, g, beta, o, state, record, scratch } = self;
        let Shape { batch, len, .. } = attention.config().shape;
        let tensors = Tensors::new(&q[..], &k[..], &v[..], &mut o[..]).gate(&g[..]).beta(&beta[..]);
        attention.verify(tensors, state, record, scratch).expect("lengths that fit");
        attention.commit(record, &vec![len as u32; batch], state).expect("lengths that fit");
    }

    /// The flops of the recurrence: 4 K V for each token and head of the state, 6 K V with the delta rule,
    /// whatever the kernel executes. Speeds are published in these flops, so that they can be compared.
    pub(crate) fn recurrent_flops(&self) -> f64 {
        self.flops(self.attention.config().shape.len, 0)
    }

    /// Flops that [`Case::forward`] executes, see [`attention_flops`].
    pub(crate) fn forward_flops(&self) -> f64 {
        let Config { rule, shape, .. } = self.attention.config();
        let past = match rule.normaliser {
            Normaliser::PerChunk { chunk, .. } => shape.len.saturating_sub(chunk),
            _ => 0,
        };
        self.flops(shape.len, past)
    }

    /// Flops that [`Case::decode`] executes.
    pub(crate) fn decode_flops(&self) -> f64 {
        let past = matches!(self.attention.config().rule.normaliser, Normaliser::PerChunk { .. });
        self.flops(1, past.into())
    }

    /// Flops that [`Case::draft`] executes: a commit adds all tokens to the state once more.
    pub(crate) fn draft_flops(&self) -> f64 {
        let Shape { batch, len, heads, key, value, .. } = self.attention.config().shape;
        self.forward_flops() + (2 * batch * heads * len * key * value) as f64
    }

    /// The flops of all heads, for `tokens` tokens of each.
    fn flops(&self, tokens: usize, past: usize) -> f64 {
        let Config { rule, shape, .. } = self.attention.config();
        // The delta rule also reads the state at k.
        let products = if rule.update == Update::Delta { 6 } else { 4 };
        let head = attention_flops(products, [shape.key, shape.value], tokens, past);
        (shape.batch * shape.heads) as f64 * head
    }

    /// Bytes of all tensors, each read or written once.
    pub(crate) fn tensor_bytes(&self) -> f64 {
        let Self { q, k, v, g, beta, o, .. } = self;
        let of_type = q.len() + k.len() + v.len() + o.len();
        (size_of::<E>() * of_type + size_of::<f32>() * (g.len() + beta.len())) as f64
    }

    /// Bytes of the state.
    pub(crate) fn state_size(&self) -> usize {
        size_of_val(&self.state[..])
    }

    /// The bytes of state that one decode reads and writes. Every sum is read and written, except for those
    /// of finished chunks, which are only read until the current chunk ends.
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

    /// The error of all tokens at once against the oracle.
    pub(crate) fn forward_error(&mut self) -> Error {
        self.forward();
        self.error()
    }

    /// The error of a draft on the zero state.
    pub(crate) fn draft_error(&mut self) -> Error {
        self.state.fill(0.0);
        self.draft();
        self.error()
    }

    /// The error of all tokens, decoded one by one.
    pub(crate) fn decode_error(&mut self) -> Error {
        self.state.fill(0.0);
        for t in 0..self.attention.config().shape.len {
            self.decode_token(t);
        }
        self.error()
    }

    /// The error of two heads: the last one, and one in the middle, which shows whether heads share the right
    /// head of q and k.
    fn error(&self) -> Error {
        let config = self.attention.config();
        let Shape { batch, len, heads, value, .. } = config.shape;
        let exact = Inputs::new(config);
        let checked = [(0, (heads - 1) / 2), (batch - 1, heads - 1)];
        let (mut got, mut want) = (Vec::new(), Vec::new());
        for (b, h) in checked {
            for t in 0..len {
                got.extend(loaded(&self.o[((b * len + t) * heads + h) * value..][..value]));
            }
            want.extend(exact.oracle(config, b, h));
        }
        let allowed = if size_of::<E>() < size_of::<f32>() {
            let inputs = exact.rounded::<E>();
            let outputs = checked.into_iter().flat_map(|(b, h)| inputs.oracle(config, b, h));
            let rounded: Vec<f32> = outputs.map(|o| E::store(o as f32).load()).collect();
            over_rounding(&rounded, &want)
        } else {
            allowed_f32(config.rule.update == Update::Delta, len)
        };
        Error { norm: norm_error(&got, &want), allowed }
    }
}

/// The flops that attention executes for `tokens` tokens of one head: `products` K V for each token, of which
/// 2 K V add it to the state and 2 K V are for each vector at which the state is read; and 2 K V more for
/// each of the `past` tokens, which also read the sums of finished chunks, as the per-chunk normaliser
/// requires. The `past` tokens are those after the first chunk, or all tokens where a state is carried on.
///
/// Smaller terms are not counted: feature maps, norms, z, decays, the products among the tokens of a block,
/// and adding a chunk to the finished ones.
pub(crate) fn attention_flops(products: usize, [key, value]: [usize; 2], tokens: usize, past: usize) -> f64 {
    (products * tokens + 2 * past) as f64 * key as f64 * value as f64
}
