//! Execution of the operations that the interpreter's loop leaves to a call.

use super::Warp;
use crate::block::Block;
use crate::fault::Fault;
use crate::isa::*;
use crate::lanes::each;

impl Warp {
    /// Executes an operation. Returns false if it has to wait for other lanes, and then it has done nothing.
    pub(super) fn execute(&mut self, block: &mut Block, op: &Op, mask: u32) -> Result<bool, Fault> {
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
            Op::CpCommit => each(mask).for_each(|i| self.commits[i] += 1),
            Op::CpWait { left } => self.copy_wait(block, *left, mask)?,
            Op::Activemask { d } => self.regs.put_w(*d, &[mask; 32], mask),
            Op::Clock { d } => self.put(*d, &[block.executed; 32], mask),
            Op::ProxyFence => block.shared.proxy_fence(self.id as usize),
            Op::Nop => {}
            Op::Trap => return Err(Fault::other("trap")),
            _ => return self.collective(block, op, mask),
        }
        Ok(true)
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
}
