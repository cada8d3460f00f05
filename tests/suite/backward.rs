//! `Attention::backward`: gradients against the definition in f64, which is checked by differences; what it
//! leaves alone, what its bits depend on, and what it refuses.

#[cfg(all(feature = "files", feature = "family"))]
#[path = "backward/golden.rs"]
mod golden;
#[path = "backward/pairs.rs"]
mod pairs;

use chunkwise::backward::{Gradients, Inputs};
use chunkwise::reference::phi;
use chunkwise::{Attention, Config, Error, FeatureMap, Gate, Isa, Normaliser, Rule, Shape, Strides};
use half::{bf16, f16};

use self::pairs::{Head, Sums, derivative};
use crate::common::family::{share, uniform};
use crate::common::*;

/// The documented accuracy of gradients in f32 up to 4096 tokens.
const GRADIENT_ERROR: f64 = 5e-6;

/// q, k, v, the gradient of o, and states: everything that a backward reads.
#[derive(Clone)]
struct Given {
    case: Case,
    output: Vec<f32>,
    /// g `[B, T, H]`, contiguous; empty without a gate.
    g: Vec<f32>,
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
        Self { g: gates(&config, seed + 11), case, output, initial, last }
    }

    fn inputs<'a, E: Number>(&'a self, [q, k, v, output]: [&'a [E]; 4]) -> Inputs<'a> {
        let mut inputs = Inputs::new(q, k, v, output);
        if let Some(initial) = &self.initial {
            inputs = inputs.initial(initial);
        }
        if let Some(last) = &self.last {
            inputs = inputs.last(last);
        }
        if !self.g.is_empty() {
            inputs = inputs.gate(&self.g[..]);
        }
        inputs
    }
}

/// The gates of a case: logarithms of decays between 1/e and 1, of which some tokens have none and one has a decay
/// of 0.
fn gates(config: &Config, seed: u64) -> Vec<f32> {
    let Shape { batch, len, heads, .. } = config.shape;
    if config.rule.gate == Gate::None {
        return vec![];
    }
    let mut g = uniform(seed, batch * len * heads, -1.0, 0.0);
    g.iter_mut().step_by(5).for_each(|g| *g = 0.0);
    if len > 30 {
        g[29 * heads..30 * heads].fill(f32::NEG_INFINITY);
    }
    g
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
    let g = gates(&before.config, seed + 9);
    let tensors =
        chunkwise::Tensors::new(&before.q[..], &before.k[..], &before.v[..], &mut o[..]).gate(&g[..]);
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
    g: Vec<f32>,
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
    let mut dg = vec![SENTINEL; given.g.len()];
    let mut gradients = Gradients::new(&mut dq[..], &mut dk[..], &mut dv[..]);
    if !dg.is_empty() {
        gradients = gradients.gate(&mut dg[..]);
    }
    if given.initial.is_some() {
        gradients = gradients.initial(&mut initial);
    }
    attention.backward(given.inputs([&q, &k, &v, &output]), gradients, &mut scratch).unwrap();
    Got { q: widen(&dq), k: widen(&dk), v: widen(&dv), g: dg, initial }
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

/// The heads from which one output is computed.
#[derive(Clone, Copy)]
struct Heads {
    q: usize,
    k: usize,
    v: usize,
    o: usize,
    state: usize,
    /// Whether it is the first output of its state.
    first: bool,
}

/// The heads of every output.
fn outputs(shape: &Shape) -> Vec<Heads> {
    let groups = shape.groups;
    let (all, states) = (groups.output(), groups.state());
    let mut seen = vec![false; states];
    (0..all)
        .map(|o| {
            let state = share(groups, o, all, states);
            Heads {
                q: share(groups, o, all, groups.query),
                k: share(groups, state, states, groups.key),
                v: share(groups, state, states, groups.value),
                o,
                state,
                first: !std::mem::replace(&mut seen[state], true),
            }
        })
        .collect()
}

/// The rows of one head of a tensor.
fn rows_of(shape: &Shape, x: &[f32], strides: Strides, dim: usize, [b, h]: [usize; 2]) -> Vec<f32> {
    (0..shape.len).flat_map(|t| x[at(strides, b, t, h)..][..dim].iter().copied()).collect()
}

/// One output of the oracle.
fn head(given: &Given, b: usize, heads: Heads) -> Head {
    let config = &given.case.config;
    let shape = config.shape;
    let Shape { key, value, .. } = shape;
    let rule = config.rule;
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
            let len = state.len() / (shape.batch * shape.heads);
            pieces(config, &state[(b * shape.heads + heads.state) * len..][..len])
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
        a: mapped(rows_of(&shape, &given.case.q, shape.q_strides, key, [b, heads.q])),
        c: mapped(rows_of(&shape, &given.case.k, shape.k_strides, key, [b, heads.k])),
        v: wide(rows_of(&shape, &given.case.v, shape.v_strides, value, [b, heads.v])),
        output: wide(rows_of(&shape, &given.output, shape.o_strides, value, [b, heads.o])),
        g: if given.g.is_empty() {
            vec![]
        } else {
            let strides = Strides::bthd(shape.len, shape.heads, 1);
            wide(rows_of(&shape, &given.g, strides, 1, [b, heads.state]))
        },
        initial: initial.map_or_else(zeros, |(sums, _)| sums),
        // A loss has one term for each last state, whatever the number of outputs that are read from it.
        last: state(&given.last).filter(|_| heads.first).map_or_else(zeros, |(sums, _)| sums),
    }
}

/// Gradients, and their sizes if no terms cancelled, of each head of a tensor or of the states.
struct Wanted(Vec<[Vec<f64>; 2]>);

impl Wanted {
    fn new(heads: usize) -> Self {
        Self(vec![[vec![], vec![]]; heads])
    }

    /// Adds those of one output.
    fn add(&mut self, head: usize, more: [Vec<f64>; 2]) {
        for (sums, more) in self.0[head].iter_mut().zip(more) {
            sums.resize(more.len(), 0.0);
            sums.iter_mut().zip(more).for_each(|(sum, x)| *sum += x);
        }
    }

    #[track_caller]
    fn check(&self, head: usize, got: &[f32], bound: f64, what: &str) {
        let [want, size] = &self.0[head];
        let error = norm_error_of(got, want, size);
        assert!(error <= bound, "{what} of head {head} is off by {error:e}");
    }
}

/// Checks the norm error of all gradients of every head, relative to their norms if no terms cancelled.
#[track_caller]
fn check(given: &Given, got: &Got, bound: f64, what: &str) {
    let config = &given.case.config;
    let shape = config.shape;
    let Shape { batch, heads, key, value, groups, q_strides, k_strides, v_strides, .. } = shape;
    let per_chunk = matches!(config.rule.normaliser, Normaliser::PerChunk { .. });
    let chain = |phi: Vec<f64>, x: &[f32], strides: Strides, head: [usize; 2]| -> Vec<f64> {
        let x = rows_of(&shape, x, strides, key, head);
        phi.iter().zip(x).map(|(phi, x)| phi * derivative(config.rule.feature_map, x)).collect()
    };
    for b in 0..batch {
        let mut q = Wanted::new(groups.query);
        let (mut k, mut v) = (Wanted::new(groups.key), Wanted::new(groups.value));
        let mut g = Wanted::new(heads);
        let mut states: [[Wanted; 2]; 2] = std::array::from_fn(|_| [Wanted::new(heads), Wanted::new(heads)]);
        for of in outputs(&shape) {
            let head = head(given, b, of);
            let size = Head { absolute: true, ..head.clone() }.gradients();
            let want = head.gradients();
            let case = &given.case;
            // The kernel computes the gradient of g as a sum of phi(q) . da - phi(k) . dc, in which these cancel.
            let sizes = want.g.iter().enumerate().map(|(t, _)| {
                let terms = [(&head.a, &size.a), (&head.c, &size.c)].into_iter();
                terms
                    .flat_map(|(x, dx)| x[t * key..].iter().zip(&dx[t * key..]))
                    .map(|(x, dx)| (x * dx).abs())
                    .sum()
            });
            g.add(of.state, [want.g.clone(), sizes.collect()]);
            q.add(of.q, [want.a, size.a].map(|phi| chain(phi, &case.q, q_strides, [b, of.q])));
            k.add(of.k, [want.c, size.c].map(|phi| chain(phi, &case.k, k_strides, [b, of.k])));
            v.add(of.v, [want.v, size.v]);
            for (sums, (want, size)) in states.iter_mut().zip(want.initial.into_iter().zip(size.initial)) {
                sums[0].add(of.state, [want.s, size.s]);
                sums[1].add(of.state, [want.z, size.z]);
            }
        }
        let what = |name: &str| format!("{what}: {name} of sequence {b}");
        let with_gate = if got.g.is_empty() { 0 } else { heads };
        let g_strides = Strides::bthd(shape.len, heads, 1);
        for (name, heads, wanted, got, strides, dim) in [
            ("dg", with_gate, &g, &got.g, g_strides, 1),
            ("dq", groups.query, &q, &got.q, q_strides, key),
            ("dk", groups.key, &k, &got.k, k_strides, key),
            ("dv", groups.value, &v, &got.v, v_strides, value),
        ] {
            for head in 0..heads {
                let got = rows_of(&shape, got, strides, dim, [b, head]);
                wanted.check(head, &got, bound, &what(name));
            }
        }
        for (g, got) in given.g.iter().zip(&got.g) {
            assert!(*g != f32::NEG_INFINITY || *got == 0.0, "{}", what("a decay of 0"));
        }
        for head in (0..heads).filter(|_| !got.initial.is_empty()) {
            let len = got.initial.len() / (batch * heads);
            let (found, count) = pieces(config, &got.initial[(b * heads + head) * len..][..len]);
            assert_eq!(count, 0, "{}", what("the count"));
            for (found, [s, z]) in found.iter().zip(&states).skip(usize::from(!per_chunk)) {
                let [got_s, got_z] =
                    [&found.s, &found.z].map(|x| x.iter().map(|x| *x as f32).collect::<Vec<f32>>());
                s.check(head, &got_s, bound, &what("dS"));
                if config.rule.normaliser != Normaliser::None {
                    z.check(head, &got_z, bound, &what("dz"));
                }
            }
        }
    }
}

/// The rules with a scalar gate; none where the family is left out.
fn gated() -> impl Iterator<Item = Rule> {
    [Normaliser::None, Normaliser::Global { eps: 1e-6 }]
        .into_iter()
        .filter(|_| cfg!(feature = "family"))
        .map(|normaliser| Rule::gated(Gate::Scalar).normaliser(normaliser))
}

/// The linear rule with every normaliser and a scalar gate, with the map elu.
fn linear_and_gated(chunks: &[usize]) -> impl Iterator<Item = Rule> {
    let linear = normalisers(chunks).into_iter().map(Rule::linear);
    linear.chain(gated()).map(|rule| rule.feature_map(FeatureMap::Elu))
}

fn config(normaliser: Normaliser, map: FeatureMap, shape: Shape) -> Config {
    Config::new(Rule::linear(normaliser).feature_map(map), shape)
}

/// The oracle's gradients are the differences of its loss.
#[test]
fn pairs_agree_with_differences() {
    for rule in normalisers(&[4, 7]).into_iter().map(Rule::linear).chain(gated()) {
        for with_states in [false, true] {
            let config = Config::new(rule.feature_map(FeatureMap::Elu), Shape::new(1, 11, 1, 3, 2));
            let head = head(&Given::new(config, 3, with_states), 0, outputs(&config.shape)[0]);
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
                    assert!((found - want).abs() <= 1e-7 * (1.0 + want.abs()), "{rule:?}: {found} {want}");
                    compared += 1;
                }
            };
            compare(&gradients.a, &|head, i, by| head.a[i] += by);
            compare(&gradients.c, &|head, i, by| head.c[i] += by);
            compare(&gradients.v, &|head, i, by| head.v[i] += by);
            compare(&gradients.g, &|head, i, by| head.g[i] += by);
            if with_states {
                for place in 0..2 {
                    compare(&gradients.initial[place].s, &|head, i, by| head.initial[place].s[i] += by);
                    compare(&gradients.initial[place].z, &|head, i, by| head.initial[place].z[i] += by);
                }
            }
            let gates = if rule.gate == Gate::None { 0 } else { 11 };
            assert_eq!(compared, 11 * (3 + 3 + 2) + gates + if with_states { 2 * (6 + 3) } else { 0 });
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
        let got: Vec<f32> =
            head(&given, 0, outputs(&config.shape)[0]).outputs().iter().map(|x| *x as f32).collect();
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
            for rule in normalisers(&[1, 8, 24, 50]).into_iter().map(Rule::linear).chain(gated()) {
                for map in MAPS {
                    for with_states in [false, true] {
                        let shape = Shape::new(2, len, 2, key, value);
                        let config = Config::new(rule.feature_map(map), shape).isa(isa);
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

/// Inputs with these heads, of which some are shared.
#[cfg(feature = "family")]
fn grouped(config: Config, with_states: bool) -> Given {
    let Shape { batch, len, groups, key, value, .. } = config.shape;
    let tensor = |seed, heads, dim| normals(seed, batch * len * heads * dim);
    let case = Case {
        config,
        q: tensor(1, groups.query, key),
        k: tensor(2, groups.key, key),
        v: tensor(3, groups.value, value),
    };
    let output = tensor(4, groups.output(), value);
    let (initial, last) = with_states.then(|| states(&case, 5)).unzip();
    Given { g: gates(&config, 6), case, output, initial, last }
}

/// Gradients of heads of q, k and v that several outputs share are sums over these outputs, on any number of
/// threads.
#[test]
#[cfg(feature = "family")]
fn shared_heads() {
    use chunkwise::{HeadOrder, Heads};
    for isa in Isa::available() {
        for (query, key, value) in [(4, 2, 2), (2, 2, 4), (1, 1, 3), (6, 3, 1), (1, 6, 2), (4, 1, 2)] {
            for order in [HeadOrder::Interleaved, HeadOrder::Tiled] {
                let groups = Heads::new(query, key, value).order(order);
                for normaliser in normalisers(&[24]) {
                    for with_states in [false, true] {
                        let shape = Shape::grouped(2, 50, groups, 17, 20);
                        let given = grouped(config(normaliser, FeatureMap::Elu, shape).isa(isa), with_states);
                        let got = backward::<f32>(&given, &given.case.attention());
                        check(&given, &got, GRADIENT_ERROR, &format!("{isa} {groups:?} {normaliser:?}"));
                    }
                }
                // This is enough work for three threads.
                let shape = Shape::grouped(3, 600, groups, 24, 40);
                let given = grouped(config(Normaliser::None, FeatureMap::Elu, shape).isa(isa), true);
                let whole = backward::<f32>(&given, &given.case.attention());
                let threads = Attention::new(given.case.config.threads(3)).unwrap();
                assert!(backward::<f32>(&given, &threads) == whole, "{isa} {groups:?}: threads");
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
    for rule in linear_and_gated(&[20]) {
        let normaliser = rule.normaliser;
        // This is enough work for three threads.
        let shape = Shape::new(3, 200, 2, 24, 40);
        let plain = Config::new(rule, shape);
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
                assert_eq!((&got.initial, &got.g), (&whole.initial, &whole.g), "{isa} {normaliser:?}");
            }
        }
        assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "{normaliser:?}: instruction sets");
    }
}

/// A ragged batch has the bits of its sequences.
#[test]
fn ragged_batches() {
    let begins = [0_u32, 7, 7, 40, 41];
    for rule in linear_and_gated(&[16]) {
        let shape = Shape::new(1, 41, 2, 10, 12);
        let given = Given::new(Config::new(rule, shape), 9, false);
        let ragged = Attention::new(Config::new(rule, shape.with_sequences(4))).unwrap();
        let Case { q, k, v, .. } = &given.case;
        let run = |attention: &Attention, range: std::ops::Range<usize>, begins: Option<&[u32]>| {
            let rows = |x: &[f32], dim: usize| x[range.start * 2 * dim..range.end * 2 * dim].to_vec();
            let [q, k] = [q, k].map(|x| rows(x, 10));
            let [v, output] = [v, &given.output].map(|x| rows(x, 12));
            let g = if given.g.is_empty() { vec![] } else { rows(&given.g, 1) };
            let (mut dq, mut dk, mut dv, mut dg) = (q.clone(), k.clone(), v.clone(), g.clone());
            let mut inputs = Inputs::new(&q[..], &k[..], &v[..], &output[..]).gate(&g[..]);
            if let Some(begins) = begins {
                inputs = inputs.sequences(begins);
            }
            let mut gradients = Gradients::new(&mut dq[..], &mut dk[..], &mut dv[..]);
            if rule.gate != Gate::None {
                gradients = gradients.gate(&mut dg[..]);
            }
            let scratch = &mut vec![f32::NAN; attention.backward_scratch_len()];
            attention.backward(inputs, gradients, scratch).unwrap();
            [dq, dk, dv, dg]
        };
        let all = run(&ragged, 0..41, Some(&begins));
        let mut parts: [Vec<f32>; 4] = Default::default();
        for pair in begins.windows(2) {
            let range = pair[0] as usize..pair[1] as usize;
            let one = Attention::new(Config::new(rule, shape.with_len(range.len()))).unwrap();
            for (part, more) in parts.iter_mut().zip(run(&one, range, None)) {
                part.extend(more);
            }
        }
        assert!(all == parts, "{rule:?}");
    }
}

/// A gradient of o at some token changes no gradient of a later key, value or query of another token.
#[test]
fn causality() {
    for rule in linear_and_gated(&[16]) {
        let shape = Shape::new(1, 60, 1, 8, 8);
        let mut given = Given::new(Config::new(rule, shape), 11, false);
        let attention = given.case.attention();
        let before = backward::<f32>(&given, &attention);
        given.output[33 * 8..34 * 8].fill(2.5);
        let after = backward::<f32>(&given, &attention);
        assert_eq!(before.k[34 * 8..], after.k[34 * 8..], "{rule:?}");
        assert_eq!(before.v[34 * 8..], after.v[34 * 8..], "{rule:?}");
        assert!(before.k[33 * 8..34 * 8] != after.k[33 * 8..34 * 8], "{rule:?}");
        for t in 0..60 {
            let same = before.q[t * 8..][..8] == after.q[t * 8..][..8];
            assert_eq!(same, t != 33, "{rule:?}: {t}");
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
        cases.extend([
            (Config::new(Rule::gated(Gate::Key), plain.shape), conflict("backward and a key gate")),
            (Config::new(Rule::delta(Gate::None), plain.shape), conflict("backward and the delta rule")),
            (
                Config::new(Rule::gated(Gate::Scalar).gate_map(chunkwise::GateMap::Linear), plain.shape),
                conflict("backward and a map of the gate"),
            ),
            (with(plain, |c| c.rule = c.rule.qk_norm(1e-6)), conflict("backward and the norm of q and k")),
            (
                with(plain, |c| c.rule = c.rule.causal(false)),
                conflict("backward and attention that is not causal"),
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

/// A gate, and the place of its gradient, are checked like the other tensors.
#[cfg(feature = "family")]
#[test]
fn refused_gates_write_nothing() {
    let shape = Shape::new(2, 6, 2, 4, 4);
    let gated = Config::new(Rule::gated(Gate::Scalar), shape);
    let constant = with(gated, |c| c.shape = shape.with_gates(Strides::PER_HEAD, Strides::PER_HEAD));
    let short = |what, got| Err(Error::TooShort { what, need: 24, got });
    for (config, g, dg, want) in [
        (gated, 24, Some(24), Ok(())),
        (gated, 24, None, Ok(())),
        (gated, 23, None, short("g", 23)),
        (gated, 24, Some(23), short("the gradient of g", 23)),
        (constant, 2, None, Ok(())),
        (constant, 2, Some(2), Err(Error::Overlap { what: "the gradient of g" })),
        (Config::new(Rule::linear(Normaliser::None), shape), 24, None, Err(Error::Unused { what: "g" })),
        (
            Config::new(Rule::linear(Normaliser::None), shape),
            0,
            Some(24),
            Err(Error::Unused { what: "the gradient of g" }),
        ),
    ] {
        let attention = Attention::new(config).unwrap();
        let (x, g) = (vec![0.5; 96], vec![-0.5; g]);
        let [mut dq, mut dk, mut dv] = [0, 1, 2].map(|_| vec![SENTINEL; 96]);
        let mut place = vec![SENTINEL; dg.unwrap_or(0)];
        let mut gradients = Gradients::new(&mut dq[..], &mut dk[..], &mut dv[..]);
        if dg.is_some() {
            gradients = gradients.gate(&mut place[..]);
        }
        let inputs = Inputs::new(&x[..], &x[..], &x[..], &x[..]).gate(&g[..]);
        let scratch = &mut vec![0.0; attention.backward_scratch_len()];
        assert_eq!(attention.backward(inputs, gradients, scratch), want, "{:?} {g:?}", config.rule);
        let all = [dq, dk, dv, place].concat();
        assert!(want.is_ok() || untouched(&all, &vec![SENTINEL; all.len()]), "{:?} {g:?}", config.rule);
    }
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

    fn each<E: Number>(given: &Given, fences: &mut [Fence; 13]) {
        let attention = given.case.attention();
        let Case { q, k, v, .. } = &given.case;
        let [q, k, v, output] = [q, k, v, &given.output].map(|x| narrow::<E>(x));
        let states = vec![0.0; attention.state_len()];
        let scratch = vec![SENTINEL; attention.backward_scratch_len()];
        on_both_sides(|side| {
            let [a, b, c, d, e, f, g, h, i, j, l, m, n] = fences.each_mut();
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
            let mut gradients = Gradients::new(&mut *dq, &mut *dk, &mut *dv).initial(initial);
            let dg = n.place(side, &given.g);
            if !dg.is_empty() {
                gradients = gradients.gate(&mut *dg);
            }
            let inputs = inputs.gate(&*m.place(side, &given.g));
            attention.backward(inputs, gradients, l.place(side, &scratch)).unwrap();
            [widen(dq), widen(dk), widen(dv), dg.to_vec(), initial.to_vec()].concat()
        });
    }
    let fences = &mut std::array::from_fn(|_| Fence::new());
    for isa in Isa::available() {
        for rule in linear_and_gated(&[8]) {
            for (len, key, value) in [(1, 1, 1), (25, 17, 33), (30, 16, 70)] {
                let config = Config::new(rule, Shape::new(2, len, 2, key, value)).isa(isa);
                let given = Given::new(config, 1, true);
                each::<f32>(&given, fences);
                each::<bf16>(&given, fences);
                each::<f16>(&given, fences);
            }
        }
    }
}
