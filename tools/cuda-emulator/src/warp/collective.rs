//! Operations that several lanes execute together: shuffles, votes, reductions and matrix operations.

use super::Warp;
use crate::block::Block;
use crate::fault::{Fault, check};
use crate::isa::*;
use crate::lanes::each;

impl Warp {
    /// Executes a collective operation. Returns false if lanes that must take part are still at another address.
    pub(super) fn collective(&mut self, block: &mut Block, op: &Op, mask: u32) -> Result<bool, Fault> {
        let (wanted, what) = match op {
            Op::Ldmatrix { .. } => (!0, "ldmatrix"),
            Op::Stmatrix { .. } => (!0, "stmatrix"),
            Op::Mma { .. } => (!0, "mma"),
            Op::Shfl { mask: m, .. } => (self.members(*m, mask), "shfl"),
            Op::Vote { mask: m, .. } => (self.members(*m, mask), "vote"),
            Op::Redux { mask: m, .. } => (self.members(*m, mask), "redux"),
            Op::WarpSync { mask: m } => (self.members(*m, mask), "bar.warp.sync"),
            _ => (!0, "wgmma"),
        };
        if !self.gathered(wanted, mask, what, block)? {
            return Ok(false);
        }
        match op {
            Op::Ldmatrix { n, trans, d, addr } => self.load_matrix(block, *n, *trans, d, addr)?,
            Op::Stmatrix { n, trans, a, addr } => self.store_matrix(block, *n, *trans, a, addr)?,
            Op::Mma { elem, k, d, a, b, c } => {
                match k {
                    8 => block.mma_k8 += 1,
                    4 => block.mma_k4 += 1,
                    _ => {}
                }
                crate::matrix::mma(&mut self.regs, *elem, *k, d, a, b, c);
            }
            Op::Shfl { mode, d, p, a, b, c, .. } => {
                self.shuffle(*mode, *d, *p, [*a, *b, *c], mask, block.options.checks)?;
            }
            Op::Vote { mode, d, a, not, .. } => self.vote(*mode, *d, *a, *not, mask),
            Op::Redux { op, signed, d, a, .. } => {
                let ty = if *signed { Ty::S32 } else { Ty::U32 };
                let lanes = each(mask).map(|i| u64::from(self.regs.w[*a as usize][i]));
                let v = lanes.reduce(|x, y| crate::access::combine(*op, ty, x, y, 0)).unwrap_or(0);
                self.regs.put_w(*d, &[v as u32; 32], mask);
            }
            Op::WgFence => self.flight.fence(),
            Op::WgCommit => self.flight.commit(),
            Op::WgWait { left } => self.flight.wait(*left, self.id as usize, &mut block.shared)?,
            _ => {}
        }
        Ok(true)
    }

    /// Returns the lanes that the mask operand in a register names, without those that have returned.
    fn members(&self, register: u32, mask: u32) -> u32 {
        self.regs.w[register as usize][mask.trailing_zeros() as usize] & self.live
    }

    fn vote(&mut self, mode: VoteMode, d: u32, a: u32, not: bool, mask: u32) {
        let v = self.regs.p[a as usize] ^ if not { !0 } else { 0 };
        let (all, any) = (v & mask == mask, v & mask != 0);
        let flag = |yes: bool| if yes { !0 } else { 0 };
        match mode {
            VoteMode::Ballot => self.regs.put_w(d, &[v & mask; 32], mask),
            VoteMode::All => self.regs.put_p(d, flag(all), mask),
            VoteMode::Any => self.regs.put_p(d, flag(any), mask),
            VoteMode::Uni => self.regs.put_p(d, flag(all || !any), mask),
        }
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
        for lane in each(mask) {
            let (i, b, c) = (lane as u32, b[lane] & 31, c[lane]);
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
            out[lane] = a[j as usize];
            valid |= u32::from(ok) << i;
        }
        self.regs.put_w(d, &out, mask);
        if let Some(p) = p {
            self.regs.put_p(p, valid, mask);
        }
        Ok(())
    }
}
