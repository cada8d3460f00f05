//! Entries: kernels with all that a launch has to know about them.

use super::Inst;

/// A special register, whose value the launch determines.
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

/// The place of a parameter.
#[derive(Clone, Debug)]
pub struct Param {
    /// The offset in the argument block, in bytes.
    pub offset: usize,
    /// The size in bytes.
    pub size: usize,
}

/// A kernel.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "the names of the other fields say what they are")]
pub struct Entry {
    pub name: String,
    pub params: Vec<Param>,
    pub param_bytes: usize,
    /// The size of static shared memory in bytes; dynamic shared memory starts at `dynamic_at`.
    pub shared_bytes: u32,
    pub dynamic_at: u32,
    pub local_bytes: u32,
    /// The product of the dimensions of `.maxntid`, or 0 without that directive.
    pub max_threads: u32,
    /// The dimensions of `.reqntid`, or zeros without that directive.
    pub required: [u32; 3],
    pub code: Vec<Inst>,
    /// The number of registers of file W.
    pub w: u32,
    /// The number of registers of file X.
    pub x: u32,
    /// The number of predicates.
    pub p: u32,
    /// Registers of file W that hold constants, with their values.
    pub const_w: Vec<(u32, u32)>,
    /// Registers of file X that hold constants, with their values.
    pub const_x: Vec<(u32, u64)>,
    /// Predicates that hold constants, with their values.
    pub const_p: Vec<(u32, bool)>,
    /// Registers of file W that stand for special registers.
    pub special: Vec<(u32, Special)>,
    /// Registers of file W that instructions use, see [`Inst::uses`].
    pub uses: Vec<u32>,
    /// Whether each of `uses` is a write.
    pub writes: Vec<bool>,
    pub has_wgmma: bool,
    /// The number of declared registers.
    pub registers: u32,
}
