//! Gradients with any sizes, strides, types and states. A refused call writes nothing, and what must be
//! refused is refused. An accepted call writes only the rows of its gradients; their bits do not depend on
//! threads, nor on tokens that causality excludes, and they are finite for harmless numbers.

use arbitrary::{Result, Unstructured};
use chunkwise::backward::{Gradients, Inputs};
use chunkwise::{Attention, Config, FeatureMap, Gate, Normaliser, Rule, Shape, Strides};
use half::{bf16, f16};

use super::attention::{feature_map, isa, normaliser, size};
use crate::common::*;

/// The largest number of elements of a tensor or of the states for which calls are made.
const MOST: usize = 1 << 16;
/// The largest number of elements of scratch, which is several times as long as a state.
const MOST_SCRATCH: usize = 1 << 19;

/// The arguments of a call. The fields can be changed so that they do not fit together.
#[derive(Clone)]
struct Given {
    config: Config,
    /// q, k, v and the gradient of o.
    read: [Vec<f32>; 4],
    /// g, contiguous, and the length of its gradient; no elements without a gate.
    g: Vec<f32>,
    g_gradient: usize,
    initial: Option<Vec<f32>>,
    last: Option<Vec<f32>>,
    sequences: Option<Vec<u32>>,
    /// The lengths of the gradients of q, k and v.
    written: [usize; 3],
    /// The length of the gradient of the initial state.
    initial_gradient: Option<usize>,
    /// Elements of scratch that are missing.
    missing: usize,
    /// An index into [`TYPES`].
    types: usize,
}

/// What a call has written, and its result.
struct Got {
    done: bool,
    /// The gradients of q, k and v.
    written: [Vec<f32>; 3],
    /// What they contained before.
    sentinel: f32,
    g: Vec<f32>,
    initial: Option<Vec<f32>>,
    scratch: Vec<f32>,
}

type Types = fn(&Given, usize) -> Got;
const TYPES: [Types; 5] =
    [run::<f32, f32>, run::<bf16, bf16>, run::<f16, f16>, run::<bf16, f32>, run::<f32, bf16>];
/// The index of f16.
const F16: usize = 2;

pub(super) fn check(u: &mut Unstructured<'_>) -> Result<()> {
    let config = config(u)?;
    let Ok(attention) = Attention::new(config) else { return Ok(()) };
    let scratch = attention.backward_scratch_len();
    let [q, k, v, o] = layouts(&config).map(|(strides, dim)| reach(&config, strides, dim));
    if attention.state_len().max(config.shape.len) > MOST || scratch.saturating_mul(4) > MOST_SCRATCH {
        return Ok(());
    }
    if q.max(k).max(v).max(o) > MOST {
        return too_short(config, [q, k, v, o]);
    }
    let given = given(u, &attention)?;
    match u.int_in_range(0..=4)? {
        0 => wrong(u, given),
        1 => any_bits(u, given),
        2 => causality(u, &given),
        _ => harmless(u, &given),
    }
}

/// A configuration, which mostly has gradients: only its strides may be refused.
fn config(u: &mut Unstructured<'_>) -> Result<Config> {
    let ragged = u.ratio(1, 4)?;
    let batch = if ragged { 1 } else { size(u, 0, 3)? };
    let (len, heads) = (size(u, 0, 3 * TILE + 2)?, size(u, 1, 3)?);
    let (key, value) = (size(u, 1, 70)?, size(u, 1, 70)?);
    let rule =
        Rule::linear(normaliser(u)?).feature_map(feature_map(u)?).scale(*u.choose(&[1.0, 0.125, -3.7, 0.0])?);
    let gated = Rule::gated(Gate::Scalar).feature_map(rule.feature_map);
    let gated = if u.arbitrary()? { gated } else { gated.normaliser(Normaliser::Global { eps: 1e-6 }) };
    let rule = if u.ratio(1, 3)? { gated } else { rule };
    let mut config = Config::new(rule, Shape::new(batch, len, heads, key, value)).isa(isa(u)?);
    let all =
        [batch, len, heads, key.max(value)].iter().fold(1, |all: usize, n| all.saturating_mul((*n).max(1)));
    if all <= MOST && u.arbitrary()? {
        let mut layout = || -> Result<(usize, [usize; 3])> {
            Ok((
                u.int_in_range(0..=5)?,
                [u.int_in_range(0..=3)?, u.int_in_range(0..=3)?, u.int_in_range(0..=3)?],
            ))
        };
        config = with_layouts(config, [layout()?, layout()?, layout()?, layout()?]);
    }
    if ragged {
        // Tokens belong to a sequence.
        config.shape = config.shape.with_sequences(u.int_in_range(len.min(1)..=4)?);
    }
    Ok(config)
}

/// The strides and the row lengths of q, k, v and o.
fn layouts(config: &Config) -> [(Strides, usize); 4] {
    let Shape { key, value, q_strides, k_strides, v_strides, o_strides, .. } = config.shape;
    [(q_strides, key), (k_strides, key), (v_strides, value), (o_strides, value)]
}

/// The configuration of the tensors: those of a ragged batch have one batch row, or none without sequences.
fn tensors(mut config: Config) -> Config {
    if config.shape.ragged {
        config.shape.batch = config.shape.batch.min(1);
    }
    config
}

/// Legal arguments of normal numbers.
fn given(u: &mut Unstructured<'_>, attention: &Attention) -> Result<Given> {
    let config = *attention.config();
    let rows = tensors(config);
    let seed = u.int_in_range(0..=255)?;
    let Case { q, k, v, .. } = Case::new(rows, seed);
    let output = normals(seed + 1000, reach(&rows, config.shape.o_strides, config.shape.value));
    let written = [q.len(), k.len(), v.len()];
    let mut sequences = None;
    if config.shape.ragged {
        let mut begins = vec![0; config.shape.batch + 1];
        for begin in begins.iter_mut().skip(1) {
            *begin = u.int_in_range(0..=config.shape.len)? as u32;
        }
        begins.sort_unstable();
        if config.shape.batch > 0 {
            begins[config.shape.batch] = config.shape.len as u32;
        }
        sequences = Some(begins);
    }
    let mut initial: Vec<f32> = normals(seed + 2000, attention.state_len()).iter().map(|x| x.abs()).collect();
    if let Normaliser::PerChunk { chunk, .. } = config.rule.normaliser {
        let count = u.int_in_range(0..=chunk.min(40) - 1)? as f32;
        let head = initial.len().checked_div(config.shape.batch * config.shape.heads).unwrap_or(1).max(1);
        for head in initial.chunks_mut(head) {
            head[head.len() - 1] = count;
        }
    }
    let last = normals(seed + 3000, initial.len());
    let states: [bool; 3] = u.arbitrary()?;
    let gates =
        if config.rule.gate == Gate::None { 0 } else { rows.shape.batch * rows.shape.len * rows.shape.heads };
    Ok(Given {
        // Some decays are 0.
        g: normals(seed + 4000, gates)
            .iter()
            .map(|x| if *x > 2.0 { f32::NEG_INFINITY } else { -x.abs() })
            .collect(),
        g_gradient: if u.arbitrary()? { gates } else { 0 },
        config,
        read: [q, k, v, output],
        initial_gradient: states[2].then_some(initial.len()),
        initial: states[0].then_some(initial),
        last: states[1].then_some(last),
        sequences,
        written,
        missing: 0,
        types: u.int_in_range(0..=TYPES.len() - 1)?,
    })
}

/// Makes the call with tensors of type E, and gradients of type G.
fn run<E: Number, G: Number>(given: &Given, threads: usize) -> Got {
    let [q, k, v] = [0, 1, 2].map(|i| narrow::<E>(&given.read[i]));
    let output = narrow::<G>(&given.read[3]);
    let sentinel = G::narrow(SENTINEL);
    let [mut dq, mut dk, mut dv] = given.written.map(|len| vec![sentinel; len]);
    let mut initial = given.initial_gradient.map(|len| vec![SENTINEL; len]);
    let attention = Attention::new(given.config.threads(threads)).expect("legal arguments");
    let need = attention.backward_scratch_len();
    let mut scratch = vec![SENTINEL; need.saturating_sub(given.missing)];
    let mut inputs = Inputs::new(&q[..], &k[..], &v[..], &output[..]);
    if let Some(state) = &given.initial {
        inputs = inputs.initial(state);
    }
    if let Some(gradient) = &given.last {
        inputs = inputs.last(gradient);
    }
    if let Some(begins) = &given.sequences {
        inputs = inputs.sequences(begins);
    }
    let mut gradients = Gradients::new(&mut dq[..], &mut dk[..], &mut dv[..]);
    if let Some(state) = &mut initial {
        gradients = gradients.initial(state);
    }
    let mut g = vec![SENTINEL; given.g_gradient];
    if !given.g.is_empty() {
        inputs = inputs.gate(&given.g[..]);
    }
    if given.g_gradient > 0 {
        gradients = gradients.gate(&mut g[..]);
    }
    let done = attention.backward(inputs, gradients, &mut scratch).is_ok();
    let written = [widen(&dq), widen(&dk), widen(&dv)];
    Got { done, written, sentinel: sentinel.widen(), g, initial, scratch }
}

impl Given {
    fn run(&self, threads: usize) -> Got {
        let got = TYPES[self.types](self, threads);
        let only = |x: &[f32], sentinel: f32| x.iter().all(|x| x.to_bits() == sentinel.to_bits());
        let mut rest = got.written.clone();
        if got.done {
            for (rest, (strides, dim)) in rest.iter_mut().zip(layouts(&self.config)) {
                for (b, t, h) in rows(&tensors(self.config)) {
                    rest[at(strides, b, t, h)..][..dim].fill(got.sentinel);
                }
            }
        } else {
            let states = got.initial.iter().chain([&got.g, &got.scratch]).all(|x| only(x, SENTINEL));
            assert!(states, "a refused call has written: {:?}", self.config);
        }
        assert!(
            rest.iter().all(|x| only(x, got.sentinel)),
            "written, accepted {}: {:?}",
            got.done,
            self.config
        );
        got
    }
}

/// The rows of the gradients of q, k and v of some tokens.
fn rows_of(given: &Given, got: &Got, tokens: core::ops::Range<usize>) -> [Vec<f32>; 3] {
    let layouts = layouts(&given.config);
    [0, 1, 2].map(|i| {
        let (strides, dim) = layouts[i];
        rows(&tensors(given.config))
            .filter(|(_, t, _)| tokens.contains(t))
            .flat_map(|(b, t, h)| got.written[i][at(strides, b, t, h)..][..dim].iter().copied())
            .collect()
    })
}

/// Whether two calls have written the same bits; any NaN is the same as another.
fn same(a: &[f32], b: &[f32]) -> bool {
    let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    a.len() == b.len() && a.iter().zip(b).all(same)
}

/// Another number of threads gives the same bits.
fn on_threads(u: &mut Unstructured<'_>, given: &Given, want: &Got) -> Result<()> {
    let threads = u.int_in_range(2..=4)?;
    let got = given.run(threads);
    assert!(got.done, "{threads} threads: {:?}", given.config);
    for (got, want) in got.written.iter().zip(&want.written) {
        assert!(same(got, want), "{threads} threads: {:?}", given.config);
    }
    assert!(same(&got.g, &want.g), "{threads} threads, g: {:?}", given.config);
    let [got, want] = [&got.initial, &want.initial].map(|state| state.as_deref().unwrap_or_default());
    assert!(same(got, want), "{threads} threads, the initial state: {:?}", given.config);
    Ok(())
}

/// Small numbers have finite gradients, which do not depend on threads.
fn harmless(u: &mut Unstructured<'_>, given: &Given) -> Result<()> {
    let got = given.run(1);
    assert!(got.done, "refused: {:?}", given.config);
    let rows = rows_of(given, &got, 0..given.config.shape.len);
    // Numbers that f32 can hold may be too large for f16, whose largest one is 65504.
    let is_f16 = given.types == F16;
    let finite = |x: &[f32]| x.iter().all(|x| x.is_finite());
    assert!(is_f16 || rows.iter().all(|x| finite(x)), "not finite: {:?}", given.config);
    assert!(finite(&got.g), "g: {:?}", given.config);
    if let Some(state) = &got.initial {
        assert!(finite(state), "the initial state: {:?}", given.config);
    }
    on_threads(u, given, &got)
}

/// Arbitrary bits in some of the arguments crash nothing.
fn any_bits(u: &mut Unstructured<'_>, mut given: Given) -> Result<()> {
    given.config.rule.scale = u.arbitrary::<f32>()?;
    given.config.rule.feature_map = FeatureMap::Relu { eps: u.arbitrary()? };
    if Attention::new(given.config).is_err() {
        return Ok(());
    }
    let pattern: [u32; 4] = u.arbitrary()?;
    let step = u.int_in_range(0..=3)?;
    let counted = matches!(given.config.rule.normaliser, Normaliser::PerChunk { .. });
    let initial = given.initial.as_mut().filter(|_| !counted);
    for tensor in given.read.iter_mut().chain(initial).chain(&mut given.last) {
        if u.ratio(2, 3)? {
            for (i, x) in tensor.iter_mut().enumerate() {
                *x = f32::from_bits(pattern[i % 4].wrapping_add((i as u32 / 4) << (8 * step)));
            }
        }
    }
    let got = given.run(1);
    assert!(got.done, "refused: {:?}", given.config);
    on_threads(u, &given, &got)
}

/// Replaces the numbers of some tokens in a tensor.
fn replace(tensor: &mut [f32], config: &Config, (strides, dim): (Strides, usize), from: usize, to: usize) {
    for (b, t, h) in rows(&tensors(*config)).filter(|(_, t, _)| (from..to).contains(t)) {
        // The numbers stay positive, where they must be.
        tensor[at(strides, b, t, h)..][..dim].iter_mut().for_each(|x| *x = 1.5 * x.abs() + 0.25);
    }
}

/// The gradient of q at a token does not depend on later tokens, and those of k and v do not depend on the
/// gradients of o, nor on q, of earlier ones.
fn causality(u: &mut Unstructured<'_>, given: &Given) -> Result<()> {
    let len = given.config.shape.len;
    let token = u.int_in_range(0..=len)?;
    let (before, layouts) = (given.run(1), layouts(&given.config));
    let changed = |which: &[usize], from: usize, to: usize| {
        let mut given = given.clone();
        for &i in which {
            replace(&mut given.read[i], &given.config, layouts[i], from, to);
        }
        given.run(1)
    };
    let future = changed(&[0, 1, 2, 3], token, len);
    let [q, ..] = rows_of(given, &future, 0..token);
    let [want, ..] = rows_of(given, &before, 0..token);
    assert!(same(&q, &want), "the gradient of q from token {token} on: {:?}", given.config);
    let past = changed(&[0, 3], 0, token);
    let [_, k, v] = rows_of(given, &past, token..len);
    let [_, want_k, want_v] = rows_of(given, &before, token..len);
    assert!(same(&k, &want_k) && same(&v, &want_v), "k and v before {token}: {:?}", given.config);
    Ok(())
}

/// Makes a call with one change that makes it invalid.
fn wrong(u: &mut Unstructured<'_>, mut given: Given) -> Result<()> {
    let shorter = |u: &mut Unstructured<'_>, len: usize| u.int_in_range(0..=len.saturating_sub(1));
    let way = u.int_in_range(0..=14)?;
    let must = match way {
        0..=3 => {
            let tensor = &mut given.read[way];
            let empty = tensor.is_empty();
            tensor.truncate(shorter(u, tensor.len())?);
            !empty
        }
        4..=6 => {
            let len = &mut given.written[way - 4];
            let empty = *len == 0;
            *len = shorter(u, *len)?;
            !empty
        }
        7 => given.initial.as_mut().map(|state| state.push(0.0)).is_some(),
        8 => given.last.as_mut().map(|state| state.pop()).is_some_and(|x| x.is_some()),
        9 => given.initial_gradient.as_mut().map(|len| *len += 1).is_some(),
        10 => {
            given.missing = 1 + shorter(u, MOST)?;
            true
        }
        11 => wrong_sequences(u, &mut given)?,
        12 => wrong_rule(u, &mut given)?,
        13 => {
            // A gate that is too short, or one more without a rule that takes it.
            if given.g.pop().is_none() {
                given.g = vec![0.0];
                given.config.rule.gate == Gate::None
            } else {
                true
            }
        }
        _ => return any_strides(u, given),
    };
    if Attention::new(given.config).is_err() {
        return Ok(());
    }
    let got = given.run(1);
    assert_eq!(got.done, !must, "way {way}: {:?}", given.config);
    Ok(())
}

/// Replaces the beginnings of sequences. Returns whether the call must be refused.
fn wrong_sequences(u: &mut Unstructured<'_>, given: &mut Given) -> Result<bool> {
    let Shape { batch, len, ragged, .. } = given.config.shape;
    given.sequences = match u.arbitrary()? {
        true if ragged => None,
        _ => Some(u.arbitrary::<[u32; 5]>()?[..u.int_in_range(0..=5)?].to_vec()),
    };
    Ok(given.sequences.as_ref().is_none_or(|begins| {
        !ragged
            || begins.len() != batch + 1
            || begins[0] != 0
            || !begins.is_sorted()
            || begins[batch] as usize != len
    }))
}

/// Changes the rule to one that has no gradients. Returns whether the call must be refused.
fn wrong_rule(u: &mut Unstructured<'_>, given: &mut Given) -> Result<bool> {
    let Rule { scale, .. } = given.config.rule;
    let rule = match u.int_in_range(0..=4)? {
        0 => Rule::linear(Normaliser::None).compensated(true),
        1 => Rule::linear(Normaliser::None).qk_norm(1e-6),
        2 => Rule::linear(Normaliser::None).causal(false),
        3 => Rule::gated(Gate::Key),
        _ => Rule::delta(*u.choose(&[Gate::None, Gate::Scalar, Gate::Key])?),
    };
    given.config.rule = rule.scale(scale);
    given.g.clear();
    given.g_gradient = 0;
    Ok(true)
}

/// Makes a call with any strides of q, k or v. It must be refused if rows overlap, and may be refused if not.
fn any_strides(u: &mut Unstructured<'_>, mut given: Given) -> Result<()> {
    let which = u.int_in_range(0..=2)?;
    let mut any = || u.int_in_range(0..=150);
    let strides = Strides { batch: any()?, token: any()?, head: any()? };
    let shape = &mut given.config.shape;
    *[&mut shape.q_strides, &mut shape.k_strides, &mut shape.v_strides][which] = strides;
    let dim = if which < 2 { shape.key } else { shape.value };
    let len = reach(&tensors(given.config), strides, dim);
    if len > MOST || Attention::new(given.config).is_err() {
        return Ok(());
    }
    (given.read[which], given.written[which]) = (vec![0.5; len], len);
    let mut rest = vec![false; len];
    let overlap = rows(&tensors(given.config)).any(|(b, t, h)| {
        let row = &mut rest[at(strides, b, t, h)..][..dim];
        let met = row.contains(&true);
        row.fill(true);
        met
    });
    let got = given.run(1);
    assert!(!(got.done && overlap), "rows overlap: {:?}", given.config);
    Ok(())
}

/// A call with tensors that are shorter than they should be, because the required lengths are too large to
/// allocate, must be refused.
fn too_short(config: Config, reach: [usize; 4]) -> Result<()> {
    let read = reach.map(|reach| vec![SENTINEL; reach.min(MOST)]);
    let written = [0, 1, 2].map(|i| read[i].len());
    let sequences = config.shape.ragged.then(|| vec![0, config.shape.len as u32]);
    let given = Given {
        config,
        read,
        g: vec![],
        g_gradient: 0,
        initial: None,
        last: None,
        sequences,
        written,
        initial_gradient: None,
        missing: 0,
        types: 0,
    };
    assert!(!given.run(1).done, "too short: {config:?}");
    Ok(())
}
