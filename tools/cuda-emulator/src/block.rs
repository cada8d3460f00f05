//! A block: the order in which its warps run, and its barriers.

use crate::counters::Counters;
use crate::fault::Fault;
use crate::isa::{CLASSES, Class, Entry, Op};
use crate::launch::{Options, Policy};
use crate::memory::Map;
use crate::shared::{Arrived, Shared};
use crate::warp::{Status, Warp};

/// The state that the warps of a block share. It is reused for all blocks of a launch.
pub struct Block<'a> {
    /// The kernel.
    pub entry: &'a Entry,
    /// The arguments of the kernel.
    pub params: &'a [u8],
    /// The global memory that the kernel may access.
    pub map: Map,
    /// The shared memory of the block.
    pub shared: Shared,
    /// The options of the launch.
    pub options: Options,
    /// The index of the block in the grid.
    pub ctaid: [u32; 3],
    /// The number of blocks in each dimension of the grid.
    pub nctaid: [u32; 3],
    /// The number of threads in each dimension of the block.
    pub ntid: [u32; 3],
    /// The number of threads of the block.
    pub threads: u32,
    /// The size of dynamic shared memory in bytes.
    pub dynamic_shared: u32,
    /// The counts of the launch.
    pub counters: Counters,
    pub(crate) classes: [u64; CLASSES],
    pub(crate) mma_k8: u64,
    pub(crate) mma_k4: u64,
    /// The number of warp-instructions that the launch has executed.
    pub executed: u64,
    pub(crate) random: Random,
    pub(crate) arrivals: Vec<Arrival>,
}

/// The arrival of a warp at a barrier that it does not wait for (`bar.arrive`).
pub(crate) struct Arrival {
    warp: u32,
    id: u32,
    count: u32,
    before: Arrived,
}

/// A generator of random numbers for the order of warps and blocks.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Creates a generator from a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns a number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 33) as usize) % n.max(1)
    }

    /// Returns the numbers from 0 to n - 1 in a random order.
    pub fn order(&mut self, n: usize) -> Vec<usize> {
        let mut list: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            list.swap(i, self.below(i + 1));
        }
        list
    }
}

/// Gives the warps at a barrier the results of their reductions.
fn vote(warps: &mut [Warp], here: &[usize]) {
    let has = |warp: &Warp| {
        warp.vote.map(|v| {
            let holds = warp.regs.p[v.p as usize] & warp.live;
            if v.all { holds == warp.live } else { holds != 0 }
        })
    };
    let answers: Vec<bool> = here.iter().filter_map(|j| has(&warps[*j])).collect();
    for j in here {
        if let Some(v) = warps[*j].vote.take() {
            let holds = if v.all { answers.iter().all(|a| *a) } else { answers.iter().any(|a| *a) };
            warps[*j].regs.p[v.d as usize] = if holds { !0 } else { 0 };
        }
    }
}

impl Block<'_> {
    /// Runs the block until all its warps have ended.
    pub fn run(&mut self, warps: &mut [Warp]) -> Result<(), Fault> {
        self.shared.begin();
        self.arrivals.clear();
        for warp in warps.iter_mut() {
            warp.begin(self);
        }
        loop {
            let ready: Vec<usize> = (0..warps.len()).filter(|i| warps[*i].status == Status::Ready).collect();
            if ready.is_empty() {
                if warps.iter().all(|w| w.status == Status::Done) {
                    break;
                }
                if !self.release(warps)? {
                    return Err(self.deadlock(warps));
                }
                continue;
            }
            let (pick, quota) = match self.options.policy {
                Policy::Ascending => (ready[0], u64::MAX),
                Policy::Descending => (ready[ready.len() - 1], u64::MAX),
                Policy::Random => (ready[self.random.below(ready.len())], u64::MAX),
                Policy::Interleaved => {
                    (ready[self.random.below(ready.len())], 1 + self.random.below(24) as u64)
                }
            };
            if let Err(fault) = warps[pick].run(self, quota) {
                return Err(self.locate(fault, &warps[pick]));
            }
            if warps[pick].status != Status::Ready || !self.arrivals.is_empty() {
                self.release(warps)?;
            }
        }
        if let Some(left) = self.arrivals.first() {
            let fault = Fault::other(format!("an arrival at barrier {} that no one waits for", left.id));
            return Err(self.locate(fault, &warps[left.warp as usize]));
        }
        self.counters.blocks += 1;
        Ok(())
    }

    /// Counts a warp-instruction, and fails if the launch has spent its budget.
    #[inline(always)]
    pub(crate) fn count(&mut self, class: Class) -> Result<(), Fault> {
        self.executed += 1;
        if self.executed > self.options.budget {
            let text = format!("the budget of {} warp-instructions is spent", self.options.budget);
            return Err(Fault::other(text));
        }
        self.classes[class as usize] += 1;
        Ok(())
    }

    /// Records the arrival of a warp at a barrier that it does not wait for.
    pub(crate) fn arrive(&mut self, warp: u32, id: u32, count: u32) -> Result<(), Fault> {
        if self.arrivals.iter().any(|a| a.warp == warp && a.id == id) {
            return Err(Fault::other(format!("a warp arrives at barrier {id} twice before others have")));
        }
        let before = self.shared.arrive(warp as usize);
        self.arrivals.push(Arrival { warp, id, count, before });
        Ok(())
    }

    /// Releases the warps that have what they wait for. Returns whether there were any.
    fn release(&mut self, warps: &mut [Warp]) -> Result<bool, Fault> {
        let mut any = false;
        let live = warps.iter().filter(|w| w.status != Status::Done).count() as u32;
        for i in 0..warps.len() {
            match warps[i].status {
                Status::Barrier { id, count } => any |= self.barrier(warps, i, id, count, live)?,
                Status::Wgmma if i % 4 == 0 && i + 4 <= warps.len() => {
                    let group = &mut warps[i..i + 4];
                    let pc = group[0].pc;
                    if group.iter().all(|w| w.status == Status::Wgmma && w.pc == pc) {
                        let entry = self.entry;
                        if let Op::Wgmma(op) = &entry.code[pc as usize].op {
                            let result = crate::wgmma::run(self, op, group);
                            result.map_err(|f| self.locate(f, &warps[i]))?;
                        }
                        any = true;
                    }
                }
                _ => {}
            }
        }
        Ok(any)
    }

    /// Completes barrier `id`, at which warp `i` waits for `count` threads, if enough warps are there. Returns whether
    /// that was so.
    fn barrier(
        &mut self,
        warps: &mut [Warp],
        i: usize,
        id: u32,
        count: Option<u32>,
        live: u32,
    ) -> Result<bool, Fault> {
        let waits = |w: &Warp| matches!(w.status, Status::Barrier { id: other, .. } if other == id);
        let here: Vec<usize> = (i..warps.len()).filter(|j| waits(&warps[*j])).collect();
        let arrived: Vec<&Arrival> = self.arrivals.iter().filter(|a| a.id == id).collect();
        let other = here.iter().copied().find(|j| warps[*j].status != warps[i].status);
        let other =
            other.or_else(|| arrived.iter().find(|a| Some(a.count) != count).map(|a| a.warp as usize));
        if let Some(j) = other {
            let fault = Fault::other(format!("warps are at barrier {id} for different counts"));
            return Err(self.locate(fault, &warps[j]));
        }
        let full = match count {
            // A warp that has ended is not waited for.
            None => here.len() as u32 >= live,
            Some(count) if count % 32 != 0 => {
                let fault = Fault::other(format!("barrier {id} for {count} threads, no multiple of 32"));
                return Err(self.locate(fault, &warps[i]));
            }
            Some(count) => (here.len() + arrived.len()) as u32 * 32 >= count,
        };
        if full {
            let before: Vec<_> = arrived.iter().map(|a| a.before.clone()).collect();
            self.arrivals.retain(|a| a.id != id);
            self.shared.join(here.iter().fold(0, |m, j| m | 1 << j), &before);
            vote(warps, &here);
            here.iter().for_each(|j| warps[*j].status = Status::Ready);
        }
        Ok(full)
    }

    /// Adds the place of a fault to its text.
    fn locate(&self, mut fault: Fault, warp: &Warp) -> Fault {
        let lane = fault.lane.map_or(String::new(), |l| format!(" lane {l}"));
        let [x, y, z] = self.ctaid;
        let (name, line) = (&self.entry.name, warp.line(self.entry));
        fault.text =
            format!("{} [{name}, block ({x},{y},{z}), warp {}{lane}, line {line}]", fault.text, warp.id);
        fault
    }

    fn deadlock(&self, warps: &[Warp]) -> Fault {
        let list: Vec<String> = warps
            .iter()
            .map(|w| match w.status {
                Status::Barrier { id, .. } => {
                    format!("warp {} at barrier {id}, line {}", w.id, w.line(self.entry))
                }
                Status::Wgmma => format!("warp {} at wgmma, line {}", w.id, w.line(self.entry)),
                _ => format!("warp {} ended", w.id),
            })
            .collect();
        let [x, y, z] = self.ctaid;
        Fault::other(format!("deadlock: {} [{}, block ({x},{y},{z})]", list.join("; "), self.entry.name))
    }
}
