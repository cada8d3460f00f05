//! The whole model: all tokens at once, or one time step at a time.
//!
//! `forward` goes through time in tiles of 256 rows, computes all blocks for one tile before the next tile,
//! and carries the state of each block's attention, so memory does not grow with T, and a tile's activations
//! stay in cache. Where only the last time step is returned, the last block computes no more than it needs,
//! which saves a fifth of the work of four blocks.

use super::block::{self, Block, Pass, Tile, Wanted};
use super::config::{AttentionKind, ModelConfig, OutputMode};
use super::linear::{self, Epilogue, Product};
use super::mixer::Mixer;
use super::weights::Weights;
use crate::error::{Error, Result, check_len};
use crate::isa::Isa;
use crate::scratch::{self, padded};

/// The rows in a tile: enough that packing the weights costs little compared with multiplying by them.
const ROWS: usize = 256;

/// A checked model.
#[derive(Clone, Copy, Debug)]
pub struct Model<'w> {
    config: ModelConfig,
    weights: Weights<'w>,
    isa: Isa,
    threads: usize,
}

impl Tile {
    fn new(batch: usize, len: usize) -> Self {
        if len >= ROWS {
            Self { batch: 1, len: ROWS }
        } else {
            Self { batch: (ROWS / len.max(1)).min(batch), len }
        }
    }

    fn rows(&self) -> usize {
        self.batch * self.len
    }
}

impl<'w> Model<'w> {
    /// Combines a configuration and weights. Where `isa` is `None`, it is chosen by [`Isa::choose`].
    ///
    /// # Errors
    /// Options that contradict each other, a parameter whose shape is not the configuration's, zero threads,
    /// or an instruction set that is not available.
    pub fn new(config: ModelConfig, weights: Weights<'w>, isa: Option<Isa>, threads: usize) -> Result<Self> {
        weights.check(&config)?;
        if threads == 0 {
            return Err(Error::Zero { what: "threads" });
        }
        let isa = Isa::resolve(isa)?;
        Ok(Self { config, weights, isa, threads })
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The weights.
    pub fn weights(&self) -> &Weights<'w> {
        &self.weights
    }

    /// The instruction set that the model uses.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Elements of the output of [`Model::forward`]: `B x T x hidden` for all time steps, else `B x hidden`.
    pub fn output_len(&self, batch: usize, len: usize) -> usize {
        let rows = if self.config.output_mode == OutputMode::All { len } else { 1 };
        batch.saturating_mul(rows).saturating_mul(self.config.output_size())
    }

    /// Elements of the state of [`Model::step`].
    ///
    /// # Errors
    /// Sizes that overflow.
    pub fn state_len(&self, batch: usize) -> Result<usize> {
        let layer = self.layer_state_len(batch)?;
        let mean = if self.config.output_mode == OutputMode::Mean { 1 + self.config.hidden_size } else { 0 };
        let all = layer.checked_mul(self.config.num_layers).zip(batch.checked_mul(mean));
        all.and_then(|(a, b)| a.checked_add(b)).ok_or(Error::Overflow { what: "the state" })
    }

    /// The same model for at most `len` tokens, where a lightning chunk is no longer than that. Otherwise
    /// memory would depend on the chunk that the configuration claims, and not on what is computed.
    pub(crate) fn for_len(&self, len: usize) -> Self {
        let mut model = *self;
        if model.config.attention == AttentionKind::Lightning {
            model.config.chunk_size = model.config.chunk_size.min(len.max(1));
        }
        model
    }

    /// The elements of scratch that [`Model::forward`] needs: the same number for any T beyond one tile and
    /// one chunk.
    ///
    /// # Errors
    /// Sizes that overflow.
    pub fn scratch_len(&self, batch: usize, len: usize) -> Result<usize> {
        self.for_len(len).forward_scratch_len(batch, len)
    }

    fn forward_scratch_len(&self, batch: usize, len: usize) -> Result<usize> {
        let tile = Tile::new(batch, len);
        let states =
            if len > tile.len { self.layer_state_len(tile.batch)? * self.config.num_layers } else { 0 };
        // The last tile of a sequence, and of the batch, may be smaller; fewer rows can need more scratch,
        // because they are multiplied by another method.
        let last_len = Tile { len: len.checked_rem(tile.len).unwrap_or(0), ..tile };
        let last_batch = Tile { batch: batch.checked_rem(tile.batch).unwrap_or(0), ..tile };
        let mut most = 0;
        for tile in [tile, last_len, last_batch] {
            most = most.max(self.tile_scratch_len(tile)?);
        }
        Ok(padded(states) + most)
    }

    /// Elements of scratch that [`Model::step`] needs.
    ///
    /// # Errors
    /// Sizes that overflow.
    pub fn step_scratch_len(&self, batch: usize) -> Result<usize> {
        self.tile_scratch_len(Tile { batch, len: 1 })
    }

    fn layer_state_len(&self, batch: usize) -> Result<usize> {
        Ok(Mixer::new(&self.config, self.isa, 1, batch, 1)?.state_len())
    }

    fn tile_scratch_len(&self, tile: Tile) -> Result<usize> {
        let ModelConfig { embed_dim, hidden_size, .. } = self.config;
        let rows = tile.rows();
        let projection = linear::scratch_len(self.isa, self.threads, rows, embed_dim, hidden_size);
        let block = block::scratch_len(&self.config, self.isa, self.threads, tile.batch, tile.len)?;
        // The rows of a tile are kept twice where they are normalised at the end.
        Ok(2 * padded(rows * hidden_size) + projection.max(block))
    }

    /// Runs the model over all tokens: input `[B, T, embed]` into output `[B, hidden]` or, in
    /// [`OutputMode::All`], `[B, T, hidden]`.
    ///
    /// # Errors
    /// Input, output or scratch of the wrong length; T = 0 where the output is one row for each sequence.
    /// Nothing has been written then.
    pub fn forward(
        &self,
        batch: usize,
        len: usize,
        input: &[f32],
        output: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<()> {
        let this = self.for_len(len);
        let ModelConfig { embed_dim, hidden_size, num_layers, output_mode, .. } = this.config;
        if len == 0 && output_mode != OutputMode::All {
            return Err(Error::Zero { what: "T, for an output of one row" });
        }
        let rows = batch.checked_mul(len).ok_or(Error::Overflow { what: "input" })?;
        let input_len = rows.checked_mul(embed_dim).ok_or(Error::Overflow { what: "input" })?;
        check_len("input", input_len, input.len())?;
        check_len("output", this.output_len(batch, len), output.len())?;
        scratch::check(scratch, this.forward_scratch_len(batch, len)?)?;

        let tile = Tile::new(batch, len);
        let layer = if len > tile.len { this.layer_state_len(tile.batch)? } else { 0 };
        let (states, scratch) = scratch.split_at_mut(padded(layer * num_layers));
        let states = &mut states[..layer * num_layers];
        if rows == 0 {
            return Ok(());
        }
        for first in (0..batch).step_by(tile.batch) {
            let sequences = tile.batch.min(batch - first);
            states.fill(0.0);
            for begin in (0..len).step_by(tile.len) {
                let tile = Tile { batch: sequences, len: tile.len.min(len - begin) };
                // There is more than one tile in time only where a tile is part of one sequence, so its rows
                // are contiguous.
                let at = first * len + begin;
                let input = &input[at * embed_dim..][..tile.rows() * embed_dim];
                let (x, scratch) = scratch.split_at_mut(padded(tile.rows() * hidden_size));
                let x = &mut x[..tile.rows() * hidden_size];
                this.project(input, x, scratch);
                let ends = begin + tile.len == len;
                let wanted = this.blocks(tile, x, states, ends, scratch)?;
                let (row, rows) = match output_mode {
                    OutputMode::All => (at, tile.rows()),
                    OutputMode::LastTimestep if !ends => continue,
                    OutputMode::LastTimestep | OutputMode::Mean => (first, sequences),
                };
                let output = &mut output[row * hidden_size..][..rows * hidden_size];
                match output_mode {
                    OutputMode::All => this.finish(x, output)?,
                    OutputMode::LastTimestep => {
                        // x contains the last row of each sequence, or all of its rows.
                        let rows = if wanted == Wanted::Last { 1 } else { tile.len };
                        let sequence = rows * hidden_size;
                        for (x, output) in x.chunks_exact(sequence).zip(output.chunks_exact_mut(hidden_size))
                        {
                            this.finish(&x[sequence - hidden_size..], output)?;
                        }
                    }
                    OutputMode::Mean => {
                        let normed = &mut scratch[..x.len()];
                        this.finish(x, normed)?;
                        let sequences = normed.chunks_exact(tile.len * hidden_size);
                        for (normed, mean) in sequences.zip(output.chunks_exact_mut(hidden_size)) {
                            add_mean(normed, mean, len, begin == 0);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Runs all blocks on the rows of a tile, in place. `states` holds the states of all layers, or nothing
    /// where the tile is a whole sequence; `ends` is true for the last tile of a sequence. Returns what the
    /// last block computed.
    fn blocks(
        &self,
        tile: Tile,
        x: &mut [f32],
        states: &mut [f32],
        ends: bool,
        scratch: &mut [f32],
    ) -> Result<Wanted> {
        let ModelConfig { num_layers, output_mode, .. } = self.config;
        let layer = states.len() / num_layers;
        let mut wanted = Wanted::All;
        for (i, weights) in self.weights.blocks.iter().enumerate() {
            let is_last = i + 1 == num_layers;
            wanted = match output_mode {
                OutputMode::LastTimestep if is_last && tile.len >= Wanted::MIN_LEN => {
                    if ends {
                        Wanted::Last
                    } else {
                        Wanted::State
                    }
                }
                _ => Wanted::All,
            };
            let pass = match &mut states[i * layer..][..layer] {
                [] => Pass::Whole,
                state => Pass::Carried(state),
            };
            let block = Block::unchecked(&self.config, *weights, self.isa, self.threads);
            block.run(tile, x, pass, wanted, scratch)?;
        }
        Ok(wanted)
    }

    /// Runs one time step of each sequence: input `[B, embed]` into output `[B, hidden]`, on a state that is
    /// all zeros before the first step. The output is what [`Model::forward`] returns for the sequence so far
    /// (its last row, where all time steps are returned).
    ///
    /// # Errors
    /// Input, state, output or scratch of the wrong length; a state that this model did not make. Nothing has
    /// been written then.
    pub fn step(
        &self,
        batch: usize,
        input: &[f32],
        state: &mut [f32],
        output: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<()> {
        let ModelConfig { embed_dim, hidden_size, num_layers, output_mode, .. } = self.config;
        check_len(
            "input",
            batch.checked_mul(embed_dim).ok_or(Error::Overflow { what: "input" })?,
            input.len(),
        )?;
        check_len("output", batch.saturating_mul(hidden_size), output.len())?;
        check_len("state", self.state_len(batch)?, state.len())?;
        scratch::check(scratch, self.step_scratch_len(batch)?)?;
        if batch == 0 {
            return Ok(());
        }
        let mixer = Mixer::new(&self.config, self.isa, 1, batch, 1)?;
        let layer = mixer.state_len();
        let (layers, means) = state.split_at_mut(layer * num_layers);
        for state in layers.chunks_exact(layer) {
            mixer.check_state(state)?;
        }

        let (x, scratch) = scratch.split_at_mut(padded(batch * hidden_size));
        let x = &mut x[..batch * hidden_size];
        self.project(input, x, scratch);
        for (weights, state) in self.weights.blocks.iter().zip(layers.chunks_exact_mut(layer)) {
            let block = Block::unchecked(&self.config, *weights, self.isa, self.threads);
            block.run(Tile { batch, len: 1 }, x, Pass::Step(state), Wanted::All, scratch)?;
        }
        self.finish(x, output)?;
        if output_mode == OutputMode::Mean {
            for (state, output) in
                means.chunks_exact_mut(1 + hidden_size).zip(output.chunks_exact_mut(hidden_size))
            {
                let (count, mean) = state.split_at_mut(1);
                // The count stays at 2^24; from there on the mean slowly forgets.
                count[0] += 1.0;
                for (mean, x) in mean.iter_mut().zip(output) {
                    *mean += (*x - *mean) / count[0];
                    *x = *mean;
                }
            }
        }
        Ok(())
    }

    /// Applies the dense head, where there is one: hidden `[rows, hidden]` into logits
    /// `[rows, head outputs]`.
    ///
    /// # Errors
    /// No head, or lengths that are wrong. Nothing has been written then.
    pub fn apply_head(&self, hidden: &[f32], logits: &mut [f32], scratch: &mut [f32]) -> Result<()> {
        let head = self.weights.head.ok_or(Error::Part { name: "head", present: false })?;
        head.forward(self.isa, self.threads, hidden, logits, scratch)
    }

    /// Elements of a row of logits, where there is a head.
    pub fn head_len(&self) -> Option<usize> {
        self.weights.head.map(|head| head.outputs())
    }

    /// The elements of scratch that [`Model::apply_head`] needs for `rows` rows.
    pub fn head_scratch_len(&self, rows: usize) -> usize {
        self.weights.head.map_or(0, |head| head.scratch_len(self.isa, self.threads, rows))
    }

    fn project(&self, input: &[f32], x: &mut [f32], scratch: &mut [f32]) {
        match &self.weights.input_projection {
            Some(layer) => {
                layer.run(self.isa, self.threads, Product::new(input, x, Epilogue::Store), scratch);
            }
            None => x.copy_from_slice(input),
        }
    }

    fn finish(&self, x: &[f32], output: &mut [f32]) -> Result<()> {
        match &self.weights.final_norm {
            Some(norm) => norm.forward(self.isa, x, output),
            None => {
                output.copy_from_slice(x);
                Ok(())
            }
        }
    }
}

/// Adds a tile's rows, divided by T, to the mean. The rows are summed before they are added, so that the
/// error grows with the number of tiles, not of tokens.
fn add_mean(rows: &[f32], mean: &mut [f32], len: usize, first: bool) {
    let size = mean.len();
    for (j, mean) in mean.iter_mut().enumerate() {
        // `sum` would begin at -0, so that a mean that is exactly zero would be -0 here and +0 step by step.
        let sum = rows.iter().skip(j).step_by(size).fold(0.0, |sum, x| sum + x);
        *mean = if first { sum / len as f32 } else { *mean + sum / len as f32 };
    }
}
