//! The sweep of rules with decays or a delta, in blocks of T tokens, one or two, from the state S_0 before
//! the block:
//!
//! ```text
//! linear update                                    delta
//! for each row i of S:                             for each row i of S:
//!     x = S[i]                                         x = c[i] S[i] + sum_t k''_t[i] u_t     of the block before
//!     o_t += q'_t[i] x                                 o_t += q'_t[i] x,  y_t += k'_t[i] x
//!     S[i] = c[i] x + sum_t k''_t[i] u_t               S[i] = x
//! u_t = v_t                                        u_t = beta_t (v_t - y_t - sum_{s<t} M_ts u_s)
//! o_t += sum_{s<=t} P_ts u_s                       o_t likewise; behind the last block, S takes its update
//!
//! b_t = a_1 .. a_t, d_t = a_{t+1} .. a_T, c = b_T; q' = b q, k' = b k, k'' = d k; P and M: see `Scores`
//! ```
//!
//! Where keys are divided by their length, u is divided by it once more, and the rows k' and k'' are computed
//! from the undivided keys.
//!
//! Decays are only multiplied, never divided by or subtracted as logarithms: with decays of at most 1 nothing
//! overflows, and a decay of 0 is a reset. The sweep costs 2.5 K V multiply-adds a token for the linear
//! update and 3.5 for the delta. Blocks of four tokens cost 2.25 and 3.25, and are slower: they need sixteen
//! dot products of K elements where two blocks of two need eight, and on AVX2 they leave registers for only
//! one vector of columns, which takes more loads than multiply-adds.
//!
//! Blocks have two tokens on every instruction set, because the bits depend on it; a shorter last block is
//! filled up with a token whose k, q and beta are 0 and whose decay is 1. Operands of a block are
//! `[K / 16][k'' x T, c, q' x T, k' x T][16]`, k' only for the delta.
#![allow(unsafe_code, reason = "rows of S are taken without a check for each of them")]

use core::ops::Range;

use pulp::{Simd, WithSimd};

use super::{Ends, Rows, Tile, padded_key};
use crate::math::GROUP;

/// The number of rows of operands in a block of this number of tokens.
pub(crate) const fn operand_rows(tokens: usize, delta: bool) -> usize {
    (if delta { 3 } else { 2 }) * tokens + 1
}

/// One tile and one panel of N vectors, in blocks of T tokens.
pub(crate) struct GatedPanel<'a, const T: usize, const N: usize, const DELTA: bool> {
    pub(crate) tile: &'a Tile<'a>,
    /// The panel's first column among this task's columns.
    pub(crate) column: usize,
    pub(crate) s: Rows<'a>,
}

/// The input and the results of a pass over the rows of S: u of the update, and o and y of the block.
struct Columns<S: Simd, const T: usize, const N: usize> {
    u: [[S::f32s; N]; T],
    o: [[S::f32s; N]; T],
    y: [[S::f32s; N]; T],
}

impl<const T: usize, const N: usize, const DELTA: bool> WithSimd for GatedPanel<'_, T, N, DELTA> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (tile, key) = (self.tile, self.tile.shape.key);
        self.s.check(key, N * S::F32_LANES);
        let ends = Ends::new::<S, N>(tile, self.column);
        let zero = [[simd.splat_f32s(0.0); N]; T];
        let block = operand_rows(T, DELTA) * padded_key(key);
        let mut u = zero;
        let mut before: &[f32] = &[];
        for (i, operands) in tile.operands.chunks_exact(block).take(tile.len.div_ceil(T)).enumerate() {
            let token = i * T;
            let len = T.min(tile.len - token);
            let asked = (&ends, token..token + len);
            let v = ends.v::<S, T, N>(simd, token, len);
            let mut columns = Columns::<S, T, N> { u, o: zero, y: zero };
            if !DELTA {
                u = self.solve(simd, i, len, v, zero);
                columns.u = u;
                self.rows::<S, true, true>(simd, operands, operands, &mut columns, asked);
            } else {
                if before.is_empty() {
                    self.rows::<S, false, true>(simd, operands, operands, &mut columns, asked);
                } else {
                    self.rows::<S, true, true>(simd, before, operands, &mut columns, asked);
                }
                u = self.solve(simd, i, len, v, columns.y);
            }
            let o = self.outputs(simd, i, u, columns.o);
            if let Some(record) = &tile.record {
                let (width, from) = (N * S::F32_LANES, tile.columns.start + self.column);
                let rows = u;
                let rows = bytemuck::cast_slice::<S::f32s, f32>(rows.as_flattened());
                record.write_u(token, from..tile.columns.end.min(from + width), &rows[..len * width], width);
            }
            ends.write(simd, token, len, o);
            before = operands;
        }
        if DELTA && !before.is_empty() {
            let mut columns = Columns::<S, T, N> { u, o: zero, y: zero };
            self.rows::<S, true, false>(simd, before, before, &mut columns, (&ends, 0..0));
        }
    }
}

impl<const T: usize, const N: usize, const DELTA: bool> GatedPanel<'_, T, N, DELTA> {
    /// One pass over the rows of S: the update by `u` with the operands `update`, and the sums o and y with
    /// `read`.
    #[inline(always)]
    fn rows<S: Simd, const UPDATE: bool, const READ: bool>(
        &mut self,
        simd: S,
        update: &[f32],
        read: &[f32],
        columns: &mut Columns<S, T, N>,
        asked: (&Ends<'_>, Range<usize>),
    ) {
        let key = self.tile.shape.key;
        let rows = operand_rows(T, DELTA);
        let (mut o, mut y, u) = (columns.o, columns.y, columns.u);
        let groups = update.chunks_exact(rows * GROUP).zip(read.chunks_exact(rows * GROUP));
        let count = groups.len();
        for (group, (update, read)) in groups.enumerate() {
            asked.0.prefetch(asked.1.clone(), group, count);
            let (update, read) = (update.as_chunks::<GROUP>().0, read.as_chunks::<GROUP>().0);
            let (k, c) = (&update[..T], &update[T]);
            let (q, keys) = (&read[T + 1..2 * T + 1], &read[rows - T..]);
            let first = group * GROUP;
            for i in 0..GROUP.min(key - first) {
                // SAFETY: there is a row `first + i` below K, and S was checked for K rows.
                let row = unsafe { self.s.row::<S, N>(first + i, 0) };
                let before = *row;
                let mut x = before;
                if UPDATE {
                    let c = simd.splat_f32s(c[i]);
                    for j in 0..N {
                        x[j] = simd.mul_f32s(c, x[j]);
                    }
                    for t in 0..T {
                        let k = simd.splat_f32s(k[t][i]);
                        for j in 0..N {
                            x[j] = simd.mul_add_e_f32s(k, u[t][j], x[j]);
                        }
                    }
                    *row = x;
                }
                if READ {
                    let x = if DELTA { x } else { before };
                    for t in 0..T {
                        let q = simd.splat_f32s(q[t][i]);
                        for j in 0..N {
                            o[t][j] = simd.mul_add_e_f32s(q, x[j], o[t][j]);
                        }
                        if DELTA {
                            let k = simd.splat_f32s(keys[t][i]);
                            for j in 0..N {
                                y[t][j] = simd.mul_add_e_f32s(k, x[j], y[t][j]);
                            }
                        }
                    }
                }
            }
        }
        (columns.o, columns.y) = (o, y);
    }

    /// u of a block, of which `len` tokens exist.
    #[inline(always)]
    fn solve<S: Simd>(
        &self,
        simd: S,
        block: usize,
        len: usize,
        v: [[S::f32s; N]; T],
        y: [[S::f32s; N]; T],
    ) -> [[S::f32s; N]; T] {
        let scores = &self.tile.scores[block];
        let factor = |t: usize| [simd.splat_f32s(scores.y[t]), simd.splat_f32s(scores.u[t])];
        let mut u = v;
        let [of_y, of_u] = factor(0);
        for j in 0..N {
            if DELTA {
                u[0][j] = simd.mul_add_e_f32s(of_y, y[0][j], u[0][j]);
            }
            u[0][j] = simd.mul_f32s(of_u, u[0][j]);
        }
        if T == 2 {
            let (last, m) = (T - 1, simd.splat_f32s(scores.m));
            let [of_y, of_u] = factor(last);
            for j in 0..N {
                if DELTA && len == T {
                    u[last][j] = simd.mul_add_e_f32s(of_y, y[last][j], u[last][j]);
                    u[last][j] = simd.mul_add_e_f32s(m, u[0][j], u[last][j]);
                }
                u[last][j] = simd.mul_f32s(of_u, u[last][j]);
            }
        }
        u
    }

    /// Outputs of a block, from the sums over the rows of S.
    #[inline(always)]
    fn outputs<S: Simd>(
        &self,
        simd: S,
        block: usize,
        u: [[S::f32s; N]; T],
        mut o: [[S::f32s; N]; T],
    ) -> [[S::f32s; N]; T] {
        let (scores, factors) = (&self.tile.scores[block], &self.tile.factors.current[block * T..][..T]);
        let [[p00, _], [p10, p11]] = scores.p.map(|p| p.map(|p| simd.splat_f32s(p)));
        let (last, zero) = (T - 1, simd.splat_f32s(0.0));
        for j in 0..N {
            o[0][j] = simd.mul_add_e_f32s(p00, u[0][j], o[0][j]);
            // The product is added to +0, so that an output that is exactly zero is +0 whatever the factor's
            // sign.
            o[0][j] = simd.mul_add_e_f32s(o[0][j], simd.splat_f32s(factors[0]), zero);
            if T == 2 {
                o[last][j] = simd.mul_add_e_f32s(p10, u[0][j], o[last][j]);
                o[last][j] = simd.mul_add_e_f32s(p11, u[last][j], o[last][j]);
                o[last][j] = simd.mul_add_e_f32s(o[last][j], simd.splat_f32s(factors[last]), zero);
            }
        }
        o
    }
}
