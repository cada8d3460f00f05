//! Drafts: `verify` has the outputs of `forward` and only reads the state; `commit` gives the state after as
//! many calls of `decode` as tokens are accepted.

use chunkwise::{Attention, Config, Error, Heads, Isa, Normaliser, Part, Rule, Shape, Tensors, Update};
use half::bf16;

use super::all_rules;
use crate::common::family::*;
use crate::common::*;

/// All causal rules, with all kinds of states.
fn drafted() -> Vec<(String, Rule)> {
    let mut all: Vec<_> = all_rules().into_iter().map(|(name, rule)| (name.to_string(), rule)).collect();
    for normaliser in normalisers(&[1, 5, 64]) {
        for compensated in [false, true] {
            let name = format!("{normaliser:?}, compensated {compensated}");
            all.push((name, Rule::linear(normaliser).compensated(compensated)));
        }
    }
    all.retain(|(_, rule)| rule.causal);
    all
}

/// A draft on the state after eleven tokens, which is in the middle of a chunk of five.
fn draft(config: Config) -> FamilyCase {
    let before = FamilyCase::new(with(config, |config| config.shape = like(config.shape, 11)), 1);
    let state = before.changed(|case| case.initial = vec![0.0; case.attention().state_len()]).forward().1;
    FamilyCase::new(config, 2).changed(|case| case.initial = state)
}

/// The same heads and sizes with another number of tokens.
fn like(shape: Shape, len: usize) -> Shape {
    Shape::grouped(shape.batch, len, shape.groups, shape.key, shape.value)
}

/// The outputs and the record of `verify`, with tensors of a type.
fn verify<E: Number>(case: &FamilyCase) -> (Vec<f32>, Vec<f32>) {
    let attention = case.attention();
    let [q, k, v, g, beta] = [&case.q, &case.k, &case.v, &case.g, &case.beta].map(|x| narrow::<E>(x));
    let mut o = narrow::<E>(&case.output());
    let mut record = vec![f32::NAN; attention.record_len()];
    let scratch = &mut vec![f32::NAN; attention.scratch_len()];
    let tensors = Tensors::new(&q[..], &k[..], &v[..], &mut o[..])
        .gate(&g[..])
        .beta(&beta[..])
        .gate_parameters(&case.a_log, &case.dt_bias);
    attention.verify(tensors, &case.initial, &mut record, scratch).expect("legal arguments");
    (widen(&o), record)
}

/// The state after the accepted tokens of a draft.
fn commit(attention: &Attention, record: &[f32], accepted: &[u32], state: &[f32]) -> Vec<f32> {
    let mut state = state.to_vec();
    attention.commit(record, accepted, &mut state).expect("legal arguments");
    state
}

/// Verifies a draft, and commits every number of its tokens; different sequences commit different numbers.
fn check(name: &str, case: &FamilyCase) {
    let Shape { batch, len, .. } = case.config.shape;
    let (o, record) = verify::<f32>(case);
    assert!(untouched(&case.forward().0, &o), "{name}: outputs");
    assert!(record.iter().all(|x| x.is_finite()), "{name}: all of the record is written");
    let first = |tokens: usize| case.changed(|case| case.config.shape.len = tokens);
    let decoded: Vec<_> = (0..=len).map(|tokens| first(tokens).decode().1).collect();
    for tokens in 0..=len {
        let accepted: Vec<_> = (0..batch).map(|b| if b == 0 { tokens } else { len - tokens }).collect();
        let numbers: Vec<_> = accepted.iter().map(|tokens| *tokens as u32).collect();
        let got = commit(&case.attention(), &record, &numbers, &case.initial);
        let sequence = got.len() / batch;
        for (b, got) in got.chunks_exact(sequence).enumerate() {
            let name = format!("{name}, {} of {len} tokens of sequence {b}", accepted[b]);
            let of = b * sequence..(b + 1) * sequence;
            if case.config.rule.update == Update::Linear {
                assert_eq!(first_difference(got, &decoded[accepted[b]][of]), None, "{name}");
            } else {
                let error = norm_error(got, &first(accepted[b]).oracle().1[of]);
                assert!(error <= case.bound(), "{name}: {error:e}");
            }
        }
    }
}

#[test]
fn every_rule_and_every_number_of_tokens() {
    for (name, rule) in drafted() {
        for isa in Isa::available() {
            for (len, key, value) in [(1, 3, 5), (4, 16, 64), (7, 20, 37), (16, 9, 20)] {
                let config = Config::new(rule, Shape::new(2, len, 2, key, value)).isa(isa);
                check(&format!("{name}, {isa}, {len} x {key} x {value}"), &draft(config));
            }
        }
    }
}

#[test]
fn heads_that_are_shared() {
    for (name, rule) in drafted() {
        for isa in Isa::available() {
            for (q, k, v) in [(4, 2, 2), (2, 2, 4), (4, 1, 2)] {
                let config = Config::new(rule, Shape::grouped(2, 6, Heads::new(q, k, v), 8, 24)).isa(isa);
                check(&format!("{name}, {isa}, {q} / {k} / {v} heads"), &draft(config));
            }
        }
    }
}

/// Strides and threads change no bit of outputs, record and state, and elements between the rows of o are
/// left untouched.
#[test]
fn strides_and_threads() {
    for (name, rule) in drafted().into_iter().step_by(3) {
        for isa in Isa::available() {
            // There is enough work for several threads; a single head is divided by its columns.
            for (batch, heads, key, value) in [(1, 1, 64, 3100), (2, 6, 128, 700)] {
                let case = draft(Config::new(rule, Shape::new(batch, 16, heads, key, value)).isa(isa));
                let accepted = &[16, 3][..batch];
                let (o, record) = verify::<f32>(&case);
                let state = commit(&case.attention(), &record, accepted, &case.initial);
                let other = case.laid_out([3, 1, 4, 2, 5, 1].map(|order| (order, [1, 2, 3])));
                let other = other.changed(|case| case.config = case.config.threads(3));
                let name = format!("{name}, {isa}, {heads} heads");
                let (strided, same_record) = verify::<f32>(&other);
                assert!(other.gaps_are_untouched(&strided), "{name}: between the rows of o");
                assert_eq!(first_difference(&other.gather(&strided), &o), None, "{name}: outputs");
                assert_eq!(first_difference(&same_record, &record), None, "{name}: the record");
                let got = commit(&other.attention(), &record, accepted, &other.initial);
                assert_eq!(first_difference(&got, &state), None, "{name}: the state");
            }
        }
    }
}

/// Tensors in bf16 give the record that the same numbers in f32 give.
#[test]
fn sixteen_bits() {
    for (name, rule) in drafted() {
        for isa in Isa::available() {
            let case = draft(Config::new(rule, Shape::new(2, 7, 2, 20, 37)).isa(isa)).rounded::<bf16>();
            let ((o, record), (want, want_record)) = (verify::<bf16>(&case), verify::<f32>(&case));
            assert!(untouched(&o, &widen(&narrow::<bf16>(&want))), "{name}, {isa}: outputs");
            assert!(untouched(&record, &want_record), "{name}, {isa}: the record");
        }
    }
}

#[test]
fn parts_are_the_whole() {
    for (name, rule) in drafted() {
        let case = draft(Config::new(rule, Shape::new(3, 5, 4, 9, 20)));
        let attention = case.attention();
        let (want, want_record) = verify::<f32>(&case);
        let (mut o, mut record) = (case.output(), vec![f32::NAN; attention.record_len()]);
        let all = attention.verify_part(case.tensors(&mut o), &case.initial, &mut record).unwrap();
        let (low, high) = all.split_at(7);
        let run = |part: Part<'_>| {
            let scratch = &mut vec![f32::NAN; part.scratch_len()];
            part.run(scratch).unwrap();
        };
        run(high);
        run(low);
        assert!(untouched(&o, &want) && untouched(&record, &want_record), "{name}");
    }
}

#[test]
fn what_is_refused() {
    let rule = Rule::linear(Normaliser::per_chunk(5));
    let shape = Shape::new(2, 4, 2, 3, 4);
    let case = draft(Config::new(rule, shape));
    let attention = case.attention();
    let (_, record) = verify::<f32>(&case);
    let refused = |case: &FamilyCase, record: &mut [f32], scratch: &mut [f32]| {
        let mut o = case.output();
        let error = case.attention().verify(case.tensors(&mut o), &case.initial, record, scratch);
        assert!(untouched(&o, &case.output()), "an output was written");
        error.expect_err("a wrong call")
    };
    let verify_errors = |case: &FamilyCase| {
        let attention = case.attention();
        let mut record = vec![SENTINEL; attention.record_len()];
        let error = refused(case, &mut record, &mut vec![0.0; attention.scratch_len()]);
        assert!(record.iter().all(|x| x.to_bits() == SENTINEL.to_bits()), "the record was written");
        let commit = attention.commit(&record, &vec![0; case.config.shape.batch], &mut case.initial.clone());
        assert_eq!(commit, Err(error));
        error
    };
    let long = draft(Config::new(rule, Shape::new(2, 17, 2, 3, 4)));
    let too_many = Error::TooMany { what: "tokens of a draft", most: Attention::MAX_DRAFT, got: 17 };
    assert_eq!(verify_errors(&long), too_many);
    let ragged = FamilyCase::ragged(Rule::linear(Normaliser::None), &[3, 2], [2, 3, 4], 1);
    assert_eq!(verify_errors(&ragged), Error::Conflict { what: "a draft and a ragged batch" });
    let both = FamilyCase::of(Rule::linear(Normaliser::None).causal(false), [2, 4, 2, 3, 4]);
    assert_eq!(verify_errors(&both), Error::Conflict { what: "a draft and attention that is not causal" });

    let (len, scratch_len) = (record.len(), attention.scratch_len());
    for got in [len - 1, len + 1] {
        let error = refused(&case, &mut vec![0.0; got], &mut vec![0.0; scratch_len]);
        assert_eq!(error, Error::Length { what: "record", want: len, got });
    }
    let error = refused(&case, &mut vec![0.0; len], &mut vec![0.0; scratch_len - 1]);
    assert!(matches!(error, Error::TooShort { what: "scratch", .. }));

    let bad_state = {
        let mut state = case.initial.clone();
        *state.last_mut().unwrap() = 0.5;
        state
    };
    let short = &case.initial[1..];
    for (record, accepted, state, error) in [
        (
            &record[1..],
            &[1, 1][..],
            &case.initial[..],
            Error::Length { what: "record", want: len, got: len - 1 },
        ),
        (&record, &[1], &case.initial, Error::Length { what: "accepted", want: 2, got: 1 }),
        (&record, &[4, 5], &case.initial, Error::TooMany { what: "accepted tokens", most: 4, got: 5 }),
        (&record, &[1, 1], short, Error::Length { what: "state", want: short.len() + 1, got: short.len() }),
        (&record, &[1, 1], &bad_state, Error::BadState),
    ] {
        let mut state_after = state.to_vec();
        assert_eq!(attention.commit(record, accepted, &mut state_after), Err(error));
        assert!(untouched(state, &state_after), "the state was written: {error}");
    }
}
