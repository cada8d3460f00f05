//! What the sweep of rules with decays or a delta multiplies with, a block of T tokens at a time: phi of q and k with the decays
//! from and to the ends of the block, and what its tokens take of each other.
//!
//! ```text
//! for each token s, with w = k_s:                     everything elementwise over K
//!     P_ss = q_s . w
//!     for t = s + 1 ..= T:  w = a_t w,  P_ts = q_t . w,  M_ts = k_t . w
//!     k''_s = w
//! b_t = a_1 .. a_t:  q'_t = b_t q_t,  k'_t = b_t k_t;  c = b_T
//! ```
//!
//! A scalar gate and a key gate take the same steps; a scalar one has the same decay for all K. Dot products have sixteen
//! partial sums, which are added as a fixed tree.

use pulp::{Simd, WithSimd};

use super::gated::operand_rows;
use super::gates::{Decay, map_betas};
use super::prepare::{Normalisers, Prepare, Widen, map_row};
use super::{Blocking, Factors, Scores, padded_key};
use crate::isa::outline;
use crate::math::{GROUP, sum_group};
use crate::rule::{Gate, Normaliser, Update};
use crate::shape::Row;

/// Rows of K elements that a block of T tokens needs while it is prepared: phi of k and q, and decays.
pub(crate) const fn space_rows(tokens: usize) -> usize {
    3 * tokens + 1
}

/// Prepares a tile, in blocks of T tokens.
pub(crate) struct Decays<'a, 'z, const T: usize> {
    pub(crate) prepare: Prepare<'a, T>,
    /// Written: what tokens take of each other.
    pub(crate) scores: &'z mut [Scores; Scores::MOST],
}

/// phi of the rows of a block, and its decays, each of K rounded up to whole groups.
struct Block<'a, const T: usize> {
    k: &'a [f32],
    q: &'a [f32],
    /// Of a key gate, `[T, K]`.
    decays: &'a [f32],
    /// Of a scalar gate.
    decay: [f32; T],
}

impl<const T: usize> WithSimd for Decays<'_, '_, T> {
    type Output = Factors;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) -> Factors {
        let scale = self.prepare.rule.scale;
        let mut factors = Factors { current: [scale; Blocking::MOST], past: [scale; Blocking::MOST] };
        let (len, rule) = (self.prepare.len, self.prepare.rule);
        let key = padded_key(self.prepare.shape.key);
        let delta = rule.update == Update::Delta;
        let block = operand_rows(T, delta) * key;
        let (space, operands) =
            (core::mem::take(&mut self.prepare.space), core::mem::take(&mut self.prepare.operands));
        let (k, rest) = space.split_at_mut(T * key);
        let (q, rest) = rest.split_at_mut(T * key);
        let (decays, bias) = rest.split_at_mut(T * key);
        let bias = &mut bias[..key];
        let gates = self.gates(simd, bias);
        for (i, operands) in operands.chunks_exact_mut(block).take(len.div_ceil(T)).enumerate() {
            let token = i * T;
            self.rows(simd, token, k, q);
            let decay = self.decays(simd, token, gates, decays, bias);
            let block = Block::<T> { k, q, decays, decay };
            let scores = &mut self.scores[i];
            match (rule.gate, delta) {
                (Gate::Key, true) => block.multiply::<S, true, true>(simd, operands, scores),
                (Gate::Key, false) => block.multiply::<S, true, false>(simd, operands, scores),
                (_, true) => block.multiply::<S, false, true>(simd, operands, scores),
                (_, false) => block.multiply::<S, false, false>(simd, operands, scores),
            }
            self.betas(simd, i);
            if let Normaliser::Global { eps } = rule.normaliser {
                let count = T.min(len - token);
                let key_gate = rule.gate == Gate::Key;
                let norms = block.norms(simd, count, key_gate, &mut self.prepare.z);
                for (factor, norm) in factors.current[token..].iter_mut().zip(&norms[..count]) {
                    *factor /= norm + eps;
                }
            }
        }
        self.prepare.widen_v(simd);
        factors
    }
}

impl<const T: usize> Decays<'_, '_, T> {
    fn row(&self, token: usize) -> Row {
        let first = self.prepare.first;
        Row { token: first.token + token, ..first }
    }

    /// phi of k and q of a block. Tokens that there are none of are zero, and change no bit of S.
    #[inline(always)]
    fn rows<S: Simd>(&self, simd: S, token: usize, k: &mut [f32], q: &mut [f32]) {
        let Prepare { rule, shape, tensors, len, .. } = self.prepare;
        let key = padded_key(shape.key);
        for t in 0..T {
            let (k, q) = (&mut k[t * key..][..key], &mut q[t * key..][..key]);
            if token + t >= len {
                // A product of -0 and +0, added to a row of S, leaves it the sign that it has where it is zero.
                k.fill(-0.0);
                q.fill(0.0);
                continue;
            }
            let row = self.row(token + t);
            for (from, to) in [(tensors.k(shape, row), k), (tensors.q(shape, row), q)] {
                outline(simd, Widen { from, to: &mut *to });
                map_row(simd, rule, to, shape.key);
            }
        }
    }

    /// The gate's map for this head, and dt_bias: of a key gate a row of it, else its number, sixteen times.
    #[inline(always)]
    fn gates<S: Simd>(&self, simd: S, bias: &mut [f32]) -> Decay {
        let Prepare { rule, shape, tensors, first, .. } = &self.prepare;
        let head = first.heads.state;
        bias.fill(0.0);
        match rule.gate {
            Gate::Key if !tensors.dt_bias.is_empty() => {
                bias[..shape.key].copy_from_slice(&tensors.dt_bias[head * shape.key..][..shape.key]);
            }
            Gate::Scalar if !tensors.dt_bias.is_empty() => bias[..GROUP].fill(tensors.dt_bias[head]),
            _ => {}
        }
        Decay::new(simd, rule.gate_map, tensors.a_log.get(head).copied().unwrap_or(0.0))
    }

    /// The decays of a block: of a key gate as rows, else as numbers. Where there is no token the decay is 1.
    #[inline(always)]
    fn decays<S: Simd>(
        &self,
        simd: S,
        token: usize,
        gates: Decay,
        rows: &mut [f32],
        bias: &[f32],
    ) -> [f32; T] {
        let Prepare { rule, shape, tensors, len, .. } = self.prepare;
        let key = padded_key(shape.key);
        let mut decay = [1.0; T];
        match rule.gate {
            Gate::None => {}
            Gate::Scalar => {
                let mut group = [0.0; GROUP];
                let count = T.min(len - token);
                for t in 0..count {
                    group[t] = tensors.g(shape, self.row(token + t), 1).first();
                }
                gates.apply(simd, &mut group, &bias[..GROUP]);
                decay[..count].copy_from_slice(&group[..count]);
            }
            Gate::Key => {
                for (t, to) in rows.chunks_exact_mut(key).take(T).enumerate() {
                    if token + t < len {
                        let from = tensors.g(shape, self.row(token + t), shape.key);
                        outline(simd, Widen { from, to: &mut *to });
                        gates.apply(simd, to, bias);
                        to[shape.key..].fill(1.0);
                    } else {
                        to.fill(1.0);
                    }
                }
            }
        }
        decay
    }

    /// beta of the tokens of a block; of those that there are none of it is 0.
    #[inline(always)]
    fn betas<S: Simd>(&mut self, simd: S, block: usize) {
        let Prepare { rule, shape, tensors, len, .. } = self.prepare;
        if rule.update != Update::Delta {
            return;
        }
        let count = T.min(len - block * T);
        let mut group = [0.0; GROUP];
        for t in 0..count {
            group[t] = tensors.beta_of(shape, self.row(block * T + t)).first();
        }
        map_betas(simd, rule.beta_map, &mut group);
        let beta = &mut self.scores[block].beta;
        *beta = [0.0; 4];
        beta[..count].copy_from_slice(&group[..count]);
    }
}

impl<const T: usize> Block<'_, T> {
    /// Operands and scores of a block; `KEY`: its decays are rows.
    #[inline(always)]
    fn multiply<S: Simd, const KEY: bool, const DELTA: bool>(
        &self,
        simd: S,
        operands: &mut [f32],
        scores: &mut Scores,
    ) {
        let mut sums = [[[[0.0; GROUP]; 4]; 4]; 2];
        self.column::<S, KEY, DELTA>(simd, 0, operands, &mut sums);
        if T == 4 {
            self.column::<S, KEY, DELTA>(simd, 1, operands, &mut sums);
            self.column::<S, KEY, DELTA>(simd, 2, operands, &mut sums);
            self.column::<S, KEY, DELTA>(simd, 3, operands, &mut sums);
        }
        let [p, m] = &sums;
        for t in 0..T {
            for s in 0..=t {
                scores.p[t][s] = sum_group(&p[t][s]);
                if DELTA && s < t {
                    scores.m[t][s] = sum_group(&m[t][s]);
                }
            }
        }
        self.from_begin::<S, KEY, DELTA>(simd, operands);
    }

    /// A vector of the decays of token t.
    #[inline(always)]
    fn decay<S: Simd, const KEY: bool>(&self, simd: S, t: usize, at: usize) -> S::f32s {
        if KEY { self.vector::<S>(self.decays, t, at) } else { simd.splat_f32s(self.decay[t]) }
    }

    /// The vector of a row that begins at an element.
    #[inline(always)]
    fn vector<S: Simd>(&self, rows: &[f32], t: usize, at: usize) -> S::f32s {
        let key = self.k.len() / T;
        S::as_simd_f32s(&rows[t * key + at..][..S::F32_LANES]).0[0]
    }

    /// What token s gives to those behind it in the block, and to the state.
    #[inline(always)]
    fn column<S: Simd, const KEY: bool, const DELTA: bool>(
        &self,
        simd: S,
        s: usize,
        operands: &mut [f32],
        sums: &mut [[[[f32; GROUP]; 4]; 4]; 2],
    ) {
        let zero = simd.splat_f32s(0.0);
        let rows = operand_rows(T, DELTA);
        for lane in (0..GROUP).step_by(S::F32_LANES) {
            let (mut p, mut m) = ([zero; T], [zero; T]);
            for (group, operands) in operands.chunks_exact_mut(rows * GROUP).enumerate() {
                let at = group * GROUP + lane;
                let mut w = self.vector::<S>(self.k, s, at);
                p[s] = simd.mul_add_e_f32s(self.vector::<S>(self.q, s, at), w, p[s]);
                for t in s + 1..T {
                    w = simd.mul_f32s(self.decay::<S, KEY>(simd, t, at), w);
                    p[t] = simd.mul_add_e_f32s(self.vector::<S>(self.q, t, at), w, p[t]);
                    if DELTA {
                        m[t] = simd.mul_add_e_f32s(self.vector::<S>(self.k, t, at), w, m[t]);
                    }
                }
                S::as_mut_simd_f32s(&mut operands[s * GROUP + lane..][..S::F32_LANES]).0[0] = w;
            }
            for t in s..T {
                S::as_mut_simd_f32s(&mut sums[0][t][s][lane..][..S::F32_LANES]).0[0] = p[t];
                S::as_mut_simd_f32s(&mut sums[1][t][s][lane..][..S::F32_LANES]).0[0] = m[t];
            }
        }
    }

    /// q and k with the decays from the block's beginning, and the decay of the whole block.
    #[inline(always)]
    fn from_begin<S: Simd, const KEY: bool, const DELTA: bool>(&self, simd: S, operands: &mut [f32]) {
        let rows = operand_rows(T, DELTA);
        for (group, operands) in operands.chunks_exact_mut(rows * GROUP).enumerate() {
            let operands = operands.as_chunks_mut::<GROUP>().0;
            for lane in (0..GROUP).step_by(S::F32_LANES) {
                let at = group * GROUP + lane;
                let mut to = |row: usize, x: S::f32s| {
                    S::as_mut_simd_f32s(&mut operands[row][lane..][..S::F32_LANES]).0[0] = x;
                };
                let mut b = self.decay::<S, KEY>(simd, 0, at);
                for t in 0..T {
                    if t > 0 {
                        b = simd.mul_f32s(b, self.decay::<S, KEY>(simd, t, at));
                    }
                    to(T + 1 + t, simd.mul_f32s(b, self.vector::<S>(self.q, t, at)));
                    if DELTA {
                        to(2 * T + 1 + t, simd.mul_f32s(b, self.vector::<S>(self.k, t, at)));
                    }
                }
                to(T, b);
            }
        }
    }

    /// `phi(q_t) . z_t` of the first `count` tokens, which z takes in.
    #[inline(always)]
    fn norms<S: Simd>(&self, simd: S, count: usize, key_gate: bool, z: &mut Normalisers<'_>) -> [f32; T] {
        let mut norms = [0.0; T];
        for (t, norm) in norms.iter_mut().enumerate().take(count) {
            let mut group = [0.0; GROUP];
            for lane in (0..GROUP).step_by(S::F32_LANES) {
                let mut sum = simd.splat_f32s(0.0);
                for at in (lane..z.z.len()).step_by(GROUP) {
                    let a = if key_gate {
                        self.decay::<S, true>(simd, t, at)
                    } else {
                        self.decay::<S, false>(simd, t, at)
                    };
                    let z = &mut S::as_mut_simd_f32s(&mut z.z[at..][..S::F32_LANES]).0[0];
                    *z = simd.mul_add_e_f32s(a, *z, self.vector::<S>(self.k, t, at));
                    sum = simd.mul_add_e_f32s(self.vector::<S>(self.q, t, at), *z, sum);
                }
                S::as_mut_simd_f32s(&mut group[lane..][..S::F32_LANES]).0[0] = sum;
            }
            *norm = sum_group(&group);
        }
        norms
    }
}
