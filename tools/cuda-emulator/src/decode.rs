//! The decoder: it turns instructions as the text has them into [`Op`]s.
//!
//! Names are resolved, constants are placed in registers, and functions are selected. An opcode, a suffix or a
//! combination of operands that is not known is an error when the module is loaded.

mod alu;
mod matrix;
mod memory;
mod operands;
mod scope;
mod suffixes;
mod sync;

pub use scope::Scope;

use crate::isa::*;
use crate::parse::{Opd, Raw};
use std::collections::HashMap;
use suffixes::Suffixes;

type Result<T> = std::result::Result<T, String>;

/// Decodes all statements of an entry.
pub fn entry(e: &mut Entry, scope: Scope, raws: &[Raw]) -> Result<()> {
    let mut decoder = Decoder {
        e,
        scope,
        at: 0,
        const_w: HashMap::new(),
        const_x: HashMap::new(),
        special: HashMap::new(),
        used: vec![],
    };
    for raw in raws {
        let located = |text: String| format!("line {}: {}: {text}", raw.line, raw.name);
        decoder.at = raw.scope;
        decoder.used.clear();
        let guard = match raw.guard {
            None => None,
            Some((name, not)) => match decoder.register(name) {
                Some(Reg::P(p)) => Some((p, not)),
                _ => return Err(located(format!("{name} is no predicate"))),
            },
        };
        let op = decoder.op(raw).map_err(located)?;
        let from = decoder.e.uses.len() as u32;
        for (w, write) in std::mem::take(&mut decoder.used) {
            decoder.e.uses.push(w);
            decoder.e.writes.push(write);
        }
        decoder.e.has_wgmma |= matches!(op, Op::Wgmma(_));
        let class = op.class();
        let uses = (from, decoder.e.uses.len() as u32);
        decoder.e.code.push(Inst { op, guard, line: raw.line, class, uses });
    }
    // A thread that reaches the end of the body returns.
    let line = raws.last().map_or(0, |r| r.line);
    e.code.push(Inst { op: Op::Exit, guard: None, line, class: Class::Control, uses: (0, 0) });
    Ok(())
}

struct Decoder<'e> {
    e: &'e mut Entry,
    scope: Scope,
    /// The scope of the statement.
    at: usize,
    /// The registers that hold constants, by value.
    const_w: HashMap<u32, u32>,
    const_x: HashMap<u64, u32>,
    special: HashMap<Special, u32>,
    /// The registers of file W that the statement names, and whether it writes them.
    used: Vec<(u32, bool)>,
}

impl Decoder<'_> {
    fn op(&mut self, raw: &Raw) -> Result<Op> {
        let (mut suffixes, args) = (Suffixes::new(raw.name), &raw.args[..]);
        let m = &mut suffixes;
        let op = match m.base {
            "ld" | "ldu" | "st" => self.memory(m, args)?,
            "mov" => self.mov(m, args)?,
            "cvta" => self.cvta(m, args)?,
            "setp" | "set" => self.compare(m, args)?,
            "cvt" => self.cvt(m, args)?,
            "bra" => self.branch(m, args)?,
            "ret" | "exit" => {
                m.take("uni");
                Op::Exit
            }
            "trap" => Op::Trap,
            "bar" | "barrier" => self.barrier(m, args)?,
            "fence" | "membar" => self.fence(m)?,
            "activemask" => self.activemask(m, args)?,
            "shfl" => self.shfl(m, args)?,
            "vote" => self.vote(m, args)?,
            "redux" => self.redux(m, args)?,
            "atom" | "red" => self.atom(m, args)?,
            "cp" => self.copy(m, args)?,
            "ldmatrix" | "stmatrix" => self.matrix(m, args)?,
            "mma" => self.mma(m, args)?,
            "wgmma" => self.wgmma(m, args)?,
            // Hints about caches, time and registers have no effect here.
            "prefetch" | "prefetchu" | "discard" | "applypriority" | "nop" | "nanosleep" | "setmaxnreg" => {
                m.list.clear();
                Op::Nop
            }
            _ => self.alu(m, args)?,
        };
        m.done()?;
        Ok(op)
    }

    fn branch(&mut self, m: &mut Suffixes, args: &[Opd]) -> Result<Op> {
        m.take("uni");
        let [Opd::Word(label)] = args else { return Err("a label is expected".into()) };
        let target = self.scope.find_label(self.at, label);
        Ok(Op::Bra { target: target.ok_or(format!("no label {label}"))? as u32 })
    }
}
