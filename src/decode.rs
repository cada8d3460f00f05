//! One token: one pass over the state, which is read and written once while the output is formed.
//!
//! ```text
//! o = scale (phi(q)^T S + (phi(q) . phi(k)) v^T) / norm
//! S = S + phi(k) v^T
//! ```
//!
//! The output takes S on its way in and the new token's share apart, so that neither waits for the other.

use core::iter::once;
use core::ops::Range;

use pulp::{Simd, WithSimd};

use crate::element::Elements;
use crate::feature_map::FeatureMap;
use crate::isa::{outline, share};
use crate::math::add_compensated;
use crate::scratch::round_up;
use crate::shape::{Disjoint, Rows, RowsMut};
use crate::state::{Layout, Normaliser, Sums};
use crate::tile::{vectors, vectors_mut};

/// Vectors of S's columns taken at once: as many accumulators as hide the latency and still leave registers.
const COLUMNS: usize = 8;

/// Elements of scratch that a [`Decode`] needs, beyond alignment: phi(q), phi(k), and v and o of one head in f32, for
/// where they are of another type.
pub(crate) const fn decode_scratch_len(lanes: usize, key: usize, value: usize) -> usize {
    round_up(key, lanes).saturating_add(value).saturating_mul(2)
}

/// One task: one token of some of the `B x H` heads.
pub(crate) struct Decode<'a> {
    /// Heads, counted over the whole batch.
    pub(crate) rows: Range<usize>,
    pub(crate) heads: usize,
    /// q `[B, 1, H, K]`.
    pub(crate) q: Rows<'a>,
    /// k `[B, 1, H, K]`.
    pub(crate) k: Rows<'a>,
    /// v `[B, 1, H, V]`.
    pub(crate) v: Rows<'a>,
    /// o `[B, 1, H, V]`.
    pub(crate) o: RowsMut<'a>,
    pub(crate) feature_map: FeatureMap,
    pub(crate) normaliser: Normaliser,
    pub(crate) scale: f32,
    pub(crate) layout: Layout,
    /// State of these heads.
    pub(crate) state: Disjoint<'a>,
    pub(crate) scratch: &'a mut [f32],
}

impl WithSimd for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let key = round_up(self.layout.key, S::F32_LANES);
        let scratch = core::mem::take(&mut self.scratch);
        let value = self.layout.value;
        let (q, rest) = scratch.split_at_mut(key);
        let (k, rest) = rest.split_at_mut(key);
        let (v, rest) = rest.split_at_mut(value);
        let wide_o = &mut rest[..value];
        for row in self.rows.clone() {
            let (batch, head) = (row / self.heads, row % self.heads);
            share(simd, Map { map: self.feature_map, from: self.q.row(batch, 0, head), to: q });
            share(simd, Map { map: self.feature_map, from: self.k.row(batch, 0, head), to: k });
            let v = self.v.row(batch, 0, head).widened(simd, v);
            #[allow(unsafe_code, reason = "heads are split among tasks")]
            // SAFETY: tasks differ in their rows; this one holds each once, and o either to compute in or to write.
            unsafe {
                let state = self.state.part((row - self.rows.start) * self.layout.len(), self.layout.len());
                match self.o.row(batch, 0, head, 0, value) {
                    Some(o) => self.head(simd, q, k, v, o, state),
                    None => {
                        self.head(simd, q, k, v, wide_o, state);
                        self.o.write(simd, [batch, 0, head], 0, wide_o);
                    }
                }
            }
        }
    }
}

/// phi of a row.
struct Map<'a> {
    map: FeatureMap,
    from: Elements<'a>,
    to: &'a mut [f32],
}

impl WithSimd for Map<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { map, from, to } = self;
        let stride = to.len();
        map.pack(simd, once(from), to, stride);
    }
}

impl Decode<'_> {
    /// One head.
    #[inline(always)]
    fn head<S: Simd>(&self, simd: S, q: &[f32], k: &[f32], v: &[f32], o: &mut [f32], state: &mut [f32]) {
        let layout = self.layout;
        let (key, matrix) = (layout.key, layout.key * layout.value);
        let (q_vectors, k_vectors) = (S::as_simd_f32s(q).0, S::as_simd_f32s(k).0);
        let score = dot(simd, q_vectors, k_vectors);
        let (q, k) = (&q[..key], &k[..key]);

        // `[S | z]` of all tokens, what rounding took from it (or nothing), then what PerChunk has more.
        let (all, rest) = state.split_at_mut(layout.s_at(Sums::Lost));
        let (lost, chunk) = rest.split_at_mut(layout.s_at(Sums::Chunk) - layout.s_at(Sums::Lost));
        let (all_s, all_z) = all.split_at_mut(matrix);
        let (lost_s, lost_z) = lost.split_at_mut(if layout.compensated { matrix } else { 0 });
        let pass = Pass { q, k, v, score, scale: self.scale, past: None };
        match self.normaliser {
            Normaliser::None => share(simd, Turn { pass, s: all_s, lost: lost_s, o }),
            Normaliser::Global { eps } => {
                let norm = share(simd, Dot(q, all_z)) + score + eps;
                let pass = Pass { scale: self.scale / norm, ..pass };
                share(simd, Turn { pass, s: all_s, lost: lost_s, o });
                share(simd, Add { to: all_z, lost: lost_z, from: k });
            }
            Normaliser::PerChunk { chunk: len, eps } => {
                let (s, rest) = chunk.split_at_mut(matrix);
                let (z, count_at) = rest.split_at_mut(key);
                let count = count_at[0] as usize;
                let norm = share(simd, Dot(q, z)) + score + eps;
                let past_scale = self.scale / (share(simd, Dot(q, all_z)) + eps);
                let past = Some((&*all_s, past_scale));
                let pass = Pass { scale: self.scale / norm, past, ..pass };
                share(simd, Turn { pass, s: &mut *s, lost: &mut [], o });
                share(simd, Add { to: &mut *z, lost: &mut [], from: k });
                if count + 1 == len {
                    share(simd, Add { to: all_s, lost: lost_s, from: s });
                    share(simd, Add { to: all_z, lost: lost_z, from: z });
                    s.fill(0.0);
                    z.fill(0.0);
                    count_at[0] = 0.0;
                } else {
                    count_at[0] = (count + 1) as f32;
                }
            }
        }
    }
}

/// The pass over S.
#[derive(Clone, Copy)]
struct Pass<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    /// phi(q) . phi(k)
    score: f32,
    /// scale / norm
    scale: f32,
    /// S of the finished chunks, and scale / norm for it.
    past: Option<(&'a [f32], f32)>,
}

/// A pass with what it changes.
struct Turn<'a> {
    pass: Pass<'a>,
    s: &'a mut [f32],
    lost: &'a mut [f32],
    o: &'a mut [f32],
}

impl WithSimd for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { pass, s, lost, o } = self;
        let vectors = pass.v.len() / S::F32_LANES;
        let mut at = 0;
        while vectors - at >= COLUMNS {
            outline(simd, Columns::<COLUMNS> { pass, at: at * S::F32_LANES, s, lost, o });
            at += COLUMNS;
        }
        if vectors - at >= COLUMNS / 2 {
            outline(simd, Columns::<{ COLUMNS / 2 }> { pass, at: at * S::F32_LANES, s, lost, o });
            at += COLUMNS / 2;
        }
        while at < vectors {
            outline(simd, Columns::<1> { pass, at: at * S::F32_LANES, s, lost, o });
            at += 1;
        }
        for j in vectors * S::F32_LANES..pass.v.len() {
            pass.column(j, s, lost, o);
        }
    }
}

impl Pass<'_> {
    /// One column of those that don't fill a vector.
    #[inline(always)]
    fn column(&self, j: usize, s: &mut [f32], lost: &mut [f32], o: &mut [f32]) {
        let value = self.v.len();
        let mut sum = 0.0;
        for (i, ((row, q), k)) in s.chunks_exact_mut(value).zip(self.q).zip(self.k).enumerate() {
            sum += q * row[j];
            add_one(&mut row[j], lost.get_mut(i * value + j), k * self.v[j]);
        }
        sum = (sum + self.score * self.v[j]) * self.scale;
        if let Some((past, scale)) = self.past {
            let past: f32 = past.chunks_exact(value).zip(self.q).map(|(row, q)| q * row[j]).sum();
            sum += past * scale;
        }
        o[j] = sum;
    }
}

/// The pass over N vectors of columns: rows of S one after the other, so that what is read next lies next. v is read
/// again for each of them, from L1: there are registers for the sums, and not for both.
struct Columns<'a, const N: usize> {
    pass: Pass<'a>,
    at: usize,
    s: &'a mut [f32],
    lost: &'a mut [f32],
    o: &'a mut [f32],
}

impl<const N: usize> WithSimd for Columns<'_, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { pass: Pass { q, k, v, score, scale, past }, at, s, lost, o } = self;
        let (value, width) = (v.len(), N * S::F32_LANES);
        let v = &vectors::<S, N>(&v[at..][..width])[0];
        let k = &k[..q.len()];
        let mut sum = [simd.splat_f32s(0.0); N];
        for i in 0..q.len() {
            let row = &mut vectors_mut::<S, N>(&mut s[i * value + at..][..width])[0];
            let (q, k) = (simd.splat_f32s(q[i]), simd.splat_f32s(k[i]));
            if lost.is_empty() {
                for j in 0..N {
                    sum[j] = simd.mul_add_e_f32s(q, row[j], sum[j]);
                    row[j] = simd.mul_add_e_f32s(k, v[j], row[j]);
                }
            } else {
                let lost = &mut vectors_mut::<S, N>(&mut lost[i * value + at..][..width])[0];
                for j in 0..N {
                    sum[j] = simd.mul_add_e_f32s(q, row[j], sum[j]);
                    (row[j], lost[j]) = add_compensated(simd, row[j], lost[j], simd.mul_f32s(k, v[j]));
                }
            }
        }
        let (score, scale) = (simd.splat_f32s(score), simd.splat_f32s(scale));
        for j in 0..N {
            sum[j] = simd.mul_f32s(simd.mul_add_e_f32s(score, v[j], sum[j]), scale);
        }
        if let Some((past, scale)) = past {
            let mut past_sum = [simd.splat_f32s(0.0); N];
            for i in 0..q.len() {
                let row = &vectors::<S, N>(&past[i * value + at..][..width])[0];
                let q = simd.splat_f32s(q[i]);
                for j in 0..N {
                    past_sum[j] = simd.mul_add_e_f32s(q, row[j], past_sum[j]);
                }
            }
            for j in 0..N {
                sum[j] = simd.mul_add_e_f32s(past_sum[j], simd.splat_f32s(scale), sum[j]);
            }
        }
        vectors_mut::<S, N>(&mut o[at..][..width])[0] = sum;
    }
}

#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[S::f32s], b: &[S::f32s]) -> f32 {
    let mut sum = simd.splat_f32s(0.0);
    for (a, b) in a.iter().zip(b) {
        sum = simd.mul_add_e_f32s(*a, *b, sum);
    }
    simd.reduce_sum_f32s(sum)
}

/// `a . b`, of z: in the caller's state it is not padded to whole vectors; in the dispatch this loop becomes vectors
/// anyway, as far as the order of summation allows: eight sums.
struct Dot<'a>(&'a [f32], &'a [f32]);

impl WithSimd for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f32 {
        let Self(a, b) = self;
        let mut sums = [0.0; 8];
        let (a8, a_tail) = a.as_chunks::<8>();
        let (b8, b_tail) = b[..a.len()].as_chunks::<8>();
        for (a, b) in a8.iter().zip(b8) {
            for i in 0..8 {
                sums[i] += a[i] * b[i];
            }
        }
        for (i, (a, b)) in a_tail.iter().zip(b_tail).enumerate() {
            sums[i] += a * b;
        }
        ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]))
    }
}

/// `to += from`, compensated where there is something lost.
struct Add<'a> {
    to: &'a mut [f32],
    lost: &'a mut [f32],
    from: &'a [f32],
}

impl WithSimd for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { to, lost, from } = self;
        for (i, (to, from)) in to.iter_mut().zip(from).enumerate() {
            add_one(to, lost.get_mut(i), *from);
        }
    }
}

#[inline(always)]
fn add_one(to: &mut f32, lost: Option<&mut f32>, x: f32) {
    match lost {
        None => *to += x,
        Some(lost) => (*to, *lost) = add_compensated(pulp::Scalar::new(), *to, *lost, x),
    }
}
