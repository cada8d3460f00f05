//! Errors of gates, delta rules, heads and sequences. A refused call writes nothing. The tests also make the
//! nearest call that is accepted.

use chunkwise::{
    Attention, BetaMap, Config, Error, FeatureMap, Gate, GateMap, HeadOrder, Heads, Normaliser, Rule, Shape,
    State, Strides, Update,
};

use crate::common::family::*;
use crate::common::*;

const GLOBAL: Normaliser = Normaliser::Global { eps: 1e-6 };

#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Forward,
    Part,
    Decode,
    DecodePart,
}

const CALLS: [Call; 4] = [Call::Forward, Call::Part, Call::Decode, Call::DecodePart];

/// The result of a call, and whether the call has written anything.
fn call(case: &FamilyCase, call: Call) -> (Result<(), Error>, bool) {
    let attention = case.attention();
    let (mut o, mut state) = (case.output(), case.initial.clone());
    let mut scratch = vec![SENTINEL; attention.scratch_len().max(attention.decode_scratch_len())];
    let before = [o.clone(), state.clone(), scratch.clone()];
    let tensors = case.tensors(&mut o);
    let done = match call {
        Call::Forward => attention.forward(tensors, State::Carried(&mut state), &mut scratch),
        Call::Part => attention.forward_part(tensors, State::Carried(&mut state)).map(|_| ()),
        Call::Decode => attention.decode(tensors, &mut state, &mut scratch),
        Call::DecodePart => attention.decode_part(tensors, &mut state).map(|_| ()),
    };
    (done, before.iter().zip([o, state, scratch]).any(|(before, after)| !untouched(before, &after)))
}

/// The error of a call, after a check that the call has written nothing.
#[track_caller]
fn refused(case: &FamilyCase, way: Call) -> Error {
    let (done, written) = call(case, way);
    let error = done.expect_err("the call must be refused");
    assert!(!written, "{way:?}: written before it was refused: {error}");
    error
}

#[track_caller]
fn accepted(case: &FamilyCase, way: Call) {
    call(case, way).0.unwrap_or_else(|error| panic!("{way:?}: {error}"));
}

fn new(rule: Rule) -> Result<Attention, Error> {
    Attention::new(Config::new(rule, Shape::new(1, 5, 2, 4, 3)))
}

/// The conflict for which a rule is refused.
#[track_caller]
fn conflict(rule: Rule) -> &'static str {
    match new(rule) {
        Err(Error::Conflict { what }) => what,
        other => panic!("{rule:?}: {other:?}"),
    }
}

#[test]
fn options_that_do_not_go_together() {
    let per_chunk = Normaliser::per_chunk(7);
    let (delta, scalar, key) = (Rule::delta(Gate::None), Rule::gated(Gate::Scalar), Rule::gated(Gate::Key));
    let linear = Rule::linear(Normaliser::None);
    let a_gate_and = "a gate or the delta rule and a compensated state";
    let not_causal = "attention that is not causal and a gate, the delta rule, the per-chunk normaliser or a compensated state";
    for (rule, what) in [
        (delta.normaliser(GLOBAL), "the delta rule and a normaliser"),
        (delta.normaliser(per_chunk), "the delta rule and a normaliser"),
        (Rule::delta(Gate::Key).normaliser(GLOBAL), "the delta rule and a normaliser"),
        (scalar.normaliser(per_chunk), "a gate and the per-chunk normaliser"),
        (key.normaliser(per_chunk), "a gate and the per-chunk normaliser"),
        (scalar.compensated(true), a_gate_and),
        (key.compensated(true), a_gate_and),
        (delta.compensated(true), a_gate_and),
        (linear.gate_map(GateMap::Linear), "a map of the gate and a rule without one"),
        (delta.gate_map(GateMap::Softplus), "a map of the gate and a rule without one"),
        (linear.gate_map(GateMap::Bounded { lower: -5.0 }), "a map of the gate and a rule without one"),
        (linear.beta_map(BetaMap::Sigmoid), "a map of beta and the linear update"),
        (scalar.beta_map(BetaMap::TwiceSigmoid), "a map of beta and the linear update"),
        (scalar.causal(false), not_causal),
        (key.causal(false), not_causal),
        (delta.causal(false), not_causal),
        (linear.normaliser(per_chunk).causal(false), not_causal),
        (linear.compensated(true).causal(false), not_causal),
    ] {
        assert_eq!(conflict(rule), what, "{rule:?}");
    }
}

/// Checks all combinations of options: a rule is accepted exactly if its documentation allows it.
#[test]
fn every_combination() {
    let mut seen = [0; 2];
    let normalisers = [Normaliser::None, GLOBAL, Normaliser::per_chunk(7)];
    for update in [Update::Linear, Update::Delta] {
        for gate in [Gate::None, Gate::Scalar, Gate::Key] {
            for (gate_map, beta_map) in
                GATE_MAPS.into_iter().flat_map(|gate| BETA_MAPS.map(|beta| (gate, beta)))
            {
                for normaliser in normalisers {
                    for [compensated, causal, normed] in
                        (0..8).map(|bits| [0, 1, 2].map(|bit| (bits >> bit) & 1 == 1))
                    {
                        let mut rule = Rule::gated(gate)
                            .gate_map(gate_map)
                            .beta_map(beta_map)
                            .normaliser(normaliser)
                            .compensated(compensated)
                            .causal(causal);
                        rule.update = update;
                        rule.qk_norm = normed.then_some(1e-6);
                        let plain_gate = gate_map == GateMap::Log && gate == Gate::None;
                        let plain_linear =
                            plain_gate && update == Update::Linear && beta_map == BetaMap::Given;
                        let per_chunk = normaliser == Normaliser::per_chunk(7);
                        let legal = match update {
                            // Linear attention without a gate allows all options if it is causal.
                            _ if plain_linear => causal || !(per_chunk || compensated),
                            Update::Delta => {
                                (plain_gate || gate != Gate::None)
                                    && normaliser == Normaliser::None
                                    && causal
                                    && !compensated
                            }
                            _ => {
                                gate != Gate::None
                                    && beta_map == BetaMap::Given
                                    && !per_chunk
                                    && causal
                                    && !compensated
                            }
                        };
                        match new(rule) {
                            Ok(_) => assert!(legal, "accepted: {rule:?}"),
                            Err(Error::Conflict { .. }) => assert!(!legal, "refused: {rule:?}"),
                            Err(error) => panic!("{error}: {rule:?}"),
                        }
                        seen[usize::from(legal)] += 1;
                    }
                }
            }
        }
    }
    assert_eq!(seen.iter().sum::<usize>(), 2 * 3 * 4 * 3 * 3 * 8);
    assert!(seen.iter().all(|seen| *seen > 50), "{seen:?}");
}

#[test]
fn numbers_that_are_not_finite() {
    for eps in [f32::NAN, f32::INFINITY, -1e-6, f32::NEG_INFINITY] {
        let error = new(Rule::delta(Gate::Scalar).qk_norm(eps)).expect_err("an eps that is not valid");
        assert_eq!(error, Error::NotFinite { what: "the eps of the norm of q and k" });
    }
    new(Rule::delta(Gate::Scalar).qk_norm(0.0)).expect("an eps of 0");
    for lower in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let rule = Rule::gated(Gate::Key).gate_map(GateMap::Bounded { lower });
        let error = new(rule).expect_err("a bound that is not finite");
        assert_eq!(error, Error::NotFinite { what: "the gate's lower bound" });
    }
    new(Rule::gated(Gate::Key).gate_map(GateMap::Bounded { lower: 1.0 })).expect("any finite bound");
    for scale in [f32::NAN, f32::INFINITY] {
        assert_eq!(
            new(Rule::delta(Gate::None).scale(scale)).expect_err("a scale that is not finite"),
            Error::NotFinite { what: "scale" }
        );
    }
}

#[test]
fn heads() {
    let new = |q: usize, k: usize, v: usize, order: HeadOrder| {
        let shape = Shape::grouped(1, 5, Heads::new(q, k, v).order(order), 4, 3);
        Attention::new(Config::new(Rule::delta(Gate::Scalar), shape)).map(|_| ())
    };
    for order in [HeadOrder::Interleaved, HeadOrder::Tiled] {
        for (q, k, v) in
            [(3, 2, 2), (2, 3, 2), (2, 2, 3), (5, 2, 4), (4, 6, 4), (4, 4, 6), (2, 3, 3), (3, 4, 1)]
        {
            let what = "numbers of heads that don't divide each other";
            assert_eq!(new(q, k, v, order), Err(Error::Conflict { what }), "{q}, {k}, {v}");
        }
        for (q, k, v) in
            [(2, 2, 2), (6, 3, 3), (1, 1, 7), (1, 7, 1), (7, 1, 1), (4, 1, 2), (12, 2, 6), (3, 2, 6)]
        {
            assert_eq!(new(q, k, v, order), Ok(()), "{q}, {k}, {v}");
        }
        for ((q, k, v), what) in [
            ((0, 2, 2), "heads of q"),
            ((2, 0, 2), "heads of k"),
            ((2, 2, 0), "heads of v"),
            ((2, 0, 0), "heads"),
        ] {
            assert_eq!(new(q, k, v, order), Err(Error::Zero { what }));
        }
    }
    let mut shape = Shape::new(1, 5, 2, 4, 3);
    shape.heads = 4;
    let error =
        Attention::new(Config::new(Rule::linear(Normaliser::None), shape)).expect_err("two numbers of heads");
    assert_eq!(error, Error::Conflict { what: "the heads of the state and those of k and v" });
}

#[test]
fn sequences() {
    let case = FamilyCase::ragged(Rule::delta(Gate::Scalar), &[3, 0, 4], [2, 4, 3], 1);
    assert_eq!(case.sequences.as_deref(), Some(&[0, 3, 3, 7][..]));
    for way in [Call::Forward, Call::Part] {
        accepted(&case, way);
        for begins in [
            &[][..],
            &[0],
            &[0, 7],
            &[0, 3, 7],
            &[0, 3, 3, 6],
            &[0, 3, 3, 8],
            &[1, 3, 3, 7],
            &[0, 3, 2, 7],
            &[0, 8, 8, 7],
            &[0, 3, u32::MAX, 7],
            &[0, 3, 3, 7, 7],
            &[0, 3, 3, 3, 7],
            &[7, 3, 3, 0],
        ] {
            let other = case.changed(|case| case.sequences = Some(begins.to_vec()));
            assert_eq!(refused(&other, way), Error::Sequences, "{begins:?}");
        }
        assert_eq!(refused(&case.changed(|case| case.sequences = None), way), Error::Sequences);
        let plain = FamilyCase::of(Rule::delta(Gate::Scalar), [1, 7, 2, 4, 3]);
        accepted(&plain, way);
        for begins in [&[0, 7][..], &[0, 3, 3, 7], &[]] {
            let other = plain.changed(|case| case.sequences = Some(begins.to_vec()));
            assert_eq!(refused(&other, way), Error::Sequences, "{begins:?}");
        }
    }
    // A decode takes one token of each sequence, and does not use the beginnings.
    for sequences in [case.sequences.clone(), None] {
        accepted(&case.changed(|case| case.sequences = sequences), Call::Decode);
    }
}

#[test]
fn tensors_that_the_rule_has_no_use_for() {
    let sizes = [1, 1, 2, 4, 3];
    let linear = FamilyCase::of(Rule::linear(Normaliser::None), sizes);
    let scalar = FamilyCase::of(Rule::gated(Gate::Scalar), sizes);
    let delta = FamilyCase::of(Rule::delta(Gate::None), sizes);
    let gated_delta = FamilyCase::of(Rule::delta(Gate::Scalar).gate_map(GateMap::Linear), sizes);
    let softplus = FamilyCase::of(Rule::gated(Gate::Key).gate_map(GateMap::Softplus), sizes);
    for way in CALLS {
        for case in [&linear, &scalar, &delta, &gated_delta, &softplus] {
            accepted(case, way);
        }
        for len in [1, 2, 100] {
            let more = || vec![0.5; len];
            for (case, what) in [
                (linear.changed(|case| case.g = more()), "g"),
                (delta.changed(|case| case.g = more()), "g"),
                (linear.changed(|case| case.beta = more()), "beta"),
                (scalar.changed(|case| case.beta = more()), "beta"),
                (softplus.changed(|case| case.beta = more()), "beta"),
                (linear.changed(|case| case.a_log = more()), "A_log"),
                (scalar.changed(|case| case.a_log = more()), "A_log"),
                (gated_delta.changed(|case| case.a_log = more()), "A_log"),
                (delta.changed(|case| case.dt_bias = more()), "dt_bias"),
                (scalar.changed(|case| case.dt_bias = more()), "dt_bias"),
            ] {
                assert_eq!(refused(&case, way), Error::Unused { what }, "{way:?}, {len}");
            }
        }
    }
}

#[test]
fn tensors_that_are_too_short() {
    for gate in [Gate::Scalar, Gate::Key] {
        for gate_map in [GateMap::Softplus, GateMap::Bounded { lower: -5.0 }] {
            // There is one token, so that forward and decode need the same lengths.
            let contiguous = FamilyCase::of(Rule::delta(gate).gate_map(gate_map), [2, 1, 3, 4, 5]);
            let strided = contiguous.laid_out([(1, [3, 1, 2]); 6]);
            for case in [contiguous, strided] {
                for way in CALLS {
                    accepted(&case, way);
                    let longer = case.changed(|case| {
                        for x in [&mut case.g, &mut case.beta, &mut case.a_log, &mut case.dt_bias] {
                            x.extend([SENTINEL; 3]);
                        }
                    });
                    accepted(&longer, way);
                    for (what, field) in [
                        ("g", (|case| &mut case.g) as fn(&mut FamilyCase) -> &mut Vec<f32>),
                        ("beta", |case| &mut case.beta),
                        ("A_log", |case| &mut case.a_log),
                        ("dt_bias", |case| &mut case.dt_bias),
                    ] {
                        let mut short = case.clone();
                        let need = field(&mut short).len();
                        field(&mut short).pop();
                        let error = refused(&short, way);
                        assert_eq!(error, Error::TooShort { what, need, got: need - 1 }, "{way:?}");
                        // A_log and dt_bias may be left out.
                        field(&mut short).clear();
                        if ["g", "beta"].contains(&what) {
                            let error = refused(&short, way);
                            assert_eq!(error, Error::TooShort { what, need, got: 0 }, "{way:?}");
                        } else {
                            accepted(&short, way);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn strides_of_gates_that_overflow() {
    let case = FamilyCase::of(Rule::delta(Gate::Key), [2, 3, 2, 4, 5]);
    let shape = case.config.shape;
    let [g, beta] = [Which::G, Which::Beta].map(|which| case.strides(which));
    for far in [usize::MAX, usize::MAX / 2 + 1, usize::MAX / 8 + 1] {
        for way in CALLS {
            let of = |g, beta| case.changed(|case| case.config.shape = shape.with_gates(g, beta));
            for (strides, what) in [
                ((Strides { batch: far, ..g }, beta), "g"),
                ((Strides { head: far, ..g }, beta), "g"),
                ((g, Strides { batch: far, ..beta }), "beta"),
                ((g, Strides { head: far, ..beta }), "beta"),
            ] {
                assert_eq!(refused(&of(strides.0, strides.1), way), Error::Overflow { what }, "{way:?}");
            }
            // A decode does not use the stride of tokens.
            let tokens = of(Strides { token: far, ..g }, beta);
            if matches!(way, Call::Forward | Call::Part) {
                assert_eq!(refused(&tokens, way), Error::Overflow { what: "g" }, "{way:?}");
            } else {
                accepted(&tokens, way);
            }
        }
    }
}

#[test]
fn decode_of_attention_that_is_not_causal() {
    for normaliser in [Normaliser::None, GLOBAL] {
        let rule = Rule::linear(normaliser).feature_map(FeatureMap::Elu);
        let causal = FamilyCase::of(rule, [2, 1, 2, 4, 3]);
        let not_causal = causal.changed(|case| case.config.rule.causal = false);
        for way in [Call::Decode, Call::DecodePart] {
            accepted(&causal, way);
            let what = "decode and attention that is not causal";
            assert_eq!(refused(&not_causal, way), Error::Conflict { what });
        }
        accepted(&not_causal, Call::Forward);
    }
}

#[test]
fn messages() {
    for (error, text) in [
        (Error::Conflict { what: "this and that" }, "this and that do not go together"),
        (Error::Unused { what: "beta" }, "beta is given, but the rule has no use for it"),
        (
            Error::Sequences,
            "the beginnings of sequences must start at 0, never decrease and end at the number of tokens, and are there for the forward of a ragged batch alone",
        ),
    ] {
        assert_eq!(error.to_string(), text);
    }
}
