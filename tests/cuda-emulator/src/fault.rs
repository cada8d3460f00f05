//! What can go wrong in a kernel.

/// Checks, as bits of a mask: those of [`crate::launch::Options::checks`].
pub mod check {
    /// An access outside of all allocations, or of the block's shared memory.
    pub const BOUNDS: u32 = 1;
    /// An address that is not a multiple of the access's size.
    pub const ALIGN: u32 = 2;
    /// A read of shared memory that the block has not written.
    pub const UNWRITTEN: u32 = 4;
    /// Two warps at one byte of shared memory, one writing, no barrier between.
    pub const RACE: u32 = 8;
    /// Shared memory touched while a cp.async is on its way to it, or a block that ends so.
    pub const CP_ASYNC: u32 = 16;
    /// wgmma that reads what no proxy fence has made visible, or whose operands are touched before its wait.
    pub const PROXY: u32 = 32;
    /// wgmma on registers that were written after the last wgmma.fence.
    pub const WG_FENCE: u32 = 64;
    /// Warp-wide instructions with lanes missing.
    pub const CONVERGENCE: u32 = 128;
    /// Bytes of cp.async count as ordinary stores for [`PROXY`].
    pub const PROXY_CP_ASYNC: u32 = 256;
    /// All of them.
    pub const ALL: u32 = !0;
}

/// Why a launch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What the driver would report: 700, 716 or 719.
    pub code: i32,
    /// What was found, and where.
    pub text: String,
    /// Lane, where one is to blame.
    pub lane: Option<u32>,
}

impl Fault {
    /// An access outside.
    pub fn bounds(text: String, lane: u32) -> Fault {
        Fault { code: 700, text, lane: Some(lane) }
    }

    /// A misaligned access.
    pub fn align(text: String, lane: u32) -> Fault {
        Fault { code: 716, text, lane: Some(lane) }
    }

    /// Anything else.
    pub fn other(text: impl Into<String>) -> Fault {
        Fault { code: 719, text: text.into(), lane: None }
    }

    /// Anything else, of a lane.
    pub fn of_lane(text: impl Into<String>, lane: u32) -> Fault {
        Fault { code: 719, text: text.into(), lane: Some(lane) }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Fault {}
