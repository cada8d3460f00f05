//! Causal linear attention on CPUs: SIMD kernels without an allocator, and the small model they were made for.
//!
//! ```text
//! S_t = S_{t-1} + phi(k_t) v_t^T        [K, V]   state
//! z_t = z_{t-1} + phi(k_t)              [K]      normaliser state
//! o_t = scale phi(q_t)^T S_t / norm_t   [V]      norm_t = 1, or phi(q_t) . z_t + eps
//! ```
//!
//! [`Rule`] says which linear attention it is: with constant decays, gates or the delta rule as well.
//!
//! Letters: B batch (sequences), T tokens, H heads, K elements of a row of q and k, V elements of a row of v and o.
//! In code they are words: `batch, len, heads, key, value`. All sizes, lengths and strides are in elements.
//!
//! [`Attention::forward`] computes many tokens, [`Attention::decode`] one, on the same state and with the same bits.
//! Nothing allocates: outputs, state and scratch are the caller's, and each call has a twin that says how much of them it
//! needs. Invalid arguments return an [`Error`], and outputs and state are left untouched. With `std`, a [`Stream`] owns
//! its state and scratch.
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
//! [`lightning`] is another attention: softmax inside a chunk of tokens, linear attention over the chunks before it.
//!
//! q, k, v, o and weights may each be f32, bf16 or f16 ([`Element`]); sums and states are f32.
//!
//! # Bits
//!
//! A result has the same bits for any number of threads, any batch around the sequence, any strides, and wherever a
//! sequence is cut: one `forward`, any pieces of it and one `decode` for each token agree bit for bit. With
//! [`Rule::compensated`] pieces must be multiples of 4 tokens for that, with a gate or the delta rule multiples of 2, and `decode`
//! of gated and delta rules agrees with `forward` within their accuracy. The bits are also the same on every instruction set
//! that has a fused multiply-add: AVX2, AVX-512 and Neon. The scalar code and WebAssembly's `simd128` round products
//! before they add them, so they only agree with themselves. The payload of a NaN is not specified.
//!
//! # Threads
//!
//! The calling thread does its share of the work. On a thread of a rayon pool (within `ThreadPool::install`) the others are
//! that pool's. On any other thread they are those of a pool that the library starts when a call first wants one, once for
//! each process, with as many threads as rayon would take: what the environment variable `RAYON_NUM_THREADS` says, else
//! what the machine runs at once. Where they can't be started, because of a limit on processes, calls go on alone.
//!
//! After a `fork` the child may call the library; it starts threads of its own. Only rayon's pools, installed or global, do
//! not survive a fork: a child must not call from one of their threads.
//!
//! On x86-64 and AArch64 the threads that help compute in the caller's floating-point mode: where the caller flushes
//! denormals to zero or rounds in another direction they do so too, and the bits still do not depend on the number of
//! threads. They are other bits then, and the accuracy that is documented holds for the default mode. On other
//! architectures only the default mode has the same bits on any number of threads.
//!
//! # Features
//!
//! - `std` (default): [`Config::threads`] spreads the work over threads, and the environment variable
//!   `CHUNKWISE_ISA` may name the instruction set. Without it the crate is `no_std`, and works on one thread.
//! - `family` (default): gates, the delta rule, attention that is not causal, the norm of q and k, and lightning models.
//!   Without it they are an [`Error`], and a program holds no code of them.
//! - `files`: models from safetensors and JSON files.
//! - `cli`: the program `chunkwise`.
//! - `cuda`: attention and models on NVIDIA GPUs, see `chunkwise::cuda`.
//! - `cdylib` (or `capi`): the C ABI of `include/chunkwise.h`; `panic-handler` beside it, without `std`, brings one.
#![no_std]
#![warn(unreachable_pub)]

#[cfg(any(feature = "std", test))]
extern crate std;

// In the order in which data flows. What goes wrong, the types of elements, which CPU this is, and functions on vectors:
mod axes;
pub mod element;
pub mod error;
pub mod isa;
mod math;
mod vector;
// What is computed, on what sizes, on which memory:
pub mod rule;
pub mod shape;
pub mod state;
pub mod tensors;
// The definition, in f64, which judges every kernel:
pub mod reference;
// A few tokens and some columns of one head:
mod sweep;
// Many heads: what to bring, serial or on threads, the entry point, and a stream that brings it.
pub mod attention;
#[doc(hidden)]
pub mod bench_support;
mod parallel;
mod scratch;
// Another attention: softmax inside a chunk, linear over the chunks before.
pub mod lightning;
#[cfg(feature = "std")]
pub mod stream;
// The layers around attention, each a call of its own: the short convolution before it, and the gated norm behind it.
pub mod conv;
pub mod gated_norm;
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

/// The examples of the README and of the pages.
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
