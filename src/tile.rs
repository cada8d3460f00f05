//! Products of small tiles held in registers: all the arithmetic that counts is here.
//!
//! ```text
//! mul_ab    acc[i][j] += sum_l a[i][l] b[l][j]      rows of a; b packed in columns of NV vectors
//! mul_atb   acc[i][j] += sum_l a[l][i] b[l][j]      the same with a transposed: a[l] is contiguous in i
//! mul_abt   acc[i][j]  = sum_l a[i][l] b[j][l]      dot products along contiguous rows, for short outputs
//! ```
//!
//! Tricks:
//! 1. The accumulator is MR rows by NV vectors, as large as the register file allows ([`for_row_tiles`]); each step
//!    loads NV vectors and broadcasts MR scalars for MR * NV multiply-adds.
//! 2. b is packed once, padded to whole vectors, so that no inner loop has a tail.
//! 3. Every element is summed in the order of l whatever the tile's shape: which tile a row falls into never
//!    changes its bits.
//!
//! Price: shapes are const generics, so each caller is compiled for four heights and two widths.

use pulp::Simd;

/// Vectors side by side in a full tile.
pub(crate) const NV: usize = 2;

/// Columns in a full panel.
pub(crate) const fn panel_width(lanes: usize) -> usize {
    NV * lanes
}

/// MR rows of N vectors.
pub(crate) type Acc<S, const MR: usize, const N: usize> = [[<S as Simd>::f32s; N]; MR];

#[inline(always)]
pub(crate) fn zero<S: Simd, const MR: usize, const N: usize>(simd: S) -> Acc<S, MR, N> {
    [[simd.splat_f32s(0.0); N]; MR]
}

/// `acc[i] += sum_l a[i * stride + l] * b[l]` for all rows l of b.
#[inline(always)]
pub(crate) fn mul_ab<S: Simd, const MR: usize, const N: usize>(
    simd: S,
    mut acc: Acc<S, MR, N>,
    a: &[f32],
    stride: usize,
    b: &[[S::f32s; N]],
) -> Acc<S, MR, N> {
    let len = b.len();
    let mut rows: [&[f32]; MR] = [&[]; MR];
    for i in 0..MR {
        rows[i] = &a[i * stride..];
    }
    let rows = cut(rows, len);
    for l in 0..len {
        let b = b[l];
        for i in 0..MR {
            let x = simd.splat_f32s(rows[i][l]);
            for j in 0..N {
                acc[i][j] = simd.mul_add_e_f32s(x, b[j], acc[i][j]);
            }
        }
    }
    acc
}

/// `acc[i] += sum_l a[l * stride + i] * b[l]` for all rows l of b.
#[inline(always)]
pub(crate) fn mul_atb<S: Simd, const MR: usize, const N: usize>(
    simd: S,
    mut acc: Acc<S, MR, N>,
    a: &[f32],
    stride: usize,
    b: &[[S::f32s; N]],
) -> Acc<S, MR, N> {
    for (a, &b) in a.chunks(stride).zip(b) {
        let a = &a[..MR];
        for i in 0..MR {
            let x = simd.splat_f32s(a[i]);
            for j in 0..N {
                acc[i][j] = simd.mul_add_e_f32s(x, b[j], acc[i][j]);
            }
        }
    }
    acc
}

/// The causal triangle at the end of a row tile: row i takes the rows 0 ..= i of b only. A row of b beyond it
/// is never touched, not even multiplied by zero: it may be NaN.
#[inline(always)]
pub(crate) fn mul_ab_tril<S: Simd, const MR: usize, const N: usize>(
    simd: S,
    mut acc: Acc<S, MR, N>,
    a: &[f32],
    stride: usize,
    b: &[[S::f32s; N]],
) -> Acc<S, MR, N> {
    let b = &b[..MR];
    for l in 0..MR {
        for i in l..MR {
            let x = simd.splat_f32s(a[i * stride + l]);
            for j in 0..N {
                acc[i][j] = simd.mul_add_e_f32s(x, b[l][j], acc[i][j]);
            }
        }
    }
    acc
}

/// `out[i][j] = a[i] . b[j]` over whole vectors: one accumulator for each pair, lanes joined at the end.
#[inline(always)]
pub(crate) fn mul_abt<S: Simd, const M: usize>(
    simd: S,
    a: [&[S::f32s]; M],
    b: [&[S::f32s]; 4],
) -> [[f32; 4]; M] {
    let len = a[0].len();
    let (a, b) = (cut(a, len), cut(b, len));
    let mut acc = zero::<S, M, 4>(simd);
    for l in 0..len {
        for i in 0..M {
            for j in 0..4 {
                acc[i][j] = simd.mul_add_e_f32s(a[i][l], b[j][l], acc[i][j]);
            }
        }
    }
    let mut out = [[0.0; 4]; M];
    for i in 0..M {
        out[i] = sum_lanes(simd, acc[i]);
    }
    out
}

/// The sum of each vector's lanes: four together, for half the shuffles.
#[inline(always)]
fn sum_lanes<S: Simd>(simd: S, acc: [S::f32s; 4]) -> [f32; 4] {
    let mut out = [0.0; 4];
    if S::F32_LANES < 4 {
        for (out, acc) in out.iter_mut().zip(acc) {
            *out = simd.reduce_sum_f32s(acc);
        }
        return out;
    }
    // Interleaved, lane l of each vector is of the sum l % 4, however the elements of one are ordered: a test has it.
    let [a, b, c, d] = simd.interleave_shfl_f32s(acc);
    let sum = [simd.add_f32s(simd.add_f32s(a, c), simd.add_f32s(b, d))];
    for lanes in bytemuck::cast_slice::<S::f32s, f32>(&sum).as_chunks::<4>().0 {
        for (out, lane) in out.iter_mut().zip(lanes) {
            *out += lane;
        }
    }
    out
}

/// Slices of one length, so that the loop over them needs no check.
#[inline(always)]
pub(crate) fn cut<T, const N: usize>(mut rows: [&[T]; N], len: usize) -> [&[T]; N] {
    for row in &mut rows {
        *row = &row[..len];
    }
    rows
}

/// Work on MR rows from `row` on; a trait because closures can't be generic over a const.
pub(crate) trait RowTile {
    fn run<const MR: usize>(&mut self, row: usize);
}

/// Cuts `rows` into tiles: as tall as the register file allows, then what is left in powers of two.
#[inline(always)]
pub(crate) fn for_row_tiles<S: Simd>(rows: usize, op: &mut impl RowTile) {
    let mut row = 0;
    if S::REGISTER_COUNT >= 32 {
        // 8 x 2 accumulators hide the latency (4 cycles, 2 a cycle) twice over and leave registers for b.
        while rows - row >= 8 {
            op.run::<8>(row);
            row += 8;
        }
    } else {
        // 6 x 2 accumulators, 2 vectors of b, 1 broadcast, of 16 registers.
        while rows - row >= 6 {
            op.run::<6>(row);
            row += 6;
        }
    }
    if rows - row >= 4 {
        op.run::<4>(row);
        row += 4;
    }
    if rows - row >= 2 {
        op.run::<2>(row);
        row += 2;
    }
    if rows - row >= 1 {
        op.run::<1>(row);
    }
}

/// A part of a row as groups of N vectors; what is left over is not needed.
#[inline(always)]
pub(crate) fn vectors<S: Simd, const N: usize>(row: &[f32]) -> &[[S::f32s; N]] {
    S::as_simd_f32s(row).0.as_chunks().0
}

/// The same to be written.
#[inline(always)]
pub(crate) fn vectors_mut<S: Simd, const N: usize>(row: &mut [f32]) -> &mut [[S::f32s; N]] {
    S::as_mut_simd_f32s(row).0.as_chunks_mut().0
}

/// Copies a row and pads it with zeros. Whole vectors by vectors: rows are short, a call to memcpy is not.
#[inline(always)]
pub(crate) fn copy_row<S: Simd>(_: S, from: &[f32], to: &mut [f32]) {
    let (from_vectors, from_tail) = S::as_simd_f32s(from);
    let (to_whole, to_rest) = to.split_at_mut(from_vectors.len() * S::F32_LANES);
    for (to, from) in S::as_mut_simd_f32s(to_whole).0.iter_mut().zip(from_vectors) {
        *to = *from;
    }
    for (i, to) in to_rest.iter_mut().enumerate() {
        *to = if i < from_tail.len() { from_tail[i] } else { 0.0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, dispatch};
    use pulp::WithSimd;

    struct SumLanes;

    impl WithSimd for SumLanes {
        type Output = [f32; 4];
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> [f32; 4] {
            // Lane l of vector i holds 100^i (l + 1).
            let mut acc = [simd.splat_f32s(0.0); 4];
            for (lanes, scale) in acc.iter_mut().zip([1.0, 1e2, 1e4, 1e6]) {
                let lanes = bytemuck::cast_slice_mut::<S::f32s, f32>(core::slice::from_mut(lanes));
                for (l, lane) in lanes.iter_mut().enumerate() {
                    *lane = scale * (l + 1) as f32;
                }
            }
            sum_lanes(simd, acc)
        }
    }

    #[test]
    fn lanes_are_summed_by_vector() {
        for isa in Isa::available() {
            let sum = (isa.lanes() * (isa.lanes() + 1) / 2) as f32;
            assert_eq!(dispatch(isa, SumLanes), [sum, 1e2 * sum, 1e4 * sum, 1e6 * sum], "{isa}");
        }
    }
}
