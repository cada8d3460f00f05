//! The structures that kernels take by value, written once: `scripts/ptx` derives the kernels' `args.cuh`
//! from this file, and tests that launch kernels without the library include it. A field that a kernel reads
//! therefore has a line of its own, `pub name: type,`, where the type is one of those below, `i64`, `i32` or
//! `f32`.

use std::ffi::c_void;
use std::marker::PhantomData;

/// A device address. For the kernel it is a pointer of the type `P`, for example `*const f32`. Zero is null.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Address<P>(u64, PhantomData<P>);

impl<P> From<u64> for Address<P> {
    fn from(address: u64) -> Self {
        Self(address, PhantomData)
    }
}

/// Distances in elements from one sequence, token and head to the next.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Strides {
    pub batch: i64,
    pub token: i64,
    pub head: i64,
}

/// The arguments of the kernels of prefill.cu and hopper.cu.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct PrefillArgs {
    /// `[B, T, H, K]` by its strides, as is k; v and o are `[B, T, H, V]` by theirs.
    pub q: Address<*const c_void>,
    pub k: Address<*const c_void>,
    pub v: Address<*const c_void>,
    pub o: Address<*mut c_void>,
    /// The state before, `[B, H, state_len]`; null for a state of zeros.
    pub initial: Address<*const f32>,
    /// `[B, H, 2 K + 1]`: z, the chunk's z and the count of `initial`, where writing `last` may overwrite
    /// them; else null.
    pub sums: Address<*const f32>,
    /// The state after, `[B, H, state_len]`; or null.
    pub last: Address<*mut f32>,
    /// `[B, H, K V]`: S of the finished chunks, where a chunk is more than a tile and there is no `last`.
    pub finished: Address<*mut f32>,
    /// `[segments, B, H, K V + K]`, or K V without a normaliser: the sums of each segment, then the sums
    /// before each segment; or null.
    pub segments: Address<*mut f32>,
    pub q_strides: Strides,
    pub k_strides: Strides,
    pub v_strides: Strides,
    pub o_strides: Strides,
    /// Elements of the state of one head.
    pub state_len: i64,
    /// T, the number of tokens.
    pub len: i64,
    /// The number of tokens in a segment.
    pub segment_len: i64,
    /// H, the number of heads.
    pub heads: i32,
    /// K, the elements of a row of q and k.
    pub key: i32,
    /// V, the elements of a row of v and o.
    pub value: i32,
    /// The number of tokens in a chunk, or 0 where there are no chunks.
    pub chunk: i32,
    /// The feature map, as `FeatureMap` in element.cuh.
    pub feature_map: i32,
    /// Whether o is computed, or only the sums of the segments.
    pub outputs: i32,
    /// Whether rows of q, k and v consist of whole, aligned pieces of eight elements.
    pub aligned: i32,
    /// The number of neighbouring elements of o that may be stored at once: 1, 2, or 8 where those are
    /// aligned to 16 bytes.
    pub neighbours: i32,
    /// The number of tiles that are copied ahead; hopper.cu ignores it and has a number of its own.
    pub stages: i32,
    /// The eps of the normaliser.
    pub eps: f32,
    /// The eps of the feature map.
    pub map_eps: f32,
    pub scale: f32,
}

/// The arguments of the kernels of decode.cu that decode.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct DecodeArgs {
    /// `[B, H, K]` by its strides, as is k; v and o are `[B, H, V]` by theirs.
    pub q: Address<*const c_void>,
    pub k: Address<*const c_void>,
    pub v: Address<*const c_void>,
    pub o: Address<*mut c_void>,
    /// The state, `[B, H, state_len]`, which is replaced.
    pub state: Address<*mut f32>,
    pub q_strides: Strides,
    pub k_strides: Strides,
    pub v_strides: Strides,
    pub o_strides: Strides,
    /// Elements of the state of one head.
    pub state_len: i64,
    /// H, the number of heads.
    pub heads: i32,
    /// K, the elements of a row of q and k.
    pub key: i32,
    /// V, the elements of a row of v and o.
    pub value: i32,
    /// The number of tokens in a chunk, or 0 where there are no chunks.
    pub chunk: i32,
    /// The feature map, as `FeatureMap` in element.cuh.
    pub feature_map: i32,
    /// The element type of q, k, v and o, as `Kind` in element.cuh.
    pub kind: i32,
    /// The number of blocks for each head: 1 where there is a normaliser.
    pub splits: i32,
    /// The eps of the normaliser.
    pub eps: f32,
    /// The eps of the feature map.
    pub map_eps: f32,
    pub scale: f32,
}

/// The arguments of the kernels of dense.cu.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct DenseArgs {
    /// The input, `[rows, inputs]`.
    pub x: Address<*const f32>,
    /// The weights, `[inputs, outputs]`.
    pub w: Address<*const c_void>,
    /// The bias, `[outputs]`.
    pub b: Address<*const c_void>,
    /// The output, `[rows, outputs]`.
    pub y: Address<*mut f32>,
    pub rows: i64,
    pub inputs: i32,
    pub outputs: i32,
    /// The element type of the bias, as `Kind` in element.cuh.
    pub bias_kind: i32,
    /// What is done with the product, as `Epilogue` in dense.cu.
    pub epilogue: i32,
}
