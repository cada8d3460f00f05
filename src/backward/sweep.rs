//! The sweeps of a backward: matrices in panels, and operands.

use pulp::Simd;

use super::sizes::Sizes;
use crate::isa::outline;
use crate::math::GROUP;
use crate::shape::{Heads, Row, Shape};
use crate::sweep::decays::lay_out;
use crate::sweep::gated::GatedPanel;
use crate::sweep::linear::{Panel, kind};
use crate::sweep::{Ahead, Blocking, Factors, Pass, Rows, Scores, Sums, Tile, padded_key, whole_blocks};
use crate::tensors::Tensors;

/// A matrix in panels: `[columns / panel][rows][panel]`, the last panel narrower.
pub(super) struct Matrix<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) rows: usize,
    /// The number of columns, whole groups.
    width: usize,
    panel: usize,
}

impl<'a> Matrix<'a> {
    pub(super) fn new(data: &'a mut [f32], rows: usize, width: usize, sizes: &Sizes) -> Self {
        Self { data, rows, width, panel: sizes.panel }
    }

    /// The index of an element.
    fn at(&self, row: usize, column: usize) -> usize {
        let begin = column / self.panel * self.panel;
        begin * self.rows + row * self.panel.min(self.width - begin) + column - begin
    }

    /// Replaces the matrix by one whose element is `of(row, column)`.
    pub(super) fn fill(&mut self, columns: usize, of: impl Fn(usize, usize) -> f32) {
        for row in 0..self.rows {
            for column in 0..columns {
                let at = self.at(row, column);
                self.data[at] = of(row, column);
            }
        }
    }

    pub(super) fn get(&self, row: usize, column: usize) -> f32 {
        self.data[self.at(row, column)]
    }
}

/// Lays rows out as the operands of a sweep in blocks of B tokens, see [`crate::sweep::linear`].
#[inline(always)]
pub(super) fn interleave<const B: usize>(to: &mut [f32], [k, q]: [&[f32]; 2], row: usize, len: usize) {
    let whole = whole_blocks::<B>(len);
    for token in (0..whole).step_by(B) {
        block::<B>(&mut to[2 * token * row..], [k, q], row, token);
    }
    for token in whole..len {
        block::<1>(&mut to[2 * token * row..], [k, q], row, token);
    }
}

#[inline(always)]
fn block<const B: usize>(to: &mut [f32], operands: [&[f32]; 2], row: usize, token: usize) {
    let to = to.as_chunks_mut::<GROUP>().0;
    for (i, rows) in operands.into_iter().enumerate() {
        for t in 0..B {
            let from = rows[(token + t) * row..][..row].as_chunks::<GROUP>().0;
            for (group, from) in from.iter().enumerate() {
                to[(2 * group + i) * B + t] = *from;
            }
        }
    }
}

/// The tokens of one sweep.
#[derive(Clone, Copy)]
pub(super) struct Swept<'a> {
    pub(super) operands: &'a [f32],
    /// The coefficients between tokens with a scalar gate.
    pub(super) scores: &'a [Scores],
    /// Rows of as many elements as the matrix has columns.
    pub(super) v: &'a [f32],
    pub(super) factors: &'a Factors,
    pub(super) len: usize,
    pub(super) ahead: Ahead,
}

/// Sweeps a matrix: outputs are written to rows of `o`, except by a sweep that only adds.
#[inline(always)]
pub(super) fn sweep<S: Simd, const B: usize, const N: usize, const KIND: u8>(
    simd: S,
    Swept { operands, scores, v, factors, len, ahead }: Swept<'_>,
    matrix: &mut Matrix<'_>,
    o: &mut [f32],
) {
    let (rows, width) = (matrix.rows, matrix.width);
    let none: &[f32] = &[];
    let tile = Tile {
        shape: &Shape::new(1, len, 1, rows, width),
        tensors: &Tensors::new(none, none, v, o),
        first: Row { batch: 0, token: 0, heads: Heads::equal(1).of(0, 0) },
        len,
        operands,
        factors,
        scores,
        wide_v: None,
        columns: &(0..width),
        use_past: false,
        pass: Pass::Both,
        record: None,
        ahead,
    };
    for begin in (0..width).step_by(matrix.panel) {
        let stride = matrix.panel.min(width - begin);
        let data = &mut matrix.data[begin * rows..(begin + stride) * rows];
        let mut columns = Columns { tile: &tile, rows: Rows { data, stride }, begin, column: begin };
        if scores.is_empty() {
            columns.all::<S, B, N, KIND>(simd);
            columns.all::<S, B, 2, KIND>(simd);
            columns.all::<S, B, 1, KIND>(simd);
        } else {
            columns.gated(simd);
        }
    }
}

/// Rows of a tile that are laid out as operands, and swept.
pub(super) struct Operands<'a> {
    pub(super) to: &'a mut [f32],
    pub(super) k: &'a mut [f32],
    pub(super) q: &'a mut [f32],
    /// The decays of the tokens, from the sums of the token before; `None` without a gate.
    pub(super) decays: Option<&'a [f32; GROUP]>,
}

/// Lays operands out and sweeps a matrix, of which `swept` has no operands yet.
#[inline(always)]
pub(super) fn lay_out_and_sweep<S: Simd, const B: usize, const N: usize>(
    simd: S,
    operands: Operands<'_>,
    swept: Swept<'_>,
    matrix: &mut Matrix<'_>,
    o: &mut [f32],
) {
    let Operands { to, k, q, decays } = operands;
    let row = padded_key(matrix.rows);
    match decays {
        None => {
            interleave::<B>(to, [k, q], row, swept.len);
            sweep::<S, B, N, BOTH>(simd, Swept { operands: to, ..swept }, matrix, o);
        }
        Some(decays) => {
            let scores = &lay_out(simd, to, [k, q], [row, swept.len], decays);
            sweep::<S, B, N, BOTH>(simd, Swept { operands: to, scores, ..swept }, matrix, o);
        }
    }
}

/// The columns of a panel that are still to be swept.
struct Columns<'a> {
    tile: &'a Tile<'a>,
    rows: Rows<'a>,
    begin: usize,
    column: usize,
}

impl Columns<'_> {
    /// Sweeps all columns with a scalar gate, in blocks of two tokens.
    #[inline(always)]
    fn gated<S: Simd>(&mut self, simd: S) {
        if matches!(S::F32_LANES, 4 | 16) {
            self.pairs::<S, 4>(simd);
        }
        self.pairs::<S, 2>(simd);
        self.pairs::<S, 1>(simd);
    }

    #[inline(always)]
    fn pairs<S: Simd, const N: usize>(&mut self, simd: S) {
        while self.begin + self.rows.stride - self.column >= N * S::F32_LANES {
            let s = self.rows.skip_columns(self.column - self.begin);
            outline(simd, GatedPanel::<2, N, false> { tile: self.tile, column: self.column, s });
            self.column += N * S::F32_LANES;
        }
    }

    /// Sweeps N vectors at a time, as long as that many are left.
    #[inline(always)]
    fn all<S: Simd, const B: usize, const N: usize, const KIND: u8>(&mut self, simd: S) {
        while self.begin + self.rows.stride - self.column >= N * S::F32_LANES {
            let none = || Rows { data: &mut [], stride: 1 };
            let s = self.rows.skip_columns(self.column - self.begin);
            let sums = Sums { s, past: none(), error: none() };
            outline(simd, Panel::<B, N, KIND> { tile: self.tile, column: self.column, sums });
            self.column += N * S::F32_LANES;
        }
    }
}

/// The kinds of sweeps of a backward.
pub(super) const BOTH: u8 = kind::PLAIN;
pub(super) const SUM: u8 = kind::SUM;
pub(super) const READ: u8 = kind::READ;

/// Factors of outputs that are left as they are.
pub(super) const ONES: Factors = Factors { current: [1.0; Blocking::MOST], past: [1.0; Blocking::MOST] };
