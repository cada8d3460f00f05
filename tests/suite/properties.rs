//! Properties that follow from the mathematics and from the guarantees about bits, on random shapes:
//! causality, linearity, cuts of a sequence, independence of heads and sequences, layouts, scratch. Every
//! case runs on every instruction set. The library is compared with itself, mostly for the same bits; the
//! oracle is only used for the size of rounding errors.

#[cfg(feature = "std")]
use chunkwise::Stream;
use chunkwise::{Attention, Config, FeatureMap, Heads, Isa, Normaliser, Rule, Shape, State, Tensors};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{TestCaseResult, TestRunner};

use crate::common::*;

/// The bound for the difference of two results that are summed in different orders, each of which is within
/// [`NORM_ERROR`] of the exact result.
const TWO_NORM_ERRORS: f64 = 2.0 * NORM_ERROR;

/// Checks a property on random cases, with random values of `others`, on every instruction set.
pub(super) fn for_all<S: Strategy>(others: S, property: impl Fn(&Case, &S::Value) -> TestCaseResult) {
    let config = ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() };
    let result = TestRunner::new(config).run(&(shape(), others), |((config, seed), others)| {
        let case = Case::new(config, seed);
        Isa::available().try_for_each(|isa| property(&case.on(isa), &others))
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// The number of cases of each property. Scripts that run the tests under an emulator set proptest's variable
/// PROPTEST_CASES to a smaller number.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(64)
}

/// Configurations with sizes around those of vectors, panels and tiles and with any strides, and a seed for
/// the numbers. They shrink to the smallest one.
fn shape() -> impl Strategy<Value = (Config, u64)> {
    // T is up to three tiles, or about four. V is up to the widest panel and a little more, or around the 128
    // columns that a decode sweeps at once.
    let len = prop_oneof![7 => 1..=70_usize, 1 => 90..=120_usize];
    let value = prop_oneof![7 => 1..=70_usize, 1 => 120..=150_usize];
    let sizes = (1..=2_usize, len, 1..=3_usize, 1..=34_usize, value);
    let layouts = prop::array::uniform4(layout());
    (sizes, feature_map(), normaliser(), layouts, 0..1000_u64).prop_map(
        |((batch, len, heads, key, value), feature_map, normaliser, layouts, seed)| {
            let rule = Rule::linear(normaliser).feature_map(feature_map);
            let config = Config::new(rule, Shape::new(batch, len, heads, key, value));
            (with_layouts(config, layouts), seed)
        },
    )
}

fn feature_map() -> impl Strategy<Value = FeatureMap> {
    prop::sample::select(&MAPS)
}

fn normaliser() -> impl Strategy<Value = Normaliser> {
    // Chunks are shorter than a tile, up to three tiles and a little more, or longer than every sequence.
    let chunk = prop_oneof![1..TILE, TILE..3 * TILE + 4, Just(1000)];
    prop_oneof![
        Just(Normaliser::None),
        Just(Normaliser::Global { eps: 1e-6 }),
        chunk.prop_map(Normaliser::per_chunk)
    ]
}

/// An order of the dimensions in memory and gaps, see [`nested`].
fn layout() -> impl Strategy<Value = (usize, [usize; 3])> {
    (0..6_usize, prop_oneof![Just([0; 3]), prop::array::uniform3(0..20_usize)])
}

/// An index among as many elements as the case has.
pub(super) fn place() -> impl Strategy<Value = Index> {
    any::<Index>()
}

/// A number that would be visible in any result that depends on it.
fn poison() -> impl Strategy<Value = f32> {
    prop::sample::select(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY])
}

/// Checks that two results have the same bits.
pub(super) fn same(what: &str, a: &[f32], b: &[f32]) -> TestCaseResult {
    let difference = first_difference(a, b).map(|at| (at, a[at], b[at]));
    prop_assert_eq!(difference, None, "{}", what);
    Ok(())
}

/// Checks that two results differ by at most twice the documented error, relative to the terms that were
/// summed.
fn close_sums(what: &str, a: &[f32], b: &[f32], size: &[f64]) -> TestCaseResult {
    let b: Vec<f64> = b.iter().copied().map(f64::from).collect();
    let error = norm_error_of(a, &b, size);
    prop_assert!(error <= TWO_NORM_ERRORS, "{what}: norm error {error:e}");
    Ok(())
}

/// The outputs of the first tokens have the same bits whatever follows them.
#[test]
fn causal() {
    for_all((place(), poison()), |case, (cut, poison)| {
        let config = case.config;
        let Shape { len, q_strides, k_strides, v_strides, .. } = config.shape;
        let cut = cut.index(len);
        let (earlier, later): (Vec<_>, Vec<_>) = rows(&config).partition(|(_, t, _)| *t < cut);
        let whole = case.whole();
        let mut prefix = case.output();
        case.forward(0..cut, State::Zero, &mut prefix);
        let mut poisoned = case.clone();
        for (b, t, h) in later {
            poisoned.q[at(q_strides, b, t, h)] = *poison;
            poisoned.k[at(k_strides, b, t, h)] = *poison;
            poisoned.v[at(v_strides, b, t, h)] = *poison;
        }
        let poisoned = poisoned.whole();
        for at in earlier {
            same("nothing follows", row(&config, &whole, at), row(&config, &prefix, at))?;
            same("poison follows", row(&config, &whole, at), row(&config, &poisoned, at))?;
        }
        prop_assert!(case.gaps_are_untouched(&whole));
        Ok(())
    });
}

/// NaN or infinity in one element reaches exactly the outputs that depend on it, by forward and by decode:
/// from q its own row, from k its own and the later rows of its head, from v its column of these. All other
/// outputs keep their bits.
#[test]
fn poison_spreads_as_the_formula_says() {
    fn decoded(case: &Case) -> Vec<f32> {
        let mut o = case.output();
        case.decode(0..case.config.shape.len, &mut case.zero_state(), &mut o);
        o
    }

    for_all((place(), place(), 0..3, poison()), |case, (place, column, tensor, poison)| {
        let config = case.config;
        let all: Vec<_> = rows(&config).collect();
        let (batch, token, head) = *place.get(&all);
        let mut other = case.clone();
        let Shape { key, value, q_strides, k_strides, v_strides, .. } = config.shape;
        let (x, strides, dim) = match tensor {
            0 => (&mut other.q, q_strides, key),
            1 => (&mut other.k, k_strides, key),
            _ => (&mut other.v, v_strides, value),
        };
        let column = column.index(dim);
        x[at(strides, batch, token, head) + column] = *poison;
        for (clean, other) in [(case.whole(), other.whole()), (decoded(case), decoded(&other))] {
            for &(b, t, h) in &all {
                let [clean, other] = [&clean, &other].map(|o| row(&config, o, (b, t, h)));
                let depends = (b, h) == (batch, head) && (t == token || t > token && *tensor != 0);
                if !depends {
                    same("does not depend on it", clean, other)?;
                } else if *tensor == 2 {
                    prop_assert!(!other[column].is_finite(), "token {t} depends on {token}: {other:?}");
                    same("columns before it", &clean[..column], &other[..column])?;
                    same("columns behind it", &clean[column + 1..], &other[column + 1..])?;
                } else if poison.is_nan() {
                    prop_assert!(other.iter().all(|x| x.is_nan()), "token {t} depends on {token}: {other:?}");
                }
            }
        }
        Ok(())
    });
}

/// How a piece is computed.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// A forward that replaces the state.
    Carried,
    /// A forward from one state to another.
    InitialFinal,
    /// A decode of each token.
    Decode,
}

fn way() -> impl Strategy<Value = Way> {
    prop::sample::select(&[Way::Carried, Way::InitialFinal, Way::Decode])
}

/// Computes a case in pieces that begin at these tokens, each in its own way; returns the outputs and the
/// last state.
fn in_pieces(case: &Case, begins: impl IntoIterator<Item = (usize, Way)>) -> (Vec<f32>, Vec<f32>) {
    let mut begins: Vec<_> = begins.into_iter().chain([(0, Way::Carried)]).collect();
    begins.sort_by_key(|(begin, _)| *begin);
    let ends = begins.iter().skip(1).map(|(begin, _)| *begin).chain([case.config.shape.len]);
    let (mut o, mut state) = (case.output(), case.zero_state());
    for (&(begin, way), end) in begins.iter().zip(ends) {
        match way {
            Way::Carried => case.forward(begin..end, State::Carried(&mut state), &mut o),
            Way::InitialFinal => {
                let before = state.clone();
                case.forward(begin..end, State::InitialFinal(&before, &mut state), &mut o);
            }
            Way::Decode => case.decode(begin..end, &mut state, &mut o),
        }
    }
    (o, state)
}

/// A sequence in pieces has the bits of the whole, wherever it is cut, also if pieces are empty, and whether
/// each is computed by forward or token by token.
#[test]
fn pieces_are_the_whole() {
    for_all(prop::collection::vec((place(), way()), 1..8), |case, begins| {
        let (whole, last) = case.whole_and_state();
        let len = case.config.shape.len;
        let (o, state) = in_pieces(case, begins.iter().map(|(begin, way)| (begin.index(len + 1), *way)));
        same("outputs", &o, &whole)?;
        same("states", &state, &last)?;
        prop_assert!(case.gaps_are_untouched(&o));
        Ok(())
    });
}

/// A sequence that is computed token by token, by decode and by forward, has the bits of the whole.
#[test]
fn tokens_are_the_whole() {
    for_all(Just(()), |case, ()| {
        let (whole, last) = case.whole_and_state();
        for way in [Way::Carried, Way::InitialFinal, Way::Decode] {
            let (o, state) = in_pieces(case, (0..case.config.shape.len).map(|begin| (begin, way)));
            same(&format!("outputs, {way:?}"), &o, &whole)?;
            same(&format!("states, {way:?}"), &state, &last)?;
        }
        Ok(())
    });
}

/// A [`Stream`] has the same bits, also after snapshots are restored, and in copies of it.
#[cfg(feature = "std")]
#[test]
fn streams_are_the_whole() {
    for_all(prop::collection::vec((place(), way()), 1..8), |case, begins| {
        let (whole, len) = (case.whole(), case.config.shape.len);
        let mut begins: Vec<_> = begins.iter().map(|(begin, way)| (begin.index(len + 1), *way)).collect();
        begins.push((0, Way::Carried));
        begins.sort_by_key(|(begin, _)| *begin);
        let ends = begins.iter().skip(1).map(|(begin, _)| *begin).chain([len]).collect::<Vec<_>>();
        let mut stream = Stream::new(case.config).expect("a legal configuration");
        // The second run begins after a reset.
        for _ in 0..2 {
            let mut o = case.output();
            for (&(begin, way), &end) in begins.iter().zip(&ends) {
                let (before, mut copy) = (stream.snapshot(), stream.clone());
                let mut forward =
                    |stream: &mut Stream| stream.forward(end - begin, case.tensors(begin, &mut o));
                match way {
                    Way::Carried => forward(&mut stream).expect("legal arguments"),
                    Way::InitialFinal => {
                        forward(&mut stream).expect("legal arguments");
                        stream.restore(&before).expect("a snapshot of this stream");
                        forward(&mut stream).expect("legal arguments");
                        forward(&mut copy).expect("legal arguments");
                        prop_assert_eq!(copy.snapshot(), stream.snapshot());
                        stream = copy;
                    }
                    Way::Decode => {
                        for token in begin..end {
                            stream.decode(case.tensors(token, &mut o)).expect("legal arguments");
                        }
                    }
                }
            }
            same("outputs", &o, &whole)?;
            stream.reset();
        }
        Ok(())
    });
}

/// A compensated state keeps the rounding error of each block of four tokens, so that it has the same bits
/// where a sequence is cut at multiples of four tokens.
#[test]
fn compensated_pieces_of_whole_blocks_are_the_whole() {
    for_all(prop::collection::vec((place(), any::<bool>()), 1..8), |case, begins| {
        let case = &Case { config: with(case.config, |c| c.rule.compensated = true), ..case.clone() };
        let (whole, last) = case.whole_and_state();
        let blocks = case.config.shape.len / COMPENSATED_CUT;
        let begins = begins.iter().map(|(begin, carried)| {
            let way = if *carried { Way::Carried } else { Way::InitialFinal };
            (COMPENSATED_CUT * begin.index(blocks + 1), way)
        });
        let (o, state) = in_pieces(case, begins);
        same("outputs", &o, &whole)?;
        same("states", &state, &last)
    });
}

/// All instruction sets that have a fused multiply-add give the same bits, by forward and by decode, with
/// both kinds of state.
#[test]
fn instruction_sets_agree() {
    let mut others = fused();
    let Some(first) = others.next() else {
        return report(
            "bits across instruction sets: NOT tested, none here fuses a multiplication and an addition",
        );
    };
    let others: Vec<Isa> = others.collect();
    if others.is_empty() {
        return report(&format!(
            "bits across instruction sets: NOT tested, {first} is the only one here that fuses"
        ));
    }
    for_all(any::<bool>(), |case, compensated| {
        let results = |isa| {
            let mut case = case.on(isa);
            case.config.rule.compensated = *compensated;
            let (o, last) = case.whole_and_state();
            let (mut decoded, mut state) = (case.output(), case.zero_state());
            case.decode(0..case.config.shape.len, &mut state, &mut decoded);
            [o, last, decoded, state]
        };
        let want = results(first);
        for isa in &others {
            for (want, got) in want.iter().zip(&results(*isa)) {
                same(&format!("{first}, {isa}"), want, got)?;
            }
        }
        Ok(())
    });
}

/// A forward, then decodes, then another forward have the bits of one forward, also where they are cut within
/// chunks.
#[test]
fn prefill_then_decode_is_forward() {
    for_all((place(), place()), |case, (one, two)| {
        let len = case.config.shape.len;
        let two = two.index(len + 1);
        let one = one.index(two + 1);
        let (mut o, mut state) = (case.output(), case.zero_state());
        case.forward(0..one, State::Final(&mut state), &mut o);
        case.decode(one..two, &mut state, &mut o);
        case.forward(two..len, State::Initial(&state), &mut o);
        same("outputs", &o, &case.whole())?;
        prop_assert!(case.gaps_are_untouched(&o));
        Ok(())
    });
}

/// All ways of passing the state give the same bits, and the state does not depend on q.
#[test]
fn ways_of_passing_the_state_agree() {
    for_all(place(), |case, cut| {
        let len = case.config.shape.len;
        let cut = cut.index(len + 1);
        let mut first = vec![SENTINEL; case.zero_state().len()];
        let [mut zero, mut zero_final] = [(); 2].map(|()| case.output());
        case.forward(0..cut, State::Zero, &mut zero);
        case.forward(0..cut, State::Final(&mut first), &mut zero_final);
        same("Zero, Final", &zero, &zero_final)?;

        let (mut last, mut carried) = (vec![SENTINEL; first.len()], first.clone());
        let [mut initial, mut both, mut in_place] = [(); 3].map(|()| case.output());
        case.forward(cut..len, State::Initial(&first), &mut initial);
        case.forward(cut..len, State::InitialFinal(&first, &mut last), &mut both);
        case.forward(cut..len, State::Carried(&mut carried), &mut in_place);
        same("Initial, InitialFinal", &initial, &both)?;
        same("Initial, Carried", &initial, &in_place)?;
        same("states of InitialFinal, Carried", &last, &carried)?;

        let mut other = case.clone();
        other.q.reverse();
        let mut carried = first.clone();
        other.forward(cut..len, State::Carried(&mut carried), &mut other.output());
        same("states for other queries", &last, &carried)?;
        let [mut one, mut two] = [(); 2].map(|()| first.clone());
        case.decode(cut..len, &mut one, &mut case.output());
        other.decode(cut..len, &mut two, &mut other.output());
        same("decoded states for other queries", &one, &two)
    });
}

/// Outputs are linear in v: exactly for powers of two, within rounding errors for a sum.
#[test]
fn linear_in_v() {
    for_all((-20..20, any::<u32>()), |case, (power, seed)| {
        let factor = 2_f32.powi(*power);
        // Elements between the rows remain NaN.
        let with_v = |v: &dyn Fn(f32, f32) -> f32| {
            let mut case = case.clone();
            let w = normals(u64::from(*seed), case.v.len());
            case.v.iter_mut().zip(w).for_each(|(x, w)| *x = if x.is_nan() { *x } else { v(*x, w) });
            case
        };
        let outputs = |case: &Case| gather(&case.config, &case.whole());
        let o = outputs(case);
        let scaled: Vec<f32> = o.iter().map(|o| o * factor).collect();
        same("a power of two", &scaled, &outputs(&with_v(&|v, _| v * factor)))?;
        let sum: Vec<f32> = o.iter().zip(outputs(&with_v(&|_, w| w))).map(|(a, b)| a + b).collect();
        let size = with_v(&|v, w| v.abs() + w.abs()).without_cancellation().oracle().0;
        close_sums("a sum", &outputs(&with_v(&|v, w| v + w)), &sum, &size)
    });
}

/// Heads and sequences are independent, and strides do not matter: rows have the same bits in another layout
/// with the heads rotated, with each sequence alone, and with each head alone.
#[test]
fn rows_elsewhere_are_the_same_bits() {
    /// The outputs, the last state, and the outputs of one decoded token.
    fn results(case: &Case) -> [Vec<f32>; 3] {
        let (o, state) = case.whole_and_state();
        let mut one = case.output();
        case.decode(0..1, &mut case.zero_state(), &mut one);
        [o, state, one]
    }

    for_all((layout(), 0..3_usize), |case, ((order, gaps), turn)| {
        let config = case.config;
        let [want_o, want_state, want_one] = results(case);
        let Shape { batch, heads, .. } = config.shape;
        let head_len = want_state.len() / (batch * heads);
        let head_state = |state: &'_ [f32], index: usize| state[index * head_len..][..head_len].to_vec();

        // The sequences and heads of this case of which each other case consists.
        let turned = |h: usize| (h + turn) % heads;
        let mut others = vec![((0..batch).collect::<Vec<_>>(), (0..heads).map(turned).collect::<Vec<_>>())];
        for b in 0..batch {
            others.push((vec![b], (0..heads).collect()));
            others.push((vec![b], vec![turned(b)]));
        }
        for (sequences, heads) in others {
            let other = with(config, |c| {
                c.shape.batch = sequences.len();
                (c.shape.heads, c.shape.groups) = (heads.len(), Heads::equal(heads.len()));
            });
            let other = with_layouts(other, [(*order, *gaps); 4]);
            let [o, state, one] = results(&case.rearranged(other, |b, t, h| (sequences[b], t, heads[h])));
            for (b, t, h) in rows(&other) {
                let from = (sequences[b], t, heads[h]);
                same("outputs", row(&config, &want_o, from), row(&other, &o, (b, t, h)))?;
                if t == 0 {
                    same("decoded", row(&config, &want_one, from), row(&other, &one, (b, t, h)))?;
                    let want = head_state(&want_state, sequences[b] * config.shape.heads + heads[h]);
                    same("states", &want, &head_state(&state, b * other.shape.heads + h))?;
                }
            }
        }
        Ok(())
    });
}

/// Results depend neither on the previous contents of scratch, outputs and last state, nor on the alignment
/// of scratch; and the length of scratch is at most the bound for static arrays.
#[test]
fn memory_may_hold_anything() {
    for_all(Just(()), |case, ()| {
        let (attention, config) = (case.attention(), case.config);
        let Shape { heads, key, value, .. } = config.shape;
        let bound = Attention::scratch_bound(heads, key, value);
        prop_assert!(attention.scratch_len() <= bound && attention.decode_scratch_len() <= bound);
        let (q, k, v) = (&case.q[..], &case.k[..], &case.v[..]);
        let run = |fill: f32, from: usize| {
            let filled = |len: usize| vec![fill; len];
            let (mut o, mut last) = (filled(case.output().len()), filled(attention.state_len()));
            let scratch = &mut filled(from + attention.scratch_len())[from..];
            let tensors = Tensors::new(q, k, v, &mut o[..]);
            attention.forward(tensors, State::Final(&mut last), scratch).expect("legal arguments");
            let (mut one, mut state) = (filled(o.len()), vec![0.0; last.len()]);
            let scratch = &mut filled(from + attention.decode_scratch_len())[from..];
            let tensors = Tensors::new(q, k, v, &mut one[..]);
            attention.decode(tensors, &mut state, scratch).expect("legal arguments");
            [gather(&config, &o), last, gather(&with(config, |c| c.shape.len = 1), &one), state]
        };
        let zeros = run(0.0, 0);
        let fills = [f32::NAN, f32::INFINITY, 1e30].map(|fill| (fill, 0));
        for (fill, from) in fills.into_iter().chain((1..=16).map(|from| (f32::NAN, from))) {
            for (zeros, other) in zeros.iter().zip(&run(fill, from)) {
                same(&format!("{fill}, scratch from {from}"), zeros, other)?;
            }
        }
        Ok(())
    });
}
