//! The rows of a tile: phi(Q), phi(K), V below S, A, and what the outputs are multiplied with.

use pulp::{Simd, WithSimd};

use super::{Prefill, TILE, Tile, Work};
use crate::element::pack_row;
use crate::math::add_compensated;
use crate::state::Normaliser;
use crate::tile::mul_abt;

/// Packs a tile and adds it to z.
pub(super) struct PackRows<'a> {
    pub(super) task: &'a Prefill<'a>,
    pub(super) work: &'a Work,
    pub(super) tile: Tile,
    /// Written: phi(Q).
    pub(super) q: &'a mut [f32],
    /// Written: phi(K).
    pub(super) k: &'a mut [f32],
    /// Written: both as pairs of bf16, where dot products of them are asked for.
    pub(super) dot: &'a mut [f32],
    /// Written: V below S.
    pub(super) panels: &'a mut [f32],
    pub(super) z: &'a mut [f32],
    pub(super) past_z: &'a mut [f32],
    pub(super) lost_z: &'a mut [f32],
}

/// What the rows of a tile make of each other.
pub(super) struct Scores {
    /// A times scale / norm. Above the diagonal may be anything: nothing reads it.
    pub(super) a: [[f32; TILE]; TILE],
    /// scale / norm for each row: of the current sums, and for PerChunk of the past ones.
    pub(super) current: [f32; TILE],
    pub(super) past: [f32; TILE],
}

impl WithSimd for PackRows<'_> {
    type Output = Scores;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Scores {
        let Self { task, work, tile, q, k, dot, panels, z, past_z, lost_z } = self;
        let (rows, key) = (tile.rows, work.key);
        task.feature_map.pack(simd, task.q.tokens(task.batch, tile.token, tile.head, rows), q, key);
        task.feature_map.pack(simd, task.k.tokens(task.batch, tile.token, tile.head, rows), k, key);
        if let Some(proof) = task.dot {
            work.dot.split(proof, dot).pack(rows, q, k);
        }
        for (i, row) in task.v.tokens(task.batch, tile.token, tile.head, rows).enumerate() {
            pack_row(simd, row.slice(task.columns.clone()), panels, key + TILE, key + i);
        }
        let mut scores =
            Scores { a: [[0.0; TILE]; TILE], current: [task.scale; TILE], past: [task.scale; TILE] };
        multiply(simd, key, rows, q, k, &mut scores.a);

        match task.normaliser {
            Normaliser::None => {}
            Normaliser::Global { eps } => {
                let mut norm = row_sums(rows, &scores.a);
                add_products(simd, key, rows, q, z, &mut norm);
                invert(&mut scores.current, &norm, eps);
                add_rows(simd, z, lost_z, k, key, rows, false);
            }
            Normaliser::PerChunk { eps, .. } => {
                let mut norm = row_sums(rows, &scores.a);
                if tile.use_current {
                    add_products(simd, key, rows, q, z, &mut norm);
                }
                invert(&mut scores.current, &norm, eps);
                if tile.use_past {
                    let mut norm = [0.0; TILE];
                    add_products(simd, key, rows, q, past_z, &mut norm);
                    invert(&mut scores.past, &norm, eps);
                }
                if tile.add_to_past {
                    add_rows(simd, past_z, lost_z, k, key, rows, !tile.use_past);
                } else {
                    add_rows(simd, z, &mut [], k, key, rows, !tile.use_current);
                }
                if tile.fold {
                    add_rows(simd, past_z, lost_z, z, key, 1, !tile.use_past);
                }
            }
        }
        // A is divided here, where it is small; what S and past give, when it is summed (see `OutputTile`).
        if task.divides() {
            for (a, inverse) in scores.a.iter_mut().zip(scores.current) {
                for a in a {
                    *a *= inverse;
                }
            }
        }
        scores
    }
}

/// `A = phi(Q) phi(K)^T` for the rows and columns of the lower triangle.
#[inline(always)]
fn multiply<S: Simd>(simd: S, key: usize, rows: usize, q: &[f32], k: &[f32], a: &mut [[f32; TILE]; TILE]) {
    // 2 x 4 accumulators: as many as hide the latency, and four sums side by side.
    const M: usize = 2;
    for i in (0..rows).step_by(M) {
        let rows_q = [vector_row::<S>(q, key, i), vector_row::<S>(q, key, i + 1)];
        for j in (0..(i + M).min(rows)).step_by(4) {
            let rows_k: [&[S::f32s]; 4] = core::array::from_fn(|y| vector_row::<S>(k, key, j + y));
            let products = mul_abt(simd, rows_q, rows_k);
            for (x, products) in products.iter().enumerate() {
                a[i + x][j..j + 4].copy_from_slice(products);
            }
        }
    }
}

/// A row, by vectors.
#[inline(always)]
fn vector_row<S: Simd>(rows: &[f32], key: usize, at: usize) -> &[S::f32s] {
    S::as_simd_f32s(&rows[at * key..][..key]).0
}

/// `norm[i] = sum over j <= i of A[i][j]`.
#[inline(always)]
fn row_sums(rows: usize, a: &[[f32; TILE]; TILE]) -> [f32; TILE] {
    let mut norm = [0.0; TILE];
    for (i, norm) in norm.iter_mut().enumerate().take(rows) {
        for a in &a[i][..=i] {
            *norm += a;
        }
    }
    norm
}

/// `norm[i] += phi(q_i) . z`.
#[inline(always)]
fn add_products<S: Simd>(simd: S, key: usize, rows: usize, q: &[f32], z: &[f32], norm: &mut [f32; TILE]) {
    let z = S::as_simd_f32s(z).0;
    for i in (0..rows).step_by(4) {
        let [products] = mul_abt(simd, [z], core::array::from_fn(|x| vector_row::<S>(q, key, i + x)));
        for x in 0..4 {
            norm[i + x] += products[x];
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
