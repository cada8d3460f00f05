//! Faults of kernels, and the checks that find them.

/// The checks, as bits of the mask [`crate::launch::Options::checks`].
pub mod check {
    /// An access must lie in an allocation, or in the shared memory of the block. This check is always enabled.
    pub const BOUNDS: u32 = 1;
    /// An address must be a multiple of the size of the access.
    pub const ALIGN: u32 = 2;
    /// Shared memory must be written by the block before it is read.
    pub const UNWRITTEN: u32 = 4;
    /// If two warps access a byte of shared memory and one of them writes, a barrier must separate them.
    pub const RACE: u32 = 8;
    /// A cp.async must be waited for before its destination is accessed and before the lane ends.
    pub const CP_ASYNC: u32 = 16;
    /// A proxy fence must make writes visible to wgmma, and its operands must not be changed before its wait.
    pub const PROXY: u32 = 32;
    /// A wgmma.fence must follow the last use of a register before a wgmma uses it.
    pub const WG_FENCE: u32 = 64;
    /// All lanes that an instruction names must execute it together.
    pub const CONVERGENCE: u32 = 128;
    /// [`PROXY`] also applies to bytes that cp.async has written.
    pub const PROXY_CP_ASYNC: u32 = 256;
    /// All checks.
    pub const ALL: u32 = !0;
}

/// The reason why a launch was stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The code that the driver reports: 700, 716 or 719.
    pub code: i32,
    /// The description, with the place.
    pub text: String,
    /// The lane, if the fault is that of a single one.
    pub lane: Option<u32>,
}

impl Fault {
    /// Creates a fault for an access out of bounds.
    pub fn bounds(text: String, lane: u32) -> Fault {
        Fault { code: 700, text, lane: Some(lane) }
    }

    /// Creates a fault for a misaligned access.
    pub fn align(text: String, lane: u32) -> Fault {
        Fault { code: 716, text, lane: Some(lane) }
    }

    /// Creates a fault of another kind.
    pub fn other(text: impl Into<String>) -> Fault {
        Fault { code: 719, text: text.into(), lane: None }
    }

    /// Creates a fault of another kind for a lane.
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
