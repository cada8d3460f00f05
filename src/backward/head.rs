//! The backward of one head: a pass forwards in time, which gives dq, and one backwards, which gives dk and
//! dv. The module above has the formulas.
#![allow(unsafe_code, reason = "tasks on different threads write different rows of one slice")]

use pulp::{Simd, WithSimd};

use super::sweep::{
    BOTH, KEY_ROWS, Matrix, PER_TOKEN, READ, SUM, Sizes, Swept, VALUE_ROWS, add_scaled, dot, interleave,
    sweep,
};
use super::{Inputs, Written};
use crate::element::Elements;
use crate::isa::outline;
use crate::rule::{FeatureMap, Normaliser, Rule};
use crate::scratch::padded;
use crate::shape::{HeadSet, Row, Shape};
use crate::state::{Layout, Sums};
use crate::sweep::prepare::{Widen, map_row};
use crate::sweep::{Blocking, Factors, Fold};
use crate::tensors::Disjoint;

/// One head of one sequence. Tasks that run at once differ in the head.
pub(crate) struct Head<'a> {
    pub(super) rule: &'a Rule,
    pub(super) shape: &'a Shape,
    pub(super) layout: &'a Layout,
    pub(super) inputs: &'a Inputs<'a>,
    pub(super) written: &'a Written<'a>,
    /// The index of the sequence along the batch of the tensors.
    pub(super) batch: usize,
    /// The sequence's first token in the tensors, and its number of tokens.
    pub(super) begin: usize,
    pub(super) len: usize,
    pub(super) heads: HeadSet,
    pub(super) initial: Option<&'a [f32]>,
    /// The gradient of the last state.
    pub(super) last: Option<&'a [f32]>,
    pub(super) initial_gradient: Option<Disjoint<'a>>,
    pub(super) sizes: Sizes,
    pub(super) scratch: &'a mut [f32],
}

impl WithSimd for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Blocks of B tokens by N vectors, as in a forward.
        match S::F32_LANES {
            16 => self.run::<S, 3, 4>(simd),
            8 => self.run::<S, 3, 2>(simd),
            _ => self.run::<S, 4, 2>(simd),
        }
    }
}

/// The working memory of a tile: rows of tokens in f32, padded with zeros.
struct Rows<'a> {
    operands: &'a mut [f32],
    q: &'a mut [f32],
    k: &'a mut [f32],
    /// phi(q) and phi(k).
    a: &'a mut [f32],
    c: &'a mut [f32],
    /// An output of a sweep, and another one of the past.
    out: &'a mut [f32],
    past: &'a mut [f32],
    z: &'a mut [f32],
    v: &'a mut [f32],
    /// The gradient of o.
    output: &'a mut [f32],
    /// dN of the sums, and of the past.
    dn: &'a mut [f32],
    dn_past: &'a mut [f32],
    dv: &'a mut [f32],
}

/// What is left of a head's scratch: matrices, vectors of K elements, and numbers for each token.
struct Rest<'a> {
    matrices: &'a mut [f32],
    vectors: &'a mut [f32],
    tokens: &'a mut [f32],
}

/// Some tokens of the sequence, in the order of the pass.
#[derive(Clone, Copy)]
struct Span {
    begin: usize,
    len: usize,
    reversed: bool,
}

impl Span {
    fn token(&self, i: usize) -> usize {
        if self.reversed { self.begin + self.len - 1 - i } else { self.begin + i }
    }
}

impl<'a> Head<'a> {
    #[inline(always)]
    fn run<S: Simd, const B: usize, const N: usize>(mut self, simd: S) {
        let scratch = core::mem::take(&mut self.scratch);
        let (mut rows, mut rest) = self.split(scratch);
        self.queries::<S, B, N>(simd, &mut rows, &mut rest);
        self.keys::<S, B, N>(simd, &mut rows, &mut rest);
    }

    #[inline(always)]
    fn split<'s>(&self, scratch: &'s mut [f32]) -> (Rows<'s>, Rest<'s>) {
        let sizes = &self.sizes;
        let (key, value) = (sizes.tile * sizes.key_row(), sizes.tile * sizes.value_row());
        let mut rest = scratch;
        let mut take = |len: usize| rest.split_off_mut(..len).unwrap_or_default();
        let operands = take(sizes.operands());
        let [q, k, a, c, out, past, z]: [&mut [f32]; KEY_ROWS] = core::array::from_fn(|_| take(key));
        let [v, output, dn, dn_past, dv]: [&mut [f32]; VALUE_ROWS] = core::array::from_fn(|_| take(value));
        let matrices = take(sizes.sums * (sizes.matrix() + sizes.transposed()));
        let vectors = take(sizes.sums * sizes.key_row());
        let tokens = take(padded(self.len * PER_TOKEN));
        (
            Rows { operands, q, k, a, c, out, past, z, v, output, dn, dn_past, dv },
            Rest { matrices, vectors, tokens },
        )
    }

    /// The number of tokens in the chunk in which the sequence begins.
    fn count(&self) -> usize {
        self.initial.map_or(0, |state| self.layout.count(state))
    }

    fn chunk(&self) -> Option<usize> {
        match self.rule.normaliser {
            Normaliser::PerChunk { chunk, .. } => Some(chunk),
            _ => None,
        }
    }

    /// Whether a chunk ends before a token.
    fn is_boundary(&self, token: usize) -> bool {
        self.chunk()
            .is_some_and(|chunk| token + self.count() > 0 && (token + self.count()).is_multiple_of(chunk))
    }

    /// The sums to which tokens are added, and those of the past.
    fn order(&self) -> [Sums; 2] {
        if self.layout.per_chunk { [Sums::Chunk, Sums::All] } else { [Sums::All; 2] }
    }

    /// Reads the rows of some tokens, and computes phi of q and k.
    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, span: Span, rows: &mut Rows<'_>) {
        let (key, value) = (self.sizes.key_row(), self.sizes.value_row());
        let Shape { q_strides, k_strides, v_strides, o_strides, .. } = self.shape;
        let Inputs { q, k, v, output, .. } = *self.inputs;
        let HeadSet { q: q_head, k: k_head, v: v_head, o: o_head, .. } = self.heads;
        for i in 0..span.len {
            let row = self.row(span.token(i));
            let read = |from: Elements<'_>, begin: usize, len: usize, to: &mut [f32]| {
                outline(simd, Widen { from: from.slice(begin..begin + len), to });
            };
            let [k_row, v_row] = [i * key..(i + 1) * key, i * value..(i + 1) * value];
            read(q, q_strides.offset(row, q_head), self.sizes.key, &mut rows.q[k_row.clone()]);
            read(k, k_strides.offset(row, k_head), self.sizes.key, &mut rows.k[k_row.clone()]);
            read(v, v_strides.offset(row, v_head), self.sizes.value, &mut rows.v[v_row.clone()]);
            read(output, o_strides.offset(row, o_head), self.sizes.value, &mut rows.output[v_row]);
            for (x, phi) in [(&*rows.q, &mut *rows.a), (&*rows.k, &mut *rows.c)] {
                phi[k_row.clone()].copy_from_slice(&x[k_row.clone()]);
                map_row(simd, self.rule.feature_map, &mut phi[k_row.clone()], self.sizes.key);
            }
        }
    }

    fn row(&self, token: usize) -> Row {
        Row { batch: self.batch, token: self.begin + token, heads: self.heads }
    }

    /// The pass forwards in time: dq, and for each token scale / n and dn, of the sums and of the past.
    #[inline(always)]
    fn queries<S: Simd, const B: usize, const N: usize>(
        &self,
        simd: S,
        rows: &mut Rows<'_>,
        rest: &mut Rest<'_>,
    ) {
        let sizes = &self.sizes;
        let (key, value) = (sizes.key_row(), sizes.value_row());
        let (s, past) = rest.matrices.split_at_mut(sizes.transposed());
        let past = &mut past[..(sizes.sums - 1) * sizes.transposed()];
        let mut s = Matrix::zeros(s, sizes.value, key, sizes);
        let mut past = Matrix::zeros(past, sizes.value, key, sizes);
        rest.vectors.fill(0.0);
        let (z, past_z) = rest.vectors.split_at_mut(key);
        if let Some(state) = self.initial {
            for (which, matrix, z) in
                [(self.order()[0], &mut s, &mut *z), (self.order()[1], &mut past, &mut *past_z)]
            {
                if !matrix.data.is_empty() {
                    let from = &state[self.layout.s_offset(which)..];
                    matrix.fill(sizes.key, |row, column| from[column * sizes.value + row]);
                    if self.layout.normalised {
                        z[..sizes.key].copy_from_slice(&state[self.layout.z_offset(which)..][..sizes.key]);
                    }
                }
            }
        }
        let mut use_past = self.layout.per_chunk && self.initial.is_some();
        let mut token = 0;
        while token < self.len {
            let span = Span { begin: token, len: self.until(token), reversed: false };
            self.load(simd, span, rows);
            let (mut current, mut finished) = (ONES, ONES);
            let mut inverse = [[0.0_f32; Blocking::MOST]; 2];
            for i in 0..span.len {
                let (a, c) = (&rows.a[i * key..][..key], &rows.c[i * key..][..key]);
                add_scaled(simd, 1.0, c, z);
                rows.z[i * key..][..key].copy_from_slice(z);
                inverse[0][i] = self.inverse_norm(simd, a, z);
                inverse[1][i] = if use_past { self.inverse_norm(simd, a, past_z) } else { 0.0 };
                current.current[i] = self.rule.scale * inverse[0][i];
                finished.current[i] = self.rule.scale * inverse[1][i];
            }
            interleave::<B>(rows.operands, [rows.v, rows.output], value, span.len);
            let swept = Swept { operands: rows.operands, v: rows.c, factors: &current, len: span.len };
            sweep::<S, B, N, BOTH>(simd, swept, &mut s, rows.out);
            if use_past {
                sweep::<S, B, N, READ>(simd, Swept { factors: &finished, ..swept }, &mut past, rows.past);
            }
            for i in 0..span.len {
                let range = i * key..(i + 1) * key;
                let (a, da) = (&rows.a[range.clone()], &mut rows.out[range.clone()]);
                let numbers = &mut rest.tokens[span.token(i) * PER_TOKEN..][..PER_TOKEN];
                let mut gradient = [0.0; 2];
                if self.layout.normalised {
                    gradient[0] = -dot(simd, a, da) * inverse[0][i];
                    add_scaled(simd, gradient[0], &rows.z[range.clone()], da);
                }
                if use_past {
                    let from_past = &rows.past[range.clone()];
                    gradient[1] = -dot(simd, a, from_past) * inverse[1][i];
                    add_scaled(simd, 1.0, from_past, da);
                    add_scaled(simd, gradient[1], past_z, da);
                }
                numbers.copy_from_slice(&[current.current[i], gradient[0], finished.current[i], gradient[1]]);
                derive(simd, self.rule.feature_map, [&rows.q[range.clone()], a], da);
                let begin = self.shape.q_strides.offset(self.row(span.token(i)), self.heads.q);
                // SAFETY: lengths and strides were checked, and no other task has this head.
                unsafe { self.written.q.write_row(simd, begin, &da[..sizes.key]) };
            }
            token += span.len;
            if self.is_boundary(token) {
                outline(simd, Fold { sums: s.data, past: past.data, error: &mut [] });
                outline(simd, Fold { sums: z, past: past_z, error: &mut [] });
                use_past = true;
            }
        }
    }

    /// The pass backwards in time: dk, dv and the gradient of the initial state.
    #[inline(always)]
    fn keys<S: Simd, const B: usize, const N: usize>(
        &self,
        simd: S,
        rows: &mut Rows<'_>,
        rest: &mut Rest<'_>,
    ) {
        let sizes = &self.sizes;
        let (key, value) = (sizes.key_row(), sizes.value_row());
        let per_chunk = self.layout.per_chunk;
        let (matrix, transposed) = (sizes.matrix(), sizes.transposed());
        let mut left = &mut *rest.matrices;
        let mut take = |len: usize| left.split_off_mut(..len).unwrap_or_default();
        let mut r = Matrix::zeros(take(matrix), sizes.key, value, sizes);
        let mut rt = Matrix::zeros(take(transposed), sizes.value, key, sizes);
        let mut past = Matrix::zeros(take((sizes.sums - 1) * matrix), sizes.key, value, sizes);
        let mut past_t = Matrix::zeros(take((sizes.sums - 1) * transposed), sizes.value, key, sizes);
        rest.vectors.fill(0.0);
        let (z, past_z) = rest.vectors.split_at_mut(key);
        if let Some(state) = self.last {
            for (which, [r, rt], z) in [
                (self.order()[0], [&mut r, &mut rt], &mut *z),
                (self.order()[1], [&mut past, &mut past_t], &mut *past_z),
            ] {
                if !r.data.is_empty() {
                    let from = &state[self.layout.s_offset(which)..];
                    r.fill(sizes.value, |row, column| from[row * sizes.value + column]);
                    rt.fill(sizes.key, |row, column| from[column * sizes.value + row]);
                    if self.layout.normalised {
                        z[..sizes.key].copy_from_slice(&state[self.layout.z_offset(which)..][..sizes.key]);
                    }
                }
            }
        }
        let mut end = self.len;
        loop {
            if self.is_boundary(end) {
                // The sums of the chunk that ends here became a part of the past.
                r.data.copy_from_slice(past.data);
                rt.data.copy_from_slice(past_t.data);
                z.copy_from_slice(past_z);
            }
            if end == 0 {
                break;
            }
            let begin = self.tile_before(end);
            let span = Span { begin, len: end - begin, reversed: true };
            end = begin;
            self.load(simd, span, rows);
            for i in 0..span.len {
                let range = i * value..(i + 1) * value;
                let numbers = &rest.tokens[span.token(i) * PER_TOKEN..][..PER_TOKEN];
                for (dn, factor) in [(&mut *rows.dn, numbers[0]), (&mut *rows.dn_past, numbers[2])] {
                    dn[range.clone()].fill(0.0);
                    add_scaled(simd, factor, &rows.output[range.clone()], &mut dn[range.clone()]);
                }
            }
            let (len, factors) = (span.len, &ONES);
            interleave::<B>(rows.operands, [rows.a, rows.c], key, len);
            let swept = Swept { operands: rows.operands, v: rows.dn, factors, len };
            sweep::<S, B, N, BOTH>(simd, swept, &mut r, rows.dv);
            if per_chunk {
                sweep::<S, B, N, SUM>(simd, Swept { v: rows.dn_past, ..swept }, &mut past, &mut []);
            }
            interleave::<B>(rows.operands, [rows.dn, rows.v], value, len);
            let swept = Swept { operands: rows.operands, v: rows.a, factors, len };
            sweep::<S, B, N, BOTH>(simd, swept, &mut rt, rows.out);
            if per_chunk {
                interleave::<B>(rows.operands, [rows.dn_past, rows.v], value, len);
                let swept = Swept { operands: rows.operands, v: rows.a, factors, len };
                sweep::<S, B, N, SUM>(simd, swept, &mut past_t, &mut []);
            }
            for i in 0..len {
                let range = i * key..(i + 1) * key;
                let numbers = &rest.tokens[span.token(i) * PER_TOKEN..][..PER_TOKEN];
                let (a, dc) = (&rows.a[range.clone()], &mut rows.out[range.clone()]);
                if self.layout.normalised {
                    add_scaled(simd, numbers[1], a, z);
                    add_scaled(simd, 1.0, z, dc);
                }
                if per_chunk {
                    add_scaled(simd, numbers[3], a, past_z);
                }
                derive(simd, self.rule.feature_map, [&rows.k[range.clone()], &rows.c[range.clone()]], dc);
                let row = self.row(span.token(i));
                let k = self.shape.k_strides.offset(row, self.heads.k);
                let v = self.shape.v_strides.offset(row, self.heads.v);
                // SAFETY: lengths and strides were checked, and no other task has this head.
                unsafe {
                    self.written.k.write_row(simd, k, &dc[..sizes.key]);
                    self.written.v.write_row(simd, v, &rows.dv[i * value..][..sizes.value]);
                }
            }
        }
        if let Some(to) = self.initial_gradient {
            // SAFETY: no other task has this head.
            let to = unsafe { to.whole() };
            to.fill(0.0);
            for (which, matrix, z) in [(self.order()[0], &r, &*z), (self.order()[1], &past, &*past_z)] {
                if matrix.data.is_empty() {
                    continue;
                }
                for i in 0..sizes.key {
                    for j in 0..sizes.value {
                        to[self.layout.s_offset(which) + i * sizes.value + j] = matrix.get(i, j);
                    }
                }
                if self.layout.normalised {
                    to[self.layout.z_offset(which)..][..sizes.key].copy_from_slice(&z[..sizes.key]);
                }
            }
        }
    }

    /// The number of tokens of the tile that begins at a token: it ends no later than a chunk.
    fn until(&self, token: usize) -> usize {
        let len = self.sizes.tile.min(self.len - token);
        self.chunk().map_or(len, |chunk| len.min(chunk - (token + self.count()) % chunk))
    }

    /// The first token of the tile that ends before `end`: it begins no earlier than a chunk.
    fn tile_before(&self, end: usize) -> usize {
        let begin = end.saturating_sub(self.sizes.tile);
        let Some(chunk) = self.chunk() else { return begin };
        let last = (end - 1 + self.count()) / chunk * chunk;
        begin.max(last.saturating_sub(self.count()))
    }

    /// 1 / (phi(q) . z + eps), or 1 without a normaliser.
    #[inline(always)]
    fn inverse_norm<S: Simd>(&self, simd: S, a: &[f32], z: &[f32]) -> f32 {
        match self.rule.normaliser {
            Normaliser::None => 1.0,
            Normaliser::Global { eps } | Normaliser::PerChunk { eps, .. } => 1.0 / (dot(simd, a, z) + eps),
        }
    }
}

/// Factors of outputs that are left as they are.
const ONES: Factors = Factors { current: [1.0; Blocking::MOST], past: [1.0; Blocking::MOST] };

/// Multiplies a gradient by the derivative of the feature map at x, of which `phi` is the image.
#[inline(always)]
fn derive<S: Simd>(simd: S, map: FeatureMap, [x, phi]: [&[f32]; 2], gradient: &mut [f32]) {
    let (zero, one) = (simd.splat_f32s(0.0), simd.splat_f32s(1.0));
    let rows = S::as_simd_f32s(x).0.iter().zip(S::as_simd_f32s(phi).0);
    for (gradient, (x, phi)) in S::as_mut_simd_f32s(gradient).0.iter_mut().zip(rows) {
        *gradient = match map {
            // The derivative of exp(x) is phi, which is at most 1 below 0.
            FeatureMap::Elu => simd.mul_f32s(*gradient, simd.min_f32s(*phi, one)),
            FeatureMap::Relu { .. } => simd.select_f32s(simd.greater_than_f32s(*x, zero), *gradient, zero),
            FeatureMap::Identity => *gradient,
        };
    }
}
