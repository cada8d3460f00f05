//! The sweep of the linear rule:
//!
//! ```text
//! for each row i of S:
//!     x = S[i]                                  a row of S is loaded once ...
//!     for each token t of the block:
//!         x   += phi(k_t)[i] v_t
//!         o_t += phi(q_t)[i] x
//!     S[i] = x                                  ... and stored once
//! o_t *= scale / norm_t
//! ```
//!
//! The sweep costs the multiply-adds of the recurrence, 2 K V a token, and no others. Every element is one
//! chain of fused multiply-adds in a fixed order, over tokens for S and over i for o, so that its bits depend
//! neither on the size of a block or a panel nor on where a sequence is cut.
//!
//! Operands of a block are `[K / 16][k, q][B][16]`. [`kind::PAST`] adds a second sum over a matrix that is
//! only read, for chunks that are normalised separately. [`kind::COMPENSATED`] sums each block by itself and
//! adds this sum to S together with the rounding errors so far.
#![allow(unsafe_code, reason = "rows of S are taken without a check for each of them")]

use pulp::{Simd, WithSimd};

use super::{Ends, Sums, Tile, padded_key, whole_blocks};
use crate::math::{GROUP, add_compensated};

/// What a sweep does besides the recurrence: a parameter of [`Panel`], so that each kind is compiled
/// separately.
pub(crate) mod kind {
    /// The recurrence alone.
    pub(crate) const PLAIN: u8 = 0;
    /// Outputs also take in a second matrix, which is only read.
    pub(crate) const PAST: u8 = 1;
    /// The rounding errors of S are kept beside it.
    pub(crate) const COMPENSATED: u8 = 2;
    /// Any of the kinds above, depending on which matrices there are: one body of code, for machines on which
    /// its size counts.
    pub(crate) const ANY: u8 = 3;
    /// Tokens are added to S and there are no outputs: the first pass of attention that is not causal.
    pub(crate) const SUM: u8 = 4;
    /// Outputs are read from S, to which no tokens are added: the second pass.
    pub(crate) const READ: u8 = 5;
}

/// One tile and one panel of N vectors, in blocks of B tokens.
pub(crate) struct Panel<'a, const B: usize, const N: usize, const KIND: u8> {
    pub(crate) tile: &'a Tile<'a>,
    /// The panel's first column among this task's columns.
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
        let ends = Ends::new::<S, N>(self.tile, self.column);
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

    /// Sweeps one block of T tokens.
    #[inline(always)]
    fn block<S: Simd, const T: usize>(&mut self, simd: S, token: usize, operands: &[f32], ends: &Ends<'a>) {
        ends.prefetch(token..token + T, 0, 1);
        let (reads_past, is_compensated) = (self.reads_past(), self.is_compensated());
        let v: [[S::f32s; N]; T] = ends.v(simd, token, T);
        let mut o = [[simd.splat_f32s(0.0); N]; T];
        // What the tokens read from the past.
        let mut before = [[simd.splat_f32s(0.0); N]; T];
        let key = self.tile.shape.key;
        for (group, operands) in operands.chunks_exact(2 * T * GROUP).enumerate() {
            let (k, q) = operands.as_chunks::<GROUP>().0.split_at(T);
            let first = group * GROUP;
            for i in 0..GROUP.min(key - first) {
                // SAFETY: there is a row `first + i` below K, and each matrix that is used was checked for K
                // rows.
                let row = unsafe { self.sums.s.row::<S, N>(first + i, 0) };
                let mut x = *row;
                let mut sum = [simd.splat_f32s(0.0); N];
                let mut past = sum;
                if reads_past {
                    // SAFETY: as above.
                    past = unsafe { *self.sums.past.row::<S, N>(first + i, 0) };
                }
                for t in 0..T {
                    let (k, q) = (simd.splat_f32s(k[t][i]), simd.splat_f32s(q[t][i]));
                    for j in 0..N {
                        if KIND == kind::READ {
                            break;
                        }
                        x[j] = simd.mul_add_e_f32s(k, v[t][j], x[j]);
                        if is_compensated {
                            sum[j] = simd.mul_add_e_f32s(k, v[t][j], sum[j]);
                        }
                    }
                    for j in 0..N {
                        if KIND == kind::SUM {
                            break;
                        }
                        o[t][j] = simd.mul_add_e_f32s(q, x[j], o[t][j]);
                        if reads_past {
                            before[t][j] = simd.mul_add_e_f32s(q, past[j], before[t][j]);
                        }
                    }
                }
                if is_compensated {
                    // SAFETY: as above.
                    let error = unsafe { self.sums.error.row::<S, N>(first + i, 0) };
                    for j in 0..N {
                        (x[j], error[j]) = add_compensated(simd, row[j], error[j], sum[j]);
                    }
                }
                if KIND != kind::READ {
                    *row = x;
                }
            }
        }
        if KIND == kind::SUM {
            return;
        }
        let factors = self.tile.factors;
        for t in 0..T {
            // The product is added to +0, so that an output that is exactly zero is +0 whatever the factor's
            // sign, with a past and without. S and z begin at +0 and are only added to, so their zeros are +0
            // as well.
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
        ends.write(simd, token, T, o);
    }
}
