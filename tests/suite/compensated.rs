//! The compensated state: results agree with the oracle, and the state contains the rounding errors. The
//! streams of a million tokens for which it exists are tested in `long.rs`.

use chunkwise::{Attention, Config, FeatureMap, Isa, Normaliser, Rule, Shape, State};

use crate::common::*;

fn compensated(normaliser: Normaliser) -> Rule {
    Rule::linear(normaliser).compensated(true)
}

/// Computes a case in pieces of these lengths on a carried state, and returns the outputs and the last state.
/// Length 0 stands for a decode.
fn stream(case: &Case, pieces: impl Iterator<Item = usize>) -> (Vec<f32>, Vec<f32>) {
    let config = case.config;
    let (mut o, mut at, mut state) = (case.output(), 0, case.zero_state());
    for piece in pieces {
        let len = piece.max(1).min(config.shape.len - at);
        if piece == 0 {
            case.decode(at..at + 1, &mut state, &mut o);
        } else {
            case.forward(at..at + len, State::Carried(&mut state), &mut o);
        }
        at += len;
        if at == config.shape.len {
            break;
        }
    }
    (o, state)
}

#[test]
fn the_same_answers() {
    for isa in Isa::available() {
        for feature_map in MAPS {
            for normaliser in normalisers(&[1, 5, 16, 20, 64]) {
                for (key, value) in [(1, 1), (5, 21), (17, 40)] {
                    let rule = compensated(normaliser).feature_map(feature_map);
                    let case = Case::new(Config::new(rule, Shape::new(2, 75, 2, key, value)), 1).on(isa);
                    let (want, want_state) = case.oracle();
                    for (how, pieces) in [("whole", 75), ("pieces", 7), ("tokens", 1), ("decode", 0)] {
                        let (o, state) = stream(&case, std::iter::repeat(pieces));
                        let error = norm_error(&o, &want);
                        assert!(error <= NORM_ERROR, "{how}, {:?}: {error}", case.config);
                        // The state of a head consists of the finished sums, their rounding errors and the
                        // rest.
                        let plain = Attention::new(with(case.config, |c| c.rule.compensated = false));
                        let head = plain.expect("a legal configuration").state_len() / 4;
                        let rest = if let Normaliser::PerChunk { .. } = normaliser {
                            key * value + key + 1
                        } else {
                            0
                        };
                        let sums = head - rest;
                        for (state, want) in state.chunks(head + sums).zip(want_state.chunks(head)) {
                            let whole: Vec<f32> = state[..sums]
                                .iter()
                                .zip(&state[sums..][..sums])
                                .map(|(sum, error)| {
                                    // A rounding error is at most half a unit in the last place.
                                    assert!(
                                        error.abs() <= 6e-8 * sum.abs() || *sum == 0.0,
                                        "{how}: {sum} {error}"
                                    );
                                    sum + error
                                })
                                .chain(state[2 * sums..].iter().copied())
                                .collect();
                            let error = norm_error(&whole, want);
                            assert!(error <= NORM_ERROR, "state, {how}, {:?}: {error}", case.config);
                        }
                    }
                }
            }
        }
    }
}

/// Sums of integers around 2^28, where numbers of f32 are 32 apart. The sum and its rounding error together
/// are exact on every path. The accuracy of the outputs would not show a missing error, because so few tokens
/// lose less than the map's own rounding.
#[test]
fn what_rounding_takes_is_kept() {
    // The first token is large, the others are zero until the longest chunk has ended, and then ones.
    const QUIET: usize = 64;
    for isa in Isa::available() {
        for normaliser in normalisers(&[1, 5, 16, 20, 64]) {
            let feature_map = FeatureMap::Identity;
            let rule = compensated(normaliser).feature_map(feature_map);
            let (len, key, value) = (QUIET + 165, 3, 21);
            let mut case = Case::new(Config::new(rule, Shape::new(1, len, 1, key, value)), 1).on(isa);
            case.q.fill(1.0);
            case.v.fill(1.0);
            case.k.fill(1.0);
            case.k[..QUIET * key].fill(0.0);
            case.k[..key].fill((1 << 28) as f32);
            let sums = key * value + if normaliser == Normaliser::None { 0 } else { key };
            for (how, pieces) in [("whole", len), ("pieces", 7), ("tokens", 1), ("decode", 0)] {
                let (_, state) = stream(&case, std::iter::repeat(pieces));
                for (i, sum) in state[..sums].iter().enumerate() {
                    // The sum of the current chunk is small, and so is exact without an error.
                    let chunk = state.get(2 * sums + i).map_or(0.0, |sum| f64::from(*sum));
                    let error = state[sums + i];
                    let whole = f64::from(*sum) + f64::from(error) + chunk;
                    assert_eq!(
                        whole,
                        f64::from(1 << 28) + 165.0,
                        "{how}, {isa}, {normaliser:?}: {sum} {error}"
                    );
                    assert!(error.abs() <= 16.0, "{how}, {isa}, {normaliser:?}: {sum} {error}");
                }
            }
        }
    }
}

/// The pieces are multiples of four tokens, and chunks end at any token of a piece.
#[test]
fn pieces_cut_at_multiples_of_four_have_the_same_bits() {
    for isa in Isa::available() {
        for normaliser in normalisers(&[1, 5, 16, 20, 64]) {
            let config = Config::new(compensated(normaliser), Shape::new(1, 150, 2, 9, 35));
            let case = Case::new(config, 1).on(isa);
            let (whole, state) = stream(&case, std::iter::once(150));
            for piece in (COMPENSATED_CUT..=64).step_by(COMPENSATED_CUT) {
                let (o, pieces_state) = stream(&case, std::iter::repeat(piece));
                assert_eq!(first_difference(&o, &whole), None, "{isa} {normaliser:?} {piece}");
                assert_eq!(first_difference(&pieces_state, &state), None, "{isa} {normaliser:?} {piece}");
            }
        }
    }
}

#[test]
fn threads_change_no_bit() {
    for isa in Isa::available() {
        for normaliser in normalisers(&[64]) {
            // There are two heads, large enough that their columns are divided among five threads.
            let config = Config::new(compensated(normaliser), Shape::new(1, 512, 2, 64, 160));
            let case = Case::new(config, 1).on(isa);
            let (want, state) = stream(&case, [200, 312].into_iter());
            for threads in [2, 5] {
                let case = Case { config: case.config.threads(threads), ..case.clone() };
                let (o, threads_state) = stream(&case, [200, 312].into_iter());
                assert_eq!(first_difference(&o, &want), None, "{isa} {normaliser:?} {threads}");
                assert_eq!(first_difference(&threads_state, &state), None, "{isa} {normaliser:?} {threads}");
            }
        }
    }
}
