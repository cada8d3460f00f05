//! The attention of a model, of either kind, over `[B, T]` tokens of qkv rows.

use super::block::Pass;
use super::config::{AttentionKind, ModelConfig};
use crate::attention::{Attention, Config, State};
#[cfg(not(feature = "family"))]
use crate::error::Error;
use crate::error::Result;
use crate::isa::Isa;
#[cfg(feature = "family")]
use crate::lightning::{self, Lightning};
use crate::rule::Rule;
use crate::shape::{Shape, Strides};
use crate::tensors::Tensors;

/// The attention of a block, which mixes its tokens.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mixer {
    Linear(Attention),
    #[cfg(feature = "family")]
    Lightning(Lightning),
}

impl Mixer {
    pub(super) fn new(
        config: &ModelConfig,
        isa: Isa,
        threads: usize,
        batch: usize,
        len: usize,
    ) -> Result<Self> {
        let dim = config.head_dim();
        let qkv = Strides::packed(len, 3 * config.hidden_size, dim);
        let shape = Shape::new(batch, len, config.num_heads, dim, dim).with_inputs(qkv, qkv, qkv);
        Ok(match config.attention {
            AttentionKind::Linear => {
                let rule = Rule::linear(config.normaliser()).feature_map(config.feature_map);
                Mixer::Linear(Attention::new(Config::new(rule, shape).isa(isa).threads(threads))?)
            }
            #[cfg(not(feature = "family"))]
            AttentionKind::Lightning => {
                return Err(Error::Conflict {
                    what: "a lightning model and a library built without the feature `family`",
                });
            }
            #[cfg(feature = "family")]
            AttentionKind::Lightning => {
                let config = lightning::Config::new(config.chunk(), shape);
                Mixer::Lightning(Lightning::new(config.isa(isa).threads(threads))?)
            }
        })
    }

    /// Elements of the state of all sequences.
    pub(super) fn state_len(&self) -> usize {
        match self {
            Mixer::Linear(attention) => attention.state_len(),
            #[cfg(feature = "family")]
            Mixer::Lightning(lightning) => lightning.state_len(),
        }
    }

    /// Elements of scratch that any pass needs.
    pub(super) fn scratch_len(&self) -> usize {
        match self {
            Mixer::Linear(attention) => attention.scratch_len().max(attention.decode_scratch_len()),
            #[cfg(feature = "family")]
            Mixer::Lightning(lightning) => lightning.scratch_len().max(lightning.decode_scratch_len()),
        }
    }

    /// Checks a state that the caller has provided.
    pub(super) fn check_state(&self, state: &[f32]) -> Result<()> {
        match self {
            Mixer::Linear(attention) => attention.check_state(state, 0..attention.all_heads()),
            #[cfg(feature = "family")]
            Mixer::Lightning(lightning) => lightning.check_state(state),
        }
    }

    pub(super) fn run(&self, tensors: Tensors<'_>, pass: Pass<'_>, scratch: &mut [f32]) -> Result<()> {
        match (self, pass) {
            (Mixer::Linear(attention), Pass::Whole) => attention.forward(tensors, State::Zero, scratch),
            (Mixer::Linear(attention), Pass::Carried(state)) => {
                attention.forward(tensors, State::Carried(state), scratch)
            }
            (Mixer::Linear(attention), Pass::Step(state)) => attention.decode(tensors, state, scratch),
            #[cfg(feature = "family")]
            (Mixer::Lightning(lightning), Pass::Whole) => lightning.forward(tensors, State::Zero, scratch),
            #[cfg(feature = "family")]
            (Mixer::Lightning(lightning), Pass::Carried(state)) => {
                lightning.forward(tensors, State::Carried(state), scratch)
            }
            #[cfg(feature = "family")]
            (Mixer::Lightning(lightning), Pass::Step(state)) => lightning.decode(tensors, state, scratch),
        }
    }
}
