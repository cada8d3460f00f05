//! The sweep of the delta rule for one token, on a state that is swept in place:
//!
//! ```text
//! for each panel of N vectors of V's columns:
//!     for each row i of S:
//!         x = S[i]                   of this panel:    o += q'[i] x,  y += k'[i] x
//!         S[i] = c[i] x + k''[i] u   of the one before
//!     u = beta (v - y);  o += P u    (each of them times its factor)
//! ```
//!
//! u depends on all rows, so that each row is read once before its update and once more for it. The update of
//! a panel, whose rows are in a near cache by then, is done together with the first reading of the next
//! panel, whose rows come from farther away.
//!
//! The operands and the bits are those of [`super::gated`] for a block of one token.
#![allow(unsafe_code, reason = "rows of S are taken without a check for each of them")]

use pulp::{Simd, WithSimd};

use super::gated::operand_rows;
use super::{Ends, Rows, Tile, padded_key};
use crate::math::GROUP;

/// Panels of N vectors, side by side.
pub(crate) struct DeltaDecode<'a, const N: usize> {
    pub(crate) tile: &'a Tile<'a>,
    /// The first panel's first column among this task's columns.
    pub(crate) column: usize,
    pub(crate) panels: usize,
    pub(crate) s: Rows<'a>,
}

/// The number of rows of operands: k'', c, q' and k'.
const ROWS: usize = operand_rows(1, true);

impl<const N: usize> WithSimd for DeltaDecode<'_, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let width = N * S::F32_LANES;
        self.s.check(self.tile.shape.key, self.panels * width);
        let zero = [simd.splat_f32s(0.0); N];
        let mut u = zero;
        for panel in 0..self.panels {
            let ends = Ends::new::<S, N>(self.tile, self.column + panel * width);
            let [v] = ends.v::<S, 1, N>(simd, 0, 1);
            let (mut o, y) = if panel == 0 {
                self.rows::<S, false, true>(simd, 0, u)
            } else {
                self.rows::<S, true, true>(simd, panel, u)
            };
            let scores = &self.tile.scores[0];
            let [of_y, of_u] = [scores.y[0], scores.u[0]].map(|x| simd.splat_f32s(x));
            let (p, factor) =
                (simd.splat_f32s(scores.p[0][0]), simd.splat_f32s(self.tile.factors.current[0]));
            for j in 0..N {
                u[j] = simd.mul_f32s(of_u, simd.mul_add_e_f32s(of_y, y[j], v[j]));
                // As in the sweep of blocks: an output that is exactly zero is +0.
                o[j] = simd.mul_add_e_f32s(p, u[j], o[j]);
                o[j] = simd.mul_add_e_f32s(o[j], factor, simd.splat_f32s(0.0));
            }
            ends.write(simd, 0, 1, [o]);
        }
        self.rows::<S, true, false>(simd, self.panels, u);
    }
}

impl<const N: usize> DeltaDecode<'_, N> {
    /// Updates the rows of the panel before `panel` with its u, and reads the rows of `panel`, which gives o
    /// and y.
    #[inline(always)]
    fn rows<S: Simd, const UPDATE: bool, const READ: bool>(
        &mut self,
        simd: S,
        panel: usize,
        u: [S::f32s; N],
    ) -> ([S::f32s; N], [S::f32s; N]) {
        let (key, width) = (self.tile.shape.key, N * S::F32_LANES);
        let zero = [simd.splat_f32s(0.0); N];
        let (mut o, mut y) = (zero, zero);
        let operands = &self.tile.operands[..ROWS * padded_key(key)];
        for (group, operands) in operands.chunks_exact(ROWS * GROUP).enumerate() {
            let (operands, _) = operands.as_chunks::<GROUP>();
            let first = group * GROUP;
            for i in 0..GROUP.min(key - first) {
                if UPDATE {
                    // SAFETY: there is a row `first + i` below K, and S was checked for K rows of all panels.
                    let row = unsafe { self.s.row::<S, N>(first + i, (panel - 1) * width) };
                    let (k, c) = (simd.splat_f32s(operands[0][i]), simd.splat_f32s(operands[1][i]));
                    for j in 0..N {
                        row[j] = simd.mul_add_e_f32s(k, u[j], simd.mul_f32s(c, row[j]));
                    }
                }
                if READ {
                    // SAFETY: as above.
                    let row = unsafe { self.s.row::<S, N>(first + i, panel * width) };
                    let (q, k) = (simd.splat_f32s(operands[2][i]), simd.splat_f32s(operands[3][i]));
                    for j in 0..N {
                        o[j] = simd.mul_add_e_f32s(q, row[j], o[j]);
                        y[j] = simd.mul_add_e_f32s(k, row[j], y[j]);
                    }
                }
            }
        }
        (o, y)
    }
}
