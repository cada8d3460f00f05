//! The oracle for a case: the recurrence in f64.

use chunkwise::reference::{Recurrence, Token, beta, decay};
use chunkwise::{Config, Normaliser, Rule, Shape};

use super::super::at;
use super::{FamilyCase, Which, share};

impl FamilyCase {
    /// A row of a tensor.
    fn row(&self, which: Which, [b, t, h]: [usize; 3]) -> &[f32] {
        let tensor = match which {
            Which::Q => &self.q,
            Which::K => &self.k,
            Which::V => &self.v,
            Which::G => &self.g,
            _ => &self.beta,
        };
        let [_, dim] = self.row_sizes(which);
        &tensor[at(self.strides(which), b, t, h)..][..dim]
    }

    /// The decays of a token of a head.
    fn decays(&self, [b, t, head]: [usize; 3]) -> Vec<f64> {
        if self.g.is_empty() {
            return vec![];
        }
        let [_, dim] = self.row_sizes(Which::G);
        let bias = |i: usize| self.dt_bias.get(head * dim + i).copied().unwrap_or(0.0);
        let a_log = self.a_log.get(head).copied().unwrap_or(0.0);
        let g = self.row(Which::G, [b, t, head]);
        g.iter().enumerate().map(|(i, g)| decay(self.config.rule.gate_map, *g, a_log, bias(i))).collect()
    }

    /// The outputs, contiguous `[B, T, Ho, V]`, and the last states.
    pub(crate) fn oracle(&self) -> (Vec<f64>, Vec<f64>) {
        let Config { rule, shape, .. } = self.config;
        let Shape { batch, len, heads, key, value, groups, ragged, .. } = shape;
        let (rows, outputs) = (if ragged { batch.min(1) } else { batch }, groups.output());
        let mut o = vec![0.0; rows * len * outputs * value];
        let mut states = Vec::new();
        let normalised = rule.normaliser != Normaliser::None;
        let state_len = key * value + if normalised { key } else { 0 };
        for (sequence, head) in (0..batch).flat_map(|sequence| (0..heads).map(move |head| (sequence, head))) {
            let (b, tokens) = match &self.sequences {
                Some(begins) => (0, begins[sequence] as usize..begins[sequence + 1] as usize),
                None => (sequence, 0..len),
            };
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
            let read = |recurrence: &mut Recurrence<'_>, t: usize, o: &mut [f64]| {
                for output in (0..outputs).filter(|output| share(groups, *output, outputs, heads) == head) {
                    let q = self.row(Which::Q, [b, t, share(groups, output, outputs, groups.query)]);
                    recurrence.read(q, &mut o[((b * len + t) * outputs + output) * value..][..value]);
                }
            };
            for t in tokens.clone() {
                let k = self.row(Which::K, [b, t, share(groups, head, heads, groups.key)]);
                let v = self.row(Which::V, [b, t, share(groups, head, heads, groups.value)]);
                let decays = self.decays([b, t, head]);
                let beta = if self.beta.is_empty() {
                    1.0
                } else {
                    beta(rule.beta_map, self.row(Which::Beta, [b, t, head])[0])
                };
                recurrence.write(Token { q: &[], k, v, decays: &decays, beta });
                if rule.causal {
                    read(&mut recurrence, t, &mut o);
                }
            }
            if !rule.causal {
                tokens.for_each(|t| read(&mut recurrence, t, &mut o));
            }
            states.extend(s);
            if normalised {
                states.extend(z);
            }
        }
        (o, states)
    }
}
