//! Matrix operations of a warp: ldmatrix, stmatrix and mma.sync.
//!
//! The lanes of a warp hold a matrix in fragments. Of a tile of 8 x 8 elements of 16 bits, lane l holds two neighbours
//! in one register: elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4. A is 16 x 16 and consists of four tiles: the two
//! of columns 0 to 7, then the two of columns 8 to 15. B is 16 x 8 and consists of two tiles, which are transposed. C
//! is 16 x 8 floats and has two registers for rows 0 to 7, then two for rows 8 to 15.

mod sums;

pub(crate) use sums::rows;

use crate::block::Block;
use crate::fault::Fault;
use crate::float::{from_bf16, from_f16};
use crate::isa::{Addr, Elem};
use crate::lanes::Regs;
use crate::shared::Touch;
use crate::warp::Warp;

impl Warp {
    /// Loads tiles. Each has eight rows of 16 bytes, whose addresses are those of eight lanes.
    pub(crate) fn load_matrix(
        &mut self,
        block: &mut Block,
        n: usize,
        trans: bool,
        d: &[u32; 4],
        addr: &Addr,
    ) -> Result<(), Fault> {
        let addrs = self.addresses(addr);
        for tile in 0..n {
            let mut rows = [[0u16; 8]; 8];
            for row in 0..8 {
                let lane = tile * 8 + row;
                let place = block.shared.place(shared(addrs[lane]), 16, 16, lane as u32)?;
                block.shared.touch(self.id as usize, place, 16, Touch::Read, lane as u32)?;
                let bytes = block.shared.bytes(place, 16);
                rows[row] = std::array::from_fn(|i| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]));
            }
            let v = std::array::from_fn(|lane| {
                let (g, t) = (lane / 4, lane % 4 * 2);
                let (low, high) =
                    if trans { (rows[t][g], rows[t + 1][g]) } else { (rows[g][t], rows[g][t + 1]) };
                u32::from(high) << 16 | u32::from(low)
            });
            self.regs.put_w(d[tile], &v, !0);
            block.counters.banks(&addrs, 0xff << (tile * 8), 16);
        }
        Ok(())
    }

    /// Stores tiles, as `load_matrix` loads them.
    pub(crate) fn store_matrix(
        &mut self,
        block: &mut Block,
        n: usize,
        trans: bool,
        a: &[u32; 4],
        addr: &Addr,
    ) -> Result<(), Fault> {
        let addrs = self.addresses(addr);
        for tile in 0..n {
            let v = self.regs.w[a[tile] as usize];
            let mut rows = [[0u16; 8]; 8];
            for lane in 0..32 {
                let (g, t) = (lane / 4, lane % 4 * 2);
                for (j, part) in [v[lane] as u16, (v[lane] >> 16) as u16].into_iter().enumerate() {
                    if trans {
                        rows[t + j][g] = part;
                    } else {
                        rows[g][t + j] = part;
                    }
                }
            }
            for row in 0..8 {
                let lane = tile * 8 + row;
                let place = block.shared.place(shared(addrs[lane]), 16, 16, lane as u32)?;
                block.shared.touch(self.id as usize, place, 16, Touch::Write, lane as u32)?;
                let to = block.shared.bytes_mut(place, 16);
                for i in 0..8 {
                    to[2 * i..2 * i + 2].copy_from_slice(&rows[row][i].to_le_bytes());
                }
            }
            block.counters.banks(&addrs, 0xff << (tile * 8), 16);
        }
        Ok(())
    }
}

/// Returns an address of shared memory, which may be generic.
fn shared(at: u64) -> u64 {
    if at & 0xffff_ffff_0000_0000 == crate::access::SHARED_TAG { at & 0xffff_ffff } else { at }
}

/// Returns the two elements of a register, or the one element of 32 bits.
pub(crate) fn elements(elem: Elem, v: u32) -> [f32; 2] {
    match elem {
        Elem::Bf16 => [from_bf16(v & 0xffff), from_bf16(v >> 16)],
        Elem::F16 => [from_f16(v & 0xffff), from_f16(v >> 16)],
        // Tensor cores ignore the low bits.
        Elem::Tf32 => [f32::from_bits(v & !0x1fff), 0.0],
    }
}

/// Computes D = A B + C for 16 rows, 8 columns and an inner dimension of k.
pub(crate) fn mma(
    r: &mut Regs,
    elem: Elem,
    k: usize,
    d: &[u32; 4],
    a: &[u32; 4],
    b: &[u32; 2],
    c: &[u32; 4],
) {
    let mut am = [[0f32; 16]; 16];
    let mut bm = [[0f32; 8]; 16];
    // A register has `per` elements, which are neighbours along K.
    let per = if elem == Elem::Tf32 { 1 } else { 2 };
    let tiles = k.div_ceil(4 * per);
    for i in 0..2 * tiles {
        let v = &r.w[a[i] as usize];
        for lane in 0..32 {
            let pair = elements(elem, v[lane]);
            let (row, column) = (lane / 4 + i % 2 * 8, lane % 4 * per + i / 2 * 4 * per);
            am[row][column..column + per].copy_from_slice(&pair[..per]);
        }
    }
    for i in 0..tiles {
        let v = &r.w[b[i] as usize];
        for lane in 0..32 {
            let pair = elements(elem, v[lane]);
            for j in 0..per {
                bm[lane % 4 * per + i * 4 * per + j][lane / 4] = pair[j];
            }
        }
    }
    let mut cm = accumulators(r, c);
    rows(&am, &bm, &mut cm);
    put_accumulators(r, d, &cm);
}

/// Collects the tile of 16 x 8 floats that a warp holds in four registers.
pub(crate) fn accumulators(r: &Regs, c: &[u32; 4]) -> [[f32; 8]; 16] {
    let mut out = [[0f32; 8]; 16];
    for i in 0..4 {
        let v = &r.w[c[i] as usize];
        for lane in 0..32 {
            out[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = f32::from_bits(v[lane]);
        }
    }
    out
}

/// Writes a tile of 16 x 8 floats to the four registers that hold it.
pub(crate) fn put_accumulators(r: &mut Regs, d: &[u32; 4], c: &[[f32; 8]; 16]) {
    for i in 0..4 {
        let v = std::array::from_fn(|lane| c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2].to_bits());
        r.put_w(d[i], &v, !0);
    }
}
