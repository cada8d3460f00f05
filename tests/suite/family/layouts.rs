//! Strides, batches, ragged batches, parts and threads change no bit; the lengths of scratch are exact.

use chunkwise::{Attention, Config, Heads, Isa, Part, Rule, Shape, State, Tensors};

use super::{all_rules, same};
use crate::common::family::*;
use crate::common::*;

/// A case of grouped heads, 4 of q, 2 of k and 1 of v: two heads of q share each head of the state, and the
/// two heads of the state share the head of v.
fn grouped(rule: Rule, batch: usize, len: usize, [key, value]: [usize; 2]) -> FamilyCase {
    FamilyCase::new(Config::new(rule, Shape::grouped(batch, len, Heads::new(4, 2, 1), key, value)), 5)
}

#[test]
fn strides() {
    for (name, rule) in all_rules() {
        for isa in Isa::available() {
            let case = grouped(rule, 2, 13, [9, 18]).on(isa);
            let want = case.forward();
            let want_decoded = case.decodes().then(|| case.decode());
            for order in 0..6 {
                for gaps in [[0, 0, 0], [1, 2, 3]] {
                    let moved = case.laid_out([0, 1, 2, 3, 4, 5].map(|more| ((order + more) % 6, gaps)));
                    let name = format!("{name}, {isa}, order {order}, gaps {gaps:?}");
                    let (o, state) = moved.forward();
                    assert!(moved.gaps_are_untouched(&o), "{name}: written between the rows of o");
                    same(&name, &(moved.gather(&o), state), &want);
                    if let Some(want) = &want_decoded {
                        let (o, state) = moved.decode();
                        assert!(moved.gaps_are_untouched(&o), "{name}: decode wrote between the rows of o");
                        same(&format!("{name}, decode"), &(moved.gather(&o), state), want);
                    }
                }
            }
        }
    }
}

/// Each sequence of a batch has the bits that it has alone.
#[test]
fn batches() {
    for (name, rule) in all_rules() {
        for isa in Isa::available() {
            let case = grouped(rule, 3, 22, [20, 12]).on(isa);
            let all = case.forward();
            for sequence in 0..3 {
                let mut config = case.config;
                config.shape.batch = 1;
                let alone = case.rearranged(config, |_, [_, t, h]| [sequence, t, h]);
                let row = all.0.len() / 3;
                let part = &all.0[sequence * row..][..row];
                let states: Vec<f32> =
                    (0..2).flat_map(|head| case.state_of(&all.1, sequence, head)).copied().collect();
                same(&format!("{name}, {isa}, {sequence}"), &alone.forward(), &(part.to_vec(), states));
            }
        }
    }
}

const LENS: [usize; 6] = [0, 7, 0, 29, 1, 16];

/// One sequence of a ragged batch as a case of its own.
fn one_of(case: &FamilyCase, sequence: usize) -> FamilyCase {
    let begin: usize = LENS[..sequence].iter().sum();
    let Shape { groups, key, value, .. } = case.config.shape;
    let shape = Shape::grouped(1, LENS[sequence], groups, key, value);
    let config =
        with(Config::new(case.config.rule, shape), |config| config.execution = case.config.execution);
    case.rearranged(config, |which, [_, t, h]| match which {
        Which::State => [sequence, 0, h],
        _ => [0, begin + t, h],
    })
}

/// Each sequence of a ragged batch has the bits that it has alone, in contiguous tensors and in others.
#[test]
fn ragged_batches() {
    for (name, rule) in all_rules() {
        for isa in Isa::available() {
            let case = FamilyCase::ragged(rule, &LENS, [2, 20, 12], 6).on(isa);
            let moved = case.laid_out([1, 2, 0, 4, 1, 3].map(|order| (order, [0, 3, 1])));
            for case in [case, moved] {
                let (o, state) = case.forward();
                assert!(case.gaps_are_untouched(&o), "{name}: written between the rows of o");
                let o = case.gather(&o);
                for sequence in 0..LENS.len() {
                    let alone = one_of(&case, sequence);
                    let begin: usize = LENS[..sequence].iter().sum();
                    let part = o[begin * 24..][..LENS[sequence] * 24].to_vec();
                    let states: Vec<f32> =
                        (0..2).flat_map(|head| case.state_of(&state, sequence, head)).copied().collect();
                    same(&format!("{name}, {isa}, {sequence}"), &alone.forward(), &(part, states));
                }
            }
        }
    }
}

/// A decode of a ragged batch takes one token of each sequence, and these tokens are contiguous.
#[test]
fn ragged_decode() {
    for (name, rule) in all_rules().into_iter().filter(|(_, rule)| rule.causal) {
        for isa in Isa::available() {
            // The ragged batch has three sequences of one token each.
            let case = FamilyCase::ragged(rule, &[1, 1, 1], [2, 20, 12], 7).on(isa);
            let attention = case.attention();
            let (mut o, mut state) = (case.output(), case.initial.clone());
            let scratch = &mut vec![f32::NAN; attention.decode_scratch_len()];
            attention.decode(case.tensors(&mut o), &mut state, scratch).expect("legal arguments");
            same(&format!("{name}, {isa}"), &(o, state), &case.forward());
        }
    }
}

/// A call that is split by heads gives the bits of the whole.
#[test]
fn parts() {
    fn alone(part: Part<'_>) {
        let mut scratch = vec![SENTINEL; part.scratch_len()];
        part.run(&mut scratch).expect("enough scratch");
    }
    fn split(whole: Part<'_>, cut: usize) {
        let (first, second) = whole.split_at(cut);
        alone(second);
        alone(first);
    }
    for (name, rule) in all_rules() {
        for isa in Isa::available() {
            let ragged = FamilyCase::ragged(rule, &[5, 0, 9], [2, 9, 20], 8).on(isa);
            for case in [grouped(rule, 3, 14, [9, 20]).on(isa), ragged] {
                let (attention, whole) = (case.attention(), case.forward());
                for cut in 0..=6 {
                    let (mut o, mut state) = (case.output(), case.initial.clone());
                    let part = attention.forward_part(case.tensors(&mut o), State::Carried(&mut state));
                    split(part.expect("legal arguments"), cut);
                    same(&format!("{name}, {isa}, cut at {cut}"), &(o, state), &whole);
                }
                if !case.decodes() {
                    continue;
                }
                let [(mut want, mut want_state), (mut got, mut got_state)] =
                    [(); 2].map(|()| (case.output(), case.initial.clone()));
                let scratch = &mut vec![f32::NAN; attention.decode_scratch_len()];
                attention.decode(case.tensors(&mut want), &mut want_state, scratch).expect("legal arguments");
                let part = attention.decode_part(case.tensors(&mut got), &mut got_state);
                split(part.expect("legal arguments"), 4);
                same(&format!("{name}, {isa}, decode"), &(got, got_state), &(want, want_state));
            }
        }
    }
}

/// Calls on two and three threads, which are divided by sequences, heads and columns of V.
#[cfg(feature = "std")]
#[test]
fn threads() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("three threads");
    pool.install(|| {
        for (name, rule) in all_rules() {
            for isa in Isa::available() {
                let shape = |len, heads| Shape::grouped(1, len, heads, 40, 170);
                let cases = [
                    FamilyCase::new(Config::new(rule, shape(602, Heads::equal(1))), 9),
                    FamilyCase::new(Config::new(rule, shape(151, Heads::new(4, 1, 2))), 9),
                    FamilyCase::ragged(rule, &[100, 0, 1, 500], [1, 40, 170], 9),
                ];
                for case in cases {
                    let case = case.on(isa);
                    let want = case.forward();
                    for threads in [2, 3] {
                        let many = case.changed(|case| case.config.execution.threads = threads);
                        let [few, more] = [&case, &many].map(|case| case.attention().scratch_len());
                        assert!(more > few, "{name}, {isa}, {threads}: not cut");
                        same(&format!("{name}, {isa}, {threads} threads"), &many.forward(), &want);
                        // Tasks that share a head read another state than the one they write.
                        let (mut o, mut last) = (many.output(), vec![SENTINEL; want.1.len()]);
                        let scratch = &mut vec![f32::NAN; more];
                        let state = State::InitialFinal(&many.initial, &mut last);
                        many.attention()
                            .forward(many.tensors(&mut o), state, scratch)
                            .expect("legal arguments");
                        same(&format!("{name}, {isa}, {threads} threads"), &(o, last), &want);
                    }
                }
            }
        }
    });
}

/// Decodes on two and three threads.
#[cfg(feature = "std")]
#[test]
fn decode_on_threads() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("three threads");
    pool.install(|| {
        for rule in [Rule::delta(chunkwise::Gate::Scalar).qk_norm(1e-6), Rule::gated(chunkwise::Gate::Key)] {
            for isa in Isa::available() {
                // The state has 96 heads of 64 KiB.
                let shape = Shape::grouped(3, 1, Heads::new(64, 16, 32), 128, 128);
                let case = FamilyCase::new(Config::new(rule, shape), 10).on(isa);
                let want = case.decode();
                for threads in [2, 3] {
                    let many = case.changed(|case| case.config.execution.threads = threads);
                    let [few, more] = [&case, &many].map(|case| case.attention().decode_scratch_len());
                    assert!(more > few, "{isa}, {threads}: not cut");
                    same(&format!("{isa}, {threads} threads"), &many.decode(), &want);
                }
            }
        }
    });
}

/// Results depend neither on the previous contents of scratch, outputs and last states, nor on the alignment
/// of scratch.
#[test]
fn memory_may_hold_anything() {
    for (name, rule) in all_rules() {
        for isa in Isa::available() {
            let case = grouped(rule, 2, 21, [9, 20]).on(isa);
            let (attention, want) = (case.attention(), case.forward());
            let want_at_zero = case.at_zero().forward();
            for (fill, from) in [(0.0, 0), (f32::INFINITY, 1), (1e30, 7), (f32::NAN, 15)] {
                let (mut o, mut last) = (vec![fill; case.output().len()], vec![fill; want.1.len()]);
                let scratch = &mut vec![fill; from + attention.scratch_len()][from..];
                for (want, initial) in [(&want, Some(&case.initial)), (&want_at_zero, None)] {
                    let state = match initial {
                        Some(initial) => State::InitialFinal(initial, &mut last),
                        None => State::Final(&mut last),
                    };
                    attention.forward(case.tensors(&mut o), state, scratch).expect("legal arguments");
                    let got = (o.clone(), last.clone());
                    same(&format!("{name}, {isa}, {fill}, scratch from {from}"), &got, want);
                    o.fill(fill);
                    last.fill(fill);
                    scratch.fill(fill);
                }
            }
        }
    }
}

/// The length of scratch is exact, and the bound for static arrays is no less on any instruction set.
#[test]
fn scratch() {
    for (name, rule) in rules() {
        for sizes in [[1, 1, 1, 1, 1], [2, 9, 3, 20, 33], [1, 40, 2, 128, 64]] {
            let case = FamilyCase::of(rule, sizes);
            let [_, _, heads, key, value] = sizes;
            let bound = Attention::gated_scratch_bound(heads, key, value);
            for isa in Isa::available() {
                let case = case.on(isa);
                let attention = case.attention();
                let (mut o, mut state) = (case.output(), case.initial.clone());
                for (decode, need) in
                    [(false, attention.scratch_len()), (true, attention.decode_scratch_len())]
                {
                    assert!(need <= bound, "{name}, {isa}, {sizes:?}: {need} > {bound}");
                    for len in [need - 1, need, need + 40] {
                        let scratch = &mut vec![SENTINEL; len];
                        let tensors = case.tensors(&mut o);
                        let done = if decode {
                            attention.decode(tensors, &mut state, scratch)
                        } else {
                            attention.forward(tensors, State::Carried(&mut state), scratch)
                        };
                        let short = chunkwise::Error::TooShort { what: "scratch", need, got: len };
                        assert_eq!(done, if len < need { Err(short) } else { Ok(()) }, "{name}, {isa}");
                        // Elements beyond that length are left untouched.
                        assert!(untouched(
                            &scratch[need.min(len)..],
                            &vec![SENTINEL; len.saturating_sub(need)]
                        ));
                    }
                }
            }
        }
    }
    // A bound can't return an error, so it saturates at a length that no memory can have.
    for [heads, key, value] in [[usize::MAX, 1, 1], [1, usize::MAX, 1], [1, 1, usize::MAX], [usize::MAX; 3]] {
        assert!(Attention::gated_scratch_bound(heads, key, value) > isize::MAX as usize / 4);
    }
}

/// Calls without tokens or without sequences take empty tensors.
#[test]
fn no_tokens() {
    for (name, rule) in all_rules() {
        let case = FamilyCase::of(rule, [2, 0, 3, 9, 20]);
        let (o, state) = case.forward();
        assert!(o.is_empty() && untouched(&state, &case.initial), "{name}");
        let config = case.config;
        let mut none = config;
        none.shape.batch = 0;
        let attention = Attention::new(none).expect("a legal configuration");
        let (x, mut o): ([f32; 0], [f32; 0]) = ([], []);
        let tensors = Tensors::new(&x, &x, &x, &mut o);
        let scratch = &mut vec![0.0; attention.scratch_len()];
        attention.forward(tensors, State::Zero, scratch).expect("nothing to compute");
    }
}
