//! Feature maps phi, applied to q and k while their rows are packed.

use pulp::Simd;

use crate::element::{Elements, widen};
use crate::error::{Error, Result};
use crate::math::exp_nonpositive;
use crate::tile::copy_row;

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

    /// Writes phi of rows into rows of `to`, a whole number of vectors each, and zeros where these are longer.
    #[inline(always)]
    pub(crate) fn pack<'a, S: Simd>(
        self,
        simd: S,
        rows: impl Iterator<Item = Elements<'a>>,
        to: &'a mut [f32],
        stride: usize,
    ) {
        let rows = rows.zip(to.chunks_exact_mut(stride));
        match self {
            FeatureMap::Elu => map_rows(simd, Elu, rows),
            FeatureMap::Relu { eps } => map_rows(simd, Relu { eps }, rows),
            FeatureMap::Identity => map_rows(simd, Identity, rows),
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
fn map_rows<'a, S: Simd>(simd: S, phi: impl Phi, rows: impl Iterator<Item = (Elements<'a>, &'a mut [f32])>) {
    for (from, to) in rows {
        map_row(simd, &phi, from, to);
    }
}

#[inline(always)]
fn map_row<S: Simd>(simd: S, phi: &impl Phi, from: Elements<'_>, to: &mut [f32]) {
    let len = from.len();
    match from {
        // In one pass.
        Elements::F32(from) => {
            let (from, tail) = S::as_simd_f32s(from);
            let (vectors, rest) = to.split_at_mut(from.len() * S::F32_LANES);
            for (to, from) in S::as_mut_simd_f32s(vectors).0.iter_mut().zip(from) {
                *to = phi.phi(simd, *from);
            }
            if let Some(last) = S::as_mut_simd_f32s(rest).0.first_mut()
                && !tail.is_empty()
            {
                copy_row(simd, tail, bytemuck::cast_slice_mut(core::slice::from_mut(last)));
                *last = phi.phi(simd, *last);
            }
        }
        // Widened first: a row is in L1, and a type's own loop is simpler than vectors of it.
        from => {
            widen(simd, from, to);
            for x in S::as_mut_simd_f32s(to).0 {
                *x = phi.phi(simd, *x);
            }
        }
    }
    to[len..].fill(0.0);
}
