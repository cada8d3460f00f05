//! The access of one lane: bounds and alignment are checked, and then the bytes are moved.

use super::resolve;
use crate::block::Block;
use crate::fault::{Fault, check};
use crate::isa::Space;
use crate::shared::Touch;
use crate::warp::Warp;

impl Warp {
    #[inline(always)]
    pub(super) fn read<const L: usize>(
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
                // SAFETY: `global_place` has found the bytes in the launch's map, whose allocations live while it runs.
                Ok(unsafe { std::ptr::with_exposed_provenance::<[u8; L]>(at as usize).read() })
            }
        }
    }

    #[inline(always)]
    pub(super) fn write<const L: usize>(
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
                // SAFETY: `global_place` has found the bytes in the launch's map, whose allocations live while it runs.
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
pub(super) fn outside(block: &Block, at: u64, len: u32, lane: u32) -> Fault {
    let place = block.map.describe(at);
    Fault::bounds(format!("access of {len} bytes outside of all allocations at {at:#x}, {place}"), lane)
}
