//! What is computed: the feature map, the normaliser and the scale, and which of them go together.

use crate::error::{Error, Result};

/// What every output is, whatever the sizes and the machine:
///
/// ```text
/// S_t = S_{t-1} + phi(k_t) v_t^T        z_t = z_{t-1} + phi(k_t)        o_t = scale phi(q_t)^T S_t / norm_t
/// ```
///
/// Together with the sizes it fixes how a state is laid out ([`crate::state`]).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Rule {
    /// The map phi on q and k; [`FeatureMap::Elu`] by default.
    pub feature_map: FeatureMap,
    /// By what outputs are divided.
    pub normaliser: Normaliser,
    /// Multiplies the outputs. 1 by default, as in the reference model; fla's default is K^-1/2.
    pub scale: f32,
    /// Keeps the rounding errors of the state beside it and adds them back, for streams of very many tokens. This
    /// doubles the state and costs time. Off by default.
    pub compensated: bool,
}

impl Rule {
    /// Linear attention with this normaliser: Elu, scale 1, not compensated.
    pub const fn linear(normaliser: Normaliser) -> Self {
        Self { feature_map: FeatureMap::Elu, normaliser, scale: 1.0, compensated: false }
    }

    /// The same rule with another feature map.
    #[must_use]
    pub const fn feature_map(self, feature_map: FeatureMap) -> Self {
        Self { feature_map, ..self }
    }

    /// The same rule with another scale.
    #[must_use]
    pub const fn scale(self, scale: f32) -> Self {
        Self { scale, ..self }
    }

    /// The same rule with or without compensation of rounding errors.
    #[must_use]
    pub const fn compensated(self, compensated: bool) -> Self {
        Self { compensated, ..self }
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.feature_map.check()?;
        self.normaliser.check()?;
        if !self.scale.is_finite() {
            return Err(Error::NotFinite { what: "scale" });
        }
        if let Normaliser::PerChunk { eps, .. } = self.normaliser {
            // Before the first chunk has ended the past is 0 / eps: that must be 0.
            if !(self.scale / eps).is_finite() {
                return Err(Error::NotFinite { what: "scale / eps of the per-chunk normaliser" });
            }
        }
        Ok(())
    }
}

/// The elementwise map phi on q and k.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum FeatureMap {
    /// `x > 0: 1 + x, else 1 + (exp(x) - 1)`, in f32 and in this order: for strongly negative x the result is
    /// a multiple of 2^-24, and models were trained on that.
    #[default]
    Elu,
    /// `max(x, 0) + eps`.
    Relu {
        /// Added after the maximum; 1e-6 in the reference ([`FeatureMap::RELU`]).
        eps: f32,
    },
    /// `x`.
    Identity,
}

impl FeatureMap {
    /// Relu with the reference's eps, 1e-6.
    pub const RELU: FeatureMap = FeatureMap::Relu { eps: 1e-6 };

    pub(crate) fn check(self) -> Result<()> {
        match self {
            FeatureMap::Relu { eps } if !(eps.is_finite() && eps >= 0.0) => {
                Err(Error::NotFinite { what: "the feature map's eps" })
            }
            _ => Ok(()),
        }
    }
}

/// By what the outputs are divided. The variants are different models: choose the one that the weights were trained with.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Normaliser {
    /// By nothing (fla with `normalize=False`, the ONNX operator LinearAttention).
    None,
    /// By `phi(q_t) . z_t + eps`, z over all tokens so far (Katharopoulos et al. 2020, eq. 9).
    Global {
        /// Added to the denominator.
        eps: f32,
    },
    /// The tokens of the current chunk and those of all earlier chunks are divided apart, each by its own sum:
    /// `phi(q) S_cur / (phi(q) . z_cur + eps) + phi(q) S_past / (phi(q) . z_past + eps)` (Edifice's FlashLinearAttention).
    PerChunk {
        /// Tokens in a chunk, at least 1 and at most 2^24: part of the model, not a tuning choice.
        chunk: usize,
        /// Added to each denominator.
        eps: f32,
    },
}

impl Normaliser {
    /// The reference model's, with eps 1e-8.
    pub const fn per_chunk(chunk: usize) -> Normaliser {
        Normaliser::PerChunk { chunk, eps: 1e-8 }
    }

    pub(crate) fn check(self) -> Result<()> {
        match self {
            Normaliser::Global { eps } | Normaliser::PerChunk { eps, .. }
                if !(eps.is_finite() && eps >= 0.0) =>
            {
                Err(Error::NotFinite { what: "the normaliser's eps" })
            }
            Normaliser::PerChunk { chunk: 0, .. } => Err(Error::Zero { what: "chunk" }),
            Normaliser::PerChunk { chunk, .. } if chunk > 1 << 24 => Err(Error::ChunkTooLong { chunk }),
            _ => Ok(()),
        }
    }
}
