//! The interpreter's loop over the instructions of a warp.

use super::{Status, Warp};
use crate::block::Block;
use crate::fault::Fault;
use crate::isa::*;

impl Warp {
    /// Runs the warp until it must wait or has executed `quota` instructions.
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
            block.count(inst.class)?;
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
            // The most frequent operations are executed here, because a call costs about as much as they do.
            match &inst.op {
                Op::Alu { f, args } => f(&mut self.regs, args, mask),
                Op::Setp { cmp, a, b, join, c, not_c, p, q } => {
                    let holds = cmp(&self.regs, *a, *b);
                    // Without a third operand `c` is 0, and the entry may have no predicate at all.
                    let c = *self.regs.p.get(*c as usize).unwrap_or(&0);
                    let c = if *not_c { !c } else { c };
                    self.regs.put_p(*p, join.apply(holds, c), mask);
                    if let Some(q) = q {
                        self.regs.put_p(*q, join.apply(!holds, c), mask);
                    }
                }
                Op::Set { cmp, a, b, d, yes } => {
                    let holds = cmp(&self.regs, *a, *b);
                    let v = std::array::from_fn(|i| if holds >> i & 1 != 0 { *yes } else { 0 });
                    self.regs.put_w(*d, &v, mask);
                }
                Op::Bra { target } => {
                    self.branch(*target, mask);
                    continue;
                }
                op @ (Op::Exit | Op::Bar { .. } | Op::Arrive { .. } | Op::Wgmma(_)) => {
                    if self.pauses(block, op, mask)? {
                        return Ok(());
                    }
                    continue;
                }
                op => {
                    if !self.execute(block, op, mask)? {
                        continue;
                    }
                }
            }
            self.pc += 1;
        }
    }

    /// Executes an operation after which other warps may have to run first. Returns whether the warp has to stop; if
    /// not, it continues at `pc`, which this function has set.
    fn pauses(&mut self, block: &mut Block, op: &Op, mask: u32) -> Result<bool, Fault> {
        let (wanted, what) = match op {
            Op::Exit => return self.exit(block, mask),
            Op::Wgmma(_) => (!0, "wgmma"),
            _ => (self.live, "a barrier"),
        };
        if !self.gathered(wanted, mask, what, block)? {
            return Ok(false);
        }
        let first = mask.trailing_zeros() as usize;
        match op {
            Op::Bar { id, count, vote } => {
                let id = self.regs.w[*id as usize][first];
                let count = count.map(|c| self.regs.w[c as usize][first]);
                self.pc += 1;
                self.vote = *vote;
                self.status = Status::Barrier { id, count };
            }
            Op::Arrive { id, count } => {
                let [id, count] = [*id, *count].map(|r| self.regs.w[r as usize][first]);
                self.pc += 1;
                // The warp stays ready. It stops here so that the warps that wait at the barrier can leave it before
                // this one arrives again.
                block.arrive(self.id, id, count)?;
            }
            // The block executes the wgmma, and advances `pc`, when all warps of the warpgroup have reached it.
            _ => self.status = Status::Wgmma,
        }
        Ok(true)
    }
}
