//! The structures that kernels take by value, written once: `scripts/ptx` derives the kernels' `args.cuh` from this file, and
//! tests that launch kernels without the library include it. A field that a kernel reads therefore stands on one line,
//! `pub name: type,`, of a type below, `i64`, `i32` or `f32`.

use std::ffi::c_void;
use std::marker::PhantomData;

/// A device address: for the kernel a pointer of the type `P`, `*const f32` for example. Zero is null.
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

/// What the kernels of prefill.cu and hopper.cu take.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct PrefillArgs {
    /// `[B, T, H, K]` by its strides, as are the next three; v and o have V columns.
    pub q: Address<*const c_void>,
    pub k: Address<*const c_void>,
    pub v: Address<*const c_void>,
    pub o: Address<*mut c_void>,
    /// `[B, H, state_len]`; null for a state of zeros.
    pub initial: Address<*const f32>,
    /// `[B, H, 2 K + 1]`: z, the chunk's z and the count of `initial`, for where `last` may overwrite them; or null.
    pub sums: Address<*const f32>,
    /// `[B, H, state_len]`, or null.
    pub last: Address<*mut f32>,
    /// `[B, H, K V]`: S of the finished chunks, where a chunk is more than a tile and there is no `last`.
    pub finished: Address<*mut f32>,
    /// `[segments, B, H, K V + K]`: the sums of each segment, then the sums before each; or null.
    pub segments: Address<*mut f32>,
    pub q_strides: Strides,
    pub k_strides: Strides,
    pub v_strides: Strides,
    pub o_strides: Strides,
    /// Elements of the state of one head.
    pub state_len: i64,
    /// T.
    pub len: i64,
    /// Tokens of a segment.
    pub segment_len: i64,
    /// H.
    pub heads: i32,
    /// K.
    pub key: i32,
    /// V.
    pub value: i32,
    /// Tokens of a chunk, or 0.
    pub chunk: i32,
    /// As `FeatureMap` in element.cuh.
    pub feature_map: i32,
    /// Whether o is asked for, or only the segments' sums.
    pub outputs: i32,
    /// Whether rows of q, k and v are whole, aligned pieces of eight elements.
    pub aligned: i32,
    /// How many neighbours of o may be stored at once: 1, 2, or 8 where those are aligned to 16 bytes.
    pub neighbours: i32,
    /// Tiles that are copied ahead; hopper.cu knows by itself.
    pub stages: i32,
    /// Of the normaliser.
    pub eps: f32,
    /// Of the feature map.
    pub map_eps: f32,
    pub scale: f32,
}

/// What `decode` of decode.cu takes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct DecodeArgs {
    /// `[B, H, K]` by its strides, as are the next three; v and o have V columns.
    pub q: Address<*const c_void>,
    pub k: Address<*const c_void>,
    pub v: Address<*const c_void>,
    pub o: Address<*mut c_void>,
    /// `[B, H, state_len]`.
    pub state: Address<*mut f32>,
    pub q_strides: Strides,
    pub k_strides: Strides,
    pub v_strides: Strides,
    pub o_strides: Strides,
    /// Elements of the state of one head.
    pub state_len: i64,
    /// H.
    pub heads: i32,
    /// K.
    pub key: i32,
    /// V.
    pub value: i32,
    /// Tokens of a chunk, or 0.
    pub chunk: i32,
    /// As `Normaliser` in element.cuh.
    pub normaliser: i32,
    /// As `FeatureMap` in element.cuh.
    pub feature_map: i32,
    /// As `Kind` in element.cuh: of q, k, v and o.
    pub kind: i32,
    /// Threads along a row of S, 16 to 64, a power of two.
    pub across: i32,
    /// Of the normaliser.
    pub eps: f32,
    /// Of the feature map.
    pub map_eps: f32,
    pub scale: f32,
}

/// What the kernels of dense.cu take.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct DenseArgs {
    /// `[rows, inputs]`.
    pub x: Address<*const f32>,
    /// `[inputs, outputs]`.
    pub w: Address<*const c_void>,
    /// `[outputs]`.
    pub b: Address<*const c_void>,
    /// `[rows, outputs]`.
    pub y: Address<*mut f32>,
    pub rows: i64,
    pub inputs: i32,
    pub outputs: i32,
    /// As `Kind` in element.cuh.
    pub bias_kind: i32,
    /// As `Epilogue` in dense.cu.
    pub epilogue: i32,
}
