//! What is computed: the update, the gate, the feature map, the normaliser and the scale, and which of them
//! go together.

use crate::error::{Error, Result, check_most};

/// Whether there are rules other than causal linear attention. Where there are none, their code is not
/// linked.
const FAMILY: bool = cfg!(feature = "family");

/// The recurrence that defines every output, whatever the sizes and the machine:
///
/// ```text
/// S' = a_t S_{t-1}                      a_t = 1, or exp(g_t): one number for each head, or for each row of S
/// u  = v_t                              Update::Linear
/// u  = beta_t (v_t - S'^T phi(k_t))     Update::Delta
/// S_t = S' + phi(k_t) u^T               z_t = a_t z_{t-1} + phi(k_t)
/// o_t = scale phi(q_t)^T S_t / norm_t
/// ```
///
/// Together with the sizes, the rule determines the layout of a state ([`crate::state`]).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Rule {
    /// What a token adds to the state: v, or the difference between v and what the state holds for k.
    pub update: Update,
    /// How the state decays before each token.
    pub gate: Gate,
    /// How decays are computed from the tensor g; [`GateMap::Log`] by default.
    pub gate_map: GateMap,
    /// How beta is computed from its tensor; [`BetaMap::Given`] by default.
    pub beta_map: BetaMap,
    /// The map phi on q and k; [`FeatureMap::Elu`] by default for [`Rule::linear`], else
    /// [`FeatureMap::Identity`].
    pub feature_map: FeatureMap,
    /// If given, rows of phi(q) and phi(k) are divided by `sqrt(sum x^2 + eps)` with this eps (1e-6 in fla
    /// and transformers). None by default.
    pub qk_norm: Option<f32>,
    /// The number by which outputs are divided.
    pub normaliser: Normaliser,
    /// The factor on the outputs. It is 1 by default, as in the reference model; for fla's default, K^-1/2,
    /// see [`Rule::scale_by_key`].
    pub scale: f32,
    /// Keeps the rounding errors of the state beside it and adds them back, for streams of very many tokens.
    /// This doubles the state and costs time. Off by default.
    pub compensated: bool,
    /// Whether an output depends on the tokens up to its own (true, the default) or on all tokens of the
    /// call, as in encoders and vision models. Attention that is not causal requires the linear update
    /// without a gate, and can't be decoded.
    pub causal: bool,
}

impl Rule {
    /// Linear attention with this normaliser: Elu, scale 1, no compensation, no gate.
    pub const fn linear(normaliser: Normaliser) -> Self {
        Self {
            update: Update::Linear,
            gate: Gate::None,
            gate_map: GateMap::Log,
            beta_map: BetaMap::Given,
            feature_map: FeatureMap::Elu,
            qk_norm: None,
            normaliser,
            scale: 1.0,
            compensated: false,
            causal: true,
        }
    }

    /// Linear attention whose state decays: a constant decay or a scalar gate (RetNet, simple GLA, Mamba-2),
    /// or a key gate (GLA). Identity map, no normaliser, scale 1.
    pub const fn gated(gate: Gate) -> Self {
        Self { gate, ..Self::linear(Normaliser::None).feature_map(FeatureMap::Identity) }
    }

    /// The delta rule, with [`Gate::None`] (DeltaNet), [`Gate::Scalar`] (gated DeltaNet: Qwen3-Next, Qwen3.5,
    /// OLMo-Hybrid) or [`Gate::Key`] (Kimi Delta Attention). Identity map, no normaliser, scale 1.
    pub const fn delta(gate: Gate) -> Self {
        Self { update: Update::Delta, ..Self::gated(gate) }
    }

    /// The same rule with another map of the gate.
    #[must_use]
    pub const fn gate_map(self, gate_map: GateMap) -> Self {
        Self { gate_map, ..self }
    }

    /// The same rule with another map of beta.
    #[must_use]
    pub const fn beta_map(self, beta_map: BetaMap) -> Self {
        Self { beta_map, ..self }
    }

    /// The same rule with another feature map.
    #[must_use]
    pub const fn feature_map(self, feature_map: FeatureMap) -> Self {
        Self { feature_map, ..self }
    }

    /// The same rule with rows of q and k divided by their length, `sqrt(sum x^2 + eps)`.
    #[must_use]
    pub const fn qk_norm(self, eps: f32) -> Self {
        Self { qk_norm: Some(eps), ..self }
    }

    /// The same rule with another normaliser.
    #[must_use]
    pub const fn normaliser(self, normaliser: Normaliser) -> Self {
        Self { normaliser, ..self }
    }

    /// The same rule with another scale.
    #[must_use]
    pub const fn scale(self, scale: f32) -> Self {
        Self { scale, ..self }
    }

    /// The same rule with the scale K^-1/2, the default of fla, transformers and ONNX.
    #[must_use]
    pub fn scale_by_key(self, key: usize) -> Self {
        self.scale((1.0 / libm::sqrt(key as f64)) as f32)
    }

    /// The same rule with or without compensation of rounding errors.
    #[must_use]
    pub const fn compensated(self, compensated: bool) -> Self {
        Self { compensated, ..self }
    }

    /// The same rule, causal or not.
    #[must_use]
    pub const fn causal(self, causal: bool) -> Self {
        Self { causal, ..self }
    }

    /// Elements in a row of g.
    pub(crate) const fn gate_row(&self, key: usize) -> usize {
        match self.gate {
            Gate::Key => key,
            Gate::None | Gate::Scalar => 1,
        }
    }

    /// Whether tokens are computed in blocks with decays: every rule but the linear one without a gate.
    pub(crate) const fn in_blocks(&self) -> bool {
        FAMILY && (matches!(self.update, Update::Delta) || !matches!(self.gate, Gate::None))
    }

    /// eps of the norm of q and k, if the rule has one.
    pub(crate) const fn norm(&self) -> Option<f32> {
        if FAMILY { self.qk_norm } else { None }
    }

    /// Whether a call takes two passes over the tokens.
    pub(crate) const fn in_passes(&self) -> bool {
        FAMILY && !self.causal
    }

    pub(crate) fn check(&self) -> Result<()> {
        let beyond = self.update != Update::Linear
            || self.gate != Gate::None
            || self.qk_norm.is_some()
            || !self.causal;
        if beyond && !FAMILY {
            return Err(Error::Conflict {
                what: "a rule of the family and a library built without the feature `family`",
            });
        }
        self.feature_map.check()?;
        self.normaliser.check()?;
        if !self.scale.is_finite() {
            return Err(Error::NotFinite { what: "scale" });
        }
        if self.qk_norm.is_some_and(|eps| !(eps.is_finite() && eps >= 0.0)) {
            return Err(Error::NotFinite { what: "the eps of the norm of q and k" });
        }
        if let GateMap::Bounded { lower } = self.gate_map
            && !lower.is_finite()
        {
            return Err(Error::NotFinite { what: "the gate's lower bound" });
        }
        if let Normaliser::PerChunk { eps, .. } = self.normaliser {
            // Before the first chunk has ended, the output of the past is 0 scale / eps, which must be 0.
            if !(self.scale / eps).is_finite() {
                return Err(Error::NotFinite { what: "scale / eps of the per-chunk normaliser" });
            }
        }
        self.check_combination()
    }

    /// Refuses options that do not go together.
    fn check_combination(&self) -> Result<()> {
        let delta = self.update == Update::Delta;
        let per_chunk = matches!(self.normaliser, Normaliser::PerChunk { .. });
        let refused = [
            (delta && self.normaliser != Normaliser::None, "the delta rule and a normaliser"),
            (self.in_blocks() && per_chunk, "a gate and the per-chunk normaliser"),
            (self.in_blocks() && self.compensated, "a gate or the delta rule and a compensated state"),
            (
                self.gate == Gate::None && self.gate_map != GateMap::Log,
                "a map of the gate and a rule without one",
            ),
            (!delta && self.beta_map != BetaMap::Given, "a map of beta and the linear update"),
            (
                !self.causal && (self.in_blocks() || per_chunk || self.compensated),
                "attention that is not causal and a gate, the delta rule, the per-chunk normaliser or a compensated state",
            ),
        ];
        match refused.into_iter().find(|(refused, _)| *refused) {
            Some((_, what)) => Err(Error::Conflict { what }),
            None => Ok(()),
        }
    }
}

/// What a token adds to the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Update {
    /// `phi(k) v^T`.
    #[default]
    Linear,
    /// `phi(k) beta (v - S'^T phi(k))^T`: the state is corrected towards v (Yang et al. 2024, "Parallelizing
    /// Linear Transformers with the Delta Rule over Sequence Length").
    Delta,
}

/// How the state decays before each token, and thus what the tensor g contains. The strides of g may be 0: a
/// decay that is the same for all tokens is a scalar gate `[H]` with [`crate::Strides::PER_HEAD`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gate {
    /// The state does not decay; there is no g.
    #[default]
    None,
    /// The state decays by one factor for each token and head: g `[B, T, H]`.
    Scalar,
    /// The state decays by one factor for each token, head and row of S: g `[B, T, H, K]`, K contiguous.
    Key,
}

/// How a decay a is computed from an element x of g, a number r = exp(A_log) for each head and a number b =
/// dt_bias for each head (with a key gate, for each head and row of S). Where A_log or dt_bias is not given,
/// r = 1 and b = 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum GateMap {
    /// `a = exp(x)`: g is the logarithm of the decay. Minus infinity resets the state; above 0 the state
    /// grows.
    #[default]
    Log,
    /// `a = x`: g is the decay itself (ggml's gated linear attention).
    Linear,
    /// `a = exp(-r softplus(x + b))` (Mamba-2, Qwen3-Next, Qwen3.5, Kimi Linear).
    Softplus,
    /// `a = exp(lower sigmoid(r (x + b)))` (Kimi-K3, fla's `lower_bound`, which is -5).
    Bounded {
        /// The least logarithm of a decay.
        lower: f32,
    },
}

/// How beta is computed from an element x of its tensor `[B, T, H]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BetaMap {
    /// `x`.
    #[default]
    Given,
    /// `sigmoid(x)` (Qwen3.5, Kimi Linear).
    Sigmoid,
    /// `2 sigmoid(x)` (OLMo-Hybrid; fla's `allow_neg_eigval`).
    TwiceSigmoid,
}

/// RetNet's constant log decays, `ln(1 - 2^(-5 - h))` for head h (Sun et al. 2023): g of a scalar gate with
/// [`crate::Strides::PER_HEAD`].
pub fn retention(log_decays: &mut [f32]) {
    for (h, g) in log_decays.iter_mut().enumerate() {
        *g = libm::log1p(-libm::exp2(-5.0 - h as f64)) as f32;
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

/// The number by which the outputs are divided. The variants are different models: choose the one with which
/// the weights were trained.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Normaliser {
    /// Outputs are not divided (fla with `normalize=False`, the ONNX operator LinearAttention).
    None,
    /// Outputs are divided by `phi(q_t) . z_t + eps`, with z summed over all tokens so far (Katharopoulos et
    /// al. 2020, eq. 9).
    Global {
        /// Added to the denominator.
        eps: f32,
    },
    /// What the current chunk and all earlier chunks contribute to an output is divided separately, each by
    /// its own sum: `phi(q) S_cur / (phi(q) . z_cur + eps) + phi(q) S_past / (phi(q) . z_past + eps)`
    /// (Edifice's FlashLinearAttention).
    PerChunk {
        /// The number of tokens in a chunk, at least 1 and at most 2^24: a part of the model, not a tuning
        /// choice.
        chunk: usize,
        /// Added to each denominator.
        eps: f32,
    },
}

impl Normaliser {
    /// The per-chunk normaliser of the reference model, with eps 1e-8.
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
            Normaliser::PerChunk { chunk, .. } => check_chunk(chunk),
            _ => Ok(()),
        }
    }
}

/// Checks the number of tokens in a chunk, which a state counts in an f32.
pub(crate) fn check_chunk(chunk: usize) -> Result<()> {
    if chunk == 0 {
        return Err(Error::Zero { what: "chunk" });
    }
    check_most("tokens of a chunk", 1 << 24, chunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_without_the_family_refuses_it() {
        let linear = Rule::linear(Normaliser::Global { eps: 1e-6 });
        let family =
            [Rule::gated(Gate::Scalar), Rule::delta(Gate::None), linear.qk_norm(1e-6), linear.causal(false)];
        assert_eq!(linear.check(), Ok(()));
        for rule in family {
            let refused = matches!(rule.check(), Err(Error::Conflict { what }) if what.contains("`family`"));
            assert_eq!(refused, !FAMILY, "{rule:?}");
        }
    }
}
