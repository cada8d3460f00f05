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
//! [`linear`] is the loop of the linear rule, [`gated`] that of the rules with decays or a delta, [`decode`] that of the delta rule
//! for one token.
//!
//! 1. What a sweep multiplies with is prepared before ([`prepare`]; of blocks with decays, [`decays`]), a tile of tokens at a
//!    time: nothing here knows a feature map, a gate's map, a normaliser or a type of element.
//! 2. Operands are laid out as they are read, sixteen rows of S at a time. One address then serves all broadcasts of sixteen
//!    rows, and preparing them takes no shuffle.
//! 3. S lies in panels, `[V / panel][K][panel]`, while many tokens are computed, and in the caller's memory, `[K, V]`, for
//!    one. Both are rows at a stride.
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

/// How wide a panel and how long a tile are, by the number of lanes. Bits don't depend on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocking {
    /// Vectors of columns in a panel of S.
    pub(crate) vectors: usize,
    /// Tokens prepared together, a multiple of the blocks that are swept.
    pub(crate) tile: usize,
}

impl Blocking {
    /// Of the linear rule: a panel is what the largest block holds in registers: its v and o, a row of S and two broadcasts.
    /// 3 tokens by 4 vectors take 28 of AVX-512's 32 registers, 3 by 2 all of AVX2's 16. Multiply-adds of a sweep alone, K = V
    /// = 64, % of the peak of a Xeon (Granite Rapids): AVX-512 3 x 4 80, 4 x 2 75, 6 x 2 77, 2 x 4 68, 4 x 4 69; AVX2 3 x 2
    /// 92, 4 x 2 85, 2 x 2 86, 4 x 1 79.
    const fn linear(lanes: usize) -> Self {
        match lanes {
            16 => Self { vectors: 4, tile: 24 },
            8 => Self { vectors: 2, tile: 24 },
            4 => Self { vectors: 2, tile: 16 },
            _ => Self { vectors: 2, tile: 8 },
        }
    }

    /// Of blocks of two tokens with decays or a delta: their u, o and y, a row of S and a broadcast. 2 tokens by 4 vectors take 30
    /// of 32 registers, by 2 15 of AVX2's 16.
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

    /// The largest tile there is.
    pub(crate) const MOST: usize = 24;

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

/// By what outputs are multiplied, for each token of a tile.
#[derive(Clone, Copy)]
pub(crate) struct Factors {
    /// scale / norm of the sums that the tile adds to.
    pub(crate) current: [f32; Blocking::MOST],
    /// scale / norm of the past chunks.
    pub(crate) past: [f32; Blocking::MOST],
}

/// What the tokens of a block of one or two take of each other. Of a block of one token only the first elements are used.
#[derive(Clone, Copy)]
pub(crate) struct Scores {
    /// Dot products of the tokens, before anything is made of them.
    pub(crate) products: [f32; 8],
    /// `p[t][s] = q_t . (k_s decayed from s to t)` for `s <= t`: what output t takes of u_s.
    pub(crate) p: [[f32; 2]; 2],
    /// What u_1 takes of u_0, of the delta rule.
    pub(crate) m: f32,
    /// What u_t takes of `y_t = k'_t . S`, of the delta rule: -1 / |k_t|, where keys are divided by their length.
    pub(crate) y: [f32; 2],
    /// By what u_t is multiplied: beta_t of the delta rule, 1 / |k_t| likewise.
    pub(crate) u: [f32; 2],
}

impl Scores {
    pub(crate) const ZERO: Self =
        Self { products: [0.0; 8], p: [[0.0; 2]; 2], m: 0.0, y: [0.0; 2], u: [0.0; 2] };
    /// Blocks of a tile at most.
    pub(crate) const MOST: usize = 8;
}

/// Which half of the recurrence a pass over the tokens computes. Attention that is not causal takes two passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Sums and outputs.
    Both,
    /// Only the sums.
    Sum,
    /// Only the outputs, of sums that are complete.
    Read,
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
    /// What the tokens of a block take of each other; of blocks with decays or a delta.
    pub(crate) scores: &'a [Scores],
    /// v in f32, `[len, width]`, where it is of another type.
    pub(crate) wide_v: Option<&'a [f32]>,
    /// This task's columns of V.
    pub(crate) columns: &'a Range<usize>,
    /// Whether finished chunks, or an initial state, lie before.
    pub(crate) use_past: bool,
    pub(crate) pass: Pass,
    /// Elements of a row of g that are worth asking for ahead of time: K of a key gate, 0 of a scalar one.
    pub(crate) gate: usize,
    /// Where u of rules in blocks is recorded, if it is.
    pub(crate) record: Option<Record<'a>>,
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

    /// N vectors of a row, from a column on.
    ///
    /// # Safety
    /// [`Rows::check`] has passed for more rows and for all columns up to these.
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
    /// How many columns are left, from the panel's first one on.
    columns: usize,
    v: &'a [f32],
    v_stride: usize,
    /// Where the first row of o begins.
    o: usize,
    o_stride: usize,
    /// Rows of a later token that are asked for: of q, k, v, o and g those that are this panel's share.
    lines: [Lines; 5],
    shares: usize,
    /// For how many tokens there are such rows.
    ahead: usize,
}

impl<'a> Ends<'a> {
    /// Those of N vectors from a column of this task's on.
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
        let [ahead, end] = tile.ahead;
        let (width, mut shares) = (N * S::F32_LANES, 0);
        let mut lines = [Lines::NONE; 5];
        if PREFETCHES && first.token + ahead < end {
            let panels = tile.columns.len().div_ceil(width);
            let row = Row { token: first.token + ahead, ..first };
            for (i, share) in tensors.lines(shape, row, tile.gate).into_iter().enumerate() {
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
            ahead: end.saturating_sub(first.token + ahead),
            columns: tile.columns.len() - from,
            v,
            v_stride,
            o: shape.o_strides.offset(first, first.heads.o) + column,
            o_stride: shape.o_strides.token,
        }
    }

    /// Asks for a share of the rows of later tokens, one of `groups`: all at once they would take the buffers that rows of S
    /// need on their way from L2.
    #[inline(always)]
    fn prefetch(&self, tokens: Range<usize>, group: usize, groups: usize) {
        if PREFETCHES && tokens.end <= self.ahead {
            for lines in &self.lines[..self.shares] {
                let mut byte = group * LINE;
                while byte < lines.bytes {
                    let mut line = lines.first.wrapping_add(tokens.start * lines.stride + byte);
                    for _ in tokens.clone() {
                        prefetch(line);
                        line = line.wrapping_add(lines.stride);
                    }
                    byte += groups * LINE;
                }
            }
        }
    }

    /// v of T tokens, of which there are `len`; zero where there is no token or no column.
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
            // An array of its own, so that v itself need not lie in memory.
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

    /// Writes o of T tokens, of which there are `len`.
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

/// Columns of v that end within a vector, or of fewer tokens than a block has; apart, so that the usual way stays small.
struct Edge<'a> {
    rows: &'a [f32],
    stride: usize,
    columns: usize,
    /// Tokens.
    len: usize,
    /// Rows of `width`, one for each token of a block.
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
