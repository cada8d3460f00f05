//! Floating-point operations: a name, a type and its modifiers in, the function for 32 lanes out. And the formats of
//! 16 bits, to and from wider ones, rounded once.

use crate::isa::{
    Round,
    Ty::{self, *},
};
use crate::lanes::{Alu, compare, lanes};

/// PTX's NaN, whatever the processor made.
#[inline(always)]
pub fn canon(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(0x7fff_ffff) } else { x }
}

/// Denormals to zero, with their sign.
#[inline(always)]
pub fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x }
}

/// a * b + c, rounded to an odd f64: of two bits more than needed, so that it rounds to f32 or less as the exact value
/// would.
#[inline(always)]
pub fn fma_odd(a: f64, b: f64, c: f64) -> f64 {
    // Exact: the factors have at most 24 bits.
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
    // Even and inexact: the odd neighbour towards the exact value.
    let away = (error > 0.0) == (s > 0.0);
    f64::from_bits(if away { s.to_bits() + 1 } else { s.to_bits() - 1 })
}

/// Any f64 to f32 by a direction.
#[inline(always)]
pub fn round_f32(x: f64, round: Round) -> f32 {
    let y = x as f32;
    if round == Round::Rn || f64::from(y) == x || x.is_nan() {
        return y;
    }
    let up = f64::from(y) > x;
    let bits = y.to_bits();
    // Next value towards minus infinity and plus infinity; y is not zero unless x was rounded to it.
    let down_one = |b: u32| {
        if b == 0 {
            0x8000_0001
        } else if b >> 31 == 0 {
            b - 1
        } else {
            b + 1
        }
    };
    let up_one = |b: u32| {
        if b == 0x8000_0000 {
            1
        } else if b >> 31 == 0 {
            b + 1
        } else {
            b - 1
        }
    };
    let bits = match round {
        Round::Rz if x > 0.0 && up => down_one(bits),
        Round::Rz if x < 0.0 && !up => up_one(bits),
        Round::Rm if up => down_one(bits),
        Round::Rp if !up => up_one(bits),
        _ => bits,
    };
    f32::from_bits(bits)
}

/// The bits of a float of `exp` exponent and `man` mantissa bits, from any f64.
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
    // In units of the last place; exact, a power of two scales it.
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

/// 2 to the n, for n that f64 has.
fn power(n: i32) -> f64 {
    if n > 1000 { power(1000) * power(n - 1000) } else { f64::from_bits(((n + 1023) as u64) << 52) }
}

/// bfloat16, to nearest even.
#[inline(always)]
pub fn to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_nan() { 0x7fff } else { bits.wrapping_add(0x7fff).wrapping_add(bits >> 16 & 1) >> 16 }
}

/// IEEE half precision, to nearest even.
pub fn to_f16(x: f32) -> u32 {
    encode(x.into(), 5, 10, Round::Rn)
}

/// From the bits of a bfloat16.
#[inline(always)]
pub fn from_bf16(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// From the bits of an IEEE half.
#[inline(always)]
pub fn from_f16(bits: u32) -> f32 {
    let (sign, e, m) = ((bits & 0x8000) << 16, bits >> 10 & 31, bits & 1023);
    match e {
        0 => f32::from_bits(sign | (m as f32 * f32::from_bits(0x3380_0000)).to_bits()),
        31 => f32::from_bits(sign | 0x7f80_0000 | m << 13),
        _ => f32::from_bits(sign | (e + 112) << 23 | m << 13),
    }
}

#[inline(always)]
fn min32(a: f32, b: f32) -> f32 {
    if a.is_nan() {
        b
    } else if b.is_nan() {
        a
    } else if a == b {
        f32::from_bits(a.to_bits() | b.to_bits())
    } else if a < b {
        a
    } else {
        b
    }
}

#[inline(always)]
fn max32(a: f32, b: f32) -> f32 {
    -min32(-a, -b)
}

#[inline(always)]
fn nan2(a: f32, b: f32, y: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { y }
}

#[inline(always)]
fn nan_or(a: f64, b: f64, y: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { y }
}

/// To 0..1, NaN to 0.
#[inline(always)]
pub fn saturate(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

// With or without a flush of what goes in and what comes out.
macro_rules! f32s {
    ($ftz:expr, $sat:expr, $($a:ident),+ => $e:expr) => {
        match ($ftz, $sat) {
            (false, false) => lanes!(f <- $($a: f),+ => canon($e)),
            (true, false) => lanes!(f <- $($a: f),+ => { $(let $a = flush($a);)+ canon(flush($e)) }),
            (false, true) => lanes!(f <- $($a: f),+ => saturate($e)),
            (true, true) => lanes!(f <- $($a: f),+ => { $(let $a = flush($a);)+ saturate(flush($e)) }),
        }
    };
}

macro_rules! rounded {
    ($ftz:expr, $sat:expr, $round:expr, $($a:ident),+ => $e:expr) => {
        match $round {
            Round::Rz => f32s!($ftz, $sat, $($a),+ => round_f32($e, Round::Rz)),
            Round::Rm => f32s!($ftz, $sat, $($a),+ => round_f32($e, Round::Rm)),
            _ => f32s!($ftz, $sat, $($a),+ => round_f32($e, Round::Rp)),
        }
    };
}

#[inline(always)]
fn wide(x: f32) -> f64 {
    f64::from(x)
}

/// Single precision. `approx` functions are computed in f64 and rounded: better than the hardware's.
pub fn pick32(name: &str, round: Round, ftz: bool, sat: bool) -> Option<Alu> {
    if round != Round::Rn {
        return Some(match name {
            "add" => rounded!(ftz, sat, round, a, b => fma_odd(wide(a), 1.0, wide(b))),
            "sub" => rounded!(ftz, sat, round, a, b => fma_odd(wide(a), 1.0, -wide(b))),
            "mul" => rounded!(ftz, sat, round, a, b => wide(a) * wide(b)),
            "fma" | "mad" => rounded!(ftz, sat, round, a, b, c => fma_odd(wide(a), wide(b), wide(c))),
            "div" => rounded!(ftz, sat, round, a, b => wide(a) / wide(b)),
            "rcp" => rounded!(ftz, sat, round, a => 1.0 / wide(a)),
            "sqrt" => rounded!(ftz, sat, round, a => wide(a).sqrt()),
            _ => return None,
        });
    }
    Some(match name {
        "add" => f32s!(ftz, sat, a, b => a + b),
        "sub" => f32s!(ftz, sat, a, b => a - b),
        "mul" => f32s!(ftz, sat, a, b => a * b),
        "fma" | "mad" => fused(ftz, sat),
        "div" => f32s!(ftz, sat, a, b => a / b),
        "rcp" => f32s!(ftz, sat, a => 1.0 / a),
        "sqrt" => f32s!(ftz, sat, a => a.sqrt()),
        "rsqrt" => f32s!(ftz, sat, a => (1.0 / wide(a).sqrt()) as f32),
        "ex2" => f32s!(ftz, sat, a => wide(a).exp2() as f32),
        "lg2" => f32s!(ftz, sat, a => wide(a).log2() as f32),
        "sin" => f32s!(ftz, sat, a => wide(a).sin() as f32),
        "cos" => f32s!(ftz, sat, a => wide(a).cos() as f32),
        "tanh" => f32s!(ftz, sat, a => wide(a).tanh() as f32),
        "min" => f32s!(ftz, sat, a, b => min32(a, b)),
        "max" => f32s!(ftz, sat, a, b => max32(a, b)),
        "min.NaN" => f32s!(ftz, sat, a, b => nan2(a, b, min32(a, b))),
        "max.NaN" => f32s!(ftz, sat, a, b => nan2(a, b, max32(a, b))),
        "neg" => match ftz {
            false => lanes!(f <- a: f => -a),
            true => lanes!(f <- a: f => flush(-a)),
        },
        "abs" => match ftz {
            false => lanes!(f <- a: f => a.abs()),
            true => lanes!(f <- a: f => flush(a.abs())),
        },
        "copysign" => lanes!(f <- a: f, b: f => b.copysign(a)),
        _ => return None,
    })
}

#[cfg(target_arch = "x86_64")]
fn fused(ftz: bool, sat: bool) -> Alu {
    use crate::lanes::{Args, Regs};
    #[target_feature(enable = "avx2,fma")]
    fn lanes_of(r: &mut Regs, g: &Args, mask: u32) {
        let [a, b, c] = [0, 1, 2].map(|i| &r.w[g.s[i] as usize]);
        let mut out = [0; 32];
        for i in 0..32 {
            let y = f32::from_bits(a[i]).mul_add(f32::from_bits(b[i]), f32::from_bits(c[i]));
            out[i] = canon(y).to_bits();
        }
        r.put_w(g.d, &out, mask);
    }
    fn plain(r: &mut Regs, g: &Args, mask: u32) {
        // SAFETY: `fused` hands this function out only where the processor has both.
        unsafe { lanes_of(r, g, mask) }
    }
    if !ftz && !sat && std::is_x86_feature_detected!("fma") && std::is_x86_feature_detected!("avx2") {
        return plain;
    }
    f32s!(ftz, sat, a, b, c => fma_odd(wide(a), wide(b), wide(c)) as f32)
}

#[cfg(not(target_arch = "x86_64"))]
fn fused(ftz: bool, sat: bool) -> Alu {
    f32s!(ftz, sat, a, b, c => a.mul_add(b, c))
}

/// Double precision, to nearest.
pub fn pick64(name: &str) -> Option<Alu> {
    Some(match name {
        "add" => lanes!(d <- a: d, b: d => a + b),
        "sub" => lanes!(d <- a: d, b: d => a - b),
        "mul" => lanes!(d <- a: d, b: d => a * b),
        "fma" | "mad" => lanes!(d <- a: d, b: d, c: d => a.mul_add(b, c)),
        "div" => lanes!(d <- a: d, b: d => a / b),
        "rcp" => lanes!(d <- a: d => 1.0 / a),
        "sqrt" => lanes!(d <- a: d => a.sqrt()),
        "rsqrt" => lanes!(d <- a: d => 1.0 / a.sqrt()),
        "min" => lanes!(d <- a: d, b: d => a.min(b)),
        "max" => lanes!(d <- a: d, b: d => a.max(b)),
        "neg" => lanes!(d <- a: d => -a),
        "abs" => lanes!(d <- a: d => a.abs()),
        "copysign" => lanes!(d <- a: d, b: d => b.copysign(a)),
        _ => return None,
    })
}

// One formula for both halves of a word, or for the lower one.
macro_rules! halves {
    ($ty:expr, $($a:ident),+ => $e:expr) => {
        match $ty {
            F16 => lanes!(w <- $($a: w),+ => {
                $(let $a = f64::from(from_f16($a & 0xffff));)+ encode($e, 5, 10, Round::Rn)
            }),
            Bf16 => lanes!(w <- $($a: w),+ => {
                $(let $a = f64::from(from_bf16($a & 0xffff));)+ encode($e, 8, 7, Round::Rn)
            }),
            F16x2 => lanes!(w <- $($a: w),+ => {
                let low = { $(let $a = f64::from(from_f16($a & 0xffff));)+ encode($e, 5, 10, Round::Rn) };
                $(let $a = f64::from(from_f16($a >> 16));)+
                encode($e, 5, 10, Round::Rn) << 16 | low
            }),
            _ => lanes!(w <- $($a: w),+ => {
                let low = { $(let $a = f64::from(from_bf16($a & 0xffff));)+ encode($e, 8, 7, Round::Rn) };
                $(let $a = f64::from(from_bf16($a >> 16));)+
                encode($e, 8, 7, Round::Rn) << 16 | low
            }),
        }
    };
}

/// Arithmetic of 16 bits, alone or in pairs.
pub fn pick16(name: &str, ty: Ty) -> Option<Alu> {
    if !matches!(ty, F16 | F16x2 | Bf16 | Bf16x2) {
        return None;
    }
    Some(match name {
        "add" => halves!(ty, a, b => fma_odd(a, 1.0, b)),
        "sub" => halves!(ty, a, b => fma_odd(a, 1.0, -b)),
        "mul" => halves!(ty, a, b => a * b),
        "fma" => halves!(ty, a, b, c => fma_odd(a, b, c)),
        "min" => halves!(ty, a, b => f64::min(a, b)),
        "max" => halves!(ty, a, b => f64::max(a, b)),
        "min.NaN" => halves!(ty, a, b => nan_or(a, b, f64::min(a, b))),
        "max.NaN" => halves!(ty, a, b => nan_or(a, b, f64::max(a, b))),
        "ex2" => halves!(ty, a => f64::exp2(a)),
        "tanh" => halves!(ty, a => f64::tanh(a)),
        "neg" if matches!(ty, F16x2 | Bf16x2) => lanes!(w <- a: w => a ^ 0x8000_8000),
        "neg" => lanes!(w <- a: w => a ^ 0x8000),
        "abs" if matches!(ty, F16x2 | Bf16x2) => lanes!(w <- a: w => a & 0x7fff_7fff),
        "abs" => lanes!(w <- a: w => a & 0x7fff),
        _ => return None,
    })
}

/// A comparison of two registers.
pub type Compare = fn(&crate::lanes::Regs, u32, u32) -> u32;

macro_rules! ordered {
    ($k:ident, $name:expr) => {
        match $name {
            "eq" => compare!($k, a, b => a == b),
            "ne" => compare!($k, a, b => a != b),
            "lt" | "lo" => compare!($k, a, b => a < b),
            "le" | "ls" => compare!($k, a, b => a <= b),
            "gt" | "hi" => compare!($k, a, b => a > b),
            "ge" | "hs" => compare!($k, a, b => a >= b),
            _ => return None,
        }
    };
}

macro_rules! floats {
    ($k:ident, $name:expr, $z:ident) => {
        match $name {
            "eq" => compare!($k, a, b => $z(a) == $z(b)),
            "ne" => compare!($k, a, b => !a.is_nan() && !b.is_nan() && $z(a) != $z(b)),
            "lt" => compare!($k, a, b => $z(a) < $z(b)),
            "le" => compare!($k, a, b => $z(a) <= $z(b)),
            "gt" => compare!($k, a, b => $z(a) > $z(b)),
            "ge" => compare!($k, a, b => $z(a) >= $z(b)),
            "equ" => compare!($k, a, b => a.is_nan() || b.is_nan() || $z(a) == $z(b)),
            "neu" => compare!($k, a, b => $z(a) != $z(b)),
            "ltu" => compare!($k, a, b => a.is_nan() || b.is_nan() || $z(a) < $z(b)),
            "leu" => compare!($k, a, b => a.is_nan() || b.is_nan() || $z(a) <= $z(b)),
            "gtu" => compare!($k, a, b => a.is_nan() || b.is_nan() || $z(a) > $z(b)),
            "geu" => compare!($k, a, b => a.is_nan() || b.is_nan() || $z(a) >= $z(b)),
            "num" => compare!($k, a, b => !a.is_nan() && !b.is_nan()),
            "nan" => compare!($k, a, b => a.is_nan() || b.is_nan()),
            _ => return None,
        }
    };
}

#[inline(always)]
fn same<T>(x: T) -> T {
    x
}

/// The comparison `name` of two registers of a type.
pub fn pick_compare(name: &str, ty: Ty, ftz: bool) -> Option<Compare> {
    Some(match ty {
        U32 | B32 => ordered!(w, name),
        S32 => ordered!(s, name),
        U64 | B64 => ordered!(x, name),
        S64 => ordered!(y, name),
        U16 | B16 => ordered!(h, name),
        S16 => ordered!(i, name),
        F32 if ftz => floats!(f, name, flush),
        F32 => floats!(f, name, same),
        F64 => floats!(d, name, same),
        _ => return None,
    })
}
