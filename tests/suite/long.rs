//! A stream of 2^20 tokens: the error of the last outputs, after a million rounded additions, with each kind
//! of state.

use chunkwise::{Isa, Normaliser};

use crate::common::*;
use crate::stream::{Tokens, config, streams};

/// The documented bound for a compensated state, for any tokens.
const COMPENSATED: f64 = 1e-5;

/// The bounds for a plain state: about twice the errors that docs/numerics.md reports for 2^20 tokens,
/// because scalar code rounds products before they are added, and because rounding depends on the random
/// numbers.
///
/// Each of n additions to a growing sum is off by up to half a unit in the last place of the sum. If the
/// roundings are independent, their relative effect is about sqrt(n) 2^-24 = 6e-5, and the product with
/// phi(q) averages over K sums. If all tokens are the same, the roundings have the same direction until the
/// sum reaches the next power of two, and the effect may be as large as n 2^-24 = 6e-2. PerChunk adds to the
/// long sum once in 64 tokens, and most of an output comes from the current chunk.
fn plain(normaliser: Normaliser, tokens: Tokens) -> f64 {
    match (tokens, normaliser) {
        (Tokens::Normal, Normaliser::PerChunk { .. }) => 2e-7,
        (Tokens::Normal, Normaliser::None) => 1.2e-5,
        (Tokens::Normal, _) => 1.8e-5,
        (Tokens::Same, Normaliser::PerChunk { .. }) => 5e-5,
        (Tokens::Same, Normaliser::None) => 3.2e-3,
        (Tokens::Same, _) => 4.4e-3,
    }
}

fn check(tokens: Tokens, normaliser: Normaliser, isas: &[Isa]) {
    for stream in streams(config(normaliser, tokens), isas) {
        let bound = if stream.kind == "plain" { plain(normaliser, tokens) } else { COMPENSATED };
        let way = if stream.forward { "forward" } else { "decode" };
        let (kind, error) = (stream.kind, stream.error);
        let isa = stream.config.execution.isa.expect("a pinned one");
        let what = format!("{kind} state, {tokens:?} tokens, {normaliser:?}, {isa} {way}: {error:.2e}");
        report(&what);
        assert!(error <= bound, "{what}, allowed {bound:e}");
    }
}

#[test]
fn without_a_normaliser() {
    check(Tokens::Normal, Normaliser::None, &Isa::available().collect::<Vec<_>>());
}

#[test]
fn global() {
    check(Tokens::Normal, Normaliser::Global { eps: 1e-6 }, &Isa::available().collect::<Vec<_>>());
}

#[test]
fn per_chunk() {
    check(Tokens::Normal, Normaliser::per_chunk(64), &Isa::available().collect::<Vec<_>>());
}

/// This runs only on the best instruction set, because the error comes from the additions to the state, which
/// are the same on all of them.
#[test]
fn the_same_token_a_million_times() {
    for normaliser in normalisers(&[64]) {
        check(Tokens::Same, normaliser, &[Isa::best()]);
    }
}
