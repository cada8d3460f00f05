//! What benchmarks need of the inside: the machine's ceilings under the same dispatch as the kernels, and the two steps
//! that the kernels are made of. No part of the API: it changes without notice.

use core::hint::black_box;

use pulp::{Simd, WithSimd};

use crate::chunk::TILE;
use crate::element::Elements;
use crate::feature_map::FeatureMap;
use crate::isa::{Isa, dispatch};
use crate::tile::{self, Acc, NV, RowTile, for_row_tiles, mul_ab, panel_width, vectors_mut};

/// Chains of multiply-adds, each `steps` long and independent of the others; returns the flops.
pub fn multiply_adds(isa: Isa, steps: usize) -> f64 {
    (dispatch(isa, MultiplyAdds { steps }) * steps * 2 * isa.lanes()) as f64
}

struct MultiplyAdds {
    steps: usize,
}

impl WithSimd for MultiplyAdds {
    type Output = usize;
    /// How many chains there were: 12 hide a latency of 4 cycles at 2 a cycle, and fit in 16 registers; twice as many
    /// where the registers are. Of scalar ones the compiler may make vectors, as it does in the kernels.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> usize {
        if S::F32_LANES == 1 {
            self.chains::<S, 32>(simd)
        } else if S::REGISTER_COUNT >= 32 {
            self.chains::<S, 24>(simd)
        } else {
            self.chains::<S, 12>(simd)
        }
    }
}

impl MultiplyAdds {
    #[inline(always)]
    fn chains<S: Simd, const N: usize>(self, simd: S) -> usize {
        let (x, y) = (simd.splat_f32s(black_box(0.999_999)), simd.splat_f32s(black_box(1e-7)));
        let mut acc = [simd.splat_f32s(black_box(0.5)); N];
        for _ in 0..self.steps {
            for acc in &mut acc {
                *acc = simd.mul_add_e_f32s(*acc, x, y);
            }
        }
        let sum = acc[1..].iter().fold(acc[0], |sum, acc| simd.add_f32s(sum, *acc));
        black_box(simd.reduce_sum_f32s(sum));
        N
    }
}

/// Reads everything, `passes` times.
pub fn read(isa: Isa, data: &[f32], passes: usize) {
    dispatch(isa, Read { data, passes });
}

struct Read<'a> {
    data: &'a [f32],
    passes: usize,
}

impl WithSimd for Read<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for _ in 0..self.passes {
            let mut acc = [simd.splat_f32s(0.0); 8];
            for row in S::as_simd_f32s(black_box(self.data)).0.as_chunks::<8>().0 {
                for i in 0..8 {
                    acc[i] = simd.add_f32s(acc[i], row[i]);
                }
            }
            let sum = acc[1..].iter().fold(acc[0], |sum, acc| simd.add_f32s(sum, *acc));
            black_box(simd.reduce_sum_f32s(sum));
        }
    }
}

/// Reads, changes and writes everything, `passes` times. What is not a whole number of 8 vectors is left out.
pub fn update(isa: Isa, data: &mut [f32], passes: usize) {
    dispatch(isa, Update { data, passes });
}

struct Update<'a> {
    data: &'a mut [f32],
    passes: usize,
}

impl WithSimd for Update<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Towards 10, whatever was there: never a denormal.
        let (x, y) = (simd.splat_f32s(black_box(0.9999)), simd.splat_f32s(black_box(1e-3)));
        for _ in 0..self.passes {
            for row in S::as_mut_simd_f32s(black_box(&mut *self.data)).0.as_chunks_mut::<8>().0 {
                for i in 0..8 {
                    row[i] = simd.mul_add_e_f32s(row[i], x, y);
                }
            }
        }
    }
}

/// Rows of a in a tile product: the kernel's tile of tokens.
pub const TILE_ROWS: usize = TILE;

/// One tile product, `C = A B`, as the prefill multiplies phi(Q) with the state.
#[derive(Debug)]
pub struct Tile<'a> {
    /// A `[16, K]`, contiguous.
    pub a: &'a [f32],
    /// B in panels of [`Tile::panel`] columns, each `[K, panel]`: as the kernel packs it.
    pub b: &'a [f32],
    /// C in panels likewise, each `[16, panel]`; replaced.
    pub c: &'a mut [f32],
}

impl Tile<'_> {
    /// Columns of a panel.
    pub fn panel(isa: Isa) -> usize {
        panel_width(isa.lanes())
    }

    /// Multiplies.
    pub fn run(self, isa: Isa) {
        dispatch(isa, self);
    }
}

impl WithSimd for Tile<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (panel, key) = (panel_width(S::F32_LANES), self.a.len() / TILE_ROWS);
        for (b, c) in self.b.chunks_exact(key * panel).zip(self.c.chunks_exact_mut(TILE_ROWS * panel)) {
            let b = S::as_simd_f32s(b).0.as_chunks().0;
            for_row_tiles::<S>(TILE_ROWS, &mut Rows { simd, a: self.a, key, b, c: vectors_mut::<S, NV>(c) });
        }
    }
}

struct Rows<'a, S: Simd> {
    simd: S,
    a: &'a [f32],
    key: usize,
    b: &'a [[S::f32s; NV]],
    c: &'a mut [[S::f32s; NV]],
}

impl<S: Simd> RowTile for Rows<'_, S> {
    #[inline(always)]
    fn run<const MR: usize>(&mut self, row: usize) {
        let zero: Acc<S, MR, NV> = tile::zero::<S, MR, NV>(self.simd);
        let acc = mul_ab::<S, MR, NV>(self.simd, zero, &self.a[row * self.key..], self.key, self.b);
        self.c[row..][..MR].copy_from_slice(&acc);
    }
}

/// `to = phi(from)`, row by row; rows of `to` are padded to whole vectors.
pub fn feature_map(isa: Isa, map: FeatureMap, from: Elements<'_>, to: &mut [f32], row: usize) {
    dispatch(isa, Map { map, from, to, row });
}

struct Map<'a> {
    map: FeatureMap,
    from: Elements<'a>,
    to: &'a mut [f32],
    row: usize,
}

impl WithSimd for Map<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { map, from, to, row } = self;
        let rows = (0..from.len() / row).map(|at| from.slice(at * row..(at + 1) * row));
        map.pack(simd, rows, to, row.next_multiple_of(S::F32_LANES));
    }
}
