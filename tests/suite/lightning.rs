//! Lightning attention: accuracy against the oracle, independence of the bits from cuts, strides and threads,
//! and errors.

use std::ops::Range;

use chunkwise::lightning::reference::Recurrence;
use chunkwise::lightning::{self, Lightning};
use chunkwise::{Config, Error, Isa, Normaliser, Rule, Shape, State, Tensors};
use half::{bf16, f16};

use crate::common::*;

/// Chunks of one token; shorter than a block of four; ending within a block and within a vector; of whole
/// blocks; longer than a group of 16; of whole groups; longer than every sequence.
const CHUNKS: [usize; 7] = [1, 3, 5, 8, 17, 64, 1000];

/// B, T, H, K, V: all 1; less than a vector; odd sizes of more than two groups; whole groups; a wide V that
/// is not a whole number of groups.
const SIZES: [[usize; 5]; 5] =
    [[1, 1, 1, 1, 1], [2, 21, 3, 5, 3], [1, 90, 2, 35, 67], [1, 70, 2, 32, 16], [1, 140, 1, 64, 130]];

/// Tensors of a shape, and the chunk length. The rule of the case is not used.
struct Chunked {
    case: Case,
    chunk: usize,
}

impl Chunked {
    /// A case of normal numbers. q and k are positive, because denominators might otherwise be arbitrarily
    /// close to zero.
    fn new(shape: Shape, chunk: usize, isa: Isa) -> Self {
        let rule = Rule::linear(Normaliser::None);
        let mut case = Case::new(Config::new(rule, shape).isa(isa), 1);
        for x in case.q.iter_mut().chain(&mut case.k) {
            *x = x.abs();
        }
        Self { case, chunk }
    }

    fn lightning(&self, len: usize) -> Lightning {
        let Config { shape, execution, .. } = self.case.config;
        let mut config = lightning::Config::new(self.chunk, shape.with_len(len));
        config.execution = execution;
        Lightning::new(config).expect("a legal configuration")
    }

    fn len(&self) -> usize {
        self.case.config.shape.len
    }

    fn zero_state(&self) -> Vec<f32> {
        vec![0.0; self.lightning(1).state_len()]
    }

    /// Computes some of the tokens.
    fn forward(&self, tokens: Range<usize>, state: State<'_>, o: &mut [f32]) {
        let lightning = self.lightning(tokens.len());
        let scratch = &mut vec![f32::NAN; lightning.scratch_len()];
        lightning.forward(self.case.tensors(tokens.start, o), state, scratch).expect("legal arguments");
    }

    /// Computes some of the tokens one by one.
    fn decode(&self, tokens: Range<usize>, state: &mut [f32], o: &mut [f32]) {
        let lightning = self.lightning(1);
        let scratch = &mut vec![f32::NAN; lightning.decode_scratch_len()];
        for token in tokens {
            lightning.decode(self.case.tensors(token, o), state, scratch).expect("legal arguments");
        }
    }

    /// Computes all tokens from a state of zeros; returns o.
    fn whole(&self) -> Vec<f32> {
        let mut o = self.case.output();
        self.forward(0..self.len(), State::Zero, &mut o);
        o
    }

    /// Computes all tokens from a state of zeros; returns o and the last state.
    fn whole_and_state(&self) -> (Vec<f32>, Vec<f32>) {
        let (mut o, mut state) = (self.case.output(), vec![SENTINEL; self.zero_state().len()]);
        self.forward(0..self.len(), State::Final(&mut state), &mut o);
        (o, state)
    }

    /// The oracle's outputs `[B, T, H, V]`, contiguous.
    fn oracle(&self) -> Vec<f64> {
        let Shape { batch, heads, key, value, q_strides, k_strides, v_strides, .. } = self.case.config.shape;
        let chunk = self.chunk.min(self.len());
        let zeros = |len: usize| vec![0.0; len];
        let mut sums: Vec<_> = (0..batch * heads)
            .map(|_| (zeros(key * value), zeros(key), zeros(chunk * key), zeros(chunk * value), 0))
            .collect();
        let mut o = zeros(batch * self.len() * heads * value);
        for ((b, t, h), o) in rows(&self.case.config).zip(o.chunks_exact_mut(value)) {
            let (s, z, keys, values, count) = &mut sums[b * heads + h];
            let mut head = Recurrence { chunk: self.chunk, s, z, keys, values, count: *count };
            let q = &self.case.q[at(q_strides, b, t, h)..][..key];
            let k = &self.case.k[at(k_strides, b, t, h)..][..key];
            let v = &self.case.v[at(v_strides, b, t, h)..][..value];
            head.step(q, k, v, o);
            *count = head.count;
        }
        o
    }
}

/// Runs a test for every size and chunk length on every instruction set.
fn each(mut test: impl FnMut(Chunked, &str)) {
    for isa in Isa::available() {
        for [batch, len, heads, key, value] in SIZES {
            for chunk in CHUNKS {
                let shape = Shape::new(batch, len, heads, key, value);
                let what = format!("{isa} {batch} {len} {heads} {key} {value}, chunks of {chunk}");
                test(Chunked::new(shape, chunk, isa), &what);
            }
        }
    }
}

#[test]
fn it_is_what_the_oracle_computes() {
    each(|chunked, what| {
        let error = norm_error(&chunked.whole(), &chunked.oracle());
        assert!(error <= NORM_ERROR, "{what}: {error:e}");
    });
}

/// The first chunk has only the softmax, whose denominator is positive, so that q and k may be any numbers.
#[test]
fn the_first_chunk_is_a_softmax() {
    for isa in Isa::available() {
        for scale in [0.1, 1.0, 5.0] {
            let mut chunked = Chunked::new(Shape::new(1, 100, 2, 40, 24), 1000, isa);
            let numbers = normals(9, chunked.case.q.len() + chunked.case.k.len());
            for (x, number) in chunked.case.q.iter_mut().chain(&mut chunked.case.k).zip(numbers) {
                *x = scale * number;
            }
            let error = norm_error(&chunked.whole(), &chunked.oracle());
            // A weight changes by the absolute error of its score, which grows with the size of the score.
            let bound = NORM_ERROR * f64::from(scale.max(1.0).powi(2));
            assert!(error <= bound, "{isa}, {scale}: {error:e}");
        }
    }
}

/// A chunk is added to S and z when it ends and not before, and its keys and values are then cleared.
#[test]
fn state_metadata_matches() {
    for isa in Isa::available() {
        let (key, value, chunk) = (3, 2, 5);
        let chunked = Chunked::new(Shape::new(1, 12, 1, key, value), chunk, isa);
        let (_, state) = chunked.whole_and_state();
        let (s, rest) = state.split_at(key * 16);
        let (z, rest) = rest.split_at(16);
        let (keys, rest) = rest.split_at(key * 16);
        let (values, count) = rest.split_at(chunk * 16);
        let (k, v) = (&chunked.case.k, &chunked.case.v);
        let near = |got: f32, want: f64| (f64::from(got) - want).abs() <= 1e-5;
        for i in 0..key {
            let finished =
                |j: usize| (0..10).map(move |t| f64::from(k[t * key + i]) * f64::from(v[t * value + j]));
            assert!((0..value).all(|j| near(s[i * 16 + j], finished(j).sum())), "{isa}: S {s:?}");
            assert!(near(z[i], (0..10).map(move |t| f64::from(k[t * key + i])).sum()), "{isa}: z {z:?}");
            for place in 0..16 {
                let want = if place < 2 { k[(10 + place) * key + i] } else { 0.0 };
                assert_eq!(keys[i * 16 + place], want, "{isa}: keys");
            }
        }
        for place in 0..chunk {
            for j in 0..value {
                let want = if place < 2 { v[(10 + place) * value + j] } else { 0.0 };
                assert_eq!(values[place * 16 + j], want, "{isa}: values");
            }
        }
        assert_eq!((count[0], count.len()), (2.0, 16), "{isa}");
    }
}

#[test]
fn a_cut_changes_no_bit() {
    each(|chunked, what| {
        let (want, last) = chunked.whole_and_state();
        let len = chunked.len();
        // The pieces end within a block, within a chunk, at its end, and beyond it.
        for piece in [1, 2, 3, 4, 5, 7, 17, 64] {
            let (mut o, mut state) = (chunked.case.output(), chunked.zero_state());
            for begin in (0..len).step_by(piece) {
                chunked.forward(begin..len.min(begin + piece), State::Carried(&mut state), &mut o);
            }
            assert_eq!(first_difference(&o, &want), None, "{what}: pieces of {piece}");
            assert_eq!(first_difference(&state, &last), None, "{what}: the state, pieces of {piece}");
        }
        // Calls that read one state and write another.
        let (mut o, mut middle, mut end) = (chunked.case.output(), last.clone(), last.clone());
        let cut = len / 3;
        chunked.forward(0..cut, State::Final(&mut middle), &mut o);
        chunked.forward(cut..len, State::InitialFinal(&middle, &mut end), &mut o);
        assert_eq!(first_difference(&o, &want), None, "{what}: from a state");
        assert_eq!(first_difference(&end, &last), None, "{what}: from a state to a state");
        let mut again = chunked.case.output();
        chunked.forward(cut..len, State::Initial(&middle), &mut again);
        let begin = at(chunked.case.config.shape.o_strides, 0, cut, 0);
        let end = at(chunked.case.config.shape.o_strides, 0, len - 1, 0);
        assert_eq!(
            first_difference(&again[begin..end], &want[begin..end]),
            None,
            "{what}: a state only read"
        );
        assert_eq!(first_difference(&chunked.whole(), &want), None, "{what}: no state");
    });
}

#[test]
fn decode_is_forward() {
    each(|chunked, what| {
        let (want, last) = chunked.whole_and_state();
        let (mut o, mut state) = (chunked.case.output(), chunked.zero_state());
        chunked.decode(0..chunked.len(), &mut state, &mut o);
        assert_eq!(first_difference(&o, &want), None, "{what}");
        assert_eq!(first_difference(&state, &last), None, "{what}: the state");
        // A forward of some tokens, then a decode of the others.
        let (mut o, mut state, cut) = (chunked.case.output(), chunked.zero_state(), chunked.len() / 2);
        chunked.forward(0..cut, State::Final(&mut state), &mut o);
        chunked.decode(cut..chunked.len(), &mut state, &mut o);
        assert_eq!(first_difference(&o, &want), None, "{what}: after a forward");
    });
}

#[test]
fn neither_strides_nor_neighbours_change_a_bit() {
    for isa in Isa::available() {
        for [batch, len, heads, key, value] in SIZES {
            let chunked = Chunked::new(Shape::new(batch, len, heads, key, value), 8, isa);
            let want = gather(&chunked.case.config, &chunked.whole());
            let layouts = [
                [(1, [0; 3]); 4],
                [(2, [1, 2, 3]), (3, [5, 0, 1]), (4, [0, 7, 0]), (5, [2, 1, 9])],
                [(5, [3; 3]), (0, [1; 3]), (1, [0, 0, 4]), (3, [1, 2, 0])],
            ];
            for layout in layouts {
                let config = with_layouts(chunked.case.config, layout);
                let case = chunked.case.rearranged(config, |b, t, h| (b, t, h));
                let strided = Chunked { case, chunk: 8 };
                let o = strided.whole();
                assert_eq!(first_difference(&gather(&config, &o), &want), None, "{isa} {layout:?}");
                assert!(strided.case.gaps_are_untouched(&o), "{isa} {layout:?}: gaps");
                let mut o = strided.case.output();
                strided.decode(0..len, &mut strided.zero_state(), &mut o);
                assert_eq!(first_difference(&gather(&config, &o), &want), None, "{isa} {layout:?}: decode");
            }
            // One head of one sequence alone.
            for (b, h) in [(0, 0), (batch - 1, heads - 1)] {
                let config = with(chunked.case.config, |c| c.shape = Shape::new(1, len, 1, key, value));
                let case = chunked.case.rearranged(config, |_, t, _| (b, t, h));
                let alone = Chunked { case, chunk: 8 }.whole();
                let rows = (0..len).flat_map(|t| &want[((b * len + t) * heads + h) * value..][..value]);
                assert_eq!(first_difference(&alone, &rows.copied().collect::<Vec<_>>()), None, "{isa}");
            }
        }
    }
}

/// Tensors of 16 bits give the bits that the same numbers in f32 give, rounded: widening is exact, and all
/// arithmetic is in f32.
#[test]
fn narrow_types_are_rounded_once() {
    fn check<E: Number>(chunked: &Chunked, what: &str) {
        let [q, k, v] = [&chunked.case.q, &chunked.case.k, &chunked.case.v].map(|x| narrow::<E>(x));
        let case = Case { config: chunked.case.config, q: widen(&q), k: widen(&k), v: widen(&v) };
        let wide = Chunked { case, chunk: chunked.chunk };
        let want = narrow::<E>(&wide.whole());
        let lightning = chunked.lightning(chunked.len());
        let mut o = narrow::<E>(&chunked.case.output());
        let scratch = &mut vec![f32::NAN; lightning.scratch_len().max(lightning.decode_scratch_len())];
        let tensors = Tensors::new(&q[..], &k[..], &v[..], &mut o[..]);
        lightning.forward(tensors, State::Zero, scratch).expect("legal arguments");
        assert!(o == want, "{} {what}", E::NAME);
        let (mut o, mut state) = (narrow::<E>(&chunked.case.output()), chunked.zero_state());
        let Shape { q_strides, k_strides, v_strides, o_strides, .. } = chunked.case.config.shape;
        for t in 0..chunked.len() {
            let (q, k) = (&q[t * q_strides.token..], &k[t * k_strides.token..]);
            let (v, o) = (&v[t * v_strides.token..], &mut o[t * o_strides.token..]);
            lightning.decode(Tensors::new(q, k, v, o), &mut state, scratch).expect("legal arguments");
        }
        assert!(o == want, "{} {what}: decode", E::NAME);
    }
    each(|chunked, what| {
        check::<bf16>(&chunked, what);
        check::<f16>(&chunked, what);
    });
}

#[test]
fn nan_does_not_spread() {
    for isa in Isa::available() {
        for chunk in CHUNKS {
            let chunked = Chunked::new(Shape::new(1, 40, 2, 20, 35), chunk, isa);
            let want = chunked.whole();
            for (token, poison) in
                [(0, f32::NAN), (1, f32::INFINITY), (6, f32::NAN), (7, f32::NAN), (30, f32::NAN)]
            {
                for which in 0..3 {
                    let mut case = chunked.case.clone();
                    // An element of head 0.
                    let tensor = [&mut case.q, &mut case.k, &mut case.v][which].as_mut_slice();
                    tensor[token * 2 * if which == 2 { 35 } else { 20 } + 3] = poison;
                    let got = Chunked { case, chunk }.whole();
                    let what = format!("{isa}, chunks of {chunk}, tensor {which}, token {token}");
                    for (t, (got, want)) in got.chunks(35).zip(want.chunks(35)).enumerate() {
                        let (token_of, head) = (t / 2, t % 2);
                        if token_of < token || head == 1 {
                            assert!(untouched(got, want), "{what}: output of {token_of}, head {head}");
                        }
                        if token_of == token && head == 0 {
                            let seen = if which == 2 { &got[3..4] } else { got };
                            assert!(!seen.iter().any(|x| x.is_finite()), "{what}: {poison} is not seen");
                        }
                    }
                }
            }
        }
    }
}

/// A NaN at any position in a chunk reaches its own output and all later ones, in later chunks by the state.
#[test]
fn a_nan_key_is_seen_by_its_chunk_and_all_later_ones() {
    for isa in Isa::available() {
        for place in 0..20 {
            let mut chunked = Chunked::new(Shape::new(1, 60, 1, 4, 3), 20, isa);
            chunked.case.k[place * 4 + 1] = f32::NAN;
            let o = chunked.whole();
            for (t, row) in o.chunks(3).enumerate() {
                assert!(
                    row.iter().all(|x| x.is_nan() == (t >= place)),
                    "{isa}: place {place}, token {t}: {row:?}"
                );
            }
        }
    }
}

#[test]
fn large_scores_and_values_do_not_overflow() {
    for isa in Isa::available() {
        let mut chunked = Chunked::new(Shape::new(1, 30, 1, 8, 5), 30, isa);
        // Scores are of the order of 1e30, so that all the weight of a row is on its largest score.
        let numbers = normals(3, 480);
        for (x, number) in chunked.case.q.iter_mut().chain(&mut chunked.case.k).zip(numbers) {
            *x = 1e15 * number;
        }
        let error = norm_error(&chunked.whole(), &chunked.oracle());
        assert!(error <= NORM_ERROR, "{isa}: {error:e}");

        // The weights are equal, and the sum of the values is not finite in f32.
        chunked.case.k.fill(0.0);
        chunked.case.v.fill(3e38);
        let o = chunked.whole();
        assert!(o.iter().all(|o| (o / 3e38 - 1.0).abs() < 1e-6), "{isa}: {o:?}");

        // The weight of a score that is far below the largest one is exactly 0, even for the largest value.
        let mut chunked = Chunked::new(Shape::new(1, 2, 1, 1, 1), 2, isa);
        chunked.case.q.fill(1.0);
        (chunked.case.k, chunked.case.v) = (vec![-200.0, 0.0], vec![3e38, 1.0]);
        assert_eq!(chunked.whole(), [3e38, 1.0], "{isa}");
    }
}

/// The first output is exactly the first value, because its only weight is 1.
#[test]
fn a_first_token_is_its_value() {
    for isa in Isa::available() {
        for chunk in CHUNKS {
            let chunked = Chunked::new(Shape::new(1, 3, 1, 7, 9), chunk, isa);
            assert_eq!(chunked.whole()[..9], chunked.case.v[..9], "{isa}, chunks of {chunk}");
        }
    }
}

/// Outputs agree with o = v + q S / (q . z + eps), computed by hand.
#[test]
fn chunks_of_one_token() {
    for isa in Isa::available() {
        let mut chunked = Chunked::new(Shape::new(1, 3, 1, 2, 1), 1, isa);
        chunked.case.q = vec![5.0, 6.0, 1.0, 2.0, 3.0, 1.0];
        chunked.case.k = vec![1.0, 1.0, 2.0, 0.0, 9.0, 9.0];
        chunked.case.v = vec![4.0, 8.0, 0.5];
        // S after two tokens: (1 4 + 2 8, 1 4) = (20, 4), z: (3, 1).
        let want = [4.0, 8.0 + (4.0 + 2.0 * 4.0) / 3.0, 0.5 + (3.0 * 20.0 + 4.0) / (3.0 * 3.0 + 1.0)];
        for (got, want) in chunked.whole().iter().zip(want) {
            assert!((got - want as f32).abs() <= 1e-6, "{isa}: {got}, {want}");
        }
    }
}

/// An output that is exactly zero is +0, as in linear attention.
#[test]
fn zeros_are_positive() {
    for isa in Isa::available() {
        let mut chunked = Chunked::new(Shape::new(1, 20, 1, 5, 7), 6, isa);
        chunked.case.v.fill(-0.0);
        chunked.case.q.iter_mut().for_each(|x| *x = -*x);
        let (o, state) = chunked.whole_and_state();
        assert!(o.iter().all(|x| x.to_bits() == 0), "{isa}: {o:?}");
        assert!(state[..5 * 16].iter().all(|x| x.to_bits() == 0), "{isa}: S");
    }
}

#[test]
fn no_tokens() {
    for isa in Isa::available() {
        let chunked = Chunked::new(Shape::new(2, 9, 3, 5, 6), 4, isa);
        let (_, state) = chunked.whole_and_state();
        let mut last = vec![SENTINEL; state.len()];
        chunked.forward(0..0, State::Final(&mut last), &mut []);
        assert!(untouched(&last, &vec![0.0; state.len()]), "{isa}: a state of no tokens is zero");
        chunked.forward(0..0, State::InitialFinal(&state, &mut last), &mut []);
        assert!(untouched(&last, &state), "{isa}: a state is passed on");
        chunked.forward(0..0, State::Carried(&mut last), &mut []);
        assert!(untouched(&last, &state), "{isa}: a state is kept");
        chunked.forward(0..0, State::Zero, &mut []);
        // Very many heads take no time if there are no tokens.
        let none = lightning::Config::new(4, Shape::new(1 << 30, 0, 1 << 10, 1, 1)).isa(isa);
        let none = Lightning::new(none).expect("a legal configuration");
        let empty: [f32; 0] = [];
        let scratch = &mut vec![0.0; none.scratch_len()];
        none.forward(Tensors::new(&empty, &empty, &empty, &mut [] as &mut [f32]), State::Zero, scratch)
            .unwrap();
        let none = lightning::Config::new(4, Shape::new(0, 5, 2, 1, 1)).isa(isa);
        let none = Lightning::new(none).expect("a legal configuration");
        assert_eq!(none.state_len(), 0);
        let scratch = &mut vec![0.0; none.scratch_len()];
        none.forward(Tensors::new(&empty, &empty, &empty, &mut [] as &mut [f32]), State::Zero, scratch)
            .unwrap();
    }
}

#[cfg(feature = "std")]
#[test]
fn threads_change_no_bit() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(5).build().expect("five threads");
    pool.install(|| {
        for isa in Isa::available() {
            for chunk in [5, 64] {
                // The forward has more than 40 million flops, and the decode below more than 10 MiB of state.
                let mut chunked = Chunked::new(Shape::new(2, 120, 5, 64, 160), chunk, isa);
                chunked.case.config.shape.len = 120;
                let (want, last) = chunked.whole_and_state();
                let one = chunked.lightning(120).scratch_len();
                for threads in [2, 5] {
                    chunked.case.config.execution.threads = threads;
                    // Scratch consists of a part for each worker and 15 elements for alignment.
                    let many = chunked.lightning(120).scratch_len();
                    assert_eq!((many - 15) / (one - 15), threads, "not cut for {threads} threads");
                    let (got, state) = chunked.whole_and_state();
                    assert_eq!(first_difference(&got, &want), None, "{isa}: {threads} threads");
                    assert_eq!(first_difference(&state, &last), None, "{isa}: the state, {threads} threads");
                }
            }
            let mut chunked = Chunked::new(Shape::new(2, 40, 24, 128, 256), 64, isa);
            let (want, last) = chunked.whole_and_state();
            let one = chunked.lightning(1).decode_scratch_len();
            chunked.case.config.execution.threads = 5;
            let many = chunked.lightning(1).decode_scratch_len();
            assert_eq!((many - 15) / (one - 15), 5, "a decode is not cut");
            let (mut o, mut state) = (chunked.case.output(), chunked.zero_state());
            chunked.decode(0..40, &mut state, &mut o);
            assert_eq!(first_difference(&o, &want), None, "{isa}: decode on threads");
            assert_eq!(first_difference(&state, &last), None, "{isa}: the state, decode on threads");
        }
    });
}

#[test]
fn configurations_that_are_refused() {
    let shape = Shape::new(2, 3, 2, 4, 5);
    let refused = |config| Lightning::new(config).expect_err("a configuration that is not legal");
    let config = lightning::Config::new(4, shape);
    for (what, config) in [
        ("heads", lightning::Config::new(4, Shape::new(2, 3, 0, 4, 5))),
        ("key", lightning::Config::new(4, Shape::new(2, 3, 2, 0, 5))),
        ("value", lightning::Config::new(4, Shape::new(2, 3, 2, 4, 0))),
        ("chunk", lightning::Config::new(0, shape)),
        ("threads", config.threads(0)),
    ] {
        assert_eq!(refused(config), Error::Zero { what });
    }
    for chunk in [(1 << 24) + 1, usize::MAX] {
        assert_eq!(
            refused(lightning::Config::new(chunk, shape)),
            Error::TooMany { what: "tokens of a chunk", most: 1 << 24, got: chunk }
        );
    }
    let overlapping = shape.with_output(chunkwise::Strides { batch: 30, token: 10, head: 4 });
    assert_eq!(refused(lightning::Config::new(4, overlapping)), Error::Overlap { what: "o" });
    let huge = Error::Overflow { what: "the state" };
    for shape in [
        Shape::new(1, 0, 1, usize::MAX, 1),
        Shape::new(1, 0, 1, 1, usize::MAX),
        Shape::new(1, 0, 1, 1 << (usize::BITS / 2), 1 << (usize::BITS / 2 - 2)),
        Shape::new(usize::MAX, 0, 1, 1, 1),
        Shape::new(1, 0, usize::MAX, 1, 1),
        Shape::new(1 << 30, 0, 1 << 30, 1, 1),
    ] {
        assert_eq!(refused(lightning::Config::new(4, shape)), huge, "{shape:?}");
    }
    let long = lightning::Config::new(1 << 24, Shape::new(1, 0, 1, 1 << (usize::BITS - 27), 1));
    assert_eq!(refused(long), huge);
    assert!(Lightning::new(lightning::Config::new(1 << 24, Shape::new(1, 1, 1, 1, 1))).is_ok());
}

/// A call with an argument that is too short, or with a state of another length or with an impossible count,
/// is refused, and nothing is written.
#[test]
fn calls_that_are_refused() {
    let chunked = Chunked::new(Shape::new(2, 9, 2, 4, 5), 4, Isa::best());
    let lightning = chunked.lightning(9);
    let (_, good) = chunked.whole_and_state();
    let (len, state_len) = (chunked.case.output().len(), good.len());
    let try_call = |cut: [usize; 4], state: &mut [f32], scratch: usize, decode: bool| {
        let Case { q, k, v, .. } = &chunked.case;
        let (mut o, before) = (vec![SENTINEL; len], state.to_vec());
        let mut scratch = vec![SENTINEL; scratch];
        let [q, k, v] = [(q, cut[0]), (k, cut[1]), (v, cut[2])].map(|(x, cut)| &x[..x.len() - cut]);
        let tensors = Tensors::new(q, k, v, &mut o[..len - cut[3]]);
        let result = match decode {
            true => lightning.decode(tensors, state, &mut scratch),
            false => lightning.forward(tensors, State::Carried(state), &mut scratch),
        };
        if result.is_err() {
            assert!(untouched(&o, &vec![SENTINEL; len]) && untouched(state, &before), "written");
            assert!(untouched(&scratch, &vec![SENTINEL; scratch.len()]), "scratch was written");
        }
        result
    };
    for (decode, scratch) in [(false, lightning.scratch_len()), (true, lightning.decode_scratch_len())] {
        let run = |cut, state: &mut [f32]| try_call(cut, state, scratch, decode);
        assert_eq!(run([0; 4], &mut good.clone()), Ok(()));
        let error = try_call([0; 4], &mut good.clone(), scratch - 1, decode).unwrap_err();
        assert_eq!(error, Error::TooShort { what: "scratch", need: scratch, got: scratch - 1 });
        // A decode takes only the first token, so that it needs less of each tensor.
        let spare = if decode { [8 * 8, 8 * 8, 8 * 10, 8 * 10] } else { [0; 4] };
        for (i, what) in ["q", "k", "v", "o"].into_iter().enumerate() {
            let mut cut = [0; 4];
            cut[i] = spare[i];
            assert_eq!(run(cut, &mut good.clone()), Ok(()));
            cut[i] += 1;
            let error = run(cut, &mut good.clone()).unwrap_err();
            assert!(matches!(error, Error::TooShort { what: which, .. } if which == what), "{what}: {error}");
        }
        for wrong in [state_len - 1, state_len + 1, 0] {
            let error = run([0; 4], &mut vec![0.0; wrong]).unwrap_err();
            assert_eq!(error, Error::Length { what: "state", want: state_len, got: wrong });
        }
        let head = state_len / 4;
        for count in [-1.0, 0.5, 4.0, 1e9, f32::NAN, f32::INFINITY] {
            for at in 0..4 {
                let mut bad = good.clone();
                bad[(at + 1) * head - 16] = count;
                assert_eq!(run([0; 4], &mut bad), Err(Error::BadState), "{count} in head {at}");
            }
        }
        let mut full = good.clone();
        full[head - 16] = 3.0;
        assert_eq!(run([0; 4], &mut full), Ok(()));
    }
    // The same errors for the other ways of passing a state.
    let (short, mut o) = (vec![0.0; state_len - 1], chunked.case.output());
    let mut long = vec![SENTINEL; state_len + 1];
    let wrong = |got| Error::Length { what: "state", want: state_len, got };
    let scratch = &mut vec![0.0; lightning.scratch_len()];
    let mut run = |state: State<'_>| lightning.forward(chunked.case.tensors(0, &mut o), state, scratch);
    assert_eq!(run(State::Initial(&short)), Err(wrong(state_len - 1)));
    assert_eq!(run(State::Final(&mut long)), Err(wrong(state_len + 1)));
    assert_eq!(run(State::InitialFinal(&good, &mut long)), Err(wrong(state_len + 1)));
    assert_eq!(run(State::InitialFinal(&short, &mut good.clone())), Err(wrong(state_len - 1)));
}

/// A decode has one token also where the configuration has none, so that its strides are checked.
#[test]
fn a_decode_of_overlapping_heads_is_refused() {
    let overlapping =
        Shape::new(1, 0, 2, 4, 5).with_output(chunkwise::Strides { batch: 10, token: 10, head: 4 });
    let lightning = Lightning::new(lightning::Config::new(4, overlapping)).expect("no rows that overlap");
    let (x, mut o, mut state) = ([0.0; 16], [0.0; 16], vec![0.0; lightning.state_len()]);
    let scratch = &mut vec![0.0; lightning.decode_scratch_len()];
    let error = lightning.decode(Tensors::new(&x, &x, &x, &mut o), &mut state, scratch).unwrap_err();
    assert_eq!(error, Error::Overlap { what: "o" });
}
