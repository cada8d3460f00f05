//! Elementary functions on vectors, and sums over a row in the canonical order. Errors are stated and tested
//! against f64.
//!
//! Each function is one sequence of operations on every instruction set, so that results have the same bits
//! wherever multiply and add are fused.

use pulp::Simd;

/// Elements in a group: sums over a row have this many partial sums, whatever the width of a vector.
pub(crate) const GROUP: usize = 16;

/// The sum of a group, as a fixed tree: halves are added, then halves of these.
#[inline(always)]
pub(crate) fn sum_group(x: &[f32; GROUP]) -> f32 {
    // Loops of fixed lengths over separate arrays are vectorised.
    let (mut eight, mut four) = ([0.0; 8], [0.0; 4]);
    for i in 0..8 {
        eight[i] = x[i] + x[i + 8];
    }
    for i in 0..4 {
        four[i] = eight[i] + eight[i + 4];
    }
    (four[0] + four[2]) + (four[1] + four[3])
}

/// 1 / sqrt(x), each rounded by itself.
#[inline(always)]
pub(crate) fn inverse_root<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    simd.div_f32s(simd.splat_f32s(1.0), simd.sqrt_f32s(x))
}

/// max(x, 0), and NaN for NaN.
#[inline(always)]
pub(crate) fn positive_part<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let zero = simd.splat_f32s(0.0);
    if S::F32_LANES == 1 {
        // pulp's scalar maximum drops NaN. The comparison fails for it.
        return simd.select_f32s(simd.less_than_or_equal_f32s(x, zero), zero, x);
    }
    // x86 returns the second operand where one is NaN, Neon and WebAssembly return NaN.
    simd.max_f32s(zero, x)
}

/// `1 + x` for positive x, else `1 + (exp(x) - 1)`, which is its definition in f32 and in this order of
/// operations; NaN for NaN. It takes no comparison: of `exp(min(x, 0)) - 1` and `max(x, 0)` one is zero.
#[inline(always)]
pub(crate) fn elu_plus_one<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    let exp = exp_nonpositive(simd, simd.min_f32s(simd.splat_f32s(0.0), x));
    simd.add_f32s(simd.add_f32s(simd.sub_f32s(exp, one), one), positive_part(simd, x))
}

/// exp(x) for x <= 0, within 1.3e-7 absolutely, and relatively within 2e-7 + 6e-8 |x|; below -87 it stays at
/// the smallest normal number. For positive x and NaN the result is arbitrary: callers select another branch
/// for them.
///
/// ```text
/// n = round(x / ln 2), r = x - n ln 2, exp(x) = 2^n exp(r), |r| <= ln 2 / 2
/// exp(r) = 1 + r (1 + r P(r)), P of degree 3, fitted for the least relative error (1.1e-7)
/// ```
///
/// Adding 1.5 * 2^23 rounds to a whole number and leaves it in the low bits, from where it is shifted into
/// the exponent. ln 2 is not split in two parts, as it would be for relative accuracy far below zero: the
/// callers here add 1 or multiply by what is small there. One more degree reduces the error of P to 3e-9, and
/// costs the preparation of q and k one operation in sixteen.
#[inline(always)]
#[allow(clippy::excessive_precision, reason = "the decimals of the f32 that was fitted")]
pub(crate) fn exp_nonpositive<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const ROUND: f32 = 12_582_912.0;
    const P: [f32; 4] = [0.499_992_311, 0.166_671_156_9, 0.041_890_330_61, 0.008_312_501_013];

    let splat = |c: f32| simd.splat_f32s(c);
    let x = simd.max_f32s(x, splat(-87.3));
    let shifted = simd.mul_add_e_f32s(x, splat(core::f32::consts::LOG2_E), splat(ROUND));
    let n = simd.sub_f32s(shifted, splat(ROUND));
    let r = simd.mul_add_e_f32s(n, splat(-core::f32::consts::LN_2), x);
    let mut p = splat(P[3]);
    p = simd.mul_add_e_f32s(p, r, splat(P[2]));
    p = simd.mul_add_e_f32s(p, r, splat(P[1]));
    p = simd.mul_add_e_f32s(p, r, splat(P[0]));
    p = simd.mul_add_e_f32s(p, r, splat(1.0));
    p = simd.mul_add_e_f32s(p, r, splat(1.0));
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(p), exponent))
}

/// exp(x), relatively within 2e-7 where the result is a normal number: 0 from -104 down, infinity from 88.8
/// up, NaN for NaN.
///
/// The method is that of [`exp_nonpositive`], with ln 2 in two parts, P of degree 4, and 2^n as a product of
/// two powers, of which the second rounds where the result is denormal.
#[inline(always)]
#[allow(clippy::excessive_precision, reason = "the decimals of the f32 that was fitted")]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const ROUND: f32 = 12_582_912.0;
    const LN_2: [f32; 2] = [0.693_359_375, -2.121_944_4e-4];
    const P: [f32; 5] =
        [0.500_000_008_1, 0.166_665_159_3, 0.041_666_262_97, 0.008_369_158_872, 0.001_394_645_81];

    let splat = |c: f32| simd.splat_f32s(c);
    let x = clamp(simd, -104.0, x, 89.0);
    let n =
        simd.sub_f32s(simd.mul_add_e_f32s(x, splat(core::f32::consts::LOG2_E), splat(ROUND)), splat(ROUND));
    let r = simd.mul_add_e_f32s(n, splat(-LN_2[0]), x);
    let r = simd.mul_add_e_f32s(n, splat(-LN_2[1]), r);
    let p = polynomial(simd, r, P);
    let p = simd.mul_add_e_f32s(p, simd.mul_f32s(r, r), r);
    let p = simd.add_f32s(p, splat(1.0));
    let half = simd.mul_add_e_f32s(n, splat(0.5), splat(ROUND));
    let rest = simd.add_f32s(simd.sub_f32s(n, simd.sub_f32s(half, splat(ROUND))), splat(ROUND));
    simd.mul_f32s(simd.mul_f32s(p, power_of_two(simd, half)), power_of_two(simd, rest))
}

/// `coefficients[0] + coefficients[1] x + ...` by Horner's rule.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(simd: S, x: S::f32s, coefficients: [f32; N]) -> S::f32s {
    let mut sum = simd.splat_f32s(coefficients[N - 1]);
    let mut i = N - 1;
    while i > 0 {
        i -= 1;
        sum = simd.mul_add_e_f32s(sum, x, simd.splat_f32s(coefficients[i]));
    }
    sum
}

/// 2^n of `1.5 * 2^23 + n`, for a normal result. (Not a closure: it would stay out of line.)
#[inline(always)]
fn power_of_two<S: Simd>(simd: S, shifted: S::f32s) -> S::f32s {
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(exponent, simd.splat_u32s(1.0f32.to_bits())))
}

/// x between two bounds, and NaN for NaN.
#[inline(always)]
fn clamp<S: Simd>(simd: S, low: f32, x: S::f32s, high: f32) -> S::f32s {
    let (low, high) = (simd.splat_f32s(low), simd.splat_f32s(high));
    if S::F32_LANES == 1 {
        // As in `positive_part`.
        let x = simd.select_f32s(simd.less_than_f32s(x, low), low, x);
        return simd.select_f32s(simd.less_than_f32s(high, x), high, x);
    }
    simd.max_f32s(low, simd.min_f32s(high, x))
}

/// -|x|, and NaN for NaN.
#[inline(always)]
fn minus_abs<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // The sign bit is set.
    simd.transmute_f32s_u32s(simd.or_u32s(simd.transmute_u32s_f32s(x), simd.splat_u32s(1 << 31)))
}

/// `ln(1 + exp(x))`, relatively within 4e-7 from -87 up; NaN for NaN.
///
/// ```text
/// max(x, 0) + log1p(y), y = exp(-|x|);  log1p(y) = 2 atanh(s), s = y / (2 + y) <= 1/3
/// atanh(s) = s + s w P(w), w = s^2, P of degree 3, fitted for the least relative error (5e-9)
/// ```
#[inline(always)]
#[allow(clippy::excessive_precision, reason = "the decimals of the f32 that was fitted")]
pub(crate) fn softplus<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const P: [f32; 4] = [0.333_332_052_3, 0.200_108_954_3, 0.139_990_866_3, 0.140_138_197_8];
    let splat = |c: f32| simd.splat_f32s(c);
    let y = exp(simd, minus_abs(simd, x));
    let s = simd.div_f32s(y, simd.add_f32s(y, splat(2.0)));
    let w = simd.mul_f32s(s, s);
    let p = polynomial(simd, w, P);
    let p = simd.mul_add_e_f32s(p, simd.mul_f32s(s, w), s);
    simd.mul_add_e_f32s(p, splat(2.0), positive_part(simd, x))
}

/// `1 / (1 + exp(-x))`, relatively within 4e-7 from -87 up; NaN for NaN.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    let y = exp(simd, minus_abs(simd, x));
    // The comparison fails for NaN, which comes through y.
    let numerator = simd.select_f32s(simd.less_than_f32s(x, simd.splat_f32s(0.0)), y, one);
    simd.div_f32s(numerator, simd.add_f32s(one, y))
}

/// SiLU, `x sigmoid(x)`, relatively within 5e-7 from -87 up, and at most 1.5e-36 in size below; infinity for
/// infinity, NaN for NaN.
#[inline(always)]
pub(crate) fn silu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // -inf * 0 would be NaN.
    let finite = clamp(simd, -104.0, x, f32::INFINITY);
    simd.mul_f32s(finite, sigmoid(simd, x))
}

/// `sum + error + x` rounded, and its rounding error (Knuth 1969, vol. 2, 4.2.2: exact whatever the sizes).
/// Where the sum is infinite, the error is NaN.
#[inline(always)]
pub(crate) fn add_compensated<S: Simd>(
    simd: S,
    sum: S::f32s,
    error: S::f32s,
    x: S::f32s,
) -> (S::f32s, S::f32s) {
    let x = simd.add_f32s(x, error);
    let new = simd.add_f32s(sum, x);
    let of_x = simd.sub_f32s(new, sum);
    let of_sum = simd.sub_f32s(new, of_x);
    (new, simd.add_f32s(simd.sub_f32s(sum, of_sum), simd.sub_f32s(x, of_x)))
}

/// The exact (erf) GELU, x Phi(x), within 5e-7 |x|.
///
/// ```text
/// Phi(-|x|) = erfc(t) / 2 = exp(-x^2 / 2) erfcx(t) / 2, t = |x| / sqrt 2; Phi(|x|) = 1 - Phi(-|x|)
/// erfcx(t) = u Q(u), u = 1 / (1 + 0.3 t), Q of degree 8, fitted on 0 <= t <= 9.8 (relative error 2e-8)
/// ```
///
/// For negative x it is a product, not a difference, so the tail keeps its relative accuracy.
#[inline(always)]
#[allow(clippy::excessive_precision, reason = "the decimals of the f32 that was fitted")]
pub(crate) fn gelu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // The coefficients are halved, because Phi takes erfc / 2.
    const Q: [f32; 9] = [
        0.169_188_484_5 / 2.0,
        0.170_708_164_6 / 2.0,
        0.148_382_663_7 / 2.0,
        0.214_777_067_3 / 2.0,
        -0.094_340_026_38 / 2.0,
        0.547_315_537_9 / 2.0,
        -0.511_956_513 / 2.0,
        0.485_420_256_9 / 2.0,
        -0.129_495_665_4 / 2.0,
    ];
    let splat = |c: f32| simd.splat_f32s(c);
    // pulp's abs would stay out of line.
    let abs = simd.max_f32s(x, simd.sub_f32s(splat(0.0), x));
    let slope = splat(0.3 * core::f32::consts::FRAC_1_SQRT_2);
    let u = simd.div_f32s(splat(1.0), simd.mul_add_e_f32s(abs, slope, splat(1.0)));
    let q = polynomial(simd, u, Q);
    let exp = exp_nonpositive(simd, simd.mul_f32s(simd.mul_f32s(x, x), splat(-0.5)));
    let tail = simd.mul_f32s(exp, simd.mul_f32s(q, u));
    // The comparison fails for NaN, which then comes through the product.
    let negative = simd.less_than_f32s(x, splat(0.0));
    let phi = simd.select_f32s(negative, tail, simd.sub_f32s(splat(1.0), tail));
    // -inf * 0 would be NaN: below -13.5 the result is smaller than any normal f32.
    simd.mul_f32s(simd.select_f32s(negative, simd.max_f32s(x, splat(-14.0)), x), phi)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, dispatch};
    use pulp::WithSimd;
    use std::vec::Vec;

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        FullExp,
        Softplus,
        Sigmoid,
        Silu,
        Gelu,
    }

    struct Map<'a>(Function, &'a mut [f32]);

    impl WithSimd for Map<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            for x in self.1.chunks_mut(S::F32_LANES) {
                let lane = |at: usize| x[at % x.len()];
                let mut full = [0.0; 16];
                for (at, full) in full.iter_mut().enumerate() {
                    *full = lane(at);
                }
                let y = S::as_simd_f32s(&full).0[0];
                let y = match self.0 {
                    Function::Exp => exp_nonpositive(simd, y),
                    Function::FullExp => exp(simd, y),
                    Function::Softplus => softplus(simd, y),
                    Function::Sigmoid => sigmoid(simd, y),
                    Function::Silu => silu(simd, y),
                    Function::Gelu => gelu(simd, y),
                };
                let y: &[f32] = bytemuck::cast_slice(core::slice::from_ref(&y));
                x.copy_from_slice(&y[..x.len()]);
            }
        }
    }

    fn sweep(from: f32, to: f32) -> impl Iterator<Item = f32> {
        const STEPS: u32 = 200_000;
        (0..=STEPS).map(move |i| from + (to - from) * (i as f32 / STEPS as f32))
    }

    #[test]
    fn exp_is_as_close_as_it_says() {
        for isa in Isa::available() {
            let x: Vec<f32> = sweep(-87.3, 0.0).collect();
            let mut y = x.clone();
            dispatch(isa, Map(Function::Exp, &mut y));
            for (x, y) in x.iter().zip(y) {
                let want = libm::exp(f64::from(*x));
                let error = (f64::from(y) - want).abs();
                let relative = 2e-7 + 6e-8 * f64::from(x.abs());
                assert!(error <= 1.3e-7 && error <= relative * want, "{isa}: exp({x}) = {y}, {want}");
            }
        }
    }

    /// Compares each function with its definition in f64, also at the ends of its range.
    #[test]
    fn functions_of_gates_are_as_close_as_they_say() {
        let log1p_exp =
            |x: f64| if x > 0.0 { x + libm::log1p(libm::exp(-x)) } else { libm::log1p(libm::exp(x)) };
        let logistic = |x: f64| 1.0 / (1.0 + libm::exp(-x));
        type Case = (Function, fn(f64) -> f64, f64, [f32; 2]);
        let cases: [Case; 4] = [
            (Function::FullExp, libm::exp, 2e-7, [0.0, f32::INFINITY]),
            (Function::Softplus, log1p_exp, 4e-7, [0.0, f32::INFINITY]),
            (Function::Sigmoid, logistic, 4e-7, [0.0, 1.0]),
            (Function::Silu, |x| x / (1.0 + libm::exp(-x)), 5e-7, [0.0, f32::INFINITY]),
        ];
        for (function, definition, bound, ends) in cases {
            for isa in Isa::available() {
                let x: Vec<f32> = sweep(-87.3, 88.7).chain(sweep(-2.0, 2.0)).collect();
                let mut y = x.clone();
                dispatch(isa, Map(function, &mut y));
                for (x, y) in x.iter().zip(y) {
                    let want = definition(f64::from(*x));
                    let error = (f64::from(y) - want).abs();
                    assert!(error <= bound * want.abs(), "{isa}: f({x}) = {y}, {want}");
                }
                let mut edge = [f32::NEG_INFINITY, f32::INFINITY, f32::NAN, -1e30, 1e30];
                dispatch(isa, Map(function, &mut edge));
                assert_eq!(edge[..2], ends, "{isa}");
                assert!(edge[2].is_nan() && edge[3] == 0.0, "{isa}: {edge:?}");
                // Denormal factors are rounded once.
                let mut denormal: Vec<f32> = sweep(-104.0, -87.3).collect();
                let x = denormal.clone();
                dispatch(isa, Map(function, &mut denormal));
                for (x, y) in x.iter().zip(denormal) {
                    let error = (f64::from(y) - definition(f64::from(*x))).abs();
                    assert!(error <= 2e-45 * f64::from(x.abs()), "{isa}: f({x}) = {y:e}");
                }
            }
        }
    }

    #[test]
    fn gelu_is_within_5e_7() {
        for isa in Isa::available() {
            let x: Vec<f32> = sweep(-12.0, 12.0).chain([1e30, -1e30, f32::INFINITY]).collect();
            let mut y = x.clone();
            dispatch(isa, Map(Function::Gelu, &mut y));
            for (x, y) in x.iter().zip(y) {
                let wide = f64::from(*x);
                let want = wide * 0.5 * libm::erfc(-wide * core::f64::consts::FRAC_1_SQRT_2);
                let want = if want.is_nan() { wide.max(0.0) } else { want };
                let close = y == want as f32 || (f64::from(y) - want).abs() <= 5e-7 * wide.abs();
                assert!(close, "{isa}: gelu({x}) = {y}, {want}");
            }
            let mut edge = [f32::NAN, f32::NEG_INFINITY, -0.0];
            dispatch(isa, Map(Function::Gelu, &mut edge));
            assert!(edge[0].is_nan() && edge[1].abs() < 1e-30 && edge[2] == 0.0, "{isa}: {edge:?}");
        }
    }
}
