//! Atomics. The lanes of a warp execute one after the other.

use super::{part, resolve};
use crate::block::Block;
use crate::fault::Fault;
use crate::isa::*;
use crate::lanes::each;
use crate::shared::Touch;
use crate::warp::Warp;

/// Returns the value that an atomic leaves in memory.
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
        (AtomOp::Min, _) if less => old,
        (AtomOp::Max, _) if !less => old,
        (AtomOp::Min | AtomOp::Max | AtomOp::Exch, _) => a,
        (AtomOp::And, _) => old & a,
        (AtomOp::Or, _) => old | a,
        (AtomOp::Xor, _) => old ^ a,
        (AtomOp::Cas, _) if old == a => b,
        (AtomOp::Cas, _) => old,
        (AtomOp::Inc, _) if old >= a => 0,
        (AtomOp::Inc, _) => old + 1,
        (AtomOp::Dec, _) if old == 0 || old > a => a,
        (AtomOp::Dec, _) => old - 1,
    }
}

impl Warp {
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
}
