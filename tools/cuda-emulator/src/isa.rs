//! The decoded form of PTX: what the interpreter executes.
//!
//! Text is decoded once, when a module is loaded. Registers are indices by then, so that no name has to be looked up
//! while a kernel runs.

mod entry;
mod modifiers;
mod operands;
mod types;

pub use entry::*;
pub use modifiers::*;
pub use operands::*;
pub use types::*;

use crate::lanes::{Alu, Args, Regs};

/// A `wgmma.mma_async` with 64 rows and 16 columns of A.
#[derive(Clone, Debug)]
pub struct Wgmma {
    /// The element type of A and B.
    pub elem: Elem,
    /// The number of columns of B.
    pub n: usize,
    /// The accumulators: n / 2 registers of file W.
    pub d: Vec<u32>,
    /// A, either in four registers of file W or through a descriptor in file X.
    pub a: Result<[u32; 4], u32>,
    /// The descriptor of B, in file X.
    pub b: u32,
    /// The predicate that says whether the product is added to D or replaces it.
    pub scale_d: u32,
    /// Whether A and B are negated.
    pub neg: (bool, bool),
    /// Whether A and B are stored with K as the slower dimension.
    pub trans: (bool, bool),
}

/// A conversion between two scalar types; conversions to packed types are ordinary [`Op::Alu`] operations.
#[derive(Clone, Copy, Debug)]
pub struct Cvt {
    /// The type of the result.
    pub dst: Ty,
    /// The type of the source.
    pub src: Ty,
    /// The rounding mode.
    pub round: Round,
    /// Whether the result is clamped: to the range of an integer type, to 0..1 for a float.
    pub sat: bool,
    /// Whether denormals are flushed to zero.
    pub ftz: bool,
    /// Whether negative results become zero.
    pub relu: bool,
}

/// The reduction of a predicate over all threads at a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The predicate that receives the result.
    pub d: u32,
    /// The predicate that is reduced.
    pub p: u32,
    /// Whether it must hold in all threads (`.and`) or in one (`.or`).
    pub all: bool,
}

/// The operation of an instruction.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "fields are named as PTX's operands: d, a, b, c")]
pub enum Op {
    /// An operation that computes each lane of one register from the same lane of others.
    Alu {
        f: Alu,
        args: Args,
    },
    /// A comparison that writes one or two predicates.
    Setp {
        cmp: fn(&Regs, u32, u32) -> u32,
        a: u32,
        b: u32,
        join: Join,
        c: u32,
        not_c: bool,
        p: u32,
        q: Option<u32>,
    },
    /// A comparison that writes a register: `yes` (all ones, or 1.0) where it holds, and zero elsewhere.
    Set {
        cmp: fn(&Regs, u32, u32) -> u32,
        a: u32,
        b: u32,
        d: u32,
        yes: u32,
    },
    Cvt {
        cvt: Cvt,
        d: Reg,
        s: Reg,
    },
    /// A move of one register to several, lowest bits first. `None` stands for the sink `_`.
    Unpack {
        d: Vec<Option<Reg>>,
        a: Reg,
        bits: u32,
    },
    /// A move of several registers to one, lowest bits first.
    Pack {
        d: Reg,
        a: Vec<Reg>,
        bits: u32,
    },
    Bra {
        target: u32,
    },
    Exit,
    Trap,
    Nop,
    /// `bar.arrive`.
    Arrive {
        id: u32,
        count: u32,
    },
    /// `bar.sync` and `bar.red`; without a `count`, all threads of the block take part.
    Bar {
        id: u32,
        count: Option<u32>,
        vote: Option<Vote>,
    },
    /// `bar.warp.sync`.
    WarpSync {
        mask: u32,
    },
    Ld {
        space: Space,
        bytes: u32,
        n: u32,
        d: [Option<Reg>; 4],
        sext: bool,
        addr: Addr,
    },
    St {
        space: Space,
        bytes: u32,
        n: u32,
        a: [Reg; 4],
        addr: Addr,
    },
    Atom {
        space: Space,
        op: AtomOp,
        ty: Ty,
        d: Option<Reg>,
        addr: Addr,
        a: Reg,
        b: Option<Reg>,
    },
    CpAsync {
        dst: Addr,
        src: Addr,
        bytes: u32,
        size: Option<u32>,
    },
    CpCommit,
    /// `cp.async.wait_group` with the number of groups that may stay in flight. `None` is `cp.async.wait_all`, which
    /// also waits for copies that are not committed.
    CpWait {
        left: Option<u32>,
    },
    Ldmatrix {
        n: usize,
        trans: bool,
        d: [u32; 4],
        addr: Addr,
    },
    Stmatrix {
        n: usize,
        trans: bool,
        a: [u32; 4],
        addr: Addr,
    },
    Mma {
        elem: Elem,
        k: usize,
        d: [u32; 4],
        a: [u32; 4],
        b: [u32; 2],
        c: [u32; 4],
    },
    Shfl {
        mode: ShflMode,
        d: u32,
        p: Option<u32>,
        a: u32,
        b: u32,
        c: u32,
        mask: u32,
    },
    Vote {
        mode: VoteMode,
        d: u32,
        a: u32,
        not: bool,
        mask: u32,
    },
    Redux {
        op: AtomOp,
        signed: bool,
        d: u32,
        a: u32,
        mask: u32,
    },
    Activemask {
        d: u32,
    },
    Clock {
        d: Reg,
    },
    ProxyFence,
    WgFence,
    WgCommit,
    WgWait {
        left: u32,
    },
    Wgmma(Box<Wgmma>),
}

/// The class under which launches count an instruction, see [`crate::counters::Counters`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named as in Counters")]
pub enum Class {
    Alu,
    Control,
    Mma,
    Ldmatrix,
    Shared,
    Global,
    Other,
    CpAsync,
    Barrier,
    Wgmma,
}

/// The number of classes.
pub const CLASSES: usize = 10;

impl Op {
    /// Returns the class that the operation counts as.
    pub(crate) fn class(&self) -> Class {
        match self {
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
}

/// One instruction.
#[derive(Clone, Debug)]
pub struct Inst {
    /// The operation.
    pub op: Op,
    /// The guard predicate, and whether it is negated.
    pub guard: Option<(u32, bool)>,
    /// The line of the text.
    pub line: u32,
    /// The class that the instruction counts as.
    pub class: Class,
    /// The range of [`Entry::uses`] that lists the registers of file W that the instruction reads or writes.
    pub uses: (u32, u32),
}
