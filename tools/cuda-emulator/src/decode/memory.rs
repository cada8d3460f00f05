//! Loads and stores, atomics, and cp.async.

use super::operands::{first, small};
use super::{Decoder, Result, Suffixes};
use crate::isa::*;
use crate::parse::Opd;

impl Decoder<'_> {
    pub(super) fn memory(&mut self, m: &mut Suffixes, args: &[Opd]) -> Result<Op> {
        let load = m.base != "st";
        let space = m.space();
        m.hints();
        let ty = m.ty()?;
        let n: u32 = match m.take_any(&["v2", "v4"]) {
            Some("v2") => 2,
            Some(_) => 4,
            None => 1,
        };
        let [a, b] = args else { return Err("two operands are expected".into()) };
        let (at, data) = if load { (b, a) } else { (a, b) };
        let addr = self.addr(at)?;
        let one = std::slice::from_ref(data);
        let list = if let Opd::Vec(list) = data { &list[..] } else { one };
        let bytes = ty.bits() / 8;
        if list.len() != n as usize || bytes == 0 || bytes * n > 16 {
            return Err("a vector of another size".into());
        }
        if load {
            let mut d = [None; 4];
            for i in 0..list.len() {
                d[i] = self.dst_any(&list[i])?;
            }
            return Ok(Op::Ld { space, bytes, n, d, sext: ty.signed(), addr });
        }
        let mut a = [Reg::W(0); 4];
        for i in 0..list.len() {
            a[i] = self.any(&list[i], ty)?;
        }
        Ok(Op::St { space, bytes, n, a, addr })
    }

    pub(super) fn atom(&mut self, m: &mut Suffixes, args: &[Opd]) -> Result<Op> {
        let (ty, space) = (m.ty()?, m.space());
        let (op, returns) = (atom_op(m)?, m.base == "atom");
        m.hints();
        let args = if returns { args } else { &[&[Opd::Word("_")], args].concat()[..] };
        let (d, at, a, b) = match args {
            [d, at, a] => (d, at, a, None),
            [d, at, a, b] => (d, at, a, Some(b)),
            _ => return Err("operands are missing".into()),
        };
        let known = match op {
            AtomOp::Add => matches!(ty, Ty::U32 | Ty::S32 | Ty::U64 | Ty::F32 | Ty::F64),
            _ => !ty.float() && ty.bits() >= 32,
        };
        if !known || b.is_some() != (op == AtomOp::Cas) {
            return Err("unknown kind of atomic".into());
        }
        let addr = self.addr(at)?;
        let a = self.any(a, ty)?;
        let b = b.map(|b| self.any(b, ty)).transpose()?;
        Ok(Op::Atom { space, op, ty, d: self.dst_any(d)?, addr, a, b })
    }

    pub(super) fn copy(&mut self, m: &mut Suffixes, args: &[Opd]) -> Result<Op> {
        if !m.take("async") {
            return Err("only cp.async".into());
        }
        if m.take("commit_group") {
            return Ok(Op::CpCommit);
        }
        if m.take("wait_all") {
            return Ok(Op::CpWait { left: None });
        }
        if m.take("wait_group") {
            return Ok(Op::CpWait { left: Some(small(first(args)?)?) });
        }
        let way = m.take_any(&["ca", "cg"]).ok_or("unknown kind of copy")?;
        if m.take_any(&["shared", "shared::cta"]).is_none() || !m.take("global") {
            return Err("only .shared.global".into());
        }
        m.hints();
        let [dst, src, bytes, rest @ ..] = args else { return Err("operands are missing".into()) };
        let bytes = small(bytes)?;
        if !matches!((way, bytes), ("ca", 4 | 8 | 16) | ("cg", 16)) || rest.len() > 1 {
            return Err(format!("no copy of {bytes} bytes by .{way}"));
        }
        let size = rest.first().map(|s| self.src(s, Ty::U32)).transpose()?;
        Ok(Op::CpAsync { dst: self.addr(dst)?, src: self.addr(src)?, bytes, size })
    }
}

/// Takes the operation of an atomic.
pub(super) fn atom_op(m: &mut Suffixes) -> Result<AtomOp> {
    const ALL: [(&str, AtomOp); 10] = [
        ("add", AtomOp::Add),
        ("min", AtomOp::Min),
        ("max", AtomOp::Max),
        ("and", AtomOp::And),
        ("or", AtomOp::Or),
        ("xor", AtomOp::Xor),
        ("exch", AtomOp::Exch),
        ("cas", AtomOp::Cas),
        ("inc", AtomOp::Inc),
        ("dec", AtomOp::Dec),
    ];
    ALL.iter()
        .find(|(name, _)| m.take(name))
        .map(|(_, op)| *op)
        .ok_or_else(|| "unknown kind of atomic".to_string())
}
