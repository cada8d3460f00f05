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
            FeatureMap::Elu => map_row(simd, Elu, from, to),
            FeatureMap::Relu { eps } => map_row(simd, Relu { eps }, from, to),
            FeatureMap::Identity => map_row(simd, Identity, from, to),
        }
    }
}

/// phi on one vector; a trait because closures can't be made to inline.
trait Phi {
    fn phi<S: Simd>(&self, simd: S, x: S::f32s) -> S::f32s;
}

struct Elu;
struct Relu {
    eps: f32,
}
struct Identity;

impl Phi for Elu {
    #[inline(always)]
    fn phi<S: Simd>(&self, simd: S, x: S::f32s) -> S::f32s {
        let one = simd.splat_f32s(1.0);
        let below = simd.sub_f32s(exp_nonpositive(simd, x), one);
        // False for NaN, which comes through 1 + x.
        let nonpositive = simd.less_than_or_equal_f32s(x, simd.splat_f32s(0.0));
        simd.add_f32s(one, simd.select_f32s(nonpositive, below, x))
    }
}

impl Phi for Relu {
    #[inline(always)]
    fn phi<S: Simd>(&self, simd: S, x: S::f32s) -> S::f32s {
        let zero = simd.splat_f32s(0.0);
        // False for NaN, which comes through x.
        let nonpositive = simd.less_than_or_equal_f32s(x, zero);
        simd.add_f32s(simd.select_f32s(nonpositive, zero, x), simd.splat_f32s(self.eps))
    }
}

impl Phi for Identity {
    #[inline(always)]
    fn phi<S: Simd>(&self, _: S, x: S::f32s) -> S::f32s {
        x
    }
}

#[inline(always)]
fn map_row<S: Simd>(simd: S, phi: impl Phi, from: &[f32], to: &mut [f32]) {
    let (from_vectors, from_tail) = S::as_simd_f32s(from);
    let (to_whole, to_rest) = to.split_at_mut(from_vectors.len() * S::F32_LANES);
    for (to, from) in S::as_mut_simd_f32s(to_whole).0.iter_mut().zip(from_vectors) {
        *to = phi.phi(simd, *from);
    }
    to_rest.fill(0.0);
    if !from_tail.is_empty() {
        to_rest[..from_tail.len()].copy_from_slice(from_tail);
        let last = &mut S::as_mut_simd_f32s(to_rest).0[0];
        *last = phi.phi(simd, *last);
        to_rest[from_tail.len()..].fill(0.0);
    }
}
