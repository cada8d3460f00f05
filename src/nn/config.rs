//! The options of the model, and the parameters that follow from them: names, shapes and order, defined in
//! one place.

use core::fmt;

use crate::error::{Error, Result};
use crate::rule::{FeatureMap, Normaliser};

/// What the model returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputMode {
    /// The last time step, `[B, hidden]`.
    #[default]
    LastTimestep,
    /// All time steps, `[B, T, hidden]`.
    All,
    /// The mean over time, `[B, hidden]`.
    Mean,
}

/// The attention of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttentionKind {
    /// Linear attention, normalised per chunk: Edifice's FlashLinearAttention.
    #[default]
    Linear,
    /// Softmax inside a chunk, linear attention over the chunks before it ([`crate::lightning`]): Edifice's
    /// LightningAttention.
    Lightning,
}

impl AttentionKind {
    /// The beginning of the names of a block's parameters, before the number of the block.
    pub(crate) const fn prefix(self) -> &'static str {
        match self {
            AttentionKind::Linear => "fla_block_",
            AttentionKind::Lightning => "lightning_block_",
        }
    }
}

/// The options of Edifice's `FlashLinearAttention.build/1` and `LightningAttention.build/1`, and those of the
/// layer norms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelConfig {
    /// The kind of attention; linear by default.
    pub attention: AttentionKind,
    /// Elements of an input row.
    pub embed_dim: usize,
    /// The elements of a row inside the model; 256 by default.
    pub hidden_size: usize,
    /// The number of heads; 4 by default (8 in the reference's LightningAttention). It need not divide
    /// `hidden_size`: the columns of qkv that are left over are not used.
    pub num_heads: usize,
    /// The number of blocks; 4 by default.
    pub num_layers: usize,
    /// The tokens in a chunk, 64 by default; see [`ModelConfig::chunk`]. The reference's LightningAttention
    /// calls this option `block_size`.
    pub chunk_size: usize,
    /// The number of tokens that the model was built for, 64 by default. The model runs on any number of
    /// tokens; this only bounds the chunk of linear attention.
    pub seq_len: usize,
    /// The feature map of q and k; Elu by default. Lightning attention has none.
    pub feature_map: FeatureMap,
    /// The dropout of training, 0.1 by default. It is only kept so that a configuration survives being read
    /// and written.
    pub dropout: f32,
    /// What the model returns; the last time step by default.
    pub output_mode: OutputMode,
    /// Whether there is a layer norm after the blocks; true by default.
    pub final_norm: bool,
    /// The eps of the layer norms; 1e-5 by default.
    pub layer_norm_eps: f32,
    /// Whether the layer norm is that of Axon 0.8.0: `rsqrt(eps)` instead of `rsqrt(var + eps)` where
    /// `var < eps`. False by default.
    pub layer_norm_clip: bool,
}

impl ModelConfig {
    /// The reference's defaults.
    pub const fn new(embed_dim: usize) -> Self {
        Self {
            attention: AttentionKind::Linear,
            embed_dim,
            hidden_size: 256,
            num_heads: 4,
            num_layers: 4,
            chunk_size: 64,
            seq_len: 64,
            feature_map: FeatureMap::Elu,
            dropout: 0.1,
            output_mode: OutputMode::LastTimestep,
            final_norm: true,
            layer_norm_eps: 1e-5,
            layer_norm_clip: false,
        }
    }

    /// Elements of an output row: `hidden_size`.
    pub const fn output_size(&self) -> usize {
        self.hidden_size
    }

    /// Elements of a head: `hidden_size / num_heads`, rounded down; 0 where there are no heads, which
    /// [`ModelConfig::check`] refuses.
    pub const fn head_dim(&self) -> usize {
        match self.hidden_size.checked_div(self.num_heads) {
            Some(dim) => dim,
            None => 0,
        }
    }

    /// Elements of a row of q, k, v and of the attention's output: `num_heads * head_dim`.
    pub const fn attention_width(&self) -> usize {
        self.num_heads * self.head_dim()
    }

    /// Elements of a row inside the feed-forward network: `4 * hidden_size`, saturating.
    pub const fn inner_size(&self) -> usize {
        self.hidden_size.saturating_mul(4)
    }

    /// The effective number of tokens in a chunk: `min(chunk_size, seq_len)` for linear attention,
    /// `chunk_size` for lightning attention.
    pub const fn chunk(&self) -> usize {
        match self.attention {
            AttentionKind::Linear if self.seq_len < self.chunk_size => self.seq_len,
            _ => self.chunk_size,
        }
    }

    /// The normaliser of linear attention: per chunk, eps 1e-8.
    pub const fn normaliser(&self) -> Normaliser {
        Normaliser::per_chunk(self.chunk())
    }

    /// Checks the options against each other.
    ///
    /// # Errors
    /// A size of zero, fewer hidden elements than heads, sizes that overflow, or an eps that is not a finite
    /// positive number.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            (self.embed_dim, "embed_dim"),
            (self.hidden_size, "hidden_size"),
            (self.num_heads, "num_heads"),
            (self.num_layers, "num_layers"),
            (self.chunk_size, "chunk_size"),
            (self.seq_len, "seq_len"),
        ];
        for (size, what) in sizes {
            if size == 0 {
                return Err(Error::Zero { what });
            }
        }
        if self.num_heads > self.hidden_size {
            return Err(Error::Zero { what: "head_dim (hidden_size / num_heads)" });
        }
        self.feature_map.check()?;
        self.normaliser().check()?;
        if !(self.layer_norm_eps.is_finite() && self.layer_norm_eps > 0.0) {
            return Err(Error::NotPositive { what: "layer_norm_eps" });
        }
        self.checked_parameters_len().ok_or(Error::Overflow { what: "the model" })?;
        Ok(())
    }

    fn checked_parameters_len(&self) -> Option<usize> {
        let h = self.hidden_size;
        // Four times [h, 4h] is more than a block has.
        let block = h.checked_mul(h)?.checked_mul(16)?;
        let input = self.embed_dim.checked_mul(h)?;
        let all = block.checked_mul(self.num_layers)?.checked_add(input)?.checked_mul(2)?;
        (all <= isize::MAX as usize / size_of::<f32>()).then_some(all)
    }

    /// The elements of all parameters together: the length of a flat model. For options that
    /// [`ModelConfig::check`] refuses, the number saturates.
    pub fn parameters_len(&self) -> usize {
        let len = |num_layers| {
            let config = Self { num_layers, ..*self };
            config.parameters().map(|p| p.len()).fold(0, usize::saturating_add)
        };
        // Computed from one block and the rest, because there may be any number of blocks.
        let outside = len(0);
        (len(1) - outside).saturating_mul(self.num_layers).saturating_add(outside)
    }

    /// All parameters in the order of a flat model: the input projection if there is one, the blocks, the
    /// final norm if there is one. (A head is not part of the configuration.) Sizes saturate.
    pub fn parameters(&self) -> impl Iterator<Item = Parameter> {
        let (h, w, attention) = (self.hidden_size, self.attention_width(), self.attention);
        let parameter =
            move |layer, field, shape, vector| Parameter { attention, layer, block: 0, field, shape, vector };
        let dense = |layer, rows, columns| {
            [parameter(layer, "kernel", [rows, columns], false), parameter(layer, "bias", [1, columns], true)]
        };
        let norm = |layer| [parameter(layer, "gamma", [1, h], true), parameter(layer, "beta", [1, h], true)];
        let block = [
            norm("attn_norm"),
            dense("attn_qkv", h, h.saturating_mul(3)),
            dense("attn_out", w, h),
            norm("ffn_norm"),
            dense("ffn_up", h, self.inner_size()),
            dense("ffn_down", self.inner_size(), h),
        ];
        let projection = (self.embed_dim != h).then(|| dense("input_projection", self.embed_dim, h));
        let last = self.final_norm.then(|| norm("final_norm"));
        projection
            .into_iter()
            .flatten()
            .chain(
                (1..=self.num_layers).flat_map(move |at| {
                    block.into_iter().flatten().map(move |p| Parameter { block: at, ..p })
                }),
            )
            .chain(last.into_iter().flatten())
    }
}

/// One parameter of the model. Displays as its name in weight files, `fla_block_1_attn_qkv.kernel` or
/// `lightning_block_1_attn_qkv.kernel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// The attention of the model, which determines the names of its blocks.
    pub attention: AttentionKind,
    /// The name of the layer inside its block.
    pub layer: &'static str,
    /// The number of the block, counted from 1; 0 outside the blocks.
    pub block: usize,
    /// `kernel`, `bias`, `gamma` or `beta`.
    pub field: &'static str,
    /// Rows and columns; a vector has one row.
    pub shape: [usize; 2],
    /// Whether the parameter is a vector.
    pub vector: bool,
}

impl Parameter {
    /// The number of elements, saturating.
    #[allow(clippy::len_without_is_empty, reason = "no parameter is empty")]
    pub const fn len(&self) -> usize {
        self.shape[0].saturating_mul(self.shape[1])
    }

    /// The shape as weight files give it: `[columns]` for a vector, `[rows, columns]` otherwise.
    pub fn dims(&self) -> &[usize] {
        &self.shape[usize::from(self.vector)..]
    }
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.block {
            0 => write!(f, "{}.{}", self.layer, self.field),
            block => write!(f, "{}{block}_{}.{}", self.attention.prefix(), self.layer, self.field),
        }
    }
}
