//! Feature maps phi, applied to q and k while their rows are packed.

use pulp::Simd;

use crate::error::{Error, Result};
use crate::math::exp_nonpositive;

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

    /// Writes `phi(from)` into `to`, and zeros where `to`, a whole number of vectors, is longer.
    #[inline(always)]
    pub(crate) fn pack<S: Simd>(self, simd: S, from: &[f32], to: &mut [f32]) {
        match self {
            FeatureMap::Elu => map_row(simd, from, to, |x| elu(simd, x)),
            FeatureMap::Relu { eps } => {
                let (zero, eps) = (simd.splat_f32s(0.0), simd.splat_f32s(eps));
                // Compared this way round, NaN comes through.
                map_row(simd, from, to, |x| {
                    simd.add_f32s(simd.select_f32s(simd.less_than_or_equal_f32s(x, zero), zero, x), eps)
                });
            }
            FeatureMap::Identity => map_row(simd, from, to, |x| x),
        }
    }
}

#[inline(always)]
fn elu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    let below = simd.add_f32s(one, simd.sub_f32s(exp_nonpositive(simd, x), one));
    // False for NaN, which comes through 1 + x.
    let nonpositive = simd.less_than_or_equal_f32s(x, simd.splat_f32s(0.0));
    simd.select_f32s(nonpositive, below, simd.add_f32s(one, x))
}

#[inline(always)]
fn map_row<S: Simd>(simd: S, from: &[f32], to: &mut [f32], phi: impl Fn(S::f32s) -> S::f32s) {
    let (from_vectors, from_tail) = S::as_simd_f32s(from);
    let (to_whole, to_rest) = to.split_at_mut(from_vectors.len() * S::F32_LANES);
    let (to_vectors, _) = S::as_mut_simd_f32s(to_whole);
    for (to, from) in to_vectors.iter_mut().zip(from_vectors) {
        *to = phi(*from);
    }
    to_rest.fill(0.0);
    if !from_tail.is_empty() {
        to_rest[..from_tail.len()].copy_from_slice(from_tail);
        let (last, _) = S::as_mut_simd_f32s(to_rest);
        last[0] = phi(last[0]);
        to_rest[from_tail.len()..].fill(0.0);
    }
    let _ = simd;
}
