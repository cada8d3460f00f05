//! Cases with gates, the delta rule, grouped heads and ragged batches: their tensors, under any strides and
//! in any type, and the oracle for them.

mod layout;
mod oracle;

use std::ops::Range;

use chunkwise::{
    Attention, BetaMap, Config, FeatureMap, Gate, GateMap, HeadOrder, Heads, Isa, Normaliser, Rule, Shape,
    State, Strides, Tensors, Update,
};

pub(crate) use self::layout::Which;
use super::{Number, SENTINEL, at, narrow, normals, widen};

/// The documented norm error of the delta rule with random keys; [`super::NORM_ERROR`] is that of the other
/// rules.
pub(crate) const DELTA_ERROR: f64 = 3e-6;

/// A configuration, tensors that are as long as its strides reach, and the beginnings of the sequences of a
/// ragged batch.
#[derive(Clone)]
pub(crate) struct FamilyCase {
    pub(crate) config: Config,
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
    pub(crate) g: Vec<f32>,
    pub(crate) beta: Vec<f32>,
    pub(crate) a_log: Vec<f32>,
    pub(crate) dt_bias: Vec<f32>,
    pub(crate) sequences: Option<Vec<u32>>,
    /// The state before the first token, `[B, H, state of one head]`.
    pub(crate) initial: Vec<f32>,
}

/// Every rule with a gate or the delta rule, with a name for messages.
pub(crate) fn rules() -> Vec<(&'static str, Rule)> {
    let global = Normaliser::Global { eps: 1e-6 };
    vec![
        ("scalar gate", Rule::gated(Gate::Scalar)),
        ("key gate", Rule::gated(Gate::Key)),
        (
            "scalar gate, normalised",
            Rule::gated(Gate::Scalar).feature_map(FeatureMap::Elu).normaliser(global),
        ),
        ("key gate, normalised", Rule::gated(Gate::Key).feature_map(FeatureMap::RELU).normaliser(global)),
        ("delta", Rule::delta(Gate::None).qk_norm(1e-6)),
        ("gated delta", Rule::delta(Gate::Scalar).qk_norm(1e-6)),
        ("gated delta, key gate", Rule::delta(Gate::Key).qk_norm(1e-6)),
    ]
}

/// Every map of a gate.
pub(crate) const GATE_MAPS: [GateMap; 4] =
    [GateMap::Log, GateMap::Linear, GateMap::Softplus, GateMap::Bounded { lower: -5.0 }];

/// Every map of beta.
pub(crate) const BETA_MAPS: [BetaMap; 3] = [BetaMap::Given, BetaMap::Sigmoid, BetaMap::TwiceSigmoid];

/// Random numbers, uniform between two bounds.
pub(crate) fn uniform(seed: u64, len: usize, from: f32, to: f32) -> Vec<f32> {
    let mut state = seed ^ 0x5851_f42d_4c95_7f2d;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            from + (to - from) * ((state >> 40) as f32 / (1u64 << 24) as f32)
        })
        .collect()
}

/// Whether a map has the parameters A_log and dt_bias.
pub(crate) fn has_parameters(map: GateMap) -> bool {
    matches!(map, GateMap::Softplus | GateMap::Bounded { .. })
}

/// The head, of `few` heads, that head `head` of `many` heads shares.
pub(crate) fn share(groups: Heads, head: usize, many: usize, few: usize) -> usize {
    match groups.order {
        HeadOrder::Tiled => head % few,
        _ => head / (many / few),
    }
}

impl FamilyCase {
    /// A case with the strides of `config`, normal q, k and v, decays between 1/e and 1, betas between 0 and
    /// 1 and a state that is not zero.
    pub(crate) fn new(config: Config, seed: u64) -> Self {
        let Config { rule, shape, .. } = config;
        let positive = rule.normaliser != Normaliser::None;
        let gates = match rule.gate {
            Gate::Scalar => 1,
            Gate::Key => shape.key,
            _ => 0,
        };
        let (low, high) = match rule.gate_map {
            GateMap::Log => (-1.0, 0.0),
            GateMap::Linear => (0.4, 1.0),
            _ => (-3.0, 3.0),
        };
        let mapped = has_parameters(rule.gate_map);
        let state = shape.heads * (shape.key * shape.value + if positive { shape.key } else { 0 });
        let delta = rule.update == Update::Delta;
        let mut initial = normals(8 * seed + 7, shape.batch * state);
        if positive {
            initial.iter_mut().for_each(|x| *x = x.abs());
        }
        let mut case = Self {
            config,
            q: vec![],
            k: vec![],
            v: vec![],
            g: vec![],
            beta: vec![],
            a_log: if mapped { uniform(8 * seed + 5, shape.heads, -1.0, 0.5) } else { vec![] },
            dt_bias: if mapped { uniform(8 * seed + 6, shape.heads * gates, -1.0, 1.0) } else { vec![] },
            sequences: None,
            initial,
        };
        let len = |which: Which| case.reach(which);
        let [q, k, v] = [Which::Q, Which::K, Which::V].map(len);
        let g = if gates > 0 { len(Which::G) } else { 0 };
        let beta = if delta { len(Which::Beta) } else { 0 };
        (case.q, case.k, case.v) = (normals(8 * seed, q), normals(8 * seed + 1, k), normals(8 * seed + 2, v));
        case.g = uniform(8 * seed + 3, g, low, high);
        case.beta = match rule.beta_map {
            BetaMap::Given => uniform(8 * seed + 4, beta, 0.0, 1.0),
            _ => uniform(8 * seed + 4, beta, -3.0, 3.0),
        };
        if rule.feature_map == FeatureMap::Identity && positive {
            // Otherwise the sum by which outputs are divided might be arbitrarily close to zero.
            case.q.iter_mut().chain(&mut case.k).for_each(|x| *x = x.abs());
        }
        case
    }

    /// A case of a rule with these sizes B, T, H, K and V, contiguous.
    pub(crate) fn of(rule: Rule, [batch, len, heads, key, value]: [usize; 5]) -> Self {
        Self::new(Config::new(rule, Shape::new(batch, len, heads, key, value)), 1)
    }

    /// A ragged batch of sequences of these lengths.
    pub(crate) fn ragged(rule: Rule, lens: &[usize], [heads, key, value]: [usize; 3], seed: u64) -> Self {
        let mut begins = vec![0];
        begins.extend(lens.iter().scan(0, |end, len| {
            *end += *len as u32;
            Some(*end)
        }));
        let shape = Shape::new(1, lens.iter().sum(), heads, key, value).with_sequences(lens.len());
        Self { sequences: Some(begins), ..Self::new(Config::new(rule, shape), seed) }
    }

    /// The same case after a change.
    pub(crate) fn changed(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut case = self.clone();
        change(&mut case);
        case
    }

    /// The same case on another instruction set.
    pub(crate) fn on(&self, isa: Isa) -> Self {
        Self { config: self.config.isa(isa), ..self.clone() }
    }

    /// The same case with a state of zeros.
    pub(crate) fn at_zero(&self) -> Self {
        self.changed(|case| case.initial.fill(0.0))
    }

    /// The documented bound of the norm error.
    pub(crate) fn bound(&self) -> f64 {
        if self.config.rule.update == Update::Delta { DELTA_ERROR } else { super::NORM_ERROR }
    }

    pub(crate) fn attention(&self) -> Attention {
        Attention::new(self.config).expect("a legal configuration")
    }

    /// Whether the tokens of this case can be decoded one by one.
    pub(crate) fn decodes(&self) -> bool {
        self.config.rule.causal && !self.config.shape.ragged
    }

    /// An output before a call, filled with the sentinel.
    pub(crate) fn output(&self) -> Vec<f32> {
        vec![SENTINEL; self.reach(Which::O)]
    }

    /// All tensors of the case, with this output.
    pub(crate) fn tensors<'a>(&'a self, o: &'a mut [f32]) -> Tensors<'a> {
        let tensors = Tensors::new(&self.q[..], &self.k[..], &self.v[..], o)
            .gate(&self.g[..])
            .beta(&self.beta[..])
            .gate_parameters(&self.a_log, &self.dt_bias);
        match &self.sequences {
            Some(sequences) => tensors.sequences(sequences),
            None => tensors,
        }
    }

    /// Computes all tokens from the initial state; returns o and the last state.
    pub(crate) fn forward(&self) -> (Vec<f32>, Vec<f32>) {
        let (attention, mut o, mut state) = (self.attention(), self.output(), self.initial.clone());
        let scratch = &mut vec![f32::NAN; attention.scratch_len()];
        attention
            .forward(self.tensors(&mut o), State::Carried(&mut state), scratch)
            .expect("legal arguments");
        (o, state)
    }

    /// Computes the same token by token.
    pub(crate) fn decode(&self) -> (Vec<f32>, Vec<f32>) {
        self.pieces((0..self.config.shape.len).map(|token| (token..token + 1, true)))
    }

    /// Computes the same by forward in pieces that begin at these tokens.
    pub(crate) fn forwards(&self, begins: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let len = self.config.shape.len;
        let ends = begins.iter().copied().chain([len]).filter(|end| *end > 0);
        let mut begin = 0;
        self.pieces(ends.map(|end| {
            let piece = (begin..end, false);
            begin = end;
            piece
        }))
    }

    /// Computes the same in pieces, each by decode if its flag is set and by forward otherwise.
    pub(crate) fn pieces(
        &self,
        pieces: impl IntoIterator<Item = (Range<usize>, bool)>,
    ) -> (Vec<f32>, Vec<f32>) {
        self.pieces_in::<f32>(pieces)
    }

    /// Computes the same with tensors of another type, and widens o.
    pub(crate) fn pieces_in<E: Number>(
        &self,
        pieces: impl IntoIterator<Item = (Range<usize>, bool)>,
    ) -> (Vec<f32>, Vec<f32>) {
        let Shape { len, q_strides, k_strides, v_strides, o_strides, .. } = self.config.shape;
        let (g_strides, beta_strides) = (self.strides(Which::G), self.strides(Which::Beta));
        let [q, k, v, g, beta] = [&self.q, &self.k, &self.v, &self.g, &self.beta].map(|x| narrow::<E>(x));
        let (mut o, mut state) = (narrow::<E>(&self.output()), self.initial.clone());
        let tail = |x: &'_ [E], strides: Strides, token: usize| -> Range<usize> {
            (token * strides.token).min(x.len())..x.len()
        };
        for (piece, decode) in pieces {
            assert!(decode || !self.config.shape.ragged || piece == (0..len), "a ragged batch is not cut");
            let mut config = self.config;
            config.shape.len = piece.len();
            let attention = Attention::new(config).expect("a legal configuration");
            let token = piece.start;
            let o_range = tail(&o, o_strides, token);
            let mut tensors = Tensors::new(
                &q[tail(&q, q_strides, token)],
                &k[tail(&k, k_strides, token)],
                &v[tail(&v, v_strides, token)],
                &mut o[o_range],
            )
            .gate(&g[tail(&g, g_strides, token)])
            .beta(&beta[tail(&beta, beta_strides, token)])
            .gate_parameters(&self.a_log, &self.dt_bias);
            if let Some(sequences) = &self.sequences {
                tensors = tensors.sequences(sequences);
            }
            let scratch = &mut vec![f32::NAN; attention.scratch_len().max(attention.decode_scratch_len())];
            let done = if decode {
                attention.decode(tensors, &mut state, scratch)
            } else {
                attention.forward(tensors, State::Carried(&mut state), scratch)
            };
            done.expect("legal arguments");
        }
        (widen(&o), state)
    }

    /// The same case with its tensors rounded to another type.
    pub(crate) fn rounded<E: Number>(&self) -> Self {
        self.changed(|case| {
            for x in [&mut case.q, &mut case.k, &mut case.v, &mut case.g, &mut case.beta] {
                *x = widen(&narrow::<E>(x));
            }
        })
    }

    /// The rows of o, contiguous `[B, T, Ho, V]`.
    pub(crate) fn gather(&self, o: &[f32]) -> Vec<f32> {
        let value = self.config.shape.value;
        self.rows(Which::O)
            .flat_map(|[b, t, h]| &o[at(self.strides(Which::O), b, t, h)..][..value])
            .copied()
            .collect()
    }

    /// Whether the elements between the rows of o are still the sentinel.
    pub(crate) fn gaps_are_untouched(&self, o: &[f32]) -> bool {
        let mut o = o.to_vec();
        for [b, t, h] in self.rows(Which::O) {
            o[at(self.strides(Which::O), b, t, h)..][..self.config.shape.value].fill(SENTINEL);
        }
        super::untouched(&o, &self.output())
    }
}
