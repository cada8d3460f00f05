//! What concerns more than one lane: barriers, shuffles, atomics, asynchronous copies, matrices.

use super::{Decoder, Mods, Result, fresh};
use crate::isa::*;
use crate::lex::Number;
use crate::parse::Opd;

impl Decoder<'_> {
    pub(super) fn sync(&mut self, m: &mut Mods, args: &[Opd]) -> Result<Op> {
        match m.base {
            "bar" | "barrier" => self.barrier(m, args),
            "membar" => {
                m.hints();
                m.take("gl");
                Ok(Op::Nop)
            }
            "fence" => {
                if m.take("proxy") {
                    if !m.take("async") && !m.take("async::generic") {
                        return Err("only fence.proxy.async".into());
                    }
                    let global = m.take("global");
                    m.take_any(&["shared::cta", "shared::cluster"]);
                    return Ok(if global { Op::Nop } else { Op::ProxyFence });
                }
                m.take("sc");
                m.hints();
                Ok(Op::Nop)
            }
            "prefetch" | "prefetchu" | "discard" | "applypriority" => {
                m.list.clear();
                Ok(Op::Nop)
            }
            "nop" | "nanosleep" | "setmaxnreg" => {
                m.list.clear();
                Ok(Op::Nop)
            }
            "activemask" => {
                m.ty()?;
                Ok(Op::Activemask { d: self.dst(first(args)?, Ty::B32)? })
            }
            "shfl" => self.shfl(m, args),
            "vote" => self.vote(m, args),
            "redux" => {
                let ty = m.ty()?;
                m.take("sync");
                let op = atom_op(m)?;
                let [d, a, mask] = args else { return Err("three operands are expected".into()) };
                let (a, mask) = (self.src(a, ty)?, self.src(mask, Ty::B32)?);
                Ok(Op::Redux { op, signed: ty.signed(), d: self.dst(d, ty)?, a, mask })
            }
            "atom" | "red" => self.atom(m, args),
            "cp" => self.copy(m, args),
            "ldmatrix" | "stmatrix" => self.matrix(m, args),
            "mma" => self.mma(m, args),
            _ => self.wgmma(m, args),
        }
    }

    fn barrier(&mut self, m: &mut Mods, args: &[Opd]) -> Result<Op> {
        m.take_any(&["cta"]);
        m.take("aligned");
        let warp = m.take("warp");
        if m.take("red") {
            let all = m.take("and");
            if !all && !m.take("or") {
                return Err("only .and and .or".into());
            }
            m.take("pred");
            let [d, id, p] = args else { return Err("three operands are expected".into()) };
            let vote = Some(Vote { d: self.dst(d, Ty::Pred)?, p: self.src(p, Ty::Pred)?, all });
            return Ok(Op::Bar { id: self.src(id, Ty::U32)?, count: None, vote });
        }
        if m.take("arrive") {
            let [id, count] = args else { return Err("two operands are expected".into()) };
            return Ok(Op::Arrive { id: self.src(id, Ty::U32)?, count: self.src(count, Ty::U32)? });
        }
        if !m.take("sync") {
            return Err("only .sync, .arrive and .red".into());
        }
        if warp {
            return Ok(Op::WarpSync { mask: self.src(first(args)?, Ty::B32)? });
        }
        let id = self.src(first(args)?, Ty::U32)?;
        let count = match args {
            [_, n] => Some(self.src(n, Ty::U32)?),
            _ => None,
        };
        Ok(Op::Bar { id, count, vote: None })
    }

    fn shfl(&mut self, m: &mut Mods, args: &[Opd]) -> Result<Op> {
        m.ty()?;
        if !m.take("sync") {
            return Err("only .sync".into());
        }
        let mode = match m.take_any(&["up", "down", "bfly", "idx"]) {
            Some("up") => ShflMode::Up,
            Some("down") => ShflMode::Down,
            Some("bfly") => ShflMode::Bfly,
            Some(_) => ShflMode::Idx,
            None => return Err("no mode".into()),
        };
        let [d, a, b, c, mask] = args else { return Err("five operands are expected".into()) };
        let [a, b, c, mask] = [a, b, c, mask].map(|o| self.src(o, Ty::B32));
        let (d, p) = match d {
            Opd::Pair(d, p) => (self.dst(&Opd::Word(d), Ty::B32)?, Some(self.dst(&Opd::Word(p), Ty::Pred)?)),
            d => (self.dst(d, Ty::B32)?, None),
        };
        Ok(Op::Shfl { mode, d, p, a: a?, b: b?, c: c?, mask: mask? })
    }

    fn vote(&mut self, m: &mut Mods, args: &[Opd]) -> Result<Op> {
        let ty = m.ty()?;
        if !m.take("sync") {
            return Err("only .sync".into());
        }
        let mode = match m.take_any(&["all", "any", "uni", "ballot"]) {
            Some("all") => VoteMode::All,
            Some("any") => VoteMode::Any,
            Some("uni") => VoteMode::Uni,
            Some(_) => VoteMode::Ballot,
            None => return Err("no mode".into()),
        };
        let [d, a, mask] = args else { return Err("three operands are expected".into()) };
        let (a, not) = match a {
            Opd::Not(a) => (self.src(&Opd::Word(a), Ty::Pred)?, true),
            a => (self.src(a, Ty::Pred)?, false),
        };
        let mask = self.src(mask, Ty::B32)?;
        Ok(Op::Vote { mode, d: self.dst(d, ty)?, a, not, mask })
    }

    fn atom(&mut self, m: &mut Mods, args: &[Opd]) -> Result<Op> {
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

    fn copy(&mut self, m: &mut Mods, args: &[Opd]) -> Result<Op> {
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

    fn matrix(&mut self, m: &mut Mods, args: &[Opd]) -> Result<Op> {
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

    fn mma(&mut self, m: &mut Mods, args: &[Opd]) -> Result<Op> {
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
        // Of registers that the shape lacks, none is read.
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

    fn wgmma(&mut self, m: &mut Mods, args: &[Opd]) -> Result<Op> {
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
            // A constant: a predicate that no one writes holds it from the start, see `Entry::const_p`.
            Opd::Imm(Number::Int(v)) => self.constant_p(*v != 0),
            p => self.src(p, Ty::Pred)?,
        };
        let neg = (sign(neg_a)?, sign(neg_b)?);
        Ok(Op::Wgmma(Box::new(Wgmma { elem, n, d, a, b: self.src(rb, Ty::B64)?, scale_d, neg, trans })))
    }

    fn constant_p(&mut self, v: bool) -> u32 {
        let Reg::P(p) = fresh(self.e, Ty::Pred) else { unreachable!("of a predicate's type") };
        self.e.const_p.push((p, v));
        p
    }
}

fn first<'a, 'b>(args: &'a [Opd<'b>]) -> Result<&'a Opd<'b>> {
    args.first().ok_or_else(|| "an operand is missing".to_string())
}

fn small(opd: &Opd) -> Result<u32> {
    match opd {
        Opd::Imm(Number::Int(v)) if *v <= 256 => Ok(*v as u32),
        _ => Err("a small number is expected".into()),
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

fn atom_op(m: &mut Mods) -> Result<AtomOp> {
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
