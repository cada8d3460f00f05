//! Floating-point arithmetic: functions that map the name of an operation, its type and its modifiers to a function for
//! 32 lanes.

use super::{canon, encode, flush, fma_odd, from_bf16, from_f16, round_f32, saturate};
use crate::isa::{
    Round,
    Ty::{self, *},
};
use crate::lanes::{Alu, lanes};

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

// This macro makes an operation on f32, with or without a flush of its operands and its result (`ftz`) and a clamp of
// the result (`sat`).
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

// This macro makes an operation on f32 with a rounding mode other than `rn`, which rounds an expression in f64.
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

/// Returns the function for single precision. `approx` functions are computed in f64 and rounded, which is more
/// exact than hardware is.
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

/// The fused multiply-add. It has a function of its own, because without the target feature `mul_add` is a slow call.
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
        // SAFETY: `fused` returns this function only if the processor has both features.
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

/// Returns the function for double precision, rounded to nearest.
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

// This macro makes an operation on 16-bit floats. The expression is applied to the lower half of a word and, in packed
// types, to both halves.
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

/// Returns the function for floats of 16 bits, single or packed in pairs.
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
