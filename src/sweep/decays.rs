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
#![allow(unsafe_code, reason = "vectors of rows are taken without a check for each of them")]

use core::ops::Range;

use pulp::{Simd, WithSimd};

use super::gated::operand_rows;
use super::gates::{Decay, map_betas};
use super::prepare::{Normalisers, Prepare, Tokens, Widen, map_row, normalise};
use super::{Blocking, Factors, Scores, padded_key};
use crate::element::Elements;
use crate::isa::outline;
use crate::math::{GROUP, sum_group};
use crate::rule::{FeatureMap, Gate, Normaliser, Update};

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
    k: [&'a [f32]; T],
    q: [&'a [f32]; T],
    /// Of a key gate, `[T, K]`.
    decays: &'a [f32],
    /// Of a scalar gate.
    decay: [f32; T],
}

impl<const T: usize> WithSimd for Decays<'_, '_, T> {
    type Output = Factors;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) -> Factors {
        let scale = self.prepare.tokens.rule.scale;
        let mut factors = Factors { current: [scale; Blocking::MOST], past: [scale; Blocking::MOST] };
        let Tokens { len, rule, .. } = self.prepare.tokens;
        let key = padded_key(self.prepare.tokens.shape.key);
        let delta = rule.update == Update::Delta;
        let block = operand_rows(T, delta) * key;
        let (space, operands) =
            (core::mem::take(&mut self.prepare.space), core::mem::take(&mut self.prepare.operands));
        let (k, rest) = space.split_at_mut(T * key);
        let (q, rest) = rest.split_at_mut(T * key);
        let (decays, bias) = rest.split_at_mut(T * key);
        let gates = Gates::new(simd, self.prepare.tokens, &mut bias[..key]);
        let mut sums = [[[[0.0; GROUP]; 4]; 4]; 2];
        for (i, operands) in operands.chunks_exact_mut(block).take(len.div_ceil(T)).enumerate() {
            let token = i * T;
            let [k, q] = self.rows(simd, token, [&mut *k, &mut *q]);
            let decay = self.decays(simd, token, gates, decays);
            let block = Block::<T>::new(k, q, decays, decay);
            match (rule.gate, delta) {
                (Gate::Key, true) => block.multiply::<S, true, true>(simd, operands, &mut sums),
                (Gate::Key, false) => block.multiply::<S, true, false>(simd, operands, &mut sums),
                (_, true) => block.multiply::<S, false, true>(simd, operands, &mut sums),
                (_, false) => block.multiply::<S, false, false>(simd, operands, &mut sums),
            }
            let scores = &mut self.scores[i];
            for t in 0..T {
                for s in 0..=t {
                    scores.p[t][s] = sum_group(&sums[0][t][s]);
                    scores.m[t][s] = sum_group(&sums[1][t][s]);
                }
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
    /// phi of k and q of a block: where they lie, if phi is the identity and rows are whole groups of f32, else in `spaces`.
    /// Tokens that there are none of are zero, and change no bit of S.
    #[inline(always)]
    fn rows<'s, S: Simd>(&self, simd: S, token: usize, spaces: [&'s mut [f32]; 2]) -> [[&'s [f32]; T]; 2]
    where
        Self: 's,
    {
        let Tokens { rule, shape, tensors, len, .. } = self.prepare.tokens;
        let key = padded_key(shape.key);
        let whole = shape.key == key && rule.feature_map == FeatureMap::Identity;
        let mut rows: [[&[f32]; T]; 2] = [[&[]; T]; 2];
        for (i, space) in spaces.into_iter().enumerate() {
            for (t, to) in space.chunks_exact_mut(key).take(T).enumerate() {
                rows[i][t] = if token + t >= len {
                    // A product of a k of -0 and a u of +0, added to a row of S, leaves a zero there the sign that it has.
                    to.fill(if i == 0 { -0.0 } else { 0.0 });
                    to
                } else {
                    let row = self.prepare.tokens.row(token + t);
                    let from = if i == 0 { tensors.k(shape, row) } else { tensors.q(shape, row) };
                    match (from, rule.qk_norm) {
                        (Elements::F32(from), None) if whole => from,
                        (Elements::F32(from), Some(eps)) if whole => {
                            normalise(simd, from, eps, to);
                            to
                        }
                        (from, _) => {
                            outline(simd, Widen { from, to: &mut *to });
                            map_row(simd, rule, to, shape.key);
                            to
                        }
                    }
                };
            }
        }
        rows
    }

    /// The decays of a block: of a key gate as rows, else as numbers. Where there is no token the decay is 1.
    #[inline(always)]
    fn decays<S: Simd>(&self, simd: S, token: usize, gates: Gates<'_>, rows: &mut [f32]) -> [f32; T] {
        let Tokens { rule, shape, len, .. } = self.prepare.tokens;
        let mut decay = [1.0; T];
        match rule.gate {
            Gate::None => {}
            Gate::Scalar => {
                let mut group = [0.0; GROUP];
                let count = T.min(len - token);
                gates.numbers(simd, token..token + count, &mut group);
                decay[..count].copy_from_slice(&group[..count]);
            }
            Gate::Key => {
                for (t, to) in rows.chunks_exact_mut(padded_key(shape.key)).take(T).enumerate() {
                    if token + t < len {
                        gates.row(simd, token + t, to);
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
        let Tokens { rule, shape, tensors, len, .. } = self.prepare.tokens;
        if rule.update != Update::Delta {
            return;
        }
        let count = T.min(len - block * T);
        let mut group = [0.0; GROUP];
        for t in 0..count {
            group[t] = tensors.beta_of(shape, self.prepare.tokens.row(block * T + t)).first();
        }
        map_betas(simd, rule.beta_map, &mut group);
        let beta = &mut self.scores[block].beta;
        *beta = [0.0; 4];
        beta[..count].copy_from_slice(&group[..count]);
    }
}

/// The gates of a head, and how they become decays.
#[derive(Clone, Copy)]
pub(super) struct Gates<'a> {
    tokens: Tokens<'a>,
    map: Decay,
    /// dt_bias: of a key gate a row of it, else its number, sixteen times.
    bias: &'a [f32],
}

impl<'a> Gates<'a> {
    /// `bias` is a row of K rounded up to whole groups.
    #[inline(always)]
    pub(super) fn new<S: Simd>(simd: S, tokens: Tokens<'a>, bias: &'a mut [f32]) -> Self {
        let Tokens { rule, shape, tensors, first, .. } = tokens;
        let head = first.heads.state;
        bias.fill(0.0);
        match rule.gate {
            Gate::Key if !tensors.dt_bias.is_empty() => {
                bias[..shape.key].copy_from_slice(&tensors.dt_bias[head * shape.key..][..shape.key]);
            }
            Gate::Scalar if !tensors.dt_bias.is_empty() => bias[..GROUP].fill(tensors.dt_bias[head]),
            _ => {}
        }
        let map = Decay::new(simd, rule.gate_map, tensors.a_log.get(head).copied().unwrap_or(0.0));
        Self { tokens, map, bias }
    }

    /// The decays of tokens with a scalar gate, of which there are at most sixteen.
    #[inline(always)]
    pub(super) fn numbers<S: Simd>(self, simd: S, tokens: Range<usize>, to: &mut [f32; GROUP]) {
        let Tokens { shape, tensors, .. } = self.tokens;
        for (to, token) in to.iter_mut().zip(tokens) {
            *to = tensors.g(shape, self.tokens.row(token), 1).first();
        }
        self.map.apply(simd, to, &self.bias[..GROUP]);
    }

    /// The decays of a token with a key gate, and 1 behind them.
    #[inline(always)]
    pub(super) fn row<S: Simd>(self, simd: S, token: usize, to: &mut [f32]) {
        let Tokens { shape, tensors, .. } = self.tokens;
        let from = tensors.g(shape, self.tokens.row(token), shape.key);
        outline(simd, Widen { from, to: &mut *to });
        self.map.apply(simd, to, self.bias);
        to[shape.key..].fill(1.0);
    }
}

impl<'a, const T: usize> Block<'a, T> {
    /// Rows of as many elements each, a multiple of a group.
    fn new(k: [&'a [f32]; T], q: [&'a [f32]; T], decays: &'a [f32], decay: [f32; T]) -> Self {
        let key = k[0].len();
        let same = k.iter().chain(&q).all(|row| row.len() == key) && decays.len() == T * key;
        assert!(same && key.is_multiple_of(GROUP), "rows of a block");
        Self { k, q, decays, decay }
    }

    /// Vectors of q, of k and of the decays of all tokens; those that are not used cost nothing.
    ///
    /// # Safety
    /// A whole vector begins at `at` in rows of K rounded up to whole groups.
    #[inline(always)]
    unsafe fn vectors<S: Simd, const KEY: bool>(&self, simd: S, at: usize) -> [[S::f32s; T]; 3] {
        let zero = simd.splat_f32s(0.0);
        let [mut q, mut k, mut a] = [[zero; T]; 3];
        for t in 0..T {
            // SAFETY: rows are as long as the first one, and there are T of decays, by the check of `new`.
            unsafe {
                q[t] = vector::<S>(self.q[t], at);
                k[t] = vector::<S>(self.k[t], at);
                a[t] = if KEY {
                    vector::<S>(self.decays, t * self.k[0].len() + at)
                } else {
                    simd.splat_f32s(self.decay[t])
                };
            }
        }
        [q, k, a]
    }

    /// Operands of a block, and the partial sums of its dot products, P and M; `KEY`: its decays are rows.
    #[inline(always)]
    fn multiply<S: Simd, const KEY: bool, const DELTA: bool>(
        &self,
        simd: S,
        operands: &mut [f32],
        sums: &mut [[[[f32; GROUP]; 4]; 4]; 2],
    ) {
        assert_eq!(operands.len(), operand_rows(T, DELTA) * self.k[0].len(), "operands of a block");
        self.column::<S, KEY, DELTA>(simd, 0, operands, sums);
        if T == 4 {
            self.column::<S, KEY, DELTA>(simd, 1, operands, sums);
            self.column::<S, KEY, DELTA>(simd, 2, operands, sums);
            self.column::<S, KEY, DELTA>(simd, 3, operands, sums);
        }
        self.since_begin::<S, KEY, DELTA>(simd, operands);
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
                // SAFETY: operands have as many groups as the rows, by the check of `multiply`.
                let [q, k, a] = unsafe { self.vectors::<S, KEY>(simd, at) };
                let mut w = k[s];
                p[s] = simd.mul_add_e_f32s(q[s], w, p[s]);
                for t in s + 1..T {
                    w = simd.mul_f32s(a[t], w);
                    p[t] = simd.mul_add_e_f32s(q[t], w, p[t]);
                    if DELTA {
                        m[t] = simd.mul_add_e_f32s(k[t], w, m[t]);
                    }
                }
                set(simd, operands, s * GROUP + lane, w);
            }
            for t in s..T {
                set(simd, &mut sums[0][t][s], lane, p[t]);
                set(simd, &mut sums[1][t][s], lane, m[t]);
            }
        }
    }

    /// q and k with the decays from the block's beginning, and the decay of the whole block.
    #[inline(always)]
    fn since_begin<S: Simd, const KEY: bool, const DELTA: bool>(&self, simd: S, operands: &mut [f32]) {
        let rows = operand_rows(T, DELTA);
        for (group, operands) in operands.chunks_exact_mut(rows * GROUP).enumerate() {
            let operands = operands.as_chunks_mut::<GROUP>().0;
            for lane in (0..GROUP).step_by(S::F32_LANES) {
                // SAFETY: operands have as many groups as the rows, by the check of `multiply`.
                let [q, k, a] = unsafe { self.vectors::<S, KEY>(simd, group * GROUP + lane) };
                let mut b = a[0];
                for t in 0..T {
                    if t > 0 {
                        b = simd.mul_f32s(b, a[t]);
                    }
                    set(simd, &mut operands[T + 1 + t], lane, simd.mul_f32s(b, q[t]));
                    if DELTA {
                        set(simd, &mut operands[2 * T + 1 + t], lane, simd.mul_f32s(b, k[t]));
                    }
                }
                set(simd, &mut operands[T], lane, b);
            }
        }
    }

    /// `phi(q_t) . z_t` of the first `count` tokens, which z takes in.
    #[inline(always)]
    fn norms<S: Simd>(&self, simd: S, count: usize, key_gate: bool, z: &mut Normalisers<'_>) -> [f32; T] {
        assert_eq!(z.z.len(), self.k[0].len(), "elements of z");
        let mut norms = [0.0; T];
        for (t, norm) in norms.iter_mut().enumerate().take(count) {
            let mut group = [0.0; GROUP];
            for lane in (0..GROUP).step_by(S::F32_LANES) {
                let mut sum = simd.splat_f32s(0.0);
                for at in (lane..z.z.len()).step_by(GROUP) {
                    // SAFETY: z has as many elements as the rows, by the check above.
                    let [q, k, a] = unsafe {
                        if key_gate {
                            self.vectors::<S, true>(simd, at)
                        } else {
                            self.vectors::<S, false>(simd, at)
                        }
                    };
                    let z = &mut S::as_mut_simd_f32s(&mut z.z[at..][..S::F32_LANES]).0[0];
                    *z = simd.mul_add_e_f32s(a[t], *z, k[t]);
                    sum = simd.mul_add_e_f32s(q[t], *z, sum);
                }
                set(simd, &mut group, lane, sum);
            }
            *norm = sum_group(&group);
        }
        norms
    }
}

/// The vector of a row that begins at an element.
///
/// # Safety
/// All of it lies in the row.
#[inline(always)]
unsafe fn vector<S: Simd>(row: &[f32], at: usize) -> S::f32s {
    // SAFETY: in bounds by the caller's promise.
    let part = unsafe { row.get_unchecked(at..at + S::F32_LANES) };
    S::as_simd_f32s(part).0[0]
}

/// Replaces the vector of a row that begins at an element.
#[inline(always)]
fn set<S: Simd>(_: S, row: &mut [f32], at: usize, x: S::f32s) {
    S::as_mut_simd_f32s(&mut row[at..][..S::F32_LANES]).0[0] = x;
}
