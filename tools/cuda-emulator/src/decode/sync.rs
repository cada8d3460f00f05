//! Barriers and fences, and operations that exchange values between the lanes of a warp.

use super::memory::atom_op;
use super::operands::first;
use super::{Decoder, Result, Suffixes};
use crate::isa::*;
use crate::parse::Opd;

impl Decoder<'_> {
    /// Decodes a fence. Only a proxy fence for shared memory has an effect, because lanes access memory in order.
    pub(super) fn fence(&mut self, m: &mut Suffixes) -> Result<Op> {
        if m.base == "fence" && m.take("proxy") {
            if !m.take("async") && !m.take("async::generic") {
                return Err("only fence.proxy.async".into());
            }
            let global = m.take("global");
            m.take_any(&["shared::cta", "shared::cluster"]);
            return Ok(if global { Op::Nop } else { Op::ProxyFence });
        }
        m.take(if m.base == "membar" { "gl" } else { "sc" });
        m.hints();
        Ok(Op::Nop)
    }

    pub(super) fn barrier(&mut self, m: &mut Suffixes, args: &[Opd]) -> Result<Op> {
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

    pub(super) fn activemask(&mut self, m: &mut Suffixes, args: &[Opd]) -> Result<Op> {
        m.ty()?;
        Ok(Op::Activemask { d: self.dst(first(args)?, Ty::B32)? })
    }

    pub(super) fn shfl(&mut self, m: &mut Suffixes, args: &[Opd]) -> Result<Op> {
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

    pub(super) fn vote(&mut self, m: &mut Suffixes, args: &[Opd]) -> Result<Op> {
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

    pub(super) fn redux(&mut self, m: &mut Suffixes, args: &[Opd]) -> Result<Op> {
        let ty = m.ty()?;
        m.take("sync");
        let op = atom_op(m)?;
        let [d, a, mask] = args else { return Err("three operands are expected".into()) };
        let (a, mask) = (self.src(a, ty)?, self.src(mask, Ty::B32)?);
        Ok(Op::Redux { op, signed: ty.signed(), d: self.dst(d, ty)?, a, mask })
    }
}
