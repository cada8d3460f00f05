//! A model that is measured, its flops, and the memory that it needs to run. The criterion benches include
//! this file too.
#![allow(dead_code, reason = "each program uses a part of this file")]

use chunkwise::Isa;
use chunkwise::nn::{BlockWeights, Model, ModelConfig, OutputMode, Weights, init};

use super::memory::Aligned;
use super::numbers::{Number, numbers, stored};
use super::work::attention_flops;

/// An untrained model.
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

    /// The same model with its dense layers packed, in memory that is never freed.
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

/// The flops that a model executes: 2 for each weight of a dense layer and each row that the layer
/// multiplies, and those of its attention. Rows that the last block does not compute, where only the last
/// time step is returned, are not counted. Layer norms and activations are not counted either, because they
/// are smaller terms.
pub(crate) struct ModelFlops<'a> {
    pub(crate) config: &'a ModelConfig,
}

impl ModelFlops<'_> {
    /// The rows of a tile in `nn::Model::forward`, which goes through a longer sequence tile by tile on a
    /// carried state.
    const TILE: usize = 256;
    /// The shortest tile for which the last block leaves out rows: `Wanted::MIN_LEN` in `nn::block`.
    const MIN_LEN: usize = 16;

    /// The flops for all time steps of each sequence at once.
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
            // A carried state is read from the first tile on, although it is still zero there.
            let past = if len > Self::TILE { rows } else { rows.saturating_sub(config.chunk()) };
            let all = rows as f64 * block + self.attention(rows, past);
            let last = if config.output_mode == OutputMode::LastTimestep && rows >= Self::MIN_LEN {
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

    /// The flops for one time step of each sequence.
    pub(crate) fn step(&self, batch: usize) -> f64 {
        let blocks = self.config.num_layers as f64 * (self.block() + self.attention(1, 1));
        batch as f64 * (self.dense("input_projection") + blocks)
    }

    /// The flops for one row in the dense layers of a block.
    fn block(&self) -> f64 {
        ["attn_qkv", "attn_out", "ffn_up", "ffn_down"].map(|layer| self.dense(layer)).iter().sum()
    }

    /// The flops for one row in a dense layer; for a layer inside the blocks, in that of the first block.
    fn dense(&self, layer: &str) -> f64 {
        let mut kernels = self.config.parameters().filter(|p| (p.layer, p.field) == (layer, "kernel"));
        kernels.next().map_or(0.0, |kernel| 2.0 * kernel.len() as f64)
    }

    /// The flops of the attention, for all heads.
    fn attention(&self, rows: usize, past: usize) -> f64 {
        let dim = self.config.head_dim();
        self.config.num_heads as f64 * attention_flops(4, [dim, dim], rows, past)
    }
}

/// A model with one input, and the memory that it needs for all of its tokens at once or for one step.
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

    /// Runs the first time step of each sequence once more.
    pub(crate) fn step(&mut self) {
        let Self { model, batch, input, output, state, scratch, .. } = self;
        let input = &input[..*batch * model.config().embed_dim];
        model.step(*batch, input, state, output, scratch).expect("lengths that fit");
    }

    /// Runs all tokens of the input at once, and returns the input and the output.
    pub(crate) fn into_forward(mut self) -> (Vec<f32>, Vec<f32>) {
        self.forward();
        (self.input.to_vec(), self.output.to_vec())
    }

    /// Runs the tokens of a batch of one step by step, and returns the input and the output.
    pub(crate) fn into_steps(mut self) -> (Vec<f32>, Vec<f32>) {
        let Self { model, input, output, state, scratch, .. } = &mut self;
        for x in input.chunks_exact(model.config().embed_dim) {
            model.step(1, x, state, output, scratch).expect("lengths that fit");
        }
        (self.input.to_vec(), self.output.to_vec())
    }
}
