//! The two large products of a tile by dot products of pairs of bf16, accumulated in f32:
//!
//! ```text
//! phi(Q) S        pairs along K: neighbours in a row of phi(Q), two rows of S interleaved
//! S += phi(K)^T V pairs along T: two rows of phi(K) interleaved, two rows of V interleaved
//! ```
//!
//! S itself stays f32: what is rounded is the copy of it that is multiplied, made anew for every tile, so that nothing
//! adds up. A V stays f32 too: a pair would take a row of V beyond the diagonal in, times zero, and that row may be
//! NaN.

use pulp::Simd;

use super::{TILE, Tile};
use crate::element::{pair_neighbours, pair_rows};
use crate::isa::{Bf16Dot, DotPairs};
use crate::math::add_compensated;

/// How large the pieces of scratch are: as large as the largest panel needs, or nothing.
#[derive(Clone, Copy)]
pub(super) struct DotWork {
    /// K rounded up to whole vectors: even, for only sets of several lanes have dot products.
    key: usize,
    panel: usize,
}

impl DotWork {
    pub(super) const fn new(on: bool, key: usize, panel: usize) -> Self {
        if on { Self { key, panel } } else { Self { key: 0, panel: 0 } }
    }

    /// Elements.
    pub(super) const fn len(&self) -> usize {
        let pairs = self.key.saturating_mul(TILE).saturating_add((self.key / 2).saturating_mul(self.panel));
        pairs.saturating_add(TILE / 2 * 5 * self.panel)
    }

    #[inline(always)]
    pub(super) fn split(self, proof: Bf16Dot, scratch: &mut [f32]) -> Dot<'_> {
        let (sums, pairs) = scratch.split_at_mut(2 * TILE * self.panel);
        let (current, past) = sums.split_at_mut(TILE * self.panel);
        let (q, rest) = bytemuck::cast_slice_mut(pairs).split_at_mut(TILE * self.key / 2);
        let (k, rest) = rest.split_at_mut(TILE / 2 * self.key);
        let (v, s) = rest.split_at_mut(TILE / 2 * self.panel);
        Dot { proof, key: self.key, q, k, v, s, current, past }
    }
}

/// A tile's operands as pairs, and products.
pub(super) struct Dot<'a> {
    proof: Bf16Dot,
    key: usize,
    /// Rows of phi(Q), `[TILE, K / 2]`.
    q: &'a mut [u32],
    /// Pairs of rows of phi(K), `[TILE / 2, K]`.
    k: &'a mut [u32],
    /// Pairs of rows of V, `[TILE / 2, panel]`.
    v: &'a mut [u32],
    /// Pairs of rows of S, `[K / 2, panel]`.
    s: &'a mut [u32],
    /// phi(Q) S, `[TILE, panel]`.
    pub(super) current: &'a mut [f32],
    /// phi(Q) past, `[TILE, panel]`.
    pub(super) past: &'a mut [f32],
}

impl Dot<'_> {
    /// Takes in phi(Q) and phi(K).
    #[inline(always)]
    pub(super) fn pack(&mut self, rows: usize, q: &[f32], k: &[f32]) {
        pair_neighbours(&q[..rows * self.key], self.q);
        pair_rows(&k[..rows * self.key], self.key, self.k);
    }

    /// `current = phi(Q) S`, and `past` likewise, where the tile uses them; a panel of that many columns.
    #[inline(always)]
    pub(super) fn multiply(&mut self, tile: Tile, width: usize, s: &[f32], past: &[f32]) {
        for (used, from, to) in
            [(tile.use_current, s, &mut *self.current), (tile.use_past, past, &mut *self.past)]
        {
            if used {
                pair_rows(from, width, self.s);
                let acc = &mut to[..tile.rows * width];
                acc.fill(0.0);
                let b = &self.s[..self.key / 2 * width];
                DotPairs { width, acc, a: self.q, row: self.key / 2, step: 1, b }.run(self.proof);
            }
        }
    }

    /// `S += phi(K)^T V`, or `=` where S is fresh; compensated where there is something lost.
    #[inline(always)]
    pub(super) fn add<S: Simd, const N: usize>(
        &mut self,
        simd: S,
        v: &[[S::f32s; N]],
        s: &mut [[S::f32s; N]],
        fresh: bool,
        lost: &mut [[S::f32s; N]],
    ) {
        let width = N * S::F32_LANES;
        pair_rows(bytemuck::cast_slice(v.as_flattened()), width, self.v);
        let b = &self.v[..v.len().div_ceil(2) * width];
        let zero = [simd.splat_f32s(0.0); N];
        if lost.is_empty() {
            if fresh {
                s.fill(zero);
            }
            let acc = bytemuck::cast_slice_mut(s.as_flattened_mut());
            DotPairs { width, acc, a: self.k, row: 1, step: self.key, b }.run(self.proof);
            return;
        }
        for (at, (s, lost)) in s.chunks_mut(TILE).zip(lost.chunks_mut(TILE)).enumerate() {
            let acc = &mut self.current[..s.len() * width];
            acc.fill(0.0);
            DotPairs { width, acc, a: &self.k[at * TILE..], row: 1, step: self.key, b }.run(self.proof);
            let sums = S::as_simd_f32s(acc).0.as_chunks::<N>().0;
            for ((s, lost), sum) in s.iter_mut().zip(lost).zip(sums) {
                for j in 0..N {
                    let old = if fresh { zero[j] } else { s[j] };
                    (s[j], lost[j]) = add_compensated(simd, old, lost[j], sum[j]);
                }
            }
        }
    }
}
