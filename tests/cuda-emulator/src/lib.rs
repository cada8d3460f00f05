//! A PTX interpreter with checks, and NVIDIA's driver API on top of it.
//!
//! [`launch::run`] takes a text, an entry and memory; the library's exported `cu*` functions are in [`driver`], what
//! tests set and ask in [`control`]. See the README for what is executed, checked, and not seen.

pub mod access;
pub mod block;
pub mod control;
mod convert;
pub mod counters;
mod decode;
pub mod driver;
pub mod fault;
mod float;
mod int;
pub mod isa;
pub mod lanes;
pub mod launch;
mod lex;
mod matrix;
pub mod memory;
pub mod parse;
pub mod shared;
mod state;
pub mod warp;
mod wgmma;
