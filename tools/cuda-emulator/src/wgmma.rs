//! wgmma: matrix products of a warpgroup with operands in shared memory.

mod flight;
mod layout;

pub(crate) use flight::Flight;

use crate::block::Block;
use crate::fault::Fault;
use crate::isa::Wgmma;
use crate::matrix::{accumulators, elements, put_accumulators, rows};
use crate::shared::START;
use crate::warp::{Status, Warp};
use layout::Layout;
use std::rc::Rc;

/// Rows of A or columns of B, with their 16 elements along K.
type Operand = Vec<[f32; 16]>;

/// Executes a wgmma that all four warps of a warpgroup have reached.
pub(crate) fn run(block: &mut Block, op: &Wgmma, group: &mut [Warp]) -> Result<(), Fault> {
    let first = group[0].id as usize;
    let mut reads = Vec::new();
    let layout = Layout::new(descriptor(op.b, group)?, op.trans.1)?;
    let b = fetch(block, op, &layout, op.n, &mut reads)?;
    let mut a = match op.a {
        Err(desc) => {
            let layout = Layout::new(descriptor(desc, group)?, op.trans.0)?;
            fetch(block, op, &layout, 64, &mut reads)?
        }
        Ok(regs) => from_registers(op, &regs, group),
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
            let mut c = if adds != 0 { accumulators(&warp.regs, &regs) } else { [[0f32; 8]; 16] };
            rows(mine, &bm, &mut c);
            put_accumulators(&mut warp.regs, &regs, &c);
        }
        warp.pc += 1;
        warp.status = Status::Ready;
    }
    Ok(())
}

/// Returns a descriptor, which must be the same in all lanes of the warpgroup.
fn descriptor(x: u32, group: &[Warp]) -> Result<u64, Fault> {
    let desc = uniform(&group[0], x)?;
    for warp in group {
        if uniform(warp, x)? != desc {
            return Err(Fault::other("a descriptor differs between the warps of a group"));
        }
    }
    Ok(desc)
}

fn uniform(warp: &Warp, x: u32) -> Result<u64, Fault> {
    let all = &warp.regs.x[x as usize];
    if all.iter().any(|v| *v != all[0]) {
        return Err(Fault::other("a descriptor differs between lanes"));
    }
    Ok(all[0])
}

/// Reads an operand from shared memory, and adds the offsets of its 16-byte pieces to `reads`.
fn fetch(
    block: &Block,
    op: &Wgmma,
    layout: &Layout,
    rows: usize,
    reads: &mut Vec<usize>,
) -> Result<Operand, Fault> {
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
}

/// Collects A from the registers of the warps, of which each has 16 rows.
fn from_registers(op: &Wgmma, regs: &[u32; 4], group: &[Warp]) -> Operand {
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
