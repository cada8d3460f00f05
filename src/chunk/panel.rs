//! The products of a tile with one panel of V's columns: the outputs, then the state.

use pulp::{Simd, WithSimd};

use super::rows::Scores;
use super::{Prefill, TILE, Tile, Work};
use crate::math::add_compensated;
use crate::tile::{Acc, RowTile, for_row_tiles, mul_ab, mul_ab_tril, mul_atb, vectors, vectors_mut, zero};

/// A panel of N vectors of columns.
pub(super) struct Panel<'a, const N: usize>(pub(super) PanelArgs<'a>);

pub(super) struct PanelArgs<'a> {
    pub(super) task: &'a Prefill<'a>,
    pub(super) work: &'a Work,
    pub(super) tile: Tile,
    /// Rows phi(Q).
    pub(super) q: &'a [f32],
    /// Rows phi(K).
    pub(super) k: &'a [f32],
    /// Scratch for dot products, with the same rows as pairs of bf16.
    pub(super) dot: &'a mut [f32],
    pub(super) scores: &'a Scores,
    /// Columns of this task before the panel.
    pub(super) from: usize,
    /// `[S ; V]`: S is added to.
    pub(super) panel: &'a mut [f32],
    /// S of the finished chunks, for PerChunk.
    pub(super) past: &'a mut [f32],
    /// What rounding took, for a compensated state.
    pub(super) lost: &'a mut [f32],
}

impl<const N: usize> WithSimd for Panel<'_, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let PanelArgs { task, work, tile, q, k, dot, scores, from, panel, past, lost } = self.0;
        let (key, rows) = (work.key, tile.rows);
        let width = N * S::F32_LANES;
        let begin = task.columns.start + from;
        let columns = width.min(task.columns.end - begin);
        let mut dot = task.dot.map(|proof| work.dot.split(proof, dot));
        if let Some(dot) = &mut dot {
            dot.multiply(tile, width, &panel[..key * width], past);
        }
        let (s, v) = vectors_mut::<S, N>(panel).split_at_mut(key);
        let v = &v[..rows];
        let past = vectors_mut::<S, N>(past);
        let lost = vectors_mut::<S, N>(lost);

        let (current, before) = match &dot {
            None => (Inter::Sums(&*s), Inter::Sums(&*past)),
            Some(dot) => {
                let product = |rows| Inter::Product(vectors::<S, N>(rows));
                (product(&dot.current[..rows * width]), product(&dot.past[..rows * width]))
            }
        };
        for_row_tiles::<S>(
            rows,
            &mut OutputTile::<S, N> {
                simd,
                task,
                tile,
                key,
                q,
                scores,
                v,
                current,
                past: before,
                begin,
                columns,
            },
        );
        // What is compensated is past where there is one, else S.
        let (sum, fresh, compensated) = if tile.add_to_past {
            (&mut *past, !tile.use_past, true)
        } else {
            (&mut *s, !tile.use_current, !work.past)
        };
        let lost_here: &mut [_] = if compensated { &mut *lost } else { &mut [] };
        match &mut dot {
            None => {
                let k = &k[..rows * key];
                for_row_tiles::<S>(
                    task.layout.key,
                    &mut StateTile::<S, N> { simd, k, stride: key, v, s: sum, fresh, lost: lost_here },
                );
            }
            Some(dot) => dot.add(simd, v, sum, fresh, lost_here),
        }
        if tile.fold {
            for (i, (past, s)) in past.iter_mut().zip(s.iter()).enumerate() {
                for j in 0..N {
                    let old = if tile.use_past { past[j] } else { simd.splat_f32s(0.0) };
                    past[j] = simd.add_f32s(old, s[j]);
                    if let Some(lost) = lost.get_mut(i) {
                        (past[j], lost[j]) = add_compensated(simd, old, lost[j], s[j]);
                    }
                }
            }
        }
    }
}

/// What earlier tokens give: sums, to be multiplied by phi(Q), or the product, taken before.
#[derive(Clone, Copy)]
enum Inter<'a, S: Simd, const N: usize> {
    Sums(&'a [[S::f32s; N]]),
    Product(&'a [[S::f32s; N]]),
}

/// `O = phi(Q) past / past norm + phi(Q) S / norm + A V`, A divided before. In this order, and with the quotients taken
/// before they are added, the reference's own rounding is met most closely where large terms cancel.
struct OutputTile<'a, S: Simd, const N: usize> {
    simd: S,
    task: &'a Prefill<'a>,
    tile: Tile,
    /// K rounded up.
    key: usize,
    q: &'a [f32],
    scores: &'a Scores,
    /// The rows of V.
    v: &'a [[S::f32s; N]],
    current: Inter<'a, S, N>,
    past: Inter<'a, S, N>,
    /// Columns of o.
    begin: usize,
    columns: usize,
}

impl<S: Simd, const N: usize> RowTile for OutputTile<'_, S, N> {
    #[inline(always)]
    fn run<const MR: usize>(&mut self, row: usize) {
        // One product at a time, as there mostly is, stays in registers; two are a path of their own.
        let mut acc = zero::<S, MR, N>(self.simd);
        let (current, past) = (&self.scores.current[row..][..MR], &self.scores.past[row..][..MR]);
        if self.tile.use_past {
            acc = self.multiply(self.past, past, row, acc);
            if self.tile.use_current {
                let product = self.product::<MR>(self.current, row);
                for i in 0..MR {
                    let inverse = self.simd.splat_f32s(current[i]);
                    for j in 0..N {
                        acc[i][j] = self.simd.mul_add_e_f32s(product[i][j], inverse, acc[i][j]);
                    }
                }
            }
            self.finish(row, acc);
        } else {
            if self.tile.use_current {
                acc = self.multiply(self.current, current, row, acc);
            }
            self.finish(row, acc);
        }
    }
}

impl<S: Simd, const N: usize> OutputTile<'_, S, N> {
    /// phi(Q) times S, for MR rows.
    #[inline(always)]
    fn product<const MR: usize>(&self, from: Inter<'_, S, N>, row: usize) -> Acc<S, MR, N> {
        let mut acc = zero(self.simd);
        match from {
            Inter::Sums(s) => mul_ab(self.simd, acc, &self.q[row * self.key..], self.key, s),
            Inter::Product(rows) => {
                acc.copy_from_slice(&rows[row..][..MR]);
                acc
            }
        }
    }

    /// The same times scale / norm, into accumulators that are handed in: multiplied in place, those of AVX2 went to memory
    /// where a second product follows, and PerChunk took twice as long.
    #[inline(always)]
    fn multiply<const MR: usize>(
        &self,
        from: Inter<'_, S, N>,
        inverse: &[f32],
        row: usize,
        mut acc: Acc<S, MR, N>,
    ) -> Acc<S, MR, N> {
        let product = self.product::<MR>(from, row);
        for i in 0..MR {
            let inverse = self.simd.splat_f32s(inverse[i]);
            for j in 0..N {
                acc[i][j] = self.simd.mul_f32s(product[i][j], inverse);
            }
        }
        acc
    }

    /// Adds A V and writes the rows.
    #[inline(always)]
    fn finish<const MR: usize>(&self, row: usize, mut acc: Acc<S, MR, N>) {
        let a = self.scores.a[row..].as_flattened();
        acc = mul_ab(self.simd, acc, a, TILE, &self.v[..row]);
        acc = mul_ab_tril(self.simd, acc, &a[row..], TILE, &self.v[row..]);
        let mut rows: [&[f32]; MR] = [&[]; MR];
        for i in 0..MR {
            let row = bytemuck::cast_slice::<S::f32s, f32>(&acc[i]);
            // Two branches, so that the usual one copies a length the compiler knows.
            rows[i] = if self.columns == N * S::F32_LANES { row } else { &row[..self.columns] };
        }
        let place = [self.task.batch, self.tile.token + row, self.tile.head];
        #[allow(unsafe_code, reason = "rows of o are split among tasks")]
        // SAFETY: tasks differ in batch, head or columns, and this one holds one row at a time.
        unsafe {
            self.task.o.write_rows(self.simd, place, self.begin, rows);
        }
    }
}

/// `S += phi(K)^T V`, or `=` where S is fresh.
struct StateTile<'a, S: Simd, const N: usize> {
    simd: S,
    k: &'a [f32],
    stride: usize,
    v: &'a [[S::f32s; N]],
    s: &'a mut [[S::f32s; N]],
    fresh: bool,
    /// What rounding took from S, if it is compensated.
    lost: &'a mut [[S::f32s; N]],
}

impl<S: Simd, const N: usize> RowTile for StateTile<'_, S, N> {
    #[inline(always)]
    fn run<const MR: usize>(&mut self, row: usize) {
        let s = &mut self.s[row..][..MR];
        let mut acc = zero::<S, MR, N>(self.simd);
        if !self.fresh && self.lost.is_empty() {
            acc.copy_from_slice(s);
        }
        acc = mul_atb(self.simd, acc, &self.k[row..], self.stride, self.v);
        if let Some(lost) = self.lost.get_mut(row..row + MR) {
            for i in 0..MR {
                for j in 0..N {
                    let old = if self.fresh { self.simd.splat_f32s(0.0) } else { s[i][j] };
                    (acc[i][j], lost[i][j]) = add_compensated(self.simd, old, lost[i][j], acc[i][j]);
                }
            }
        }
        s.copy_from_slice(&acc);
    }
}
