//! The sweeps of a backward: their sizes, the matrices in panels, operands, and rows in scratch.

use pulp::Simd;

use crate::isa::outline;
use crate::math::{GROUP, sum_group};
use crate::rule::{Normaliser, Rule};
use crate::scratch::padded;
use crate::shape::{Heads, Row, Shape};
use crate::sweep::linear::{Panel, kind};
use crate::sweep::{Blocking, Factors, Pass, Rows, Sums, Tile, padded_key, whole_blocks};
use crate::tensors::Tensors;

/// The sizes of one head's scratch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(super) key: usize,
    pub(super) value: usize,
    /// The number of tokens of the longest sequence.
    len: usize,
    /// The number of tokens in a tile.
    pub(super) tile: usize,
    /// Columns in a panel.
    panel: usize,
    /// 2 where finished chunks have sums of their own, else 1.
    pub(super) sums: usize,
}

/// What a token of the second pass needs of the first one, of the sums it is added to and of the past.
pub(super) const PER_TOKEN: usize = 4;

impl Sizes {
    pub(crate) fn new(lanes: usize, rule: &Rule, shape: &Shape) -> Self {
        let blocking = Blocking::new(lanes, false);
        let sums = if matches!(rule.normaliser, Normaliser::PerChunk { .. }) { 2 } else { 1 };
        let Shape { key, value, len, .. } = *shape;
        Self { key, value, len, tile: blocking.tile, panel: blocking.panel(lanes), sums }
    }

    /// The multiply-adds of a head.
    pub(crate) fn work(&self) -> usize {
        self.key.saturating_mul(self.value).saturating_mul(self.len).saturating_mul(3)
    }

    /// Elements of a row of K, padded to whole groups.
    pub(super) fn key_row(&self) -> usize {
        padded_key(self.key)
    }

    /// Elements of a row of V, padded to whole groups.
    pub(super) fn value_row(&self) -> usize {
        padded_key(self.value)
    }

    /// Elements of a matrix of K rows of V columns.
    pub(super) fn matrix(&self) -> usize {
        padded(self.key.saturating_mul(self.value_row()))
    }

    /// Elements of a matrix of V rows of K columns.
    pub(super) fn transposed(&self) -> usize {
        padded(self.value.saturating_mul(self.key_row()))
    }

    pub(super) fn operands(&self) -> usize {
        self.key_row().max(self.value_row()).saturating_mul(2 * self.tile)
    }

    /// Elements of scratch.
    pub(crate) fn len(&self) -> usize {
        let rows = KEY_ROWS
            .saturating_mul(self.key_row())
            .saturating_add(VALUE_ROWS.saturating_mul(self.value_row()))
            .saturating_mul(self.tile);
        let matrices = self.matrix().saturating_add(self.transposed()).saturating_mul(self.sums);
        let vectors = self.key_row().saturating_mul(self.sums);
        [self.operands(), rows, vectors, padded(self.len.saturating_mul(PER_TOKEN))]
            .into_iter()
            .fold(matrices, usize::saturating_add)
    }
}

/// The rows of K elements of a token: q, k, phi(q), phi(k), two outputs of sweeps, z.
pub(super) const KEY_ROWS: usize = 7;
/// The rows of V elements of a token: v, the gradient of o, dN of the two sums, an output.
pub(super) const VALUE_ROWS: usize = 5;

/// A matrix in panels: `[columns / panel][rows][panel]`, the last panel narrower.
pub(super) struct Matrix<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) rows: usize,
    /// The number of columns, whole groups.
    width: usize,
    panel: usize,
}

impl<'a> Matrix<'a> {
    /// A matrix of zeros.
    pub(super) fn zeros(data: &'a mut [f32], rows: usize, width: usize, sizes: &Sizes) -> Self {
        data.fill(0.0);
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
    /// Rows of as many elements as the matrix has columns.
    pub(super) v: &'a [f32],
    pub(super) factors: &'a Factors,
    pub(super) len: usize,
}

/// Sweeps a matrix: outputs are written to rows of `o`, except by a sweep that only adds.
#[inline(always)]
pub(super) fn sweep<S: Simd, const B: usize, const N: usize, const KIND: u8>(
    simd: S,
    Swept { operands, v, factors, len }: Swept<'_>,
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
        scores: &[],
        wide_v: None,
        columns: &(0..width),
        use_past: false,
        pass: Pass::Both,
        gate: 0,
        record: None,
        ahead: [0, 0],
    };
    for begin in (0..width).step_by(matrix.panel) {
        let stride = matrix.panel.min(width - begin);
        let data = &mut matrix.data[begin * rows..(begin + stride) * rows];
        let mut columns = Columns { tile: &tile, rows: Rows { data, stride }, begin, column: begin };
        columns.all::<S, B, N, KIND>(simd);
        columns.all::<S, B, 2, KIND>(simd);
        columns.all::<S, B, 1, KIND>(simd);
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

/// The dot product of two rows of whole groups, in sixteen partial sums, which have the same bits for any
/// number of lanes.
#[inline(always)]
pub(super) fn dot<S: Simd>(simd: S, x: &[f32], y: &[f32]) -> f32 {
    let mut group = [0.0; GROUP];
    let sums = S::as_mut_simd_f32s(&mut group).0;
    for (x, y) in x.as_chunks::<GROUP>().0.iter().zip(y.as_chunks::<GROUP>().0) {
        for ((sum, x), y) in sums.iter_mut().zip(S::as_simd_f32s(x).0).zip(S::as_simd_f32s(y).0) {
            *sum = simd.mul_add_e_f32s(*x, *y, *sum);
        }
    }
    sum_group(&group)
}

/// `y += factor x`, for rows of whole groups.
#[inline(always)]
pub(super) fn add_scaled<S: Simd>(simd: S, factor: f32, x: &[f32], y: &mut [f32]) {
    let factor = simd.splat_f32s(factor);
    for (y, x) in S::as_mut_simd_f32s(y).0.iter_mut().zip(S::as_simd_f32s(x).0) {
        *y = simd.mul_add_e_f32s(factor, *x, *y);
    }
}

/// The kinds of sweeps of a backward.
pub(super) const BOTH: u8 = kind::PLAIN;
pub(super) const SUM: u8 = kind::SUM;
pub(super) const READ: u8 = kind::READ;
