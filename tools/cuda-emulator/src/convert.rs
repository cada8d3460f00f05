//! `cvt`: conversions between all scalar types. `decode::alu` has the conversions to packed types, and faster functions
//! for the most frequent of those here.

use crate::float::{encode, flush, from_bf16, from_f16, round_f32};
use crate::isa::{Cvt, Reg, Round, Ty};
use crate::lanes::Regs;

/// Converts the lanes of `mask` of `s` into `d`.
pub fn run(r: &mut Regs, cvt: &Cvt, d: Reg, s: Reg, mask: u32) {
    let raw = raw(r, s);
    let mut out = [0u64; 32];
    match (cvt.src.float(), cvt.dst.float()) {
        (false, false) => {
            for i in 0..32 {
                out[i] = int_to_int(cvt, int(raw[i], cvt.src));
            }
        }
        (false, true) => {
            for i in 0..32 {
                out[i] = int_to_float(cvt, int(raw[i], cvt.src));
            }
        }
        (true, false) => {
            for i in 0..32 {
                out[i] = float_to_int(cvt, float(raw[i], cvt.src, cvt.ftz));
            }
        }
        (true, true) => {
            for i in 0..32 {
                out[i] = float_to_float(cvt, float(raw[i], cvt.src, cvt.ftz));
            }
        }
    }
    put(r, d, cvt, &out, mask);
}

fn raw(r: &Regs, s: Reg) -> [u64; 32] {
    match s {
        Reg::X(x) => r.x[x as usize],
        Reg::W(w) => r.w[w as usize].map(u64::from),
        Reg::P(p) => std::array::from_fn(|i| u64::from(r.p[p as usize] >> i & 1)),
    }
}

/// Writes the result. A signed one of 8 bits is sign-extended to 16.
fn put(r: &mut Regs, d: Reg, cvt: &Cvt, out: &[u64; 32], mask: u32) {
    match d {
        Reg::X(x) => r.put_x(x, out, mask),
        Reg::W(w) if cvt.dst.bits() == 8 && cvt.dst.signed() => {
            r.put_w(w, &out.map(|v| v as i8 as i16 as u16 as u32), mask)
        }
        Reg::W(w) => r.put_w(w, &out.map(|v| v as u32), mask),
        Reg::P(_) => {}
    }
}

#[inline(always)]
fn int(raw: u64, ty: Ty) -> i128 {
    let (shift, signed) = (64 - ty.bits(), ty.signed());
    let moved = raw << shift;
    if signed { i128::from(moved as i64 >> shift) } else { i128::from(moved >> shift) }
}

fn float(raw: u64, ty: Ty, ftz: bool) -> f64 {
    match ty {
        Ty::F64 => f64::from_bits(raw),
        Ty::F16 => from_f16(raw as u32 & 0xffff).into(),
        Ty::Bf16 => from_bf16(raw as u32 & 0xffff).into(),
        _ if ftz => flush(f32::from_bits(raw as u32)).into(),
        _ => f32::from_bits(raw as u32).into(),
    }
}

#[inline(always)]
fn int_to_int(cvt: &Cvt, v: i128) -> u64 {
    let v = if cvt.sat { v.clamp(least(cvt.dst), most(cvt.dst)) } else { v };
    // The value is truncated to the type and extended to 64 bits, which `put` truncates to the register.
    let shift = 64 - cvt.dst.bits();
    let cut = (v as u64) << shift;
    let v = if cvt.dst.signed() { (cut as i64 >> shift) as u64 } else { cut >> shift };
    if cvt.dst.bits() == 16 { v & 0xffff } else { v }
}

fn least(ty: Ty) -> i128 {
    if ty.signed() { -(1i128 << (ty.bits() - 1)) } else { 0 }
}

fn most(ty: Ty) -> i128 {
    (1i128 << (ty.bits() - u32::from(ty.signed()))) - 1
}

fn int_to_float(cvt: &Cvt, v: i128) -> u64 {
    match cvt.dst {
        Ty::F64 => (v as f64).to_bits(),
        Ty::F32 if cvt.round == Round::Rn => u64::from((v as f32).to_bits()),
        _ => {
            // A 64-bit integer may not fit in f64. Rounding to odd makes the second rounding, in `narrow`, correct.
            let near = v as f64;
            let odd = if near as i128 != v && near.to_bits() & 1 == 0 {
                let away = (v > near as i128) == (v > 0);
                f64::from_bits(if away { near.to_bits() + 1 } else { near.to_bits() - 1 })
            } else {
                near
            };
            narrow(odd, cvt)
        }
    }
}

fn float_to_int(cvt: &Cvt, v: f64) -> u64 {
    let v = whole(v, cvt.round);
    let v = if v.is_nan() { 0 } else { (v as i128).clamp(least(cvt.dst), most(cvt.dst)) };
    int_to_int(cvt, v)
}

fn whole(v: f64, round: Round) -> f64 {
    match round {
        Round::Rn | Round::Rni => v.round_ties_even(),
        Round::Rz | Round::Rzi => v.trunc(),
        Round::Rm | Round::Rmi => v.floor(),
        Round::Rp | Round::Rpi => v.ceil(),
        Round::Rna => v.round(),
    }
}

fn float_to_float(cvt: &Cvt, v: f64) -> u64 {
    let v = if matches!(cvt.round, Round::Rni | Round::Rzi | Round::Rmi | Round::Rpi) {
        whole(v, cvt.round)
    } else {
        v
    };
    let v = if cvt.sat { if v > 0.0 { v.min(1.0) } else { 0.0 } } else { v };
    let v = if cvt.relu && v < 0.0 { 0.0 } else { v };
    narrow(v, cvt)
}

fn narrow(v: f64, cvt: &Cvt) -> u64 {
    match cvt.dst {
        Ty::F64 => v.to_bits(),
        Ty::F16 => encode(v, 5, 10, cvt.round).into(),
        Ty::Bf16 => encode(v, 8, 7, cvt.round).into(),
        Ty::Tf32 => u64::from(encode(v, 8, 10, cvt.round)) << 13,
        _ if v.is_nan() => 0x7fff_ffff,
        _ => {
            let y = round_f32(v, cvt.round);
            u64::from(if cvt.ftz { flush(y) } else { y }.to_bits())
        }
    }
}
