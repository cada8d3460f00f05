//! Rows of whole groups in scratch.

use pulp::Simd;

use crate::isa::sum_groups;
use crate::math::GROUP;
use crate::rule::FeatureMap;
use crate::sweep::Blocking;

/// The dot products of the pairs of rows of a tile, each in sixteen partial sums, which have the same bits
/// for any number of lanes.
#[inline(always)]
pub(super) fn tile_sums<'r, S: Simd>(
    simd: S,
    pairs: impl Iterator<Item = (&'r [f32], &'r [f32])>,
) -> [f32; Blocking::MOST] {
    /// The tokens of a tile, in whole groups of sums.
    const MOST: usize = Blocking::MOST.next_multiple_of(GROUP);
    let mut partial = [[0.0; GROUP]; MOST];
    let mut count = 0_usize;
    for (sums, (x, y)) in partial.iter_mut().zip(pairs) {
        count += 1;
        let sums = S::as_mut_simd_f32s(sums).0;
        for (x, y) in x.as_chunks::<GROUP>().0.iter().zip(y.as_chunks::<GROUP>().0) {
            for ((sum, x), y) in sums.iter_mut().zip(S::as_simd_f32s(x).0).zip(S::as_simd_f32s(y).0) {
                *sum = simd.mul_add_e_f32s(*x, *y, *sum);
            }
        }
    }
    let mut sums = [0.0; Blocking::MOST];
    for (sums, partial) in sums.chunks_mut(GROUP).zip(partial.as_chunks().0).take(count.div_ceil(GROUP)) {
        sums.copy_from_slice(&sum_groups(simd, partial)[..sums.len()]);
    }
    sums
}

/// `y += factor x`.
#[inline(always)]
pub(super) fn plus_scaled<S: Simd>(simd: S, factor: f32, x: &[f32], y: &mut [f32]) {
    let factor = simd.splat_f32s(factor);
    for (y, x) in S::as_mut_simd_f32s(y).0.iter_mut().zip(S::as_simd_f32s(x).0) {
        *y = simd.mul_add_e_f32s(factor, *x, *y);
    }
}

/// `x *= factor`.
#[inline(always)]
pub(super) fn times<S: Simd>(simd: S, factor: f32, x: &mut [f32]) {
    let factor = simd.splat_f32s(factor);
    for x in S::as_mut_simd_f32s(x).0 {
        *x = simd.mul_f32s(factor, *x);
    }
}

/// `y = factor x`, in which a product of -0 is +0.
#[inline(always)]
pub(super) fn scaled<S: Simd>(simd: S, factor: f32, x: &[f32], y: &mut [f32]) {
    let (factor, zero) = (simd.splat_f32s(factor), simd.splat_f32s(0.0));
    for (y, x) in S::as_mut_simd_f32s(y).0.iter_mut().zip(S::as_simd_f32s(x).0) {
        *y = simd.mul_add_e_f32s(factor, *x, zero);
    }
}

/// Multiplies a gradient by the derivative of the feature map at x, of which `phi` is the image.
#[inline(always)]
pub(super) fn derive<S: Simd>(simd: S, map: FeatureMap, [x, phi]: [&[f32]; 2], gradient: &mut [f32]) {
    let (zero, one) = (simd.splat_f32s(0.0), simd.splat_f32s(1.0));
    let gradient = S::as_mut_simd_f32s(gradient).0.iter_mut();
    match map {
        // The derivative of exp(x) is phi, which is at most 1 below 0.
        FeatureMap::Elu => {
            for (gradient, phi) in gradient.zip(S::as_simd_f32s(phi).0) {
                *gradient = simd.mul_f32s(*gradient, simd.min_f32s(*phi, one));
            }
        }
        FeatureMap::Relu { .. } => {
            for (gradient, x) in gradient.zip(S::as_simd_f32s(x).0) {
                *gradient = simd.select_f32s(simd.greater_than_f32s(*x, zero), *gradient, zero);
            }
        }
        FeatureMap::Identity => {}
    }
}
