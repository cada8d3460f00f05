//! Code that the benches share: the work, which `chunkwise bench` also measures, and the sizes at which it is
//! measured.
#![allow(dead_code, unused_imports, reason = "each bench uses its part")]

#[path = "../../cli/src/bench/inputs.rs"]
mod inputs;
#[path = "../../cli/src/bench/memory.rs"]
mod memory;
#[path = "../../cli/src/bench/numbers.rs"]
mod numbers;
#[path = "../../cli/src/bench/untrained.rs"]
mod untrained;
#[path = "../../cli/src/bench/work.rs"]
mod work;

use chunkwise::{Config, Gate, Isa, Normaliser, Rule, Shape};

pub(crate) use untrained::*;
pub(crate) use work::*;

/// The shapes of the benchmark of many tokens, `[B, H, T, D]`.
pub(crate) const SHAPES: [[usize; 4]; 5] =
    [[1, 4, 64, 64], [1, 4, 4096, 64], [1, 8, 2048, 128], [4, 4, 1024, 64], [1, 1, 16384, 64]];

/// The shapes of the benchmark of decode, `[B, H, D]`.
pub(crate) const DECODE_SHAPES: [[usize; 3]; 3] = [[1, 4, 64], [1, 16, 128], [8, 16, 128]];

/// The linear rule with each normaliser, and the other rules.
pub(crate) const RULES: [(&str, Rule); 8] = [
    ("none", Rule::linear(Normaliser::None)),
    ("global", Rule::linear(Normaliser::Global { eps: 1e-6 })),
    ("chunk64", Rule::linear(Normaliser::per_chunk(64))),
    ("scalar-gate", Rule::gated(Gate::Scalar)),
    ("key-gate", Rule::gated(Gate::Key)),
    ("delta", Rule::delta(Gate::None)),
    ("gated-delta", Rule::delta(Gate::Scalar)),
    ("kda", Rule::delta(Gate::Key)),
];

/// A configuration of contiguous tensors with K = V on one thread.
pub(crate) fn config(isa: Isa, rule: Rule, [batch, heads, len, dim]: [usize; 4]) -> Config {
    Config::new(rule, Shape::new(batch, len, heads, dim, dim)).isa(isa)
}
