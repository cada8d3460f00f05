//! Operands: names, numbers and addresses are turned into registers.

use super::scope::fresh;
use super::{Decoder, Result};
use crate::isa::*;
use crate::lex::{Number, number};
use crate::parse::Opd;

impl Decoder<'_> {
    pub(super) fn register(&self, name: &str) -> Option<Reg> {
        self.scope.find_register(self.at, name)
    }

    fn constant_w(&mut self, v: u32) -> u32 {
        let e = &mut *self.e;
        *self.const_w.entry(v).or_insert_with(|| {
            e.w += 1;
            e.const_w.push((e.w - 1, v));
            e.w - 1
        })
    }

    pub(super) fn constant_x(&mut self, v: u64) -> u32 {
        let e = &mut *self.e;
        *self.const_x.entry(v).or_insert_with(|| {
            e.x += 1;
            e.const_x.push((e.x - 1, v));
            e.x - 1
        })
    }

    /// Returns a predicate that no instruction writes, so that it keeps the value that it has from the start.
    pub(super) fn constant_p(&mut self, v: bool) -> u32 {
        self.e.p += 1;
        self.e.const_p.push((self.e.p - 1, v));
        self.e.p - 1
    }

    fn constant(&mut self, v: Number, ty: Ty) -> Result<Reg> {
        let bits = match v {
            Number::Int(v) => v,
            Number::F32(v) if ty.bits() == 32 => v.into(),
            Number::F64(v) if ty.bits() == 64 => v,
            Number::F64(v) if ty.bits() == 32 => (f64::from_bits(v) as f32).to_bits().into(),
            _ => return Err("a number of another size".into()),
        };
        Ok(match ty.bits() {
            64 => Reg::X(self.constant_x(bits)),
            1 => Reg::P(self.constant_p(bits != 0)),
            32 => Reg::W(self.constant_w(bits as u32)),
            n => Reg::W(self.constant_w(bits as u32 & ((1 << n) - 1))),
        })
    }

    fn special(&mut self, name: &str) -> Option<u32> {
        let (head, axis) = match name.rsplit_once('.') {
            Some((head, "x")) => (head, 0),
            Some((head, "y")) => (head, 1),
            Some((head, "z")) => (head, 2),
            _ => (name, 3),
        };
        let special = match (head, axis) {
            ("%tid", 0..3) => Special::Tid(axis),
            ("%ntid", 0..3) => Special::Ntid(axis),
            ("%ctaid", 0..3) => Special::Ctaid(axis),
            ("%nctaid", 0..3) => Special::Nctaid(axis),
            ("%laneid", _) => Special::Laneid,
            ("%warpid", _) => Special::Warpid,
            ("%nwarpid", _) => Special::Nwarpid,
            ("%smid", _) => Special::Smid,
            ("%nsmid", _) => Special::Nsmid,
            ("%gridid", _) => Special::Gridid,
            ("%lanemask_eq", _) => Special::LanemaskEq,
            ("%lanemask_le", _) => Special::LanemaskLe,
            ("%lanemask_lt", _) => Special::LanemaskLt,
            ("%lanemask_ge", _) => Special::LanemaskGe,
            ("%lanemask_gt", _) => Special::LanemaskGt,
            ("%dynamic_smem_size", _) => Special::DynamicShared,
            ("%total_smem_size", _) => Special::TotalShared,
            _ => return None,
        };
        let e = &mut *self.e;
        Some(*self.special.entry(special).or_insert_with(|| {
            e.w += 1;
            e.special.push((e.w - 1, special));
            e.w - 1
        }))
    }

    /// Returns the register of a source, which may be in any file. A number is placed in the file of the type.
    pub(super) fn any(&mut self, opd: &Opd, ty: Ty) -> Result<Reg> {
        let reg = match opd {
            Opd::Imm(v) => self.constant(*v, ty)?,
            Opd::Word(name) => match self.register(name) {
                Some(reg) => reg,
                None if number(name).is_some() => self.constant(number(name).expect("just read"), ty)?,
                None => match self.special(name) {
                    Some(w) => Reg::W(w),
                    None => {
                        let value = self.scope.symbol(name).ok_or(format!("{name} is not declared"))?;
                        if ty.bits() == 64 {
                            Reg::X(self.constant_x(value))
                        } else {
                            Reg::W(self.constant_w(value as u32))
                        }
                    }
                },
            },
            _ => return Err("a register or a number is expected".into()),
        };
        if let Reg::W(w) = reg {
            self.used.push((w, false));
        }
        Ok(reg)
    }

    /// Returns the register of a source, which must be in the file of the type.
    pub(super) fn src(&mut self, opd: &Opd, ty: Ty) -> Result<u32> {
        match (self.any(opd, ty)?, ty.bits()) {
            (Reg::P(i), 1) | (Reg::X(i), 64) | (Reg::W(i), 8 | 16 | 32) => Ok(i),
            _ => Err(format!("operand {opd:?} is not of {} bits", ty.bits())),
        }
    }

    /// Returns the register of a destination, which may be in any file, or `None` for the sink `_`.
    pub(super) fn dst_any(&mut self, opd: &Opd) -> Result<Option<Reg>> {
        let Opd::Word(name) = opd else { return Err("a register is expected".into()) };
        if *name == "_" {
            return Ok(None);
        }
        let reg = self.register(name).ok_or(format!("{name} is not declared"))?;
        if let Reg::W(w) = reg {
            self.used.push((w, true));
        }
        Ok(Some(reg))
    }

    /// Returns the register of a destination, which must be in the file of the type.
    pub(super) fn dst(&mut self, opd: &Opd, ty: Ty) -> Result<u32> {
        let reg = match self.dst_any(opd)? {
            Some(reg) => reg,
            None => fresh(self.e, ty),
        };
        match (reg, ty.bits()) {
            (Reg::P(i), 1) | (Reg::X(i), 64) | (Reg::W(i), 8 | 16 | 32) => Ok(i),
            _ => Err(format!("destination {opd:?} is not of {} bits", ty.bits())),
        }
    }

    pub(super) fn dst_list<const N: usize>(&mut self, opd: &Opd, ty: Ty) -> Result<[u32; N]> {
        let list = elements::<N>(opd)?;
        let mut out = [0; N];
        for i in 0..N {
            out[i] = self.dst(&list[i], ty)?;
        }
        Ok(out)
    }

    pub(super) fn src_list<const N: usize>(&mut self, opd: &Opd, ty: Ty) -> Result<[u32; N]> {
        let list = elements::<N>(opd)?;
        let mut out = [0; N];
        for i in 0..N {
            out[i] = self.src(&list[i], ty)?;
        }
        Ok(out)
    }

    /// Returns the address that an operand in brackets stands for.
    pub(super) fn addr(&mut self, opd: &Opd) -> Result<Addr> {
        let Opd::Mem(base, offset) = opd else { return Err("an address is expected".into()) };
        let Some(name) = base else { return Ok(Addr { base: None, offset: *offset }) };
        match self.register(name) {
            Some(Reg::P(_)) => Err(format!("{name} is no address")),
            Some(reg) => {
                if let Reg::W(w) = reg {
                    self.used.push((w, false));
                }
                Ok(Addr { base: Some(reg), offset: *offset })
            }
            None => {
                let at = self.scope.symbol(name).ok_or(format!("{name} is not declared"))?;
                Ok(Addr { base: None, offset: at as i64 + offset })
            }
        }
    }
}

fn elements<'a, const N: usize>(opd: &'a Opd<'a>) -> Result<&'a [Opd<'a>; N]> {
    match opd {
        Opd::Vec(list) => list[..].try_into().map_err(|_| format!("{N} registers are expected")),
        one => std::slice::from_ref(one).try_into().map_err(|_| format!("{N} registers are expected")),
    }
}

/// Returns the first operand.
pub(super) fn first<'a, 'b>(args: &'a [Opd<'b>]) -> Result<&'a Opd<'b>> {
    args.first().ok_or_else(|| "an operand is missing".to_string())
}

/// Returns a literal number of at most 256.
pub(super) fn small(opd: &Opd) -> Result<u32> {
    match opd {
        Opd::Imm(Number::Int(v)) if *v <= 256 => Ok(*v as u32),
        _ => Err("a small number is expected".into()),
    }
}
