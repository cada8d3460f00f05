//! What the benches share: the work, which `chunkwise bench` measures too, and the sizes at which they measure it.
#![allow(dead_code, unused_imports, reason = "each bench uses its part")]

#[path = "../../src/bin/chunkwise/bench/inputs.rs"]
mod inputs;
#[path = "../../src/bin/chunkwise/bench/memory.rs"]
mod memory;
#[path = "../../src/bin/chunkwise/bench/numbers.rs"]
mod numbers;
#[path = "../../src/bin/chunkwise/bench/untrained.rs"]
mod untrained;
#[path = "../../src/bin/chunkwise/bench/work.rs"]
mod work;

use chunkwise::{Config, Isa, Normaliser, Rule, Shape};

pub(crate) use untrained::*;
pub(crate) use work::*;

/// The shapes of the targets, `[B, H, T, D]`.
pub(crate) const SHAPES: [[usize; 4]; 5] =
    [[1, 4, 64, 64], [1, 4, 4096, 64], [1, 8, 2048, 128], [4, 4, 1024, 64], [1, 1, 16384, 64]];

/// The shapes of decode, `[B, H, D]`.
pub(crate) const DECODE_SHAPES: [[usize; 3]; 3] = [[1, 4, 64], [1, 16, 128], [8, 16, 128]];

pub(crate) const NORMALISERS: [(&str, Normaliser); 3] = [
    ("none", Normaliser::None),
    ("global", Normaliser::Global { eps: 1e-6 }),
    ("chunk64", Normaliser::per_chunk(64)),
];

/// Contiguous tensors, K = V, one thread.
pub(crate) fn config(isa: Isa, normaliser: Normaliser, [batch, heads, len, dim]: [usize; 4]) -> Config {
    Config::new(Rule::linear(normaliser), Shape::new(batch, len, heads, dim, dim)).isa(isa)
}
