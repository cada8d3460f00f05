//! A call that is split by heads gives the bits of the whole, for any split, any order of the parts and any
//! threads, also where sequences have different counts of tokens in their chunks.

use chunkwise::{Config, Error, Isa, Normaliser, Part, Rule, Shape, State, Tensors};

use crate::common::*;

fn alone(part: Part<'_>) {
    let mut scratch = vec![SENTINEL; part.scratch_len()];
    part.run(&mut scratch).unwrap();
}

/// Splits a call at these heads and runs each part on a thread of its own.
fn run(all: Part<'_>, cuts: &[usize]) {
    let mut rest = all;
    std::thread::scope(|scope| {
        let mut done = 0;
        for cut in cuts {
            let (part, after) = rest.split_at(cut - done);
            assert_eq!(part.len(), cut - done);
            scope.spawn(move || alone(part));
            (rest, done) = (after, *cut);
        }
        alone(rest);
    });
}

#[test]
fn any_split_equals_the_whole() {
    for normaliser in normalisers(&[7]) {
        for order in [0, 1] {
            let config = Config::new(Rule::linear(normaliser), Shape::new(3, 40, 4, 9, 20));
            let config = with_layouts(config, [(order, [0, 3, 1]); 4]);
            for isa in Isa::available() {
                let case = Case::new(config.isa(isa), 5);
                let attention = case.attention();
                let (o, state) = case.whole_and_state();
                let [q, k, v] = [&case.q, &case.k, &case.v].map(|x| &x[..]);
                for cuts in [&[][..], &[0, 1], &[4, 8], &[1, 6, 11], &[12, 12]] {
                    let (mut split, mut last) = (case.output(), case.zero_state());
                    let state_of = State::Carried(&mut last);
                    let tensors = Tensors::new(q, k, v, &mut split[..]);
                    run(attention.forward_part(tensors, state_of).unwrap(), cuts);
                    assert!(
                        untouched(&o, &split) && untouched(&state, &last),
                        "{isa} {normaliser:?} {cuts:?}"
                    );

                    // One more token is decoded; the second sequence begins again from zero, so that its
                    // count differs.
                    let head = state.len() / 12;
                    let other = case.zero_state();
                    last[4 * head..8 * head].copy_from_slice(&other[4 * head..8 * head]);
                    let (mut whole, mut one) = (last.clone(), case.output());
                    let mut scratch = vec![0.0; attention.decode_scratch_len()];
                    attention.decode(Tensors::new(q, k, v, &mut one[..]), &mut whole, &mut scratch).unwrap();
                    let mut split = case.output();
                    let tensors = Tensors::new(q, k, v, &mut split[..]);
                    run(attention.decode_part(tensors, &mut last).unwrap(), cuts);
                    assert!(
                        untouched(&one, &split) && untouched(&whole, &last),
                        "{isa} {normaliser:?} {cuts:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn parts_are_refused_as_calls_are() {
    let case = Case::new(Config::new(Rule::linear(Normaliser::None), Shape::new(1, 5, 2, 3, 4)), 5);
    let attention = case.attention();
    let [q, k, v] = [&case.q, &case.k, &case.v].map(|x| &x[..]);
    let mut o = case.output();
    let refused = attention.forward_part(Tensors::new(&q[1..], k, v, &mut o[..]), State::Zero);
    assert!(matches!(refused, Err(Error::TooShort { what: "q", .. })));
    let part = attention.forward_part(Tensors::new(q, k, v, &mut o[..]), State::Zero).unwrap();
    let mut scratch = vec![0.0; part.scratch_len() - 1];
    assert!(matches!(part.run(&mut scratch), Err(Error::TooShort { what: "scratch", .. })));
    assert!(o.iter().all(|x| x.to_bits() == SENTINEL.to_bits()));
}
