//! The recurrence blocked in registers: one pass over the rows of S for a few tokens.
//!
//! ```text
//! for each panel of N vectors of V's columns:
//!     for each block of B tokens:                      v and o of the block stay in registers
//!         for each row i of S:
//!             x = S[i]                                  a row of S is loaded once ...
//!             for each token t of the block:
//!                 x   += phi(k_t)[i] v_t
//!                 o_t += phi(q_t)[i] x
//!             S[i] = x                                  ... and stored once
//!         o_t *= scale / norm_t
//! ```
//!
//! It spends the recurrence's multiply-adds, 2 K V a token, and nothing else. Every element is one chain of fused
//! multiply-adds in a fixed order, over tokens for S and over i for o, so that its bits depend neither on the size of a
//! block or a panel nor on where a sequence is cut.
//!
//! 1. What a sweep multiplies with is prepared before ([`prepare`]), a tile of tokens at a time: nothing here knows a
//!    feature map, a normaliser or a type of element.
//! 2. Operands are laid out as they are read, sixteen rows of S at a time: `[K / 16][k, q][B][16]`. One address then serves
//!    all broadcasts of sixteen rows, and preparing them takes no shuffle.
//! 3. S lies in panels, `[V / panel][K][panel]`, while many tokens are computed, and in the caller's memory, `[K, V]`, for
//!    one. Both are rows at a stride.
//!
//! [`kind::PAST`] adds a second sum over a matrix that is only read, for chunks that are normalised apart.
//! [`kind::COMPENSATED`] sums each block by itself and adds it together with the rounding errors so far.
#![allow(unsafe_code, reason = "rows of S are taken without a check for each of them")]

pub(crate) mod prepare;

use core::ops::Range;

use pulp::{Simd, WithSimd};

use crate::element::Elements;
use crate::isa::{Lines, PREFETCHES, prefetch};
use crate::math::{GROUP, add_compensated};
use crate::scratch::round_up;
use crate::shape::{Row, Shape};
use crate::tensors::Tensors;
use crate::vector::{copy_row, load, vectors_mut};

/// How wide a panel and how long a tile are, by the number of lanes. Bits don't depend on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocking {
    /// Vectors of columns in a panel of S.
    pub(crate) vectors: usize,
    /// Tokens prepared together, a multiple of the blocks that are swept.
    pub(crate) tile: usize,
}

impl Blocking {
    /// A panel is what the largest block holds in registers: its v and o, a row of S and two broadcasts. 3 tokens by 4
    /// vectors take 28 of AVX-512's 32 registers, 3 by 2 all of AVX2's 16. Multiply-adds of a sweep alone, K = V = 64, % of
    /// the peak of a Xeon (Granite Rapids): AVX-512 3 x 4 80, 4 x 2 75, 6 x 2 77, 2 x 4 68, 4 x 4 69; AVX2 3 x 2 92, 4 x 2 85,
    /// 2 x 2 86, 4 x 1 79.
    pub(crate) const fn new(lanes: usize) -> Self {
        match lanes {
            16 => Self { vectors: 4, tile: 24 },
            8 => Self { vectors: 2, tile: 24 },
            4 => Self { vectors: 2, tile: 16 },
            _ => Self { vectors: 2, tile: 8 },
        }
    }

    /// The largest tile there is.
    pub(crate) const MOST: usize = 24;

    /// The largest block there is, on any instruction set and of any kind.
    pub(crate) const MOST_TOKENS: usize = 4;

    /// Columns of a panel.
    pub(crate) const fn panel(self, lanes: usize) -> usize {
        self.vectors * lanes
    }
}

/// K rounded up to whole groups: the length of a row of operands.
pub(crate) const fn padded_key(key: usize) -> usize {
    round_up(key, GROUP)
}

/// Tokens of a tile that fill blocks of B; the others, all where B is 1, are taken one by one.
pub(crate) const fn whole_blocks<const B: usize>(len: usize) -> usize {
    if B > 1 { len / B * B } else { 0 }
}

/// What a sweep does beside the recurrence: a parameter of [`Panel`], so that each kind is compiled by itself.
pub(crate) mod kind {
    /// The recurrence.
    pub(crate) const PLAIN: u8 = 0;
    /// Outputs take a second matrix that is only read.
    pub(crate) const PAST: u8 = 1;
    /// The rounding errors of S are kept beside it.
    pub(crate) const COMPENSATED: u8 = 2;
    /// Any of these, by which matrices there are: one body, for machines on which code is counted in bytes.
    pub(crate) const ANY: u8 = 3;
}

/// By what outputs are multiplied, for each token of a tile.
#[derive(Clone, Copy)]
pub(crate) struct Factors {
    /// scale / norm of the sums that the tile adds to.
    pub(crate) current: [f32; Blocking::MOST],
    /// scale / norm of the past chunks.
    pub(crate) past: [f32; Blocking::MOST],
}

/// Tokens of one head that have been prepared together.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    pub(crate) shape: &'a Shape,
    pub(crate) tensors: &'a Tensors<'a>,
    /// The first token.
    pub(crate) first: Row,
    /// Tokens.
    pub(crate) len: usize,
    /// Operands of whole blocks, then of single tokens.
    pub(crate) operands: &'a [f32],
    pub(crate) factors: &'a Factors,
    /// v in f32, `[len, width]`, where it is of another type.
    pub(crate) wide_v: Option<&'a [f32]>,
    /// This task's columns of V.
    pub(crate) columns: &'a Range<usize>,
    /// Whether finished chunks, or an initial state, lie before.
    pub(crate) use_past: bool,
    /// How many tokens later the rows are that are asked for, and the token at which there are no more.
    pub(crate) ahead: [usize; 2],
}

/// Rows of a matrix `[K, columns]` at a stride, from the first column of a panel on.
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) stride: usize,
}

impl Rows<'_> {
    /// That there are as many rows of so many columns.
    #[inline(always)]
    fn check(&self, rows: usize, columns: usize) {
        assert!(
            columns <= self.stride && (rows - 1) * self.stride + columns <= self.data.len(),
            "rows out of bounds"
        );
    }

    /// N vectors of a row.
    ///
    /// # Safety
    /// [`Rows::check`] has passed for more rows and for as many columns.
    #[inline(always)]
    unsafe fn row<S: Simd, const N: usize>(&mut self, row: usize) -> &mut [S::f32s; N] {
        // SAFETY: in bounds by the caller's promise.
        let row =
            unsafe { self.data.get_unchecked_mut(row * self.stride..).get_unchecked_mut(..N * S::F32_LANES) };
        &mut vectors_mut::<S, N>(row)[0]
    }

    /// The same rows without their first columns.
    #[inline(always)]
    pub(crate) fn skip_columns(&mut self, column: usize) -> Rows<'_> {
        let column = column.min(self.data.len());
        Rows { data: &mut self.data[column..], stride: self.stride }
    }
}

/// The sums of a head, for one panel.
pub(crate) struct Sums<'a> {
    pub(crate) s: Rows<'a>,
    /// S of the finished chunks.
    pub(crate) past: Rows<'a>,
    /// Rounding errors, of `past` where there is one, else of S.
    pub(crate) error: Rows<'a>,
}

impl<'a> From<[Rows<'a>; 3]> for Sums<'a> {
    fn from([s, past, error]: [Rows<'a>; 3]) -> Self {
        Self { s, past, error }
    }
}

/// The columns of v and o that a panel reads and writes, from the tile's first token on.
struct Ends<'a> {
    /// How many columns are left, from the panel's first one on.
    columns: usize,
    v: &'a [f32],
    v_stride: usize,
    /// Where the first row of o begins.
    o: usize,
    o_stride: usize,
    /// Rows of a later token that are asked for: of q, k, v and o those that are this panel's share.
    lines: [Lines; 4],
    shares: usize,
    /// For how many tokens there are such rows.
    ahead: usize,
}

/// One tile and one panel of N vectors, in blocks of B tokens.
pub(crate) struct Panel<'a, const B: usize, const N: usize, const KIND: u8> {
    pub(crate) tile: &'a Tile<'a>,
    /// The panel's first column among this task's.
    pub(crate) column: usize,
    pub(crate) sums: Sums<'a>,
}

impl<const B: usize, const N: usize, const KIND: u8> WithSimd for Panel<'_, B, N, KIND> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (len, rows) = (self.tile.len, self.tile.shape.key);
        let key = padded_key(rows);
        let Sums { s, past, error } = &self.sums;
        s.check(rows, N * S::F32_LANES);
        if self.reads_past() {
            past.check(rows, N * S::F32_LANES);
        }
        if self.is_compensated() {
            error.check(rows, N * S::F32_LANES);
        }
        let ends = self.ends::<S>();
        let whole = whole_blocks::<B>(len);
        let (blocks, singles) = self.tile.operands.split_at(whole * 2 * key);
        if B > 1 {
            for (i, operands) in blocks.chunks_exact(B * 2 * key).enumerate() {
                self.block::<S, B>(simd, i * B, operands, &ends);
            }
        }
        for (i, operands) in singles.chunks_exact(2 * key).take(len - whole).enumerate() {
            self.block::<S, 1>(simd, whole + i, operands, &ends);
        }
    }
}

impl<'a, const B: usize, const N: usize, const KIND: u8> Panel<'a, B, N, KIND> {
    #[inline(always)]
    fn reads_past(&self) -> bool {
        KIND == kind::PAST || KIND == kind::ANY && !self.sums.past.data.is_empty()
    }

    #[inline(always)]
    fn is_compensated(&self) -> bool {
        KIND == kind::COMPENSATED || KIND == kind::ANY && !self.sums.error.data.is_empty()
    }

    /// One block of T tokens.
    #[inline(always)]
    fn block<S: Simd, const T: usize>(&mut self, simd: S, token: usize, operands: &[f32], ends: &Ends<'a>) {
        if PREFETCHES && token + T <= ends.ahead {
            for lines in &ends.lines[..ends.shares] {
                prefetch(*lines, token..token + T);
            }
        }
        let (reads_past, is_compensated) = (self.reads_past(), self.is_compensated());
        let mut v = [[simd.splat_f32s(0.0); N]; T];
        if ends.columns >= N * S::F32_LANES {
            let v_rows = &ends.v[token * ends.v_stride..];
            for t in 0..T {
                v[t] = load::<S, N>(&v_rows[t * ends.v_stride..]);
            }
        } else {
            for t in 0..T {
                let row = &ends.v[(token + t) * ends.v_stride..][..ends.columns];
                copy_row(simd, row, bytemuck::cast_slice_mut(v[t].as_mut_slice()));
            }
        }
        let mut o = [[simd.splat_f32s(0.0); N]; T];
        // What the tokens read from the past.
        let mut before = [[simd.splat_f32s(0.0); N]; T];
        let key = self.tile.shape.key;
        for (group, operands) in operands.chunks_exact(2 * T * GROUP).enumerate() {
            let (k, q) = operands.as_chunks::<GROUP>().0.split_at(T);
            let first = group * GROUP;
            for i in 0..GROUP.min(key - first) {
                // SAFETY: there is a row `first + i` below K, and each matrix that is used was checked for K rows.
                let row = unsafe { self.sums.s.row::<S, N>(first + i) };
                let mut x = *row;
                let mut sum = [simd.splat_f32s(0.0); N];
                let mut past = sum;
                if reads_past {
                    // SAFETY: as above.
                    past = unsafe { *self.sums.past.row::<S, N>(first + i) };
                }
                for t in 0..T {
                    let (k, q) = (simd.splat_f32s(k[t][i]), simd.splat_f32s(q[t][i]));
                    for j in 0..N {
                        x[j] = simd.mul_add_e_f32s(k, v[t][j], x[j]);
                        if is_compensated {
                            sum[j] = simd.mul_add_e_f32s(k, v[t][j], sum[j]);
                        }
                    }
                    for j in 0..N {
                        o[t][j] = simd.mul_add_e_f32s(q, x[j], o[t][j]);
                        if reads_past {
                            before[t][j] = simd.mul_add_e_f32s(q, past[j], before[t][j]);
                        }
                    }
                }
                if is_compensated {
                    // SAFETY: as above.
                    let error = unsafe { self.sums.error.row::<S, N>(first + i) };
                    for j in 0..N {
                        (x[j], error[j]) = add_compensated(simd, row[j], error[j], sum[j]);
                    }
                }
                *row = x;
            }
        }
        let factors = self.tile.factors;
        for t in 0..T {
            // A product and a sum with +0, so that an output that is exactly zero is +0 whatever the factor's sign, with
            // a past and without. S and z begin at +0 and are only added to, so theirs are +0 as well.
            let mut sum = [simd.splat_f32s(0.0); N];
            if reads_past {
                let factor = simd.splat_f32s(factors.past[token + t]);
                for j in 0..N {
                    sum[j] = simd.mul_add_e_f32s(before[t][j], factor, sum[j]);
                }
            }
            let factor = simd.splat_f32s(factors.current[token + t]);
            for j in 0..N {
                o[t][j] = simd.mul_add_e_f32s(o[t][j], factor, sum[j]);
            }
        }
        let columns = ends.columns.min(N * S::F32_LANES);
        let begin = ends.o + token * ends.o_stride;
        for t in 0..T {
            // SAFETY: lengths were checked at the entry; tasks differ in batch, head or columns.
            unsafe { self.tile.tensors.write::<S, N>(simd, begin + t * ends.o_stride, columns, o[t]) };
        }
    }

    /// Where this panel's columns of v and o lie.
    #[inline(always)]
    fn ends<S: Simd>(&self) -> Ends<'a> {
        let Tile { shape, tensors, first, .. } = *self.tile;
        let column = self.tile.columns.start + self.column;
        let (v, v_stride) = match (tensors.v, self.tile.wide_v) {
            (Elements::F32(v), _) => (&v[shape.v_strides.offset(first) + column..], shape.v_strides.token),
            (_, Some(v)) => (&v[self.column..], round_up(self.tile.columns.len(), S::F32_LANES)),
            _ => (&[][..], 0),
        };
        let [ahead, end] = self.tile.ahead;
        let (width, mut shares) = (N * S::F32_LANES, 0);
        let mut lines = [Lines::NONE; 4];
        if PREFETCHES && first.token + ahead < end {
            let panels = self.tile.columns.len().div_ceil(width);
            let row = Row { token: first.token + ahead, ..first };
            for (i, share) in tensors.lines(shape, row).into_iter().enumerate() {
                if i % panels == self.column / width {
                    lines[shares] = share;
                    shares += 1;
                }
            }
        }
        Ends {
            lines,
            shares,
            ahead: end.saturating_sub(first.token + ahead),
            columns: self.tile.columns.len() - self.column,
            v,
            v_stride,
            o: shape.o_strides.offset(first) + column,
            o_stride: shape.o_strides.token,
        }
    }
}

/// The end of a chunk: its sums are added to those of the finished chunks, and become zero.
pub(crate) struct Fold<'a> {
    pub(crate) sums: &'a mut [f32],
    pub(crate) past: &'a mut [f32],
    /// Rounding errors of `past`; empty where they are not kept.
    pub(crate) error: &'a mut [f32],
}

impl WithSimd for Fold<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { sums, past, error } = self;
        if error.is_empty() {
            for (past, sum) in past.iter_mut().zip(&*sums) {
                *past += *sum;
            }
        }
        for ((past, error), sum) in past.iter_mut().zip(error).zip(&*sums) {
            (*past, *error) = add_compensated(pulp::Scalar::new(), *past, *error, *sum);
        }
        sums.fill(0.0);
    }
}
