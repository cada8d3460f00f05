//! Rows times a matrix: scores, weighted values, what is read from S, and what a chunk adds to S are all this
//! product.
//!
//! ```text
//! y_t[j] = sum_i x_t[i] M[i][j]
//! ```
//!
//! Every element is one chain of fused multiply-adds over i, in order and from zero, so that its bits depend
//! neither on how many rows are computed together nor on the width of a vector. Rows of M and y are whole
//! groups, so that nothing has a tail.

use core::ops::Range;

use pulp::{Simd, WithSimd};

use super::head::BLOCK;
use crate::vector::{load, store};

/// Rows at a stride.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) data: &'a [f32],
    pub(super) stride: usize,
}

/// What is done with a product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Epilogue {
    /// The product replaces y.
    Store,
    /// The chains of the product begin with y, which is the product of the terms before.
    Resume,
    /// The product is added to y.
    Add,
}

/// Some rows of a product.
pub(super) struct Product<'a> {
    /// The rows x_t.
    pub(super) x: Rows<'a>,
    /// The rows of M.
    pub(super) matrix: Rows<'a>,
    /// The indices i of the terms of the sum.
    pub(super) terms: Range<usize>,
    /// The number of columns of M and y, a multiple of a group.
    pub(super) columns: usize,
    /// The number of rows of x and y.
    pub(super) rows: usize,
    /// The rows y_t.
    pub(super) y: &'a mut [f32],
    /// Elements from one row of y to the next.
    pub(super) y_stride: usize,
    pub(super) epilogue: Epilogue,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let whole = self.rows / BLOCK * BLOCK;
        for row in (0..whole).step_by(BLOCK) {
            let mut column = 0;
            if S::REGISTER_COUNT >= 32 {
                column = self.panels::<S, BLOCK, 4>(simd, row, column);
            }
            column = self.panels::<S, BLOCK, 2>(simd, row, column);
            self.panels::<S, BLOCK, 1>(simd, row, column);
        }
        // The chains of one row hide each other's latency only where there are many of them.
        for row in whole..self.rows {
            let column = self.panels::<S, 1, 8>(simd, row, 0);
            let column = self.panels::<S, 1, 2>(simd, row, column);
            self.panels::<S, 1, 1>(simd, row, column);
        }
    }
}

impl Product<'_> {
    /// Computes R rows, N vectors of columns at a time, as long as that many are left; returns the first
    /// column that is left.
    #[inline(always)]
    fn panels<S: Simd, const R: usize, const N: usize>(
        &mut self,
        simd: S,
        row: usize,
        mut column: usize,
    ) -> usize {
        let width = N * S::F32_LANES;
        let Rows { data, stride } = self.matrix;
        let matrix = &data[self.terms.start * stride..self.terms.end * stride];
        let mut x: [&[f32]; R] = [&[]; R];
        for t in 0..R {
            x[t] = &self.x.data[(row + t) * self.x.stride..][self.terms.clone()];
        }
        while self.columns - column >= width {
            let mut sums = [[simd.splat_f32s(0.0); N]; R];
            if self.epilogue == Epilogue::Resume {
                for t in 0..R {
                    sums[t] = load::<S, N>(&self.y[(row + t) * self.y_stride + column..]);
                }
            }
            for (i, matrix) in matrix.chunks_exact(stride).enumerate() {
                let matrix = load::<S, N>(&matrix[column..]);
                for t in 0..R {
                    let x = simd.splat_f32s(x[t][i]);
                    for j in 0..N {
                        sums[t][j] = simd.mul_add_e_f32s(x, matrix[j], sums[t][j]);
                    }
                }
            }
            for t in 0..R {
                let y = &mut self.y[(row + t) * self.y_stride + column..];
                if self.epilogue == Epilogue::Add {
                    let before = load::<S, N>(y);
                    for j in 0..N {
                        sums[t][j] = simd.add_f32s(before[j], sums[t][j]);
                    }
                }
                store::<S, N>(sums[t], y);
            }
            column += width;
        }
        column
    }
}
