//! Integer and bit operations: functions that map the name of an operation and its type to a function for 32 lanes.

use crate::isa::Ty::{self, *};
use crate::lanes::{Alu, lanes};

/// Returns the function for an operation. All operands are of its type, except those that `decode::alu` lists, such as
/// the amounts of shifts.
pub fn pick(name: &str, ty: Ty) -> Option<Alu> {
    two(name, ty).or_else(|| bits(name, ty)).or_else(|| product(name, ty)).or_else(|| logic(name, ty))
}

fn two(name: &str, ty: Ty) -> Option<Alu> {
    Some(match (name, ty) {
        ("add", U32 | S32) => lanes!(w <- a: w, b: w => a.wrapping_add(b)),
        ("add", U64 | S64) => lanes!(x <- a: x, b: x => a.wrapping_add(b)),
        ("add", U16 | S16) => lanes!(h <- a: h, b: h => a.wrapping_add(b)),
        ("sub", U32 | S32) => lanes!(w <- a: w, b: w => a.wrapping_sub(b)),
        ("sub", U64 | S64) => lanes!(x <- a: x, b: x => a.wrapping_sub(b)),
        ("sub", U16 | S16) => lanes!(h <- a: h, b: h => a.wrapping_sub(b)),
        ("min", U32) => lanes!(w <- a: w, b: w => a.min(b)),
        ("min", S32) => lanes!(s <- a: s, b: s => a.min(b)),
        ("min", U64) => lanes!(x <- a: x, b: x => a.min(b)),
        ("min", S64) => lanes!(y <- a: y, b: y => a.min(b)),
        ("min", U16) => lanes!(h <- a: h, b: h => a.min(b)),
        ("min", S16) => lanes!(i <- a: i, b: i => a.min(b)),
        ("max", U32) => lanes!(w <- a: w, b: w => a.max(b)),
        ("max", S32) => lanes!(s <- a: s, b: s => a.max(b)),
        ("max", U64) => lanes!(x <- a: x, b: x => a.max(b)),
        ("max", S64) => lanes!(y <- a: y, b: y => a.max(b)),
        ("max", U16) => lanes!(h <- a: h, b: h => a.max(b)),
        ("max", S16) => lanes!(i <- a: i, b: i => a.max(b)),
        // The result of a division by zero is undefined in PTX, but it must not stop the interpreter.
        ("div", U32) => lanes!(w <- a: w, b: w => a.checked_div(b).unwrap_or(!0)),
        ("div", S32) => lanes!(s <- a: s, b: s => if b == 0 { -1 } else { a.wrapping_div(b) }),
        ("div", U64) => lanes!(x <- a: x, b: x => a.checked_div(b).unwrap_or(!0)),
        ("div", S64) => lanes!(y <- a: y, b: y => if b == 0 { -1 } else { a.wrapping_div(b) }),
        ("div", U16) => lanes!(h <- a: h, b: h => a.checked_div(b).unwrap_or(!0)),
        ("div", S16) => lanes!(i <- a: i, b: i => if b == 0 { -1 } else { a.wrapping_div(b) }),
        ("rem", U32) => lanes!(w <- a: w, b: w => a.checked_rem(b).unwrap_or(a)),
        ("rem", S32) => lanes!(s <- a: s, b: s => if b == 0 { a } else { a.wrapping_rem(b) }),
        ("rem", U64) => lanes!(x <- a: x, b: x => a.checked_rem(b).unwrap_or(a)),
        ("rem", S64) => lanes!(y <- a: y, b: y => if b == 0 { a } else { a.wrapping_rem(b) }),
        ("rem", U16) => lanes!(h <- a: h, b: h => a.checked_rem(b).unwrap_or(a)),
        ("rem", S16) => lanes!(i <- a: i, b: i => if b == 0 { a } else { a.wrapping_rem(b) }),
        ("neg", S32) => lanes!(s <- a: s => a.wrapping_neg()),
        ("neg", S64) => lanes!(y <- a: y => a.wrapping_neg()),
        ("neg", S16) => lanes!(i <- a: i => a.wrapping_neg()),
        ("abs", S32) => lanes!(s <- a: s => a.wrapping_abs()),
        ("abs", S64) => lanes!(y <- a: y => a.wrapping_abs()),
        ("abs", S16) => lanes!(i <- a: i => a.wrapping_abs()),
        _ => return None,
    })
}

fn product(name: &str, ty: Ty) -> Option<Alu> {
    Some(match (name, ty) {
        ("mul.lo", U32 | S32) => lanes!(w <- a: w, b: w => a.wrapping_mul(b)),
        ("mul.lo", U64 | S64) => lanes!(x <- a: x, b: x => a.wrapping_mul(b)),
        ("mul.lo", U16 | S16) => lanes!(h <- a: h, b: h => a.wrapping_mul(b)),
        ("mul.hi", U32) => lanes!(w <- a: w, b: w => ((u64::from(a) * u64::from(b)) >> 32) as u32),
        ("mul.hi", S32) => lanes!(s <- a: s, b: s => ((i64::from(a) * i64::from(b)) >> 32) as i32),
        ("mul.hi", U64) => lanes!(x <- a: x, b: x => ((u128::from(a) * u128::from(b)) >> 64) as u64),
        ("mul.hi", S64) => lanes!(y <- a: y, b: y => ((i128::from(a) * i128::from(b)) >> 64) as i64),
        ("mul.hi", U16) => lanes!(h <- a: h, b: h => ((u32::from(a) * u32::from(b)) >> 16) as u16),
        ("mul.hi", S16) => lanes!(i <- a: i, b: i => ((i32::from(a) * i32::from(b)) >> 16) as i16),
        ("mul.wide", U32) => lanes!(x <- a: w, b: w => u64::from(a) * u64::from(b)),
        ("mul.wide", S32) => lanes!(y <- a: s, b: s => i64::from(a) * i64::from(b)),
        ("mul.wide", U16) => lanes!(w <- a: h, b: h => u32::from(a) * u32::from(b)),
        ("mul.wide", S16) => lanes!(s <- a: i, b: i => i32::from(a) * i32::from(b)),
        ("mad.lo", U32 | S32) => lanes!(w <- a: w, b: w, c: w => a.wrapping_mul(b).wrapping_add(c)),
        ("mad.lo", U64 | S64) => lanes!(x <- a: x, b: x, c: x => a.wrapping_mul(b).wrapping_add(c)),
        ("mad.lo", U16 | S16) => lanes!(h <- a: h, b: h, c: h => a.wrapping_mul(b).wrapping_add(c)),
        ("mad.hi", U32) => {
            lanes!(w <- a: w, b: w, c: w => (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c))
        }
        ("mad.hi", S32) => {
            lanes!(s <- a: s, b: s, c: s => (((i64::from(a) * i64::from(b)) >> 32) as i32).wrapping_add(c))
        }
        ("mad.wide", U32) => lanes!(x <- a: w, b: w, c: x => (u64::from(a) * u64::from(b)).wrapping_add(c)),
        ("mad.wide", S32) => lanes!(y <- a: s, b: s, c: y => (i64::from(a) * i64::from(b)).wrapping_add(c)),
        ("mad.wide", U16) => lanes!(w <- a: h, b: h, c: w => (u32::from(a) * u32::from(b)).wrapping_add(c)),
        ("mad.wide", S16) => lanes!(s <- a: i, b: i, c: s => (i32::from(a) * i32::from(b)).wrapping_add(c)),
        ("mul24.lo", U32) => lanes!(w <- a: w, b: w => (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff)),
        ("mul24.lo", S32) => lanes!(s <- a: s, b: s => (a << 8 >> 8).wrapping_mul(b << 8 >> 8)),
        _ => return None,
    })
}

fn bits(name: &str, ty: Ty) -> Option<Alu> {
    Some(match (name, ty) {
        ("shl", B32) => lanes!(w <- a: w, b: w => if b > 31 { 0 } else { a << b }),
        ("shl", B64) => lanes!(x <- a: x, b: w => if b > 63 { 0 } else { a << b }),
        ("shl", B16) => lanes!(h <- a: h, b: w => if b > 15 { 0 } else { a << b }),
        ("shr", U32 | B32) => lanes!(w <- a: w, b: w => if b > 31 { 0 } else { a >> b }),
        ("shr", S32) => lanes!(s <- a: s, b: w => a >> b.min(31)),
        ("shr", U64 | B64) => lanes!(x <- a: x, b: w => if b > 63 { 0 } else { a >> b }),
        ("shr", S64) => lanes!(y <- a: y, b: w => a >> b.min(63)),
        ("shr", U16 | B16) => lanes!(h <- a: h, b: w => if b > 15 { 0 } else { a >> b }),
        ("shr", S16) => lanes!(i <- a: i, b: w => a >> b.min(15)),
        ("shf.l.wrap", B32) => lanes!(w <- a: w, b: w, c: w => funnel(a, b, 32 - (c & 31))),
        ("shf.l.clamp", B32) => lanes!(w <- a: w, b: w, c: w => funnel(a, b, 32 - c.min(32))),
        ("shf.r.wrap", B32) => lanes!(w <- a: w, b: w, c: w => funnel(a, b, c & 31)),
        ("shf.r.clamp", B32) => lanes!(w <- a: w, b: w, c: w => funnel(a, b, c.min(32))),
        ("bfe", U32) => lanes!(w <- a: w, p: w, n: w => field(a.into(), p, n, 32, false) as u32),
        ("bfe", S32) => lanes!(w <- a: s, p: w, n: w => field(i64::from(a) as u64, p, n, 32, true) as u32),
        ("bfe", U64) => lanes!(x <- a: x, p: w, n: w => field(a, p, n, 64, false)),
        ("bfe", S64) => lanes!(x <- a: x, p: w, n: w => field(a, p, n, 64, true)),
        ("bfi", B32) => lanes!(w <- a: w, b: w, p: w, n: w => insert(a.into(), b.into(), p, n, 32) as u32),
        ("bfi", B64) => lanes!(x <- a: x, b: x, p: w, n: w => insert(a, b, p, n, 64)),
        ("prmt", B32) => lanes!(w <- a: w, b: w, c: w => permute(a, b, c)),
        ("lop3", B32) => lanes!(w <- a: w, b: w, c: w, t: w => lop3(a, b, c, t)),
        ("popc", B32) => lanes!(w <- a: w => a.count_ones()),
        ("popc", B64) => lanes!(w <- a: x => a.count_ones()),
        ("clz", B32) => lanes!(w <- a: w => a.leading_zeros()),
        ("clz", B64) => lanes!(w <- a: x => a.leading_zeros()),
        ("brev", B32) => lanes!(w <- a: w => a.reverse_bits()),
        ("brev", B64) => lanes!(x <- a: x => a.reverse_bits()),
        ("bfind", U32) => lanes!(w <- a: w => a.checked_ilog2().unwrap_or(!0)),
        ("bfind", U64) => lanes!(w <- a: x => a.checked_ilog2().unwrap_or(!0)),
        ("bfind", S32) => lanes!(w <- a: s => ((a ^ (a >> 31)) as u32).checked_ilog2().unwrap_or(!0)),
        ("bfind.shiftamt", U32) => lanes!(w <- a: w => a.checked_ilog2().map_or(!0, |x| 31 - x)),
        _ => return None,
    })
}

fn logic(name: &str, ty: Ty) -> Option<Alu> {
    Some(match (name, ty) {
        ("and", B32 | B16) => lanes!(w <- a: w, b: w => a & b),
        ("and", B64) => lanes!(x <- a: x, b: x => a & b),
        ("and", Pred) => lanes!(p <- a: p, b: p => a & b),
        ("or", B32 | B16) => lanes!(w <- a: w, b: w => a | b),
        ("or", B64) => lanes!(x <- a: x, b: x => a | b),
        ("or", Pred) => lanes!(p <- a: p, b: p => a | b),
        ("xor", B32 | B16) => lanes!(w <- a: w, b: w => a ^ b),
        ("xor", B64) => lanes!(x <- a: x, b: x => a ^ b),
        ("xor", Pred) => lanes!(p <- a: p, b: p => a ^ b),
        ("not", B32) => lanes!(w <- a: w => !a),
        ("not", B16) => lanes!(h <- a: h => !a),
        ("not", B64) => lanes!(x <- a: x => !a),
        ("not", Pred) => lanes!(p <- a: p => !a),
        ("mov", U32 | S32 | B32 | F32 | U16 | S16 | B16 | F16 | Bf16 | F16x2 | Bf16x2) => {
            lanes!(w <- a: w => a)
        }
        ("mov", U64 | S64 | B64 | F64) => lanes!(x <- a: x => a),
        ("mov", Pred) => lanes!(p <- a: p => a),
        ("selp", U32 | S32 | B32 | F32 | U16 | S16 | B16) => {
            lanes!(w <- a: w, b: w, c: p => if c { a } else { b })
        }
        ("selp", U64 | S64 | B64 | F64) => lanes!(x <- a: x, b: x, c: p => if c { a } else { b }),
        ("slct.s32", U32 | S32 | B32 | F32) => lanes!(w <- a: w, b: w, c: s => if c >= 0 { a } else { b }),
        ("slct.s32", U64 | S64 | B64 | F64) => lanes!(x <- a: x, b: x, c: s => if c >= 0 { a } else { b }),
        ("slct.f32", U32 | S32 | B32 | F32) => lanes!(w <- a: w, b: w, c: f => if c >= 0.0 { a } else { b }),
        _ => return None,
    })
}

/// Returns 32 bits of the 64-bit value b:a, from bit `shift` on.
fn funnel(a: u32, b: u32, shift: u32) -> u32 {
    ((u64::from(b) << 32 | u64::from(a)) >> shift) as u32
}

/// Extracts a bit field. Only the low bytes of position and length count. Bits beyond the word are copies of the sign,
/// or zero in an unsigned field.
fn field(a: u64, pos: u32, len: u32, width: u32, signed: bool) -> u64 {
    let (pos, len) = (pos & 255, len & 255);
    if len == 0 {
        return 0;
    }
    let a = if signed { (a as i64) as i128 } else { a as i128 };
    let a = a >> pos.min(127);
    let mask = if len >= 127 { -1 } else { (1i128 << len) - 1 };
    let top = (pos + len - 1).min(width - 1);
    let low = a & mask;
    // The sign is the top bit of the field, or that of the word if the field extends beyond it.
    let negative = signed && pos < 128 && (a >> (top.saturating_sub(pos)).min(127)) & 1 != 0;
    (if negative { low | !mask } else { low }) as u64
}

fn insert(a: u64, b: u64, pos: u32, len: u32, width: u32) -> u64 {
    let (pos, len) = (pos & 255, len & 255);
    if pos >= width || len == 0 {
        return b;
    }
    let mask = ((1u128 << len.min(64)) - 1) as u64;
    b & !(mask << pos) | (a & mask) << pos
}

fn permute(a: u32, b: u32, c: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    (0..4).fold(0, |out, i| {
        let select = c >> (4 * i) & 15;
        let byte = (bytes >> (8 * (select & 7))) as u8;
        let byte = if select & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
        out | u32::from(byte) << (8 * i)
    })
}

fn lop3(a: u32, b: u32, c: u32, table: u32) -> u32 {
    (0..8).fold(0, |out, i| {
        let pick = |v: u32, bit: u32| if i >> bit & 1 != 0 { v } else { !v };
        if table >> i & 1 != 0 { out | pick(a, 2) & pick(b, 1) & pick(c, 0) } else { out }
    })
}
