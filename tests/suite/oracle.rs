//! Attention compared with the recurrence in f64: outputs, last states, and elements that must be left
//! untouched. Every case runs on every instruction set of the machine, by forward and token by token. The
//! test `instruction_sets` prints which those are.

use chunkwise::{Config, FeatureMap, Isa, Normaliser, Rule, Shape, State, Strides, Tensors, isa};

use crate::common::*;

/// Chunk lengths of PerChunk: one token; shorter than a tile; the tiles of 16 and of 24 tokens, and between
/// them; longer than a tile, and not a multiple of 24; longer than every sequence.
const CHUNKS: [usize; 7] = [1, 5, 16, 20, 24, 64, 5000];

fn check(config: Config) {
    check_case(Case::new(config, 1));
}

fn check_case(mut case: Case) {
    let config = case.config;
    let (want, want_state) = case.oracle();
    let (size, state_size) = case.without_cancellation().oracle();
    for isa in Isa::available() {
        case.config.execution.isa = Some(isa);
        let compare = |what: &str, o: &[f32], state: &[f32]| {
            assert!(case.gaps_are_untouched(o), "{what} wrote between the rows of o: {:?}", case.config);
            let o = gather(&config, o);
            let (norm, worst) = (norm_error(&o, &want), element_error(&o, &want, &size));
            assert!(norm <= NORM_ERROR, "{what}: norm error {norm:e}: {:?}", case.config);
            assert!(
                worst <= element_bound(&config),
                "{what}: an element is off by {worst:e}: {:?}",
                case.config
            );
            let worst = element_error(state, &want_state, &state_size);
            assert!(
                worst <= element_bound(&config),
                "{what}: the state is off by {worst:e}: {:?}",
                case.config
            );
        };

        let (o, state) = case.whole_and_state();
        compare("forward", &o, &state);

        let (mut o, mut state) = (case.output(), case.zero_state());
        case.decode(0..config.shape.len, &mut state, &mut o);
        compare("decode", &o, &state);
    }
}

/// Checks every feature map and every normaliser at one size.
fn check_all(batch: usize, len: usize, heads: usize, key: usize, value: usize) {
    for normaliser in normalisers(&CHUNKS) {
        for feature_map in MAPS {
            let rule = Rule::linear(normaliser).feature_map(feature_map);
            check(Config::new(rule, Shape::new(batch, len, heads, key, value)));
        }
    }
}

/// Whether the standard library detects the instruction set of this name.
fn expected(name: &str) -> bool {
    match name {
        "scalar" => true,
        #[cfg(target_arch = "x86_64")]
        "avx2" => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
        #[cfg(target_arch = "x86_64")]
        "avx512" => is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512vl"),
        #[cfg(target_arch = "aarch64")]
        "neon" => true,
        _ => false,
    }
}

/// Reports the instruction sets on which the tests run, and checks that these are all that the machine has.
#[test]
fn instruction_sets() {
    for name in isa::NAMES {
        let isa = Isa::from_name(name);
        assert_eq!(isa.is_ok(), expected(name), "{name}");
        match isa {
            Ok(isa) => report(&format!("{isa}: tested, {} lanes", isa.lanes())),
            Err(_) => report(&format!("{name}: NOT tested, this machine does not have it")),
        }
    }
}

#[test]
fn sizes_of_heads() {
    // These are a tile of tokens and a part of one.
    const LEN: usize = TILE + 5;
    for (key, value) in [
        (1, 1),     // one element
        (1, 512),   // outer products
        (512, 1),   // dot products
        (3, 5),     // K below and V above the shortest vector
        (4, 8),     // one vector and one panel of 4 lanes
        (5, 7),     // K above and V below these
        (8, 16),    // one vector and one panel of 8 lanes
        (7, 17),    // K below and V above these
        (9, 15),    // K above and V below these
        (16, 32),   // one group of K; half a panel of 16 lanes
        (15, 33),   // K below and V above these
        (17, 31),   // K above and V below these
        (6, 24),    // a panel and a half of 8 lanes
        (12, 48),   // three panels of 8 lanes; three vectors of 16 lanes
        (64, 64),   // the usual size of a head: one panel of 16 lanes
        (64, 128),  // V larger: decode sweeps eight vectors of 16 lanes at once
        (128, 64),  // K larger
        (63, 129),  // one less than 64; one more than 128
        (100, 100), // multiples of 4 only
        (130, 70),  // multiples of 2 only
        (37, 211),  // primes
    ] {
        check_all(1, LEN, 1, key, value);
    }
}

#[test]
fn large_heads() {
    // S is 1 MiB and does not fit in L1.
    for (normaliser, feature_map) in normalisers(&[16, 20]).into_iter().zip(MAPS.into_iter().cycle()) {
        let rule = Rule::linear(normaliser).feature_map(feature_map);
        check(Config::new(rule, Shape::new(1, TILE + 1, 1, 512, 512)));
    }
}

#[test]
fn every_small_key() {
    // The rows of S are computed in groups of 16. K has every remainder, after none, one and two whole
    // groups.
    for key in 1..=34 {
        check_all(1, TILE + 3, 1, key, 3);
    }
}

#[test]
fn every_small_value() {
    // Every number of columns in the last vector, after none to two panels of 16 lanes, and after the eight
    // vectors that a decode sweeps at once.
    for value in 1..=130 {
        check_all(1, TILE + 3, 1, 5, value);
    }
}

#[test]
fn lengths() {
    // No token; every number of blocks in a tile and of single tokens after them; below, at and above two and
    // four tiles of 16 and of 24 tokens; a few tiles and a part of one. The longer sequences have several of
    // the chunks of `CHUNKS`.
    let short = 0..=TILE + 1;
    for len in short.chain([31, 32, 33, 47, 48, 49, 63, 64, 65, 95, 96, 97, 100, 129, 200]) {
        check_all(1, len, 1, 20, 40);
    }
}

#[test]
fn every_small_chunk() {
    // Chunks are cut into tiles and blocks in every possible way, up to three tiles and two tokens. There are
    // three chunks and a part of one.
    for chunk in 1..=3 * TILE + 2 {
        let shape = Shape::new(1, 3 * chunk + 1 + chunk / 2, 1, 9, 11);
        check(Config::new(Rule::linear(Normaliser::per_chunk(chunk)), shape));
    }
}

#[test]
fn batches_and_heads() {
    for (batch, heads) in [(1, 1), (1, 2), (3, 1), (2, 3), (5, 7)] {
        check_all(batch, TILE + 4, heads, 6, 10);
    }
    // S of all heads is 1 MiB, so that they are divided into several tasks.
    let rule = Rule::linear(Normaliser::Global { eps: 1e-6 });
    check(Config::new(rule, Shape::new(1, TILE + 4, 64, 64, 64)));
}

#[test]
fn several_heads_in_one_task() {
    // A task computes several heads in turn, a tile of tokens of each at a time.
    for normaliser in normalisers(&[20, 64]) {
        for (key, value) in [(64, 64), (64, 128)] {
            check(Config::new(Rule::linear(normaliser), Shape::new(1, 250, 3, key, value)));
        }
    }
}

#[test]
fn long_sequence() {
    for normaliser in normalisers(&[1, 20, 64, 5000]) {
        for feature_map in MAPS {
            let rule = Rule::linear(normaliser).feature_map(feature_map);
            check(Config::new(rule, Shape::new(1, 4096, 1, 64, 64)));
        }
    }
}

#[test]
fn scales() {
    for scale in [0.0, 0.125, -3.7, 1e-20, 1e20] {
        for normaliser in normalisers(&CHUNKS) {
            check(Config::new(Rule::linear(normaliser).scale(scale), Shape::new(2, TILE + 5, 2, 8, 12)));
        }
    }
}

#[test]
fn wide_inputs() {
    // exp underflows for the negative inputs, and would overflow for the positive ones, for which elu does
    // not use it.
    for (factor, normaliser) in
        [10.0, 1e4].into_iter().flat_map(|f| normalisers(&[5, 20]).into_iter().map(move |n| (f, n)))
    {
        for feature_map in [FeatureMap::Elu, FeatureMap::RELU] {
            let rule = Rule::linear(normaliser).feature_map(feature_map);
            let mut case = Case::new(Config::new(rule, Shape::new(1, TILE + 5, 2, 24, 20)), 1);
            case.q.iter_mut().chain(&mut case.k).for_each(|x| *x *= factor);
            check_case(case);
        }
    }
}

#[test]
fn strongly_negative_inputs() {
    // Elu is a small multiple of 2^-24 there, about ten of them, so that exp alone would be off by several
    // percent. Numbers whose exp is near the middle between two multiples are left out, because a rounding
    // error would decide between these.
    let clear = |x: f32| {
        let steps = f64::from(x).exp() * f64::from(1 << 24);
        (steps.fract() - 0.5).abs() > 0.05
    };
    for normaliser in normalisers(&[5, 20]) {
        let config = Config::new(Rule::linear(normaliser), Shape::new(1, TILE + 5, 2, 24, 20));
        let mut case = Case::new(config, 1);
        let mut numbers = normals(9, 10_000).into_iter().map(|x| x / 2.0 - 14.0).filter(|x| clear(*x));
        case.q.iter_mut().chain(&mut case.k).for_each(|x| *x = numbers.next().expect("enough numbers"));
        check_case(case);
    }
}

#[test]
fn epsilons() {
    // These eps are large enough to change the results; the last case has none.
    for eps in [0.5, 3.0] {
        for feature_map in
            MAPS.into_iter().chain([FeatureMap::Relu { eps: 0.25 }, FeatureMap::Relu { eps: 0.0 }])
        {
            for normaliser in [
                Normaliser::Global { eps },
                Normaliser::PerChunk { chunk: 5, eps },
                Normaliser::PerChunk { chunk: 20, eps },
            ] {
                let rule = Rule::linear(normaliser).feature_map(feature_map);
                check(Config::new(rule, Shape::new(1, 50, 1, 8, 12)));
            }
        }
    }
    check(Config::new(Rule::linear(Normaliser::Global { eps: 0.0 }), Shape::new(1, 50, 1, 8, 12)));
}

#[test]
fn layouts() {
    // q, k, v and o have different orders, with and without gaps. Orders 0 and 1 are [B, T, H, D] and [B, H,
    // T, D].
    for normaliser in normalisers(&[5, 16, 20]) {
        let config = Config::new(Rule::linear(normaliser), Shape::new(2, TILE + 6, 3, 10, 18));
        for orders in [[0; 4], [1; 4], [0, 1, 2, 3], [5, 4, 3, 2], [4, 2, 1, 0], [2, 5, 0, 4], [3, 3, 5, 1]] {
            for gaps in [[0, 0, 0], [1, 0, 0], [0, 3, 0], [0, 0, 5], [7, 1, 2]] {
                check(with_layouts(config, orders.map(|order| (order, gaps))));
            }
        }
    }
}

#[test]
fn shared_inputs() {
    // Strides of 0 are legal for tensors that are only read: all heads share k and v, and all tokens share q.
    for normaliser in normalisers(&[5, 20]) {
        let config = Config::new(Rule::linear(normaliser), Shape::new(2, TILE + 6, 3, 10, 18));
        let Shape { q_strides, k_strides, v_strides, .. } = config.shape;
        let shape = config.shape.with_inputs(
            Strides { token: 0, ..q_strides },
            Strides { head: 0, ..k_strides },
            Strides { head: 0, batch: 0, ..v_strides },
        );
        check(with(config, |c| c.shape = shape));
    }
}

#[test]
fn packed_qkv() {
    // q, k and v are in one buffer, as a qkv layer writes it: in each row, all heads of q, then of k, then of
    // v.
    let (batch, len, heads, key, value) = (2, TILE + 6, 3, 10, 18);
    let (v_at, row) = (2 * heads * key, heads * (2 * key + value));
    let qkv = normals(1, batch * len * row);
    let (q, k, v) = (&qkv[..], &qkv[heads * key..], &qkv[v_at..]);
    for normaliser in normalisers(&CHUNKS) {
        for isa in Isa::available() {
            let keys = Strides::packed(len, row, key);
            let shape = Shape::new(batch, len, heads, key, value);
            let shape = shape.with_inputs(keys, keys, Strides::packed(len, row, value));
            let config = Config::new(Rule::linear(normaliser), shape).isa(isa);
            let attention = chunkwise::Attention::new(config).expect("a legal configuration");
            let want = oracle(&config, q, k, v);
            let scratch = &mut vec![f32::NAN; attention.scratch_len()];

            let mut o = vec![SENTINEL; want.len()];
            let tensors = Tensors::new(q, k, v, &mut o[..]);
            attention.forward(tensors, State::Zero, scratch).expect("legal arguments");
            let error = norm_error(&o, &want);
            assert!(error <= NORM_ERROR, "forward: norm error {error:e}: {config:?}");

            let (mut o, mut state) = (vec![SENTINEL; want.len()], vec![0.0; attention.state_len()]);
            for t in 0..len {
                let [q, k, v] = [q, k, v].map(|x| &x[t * row..]);
                let (state, o) = (&mut state[..], &mut o[t * heads * value..]);
                attention.decode(Tensors::new(q, k, v, o), state, scratch).expect("legal arguments");
            }
            let error = norm_error(&o, &want);
            assert!(error <= NORM_ERROR, "decode: norm error {error:e}: {config:?}");
        }
    }
}

#[test]
fn states() {
    // A sequence is computed in three pieces, with each way of passing a state. It is cut within tiles, and
    // within the chunks of 5, 20 and 64 tokens, with and without finished chunks before the cut.
    let pieces = [0..7, 7..50, 50..93];
    for normaliser in normalisers(&CHUNKS) {
        for feature_map in MAPS {
            let rule = Rule::linear(normaliser).feature_map(feature_map);
            let config = Config::new(rule, Shape::new(2, 93, 3, 9, 19));
            let mut case = Case::new(config, 1);
            let positive = case.without_cancellation();
            for isa in Isa::available() {
                case.config.execution.isa = Some(isa);
                let (mut oracle, mut sizes) = (Oracle::new(&config), Oracle::new(&positive.config));
                let len = case.zero_state().len();
                let (mut before, mut carried) = (vec![0.0; len], vec![0.0; len]);
                for piece in pieces.clone() {
                    let want = oracle.run(&case.q, &case.k, &case.v, piece.clone());
                    sizes.run(&positive.q, &positive.k, &positive.v, piece.clone());
                    let mut after = vec![SENTINEL; len];
                    let mut decoded = before.clone();
                    let mut outputs = [case.output(), case.output(), case.output(), case.output()];
                    let [initial, both, replaced, one_by_one] = &mut outputs;
                    case.forward(piece.clone(), State::Initial(&before), initial);
                    case.forward(piece.clone(), State::InitialFinal(&before, &mut after), both);
                    case.forward(piece.clone(), State::Carried(&mut carried), replaced);
                    case.decode(piece.clone(), &mut decoded, one_by_one);
                    for (at, o) in outputs.iter().enumerate() {
                        let part = with(case.config, |c| c.shape.len = piece.len());
                        let error = norm_error(
                            &gather(&part, &o[piece.start * config.shape.o_strides.token..]),
                            &want,
                        );
                        assert!(
                            error <= NORM_ERROR,
                            "output {at} of {piece:?}: norm error {error:e}: {part:?}"
                        );
                    }
                    for state in [&after, &carried, &decoded] {
                        let worst = element_error(state, &oracle.state(), &sizes.state());
                        assert!(
                            worst <= element_bound(&config),
                            "{piece:?}: state off by {worst:e}: {:?}",
                            case.config
                        );
                    }
                    for state in [&carried, &decoded] {
                        assert_eq!(first_difference(&after, state), None, "{piece:?}: {:?}", case.config);
                    }
                    before = after;
                }
            }
        }
    }
}
