//! Chunked causal linear attention on CPUs.
#![no_std]

#[cfg(any(feature = "std", test))]
extern crate std;

pub mod error;
pub mod shape;
pub mod isa;
pub mod reference;
mod math;
pub mod feature_map;
mod tile;
pub mod state;
mod chunk;
mod decode;
mod scratch;
mod parallel;
pub mod attention;
pub mod nn;
#[cfg(feature = "files")]
pub mod files;

pub use attention::{Attention, Config, DecodeStep, Forward, State};
pub use error::{Error, Result};
pub use feature_map::FeatureMap;
pub use isa::Isa;
pub use shape::Strides;
pub use state::Normaliser;
