//! A call that is split by heads gives the bits of the whole, wherever it is split, in whatever order and on whatever threads
//! its parts run; sequences at different places in their chunks too.
mod common;

use chunkwise::{Config, DecodeStep, Error, Forward, Isa, Part, State};
use common::*;

fn alone(part: Part<'_>) {
    let mut scratch = vec![SENTINEL; part.scratch_len()];
    part.run(&mut scratch).unwrap();
}

/// Cuts all heads at the places given and runs the pieces on threads of their own.
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
            let config = Config::new(3, 40, 4, 9, 20, normaliser);
            let strides = |dim| nested(&config, dim, order, [0, 3, 1]);
            let (keys, values) = (strides(config.key), strides(config.value));
            let config =
                Config { q_strides: keys, k_strides: keys, v_strides: values, o_strides: values, ..config };
            for isa in Isa::available() {
                let case = Case::new(Config { isa: Some(isa), ..config }, 5);
                let attention = case.attention();
                let (o, state) = case.whole_and_state();
                let Case { q, k, v, .. } = &case;
                for cuts in [&[][..], &[0, 1], &[4, 8], &[1, 6, 11], &[12, 12]] {
                    let (mut split, mut last) = (case.output(), case.zero_state());
                    let state_of = State::Carried(&mut last);
                    let args = Forward { q, k, v, state: state_of, o: &mut split, scratch: &mut [] };
                    run(attention.forward_part(args).unwrap(), cuts);
                    assert!(
                        untouched(&o, &split) && untouched(&state, &last),
                        "{isa} {normaliser:?} {cuts:?}"
                    );

                    // From there one token more, the second sequence from another place.
                    let head = state.len() / 12;
                    let other = case.zero_state();
                    last[4 * head..8 * head].copy_from_slice(&other[4 * head..8 * head]);
                    let (mut whole, mut one) = (last.clone(), case.output());
                    let mut scratch = vec![0.0; attention.decode_scratch_len()];
                    let args = DecodeStep { q, k, v, state: &mut whole, o: &mut one, scratch: &mut scratch };
                    attention.decode(args).unwrap();
                    let mut split = case.output();
                    let args = DecodeStep { q, k, v, state: &mut last, o: &mut split, scratch: &mut [] };
                    run(attention.decode_part(args).unwrap(), cuts);
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
    let case = Case::new(Config::new(1, 5, 2, 3, 4, normalisers(&[])[1]), 5);
    let attention = case.attention();
    let Case { q, k, v, .. } = &case;
    let mut o = case.output();
    let args = Forward { q: &q[1..], k, v, state: State::Zero, o: &mut o, scratch: &mut [] };
    assert!(matches!(attention.forward_part(args), Err(Error::TooShort { what: "q", .. })));
    let args = Forward { q, k, v, state: State::Zero, o: &mut o, scratch: &mut [] };
    let part = attention.forward_part(args).unwrap();
    let mut scratch = vec![0.0; part.scratch_len() - 1];
    assert!(matches!(part.run(&mut scratch), Err(Error::TooShort { what: "scratch", .. })));
    assert!(o.iter().all(|x| x.to_bits() == SENTINEL.to_bits()));
}
