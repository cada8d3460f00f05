//! Loads, stores, atomics and cp.async of a warp: registers and addresses in, memory out or the other way round.

use crate::block::Block;
use crate::fault::{Fault, check};
use crate::isa::*;
use crate::lanes::each;
use crate::shared::Touch;
use crate::warp::{Pending, Warp};

/// What is added to an address of shared memory to make it generic. No host address looks like it.
pub const SHARED_TAG: u64 = 0xffff_0001_0000_0000;
/// The same for local memory.
pub const LOCAL_TAG: u64 = 0xffff_0002_0000_0000;
/// The same for parameters.
pub const PARAM_TAG: u64 = 0xffff_0003_0000_0000;

/// What an atomic leaves in memory.
pub(crate) fn combine(op: AtomOp, ty: Ty, old: u64, a: u64, b: u64) -> u64 {
    let (f, g) = (f32::from_bits(old as u32), f32::from_bits(a as u32));
    let less = match ty {
        Ty::S32 => (old as i32) < a as i32,
        Ty::S64 => (old as i64) < a as i64,
        _ => old < a,
    };
    match (op, ty) {
        (AtomOp::Add, Ty::F32) => (f + g).to_bits().into(),
        (AtomOp::Add, Ty::F64) => (f64::from_bits(old) + f64::from_bits(a)).to_bits(),
        (AtomOp::Add, _) => old.wrapping_add(a),
        (AtomOp::Min, _) => {
            if less {
                old
            } else {
                a
            }
        }
        (AtomOp::Max, _) => {
            if less {
                a
            } else {
                old
            }
        }
        (AtomOp::And, _) => old & a,
        (AtomOp::Or, _) => old | a,
        (AtomOp::Xor, _) => old ^ a,
        (AtomOp::Exch, _) => a,
        (AtomOp::Cas, _) => {
            if old == a {
                b
            } else {
                old
            }
        }
        (AtomOp::Inc, _) => {
            if old >= a {
                0
            } else {
                old + 1
            }
        }
        (AtomOp::Dec, _) => {
            if old == 0 || old > a {
                a
            } else {
                old - 1
            }
        }
    }
}

/// Element j of `bytes` bytes.
#[inline(always)]
fn part(data: &[u8], j: usize, bytes: u32) -> u64 {
    match bytes {
        4 => u64::from(u32::from_le_bytes(data[4 * j..4 * j + 4].try_into().expect("4 bytes"))),
        8 => u64::from_le_bytes(data[8 * j..8 * j + 8].try_into().expect("8 bytes")),
        2 => u64::from(u16::from_le_bytes(data[2 * j..2 * j + 2].try_into().expect("2 bytes"))),
        _ => data[j].into(),
    }
}

/// Space of a generic address, and the address within it.
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
    pub(crate) fn addresses(&self, addr: &Addr) -> [u64; 32] {
        match addr.base {
            Some(Reg::W(w)) => self.regs.w[w as usize].map(|a| u64::from(a.wrapping_add(addr.offset as u32))),
            Some(Reg::X(x)) => self.regs.x[x as usize].map(|a| a.wrapping_add(addr.offset as u64)),
            _ => [addr.offset as u64; 32],
        }
    }

    /// Counts a request by the space of its first lane.
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

    #[inline(always)]
    fn read<const L: usize>(
        &mut self,
        block: &mut Block,
        space: Space,
        at: u64,
        lane: u32,
    ) -> Result<[u8; L], Fault> {
        let from = |bytes: &[u8]| bytes.try_into().expect("as many bytes");
        match resolve(space, at) {
            (Space::Shared, at) => {
                let place = block.shared.place(at, L, L as u64, lane)?;
                block.shared.touch(self.id as usize, place, L, Touch::Read, lane)?;
                Ok(from(block.shared.bytes(place, L)))
            }
            (Space::Local, at) => {
                let place = self.local_place(block, at, L as u32, lane)?;
                Ok(from(&self.local[place..place + L]))
            }
            (Space::Param, at) => {
                let end = at.checked_add(L as u64).filter(|end| *end <= block.params.len() as u64);
                let Some(end) = end else {
                    return Err(Fault::bounds(
                        format!("read of {L} bytes outside of the parameters at {at}"),
                        lane,
                    ));
                };
                Ok(from(&block.params[at as usize..end as usize]))
            }
            (_, at) => {
                global_place(block, at, L as u32, lane)?;
                // SAFETY: just found in the launch's map, whose allocations live while it runs.
                Ok(unsafe { std::ptr::with_exposed_provenance::<[u8; L]>(at as usize).read() })
            }
        }
    }

    #[inline(always)]
    fn write<const L: usize>(
        &mut self,
        block: &mut Block,
        space: Space,
        at: u64,
        v: [u8; L],
        lane: u32,
    ) -> Result<(), Fault> {
        match resolve(space, at) {
            (Space::Shared, at) => {
                let place = block.shared.place(at, L, L as u64, lane)?;
                block.shared.touch(self.id as usize, place, L, Touch::Write, lane)?;
                block.shared.bytes_mut(place, L).copy_from_slice(&v);
            }
            (Space::Local, at) => {
                let place = self.local_place(block, at, L as u32, lane)?;
                self.local[place..place + L].copy_from_slice(&v);
            }
            (Space::Param, _) => return Err(Fault::bounds("store to a parameter".to_string(), lane)),
            (_, at) => {
                global_place(block, at, L as u32, lane)?;
                // SAFETY: just found in the launch's map, whose allocations live while it runs.
                unsafe { std::ptr::with_exposed_provenance_mut::<[u8; L]>(at as usize).write(v) };
            }
        }
        Ok(())
    }

    fn local_place(&self, block: &Block, at: u64, len: u32, lane: u32) -> Result<usize, Fault> {
        let size = u64::from(block.entry.local_bytes);
        if at.checked_add(len.into()).is_none_or(|end| end > size) {
            return Err(Fault::bounds(
                format!("access of {len} bytes outside of local memory at {at:#x}"),
                lane,
            ));
        }
        if !at.is_multiple_of(len.into()) && block.options.checks & check::ALIGN != 0 {
            return Err(Fault::align(
                format!("misaligned access of {len} bytes of local memory at {at:#x}"),
                lane,
            ));
        }
        Ok((u64::from(lane) * size + at) as usize)
    }

    #[expect(clippy::too_many_arguments, reason = "an atomic has that many operands")]
    pub(crate) fn atomic(
        &mut self,
        block: &mut Block,
        (space, op, ty): (Space, AtomOp, Ty),
        d: Option<Reg>,
        addr: &Addr,
        a: Reg,
        b: Option<Reg>,
        mask: u32,
    ) -> Result<(), Fault> {
        let (addrs, len) = (self.addresses(addr), ty.bits() as usize / 8);
        let mut old = [0u64; 32];
        for i in each(mask) {
            let lane = i as u32;
            let (x, y) = (self.wide(a, i), b.map_or(0, |b| self.wide(b, i)));
            let (place, at) = resolve(space, addrs[i]);
            if place == Space::Shared {
                let place = block.shared.place(at, len, len as u64, lane)?;
                block.shared.touch(self.id as usize, place, len, Touch::Atomic, lane)?;
                let bytes = block.shared.bytes_mut(place, len);
                old[i] = part(bytes, 0, len as u32);
                bytes.copy_from_slice(&combine(op, ty, old[i], x, y).to_le_bytes()[..len]);
            } else if len == 4 {
                old[i] = u32::from_le_bytes(self.read(block, space, addrs[i], lane)?).into();
                let new = combine(op, ty, old[i], x, y) as u32;
                self.write(block, space, addrs[i], new.to_le_bytes(), lane)?;
            } else {
                old[i] = u64::from_le_bytes(self.read(block, space, addrs[i], lane)?);
                self.write(block, space, addrs[i], combine(op, ty, old[i], x, y).to_le_bytes(), lane)?;
            }
        }
        self.count(block, space, &addrs, mask, len as u32, false);
        self.count(block, space, &addrs, mask, len as u32, true);
        if let Some(d) = d {
            self.put(d, &old, mask);
        }
        Ok(())
    }

    pub(crate) fn copy_async(
        &mut self,
        block: &mut Block,
        dst: &Addr,
        src: &Addr,
        bytes: u32,
        size: Option<u32>,
        mask: u32,
    ) -> Result<(), Fault> {
        let (dsts, srcs) = (self.addresses(dst), self.addresses(src));
        let (mut reading, mut read) = (0, 0);
        for i in each(mask) {
            let (lane, at) = (i as u32, srcs[i]);
            let size = size.map_or(bytes, |s| self.regs.w[s as usize][i]);
            if size > bytes {
                return Err(Fault::of_lane(format!("cp.async of {size} bytes, the most are {bytes}"), lane));
            }
            let place = block.shared.place(dsts[i], bytes as usize, bytes.into(), lane)?;
            if !at.is_multiple_of(bytes.into()) && block.options.checks & check::ALIGN != 0 {
                return Err(Fault::align(format!("misaligned source of cp.async at {at:#x}"), lane));
            }
            if size > 0 {
                if !block.map.holds(at, size.into()) {
                    return Err(outside(block, at, size, lane));
                }
                reading |= 1 << i;
                read += u64::from(size);
            }
            block.shared.copy_begins(self.id as usize, place, bytes as usize, lane)?;
            let (dst, group) = (place as u32, self.commits[i]);
            self.copies.push(Pending { lane, group, dst, src: at, bytes, size });
        }
        if reading != 0 {
            block.counters.sectors(&srcs, reading);
            block.counters.global_read += read;
        }
        block.counters.banks(&dsts, mask, bytes);
        Ok(())
    }

    /// Lets the copies arrive that a wait of these lanes covers.
    pub(crate) fn copy_wait(&mut self, block: &mut Block, left: Option<u32>, mask: u32) -> Result<(), Fault> {
        let mut copies = std::mem::take(&mut self.copies);
        let mut result = Ok(());
        copies.retain(|c| {
            let done = self.commits[c.lane as usize];
            // Groups are counted from 0; of `done` committed ones, the last `left` may go on.
            let covered = left.is_none_or(|left| c.group < done.saturating_sub(left));
            if mask >> c.lane & 1 == 0 || !covered || result.is_err() {
                return true;
            }
            let (dst, bytes) = (c.dst as usize, c.bytes as usize);
            result = block.shared.copy_ends(self.id as usize, dst, bytes, c.lane);
            let to = block.shared.bytes_mut(dst, bytes);
            to.fill(0);
            let from = std::ptr::with_exposed_provenance::<u8>(c.src as usize);
            // SAFETY: `copy_async` found these bytes in the launch's map, which stays as it is while the launch runs;
            // `to` is memory of the emulator's own.
            unsafe { to.as_mut_ptr().copy_from_nonoverlapping(from, c.size as usize) };
            false
        });
        self.copies = copies;
        result
    }
}

#[inline(always)]
fn global_place(block: &mut Block, at: u64, len: u32, lane: u32) -> Result<(), Fault> {
    if !block.map.holds(at, len.into()) {
        return Err(outside(block, at, len, lane));
    }
    if at & u64::from(len - 1) != 0 && block.options.checks & check::ALIGN != 0 {
        return Err(Fault::align(
            format!("misaligned access of {len} bytes of global memory at {at:#x}"),
            lane,
        ));
    }
    Ok(())
}

#[cold]
fn outside(block: &Block, at: u64, len: u32, lane: u32) -> Fault {
    let place = block.map.describe(at);
    Fault::bounds(format!("access of {len} bytes outside of all allocations at {at:#x}, {place}"), lane)
}
