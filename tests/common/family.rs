//! Cases of rules with gates, the delta rule, grouped heads and ragged batches, and the oracle over them.

use chunkwise::reference::{Recurrence, Token, beta, decay};
use chunkwise::{
    Attention, Config, FeatureMap, Gate, GateMap, Heads, Isa, Normaliser, Rule, Shape, State, Tensors, Update,
};

use super::normals;

/// A configuration of contiguous tensors, their numbers, and the beginnings of sequences of a ragged batch.
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
    /// `[N, H, state]`.
    pub(crate) initial: Vec<f32>,
}

/// Every rule with a gate or the delta, by the name that a message calls it.
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

/// Numbers between two bounds, evenly.
pub(crate) fn uniform(seed: u64, len: usize, from: f32, to: f32) -> Vec<f32> {
    let mut state = seed ^ 0x5851_f42d_4c95_7f2d;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            from + (to - from) * ((state >> 40) as f32 / (1u64 << 24) as f32)
        })
        .collect()
}

impl FamilyCase {
    /// Normal q, k and v; decays between 1/e and 1, betas between 0 and 1, and a state that is not zero.
    pub(crate) fn new(config: Config, seed: u64) -> Self {
        let Config { rule, shape, .. } = config;
        let Heads { query, key, value, .. } = shape.groups;
        let rows = if shape.ragged { shape.len } else { shape.batch * shape.len };
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
        let mapped = matches!(rule.gate_map, GateMap::Softplus | GateMap::Bounded { .. });
        let state = shape.heads * (shape.key * shape.value + if positive { shape.key } else { 0 });
        let delta = rule.update == Update::Delta;
        let mut initial = normals(8 * seed + 7, shape.batch * state);
        if positive {
            initial.iter_mut().for_each(|x| *x = x.abs());
        }
        Self {
            config,
            q: normals(8 * seed, rows * query * shape.key),
            k: normals(8 * seed + 1, rows * key * shape.key),
            v: normals(8 * seed + 2, rows * value * shape.value),
            g: uniform(8 * seed + 3, rows * shape.heads * gates, low, high),
            beta: if delta { uniform(8 * seed + 4, rows * shape.heads, 0.0, 1.0) } else { vec![] },
            a_log: if mapped { uniform(8 * seed + 5, shape.heads, -1.0, 0.5) } else { vec![] },
            dt_bias: if mapped { uniform(8 * seed + 6, shape.heads * gates, -1.0, 1.0) } else { vec![] },
            sequences: None,
            initial,
        }
    }

    /// A rule on B, T, H, K, V.
    pub(crate) fn of(rule: Rule, [batch, len, heads, key, value]: [usize; 5]) -> Self {
        Self::new(Config::new(rule, Shape::new(batch, len, heads, key, value)), 1)
    }

    /// The same case on another instruction set.
    pub(crate) fn on(&self, isa: Isa) -> Self {
        Self { config: self.config.isa(isa), ..self.clone() }
    }

    /// Checked.
    pub(crate) fn attention(&self) -> Attention {
        Attention::new(self.config).expect("a legal configuration")
    }

    /// An output that nothing was written to.
    pub(crate) fn output(&self) -> Vec<f32> {
        let Shape { batch, len, groups, value, ragged, .. } = self.config.shape;
        vec![super::SENTINEL; if ragged { 1 } else { batch } * len * groups.output() * value]
    }

    /// All tensors.
    pub(crate) fn tensors<'a>(&'a self, o: &'a mut [f32]) -> Tensors<'a> {
        let tensors = Tensors::new(&self.q, &self.k, &self.v, o)
            .gate(&self.g)
            .beta(&self.beta)
            .gate_parameters(&self.a_log, &self.dt_bias);
        match &self.sequences {
            Some(sequences) => tensors.sequences(sequences),
            None => tensors,
        }
    }

    /// All tokens from the initial state: o and the state after them.
    pub(crate) fn forward(&self) -> (Vec<f32>, Vec<f32>) {
        let (attention, mut o, mut state) = (self.attention(), self.output(), self.initial.clone());
        let scratch = &mut vec![f32::NAN; attention.scratch_len()];
        attention
            .forward(self.tensors(&mut o), State::Carried(&mut state), scratch)
            .expect("legal arguments");
        (o, state)
    }

    /// The same token by token; a batch of one sequence.
    pub(crate) fn decode(&self) -> (Vec<f32>, Vec<f32>) {
        assert!(self.config.shape.batch == 1 && !self.config.shape.ragged, "one sequence");
        let (attention, mut o, mut state) = (self.attention(), self.output(), self.initial.clone());
        let scratch = &mut vec![f32::NAN; attention.decode_scratch_len()];
        let len = self.config.shape.len;
        let row = |x: &[f32], t: usize| x.len() / len * t..x.len() / len * (t + 1);
        for t in 0..len {
            let o_row = row(&o, t);
            let tensors = Tensors::new(
                &self.q[row(&self.q, t)],
                &self.k[row(&self.k, t)],
                &self.v[row(&self.v, t)],
                &mut o[o_row],
            )
            .gate(&self.g[row(&self.g, t)])
            .beta(&self.beta[row(&self.beta, t)])
            .gate_parameters(&self.a_log, &self.dt_bias);
            attention.decode(tensors, &mut state, scratch).expect("legal arguments");
        }
        (o, state)
    }

    /// The oracle's outputs and states.
    pub(crate) fn oracle(&self) -> (Vec<f64>, Vec<f64>) {
        let Config { rule, shape, .. } = self.config;
        let Shape { batch, len, heads, key, value, groups, ragged, .. } = shape;
        let (sequences, outputs) = (if ragged { 1 } else { batch }, groups.output());
        let mut o = vec![0.0; sequences * len * outputs * value];
        let mut states = Vec::new();
        let normalised = rule.normaliser != Normaliser::None;
        let state_len = key * value + if normalised { key } else { 0 };
        // The head of `few` that belongs to head `head` of `many`.
        let share = |head: usize, many: usize, few: usize| match groups.order {
            chunkwise::HeadOrder::Tiled => head % few,
            _ => head / (many / few),
        };
        for sequence in 0..batch {
            let (first, end) = match &self.sequences {
                Some(begins) => (begins[sequence] as usize, begins[sequence + 1] as usize),
                None => (sequence * len, (sequence + 1) * len),
            };
            for head in 0..heads {
                let initial = &self.initial[(sequence * heads + head) * state_len..][..state_len];
                let mut s: Vec<f64> = initial.iter().map(|x| f64::from(*x)).collect();
                let mut z = s.split_off(key * value);
                z.resize(key, 0.0);
                let Rule { update, qk_norm, feature_map, normaliser, scale, .. } = rule;
                let mut recurrence = Recurrence {
                    update,
                    qk_norm,
                    feature_map,
                    normaliser,
                    scale: f64::from(scale),
                    s: &mut s,
                    z: &mut z,
                    chunk_s: &mut [],
                    chunk_z: &mut [],
                    count: 0,
                };
                let row = |x: &'_ [f32], heads: usize, head: usize, dim: usize, t: usize| -> Vec<f32> {
                    x[(t * heads + head) * dim..][..dim].to_vec()
                };
                let q_of = |t: usize, output: usize| {
                    row(&self.q, groups.query, share(output, outputs, groups.query), key, t)
                };
                let read = |recurrence: &mut Recurrence<'_>, t: usize, o: &mut [f64]| {
                    for output in (0..outputs).filter(|output| share(*output, outputs, heads) == head) {
                        recurrence.read(&q_of(t, output), &mut o[(t * outputs + output) * value..][..value]);
                    }
                };
                for t in first..end {
                    let k = row(&self.k, groups.key, share(head, heads, groups.key), key, t);
                    let v = row(&self.v, groups.value, share(head, heads, groups.value), value, t);
                    let dim = if rule.gate == Gate::Key { key } else { 1 };
                    let decays: Vec<f64> = if self.g.is_empty() {
                        vec![]
                    } else {
                        let bias = |i: usize| self.dt_bias.get(head * dim + i).copied().unwrap_or(0.0);
                        let a_log = self.a_log.get(head).copied().unwrap_or(0.0);
                        let g = row(&self.g, heads, head, dim, t);
                        g.iter().enumerate().map(|(i, g)| decay(rule.gate_map, *g, a_log, bias(i))).collect()
                    };
                    let beta = self.beta.get(t * heads + head).map_or(1.0, |x| beta(rule.beta_map, *x));
                    recurrence.write(Token { q: &[], k: &k, v: &v, decays: &decays, beta });
                    if rule.causal {
                        read(&mut recurrence, t, &mut o);
                    }
                }
                if !rule.causal {
                    (first..end).for_each(|t| read(&mut recurrence, t, &mut o));
                }
                states.extend(s);
                if normalised {
                    states.extend(z);
                }
            }
        }
        (o, states)
    }
}
