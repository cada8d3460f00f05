//! Dot products of bf16 as an option: errors as large as rounding the tensors, everything else as in f32. Runs on
//! the instruction sets that have them and says which those are.

mod common;

use chunkwise::{
    Attention, Config, Element, Error, FeatureMap, Forward, Isa, Normaliser, Precision, State, isa,
};
use common::*;
use half::bf16;

/// phi(q), phi(k), v and S are each rounded to 9 bits: an output whose terms don't cancel is off by four times 2^-9 at
/// most, and its denominator by twice that. Second order terms and f32's own errors are a hundredth of it.
const WORST: f64 = 6.0 * 1.01 / 512.0;

/// The instruction sets that have them.
fn isas() -> impl Iterator<Item = Isa> {
    Isa::available().filter(|isa| isa.has_bf16_dot())
}

fn with_dot(config: Config) -> Config {
    Config { precision: Precision::Bf16Dot, ..config }
}

#[test]
fn only_where_the_instruction_is() {
    for name in isa::NAMES {
        let Ok(isa) = Isa::from_name(name) else { continue };
        let config = with_dot(Config { isa: Some(isa), ..Config::new(1, 1, 1, 1, 1, Normaliser::None) });
        let result = Attention::new(config).map(|attention| attention.isa());
        if isa.has_bf16_dot() {
            assert_eq!(result, Ok(isa));
            report(&format!("{isa}: dot products of bf16 tested"));
        } else {
            assert_eq!(result, Err(Error::NoBf16Dot { isa: name }));
            report(&format!("{isa}: dot products of bf16 NOT tested, not here"));
        }
    }
    // What the standard library's detection says.
    #[cfg(all(target_arch = "x86_64", feature = "std"))]
    assert_eq!(isas().count() == 1, is_x86_feature_detected!("avx512bf16"));
    #[cfg(all(target_arch = "aarch64", feature = "std"))]
    assert_eq!(isas().count() == 1, std::arch::is_aarch64_feature_detected!("bf16"));
    assert!(!Isa::Scalar.has_bf16_dot());
}

/// Outputs and state of all ways of going through a case, against the oracle, element by element.
fn check(config: Config) {
    let mut case = Case::new(with_dot(config), 1);
    let (want, want_state) = case.oracle();
    let (size, state_size) = case.without_cancellation().oracle();
    for isa in isas() {
        case.config.isa = Some(isa);
        let (o, state) = case.whole_and_state();
        assert!(case.gaps_are_untouched(&o), "wrote between the rows of o: {:?}", case.config);
        let worst = element_error(&gather(&config, &o), &want, &size);
        assert!(worst <= WORST, "an element is off by {worst:e}: {:?}", case.config);
        // What rounding took comes after the sums.
        if !config.compensated {
            let worst = element_error(&state, &want_state, &state_size);
            assert!(worst <= WORST, "the state is off by {worst:e}: {:?}", case.config);
        }
    }
}

#[test]
fn all_sizes() {
    for (key, value) in [(1, 1), (3, 5), (4, 8), (5, 7), (17, 31), (16, 32), (33, 48), (64, 64), (100, 130)] {
        for normaliser in normalisers(&[1, 5, 16, 20, 64]) {
            for feature_map in MAPS {
                for len in [1, 2, 15, 16, 17, 37] {
                    check(Config { feature_map, ..Config::new(1, len, 1, key, value, normaliser) });
                }
            }
        }
    }
}

#[test]
fn layouts_and_compensation() {
    for order in 0..6 {
        for normaliser in normalisers(&[5, 16, 20]) {
            let mut config = Config::new(2, 53, 3, 20, 21, normaliser);
            config.q_strides = nested(&config, config.key, order, [1, 2, 3]);
            config.o_strides = nested(&config, config.value, 5 - order, [3, 1, 2]);
            config.scale = -0.3;
            config.compensated = order % 2 == 1;
            check(config);
        }
    }
}

/// The error beside that of rounding inputs and output alone, which is what bf16 in and out costs at least.
fn check_error(isa: Isa, feature_map: FeatureMap, normaliser: Normaliser, dim: usize) {
    let config = Config { isa: Some(isa), feature_map, ..Config::new(1, 300, 2, dim, dim, normaliser) };
    let case = Case::new(config, 1);
    let want = oracle(&config, &case.q, &case.k, &case.v);
    let narrow = |x: &[f32]| x.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>();
    let widen = |x: &[bf16]| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
    let (q, k, v) = (narrow(&case.q), narrow(&case.k), narrow(&case.v));
    let exact = oracle(&config, &widen(&q), &widen(&k), &widen(&v));
    let rounded: Vec<f32> = exact.iter().map(|x| bf16::from_f32(*x as f32).to_f32()).collect();
    let rounding = norm_error(&rounded, &want);

    fn forward<E: Element>(config: Config, q: &[E], k: &[E], v: &[E]) -> Vec<E> {
        let attention = Attention::new(with_dot(config)).expect("a legal configuration");
        let mut o = vec![E::default(); reach(&config, config.o_strides, config.value)];
        let scratch = &mut vec![f32::NAN; attention.scratch_len()];
        attention
            .forward(Forward { q, k, v, state: State::Zero, o: &mut o, scratch })
            .expect("legal arguments");
        o
    }
    for (how, o) in [
        ("bf16 in and out", widen(&forward(config, &q, &k, &v))),
        ("f32 in and out", forward(config, &case.q, &case.k, &case.v)),
    ] {
        let error = norm_error(&o, &want);
        let over = error / rounding;
        eprintln!("{isa} {how} {feature_map:?} {normaliser:?} {dim}: {error:.2e}, {over:.2} of rounding");
        assert!(
            over <= 1.5,
            "{isa}, {how}, {feature_map:?}, {normaliser:?}, {dim}: {error:e}, {over} of rounding"
        );
    }
}

#[test]
fn little_more_than_rounding() {
    for isa in isas() {
        for feature_map in MAPS {
            for normaliser in normalisers(&[16, 64]) {
                for dim in [48, 64] {
                    check_error(isa, feature_map, normaliser, dim);
                }
            }
        }
    }
}

#[test]
fn the_same_bits_wherever_rows_are_and_in_pieces() {
    for isa in isas() {
        for normaliser in normalisers(&[16, 64]) {
            let config = Config { isa: Some(isa), ..Config::new(2, 80, 3, 40, 70, normaliser) };
            let case = Case::new(with_dot(config), 1);
            let (o, state) = case.whole_and_state();
            let o = gather(&config, &o);

            let mut carried = case.zero_state();
            let mut pieces = case.output();
            for piece in [0..32, 32..64, 64..80] {
                case.forward(piece, State::Carried(&mut carried), &mut pieces);
            }
            let pieces = gather(&config, &pieces);
            assert_eq!(first_difference(&pieces, &o), None, "{isa}, {normaliser:?}: in pieces");
            assert_eq!(first_difference(&carried, &state), None, "{isa}, {normaliser:?}: state, in pieces");

            for order in 0..6 {
                let mut moved = case.config;
                moved.threads = 1 + order;
                moved.q_strides = nested(&moved, moved.key, order, [1, 0, 2]);
                moved.k_strides = nested(&moved, moved.key, 5 - order, [0, 3, 0]);
                moved.v_strides = nested(&moved, moved.value, order, [1, 1, 1]);
                moved.o_strides = nested(&moved, moved.value, order, [0, 0, 5]);
                let elsewhere = case.rearranged(moved, |b, t, h| (b, t, h));
                let (got, got_state) = elsewhere.whole_and_state();
                let got = gather(&moved, &got);
                assert_eq!(first_difference(&got, &o), None, "{isa}, {normaliser:?}, order {order}");
                assert_eq!(
                    first_difference(&got_state, &state),
                    None,
                    "{isa}, {normaliser:?}, order {order}"
                );
            }
        }
    }
}

/// Each half of a pair by itself: poison at an odd and at an even token, and in the last one of an odd piece.
#[test]
fn causal() {
    for isa in isas() {
        for normaliser in normalisers(&[5, 16, 64]) {
            let config = Config { isa: Some(isa), ..Config::new(1, 35, 2, 20, 21, normaliser) };
            let clean = Case::new(with_dot(config), 1);
            let want = clean.whole();
            for token in [0, 1, 6, 7, 15, 16, 31, 34] {
                for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut case = clean.clone();
                    let (keys, values) = (config.k_strides.token, config.v_strides.token);
                    case.k[token * keys..(token + 1) * keys].fill(poison);
                    case.v[token * values..(token + 1) * values].fill(poison);
                    let got = case.whole();
                    let before = token * config.o_strides.token;
                    let same = first_difference(&got[..before], &want[..before]);
                    assert_eq!(same, None, "{isa}, {normaliser:?}, {poison} at {token}");
                    let after = &got[before..];
                    let spread = after.iter().all(|o| !o.is_finite());
                    let divided_away = poison.is_infinite();
                    assert!(spread || divided_away, "{isa}, {normaliser:?}, {poison} at {token}");
                }
            }
        }
    }
}

#[test]
fn decode_is_the_same_in_both() {
    for isa in isas() {
        let config =
            Config { isa: Some(isa), ..Config::new(2, 20, 2, 20, 21, Normaliser::Global { eps: 1e-6 }) };
        let (plain, dot) = (Case::new(config, 1), Case::new(with_dot(config), 1));
        let run = |case: &Case| {
            let (mut state, mut o) = (case.zero_state(), case.output());
            case.decode(0..20, &mut state, &mut o);
            (o, state)
        };
        assert_eq!(run(&plain), run(&dot));
    }
}
