//! The products of a tile with one panel of V's columns: the outputs, then the state.

use pulp::{Simd, WithSimd};

use super::rows::Inverses;
use super::{Prefill, Tile, Work};
use crate::element::widen;
use crate::math::add_compensated;
use crate::tile::{RowTile, for_row_tiles, mul_ab, mul_ab_tril, mul_atb, vectors_mut, zero};

/// A panel of N vectors of columns.
pub(super) struct Panel<'a, const N: usize>(pub(super) PanelArgs<'a>);

pub(super) struct PanelArgs<'a> {
    pub(super) task: &'a Prefill<'a>,
    pub(super) work: &'a Work,
    pub(super) tile: Tile,
    /// Rows `[phi(Q) | A]`, A divided by the norm.
    pub(super) q: &'a [f32],
    /// Rows phi(K).
    pub(super) k: &'a [f32],
    pub(super) inverses: &'a Inverses,
    /// Columns of this task before the panel.
    pub(super) from: usize,
    /// `[S ; V]`: S is added to, V is packed here.
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
        let PanelArgs { task, work, tile, q, k, inverses, from, panel, past, lost } = self.0;
        let (key, rows) = (work.key, tile.rows);
        let width = N * S::F32_LANES;
        let begin = task.columns.start + from;
        let columns = width.min(task.columns.end - begin);
        for (i, to) in panel[key * width..].chunks_exact_mut(width).take(rows).enumerate() {
            let row = task.v.row(task.batch, tile.token + i, tile.head);
            widen(simd, row.slice(begin..begin + columns), to);
        }
        let panel = vectors_mut::<S, N>(panel);
        let past = vectors_mut::<S, N>(past);
        let lost = vectors_mut::<S, N>(lost);

        for_row_tiles::<S>(
            rows,
            &mut OutputTile::<S, N> {
                simd,
                task,
                tile,
                key,
                stride: work.q_stride(),
                q,
                inverses,
                b: &panel[..key + rows],
                past: &*past,
                begin,
                columns,
            },
        );
        let (s, v) = panel.split_at_mut(key);
        // What is compensated is past where there is one, else S.
        let (sum, fresh, compensated) = if tile.add_to_past {
            (&mut *past, !tile.use_past, true)
        } else {
            (&mut *s, !tile.use_current, !work.past)
        };
        let lost_here: &mut [_] = if compensated { &mut *lost } else { &mut [] };
        for_row_tiles::<S>(
            task.layout.key,
            &mut StateTile::<S, N> {
                simd,
                k: &k[..rows * key],
                stride: key,
                v: &v[..rows],
                s: sum,
                fresh,
                lost: lost_here,
            },
        );
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

/// `O = phi(Q) past / past norm + phi(Q) S / norm + A V`, A divided before. In this order, and with the quotients taken
/// before they are added, the reference's own rounding is met most closely where large terms cancel.
struct OutputTile<'a, S: Simd, const N: usize> {
    simd: S,
    task: &'a Prefill<'a>,
    tile: Tile,
    /// K rounded up.
    key: usize,
    stride: usize,
    q: &'a [f32],
    inverses: &'a Inverses,
    b: &'a [[S::f32s; N]],
    past: &'a [[S::f32s; N]],
    /// Columns of o.
    begin: usize,
    columns: usize,
}

impl<S: Simd, const N: usize> RowTile for OutputTile<'_, S, N> {
    #[inline(always)]
    fn run<const MR: usize>(&mut self, row: usize) {
        let Self { simd, task, tile, key, stride, inverses, .. } = *self;
        let q = &self.q[row * stride..];
        let mut acc = zero::<S, MR, N>(simd);
        if tile.use_past {
            acc = mul_ab(simd, acc, q, stride, self.past);
            for i in 0..MR {
                let inverse = simd.splat_f32s(inverses.past[row + i]);
                for j in 0..N {
                    acc[i][j] = simd.mul_f32s(acc[i][j], inverse);
                }
            }
        }
        if tile.use_current {
            let current = mul_ab(simd, zero::<S, MR, N>(simd), q, stride, &self.b[..key]);
            for i in 0..MR {
                let inverse = simd.splat_f32s(inverses.current[row + i]);
                for j in 0..N {
                    acc[i][j] = simd.mul_add_e_f32s(current[i][j], inverse, acc[i][j]);
                }
            }
        }
        acc = mul_ab(simd, acc, &q[key..], stride, &self.b[key..key + row]);
        acc = mul_ab_tril(simd, acc, &q[key + row..], stride, &self.b[key + row..]);
        for i in 0..MR {
            let from = bytemuck::cast_slice::<S::f32s, f32>(&acc[i]);
            // Two branches, so that the usual one copies a length the compiler knows.
            let from = if self.columns == N * S::F32_LANES { from } else { &from[..self.columns] };
            let row = [task.batch, tile.token + row + i, tile.head];
            #[allow(unsafe_code, reason = "rows of o are split among tasks")]
            // SAFETY: tasks differ in batch, head or columns, and this one holds one row at a time.
            unsafe {
                task.o.write(simd, row, self.begin, from);
            }
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
