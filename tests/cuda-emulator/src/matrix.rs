//! ldmatrix, stmatrix and mma.sync: fragments of a warp and the arithmetic of tensor cores.
//!
//! A lane is 4 * row + column pair: of an 8 x 8 tile of 16-bit elements, lane l holds elements 2 (l % 4) and the next
//! of row l / 4. A of 16 x 16 is four such tiles: rows 0 and 8 of column 0, then of column 8; B of 16 x 8 is two,
//! transposed; C of 16 x 8 floats is two: rows 0 and 8.

use crate::block::Block;
use crate::fault::Fault;
use crate::float::{from_bf16, from_f16};
use crate::isa::{Addr, Elem};
use crate::lanes::Regs;
use crate::shared::Touch;
use crate::warp::Warp;

impl Warp {
    /// Eight rows of 16 bytes per tile, each at the address that one lane gives.
    pub(crate) fn load_matrix(
        &mut self,
        block: &mut Block,
        n: usize,
        trans: bool,
        d: &[u32; 4],
        addr: &Addr,
    ) -> Result<(), Fault> {
        let addrs = self.addresses(addr);
        for tile in 0..n {
            let mut rows = [[0u16; 8]; 8];
            for row in 0..8 {
                let lane = tile * 8 + row;
                let place = block.shared.place(shared(addrs[lane]), 16, 16, lane as u32)?;
                block.shared.touch(self.id as usize, place, 16, Touch::Read, lane as u32)?;
                let bytes = block.shared.bytes(place, 16);
                rows[row] = std::array::from_fn(|i| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]));
            }
            let v = std::array::from_fn(|lane| {
                let (g, t) = (lane / 4, lane % 4 * 2);
                let (low, high) =
                    if trans { (rows[t][g], rows[t + 1][g]) } else { (rows[g][t], rows[g][t + 1]) };
                u32::from(high) << 16 | u32::from(low)
            });
            self.regs.put_w(d[tile], &v, !0);
            block.counters.banks(&addrs, 0xff << (tile * 8), 16);
        }
        Ok(())
    }

    pub(crate) fn store_matrix(
        &mut self,
        block: &mut Block,
        n: usize,
        trans: bool,
        a: &[u32; 4],
        addr: &Addr,
    ) -> Result<(), Fault> {
        let addrs = self.addresses(addr);
        for tile in 0..n {
            let v = self.regs.w[a[tile] as usize];
            let mut rows = [[0u16; 8]; 8];
            for lane in 0..32 {
                let (g, t) = (lane / 4, lane % 4 * 2);
                for (j, part) in [v[lane] as u16, (v[lane] >> 16) as u16].into_iter().enumerate() {
                    if trans {
                        rows[t + j][g] = part;
                    } else {
                        rows[g][t + j] = part;
                    }
                }
            }
            for row in 0..8 {
                let lane = tile * 8 + row;
                let place = block.shared.place(shared(addrs[lane]), 16, 16, lane as u32)?;
                block.shared.touch(self.id as usize, place, 16, Touch::Write, lane as u32)?;
                let to = block.shared.bytes_mut(place, 16);
                for i in 0..8 {
                    to[2 * i..2 * i + 2].copy_from_slice(&rows[row][i].to_le_bytes());
                }
            }
            block.counters.banks(&addrs, 0xff << (tile * 8), 16);
        }
        Ok(())
    }
}

/// ldmatrix takes generic addresses, too.
fn shared(at: u64) -> u64 {
    if at & 0xffff_ffff_0000_0000 == crate::access::SHARED_TAG { at & 0xffff_ffff } else { at }
}

/// The two elements of a register, or the one.
pub(crate) fn elements(elem: Elem, v: u32) -> [f32; 2] {
    match elem {
        Elem::Bf16 => [from_bf16(v & 0xffff), from_bf16(v >> 16)],
        Elem::F16 => [from_f16(v & 0xffff), from_f16(v >> 16)],
        // The hardware does not see the low bits.
        Elem::Tf32 => [f32::from_bits(v & !0x1fff), 0.0],
    }
}

/// D = A B + C of 16 x 8 x k.
pub(crate) fn mma(
    r: &mut Regs,
    elem: Elem,
    k: usize,
    d: &[u32; 4],
    a: &[u32; 4],
    b: &[u32; 2],
    c: &[u32; 4],
) {
    let mut am = [[0f32; 16]; 16];
    let mut bm = [[0f32; 8]; 16];
    let mut cm = [[0f32; 8]; 16];
    // Elements of a register: along k.
    let per = if elem == Elem::Tf32 { 1 } else { 2 };
    let tiles = k.div_ceil(4 * per);
    for i in 0..2 * tiles {
        let v = &r.w[a[i] as usize];
        for lane in 0..32 {
            let pair = elements(elem, v[lane]);
            let (row, column) = (lane / 4 + i % 2 * 8, lane % 4 * per + i / 2 * 4 * per);
            am[row][column..column + per].copy_from_slice(&pair[..per]);
        }
    }
    for i in 0..tiles {
        let v = &r.w[b[i] as usize];
        for lane in 0..32 {
            let pair = elements(elem, v[lane]);
            for j in 0..per {
                bm[lane % 4 * per + i * 4 * per + j][lane / 4] = pair[j];
            }
        }
    }
    for i in 0..4 {
        let v = &r.w[c[i] as usize];
        for lane in 0..32 {
            cm[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = f32::from_bits(v[lane]);
        }
    }
    rows(&am, &bm, &mut cm);
    for i in 0..4 {
        let v = std::array::from_fn(|lane| cm[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2].to_bits());
        r.put_w(d[i], &v, !0);
    }
}

/// Eight sums c += a . b as a pessimistic tensor core makes them: the exact products and c are cut at one
/// bit below the last of the largest one's 24, towards zero, added, and the sum is cut to 24 bits.
#[inline(always)]
pub(crate) fn dots(a: &[f32; 16], b: &[[f32; 8]; 16], c: &mut [f32; 8]) {
    let mut products = [[0f32; 8]; 16];
    let mut most = c.map(|c| (c.to_bits() & 0x7fff_ffff) as i32);
    for k in 0..16 {
        for j in 0..8 {
            let p = a[k] * b[k][j];
            products[k][j] = p;
            let bits = (p.to_bits() & 0x7fff_ffff) as i32;
            most[j] = if bits > most[j] { bits } else { most[j] };
        }
    }
    // Where products and scales are sure to be normal floats, all is done in floats; the rest, rare, in f64.
    let sure = most.iter().fold(true, |sure, m| sure & ((60..=250).contains(&(m >> 23)) | (*m == 0)));
    if !sure {
        for j in 0..8 {
            c[j] = dot_slow(a.iter().enumerate().map(|(k, a)| (*a, b[k][j])), c[j]);
        }
        return;
    }
    let e = most.map(|m| (m as u32 >> 23).max(60));
    let scale = e.map(|e| f32::from_bits(278u32.wrapping_sub(e) << 23));
    let mut sum = [0i32; 8];
    for j in 0..8 {
        sum[j] = cut(c[j] * scale[j]);
    }
    for p in &products {
        for j in 0..8 {
            sum[j] = sum[j].wrapping_add(cut(p[j] * scale[j]));
        }
    }
    for j in 0..8 {
        c[j] = cut24(sum[j]) * f32::from_bits(e[j].wrapping_sub(24) << 23);
    }
}

/// [`dots`] for the rows of A and C. Elements of A and B beyond the product's k are zero.
pub(crate) fn rows(a: &[[f32; 16]; 16], b: &[[f32; 8]; 16], c: &mut [[f32; 8]; 16]) {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx2") {
            // SAFETY: just asked for.
            unsafe { avx2::rows(a, b, c) };
            return;
        }
    }
    for row in 0..16 {
        dots(&a[row], b, &mut c[row]);
    }
}

#[inline(always)]
fn cut(x: f32) -> i32 {
    // SAFETY: the largest of them is below 2^25, its exponent having been scaled to 24; none is NaN.
    unsafe { x.to_int_unchecked() }
}

/// To 24 bits, towards zero.
#[inline(always)]
fn cut24(sum: i32) -> f32 {
    let size = sum.unsigned_abs();
    let extra = 8u32.saturating_sub(size.leading_zeros());
    let cut = (size >> extra << extra) as f32;
    if sum < 0 { -cut } else { cut }
}

/// One sum, for all values.
pub(crate) fn dot_slow(pairs: impl Iterator<Item = (f32, f32)>, c: f32) -> f32 {
    let mut terms = [0f64; 17];
    let mut n = 1;
    terms[0] = c.into();
    for (a, b) in pairs {
        terms[n] = f64::from(a) * f64::from(b);
        n += 1;
    }
    let plain: f64 = terms[..n].iter().sum();
    if !plain.is_finite() {
        return crate::float::canon(plain as f32);
    }
    let most = terms[..n].iter().fold(0f64, |m, t| m.max(t.abs()));
    if most == 0.0 {
        return 0.0;
    }
    let e = ((most.to_bits() >> 52) as i32 - 1023).max(-126);
    let unit = 2f64.powi(e - 24);
    let sum: f64 = terms[..n].iter().map(|t| (t / unit).trunc()).sum();
    crate::float::round_f32(sum * unit, crate::isa::Round::Rz)
}

/// [`dots`] in vectors of eight columns; the compiler, left alone, makes them of k.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2")]
    pub fn rows(a: &[[f32; 16]; 16], b: &[[f32; 8]; 16], c: &mut [[f32; 8]; 16]) {
        for row in 0..16 {
            if !sums(&a[row], b, &mut c[row]) {
                super::dots(&a[row], b, &mut c[row]);
            }
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn load(from: &[f32; 8]) -> __m256 {
        // SAFETY: eight floats, at any alignment.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    /// False, and nothing done, where products and scales may be no normal floats.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn sums(a: &[f32; 16], b: &[[f32; 8]; 16], c: &mut [f32; 8]) -> bool {
        let (size, all) = (_mm256_set1_epi32(i32::MAX), _mm256_set1_epi32);
        let start = load(c);
        let mut products = [start; 16];
        let mut most = _mm256_and_si256(_mm256_castps_si256(start), size);
        for k in 0..16 {
            products[k] = _mm256_mul_ps(_mm256_set1_ps(a[k]), load(&b[k]));
            most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(products[k]), size));
        }
        let e = _mm256_srli_epi32::<23>(most);
        let normal = _mm256_and_si256(_mm256_cmpgt_epi32(e, all(59)), _mm256_cmpgt_epi32(all(251), e));
        let sure = _mm256_or_si256(normal, _mm256_cmpeq_epi32(most, all(0)));
        if _mm256_movemask_ps(_mm256_castsi256_ps(sure)) != 0xff {
            return false;
        }
        let e = _mm256_max_epi32(e, all(60));
        let scale = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_sub_epi32(all(278), e)));
        let mut sum = _mm256_cvttps_epi32(_mm256_mul_ps(start, scale));
        for p in products {
            sum = _mm256_add_epi32(sum, _mm256_cvttps_epi32(_mm256_mul_ps(p, scale)));
        }
        // To nearest, then one down where that was up: cut to 24 bits.
        let whole = _mm256_abs_epi32(sum);
        let near = _mm256_cvtepi32_ps(whole);
        let up = _mm256_cmpgt_epi32(_mm256_cvttps_epi32(near), whole);
        let cut = _mm256_add_epi32(_mm256_castps_si256(near), up);
        let signed = _mm256_or_si256(cut, _mm256_and_si256(sum, all(i32::MIN)));
        let unit = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_sub_epi32(e, all(24))));
        let out = _mm256_mul_ps(_mm256_castsi256_ps(signed), unit);
        // SAFETY: eight floats, at any alignment.
        unsafe { _mm256_storeu_ps(c.as_mut_ptr(), out) };
        true
    }
}
