//! How far results may be from the stored ones.

use std::fmt;

use chunkwise::FeatureMap;
use chunkwise::files::Tensor;
use chunkwise::nn::AttentionKind;

use super::compare::Distance;

/// f32 reaches 7.6e-6, and the reference itself is within 1e-6 of f64. The same is allowed for results that
/// are computed token by token, for which the files contain no results of their own.
const F32: Allowed = Allowed { max_abs: 1e-5, norm: Some(2e-6) };
/// In this file q and k are so negative that phi is a small multiple of 2^-24: one ULP of exp moves the
/// outputs.
const QUANTISED: (&str, Allowed) = ("k_elu_neg12", Allowed { max_abs: 1e-3, norm: None });
/// For results after the final norm or after a head, of a model that may be ill-conditioned before it.
const NORMED: Allowed = Allowed { max_abs: 5e-5, norm: None };
/// A stored tensor with a larger norm error against f64 is not a result of this model, however sensitive the
/// model is: the largest error that rounding has caused is 2.2e-4. Without this bound, a wrong stored tensor
/// would allow any result.
const CREDIBLE: f64 = 1e-3;
/// One row in this many may have a larger error. In lightning_a one token's denominator is so near zero that
/// its row is a hundred times as large as any other and has an error of 7e-3; the next largest error is
/// 1.1e-4.
const ROWS: usize = 50;

/// The distance of a stored tensor from an f64 run.
pub(crate) struct Inside {
    max_abs: f64,
    credible: bool,
}

impl Inside {
    /// For a tensor that the f64 run does not compute.
    pub(crate) const UNKNOWN: Self = Self { max_abs: 0.0, credible: true };

    /// The distance of a stored tensor from equally many elements in f64.
    pub(crate) fn new(stored: &Tensor<'_>, exact: &[f64]) -> Self {
        let Distance { max_abs, norm } = Distance::new(&stored.data, exact);
        let row = stored.shape.last().map_or(1, |row| (*row).max(1));
        let rows = stored.data.chunks(row).zip(exact.chunks(row));
        let off = rows.filter(|(stored, exact)| Distance::new(stored, exact).norm > CREDIBLE).count();
        let credible = norm <= CREDIBLE || off * ROWS <= stored.data.len() / row;
        Self { max_abs, credible }
    }
}

/// Whether the denominators of an attention are positive. Where they can have both signs, results are
/// ill-conditioned near a denominator of zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denominators {
    Positive,
    Signed,
}

impl Denominators {
    pub(crate) fn of(attention: AttentionKind, feature_map: FeatureMap) -> Self {
        match (attention, feature_map) {
            (AttentionKind::Linear, FeatureMap::Elu | FeatureMap::Relu { .. }) => Denominators::Positive,
            _ => Denominators::Signed,
        }
    }
}

/// The largest distances that are allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Allowed {
    max_abs: f64,
    norm: Option<f64>,
}

impl Allowed {
    /// The distances allowed for a tensor of a file, both given by name. `inside`, the distance of the stored
    /// tensor from an f64 run, is computed only where denominators can have both signs.
    pub(crate) fn new(
        file: &str,
        denominators: Denominators,
        tensor: &str,
        final_norm: bool,
        inside: impl FnOnce() -> Inside,
    ) -> Self {
        let is_output = tensor.starts_with("output");
        match denominators {
            _ if tensor == "logits" => NORMED,
            _ if file == QUANTISED.0 => QUANTISED.1,
            Denominators::Signed if is_output && final_norm => NORMED,
            Denominators::Signed => {
                let Inside { max_abs, credible } = inside();
                let max_abs = if credible { 10.0 * max_abs + 1e-5 } else { 0.0 };
                Self { max_abs, norm: None }
            }
            Denominators::Positive => F32,
        }
    }

    /// Whether a distance is allowed.
    pub(crate) fn holds(&self, distance: Distance) -> bool {
        distance.max_abs <= self.max_abs && self.norm.is_none_or(|norm| distance.norm <= norm)
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1e}", self.max_abs)?;
        self.norm.map_or(Ok(()), |norm| write!(f, " / {norm:.0e}"))
    }
}
