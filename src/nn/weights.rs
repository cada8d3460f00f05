//! The parameters of a model, borrowed from wherever they are stored.

use super::config::{ModelConfig, Parameter};
use super::linear::Linear;
use super::norm::LayerNorm;
use crate::element::{Element, Elements};
use crate::error::{Error, Result, check_len, check_room};
use crate::isa::Isa;
use crate::scratch;

/// The parameters of one block.
#[derive(Clone, Copy, Debug, Default)]
pub struct BlockWeights<'w> {
    /// The layer norm before the attention, `[hidden]`.
    pub attn_norm: LayerNorm<'w>,
    /// The projection to q, k and v, `[hidden, 3 hidden]`, with columns q | k | v.
    pub attn_qkv: Linear<'w>,
    /// The output projection of the attention, `[heads head_dim, hidden]`.
    pub attn_out: Linear<'w>,
    /// The layer norm before the feed-forward network, `[hidden]`.
    pub ffn_norm: LayerNorm<'w>,
    /// The first layer of the feed-forward network, `[hidden, 4 hidden]`.
    pub ffn_up: Linear<'w>,
    /// The second layer of the feed-forward network, `[4 hidden, hidden]`.
    pub ffn_down: Linear<'w>,
}

impl BlockWeights<'_> {
    /// A block without parameters, to initialise static arrays; [`Weights::collect`] fills it.
    pub const EMPTY: Self = {
        const NONE: Elements<'static> = Elements::F32(&[]);
        const NORM: LayerNorm<'static> = LayerNorm { gamma: NONE, beta: NONE, eps: 0.0, clip: false };
        Self {
            attn_norm: NORM,
            attn_qkv: Linear::EMPTY,
            attn_out: Linear::EMPTY,
            ffn_norm: NORM,
            ffn_up: Linear::EMPTY,
            ffn_down: Linear::EMPTY,
        }
    };
}

/// The parameters of a model.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'w> {
    /// The projection of the input, `[embed, hidden]`, present if and only if the two sizes differ.
    pub input_projection: Option<Linear<'w>>,
    /// The parameters of the blocks, one for each layer.
    pub blocks: &'w [BlockWeights<'w>],
    /// The layer norm after the blocks, `[hidden]`, present if and only if the configuration says so.
    pub final_norm: Option<LayerNorm<'w>>,
    /// A dense layer after the output, `[hidden, outputs]` with any number of outputs; optional.
    pub head: Option<Linear<'w>>,
}

impl<'w> Weights<'w> {
    /// Combines the parameters, calling `get` for each in the order of [`ModelConfig::parameters`]; `blocks`
    /// is where the blocks are stored, one for each layer. Only the length of a slice is checked; `get` is
    /// responsible for its shape.
    ///
    /// # Errors
    /// Errors of `get`; an invalid configuration; too few or too many blocks; a slice of another length.
    pub fn collect<E: From<Error>>(
        config: &ModelConfig,
        blocks: &'w mut [BlockWeights<'w>],
        mut get: impl FnMut(&Parameter) -> core::result::Result<Elements<'w>, E>,
    ) -> core::result::Result<Self, E> {
        config.check()?;
        check_len("blocks", config.num_layers, blocks.len())?;
        let norm =
            LayerNorm { eps: config.layer_norm_eps, clip: config.layer_norm_clip, ..LayerNorm::default() };
        let (mut input_projection, mut final_norm) = (Linear::default(), norm);
        for block in &mut *blocks {
            *block = BlockWeights { attn_norm: norm, ffn_norm: norm, ..BlockWeights::default() };
        }
        for parameter in config.parameters() {
            let data = get(&parameter)?;
            if data.len() != parameter.len() {
                let Parameter { layer: name, block, shape: want, .. } = parameter;
                return Err(Error::Parameter { name, block, want, got: [1, data.len()] }.into());
            }
            let field = parameter.field;
            match parameter.block {
                0 => match parameter.layer {
                    "final_norm" => final_norm.set(field, data),
                    _ => input_projection.set(field, data),
                },
                at => {
                    let block = &mut blocks[at - 1];
                    match parameter.layer {
                        "attn_norm" => block.attn_norm.set(field, data),
                        "attn_qkv" => block.attn_qkv.set(field, data),
                        "attn_out" => block.attn_out.set(field, data),
                        "ffn_norm" => block.ffn_norm.set(field, data),
                        "ffn_up" => block.ffn_up.set(field, data),
                        _ => block.ffn_down.set(field, data),
                    }
                }
            }
        }
        Ok(Self {
            input_projection: (config.embed_dim != config.hidden_size).then_some(input_projection),
            blocks,
            final_norm: config.final_norm.then_some(final_norm),
            head: None,
        })
    }

    /// The weights of a flat model: all parameters one after another in the order of
    /// [`ModelConfig::parameters`].
    ///
    /// # Errors
    /// An invalid configuration, or a length other than [`ModelConfig::parameters_len`].
    pub fn from_flat<E: Element>(
        config: &ModelConfig,
        flat: &'w [E],
        blocks: &'w mut [BlockWeights<'w>],
    ) -> Result<Self> {
        config.check()?;
        check_len("the flat model", config.parameters_len(), flat.len())?;
        let mut rest = flat;
        Self::collect(config, blocks, |parameter| {
            let (data, after) = rest.split_at(parameter.len());
            rest = after;
            Ok(data.into())
        })
    }

    /// The same weights with every dense layer packed for an instruction set ([`Linear::pack`]), for which
    /// they are then faster, above all in a step. `blocks` is where the blocks are stored, and `memory` where
    /// the kernels are.
    ///
    /// # Errors
    /// Too few or too many blocks, less memory than [`Weights::packed_len`], or a kernel that is not
    /// `[in, out]`. Nothing has been written then.
    pub fn pack<'m>(
        &self,
        isa: Isa,
        blocks: &'m mut [BlockWeights<'m>],
        memory: &'m mut [f32],
    ) -> Result<Weights<'m>>
    where
        'w: 'm,
    {
        check_len("blocks", self.blocks.len(), blocks.len())?;
        check_room("memory", self.packed_len(isa), memory.len())?;
        for layer in self.layers() {
            layer.check()?;
        }
        let mut rest = scratch::align(memory);
        let mut pack = |layer: &Linear<'w>| {
            let (memory, after) = core::mem::take(&mut rest).split_at_mut(layer.packed_len(isa));
            rest = after;
            layer.pack(isa, memory)
        };
        for (to, from) in blocks.iter_mut().zip(self.blocks) {
            *to = BlockWeights {
                attn_qkv: pack(&from.attn_qkv)?,
                attn_out: pack(&from.attn_out)?,
                ffn_up: pack(&from.ffn_up)?,
                ffn_down: pack(&from.ffn_down)?,
                ..*from
            };
        }
        Ok(Weights {
            input_projection: self.input_projection.as_ref().map(&mut pack).transpose()?,
            head: self.head.as_ref().map(&mut pack).transpose()?,
            blocks,
            final_norm: self.final_norm,
        })
    }

    /// The elements of memory, of 4 bytes each, that [`Weights::pack`] needs; they contain the kernels in
    /// their own types.
    pub fn packed_len(&self, isa: Isa) -> usize {
        let lens = self.layers().map(|layer| layer.packed_len(isa));
        scratch::with_alignment(lens.fold(0, usize::saturating_add))
    }

    /// All dense layers.
    fn layers(&self) -> impl Iterator<Item = &Linear<'w>> {
        let blocks = self.blocks.iter().flat_map(|b| [&b.attn_qkv, &b.attn_out, &b.ffn_up, &b.ffn_down]);
        blocks.chain(&self.input_projection).chain(&self.head)
    }

    /// Checks every shape against the configuration.
    pub(crate) fn check(&self, config: &ModelConfig) -> Result<()> {
        config.check()?;
        check_len("blocks", config.num_layers, self.blocks.len())?;
        let presence = |present: bool, wanted: bool, name| {
            if present == wanted { Ok(()) } else { Err(Error::Part { name, present }) }
        };
        presence(
            self.input_projection.is_some(),
            config.embed_dim != config.hidden_size,
            "input_projection",
        )?;
        presence(self.final_norm.is_some(), config.final_norm, "final_norm")?;
        for parameter in config.parameters() {
            let Parameter { layer, block, field, shape: want, .. } = parameter;
            let got = if block == 0 {
                match layer {
                    "final_norm" => self.final_norm.map(|n| n.shape(field)),
                    _ => self.input_projection.map(|l| l.shape(field)),
                }
            } else {
                let weights = &self.blocks[block - 1];
                Some(match layer {
                    "attn_norm" => weights.attn_norm.shape(field),
                    "attn_qkv" => weights.attn_qkv.shape(field),
                    "attn_out" => weights.attn_out.shape(field),
                    "ffn_norm" => weights.ffn_norm.shape(field),
                    "ffn_up" => weights.ffn_up.shape(field),
                    _ => weights.ffn_down.shape(field),
                })
            };
            if let Some(got) = got
                && got != want
            {
                return Err(Error::Parameter { name: layer, block, want, got });
            }
        }
        if let Some(head) = self.head {
            let (want, got) = ([config.hidden_size, head.outputs()], head.shape("kernel"));
            if got != want || head.outputs() == 0 {
                return Err(Error::Parameter { name: "head", block: 0, want, got });
            }
        }
        Ok(())
    }
}
