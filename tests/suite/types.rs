//! bf16 and f16: any mixture of types gives the bits of f32 on the widened rows, and the error is hardly more
//! than that of rounding the tensors.

use chunkwise::nn::{BlockWeights, LayerNorm, Linear, Model, ModelConfig, Weights, init};
use chunkwise::{Attention, Config, Error, FeatureMap, Isa, Normaliser, Rule, Shape, State, Tensors};
use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use crate::common::*;
use crate::properties::{for_all, place, same};

/// Computes pieces that begin at these tokens from a state of zeros, each token by token if its flag is set
/// and by forward otherwise; returns the outputs and the last state.
fn in_pieces<Q: Number, K: Number, V: Number, O: Number>(
    config: Config,
    q: &[Q],
    k: &[K],
    v: &[V],
    begins: &[(usize, bool)],
) -> (Vec<O>, Vec<f32>) {
    let Shape { len, value, q_strides, k_strides, v_strides, o_strides, .. } = config.shape;
    let of = |len| Attention::new(with(config, |c| c.shape.len = len)).expect("a legal configuration");
    let mut o = vec![O::narrow(SENTINEL); reach(&config, o_strides, value)];
    let mut state = vec![0.0; of(len).state_len()];
    let ends = begins.iter().skip(1).map(|(begin, _)| *begin).chain([len]);
    for (&(begin, one_by_one), end) in begins.iter().zip(ends) {
        let step = if one_by_one { 1 } else { (end - begin).max(1) };
        for begin in (begin..end).step_by(step) {
            let attention = of(step);
            let (q, k) = (&q[begin * q_strides.token..], &k[begin * k_strides.token..]);
            let (v, o) = (&v[begin * v_strides.token..], &mut o[begin * o_strides.token..]);
            let tensors = Tensors::new(q, k, v, o);
            let scratch = &mut vec![f32::NAN; attention.scratch_len().max(attention.decode_scratch_len())];
            let done = if one_by_one {
                attention.decode(tensors, &mut state, scratch)
            } else {
                attention.forward(tensors, State::Carried(&mut state), scratch)
            };
            done.expect("legal arguments");
        }
    }
    (o, state)
}

/// Computes all tokens by forward from a state of zeros; returns the outputs and the last state.
fn forward<Q: Number, K: Number, V: Number, O: Number>(
    config: Config,
    q: &[Q],
    k: &[K],
    v: &[V],
) -> (Vec<O>, Vec<f32>) {
    in_pieces(config, q, k, v, &[(0, false)])
}

/// Computes all tokens one by one from a state of zeros; returns the outputs and the last state.
fn decode<Q: Number, K: Number, V: Number, O: Number>(
    config: Config,
    q: &[Q],
    k: &[K],
    v: &[V],
) -> (Vec<O>, Vec<f32>) {
    in_pieces(config, q, k, v, &[(0, true)])
}

/// Compares a case in the types Q, K, V and O with f32 on the same numbers.
fn check_bits<Q: Number, K: Number, V: Number, O: Number>(case: &Case) {
    let config = case.config;
    let (q, k, v) = (narrow::<Q>(&case.q), narrow::<K>(&case.k), narrow::<V>(&case.v));
    let (wide_q, wide_k, wide_v) = (widen(&q), widen(&k), widen(&v));
    let name = format!("{}, {}, {} to {}, {config:?}", Q::NAME, K::NAME, V::NAME, O::NAME);
    let runs = [
        ("forward", forward::<_, _, _, f32>(config, &wide_q, &wide_k, &wide_v), forward(config, &q, &k, &v)),
        ("decode", decode::<_, _, _, f32>(config, &wide_q, &wide_k, &wide_v), decode(config, &q, &k, &v)),
    ];
    for (how, (want, want_state), (got, state)) in runs {
        let (want, got) = (widen(&narrow::<O>(&want)), widen::<O>(&got));
        assert_eq!(first_difference(&got, &want), None, "{how}, {name}");
        assert_eq!(first_difference(&state, &want_state), None, "state, {how}, {name}");
    }
}

#[test]
fn the_same_bits_as_f32_on_widened_rows() {
    for isa in Isa::available() {
        for feature_map in MAPS {
            for normaliser in normalisers(&[5, 64]) {
                // Less than a vector; not a multiple of a vector; whole panels.
                for (key, value) in [(3, 5), (17, 33), (32, 64)] {
                    let rule = Rule::linear(normaliser).feature_map(feature_map);
                    let config = Config::new(rule, Shape::new(2, 37, 2, key, value));
                    let case = Case::new(config, 1).on(isa);
                    check_bits::<bf16, bf16, bf16, bf16>(&case);
                    check_bits::<f16, f16, f16, f16>(&case);
                    check_bits::<bf16, bf16, bf16, f32>(&case);
                    check_bits::<f32, bf16, f16, bf16>(&case);
                    check_bits::<f16, f32, bf16, f16>(&case);
                }
            }
        }
    }
}

/// A sequence in narrow types has the same bits wherever it is cut, by forward or token by token, and on
/// every instruction set that has a fused multiply-add.
#[test]
fn pieces_are_the_whole() {
    fn check<E: Number>(case: &Case, begins: &[(usize, bool)]) -> TestCaseResult {
        let (q, k, v) = (narrow::<E>(&case.q), narrow::<E>(&case.k), narrow::<E>(&case.v));
        let (o, state) = forward::<E, E, E, E>(case.config, &q, &k, &v);
        let (pieces, pieces_state) = in_pieces::<E, E, E, E>(case.config, &q, &k, &v, begins);
        same(E::NAME, &widen(&pieces), &widen(&o))?;
        same("states", &pieces_state, &state)?;
        let Some(first) =
            fused().next().filter(|_| fused().any(|isa| Some(isa) == case.config.execution.isa))
        else {
            return Ok(());
        };
        let (other, other_state) = forward::<E, E, E, E>(case.config.isa(first), &q, &k, &v);
        same(&format!("{}, {first}", E::NAME), &widen(&other), &widen(&o))?;
        same(&format!("states, {first}"), &other_state, &state)
    }
    for_all(prop::collection::vec((place(), any::<bool>()), 1..6), |case, begins| {
        let len = case.config.shape.len;
        let mut begins: Vec<_> =
            begins.iter().map(|(begin, one_by_one)| (begin.index(len), *one_by_one)).collect();
        begins.push((0, false));
        begins.sort_unstable();
        check::<bf16>(case, &begins)?;
        check::<f16>(case, &begins)
    });
}

#[test]
fn gaps_between_rows_are_left_alone() {
    fn check<O: Number>(isa: Isa) {
        let rule = Rule::linear(Normaliser::Global { eps: 1e-6 });
        let mut config = Config::new(rule, Shape::new(2, 20, 3, 10, 21)).isa(isa);
        config.shape.o_strides = nested(&config, config.shape.value, 1, [3, 2, 1]);
        let case = Case::new(config, 1);
        let (o, _) = forward::<f32, f32, f32, O>(config, &case.q, &case.k, &case.v);
        let mut written = vec![false; o.len()];
        for (b, t, h) in rows(&config) {
            written[at(config.shape.o_strides, b, t, h)..][..config.shape.value].fill(true);
        }
        assert!(written.contains(&false));
        for (o, written) in o.iter().zip(written) {
            assert_eq!(o.widen().is_nan(), !written, "{isa}, {}", O::NAME);
        }
    }
    for isa in Isa::available() {
        check::<f32>(isa);
        check::<bf16>(isa);
        check::<f16>(isa);
    }
}

/// Compares the error in a type with the error of rounding alone, which is that of the exact result for the
/// rounded inputs, rounded.
fn check_error<E: Number>(isa: Isa, feature_map: FeatureMap, normaliser: Normaliser) {
    let rule = Rule::linear(normaliser).feature_map(feature_map);
    let config = Config::new(rule, Shape::new(1, 300, 2, 48, 40)).isa(isa);
    let case = Case::new(config, 1);
    let want = oracle(&config, &case.q, &case.k, &case.v);
    let (q, k, v) = (narrow::<E>(&case.q), narrow::<E>(&case.k), narrow::<E>(&case.v));
    let exact = oracle(&config, &widen(&q), &widen(&k), &widen(&v));
    let rounded: Vec<f32> = exact.iter().map(|x| E::narrow(*x as f32).widen()).collect();
    let allowed = 1.5 * norm_error(&rounded, &want);
    for (how, (got, _)) in
        [("forward", forward::<E, E, E, E>(config, &q, &k, &v)), ("decode", decode(config, &q, &k, &v))]
    {
        let error = norm_error(&widen(&got), &want);
        assert!(error <= allowed, "{isa}, {}, {how}, {feature_map:?}, {normaliser:?}: {error}", E::NAME);
    }
}

#[test]
fn little_more_than_rounding() {
    for isa in Isa::available() {
        for feature_map in MAPS {
            for normaliser in normalisers(&[64]) {
                check_error::<bf16>(isa, feature_map, normaliser);
                check_error::<f16>(isa, feature_map, normaliser);
            }
        }
    }
}

/// Sums are f32: in bf16, z would stop growing after some 256 tokens, and the outputs would be off by 12 % or
/// more.
#[test]
fn a_long_bf16_stream_stays_within_2e_3() {
    for isa in Isa::available() {
        for normaliser in [Normaliser::Global { eps: 1e-6 }, Normaliser::per_chunk(64)] {
            let config = Config::new(Rule::linear(normaliser), Shape::new(1, 8192, 1, 32, 32)).isa(isa);
            let case = Case::new(config, 1);
            let (q, k, v) = (narrow::<bf16>(&case.q), narrow::<bf16>(&case.k), narrow::<bf16>(&case.v));
            let want = oracle(&config, &widen(&q), &widen(&k), &widen(&v));
            let (got, _) = decode::<_, _, _, bf16>(config, &q, &k, &v);
            let error = norm_error(&widen(&got), &want);
            assert!(error <= 2e-3, "{isa}, {normaliser:?}: {error}");
            let last = want.len() - 256 * 32;
            let error = norm_error(&widen(&got[last..]), &want[last..]);
            assert!(error <= 2e-3, "{isa}, {normaliser:?}, the last 256 tokens: {error}");
        }
    }
}

#[test]
fn a_slice_too_short_of_any_type() {
    fn check<E: Number>() {
        let config = Config::new(Rule::linear(Normaliser::None), Shape::new(1, 3, 2, 4, 5)).isa(Isa::Scalar);
        let attention = Attention::new(config).expect("a legal configuration");
        let (long, scratch) = ([E::narrow(1.0); 30], &mut vec![0.0; attention.scratch_len()]);
        let mut o = [E::narrow(9.0); 29];
        let refused = attention.forward(Tensors::new(&long, &long, &long, &mut o), State::Zero, scratch);
        assert_eq!(refused, Err(Error::TooShort { what: "o", need: 30, got: 29 }));
        let mut o = [E::narrow(9.0); 30];
        let refused =
            attention.forward(Tensors::new(&long, &long[..23], &long, &mut o), State::Zero, scratch);
        assert_eq!(refused, Err(Error::TooShort { what: "k", need: 24, got: 23 }));
        assert!(o.iter().all(|x| *x == E::narrow(9.0)));
    }
    check::<f32>();
    check::<bf16>();
    check::<f16>();
}

/// A layer on narrow weights, streamed and tiled, has the bits of the layer on the same numbers in f32.
#[test]
fn layers_on_narrow_weights() {
    fn check<E: Number>(isa: Isa) {
        // The numbers of outputs are below, at and above the 256 columns that are widened at once. Those of
        // inputs are not multiples of the eight rows of W that are read together; the last is larger than the
        // number of rows that are widened at once in packed weights.
        for (inputs, outputs) in [(1, 1), (9, 17), (16, 255), (20, 256), (13, 600), (550, 33)] {
            let (kernel, bias) =
                (narrow::<E>(&normals(2, inputs * outputs)), narrow::<E>(&normals(3, outputs)));
            let (wide_kernel, wide_bias) = (widen(&kernel), widen(&bias));
            for rows in [1, 3, 6, 17] {
                for threads in [1, 3] {
                    let x = normals(1, rows * inputs);
                    let run = |layer: Linear| {
                        let mut y = vec![f32::NAN; rows * outputs];
                        let mut scratch = vec![f32::NAN; layer.scratch_len(isa, threads, rows)];
                        layer.forward(isa, threads, &x, &mut y, &mut scratch).expect("legal arguments");
                        y
                    };
                    let narrow = run(Linear::new(&kernel[..], &bias[..]));
                    let wide = run(Linear::new(&wide_kernel[..], &wide_bias[..]));
                    let name = format!("{isa}, {}, {rows} x {inputs} x {outputs}", E::NAME);
                    assert_eq!(first_difference(&narrow, &wide), None, "{name}");
                    let (narrow, wide) =
                        (Linear::new(&kernel[..], &bias[..]), Linear::new(&wide_kernel[..], &wide_bias[..]));
                    let [mut narrow_memory, mut wide_memory] =
                        [narrow, wide].map(|layer| vec![f32::NAN; layer.packed_len(isa)]);
                    assert!(
                        inputs < 2 || narrow_memory.len() < wide_memory.len() || E::NAME == "f32",
                        "{name}"
                    );
                    let narrow = run(narrow.pack(isa, &mut narrow_memory).expect("enough memory"));
                    let wide = run(wide.pack(isa, &mut wide_memory).expect("enough memory"));
                    assert_eq!(first_difference(&narrow, &wide), None, "{name}, packed");
                }
            }
        }
        for size in [1, 7, 64, 65, 200] {
            let (x, gamma, beta) = (normals(1, 3 * size), normals(2, size), normals(3, size));
            let (gamma, beta) = (narrow::<E>(&gamma), narrow::<E>(&beta));
            let (wide_gamma, wide_beta) = (widen(&gamma), widen(&beta));
            let run = |gamma, beta| {
                let mut y = vec![f32::NAN; 3 * size];
                LayerNorm { gamma, beta, eps: 1e-5, clip: false }
                    .forward(isa, &x, &mut y)
                    .expect("legal arguments");
                y
            };
            let narrow = run((&gamma[..]).into(), (&beta[..]).into());
            let wide = run((&wide_gamma[..]).into(), (&wide_beta[..]).into());
            assert_eq!(first_difference(&narrow, &wide), None, "{isa}, {}, {size}", E::NAME);
        }
    }
    for isa in Isa::available() {
        check::<bf16>(isa);
        check::<f16>(isa);
    }
}

/// A model with narrow parameters has the bits of the model with the same numbers in f32.
#[test]
fn models_on_narrow_weights() {
    fn check<E: Number>(isa: Isa) {
        let config = ModelConfig { hidden_size: 40, num_layers: 2, ..ModelConfig::new(7) };
        let mut flat = vec![0.0; config.parameters_len()];
        init(&config, 1, &mut flat).expect("a flat model");
        // The biases of a fresh model are zero, so that the result would not depend on whether they are read.
        flat.iter_mut().zip(normals(2, config.parameters_len())).for_each(|(x, noise)| *x += 0.1 * noise);
        let narrow = narrow::<E>(&flat);
        let wide = widen(&narrow);
        let input = normals(1, 70 * 7);
        let (a, b) = (run::<E>(isa, config, &narrow, &input), run::<f32>(isa, config, &wide, &input));
        assert_eq!(first_difference(&a, &b), None, "{isa}, {}", E::NAME);
    }
    /// The output of a forward of 70 tokens, then the output of the last of 70 steps.
    fn run<E: Number>(isa: Isa, config: ModelConfig, flat: &[E], input: &[f32]) -> Vec<f32> {
        let mut blocks = [BlockWeights::default(); 2];
        let weights = Weights::from_flat(&config, flat, &mut blocks).expect("a flat model");
        let model = Model::new(config, weights, Some(isa), 1).expect("a legal model");
        let mut output = vec![f32::NAN; 80];
        let (forward, step) = output.split_at_mut(40);
        let scratch = &mut vec![f32::NAN; model.scratch_len(1, 70).expect("a legal size")];
        model.forward(1, 70, input, forward, scratch).expect("legal arguments");
        let state = &mut vec![0.0; model.state_len(1).expect("a legal size")];
        let scratch = &mut vec![f32::NAN; model.step_scratch_len(1).expect("a legal size")];
        for input in input.chunks(7) {
            model.step(1, input, state, step, scratch).expect("legal arguments");
        }
        output
    }
    for isa in Isa::available() {
        check::<bf16>(isa);
        check::<f16>(isa);
    }
}
