//! Products of small tiles held in registers.
//!
//! ```text
//! mul_ab    acc[i][j] += sum_l a[i][l] b[l][j]      rows of a; b packed in columns of NV vectors
//! ```
//!
//! 1. The accumulator is MR rows by NV vectors, as large as the register file allows ([`for_row_tiles`]);
//!    each step loads NV vectors and broadcasts MR scalars for MR * NV multiply-adds.
//! 2. b is packed once, padded to whole vectors, so that no inner loop has a tail.
//! 3. Every element is summed in the order of l whatever the tile's shape: the tile that a row is in never
//!    changes the row's bits.

use pulp::Simd;

/// Vectors side by side in a full tile.
pub(super) const NV: usize = 2;

/// Columns in a full panel.
pub(super) const fn panel_width(lanes: usize) -> usize {
    NV * lanes
}

/// The accumulator of a tile: MR rows of N vectors.
pub(super) type Acc<S, const MR: usize, const N: usize> = [[<S as Simd>::f32s; N]; MR];

#[inline(always)]
pub(super) fn zero<S: Simd, const MR: usize, const N: usize>(simd: S) -> Acc<S, MR, N> {
    [[simd.splat_f32s(0.0); N]; MR]
}

/// `acc[i] += sum_l a[i * stride + l] * b[l]` for all rows l of b.
#[inline(always)]
pub(super) fn mul_ab<S: Simd, const MR: usize, const N: usize>(
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

/// Cuts slices to one length, so that the loop over them needs no check.
#[inline(always)]
pub(super) fn cut<T, const N: usize>(mut rows: [&[T]; N], len: usize) -> [&[T]; N] {
    for row in &mut rows {
        *row = &row[..len];
    }
    rows
}

/// Work on MR rows from `row` on. It is a trait because closures cannot be generic over a const.
pub(super) trait RowTile {
    fn run<const MR: usize>(&mut self, row: usize);
}

/// Cuts `rows` into tiles: as tall as the register file allows, then the remaining rows in powers of two.
#[inline(always)]
pub(super) fn for_row_tiles<S: Simd>(rows: usize, op: &mut impl RowTile) {
    let mut row = 0;
    if S::REGISTER_COUNT >= 32 {
        // 8 x 2 accumulators hide the latency (4 cycles, 2 a cycle) twice over and leave registers for b.
        while rows - row >= 8 {
            op.run::<8>(row);
            row += 8;
        }
    } else {
        // 6 x 2 accumulators, 2 vectors of b and 1 broadcast use 15 of 16 registers.
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
