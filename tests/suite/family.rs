//! Rules with gates and the delta rule compute what their definition says, against the recurrence in f64.

use chunkwise::{Config, Heads, Isa, Rule, Shape};

use crate::common::family::*;
use crate::common::*;

/// The documented accuracy, [`NORM_ERROR`], and that of the delta rule with keys at random.
const DELTA_ERROR: f64 = 3e-6;

fn check(name: &str, case: &FamilyCase) {
    let (want, want_state) = case.oracle();
    let bound = if case.beta.is_empty() { NORM_ERROR } else { DELTA_ERROR };
    for isa in Isa::available() {
        let case = case.on(isa);
        let compare = |call: &str, (o, state): (Vec<f32>, Vec<f32>)| {
            let (of_o, of_state) = (norm_error(&o, &want), norm_error(&state, &want_state));
            assert!(of_o <= bound, "{name}, {isa}, {call}: o is off by {of_o:e}: {:?}", case.config);
            assert!(
                of_state <= bound,
                "{name}, {isa}, {call}: the state is off by {of_state:e}: {:?}",
                case.config
            );
        };
        compare("forward", case.forward());
        if case.config.shape.batch == 1 && !case.config.shape.ragged && case.config.rule.causal {
            compare("decode", case.decode());
        }
    }
}

#[test]
fn every_rule_at_every_small_size() {
    for (name, rule) in rules() {
        for len in [0, 1, 2, 3, 4, 5, 8, 16, 17, 33, 70] {
            check(name, &FamilyCase::of(rule, [1, len, 2, 20, 12]));
        }
        for (key, value) in [(1, 1), (16, 16), (15, 33), (60, 80), (96, 20), (128, 64), (64, 128)] {
            check(name, &FamilyCase::of(rule, [2, 21, 1, key, value]));
        }
    }
}

#[test]
fn heads_that_differ_in_number() {
    use chunkwise::HeadOrder::{Interleaved, Tiled};
    for (name, rule) in rules().into_iter().chain([("linear", Rule::linear(chunkwise::Normaliser::None))]) {
        for (q, k, v) in [(4, 2, 2), (2, 2, 4), (1, 1, 3), (4, 2, 1), (2, 1, 6), (6, 2, 2), (1, 3, 1)] {
            for order in [Interleaved, Tiled] {
                let shape = Shape::grouped(1, 19, Heads::new(q, k, v).order(order), 8, 12);
                check(name, &FamilyCase::new(Config::new(rule, shape), 2));
            }
        }
    }
}

#[test]
fn ragged_batches() {
    for (name, rule) in rules() {
        let shape = Shape::new(1, 30, 2, 8, 12).with_sequences(4);
        let mut case = FamilyCase::new(Config::new(rule, shape), 3);
        case.sequences = Some(vec![0, 7, 7, 25, 30]);
        check(name, &case);
    }
}

#[test]
fn not_causal() {
    for normaliser in [chunkwise::Normaliser::None, chunkwise::Normaliser::Global { eps: 1e-6 }] {
        for (q, k, v) in [(2, 2, 2), (4, 2, 1)] {
            let shape = Shape::grouped(2, 61, Heads::new(q, k, v), 20, 12);
            check(
                "not causal",
                &FamilyCase::new(Config::new(Rule::linear(normaliser).causal(false), shape), 4),
            );
        }
    }
}
