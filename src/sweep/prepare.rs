//! The operands of a sweep: phi of q and k, v in f32, and scale / norm, for a tile of tokens of one head.
//!
//! Feature maps, normalisers and types of elements are dealt with here, so that the loops of the sweeps do
//! not depend on them.
//!
//! A norm is a sum over K in sixteen partial sums, which are added in a fixed tree, so that its bits are the
//! same for any number of lanes.

use pulp::{Simd, WithSimd};

use super::Pass;
use super::{Blocking, Factors, padded_key, whole_blocks};
use crate::element::{Elements, widen};
use crate::isa::outline;
use crate::math::{GROUP, add_compensated, elu_plus_one, inverse_root, positive_part, sum_group};
use crate::rule::{FeatureMap, Normaliser, Rule};
use crate::scratch::round_up;
use crate::shape::{Row, Shape};
use crate::tensors::Tensors;
use crate::vector::first_lane;

/// The vectors z of a head, each padded with zeros to whole groups.
pub(crate) struct Normalisers<'a> {
    /// z of the sums that tokens are added to.
    pub(crate) z: &'a mut [f32],
    /// z of the finished chunks; empty for normalisers without chunks.
    pub(crate) past: &'a mut [f32],
    /// Rounding errors, of `past` where there is one, else of z; empty where they are not kept.
    pub(crate) error: &'a mut [f32],
}

/// Tokens of one head that are prepared together, and the call that they belong to.
#[derive(Clone, Copy)]
pub(crate) struct Tokens<'a> {
    pub(crate) rule: &'a Rule,
    pub(crate) shape: &'a Shape,
    pub(crate) tensors: &'a Tensors<'a>,
    pub(crate) first: Row,
    pub(crate) len: usize,
}

impl Tokens<'_> {
    pub(super) fn row(&self, token: usize) -> Row {
        Row { token: self.first.token + token, ..self.first }
    }
}

/// Prepares a tile, in blocks of B tokens.
pub(crate) struct Prepare<'a, const B: usize> {
    pub(crate) tokens: Tokens<'a>,
    /// This task's columns of V.
    pub(crate) columns: core::ops::Range<usize>,
    /// Whether finished chunks or an initial state precede the tile.
    pub(crate) use_past: bool,
    pub(crate) pass: Pass,
    pub(crate) z: Normalisers<'a>,
    /// The operands of the sweep, which are written.
    pub(crate) operands: &'a mut [f32],
    /// v in f32, which is written where the tensor has another type.
    pub(crate) wide_v: &'a mut [f32],
    /// Room for the rows of q and k of a block in f32.
    pub(crate) space: &'a mut [f32],
}

impl<'a, const B: usize> Prepare<'a, B> {
    /// The same tile in blocks of T tokens.
    #[inline(always)]
    pub(crate) fn with_blocks<const T: usize>(self) -> Prepare<'a, T> {
        let Self { tokens, columns, use_past, pass, z, operands, wide_v, space } = self;
        Prepare { tokens, columns, use_past, pass, z, operands, wide_v, space }
    }
}

impl<const B: usize> WithSimd for Prepare<'_, B> {
    type Output = Factors;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) -> Factors {
        let whole = whole_blocks::<B>(self.tokens.len);
        if B > 1 {
            for token in (0..whole).step_by(B) {
                self.block::<S, B>(simd, token);
            }
        }
        for token in whole..self.tokens.len {
            self.block::<S, 1>(simd, token);
        }
        self.widen_v(simd);
        self.factors(simd)
    }
}

impl<const B: usize> Prepare<'_, B> {
    /// Widens v to f32, where the tensor has another type.
    #[inline(always)]
    pub(super) fn widen_v<S: Simd>(&mut self, simd: S) {
        if matches!(self.tokens.tensors.v, Elements::F32(_)) {
            return;
        }
        let width = round_up(self.columns.len(), S::F32_LANES);
        for token in 0..self.tokens.len {
            let row = self.tokens.row(token);
            let to = &mut self.wide_v[token * width..][..width];
            outline(
                simd,
                Widen { from: self.tokens.tensors.v(self.tokens.shape, row, self.columns.clone()), to },
            );
        }
    }

    /// Computes phi of k and q of a block of T tokens. Whole groups of f32 are read from the tensors; other
    /// rows are copied first. The last group is padded with zeros.
    #[inline(always)]
    fn block<S: Simd, const T: usize>(&mut self, simd: S, token: usize) {
        let key = padded_key(self.tokens.shape.key);
        let tail = self.tokens.shape.key % GROUP;
        let normed = self.tokens.rule.norm().is_some();
        let mut rows: [[&[f32]; T]; 2] = [[&[]; T]; 2];
        let mut spaces = self.space.chunks_exact_mut(key);
        for t in 0..T {
            let row = self.tokens.row(token + t);
            for (i, from) in
                [self.tokens.tensors.k(self.tokens.shape, row), self.tokens.tensors.q(self.tokens.shape, row)]
                    .into_iter()
                    .enumerate()
            {
                rows[i][t] = match (from, spaces.next()) {
                    (Elements::F32(from), _) if tail == 0 && !normed => from,
                    (from, Some(space)) => {
                        outline(simd, Widen { from, to: space });
                        if let Some(eps) = self.tokens.rule.norm() {
                            map_row(simd, self.tokens.rule.feature_map, space, self.tokens.shape.key);
                            normalise(simd, space, eps);
                        }
                        space
                    }
                    _ => return,
                };
            }
        }
        let to = &mut self.operands[token * 2 * key..(token + T) * 2 * key];
        match self.tokens.rule.feature_map {
            _ if normed => map::<S, Identity, T>(simd, Identity, rows, to),
            any if S::F32_LANES == 1 => map::<S, FeatureMap, T>(simd, any, rows, to),
            FeatureMap::Elu => map::<S, Elu, T>(simd, Elu, rows, to),
            FeatureMap::Relu { eps } => map::<S, Relu, T>(simd, Relu { eps }, rows, to),
            FeatureMap::Identity => map::<S, Identity, T>(simd, Identity, rows, to),
        }
        if tail > 0
            && let Some(last) = to.chunks_exact_mut(2 * T * GROUP).next_back()
        {
            for operand in last.chunks_exact_mut(GROUP) {
                operand[tail..].fill(0.0);
            }
        }
    }

    /// Returns scale / norm of each token, and adds the tile to z.
    #[inline(always)]
    fn factors<S: Simd>(&mut self, simd: S) -> Factors {
        let scale = self.tokens.rule.scale;
        let mut factors = Factors { current: [scale; Blocking::MOST], past: [scale; Blocking::MOST] };
        let (eps, per_chunk) = match self.tokens.rule.normaliser {
            Normaliser::None => return factors,
            Normaliser::Global { eps } => (eps, false),
            Normaliser::PerChunk { eps, .. } => (eps, true),
        };
        let Normalisers { z, past, error } = &mut self.z;
        let error: &mut [f32] = if per_chunk { &mut [] } else { error };
        let current = Norms { len: self.tokens.len, z, error, add: self.pass != Pass::Read };
        let finished = Norms { len: self.tokens.len, z: past, error: &mut [], add: false };
        for (norms, factors, wanted) in
            [(current, &mut factors.current, true), (finished, &mut factors.past, self.use_past && per_chunk)]
        {
            if wanted {
                norms.divide::<S, B>(simd, self.operands, factors, eps);
            }
        }
        factors
    }
}

/// Replaces a row of `key` elements by its phi. The elements behind them are zero.
#[inline(always)]
pub(crate) fn map_row<S: Simd>(simd: S, map: FeatureMap, row: &mut [f32], key: usize) {
    if map != FeatureMap::Identity {
        for x in S::as_mut_simd_f32s(row).0 {
            *x = map.phi(simd, *x);
        }
        row[key..].fill(0.0);
    }
}

/// Divides a row of whole groups by its length.
#[inline(always)]
pub(super) fn normalise<S: Simd>(simd: S, row: &mut [f32], eps: f32) {
    let factor = simd.splat_f32s(inverse_length(simd, row, eps));
    for x in S::as_mut_simd_f32s(row).0 {
        *x = simd.mul_f32s(*x, factor);
    }
}

/// `1 / sqrt(sum of x^2 + eps)` of a row.
#[inline(always)]
pub(super) fn inverse_length<S: Simd>(simd: S, row: &[f32], eps: f32) -> f32 {
    let mut group = [0.0; GROUP];
    let sums = S::as_mut_simd_f32s(&mut group).0;
    let (groups, tail) = row.as_chunks::<GROUP>();
    let mut last = [0.0; GROUP];
    last[..tail.len()].copy_from_slice(tail);
    for x in groups.iter().chain([&last]) {
        for (sum, x) in sums.iter_mut().zip(S::as_simd_f32s(x).0) {
            *sum = simd.mul_add_e_f32s(*x, *x, *sum);
        }
    }
    first_lane::<S>(inverse_root(simd, simd.splat_f32s(sum_group(&group) + eps)))
}

/// Widens a row. This is a function of its own, because it is long and used in several places.
pub(crate) struct Widen<'a> {
    pub(crate) from: Elements<'a>,
    pub(crate) to: &'a mut [f32],
}

impl WithSimd for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        widen(simd, self.from, self.to);
    }
}

/// phi of one vector. This is a trait, because closures can't be made to inline.
trait Phi: Copy {
    fn phi<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s;
}

#[derive(Clone, Copy)]
struct Elu;

#[derive(Clone, Copy)]
struct Relu {
    eps: f32,
}

#[derive(Clone, Copy)]
struct Identity;

impl Phi for Elu {
    #[inline(always)]
    fn phi<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        elu_plus_one(simd, x)
    }
}

impl Phi for Relu {
    #[inline(always)]
    fn phi<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        simd.add_f32s(positive_part(simd, x), simd.splat_f32s(self.eps))
    }
}

impl Phi for Identity {
    #[inline(always)]
    fn phi<S: Simd>(self, _: S, x: S::f32s) -> S::f32s {
        x
    }
}

/// Any of the maps, for machines without vectors: one loop, because the size of the code counts there.
impl Phi for FeatureMap {
    #[inline(always)]
    fn phi<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        match self {
            FeatureMap::Elu => Elu.phi(simd, x),
            FeatureMap::Relu { eps } => Relu { eps }.phi(simd, x),
            FeatureMap::Identity => x,
        }
    }
}

/// Computes phi of the rows of k and q of a block, laid out group by group.
#[inline(always)]
fn map<S: Simd, P: Phi, const T: usize>(simd: S, phi: P, rows: [[&[f32]; T]; 2], to: &mut [f32]) {
    for (group, to) in to.chunks_exact_mut(2 * T * GROUP).enumerate() {
        let (to, _) = to.as_chunks_mut::<GROUP>();
        for (i, rows) in rows.iter().enumerate() {
            for (t, row) in rows.iter().enumerate() {
                let from = S::as_simd_f32s(&row[group * GROUP..][..GROUP]).0;
                for (to, from) in S::as_mut_simd_f32s(&mut to[i * T + t]).0.iter_mut().zip(from) {
                    *to = phi.phi(simd, *from);
                }
            }
        }
    }
}

/// `phi(q) . z` of the tokens of a tile.
struct Norms<'a> {
    /// The number of tokens.
    len: usize,
    z: &'a mut [f32],
    error: &'a mut [f32],
    /// Whether each token's phi(k) is added to z before its product.
    add: bool,
}

impl Norms<'_> {
    /// `factor[t] = factor[t] / (norm[t] + eps)`.
    #[inline(always)]
    fn divide<S: Simd, const B: usize>(mut self, simd: S, operands: &[f32], factors: &mut [f32], eps: f32) {
        let (whole, token) = (whole_blocks::<B>(self.len), 2 * self.z.len());
        let (blocks, singles) = operands.split_at(whole * token);
        let (of_blocks, of_singles) = factors[..self.len].split_at_mut(whole);
        if B > 1 {
            for (factors, operands) in of_blocks.chunks_exact_mut(B).zip(blocks.chunks_exact(B * token)) {
                let norms = self.block::<S, B>(simd, operands);
                for t in 0..B {
                    factors[t] /= norms[t] + eps;
                }
            }
        }
        for (factor, operands) in of_singles.iter_mut().zip(singles.chunks_exact(token)) {
            let [norm] = self.block::<S, 1>(simd, operands);
            *factor /= norm + eps;
        }
    }

    /// The norms of a block of T tokens.
    #[inline(always)]
    fn block<S: Simd, const T: usize>(&mut self, simd: S, operands: &[f32]) -> [f32; T] {
        // A group has at most this many vectors; the others are never used.
        let zero = [simd.splat_f32s(0.0); GROUP];
        let width = GROUP / S::F32_LANES;
        let mut partial = [zero; T];
        let mut errors = self.error.chunks_exact_mut(GROUP);
        for (operands, z) in operands.chunks_exact(2 * T * GROUP).zip(self.z.chunks_exact_mut(GROUP)) {
            let (k, q) = S::as_simd_f32s(operands).0.split_at(T * width);
            let z = S::as_mut_simd_f32s(z).0;
            let mut error = errors.next().map(|error| S::as_mut_simd_f32s(error).0);
            for i in 0..width {
                let (mut sum, mut added) = (z[i], zero[i]);
                for t in 0..T {
                    if self.add {
                        sum = simd.add_f32s(sum, k[t * width + i]);
                        added = simd.add_f32s(added, k[t * width + i]);
                    }
                    partial[t][i] = simd.mul_add_e_f32s(q[t * width + i], sum, partial[t][i]);
                }
                if let Some(error) = &mut error {
                    (sum, error[i]) = add_compensated(simd, z[i], error[i], added);
                }
                z[i] = sum;
            }
        }
        let mut norms = [0.0; T];
        for (norm, partial) in norms.iter_mut().zip(&partial) {
            let mut group = [0.0; GROUP];
            group.copy_from_slice(&bytemuck::cast_slice::<S::f32s, f32>(partial)[..GROUP]);
            *norm = sum_group(&group);
        }
        norms
    }
}
