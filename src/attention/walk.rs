//! A tile of one head, swept over whole vectors of columns by the loop of its rule.

use core::ops::Range;

use pulp::Simd;

use super::task::Task;
use crate::isa::outline;
use crate::rule::Update;
use crate::sweep::decode::DeltaDecode;
use crate::sweep::gated::GatedPanel;
use crate::sweep::linear::{Panel, kind};
use crate::sweep::{Pass, Rows, Sums, Tile};

impl<const DECODE: bool> Task<'_, DECODE> {
    /// Sweeps whole vectors of columns; `sums` begin with the first of these columns.
    #[inline(always)]
    pub(super) fn panels<S: Simd, const B: usize, const N: usize, const H: usize>(
        &self,
        simd: S,
        tile: &Tile<'_>,
        columns: Range<usize>,
        sums: Sums<'_>,
    ) {
        let mut walk = Walk { tile, begin: columns.start, column: columns.start, end: columns.end, sums };
        if self.config.rule.in_blocks() {
            if self.config.rule.update == Update::Delta {
                walk.blocks::<S, DECODE, true>(simd);
            } else {
                walk.blocks::<S, DECODE, false>(simd);
            }
        } else if !DECODE && self.config.rule.in_passes() && tile.pass == Pass::Sum {
            walk.all::<S, B, N, { kind::SUM }>(simd);
            walk.all::<S, B, 1, { kind::SUM }>(simd);
        } else if !DECODE && self.config.rule.in_passes() {
            walk.all::<S, B, N, { kind::READ }>(simd);
            walk.all::<S, B, 1, { kind::READ }>(simd);
        } else if DECODE && S::F32_LANES == 1 {
            if self.layout.per_chunk {
                // These are rounding errors of the past, which takes in whole chunks only.
                walk.sums.error = Rows { data: &mut [], stride: 1 };
            }
            walk.all::<S, B, N, { kind::ANY }>(simd);
            walk.all::<S, B, 1, { kind::ANY }>(simd);
        } else if self.layout.per_chunk && tile.use_past {
            walk.all::<S, B, H, { kind::PAST }>(simd);
            walk.all::<S, B, 1, { kind::PAST }>(simd);
        } else if self.layout.compensated && !self.layout.per_chunk {
            walk.all::<S, B, H, { kind::COMPENSATED }>(simd);
            walk.all::<S, B, 1, { kind::COMPENSATED }>(simd);
        } else {
            walk.all::<S, B, N, { kind::PLAIN }>(simd);
            walk.all::<S, B, H, { kind::PLAIN }>(simd);
            walk.all::<S, B, 1, { kind::PLAIN }>(simd);
        }
    }
}

/// Vectors of columns that are still to be swept.
struct Walk<'a> {
    tile: &'a Tile<'a>,
    /// The column at which the sums begin.
    begin: usize,
    column: usize,
    end: usize,
    sums: Sums<'a>,
}

impl Walk<'_> {
    /// Sweeps N vectors at a time, as long as that many are left.
    #[inline(always)]
    fn all<S: Simd, const B: usize, const N: usize, const KIND: u8>(&mut self, simd: S) {
        while self.end - self.column >= N * S::F32_LANES {
            let (column, skip) = (self.column, self.column - self.begin);
            let Sums { s, past, error } = &mut self.sums;
            let sums = Sums {
                s: s.skip_columns(skip),
                past: past.skip_columns(skip),
                error: error.skip_columns(skip),
            };
            outline(simd, Panel::<B, N, KIND> { tile: self.tile, column, sums });
            self.column += N * S::F32_LANES;
        }
    }

    /// Sweeps all columns for rules with decays or a delta: many tokens in blocks of two by the vectors of a
    /// panel, and one token by as many vectors as there are registers for their o and y.
    #[inline(always)]
    fn blocks<S: Simd, const DECODE: bool, const DELTA: bool>(&mut self, simd: S) {
        match (DECODE, S::F32_LANES) {
            (true, 1) => {}
            (true, _) if DELTA => self.decode::<S, 4>(simd),
            (true, _) => self.gated::<S, 1, 4, DELTA>(simd),
            (false, 4 | 16) => {
                self.gated::<S, 2, 4, DELTA>(simd);
                self.gated::<S, 2, 2, DELTA>(simd);
            }
            (false, _) => self.gated::<S, 2, 2, DELTA>(simd),
        }
        match DECODE {
            true if DELTA => self.decode::<S, 1>(simd),
            true => self.gated::<S, 1, 1, DELTA>(simd),
            false => self.gated::<S, 2, 1, DELTA>(simd),
        }
    }

    /// Sweeps one token of the delta rule over all panels of N vectors that are left.
    #[inline(always)]
    fn decode<S: Simd, const N: usize>(&mut self, simd: S) {
        let (width, column, skip) = (N * S::F32_LANES, self.column, self.column - self.begin);
        let panels = (self.end - self.column) / width;
        if panels > 0 {
            let s = self.sums.s.skip_columns(skip);
            outline(simd, DeltaDecode::<N> { tile: self.tile, column, panels, s });
            self.column += panels * width;
        }
    }

    /// Sweeps N vectors at a time in blocks of T tokens, as long as that many vectors are left.
    #[inline(always)]
    fn gated<S: Simd, const T: usize, const N: usize, const DELTA: bool>(&mut self, simd: S) {
        while self.end - self.column >= N * S::F32_LANES {
            let (column, skip) = (self.column, self.column - self.begin);
            let s = self.sums.s.skip_columns(skip);
            outline(simd, GatedPanel::<T, N, DELTA> { tile: self.tile, column, s });
            self.column += N * S::F32_LANES;
        }
    }
}
