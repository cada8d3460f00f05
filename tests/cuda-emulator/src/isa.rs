//! The instructions as the interpreter sees them: decoded once, registers as indices, nothing left to look up by name.

use crate::lanes::{Alu, Args, Regs};

/// The types of PTX's suffixes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ty {
    /// A predicate, one bit a lane.
    Pred,
    /// 8 bits: unsigned, signed, untyped.
    U8,
    /// See [`Ty::U8`].
    S8,
    /// See [`Ty::U8`].
    B8,
    /// 16 bits: unsigned, signed, untyped.
    U16,
    /// See [`Ty::U16`].
    S16,
    /// See [`Ty::U16`].
    B16,
    /// 32 bits: unsigned, signed, untyped.
    U32,
    /// See [`Ty::U32`].
    S32,
    /// See [`Ty::U32`].
    B32,
    /// 64 bits: unsigned, signed, untyped.
    U64,
    /// See [`Ty::U64`].
    S64,
    /// See [`Ty::U64`].
    B64,
    /// IEEE half precision, and two of them in a word.
    F16,
    /// See [`Ty::F16`].
    F16x2,
    /// bfloat16, and two of them in a word.
    Bf16,
    /// See [`Ty::Bf16`].
    Bf16x2,
    /// A float of which tensor cores see 10 bits of mantissa.
    Tf32,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
}

impl Ty {
    /// From a suffix without its dot.
    pub fn parse(text: &str) -> Option<Ty> {
        use Ty::*;
        const ALL: [(&str, Ty); 20] = [
            ("pred", Pred),
            ("u8", U8),
            ("s8", S8),
            ("b8", B8),
            ("u16", U16),
            ("s16", S16),
            ("b16", B16),
            ("u32", U32),
            ("s32", S32),
            ("b32", B32),
            ("u64", U64),
            ("s64", S64),
            ("b64", B64),
            ("f16", F16),
            ("f16x2", F16x2),
            ("bf16", Bf16),
            ("bf16x2", Bf16x2),
            ("tf32", Tf32),
            ("f32", F32),
            ("f64", F64),
        ];
        ALL.iter().find(|(name, _)| *name == text).map(|(_, ty)| *ty)
    }

    /// Size in bits; a predicate has one.
    pub fn bits(self) -> u32 {
        use Ty::*;
        match self {
            Pred => 1,
            U8 | S8 | B8 => 8,
            U16 | S16 | B16 | F16 | Bf16 => 16,
            U64 | S64 | B64 | F64 => 64,
            _ => 32,
        }
    }

    /// Whether it is sign-extended.
    pub fn signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }

    /// Whether it is a float of any kind.
    pub fn float(self) -> bool {
        use Ty::*;
        matches!(self, F16 | F16x2 | Bf16 | Bf16x2 | Tf32 | F32 | F64)
    }
}

/// A register: its file and its place in it. Registers of 8 to 32 bits are in W, zero-extended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reg {
    /// 32-bit file.
    W(u32),
    /// 64-bit file.
    X(u32),
    /// Predicates.
    P(u32),
}

/// Where an address points.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    /// Known from the address only.
    Generic,
    /// Device memory, module variables and constants.
    Global,
    /// Memory of the block.
    Shared,
    /// Memory of the thread.
    Local,
    /// The arguments of the launch.
    Param,
}

/// A register, or nothing, plus a constant.
#[derive(Clone, Copy, Debug)]
pub struct Addr {
    /// The register.
    pub base: Option<Reg>,
    /// What is added to it.
    pub offset: i64,
}

/// What an atomic does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named as in PTX")]
pub enum AtomOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

/// How `shfl` finds its source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named as in PTX")]
pub enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

/// What `vote` and `redux` make of the lanes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named as in PTX")]
pub enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

/// How setp and set combine a comparison with a third operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named as in PTX")]
pub enum Join {
    None,
    And,
    Or,
    Xor,
}

/// Elements of a matrix product.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named as in PTX")]
pub enum Elem {
    Bf16,
    F16,
    Tf32,
}

/// A wgmma of 64 rows and 16 columns of A.
#[derive(Clone, Debug)]
pub struct Wgmma {
    /// Element type of A and B.
    pub elem: Elem,
    /// Columns of B.
    pub n: usize,
    /// Accumulators, n / 2 of file W.
    pub d: Vec<u32>,
    /// A in four registers of file W, or a descriptor of file X.
    pub a: Result<[u32; 4], u32>,
    /// Descriptor of B, file X.
    pub b: u32,
    /// Predicate: whether D is added to.
    pub scale_d: u32,
    /// Signs of A and B.
    pub neg: (bool, bool),
    /// Whether A and B lie with the other dimension first.
    pub trans: (bool, bool),
}

/// A conversion other than the packed ones.
#[derive(Clone, Copy, Debug)]
pub struct Cvt {
    /// To.
    pub dst: Ty,
    /// From.
    pub src: Ty,
    /// How to round.
    pub round: Round,
    /// Clamp to the range, or to 0..1.
    pub sat: bool,
    /// Flush denormals.
    pub ftz: bool,
    /// Negative to zero.
    pub relu: bool,
}

/// Rounding of floats; the second half rounds to integers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named as in PTX")]
pub enum Round {
    Rn,
    Rz,
    Rm,
    Rp,
    Rna,
    Rni,
    Rzi,
    Rmi,
    Rpi,
}

/// What an instruction does.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "fields are named as PTX's operands: d, a, b, c")]
pub enum Op {
    /// Lane by lane, registers to register.
    Alu {
        f: Alu,
        args: Args,
    },
    /// A comparison to one or two predicates.
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
    /// A comparison to a register: all ones or 1.0.
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
    /// One register to several, lowest first. None is `_`.
    Unpack {
        d: Vec<Option<Reg>>,
        a: Reg,
        bits: u32,
    },
    /// Several registers to one, lowest first.
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
    /// `bar.sync`; `count` is absent where all threads of the block are meant.
    Bar {
        id: u32,
        count: Option<u32>,
        /// `bar.red`.
        vote: Option<Vote>,
    },
    /// `bar.warp.sync` and others that want all of some lanes.
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
    /// `None` waits for what is not committed, too.
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

/// Classes that launches count by, see [`crate::counters::Counters`].
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

/// Number of classes.
pub const CLASSES: usize = 10;

/// A predicate of all threads at a barrier, for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// Destination.
    pub d: u32,
    /// Source.
    pub p: u32,
    /// Whether all must have it, or one.
    pub all: bool,
}

/// One instruction.
#[derive(Clone, Debug)]
pub struct Inst {
    /// What it does.
    pub op: Op,
    /// Predicate and whether it is negated.
    pub guard: Option<(u32, bool)>,
    /// Line of the text.
    pub line: u32,
    /// What it counts as.
    pub class: Class,
    /// Registers of file W that it reads or writes: its part of [`Entry::uses`].
    pub uses: (u32, u32),
}

/// Registers that hold what the launch says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(missing_docs, reason = "named as in PTX; the number is x, y or z")]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Laneid,
    Warpid,
    Nwarpid,
    Smid,
    Nsmid,
    Gridid,
    LanemaskEq,
    LanemaskLe,
    LanemaskLt,
    LanemaskGe,
    LanemaskGt,
    DynamicShared,
    TotalShared,
}

/// An argument's place.
#[derive(Clone, Debug)]
pub struct Param {
    /// Byte of the argument block.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

/// A kernel.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "each is what its name says")]
pub struct Entry {
    pub name: String,
    pub params: Vec<Param>,
    pub param_bytes: usize,
    /// Bytes of static shared memory; dynamic memory follows at `dynamic_at`.
    pub shared_bytes: u32,
    pub dynamic_at: u32,
    pub local_bytes: u32,
    /// `.maxntid`'s product, 0 if not said.
    pub max_threads: u32,
    /// `.reqntid`, 0 if not said.
    pub required: [u32; 3],
    pub code: Vec<Inst>,
    pub w: u32,
    pub x: u32,
    pub p: u32,
    pub const_w: Vec<(u32, u32)>,
    pub const_x: Vec<(u32, u64)>,
    pub const_p: Vec<(u32, bool)>,
    pub special: Vec<(u32, Special)>,
    pub uses: Vec<u32>,
    /// Per use, whether it is written.
    pub writes: Vec<bool>,
    pub has_wgmma: bool,
    /// Registers as declared, for attributes.
    pub registers: u32,
}
