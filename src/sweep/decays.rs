//! The operands of the sweep of rules with decays or a delta, one block of T tokens (one or two) at a time:
//! phi of q and k with the decays from and to the ends of the block, and the coefficients between its tokens.
//!
//! ```text
//! c = a_0 a_1;  k''_0 = a_1 k_0,  k''_1 = k_1;  q'_0 = a_0 q_0,  q'_1 = c q_1;  k' likewise        elementwise over K
//! P_00 = q_0 . k_0,  P_10 = q_1 . k''_0,  P_11 = q_1 . k_1,  M = k_1 . k''_0                        dot products
//! ```
//!
//! A scalar gate and a key gate take the same steps; a scalar gate has the same decay for all K. Dot products
//! have sixteen partial sums, which are added in a fixed tree.
//!
//! The norm of q and k needs no pass of its own: q and k stay as they are, and 1 / |q| becomes a part of the
//! factor of an output, 1 / |k| of the factors of y and u.
#![allow(unsafe_code, reason = "vectors of rows are taken without a check for each of them")]

use core::ops::Range;

use pulp::{Simd, WithSimd};

use super::gated::operand_rows;
use super::gates::{Decay, map_betas};
use super::prepare::{Normalisers, Prepare, Tokens, Widen, map_row};
use super::{Blocking, Factors, Scores, padded_key};
use crate::element::Elements;
use crate::isa::{outline, sum_groups};
use crate::math::{GROUP, inverse_root, sum_group};
use crate::rule::{FeatureMap, Gate, Normaliser, Update};
use crate::vector::copy_row;

/// The number of rows of K elements that a block of T tokens needs while it is prepared: phi of k and q,
/// decays, and dt_bias.
pub(crate) const fn space_rows(tokens: usize) -> usize {
    3 * tokens + 1
}

/// The number of dot products of a block.
const PRODUCTS: usize = 8;

/// The partial sums of the dot products of a block: P_00, P_10, P_11 and M of its tokens with each other,
/// followed by those of q_0, q_1, k_0 and k_1 with themselves, for the norms.
type Products = [[f32; GROUP]; PRODUCTS];

/// Prepares a tile, in blocks of T tokens.
pub(crate) struct Decays<'a, 'z, const T: usize> {
    pub(crate) prepare: Prepare<'a, T>,
    /// The coefficients between tokens, which are written.
    pub(crate) scores: &'z mut [Scores; Scores::MOST],
}

/// phi of the rows of a block, and its decays; each row has K elements rounded up to whole groups.
struct Block<'a, const T: usize> {
    k: [&'a [f32]; T],
    q: [&'a [f32]; T],
    /// The decays of a key gate, `[T, K]`.
    decays: &'a [f32],
    /// The decays of a scalar gate.
    decay: [f32; T],
}

impl<const T: usize> WithSimd for Decays<'_, '_, T> {
    type Output = Factors;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) -> Factors {
        let Tokens { len, rule, shape, .. } = self.prepare.tokens;
        let key = padded_key(shape.key);
        let delta = rule.update == Update::Delta;
        let (space, operands) =
            (core::mem::take(&mut self.prepare.space), core::mem::take(&mut self.prepare.operands));
        let (rows, rest) = space.split_at_mut(2 * T * key);
        let (decays, bias) = rest.split_at_mut(T * key);
        let gates = Gates::new(simd, self.prepare.tokens, &mut bias[..key]);
        let mut numbers = [1.0; GROUP];
        if rule.gate == Gate::Scalar {
            gates.numbers(simd, 0..len, &mut numbers);
            numbers[len..].fill(1.0);
        }
        let blocks = operands.chunks_exact_mut(operand_rows(T, delta) * key).take(len.div_ceil(T));
        let mut products = [[[0.0; GROUP]; PRODUCTS]; 2];
        let count = blocks.len();
        for (i, operands) in blocks.enumerate() {
            let token = i * T;
            let [k, q] = self.rows(simd, token, rows);
            if rule.gate == Gate::Key {
                self.decays(simd, token, gates, decays);
            }
            let mut decay = [1.0; T];
            decay.copy_from_slice(&numbers[token..token + T]);
            let block = Block::<T>::new(k, q, decays, decay);
            let products_of = &mut products[i % 2];
            match (rule.gate, delta) {
                (Gate::Key, true) => block.multiply::<S, true, true>(simd, operands, products_of),
                (Gate::Key, false) => block.multiply::<S, true, false>(simd, operands, products_of),
                (_, true) => block.multiply::<S, false, true>(simd, operands, products_of),
                (_, false) => block.multiply::<S, false, false>(simd, operands, products_of),
            }
            if rule.norm().is_some() {
                block.squares(simd, products_of);
            }
            // The sums of two blocks fill a vector.
            if i % 2 == 1 || i + 1 == count {
                let sums = sum_groups(simd, bytemuck::cast_ref(&products));
                for (scores, sums) in self.scores[i & !1..=i].iter_mut().zip(sums.chunks_exact(PRODUCTS)) {
                    scores.products.copy_from_slice(sums);
                }
            }
        }
        let factors = self.factors(simd, operands);
        self.prepare.widen_v(simd);
        factors
    }
}

impl<const T: usize> Decays<'_, '_, T> {
    /// phi of k and q of a block: the tensors' own rows, if phi is the identity and rows are whole groups of
    /// f32, else rows in `space`. Missing tokens are zero, and change no bit of S.
    #[inline(always)]
    fn rows<'s, S: Simd>(&self, simd: S, token: usize, space: &'s mut [f32]) -> [[&'s [f32]; T]; 2]
    where
        Self: 's,
    {
        let Tokens { rule, shape, tensors, len, .. } = self.prepare.tokens;
        let key = padded_key(shape.key);
        let whole = shape.key == key && rule.feature_map == FeatureMap::Identity;
        let mut rows: [[&[f32]; T]; 2] = [[&[]; T]; 2];
        let mut spaces = space.chunks_exact_mut(key);
        for (i, rows) in rows.iter_mut().enumerate() {
            for (t, to) in rows.iter_mut().enumerate() {
                let Some(space) = spaces.next() else { continue };
                if token + t >= len {
                    // The product of a k of -0 and a u of +0, added to a row of S, preserves the sign of a
                    // zero there.
                    space.fill(if i == 0 { -0.0 } else { 0.0 });
                    *to = space;
                    continue;
                }
                let row = self.prepare.tokens.row(token + t);
                *to = match if i == 0 { tensors.k(shape, row) } else { tensors.q(shape, row) } {
                    Elements::F32(from) if whole => from,
                    from => {
                        outline(simd, Widen { from, to: &mut *space });
                        map_row(simd, rule.feature_map, space, shape.key);
                        space
                    }
                };
            }
        }
        rows
    }

    /// The decays of a block with a key gate. Those of missing tokens are 1.
    #[inline(always)]
    fn decays<S: Simd>(&self, simd: S, token: usize, gates: Gates<'_>, rows: &mut [f32]) {
        let Tokens { shape, len, .. } = self.prepare.tokens;
        for (t, to) in rows.chunks_exact_mut(padded_key(shape.key)).take(T).enumerate() {
            if token + t < len {
                gates.row(simd, token + t, to);
            } else {
                to.fill(1.0);
            }
        }
    }

    /// Computes, from the products of all blocks, the coefficients between tokens and the factors of u, y and
    /// outputs. Adds the tile to z.
    #[inline(always)]
    fn factors<S: Simd>(&mut self, simd: S, operands: &[f32]) -> Factors {
        let Tokens { rule, len, .. } = self.prepare.tokens;
        let betas = self.betas(simd);
        let mut inverse_lengths = [[1.0; Scores::MOST * 2]; 2];
        if let Some(eps) = rule.norm() {
            let [q, k] = &mut inverse_lengths;
            for (i, scores) in self.scores[..len.div_ceil(T)].iter().enumerate() {
                for t in 0..T {
                    (q[i * T + t], k[i * T + t]) = (scores.products[4 + t], scores.products[6 + t]);
                }
            }
            for x in inverse_lengths.iter_mut().flat_map(|x| S::as_mut_simd_f32s(x).0) {
                *x = inverse_root(simd, simd.add_f32s(*x, simd.splat_f32s(eps)));
            }
        }
        let [of_q, of_k] = inverse_lengths;
        let mut factors =
            Factors { current: [rule.scale; Blocking::MOST], past: [rule.scale; Blocking::MOST] };
        let block = operand_rows(T, rule.update == Update::Delta) * self.prepare.z.z.len();
        for (i, scores) in self.scores[..len.div_ceil(T)].iter_mut().enumerate() {
            let token = i * T;
            let count = T.min(len - token);
            let [p00, p10, p11, m, ..] = scores.products;
            scores.p = [[p00, 0.0], [p10, p11]];
            for t in 0..T {
                let of_k = if t < count { of_k[token + t] } else { 1.0 };
                scores.y[t] = -of_k;
                scores.u[t] = betas[token + t] * of_k;
            }
            scores.m = scores.y[T - 1] * m;
            let mut norms = [1.0; 2];
            if let Normaliser::Global { eps } = rule.normaliser {
                let [a, b] =
                    add_to_z::<S, T>(simd, scores, &operands[i * block..][..block], &mut self.prepare.z);
                norms = [of_q[token] * a + eps, of_q[token + T - 1] * b + eps];
            }
            for t in 0..count {
                factors.current[token + t] *= of_q[token + t] / norms[t];
            }
        }
        factors
    }

    /// beta of the tokens of a tile: 1 with the linear update; with the delta rule, 0 for missing tokens.
    #[inline(always)]
    fn betas<S: Simd>(&self, simd: S) -> [f32; GROUP] {
        let Tokens { rule, shape, tensors, len, .. } = self.prepare.tokens;
        if rule.update != Update::Delta {
            return [1.0; GROUP];
        }
        let mut betas = [0.0; GROUP];
        for (t, beta) in betas[..len].iter_mut().enumerate() {
            *beta = tensors.beta_of(shape, self.prepare.tokens.row(t)).first();
        }
        map_betas(simd, rule.beta_map, &mut betas);
        betas[len..].fill(0.0);
        betas
    }
}

/// The gates of a head, and how they become decays.
#[derive(Clone, Copy)]
pub(crate) struct Gates<'a> {
    tokens: Tokens<'a>,
    map: Decay,
    /// dt_bias: for a key gate a row, else one number repeated sixteen times.
    bias: &'a [f32],
}

impl<'a> Gates<'a> {
    /// `bias` is room for dt_bias, a row of K elements rounded up to whole groups.
    #[inline(always)]
    pub(crate) fn new<S: Simd>(simd: S, tokens: Tokens<'a>, bias: &'a mut [f32]) -> Self {
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

    /// The decays of at most sixteen tokens with a scalar gate.
    #[inline(always)]
    pub(crate) fn numbers<S: Simd>(self, simd: S, tokens: Range<usize>, to: &mut [f32; GROUP]) {
        let Tokens { shape, tensors, .. } = self.tokens;
        for (to, token) in to.iter_mut().zip(tokens) {
            *to = tensors.g(shape, self.tokens.row(token), 1).first();
        }
        self.map.apply(simd, to, &self.bias[..GROUP]);
    }

    /// The decays of a token with a key gate, padded with 1.
    #[inline(always)]
    pub(super) fn row<S: Simd>(self, simd: S, token: usize, to: &mut [f32]) {
        let Tokens { shape, tensors, .. } = self.tokens;
        match tensors.g(shape, self.tokens.row(token), shape.key) {
            Elements::F32(from) => copy_row(simd, from, to),
            from => outline(simd, Widen { from, to: &mut *to }),
        }
        self.map.apply(simd, to, self.bias);
        to[shape.key..].fill(1.0);
    }
}

impl<'a, const T: usize> Block<'a, T> {
    /// All rows must have the same number of elements, a multiple of a group.
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

    /// Computes the operands of a block and the partial sums of the dot products of its tokens. With `KEY`,
    /// its decays are rows.
    #[inline(always)]
    fn multiply<S: Simd, const KEY: bool, const DELTA: bool>(
        &self,
        simd: S,
        operands: &mut [f32],
        products: &mut Products,
    ) {
        let (rows, last) = (operand_rows(T, DELTA), T - 1);
        assert_eq!(operands.len(), rows * self.k[0].len(), "operands of a block");
        for lane in (0..GROUP).step_by(S::F32_LANES) {
            let mut sums = [simd.splat_f32s(0.0); 4];
            for (group, operands) in operands.chunks_exact_mut(rows * GROUP).enumerate() {
                // SAFETY: operands have as many groups as the rows, by the check above.
                let [q, k, a] = unsafe { self.vectors::<S, KEY>(simd, group * GROUP + lane) };
                let [mut decayed, mut c] = [k[0], a[0]];
                sums[0] = simd.mul_add_e_f32s(q[0], k[0], sums[0]);
                if T == 2 {
                    decayed = simd.mul_f32s(a[last], decayed);
                    c = simd.mul_f32s(c, a[last]);
                    sums[1] = simd.mul_add_e_f32s(q[last], decayed, sums[1]);
                    sums[2] = simd.mul_add_e_f32s(q[last], k[last], sums[2]);
                    if DELTA {
                        sums[3] = simd.mul_add_e_f32s(k[last], decayed, sums[3]);
                    }
                }
                let operands = operands.as_chunks_mut::<GROUP>().0;
                set(simd, &mut operands[last], lane, k[last]);
                set(simd, &mut operands[0], lane, decayed);
                set(simd, &mut operands[T], lane, c);
                for (t, since) in [(0, a[0]), (last, c)] {
                    set(simd, &mut operands[T + 1 + t], lane, simd.mul_f32s(since, q[t]));
                    if DELTA {
                        set(simd, &mut operands[2 * T + 1 + t], lane, simd.mul_f32s(since, k[t]));
                    }
                }
            }
            for (products, sum) in products.iter_mut().zip(sums) {
                set(simd, products, lane, sum);
            }
        }
    }

    /// Computes the partial sums of the squares of q and of k.
    #[inline(always)]
    fn squares<S: Simd>(&self, simd: S, products: &mut Products) {
        for lane in (0..GROUP).step_by(S::F32_LANES) {
            let mut sums = [[simd.splat_f32s(0.0); T]; 2];
            for at in (lane..self.k[0].len()).step_by(GROUP) {
                // SAFETY: rows consist of whole groups.
                let [q, k, _] = unsafe { self.vectors::<S, false>(simd, at) };
                for t in 0..T {
                    sums[0][t] = simd.mul_add_e_f32s(q[t], q[t], sums[0][t]);
                    sums[1][t] = simd.mul_add_e_f32s(k[t], k[t], sums[1][t]);
                }
            }
            for t in 0..T {
                set(simd, &mut products[4 + t], lane, sums[0][t]);
                set(simd, &mut products[6 + t], lane, sums[1][t]);
            }
        }
    }
}

/// Lays rows of a tile out as operands of blocks of two tokens with a scalar gate, for the linear update, and
/// returns the coefficients between tokens. `k` and `q` have room for one row more than `len`, which is
/// overwritten where the last block has only one token; the decay of that missing token must be 1.
#[inline(always)]
pub(crate) fn lay_out<S: Simd>(
    simd: S,
    operands: &mut [f32],
    [k, q]: [&mut [f32]; 2],
    [row, len]: [usize; 2],
    decays: &[f32; GROUP],
) -> [Scores; Scores::MOST] {
    if !len.is_multiple_of(2) {
        // As in [`Decays::rows`].
        k[len * row..][..row].fill(-0.0);
        q[len * row..][..row].fill(0.0);
    }
    let mut scores = [Scores::ZERO; Scores::MOST];
    let mut products = [[[0.0; GROUP]; PRODUCTS]; 2];
    let count = len.div_ceil(2);
    for (i, operands) in operands.chunks_exact_mut(operand_rows(2, false) * row).take(count).enumerate() {
        let both = 2 * i * row..(2 * i + 2) * row;
        let [(k0, k1), (q0, q1)] = [&k[both.clone()], &q[both.clone()]].map(|rows| rows.split_at(row));
        let block = Block::<2>::new([k0, k1], [q0, q1], &k[both], [decays[2 * i], decays[2 * i + 1]]);
        block.multiply::<S, false, false>(simd, operands, &mut products[i % 2]);
        if i % 2 == 1 || i + 1 == count {
            let sums = sum_groups(simd, bytemuck::cast_ref(&products));
            for (scores, sums) in scores[i & !1..=i].iter_mut().zip(sums.chunks_exact(PRODUCTS)) {
                (scores.p, scores.u) = ([[sums[0], 0.0], [sums[1], sums[2]]], [1.0; 2]);
            }
        }
    }
    scores
}

/// Adds the tokens of a block to z and returns their `phi(q_t) . z_t`: z is a column of S whose v are 1.
#[inline(always)]
fn add_to_z<S: Simd, const T: usize>(
    simd: S,
    scores: &Scores,
    operands: &[f32],
    z: &mut Normalisers<'_>,
) -> [f32; 2] {
    let rows = operand_rows(T, false);
    let mut sums = [[0.0; GROUP]; 2];
    for lane in (0..GROUP).step_by(S::F32_LANES) {
        let mut partial = [simd.splat_f32s(0.0); T];
        for (operands, z) in operands.chunks_exact(rows * GROUP).zip(z.z.chunks_exact_mut(GROUP)) {
            let row = |row: usize| S::as_simd_f32s(&operands[row * GROUP + lane..][..S::F32_LANES]).0[0];
            let z = &mut S::as_mut_simd_f32s(&mut z[lane..][..S::F32_LANES]).0[0];
            let mut x = simd.mul_f32s(row(T), *z);
            for t in 0..T {
                partial[t] = simd.mul_add_e_f32s(row(T + 1 + t), *z, partial[t]);
                x = simd.mul_add_e_f32s(row(t), simd.splat_f32s(scores.u[t]), x);
            }
            *z = x;
        }
        for t in 0..T {
            set(simd, &mut sums[t], lane, partial[t]);
        }
    }
    let mut norms = [0.0; 2];
    for t in 0..T {
        norms[t] = sum_group(&sums[t]);
        for s in 0..=t {
            norms[t] += scores.p[t][s] * scores.u[s];
        }
    }
    norms
}

/// The vector of a row that begins at an element.
///
/// # Safety
/// The whole vector lies in the row.
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
