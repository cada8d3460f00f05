//! Outputs and last states have the same bits on any number of threads, with every way of passing a state,
//! whether the work is divided by sequences, heads, groups of neighbouring heads or columns of V. The shapes
//! are large enough for five workers by the thresholds in `chunkwise::attention`, and each test checks that
//! the work was divided.

use std::cell::UnsafeCell;
use std::sync::Barrier;

use chunkwise::bench_support::{on_threads, start_threads};
use chunkwise::{Config, Isa, Normaliser, Rule, Shape, State};

use crate::common::*;

/// Runs a test in a pool of five threads, whatever the machine has.
fn on_five_threads(test: impl FnOnce() + Send) {
    rayon::ThreadPoolBuilder::new().num_threads(5).build().expect("five threads").install(test);
}

/// The outputs and states of all tokens at once, and of the second part of the tokens after the first, with
/// each way of passing the state.
fn results(case: &Case) -> [(Vec<f32>, Vec<f32>); 5] {
    let len = case.config.shape.len;
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

fn check(batch: usize, heads: usize, order: usize) {
    on_five_threads(|| {
        for normaliser in normalisers(&[5, 20, 64, 1000]) {
            let config = Config::new(
                Rule::linear(normaliser),
                Shape::new(batch, 1200 / batch / heads, heads, 40, 170),
            );
            let config = with_layouts(config, [(order, [0; 3]); 4]);
            for isa in Isa::available() {
                let mut case = Case::new(config, 1).on(isa);
                let one = case.attention();
                let want = results(&case);
                for threads in [2, 5] {
                    case.config.execution.threads = threads;
                    let many = case.attention();
                    let context = format!("{threads} threads: {:?}", case.config);
                    // Different plans need scratch of different lengths.
                    assert_ne!(many.scratch_len(), one.scratch_len(), "not cut for {context}");
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
    check(6, 1, 0);
}

#[test]
fn heads() {
    check(1, 6, 1);
}

#[test]
fn neighbouring_heads() {
    // There are more heads than one task computes, so that the last task has fewer, also on one thread.
    check(1, 10, 0);
}

#[test]
fn columns_of_one_head() {
    check(1, 1, 0);
}

#[test]
fn columns_of_two_heads() {
    check(1, 2, 0);
    check(1, 2, 1);
}

#[test]
fn decode() {
    on_five_threads(|| {
        for normaliser in normalisers(&[2, 64]) {
            // The state has 96 heads of 55 KiB.
            let config = Config::new(Rule::linear(normaliser), Shape::new(6, 3, 16, 128, 110));
            for isa in Isa::available() {
                let mut case = Case::new(config, 1).on(isa);
                let one = case.attention();
                let (mut want, mut want_state) = (case.output(), case.zero_state());
                case.decode(0..config.shape.len, &mut want_state, &mut want);
                for threads in [2, 5] {
                    case.config.execution.threads = threads;
                    let context = format!("{threads} threads: {:?}", case.config);
                    assert!(
                        case.attention().decode_scratch_len() > one.decode_scratch_len(),
                        "not cut for {context}"
                    );
                    let (mut o, mut state) = (case.output(), case.zero_state());
                    case.decode(0..config.shape.len, &mut state, &mut o);
                    assert_eq!(first_difference(&o, &want), None, "{context}");
                    assert_eq!(first_difference(&state, &want_state), None, "{context}");
                }
            }
        }
    });
}

/// Pieces of a sequence, each on another number of threads, by forward or token by token, have the bits of
/// the whole on one thread.
#[test]
fn pieces_on_any_threads() {
    const ENDS: [usize; 9] = [1, 90, 93, 94, 250, 300, 301, 304, 560];
    on_five_threads(|| {
        for (batch, heads, order) in [(1, 1, 0), (1, 3, 0), (2, 2, 1)] {
            for normaliser in normalisers(&[5, 64, 77]) {
                let len = ENDS[ENDS.len() - 1];
                let config = Config::new(Rule::linear(normaliser), Shape::new(batch, len, heads, 97, 171));
                let config = with_layouts(config, [(order, [0; 3]); 4]);
                for isa in Isa::available() {
                    let mut case = Case::new(config, 1).on(isa);
                    let (want, want_state) = case.whole_and_state();
                    let (mut o, mut state) = (case.output(), case.zero_state());
                    let (mut begin, mut cut) = (0, 0);
                    for (end, threads) in ENDS.into_iter().zip([1, 5, 2].into_iter().cycle()) {
                        case.config.execution.threads = threads;
                        let piece = with(case.config, |c| c.shape.len = end - begin);
                        let [one, many] = [piece.threads(1), piece]
                            .map(|piece| chunkwise::Attention::new(piece).expect("a legal configuration"));
                        cut += usize::from(many.scratch_len() != one.scratch_len());
                        if end - begin == 3 {
                            case.decode(begin..end, &mut state, &mut o);
                        } else {
                            case.forward(begin..end, State::Carried(&mut state), &mut o);
                        }
                        begin = end;
                    }
                    let context = format!("{:?}", case.config);
                    assert!(cut > 1, "not cut for {context}");
                    assert_eq!(first_difference(&o, &want), None, "{context}");
                    assert_eq!(first_difference(&state, &want_state), None, "{context}");
                }
            }
        }
    });
}

/// Two of the library's threads write the same number at the same time, which the sanitizer of `.ci/tsan`
/// must detect.
#[test]
#[ignore = "a data race, for .ci/tsan"]
#[allow(unsafe_code, reason = "a data race")]
fn a_race() {
    struct Shared(UnsafeCell<u32>);
    // SAFETY: this is wrong on purpose; the test exists to cause a data race.
    unsafe impl Sync for Shared {}
    impl Shared {
        fn add(&self) {
            // SAFETY: as above.
            unsafe { *self.0.get() += 1 };
        }
    }
    let (shared, barrier) = (Shared(UnsafeCell::new(0)), Barrier::new(2));
    start_threads(2).expect("two threads");
    on_threads(2, &mut [0.0; 32], 16, |_| {
        barrier.wait();
        shared.add();
    });
}

#[test]
fn small_work_stays_on_the_calling_thread() {
    // Typical small calls have one sequence of up to 64 tokens and 4 heads with K = V = 16 to 64.
    for (len, key) in [(1, 64), (64, 16), (16, 64)] {
        let config = Config::new(Rule::linear(Normaliser::per_chunk(64)), Shape::new(1, len, 4, key, key));
        let case = Case::new(config, 1);
        let one = case.attention();
        let many = chunkwise::Attention::new(config.threads(16)).expect("a legal configuration");
        assert_eq!(many.scratch_len(), one.scratch_len(), "{config:?}");
        assert_eq!(many.decode_scratch_len(), one.decode_scratch_len(), "{config:?}");
    }
}
