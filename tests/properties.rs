//! What follows from the mathematics and from the contract on bits, on shapes drawn at random: causality,
//! linearity, sequences in pieces, heads and sequences that don't know of each other, layouts, scratch. Every
//! case runs on every instruction set. The oracle is asked for nothing but the size of rounding errors: the
//! library is compared with itself, most of the time for the same bits.
mod common;

use chunkwise::{Attention, Config, DecodeStep, FeatureMap, Forward, Isa, Normaliser, State};
use common::*;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{TestCaseResult, TestRunner};

/// Two results that may be summed in different orders: each is within [`NORM_ERROR`] of the exact one.
const TWO_NORM_ERRORS: f64 = 2.0 * NORM_ERROR;

/// Runs a property on cases drawn at random and whatever else it needs, on every instruction set.
fn for_all<S: Strategy>(others: S, property: impl Fn(&Case, &S::Value) -> TestCaseResult) {
    let config = ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() };
    let result = TestRunner::new(config).run(&(shape(), others), |((config, seed), others)| {
        let case = Case::new(config, seed);
        Isa::available().try_for_each(|isa| property(&case.on(isa), &others))
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// Cases of each property; fewer where an emulator runs them and says so (PROPTEST_CASES is proptest's own name).
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(64)
}

/// Shapes around the sizes of vectors, panels and tiles under any strides, and a seed for the numbers; they
/// shrink to the smallest one.
fn shape() -> impl Strategy<Value = (Config, u64)> {
    let sizes = (1..=2_usize, 1..=70_usize, 1..=3_usize, 1..=34_usize, 1..=70_usize);
    let layouts = prop::array::uniform4(layout());
    (sizes, feature_map(), normaliser(), layouts, 0..1000_u64).prop_map(
        |((batch, len, heads, key, value), feature_map, normaliser, [q, k, v, o], seed)| {
            let config = Config { feature_map, ..Config::new(batch, len, heads, key, value, normaliser) };
            let config = Config {
                q_strides: nested(&config, key, q.0, q.1),
                k_strides: nested(&config, key, k.0, k.1),
                v_strides: nested(&config, value, v.0, v.1),
                o_strides: nested(&config, value, o.0, o.1),
                ..config
            };
            (config, seed)
        },
    )
}

fn feature_map() -> impl Strategy<Value = FeatureMap> {
    prop::sample::select(&MAPS)
}

fn normaliser() -> impl Strategy<Value = Normaliser> {
    // Chunks shorter than a tile, up to three tiles and more, and never ended.
    let chunk = prop_oneof![1..TILE, TILE..3 * TILE + 4, Just(1000)];
    prop_oneof![
        Just(Normaliser::None),
        Just(Normaliser::Global { eps: 1e-6 }),
        chunk.prop_map(Normaliser::per_chunk)
    ]
}

/// An order of the dimensions in memory, and the gaps between them.
fn layout() -> impl Strategy<Value = (usize, [usize; 3])> {
    (0..6_usize, prop_oneof![Just([0; 3]), prop::array::uniform3(0..20_usize)])
}

/// A place among others, of which there are as many as the case has.
fn place() -> impl Strategy<Value = Index> {
    any::<Index>()
}

/// A number that must not get into what doesn't depend on it.
fn poison() -> impl Strategy<Value = f32> {
    prop::sample::select(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY])
}

/// The bits of two results must be the same.
fn same(what: &str, a: &[f32], b: &[f32]) -> TestCaseResult {
    let difference = first_difference(a, b).map(|at| (at, a[at], b[at]));
    prop_assert_eq!(difference, None, "{}", what);
    Ok(())
}

/// Two outputs must be within twice the documented error, on the scale of the terms that were summed.
fn close(what: &str, case: &Case, a: &[f32], b: &[f32]) -> TestCaseResult {
    close_sums(
        what,
        &gather(&case.config, a),
        &gather(&case.config, b),
        &case.without_cancellation().oracle().0,
    )
}

fn close_sums(what: &str, a: &[f32], b: &[f32], size: &[f64]) -> TestCaseResult {
    let b: Vec<f64> = b.iter().copied().map(f64::from).collect();
    let error = norm_error_of(a, &b, size);
    prop_assert!(error <= TWO_NORM_ERRORS, "{what}: norm error {error:e}");
    Ok(())
}

/// Outputs of the first tokens are the same bits whatever follows, also if nothing does.
#[test]
fn causal() {
    for_all((place(), poison()), |case, (cut, poison)| {
        let config = case.config;
        let cut = cut.index(config.len);
        let (earlier, later): (Vec<_>, Vec<_>) = rows(&config).partition(|(_, t, _)| *t < cut);
        let whole = case.whole();
        let mut prefix = case.output();
        case.forward(0..cut, State::Zero, &mut prefix);
        let mut poisoned = case.clone();
        for (b, t, h) in later {
            poisoned.q[at(config.q_strides, b, t, h)] = *poison;
            poisoned.k[at(config.k_strides, b, t, h)] = *poison;
            poisoned.v[at(config.v_strides, b, t, h)] = *poison;
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

/// NaN or infinity in one element gets exactly where the formula takes it, in prefill and in decode: from q
/// to its own row, from k to its own and the later rows of its head, from v to its column of these. All other
/// bits stay what they were.
#[test]
fn poison_spreads_as_the_formula_says() {
    fn decoded(case: &Case) -> Vec<f32> {
        let mut o = case.output();
        case.decode(0..case.config.len, &mut case.zero_state(), &mut o);
        o
    }

    for_all((place(), place(), 0..3, poison()), |case, (place, column, tensor, poison)| {
        let config = case.config;
        let all: Vec<_> = rows(&config).collect();
        let (batch, token, head) = *place.get(&all);
        let mut other = case.clone();
        let (x, strides, dim) = match tensor {
            0 => (&mut other.q, config.q_strides, config.key),
            1 => (&mut other.k, config.k_strides, config.key),
            _ => (&mut other.v, config.v_strides, config.value),
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

/// Runs a case in pieces, the state carried from one to the next: the outputs and the last state.
fn in_pieces(case: &Case, cuts: impl IntoIterator<Item = usize>) -> (Vec<f32>, Vec<f32>) {
    let mut cuts: Vec<usize> = cuts.into_iter().chain([0, case.config.len]).collect();
    cuts.sort_unstable();
    let (mut o, mut state) = (case.output(), case.zero_state());
    for cut in cuts.windows(2) {
        case.forward(cut[0]..cut[1], State::Carried(&mut state), &mut o);
    }
    (o, state)
}

/// A sequence in pieces, cut anywhere, some of them empty, is the whole sequence.
#[test]
fn pieces_are_the_whole() {
    for_all(prop::collection::vec(place(), 1..5), |case, cuts| {
        let (whole, last) = case.whole_and_state();
        let (o, state) = in_pieces(case, cuts.iter().map(|cut| cut.index(case.config.len + 1)));
        close("outputs", case, &o, &whole)?;
        close_sums("states", &state, &last, &case.without_cancellation().oracle().1)?;
        prop_assert!(case.gaps_are_untouched(&o));
        Ok(())
    });
}

/// Cut where a tile begins anyway, it is the same bits: at multiples of a tile's tokens, counted from the
/// beginning of the chunk if there are chunks.
#[test]
fn pieces_of_whole_tiles_are_the_same_bits() {
    for_all(prop::collection::vec(place(), 1..5), |case, cuts| {
        let chunk = match case.config.normaliser {
            Normaliser::PerChunk { chunk, .. } => chunk,
            _ => usize::MAX,
        };
        let legal: Vec<usize> = (0..=case.config.len).filter(|t| t % chunk % TILE == 0).collect();
        let (whole, last) = case.whole_and_state();
        let (o, state) = in_pieces(case, cuts.iter().map(|cut| *cut.get(&legal)));
        same("outputs", &o, &whole)?;
        same("states", &state, &last)
    });
}

/// Many tokens, then one by one, then many again, in the middle of chunks or not: the state means the same to
/// both.
#[test]
fn prefill_then_decode_is_forward() {
    for_all((place(), place()), |case, (one, two)| {
        let len = case.config.len;
        let two = two.index(len + 1);
        let one = one.index(two + 1);
        let (mut o, mut state) = (case.output(), case.zero_state());
        case.forward(0..one, State::Final(&mut state), &mut o);
        case.decode(one..two, &mut state, &mut o);
        case.forward(two..len, State::Initial(&state), &mut o);
        close("outputs", case, &o, &case.whole())?;
        prop_assert!(case.gaps_are_untouched(&o));
        Ok(())
    });
}

/// Every way of passing the state is the same computation, and queries play no part in it.
#[test]
fn ways_of_passing_the_state_agree() {
    for_all(place(), |case, cut| {
        let len = case.config.len;
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

/// Linear in v: powers of two are exact, a sum is rounded.
#[test]
fn linear_in_v() {
    for_all((-20..20, any::<u32>()), |case, (power, seed)| {
        let factor = 2_f32.powi(*power);
        // NaN stays between the rows.
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

/// Heads and sequences don't know of each other, and strides are only strides: the same rows with the heads
/// turned round, each sequence alone, or each head alone, in another layout, give the same bits.
#[test]
fn rows_elsewhere_are_the_same_bits() {
    /// Outputs, states, one decoded token.
    fn results(case: &Case) -> [Vec<f32>; 3] {
        let (o, state) = case.whole_and_state();
        let mut one = case.output();
        case.decode(0..1, &mut case.zero_state(), &mut one);
        [o, state, one]
    }

    for_all((layout(), 0..3_usize), |case, ((order, gaps), turn)| {
        let config = case.config;
        let [want_o, want_state, want_one] = results(case);
        let head_len = want_state.len() / (config.batch * config.heads);
        let head_state = |state: &'_ [f32], index: usize| state[index * head_len..][..head_len].to_vec();

        // Sequences and heads of the other case, and which of this one's they are.
        let turned = |h: usize| (h + turn) % config.heads;
        let mut others =
            vec![((0..config.batch).collect::<Vec<_>>(), (0..config.heads).map(turned).collect::<Vec<_>>())];
        for b in 0..config.batch {
            others.push((vec![b], (0..config.heads).collect()));
            others.push((vec![b], vec![turned(b)]));
        }
        for (sequences, heads) in others {
            let other = Config { batch: sequences.len(), heads: heads.len(), ..config };
            let strides = |dim| nested(&other, dim, *order, *gaps);
            let (keys, values) = (strides(config.key), strides(config.value));
            let other =
                Config { q_strides: keys, k_strides: keys, v_strides: values, o_strides: values, ..other };
            let [o, state, one] = results(&case.rearranged(other, |b, t, h| (sequences[b], t, heads[h])));
            for (b, t, h) in rows(&other) {
                let from = (sequences[b], t, heads[h]);
                same("outputs", row(&config, &want_o, from), row(&other, &o, (b, t, h)))?;
                if t == 0 {
                    same("decoded", row(&config, &want_one, from), row(&other, &one, (b, t, h)))?;
                    let want = head_state(&want_state, sequences[b] * config.heads + heads[h]);
                    same("states", &want, &head_state(&state, b * other.heads + h))?;
                }
            }
        }
        Ok(())
    });
}

/// What scratch, output and final state held before plays no part, nor where scratch begins; what is asked
/// for is enough, and never more than the bound for static arrays.
#[test]
fn memory_may_hold_anything() {
    for_all(Just(()), |case, ()| {
        let (attention, config) = (case.attention(), case.config);
        let bound = Attention::scratch_bound(config.heads, config.key, config.value);
        prop_assert!(attention.scratch_len() <= bound && attention.decode_scratch_len() <= bound);
        let (q, k, v) = (&case.q[..], &case.k[..], &case.v[..]);
        let run = |fill: f32, from: usize| {
            let filled = |len: usize| vec![fill; len];
            let (mut o, mut last) = (filled(case.output().len()), filled(attention.state_len()));
            let scratch = &mut filled(from + attention.scratch_len())[from..];
            let args = Forward { q, k, v, state: State::Final(&mut last), o: &mut o, scratch };
            attention.forward(args).expect("legal arguments");
            let (mut one, mut state) = (filled(o.len()), vec![0.0; last.len()]);
            let scratch = &mut filled(from + attention.decode_scratch_len())[from..];
            let args = DecodeStep { q, k, v, state: &mut state, o: &mut one, scratch };
            attention.decode(args).expect("legal arguments");
            [gather(&config, &o), last, gather(&Config { len: 1, ..config }, &one), state]
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
