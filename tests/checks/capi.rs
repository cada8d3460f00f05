//! The C ABI with structures of any contents. All pointers are null or point into one block of memory, and
//! the lengths in a call are those of the memory behind its pointers, which a library can't check. A call is
//! either refused and writes nothing, or it writes only where its structures permit.
#![allow(unsafe_code, reason = "the C ABI is called")]

use core::ops::Range;

use arbitrary::{Result, Unstructured};
use chunkwise::capi::CW_ABI_VERSION;
use chunkwise::capi::args::*;
use chunkwise::capi::attention::*;
use chunkwise::capi::draft::*;
use chunkwise::capi::state::*;
use chunkwise::capi::status::*;

/// The bytes of the block. It is divided into 16 places for the memory of a call; the upper half is scratch.
const BLOCK: usize = 1 << 17;
const PLACE: usize = BLOCK / 16;
const SCRATCH: usize = 8;
const RECORD: usize = 14;

/// The caller's memory.
struct Block(Vec<u64>);

impl Block {
    fn new() -> Self {
        // These bytes are small numbers in every type: 2^-7 in f32, and 2^-7 or 1, and 0, in 16 bits.
        Self(vec![0x3c00_0000_3c00_0000; BLOCK / 8])
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: these are the bytes of the vector's integers.
        unsafe { core::slice::from_raw_parts(self.0.as_ptr().cast(), BLOCK) }
    }

    /// A pointer to a place, or sometimes null or a pointer to anywhere in the block, and the number of bytes
    /// from there to the end of the block.
    fn place(&mut self, u: &mut Unstructured<'_>, place: usize) -> Result<(*mut u8, usize)> {
        self.byte(u, place * PLACE)
    }

    /// The same for any byte.
    fn byte(&mut self, u: &mut Unstructured<'_>, at: usize) -> Result<(*mut u8, usize)> {
        if u.ratio(1, 60)? {
            return Ok((core::ptr::null_mut(), BLOCK));
        }
        let at = if u.ratio(1, 60)? { u.int_in_range(0..=BLOCK)? } else { at };
        Ok((self.0.as_mut_ptr().cast::<u8>().wrapping_add(at), BLOCK - at))
    }

    /// The range of bytes in the block that begins at a pointer.
    fn range(&self, data: *const u8, bytes: usize) -> Range<usize> {
        let at = data.addr().wrapping_sub(self.0.as_ptr().addr());
        if data.is_null() { 0..0 } else { at..at + bytes }
    }
}

/// The right number or, sometimes, any number.
fn mostly(u: &mut Unstructured<'_>, right: u32) -> Result<u32> {
    if u.ratio(1, 40)? { u.arbitrary() } else { Ok(right) }
}

/// The size of a structure or, sometimes, that of an older or a newer version, or any number.
fn size(u: &mut Unstructured<'_>, right: usize) -> Result<u32> {
    if u.ratio(1, 20)? { Ok(u.int_in_range(0..=right as u32 / 4 + 2)? * 4) } else { mostly(u, right as u32) }
}

/// One of the choices, which begin at 1, or sometimes any number.
fn choice(u: &mut Unstructured<'_>, choices: u32) -> Result<u32> {
    let right = u.int_in_range(1..=choices)?;
    mostly(u, right)
}

/// A small size or, sometimes, any size.
fn dim(u: &mut Unstructured<'_>, most: u64) -> Result<u64> {
    if u.ratio(1, 60)? { u.arbitrary() } else { u.int_in_range(0..=most) }
}

/// One of the choices from 0 to `most` if the option is used and 0 otherwise, or sometimes any number.
fn added(u: &mut Unstructured<'_>, used: bool, most: u32) -> Result<u32> {
    let right = if used || u.ratio(1, 20)? { u.int_in_range(0..=most)? } else { 0 };
    mostly(u, right)
}

fn attention(u: &mut Unstructured<'_>) -> Result<cw_attention> {
    let (update, gate) = (added(u, true, 1)?, added(u, true, 2)?);
    let plain = update == 0 && gate == 0;
    let encoder = plain && u.ratio(1, 4)?;
    let normalisers = if plain || u.ratio(1, 20)? { 3 } else { 2 - update.min(1) };
    Ok(cw_attention {
        update,
        gate,
        gate_map: added(u, gate > 0, 3)?,
        gate_lower: if u.ratio(1, 20)? { u.arbitrary()? } else { -5.0 },
        beta_map: added(u, update > 0, 2)?,
        head_order: added(u, true, 1)?,
        qk_norm: added(u, true, 1)?,
        qk_norm_eps: if u.ratio(1, 20)? { u.arbitrary()? } else { 1e-6 },
        not_causal: added(u, encoder, 1)?,
        size: size(u, size_of::<cw_attention>())?,
        abi: mostly(u, CW_ABI_VERSION)?,
        feature_map: choice(u, 3)?,
        normaliser: choice(u, normalisers)?,
        feature_eps: if u.ratio(1, 20)? { u.arbitrary()? } else { 1e-6 },
        normaliser_eps: if u.ratio(1, 20)? { u.arbitrary()? } else { 1e-6 },
        chunk: 1 + dim(u, 40)?.min(u64::MAX - 1),
        scale: if u.ratio(1, 20)? { u.arbitrary()? } else { 1.0 },
        compensated: mostly(u, 0)?,
        products: if u.ratio(1, 10)? { u.int_in_range(0..=3)? } else { CW_PRODUCTS_F32 },
        isa: if u.ratio(1, 10)? { u.int_in_range(0..=6)? } else { CW_ISA_DEFAULT },
        threads: mostly(u, 1)?.min(2),
    })
}

/// A tensor whose elements are all in the block, or whose pointer is null.
fn tensor(u: &mut Unstructured<'_>, block: &mut Block, place: usize, dims: [u64; 4]) -> Result<cw_tensor> {
    let dims = if u.ratio(1, 40)? { u.arbitrary()? } else { dims };
    let [_, t, h, d] = dims;
    let contiguous = [t.wrapping_mul(h).wrapping_mul(d), h.wrapping_mul(d), d, 1];
    let strides = if u.ratio(1, 20)? { u.arbitrary()? } else { contiguous };
    let (mut data, room) = block.place(u, place)?;
    // 4 bytes is the size of the largest type.
    if u128::from(room as u64) < reach(dims, strides).saturating_mul(4) {
        data = core::ptr::null_mut();
    }
    let (dtype, rank) = (choice(u, 3)?, mostly(u, 4)?);
    Ok(cw_tensor { data: data.cast(), dtype, rank, dims, strides })
}

/// The tensor g or beta if it is used and no tensor otherwise, or sometimes the reverse. Strides may be 0.
fn gate(
    u: &mut Unstructured<'_>,
    block: &mut Block,
    (place, used): (usize, bool),
    dims: [u64; 4],
) -> Result<cw_tensor> {
    if used == u.ratio(1, 40)? {
        return Ok(cw_call::DEFAULT.g);
    }
    let tensor = tensor(u, block, place, dims)?;
    let strides = if u.ratio(1, 4)? { [0, 0, tensor.strides[2], 1] } else { tensor.strides };
    // With a rank of 3 there is one element in each row, whatever the last dimension is.
    let rank = match tensor.dims[3] {
        1 if u.arbitrary()? => 3,
        1 => tensor.rank,
        _ => tensor.rank.max(4),
    };
    // The range of the tensor has been checked with larger strides.
    Ok(cw_tensor { strides, rank, ..tensor })
}

/// A pointer to a byte from which there is room for this many numbers of 4 bytes, or null.
fn array(u: &mut Unstructured<'_>, block: &mut Block, at: usize, len: u128) -> Result<*mut u8> {
    let (data, room) = block.byte(u, at)?;
    Ok(if (room as u128) < len.saturating_mul(4) { core::ptr::null_mut() } else { data })
}

/// The beginnings of sequences, mostly in order, and the number of sequences.
fn sequences(u: &mut Unstructured<'_>, block: &mut Block, count: u64, len: u64) -> Result<(*const u32, u64)> {
    let count = if u.ratio(1, 60)? { u.arbitrary()? } else { count };
    let data = array(u, block, 7 * PLACE + 4096, u128::from(count) + 1)?.cast::<u32>();
    if data.is_null() || !data.is_aligned() || count > 8 {
        return Ok((data, count));
    }
    let mut begins = [0u32; 9];
    for begin in &mut begins[1..] {
        *begin = u.int_in_range(0..=len.min(1000))? as u32;
    }
    begins[1..].sort_unstable();
    begins[count as usize] = len as u32;
    if u.ratio(1, 20)? {
        begins[u.int_in_range(0..=count as usize)?] = u.arbitrary()?;
    }
    // SAFETY: the pointer is aligned, and there is room for `count + 1` numbers in the block.
    unsafe { data.copy_from_nonoverlapping(begins.as_ptr(), count as usize + 1) };
    Ok((data, count))
}

/// The number of elements that a tensor spans.
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
    let ragged = if u.ratio(1, 4)? { Some(dim(u, 3)?) } else { None };
    let (batch, heads) = (if ragged.is_some() { 1 } else { dim(u, 2)? }, dim(u, 2)?);
    // Often there is one token, or one for each sequence, so that a decode is legal.
    let len = if u.arbitrary()? { ragged.unwrap_or(1) } else { dim(u, 20)? };
    let (key, value) = (dim(u, 10)?, dim(u, 10)?);
    let mut several = || -> Result<u64> { Ok(heads.wrapping_mul(if u.ratio(1, 4)? { 2 } else { 1 })) };
    let [q_heads, k_heads, v_heads] = [several()?, several()?, several()?];
    let state_heads = k_heads.max(v_heads);
    let mut rows = |place, heads, dim| tensor(u, &mut block, place, [batch, len, heads, dim]);
    let (q, k) = (rows(0, q_heads, key)?, rows(1, k_heads, key)?);
    let (v, o) = (rows(2, v_heads, value)?, rows(3, q_heads.max(state_heads), value)?);
    let row = if attention.gate == CW_GATE_KEY { key } else { 1 };
    let gated = (6, attention.gate != CW_GATE_NONE);
    let g = gate(u, &mut block, gated, [batch, len, state_heads, row])?;
    let delta = (7, attention.update != CW_UPDATE_LINEAR);
    let beta = gate(u, &mut block, delta, [batch, len, state_heads, 1])?;
    // These are the largest lengths that the library may use, whatever was drawn.
    let most_heads = u128::from(k.dims[2].max(v.dims[2]));
    let mut parameter = |at, len| -> Result<*mut u8> {
        let given = u.ratio(if attention.gate_map >= CW_GATE_MAP_SOFTPLUS { 3 } else { 1 }, 5)?;
        if given { array(u, &mut block, at, len) } else { Ok(core::ptr::null_mut()) }
    };
    let a_log = parameter(7 * PLACE + 1024, most_heads)?;
    let dt_bias = parameter(7 * PLACE + 2048, most_heads.saturating_mul(u128::from(q.dims[3].max(1))))?;
    let (sequences, sequence_count) = match ragged {
        Some(count) => sequences(u, &mut block, count, len)?,
        None => (core::ptr::null(), 0),
    };
    let (state_in, in_room) = block.place(u, 4)?;
    let op = u.int_in_range(0..=6)?;
    let verifies = matches!(op, 4 | 5) && u.ratio(9, 10)?;
    let (state_out, out_room) = if verifies {
        (core::ptr::null_mut(), BLOCK)
    } else if u.ratio(2, 3)? {
        (state_in, in_room)
    } else {
        block.place(u, 5)?
    };
    let (record, record_room) = block.place(u, RECORD)?;
    let (accepted, accepted_room) = block.byte(u, 7 * PLACE + 4096)?;
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
        g,
        beta,
        a_log: a_log.cast(),
        dt_bias: dt_bias.cast(),
        sequences,
        sequence_count,
    };

    // SAFETY: the structures are this function's, and the memory that they describe is in the block.
    unsafe {
        let (size, abi) = (size_of::<cw_sizes>() as u32, CW_ABI_VERSION);
        let mut sizes = cw_sizes { size, abi, ..core::mem::zeroed() };
        let asked = cw_attention_sizes(&attention, &call, &mut sizes);
        known(asked);

        // Mostly the state is a valid one.
        if u.ratio(9, 10)? {
            known(cw_state_init(state_in.cast(), sizes.state_bytes.min(in_room as u64)));
        }
        let numbers: [u32; 2] = [mostly(u, len as u32)?, u.int_in_range(0..=3)?];
        if !accepted.is_null() && accepted_room >= size_of_val(&numbers) {
            accepted.copy_from_nonoverlapping(numbers.as_ptr().cast(), size_of_val(&numbers));
        }
        let before = block.bytes().to_vec();
        let (first, count) = (dim(u, 6)?, dim(u, 6)?);
        let (record, room) = (record.cast::<f32>(), record_room as u64);
        let status = match op {
            0 => cw_forward(&attention, &call),
            1 => cw_decode(&attention, &call),
            2 => cw_forward_range(&attention, &call, first, count),
            3 => cw_decode_range(&attention, &call, first, count),
            4 => cw_verify(&attention, &call, record, room),
            5 => cw_verify_range(&attention, &call, record, room, first, count),
            // The call would read more accepted numbers than there are.
            _ if call.q.dims[0] > 2 || accepted_room < size_of_val(&numbers) => CW_SHAPE,
            _ => cw_commit(&attention, &call, record, room, accepted.cast()),
        };
        known(status);
        let mut may = Vec::new();
        if status == CW_OK {
            assert_eq!(asked, CW_OK, "a call runs whose sizes were refused");
            let bytes =
                reach(call.o.dims, call.o.strides) as usize * if call.o.dtype == CW_F32 { 4 } else { 2 };
            if op < 6 {
                may.push(block.range(call.o.data.cast(), bytes));
                may.push(block.range(scratch, scratch_room));
            }
            if matches!(op, 4 | 5) {
                may.push(block.range(record.cast(), record_room.min(sizes.record_bytes as usize)));
            } else {
                may.push(block.range(state_out, out_room.min(sizes.state_bytes as usize)));
            }
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

/// Checks that a status is one of the header, and not CW_PANIC.
fn known(status: i32) {
    assert!((CW_OK..CW_PANIC).contains(&status) || status == CW_CONFLICT, "{status}");
}
