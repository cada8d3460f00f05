//! Attention with any sizes and strides. With harmless numbers it is compared with the oracle, in every type.
//! With arbitrary bits outputs may be any numbers, but nothing may crash or write outside the rows of o. A
//! refused call writes nothing.

use arbitrary::{Result, Unstructured};
use chunkwise::{Attention, Config, FeatureMap, Isa, Normaliser, Rule, Shape, State, Strides, Tensors};
use half::{bf16, f16};

use super::family;
use crate::common::*;

/// The largest number of elements of a tensor, a state or scratch for which calls are made; of larger
/// configurations only the checks run.
const MOST: usize = 1 << 16;

pub(super) fn check(u: &mut Unstructured<'_>) -> Result<()> {
    if u.ratio(2, 5)? {
        return family::check(u);
    }
    let mut config = config(u)?;
    let wild = u.arbitrary()?;
    if wild {
        config.rule.scale = u.arbitrary()?;
        config.rule.feature_map = FeatureMap::Relu { eps: u.arbitrary()? };
        config.rule.normaliser = Normaliser::PerChunk { chunk: u.int_in_range(0..=40)?, eps: u.arbitrary()? };
    }
    let Ok(attention) = Attention::new(config) else { return Ok(()) };
    if attention.state_len().max(attention.scratch_len()).max(attention.decode_scratch_len()) > MOST {
        return Ok(());
    }
    if reaches(&config).into_iter().max() > Some(MOST) {
        return too_short(&attention);
    }
    // Without sequences there may be any number of tokens, but the cases of the tests loop over them.
    if config.shape.len > MOST {
        return Ok(());
    }
    if wild || u.arbitrary()? { any_bits(u, &attention) } else { harmless(u, config) }
}

/// A configuration, which is mostly legal.
fn config(u: &mut Unstructured<'_>) -> Result<Config> {
    let batch = size(u, 0, 3)?;
    let len = size(u, 0, 3 * TILE + 2)?;
    let heads = size(u, 1, 4)?;
    let (key, value) = (size(u, 1, 70)?, size(u, 1, 70)?);
    let rule = Rule::linear(normaliser(u)?)
        .feature_map(feature_map(u)?)
        .scale(*u.choose(&[1.0, 0.125, -3.7, 0.0])?)
        .compensated(u.ratio(1, 4)?);
    let mut config = Config::new(rule, Shape::new(batch, len, heads, key, value)).isa(isa(u)?);
    config.shape.q_strides = strides(u, &config, key)?;
    config.shape.k_strides = strides(u, &config, key)?;
    config.shape.v_strides = strides(u, &config, value)?;
    config.shape.o_strides = strides(u, &config, value)?;
    Ok(config)
}

pub(super) fn isa(u: &mut Unstructured<'_>) -> Result<Isa> {
    Ok(*u.choose(&Isa::available().collect::<Vec<_>>())?)
}

pub(super) fn feature_map(u: &mut Unstructured<'_>) -> Result<FeatureMap> {
    Ok(*u.choose(&MAPS)?)
}

pub(super) fn normaliser(u: &mut Unstructured<'_>) -> Result<Normaliser> {
    Ok(match u.int_in_range(0..=3)? {
        0 => Normaliser::None,
        1 => Normaliser::Global { eps: 1e-6 },
        2 => Normaliser::per_chunk(u.int_in_range(1..=40)?),
        _ => Normaliser::per_chunk(u.arbitrary()?),
    })
}

/// A size in a range or, sometimes, any size.
pub(super) fn size(u: &mut Unstructured<'_>, least: usize, most: usize) -> Result<usize> {
    if u.ratio(1, 64)? { u.arbitrary() } else { u.int_in_range(least..=most) }
}

fn strides(u: &mut Unstructured<'_>, config: &Config, dim: usize) -> Result<Strides> {
    let Shape { batch, len, heads, .. } = config.shape;
    let elements = [batch, len, heads, dim].into_iter().fold(1, |all: usize, n| all.saturating_mul(n.max(1)));
    let mut three = |most| -> Result<[usize; 3]> {
        Ok([u.int_in_range(0..=most)?, u.int_in_range(0..=most)?, u.int_in_range(0..=most)?])
    };
    let [order, way, _] = three(5)?;
    let any = |[batch, token, head]: [usize; 3]| Strides { batch, token, head };
    Ok(match way {
        0 => any(three(usize::MAX)?),
        1 => any(three(200)?),
        2.. if elements <= MOST => nested(config, dim, order, three(3)?),
        _ => Strides::bthd(len, heads, dim),
    })
}

/// The numbers of elements that q, k, v and o span.
fn reaches(config: &Config) -> [usize; 4] {
    [
        reach(config, config.shape.q_strides, config.shape.key),
        reach(config, config.shape.k_strides, config.shape.key),
        reach(config, config.shape.v_strides, config.shape.value),
        reach(config, config.shape.o_strides, config.shape.value),
    ]
}

/// A call with tensors that are shorter than they should be, because the required lengths are too large to
/// allocate, must be refused.
fn too_short(attention: &Attention) -> Result<()> {
    let [q, k, v, o] = reaches(attention.config()).map(|reach| vec![SENTINEL; reach.min(MOST)]);
    let (mut written, mut scratch) = (o.clone(), vec![0.0; attention.scratch_len()]);
    let mut state = vec![0.0; attention.state_len()];
    let tensors = Tensors::new(&q[..], &k[..], &v[..], &mut written[..]);
    attention.forward(tensors, State::Carried(&mut state), &mut scratch).expect_err("too short");
    assert!(untouched(&written, &o) && state.iter().all(|x| x.to_bits() == 0), "written");
    Ok(())
}

/// A case of normal numbers, some of which are replaced, whose results rounding errors do not change much.
pub(super) fn numbers(u: &mut Unstructured<'_>, config: Config) -> Result<Case> {
    let mut case = Case::new(config, u.int_in_range(0..=255)?);
    // The relative error of phi from the rounding of exp grows as x decreases (see `strongly_negative_inputs`
    // in `tests/suite/oracle.rs`).
    let Rule { feature_map, normaliser, .. } = config.rule;
    let least = if feature_map == FeatureMap::Elu { -1.5 } else { -4.0 };
    let positive = feature_map == FeatureMap::Identity && normaliser != Normaliser::None;
    for tensor in [&mut case.q, &mut case.k, &mut case.v] {
        for _ in 0..u.int_in_range(0..=8)? {
            let x = f32::from(u.arbitrary::<i8>()?) / 32.0;
            if let Some(at) = tensor.len().checked_sub(1) {
                tensor[u.int_in_range(0..=at)?] = x;
            }
        }
    }
    for x in case.q.iter_mut().chain(&mut case.k) {
        *x = if positive { x.abs() } else { x.max(least) };
    }
    Ok(case)
}

fn harmless(u: &mut Unstructured<'_>, config: Config) -> Result<()> {
    let case = numbers(u, config)?;
    let types: Types = *u.choose(&TYPES)?;
    types(&case);
    Ok(())
}

type Types = fn(&Case);
const TYPES: [Types; 5] = [
    against_oracle,
    same_bits::<bf16, bf16, bf16, bf16>,
    same_bits::<f16, f16, f16, f16>,
    same_bits::<bf16, f16, f32, f16>,
    same_bits::<f32, bf16, f16, f32>,
];

fn against_oracle(case: &Case) {
    let config = &case.config;
    let (o, state) = case.whole_and_state();
    assert!(case.gaps_are_untouched(&o), "forward wrote between the rows of o: {config:?}");
    let (want, want_state) = case.oracle();
    let (size, state_size) = case.without_cancellation().oracle();
    let compare = |o: &[f32], state: &[f32]| {
        let o = gather(config, o);
        assert!(norm_error_of(&o, &want, &size) <= NORM_ERROR, "{config:?}");
        assert!(element_error(&o, &want, &size) <= element_bound(config), "{config:?}");
        // A compensated state also contains rounding errors.
        if !config.rule.compensated {
            assert!(element_error(state, &want_state, &state_size) <= element_bound(config), "{config:?}");
        }
    };
    compare(&o, &state);
    let (mut decoded, mut after) = (case.output(), case.zero_state());
    case.decode(0..config.shape.len, &mut after, &mut decoded);
    assert!(case.gaps_are_untouched(&decoded), "decode wrote between the rows of o: {config:?}");
    compare(&decoded, &after);
    if !config.rule.compensated {
        assert_eq!(first_difference(&decoded, &o), None, "decode is forward: {config:?}");
        assert_eq!(first_difference(&after, &state), None, "decode is forward: {config:?}");
    }
}

/// Checks that other types give the bits of f32 on the widened rows, rounded once.
fn same_bits<Q: Number, K: Number, V: Number, O: Number>(case: &Case) {
    let (q, k, v) = (narrow::<Q>(&case.q), narrow::<K>(&case.k), narrow::<V>(&case.v));
    let wide = Case { config: case.config, q: widen(&q), k: widen(&k), v: widen(&v) };
    let (want, want_state) = wide.whole_and_state();
    let attention = case.attention();
    let (mut o, mut state) = (narrow::<O>(&case.output()), case.zero_state());
    let scratch = &mut vec![f32::NAN; attention.scratch_len()];
    let tensors = Tensors::new(&q[..], &k[..], &v[..], &mut o[..]);
    attention.forward(tensors, State::Final(&mut state), scratch).expect("legal arguments");
    let want = widen(&narrow::<O>(&want));
    assert_eq!(first_difference(&widen(&o), &want), None, "{:?}", case.config);
    assert_eq!(first_difference(&state, &want_state), None, "{:?}", case.config);
}

/// Makes calls with arbitrary bits in every tensor and in the state.
fn any_bits(u: &mut Unstructured<'_>, attention: &Attention) -> Result<()> {
    let config = *attention.config();
    let mut bits = |len: usize| -> Result<Vec<f32>> {
        let pattern = [u.arbitrary::<u32>()?, u.arbitrary()?, u.arbitrary()?, u.arbitrary()?];
        // Four numbers are repeated, and a step is added in each repetition.
        let step = u.int_in_range(0..=3)?;
        let at = |i: usize| f32::from_bits(pattern[i % 4].wrapping_add((i as u32 / 4) << (8 * step)));
        Ok((0..len).map(at).collect())
    };
    let [q, k, v, _] = reaches(&config);
    let mut case = Case { config, q: bits(q)?, k: bits(k)?, v: bits(v)? };
    let mut state = bits(attention.state_len())?;
    if u.arbitrary()? {
        state.fill(0.0);
    }
    let before = state.clone();
    let (mut o, scratch) = (case.output(), &mut vec![f32::NAN; attention.scratch_len()]);
    let [q, k, v] = [&case.q, &case.k, &case.v].map(|x| &x[..]);
    let tensors = Tensors::new(q, k, v, &mut o[..]);
    let done = attention.forward(tensors, State::Carried(&mut state), scratch);
    assert!(case.gaps_are_untouched(&o), "forward wrote between the rows of o: {config:?}");
    if done.is_err() {
        assert!(untouched(&o, &case.output()) && untouched(&state, &before), "written: {config:?}");
    } else if config.shape.len > 0 {
        case.config.shape.len = 1;
        let scratch = &mut vec![f32::NAN; attention.decode_scratch_len()];
        let [q, k, v] = [&case.q, &case.k, &case.v].map(|x| &x[..]);
        let mut o = case.output();
        attention.decode(Tensors::new(q, k, v, &mut o[..]), &mut state, scratch).expect("legal arguments");
        assert!(case.gaps_are_untouched(&o), "decode wrote between the rows of o: {config:?}");
    }
    Ok(())
}
