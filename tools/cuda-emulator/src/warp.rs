//! A warp: 32 lanes with their registers and their position in the program.
//!
//! Lanes that diverge at a branch run in groups, one after the other. The group at the lowest address runs first, and
//! groups merge when they reach the same address.

mod collective;
mod divergence;
mod execute;
mod run;

use crate::block::Block;
use crate::isa::*;
use crate::lanes::Regs;
use crate::wgmma::Flight;
use divergence::Parked;

/// Whether a warp can run, and otherwise the reason why it cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The warp can run.
    Ready,
    /// The warp waits at a barrier.
    Barrier {
        /// The number of the barrier.
        id: u32,
        /// The number of threads that the barrier is for, if the instruction gives one.
        count: Option<u32>,
    },
    /// The warp waits at a wgmma for the other warps of its warpgroup.
    Wgmma,
    /// All lanes have returned.
    Done,
}

/// A cp.async of one lane that has not been waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub lane: u32,
    pub group: u32,
    pub dst: u32,
    pub src: u64,
    pub bytes: u32,
    pub size: u32,
}

/// A warp; the module's documentation says how its lanes run.
pub struct Warp {
    /// The index of the warp in the block.
    pub id: u32,
    pub(crate) regs: Regs,
    pub(crate) local: Vec<u8>,
    pub(crate) pc: u32,
    /// The lanes that run now.
    pub(crate) active: u32,
    /// The lanes that have not returned.
    pub(crate) live: u32,
    parked: Vec<Parked>,
    /// The lowest address of a parked group, or `u32::MAX` if there is none.
    next: u32,
    /// The reduction that the warp takes part in at the barrier where it waits.
    pub(crate) vote: Option<Vote>,
    pub(crate) copies: Vec<Pending>,
    /// The number of groups of cp.async that each lane has committed.
    pub(crate) commits: [u32; 32],
    pub(crate) flight: Flight,
    /// Whether the warp can run.
    pub status: Status,
}

impl Warp {
    /// Creates a warp with the registers that an entry needs; those for constants have their values.
    pub fn new(entry: &Entry, id: u32) -> Warp {
        let mut regs = Regs {
            w: vec![[!0; 32]; entry.w as usize],
            x: vec![[!0; 32]; entry.x as usize],
            p: vec![!0; entry.p as usize],
        };
        for &(w, v) in &entry.const_w {
            regs.w[w as usize] = [v; 32];
        }
        for &(x, v) in &entry.const_x {
            regs.x[x as usize] = [v; 32];
        }
        for &(p, v) in &entry.const_p {
            regs.p[p as usize] = if v { !0 } else { 0 };
        }
        Warp {
            id,
            regs,
            local: vec![0xff; entry.local_bytes as usize * 32],
            pc: 0,
            active: 0,
            live: 0,
            parked: Vec::new(),
            next: u32::MAX,
            vote: None,
            copies: Vec::new(),
            commits: [0; 32],
            flight: Flight::new(entry),
            status: Status::Done,
        }
    }

    /// Prepares the warp for the start of a block.
    pub fn begin(&mut self, block: &Block) {
        let lanes = (block.threads - self.id * 32).min(32);
        self.active = if lanes == 32 { !0 } else { (1 << lanes) - 1 };
        self.live = self.active;
        (self.pc, self.next, self.commits) = (0, u32::MAX, [0; 32]);
        self.parked.clear();
        self.copies.clear();
        self.flight.clear();
        self.status = Status::Ready;
        for &(w, special) in &block.entry.special {
            self.regs.w[w as usize] = std::array::from_fn(|i| self.special(block, special, i as u32));
        }
    }

    /// Returns the value of a special register in a lane.
    fn special(&self, block: &Block, special: Special, lane: u32) -> u32 {
        let (thread, [x, y, z]) = (self.id * 32 + lane, block.ntid);
        match special {
            Special::Tid(0) => thread % x,
            Special::Tid(1) => thread / x % y,
            Special::Tid(_) => thread / (x * y),
            Special::Ntid(a) => block.ntid[a as usize],
            Special::Ctaid(a) => block.ctaid[a as usize],
            Special::Nctaid(a) => block.nctaid[a as usize],
            Special::Laneid => lane,
            Special::Warpid => self.id,
            Special::Nwarpid => (x * y * z).div_ceil(32),
            Special::Smid | Special::Gridid => 0,
            Special::Nsmid => 1,
            Special::LanemaskEq => 1 << lane,
            Special::LanemaskLt => (1 << lane) - 1,
            Special::LanemaskLe => u32::MAX >> (31 - lane),
            Special::LanemaskGt => !(u32::MAX >> (31 - lane)),
            Special::LanemaskGe => !((1 << lane) - 1),
            Special::DynamicShared => block.dynamic_shared,
            Special::TotalShared => block.shared.len() as u32,
        }
    }

    /// Returns the line of the instruction that is next.
    pub fn line(&self, entry: &Entry) -> u32 {
        entry.code.get(self.pc as usize).map_or(0, |i| i.line)
    }

    /// Returns the value of a register of any file in lane `i`.
    #[inline(always)]
    pub(crate) fn wide(&self, r: Reg, i: usize) -> u64 {
        match r {
            Reg::W(w) => self.regs.w[w as usize][i].into(),
            Reg::X(x) => self.regs.x[x as usize][i],
            Reg::P(p) => u64::from(self.regs.p[p as usize] >> i & 1),
        }
    }

    /// Writes the lanes of `mask` of a register of file W or X.
    #[inline]
    pub(crate) fn put(&mut self, d: Reg, v: &[u64; 32], mask: u32) {
        match d {
            Reg::W(w) => self.regs.put_w(w, &v.map(|v| v as u32), mask),
            Reg::X(x) => self.regs.put_x(x, v, mask),
            Reg::P(_) => {}
        }
    }
}
