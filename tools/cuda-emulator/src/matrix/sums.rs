//! Sums of products as a pessimistic tensor core computes them.
//!
//! The products are exact. They and the accumulator are truncated at one bit below the last of the 24 bits of the
//! largest of them, added, and the sum is truncated to 24 bits.

use crate::float::{canon, round_f32};
use crate::isa::Round;

/// Adds a row of A times B to eight sums.
#[inline(always)]
fn dots(a: &[f32; 16], b: &[[f32; 8]; 16], c: &mut [f32; 8]) {
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
    // If all products and scales are normal floats, f32 suffices. Other values are rare and computed in f64.
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

/// Adds A times B to C, row by row. Elements of A and B beyond the product's inner dimension must be zero.
pub(crate) fn rows(a: &[[f32; 16]; 16], b: &[[f32; 8]; 16], c: &mut [[f32; 8]; 16]) {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has the feature.
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
    // SAFETY: the exponent of the largest value was scaled to 24, so all are below 2^25; none is NaN.
    unsafe { x.to_int_unchecked() }
}

/// Truncates a sum to 24 bits.
#[inline(always)]
fn cut24(sum: i32) -> f32 {
    let size = sum.unsigned_abs();
    let extra = 8u32.saturating_sub(size.leading_zeros());
    let cut = (size >> extra << extra) as f32;
    if sum < 0 { -cut } else { cut }
}

/// Computes one sum in f64, for operands of any size.
fn dot_slow(pairs: impl Iterator<Item = (f32, f32)>, c: f32) -> f32 {
    let mut terms = [0f64; 17];
    let mut n = 1;
    terms[0] = c.into();
    for (a, b) in pairs {
        terms[n] = f64::from(a) * f64::from(b);
        n += 1;
    }
    let plain: f64 = terms[..n].iter().sum();
    if !plain.is_finite() {
        return canon(plain as f32);
    }
    let most = terms[..n].iter().fold(0f64, |m, t| m.max(t.abs()));
    if most == 0.0 {
        return 0.0;
    }
    let e = ((most.to_bits() >> 52) as i32 - 1023).max(-126);
    let unit = 2f64.powi(e - 24);
    let sum: f64 = terms[..n].iter().map(|t| (t / unit).trunc()).sum();
    round_f32(sum * unit, Round::Rz)
}

/// [`dots`] in vectors of eight columns. The compiler by itself would vectorise along K, which is slower.
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
        // SAFETY: the array has eight floats, and the instruction needs no alignment.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    /// Returns false, and changes nothing, if some products or scales may not be normal floats.
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
        // The conversion to f32 rounds to nearest. Where it has rounded up, subtracting one from the bits truncates.
        let whole = _mm256_abs_epi32(sum);
        let near = _mm256_cvtepi32_ps(whole);
        let up = _mm256_cmpgt_epi32(_mm256_cvttps_epi32(near), whole);
        let cut = _mm256_add_epi32(_mm256_castps_si256(near), up);
        let signed = _mm256_or_si256(cut, _mm256_and_si256(sum, all(i32::MIN)));
        let unit = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_sub_epi32(e, all(24))));
        let out = _mm256_mul_ps(_mm256_castsi256_ps(signed), unit);
        // SAFETY: the array has eight floats, and the instruction needs no alignment.
        unsafe { _mm256_storeu_ps(c.as_mut_ptr(), out) };
        true
    }
}
