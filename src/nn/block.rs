//! One block: attention and a feed-forward network, each followed by a residual sum.

use super::config::ModelConfig;
use super::linear::{self, Epilogue, Product};
use super::mixer::Mixer;
use super::weights::{BlockWeights, Weights};
use crate::error::{Error, Result, check_len};
use crate::isa::Isa;
use crate::scratch::{self, padded};
use crate::tensors::Tensors;

/// A block with its weights.
#[derive(Clone, Copy, Debug)]
pub struct Block<'w> {
    config: ModelConfig,
    weights: BlockWeights<'w>,
    isa: Isa,
    threads: usize,
}

/// The number of sequences, and of tokens of each sequence, that are computed together.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) batch: usize,
    pub(super) len: usize,
}

/// How the tokens of one pass use the state.
pub(super) enum Pass<'a> {
    /// T tokens of each sequence, from the zero state.
    Whole,
    /// T tokens of each sequence, on this state, which is replaced.
    Carried(&'a mut [f32]),
    /// One token of each sequence, on this state, which is replaced.
    Step(&'a mut [f32]),
}

/// The rows that a block computes. The last block of a model that returns the last time step needs keys and
/// values of every token, and everything else of the last token only.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All rows.
    All,
    /// The last row of each sequence. These rows are moved to the beginning of x, and overwrite the others.
    Last,
    /// No rows: only the state is computed.
    State,
}

impl Wanted {
    /// The fewest tokens of a tile for which it pays to compute the last one by itself.
    pub(super) const MIN_LEN: usize = 16;
}

impl<'w> Block<'w> {
    /// A block of a model with this configuration.
    ///
    /// # Errors
    /// An invalid configuration, or a parameter whose shape is not the configuration's.
    pub fn new(config: &ModelConfig, weights: BlockWeights<'w>, isa: Isa, threads: usize) -> Result<Self> {
        let one = ModelConfig { embed_dim: config.hidden_size, num_layers: 1, final_norm: false, ..*config };
        Weights { input_projection: None, blocks: &[weights], final_norm: None, head: None }.check(&one)?;
        if threads == 0 {
            return Err(Error::Zero { what: "threads" });
        }
        Ok(Self::unchecked(config, weights, isa, threads))
    }

    pub(super) fn unchecked(
        config: &ModelConfig,
        weights: BlockWeights<'w>,
        isa: Isa,
        threads: usize,
    ) -> Self {
        Self { config: *config, weights, isa, threads }
    }

    /// Runs the block over all tokens, from the zero state: x `[B, T, hidden]`, in place.
    ///
    /// # Errors
    /// x of another length, or scratch that is too short. Nothing has been written then.
    pub fn forward(&self, batch: usize, len: usize, x: &mut [f32], scratch: &mut [f32]) -> Result<()> {
        let want = batch.checked_mul(len).and_then(|rows| rows.checked_mul(self.config.hidden_size));
        let want = want.ok_or(Error::Overflow { what: "x" })?;
        check_len("x", want, x.len())?;
        scratch::check(scratch, self.scratch_len(batch, len)?)?;
        self.run(Tile { batch, len }, x, Pass::Whole, Wanted::All, scratch)
    }

    /// Elements of scratch that [`Block::forward`] needs.
    ///
    /// # Errors
    /// Sizes that overflow.
    pub fn scratch_len(&self, batch: usize, len: usize) -> Result<usize> {
        scratch_len(&self.config, self.isa, self.threads, batch, len)
    }

    /// Runs the block on x `[B, T, hidden]` in place; the caller has checked lengths.
    pub(super) fn run(
        &self,
        Tile { batch, len }: Tile,
        x: &mut [f32],
        pass: Pass<'_>,
        wanted: Wanted,
        scratch: &mut [f32],
    ) -> Result<()> {
        let (isa, threads, weights) = (self.isa, self.threads, &self.weights);
        let (rows, hidden) = (batch * len, self.config.hidden_size);
        let sizes = Sizes::new(&self.config, rows);
        let mixer = Mixer::new(&self.config, isa, threads, batch, len)?;
        let (normed, rest) = scratch.split_at_mut(padded(sizes.normed));
        let normed = &mut normed[..sizes.normed];
        let (wide, rest) = rest.split_at_mut(padded(sizes.wide));

        let (qkv, mixed) = wide.split_at_mut(sizes.qkv);
        let mixed = &mut mixed[..sizes.mixed];
        weights.attn_norm.forward(isa, x, normed)?;
        self.project(Tile { batch, len }, normed, qkv, wanted, rest);
        let width = self.config.attention_width();
        let (q, k, v) = (&qkv[..], &qkv[width.min(qkv.len())..], &qkv[(2 * width).min(qkv.len())..]);
        mixer.run(Tensors::new(q, k, v, &mut *mixed), pass, rest)?;
        let rows = match wanted {
            Wanted::All => rows,
            Wanted::Last => {
                for sequence in 0..batch {
                    let row = sequence * len + len - 1;
                    mixed.copy_within(row * width..(row + 1) * width, sequence * width);
                    x.copy_within(row * hidden..(row + 1) * hidden, sequence * hidden);
                }
                batch
            }
            Wanted::State => return Ok(()),
        };
        let (x, mixed) = (&mut x[..rows * hidden], &mixed[..rows * width]);
        weights.attn_out.run(isa, threads, Product::new(mixed, x, Epilogue::Add), rest);

        let (normed, inner) = (&mut normed[..rows * hidden], &mut wide[..rows * self.config.inner_size()]);
        weights.ffn_norm.forward(isa, x, normed)?;
        weights.ffn_up.run(isa, threads, Product::new(normed, inner, Epilogue::Gelu), rest);
        weights.ffn_down.run(isa, threads, Product::new(inner, x, Epilogue::Add), rest);
        Ok(())
    }

    /// Computes the rows of q, k and v that are wanted, `[B, T, 3 hidden]`, from normalised rows
    /// `[B, T, hidden]`.
    fn project(&self, tile: Tile, normed: &[f32], qkv: &mut [f32], wanted: Wanted, scratch: &mut [f32]) {
        let (hidden, width) = (self.config.hidden_size, self.config.attention_width());
        let (dense, isa, threads) = (&self.weights.attn_qkv, self.isa, self.threads);
        if wanted == Wanted::All {
            dense.run(isa, threads, Product::new(normed, qkv, Epilogue::Store), scratch);
            return;
        }
        let product = Product::new(normed, &mut *qkv, Epilogue::Store).columns(width..3 * width);
        dense.run(isa, threads, product, scratch);
        // The values of the other queries make no difference, but they are read.
        for row in qkv.chunks_exact_mut(3 * hidden) {
            row[..width].fill(0.0);
        }
        if wanted == Wanted::Last {
            for row in (0..tile.batch).map(|sequence| sequence * tile.len + tile.len - 1) {
                let (x, y) = (&normed[row * hidden..][..hidden], &mut qkv[row * 3 * hidden..][..3 * hidden]);
                let product = Product::new(x, y, Epilogue::Store).columns(0..width);
                dense.run(isa, threads, product, scratch);
            }
        }
    }
}

/// Elements of the pieces of a block's scratch.
struct Sizes {
    normed: usize,
    qkv: usize,
    mixed: usize,
    /// qkv and the attention's output together, or the inner rows of the feed-forward network: they are not
    /// needed at the same time.
    wide: usize,
}

impl Sizes {
    fn new(config: &ModelConfig, rows: usize) -> Self {
        let h = rows * config.hidden_size;
        let (qkv, mixed, inner) = (3 * h, rows * config.attention_width(), 4 * h);
        Self { normed: h, qkv, mixed, wide: inner.max(qkv + mixed) }
    }
}

/// Elements of scratch of one block over `[B, T]` tokens, forward or step.
pub(super) fn scratch_len(
    config: &ModelConfig,
    isa: Isa,
    threads: usize,
    batch: usize,
    len: usize,
) -> Result<usize> {
    let mixer = Mixer::new(config, isa, threads, batch, len)?;
    let (rows, h, inner) = (batch * len, config.hidden_size, config.inner_size());
    let sizes = Sizes::new(config, rows);
    let mut most = mixer.scratch_len();
    // Products are over all rows, over the last row of each sequence, and over one row: fewer rows can need
    // more scratch.
    for rows in [rows, batch, 1] {
        for (inputs, outputs) in [(h, 3 * h), (config.attention_width(), h), (h, inner), (inner, h)] {
            most = most.max(linear::scratch_len(isa, threads, rows, inputs, outputs));
        }
    }
    Ok(padded(sizes.normed) + padded(sizes.wide) + most)
}
