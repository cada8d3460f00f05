//! Zeros of both signs. Every sum begins at +0 and its last operation is an addition, so that outputs and
//! states from a state of zeros are +0 where they are exactly zero, whatever the signs of the zeros in q, k
//! and v, of the scale and of the denominator. If a sum began at -0 the sign could depend on where a sequence
//! is cut.
//!
//! Inputs are small integers, so that sums are exact and no product underflows.

use chunkwise::nn::{BlockWeights, Model, ModelConfig, OutputMode, Weights};
use chunkwise::{Config, FeatureMap, Isa, Normaliser, Rule, Shape, State, Tensors};
use half::{bf16, f16};

use crate::common::*;

/// T: whole blocks and a part of one on every instruction set; chunks of 1 and of 5 tokens end within it.
const LEN: usize = 11;

/// The numbers from which q, k and v are drawn: only zeros, numbers whose sums cancel, and numbers whose sums
/// do not.
const NUMBERS: [&[f32]; 3] = [&[-0.0], &[0.0, -0.0, 1.0, -1.0, 2.0], &[-1.0, -0.0, -2.0]];

/// Random choices from a few numbers.
fn draw(seed: u64, len: usize, from: &[f32]) -> Vec<f32> {
    normals(seed, len).iter().map(|x| from[(x.to_bits() >> 3) as usize % from.len()]).collect()
}

fn rules() -> impl Iterator<Item = Rule> {
    let per_chunk = [1, 5, 1000].map(|chunk| Normaliser::PerChunk { chunk, eps: 0.25 });
    let normalisers = [Normaliser::None, Normaliser::Global { eps: 0.25 }].into_iter().chain(per_chunk);
    normalisers.flat_map(|normaliser| {
        [FeatureMap::Elu, FeatureMap::Relu { eps: 0.0 }, FeatureMap::Identity].into_iter().flat_map(
            move |map| {
                let rule = Rule::linear(normaliser).feature_map(map);
                [1.0, -2.0, -0.0].into_iter().flat_map(move |scale| {
                    [false, true].map(|compensated| rule.scale(scale).compensated(compensated))
                })
            },
        )
    })
}

/// Calls `check` for each rule with each choice of numbers.
fn for_each_case(mut check: impl FnMut(&Case)) {
    for rule in rules() {
        for choice in 0..NUMBERS.len().pow(3) {
            // Less than a vector and a group; a group, and two of the longest vectors with a part of one.
            for (key, value) in [(3, 5), (16, 37)] {
                let mut case = Case::new(Config::new(rule, Shape::new(1, LEN, 1, key, value)), 1);
                let mut choices = choice;
                for (seed, x) in (1..).zip([&mut case.q, &mut case.k, &mut case.v]) {
                    *x = draw(3 * choice as u64 + seed, x.len(), NUMBERS[choices % NUMBERS.len()]);
                    choices /= NUMBERS.len();
                }
                check(&case);
            }
        }
    }
}

/// The number of zeros, after a check that none of them is -0.
#[track_caller]
fn positive_zeros(numbers: &[f32], what: &str) -> usize {
    let zeros = numbers.iter().filter(|x| **x == 0.0);
    assert!(zeros.clone().all(|x| x.is_sign_positive()), "-0 {what}");
    zeros.count()
}

#[test]
fn zeros_of_attention_are_positive() {
    let (mut zeros, mut others) = (0, 0);
    for_each_case(|case| {
        let mut of_fused: Option<[Vec<f32>; 2]> = None;
        for isa in Isa::available() {
            let case = case.on(isa);
            let what = format!("on {isa}: {case:?}", case = case.config);
            let (o, state) = case.whole_and_state();
            zeros += positive_zeros(&o, &what);
            others += o.iter().filter(|x| **x != 0.0).count();
            positive_zeros(&state, &what);
            // With compensation, only cuts at multiples of four tokens have the same bits.
            let cuts = if case.config.rule.compensated { &[4][..] } else { &[1, 3, 4] };
            for cut in cuts {
                let (mut pieces, mut carried) = (case.output(), case.zero_state());
                for begin in (0..LEN).step_by(*cut) {
                    case.forward(begin..LEN.min(begin + cut), State::Carried(&mut carried), &mut pieces);
                }
                assert_eq!(first_difference(&pieces, &o), None, "pieces of {cut} {what}");
                assert_eq!(first_difference(&carried, &state), None, "pieces of {cut} {what}");
            }
            let (mut decoded, mut after) = (case.output(), case.zero_state());
            case.decode(0..LEN, &mut after, &mut decoded);
            if case.config.rule.compensated {
                positive_zeros(&decoded, &what);
                positive_zeros(&after, &what);
            } else {
                assert_eq!(first_difference(&decoded, &o), None, "decode {what}");
                assert_eq!(first_difference(&after, &state), None, "decode {what}");
            }
            if fused().any(|fused| fused == isa) {
                let [o_there, state_there] = of_fused.get_or_insert_with(|| [o.clone(), state.clone()]);
                assert_eq!(first_difference(o_there, &o), None, "another instruction set {what}");
                assert_eq!(first_difference(state_there, &state), None, "another instruction set {what}");
            }
        }
    });
    assert!(zeros > 100_000 && others > 100_000, "{zeros} zeros, {others} others");
}

/// The integers are exact in 16 bits, so that outputs are those of f32, rounded.
#[test]
fn hashes_of_16_bit_types() {
    fn check<E: Number>(case: &Case) {
        let attention = case.attention();
        let (q, k, v) = (narrow::<E>(&case.q), narrow::<E>(&case.k), narrow::<E>(&case.v));
        let (mut o, scratch) = (narrow::<E>(&case.output()), &mut vec![f32::NAN; attention.scratch_len()]);
        attention
            .forward(Tensors::new(&q[..], &k[..], &v[..], &mut o[..]), State::Zero, scratch)
            .expect("legal arguments");
        let want = widen(&narrow::<E>(&case.whole()));
        assert_eq!(first_difference(&widen(&o), &want), None, "{}: {:?}", E::NAME, case.config);
    }
    for_each_case(|case| {
        for isa in Isa::available() {
            check::<bf16>(&case.on(isa));
            check::<f16>(&case.on(isa));
        }
    });
}

/// The layer norm of a row of equal numbers consists of zeros, which are -0 here, because gamma is negative
/// and beta is -0. Their mean is a sum, and so is +0.
#[test]
fn zeros_of_means_are_positive() {
    let config = ModelConfig {
        hidden_size: 4,
        num_heads: 1,
        num_layers: 1,
        output_mode: OutputMode::Mean,
        ..ModelConfig::new(4)
    };
    let mut flat = Vec::new();
    for parameter in config.parameters() {
        let number = match parameter.field {
            "gamma" => -1.0,
            _ => -0.0,
        };
        flat.extend(std::iter::repeat_n(number, parameter.len()));
    }
    let mut blocks = vec![BlockWeights::default(); config.num_layers];
    let weights = Weights::from_flat(&config, &flat, &mut blocks).expect("a flat model");
    for isa in Isa::available() {
        let model = Model::new(config, weights, Some(isa), 1).expect("a legal model");
        // One tile, and more than one.
        for len in [3, 300] {
            let input = vec![1.0; len * config.embed_dim];
            let mut output = vec![SENTINEL; config.hidden_size];
            let scratch = &mut vec![f32::NAN; model.scratch_len(1, len).expect("a legal size")];
            model.forward(1, len, &input, &mut output, scratch).expect("legal arguments");
            assert_eq!(positive_zeros(&output, &format!("on {isa}")), config.hidden_size);
            let mut state = vec![0.0; model.state_len(1).expect("a legal size")];
            let scratch = &mut vec![f32::NAN; model.step_scratch_len(1).expect("a legal size")];
            for input in input.chunks_exact(config.embed_dim) {
                model.step(1, input, &mut state, &mut output, scratch).expect("legal arguments");
                assert_eq!(positive_zeros(&output, &format!("on {isa}, a step")), config.hidden_size);
            }
        }
    }
}
