//! The inputs of the attention that is measured, and the oracle's outputs for them. The criterion benches
//! include this file too.
#![allow(dead_code, reason = "each program uses a part of this file")]

use chunkwise::reference::{Recurrence, Token, beta, decay};
use chunkwise::{Config, FeatureMap, Gate, Heads, Normaliser, Rule, Shape, Strides, Update};

use super::numbers::{Number, numbers};

/// q `[B, T, Hq, K]`, k `[B, T, Hk, K]`, v `[B, T, Hv, V]`, contiguous, before they are rounded to a type.
///
/// Where there is a gate or the delta rule, rows of q and k have length 1, as in layers; g contains
/// logarithms of decays, uniform in [-1, 0), and beta is uniform in [0, 1).
pub(crate) struct Inputs {
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
    /// `[B, T, H]`, or `[B, T, H, K]` for a key gate, or `[H]` for a constant decay; empty without a gate.
    pub(crate) g: Vec<f32>,
    /// `[B, T, H]`; empty without the delta rule.
    pub(crate) beta: Vec<f32>,
}

impl Inputs {
    /// Makes the same inputs every time.
    pub(crate) fn new(config: &Config) -> Self {
        let Config { rule, shape, .. } = config;
        let Shape { batch, len, heads, groups, key, value, .. } = *shape;
        let Heads { query: q_heads, key: k_heads, value: v_heads, .. } = groups;
        let rows = batch * len;
        let mut qk = [(1, q_heads), (2, k_heads)].map(|(seed, heads)| numbers(seed, rows * heads * key));
        if in_blocks(rule) {
            for row in qk.iter_mut().flat_map(|x| x.chunks_exact_mut(key)) {
                let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                row.iter_mut().for_each(|x| *x /= length);
            }
        } else if rule.feature_map == FeatureMap::Identity && rule.normaliser != Normaliser::None {
            // Otherwise the denominator could be arbitrarily near zero.
            qk.iter_mut().flatten().for_each(|x| *x = x.abs());
        }
        let g = match rule.gate {
            // The logarithms are spaced evenly: the rounding of a constant decay near 1 adds up over many
            // tokens.
            Gate::Scalar if is_constant(shape) => {
                (0..heads).map(|h| -((h + 1) as f32) / heads as f32).collect()
            }
            Gate::None => vec![],
            _ => numbers(4, rows * heads * gate_row(config)).into_iter().map(|x| 0.5 * x - 0.5).collect(),
        };
        let beta = match rule.update {
            Update::Delta => numbers(5, rows * heads).into_iter().map(|x| 0.5 * x + 0.5).collect(),
            _ => vec![],
        };
        let [q, k] = qk;
        Self { q, k, v: numbers(3, rows * v_heads * value), g, beta }
    }

    /// Rounds q, k and v to a type; g and beta stay f32.
    pub(crate) fn rounded<E: Number>(mut self) -> Self {
        for x in [&mut self.q, &mut self.k, &mut self.v].into_iter().flatten() {
            *x = E::store(*x).load();
        }
        self
    }

    /// The outputs of one head for all tokens, `[T, V]`.
    pub(crate) fn oracle(&self, config: &Config, b: usize, h: usize) -> Vec<f64> {
        let Config { rule, shape, .. } = config;
        let Shape { len, heads, groups, key, value, .. } = *shape;
        let (s, chunk_s) = (&mut vec![0.0; key * value], &mut vec![0.0; key * value]);
        let (z, chunk_z) = (&mut vec![0.0; key], &mut vec![0.0; key]);
        let mut oracle = Recurrence {
            update: rule.update,
            qk_norm: rule.qk_norm,
            feature_map: rule.feature_map,
            normaliser: rule.normaliser,
            scale: f64::from(rule.scale),
            s,
            z,
            chunk_s,
            chunk_z,
            count: 0,
        };
        let gates = gate_row(config);
        // The row of token t in the one of `few` heads that head h shares with its neighbours.
        let row = |x, t: usize, few: usize, dim| part(x, (b * len + t) * few + h / (heads / few), dim);
        let mut outputs = vec![0.0; len * value];
        for (t, o) in outputs.chunks_exact_mut(value).enumerate() {
            let g = match rule.gate {
                Gate::None => &[],
                _ if is_constant(shape) => part(&self.g, h, 1),
                _ => row(&self.g, t, heads, gates),
            };
            let decays: Vec<f64> = g.iter().map(|g| decay(rule.gate_map, *g, 0.0, 0.0)).collect();
            let beta = match rule.update {
                Update::Delta => beta(rule.beta_map, row(&self.beta, t, heads, 1)[0]),
                _ => 1.0,
            };
            let token = Token {
                q: row(&self.q, t, groups.query, key),
                k: row(&self.k, t, groups.key, key),
                v: row(&self.v, t, groups.value, value),
                decays: &decays,
                beta,
            };
            oracle.token(token, o);
        }
        outputs
    }
}

/// Row `at` of x, whose rows have `dim` elements.
fn part(x: &[f32], at: usize, dim: usize) -> &[f32] {
    &x[at * dim..][..dim]
}

/// Whether the rule is any but the linear one without a gate.
fn in_blocks(rule: &Rule) -> bool {
    rule.update == Update::Delta || rule.gate != Gate::None
}

/// Elements of g for each token and head of the state.
pub(crate) fn gate_row(config: &Config) -> usize {
    match config.rule.gate {
        Gate::Key => config.shape.key,
        _ => 1,
    }
}

/// Whether g is the same for all tokens.
pub(crate) fn is_constant(shape: &Shape) -> bool {
    shape.g_strides == Some(Strides::PER_HEAD)
}
