//! A PTX interpreter with checks, and NVIDIA's driver API on top of it.
//!
//! [`launch::run`] runs an entry of a text on plain memory. [`driver`] has the exported `cu*` functions, and
//! [`control`] the functions by which tests set up the emulator and query it. The README lists what is executed and
//! what is checked.
//!
//! A text goes through `lex`, [`parse`] and `decode`, and becomes the instructions of [`isa`]. [`launch`] runs the
//! blocks of a grid, [`block`] the warps of a block, and [`warp`] the instructions of a warp. Their arithmetic is in
//! `int`, `float`, `convert`, `compare`, `matrix` and `wgmma`; their accesses are in [`access`], [`shared`] and
//! [`memory`].

pub mod access;
pub mod block;
mod compare;
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
