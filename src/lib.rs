//! Chunked causal linear attention on CPUs: SIMD kernels without an allocator, and the small model they were made
//! for.
//!
//! ```text
//! S_t = S_{t-1} + phi(k_t) v_t^T        [K, V]   state
//! z_t = z_{t-1} + phi(k_t)              [K]      normaliser state
//! o_t = scale phi(q_t)^T S_t / norm_t   [V]      norm_t = 1, or phi(q_t) . z_t + eps
//! ```
//!
//! Letters: B batch (sequences), T tokens, H heads, K elements of a row of q and k, V elements of a row of v and o.
//! In code they are words: `batch, len, heads, key, value`. All sizes, lengths and strides are in elements.
//!
//! [`Attention::forward`] computes many tokens in the chunked form, [`Attention::decode`] one token by the
//! recurrence, on the same state. Nothing allocates: outputs, state and scratch are the caller's, and each call has a
//! twin that says how much. Bad input is an [`Error`], and nothing has been written then.
//!
//! ```
//! use chunkwise::{Attention, Config, Forward, Normaliser, State};
//!
//! // 1 sequence, 100 tokens, 4 heads, K = V = 64, contiguous [B, T, H, D].
//! let attention = Attention::new(Config::new(1, 100, 4, 64, 64, Normaliser::Global { eps: 1e-6 }))?;
//! let (q, k, v) = (vec![0.1; 25_600], vec![0.2; 25_600], vec![0.3; 25_600]);
//! let mut o = vec![0.0; 25_600];
//! let mut scratch = vec![0.0; attention.scratch_len()];
//! attention.forward(Forward { q: &q, k: &k, v: &v, state: State::Zero, o: &mut o, scratch: &mut scratch })?;
//! // An average of equal values is that value.
//! assert!((o[25_599] - 0.3).abs() < 1e-6);
//! # Ok::<(), chunkwise::Error>(())
//! ```
//!
//! q, k, v, o and weights may each be f32, bf16 or f16 ([`Element`]); sums and states are f32.
//!
//! # Bits
//!
//! For one instruction set, a result has the same bits for any number of threads, any batch around the sequence, any
//! strides, and when a sequence is fed in pieces cut at multiples of 16 tokens (of a chunk's beginning, for
//! [`Normaliser::PerChunk`]). Cut anywhere else it differs by rounding.
//!
//! # Features
//!
//! - `std` (default): [`Config::threads`] spreads the work over rayon's threads, and the environment variable
//!   `CHUNKWISE_ISA` may name the instruction set. Without it the crate is `no_std`, and works on one thread.
//! - `files`: models from safetensors and JSON files.
//! - `cli`: the program `chunkwise`.
//! - `cuda`: attention and models on NVIDIA GPUs, see `chunkwise::cuda`.
//! - `cdylib` (or `capi`): the C ABI of `include/chunkwise.h`; `panic-handler` beside it, without `std`, brings one.
#![no_std]
#![warn(unreachable_pub)]

#[cfg(any(feature = "std", test))]
extern crate std;

// In the order in which data flows. What goes wrong, and what is checked:
pub mod error;
pub mod shape;
// Which CPU this is, and the judge of every kernel:
pub mod isa;
pub mod reference;
// The types of elements.
pub mod element;
// One head: functions on tiles, generic over the instruction set.
pub mod feature_map;
mod math;
mod tile;
// The state between tokens; many tokens; one token.
mod chunk;
mod decode;
pub mod state;
// Many heads: what to bring, serial or on threads, the entry point.
pub mod attention;
#[doc(hidden)]
pub mod bench_support;
mod parallel;
pub mod part;
mod scratch;
// The model, and its files.
#[cfg(feature = "files")]
pub mod files;
pub mod nn;
// The edge to other languages.
#[cfg(feature = "cdylib")]
pub mod capi;
// The edge to GPUs.
#[cfg(feature = "cuda")]
pub mod cuda;

/// The README's examples.
#[cfg(all(doctest, feature = "files"))]
#[doc = include_str!("../README.md")]
struct Readme;

pub use attention::{Attention, Config, DecodeStep, Forward, Precision, State};
pub use element::Element;
pub use error::{Error, Result};
pub use feature_map::FeatureMap;
pub use isa::Isa;
pub use part::Part;
pub use shape::Strides;
pub use state::Normaliser;
