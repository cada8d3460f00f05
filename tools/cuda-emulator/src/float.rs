//! Values of floating-point types: rounding, special values, and the formats of 16 bits.

mod arithmetic;

pub use arithmetic::{pick16, pick32, pick64};

use crate::isa::Round;

/// Replaces every NaN by the one that PTX specifies.
#[inline(always)]
pub fn canon(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(0x7fff_ffff) } else { x }
}

/// Flushes denormals to a zero of the same sign.
#[inline(always)]
pub fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x }
}

/// Computes a * b + c, rounded to odd: an inexact result is the neighbour with an odd mantissa. Since f64 has at
/// least two bits more than the final type, a second rounding gives the same as a single rounding of the exact value.
#[inline(always)]
pub fn fma_odd(a: f64, b: f64, c: f64) -> f64 {
    // The product is exact, because the factors have at most 24 bits.
    let p = a * b;
    let s = p + c;
    if !s.is_finite() {
        return s;
    }
    let t = s - p;
    let error = (p - (s - t)) + (c - t);
    if error == 0.0 || s.to_bits() & 1 != 0 {
        return s;
    }
    // The sum is even and inexact, so the result is its odd neighbour in the direction of the exact value.
    let away = (error > 0.0) == (s > 0.0);
    f64::from_bits(if away { s.to_bits() + 1 } else { s.to_bits() - 1 })
}

/// Rounds an f64 to f32 by a rounding mode.
#[inline(always)]
pub fn round_f32(x: f64, round: Round) -> f32 {
    let y = x as f32;
    if round == Round::Rn || f64::from(y) == x || x.is_nan() {
        return y;
    }
    let up = f64::from(y) > x;
    match round {
        Round::Rz if x > 0.0 && up => y.next_down(),
        Round::Rz if x < 0.0 && !up => y.next_up(),
        Round::Rm if up => y.next_down(),
        Round::Rp if !up => y.next_up(),
        _ => y,
    }
}

/// Converts an f64 to a float with `exp` exponent bits and `man` mantissa bits, and returns its bits.
pub fn encode(x: f64, exp: u32, man: u32, round: Round) -> u32 {
    let sign = ((x.to_bits() >> 63) as u32) << (exp + man);
    let (top, bias) = ((1u32 << exp) - 1, (1i32 << (exp - 1)) - 1);
    if x.is_nan() {
        return (1 << (exp + man)) - 1;
    }
    let v = x.abs();
    if v == 0.0 || v.is_infinite() {
        return sign | if v == 0.0 { 0 } else { top << man };
    }
    let e = ((v.to_bits() >> 52) as i32 - 1023).max(1 - bias);
    // The value is scaled to units of the last place. That is exact, because the factor is a power of two.
    let scaled = v * power(man as i32 - e);
    let floor = scaled.floor();
    let rest = scaled - floor;
    let negative = sign != 0;
    let add = match round {
        Round::Rn => rest > 0.5 || rest == 0.5 && floor % 2.0 != 0.0,
        Round::Rna => rest >= 0.5,
        Round::Rm => negative && rest > 0.0,
        Round::Rp => !negative && rest > 0.0,
        _ => false,
    };
    let units = floor as u32 + u32::from(add);
    let value = (((e + bias - 1) as u32) << man) + units;
    let largest = (top << man) - 1;
    let toward_zero =
        matches!(round, Round::Rz) || round == Round::Rm && !negative || round == Round::Rp && negative;
    sign | if value > largest { if toward_zero { largest } else { top << man } } else { value }
}

/// Returns 2 to the power of n. A large n is split, because the shift only makes exponents of normal values.
fn power(n: i32) -> f64 {
    if n > 1000 { power(1000) * power(n - 1000) } else { f64::from_bits(((n + 1023) as u64) << 52) }
}

/// Converts to bfloat16, to nearest even.
#[inline(always)]
pub fn to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_nan() { 0x7fff } else { bits.wrapping_add(0x7fff).wrapping_add(bits >> 16 & 1) >> 16 }
}

/// Converts to IEEE half precision, to nearest even.
pub fn to_f16(x: f32) -> u32 {
    encode(x.into(), 5, 10, Round::Rn)
}

/// Converts from the bits of a bfloat16.
#[inline(always)]
pub fn from_bf16(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// Converts from the bits of an IEEE half.
#[inline(always)]
pub fn from_f16(bits: u32) -> f32 {
    let (sign, e, m) = ((bits & 0x8000) << 16, bits >> 10 & 31, bits & 1023);
    match e {
        0 => f32::from_bits(sign | (m as f32 * f32::from_bits(0x3380_0000)).to_bits()),
        31 => f32::from_bits(sign | 0x7f80_0000 | m << 13),
        _ => f32::from_bits(sign | (e + 112) << 23 | m << 13),
    }
}

/// Clamps to 0..1; NaN becomes 0.
#[inline(always)]
pub fn saturate(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}
