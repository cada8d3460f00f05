//! Attention and models on NVIDIA GPUs.
//!
//! The kernels are PTX inside the crate, and the driver is opened when a [`Device`] is: a program with the
//! feature `cuda` is built without CUDA and starts without a GPU, where [`Device::open`] returns an error.
//! Configurations, layouts of states, and contracts are those of the CPU. Tensors are in the device's memory,
//! given by address and length, as torch, candle and cudarc have them, or in a [`Buffer`]. Work is queued on
//! the caller's [`Stream`].
//!
//! ```no_run
//! use chunkwise::cuda::{Attention, Buffer, Device, Forward, Precision, State, Stream};
//! use chunkwise::{Config, Normaliser, Rule, Shape};
//!
//! let device = Device::open(0)?;
//! // 1 sequence, 100 tokens, 4 heads, K = V = 64.
//! let config = Config::new(Rule::linear(Normaliser::Global { eps: 1e-6 }), Shape::new(1, 100, 4, 64, 64));
//! let attention = Attention::new(&device, config, Precision::F32)?;
//! let tensor = |x| Buffer::from_slice(&device, &vec![x; 25_600]);
//! let (q, k, v, mut o) = (tensor(0.1)?, tensor(0.2)?, tensor(0.3)?, tensor(0.0)?);
//! let mut workspace = Buffer::zeros(&device, attention.workspace_len())?;
//! let (q, k, v) = (q.slice(), k.slice(), v.slice());
//! attention.forward(
//!     Forward { q, k, v, state: State::Zero, o: o.slice_mut(), workspace: workspace.slice_mut() },
//!     Stream::DEFAULT,
//! )?;
//! assert!((o.read(Stream::DEFAULT)?[25_599] - 0.3f32).abs() < 1e-6);
//! # Ok::<(), chunkwise::cuda::Error>(())
//! ```

// The modules in layers: the driver and its errors; a GPU and its memory; the PTX and its arguments; and what
// is computed with them.
mod args;
mod attention;
mod device;
mod driver;
mod error;
mod kernels;
mod memory;
mod model;
mod precision;
mod variant;

pub use attention::{Attention, DecodeStep, Forward, State};
pub use device::{Device, Stream};
pub use error::{Error, Result};
pub use memory::{Buffer, Slice, SliceMut};
pub use model::Model;
pub use precision::Precision;
