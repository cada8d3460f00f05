//! Tokens of one head, in blocks of [`BLOCK`] or fewer that lie in one chunk.
//!
//! ```text
//! for each block:
//!     keys, values <- k, v of its tokens
//!     weights = softmax(q keys / sqrt K)        of each token over its chunk, up to itself
//!     o = weights values + q S / (q . z + eps)
//!     where the chunk is full:  S += keys values, z += keys 1, and both are cleared
//! ```
//!
//! The output of a token depends on its place in its chunk and on the tokens before it, never on the block.

use pulp::{Simd, WithSimd};

use super::layout::{Layout, Rows as Scratch, State};
use super::product::{Epilogue, Product, Rows};
use super::softmax::{Softmax, dot, sum};
use crate::attention::States;
use crate::element::{Elements, widen};
use crate::isa::outline;
use crate::math::GROUP;
use crate::scratch::round_up;
use crate::shape::{Row, Shape};
use crate::tensors::Tensors;

/// The number of tokens that are computed together: 4 rows by 2 vectors of sums take 8 registers, and that
/// many multiply-adds hide their latency.
pub(super) const BLOCK: usize = 4;

/// The eps that is added to `q . z`.
const EPS: f32 = 1e-8;

/// One head of a call.
pub(super) struct Head<'a> {
    pub(super) shape: &'a Shape,
    pub(super) layout: &'a Layout,
    pub(super) tensors: &'a Tensors<'a>,
    /// The states of this head.
    pub(super) states: States<'a>,
    /// The rows of the first token.
    pub(super) first: Row,
    /// The number of tokens.
    pub(super) len: usize,
    pub(super) scratch: &'a mut [f32],
}

impl WithSimd for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (rows, spare) = core::mem::take(&mut self.scratch).split_at_mut(self.layout.rows_len());
        let mut rows = self.layout.rows(rows);
        let mut state = self.layout.state(self.begin(spare));
        // Whether there may be finished chunks: where there are none, S and z are zero and are not read.
        let mut use_past = self.states.initial.is_some() || self.states.carried.is_some();
        let mut count = state.count[0] as usize;
        let mut token = 0;
        while token < self.len {
            let block = BLOCK.min(self.len - token).min(self.layout.chunk - count);
            let span = Span { token, block, count, use_past };
            self.take_in(simd, span, &mut state);
            self.block(simd, span, &state, &mut rows);
            (token, count) = (token + block, count + block);
            if count == self.layout.chunk {
                self.fold(simd, &mut state);
                (count, use_past) = (0, true);
            }
        }
        state.count[0] = count as f32;
    }
}

/// The tokens of a block.
#[derive(Clone, Copy)]
struct Span {
    token: usize,
    /// The number of tokens in the block.
    block: usize,
    /// The number of tokens of the chunk before the block.
    count: usize,
    use_past: bool,
}

impl<'a> Head<'a> {
    /// The state before the first token, in the memory in which the call works: the caller's where a state is
    /// written, else scratch.
    #[inline(always)]
    fn begin(&self, spare: &'a mut [f32]) -> &'a mut [f32] {
        let len = self.layout.len();
        let state = match self.states.carried.or(self.states.last) {
            #[allow(unsafe_code, reason = "heads are split among tasks")]
            // SAFETY: this task alone has this head, and takes its state once.
            Some(state) => unsafe { state.part(0, len) },
            None => &mut spare[..len],
        };
        if self.states.carried.is_none() {
            match self.states.initial {
                Some(initial) => state.copy_from_slice(initial),
                None => state.fill(0.0),
            }
        }
        state
    }

    /// Copies k and v of a block into the state.
    #[inline(always)]
    fn take_in<S: Simd>(&self, simd: S, span: Span, state: &mut State<'_>) {
        let (value, chunk) = (self.layout.value_row(), self.layout.chunk_row());
        for t in 0..span.block {
            let (row, place) = (self.row(span.token + t), span.count + t);
            let v = self.tensors.v(self.shape, row, 0..self.shape.value);
            outline(simd, Widen { from: v, to: &mut state.values[place * value..][..value] });
            let k = self.tensors.k(self.shape, row);
            for (column, k) in state.keys[place..].iter_mut().step_by(chunk).zip(k.iter()) {
                *column = k;
            }
        }
    }

    /// Computes the outputs of a block, whose k and v are in the state.
    #[inline(always)]
    fn block<S: Simd>(&self, simd: S, span: Span, state: &State<'_>, rows: &mut Scratch<'_>) {
        let Layout { key, .. } = *self.layout;
        let (key_row, value_row, chunk_row) =
            (self.layout.key_row(), self.layout.value_row(), self.layout.chunk_row());
        let Span { block, count, .. } = span;
        for (t, q) in rows.q.chunks_exact_mut(key_row).take(block).enumerate() {
            let from = self.tensors.q(self.shape, self.row(span.token + t));
            outline(simd, Widen { from, to: q });
        }
        let q = Rows { data: rows.q, stride: key_row };
        // Scores of keys that come after a token are computed but not used.
        let scores = Product {
            x: q,
            matrix: Rows { data: state.keys, stride: chunk_row },
            terms: 0..key,
            columns: round_up(count + block, GROUP),
            rows: block,
            y: &mut *rows.weights,
            y_stride: chunk_row,
            epilogue: Epilogue::Store,
        };
        outline(simd, scores);
        let scale = 1.0 / libm::sqrtf(key as f32);
        for (t, row) in rows.weights.chunks_exact_mut(chunk_row).take(block).enumerate() {
            let len = count + t + 1;
            outline(simd, Softmax { row: &mut row[..round_up(len, GROUP)], len, scale });
        }
        self.weigh(simd, span, state, rows);
        if span.use_past {
            let past = Product {
                x: Rows { data: rows.q, stride: key_row },
                matrix: Rows { data: state.s, stride: value_row },
                terms: 0..key,
                columns: value_row,
                rows: block,
                y: &mut *rows.before,
                y_stride: value_row,
                epilogue: Epilogue::Store,
            };
            outline(simd, past);
        } else {
            rows.before.fill(0.0);
        }
        for t in 0..block {
            let norm = dot(simd, &rows.q[t * key_row..][..key_row], state.z) + EPS;
            let (inside, before) = (&rows.inside[t * value_row..], &rows.before[t * value_row..]);
            let row = self.row(span.token + t);
            self.write(simd, row, [&inside[..value_row], &before[..value_row]], 1.0 / norm);
        }
    }

    /// `inside = weights values`: first over the keys that all tokens of a block have in common, then over
    /// those that belong to only some of the tokens. A weight of zero would not exclude a key for the other
    /// tokens, because zero times NaN is not zero.
    #[inline(always)]
    fn weigh<S: Simd>(&self, simd: S, span: Span, state: &State<'_>, rows: &mut Scratch<'_>) {
        let (value, chunk) = (self.layout.value_row(), self.layout.chunk_row());
        let matrix = Rows { data: &*state.values, stride: value };
        let common = Product {
            x: Rows { data: rows.weights, stride: chunk },
            matrix,
            terms: 0..span.count + 1,
            columns: value,
            rows: span.block,
            y: &mut *rows.inside,
            y_stride: value,
            epilogue: Epilogue::Store,
        };
        outline(simd, common);
        for t in 1..span.block {
            let own = Product {
                x: Rows { data: &rows.weights[t * chunk..], stride: chunk },
                matrix,
                terms: span.count + 1..span.count + t + 1,
                columns: value,
                rows: 1,
                y: &mut rows.inside[t * value..],
                y_stride: value,
                epilogue: Epilogue::Resume,
            };
            outline(simd, own);
        }
    }

    /// `o = inside + factor before`.
    #[inline(always)]
    fn write<S: Simd>(&self, simd: S, row: Row, [inside, before]: [&[f32]; 2], factor: f32) {
        let begin = self.shape.o_strides.offset(row, row.heads.o);
        let factor = simd.splat_f32s(factor);
        let vectors = S::as_simd_f32s(inside).0.iter().zip(S::as_simd_f32s(before).0);
        for (i, (inside, before)) in vectors.enumerate().take(self.shape.value.div_ceil(S::F32_LANES)) {
            let column = i * S::F32_LANES;
            let columns = S::F32_LANES.min(self.shape.value - column);
            let o = simd.mul_add_e_f32s(*before, factor, *inside);
            #[allow(unsafe_code, reason = "rows of o are split among tasks")]
            // SAFETY: the lengths were checked, and this task alone writes rows of this head.
            unsafe {
                self.tensors.write::<S, 1>(simd, begin + column, columns, [o]);
            }
        }
    }

    /// Ends a chunk: its sums are computed separately and then added, and its keys and values are cleared.
    #[inline(always)]
    fn fold<S: Simd>(&self, simd: S, state: &mut State<'_>) {
        let Layout { key, chunk, .. } = *self.layout;
        let (value_row, chunk_row) = (self.layout.value_row(), self.layout.chunk_row());
        let sums = Product {
            x: Rows { data: state.keys, stride: chunk_row },
            matrix: Rows { data: state.values, stride: value_row },
            terms: 0..chunk,
            columns: value_row,
            rows: key,
            y: &mut *state.s,
            y_stride: value_row,
            epilogue: Epilogue::Add,
        };
        outline(simd, sums);
        for (z, keys) in state.z.iter_mut().zip(state.keys.chunks_exact(chunk_row)) {
            *z += sum(simd, keys);
        }
        state.keys.fill(0.0);
        state.values.fill(0.0);
    }

    #[inline(always)]
    fn row(&self, token: usize) -> Row {
        Row { token, ..self.first }
    }
}

/// Widens a row and pads it with zeros. This is a function of its own, because it is long and used in several
/// places.
struct Widen<'a> {
    from: Elements<'a>,
    to: &'a mut [f32],
}

impl WithSimd for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        widen(simd, self.from, self.to);
    }
}
