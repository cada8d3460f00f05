//! The pass backwards in time: dk, dv and the gradient of the initial state.
#![allow(unsafe_code, reason = "tasks on different threads write different states of one slice")]

use pulp::Simd;

use super::rows::{derive, plus_scaled, scaled, tile_sums, times};
use super::sweep::{Matrix, ONES, Operands, SUM, Swept, interleave, lay_out_and_sweep, sweep};
use super::task::{Carried, Kept, Memory, Rows, Span, Task, add};
use crate::isa::Lines;
use crate::math::GROUP;
use crate::shape::HeadSet;
use crate::sweep::Ahead;

/// The sums of one output, in this pass: R, its transpose and r; first those to which tokens are added, then
/// those of the past.
struct Sums<'a> {
    r: [Matrix<'a>; 2],
    transposed: [Matrix<'a>; 2],
    z: [&'a mut [f32]; 2],
}

impl Task<'_> {
    /// Computes dk, dv and the gradient of the initial state.
    #[inline(always)]
    pub(super) fn keys<S: Simd, const B: usize, const N: usize>(
        &self,
        simd: S,
        rows: &mut Rows<'_>,
        kept: &mut Kept<'_>,
    ) {
        self.begin_keys(kept);
        let ([_, of_k, of_v], of_g) = (self.gradients(), self.gate_gradient());
        let mut end = self.len;
        loop {
            if self.is_boundary(end) {
                // The sums of the chunk that ends here became a part of the past.
                for (i, _) in self.outputs() {
                    let Sums { r: [r, past], transposed: [rt, past_t], z: [z, past_z] } =
                        self.sums_of_keys(&mut kept.sums, i);
                    r.data.copy_from_slice(past.data);
                    rt.data.copy_from_slice(past_t.data);
                    z.copy_from_slice(past_z);
                }
            }
            if end == 0 {
                break;
            }
            let begin = self.tile_before(end);
            let span = Span { begin, len: end - begin, reversed: true };
            end = begin;
            let tile = self.sizes.tile;
            let keys = of_k.heads * tile * self.sizes.key_row();
            for (i, output) in self.outputs() {
                self.load(simd, span, output.heads, rows);
                self.key_tile::<S, B, N>(simd, span, (i, output.heads), rows, kept);
                let (k, v) = rows.gradients.split_at_mut(keys);
                add(simd, output.k, rows.out, &mut k[of_k.of(output.k, tile)]);
                add(simd, output.v, rows.dv, &mut v[of_v.of(output.v, tile)]);
                if let Some(of_g) = &of_g {
                    add(simd, output.state, &rows.dg[..tile], &mut rows.gates[of_g.of(output.state, tile)]);
                }
                if output.last {
                    self.write(simd, span, output.group, &of_k, k);
                    self.write(simd, span, output.group, &of_v, v);
                    if let Some(of_g) = &of_g {
                        self.write(simd, span, output.group, of_g, rows.gates);
                    }
                }
            }
        }
        self.end_keys(kept);
    }

    /// The sums of the i-th output.
    #[inline(always)]
    fn sums_of_keys<'m>(&self, memory: &'m mut Memory<'_>, i: usize) -> Sums<'m> {
        let sizes = &self.sizes;
        let (key, value) = (sizes.key_row(), sizes.value_row());
        let mut rest = &mut memory.matrices[i * sizes.matrices()..][..sizes.matrices()];
        let mut take = |len: usize| rest.split_off_mut(..len).unwrap_or_default();
        let past = sizes.sums - 1;
        let r = [take(sizes.matrix()), take(past * sizes.matrix())];
        let transposed = [take(sizes.transposed()), take(past * sizes.transposed())];
        let z = memory.vectors[i * sizes.vectors()..][..sizes.vectors()].split_at_mut(key);
        Sums {
            r: r.map(|data| Matrix::new(data, sizes.key, value, sizes)),
            transposed: transposed.map(|data| Matrix::new(data, sizes.value, key, sizes)),
            z: z.into(),
        }
    }

    /// Begins with the gradient of the last state, or with zeros. The first of the outputs that share a state
    /// takes its gradient.
    #[inline(always)]
    fn begin_keys(&self, kept: &mut Kept<'_>) {
        kept.sums.clear();
        for (i, output) in self.outputs().filter(|(_, output)| output.state.first) {
            let Some(state) = self.state(self.last, output.heads.state) else { continue };
            let Sums { mut r, mut transposed, z } = self.sums_of_keys(&mut kept.sums, i);
            let sums = r.iter_mut().zip(&mut transposed).zip(z).zip(self.order());
            for (((r, rt), z), which) in sums.take(self.sizes.sums) {
                self.read(state, which, r, false);
                self.read(state, which, rt, true);
                self.read_z(state, which, z);
            }
        }
    }

    /// Computes dk and dv of one tile of one output, to `rows.out` and `rows.dv`.
    #[inline(always)]
    fn key_tile<S: Simd, const B: usize, const N: usize>(
        &self,
        simd: S,
        span: Span,
        (i, heads): (usize, HeadSet),
        rows: &mut Rows<'_>,
        kept: &mut Kept<'_>,
    ) {
        let (key, value) = (self.sizes.key_row(), self.sizes.value_row());
        let (len, factors, per_chunk) = (span.len, &ONES, self.layout.per_chunk);
        self.scale_outputs(simd, span, i, rows, kept);
        // A closure would not be inlined.
        let own = if self.sizes.gated { Some(self.decays(simd, span, heads)) } else { None };
        let decays = own.map(|own| self.decays_behind(&own, len, i, kept));
        let mut sums = self.sums_of_keys(&mut kept.sums, i);
        let ([r, past], [rt, past_t]) = (&mut sums.r, &mut sums.transposed);
        let ([q, k, v, output, _, dk, dv], tokens) = self.ahead(span, heads);
        let ahead = |[x, y, z]: [Lines; 3]| Ahead { lines: [x, y, z, Lines::NONE, Lines::NONE], tokens };
        let of_r = Swept { operands: &[], scores: &[], v: rows.dn, factors, len, ahead: ahead([k, v, dk]) };
        let (to, decays) = (&mut *rows.operands, decays.as_ref());
        let operands = Operands { to, k: &mut *rows.a, q: &mut *rows.c, decays };
        lay_out_and_sweep::<S, B, N>(simd, operands, of_r, r, rows.dv);
        if per_chunk {
            let swept = Swept { operands: rows.operands, v: rows.dn_past, ahead: Ahead::NONE, ..of_r };
            sweep::<S, B, N, SUM>(simd, swept, past, &mut []);
        }
        let ahead = ahead([q, output, dv]);
        let of_rt = Swept { operands: &[], scores: &[], v: rows.a, factors, len, ahead };
        let operands = Operands { to: &mut *rows.operands, k: &mut *rows.dn, q: &mut *rows.v, decays };
        lay_out_and_sweep::<S, B, N>(simd, operands, of_rt, rt, rows.out);
        if per_chunk {
            interleave::<B>(rows.operands, [rows.dn_past, rows.v], value, len);
            let swept = Swept { operands: rows.operands, ahead: Ahead::NONE, ..of_rt };
            sweep::<S, B, N, SUM>(simd, swept, past_t, &mut []);
        }
        self.add_r(simd, span, i, decays, rows, kept);
        if let Some(own) = &own {
            self.gates(simd, span, i, own, rows, kept);
        }
        for j in 0..len {
            let of = j * key..(j + 1) * key;
            let x = [&rows.k[of.clone()], &rows.c[of.clone()]];
            derive(simd, self.rule.feature_map, x, &mut rows.out[of]);
        }
    }

    /// dN of the tokens of a tile: the gradient of o times scale / n.
    #[inline(always)]
    fn scale_outputs<S: Simd>(&self, simd: S, span: Span, i: usize, rows: &mut Rows<'_>, kept: &Kept<'_>) {
        let value = self.sizes.value_row();
        for j in 0..span.len {
            let numbers = &kept.numbers[self.numbers(i, span.token(j))];
            let of = j * value..(j + 1) * value;
            scaled(simd, numbers[0], &rows.output[of.clone()], &mut rows.dn[of.clone()]);
            if self.layout.per_chunk {
                scaled(simd, numbers[2], &rows.output[of.clone()], &mut rows.dn_past[of]);
            }
        }
    }

    /// The decays that the sums take before the tokens of a tile: each that of the token behind it in time.
    #[inline(always)]
    fn decays_behind(&self, own: &[f32; GROUP], len: usize, i: usize, kept: &Kept<'_>) -> [f32; GROUP] {
        let mut decays = [1.0; GROUP];
        decays[0] = Carried::load(&kept.numbers[self.numbers(i, self.len)]).decay;
        decays[1..len].copy_from_slice(&own[1..len]);
        decays[1..len].reverse();
        decays
    }

    /// Adds the tokens of a tile to r, and r to dc.
    #[inline(always)]
    fn add_r<S: Simd>(
        &self,
        simd: S,
        span: Span,
        i: usize,
        decays: Option<&[f32; GROUP]>,
        rows: &mut Rows<'_>,
        kept: &mut Kept<'_>,
    ) {
        let key = self.sizes.key_row();
        let [z, past_z] = self.sums_of_keys(&mut kept.sums, i).z;
        for j in 0..span.len {
            let of = j * key..(j + 1) * key;
            let numbers = &kept.numbers[self.numbers(i, span.token(j))];
            let (a, dc) = (&rows.a[of.clone()], &mut rows.out[of]);
            if self.layout.normalised {
                if let Some(decays) = decays {
                    times(simd, decays[j], z);
                }
                plus_scaled(simd, numbers[1], a, z);
                plus_scaled(simd, 1.0, z, dc);
            }
            if self.layout.per_chunk {
                plus_scaled(simd, numbers[3], a, past_z);
            }
        }
    }

    /// Adds up phi(q) . da - phi(k) . dc, which is the derivative with respect to the sum of the logarithms of all
    /// decays up to a token. The sum over a token and all behind it is the derivative with respect to the token's
    /// own logarithm, and is left in `rows.dg`.
    #[inline(always)]
    fn gates<S: Simd>(
        &self,
        simd: S,
        span: Span,
        i: usize,
        own: &[f32; GROUP],
        rows: &mut Rows<'_>,
        kept: &mut Kept<'_>,
    ) {
        let key = self.sizes.key_row();
        let mut carried = Carried::load(&kept.numbers[self.numbers(i, self.len)]);
        if self.written.g.is_some() {
            let c = rows.c.chunks_exact(key).take(span.len);
            let products = tile_sums(simd, c.zip(rows.out.chunks_exact(key)));
            for (j, product) in products[..span.len].iter().enumerate() {
                let of_query = kept.numbers[self.numbers(i, span.token(j))][2];
                carried.sum += f64::from(of_query) - f64::from(*product);
                // Behind a decay of 0 nothing depends on its logarithm.
                let decay = own[span.len - 1 - j];
                rows.dg[j] = if decay == 0.0 { 0.0 } else { carried.sum as f32 };
            }
        }
        carried.decay = own[0];
        carried.store(&mut kept.numbers[self.numbers(i, self.len)]);
    }

    /// Writes the gradient of the initial state: the sum over the outputs that share it.
    #[inline(always)]
    fn end_keys(&self, kept: &mut Kept<'_>) {
        let Some(to) = self.initial_gradient else { return };
        let (key, value) = (self.sizes.key, self.sizes.value);
        for (i, output) in self.outputs() {
            // SAFETY: no other task has this state.
            let to = unsafe { to.part(output.heads.state * self.layout.len(), self.layout.len()) };
            if output.state.first {
                to.fill(0.0);
            }
            // The gradient of a state is that of the first token's sums, which have taken its decay from the state.
            let decay = if self.sizes.gated {
                Carried::load(&kept.numbers[self.numbers(i, self.len)]).decay
            } else {
                1.0
            };
            let Sums { r, z, .. } = self.sums_of_keys(&mut kept.sums, i);
            for ((r, z), which) in r.iter().zip(z).zip(self.order()).take(self.sizes.sums) {
                let s = &mut to[self.layout.s_offset(which)..];
                for (row, to) in s.chunks_exact_mut(value).take(key).enumerate() {
                    for (column, to) in to.iter_mut().enumerate() {
                        *to += decay * r.get(row, column);
                    }
                }
                if self.layout.normalised {
                    for (to, z) in to[self.layout.z_offset(which)..].iter_mut().zip(&z[..key]) {
                        *to += decay * *z;
                    }
                }
            }
        }
    }
}
