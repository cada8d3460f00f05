//! The wgmmas that a warp has in flight, and the checks of the registers that they use.

use crate::fault::{Fault, check};
use crate::isa::{Entry, Inst, Op, Wgmma};
use crate::shared::Shared;
use std::collections::VecDeque;
use std::rc::Rc;

/// A wgmma that a warp has not waited for.
struct InFlight {
    d: Vec<u32>,
    a: Vec<u32>,
    /// The offsets of the 16-byte pieces of shared memory that it reads.
    reads: Rc<Vec<usize>>,
}

/// The wgmmas of a warp that are in flight.
#[derive(Default)]
pub(crate) struct Flight {
    /// Those that are not committed yet.
    open: Vec<InFlight>,
    /// Those that are committed, by group, the oldest group first.
    groups: VecDeque<Vec<InFlight>>,
    count: usize,
    /// How often each register of file W is an accumulator in flight.
    as_d: Vec<u16>,
    /// How often each register of file W is a part of A in flight.
    as_a: Vec<u16>,
    /// The number of fences at the last use of each register by another instruction.
    touched: Vec<u32>,
    /// The number of `wgmma.fence` that the warp has executed.
    fences: u32,
}

impl Flight {
    pub(crate) fn new(entry: &Entry) -> Flight {
        let n = if entry.has_wgmma { entry.w as usize } else { 0 };
        Flight { as_d: vec![0; n], as_a: vec![0; n], touched: vec![0; n], ..Flight::default() }
    }

    pub(crate) fn clear(&mut self) {
        self.open.clear();
        self.groups.clear();
        self.as_d.fill(0);
        self.as_a.fill(0);
        self.touched.fill(0);
        (self.fences, self.count) = (0, 0);
    }

    pub(crate) fn fence(&mut self) {
        self.fences += 1;
    }

    pub(crate) fn commit(&mut self) {
        self.groups.push_back(std::mem::take(&mut self.open));
    }

    pub(crate) fn wait(&mut self, left: u32, warp: usize, shared: &mut Shared) -> Result<(), Fault> {
        while self.groups.len() > left as usize {
            for op in self.groups.pop_front().into_iter().flatten() {
                op.d.iter().for_each(|r| self.as_d[*r as usize] -= 1);
                op.a.iter().for_each(|r| self.as_a[*r as usize] -= 1);
                self.count -= 1;
                for at in op.reads.iter() {
                    shared.async_read_ends(warp, *at)?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn at_exit(&self, checks: u32) -> Result<(), Fault> {
        if self.count > 0 && checks & check::PROXY != 0 {
            return Err(Fault::other("a warp ends with a wgmma that is not waited for"));
        }
        Ok(())
    }

    /// Checks that an instruction uses no register that is in flight. It is called for every instruction of a kernel
    /// with wgmma.
    #[inline]
    pub(crate) fn check(&mut self, entry: &Entry, inst: &Inst, checks: u32) -> Result<(), Fault> {
        if matches!(inst.op, Op::Wgmma(_)) {
            return Ok(());
        }
        for i in inst.uses.0 as usize..inst.uses.1 as usize {
            let r = entry.uses[i] as usize;
            if self.as_d[r] + self.as_a[r] > 0 && checks & check::PROXY != 0 {
                let role = if self.as_d[r] > 0 { "an accumulator" } else { "a part of A" };
                let does = if entry.writes[i] { "written" } else { "read" };
                return Err(Fault::other(format!("{role} of a wgmma that is not waited for is {does}")));
            }
            self.touched[r] = self.fences;
        }
        Ok(())
    }

    /// Records the start of a wgmma.
    pub(super) fn begins(&mut self, op: &Wgmma, reads: &Rc<Vec<usize>>, checks: u32) -> Result<(), Fault> {
        let a = op.a.as_ref().map_or(Vec::new(), |a| a.to_vec());
        for (list, other, role) in [(&op.d, &self.as_a, "accumulator"), (&a, &self.as_d, "A")] {
            for r in list.iter().map(|r| *r as usize) {
                if other[r] > 0 && checks & check::PROXY != 0 {
                    return Err(Fault::other(format!(
                        "{role} of a wgmma is another operand of one in flight"
                    )));
                }
                if self.touched[r] >= self.fences && checks & check::WG_FENCE != 0 {
                    return Err(Fault::other(format!(
                        "{role} of a wgmma with no wgmma.fence after the last use of the register"
                    )));
                }
            }
        }
        op.d.iter().for_each(|r| self.as_d[*r as usize] += 1);
        a.iter().for_each(|r| self.as_a[*r as usize] += 1);
        self.count += 1;
        self.open.push(InFlight { d: op.d.clone(), a, reads: reads.clone() });
        Ok(())
    }
}
