//! Properties of every rule that need no oracle: causality, cuts of a sequence, gates of 0 and betas of 0.

use chunkwise::{FeatureMap, Gate, Isa, Normaliser, Rule, State, Update};

use super::same;
use crate::common::family::*;
use crate::common::*;

/// The number of tokens of the cases: several tiles, the last of which is not whole.
const LEN: usize = 38;
/// B, T, H, K and V of the cases; K and V are not multiples of the longest vectors.
const SIZES: [usize; 5] = [2, LEN, 2, 20, 12];

/// Every rule on every instruction set.
fn cases() -> impl Iterator<Item = (String, FamilyCase)> {
    rules().into_iter().flat_map(|(name, rule)| {
        let case = FamilyCase::of(rule, SIZES);
        Isa::available().map(move |isa| (format!("{name}, {isa}"), case.on(isa))).collect::<Vec<_>>()
    })
}

fn tensor(case: &mut FamilyCase, which: Which) -> &mut Vec<f32> {
    match which {
        Which::Q => &mut case.q,
        Which::K => &mut case.k,
        Which::V => &mut case.v,
        Which::G => &mut case.g,
        Which::Beta => &mut case.beta,
        Which::O | Which::State => unreachable!("no input"),
    }
}

/// A NaN in a row of the second sequence's first head reaches all outputs and states that depend on it. It
/// changes no bit of earlier outputs, of the other sequence and of the other head.
#[test]
fn causality() {
    const INPUTS: [Which; 5] = [Which::Q, Which::K, Which::V, Which::G, Which::Beta];
    for (name, case) in cases() {
        let [forward, decode] = [case.forward(), case.decode()];
        for which in INPUTS {
            if tensor(&mut case.clone(), which).is_empty() {
                continue;
            }
            // The tokens are the first and the second ones of blocks: at the beginning and the end of the
            // first tile, in the second tile and at the end of the last one.
            for token in [0, 1, 14, 15, 16, 36, 37] {
                let [heads, dim] = case.row_sizes(which);
                let poisoned = case.changed(|case| {
                    tensor(case, which)[((LEN + token) * heads) * dim + dim / 2] = f32::NAN;
                });
                for (call, clean, got) in
                    [("forward", &forward, poisoned.forward()), ("decode", &decode, poisoned.decode())]
                {
                    let name = format!("{name}, {call}, {which:?} at {token}");
                    for [b, t, h] in case.rows(Which::O) {
                        let row = |o: &'_ [f32]| o[((b * LEN + t) * 2 + h) * 12..][..12].to_vec();
                        let (clean, got) = (row(&clean.0), row(&got.0));
                        let depends = b == 1 && h == 0 && (t == token || t > token && which != Which::Q);
                        if depends {
                            assert!(got.iter().any(|o| o.is_nan()), "{name}: token {t} depends on it");
                        } else {
                            assert!(untouched(&clean, &got), "{name}: output {b}, {t}, {h}");
                        }
                    }
                    for (b, h) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                        let [clean, got] = [&clean.1, &got.1].map(|state| case.state_of(state, b, h));
                        let depends = (b, h) == (1, 0) && which != Which::Q;
                        assert_eq!(depends, !untouched(clean, got), "{name}: state {b}, {h}");
                    }
                }
            }
        }
    }
}

/// A sequence that is cut at multiples of two tokens has the bits of the whole, also if some pieces have no
/// tokens.
#[test]
fn pieces_of_whole_blocks_are_the_whole() {
    for (name, case) in cases() {
        let whole = case.forward();
        let all: Vec<usize> = (0..LEN).step_by(2).collect();
        for begins in [&[4][..], &[2], &[16], &[36], &[0, 0, 10, 10, 20], &all] {
            same(&format!("{name}, cut at {begins:?}"), &case.forwards(begins), &whole);
        }
    }
}

/// A sequence that is cut elsewhere, and computed by forward and decode, is within the bound of the error.
#[test]
fn other_pieces_are_within_the_bound() {
    for (name, case) in cases() {
        let (want, want_state) = case.oracle();
        for begins in [&[1][..], &[2, 5], &[3, 9, 10, 27], &[37]] {
            for by_decode in [false, true] {
                let ends: Vec<usize> = begins.iter().copied().chain([LEN]).collect();
                let mut pieces = vec![];
                let mut begin = 0;
                for (i, end) in ends.into_iter().enumerate() {
                    // Every second piece is decoded token by token.
                    if by_decode && i % 2 == 1 {
                        pieces.extend((begin..end).map(|token| (token..token + 1, true)));
                    } else {
                        pieces.push((begin..end, false));
                    }
                    begin = end;
                }
                let (o, state) = case.pieces(pieces);
                let errors = [norm_error(&o, &want), norm_error(&state, &want_state)];
                let name = format!("{name}, cut at {begins:?}, decode {by_decode}");
                assert!(errors.iter().all(|error| *error <= case.bound()), "{name}: {errors:?}");
            }
        }
    }
}

/// A decode has the bits of a forward of one token, at every token of a sequence, and where states and sums
/// are zeros of either sign.
#[test]
fn decode_is_forward_of_one_token() {
    for (name, case) in cases() {
        let tokens: Vec<usize> = (0..LEN).collect();
        same(&name, &case.decode(), &case.forwards(&tokens));
        let one = FamilyCase::of(case.config.rule, [2, 1, 2, 20, 12]).changed(|one| {
            one.config.execution = case.config.execution;
            for x in one.k.iter_mut().step_by(3).chain(one.v.iter_mut().step_by(5)) {
                *x *= 1e-38;
            }
            for x in one.v.iter_mut().step_by(4).chain(one.initial.iter_mut().step_by(2)) {
                *x = if *x < 0.0 { -0.0 } else { 0.0 };
            }
        });
        same(&format!("{name}, zeros"), &one.decode(), &one.forward());
    }
}

/// All ways of passing the state give the same bits, from a state of zeros and from another state.
#[test]
fn ways_of_passing_the_state() {
    for (name, case) in cases() {
        let (attention, zero) = (case.attention(), case.at_zero());
        let run = |state: State<'_>| {
            let (mut o, scratch) = (case.output(), &mut vec![f32::NAN; attention.scratch_len()]);
            attention.forward(case.tensors(&mut o), state, scratch).expect("legal arguments");
            o
        };
        let [mut last, mut both] = [(); 2].map(|()| vec![SENTINEL; case.initial.len()]);
        let none: Vec<f32> = vec![];
        for (way, case, o, last) in [
            ("Zero", &zero, run(State::Zero), &none),
            ("Final", &zero, run(State::Final(&mut last)), &last),
            ("Initial", &case, run(State::Initial(&case.initial)), &none),
            ("InitialFinal", &case, run(State::InitialFinal(&case.initial, &mut both)), &both),
        ] {
            let (want, want_last) = case.forward();
            assert_eq!(first_difference(&o, &want), None, "{name}, {way}");
            assert!(last.is_empty() || first_difference(last, &want_last).is_none(), "{name}, {way}");
        }
    }
}

/// A gate whose g is 0 has no effect: the results of the linear update, whose sums have another order without
/// a gate, are the same within the bound, and those of the delta rule have the same bits.
#[test]
fn a_gate_of_zero_is_none() {
    for isa in Isa::available() {
        for gate in [Gate::Scalar, Gate::Key] {
            for normaliser in [Normaliser::None, Normaliser::Global { eps: 1e-6 }] {
                let rule = Rule::gated(gate).feature_map(FeatureMap::Elu).normaliser(normaliser);
                let gated = FamilyCase::of(rule, SIZES).on(isa).changed(|case| case.g.fill(0.0));
                let plain = gated.changed(|case| {
                    case.config.rule.gate = Gate::None;
                    case.g.clear();
                });
                for (got, want) in [(gated.forward(), plain.forward()), (gated.decode(), plain.decode())] {
                    for (got, want) in [(got.0, want.0), (got.1, want.1)] {
                        let want: Vec<f64> = want.iter().map(|x| f64::from(*x)).collect();
                        let error = norm_error(&got, &want);
                        assert!(error <= NORM_ERROR, "{gate:?}, {normaliser:?}, {isa}: {error:e}");
                    }
                }
            }
            let gated = FamilyCase::of(Rule::delta(gate).qk_norm(1e-6), SIZES).on(isa);
            let gated = gated.changed(|case| case.g.fill(0.0));
            let plain = gated.changed(|case| {
                case.config.rule.gate = Gate::None;
                case.g.clear();
            });
            same(&format!("{gate:?}, {isa}"), &gated.forward(), &plain.forward());
            same(&format!("{gate:?}, {isa}, decode"), &gated.decode(), &plain.decode());
        }
    }
}

/// A token whose beta is 0 adds nothing: no bit depends on its k and v, and where its decay is 1 the state
/// keeps its bits.
#[test]
fn a_beta_of_zero_is_no_token() {
    for (name, case) in cases().filter(|(_, case)| case.config.rule.update == Update::Delta) {
        let heads = case.beta.len() / (2 * LEN);
        for tokens in [&[0][..], &[5], &[6, 7], &[8, 21, 36], &[37]] {
            let none = case.changed(|case| {
                for token in tokens {
                    for sequence in 0..2 {
                        case.beta[(sequence * LEN + token) * heads..][..heads].fill(0.0);
                    }
                }
            });
            let other = none.changed(|case| {
                let [k, v] = [&mut case.k, &mut case.v];
                let [k_row, v_row] = [k.len() / (2 * LEN), v.len() / (2 * LEN)];
                for token in tokens.iter().flat_map(|token| [*token, LEN + token]) {
                    k[token * k_row..][..k_row].reverse();
                    v[token * v_row..][..v_row].iter_mut().for_each(|x| *x = 7.0 - *x);
                }
            });
            same(&format!("{name}, no tokens {tokens:?}"), &other.forward(), &none.forward());
            same(&format!("{name}, no tokens {tokens:?}, decode"), &other.decode(), &none.decode());
        }
        let none = case.changed(|case| {
            case.beta.fill(0.0);
            case.g.fill(0.0);
        });
        for (_, state) in [none.forward(), none.decode()] {
            assert!(untouched(&state, &none.initial), "{name}: betas of 0 changed the state");
        }
    }
}

/// A [`chunkwise::Stream`] has the bits of a forward, and can be reset and restored.
#[cfg(feature = "std")]
#[test]
fn streams() {
    for (name, case) in cases() {
        let case = case.at_zero();
        let (o, _) = case.forward();
        let mut stream = chunkwise::Stream::new(case.config).expect("a legal configuration");
        let mut got = case.output();
        stream.forward(LEN, case.tensors(&mut got)).expect("legal arguments");
        assert_eq!(first_difference(&got, &o), None, "{name}");
        let after = stream.snapshot();
        stream.reset();
        let mut got = case.output();
        stream.forward(20, case.tensors(&mut got)).expect("legal arguments");
        let prefix = |o: &[f32]| -> Vec<f32> { o.iter().take(20 * 24).copied().collect() };
        assert_eq!(first_difference(&prefix(&got), &prefix(&o)), None, "{name}");
        stream.restore(&after).expect("a snapshot of this stream");
        assert_eq!(stream.snapshot(), after, "{name}");
    }
}
