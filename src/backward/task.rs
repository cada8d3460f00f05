//! One task: some groups of heads of one sequence. A pass forwards in time gives dq ([`super::queries`]), and one
//! backwards gives dk and dv ([`super::keys`]). This file has what they share.
#![allow(unsafe_code, reason = "tasks on different threads write different rows of one slice")]

use core::ops::Range;

use pulp::{Simd, WithSimd};

use super::sizes::{KEY_ROWS, Output, PER_TOKEN, Shared, Sizes, VALUE_ROWS};
use super::sweep::Matrix;
use super::{Inputs, Written};
use crate::element::Elements;
use crate::isa::{Lines, PREFETCHES, outline};
use crate::math::GROUP;
use crate::rule::{Normaliser, Rule};
use crate::shape::{HeadSet, Row, Shape, Strides};
use crate::state::{Layout, Sums};
use crate::sweep::Blocking;
use crate::sweep::decays::Gates;
use crate::sweep::prepare::{Tokens, Widen, map_row};
use crate::tensors::{Disjoint, Outputs, Tensors};

/// How many tokens before they are computed rows are prefetched: two tiles, as in a forward.
const AHEAD: usize = 48;

/// Some groups of heads of one sequence. Tasks that run at once differ in all heads of all tensors.
pub(crate) struct Task<'a> {
    pub(super) rule: &'a Rule,
    pub(super) shape: &'a Shape,
    pub(super) layout: &'a Layout,
    pub(super) inputs: &'a Inputs<'a>,
    /// The tensors that are read, for the gates.
    pub(super) tensors: &'a Tensors<'a>,
    pub(super) written: &'a Written<'a>,
    /// The index of the sequence along the batch of the tensors.
    pub(super) batch: usize,
    /// The sequence's first token in the tensors, and its number of tokens.
    pub(super) begin: usize,
    pub(super) len: usize,
    pub(super) groups: Range<usize>,
    /// The states of the sequence.
    pub(super) initial: Option<&'a [f32]>,
    /// The gradients of its last states.
    pub(super) last: Option<&'a [f32]>,
    pub(super) initial_gradient: Option<Disjoint<'a>>,
    pub(super) sizes: Sizes,
    pub(super) scratch: &'a mut [f32],
}

impl WithSimd for Task<'_> {
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
pub(super) struct Rows<'a> {
    pub(super) operands: &'a mut [f32],
    /// q and k, where the derivative of the feature map depends on them.
    pub(super) q: &'a mut [f32],
    pub(super) k: &'a mut [f32],
    /// phi(q) and phi(k).
    pub(super) a: &'a mut [f32],
    pub(super) c: &'a mut [f32],
    /// An output of a sweep, and another one of the past.
    pub(super) out: &'a mut [f32],
    pub(super) past: &'a mut [f32],
    pub(super) z: &'a mut [f32],
    pub(super) v: &'a mut [f32],
    /// The gradient of o.
    pub(super) output: &'a mut [f32],
    /// dN of the sums, and of the past.
    pub(super) dn: &'a mut [f32],
    pub(super) dn_past: &'a mut [f32],
    pub(super) dv: &'a mut [f32],
    /// The gradient of each token's gate.
    pub(super) dg: [f32; Blocking::MOST],
    /// The gradients of the tile, for each head of a group; those of its gates.
    pub(super) gradients: &'a mut [f32],
    pub(super) gates: &'a mut [f32],
}

/// What the outputs of a task keep from tile to tile, one after the other: sums, and numbers for each token.
pub(super) struct Kept<'a> {
    pub(super) sums: Memory<'a>,
    pub(super) numbers: &'a mut [f32],
}

/// What the pass backwards carries from tile to tile of an output with a gate: the decay of the token behind the
/// tile, and the sum of phi(q) . da - phi(k) . dc over all tokens behind it, in two numbers of scratch.
pub(super) struct Carried {
    pub(super) decay: f32,
    pub(super) sum: f64,
}

impl Carried {
    pub(super) fn load(numbers: &[f32]) -> Self {
        Self { decay: numbers[0], sum: f64::from(numbers[1]) + f64::from(numbers[2]) }
    }

    pub(super) fn store(&self, numbers: &mut [f32]) {
        let high = self.sum as f32;
        let low = if high.is_finite() { self.sum - f64::from(high) } else { 0.0 };
        numbers[..3].copy_from_slice(&[self.decay, high, low as f32]);
    }
}

/// Matrices, and vectors of K elements.
pub(super) struct Memory<'a> {
    pub(super) matrices: &'a mut [f32],
    pub(super) vectors: &'a mut [f32],
}

impl Memory<'_> {
    pub(super) fn clear(&mut self) {
        self.matrices.fill(0.0);
        self.vectors.fill(0.0);
    }
}

/// The gradient of a tensor, and its part in a group: a number of heads, and rows of `len` elements, padded to
/// `row`.
pub(super) struct Gradient<'a> {
    to: Outputs<'a>,
    strides: Strides,
    pub(super) heads: usize,
    row: usize,
    len: usize,
}

impl Gradient<'_> {
    /// The elements of a tile's gradients with respect to one head.
    pub(super) fn of(&self, head: Shared, tile: usize) -> Range<usize> {
        head.index * tile * self.row..(head.index + 1) * tile * self.row
    }
}

/// Adds rows to the gradients of a tile, or replaces them by the rows of the first output.
#[inline(always)]
pub(super) fn add<S: Simd>(simd: S, head: Shared, from: &[f32], to: &mut [f32]) {
    for (to, from) in S::as_mut_simd_f32s(to).0.iter_mut().zip(S::as_simd_f32s(from).0) {
        *to = if head.first { *from } else { simd.add_f32s(*to, *from) };
    }
}

/// Some tokens of the sequence, in the order of the pass.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) begin: usize,
    pub(super) len: usize,
    pub(super) reversed: bool,
}

impl Span {
    pub(super) fn token(&self, i: usize) -> usize {
        if self.reversed { self.begin + self.len - 1 - i } else { self.begin + i }
    }
}

impl<'a> Task<'a> {
    #[inline(always)]
    fn run<S: Simd, const B: usize, const N: usize>(mut self, simd: S) {
        let scratch = core::mem::take(&mut self.scratch);
        let (mut rows, mut kept) = self.split(scratch);
        self.queries::<S, B, N>(simd, &mut rows, &mut kept);
        self.keys::<S, B, N>(simd, &mut rows, &mut kept);
    }

    #[inline(always)]
    fn split<'s>(&self, scratch: &'s mut [f32]) -> (Rows<'s>, Kept<'s>) {
        let sizes = &self.sizes;
        let (key, value) = (sizes.tile * sizes.key_row(), sizes.tile * sizes.value_row());
        let outputs = sizes.outputs();
        let mut rest = scratch;
        let mut take = |len: usize| rest.split_off_mut(..len).unwrap_or_default();
        let operands = take(sizes.operands());
        let [q, k, a, c, out, past, z]: [&mut [f32]; KEY_ROWS] = core::array::from_fn(|_| take(key));
        let [v, output, dn, dn_past, dv]: [&mut [f32]; VALUE_ROWS] = core::array::from_fn(|_| take(value));
        let gradients = take(sizes.gradients());
        let gates = take(sizes.gates());
        let matrices = take(outputs * sizes.matrices());
        let vectors = take(outputs * sizes.vectors());
        let numbers = take(outputs * sizes.numbers());
        (
            Rows {
                operands,
                q,
                k,
                a,
                c,
                out,
                past,
                z,
                v,
                output,
                dn,
                dn_past,
                dv,
                dg: [0.0; Blocking::MOST],
                gradients,
                gates,
            },
            Kept { sums: Memory { matrices, vectors }, numbers },
        )
    }

    /// The outputs of the task, group by group.
    #[inline(always)]
    pub(super) fn outputs(&self) -> impl Iterator<Item = (usize, Output)> + use<> {
        let groups = self.sizes.groups;
        let outputs =
            self.groups.clone().flat_map(move |group| (0..groups.outputs()).map(move |i| (group, i)));
        outputs.map(move |(group, i)| groups.output(group, i)).enumerate()
    }

    /// The state of a head of the sequence.
    pub(super) fn state<'s>(&self, states: Option<&'s [f32]>, head: usize) -> Option<&'s [f32]> {
        let len = self.layout.len();
        states.map(|states| &states[head * len..][..len])
    }

    /// The number of tokens in the chunk in which the sequence begins.
    fn count(&self) -> usize {
        self.state(self.initial, 0).map_or(0, |state| self.layout.count(state))
    }

    fn chunk(&self) -> Option<usize> {
        match self.rule.normaliser {
            Normaliser::PerChunk { chunk, .. } => Some(chunk),
            _ => None,
        }
    }

    /// Whether a chunk ends before a token.
    pub(super) fn is_boundary(&self, token: usize) -> bool {
        self.chunk()
            .is_some_and(|chunk| token + self.count() > 0 && (token + self.count()).is_multiple_of(chunk))
    }

    /// The number of tokens of the tile that begins at a token: it ends no later than a chunk.
    pub(super) fn until(&self, token: usize) -> usize {
        let len = self.sizes.tile.min(self.len - token);
        self.chunk().map_or(len, |chunk| len.min(chunk - (token + self.count()) % chunk))
    }

    /// The first token of the tile that ends before `end`: it begins no earlier than a chunk.
    pub(super) fn tile_before(&self, end: usize) -> usize {
        let begin = end.saturating_sub(self.sizes.tile);
        let Some(chunk) = self.chunk() else { return begin };
        let last = (end - 1 + self.count()) / chunk * chunk;
        begin.max(last.saturating_sub(self.count()))
    }

    /// The sums to which tokens are added, and those of the past.
    pub(super) fn order(&self) -> [Sums; 2] {
        if self.layout.per_chunk { [Sums::Chunk, Sums::All] } else { [Sums::All; 2] }
    }

    /// Replaces z by that of a state, and S, of V columns, or its transpose.
    #[inline(always)]
    pub(super) fn read(&self, state: &[f32], which: Sums, s: &mut Matrix<'_>, transposed: bool) {
        let Sizes { key, value, .. } = self.sizes;
        let from = &state[self.layout.s_offset(which)..];
        if transposed {
            s.fill(key, |row, column| from[column * value + row]);
        } else {
            s.fill(value, |row, column| from[row * value + column]);
        }
    }

    /// Replaces z by that of a state.
    #[inline(always)]
    pub(super) fn read_z(&self, state: &[f32], which: Sums, z: &mut [f32]) {
        if self.layout.normalised {
            let key = self.sizes.key;
            z[..key].copy_from_slice(&state[self.layout.z_offset(which)..][..key]);
        }
    }

    pub(super) fn row(&self, token: usize, heads: HeadSet) -> Row {
        Row { batch: self.batch, token: self.begin + token, heads }
    }

    /// Reads the rows of some tokens, and computes phi of q and k.
    #[inline(always)]
    pub(super) fn load<S: Simd>(&self, simd: S, span: Span, heads: HeadSet, rows: &mut Rows<'_>) {
        let Sizes { key, value, keeps_inputs, .. } = self.sizes;
        let (key_row, value_row) = (self.sizes.key_row(), self.sizes.value_row());
        let Shape { q_strides, k_strides, v_strides, o_strides, .. } = self.shape;
        let Inputs { q, k, v, output, .. } = *self.inputs;
        for i in 0..span.len {
            let row = self.row(span.token(i), heads);
            let read = |from: Elements<'_>, begin: usize, len: usize, to: &mut [f32]| {
                outline(simd, Widen { from: from.slice(begin..begin + len), to });
            };
            let [of_key, of_value] = [i * key_row..(i + 1) * key_row, i * value_row..(i + 1) * value_row];
            for (from, begin, x, phi) in [
                (q, q_strides.offset(row, heads.q), &mut *rows.q, &mut *rows.a),
                (k, k_strides.offset(row, heads.k), &mut *rows.k, &mut *rows.c),
            ] {
                let phi = &mut phi[of_key.clone()];
                read(from, begin, key, phi);
                if keeps_inputs {
                    x[of_key.clone()].copy_from_slice(phi);
                }
                map_row(simd, self.rule.feature_map, phi, key);
            }
            read(v, v_strides.offset(row, heads.v), value, &mut rows.v[of_value.clone()]);
            read(output, o_strides.offset(row, heads.o), value, &mut rows.output[of_value]);
        }
    }

    /// The rows of q, k, v and the gradients of o, q, k and v that the tokens of a tile prefetch.
    #[inline(always)]
    pub(super) fn ahead(&self, span: Span, heads: HeadSet) -> ([Lines; 7], usize) {
        let first = span.token(0);
        let (later, tokens) = if span.reversed {
            (first.saturating_sub(AHEAD), (first + 1).saturating_sub(AHEAD))
        } else {
            (first + AHEAD, self.len.saturating_sub(first + AHEAD))
        };
        if !PREFETCHES || tokens == 0 {
            return ([Lines::NONE; 7], 0);
        }
        let row = self.row(later, heads);
        let Shape { q_strides, k_strides, v_strides, o_strides, key, value, .. } = *self.shape;
        let (inputs, written) = (self.inputs, self.written);
        let lines = [
            (inputs.q.address(), q_strides, heads.q, key),
            (inputs.k.address(), k_strides, heads.k, key),
            (inputs.v.address(), v_strides, heads.v, value),
            (inputs.output.address(), o_strides, heads.o, value),
            (written.q.address(), q_strides, heads.q, key),
            (written.k.address(), k_strides, heads.k, key),
            (written.v.address(), v_strides, heads.v, value),
        ];
        let lines = lines.map(|(address, strides, head, len)| {
            let lines = Lines::rows(address, strides.offset(row, head), strides.token, len);
            if span.reversed { lines.reversed() } else { lines }
        });
        (lines, tokens)
    }

    /// Writes the gradients of a tile with respect to all heads of a group in one tensor, `[heads, tile, row]`.
    #[inline(always)]
    pub(super) fn write<S: Simd>(
        &self,
        simd: S,
        span: Span,
        group: usize,
        tensor: &Gradient<'_>,
        rows: &[f32],
    ) {
        for (index, rows) in rows.chunks_exact(self.sizes.tile * tensor.row).take(tensor.heads).enumerate() {
            let head = self.sizes.groups.head(group, index, tensor.heads);
            for (i, row) in rows.chunks_exact(tensor.row).take(span.len).enumerate() {
                let begin = tensor.strides.index([self.batch, self.begin + span.token(i), head]);
                // SAFETY: lengths and strides were checked, and no other task has this head.
                unsafe { tensor.to.write_row(simd, begin, &row[..tensor.len]) };
            }
        }
    }

    /// The numbers that the i-th output keeps of a token.
    pub(super) fn numbers(&self, i: usize, token: usize) -> Range<usize> {
        let begin = i * self.sizes.numbers() + token * PER_TOKEN;
        begin..begin + PER_TOKEN
    }

    /// The decays of the tokens of a tile in time; 1 where there is no token.
    #[inline(always)]
    pub(super) fn decays<S: Simd>(&self, simd: S, span: Span, heads: HeadSet) -> [f32; GROUP] {
        let mut decays = [1.0; GROUP];
        let Self { rule, shape, tensors, .. } = *self;
        let tokens = Tokens { rule, shape, tensors, first: self.row(span.begin, heads), len: span.len };
        let mut bias = [0.0; GROUP];
        Gates::new(simd, tokens, &mut bias).numbers(simd, 0..span.len, &mut decays);
        decays[span.len..].fill(1.0);
        decays
    }

    /// The gradient of g.
    pub(super) fn gate_gradient(&self) -> Option<Gradient<'a>> {
        let heads = self.sizes.groups.heads()[3];
        self.written.g.map(|to| Gradient { to, strides: self.shape.g_strides(1), heads, row: 1, len: 1 })
    }

    /// The gradients of q, k and v.
    pub(super) fn gradients(&self) -> [Gradient<'a>; 3] {
        let [q, k, v, _] = self.sizes.groups.heads();
        let (key, value) = (self.sizes.key_row(), self.sizes.value_row());
        let Shape { q_strides, k_strides, v_strides, .. } = *self.shape;
        let Written { q: to_q, k: to_k, v: to_v, .. } = *self.written;
        [
            Gradient { to: to_q, strides: q_strides, heads: q, row: key, len: self.sizes.key },
            Gradient { to: to_k, strides: k_strides, heads: k, row: key, len: self.sizes.key },
            Gradient { to: to_v, strides: v_strides, heads: v, row: value, len: self.sizes.value },
        ]
    }
}
