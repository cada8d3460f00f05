//! Layouts of a case's tensors, and the same case in other layouts.

use chunkwise::{Config, Gate, Heads, Shape, Strides};

use super::super::at;
use super::FamilyCase;

/// A tensor of a call. The state counts as a tensor, with a row for each sequence and head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Q,
    K,
    V,
    G,
    Beta,
    O,
    State,
}

/// Strides that nest batch, token and head in one of six orders, with a gap after each; order 0 without gaps
/// is contiguous.
fn nested_strides([batch, len, heads, dim]: [usize; 4], order: usize, gaps: [usize; 3]) -> Strides {
    let config = Config::new(
        chunkwise::Rule::linear(chunkwise::Normaliser::None),
        Shape::new(batch, len, heads.max(1), 1, 1),
    );
    super::super::nested(&config, dim, order, gaps)
}

impl FamilyCase {
    /// The number of heads of a tensor, and the number of elements in one of its rows.
    pub(crate) fn row_sizes(&self, which: Which) -> [usize; 2] {
        let Shape { groups, heads, key, value, .. } = self.config.shape;
        let Heads { query, key: keys, value: values, .. } = groups;
        match which {
            Which::Q => [query, key],
            Which::K => [keys, key],
            Which::V => [values, value],
            Which::G => [heads, if self.config.rule.gate == Gate::Key { key } else { 1 }],
            Which::Beta => [heads, 1],
            Which::O => [groups.output(), value],
            Which::State => {
                [heads, self.initial.len().checked_div(self.config.shape.batch * heads).unwrap_or(0)]
            }
        }
    }

    /// The sizes of a tensor in memory: sequences, tokens, heads, and elements of a row. A ragged batch
    /// counts as one sequence.
    pub(crate) fn extent(&self, which: Which) -> [usize; 4] {
        let Shape { batch, len, ragged, .. } = self.config.shape;
        let [heads, dim] = self.row_sizes(which);
        [if ragged { batch.min(1) } else { batch }, len, heads, dim]
    }

    pub(crate) fn strides(&self, which: Which) -> Strides {
        let shape = &self.config.shape;
        let [_, dim] = self.row_sizes(which);
        match which {
            Which::Q => shape.q_strides,
            Which::K => shape.k_strides,
            Which::V => shape.v_strides,
            Which::O => shape.o_strides,
            Which::G => shape.g_strides.unwrap_or(Strides::bthd(shape.len, shape.heads, dim)),
            Which::Beta => shape.beta_strides.unwrap_or(Strides::bthd(shape.len, shape.heads, 1)),
            Which::State => Strides { batch: shape.heads * dim, token: 0, head: dim },
        }
    }

    /// The indices `[b, t, h]` of all rows of a tensor.
    pub(crate) fn rows(&self, which: Which) -> impl Iterator<Item = [usize; 3]> + use<> {
        let [batch, len, heads, _] = self.extent(which);
        (0..batch).flat_map(move |b| (0..len).flat_map(move |t| (0..heads).map(move |h| [b, t, h])))
    }

    /// The number of elements that a tensor spans.
    pub(crate) fn reach(&self, which: Which) -> usize {
        let [batch, len, heads, dim] = self.extent(which);
        if batch * len * heads == 0 {
            0
        } else {
            at(self.strides(which), batch - 1, len - 1, heads - 1) + dim
        }
    }

    /// The same case with other strides, which are given as an order and gaps for each of q, k, v, g, beta
    /// and o.
    pub(crate) fn laid_out(&self, layouts: [(usize, [usize; 3]); 6]) -> Self {
        use Which::{Beta, G, K, O, Q, V};
        let strides = |which: Which, (order, gaps): (usize, [usize; 3])| {
            nested_strides(self.extent(which), order, gaps)
        };
        let [q, k, v, g, beta, o] = layouts;
        let mut config = self.config;
        config.shape = config
            .shape
            .with_inputs(strides(Q, q), strides(K, k), strides(V, v))
            .with_gates(strides(G, g), strides(Beta, beta))
            .with_output(strides(O, o));
        self.rearranged(config, |_, row| row)
    }

    /// A case with another configuration, in which row `[b, t, h]` of each tensor is row
    /// `from(tensor, [b, t, h])` of this case. The states count as rows too, and A_log and dt_bias are
    /// rearranged like the heads of the state. Elements between rows are NaN.
    pub(crate) fn rearranged(&self, config: Config, from: impl Fn(Which, [usize; 3]) -> [usize; 3]) -> Self {
        let mut case = Self { config, sequences: None, ..self.clone() };
        let tensor = |case: &Self, which: Which, old: &[f32]| {
            if old.is_empty() {
                return vec![];
            }
            let [_, dim] = case.row_sizes(which);
            let mut tensor = vec![f32::NAN; case.reach(which)];
            for [b, t, h] in case.rows(which) {
                let [old_b, old_t, old_h] = from(which, [b, t, h]);
                let row = &old[at(self.strides(which), old_b, old_t, old_h)..][..dim];
                tensor[at(case.strides(which), b, t, h)..][..dim].copy_from_slice(row);
            }
            tensor
        };
        case.q = tensor(&case, Which::Q, &self.q);
        case.k = tensor(&case, Which::K, &self.k);
        case.v = tensor(&case, Which::V, &self.v);
        case.g = tensor(&case, Which::G, &self.g);
        case.beta = tensor(&case, Which::Beta, &self.beta);
        let [_, state] = self.row_sizes(Which::State);
        let Shape { batch, heads, .. } = config.shape;
        let head = |b: usize, h: usize| from(Which::State, [b, 0, h]);
        case.initial = (0..batch)
            .flat_map(|b| (0..heads).map(move |h| (b, h)))
            .flat_map(|(b, h)| {
                let [b, _, h] = head(b, h);
                &self.initial[(b * self.config.shape.heads + h) * state..][..state]
            })
            .copied()
            .collect();
        let parameters = |old: &[f32]| -> Vec<f32> {
            let row = old.len() / self.config.shape.heads;
            (0..heads).flat_map(|h| &old[head(0, h)[2] * row..][..row]).copied().collect()
        };
        (case.a_log, case.dt_bias) = (parameters(&self.a_log), parameters(&self.dt_bias));
        if config.shape.ragged {
            case.sequences = self.sequences.clone();
        }
        case
    }

    /// The part of a state that belongs to a sequence and head.
    pub(crate) fn state_of<'a>(&self, state: &'a [f32], sequence: usize, head: usize) -> &'a [f32] {
        let len = state.len() / (self.config.shape.batch * self.config.shape.heads);
        &state[(sequence * self.config.shape.heads + head) * len..][..len]
    }
}
