//! `Attention::backward`: gradients against the definition in f64, which is checked by differences; what it
//! leaves alone, what its bits depend on, and what it refuses.

#[path = "backward/pairs.rs"]
mod pairs;

use chunkwise::backward::{Gradients, Inputs};
use chunkwise::reference::phi;
use chunkwise::{Attention, Config, Error, FeatureMap, Isa, Normaliser, Rule, Shape, Strides};
use half::{bf16, f16};

use self::pairs::{Head, Sums, derivative};
use crate::common::*;

/// The documented accuracy of gradients in f32 up to 4096 tokens.
const GRADIENT_ERROR: f64 = 5e-6;

/// q, k, v, the gradient of o, and states: everything that a backward reads.
#[derive(Clone)]
struct Given {
    case: Case,
    output: Vec<f32>,
    initial: Option<Vec<f32>>,
    last: Option<Vec<f32>>,
}

impl Given {
    fn new(config: Config, seed: u64, with_states: bool) -> Self {
        let case = Case::new(config, seed);
        let Shape { o_strides, value, .. } = config.shape;
        let output = strided(&config, o_strides, value, seed + 10);
        let states = with_states.then(|| states(&case, seed));
        let (initial, last) = states.unzip();
        Self { case, output, initial, last }
    }

    fn inputs<'a, E: Number>(&'a self, [q, k, v, output]: [&'a [E]; 4]) -> Inputs<'a> {
        let mut inputs = Inputs::new(q, k, v, output);
        if let Some(initial) = &self.initial {
            inputs = inputs.initial(initial);
        }
        if let Some(last) = &self.last {
            inputs = inputs.last(last);
        }
        inputs
    }
}

/// Numbers in a strided tensor; elements between rows are NaN.
fn strided(config: &Config, strides: Strides, dim: usize, seed: u64) -> Vec<f32> {
    let mut x = vec![f32::NAN; reach(config, strides, dim)];
    let numbers = normals(seed, rows(config).count() * dim);
    for ((b, t, h), row) in rows(config).zip(numbers.chunks(dim)) {
        x[at(strides, b, t, h)..][..dim].copy_from_slice(row);
    }
    x
}

/// An initial state that 21 other tokens have left, and the gradient of a last state.
fn states(case: &Case, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let Shape { batch, heads, key, value, .. } = case.config.shape;
    let before =
        Case::new(with(case.config, |c| c.shape = Shape::new(batch, 21, heads, key, value)), seed + 7);
    let attention = before.attention();
    let mut state = vec![0.0; attention.state_len()];
    let mut o = vec![0.0; before.v.len()];
    let scratch = &mut vec![0.0; attention.scratch_len()];
    let tensors = chunkwise::Tensors::new(&before.q[..], &before.k[..], &before.v[..], &mut o[..]);
    attention.forward(tensors, chunkwise::State::Final(&mut state), scratch).unwrap();
    let gradient = normals(seed + 8, state.len()).iter().map(|x| 0.1 * x).collect();
    (state, gradient)
}

/// What a backward writes: the gradients of q, k, v and the initial state.
#[derive(Clone, PartialEq, Debug)]
struct Got {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    initial: Vec<f32>,
}

fn backward<E: Number>(given: &Given, attention: &Attention) -> Got {
    let Case { q, k, v, .. } = &given.case;
    let [q, k, v, output] = [q, k, v, &given.output].map(|x| narrow::<E>(x));
    let sentinel = E::narrow(SENTINEL);
    let (mut dq, mut dk, mut dv) =
        (vec![sentinel; q.len()], vec![sentinel; k.len()], vec![sentinel; v.len()]);
    let mut initial = vec![SENTINEL; if given.initial.is_some() { attention.state_len() } else { 0 }];
    let mut scratch = vec![f32::NAN; attention.backward_scratch_len()];
    let mut gradients = Gradients::new(&mut dq[..], &mut dk[..], &mut dv[..]);
    if given.initial.is_some() {
        gradients = gradients.initial(&mut initial);
    }
    attention.backward(given.inputs([&q, &k, &v, &output]), gradients, &mut scratch).unwrap();
    Got { q: widen(&dq), k: widen(&dk), v: widen(&dv), initial }
}

/// The pieces of a state of one head: S and z of the past or of everything, then of the current chunk.
fn pieces(config: &Config, state: &[f32]) -> ([Sums; 2], usize) {
    let Shape { key, value, .. } = config.shape;
    let normalised = config.rule.normaliser != Normaliser::None;
    let of = |from: &[f32]| Sums {
        s: from[..key * value].iter().copied().map(f64::from).collect(),
        z: if normalised {
            from[key * value..][..key].iter().copied().map(f64::from).collect()
        } else {
            vec![0.0; key]
        },
    };
    match config.rule.normaliser {
        Normaliser::PerChunk { .. } => {
            let sums = key * value + key;
            ([of(state), of(&state[sums..])], state[2 * sums] as usize)
        }
        _ => ([Sums::zeros(key, value), of(state)], 0),
    }
}

/// One head of the oracle.
fn head(given: &Given, b: usize, h: usize) -> Head {
    let config = &given.case.config;
    let Shape { len, key, value, heads, .. } = config.shape;
    let rule = config.rule;
    let rows = |x: &[f32], strides: Strides, dim: usize| -> Vec<f32> {
        (0..len).flat_map(|t| x[at(strides, b, t, h)..][..dim].iter().copied()).collect()
    };
    let mapped = |x: Vec<f32>| x.into_iter().map(|x| phi(rule.feature_map, x)).collect();
    let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect();
    let (chunk, eps) = match rule.normaliser {
        Normaliser::None => (None, None),
        Normaliser::Global { eps } => (None, Some(eps)),
        Normaliser::PerChunk { chunk, eps } => (Some(chunk), Some(eps)),
        other => panic!("{other:?} is not tested"),
    };
    let zeros = || [Sums::zeros(key, value), Sums::zeros(key, value)];
    let state = |state: &Option<Vec<f32>>| {
        state.as_ref().map(|state| {
            let len = state.len() / (config.shape.batch * heads);
            pieces(config, &state[(b * heads + h) * len..][..len])
        })
    };
    let initial = state(&given.initial);
    Head {
        key,
        value,
        scale: f64::from(rule.scale),
        eps: eps.map(f64::from),
        chunk,
        count: initial.as_ref().map_or(0, |(_, count)| *count),
        absolute: false,
        has_initial: initial.is_some(),
        a: mapped(rows(&given.case.q, config.shape.q_strides, key)),
        c: mapped(rows(&given.case.k, config.shape.k_strides, key)),
        v: wide(rows(&given.case.v, config.shape.v_strides, value)),
        output: wide(rows(&given.output, config.shape.o_strides, value)),
        initial: initial.map_or_else(zeros, |(sums, _)| sums),
        last: state(&given.last).map_or_else(zeros, |(sums, _)| sums),
    }
}

/// Checks the norm error of all gradients of every head, relative to their norms if no terms cancelled.
#[track_caller]
fn check(given: &Given, got: &Got, bound: f64, what: &str) {
    let config = &given.case.config;
    let Shape { batch, heads, len, key, value, q_strides, k_strides, v_strides, .. } = config.shape;
    let map = config.rule.feature_map;
    for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        let head = head(given, b, h);
        let size = Head { absolute: true, ..head.clone() }.gradients();
        let want = head.gradients();
        let rows = |x: &[f32], strides: Strides, dim: usize| -> Vec<f32> {
            (0..len).flat_map(|t| x[at(strides, b, t, h)..][..dim].iter().copied()).collect()
        };
        let chain = |phi: Vec<f64>, x: &[f32], strides: Strides| -> Vec<f64> {
            phi.iter().zip(rows(x, strides, key)).map(|(phi, x)| phi * derivative(map, x)).collect()
        };
        let compare = |name: &str, got: &[f32], want: &[f64], size: &[f64]| {
            let error = norm_error_of(got, want, size);
            assert!(error <= bound, "{what}: {name} of head {b}, {h} is off by {error:e}");
        };
        let Case { q, k, .. } = &given.case;
        let [want_q, size_q] = [want.a, size.a].map(|phi| chain(phi, q, q_strides));
        let [want_k, size_k] = [want.c, size.c].map(|phi| chain(phi, k, k_strides));
        compare("dq", &rows(&got.q, q_strides, key), &want_q, &size_q);
        compare("dk", &rows(&got.k, k_strides, key), &want_k, &size_k);
        compare("dv", &rows(&got.v, v_strides, value), &want.v, &size.v);
        if got.initial.is_empty() {
            continue;
        }
        let len = got.initial.len() / (batch * heads);
        let (found, count) = pieces(config, &got.initial[(b * heads + h) * len..][..len]);
        assert_eq!(count, 0, "{what}");
        let per_chunk = matches!(config.rule.normaliser, Normaliser::PerChunk { .. });
        for ((found, want), size) in
            found.iter().zip(want.initial).zip(size.initial).skip(usize::from(!per_chunk))
        {
            let [s, z] = [&found.s, &found.z].map(|x| x.iter().map(|x| *x as f32).collect::<Vec<f32>>());
            compare("dS", &s, &want.s, &size.s);
            if config.rule.normaliser != Normaliser::None {
                compare("dz", &z, &want.z, &size.z);
            }
        }
    }
}

fn config(normaliser: Normaliser, map: FeatureMap, shape: Shape) -> Config {
    Config::new(Rule::linear(normaliser).feature_map(map), shape)
}

/// The oracle's gradients are the differences of its loss.
#[test]
fn pairs_agree_with_differences() {
    for normaliser in normalisers(&[4, 7]) {
        for with_states in [false, true] {
            let config = config(normaliser, FeatureMap::Elu, Shape::new(1, 11, 1, 3, 2));
            let head = head(&Given::new(config, 3, with_states), 0, 0);
            let gradients = head.gradients();
            let mut compared = 0;
            let mut compare = |want: &[f64], change: &dyn Fn(&mut Head, usize, f64)| {
                for (i, want) in want.iter().enumerate() {
                    let loss = |by: f64| {
                        let mut head = head.clone();
                        change(&mut head, i, by);
                        head.loss()
                    };
                    let found = (loss(1e-5) - loss(-1e-5)) / 2e-5;
                    assert!(
                        (found - want).abs() <= 1e-7 * (1.0 + want.abs()),
                        "{normaliser:?}: {found} {want}"
                    );
                    compared += 1;
                }
            };
            compare(&gradients.a, &|head, i, by| head.a[i] += by);
            compare(&gradients.c, &|head, i, by| head.c[i] += by);
            compare(&gradients.v, &|head, i, by| head.v[i] += by);
            if with_states {
                for place in 0..2 {
                    compare(&gradients.initial[place].s, &|head, i, by| head.initial[place].s[i] += by);
                    compare(&gradients.initial[place].z, &|head, i, by| head.initial[place].z[i] += by);
                }
            }
            assert_eq!(compared, 11 * (3 + 3 + 2) + if with_states { 2 * (6 + 3) } else { 0 });
        }
    }
}

/// The oracle's outputs are those of the recurrence in f64.
#[test]
fn pairs_agree_with_the_recurrence() {
    for normaliser in normalisers(&[4, 7]) {
        let config = config(normaliser, FeatureMap::Elu, Shape::new(1, 23, 1, 5, 3));
        let given = Given::new(config, 5, false);
        let want = oracle(&config, &given.case.q, &given.case.k, &given.case.v);
        let got: Vec<f32> = head(&given, 0, 0).outputs().iter().map(|x| *x as f32).collect();
        assert!(norm_error(&got, &want) < 1e-7, "{normaliser:?}");
    }
}

/// Sizes around blocks, tiles, panels and vectors, every map and normaliser, with and without states, on every instruction set.
#[test]
fn gradients() {
    let sizes = [
        (1, 1, 1),
        (2, 3, 5),
        (23, 16, 16),
        (24, 17, 33),
        (25, 8, 64),
        (49, 64, 20),
        (70, 40, 70),
        (96, 33, 130),
    ];
    for isa in Isa::available() {
        for (len, key, value) in sizes {
            for normaliser in normalisers(&[1, 8, 24, 50]) {
                for map in MAPS {
                    for with_states in [false, true] {
                        let config = config(normaliser, map, Shape::new(2, len, 2, key, value)).isa(isa);
                        let given = Given::new(config, 1, with_states);
                        let got = backward::<f32>(&given, &given.case.attention());
                        let what = format!("{isa} {config:?} {with_states}");
                        check(&given, &got, GRADIENT_ERROR, &what);
                    }
                }
            }
        }
    }
}

/// The accuracy of bf16 and f16 is that of rounded inputs and outputs.
#[test]
fn types() {
    fn each<E: Number>(isa: Isa, normaliser: Normaliser, rounding: f64) {
        let config = config(normaliser, FeatureMap::Elu, Shape::new(1, 50, 2, 20, 35)).isa(isa);
        let mut given = Given::new(config, 2, true);
        for x in [&mut given.case.q, &mut given.case.k, &mut given.case.v, &mut given.output] {
            *x = widen(&narrow::<E>(x));
        }
        let got = backward::<E>(&given, &given.case.attention());
        check(&given, &got, rounding, &format!("{isa} {} {normaliser:?}", E::NAME));
    }
    for isa in Isa::available() {
        for normaliser in normalisers(&[16]) {
            each::<bf16>(isa, normaliser, 2.0_f64.powi(-9));
            each::<f16>(isa, normaliser, 2.0_f64.powi(-12));
        }
    }
}

/// 4096 tokens.
#[test]
fn a_long_sequence() {
    for normaliser in normalisers(&[64]) {
        let config = config(normaliser, FeatureMap::Elu, Shape::new(1, 4096, 1, 16, 16));
        let given = Given::new(config, 4, false);
        check(
            &given,
            &backward::<f32>(&given, &given.case.attention()),
            GRADIENT_ERROR,
            &format!("{normaliser:?}"),
        );
    }
}

/// Whatever the strides, threads and sequences around a head, its gradients have the same bits on every
/// instruction set that fuses multiplications and additions, and nothing is written between rows.
#[test]
fn bits() {
    for normaliser in normalisers(&[20]) {
        // This is enough work for three threads.
        let shape = Shape::new(3, 200, 2, 24, 40);
        let plain = config(normaliser, FeatureMap::Elu, shape);
        let mut hashes = Vec::new();
        for isa in Isa::available() {
            let given = Given::new(plain.isa(isa), 6, true);
            let whole = backward::<f32>(&given, &given.case.attention());
            let threads = Attention::new(plain.isa(isa).threads(3)).unwrap();
            assert!(backward::<f32>(&given, &threads) == whole, "{isa} {normaliser:?}: threads");
            if fused().any(|fused| fused == isa) {
                hashes.push(whole.clone());
            }
            for order in 0..6 {
                let strided = with_layouts(
                    plain.isa(isa),
                    [
                        (order, [1, 2, 3]),
                        ((order + 1) % 6, [3, 0, 1]),
                        ((order + 2) % 6, [0, 5, 2]),
                        (order, [2, 1, 0]),
                    ],
                );
                let other = Given::new(strided, 6, true);
                let got = backward::<f32>(&other, &other.case.attention());
                let Shape { q_strides, k_strides, v_strides, .. } = strided.shape;
                for (name, got, want, strides, from, dim) in [
                    ("dq", &got.q, &whole.q, q_strides, shape.q_strides, 24),
                    ("dk", &got.k, &whole.k, k_strides, shape.k_strides, 24),
                    ("dv", &got.v, &whole.v, v_strides, shape.v_strides, 40),
                ] {
                    let mut rest = got.clone();
                    for (b, t, h) in rows(&strided) {
                        let row = &mut rest[at(strides, b, t, h)..][..dim];
                        assert_eq!(row, &want[at(from, b, t, h)..][..dim], "{isa} {normaliser:?}: {name}");
                        row.fill(SENTINEL);
                    }
                    assert!(untouched(&rest, &vec![SENTINEL; rest.len()]), "{isa} {normaliser:?}: {name}");
                }
                assert_eq!(got.initial, whole.initial, "{isa} {normaliser:?}");
            }
        }
        assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "{normaliser:?}: instruction sets");
    }
}

/// A ragged batch has the bits of its sequences.
#[test]
fn ragged_batches() {
    let begins = [0_u32, 7, 7, 40, 41];
    for normaliser in normalisers(&[16]) {
        let shape = Shape::new(1, 41, 2, 10, 12);
        let given = Given::new(config(normaliser, FeatureMap::Elu, shape), 9, false);
        let ragged = Attention::new(config(normaliser, FeatureMap::Elu, shape.with_sequences(4))).unwrap();
        let Case { q, k, v, .. } = &given.case;
        let run = |attention: &Attention, range: std::ops::Range<usize>, begins: Option<&[u32]>| {
            let rows = |x: &[f32], dim: usize| x[range.start * 2 * dim..range.end * 2 * dim].to_vec();
            let [q, k] = [q, k].map(|x| rows(x, 10));
            let [v, output] = [v, &given.output].map(|x| rows(x, 12));
            let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
            let mut inputs = Inputs::new(&q[..], &k[..], &v[..], &output[..]);
            if let Some(begins) = begins {
                inputs = inputs.sequences(begins);
            }
            let scratch = &mut vec![f32::NAN; attention.backward_scratch_len()];
            attention
                .backward(inputs, Gradients::new(&mut dq[..], &mut dk[..], &mut dv[..]), scratch)
                .unwrap();
            [dq, dk, dv]
        };
        let all = run(&ragged, 0..41, Some(&begins));
        let mut parts: [Vec<f32>; 3] = Default::default();
        for pair in begins.windows(2) {
            let range = pair[0] as usize..pair[1] as usize;
            let one =
                Attention::new(config(normaliser, FeatureMap::Elu, shape.with_len(range.len()))).unwrap();
            for (part, more) in parts.iter_mut().zip(run(&one, range, None)) {
                part.extend(more);
            }
        }
        assert!(all == parts, "{normaliser:?}");
    }
}

/// A gradient of o at some token changes no gradient of a later key, value or query of another token.
#[test]
fn causality() {
    for normaliser in normalisers(&[16]) {
        let shape = Shape::new(1, 60, 1, 8, 8);
        let mut given = Given::new(config(normaliser, FeatureMap::Elu, shape), 11, false);
        let attention = given.case.attention();
        let before = backward::<f32>(&given, &attention);
        given.output[33 * 8..34 * 8].fill(2.5);
        let after = backward::<f32>(&given, &attention);
        assert_eq!(before.k[34 * 8..], after.k[34 * 8..], "{normaliser:?}");
        assert_eq!(before.v[34 * 8..], after.v[34 * 8..], "{normaliser:?}");
        assert!(before.k[33 * 8..34 * 8] != after.k[33 * 8..34 * 8], "{normaliser:?}");
        for t in 0..60 {
            let same = before.q[t * 8..][..8] == after.q[t * 8..][..8];
            assert_eq!(same, t != 33, "{normaliser:?}: {t}");
        }
    }
}

/// Twice the gradients of o and of the last state are twice the gradients, bit for bit.
#[test]
fn linearity() {
    for normaliser in normalisers(&[16]) {
        let mut given = Given::new(config(normaliser, FeatureMap::Elu, Shape::new(1, 60, 1, 8, 8)), 12, true);
        let attention = given.case.attention();
        let once = backward::<f32>(&given, &attention);
        given.output.iter_mut().chain(given.last.iter_mut().flatten()).for_each(|x| *x *= 2.0);
        let twice = backward::<f32>(&given, &attention);
        for (once, twice) in
            [(once.q, twice.q), (once.k, twice.k), (once.v, twice.v), (once.initial, twice.initial)]
        {
            assert!(once.iter().zip(&twice).all(|(once, twice)| 2.0 * once == *twice), "{normaliser:?}");
        }
    }
}

/// Where a feature map has a corner or leaves the range of exp, gradients are finite, and 0 where phi is flat.
#[test]
fn corners_of_feature_maps() {
    for (map, x, slope) in [
        (FeatureMap::RELU, 0.0, 0.0),
        (FeatureMap::RELU, -3.0, 0.0),
        (FeatureMap::RELU, 1e-30, 1.0),
        (FeatureMap::Elu, 0.0, 1.0),
        (FeatureMap::Elu, 200.0, 1.0),
        (FeatureMap::Elu, -200.0, 0.0),
    ] {
        for isa in Isa::available() {
            let attention =
                Attention::new(config(Normaliser::None, map, Shape::new(1, 1, 1, 1, 1)).isa(isa)).unwrap();
            let (mut dq, mut dk, mut dv) = ([f32::NAN], [f32::NAN], [f32::NAN]);
            let scratch = &mut vec![f32::NAN; attention.backward_scratch_len()];
            let gradients = Gradients::new(&mut dq[..], &mut dk[..], &mut dv[..]);
            attention
                .backward(Inputs::new(&[x], &[1.0_f32], &[1.0_f32], &[1.0_f32]), gradients, scratch)
                .unwrap();
            // dq = phi'(q) phi(k) v do.
            let want = slope * phi(map, 1.0) as f32;
            assert_eq!(dq[0], want, "{isa} {map:?} at {x}");
        }
    }
}

#[test]
fn refused_calls_write_nothing() {
    let plain = config(Normaliser::None, FeatureMap::Elu, Shape::new(2, 6, 2, 4, 4));
    let conflict = |what| Error::Conflict { what };
    let strides = Strides { batch: 0, token: 8, head: 4 };
    let mut cases = vec![
        (with(plain, |c| c.rule = c.rule.compensated(true)), conflict("backward and a compensated state")),
        (
            with(plain, |c| c.shape = c.shape.with_inputs(strides, c.shape.k_strides, c.shape.v_strides)),
            Error::Overlap { what: "the gradient of q" },
        ),
    ];
    if cfg!(feature = "family") {
        let groups = chunkwise::Heads::new(4, 2, 2);
        cases.extend([
            (
                Config::new(Rule::gated(chunkwise::Gate::Scalar), plain.shape),
                conflict("backward and a gate or the delta rule"),
            ),
            (with(plain, |c| c.rule = c.rule.qk_norm(1e-6)), conflict("backward and the norm of q and k")),
            (
                with(plain, |c| c.rule = c.rule.causal(false)),
                conflict("backward and attention that is not causal"),
            ),
            (
                Config::new(plain.rule, Shape::grouped(2, 6, groups, 4, 4)),
                conflict("backward and heads that differ in number"),
            ),
        ]);
    }
    let run = |config: Config, lens: [usize; 7], states: [usize; 3], scratch: Option<usize>| {
        let attention = Attention::new(config).unwrap();
        let [q, k, v, o, dq, dk, dv] = lens.map(|len| vec![1.0; len]);
        let (mut dq, mut dk, mut dv) = (dq, dk, dv);
        let [initial, last, mut written] = states.map(|len| vec![0.0; len]);
        let mut scratch = vec![0.0; scratch.unwrap_or(attention.backward_scratch_len())];
        let inputs = Inputs::new(&q[..], &k[..], &v[..], &o[..]).initial(&initial).last(&last);
        let gradients = Gradients::new(&mut dq[..], &mut dk[..], &mut dv[..]).initial(&mut written);
        let result = attention.backward(inputs, gradients, &mut scratch);
        if result.is_err() {
            assert!([dq, dk, dv].iter().flatten().all(|x| *x == 1.0) && written.iter().all(|x| *x == 0.0));
        }
        result
    };
    let (lens, states) = ([96; 7], [64; 3]);
    assert_eq!(run(plain, lens, states, None), Ok(()));
    for (config, want) in cases {
        assert_eq!(run(config, [192; 7], states, None), Err(want));
    }
    let names =
        ["q", "k", "v", "the gradient of o", "the gradient of q", "the gradient of k", "the gradient of v"];
    for (i, what) in names.into_iter().enumerate() {
        let mut lens = lens;
        lens[i] = 95;
        assert_eq!(run(plain, lens, states, None), Err(Error::TooShort { what, need: 96, got: 95 }));
    }
    let names = ["state", "the gradient of the last state", "the gradient of the initial state"];
    for (i, what) in names.into_iter().enumerate() {
        let mut states = states;
        states[i] = 65;
        assert_eq!(run(plain, lens, states, None), Err(Error::Length { what, want: 64, got: 65 }));
    }
    let need = Attention::new(plain).unwrap().backward_scratch_len();
    let short = Err(Error::TooShort { what: "scratch", need, got: need - 1 });
    assert_eq!(run(plain, lens, states, Some(need - 1)), short);
}

/// A size of scratch that no memory has room for is saturated.
#[test]
fn scratch_that_no_memory_has_room_for() {
    let shape = Shape::new(1, 0, 1, 3 << (usize::BITS - 7), 1);
    let attention = Attention::new(config(Normaliser::None, FeatureMap::Elu, shape)).unwrap();
    assert_eq!(attention.backward_scratch_len(), usize::MAX);
}

/// Every buffer of a backward lies next to pages that fault.
#[cfg(unix)]
#[test]
fn no_access_is_outside_a_slice() {
    use crate::guard::{Fence, on_both_sides};

    fn each<E: Number>(given: &Given, fences: &mut [Fence; 11]) {
        let attention = given.case.attention();
        let Case { q, k, v, .. } = &given.case;
        let [q, k, v, output] = [q, k, v, &given.output].map(|x| narrow::<E>(x));
        let states = vec![0.0; attention.state_len()];
        let scratch = vec![SENTINEL; attention.backward_scratch_len()];
        on_both_sides(|side| {
            let [a, b, c, d, e, f, g, h, i, j, l] = fences.each_mut();
            let inputs = Inputs::new(
                &*a.place(side, &q),
                &*b.place(side, &k),
                &*c.place(side, &v),
                &*d.place(side, &output),
            );
            let (initial, last) = (given.initial.as_ref().unwrap(), given.last.as_ref().unwrap());
            let inputs = inputs.initial(e.place(side, initial)).last(f.place(side, last));
            let (dq, dk, dv) = (g.place(side, &q), h.place(side, &k), i.place(side, &v));
            let initial = j.place(side, &states);
            let gradients = Gradients::new(&mut *dq, &mut *dk, &mut *dv).initial(initial);
            attention.backward(inputs, gradients, l.place(side, &scratch)).unwrap();
            [widen(dq), widen(dk), widen(dv), initial.to_vec()].concat()
        });
    }
    let fences = &mut std::array::from_fn(|_| Fence::new());
    for isa in Isa::available() {
        for normaliser in normalisers(&[8]) {
            for (len, key, value) in [(1, 1, 1), (25, 17, 33), (30, 16, 70)] {
                let given = Given::new(
                    config(normaliser, FeatureMap::Elu, Shape::new(2, len, 2, key, value)).isa(isa),
                    1,
                    true,
                );
                each::<f32>(&given, fences);
                each::<bf16>(&given, fences);
                each::<f16>(&given, fences);
            }
        }
    }
}
