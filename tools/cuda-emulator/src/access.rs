//! Loads and stores of a warp.
//!
//! This file resolves the addresses of the lanes and converts between registers and bytes. `lane` has the checked
//! access of one lane, `atomic` has atomics, and `copy` has cp.async.

mod atomic;
mod copy;
mod lane;

pub(crate) use atomic::combine;

use crate::block::Block;
use crate::fault::Fault;
use crate::isa::*;
use crate::lanes::each;
use crate::warp::Warp;

/// The tag that turns an address of shared memory into a generic one. No address of the host looks like the sum.
pub const SHARED_TAG: u64 = 0xffff_0001_0000_0000;
/// The same tag for local memory.
pub const LOCAL_TAG: u64 = 0xffff_0002_0000_0000;
/// The same tag for parameters.
pub const PARAM_TAG: u64 = 0xffff_0003_0000_0000;

/// Returns element j of an array whose elements have `bytes` bytes.
#[inline(always)]
fn part(data: &[u8], j: usize, bytes: u32) -> u64 {
    match bytes {
        4 => u64::from(u32::from_le_bytes(data[4 * j..4 * j + 4].try_into().expect("4 bytes"))),
        8 => u64::from_le_bytes(data[8 * j..8 * j + 8].try_into().expect("8 bytes")),
        2 => u64::from(u16::from_le_bytes(data[2 * j..2 * j + 2].try_into().expect("2 bytes"))),
        _ => data[j].into(),
    }
}

/// Returns the space of an address, which a generic address contains as a tag, and the address in that space.
#[inline(always)]
fn resolve(space: Space, at: u64) -> (Space, u64) {
    match (space, at & 0xffff_ffff_0000_0000) {
        (Space::Generic, SHARED_TAG) => (Space::Shared, at & 0xffff_ffff),
        (Space::Generic, LOCAL_TAG) => (Space::Local, at & 0xffff_ffff),
        (Space::Generic, PARAM_TAG) => (Space::Param, at & 0xffff_ffff),
        (Space::Generic, _) => (Space::Global, at),
        (space, _) => (space, at),
    }
}

impl Warp {
    /// Returns the address of each lane.
    pub(crate) fn addresses(&self, addr: &Addr) -> [u64; 32] {
        match addr.base {
            Some(Reg::W(w)) => self.regs.w[w as usize].map(|a| u64::from(a.wrapping_add(addr.offset as u32))),
            Some(Reg::X(x)) => self.regs.x[x as usize].map(|a| a.wrapping_add(addr.offset as u64)),
            _ => [addr.offset as u64; 32],
        }
    }

    /// Counts a request as one of the space that its first lane accesses.
    fn count(&self, block: &mut Block, space: Space, addrs: &[u64; 32], mask: u32, total: u32, store: bool) {
        match resolve(space, addrs[mask.trailing_zeros() as usize]).0 {
            Space::Global => {
                let bytes = u64::from(total * mask.count_ones());
                if store {
                    block.counters.global_written += bytes;
                } else {
                    block.counters.global_read += bytes;
                }
                block.counters.sectors(addrs, mask);
            }
            Space::Shared => block.counters.banks(addrs, mask, total),
            _ => {}
        }
    }

    pub(crate) fn load(
        &mut self,
        block: &mut Block,
        (space, bytes, n): (Space, u32, u32),
        d: &[Option<Reg>; 4],
        sext: bool,
        addr: &Addr,
        mask: u32,
    ) -> Result<(), Fault> {
        let addrs = self.addresses(addr);
        match bytes * n {
            1 => self.load_of::<1>(block, space, bytes, &d[..1], sext, &addrs, mask),
            2 => self.load_of::<2>(block, space, bytes, &d[..n as usize], sext, &addrs, mask),
            4 => self.load_of::<4>(block, space, bytes, &d[..n as usize], sext, &addrs, mask),
            8 => self.load_of::<8>(block, space, bytes, &d[..n as usize], sext, &addrs, mask),
            _ => self.load_of::<16>(block, space, bytes, &d[..n as usize], sext, &addrs, mask),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a load has that many operands")]
    fn load_of<const L: usize>(
        &mut self,
        block: &mut Block,
        space: Space,
        bytes: u32,
        d: &[Option<Reg>],
        sext: bool,
        addrs: &[u64; 32],
        mask: u32,
    ) -> Result<(), Fault> {
        let mut data = [[0u8; L]; 32];
        for i in each(mask) {
            data[i] = self.read(block, space, addrs[i], i as u32)?;
        }
        self.count(block, space, addrs, mask, L as u32, false);
        let shift = 64 - bytes * 8;
        for (j, d) in d.iter().enumerate() {
            let Some(d) = *d else { continue };
            let mut v = [0u64; 32];
            for i in 0..32 {
                v[i] = part(&data[i], j, bytes);
            }
            if sext {
                v = v.map(|v| ((v << shift) as i64 >> shift) as u64);
            }
            self.put(d, &v, mask);
        }
        Ok(())
    }

    pub(crate) fn store(
        &mut self,
        block: &mut Block,
        (space, bytes, n): (Space, u32, u32),
        a: &[Reg; 4],
        addr: &Addr,
        mask: u32,
    ) -> Result<(), Fault> {
        let (addrs, a) = (self.addresses(addr), &a[..n as usize]);
        match bytes * n {
            1 => self.store_of::<1>(block, space, bytes, a, &addrs, mask),
            2 => self.store_of::<2>(block, space, bytes, a, &addrs, mask),
            4 => self.store_of::<4>(block, space, bytes, a, &addrs, mask),
            8 => self.store_of::<8>(block, space, bytes, a, &addrs, mask),
            _ => self.store_of::<16>(block, space, bytes, a, &addrs, mask),
        }
    }

    fn store_of<const L: usize>(
        &mut self,
        block: &mut Block,
        space: Space,
        bytes: u32,
        a: &[Reg],
        addrs: &[u64; 32],
        mask: u32,
    ) -> Result<(), Fault> {
        for i in each(mask) {
            let mut data = [0u8; L];
            for (j, a) in a.iter().enumerate() {
                let v = self.wide(*a, i).to_le_bytes();
                match bytes {
                    4 => data[4 * j..4 * j + 4].copy_from_slice(&v[..4]),
                    8 => data[8 * j..8 * j + 8].copy_from_slice(&v),
                    2 => data[2 * j..2 * j + 2].copy_from_slice(&v[..2]),
                    _ => data[j] = v[0],
                }
            }
            self.write(block, space, addrs[i], data, i as u32)?;
        }
        self.count(block, space, addrs, mask, L as u32, true);
        Ok(())
    }
}
