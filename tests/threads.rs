//! Any number of threads gives the same bits: outputs, and final states through every way of passing them,
//! whether the work is cut along sequences, heads, groups of neighbouring heads or columns of V. The shapes
//! are large enough for five workers by the thresholds in `chunkwise::attention`, and each test asserts that
//! it was cut.
#![cfg(feature = "std")]
mod common;

use chunkwise::{Config, Isa, Normaliser, State};
use common::*;

/// Five threads that run at once, whatever the machine has.
fn on_five_threads(test: impl FnOnce() + Send) {
    rayon::ThreadPoolBuilder::new().num_threads(5).build().expect("five threads").install(test);
}

/// The second part of the tokens after the first, through each way of passing the state, and all of them at
/// once: pairs of outputs and states.
fn results(case: &Case) -> [(Vec<f32>, Vec<f32>); 5] {
    let len = case.config.len;
    let cut = len / 3;
    let mut before = case.zero_state();
    let mut o = case.output();
    case.forward(0..cut, State::Carried(&mut before), &mut o);
    let (mut last, mut carried) = (vec![SENTINEL; before.len()], before.clone());
    let [mut initial, mut both, mut in_place] = [(); 3].map(|()| case.output());
    case.forward(cut..len, State::Initial(&before), &mut initial);
    case.forward(cut..len, State::InitialFinal(&before, &mut last), &mut both);
    case.forward(cut..len, State::Carried(&mut carried), &mut in_place);
    [case.whole_and_state(), (case.whole(), vec![]), (initial, before), (both, last), (in_place, carried)]
}

fn check(batch: usize, heads: usize, order: usize, cut_columns: bool) {
    on_five_threads(|| {
        for normaliser in normalisers(&[5, 20, 64, 1000]) {
            let config = Config::new(batch, 600 / batch / heads, heads, 40, 170, normaliser);
            let strides = |dim| nested(&config, dim, order, [0; 3]);
            let (keys, values) = (strides(config.key), strides(config.value));
            let config =
                Config { q_strides: keys, k_strides: keys, v_strides: values, o_strides: values, ..config };
            for isa in Isa::available() {
                let mut case = Case::new(config, 1).on(isa);
                let one = case.attention();
                let want = results(&case);
                for threads in [2, 5] {
                    case.config.threads = threads;
                    let many = case.attention();
                    let context = format!("{threads} threads: {:?}", case.config);
                    // Scratch for each worker; and where parts of a head run apart, a copy of the state they
                    // begin with.
                    let copy = if cut_columns && threads > heads { many.state_len() } else { 0 };
                    assert!(many.scratch_len() > one.scratch_len() + copy, "not cut for {context}");
                    for (at, (got, want)) in results(&case).iter().zip(&want).enumerate() {
                        assert_eq!(first_difference(&got.0, &want.0), None, "output {at}, {context}");
                        assert_eq!(first_difference(&got.1, &want.1), None, "state {at}, {context}");
                    }
                }
            }
        }
    });
}

#[test]
fn sequences() {
    check(6, 1, 0, false);
}

#[test]
fn heads() {
    check(1, 6, 1, false);
}

#[test]
fn neighbouring_heads() {
    // More than one task takes together, so that even one thread has a remainder.
    check(1, 10, 0, false);
}

#[test]
fn columns_of_one_head() {
    check(1, 1, 0, true);
}

#[test]
fn columns_of_two_heads() {
    check(1, 2, 0, true);
    check(1, 2, 1, true);
}

#[test]
fn decode() {
    on_five_threads(|| {
        for normaliser in normalisers(&[2, 64]) {
            // 96 heads of 56 KiB.
            let config = Config::new(6, 3, 16, 128, 110, normaliser);
            for isa in Isa::available() {
                let mut case = Case::new(config, 1).on(isa);
                let one = case.attention();
                let (mut want, mut want_state) = (case.output(), case.zero_state());
                case.decode(0..config.len, &mut want_state, &mut want);
                for threads in [2, 5] {
                    case.config.threads = threads;
                    let context = format!("{threads} threads: {:?}", case.config);
                    assert!(
                        case.attention().decode_scratch_len() > one.decode_scratch_len(),
                        "not cut for {context}"
                    );
                    let (mut o, mut state) = (case.output(), case.zero_state());
                    case.decode(0..config.len, &mut state, &mut o);
                    assert_eq!(first_difference(&o, &want), None, "{context}");
                    assert_eq!(first_difference(&state, &want_state), None, "{context}");
                }
            }
        }
    });
}

#[test]
fn small_work_stays_on_the_calling_thread() {
    // The usual user: 4 heads of 16 to 64, one sequence, up to 64 tokens.
    for (len, key) in [(1, 64), (64, 16), (16, 64)] {
        let config = Config::new(1, len, 4, key, key, Normaliser::per_chunk(64));
        let case = Case::new(config, 1);
        let one = case.attention();
        let many =
            chunkwise::Attention::new(Config { threads: 16, ..config }).expect("a legal configuration");
        assert_eq!(many.scratch_len(), one.scratch_len(), "{config:?}");
        assert_eq!(many.decode_scratch_len(), one.decode_scratch_len(), "{config:?}");
    }
}
