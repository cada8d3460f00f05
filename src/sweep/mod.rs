//! The recurrence blocked in registers: one pass over the rows of S for a few tokens.
//!
//! ```text
//! for each panel of N vectors of V's columns:
//!     for each block of B tokens:                      v (or u) and o of the block stay in registers
//!         for each row i of S:                         a row of S is loaded once ...
//!             ... the tokens' products ...
//!             S[i] = x                                 ... and stored once
//! ```
//!
//! [`linear`] contains the loop of the linear rule, [`gated`] that of the rules with decays or a delta, and
//! [`decode`] that of the delta rule for one token.
//!
//! 1. The operands of a sweep are prepared before it, a tile of tokens at a time, in [`prepare`] or, for
//!    blocks with decays, in [`decays`]. The loops depend on no feature map, gate's map, normaliser or type
//!    of element.
//! 2. Operands are laid out in the order in which they are read, sixteen rows of S at a time. One address
//!    then serves all broadcasts of sixteen rows, and their preparation takes no shuffle.
//! 3. S is kept in panels, `[V / panel][K][panel]`, while many tokens are computed, and in the caller's
//!    memory, `[K, V]`, for one token. Both are rows at a stride.
#![allow(unsafe_code, reason = "rows of S are taken without a check for each of them")]

pub(crate) mod decays;
pub(crate) mod decode;
pub(crate) mod draft;
pub(crate) mod gated;
mod gates;
pub(crate) mod linear;
pub(crate) mod prepare;

use core::ops::Range;

use pulp::{Simd, WithSimd};

use self::draft::Record;
use crate::element::Elements;
use crate::isa::{LINE, Lines, PREFETCHES, outline, prefetch};
use crate::math::{GROUP, add_compensated};
use crate::scratch::round_up;
use crate::shape::{Row, Shape};
use crate::tensors::Tensors;
use crate::vector::{copy_row, load, vectors_mut};

/// The width of a panel and the length of a tile, by the number of lanes. Bits don't depend on them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocking {
    /// The number of vectors of columns in a panel of S.
    pub(crate) vectors: usize,
    /// The number of tokens prepared together, a multiple of the blocks that are swept.
    pub(crate) tile: usize,
}

impl Blocking {
    /// The blocking of the linear rule. A panel is as wide as the largest block can hold in registers: its v
    /// and o, a row of S and two broadcasts. 3 tokens by 4 vectors take 30 of AVX-512's 32 registers, 3 by 2
    /// all of AVX2's 16. The multiply-adds of a sweep alone, with K = V = 64, reach these percentages of the
    /// peak of a Xeon (Granite Rapids): AVX-512 3 x 4 80, 4 x 2 75, 6 x 2 77, 2 x 4 68, 4 x 4 69; AVX2 3 x 2
    /// 92, 4 x 2 85, 2 x 2 86, 4 x 1 79.
    const fn linear(lanes: usize) -> Self {
        match lanes {
            16 => Self { vectors: 4, tile: 24 },
            8 => Self { vectors: 2, tile: 24 },
            4 => Self { vectors: 2, tile: 16 },
            _ => Self { vectors: 2, tile: 8 },
        }
    }

    /// The blocking of blocks of two tokens with decays or a delta, which hold u, o and y, a row of S and a
    /// broadcast in registers. 2 tokens by 4 vectors take 29 of 32 registers, 2 by 2 take 15 of AVX2's 16.
    const fn gated(lanes: usize) -> Self {
        match lanes {
            16 => Self { vectors: 4, tile: 16 },
            8 => Self { vectors: 2, tile: 16 },
            4 => Self { vectors: 4, tile: 16 },
            _ => Self { vectors: 2, tile: 8 },
        }
    }

    pub(crate) const fn new(lanes: usize, in_blocks: bool) -> Self {
        if in_blocks { Self::gated(lanes) } else { Self::linear(lanes) }
    }

    /// The largest number of tokens in a tile.
    pub(crate) const MOST: usize = 24;

    /// The number of columns in a panel.
    pub(crate) const fn panel(self, lanes: usize) -> usize {
        self.vectors * lanes
    }
}

/// K rounded up to whole groups: the length of a row of operands.
pub(crate) const fn padded_key(key: usize) -> usize {
    round_up(key, GROUP)
}

/// The number of tokens of a tile that fill blocks of B; the others (all where B is 1) are computed one by
/// one.
pub(crate) const fn whole_blocks<const B: usize>(len: usize) -> usize {
    if B > 1 { len / B * B } else { 0 }
}

/// The factors of the outputs, for each token of a tile.
#[derive(Clone, Copy)]
pub(crate) struct Factors {
    /// scale / norm of the sums to which the tile is added.
    pub(crate) current: [f32; Blocking::MOST],
    /// scale / norm of the past chunks.
    pub(crate) past: [f32; Blocking::MOST],
}

/// The coefficients between the tokens of a block of one or two. A block of one token uses only the first
/// elements.
#[derive(Clone, Copy)]
pub(crate) struct Scores {
    /// The dot products of the tokens, from which the other fields are computed.
    pub(crate) products: [f32; 8],
    /// `p[t][s] = q_t . (k_s decayed from s to t)` for `s <= t`: the coefficient of u_s in output t.
    pub(crate) p: [[f32; 2]; 2],
    /// The coefficient of u_0 in u_1, before the factor `u`, for the delta rule.
    pub(crate) m: f32,
    /// The coefficient of `y_t = k'_t . S` in u_t, before the factor `u`, for the delta rule: -1, or
    /// `-1 / |k_t|` where keys are divided by their length.
    pub(crate) y: [f32; 2],
    /// The factor of u_t: beta_t for the delta rule, else 1, times `1 / |k_t|` where keys are divided by
    /// their length.
    pub(crate) u: [f32; 2],
}

impl Scores {
    pub(crate) const ZERO: Self =
        Self { products: [0.0; 8], p: [[0.0; 2]; 2], m: 0.0, y: [0.0; 2], u: [0.0; 2] };
    /// The largest number of blocks in a tile.
    pub(crate) const MOST: usize = 8;
}

/// Which part of the recurrence a pass over the tokens computes. Attention that is not causal takes two
/// passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Sums and outputs.
    Both,
    /// Only the sums.
    Sum,
    /// Only the outputs, from sums that are complete.
    Read,
}

/// Rows of later tokens, to be prefetched while the tokens of a tile are swept: for the i-th token of the tile
/// the i-th row of each of these tensors.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    pub(crate) lines: [Lines; Ahead::MOST],
    /// The number of rows in each tensor.
    pub(crate) tokens: usize,
}

impl Ahead {
    /// The largest number of tensors of which one sweep prefetches rows.
    pub(crate) const MOST: usize = 5;
    pub(crate) const NONE: Self = Self { lines: [Lines::NONE; Self::MOST], tokens: 0 };
}

/// Tokens of one head that have been prepared together.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    pub(crate) shape: &'a Shape,
    pub(crate) tensors: &'a Tensors<'a>,
    /// The rows of the first token.
    pub(crate) first: Row,
    /// The number of tokens.
    pub(crate) len: usize,
    /// Operands of whole blocks, then of single tokens.
    pub(crate) operands: &'a [f32],
    pub(crate) factors: &'a Factors,
    /// The coefficients between the tokens of each block, for blocks with decays or a delta.
    pub(crate) scores: &'a [Scores],
    /// v in f32, `[len, width]`, where the tensor has another type.
    pub(crate) wide_v: Option<&'a [f32]>,
    /// This task's columns of V.
    pub(crate) columns: &'a Range<usize>,
    /// Whether finished chunks or an initial state precede the tile.
    pub(crate) use_past: bool,
    pub(crate) pass: Pass,
    /// Where u of rules in blocks is recorded, if it is recorded.
    pub(crate) record: Option<Record<'a>>,
    /// What the sweep prefetches.
    pub(crate) ahead: Ahead,
}

/// Rows of a matrix `[K, columns]` at a stride, from the first column of a panel on.
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) stride: usize,
}

impl Rows<'_> {
    /// Checks that there are this many rows of this many columns.
    #[inline(always)]
    fn check(&self, rows: usize, columns: usize) {
        assert!(
            columns <= self.stride && (rows - 1) * self.stride + columns <= self.data.len(),
            "rows out of bounds"
        );
    }

    /// N vectors of a row, from a column on.
    ///
    /// # Safety
    /// [`Rows::check`] has passed for more than `row` rows and for all columns up to the end of these
    /// vectors.
    #[inline(always)]
    unsafe fn row<S: Simd, const N: usize>(&mut self, row: usize, column: usize) -> &mut [S::f32s; N] {
        let begin = row * self.stride + column;
        // SAFETY: in bounds by the caller's promise.
        let row = unsafe { self.data.get_unchecked_mut(begin..begin + N * S::F32_LANES) };
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
    tile: &'a Tile<'a>,
    /// The number of columns that are left, from the panel's first one on.
    columns: usize,
    v: &'a [f32],
    v_stride: usize,
    /// The element at which the first row of o begins.
    o: usize,
    o_stride: usize,
    /// The rows that this panel prefetches: its share of those of the tile.
    lines: [Lines; Ahead::MOST],
    shares: usize,
}

impl<'a> Ends<'a> {
    /// The columns of N vectors, from column `from` of this task's columns on.
    #[inline(always)]
    fn new<S: Simd, const N: usize>(tile: &'a Tile<'a>, from: usize) -> Self {
        let Tile { shape, tensors, first, .. } = *tile;
        let column = tile.columns.start + from;
        let (v, v_stride) = match (tensors.v, tile.wide_v) {
            (Elements::F32(v), _) => {
                (&v[shape.v_strides.offset(first, first.heads.v) + column..], shape.v_strides.token)
            }
            (_, Some(v)) => (&v[from..], round_up(tile.columns.len(), S::F32_LANES)),
            _ => (&[][..], 0),
        };
        let (width, mut shares) = (N * S::F32_LANES, 0);
        let mut lines = [Lines::NONE; Ahead::MOST];
        if PREFETCHES && tile.ahead.tokens > 0 {
            let panels = tile.columns.len().div_ceil(width);
            for (i, share) in tile.ahead.lines.into_iter().enumerate() {
                if i % panels == from / width {
                    lines[shares] = share;
                    shares += 1;
                }
            }
        }
        Self {
            tile,
            lines,
            shares,
            columns: tile.columns.len() - from,
            v,
            v_stride,
            o: shape.o_strides.offset(first, first.heads.o) + column,
            o_stride: shape.o_strides.token,
        }
    }

    /// Prefetches a share of the rows of later tokens, one of `groups`: all at once they would occupy the
    /// buffers that rows of S need on their way from L2.
    #[inline(always)]
    fn prefetch(&self, tokens: Range<usize>, group: usize, groups: usize) {
        if PREFETCHES && tokens.end <= self.tile.ahead.tokens {
            for lines in &self.lines[..self.shares] {
                let mut byte = group * LINE;
                while byte < lines.bytes {
                    let mut line =
                        lines.first.wrapping_offset(tokens.start as isize * lines.stride).wrapping_add(byte);
                    for _ in tokens.clone() {
                        prefetch(line);
                        line = line.wrapping_offset(lines.stride);
                    }
                    byte += groups * LINE;
                }
            }
        }
    }

    /// v of T tokens, of which `len` exist; zero where there is no token or no column.
    #[inline(always)]
    fn v<S: Simd, const T: usize, const N: usize>(
        &self,
        simd: S,
        token: usize,
        len: usize,
    ) -> [[S::f32s; N]; T] {
        let rows = &self.v[token * self.v_stride..];
        let mut v = [[simd.splat_f32s(0.0); N]; T];
        if self.columns < N * S::F32_LANES || len < T {
            // This array is separate, so that v itself can stay in registers.
            let mut edge = v;
            let to = bytemuck::cast_slice_mut(edge.as_flattened_mut());
            let columns = self.columns.min(N * S::F32_LANES);
            outline(simd, Edge { rows, stride: self.v_stride, columns, len, to, width: N * S::F32_LANES });
            v = edge;
        } else {
            for t in 0..T {
                v[t] = load::<S, N>(&rows[t * self.v_stride..]);
            }
        }
        v
    }

    /// Writes o of T tokens, of which `len` exist.
    #[inline(always)]
    fn write<S: Simd, const T: usize, const N: usize>(
        &self,
        simd: S,
        token: usize,
        len: usize,
        o: [[S::f32s; N]; T],
    ) {
        let columns = self.columns.min(N * S::F32_LANES);
        let begin = self.o + token * self.o_stride;
        for t in 0..T {
            if t < len {
                // SAFETY: lengths were checked at the entry; tasks differ in batch, head or columns.
                unsafe { self.tile.tensors.write::<S, N>(simd, begin + t * self.o_stride, columns, o[t]) };
            }
        }
    }
}

/// The read of columns of v that end within a vector, or of fewer tokens than a block has. It is a function
/// of its own, so that the usual path stays small.
struct Edge<'a> {
    rows: &'a [f32],
    stride: usize,
    columns: usize,
    /// The number of tokens.
    len: usize,
    /// Rows of `width` elements, one for each token of a block.
    to: &'a mut [f32],
    width: usize,
}

impl WithSimd for Edge<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (t, to) in self.to.chunks_exact_mut(self.width).take(self.len).enumerate() {
            copy_row(simd, &self.rows[t * self.stride..][..self.columns], to);
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
