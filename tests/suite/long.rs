//! A stream of 2^20 tokens: how far the last outputs are off when a million rounded additions lie behind them, with
//! each kind of state.

use chunkwise::{Isa, Normaliser};

use crate::common::*;
use crate::stream::{Tokens, config, streams};

/// The documented bound of a compensated state, whatever comes.
const COMPENSATED: f64 = 1e-5;

/// Twice what docs/numerics.md reports for 2^20 tokens: the scalar code rounds products before they are added, and other
/// numbers round otherwise.
///
/// n additions to a sum that grows are each off by up to half a unit in its last place. If they are
/// independent, some sqrt(n) 2^-24 of that is left, 6e-5, and the product with phi(q) averages over K of them. If all
/// are the same, nothing but the binades that the sum passes through changes their sign: it may be n 2^-24, 6e-2.
/// PerChunk adds to the long sum once in 64 tokens, and what it adds is small beside the current chunk's share.
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

/// On the best instruction set only: what counts are the state's additions, which all make alike.
#[test]
fn the_same_token_a_million_times() {
    for normaliser in normalisers(&[64]) {
        check(Tokens::Same, normaliser, &[Isa::best()]);
    }
}
