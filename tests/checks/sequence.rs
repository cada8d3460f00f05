//! A sequence in pieces, by forward and by decode, with snapshots that are restored: the outputs agree with
//! the oracle on the whole, and have the bits of one forward.

use arbitrary::{Result, Unstructured};
use chunkwise::{Config, Rule, Shape, State};

use super::attention::{feature_map, isa, normaliser, numbers};
use super::family;
use crate::common::*;

pub(super) fn check(u: &mut Unstructured<'_>) -> Result<()> {
    if u.ratio(2, 5)? {
        return family::pieces(u);
    }
    let (batch, heads) = (u.int_in_range(1..=2)?, u.int_in_range(1..=3)?);
    let (len, key, value) = (u.int_in_range(0..=100)?, u.int_in_range(1..=40)?, u.int_in_range(1..=40)?);
    let rule = Rule::linear(normaliser(u)?).feature_map(feature_map(u)?).compensated(u.ratio(1, 4)?);
    let config = Config::new(rule, Shape::new(batch, len, heads, key, value)).isa(isa(u)?);
    if chunkwise::Attention::new(config).is_err() {
        return Ok(());
    }
    let case = numbers(u, config)?;
    let (want, want_state) = case.oracle();
    let (size, state_size) = case.without_cancellation().oracle();

    // Whether a cut at this token leaves the bits unchanged.
    let cut = |token: usize| !rule.compensated || token.is_multiple_of(COMPENSATED_CUT) || token == len;
    let (mut token, mut exact) = (0, true);
    let (mut state, mut o) = (case.zero_state(), case.output());
    let mut snapshot = (token, exact, state.clone());
    let mut calls = 0;
    while token < len && calls < 60 {
        calls += 1;
        match u.int_in_range(0..=4)? {
            0 => snapshot = (token, exact, state.clone()),
            // The tokens since the snapshot are computed again, and their outputs are overwritten.
            1 => (token, exact, state) = snapshot.clone(),
            2 => {
                case.decode(token..token + 1, &mut state, &mut o);
                (token, exact) = (token + 1, exact && cut(token + 1));
            }
            way => {
                let end = if u.arbitrary()? { len.min(token + TILE) } else { u.int_in_range(token..=len)? };
                if way == 3 {
                    case.forward(token..end, State::Carried(&mut state), &mut o);
                } else {
                    let before = state.clone();
                    case.forward(token..end, State::InitialFinal(&before, &mut state), &mut o);
                }
                (token, exact) = (end, exact && cut(end));
            }
        }
    }
    case.forward(token..len, State::Carried(&mut state), &mut o);

    let got = gather(&config, &o);
    assert!(norm_error_of(&got, &want, &size) <= NORM_ERROR, "{config:?}");
    assert!(element_error(&got, &want, &size) <= element_bound(&config), "{config:?}");
    // A compensated state also contains rounding errors.
    if !config.rule.compensated {
        assert!(element_error(&state, &want_state, &state_size) <= element_bound(&config), "{config:?}");
    }
    if exact {
        let (whole, last) = case.whole_and_state();
        assert_eq!(first_difference(&o, &whole), None, "{config:?}");
        assert_eq!(first_difference(&state, &last), None, "{config:?}");
    }
    Ok(())
}
