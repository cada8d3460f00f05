//! A warp: 32 lanes, their registers, and where they are. Lanes that part at a branch run group by group, the one with
//! the least place in the program first, and are together again where their places meet.

use crate::block::Block;
use crate::fault::{Fault, check};
use crate::isa::*;
use crate::lanes::Regs;
use crate::wgmma::Flight;

/// Why a warp does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It does.
    Ready,
    /// At a barrier, for so many threads if that is said.
    Barrier {
        /// Which one.
        id: u32,
        /// Threads.
        count: Option<u32>,
    },
    /// At a wgmma, for the other warps of its group.
    Wgmma,
    /// All lanes have returned.
    Done,
}

/// Lanes at another place of the program than those that run.
#[derive(Clone, Copy, Debug)]
struct Parked {
    pc: u32,
    lanes: u32,
    /// They wait for lanes that are not there.
    waits: bool,
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

/// See the module.
pub struct Warp {
    /// Its number in the block.
    pub id: u32,
    pub(crate) regs: Regs,
    pub(crate) local: Vec<u8>,
    pub(crate) pc: u32,
    pub(crate) active: u32,
    pub(crate) live: u32,
    parked: Vec<Parked>,
    /// Least place of the parked; `u32::MAX` if none is.
    next: u32,
    /// What is asked at the barrier where it waits.
    pub(crate) vote: Option<Vote>,
    pub(crate) copies: Vec<Pending>,
    pub(crate) commits: [u32; 32],
    pub(crate) flight: Flight,
    /// Whether it runs.
    pub status: Status,
}

impl Warp {
    /// With room for an entry's registers, constants in place.
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

    /// At the start of a block of `threads`.
    pub fn begin(&mut self, block: &Block) {
        let before = self.id * 32;
        let lanes = (block.threads - before).min(32);
        self.active = if lanes == 32 { !0 } else { (1 << lanes) - 1 };
        self.live = self.active;
        (self.pc, self.next, self.commits) = (0, u32::MAX, [0; 32]);
        self.parked.clear();
        self.copies.clear();
        self.flight.clear();
        self.status = Status::Ready;
        let [x, y, z] = block.ntid;
        for &(w, special) in &block.entry.special {
            self.regs.w[w as usize] = std::array::from_fn(|i| {
                let (lane, thread) = (i as u32, before + i as u32);
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
            });
        }
    }

    /// Line of the instruction that is next.
    pub fn line(&self, entry: &Entry) -> u32 {
        entry.code.get(self.pc as usize).map_or(0, |i| i.line)
    }

    fn park(&mut self, pc: u32, lanes: u32, waits: bool) {
        self.parked.push(Parked { pc, lanes, waits });
        self.next = self.next.min(pc);
    }

    /// Lanes at the same place join; then the group that is least goes on.
    fn regroup(&mut self) -> Result<(), Fault> {
        if self.active != 0 {
            let (pc, lanes) = (self.pc, self.active);
            self.park(pc, lanes, false);
        }
        self.parked.sort_unstable_by_key(|g| g.pc);
        self.parked.dedup_by(|b, a| {
            let same = a.pc == b.pc;
            if same {
                a.lanes |= b.lanes;
                // More lanes are there: worth another try.
                a.waits = false;
            }
            same
        });
        let Some(i) = self.parked.iter().position(|g| !g.waits) else {
            let g = self.parked[0];
            (self.pc, self.active) = (g.pc, g.lanes);
            return Err(Fault::other(format!(
                "lanes {:#010x} alone at an instruction that wants others",
                g.lanes
            )));
        };
        let g = self.parked.remove(i);
        (self.pc, self.active) = (g.pc, g.lanes);
        self.next = self.parked.first().map_or(u32::MAX, |g| g.pc);
        Ok(())
    }

    /// Lanes that an instruction wants are elsewhere: these wait, others run.
    fn wait_for_lanes(&mut self) -> Result<(), Fault> {
        let (pc, lanes) = (self.pc, self.active);
        self.park(pc, lanes, true);
        self.active = 0;
        self.regroup()
    }

    /// Whether the lanes wanted are here. If some are elsewhere, a step is made there instead.
    fn gathered(&mut self, wanted: u32, mask: u32, what: &str, block: &Block) -> Result<bool, Fault> {
        if wanted & !mask == 0 || block.options.checks & check::CONVERGENCE == 0 {
            return Ok(true);
        }
        if wanted & self.live & !self.active != 0 {
            self.wait_for_lanes()?;
            return Ok(false);
        }
        Err(Fault::other(format!("{what} by lanes {mask:#010x} only, {wanted:#010x} are wanted")))
    }

    /// Runs until it must wait or has made `quota` steps.
    pub fn run(&mut self, block: &mut Block, quota: u64) -> Result<(), Fault> {
        let before = block.executed;
        let result = self.steps(block, quota);
        let group = match self.id / 4 {
            0 => &mut block.counters.group_0,
            1 => &mut block.counters.group_1,
            2 => &mut block.counters.group_2,
            _ => return result,
        };
        *group += block.executed - before;
        result
    }

    fn steps(&mut self, block: &mut Block, mut quota: u64) -> Result<(), Fault> {
        let entry = block.entry;
        loop {
            if self.pc >= self.next || self.active == 0 {
                self.regroup()?;
            }
            if quota == 0 {
                return Ok(());
            }
            quota -= 1;
            let inst = &entry.code[self.pc as usize];
            block.executed += 1;
            if block.executed > block.options.budget {
                return Err(Fault::other(format!(
                    "the budget of {} warp-instructions is spent",
                    block.options.budget
                )));
            }
            block.classes[inst.class as usize] += 1;
            let mask = match inst.guard {
                None => self.active,
                Some((p, false)) => self.active & self.regs.p[p as usize],
                Some((p, true)) => self.active & !self.regs.p[p as usize],
            };
            if mask == 0 {
                self.pc += 1;
                continue;
            }
            if entry.has_wgmma {
                self.flight.check(entry, inst, block.options.checks)?;
            }
            match &inst.op {
                Op::Alu { f, args } => f(&mut self.regs, args, mask),
                Op::Setp { cmp, a, b, join, c, not_c, p, q } => {
                    let holds = cmp(&self.regs, *a, *b);
                    let c = if *not_c {
                        !self.regs.p[*c as usize]
                    } else {
                        *self.regs.p.get(*c as usize).unwrap_or(&0)
                    };
                    let join = |v: u32| match join {
                        Join::None => v,
                        Join::And => v & c,
                        Join::Or => v | c,
                        Join::Xor => v ^ c,
                    };
                    self.regs.put_p(*p, join(holds), mask);
                    if let Some(q) = q {
                        self.regs.put_p(*q, join(!holds), mask);
                    }
                }
                Op::Set { cmp, a, b, d, yes } => {
                    let holds = cmp(&self.regs, *a, *b);
                    self.regs.put_w(
                        *d,
                        &std::array::from_fn(|i| if holds >> i & 1 != 0 { *yes } else { 0 }),
                        mask,
                    );
                }
                Op::Bra { target } => {
                    let rest = self.active & !mask;
                    if rest == 0 {
                        self.pc = *target;
                    } else {
                        let next = self.pc + 1;
                        let ((pc, lanes), other) = if *target < next {
                            ((*target, mask), (next, rest))
                        } else {
                            ((next, rest), (*target, mask))
                        };
                        (self.pc, self.active) = (pc, lanes);
                        self.park(other.0, other.1, false);
                    }
                    continue;
                }
                Op::Exit => {
                    if self.exit(block, mask)? {
                        return Ok(());
                    }
                    continue;
                }
                Op::Bar { id, count, vote } => {
                    if !self.gathered(self.live, mask, "a barrier", block)? {
                        continue;
                    }
                    let first = mask.trailing_zeros() as usize;
                    let id = self.regs.w[*id as usize][first];
                    let count = count.map(|c| self.regs.w[c as usize][first]);
                    self.pc += 1;
                    self.vote = *vote;
                    self.status = Status::Barrier { id, count };
                    return Ok(());
                }
                Op::Arrive { id, count } => {
                    if !self.gathered(self.live, mask, "a barrier", block)? {
                        continue;
                    }
                    let first = mask.trailing_zeros() as usize;
                    let [id, count] = [*id, *count].map(|r| self.regs.w[r as usize][first]);
                    self.pc += 1;
                    block.arrive(self.id, id, count)?;
                    // Those who wait there may go on, before this warp arrives again.
                    return Ok(());
                }
                Op::Wgmma(_) => {
                    if !self.gathered(!0, mask, "wgmma", block)? {
                        continue;
                    }
                    self.status = Status::Wgmma;
                    return Ok(());
                }
                op => {
                    if !self.other(block, op, mask)? {
                        continue;
                    }
                }
            }
            self.pc += 1;
        }
    }

    /// Lanes return; true if they were the last.
    fn exit(&mut self, block: &mut Block, mask: u32) -> Result<bool, Fault> {
        let left = self.copies.iter().find(|c| mask >> c.lane & 1 != 0);
        if let Some(copy) = left
            && block.options.checks & check::CP_ASYNC != 0
        {
            let text = format!("a lane ends with a cp.async to {:#x} that is not waited for", copy.dst);
            return Err(Fault::of_lane(text, copy.lane));
        }
        self.flight.at_exit(block.options.checks)?;
        self.live &= !mask;
        self.active &= !mask;
        // Those who waited for these lanes wait no more.
        self.parked.iter_mut().for_each(|g| g.waits = false);
        self.pc += u32::from(self.active != 0);
        if self.active == 0 && self.parked.is_empty() {
            self.status = Status::Done;
            return Ok(true);
        }
        Ok(false)
    }

    /// What is not in `run`'s own match, being rarer; false if lanes had to be waited for.
    fn other(&mut self, block: &mut Block, op: &Op, mask: u32) -> Result<bool, Fault> {
        let full = |w: &mut Warp, what: &str, block: &Block| w.gathered(!0, mask, what, block);
        match op {
            Op::Cvt { cvt, d, s } => crate::convert::run(&mut self.regs, cvt, *d, *s, mask),
            Op::Unpack { d, a, bits } => self.unpack(d, *a, *bits, mask),
            Op::Pack { d, a, bits } => self.pack(*d, a, *bits, mask),
            Op::Ld { space, bytes, n, d, sext, addr } => {
                self.load(block, (*space, *bytes, *n), d, *sext, addr, mask)?;
            }
            Op::St { space, bytes, n, a, addr } => self.store(block, (*space, *bytes, *n), a, addr, mask)?,
            Op::Atom { space, op, ty, d, addr, a, b } => {
                self.atomic(block, (*space, *op, *ty), *d, addr, *a, *b, mask)?;
            }
            Op::CpAsync { dst, src, bytes, size } => self.copy_async(block, dst, src, *bytes, *size, mask)?,
            Op::CpCommit => {
                for i in (0..32).filter(|i| mask >> i & 1 != 0) {
                    self.commits[i] += 1;
                }
            }
            Op::CpWait { left } => self.copy_wait(block, *left, mask)?,
            Op::Ldmatrix { n, trans, d, addr } => {
                if !full(self, "ldmatrix", block)? {
                    return Ok(false);
                }
                self.load_matrix(block, *n, *trans, d, addr)?;
            }
            Op::Stmatrix { n, trans, a, addr } => {
                if !full(self, "stmatrix", block)? {
                    return Ok(false);
                }
                self.store_matrix(block, *n, *trans, a, addr)?;
            }
            Op::Mma { elem, k, d, a, b, c } => {
                if !full(self, "mma", block)? {
                    return Ok(false);
                }
                match k {
                    8 => block.mma_k8 += 1,
                    4 => block.mma_k4 += 1,
                    _ => {}
                }
                crate::matrix::mma(&mut self.regs, *elem, *k, d, a, b, c);
            }
            Op::Shfl { mode, d, p, a, b, c, mask: m } => {
                let wanted = self.members(*m, mask);
                if !self.gathered(wanted, mask, "shfl", block)? {
                    return Ok(false);
                }
                self.shuffle(*mode, *d, *p, [*a, *b, *c], mask, block.options.checks)?;
            }
            Op::Vote { mode, d, a, not, mask: m } => {
                let wanted = self.members(*m, mask);
                if !self.gathered(wanted, mask, "vote", block)? {
                    return Ok(false);
                }
                let v = self.regs.p[*a as usize] ^ if *not { !0 } else { 0 };
                let all = v & mask == mask;
                let flag = |yes: bool| if yes { !0 } else { 0 };
                match mode {
                    VoteMode::Ballot => self.regs.put_w(*d, &[v & mask; 32], mask),
                    VoteMode::All => self.regs.put_p(*d, flag(all), mask),
                    VoteMode::Any => self.regs.put_p(*d, flag(v & mask != 0), mask),
                    VoteMode::Uni => self.regs.put_p(*d, flag(all || v & mask == 0), mask),
                }
            }
            Op::Redux { op, signed, d, a, mask: m } => {
                let wanted = self.members(*m, mask);
                if !self.gathered(wanted, mask, "redux", block)? {
                    return Ok(false);
                }
                let ty = if *signed { Ty::S32 } else { Ty::U32 };
                let lanes =
                    (0..32).filter(|i| mask >> i & 1 != 0).map(|i| u64::from(self.regs.w[*a as usize][i]));
                let v = lanes.reduce(|x, y| crate::access::combine(*op, ty, x, y, 0)).unwrap_or(0);
                self.regs.put_w(*d, &[v as u32; 32], mask);
            }
            Op::WarpSync { mask: m } => {
                let wanted = self.members(*m, mask);
                return self.gathered(wanted, mask, "bar.warp.sync", block);
            }
            Op::Activemask { d } => self.regs.put_w(*d, &[mask; 32], mask),
            Op::Clock { d } => match d {
                Reg::X(x) => self.regs.put_x(*x, &[block.executed; 32], mask),
                Reg::W(w) => self.regs.put_w(*w, &[block.executed as u32; 32], mask),
                Reg::P(_) => {}
            },
            Op::ProxyFence => block.shared.proxy_fence(self.id as usize),
            Op::WgFence | Op::WgCommit | Op::WgWait { .. } => {
                if !full(self, "wgmma", block)? {
                    return Ok(false);
                }
                match op {
                    Op::WgFence => self.flight.fence(),
                    Op::WgCommit => self.flight.commit(),
                    Op::WgWait { left } => self.flight.wait(*left, self.id as usize, &mut block.shared)?,
                    _ => {}
                }
            }
            Op::Trap => return Err(Fault::other("trap")),
            _ => {}
        }
        Ok(true)
    }

    /// Lanes that the instruction's mask names, of those that have not returned.
    fn members(&self, register: u32, mask: u32) -> u32 {
        self.regs.w[register as usize][mask.trailing_zeros() as usize] & self.live
    }

    #[inline(always)]
    pub(crate) fn wide(&self, r: Reg, i: usize) -> u64 {
        match r {
            Reg::W(w) => self.regs.w[w as usize][i].into(),
            Reg::X(x) => self.regs.x[x as usize][i],
            Reg::P(p) => u64::from(self.regs.p[p as usize] >> i & 1),
        }
    }

    /// Writes the lanes of `mask` of a register of any file.
    pub(crate) fn put(&mut self, d: Reg, v: &[u64; 32], mask: u32) {
        match d {
            Reg::W(w) => self.regs.put_w(w, &v.map(|v| v as u32), mask),
            Reg::X(x) => self.regs.put_x(x, v, mask),
            Reg::P(_) => {}
        }
    }

    fn unpack(&mut self, d: &[Option<Reg>], a: Reg, bits: u32, mask: u32) {
        let v: [u64; 32] = std::array::from_fn(|i| self.wide(a, i));
        for (j, d) in d.iter().enumerate() {
            if let Some(d) = d {
                self.put(*d, &v.map(|v| v >> (j as u32 * bits) & (u64::MAX >> (64 - bits))), mask);
            }
        }
    }

    fn pack(&mut self, d: Reg, a: &[Reg], bits: u32, mask: u32) {
        let cut = u64::MAX >> (64 - bits);
        let v = std::array::from_fn(|i| {
            a.iter().enumerate().fold(0, |v, (j, a)| v | (self.wide(*a, i) & cut) << (j as u32 * bits))
        });
        self.put(d, &v, mask);
    }

    fn shuffle(
        &mut self,
        mode: ShflMode,
        d: u32,
        p: Option<u32>,
        [a, b, c]: [u32; 3],
        mask: u32,
        checks: u32,
    ) -> Result<(), Fault> {
        let [a, b, c] = [a, b, c].map(|r| self.regs.w[r as usize]);
        let (mut out, mut valid) = ([0; 32], 0);
        for i in (0..32u32).filter(|i| mask >> i & 1 != 0) {
            let (b, c) = (b[i as usize] & 31, c[i as usize]);
            let (segment, clamp) = (c >> 8 & 31, c & 31);
            let last = i & segment | clamp & !segment;
            let (j, ok) = match mode {
                ShflMode::Up => (i.wrapping_sub(b), i as i32 - b as i32 >= last as i32),
                ShflMode::Down => (i + b, i + b <= last),
                ShflMode::Bfly => (i ^ b, i ^ b <= last),
                ShflMode::Idx => (i & segment | b & !segment, i & segment | b & !segment <= last),
            };
            let j = if ok { j } else { i };
            if mask >> j & 1 == 0 && checks & check::CONVERGENCE != 0 {
                return Err(Fault::of_lane(format!("shfl from lane {j}, which takes no part"), i));
            }
            out[i as usize] = a[j as usize];
            valid |= u32::from(ok) << i;
        }
        self.regs.put_w(d, &out, mask);
        if let Some(p) = p {
            self.regs.put_p(p, valid, mask);
        }
        Ok(())
    }
}
