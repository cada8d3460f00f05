//! The rows of a tile: phi(Q), phi(K), A beside phi(Q), and what the outputs are multiplied with.

use pulp::{Simd, WithSimd};

use super::{Prefill, TILE, Tile, Work};
use crate::math::add_compensated;
use crate::state::Normaliser;
use crate::tile::mul_abt;

/// Packs a tile and adds it to z.
pub(super) struct PackRows<'a> {
    pub(super) task: &'a Prefill<'a>,
    pub(super) work: &'a Work,
    pub(super) tile: Tile,
    /// Written: `[phi(Q) | A]`, A divided by the norm.
    pub(super) q: &'a mut [f32],
    /// Written: phi(K).
    pub(super) k: &'a mut [f32],
    /// Written: both as pairs of bf16, where dot products of them are asked for.
    pub(super) dot: &'a mut [f32],
    pub(super) z: &'a mut [f32],
    pub(super) past_z: &'a mut [f32],
    pub(super) lost_z: &'a mut [f32],
}

/// scale / norm for each row: of the current sums, and for PerChunk of the past ones.
pub(super) struct Inverses {
    pub(super) current: [f32; TILE],
    pub(super) past: [f32; TILE],
}

impl WithSimd for PackRows<'_> {
    type Output = Inverses;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Inverses {
        let Self { task, work, tile, q, k, dot, z, past_z, lost_z } = self;
        let rows = tile.rows;
        for i in 0..rows {
            let row = &mut q[i * work.q_stride()..][..work.key];
            task.feature_map.pack(simd, task.q.row(task.batch, tile.token + i, tile.head), row);
        }
        for i in 0..rows {
            let row = &mut k[i * work.key..][..work.key];
            task.feature_map.pack(simd, task.k.row(task.batch, tile.token + i, tile.head), row);
        }
        if let Some(proof) = task.dot {
            work.dot.split(proof, dot).pack(work, rows, q, k);
        }
        scores(simd, work, rows, q, k);

        let mut inverses = Inverses { current: [task.scale; TILE], past: [task.scale; TILE] };
        match task.normaliser {
            Normaliser::None => {}
            Normaliser::Global { eps } => {
                let mut norm = row_sums(work, rows, q);
                add_products(simd, work, rows, q, z, &mut norm);
                invert(&mut inverses.current, &norm, eps);
                add_rows(simd, z, lost_z, k, work.key, rows, false);
            }
            Normaliser::PerChunk { eps, .. } => {
                let mut norm = row_sums(work, rows, q);
                if tile.use_current {
                    add_products(simd, work, rows, q, z, &mut norm);
                }
                invert(&mut inverses.current, &norm, eps);
                if tile.use_past {
                    let mut norm = [0.0; TILE];
                    add_products(simd, work, rows, q, past_z, &mut norm);
                    invert(&mut inverses.past, &norm, eps);
                }
                if tile.add_to_past {
                    add_rows(simd, past_z, lost_z, k, work.key, rows, !tile.use_past);
                } else {
                    add_rows(simd, z, &mut [], k, work.key, rows, !tile.use_current);
                }
                if tile.fold {
                    add_rows(simd, past_z, lost_z, z, work.key, 1, !tile.use_past);
                }
            }
        }
        // A is divided here, where it is small; what S and past give, when it is summed (see `OutputTile`).
        if task.normaliser != Normaliser::None || task.scale != 1.0 {
            for (i, inverse) in inverses.current.iter().enumerate().take(rows) {
                for a in &mut q[i * work.q_stride() + work.key..][..TILE] {
                    *a *= inverse;
                }
            }
        }
        inverses
    }
}

/// `A = phi(Q) phi(K)^T` for the rows and columns of the lower triangle, beside phi(Q). Above the diagonal there
/// may be anything: nothing reads it.
#[inline(always)]
fn scores<S: Simd>(simd: S, work: &Work, rows: usize, q: &mut [f32], k: &[f32]) {
    // 4 x 2 accumulators: as many as hide the latency, and steps of the triangle that fit its height.
    const M: usize = 4;
    const N: usize = 2;
    let stride = work.q_stride();
    for i in (0..rows).step_by(M) {
        for j in (0..rows.min(i + M)).step_by(N) {
            let mut a: [&[S::f32s]; M] = [&[]; M];
            for (x, a) in a.iter_mut().enumerate() {
                *a = S::as_simd_f32s(&q[(i + x) * stride..][..work.key]).0;
            }
            let mut b: [&[S::f32s]; N] = [&[]; N];
            for (y, b) in b.iter_mut().enumerate() {
                *b = S::as_simd_f32s(&k[(j + y) * work.key..][..work.key]).0;
            }
            let products = mul_abt(simd, a, b);
            for (x, products) in products.iter().enumerate() {
                q[(i + x) * stride + work.key + j..][..N].copy_from_slice(products);
            }
        }
    }
}

/// `norm[i] = sum over j <= i of A[i][j]`.
#[inline(always)]
fn row_sums(work: &Work, rows: usize, q: &[f32]) -> [f32; TILE] {
    let mut norm = [0.0; TILE];
    for (i, norm) in norm.iter_mut().enumerate().take(rows) {
        for a in &q[i * work.q_stride() + work.key..][..=i] {
            *norm += a;
        }
    }
    norm
}

/// `norm[i] += phi(q_i) . z`.
#[inline(always)]
fn add_products<S: Simd>(simd: S, work: &Work, rows: usize, q: &[f32], z: &[f32], norm: &mut [f32; TILE]) {
    const M: usize = 4;
    let z = S::as_simd_f32s(z).0;
    for i in (0..rows).step_by(M) {
        let mut a: [&[S::f32s]; M] = [&[]; M];
        for (x, a) in a.iter_mut().enumerate() {
            *a = S::as_simd_f32s(&q[(i + x) * work.q_stride()..][..work.key]).0;
        }
        let products = mul_abt(simd, a, [z]);
        for x in 0..M {
            norm[i + x] += products[x][0];
        }
    }
}

/// `inverse[i] = inverse[i] / (norm[i] + eps)`.
#[inline(always)]
fn invert(inverse: &mut [f32; TILE], norm: &[f32; TILE], eps: f32) {
    for i in 0..TILE {
        inverse[i] /= norm[i] + eps;
    }
}

/// `z += sum of the rows of k`, or `=` where z is fresh; compensated where there is something lost.
#[inline(always)]
fn add_rows<S: Simd>(
    simd: S,
    z: &mut [f32],
    lost: &mut [f32],
    k: &[f32],
    stride: usize,
    rows: usize,
    fresh: bool,
) {
    let (z, lost) = (S::as_mut_simd_f32s(z).0, S::as_mut_simd_f32s(lost).0);
    for (at, z) in z.iter_mut().enumerate() {
        let old = if fresh { simd.splat_f32s(0.0) } else { *z };
        let mut sum = if lost.is_empty() { old } else { simd.splat_f32s(0.0) };
        for row in k.chunks_exact(stride).take(rows) {
            sum = simd.add_f32s(sum, S::as_simd_f32s(row).0[at]);
        }
        *z = sum;
        if let Some(lost) = lost.get_mut(at) {
            (*z, *lost) = add_compensated(simd, old, *lost, sum);
        }
    }
}
