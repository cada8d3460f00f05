//! Rules with gates and the delta rule, grouped heads and ragged batches, with any sizes, strides and types.
//! With harmless numbers they are compared with the oracle. With arbitrary bits outputs may be any numbers,
//! but nothing may crash or write outside the rows of o. A refused call writes nothing.

use arbitrary::{Result, Unstructured};
use chunkwise::{
    Attention, BetaMap, Config, FeatureMap, Gate, GateMap, HeadOrder, Heads, Normaliser, Rule, Shape, State,
    Strides, Update,
};
use half::{bf16, f16};

use super::attention::{feature_map, isa};
use crate::common::family::*;
use crate::common::*;

/// The largest number of elements of a state or scratch for which calls are made; of larger configurations
/// only the checks run.
const MOST: usize = 1 << 16;

/// A rule, with options that go together or, sometimes, any combination of options.
fn rule(u: &mut Unstructured<'_>) -> Result<Rule> {
    let gate = *u.choose(&[Gate::None, Gate::Scalar, Gate::Key])?;
    let any = u.ratio(1, 16)?;
    let update = *u.choose(&[Update::Linear, Update::Delta])?;
    let mut rule = if update == Update::Delta { Rule::delta(gate) } else { Rule::gated(gate) };
    if any || gate != Gate::None {
        rule = rule.gate_map(*u.choose(&GATE_MAPS)?);
    }
    if any || update == Update::Delta {
        rule = rule.beta_map(*u.choose(&BETA_MAPS)?);
    }
    if any || update == Update::Linear {
        rule = rule.normaliser(*u.choose(&[Normaliser::None, Normaliser::Global { eps: 1e-6 }])?);
    }
    rule.causal = !((any || update == Update::Linear && gate == Gate::None) && u.ratio(1, 2)?);
    rule.compensated = any && u.arbitrary()?;
    rule.feature_map = feature_map(u)?;
    // With the delta rule, outputs grow without bound if keys are long.
    if update == Update::Delta || u.ratio(1, 4)? {
        rule = rule.qk_norm(1e-6);
    }
    Ok(rule.scale(*u.choose(&[1.0, 0.125, -3.7, 0.0])?))
}

/// Numbers of heads, which mostly divide each other.
fn heads(u: &mut Unstructured<'_>) -> Result<Heads> {
    let few = u.int_in_range(1..=2)?;
    let mut number = || -> Result<usize> { Ok(few * u.choose(&[1, 1, 2, 3])?) };
    let heads = Heads::new(number()?, number()?, number()?);
    Ok(heads.order(*u.choose(&[HeadOrder::Interleaved, HeadOrder::Tiled])?))
}

/// A case of normal numbers, contiguous, which may be invalid.
fn case(u: &mut Unstructured<'_>) -> Result<FamilyCase> {
    let (rule, groups) = (rule(u)?, heads(u)?);
    // T is up to more than two tiles, and K and V are up to more than the longest vector.
    let (len, key, value) = (u.int_in_range(0..=38)?, u.int_in_range(1..=33)?, u.int_in_range(1..=18)?);
    let isa = isa(u)?;
    let seed = u.int_in_range(0..=255)?;
    if u.ratio(1, 3)? {
        let mut begins = vec![0, len as u32];
        for _ in 0..u.int_in_range(0..=4)? {
            begins.push(u.int_in_range(0..=len as u32)?);
        }
        begins.sort_unstable();
        let shape = Shape::grouped(1, len, groups, key, value).with_sequences(begins.len() - 1);
        let case = FamilyCase::new(Config::new(rule, shape).isa(isa), seed);
        return Ok(FamilyCase { sequences: Some(begins), ..case });
    }
    let shape = Shape::grouped(u.int_in_range(0..=2)?, len, groups, key, value);
    Ok(FamilyCase::new(Config::new(rule, shape).isa(isa), seed))
}

pub(super) fn check(u: &mut Unstructured<'_>) -> Result<()> {
    let mut case = case(u)?;
    if u.arbitrary()? {
        let mut layout = || -> Result<(usize, [usize; 3])> {
            Ok((
                u.int_in_range(0..=5)?,
                [u.int_in_range(0..=3)?, u.int_in_range(0..=3)?, u.int_in_range(0..=3)?],
            ))
        };
        let layouts = [layout()?, layout()?, layout()?, layout()?, layout()?, layout()?];
        case = case.laid_out(layouts);
    }
    let Ok(attention) = Attention::new(case.config) else { return Ok(()) };
    // Compensated states are drawn by `super::attention`.
    if case.config.rule.compensated {
        return Ok(());
    }
    if attention.state_len().max(attention.scratch_len()).max(attention.decode_scratch_len()) > MOST {
        return Ok(());
    }
    match u.int_in_range(0..=4)? {
        0 => wrong(u, case),
        1 => any_bits(u, case),
        2 => draft(u, case),
        3 => harmless::<f32>(u, case),
        _ if u.arbitrary()? => harmless::<bf16>(u, case),
        _ => harmless::<f16>(u, case),
    }
}

/// Replaces some numbers by others that are not too large.
fn numbers(u: &mut Unstructured<'_>, case: &mut FamilyCase) -> Result<()> {
    let Rule { feature_map, normaliser, gate_map, beta_map, .. } = case.config.rule;
    let replace = |u: &mut Unstructured<'_>, tensor: &mut Vec<f32>, least: f32, most: f32| -> Result<()> {
        for _ in 0..u.int_in_range(0..=8)? {
            let x = (f32::from(u.arbitrary::<i8>()?) / 32.0).clamp(least, most);
            if let Some(at) = tensor.len().checked_sub(1) {
                tensor[u.int_in_range(0..=at)?] = x;
            }
        }
        Ok(())
    };
    let positive = feature_map == FeatureMap::Identity && normaliser != Normaliser::None;
    // The relative error of phi from the rounding of exp grows as x decreases.
    let least = if positive {
        0.0
    } else if feature_map == FeatureMap::Elu {
        -1.5
    } else {
        -4.0
    };
    replace(u, &mut case.q, least, 4.0)?;
    replace(u, &mut case.k, least, 4.0)?;
    replace(u, &mut case.v, -4.0, 4.0)?;
    for x in case.q.iter_mut().chain(&mut case.k) {
        *x = x.max(least);
    }
    match gate_map {
        GateMap::Log => replace(u, &mut case.g, -4.0, 0.0)?,
        GateMap::Linear => replace(u, &mut case.g, 0.0, 1.0)?,
        _ => replace(u, &mut case.g, -4.0, 4.0)?,
    }
    if gate_map == GateMap::Log && u.ratio(1, 4)? && !case.g.is_empty() {
        let at = u.int_in_range(0..=case.g.len() - 1)?;
        case.g[at] = f32::NEG_INFINITY;
    }
    let (least, most) = if beta_map == BetaMap::Given { (0.0, 1.0) } else { (-4.0, 4.0) };
    replace(u, &mut case.beta, least, most)?;
    if u.arbitrary()? {
        case.initial.fill(0.0);
    }
    Ok(())
}

/// The sizes with which rounding errors are compared: outputs and states if no terms cancelled. They can't be
/// computed with the delta rule, because it subtracts; the linear update with the absolute values of q, k and
/// v comes near.
fn sizes(case: &FamilyCase) -> (Vec<f64>, Vec<f64>) {
    let mut size = case.changed(|case| {
        for tensor in [&mut case.q, &mut case.k, &mut case.v, &mut case.initial] {
            tensor.iter_mut().for_each(|x| *x = x.abs());
        }
        case.config.rule.scale = case.config.rule.scale.abs();
    });
    size.config.rule.update = Update::Linear;
    size.config.rule.beta_map = BetaMap::Given;
    size.beta.clear();
    size.oracle()
}

fn harmless<E: Number>(u: &mut Unstructured<'_>, mut case: FamilyCase) -> Result<()> {
    numbers(u, &mut case)?;
    let config = case.config;
    let len = config.shape.len;
    let wide = case.rounded::<E>();
    let tokens = (0..len).map(|token| (token..token + 1, true));
    let (o, state) = case.pieces_in::<E>([(0..len, false)]);
    let (want, want_state) = wide.forward();
    assert_eq!(first_difference(&o, &widen(&narrow::<E>(&want))), None, "{config:?}");
    assert_eq!(first_difference(&state, &want_state), None, "{config:?}");
    let (size, state_size) = sizes(&wide);
    let (exact, exact_state) = wide.oracle();
    let compare = |o: &[f32], state: &[f32]| {
        assert!(wide.gaps_are_untouched(o), "written between the rows of o: {config:?}");
        let error = norm_error_of(&wide.gather(o), &exact, &size);
        assert!(error <= wide.bound(), "o is off by {error:e}: {config:?}");
        let error = norm_error_of(state, &exact_state, &state_size);
        assert!(error <= wide.bound(), "the state is off by {error:e}: {config:?}");
    };
    compare(&want, &want_state);
    if !case.decodes() {
        return Ok(());
    }
    let (decoded, after) = wide.decode();
    compare(&decoded, &after);
    if E::NAME != "f32" {
        let (o, state) = case.pieces_in::<E>(tokens);
        assert_eq!(first_difference(&o, &widen(&narrow::<E>(&decoded))), None, "{config:?}");
        assert_eq!(first_difference(&state, &after), None, "{config:?}");
    }
    Ok(())
}

/// Checks a draft of which some tokens are accepted. Its outputs have the bits of a forward. The state has
/// the bits of as many decodes or, with the delta rule, is within the bound of the oracle. A refused call
/// writes nothing.
fn draft(u: &mut Unstructured<'_>, mut case: FamilyCase) -> Result<()> {
    numbers(u, &mut case)?;
    let (attention, Config { rule, shape, .. }) = (case.attention(), case.config);
    let is_draft = shape.len <= Attention::MAX_DRAFT && case.decodes();
    let (mut o, mut state) = (case.output(), case.initial.clone());
    // A case that is not a draft may have a record of any length.
    let mut record = vec![SENTINEL; if is_draft { attention.record_len() } else { 0 }];
    let scratch = &mut vec![f32::NAN; attention.scratch_len()];
    let verified = attention.verify(case.tensors(&mut o), &state, &mut record, scratch);
    assert_eq!(verified.is_ok(), is_draft, "{:?}", case.config);
    let accepted = u.int_in_range(0..=shape.len + 1)?;
    let committed = attention.commit(&record, &vec![accepted as u32; shape.batch], &mut state);
    assert_eq!(
        committed.is_ok(),
        is_draft && (accepted <= shape.len || shape.batch == 0),
        "{:?}",
        case.config
    );
    if verified.is_err() {
        assert!(untouched(&o, &case.output()), "{:?}", case.config);
    } else {
        assert!(untouched(&o, &case.forward().0), "{:?}", case.config);
    }
    if committed.is_err() {
        assert!(untouched(&state, &case.initial), "{:?}", case.config);
        return Ok(());
    }
    let part = case.changed(|case| case.config.shape.len = accepted.min(shape.len));
    if rule.update == Update::Linear {
        assert_eq!(first_difference(&state, &part.decode().1), None, "{:?}", case.config);
        return Ok(());
    }
    let (want, size) = (part.oracle().1, sizes(&part).1);
    let error = norm_error_of(&state, &want, &size);
    assert!(error <= case.bound(), "the state is off by {error:e}: {:?}", case.config);
    Ok(())
}

/// Makes a forward and a decode; returns whether each was accepted. A refused call must write nothing, and an
/// accepted call only the rows of o.
fn run(case: &FamilyCase, attention: &Attention) -> [bool; 2] {
    let mut done = [false; 2];
    for decode in [false, true] {
        let (mut o, mut state) = (case.output(), case.initial.clone());
        let scratch = &mut vec![f32::NAN; attention.scratch_len().max(attention.decode_scratch_len())];
        let tensors = case.tensors(&mut o);
        let result = if decode {
            attention.decode(tensors, &mut state, scratch)
        } else {
            attention.forward(tensors, State::Carried(&mut state), scratch)
        };
        if result.is_err() {
            assert!(untouched(&o, &case.output()) && untouched(&state, &case.initial), "{:?}", case.config);
        }
        assert!(case.gaps_are_untouched(&o), "written between the rows of o: {:?}", case.config);
        done[usize::from(decode)] = result.is_ok();
    }
    done
}

/// Makes calls with arbitrary bits in most tensors and in the state.
fn any_bits(u: &mut Unstructured<'_>, mut case: FamilyCase) -> Result<()> {
    let pattern: [u32; 4] = u.arbitrary()?;
    let step = u.int_in_range(0..=3)?;
    let bits = |x: &mut Vec<f32>, turn: usize| {
        for (i, x) in x.iter_mut().enumerate() {
            *x = f32::from_bits(pattern[(i + turn) % 4].wrapping_add((i as u32 / 4) << (8 * step)));
        }
    };
    let FamilyCase { q, k, v, g, beta, a_log, dt_bias, initial, .. } = &mut case;
    for (turn, tensor) in [q, k, v, g, beta, a_log, dt_bias, initial].into_iter().enumerate() {
        if u.ratio(2, 3)? {
            bits(tensor, turn);
        }
    }
    let attention = case.attention();
    let [forward, decode] = run(&case, &attention);
    assert!(forward, "{:?}", case.config);
    // A decode takes one token of each sequence; in a ragged batch these tokens are contiguous.
    let Shape { batch, len, ragged, .. } = case.config.shape;
    let tokens = if ragged { batch <= len } else { len > 0 || batch == 0 };
    assert_eq!(decode, case.config.rule.causal && tokens, "{:?}", case.config);
    Ok(())
}

/// Makes calls with one change that may make them invalid.
fn wrong(u: &mut Unstructured<'_>, mut case: FamilyCase) -> Result<()> {
    let far = Strides { batch: u.arbitrary()?, token: u.arbitrary()?, head: u.arbitrary()? };
    let way = u.int_in_range(0..=8)?;
    match way {
        0 => drop(case.g.pop()),
        1 => drop(case.beta.pop()),
        2 => drop(case.a_log.pop()),
        3 => drop(case.dt_bias.pop()),
        4 => case.g.push(0.0),
        5 => case.beta.push(0.0),
        6 => case.dt_bias.push(0.0),
        7 => case.sequences = Some(u.arbitrary::<[u32; 3]>()?[..u.int_in_range(0..=3)?].to_vec()),
        _ => case.config.shape = case.config.shape.with_gates(far, far),
    }
    let attention = case.attention();
    run(&case, &attention);
    Ok(())
}

/// Checks a sequence in pieces, by forward and by decode, against the oracle on the whole. Where the pieces
/// are whole blocks, it has the bits of the whole.
pub(super) fn pieces(u: &mut Unstructured<'_>) -> Result<()> {
    let mut case = case(u)?;
    if Attention::new(case.config).is_err() || case.config.rule.compensated || !case.decodes() {
        return Ok(());
    }
    numbers(u, &mut case)?;
    let len = case.config.shape.len;
    let whole_blocks = u.arbitrary()?;
    let (mut begin, mut pieces, mut exact) = (0, vec![], true);
    for _ in 0..20 {
        let end = u.int_in_range(begin..=len)?;
        let end = if whole_blocks { end.next_multiple_of(4).min(len) } else { end };
        if u.ratio(1, 4)? && !whole_blocks {
            pieces.extend((begin..end).map(|token| (token..token + 1, true)));
            exact &= end == begin;
        } else {
            pieces.push((begin..end, false));
            exact &= end.is_multiple_of(4) || end == len;
        }
        begin = end;
    }
    pieces.push((begin..len, false));
    let (o, state) = case.pieces(pieces);
    let ((want, want_state), (size, state_size)) = (case.oracle(), sizes(&case));
    let config = case.config;
    let error = norm_error_of(&case.gather(&o), &want, &size);
    assert!(error <= case.bound(), "o is off by {error:e}: {config:?}");
    let error = norm_error_of(&state, &want_state, &state_size);
    assert!(error <= case.bound(), "the state is off by {error:e}: {config:?}");
    // Without gates and the delta rule no cut changes a bit.
    let Rule { gate, update, .. } = config.rule;
    if exact || gate == Gate::None && update == Update::Linear {
        let (whole, last) = case.forward();
        assert_eq!(first_difference(&o, &whole), None, "{config:?}");
        assert_eq!(first_difference(&state, &last), None, "{config:?}");
    }
    Ok(())
}
