//! The checks of the fuzz targets on random bytes that are the same in every run, and regression tests for
//! what fuzzing has found.

use chunkwise::{Attention, Config, Normaliser, Rule, Shape, State, Tensors};

use crate::checks;

/// Runs a check this many times, on random bytes of any length below `most`.
fn on_random_bytes(check: fn(&[u8]), runs: usize, most: u64) {
    // xorshift64
    let mut x = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    for _ in 0..runs {
        let len = random() % most;
        check(&(0..len).map(|_| random() as u8).collect::<Vec<_>>());
    }
}

#[test]
fn attention() {
    on_random_bytes(checks::attention, 3000, 300);
}

#[test]
fn backward() {
    on_random_bytes(checks::backward, 2000, 300);
}

#[test]
fn sequence() {
    on_random_bytes(checks::sequence, 1500, 300);
}

#[cfg(feature = "files")]
#[test]
fn files() {
    on_random_bytes(checks::files, 3000, 300);
}

#[cfg(feature = "cdylib")]
#[test]
fn capi() {
    // Structures with all their tensors take some 250 of the bytes.
    on_random_bytes(checks::capi, 20_000, 900);
}

/// A call without tokens takes no time, also with more sequences than any loop could visit.
#[test]
fn no_tokens_of_very_many_sequences() {
    let config = Config::new(Rule::linear(Normaliser::None), Shape::new(1 << (usize::BITS - 14), 0, 1, 1, 1));
    let attention = Attention::new(config).expect("a legal configuration");
    let (none, mut o, mut scratch) = ([0.0; 0], [0.0; 0], vec![0.0; attention.scratch_len()]);
    let (q, k, v) = (&none, &none, &none);
    let tensors = Tensors::new(q, k, v, &mut o);
    attention.forward(tensors, State::Zero, &mut scratch).expect("nothing to compute");
}
