//! Special values: numbers that are very small, very large or not finite have the results that they have in
//! the recurrence. Every case runs on every instruction set of the machine, by forward and token by token.
//!
//! The library guarantees the following:
//!
//! - Denormals are numbers: none is replaced by zero, and a product that underflows is rounded.
//! - An output that is exactly zero is +0 if the state began at zero; `zeros.rs` has more tests of zeros.
//! - Where an output of the recurrence is finite, it is finite here if S, phi(q) . z and phi(q)^T S are
//!   finite in f32. Outputs beyond f32::MAX are infinities of the same sign. An infinite element of a
//!   compensated S becomes NaN, because its rounding error is NaN.
//! - Where an output of the recurrence is not finite, it is not finite here. It may be NaN or an infinity
//!   where an infinity meets zeros or infinities of both signs, because `(a b) c` and `a (b c)` differ there.
//!   NaN inputs give NaN.

use chunkwise::element::Element;
use chunkwise::reference::phi;
use chunkwise::{Config, FeatureMap, Isa, Normaliser, Rule, Shape, State, Tensors};
use half::{bf16, f16};

use crate::common::*;

/// T: two tiles and a part of one, in which chunks of 5, 16 and 20 tokens end.
const LEN: usize = 2 * TILE + 9;
/// K: one of the longest vectors and a part of one.
const KEY: usize = 19;
/// V: two of the longest vectors and a part of one. A decode sweeps the whole vectors in place and the others
/// in a panel.
const VALUE: usize = 37;
/// The bound for the worst element: 32 roundings, a little less than [`element_bound`] for these sizes, 2
/// sqrt(KEY + LEN) + 16 = 33.4.
const ELEMENT: f64 = 32.0 / (1u64 << 24) as f64;
/// Half the distance between denormals, which is the error of rounding to one.
const HALF_DENORMAL: f64 = f64::from_bits((1023 - 150) << 52);
/// The smallest denormal.
const DENORMAL: f32 = f32::from_bits(1);
/// The distance between values of elu below zero.
const STEP: f32 = 1.0 / (1 << 24) as f32;

/// Configurations with every map and every normaliser.
fn configs() -> impl Iterator<Item = Config> {
    let all = normalisers(&[5, 16, 20]).into_iter();
    all.flat_map(|normaliser| {
        MAPS.map(|map| {
            Config::new(Rule::linear(normaliser).feature_map(map), Shape::new(1, LEN, 1, KEY, VALUE))
        })
    })
}

/// The outputs and last states of a case, by forward and by decode, on every instruction set.
fn every_way(case: &Case) -> Vec<(String, Vec<f32>, Vec<f32>)> {
    let ways = Isa::available().flat_map(|isa| {
        let case = case.on(isa);
        let (o, state) = case.whole_and_state();
        let (mut decoded, mut after) = (case.output(), case.zero_state());
        case.decode(0..case.config.shape.len, &mut after, &mut decoded);
        [(format!("{isa} forward"), o, state), (format!("{isa} decode"), decoded, after)]
    });
    ways.collect()
}

/// Passes phi of all numbers, as the kernels compute it, to `check`. With one token and v = 1, phi(k) is the
/// state, so that every lane of a vector is tested; with phi(k) = v = 1 and K = 1, phi(q) is an output.
fn for_each_phi(map: FeatureMap, x: &[f32], mut check: impl FnMut(&str, f32, f32)) {
    let one = match map {
        FeatureMap::Elu => 0.0,
        FeatureMap::Relu { eps } => 1.0 - eps,
        _ => 1.0,
    };
    let rule = Rule::linear(Normaliser::None).feature_map(map);
    let config = Config::new(rule, Shape::new(1, 1, 1, x.len(), 1));
    let keys = Case { config, q: vec![one; x.len()], k: x.to_vec(), v: vec![1.0] };
    for (way, _, state) in every_way(&keys) {
        x.iter().zip(state).for_each(|(x, phi)| check(&format!("{way}, k"), *x, phi));
    }
    let config = Config::new(rule, Shape::new(x.len(), 1, 1, 1, 1));
    let queries = Case { config, q: x.to_vec(), k: vec![one; x.len()], v: vec![1.0; x.len()] };
    for (way, o, _) in every_way(&queries) {
        x.iter().zip(o).for_each(|(x, phi)| check(&format!("{way}, q"), *x, phi));
    }
}

#[test]
fn maps_at_their_limits() {
    let x = [
        (-0.0, 1.0), // both branches give 1 here
        (0.0, 1.0),
        (DENORMAL, 1.0), // 1 + x, and 1 + (exp(x) - 1), round to 1
        (-DENORMAL, 1.0),
        (f32::MIN_POSITIVE, 1.0),
        (-f32::MIN_POSITIVE, 1.0),
        (-1e-8, 1.0), // exp(x) rounds to 1
        (f32::EPSILON, 1.0 + f32::EPSILON),
        (-f32::EPSILON, 1.0 - f32::EPSILON),
        (-16.0, 2.0 * STEP), // exp(x) is 1.9 steps, which exp alone would keep
        (-17.2, STEP),       // 0.57 of a step
        (-17.5, 0.0),        // 0.42 of a step
        (-87.3, 0.0),        // the last normal exp(x)
        (-87.4, 0.0),        // the first denormal one
        (-103.0, 0.0),       // the last denormal one
        (-104.0, 0.0),       // exp(x) is zero in f32
        (-1000.0, 0.0),      // zero in f64 too
        (-f32::MAX, 0.0),
        (f32::NEG_INFINITY, 0.0),
        (88.0, 89.0), // exp would be 1.7e38: not taken
        (89.0, 90.0), // exp would be infinite
        (100.0, 101.0),
        (f32::MAX, f32::MAX),
        (f32::INFINITY, f32::INFINITY),
    ];
    for map in MAPS {
        let only_x = x.map(|(x, _)| x);
        for_each_phi(map, &only_x, |way, x, got| {
            let want = phi(map, x);
            let same = if want.is_finite() { f64::from(got) == want } else { !got.is_finite() };
            assert!(same, "{way}: phi({x:e}) = {got:e}, {want:e}: {map:?}");
        });
        for_each_phi(map, &[f32::NAN; 33], |way, _, got| {
            assert!(got.is_nan(), "{way}: {map:?} of NaN: {got}")
        });
    }
    for (x, want) in x {
        assert_eq!(phi(FeatureMap::Elu, x), f64::from(want), "the oracle at {x:e}");
    }
}

/// `1 + (exp(x) - 1)` in f32 is a multiple of 2^-24, and differs from the oracle by at most two of these
/// steps.
#[test]
fn elu_below_zero_is_on_its_grid() {
    let x: Vec<f32> = (0..=20_000).map(|i| i as f32 * -0.001).collect();
    for_each_phi(FeatureMap::Elu, &x, |way, x, got| {
        let want = phi(FeatureMap::Elu, x);
        assert_eq!((got / STEP).fract(), 0.0, "{way}: phi({x}) = {got:e} is not a multiple of 2^-24");
        assert!((0.0..=1.0).contains(&got), "{way}: phi({x}) = {got}");
        // The error of exp is at most 1.3e-7, a little more than two steps, and 1 + (exp - 1) is rounded to a
        // multiple of a step.
        assert!(
            (f64::from(got) - want).abs() <= 2.0 * f64::from(STEP),
            "{way}: phi({x}) = {got:e}, {want:e}"
        );
    });
}

/// Inputs that are denormal, or whose products are. Each rounding then has an additional error of half a
/// denormal, which is multiplied by the factors that follow: by v, and by scale / norm, which is at most
/// scale / eps.
#[test]
fn denormals() {
    /// With these factors numbers are mostly denormal; products of two numbers are; products of three are.
    const SMALL: [f32; 3] = [1e-39, 1e-20, 1e-14];
    for config in configs() {
        let clean = Case::new(config, 1);
        for factors in SMALL.iter().flat_map(|&x| {
            [[x, 1.0, 1.0], [1.0, x, 1.0], [1.0, 1.0, x], [x, x, 1.0], [1.0, x, x], [x, 1.0, x], [x, x, x]]
        }) {
            let mut case = clean.clone();
            for (x, factor) in [&mut case.q, &mut case.k, &mut case.v].into_iter().zip(factors) {
                x.iter_mut().for_each(|x| *x *= factor);
            }
            let (want, want_state) = case.oracle();
            let (size, state_size) = case.without_cancellation().oracle();
            let amplified = match config.rule.normaliser {
                Normaliser::Global { eps } | Normaliser::PerChunk { eps, .. } => 1.0 / f64::from(eps),
                _ => 1.0,
            };
            let largest = |x: &[f32]| x.iter().fold(1.0, |a: f64, x| a.max(f64::from(x.abs())));
            // The additional errors in S, and in o, where those of S are multiplied by phi(q) and KEY of them
            // are added.
            let in_state = LEN as f64 * HALF_DENORMAL;
            let in_output =
                (LEN * KEY) as f64 * HALF_DENORMAL * largest(&case.q) * largest(&case.v) * amplified;
            for (way, o, state) in every_way(&case) {
                let close = |what: &str, got: &[f32], want: &[f64], size: &[f64], floor: f64| {
                    for ((got, want), size) in got.iter().zip(want).zip(size) {
                        let off = (f64::from(*got) - want).abs();
                        assert!(
                            off <= ELEMENT * size + floor,
                            "{way}: {what} {got:e}, {want:e}: {factors:?}, {config:?}"
                        );
                    }
                };
                close("output", &o, &want, &size, in_output);
                close("state", &state, &want_state, &state_size, in_state);
            }
        }
    }
}

/// A single product of q, k and v is rounded correctly; the bound of the test above would permit a denormal
/// to become zero.
#[test]
fn denormals_are_not_flushed() {
    let numbers = [
        (1.0, 1.0, DENORMAL),
        (1.0, DENORMAL, 1.0),
        (DENORMAL, 1.0, 1.0),
        (1.0, 1.0, -1e-40),
        (1.0, 1e-20, 1.3e-20), // a product to be rounded
        (1.7e-20, 1.0, -1.1e-20),
        (1.7e-20, 1.1e-20, 1.0),
        (1e-40, 1.0, 1e30), // a denormal, multiplied by a large number
        (1.0, 1e-40, 1e30),
        (1e30, 1.0, 1e-40),
        (1.0, 1e-30, 1.2e-15), // more than half a denormal: rounded up
        (1.0, 1e-30, 4e-16),   // less than half: zero
    ];
    for (q, k, v) in numbers {
        let rule = Rule::linear(Normaliser::None).feature_map(FeatureMap::Identity);
        let config = Config::new(rule, Shape::new(1, 1, 1, 1, VALUE));
        let case = Case { config, q: vec![q], k: vec![k], v: vec![v; VALUE] };
        let want = (f64::from(q) * f64::from(k) * f64::from(v)) as f32;
        for (way, o, state) in every_way(&case) {
            assert_eq!(o, [want; VALUE], "{way}: {q:e} {k:e} {v:e}");
            assert_eq!(state, [(f64::from(k) * f64::from(v)) as f32; VALUE], "{way}: {k:e} {v:e}");
        }
    }
}

#[test]
fn zeros() {
    // Zeros of both signs in v, then in q, k and v; phi of q and k is not zero for Elu and Relu.
    let zeros = |x: &mut Vec<f32>| x.iter_mut().enumerate().for_each(|(i, x)| *x = [0.0, -0.0, -0.0][i % 3]);
    for config in configs() {
        let clean = Case::new(config, 1);
        let (mut v, mut all) = (clean.clone(), clean.clone());
        zeros(&mut v.v);
        [&mut all.q, &mut all.k, &mut all.v].into_iter().for_each(zeros);
        for mut case in [v, all] {
            for scale in [1.0, 0.3, 0.0, -2.0] {
                case.config.rule.scale = scale;
                for (way, o, _) in every_way(&case) {
                    let zero = |x: &f32| x.to_bits() == 0;
                    assert!(o.iter().all(zero), "{way}: {o:?}: {:?}", case.config);
                }
            }
        }
        // Zeros only in q, or only in k: for Identity the denominator is then eps.
        let (mut q, mut k) = (clean.clone(), clean.clone());
        zeros(&mut q.q);
        zeros(&mut k.k);
        for case in [q, k] {
            let (want, _) = case.oracle();
            let (size, _) = case.without_cancellation().oracle();
            for (way, o, _) in every_way(&case) {
                let worst = element_error(&o, &want, &size);
                assert!(worst <= ELEMENT, "{way}: off by {worst:e}: {config:?}");
            }
        }
    }
}

/// A case in which some elements of a row of one input are replaced.
fn poisoned(clean: &Case, tensor: usize, token: usize, columns: std::ops::Range<usize>, poison: f32) -> Case {
    let mut case = clean.clone();
    let (x, dim) = [(&mut case.q, KEY), (&mut case.k, KEY), (&mut case.v, VALUE)]
        .into_iter()
        .nth(tensor)
        .expect("q, k, v");
    x[token * dim..][columns].fill(poison);
    case
}

/// NaN and infinities in q, k and v, in one element and in a whole row, of the first token, of one within the
/// second tile and of the last token.
#[test]
fn poison_goes_where_the_recurrence_takes_it() {
    for config in configs() {
        let clean = Case::new(config, 1);
        let untouched = every_way(&clean);
        for token in [0, TILE + 5, LEN - 1] {
            for (tensor, dim) in [KEY, KEY, VALUE].into_iter().enumerate() {
                for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    for columns in [0..1, dim - 1..dim, 0..dim] {
                        let what = format!(
                            "{poison} in {}[{token}][{columns:?}]: {config:?}",
                            ["q", "k", "v"][tensor]
                        );
                        let case = poisoned(&clean, tensor, token, columns, poison);
                        let (want, _) = case.oracle();
                        let (size, _) = case.without_cancellation().oracle();
                        for ((way, o, _), (_, before, _)) in every_way(&case).iter().zip(&untouched) {
                            let earlier = token * VALUE;
                            assert_eq!(
                                first_difference(&o[..earlier], &before[..earlier]),
                                None,
                                "{way}: {what}"
                            );
                            for (at, ((got, want), size)) in o.iter().zip(&want).zip(&size).enumerate() {
                                let right = if want.is_finite() {
                                    (f64::from(*got) - want).abs() <= ELEMENT * size
                                } else {
                                    !got.is_finite() && (got.is_nan() || !poison.is_nan())
                                };
                                assert!(
                                    right,
                                    "{way}: o[{}][{}] = {got}, {want}: {what}",
                                    at / VALUE,
                                    at % VALUE
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Where an infinity meets neither a zero nor an infinity of the other sign, outputs are infinities of its
/// sign. From the token with the other infinity on they are NaN.
#[test]
fn infinities_keep_their_sign() {
    let (up, down) = (3, TILE + 7);
    for config in configs() {
        let mut case = Case::new(config, 1);
        case.q.iter_mut().chain(&mut case.k).for_each(|x| *x = x.abs());
        let last = VALUE - 1;
        case.v[up * VALUE] = f32::INFINITY;
        case.v[down * VALUE] = f32::NEG_INFINITY;
        case.v[up * VALUE + last] = f32::NEG_INFINITY;
        let (want, _) = case.oracle();
        for (way, o, _) in every_way(&case) {
            for token in 0..LEN {
                let expected = match token {
                    t if t < up => f64::is_finite,
                    t if t < down => |x: f64| x == f64::INFINITY,
                    _ => f64::is_nan,
                };
                let (first, other) = (token * VALUE, token * VALUE + last);
                assert!(expected(want[first]), "the oracle: {}", want[first]);
                assert!(expected(f64::from(o[first])), "{way}: o[{token}] = {}: {config:?}", o[first]);
                assert!(
                    token < up || o[other] == f32::NEG_INFINITY,
                    "{way}: o[{token}] = {}: {config:?}",
                    o[other]
                );
            }
        }
    }
}

/// An infinite k without a normaliser, where phi(q) is positive, gives infinities with the sign of v. (With a
/// normaliser the output is inf / inf.)
#[test]
fn infinite_keys() {
    let config = Config::new(Rule::linear(Normaliser::None), Shape::new(1, LEN, 1, KEY, VALUE));
    let case = poisoned(&Case::new(config, 1), 1, TILE + 5, 2..3, f32::INFINITY);
    let (want, _) = case.oracle();
    for (way, o, _) in every_way(&case) {
        for (at, (got, want)) in o.iter().zip(&want).enumerate() {
            let same = if want.is_finite() { got.is_finite() } else { f64::from(*got) == *want };
            assert!(same, "{way}: o[{}][{}] = {got}, {want}", at / VALUE, at % VALUE);
        }
    }
}

/// Values of v near f32::MAX, all of one sign. An output is finite if phi(q)^T S is finite in f32, and an
/// infinity if o itself is not. If only the numerator is not, it may be either, but never NaN or of the other
/// sign.
#[test]
fn large_values() {
    const MAX: f64 = f32::MAX as f64;
    for config in configs() {
        for (part, sign) in
            [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5].into_iter().flat_map(|part| [(part, 1.0), (part, -1.0)])
        {
            let mut case = Case::new(config, 1);
            case.q.iter_mut().chain(&mut case.k).for_each(|x| *x = x.abs());
            case.v.iter_mut().for_each(|x| *x = sign * f32::MAX * (part * (1.0 - x.abs() / 8.0)));
            let (want, _) = case.oracle();
            let mut sum = case.clone();
            sum.config.rule.normaliser = Normaliser::None;
            let (numerator, _) = sum.oracle();
            for (way, o, _) in every_way(&case) {
                for ((got, want), numerator) in o.iter().zip(&want).zip(&numerator) {
                    let close = (f64::from(*got) - want).abs() <= ELEMENT * want.abs();
                    let infinite = *got == sign * f32::INFINITY;
                    // Numbers that differ from MAX by no more than rounding errors may be either.
                    let right = if want.abs() > MAX * (1.0 + ELEMENT) {
                        infinite
                    } else if numerator.abs() < MAX * (1.0 - ELEMENT) {
                        close
                    } else {
                        close || infinite
                    };
                    assert!(right, "{way}: {got:e}, {want:e}, numerator {numerator:e}: {config:?}");
                }
            }
        }
    }
}

/// q and k whose products are near the limit of f32, and beyond it.
#[test]
fn large_products() {
    for config in configs() {
        // The largest q . z is LEN KEY 16 1e34 = 1.7e38, and v is so small that phi(q)^T S is finite as well.
        let mut case = Case::new(config, 1);
        case.q.iter_mut().chain(&mut case.k).for_each(|x| *x = x.abs().clamp(0.1, 4.0) * 1e17);
        let (want, _) = case.oracle();
        let (size, _) = case.without_cancellation().oracle();
        for (way, o, _) in every_way(&case) {
            let worst = element_error(&o, &want, &size);
            assert!(worst <= ELEMENT, "{way}: off by {worst:e}: {config:?}");
        }
        // Where phi(q)^T S overflows, the output is an infinity with the sign of v without a normaliser, as
        // in the recurrence rounded to f32, and inf / inf with one.
        case.q.iter_mut().chain(&mut case.k).for_each(|x| *x *= 1e4);
        case.v.iter_mut().for_each(|x| *x = 1.0);
        for (way, o, _) in every_way(&case) {
            let right = |x: &f32| {
                if config.rule.normaliser == Normaliser::None { *x == f32::INFINITY } else { x.is_nan() }
            };
            assert!(o.iter().all(right), "{way}: {o:?}: {config:?}");
        }
    }
}

/// Denominators near the smallest normal number, without eps: the outputs are still averages of v.
#[test]
fn small_denominators() {
    for feature_map in [FeatureMap::Relu { eps: 0.0 }, FeatureMap::Identity] {
        let normaliser = Normaliser::Global { eps: 0.0 };
        let rule = Rule::linear(normaliser).feature_map(feature_map);
        let config = Config::new(rule, Shape::new(1, LEN, 1, KEY, VALUE));
        let mut case = Case::new(config, 1);
        // Each product is at least 0.09e-36, so that all are normal and the reciprocals of sums are finite.
        case.q.iter_mut().chain(&mut case.k).for_each(|x| *x = x.abs().clamp(0.3, 4.0) * 1e-18);
        let (want, _) = case.oracle();
        let (size, _) = case.without_cancellation().oracle();
        for (way, o, _) in every_way(&case) {
            let worst = element_error(&o, &want, &size);
            assert!(worst <= ELEMENT, "{way}: off by {worst:e}: {config:?}");
        }
    }
}

/// NaN and infinities in one column of an initial state stay in that column.
#[test]
fn poisoned_states() {
    for config in configs() {
        let clean = Case::new(config, 1);
        for poison in [f32::NAN, f32::INFINITY] {
            for isa in Isa::available() {
                let case = clean.on(isa);
                let mut state = case.zero_state();
                state[1] = poison;
                let (mut o, mut decoded) = (case.output(), case.output());
                case.forward(0..LEN, State::Initial(&state), &mut o);
                case.decode(0..LEN, &mut state, &mut decoded);
                for o in [o, decoded] {
                    for (t, row) in o.chunks_exact(VALUE).enumerate() {
                        assert!(!row[1].is_finite(), "{isa}: o[{t}][1] = {}: {config:?}", row[1]);
                        assert!(
                            row[0].is_finite() && row[2..].iter().all(|x| x.is_finite()),
                            "{isa}: {row:?}: {config:?}"
                        );
                    }
                }
            }
        }
    }
}

/// With q = k = 1, an output is v times the scale, rounded to the 16-bit type; checks it for each v, scale
/// and expected output.
fn check_16_bits<E: Element + std::fmt::Debug>(numbers: &[(E, f32, E)], same: fn(&E, &E) -> bool) {
    let one = [1.0_f32];
    for &(v, scale, want) in numbers {
        for isa in Isa::available() {
            let rule = Rule::linear(Normaliser::None).feature_map(FeatureMap::Identity).scale(scale);
            let config = Config::new(rule, Shape::new(1, 1, 1, 1, VALUE)).isa(isa);
            let attention = Case { config, q: vec![], k: vec![], v: vec![] }.attention();
            let scratch = &mut vec![0.0; attention.scratch_len().max(attention.decode_scratch_len())];
            let (v, mut o, mut decoded) = ([v; VALUE], [E::default(); VALUE], [E::default(); VALUE]);
            let tensors = Tensors::new(&one, &one, &v, &mut o);
            attention.forward(tensors, State::Zero, scratch).expect("legal arguments");
            let state = &mut vec![0.0; attention.state_len()][..];
            let tensors = Tensors::new(&one, &one, &v, &mut decoded);
            attention.decode(tensors, state, scratch).expect("legal arguments");
            for o in o.iter().chain(&decoded) {
                assert!(same(o, &want), "{isa}: {:?} times {scale} is {o:?}, not {want:?}", v[0]);
            }
        }
    }
}

#[test]
fn sixteen_bits() {
    let (denormal, least) = (f16::from_bits(0x0001), f16::MIN_POSITIVE);
    check_16_bits::<f16>(
        &[
            (denormal, 1.0, denormal),
            (denormal, 0.75, denormal), // rounded up
            (denormal, 0.5, f16::ZERO), // a tie, rounded to even
            (least, 0.5, f16::from_bits(0x0200)),
            (f16::MAX, 1.0, f16::MAX),
            (f16::MAX, 1.0002, f16::MAX), // rounded down
            (f16::MAX, 1.0003, f16::INFINITY),
            (f16::MIN, 2.0, f16::NEG_INFINITY),
            (f16::NEG_INFINITY, 1.0, f16::NEG_INFINITY),
            (f16::NAN, 1.0, f16::NAN),
        ],
        |a, b| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(),
    );
    // A denormal of bf16 is also a denormal of f32.
    let (denormal, least) = (bf16::from_bits(0x0001), bf16::MIN_POSITIVE);
    check_16_bits::<bf16>(
        &[
            (denormal, 1.0, denormal),
            (denormal, 0.75, denormal),
            (denormal, 0.5, bf16::ZERO),
            (least, 0.5, bf16::from_bits(0x0040)),
            (bf16::MAX, 1.0, bf16::MAX),
            (bf16::MAX, 1.001, bf16::MAX),
            (bf16::MAX, 1.002, bf16::INFINITY),
            (bf16::MIN, 2.0, bf16::NEG_INFINITY),
            (bf16::NEG_INFINITY, 1.0, bf16::NEG_INFINITY),
            (bf16::NAN, 1.0, bf16::NAN),
        ],
        |a, b| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(),
    );
}
