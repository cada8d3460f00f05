//! Matrix operations of a warp and of a warpgroup: ldmatrix, stmatrix, mma and wgmma.

use super::operands::{first, small};
use super::{Decoder, Result, Suffixes};
use crate::isa::*;
use crate::lex::Number;
use crate::parse::Opd;

impl Decoder<'_> {
    pub(super) fn matrix(&mut self, m: &mut Suffixes, args: &[Opd]) -> Result<Op> {
        for want in ["sync", "aligned", "m8n8", "b16"] {
            if !m.take(want) {
                return Err(format!(".{want} is expected"));
            }
        }
        m.space();
        let trans = m.take("trans");
        let n = match m.take_any(&["x1", "x2", "x4"]) {
            Some("x1") => 1,
            Some("x2") => 2,
            Some(_) => 4,
            None => return Err("no count".into()),
        };
        let [a, b] = args else { return Err("two operands are expected".into()) };
        let load = m.base == "ldmatrix";
        let (data, at) = if load { (a, b) } else { (b, a) };
        let addr = self.addr(at)?;
        let list = match data {
            Opd::Vec(list) => &list[..],
            one => std::slice::from_ref(one),
        };
        if list.len() != n {
            return Err(format!("{n} registers are expected"));
        }
        let mut r = [0; 4];
        for i in 0..n {
            r[i] = if load { self.dst(&list[i], Ty::B32)? } else { self.src(&list[i], Ty::B32)? };
        }
        Ok(if load { Op::Ldmatrix { n, trans, d: r, addr } } else { Op::Stmatrix { n, trans, a: r, addr } })
    }

    pub(super) fn mma(&mut self, m: &mut Suffixes, args: &[Opd]) -> Result<Op> {
        for want in ["sync", "aligned", "row", "col"] {
            if !m.take(want) {
                return Err(format!(".{want} is expected"));
            }
        }
        let shape = m.take_any(&["m16n8k16", "m16n8k8", "m16n8k4"]).ok_or("unknown shape")?;
        let types = [m.ty()?, m.ty()?, m.ty()?, m.ty()?];
        let elem = elem(types[2])?;
        if types != [Ty::F32, types[2], types[2], Ty::F32] {
            return Err("unknown types".into());
        }
        let k = match (shape, elem) {
            ("m16n8k16", Elem::Bf16 | Elem::F16) => 16,
            ("m16n8k8", _) => 8,
            ("m16n8k4", Elem::Tf32) => 4,
            _ => return Err("unknown shape".into()),
        };
        let [d, a, b, c] = args else { return Err("four operands are expected".into()) };
        // The registers that a smaller shape lacks stay 0 and are not read.
        let (mut ra, mut rb) = ([0; 4], [0; 2]);
        match if elem == Elem::Tf32 { k * 2 } else { k } {
            16 => {
                ra = self.src_list::<4>(a, Ty::B32)?;
                rb = self.src_list::<2>(b, Ty::B32)?;
            }
            _ => {
                ra[..2].copy_from_slice(&self.src_list::<2>(a, Ty::B32)?);
                rb[..1].copy_from_slice(&self.src_list::<1>(b, Ty::B32)?);
            }
        }
        let c = self.src_list(c, Ty::F32)?;
        Ok(Op::Mma { elem, k, d: self.dst_list(d, Ty::F32)?, a: ra, b: rb, c })
    }

    pub(super) fn wgmma(&mut self, m: &mut Suffixes, args: &[Opd]) -> Result<Op> {
        let kind = m.take_any(&["fence", "commit_group", "wait_group", "mma_async"]).ok_or("unknown kind")?;
        for want in ["sync", "aligned"] {
            if !m.take(want) {
                return Err(format!(".{want} is expected"));
            }
        }
        match kind {
            "fence" => return Ok(Op::WgFence),
            "commit_group" => return Ok(Op::WgCommit),
            "wait_group" => return Ok(Op::WgWait { left: small(first(args)?)? }),
            _ => {}
        }
        let at = m.list.iter().position(|x| x.starts_with("m64n")).ok_or("unknown shape")?;
        let shape = m.list.remove(at);
        let (b, a, d) = (m.ty()?, m.ty()?, m.ty()?);
        let elem = elem(a)?;
        let n = shape
            .strip_prefix("m64n")
            .and_then(|s| s.strip_suffix("k16"))
            .and_then(|s| s.parse::<usize>().ok());
        let n = n.filter(|n| n % 8 == 0 && (8..=256).contains(n)).ok_or("unknown shape")?;
        if (d, b) != (Ty::F32, a) || elem == Elem::Tf32 {
            return Err("unknown types".into());
        }
        let [rd, ra, rb, scale, neg_a, neg_b, trans @ ..] = args else {
            return Err("operands are missing".into());
        };
        let Opd::Vec(list) = rd else { return Err("a list of accumulators is expected".into()) };
        if list.len() != n / 2 {
            return Err(format!("{} accumulators are expected", n / 2));
        }
        let d = list.iter().map(|r| self.dst(r, Ty::F32)).collect::<Result<Vec<_>>>()?;
        let a = match ra {
            Opd::Vec(_) => Ok(self.src_list::<4>(ra, Ty::B32)?),
            _ => Err(self.src(ra, Ty::B64)?),
        };
        let trans = match (a.is_ok(), trans) {
            (true, [b]) => (false, small(b)? != 0),
            (false, [a, b]) => (small(a)? != 0, small(b)? != 0),
            _ => return Err("operands do not fit the kind of A".into()),
        };
        let scale_d = match scale {
            Opd::Imm(Number::Int(v)) => self.constant_p(*v != 0),
            p => self.src(p, Ty::Pred)?,
        };
        let neg = (sign(neg_a)?, sign(neg_b)?);
        Ok(Op::Wgmma(Box::new(Wgmma { elem, n, d, a, b: self.src(rb, Ty::B64)?, scale_d, neg, trans })))
    }
}

fn sign(opd: &Opd) -> Result<bool> {
    match opd {
        Opd::Imm(Number::Int(1)) => Ok(false),
        Opd::Imm(Number::Int(v)) if *v as i64 == -1 => Ok(true),
        _ => Err("1 or -1 is expected".into()),
    }
}

fn elem(ty: Ty) -> Result<Elem> {
    match ty {
        Ty::Bf16 => Ok(Elem::Bf16),
        Ty::F16 => Ok(Elem::F16),
        Ty::Tf32 => Ok(Elem::Tf32),
        _ => Err("unknown types".into()),
    }
}
