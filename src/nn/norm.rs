//! Layer norm.

use pulp::{Simd, WithSimd};

use crate::element::Elements;
use crate::error::{Error, Result, check_len};
use crate::isa::{Isa, dispatch};
use crate::math::{GROUP, inverse_root, sum_group};
use crate::vector::first_lane;

/// Layer norm over a row, with the biased variance:
///
/// ```text
/// y = (x - mean) gamma rsqrt(var + eps) + beta
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LayerNorm<'w> {
    /// The scale, `[size]`.
    pub gamma: Elements<'w>,
    /// The shift, `[size]`.
    pub beta: Elements<'w>,
    /// The number that is added to the variance.
    pub eps: f32,
    /// Whether `rsqrt(eps)` is used where `var < eps` (Axon 0.8.0).
    pub clip: bool,
}

impl<'w> LayerNorm<'w> {
    pub(super) fn set(&mut self, field: &str, data: Elements<'w>) {
        if field == "gamma" {
            self.gamma = data;
        } else {
            self.beta = data;
        }
    }

    pub(super) fn shape(&self, field: &str) -> [usize; 2] {
        [1, if field == "gamma" { self.gamma.len() } else { self.beta.len() }]
    }

    /// Normalises the rows of x `[rows, size]` into y `[rows, size]`.
    ///
    /// # Errors
    /// gamma and beta of different lengths or empty; x that is not whole rows; y of another length than x.
    pub fn forward(&self, isa: Isa, x: &[f32], y: &mut [f32]) -> Result<()> {
        let size = self.gamma.len();
        if size == 0 {
            return Err(Error::Zero { what: "the layer norm's size" });
        }
        check_len("beta", size, self.beta.len())?;
        check_len("x", x.len().next_multiple_of(size), x.len())?;
        check_len("y", x.len(), y.len())?;
        dispatch(isa, Task { norm: *self, x, y });
        Ok(())
    }
}

/// Elements of gamma and beta that are widened at once, where they are not f32.
const BLOCK: usize = 64;

struct Task<'a> {
    norm: LayerNorm<'a>,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let LayerNorm { gamma, beta, eps, clip } = self.norm;
        let size = gamma.len();
        for (x, y) in self.x.chunks_exact(size).zip(self.y.chunks_exact_mut(size)) {
            let mean = sum(simd, x, 0.0, false) / size as f32;
            let variance = sum(simd, x, mean, true) / size as f32;
            let clipped = clip && variance < eps;
            let scale = first_lane::<S>(inverse_root(
                simd,
                simd.splat_f32s(if clipped { eps } else { variance + eps }),
            ));
            for (at, (y, x)) in y.chunks_mut(BLOCK).zip(x.chunks(BLOCK)).enumerate() {
                let block = at * BLOCK..at * BLOCK + x.len();
                let (space, more) = (&mut [0.0; BLOCK], &mut [0.0; BLOCK]);
                let gamma = gamma.slice(block.clone()).widened(simd, space);
                let beta = beta.slice(block).widened(simd, more);
                // A plain loop suffices, because the dispatch vectorises it.
                for (((y, x), gamma), beta) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
                    *y = (x - mean) * (gamma * scale) + beta;
                }
            }
        }
    }
}

/// The sum of x, or of (x - mean)^2, in the canonical order: sixteen partial sums, then a tree.
#[inline(always)]
fn sum<S: Simd>(simd: S, x: &[f32], mean: f32, squared: bool) -> f32 {
    let (groups, tail) = x.as_chunks::<GROUP>();
    let wide_mean = simd.splat_f32s(mean);
    // A group has at most this many vectors; those that it does not have are not used.
    let mut partial = [simd.splat_f32s(0.0); GROUP];
    // The padding adds zero to the sum.
    let mut padded = [if squared { mean } else { 0.0 }; GROUP];
    padded[..tail.len()].copy_from_slice(tail);
    for group in groups.iter().chain([&padded]) {
        for (partial, x) in partial.iter_mut().zip(S::as_simd_f32s(group).0) {
            if squared {
                let x = simd.sub_f32s(*x, wide_mean);
                *partial = simd.mul_add_e_f32s(x, x, *partial);
            } else {
                *partial = simd.add_f32s(*partial, *x);
            }
        }
    }
    let mut sums = [0.0; GROUP];
    sums.copy_from_slice(&bytemuck::cast_slice::<S::f32s, f32>(&partial)[..GROUP]);
    sum_group(&sums)
}
