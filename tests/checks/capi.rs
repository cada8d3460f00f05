//! The C ABI on structures of any content. All pointers are null or into one block of memory, and what a call says of its
//! memory is true: that is the caller's promise, which no library can check. Then a call is refused and has written nothing,
//! or has written what it says and nothing else.
#![allow(unsafe_code, reason = "the C ABI is called")]

use core::ops::Range;

use arbitrary::{Result, Unstructured};
use chunkwise::capi::args::*;
use chunkwise::capi::attention::*;
use chunkwise::capi::status::*;
use chunkwise::capi::{CW_ABI_VERSION, cw_state_init};

/// Bytes of the block: places for what a call points to, and half of it for scratch.
const BLOCK: usize = 1 << 17;
const PLACE: usize = BLOCK / 16;
const SCRATCH: usize = 8;

/// Memory of the caller's.
struct Block(Vec<u64>);

impl Block {
    fn new() -> Self {
        // Small numbers of every type: halves of a word are 2^-7 in f32 and 0.0078 and 0 in 16 bits.
        Self(vec![0x3c00_0000_3c00_0000; BLOCK / 8])
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: integers, as long as they are.
        unsafe { core::slice::from_raw_parts(self.0.as_ptr().cast(), BLOCK) }
    }

    /// A place, with as many bytes as are there from it on; now and then null, or anywhere in the block.
    fn place(&mut self, u: &mut Unstructured<'_>, place: usize) -> Result<(*mut u8, usize)> {
        if u.ratio(1, 60)? {
            return Ok((core::ptr::null_mut(), BLOCK));
        }
        let at = if u.ratio(1, 60)? { u.int_in_range(0..=BLOCK)? } else { place * PLACE };
        Ok((self.0.as_mut_ptr().cast::<u8>().wrapping_add(at), BLOCK - at))
    }

    /// Where in the block so many bytes lie.
    fn range(&self, data: *const u8, bytes: usize) -> Range<usize> {
        let at = data.addr().wrapping_sub(self.0.as_ptr().addr());
        if data.is_null() { 0..0 } else { at..at + bytes }
    }
}

/// One that is right, or now and then any other.
fn mostly(u: &mut Unstructured<'_>, right: u32) -> Result<u32> {
    if u.ratio(1, 40)? { u.arbitrary() } else { Ok(right) }
}

/// The size of a structure, or now and then of an older or a newer one, or any other.
fn size(u: &mut Unstructured<'_>, right: usize) -> Result<u32> {
    if u.ratio(1, 20)? { Ok(u.int_in_range(0..=right as u32 / 4 + 2)? * 4) } else { mostly(u, right as u32) }
}

/// One of the choices from 1 on, or now and then any.
fn choice(u: &mut Unstructured<'_>, choices: u32) -> Result<u32> {
    let right = u.int_in_range(1..=choices)?;
    mostly(u, right)
}

/// A small size, or now and then any.
fn dim(u: &mut Unstructured<'_>, most: u64) -> Result<u64> {
    if u.ratio(1, 60)? { u.arbitrary() } else { u.int_in_range(0..=most) }
}

fn attention(u: &mut Unstructured<'_>) -> Result<cw_attention> {
    Ok(cw_attention {
        size: size(u, size_of::<cw_attention>())?,
        abi: mostly(u, CW_ABI_VERSION)?,
        feature_map: choice(u, 3)?,
        normaliser: choice(u, 3)?,
        feature_eps: if u.ratio(1, 20)? { u.arbitrary()? } else { 1e-6 },
        normaliser_eps: if u.ratio(1, 20)? { u.arbitrary()? } else { 1e-6 },
        chunk: 1 + dim(u, 40)?.min(u64::MAX - 1),
        scale: if u.ratio(1, 20)? { u.arbitrary()? } else { 1.0 },
        compensated: mostly(u, 0)?,
        products: if u.ratio(1, 10)? { u.int_in_range(0..=3)? } else { CW_PRODUCTS_F32 },
        isa: if u.ratio(1, 10)? { u.int_in_range(0..=6)? } else { CW_ISA_DEFAULT },
        threads: mostly(u, 1)?.min(2),
        reserved: mostly(u, 0)?,
    })
}

/// A tensor that lies in the block as far as it reaches, or nowhere.
fn tensor(u: &mut Unstructured<'_>, block: &mut Block, place: usize, dims: [u64; 4]) -> Result<cw_tensor> {
    let dims = if u.ratio(1, 40)? { u.arbitrary()? } else { dims };
    let [_, t, h, d] = dims;
    let contiguous = [t.wrapping_mul(h).wrapping_mul(d), h.wrapping_mul(d), d, 1];
    let strides = if u.ratio(1, 20)? { u.arbitrary()? } else { contiguous };
    let (mut data, room) = block.place(u, place)?;
    // The library knows no larger type.
    if u128::from(room as u64) < reach(dims, strides).saturating_mul(4) {
        data = core::ptr::null_mut();
    }
    let (dtype, rank) = (choice(u, 3)?, mostly(u, 4)?);
    Ok(cw_tensor { data: data.cast(), dtype, rank, dims, strides })
}

/// Elements from the first to the last.
fn reach(dims: [u64; 4], strides: [u64; 4]) -> u128 {
    if dims.contains(&0) {
        return 0;
    }
    let far = dims.iter().zip(strides).map(|(dim, stride)| u128::from(dim - 1) * u128::from(stride));
    far.fold(1, u128::saturating_add)
}

pub(super) fn check(u: &mut Unstructured<'_>) -> Result<()> {
    let mut block = Block::new();
    let attention = attention(u)?;
    let (batch, heads) = (dim(u, 2)?, dim(u, 2)?);
    let len = if u.arbitrary()? { 1 } else { dim(u, 20)? };
    let (key, value) = (dim(u, 10)?, dim(u, 10)?);
    let mut rows = |place, dim| tensor(u, &mut block, place, [batch, len, heads, dim]);
    let (q, k, v, o) = (rows(0, key)?, rows(1, key)?, rows(2, value)?, rows(3, value)?);
    let (state_in, in_room) = block.place(u, 4)?;
    let (state_out, out_room) = if u.ratio(2, 3)? { (state_in, in_room) } else { block.place(u, 5)? };
    let (scratch, scratch_room) = block.place(u, SCRATCH)?;
    let call = cw_call {
        size: size(u, size_of::<cw_call>())?,
        abi: mostly(u, CW_ABI_VERSION)?,
        q,
        k,
        v,
        o,
        state_in: state_in.cast(),
        state_out: state_out.cast(),
        state_bytes: in_room.min(out_room) as u64,
        scratch: scratch.cast(),
        scratch_bytes: scratch_room as u64,
    };

    // SAFETY: structures of this function; what they point to is in the block, as far as they say.
    unsafe {
        let (size, abi) = (size_of::<cw_sizes>() as u32, CW_ABI_VERSION);
        let mut sizes = cw_sizes { size, abi, ..core::mem::zeroed() };
        let asked = cw_attention_sizes(&attention, &call, &mut sizes);
        known(asked);

        // So that a state is one, mostly.
        if u.ratio(9, 10)? {
            known(cw_state_init(state_in.cast(), sizes.state_bytes.min(in_room as u64)));
        }
        let before = block.bytes().to_vec();
        let (first, count) = (dim(u, 6)?, dim(u, 6)?);
        let status = match u.int_in_range(0..=3)? {
            0 => cw_forward(&attention, &call),
            1 => cw_decode(&attention, &call),
            2 => cw_forward_range(&attention, &call, first, count),
            _ => cw_decode_range(&attention, &call, first, count),
        };
        known(status);
        let mut may = Vec::new();
        if status == CW_OK {
            assert_eq!(asked, CW_OK, "what runs has sizes");
            let bytes =
                reach(call.o.dims, call.o.strides) as usize * if call.o.dtype == CW_F32 { 4 } else { 2 };
            may.push(block.range(call.o.data.cast(), bytes));
            may.push(block.range(state_out, out_room.min(sizes.state_bytes as usize)));
            may.push(block.range(scratch, scratch_room));
        }
        for (at, (was, is)) in before.iter().zip(block.bytes()).enumerate() {
            assert!(
                was == is || may.iter().any(|range| range.contains(&at)),
                "byte {at}: {status}, {call:?}"
            );
        }
    }
    Ok(())
}

/// A status of the header, and never the one of a bug.
fn known(status: i32) {
    assert!((CW_OK..CW_PANIC).contains(&status), "{status}");
}
