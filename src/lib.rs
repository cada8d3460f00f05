//! Causal linear attention on CPUs: SIMD kernels without allocations, and the small model they were made for.
//!
//! ```text
//! S_t = S_{t-1} + phi(k_t) v_t^T        [K, V]   state
//! z_t = z_{t-1} + phi(k_t)              [K]      normaliser state
//! o_t = scale phi(q_t)^T S_t / norm_t   [V]      norm_t = 1, or phi(q_t) . z_t + eps
//! ```
//!
//! [`Rule`] selects the recurrence: this one, or one with constant decays, gates or the delta rule.
//!
//! B is the batch (the number of sequences), T the number of tokens, H the number of heads, K the length of a
//! row of q and k, and V that of v and o. In code these letters are words: `batch, len, heads, key, value`.
//! All sizes, lengths and strides are in elements.
//!
//! [`Attention::forward`] computes many tokens and [`Attention::decode`] one, on the same state and with the
//! same bits. These calls do not allocate: outputs, state and scratch are the caller's, and methods such as
//! [`Attention::scratch_len`] return the lengths they need. Invalid arguments return an [`Error`], and
//! outputs and state are left untouched. With `std`, a [`Stream`] owns its state and scratch.
//!
//! ```
//! use chunkwise::{Attention, Config, Normaliser, Rule, Shape, State, Tensors};
//!
//! // 1 sequence, 100 tokens, 4 heads, K = V = 64, contiguous [B, T, H, D].
//! let rule = Rule::linear(Normaliser::Global { eps: 1e-6 });
//! let attention = Attention::new(Config::new(rule, Shape::new(1, 100, 4, 64, 64)))?;
//! let (q, k, v) = ([0.1; 25_600], [0.2; 25_600], [0.3; 25_600]);
//! let mut o = [0.0; 25_600];
//! let mut scratch = vec![0.0; attention.scratch_len()];
//! attention.forward(Tensors::new(&q, &k, &v, &mut o), State::Zero, &mut scratch)?;
//! // An average of equal values is that value.
//! assert!((o[25_599] - 0.3).abs() < 1e-6);
//! # Ok::<(), chunkwise::Error>(())
//! ```
//!
//! [`Attention::backward`] computes gradients.
//!
//! [`lightning`] is another kind of attention: softmax inside a chunk of tokens, linear attention over the
//! chunks before it.
//!
//! q, k, v, o and weights may each be f32, bf16 or f16 ([`Element`]); sums and states are f32.
//!
//! # Bits
//!
//! A result has the same bits for any number of threads, any batch around the sequence, any strides, and
//! wherever a sequence is cut: one `forward`, any pieces of it and one `decode` for each token agree bit for
//! bit. There are exceptions: with [`Rule::compensated`] the pieces must be multiples of 4 tokens, with a
//! gate or the delta rule multiples of 2, and `decode` of gated and delta rules agrees with `forward` within
//! their accuracy. The bits are also the same on every instruction set that has a fused multiply-add: AVX2,
//! AVX-512 and Neon. The scalar code and WebAssembly's `simd128` round products before they add them, so
//! their bits agree only within the same instruction set. The payload of a NaN is not specified.
//!
//! # Threads
//!
//! The calling thread does its share of the work. When it belongs to a rayon pool (within
//! `ThreadPool::install`) the other threads are that pool's. Otherwise they belong to a pool that the library
//! starts once for each process, when a call first needs it, with as many threads as rayon would take: the
//! number in the environment variable `RAYON_NUM_THREADS`, or else the number that the machine runs at once.
//! Where these threads can't be started, because of a limit on processes, a call runs on the calling thread
//! alone.
//!
//! After a `fork` the child may call the library, which then starts new threads. Rayon's own pools, installed
//! or global, do not survive a fork: a child must not call from one of their threads.
//!
//! On x86-64 and AArch64 the other threads compute in the caller's floating-point mode: where the caller
//! flushes denormals to zero or rounds in another direction they do so too, and the bits still do not depend
//! on the number of threads. Such a mode gives other bits than the default mode, for which the documented
//! accuracy holds. On other architectures the bits are the same on any number of threads only in the default
//! mode.
//!
//! # Features
//!
//! - `std` (default): [`Config::threads`] spreads the work over threads, and the environment variable
//!   `CHUNKWISE_ISA` may name the instruction set. Without it the crate is `no_std` and runs on one thread.
//! - `family` (default): gates, the delta rule, attention that is not causal, the norm of q and k, and
//!   lightning models. Without it these return an [`Error`], and a program contains no code for them.
//! - `files`: models from safetensors and JSON files.
//! - `cuda`: attention and models on NVIDIA GPUs, see `chunkwise::cuda`.
//! - `cdylib` (or `capi`): the C ABI of `include/chunkwise.h`; `panic-handler` adds a panic handler where
//!   `std` is off.
#![no_std]
#![warn(unreachable_pub)]

#[cfg(any(feature = "std", test))]
extern crate std;

// Modules follow the order in which data flows. First errors, types of elements, instruction sets and
// functions on vectors:
mod axes;
pub mod element;
pub mod error;
pub mod isa;
mod math;
mod vector;
// What is computed, on which sizes, and in which memory:
pub mod rule;
pub mod shape;
pub mod state;
pub mod tensors;
// The definition in f64, against which every kernel is tested:
pub mod reference;
// A few tokens and some columns of one head:
mod sweep;
// Many heads: the entry point, its memory and threads, and a stream that owns its memory.
pub mod attention;
pub mod backward;
#[doc(hidden)]
pub mod bench_support;
mod parallel;
mod scratch;
// Another kind of attention: softmax inside a chunk, linear over the chunks before it.
pub mod lightning;
#[cfg(feature = "std")]
pub mod stream;
// The layers around attention, each a call of its own: the short convolution before it and the gated norm
// after it.
pub mod conv;
pub mod gated_norm;
// The model, and its files.
#[cfg(feature = "files")]
pub mod files;
pub mod nn;
// The interface to other languages.
#[cfg(feature = "cdylib")]
pub mod capi;
// The interface to GPUs.
#[cfg(feature = "cuda")]
pub mod cuda;

/// The examples in the README and in the pages of docs/, run as doc-tests.
#[cfg(all(doctest, feature = "files"))]
mod pages {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/attention.md")]
    struct Attention;
    #[doc = include_str!("../docs/family.md")]
    struct Family;
    #[doc = include_str!("../docs/models.md")]
    struct Models;
}

pub use attention::{Attention, Config, Execution, Part, State};
pub use conv::CausalConv;
pub use element::Element;
pub use error::{Error, Result};
pub use gated_norm::GatedNorm;
pub use isa::Isa;
pub use lightning::Lightning;
pub use rule::{BetaMap, FeatureMap, Gate, GateMap, Normaliser, Rule, Update};
pub use shape::{HeadOrder, Heads, Shape, Strides};
#[cfg(feature = "std")]
pub use stream::Stream;
pub use tensors::Tensors;
