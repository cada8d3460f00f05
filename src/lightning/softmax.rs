//! Sums over a row, and the softmax of a token's scores. Both use sixteen partial sums by the place in the
//! row, which are added in a fixed tree, so that the bits are the same for any number of lanes.

use pulp::{Simd, WithSimd};

use crate::math::{GROUP, exp_nonpositive, sum_group};

/// Scaled scores that are further below the largest one than this have no weight: from about there on, exp is
/// no normal f32.
const LEAST: f32 = -87.0;

/// `row[s] = exp(scale (row[s] - max)) / sum`, in place. A row that has a NaN, or whose largest score is
/// infinite, becomes NaN.
pub(super) struct Softmax<'a> {
    /// Scores in whole groups; those beyond `len` may be anything, and have no weight.
    pub(super) row: &'a mut [f32],
    /// The number of scores, at least 1.
    pub(super) len: usize,
    /// The factor of the scores, above 0.
    pub(super) scale: f32,
}

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { row, len, scale } = self;
        row[len..].fill(f32::NEG_INFINITY);
        // Whether a NaN is kept or dropped here makes no difference: its own weight is NaN, and so is the
        // sum.
        let mut most = simd.splat_f32s(f32::NEG_INFINITY);
        for x in S::as_simd_f32s(row).0 {
            most = simd.max_f32s(most, *x);
        }
        let lanes: &[f32] = bytemuck::cast_slice(core::slice::from_ref(&most));
        let mut largest = f32::NEG_INFINITY;
        for x in lanes {
            largest = if *x > largest { *x } else { largest };
        }
        let (zero, largest, scale) = (simd.splat_f32s(0.0), simd.splat_f32s(largest), simd.splat_f32s(scale));
        for x in S::as_mut_simd_f32s(row).0 {
            let below = simd.mul_f32s(simd.sub_f32s(*x, largest), scale);
            let exp = exp_nonpositive(simd, below);
            let exp = simd.select_f32s(simd.less_than_f32s(below, simd.splat_f32s(LEAST)), zero, exp);
            // The comparison fails for NaN.
            *x = simd.select_f32s(simd.less_than_or_equal_f32s(below, zero), exp, below);
        }
        row[len..].fill(0.0);
        // The division comes before values are weighed, and not after, because the average of large values
        // must not overflow.
        let share = simd.splat_f32s(1.0 / sum(simd, row));
        for x in S::as_mut_simd_f32s(row).0 {
            *x = simd.mul_f32s(*x, share);
        }
    }
}

/// The sum of whole groups.
#[inline(always)]
pub(super) fn sum<S: Simd>(simd: S, row: &[f32]) -> f32 {
    // A group has at most this many vectors; the others are never used.
    let mut partial = [simd.splat_f32s(0.0); GROUP];
    for group in row.as_chunks::<GROUP>().0 {
        for (partial, x) in partial.iter_mut().zip(S::as_simd_f32s(group).0) {
            *partial = simd.add_f32s(*partial, *x);
        }
    }
    total::<S>(&partial)
}

/// The sum of the products of two rows of the same number of whole groups.
#[inline(always)]
pub(super) fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let mut partial = [simd.splat_f32s(0.0); GROUP];
    for (a, b) in a.as_chunks::<GROUP>().0.iter().zip(b.as_chunks::<GROUP>().0) {
        let vectors = S::as_simd_f32s(a).0.iter().zip(S::as_simd_f32s(b).0);
        for (partial, (a, b)) in partial.iter_mut().zip(vectors) {
            *partial = simd.mul_add_e_f32s(*a, *b, *partial);
        }
    }
    total::<S>(&partial)
}

/// The sum of sixteen partial sums.
#[inline(always)]
fn total<S: Simd>(partial: &[S::f32s; GROUP]) -> f32 {
    let mut group = [0.0; GROUP];
    group.copy_from_slice(&bytemuck::cast_slice::<S::f32s, f32>(partial)[..GROUP]);
    sum_group(&group)
}
