//! wgmma: products of a warpgroup with operands in shared memory, and what is in flight until the wait.

use crate::block::Block;
use crate::fault::{Fault, check};
use crate::isa::{Entry, Inst, Op, Wgmma};
use crate::matrix::{elements, rows};
use crate::shared::{START, Shared};
use crate::warp::{Status, Warp};
use std::collections::VecDeque;
use std::rc::Rc;

/// A wgmma that a warp has not waited for.
struct InFlight {
    d: Vec<u32>,
    a: Vec<u32>,
    /// Offsets of the 16-byte pieces of shared memory that it reads.
    reads: Rc<Vec<usize>>,
}

/// What a warp has in flight.
#[derive(Default)]
pub(crate) struct Flight {
    open: Vec<InFlight>,
    groups: VecDeque<Vec<InFlight>>,
    count: usize,
    /// Uses of a register of file W, as accumulator and as part of A.
    as_d: Vec<u16>,
    as_a: Vec<u16>,
    /// The count of fences when it was last read or written by another instruction.
    touched: Vec<u32>,
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

    /// Of every instruction of a kernel with wgmma: none may touch what is in flight.
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

    /// A wgmma begins.
    fn begins(&mut self, op: &Wgmma, reads: &Rc<Vec<usize>>, checks: u32) -> Result<(), Fault> {
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

/// Where the elements of an operand lie: offsets of 16-byte pieces, and by element.
struct Layout {
    base: u64,
    leading: u64,
    stride: u64,
    /// Bytes of a swizzled row; 16 without swizzle.
    row: u64,
    trans: bool,
}

impl Layout {
    fn new(desc: u64, trans: bool) -> Result<Layout, Fault> {
        let part = |shift: u32| (desc >> shift & 0x3fff) << 4;
        let row = match desc >> 62 {
            0 => 16,
            1 => 128,
            2 => 64,
            _ => 32,
        };
        if desc >> 49 & 7 != 0 {
            return Err(Fault::other(format!(
                "descriptor {desc:#x} has a base offset, which is not known here"
            )));
        }
        Ok(Layout { base: part(0), leading: part(16), stride: part(32), row, trans })
    }

    /// Address of an element: `mn` along M or N, `k` along K.
    fn at(&self, mn: u64, k: u64) -> u64 {
        // The dimension that is contiguous, and the other one.
        let (fast, slow) = if self.trans { (mn, k) } else { (k, mn) };
        let per = self.row / 2;
        let offset = if self.row == 16 {
            // Pieces of 8 x 8. K contiguous: `leading` is the step along K, `stride` along M or N. Otherwise `leading`
            // steps along K and `stride` along M or N, as well: both by the names of the canonical layouts.
            let (along_k, along_mn) = (self.leading, self.stride);
            let steps = if self.trans {
                fast / 8 * along_mn + slow / 8 * along_k
            } else {
                fast / 8 * along_k + slow / 8 * along_mn
            };
            steps + slow % 8 * 16 + fast % 8 * 2
        } else {
            slow / 8 * self.stride + slow % 8 * self.row + fast / per * self.leading + fast % per * 2
        };
        let at = self.base + offset;
        // The address's bits 7 to 9 are the row of the pattern, whatever the start.
        let swizzle = match self.row {
            128 => 0x70,
            64 => 0x30,
            32 => 0x10,
            _ => 0,
        };
        at ^ (at >> 3 & swizzle)
    }
}

fn first_lane(warp: &Warp, x: u32) -> Result<u64, Fault> {
    let all = &warp.regs.x[x as usize];
    if all.iter().any(|v| *v != all[0]) {
        return Err(Fault::other("a descriptor differs between lanes"));
    }
    Ok(all[0])
}

/// Runs a wgmma that all four warps of a group have reached.
pub(crate) fn run(block: &mut Block, op: &Wgmma, group: &mut [Warp]) -> Result<(), Fault> {
    let first = group[0].id as usize;
    let mut reads = Vec::new();
    let same = |x: u32, group: &[Warp]| -> Result<u64, Fault> {
        let desc = first_lane(&group[0], x)?;
        for warp in group {
            if first_lane(warp, x)? != desc {
                return Err(Fault::other("a descriptor differs between the warps of a group"));
            }
        }
        Ok(desc)
    };
    let fetch = |layout: &Layout, rows: usize, block: &Block, reads: &mut Vec<usize>| {
        let mut out = vec![[0f32; 16]; rows];
        for mn in 0..rows {
            for k in 0..16 {
                let at = layout.at(mn as u64, k as u64) & 0x3_ffff;
                let place = block.shared.place(at, 2, 2, 0)?;
                let bytes = block.shared.bytes(place, 2);
                reads.push((place + START as usize) / 16 * 16 - START as usize);
                out[mn][k] = elements(op.elem, u16::from_le_bytes([bytes[0], bytes[1]]).into())[0];
            }
        }
        Ok(out)
    };
    let b = fetch(&Layout::new(same(op.b, group)?, op.trans.1)?, op.n, block, &mut reads)?;
    let mut a = match op.a {
        Err(desc) => fetch(&Layout::new(same(desc, group)?, op.trans.0)?, 64, block, &mut reads)?,
        Ok(regs) => {
            let mut a = vec![[0f32; 16]; 64];
            for (w, warp) in group.iter().enumerate() {
                for (i, r) in regs.iter().enumerate() {
                    for lane in 0..32 {
                        let (row, column) = (w * 16 + lane / 4 + i % 2 * 8, lane % 4 * 2 + i / 2 * 8);
                        let pair = elements(op.elem, warp.regs.w[*r as usize][lane]);
                        a[row][column..column + 2].copy_from_slice(&pair);
                    }
                }
            }
            a
        }
    };
    if op.neg.0 != op.neg.1 {
        a.iter_mut().flatten().for_each(|v| *v = -*v);
    }
    reads.sort_unstable();
    reads.dedup();
    for at in &reads {
        block.shared.async_read(first, *at)?;
    }
    block.counters.wgmma_k16 += (op.n / 8 * group.len()) as u64;
    block.counters.wgmma_read += 16 * reads.len() as u64;
    let reads = Rc::new(reads);
    let adds = group[0].regs.p[op.scale_d as usize];
    if group.iter().any(|w| w.regs.p[op.scale_d as usize] != adds) || adds != 0 && adds != !0 {
        return Err(Fault::other("scale-d differs between lanes"));
    }
    for (w, warp) in group.iter_mut().enumerate() {
        warp.flight.begins(op, &reads, block.options.checks)?;
        let mine: &[[f32; 16]; 16] = a[w * 16..w * 16 + 16].try_into().expect("16 rows");
        for tile in 0..op.n / 8 {
            let bm: [[f32; 8]; 16] = std::array::from_fn(|k| std::array::from_fn(|j| b[tile * 8 + j][k]));
            let regs: [u32; 4] = std::array::from_fn(|i| op.d[tile * 4 + i]);
            let mut c = [[0f32; 8]; 16];
            if adds != 0 {
                for i in 0..4 {
                    for lane in 0..32 {
                        let v = warp.regs.w[regs[i] as usize][lane];
                        c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = f32::from_bits(v);
                    }
                }
            }
            rows(mine, &bm, &mut c);
            for i in 0..4 {
                let v = std::array::from_fn(|lane| c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2].to_bits());
                warp.regs.put_w(regs[i], &v, !0);
            }
        }
        warp.pc += 1;
        warp.status = Status::Ready;
    }
    Ok(())
}
