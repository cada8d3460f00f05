//! Speculative decoding: what a verify records of its tokens ([`Record`]), and the sweep that adds the
//! accepted tokens to a state in place ([`Commit`]):
//!
//! ```text
//! for each row i of S:
//!     x = S[i]
//!     for each accepted token t:
//!         x = a_t[i] x + phi(k_t)[i] u_t
//!     S[i] = x
//! ```
//!
//! With the u that a verify has solved for, the delta rule is the linear update. Each element is the chain of
//! operations of [`crate::Attention::decode`], so that a linear update has the bits of as many decodes.

use core::ops::Range;

use pulp::{Simd, WithSimd};

use super::decays::Gates;
use super::prepare::{Tokens, Widen, inverse_length, map_row, normalise};
use super::{Fold, padded_key};
use crate::isa::outline;
use crate::math::{GROUP, add_compensated};
use crate::rule::{Gate, Normaliser, Rule};
use crate::shape::Shape;
use crate::state::{Layout, Pieces};
use crate::tensors::Disjoint;
use crate::vector::{load, store};

/// The largest number of tokens in a draft.
pub(crate) const MOST_TOKENS: usize = 16;

/// The layout of the record of one head: phi(k), `[T, K]`, u, `[T, V]`, and decays, `[T, 0, 1 or K]`. For
/// rules in blocks phi(k) is not divided by its norm, because u is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordLayout {
    tokens: usize,
    key: usize,
    value: usize,
    gate: usize,
}

impl RecordLayout {
    pub(crate) fn new(rule: &Rule, shape: &Shape) -> Self {
        let gate = if rule.gate == Gate::None { 0 } else { rule.gate_row(shape.key) };
        Self { tokens: shape.len, key: shape.key, value: shape.value, gate }
    }

    /// Elements of the record of one head.
    pub(crate) fn len(&self) -> usize {
        self.tokens * (self.key + self.value + self.gate)
    }

    fn k(&self, token: usize) -> Range<usize> {
        token * self.key..(token + 1) * self.key
    }

    fn u(&self, token: usize) -> Range<usize> {
        let begin = self.tokens * self.key + token * self.value;
        begin..begin + self.value
    }

    fn decays(&self, token: usize) -> Range<usize> {
        let begin = self.tokens * (self.key + self.value) + token * self.gate;
        begin..begin + self.gate
    }
}

/// The record of one head, which is written by tasks that differ in columns of V.
#[derive(Clone, Copy)]
pub(crate) struct Record<'a> {
    pub(crate) data: Disjoint<'a>,
    pub(crate) layout: RecordLayout,
    /// The first token of the tile that is being computed.
    pub(crate) token: usize,
}

impl Record<'_> {
    /// Writes columns of u for tokens of the tile, one row of `from` for each token.
    pub(super) fn write_u(&self, token: usize, columns: Range<usize>, from: &[f32], stride: usize) {
        for (t, from) in from.chunks_exact(stride).enumerate() {
            let begin = self.layout.u(self.token + token + t).start + columns.start;
            #[allow(unsafe_code, reason = "columns are split among tasks")]
            // SAFETY: tasks differ in the head or in the columns, and each writes a row once at a time.
            unsafe { self.data.part(begin, columns.len()) }.copy_from_slice(&from[..columns.len()]);
        }
    }
}

/// Records a tile: phi(k), decays and, for a rule that is not in blocks, v, which is its u.
pub(crate) struct Keep<'a> {
    pub(crate) tokens: Tokens<'a>,
    pub(crate) record: Record<'a>,
    /// This task's columns of V. The task of the first column records phi(k) and decays.
    pub(crate) columns: Range<usize>,
    /// Room for two rows of K elements rounded up to whole groups.
    pub(crate) space: &'a mut [f32],
}

impl WithSimd for Keep<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { tokens, record, columns, space } = self;
        let Tokens { rule, shape, tensors, len, .. } = tokens;
        let (row, rest) = space.split_at_mut(padded_key(shape.key));
        let (bias, _) = rest.split_at_mut(padded_key(shape.key));
        let gates = Gates::new(simd, tokens, bias);
        let mut decays = [0.0; GROUP];
        if rule.gate == Gate::Scalar {
            gates.numbers(simd, 0..len, &mut decays);
        }
        for t in 0..len {
            let (from, to) = (tokens.row(t), record.token + t);
            #[allow(unsafe_code, reason = "columns are split among tasks")]
            // SAFETY: tasks differ in the head or in the columns, only the task of the first column takes
            // phi(k) and decays, and one part is alive at a time.
            let part = |range: Range<usize>| unsafe { record.data.part(range.start, range.len()) };
            if !rule.in_blocks() {
                let u = record.layout.u(to).start;
                let to = part(u + columns.start..u + columns.end);
                outline(simd, Widen { from: tensors.v(shape, from, columns.clone()), to });
            }
            if columns.start > 0 {
                continue;
            }
            outline(simd, Widen { from: tensors.k(shape, from), to: &mut *row });
            map_row(simd, rule.feature_map, row, shape.key);
            if let (Some(eps), false) = (rule.norm(), rule.in_blocks()) {
                normalise(simd, row, eps);
            }
            part(record.layout.k(to)).copy_from_slice(&row[..shape.key]);
            let to = part(record.layout.decays(to));
            match rule.gate {
                Gate::None => {}
                Gate::Scalar => to[0] = decays[t],
                Gate::Key => {
                    gates.row(simd, t, row);
                    to.copy_from_slice(&row[..shape.key]);
                }
            }
        }
    }
}

/// Adds the first tokens of a record to the state of a head.
pub(crate) struct Commit<'a> {
    pub(crate) rule: &'a Rule,
    pub(crate) layout: &'a Layout,
    pub(crate) record: &'a [f32],
    pub(crate) record_layout: RecordLayout,
    /// The number of tokens to add.
    pub(crate) accepted: usize,
    pub(crate) state: &'a mut [f32],
}

impl WithSimd for Commit<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rule, layout, record, record_layout, accepted, state } = self;
        let Pieces { mut matrices, mut z, count } = layout.split(state);
        let qk_norm = if rule.in_blocks() { rule.norm() } else { None };
        let source = Source { record, layout: record_layout, qk_norm };
        let Normaliser::PerChunk { chunk, .. } = rule.normaliser else {
            let [s, _, error] = &mut matrices;
            source.add_to_matrix(simd, 0..accepted, s, error);
            let [z, _, error] = &mut z;
            source.add_to_z(simd, 0..accepted, z, error);
            return;
        };
        let mut in_chunk = count[0] as usize;
        let mut begin = 0;
        while begin < accepted {
            let end = accepted.min(begin + chunk - in_chunk);
            source.add_to_matrix(simd, begin..end, matrices[0], &mut []);
            source.add_to_z(simd, begin..end, z[0], &mut []);
            in_chunk += end - begin;
            if in_chunk == chunk {
                in_chunk = 0;
                for [sums, past, error] in [&mut matrices, &mut z] {
                    outline(simd, Fold { sums, past, error });
                }
            }
            begin = end;
        }
        count[0] = in_chunk as f32;
    }
}

/// The record of one head.
#[derive(Clone, Copy)]
struct Source<'a> {
    record: &'a [f32],
    layout: RecordLayout,
    /// eps of the norm by which the recorded k has not been divided, if there is one.
    qk_norm: Option<f32>,
}

/// A token of the record of one head.
#[derive(Clone, Copy, Default)]
struct Token<'a> {
    k: &'a [f32],
    u: &'a [f32],
    /// No decay, one decay, or one for each row of S.
    decays: &'a [f32],
}

impl Token<'_> {
    /// The number by which a row of S is multiplied.
    #[inline(always)]
    fn decay(&self, row: usize) -> f32 {
        match self.decays {
            [] => 1.0,
            [decay] => *decay,
            decays => decays[row],
        }
    }
}

impl<'a> Source<'a> {
    fn token(&self, token: usize) -> Token<'a> {
        let [k, u, decays] = [self.layout.k(token), self.layout.u(token), self.layout.decays(token)];
        Token { k: &self.record[k], u: &self.record[u], decays: &self.record[decays] }
    }

    /// Adds tokens to S, with the rounding errors beside it where they are kept.
    #[inline(always)]
    fn add_to_matrix<S: Simd>(&self, simd: S, tokens: Range<usize>, s: &mut [f32], errors: &mut [f32]) {
        let value = self.layout.value;
        let mut all = [Token::default(); MOST_TOKENS];
        for (to, token) in all.iter_mut().zip(tokens.clone()) {
            *to = self.token(token);
        }
        let tokens = &all[..tokens.len()];
        if !errors.is_empty() {
            let rows = s.chunks_exact_mut(value).zip(errors.chunks_exact_mut(value));
            for (row, (s, errors)) in rows.enumerate() {
                compensated(simd, tokens, row, s, errors);
            }
            return;
        }
        // A token is two dependent operations, which take eight cycles. Eight vectors of each of two rows, or
        // four where there are fewer registers, fill these cycles.
        if S::F32_LANES == 8 {
            rows::<S, 4>(simd, tokens, s, value);
        } else {
            rows::<S, 8>(simd, tokens, s, value);
        }
    }

    /// Adds tokens to z, which is empty without a normaliser.
    #[inline(always)]
    fn add_to_z<S: Simd>(&self, simd: S, tokens: Range<usize>, z: &mut [f32], errors: &mut [f32]) {
        if z.is_empty() {
            return;
        }
        for token in tokens {
            let Token { k, decays, .. } = self.token(token);
            let inverse = self.qk_norm.map_or(1.0, |eps| inverse_length(simd, k, eps));
            for i in (0..z.len()).step_by(S::F32_LANES) {
                let (x, k) = (load_part::<S>(&z[i..]), load_part::<S>(&k[i..]));
                let x = match decays {
                    [] if !errors.is_empty() => {
                        let (x, error) = add_compensated(simd, x, load_part::<S>(&errors[i..]), k);
                        store_part::<S>(error, &mut errors[i..]);
                        x
                    }
                    [] => simd.add_f32s(x, k),
                    // These are the operations with which a block of one token is added to z.
                    decays => {
                        let decay = if let [decay] = decays {
                            simd.splat_f32s(*decay)
                        } else {
                            load_part::<S>(&decays[i..])
                        };
                        simd.mul_add_e_f32s(k, simd.splat_f32s(inverse), simd.mul_f32s(decay, x))
                    }
                };
                store_part::<S>(x, &mut z[i..]);
            }
        }
    }
}

/// Adds tokens to all rows of S, two rows at a time.
#[inline(always)]
fn rows<S: Simd, const N: usize>(simd: S, tokens: &[Token<'_>], s: &mut [f32], value: usize) {
    for (i, s) in s.chunks_mut(2 * value).enumerate() {
        let mut column = 0;
        if s.len() == 2 * value {
            while value - column >= N * S::F32_LANES {
                chain::<S, 2, N>(simd, tokens, 2 * i, s, column);
                column += N * S::F32_LANES;
            }
        }
        for (row, s) in s.chunks_exact_mut(value).enumerate() {
            for column in (column..value).step_by(S::F32_LANES) {
                let s = &mut s[column..];
                let u = |token: &Token<'_>| [load_part::<S>(&token.u[column..])];
                let [[x]] = after::<S, 1, 1>(simd, tokens, 2 * i + row, [[load_part::<S>(s)]], u);
                store_part::<S>(x, s);
            }
        }
    }
}

/// Adds tokens to N vectors of R rows of S, which begin at a row and a column.
#[inline(always)]
fn chain<S: Simd, const R: usize, const N: usize>(
    simd: S,
    tokens: &[Token<'_>],
    row: usize,
    s: &mut [f32],
    column: usize,
) {
    let value = s.len() / R;
    let mut x = [[simd.splat_f32s(0.0); N]; R];
    for r in 0..R {
        x[r] = load::<S, N>(&s[r * value + column..]);
    }
    x = after(simd, tokens, row, x, |token| load::<S, N>(&token.u[column..]));
    for r in 0..R {
        store::<S, N>(x[r], &mut s[r * value + column..]);
    }
}

/// Vectors of rows of S after the tokens.
#[inline(always)]
fn after<S: Simd, const R: usize, const N: usize>(
    simd: S,
    tokens: &[Token<'_>],
    row: usize,
    mut x: [[S::f32s; N]; R],
    u: impl Fn(&Token<'_>) -> [S::f32s; N],
) -> [[S::f32s; N]; R] {
    for token in tokens {
        let u = u(token);
        for r in 0..R {
            let (decay, k) = (simd.splat_f32s(token.decay(row + r)), simd.splat_f32s(token.k[row + r]));
            for j in 0..N {
                x[r][j] = simd.mul_add_e_f32s(k, u[j], simd.mul_f32s(decay, x[r][j]));
            }
        }
    }
    x
}

/// Adds tokens to a row of S and its rounding errors.
#[inline(always)]
fn compensated<S: Simd>(simd: S, tokens: &[Token<'_>], row: usize, s: &mut [f32], errors: &mut [f32]) {
    for column in (0..s.len()).step_by(S::F32_LANES) {
        let (s, errors) = (&mut s[column..], &mut errors[column..]);
        let (mut x, mut error) = (load_part::<S>(s), load_part::<S>(errors));
        for token in tokens {
            let (k, u) = (simd.splat_f32s(token.k[row]), load_part::<S>(&token.u[column..]));
            (x, error) = add_compensated(simd, x, error, simd.mul_add_e_f32s(k, u, simd.splat_f32s(0.0)));
        }
        store_part::<S>(x, s);
        store_part::<S>(error, errors);
    }
}

/// The first elements of a row as a vector, padded with zeros.
#[inline(always)]
fn load_part<S: Simd>(row: &[f32]) -> S::f32s {
    if row.len() >= S::F32_LANES {
        return load::<S, 1>(row)[0];
    }
    let mut part = [0.0; GROUP];
    part[..row.len()].copy_from_slice(row);
    load::<S, 1>(&part)[0]
}

/// Replaces the first elements of a row: all lanes of the vector, or as many as the row has.
#[inline(always)]
fn store_part<S: Simd>(x: S::f32s, row: &mut [f32]) {
    if row.len() >= S::F32_LANES {
        return store::<S, 1>([x], row);
    }
    let len = row.len();
    row.copy_from_slice(&bytemuck::cast_slice::<S::f32s, f32>(&[x])[..len]);
}
