//! Instructions as written to instructions as run: names resolved, constants in registers, functions picked. What is
//! not known here is an error of the load, suffixes included.

use crate::isa::*;
use crate::lex::{Number, number};
use crate::parse::{Opd, Raw};
use std::collections::HashMap;

mod alu;
mod sync;

type Result<T> = std::result::Result<T, String>;

/// Names of an entry, scope by scope.
#[derive(Default)]
pub struct Scope {
    tables: Vec<Table>,
    /// Offsets of parameters.
    pub params: HashMap<String, u64>,
    /// Offsets of local variables.
    pub locals: HashMap<String, u64>,
    /// Addresses of shared and global variables.
    pub names: HashMap<String, u64>,
}

#[derive(Default)]
struct Table {
    parent: Option<usize>,
    regs: HashMap<String, Reg>,
    labels: HashMap<String, usize>,
}

impl Scope {
    /// A new scope within `parent`.
    pub fn open(&mut self, parent: Option<usize>) -> usize {
        self.tables.push(Table { parent, ..Table::default() });
        self.tables.len() - 1
    }

    /// Declares a label before the statement `at`.
    pub fn label(&mut self, scope: usize, name: &str, at: usize, line: u32) -> Result<()> {
        match self.tables[scope].labels.insert(name.to_string(), at) {
            None => Ok(()),
            Some(_) => Err(format!("line {line}: label {name} is there twice")),
        }
    }

    /// Declares a register.
    pub fn register(&mut self, e: &mut Entry, scope: usize, name: String, ty: Ty) {
        e.registers += 1;
        let reg = fresh(e, ty);
        self.tables[scope].regs.insert(name, reg);
    }

    fn find<T: Copy>(&self, scope: usize, get: impl Fn(&Table) -> Option<T>) -> Option<T> {
        let mut at = Some(scope);
        while let Some(i) = at {
            if let Some(found) = get(&self.tables[i]) {
                return Some(found);
            }
            at = self.tables[i].parent;
        }
        None
    }
}

fn fresh(e: &mut Entry, ty: Ty) -> Reg {
    let (count, make): (&mut u32, fn(u32) -> Reg) = match ty.bits() {
        1 => (&mut e.p, Reg::P),
        64 => (&mut e.x, Reg::X),
        _ => (&mut e.w, Reg::W),
    };
    *count += 1;
    make(*count - 1)
}

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
        let class = class(&op);
        let uses = (from, decoder.e.uses.len() as u32);
        decoder.e.code.push(Inst { op, guard, line: raw.line, class, uses });
    }
    // Control that falls off the end returns.
    let line = raws.last().map_or(0, |r| r.line);
    e.code.push(Inst { op: Op::Exit, guard: None, line, class: Class::Control, uses: (0, 0) });
    Ok(())
}

fn class(op: &Op) -> Class {
    match op {
        Op::Alu { .. }
        | Op::Setp { .. }
        | Op::Set { .. }
        | Op::Cvt { .. }
        | Op::Unpack { .. }
        | Op::Pack { .. } => Class::Alu,
        Op::Mma { .. } => Class::Mma,
        Op::Ldmatrix { .. } | Op::Stmatrix { .. } => Class::Ldmatrix,
        Op::Ld { space, .. } | Op::St { space, .. } | Op::Atom { space, .. } => match space {
            Space::Shared => Class::Shared,
            Space::Global | Space::Generic => Class::Global,
            _ => Class::Other,
        },
        Op::CpAsync { .. } | Op::CpCommit | Op::CpWait { .. } => Class::CpAsync,
        Op::Bar { .. } | Op::Arrive { .. } => Class::Barrier,
        Op::Wgmma(_) | Op::WgFence | Op::WgCommit | Op::WgWait { .. } => Class::Wgmma,
        Op::Bra { .. } | Op::Exit | Op::Trap => Class::Control,
        _ => Class::Other,
    }
}

/// Suffixes of an opcode, taken off one by one; what is left over is not known.
struct Mods<'a> {
    base: &'a str,
    list: Vec<&'a str>,
}

impl<'a> Mods<'a> {
    fn new(name: &'a str) -> Mods<'a> {
        let mut parts = name.split('.');
        Mods { base: parts.next().unwrap_or(""), list: parts.collect() }
    }

    fn take(&mut self, name: &str) -> bool {
        let at = self.list.iter().position(|m| *m == name);
        at.map(|i| self.list.remove(i)).is_some()
    }

    fn take_any(&mut self, names: &[&str]) -> Option<&'a str> {
        let at = self.list.iter().position(|m| names.contains(m))?;
        Some(self.list.remove(at))
    }

    /// The last type among the suffixes.
    fn ty(&mut self) -> Result<Ty> {
        let at = self.list.iter().rposition(|m| Ty::parse(m).is_some()).ok_or("no type")?;
        Ok(Ty::parse(self.list.remove(at)).expect("found by it"))
    }

    fn round(&mut self) -> Option<Round> {
        const ALL: [(&str, Round); 9] = [
            ("rn", Round::Rn),
            ("rz", Round::Rz),
            ("rm", Round::Rm),
            ("rp", Round::Rp),
            ("rna", Round::Rna),
            ("rni", Round::Rni),
            ("rzi", Round::Rzi),
            ("rmi", Round::Rmi),
            ("rpi", Round::Rpi),
        ];
        ALL.iter().find(|(name, _)| self.take(name)).map(|(_, round)| *round)
    }

    fn space(&mut self) -> Space {
        let found =
            self.take_any(&["global", "const", "shared", "shared::cta", "local", "param", "param::entry"]);
        match found {
            Some("global" | "const") => Space::Global,
            Some("shared" | "shared::cta") => Space::Shared,
            Some("local") => Space::Local,
            Some(_) => Space::Param,
            None => Space::Generic,
        }
    }

    /// Hints and orders that change nothing here, one lane after the other as it is.
    fn hints(&mut self) {
        self.list.retain(|m| {
            let known = [
                "nc", "relaxed", "volatile", "weak", "acquire", "release", "acq_rel", "cta", "gpu", "sys",
                "cluster", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "noftz",
            ];
            !(known.contains(m)
                || m.starts_with("L1::")
                || *m == "L2::64B"
                || *m == "L2::128B"
                || *m == "L2::256B")
        });
    }

    fn done(&self) -> Result<()> {
        match self.list.first() {
            None => Ok(()),
            Some(m) => Err(format!("unknown suffix .{m}")),
        }
    }
}

struct Decoder<'e> {
    e: &'e mut Entry,
    scope: Scope,
    /// Scope of the statement.
    at: usize,
    const_w: HashMap<u32, u32>,
    const_x: HashMap<u64, u32>,
    special: HashMap<Special, u32>,
    /// Registers of file W that the statement names, and whether it writes them.
    used: Vec<(u32, bool)>,
}

impl Decoder<'_> {
    fn op(&mut self, raw: &Raw) -> Result<Op> {
        let mut m = Mods::new(raw.name);
        let op = match m.base {
            "ld" | "ldu" | "st" => self.memory(&mut m, &raw.args)?,
            "mov" | "cvta" | "setp" | "set" | "cvt" => self.moves(&mut m, &raw.args)?,
            "bra" => {
                m.take("uni");
                let [Opd::Word(label)] = raw.args[..] else { return Err("a label is expected".into()) };
                let target = self.scope.find(self.at, |t| t.labels.get(label).copied());
                Op::Bra { target: target.ok_or(format!("no label {label}"))? as u32 }
            }
            "ret" | "exit" => {
                m.take("uni");
                Op::Exit
            }
            "trap" => Op::Trap,
            "bar" | "barrier" | "membar" | "fence" | "shfl" | "vote" | "activemask" | "redux" | "atom"
            | "red" | "cp" | "ldmatrix" | "stmatrix" | "mma" | "wgmma" | "prefetch" | "prefetchu" | "nop"
            | "nanosleep" | "discard" | "applypriority" | "setmaxnreg" => self.sync(&mut m, &raw.args)?,
            _ => self.alu(&mut m, &raw.args)?,
        };
        m.done()?;
        Ok(op)
    }

    fn register(&self, name: &str) -> Option<Reg> {
        self.scope.find(self.at, |t| t.regs.get(name).copied())
    }

    fn constant_w(&mut self, v: u32) -> u32 {
        let e = &mut *self.e;
        *self.const_w.entry(v).or_insert_with(|| {
            e.w += 1;
            e.const_w.push((e.w - 1, v));
            e.w - 1
        })
    }

    fn constant_x(&mut self, v: u64) -> u32 {
        let e = &mut *self.e;
        *self.const_x.entry(v).or_insert_with(|| {
            e.x += 1;
            e.const_x.push((e.x - 1, v));
            e.x - 1
        })
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
            1 => {
                self.e.p += 1;
                self.e.const_p.push((self.e.p - 1, bits != 0));
                Reg::P(self.e.p - 1)
            }
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

    /// The value of a variable's name: an address or an offset.
    fn symbol(&self, name: &str) -> Option<u64> {
        [&self.scope.params, &self.scope.locals, &self.scope.names].iter().find_map(|m| m.get(name)).copied()
    }

    /// A source of whatever file it is in; numbers take the type's.
    fn any(&mut self, opd: &Opd, ty: Ty) -> Result<Reg> {
        let reg = match opd {
            Opd::Imm(v) => self.constant(*v, ty)?,
            Opd::Word(name) => match self.register(name) {
                Some(reg) => reg,
                None if number(name).is_some() => self.constant(number(name).expect("just read"), ty)?,
                None => match self.special(name) {
                    Some(w) => Reg::W(w),
                    None => {
                        let value = self.symbol(name).ok_or(format!("{name} is not declared"))?;
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

    /// A source that must be in the type's file.
    fn src(&mut self, opd: &Opd, ty: Ty) -> Result<u32> {
        match (self.any(opd, ty)?, ty.bits()) {
            (Reg::P(i), 1) | (Reg::X(i), 64) | (Reg::W(i), 8 | 16 | 32) => Ok(i),
            _ => Err(format!("operand {opd:?} is not of {} bits", ty.bits())),
        }
    }

    /// A destination, in whatever file; None is `_`.
    fn dst_any(&mut self, opd: &Opd) -> Result<Option<Reg>> {
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

    fn dst(&mut self, opd: &Opd, ty: Ty) -> Result<u32> {
        let reg = match self.dst_any(opd)? {
            Some(reg) => reg,
            None => fresh(self.e, ty),
        };
        match (reg, ty.bits()) {
            (Reg::P(i), 1) | (Reg::X(i), 64) | (Reg::W(i), 8 | 16 | 32) => Ok(i),
            _ => Err(format!("destination {opd:?} is not of {} bits", ty.bits())),
        }
    }

    fn dst_list<const N: usize>(&mut self, opd: &Opd, ty: Ty) -> Result<[u32; N]> {
        let list = elements::<N>(opd)?;
        let mut out = [0; N];
        for i in 0..N {
            out[i] = self.dst(&list[i], ty)?;
        }
        Ok(out)
    }

    fn src_list<const N: usize>(&mut self, opd: &Opd, ty: Ty) -> Result<[u32; N]> {
        let list = elements::<N>(opd)?;
        let mut out = [0; N];
        for i in 0..N {
            out[i] = self.src(&list[i], ty)?;
        }
        Ok(out)
    }

    fn addr(&mut self, opd: &Opd) -> Result<Addr> {
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
                let at = self.symbol(name).ok_or(format!("{name} is not declared"))?;
                Ok(Addr { base: None, offset: at as i64 + offset })
            }
        }
    }

    fn memory(&mut self, m: &mut Mods, args: &[Opd]) -> Result<Op> {
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
}

fn elements<'a, const N: usize>(opd: &'a Opd<'a>) -> Result<&'a [Opd<'a>; N]> {
    match opd {
        Opd::Vec(list) => list[..].try_into().map_err(|_| format!("{N} registers are expected")),
        one => std::slice::from_ref(one).try_into().map_err(|_| format!("{N} registers are expected")),
    }
}
