//! The pass forwards in time: dq, and what the pass backwards needs of each token.

use pulp::Simd;

use super::rows::{derive, plus_scaled, tile_sums, times};
use super::sizes::Sizes;
use super::sweep::{Matrix, Operands, READ, Swept, lay_out_and_sweep, sweep};
use super::task::{Carried, Kept, Memory, Rows, Span, Task, add};
use crate::isa::outline;
use crate::math::GROUP;
use crate::rule::Normaliser;
use crate::shape::HeadSet;
use crate::state::Sums::All;
use crate::sweep::{Ahead, Blocking, Factors, Fold};

/// The norms of a tile's tokens, of the sums they are added to and of the past.
struct Norms {
    /// 1 / n, or 1 without a normaliser; 0 where there is no past.
    inverse: [[f32; Blocking::MOST]; 2],
    /// scale / n as the factors of the two sweeps.
    factors: [Factors; 2],
}

/// The sums of one output, in this pass: S transposed and z, and those of the past.
struct Sums<'a> {
    s: Matrix<'a>,
    past: Matrix<'a>,
    z: &'a mut [f32],
    past_z: &'a mut [f32],
}

impl Task<'_> {
    /// Computes dq, and keeps for each token of each output scale / n and dn, of the sums and of the past.
    #[inline(always)]
    pub(super) fn queries<S: Simd, const B: usize, const N: usize>(
        &self,
        simd: S,
        rows: &mut Rows<'_>,
        kept: &mut Kept<'_>,
    ) {
        kept.sums.clear();
        for (i, output) in self.outputs() {
            let Some(state) = self.state(self.initial, output.heads.state) else { continue };
            let Sums { mut s, mut past, z, past_z } = self.sums_of_queries(&mut kept.sums, i);
            let [current, finished] = self.order();
            self.read(state, current, &mut s, true);
            self.read_z(state, current, z);
            if self.layout.per_chunk {
                self.read(state, finished, &mut past, true);
                self.read_z(state, finished, past_z);
            }
        }
        self.query_tiles::<S, B, N>(simd, rows, kept);
        self.carry(kept);
    }

    /// Leaves the numbers with which the pass backwards begins, for each output whose gates it derives: the
    /// product of the last state and its gradient.
    #[inline(always)]
    fn carry(&self, kept: &mut Kept<'_>) {
        for (i, output) in self.outputs().filter(|_| self.sizes.gated) {
            let mut product = 0.0;
            if let (true, Some(state)) = (output.state.first, self.state(self.last, output.heads.state)) {
                let Sums { s, z, .. } = self.sums_of_queries(&mut kept.sums, i);
                let Sizes { key, value, .. } = self.sizes;
                for (row, of_row) in state.chunks_exact(value).take(key).enumerate() {
                    for (column, x) in of_row.iter().enumerate() {
                        product += f64::from(*x) * f64::from(s.get(column, row));
                    }
                }
                if self.layout.normalised {
                    let of_z = &state[self.layout.z_offset(All)..];
                    product +=
                        of_z.iter().zip(&z[..key]).map(|(x, z)| f64::from(*x) * f64::from(*z)).sum::<f64>();
                }
            }
            Carried { decay: 1.0, sum: product }.store(&mut kept.numbers[self.numbers(i, self.len)]);
        }
    }

    /// Goes through the tokens tile by tile, and within a tile output by output.
    #[inline(always)]
    fn query_tiles<S: Simd, const B: usize, const N: usize>(
        &self,
        simd: S,
        rows: &mut Rows<'_>,
        kept: &mut Kept<'_>,
    ) {
        let [gradient, ..] = self.gradients();
        let mut use_past = self.layout.per_chunk && self.initial.is_some();
        let mut token = 0;
        while token < self.len {
            let span = Span { begin: token, len: self.until(token), reversed: false };
            for (i, output) in self.outputs() {
                self.load(simd, span, output.heads, rows);
                self.query_tile::<S, B, N>(simd, span, use_past, (i, output.heads), rows, kept);
                add(simd, output.q, rows.out, &mut rows.gradients[gradient.of(output.q, self.sizes.tile)]);
                if output.last {
                    self.write(simd, span, output.group, &gradient, rows.gradients);
                }
            }
            token += span.len;
            if self.is_boundary(token) {
                use_past = true;
                for (i, _) in self.outputs() {
                    let Sums { s, past, z, past_z } = self.sums_of_queries(&mut kept.sums, i);
                    outline(simd, Fold { sums: s.data, past: past.data, error: &mut [] });
                    outline(simd, Fold { sums: z, past: past_z, error: &mut [] });
                }
            }
        }
    }

    /// The sums of the i-th output.
    #[inline(always)]
    fn sums_of_queries<'m>(&self, memory: &'m mut Memory<'_>, i: usize) -> Sums<'m> {
        let sizes = &self.sizes;
        let (rows, width) = (sizes.value, sizes.key_row());
        let matrices = &mut memory.matrices[i * sizes.matrices()..][..sizes.sums * sizes.transposed()];
        let (s, past) = matrices.split_at_mut(sizes.transposed());
        let (z, past_z) = memory.vectors[i * sizes.vectors()..][..sizes.vectors()].split_at_mut(width);
        Sums { s: Matrix::new(s, rows, width, sizes), past: Matrix::new(past, rows, width, sizes), z, past_z }
    }

    /// Computes dq of one tile of one output, to `rows.out`.
    #[inline(always)]
    fn query_tile<S: Simd, const B: usize, const N: usize>(
        &self,
        simd: S,
        span: Span,
        use_past: bool,
        (i, heads): (usize, HeadSet),
        rows: &mut Rows<'_>,
        kept: &mut Kept<'_>,
    ) {
        let Sums { mut s, mut past, z, past_z } = self.sums_of_queries(&mut kept.sums, i);
        // A closure would not be inlined.
        let decays = if self.sizes.gated { Some(self.decays(simd, span, heads)) } else { None };
        let norms = self.norms(simd, span, rows, decays.as_ref(), [z, &mut *past_z], use_past);
        let [current, finished] = &norms.factors;
        let ([q, k, v, output, dq, ..], tokens) = self.ahead(span, heads);
        let ahead = Ahead { lines: [q, k, v, output, dq], tokens };
        let swept = Swept { operands: &[], scores: &[], v: rows.c, factors: current, len: span.len, ahead };
        let operands = Operands {
            to: &mut *rows.operands,
            k: &mut *rows.v,
            q: &mut *rows.output,
            decays: decays.as_ref(),
        };
        lay_out_and_sweep::<S, B, N>(simd, operands, swept, &mut s, rows.out);
        if use_past {
            let swept = Swept { operands: rows.operands, factors: finished, ahead: Ahead::NONE, ..swept };
            sweep::<S, B, N, READ>(simd, swept, &mut past, rows.past);
        }
        let gradients = self.gradients_of_norms(simd, span, rows, &norms, use_past);
        self.add_norms(simd, span, use_past, &gradients, past_z, rows);
        let key = self.sizes.key_row();
        let products = if self.written.g.is_some() {
            let a = rows.a.chunks_exact(key).take(span.len);
            tile_sums(simd, a.zip(rows.out.chunks_exact(key)))
        } else {
            finished.current
        };
        for j in 0..span.len {
            let of = j * key..(j + 1) * key;
            let x = [&rows.q[of.clone()], &rows.a[of.clone()]];
            derive(simd, self.rule.feature_map, x, &mut rows.out[of]);
            let numbers = [current.current[j], gradients[0][j], products[j], gradients[1][j]];
            kept.numbers[self.numbers(i, span.token(j))].copy_from_slice(&numbers);
        }
    }

    /// Adds to da what comes from the past and from the norms.
    #[inline(always)]
    fn add_norms<S: Simd>(
        &self,
        simd: S,
        span: Span,
        use_past: bool,
        gradients: &[[f32; Blocking::MOST]; 2],
        past_z: &[f32],
        rows: &mut Rows<'_>,
    ) {
        let key = self.sizes.key_row();
        for j in 0..span.len {
            let of = j * key..(j + 1) * key;
            let da = &mut rows.out[of.clone()];
            if self.layout.normalised {
                plus_scaled(simd, gradients[0][j], &rows.z[of.clone()], da);
            }
            if use_past {
                plus_scaled(simd, 1.0, &rows.past[of.clone()], da);
                plus_scaled(simd, gradients[1][j], past_z, da);
            }
        }
    }

    /// Adds the keys of a tile to z, keeps z of each token, and computes the norms.
    #[inline(always)]
    fn norms<S: Simd>(
        &self,
        simd: S,
        span: Span,
        rows: &mut Rows<'_>,
        decays: Option<&[f32; GROUP]>,
        [z, past_z]: [&mut [f32]; 2],
        use_past: bool,
    ) -> Norms {
        let key = self.sizes.key_row();
        let mut inverse = [[1.0; Blocking::MOST], [0.0; Blocking::MOST]];
        if let Normaliser::Global { eps } | Normaliser::PerChunk { eps, .. } = self.rule.normaliser {
            for (i, kept) in rows.z.chunks_exact_mut(key).take(span.len).enumerate() {
                if let Some(decays) = decays {
                    times(simd, decays[i], z);
                }
                plus_scaled(simd, 1.0, &rows.c[i * key..][..key], z);
                kept.copy_from_slice(z);
            }
            let invert = |sums: [f32; Blocking::MOST]| sums.map(|sum| 1.0 / (sum + eps));
            let a = rows.a.chunks_exact(key).take(span.len);
            inverse[0] = invert(tile_sums(simd, a.clone().zip(rows.z.chunks_exact(key))));
            if use_past {
                inverse[1] = invert(tile_sums(simd, a.map(|a| (a, &*past_z))));
            }
        }
        let factors =
            inverse.map(|inverse| Factors { current: inverse.map(|x| self.rule.scale * x), past: inverse });
        Norms { inverse, factors }
    }

    /// dn of each token, of the sums and of the past.
    #[inline(always)]
    fn gradients_of_norms<S: Simd>(
        &self,
        simd: S,
        span: Span,
        rows: &Rows<'_>,
        norms: &Norms,
        use_past: bool,
    ) -> [[f32; Blocking::MOST]; 2] {
        let mut gradients = [[0.0; Blocking::MOST]; 2];
        if !self.layout.normalised {
            return gradients;
        }
        let key = self.sizes.key_row();
        let read = [(&*rows.out, true), (&*rows.past, use_past)];
        for ((gradient, inverse), (read, wanted)) in gradients.iter_mut().zip(norms.inverse).zip(read) {
            if wanted {
                let a = rows.a.chunks_exact(key).take(span.len);
                let sums = tile_sums(simd, a.zip(read.chunks_exact(key)));
                for ((gradient, sum), inverse) in gradient.iter_mut().zip(sums).zip(inverse) {
                    *gradient = -sum * inverse;
                }
            }
        }
        gradients
    }
}
