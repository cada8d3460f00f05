//! Operands of instructions: registers and addresses.

/// A register: its file and its index there. Registers of 8 to 32 bits are in file W, zero-extended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reg {
    /// A register of the 32-bit file.
    W(u32),
    /// A register of the 64-bit file.
    X(u32),
    /// A predicate.
    P(u32),
}

/// The state space that an address belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    /// Any of the others; the address itself says which.
    Generic,
    /// Device memory, including module variables and constants.
    Global,
    /// Memory of the block.
    Shared,
    /// Memory of the thread.
    Local,
    /// The arguments of the launch.
    Param,
}

/// An address: the sum of a register, if there is one, and a constant.
#[derive(Clone, Copy, Debug)]
pub struct Addr {
    /// The register.
    pub base: Option<Reg>,
    /// The constant that is added to it.
    pub offset: i64,
}
