//! Modifiers of instructions: variants of one operation that suffixes select.

/// The operation of an `atom`, a `red` or a `redux`.
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

/// The way in which `shfl` computes the source lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named as in PTX")]
pub enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

/// The reduction that `vote` applies to the predicates of the lanes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named as in PTX")]
pub enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

/// The way in which `setp` combines a comparison with a third operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named as in PTX")]
pub enum Join {
    None,
    And,
    Or,
    Xor,
}

impl Join {
    /// Combines the lanes in which a comparison holds with those of the third operand.
    #[inline(always)]
    pub(crate) fn apply(self, holds: u32, c: u32) -> u32 {
        match self {
            Join::None => holds,
            Join::And => holds & c,
            Join::Or => holds | c,
            Join::Xor => holds ^ c,
        }
    }
}

/// The element type of a matrix product.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named as in PTX")]
pub enum Elem {
    Bf16,
    F16,
    Tf32,
}

/// A rounding mode. Those from `Rni` on round to integers.
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
