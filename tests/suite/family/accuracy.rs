//! The errors of outputs and states against the recurrence in f64: the bounds that docs/numerics.md states
//! for gates and delta rules, and the rows of its table, which these tests print.

use chunkwise::{Config, Gate, GateMap, Isa, Rule, Shape, Update};
use half::{bf16, f16};

use crate::common::family::*;
use crate::common::*;

/// The documented norm error of the delta rule where the keys of a head nearly agree and beta is in [1.8, 2].
/// Each token then reflects the state, together with the rounding errors of earlier tokens. The bound is 1.5
/// times the worst error that was measured, which was 1.60e-6 with scalar code and 1.23e-6 with vectors.
const CORRELATED_ERROR: f64 = 2.4e-6;

/// K, V and T.
const SIZES: [[usize; 3]; 4] = [[16, 16, 64], [64, 64, 256], [96, 20, 150], [128, 32, 512]];
/// The number of random cases for each rule and size; the first of them is also computed in 16 bits.
const DRAWS: u64 = 4;

/// Cases of all rules with an update, all sizes and draws, with decays close to 1, so that the state
/// remembers many tokens.
fn long_cases(update: Update, draws: u64, change: impl Fn(&mut FamilyCase, u64)) -> Vec<FamilyCase> {
    let mut cases = Vec::new();
    for (_, rule) in rules().into_iter().filter(|(_, rule)| rule.update == update) {
        for ([key, value, len], draw) in
            SIZES.into_iter().flat_map(|sizes| (1..=draws).map(move |draw| (sizes, draw)))
        {
            let config = Config::new(rule.scale_by_key(key), Shape::new(1, len, 1, key, value));
            let case = FamilyCase::new(config, draw).at_zero();
            cases.push(case.changed(|case| {
                case.g = uniform(41 + draw, case.g.len(), -0.05, 0.0);
                change(case, draw);
            }));
        }
    }
    cases
}

/// Makes the keys of a head nearly equal: the same direction for all tokens plus this amount of noise.
fn correlate(case: &mut FamilyCase, draw: u64, noise: f32) {
    let key = case.config.shape.key;
    let direction = normals(100 + draw, key);
    for row in case.k.chunks_exact_mut(key) {
        row.iter_mut().zip(&direction).for_each(|(k, direction)| *k = noise * *k + direction);
    }
    case.beta = uniform(51 + draw, case.beta.len(), 1.8, 2.0);
}

/// The results of a case in tensors of a type, by one forward and token by token.
fn both<E: Number>(case: &FamilyCase) -> [(Vec<f32>, Vec<f32>); 2] {
    let len = case.config.shape.len;
    let tokens = (0..len).map(|token| (token..token + 1, true));
    [case.pieces_in::<E>([(0..len, false)]), case.pieces_in::<E>(tokens)]
}

/// The worst norm error of outputs and states in f32, for each instruction set.
fn worst(cases: &[FamilyCase]) -> Vec<(Isa, f64)> {
    let mut worst: Vec<(Isa, f64)> = Isa::available().map(|isa| (isa, 0.0)).collect();
    for case in cases {
        let (want, want_state) = case.oracle();
        for (isa, worst) in &mut worst {
            for (o, state) in both::<f32>(&case.on(*isa)) {
                *worst = worst.max(norm_error(&o, &want)).max(norm_error(&state, &want_state));
            }
        }
    }
    worst
}

/// The worst norm error of outputs on any instruction set, compared with the oracle on the numbers before
/// they were rounded to a type, and the worst ratio of this error to the error of rounding only the inputs
/// and outputs.
fn worst_rounded<E: Number>(cases: &[FamilyCase]) -> [f64; 2] {
    let mut worst: [f64; 2] = [0.0; 2];
    for case in cases {
        let (want, (rounded, _)) = (case.oracle().0, case.rounded::<E>().oracle());
        let rounded: Vec<f32> = rounded.iter().map(|x| E::narrow(*x as f32).widen()).collect();
        let rounding = norm_error(&rounded, &want);
        for (o, _) in Isa::available().flat_map(|isa| both::<E>(&case.on(isa))) {
            let error = norm_error(&o, &want);
            worst = [worst[0].max(error), worst[1].max(error / rounding)];
        }
    }
    worst
}

/// Prints the rows of the table for some cases. The error must be at most `bound` in f32, and at most 1.5
/// times the error of rounding in 16 bits.
#[track_caller]
fn row(name: &str, bound: f64, cases: impl Fn(u64) -> Vec<FamilyCase>) {
    let f32s = worst(&cases(DRAWS));
    let (bf16s, f16s) = (worst_rounded::<bf16>(&cases(1)), worst_rounded::<f16>(&cases(1)));
    for (isa, f32s) in f32s {
        let [[bf16, over_bf16], [f16, over_f16]] = [bf16s, f16s];
        let text = format!(
            "| {name} | {isa} | {f32s:.2e} | {bf16:.1e} | {over_bf16:.2} | {f16:.1e} | {over_f16:.2} |"
        );
        report(&text);
        assert!(f32s <= bound, "more than {bound:e}: {text}");
        assert!(over_bf16 <= 1.5 && over_f16 <= 1.5, "more than rounding: {text}");
    }
}

#[test]
fn gates() {
    row("linear update, gates", NORM_ERROR, |draws| long_cases(Update::Linear, draws, |_, _| {}));
}

#[test]
fn delta_with_keys_at_random() {
    row("delta, keys at random", DELTA_ERROR, |draws| long_cases(Update::Delta, draws, |_, _| {}));
}

#[test]
fn delta_with_correlated_keys() {
    row("delta, correlated keys, beta in [1.8, 2]", CORRELATED_ERROR, |draws| {
        let of = |noise| long_cases(Update::Delta, draws, |case, draw| correlate(case, draw, noise));
        [of(0.3), of(0.1), of(0.01)].concat()
    });
}

/// A decay that is the same for 4096 tokens is rounded in the same way every time, so that the errors do not
/// cancel. The exponential of a logarithm is rounded to f32, and so are the products of the decays of a
/// block. Where the decay is nearly 1, each rounding adds up to 2^-25 for each of the 1 / |g| tokens that the
/// state remembers.
#[test]
fn constant_decays() {
    let rounding = |remembered: f64| remembered / f64::from(1 << 25);
    for update in [Update::Linear, Update::Delta] {
        let rule = match update {
            Update::Delta => Rule::delta(Gate::Scalar).qk_norm(1e-6),
            _ => Rule::gated(Gate::Scalar),
        };
        let check = |what: &str, case: FamilyCase, roundings: f64| {
            let bound = case.bound() + roundings;
            for (isa, error) in worst(&[case]) {
                let text = format!("{what}, {update:?}, {isa}: {error:.1e}");
                report(&text);
                assert!(error <= bound, "more than {bound:e}: {text}");
            }
        };
        for g in [-1e-5_f32, -3.3e-4, -1e-3, -0.0123, -0.1] {
            let case = FamilyCase::of(rule, [1, 4096, 1, 16, 16]).at_zero();
            let as_log = case.changed(|case| case.g.fill(g));
            let as_number = case.changed(|case| {
                case.config.rule.gate_map = GateMap::Linear;
                case.g.fill(g.exp());
            });
            let remembered = f64::from(1.0 / -g).min(4096.0);
            check(&format!("the decay exp({g}) as a logarithm"), as_log, 2.0 * rounding(remembered));
            check(&format!("the decay exp({g}) as a number"), as_number, rounding(remembered));
        }
        // RetNet's decays are numbers of f32; the exponentials of their logarithms are these numbers or
        // neighbours of them.
        let retention = FamilyCase::of(rule, [1, 4096, 8, 16, 16]).at_zero().changed(|case| {
            let mut decays = [0.0; 8];
            chunkwise::rule::retention(&mut decays);
            case.g = decays.repeat(4096);
        });
        check("RetNet's decays", retention, rounding(4096.0));
    }
}
