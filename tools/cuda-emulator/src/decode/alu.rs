//! Moves, comparisons, conversions and arithmetic, which are executed lane by lane.

use super::scope::fresh;
use super::{Decoder, Result, Suffixes};
use crate::isa::*;
use crate::lanes::{Alu, Args, lanes};
use crate::parse::Opd;
use crate::{compare, float};

impl Decoder<'_> {
    pub(super) fn mov(&mut self, m: &mut Suffixes, args: &[Opd]) -> Result<Op> {
        let ty = m.ty()?;
        let [d, a] = args else { return Err("two operands are expected".into()) };
        match (d, a) {
            (Opd::Vec(list), a) => {
                let a = self.any(a, ty)?;
                let d = list.iter().map(|d| self.dst_any(d)).collect::<Result<Vec<_>>>()?;
                let bits = ty.bits() / d.len() as u32;
                Ok(Op::Unpack { d, a, bits })
            }
            (d, Opd::Vec(list)) => {
                let bits = ty.bits() / list.len() as u32;
                let part = match bits {
                    8 => Ty::B8,
                    16 => Ty::B16,
                    32 => Ty::B32,
                    _ => return Err("parts of 8, 16 or 32 bits are expected".into()),
                };
                let a = list.iter().map(|a| self.any(a, part)).collect::<Result<Vec<_>>>()?;
                let d = self.dst_any(d)?.unwrap_or_else(|| fresh(self.e, ty));
                Ok(Op::Pack { d, a, bits })
            }
            (d, Opd::Word("%clock" | "%clock64" | "%globaltimer" | "%clock_hi" | "%globaltimer_lo")) => {
                let d = self.dst_any(d)?.unwrap_or_else(|| fresh(self.e, ty));
                Ok(Op::Clock { d })
            }
            _ => self.plain("mov", ty, ty, &[ty], args),
        }
    }

    /// Decodes a conversion to a generic address or from one. Global and constant addresses are their own generic ones.
    pub(super) fn cvta(&mut self, m: &mut Suffixes, args: &[Opd]) -> Result<Op> {
        let to = m.take("to");
        let (space, ty) = (m.space(), m.ty()?);
        if ty.bits() != 64 {
            return Err("only 64-bit addresses".into());
        }
        let tag = match space {
            Space::Shared => crate::access::SHARED_TAG,
            Space::Local => crate::access::LOCAL_TAG,
            Space::Param => crate::access::PARAM_TAG,
            _ => return self.plain("mov", Ty::U64, Ty::U64, &[Ty::U64], args),
        };
        let [d, a] = args else { return Err("two operands are expected".into()) };
        let (a, tag) = (self.src(a, Ty::U64)?, self.constant_x(tag));
        let f = if to {
            lanes!(x <- a: x, t: x => a.wrapping_sub(t))
        } else {
            lanes!(x <- a: x, t: x => a.wrapping_add(t))
        };
        Ok(Op::Alu { f, args: Args { d: self.dst(d, Ty::U64)?, s: [a, tag, 0, 0] } })
    }

    pub(super) fn compare(&mut self, m: &mut Suffixes, args: &[Opd]) -> Result<Op> {
        let (ty, ftz) = (m.ty()?, m.take("ftz"));
        let dst = if m.base == "set" { Some(m.ty()?) } else { None };
        let join = match m.take_any(&["and", "or", "xor"]) {
            Some("and") => Join::And,
            Some("or") => Join::Or,
            Some(_) => Join::Xor,
            None => Join::None,
        };
        let name = if m.list.is_empty() { "" } else { m.list.remove(0) };
        let [d, a, b, rest @ ..] = args else { return Err("operands are missing".into()) };
        let (a, b) = (self.src(a, ty)?, self.src(b, ty)?);
        if let Some(dst) = dst {
            let cmp = compare::pick(name, ty, ftz).ok_or("unknown comparison")?;
            let yes = if dst == Ty::F32 { 0x3f80_0000 } else { !0 };
            if dst.bits() != 32 || join != Join::None || !rest.is_empty() {
                return Err("only set to 32 bits of two operands".into());
            }
            return Ok(Op::Set { cmp, a, b, d: self.dst(d, dst)?, yes });
        }
        let cmp = compare::pick(name, ty, ftz).ok_or("unknown comparison")?;
        let (c, not_c) = match (rest, join) {
            ([], Join::None) => (0, false),
            ([Opd::Not(c)], j) if j != Join::None => (self.src(&Opd::Word(c), Ty::Pred)?, true),
            ([c], j) if j != Join::None => (self.src(c, Ty::Pred)?, false),
            _ => return Err("operands do not fit .and, .or, .xor".into()),
        };
        let (p, q) = match d {
            Opd::Pair(p, q) => (self.dst(&Opd::Word(p), Ty::Pred)?, Some(self.dst(&Opd::Word(q), Ty::Pred)?)),
            d => (self.dst(d, Ty::Pred)?, None),
        };
        Ok(Op::Setp { cmp, a, b, join, c, not_c, p, q })
    }

    pub(super) fn cvt(&mut self, m: &mut Suffixes, args: &[Opd]) -> Result<Op> {
        let (src, dst) = (m.ty()?, m.ty()?);
        let round = m.round();
        let (sat, ftz, relu) = (m.take("sat"), m.take("ftz"), m.take("relu"));
        if matches!(dst, Ty::Bf16x2 | Ty::F16x2) {
            let f: Alu = match (dst, relu) {
                (Ty::Bf16x2, false) => {
                    lanes!(w <- a: f, b: f => float::to_bf16(a) << 16 | float::to_bf16(b))
                }
                (Ty::Bf16x2, true) => {
                    lanes!(w <- a: f, b: f => float::to_bf16(relu_of(a)) << 16 | float::to_bf16(relu_of(b)))
                }
                (_, false) => lanes!(w <- a: f, b: f => float::to_f16(a) << 16 | float::to_f16(b)),
                (_, true) => {
                    lanes!(w <- a: f, b: f => float::to_f16(relu_of(a)) << 16 | float::to_f16(relu_of(b)))
                }
            };
            if round != Some(Round::Rn) || src != Ty::F32 || sat || ftz || args.len() != 3 {
                return Err("only .rn of two .f32".into());
            }
            let (a, b) = (self.src(&args[1], Ty::F32)?, self.src(&args[2], Ty::F32)?);
            return Ok(Op::Alu { f, args: Args { d: self.dst(&args[0], dst)?, s: [a, b, 0, 0] } });
        }
        if src.float() && !dst.float() && round.is_none() {
            return Err("a rounding is expected".into());
        }
        let [d, a] = args else { return Err("two operands are expected".into()) };
        let s = self.any(a, src)?;
        let d = self.dst_any(d)?.unwrap_or_else(|| fresh(self.e, dst));
        let cvt = Cvt { dst, src, round: round.unwrap_or(Round::Rn), sat, ftz, relu };
        if let (Reg::P(_), _) | (_, Reg::P(_)) = (s, d) {
            return Err("no predicates are converted".into());
        }
        Ok(match fast(&cvt, d, s) {
            Some((f, args)) => Op::Alu { f, args },
            None => Op::Cvt { cvt, d, s },
        })
    }

    /// Decodes an operation of the integer tables whose operands have the given types.
    fn plain(&mut self, name: &str, pick: Ty, dst: Ty, src: &[Ty], args: &[Opd]) -> Result<Op> {
        let f = crate::int::pick(name, pick).ok_or("unknown instruction")?;
        self.finish(f, dst, src, args)
    }

    fn finish(&mut self, f: Alu, dst: Ty, src: &[Ty], args: &[Opd]) -> Result<Op> {
        if args.len() != src.len() + 1 {
            return Err(format!("{} operands are expected", src.len() + 1));
        }
        let mut s = [0; 4];
        for i in 0..src.len() {
            s[i] = self.src(&args[i + 1], src[i])?;
        }
        Ok(Op::Alu { f, args: Args { d: self.dst(&args[0], dst)?, s } })
    }

    pub(super) fn alu(&mut self, m: &mut Suffixes, args: &[Opd]) -> Result<Op> {
        let ty = m.ty().map_err(|_| "unknown instruction")?;
        let base = m.base;
        if ty.float() && !matches!(base, "selp" | "slct") {
            return self.floats(m, ty, args);
        }
        let wide = match ty {
            Ty::U16 | Ty::S16 => Ty::B32,
            _ => Ty::B64,
        };
        let mut name = base.to_string();
        let variants: &[&str] = match base {
            "mul" | "mad" | "mul24" => &["lo", "hi", "wide"],
            "shf" => &["l", "r"],
            "slct" => &["s32", "f32"],
            "bfind" => &["shiftamt"],
            _ => &[],
        };
        // slct has two types, of which the last one is the type of the selector.
        let (pick, ty) = if base == "slct" {
            name = format!("slct.{}", if ty == Ty::F32 { "f32" } else { "s32" });
            let data = m.ty()?;
            (data, data)
        } else {
            if let Some(variant) = m.take_any(variants) {
                name = format!("{name}.{variant}");
            }
            (ty, ty)
        };
        if base == "shf"
            && let Some(mode) = m.take_any(&["wrap", "clamp"])
        {
            name = format!("{name}.{mode}");
        }
        let u = Ty::U32;
        let (dst, src): (Ty, &[Ty]) = match base {
            "mul" if name.ends_with("wide") => (wide, &[ty, ty]),
            "mad" if name.ends_with("wide") => (wide, &[ty, ty, wide]),
            "mad" => (ty, &[ty, ty, ty]),
            "shl" | "shr" => (ty, &[ty, u]),
            "shf" | "prmt" => (ty, &[ty, ty, u]),
            "bfe" => (ty, &[ty, u, u]),
            "bfi" => (ty, &[ty, ty, u, u]),
            "lop3" => (ty, &[ty, ty, ty, u]),
            "popc" | "clz" | "bfind" => (u, &[ty]),
            "neg" | "abs" | "not" | "brev" => (ty, &[ty]),
            "selp" => (ty, &[ty, ty, Ty::Pred]),
            "slct" => (ty, &[ty, ty, u]),
            _ => (ty, &[ty, ty]),
        };
        self.plain(&name, pick, dst, src, args)
    }

    fn floats(&mut self, m: &mut Suffixes, ty: Ty, args: &[Opd]) -> Result<Op> {
        let round = m.round().unwrap_or(Round::Rn);
        let (ftz, sat) = (m.take("ftz"), m.take("sat"));
        // Approximations are computed more exactly than these suffixes ask for.
        m.take_any(&["approx", "full"]);
        let nan = m.take("NaN");
        let name = if nan { format!("{}.NaN", m.base) } else { m.base.to_string() };
        let f = match ty {
            Ty::F32 => float::pick32(&name, round, ftz, sat),
            Ty::F64 if round == Round::Rn && !sat => float::pick64(&name),
            _ if round == Round::Rn && !sat => float::pick16(&name, ty),
            _ => None,
        };
        let sources = match m.base {
            "fma" | "mad" => 3,
            "add" | "sub" | "mul" | "div" | "min" | "max" | "copysign" => 2,
            _ => 1,
        };
        self.finish(f.ok_or("unknown instruction")?, ty, &vec![ty; sources], args)
    }
}

fn relu_of(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// Returns a function for a conversion that kernels use often, which is faster than the general `convert::run`.
fn fast(c: &Cvt, d: Reg, s: Reg) -> Option<(Alu, Args)> {
    use Ty::*;
    if c.sat || c.ftz || c.relu {
        return None;
    }
    let rn = c.round == Round::Rn;
    let (f, d, s): (Alu, u32, u32) = match (c.dst, c.src, d, s) {
        (U64 | S64, U32, Reg::X(d), Reg::W(s)) => (lanes!(x <- a: w => u64::from(a)), d, s),
        (U64 | S64, S32, Reg::X(d), Reg::W(s)) => (lanes!(y <- a: s => i64::from(a)), d, s),
        (U32 | S32, U64 | S64, Reg::W(d), Reg::X(s)) => (lanes!(w <- a: x => a as u32), d, s),
        (U32 | S32, U16, Reg::W(d), Reg::W(s)) => (lanes!(w <- a: h => u32::from(a)), d, s),
        (U16 | S16, U32 | S32, Reg::W(d), Reg::W(s)) => (lanes!(h <- a: w => a as u16), d, s),
        (F32, S32, Reg::W(d), Reg::W(s)) if rn => (lanes!(f <- a: s => a as f32), d, s),
        (F32, U32, Reg::W(d), Reg::W(s)) if rn => (lanes!(f <- a: w => a as f32), d, s),
        (Bf16, F32, Reg::W(d), Reg::W(s)) if rn => (lanes!(w <- a: f => float::to_bf16(a)), d, s),
        (F32, Bf16, Reg::W(d), Reg::W(s)) if rn => (lanes!(f <- a: h => float::from_bf16(a.into())), d, s),
        (F32, F16, Reg::W(d), Reg::W(s)) if rn => (lanes!(f <- a: h => float::from_f16(a.into())), d, s),
        _ => return None,
    };
    Some((f, Args { d, s: [s, 0, 0, 0] }))
}
