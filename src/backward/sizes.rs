//! The sizes of a backward: of its groups of heads, its rows, its matrices and its scratch.

use crate::rule::{FeatureMap, Normaliser, Rule};
use crate::scratch::padded;
use crate::shape::{HeadOrder, HeadSet, Heads, Shape};
use crate::sweep::gated::operand_rows;
use crate::sweep::{Blocking, padded_key};

/// The heads of a sequence in the smallest groups that share no head of any tensor. A group belongs to one
/// task, so that the gradients of a shared head are summed in a fixed order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Groups {
    heads: Heads,
    /// The number of groups.
    pub(super) count: usize,
}

/// A head of a tensor, which one output of a group uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shared {
    /// The head's index in its group.
    pub(super) index: usize,
    /// Whether no earlier output of the group uses it.
    pub(super) first: bool,
}

/// The heads of one output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    pub(super) group: usize,
    /// Whether it is the last output of its group.
    pub(super) last: bool,
    /// The heads by their indices in the tensors.
    pub(super) heads: HeadSet,
    pub(super) q: Shared,
    pub(super) k: Shared,
    pub(super) v: Shared,
    pub(super) state: Shared,
}

impl Groups {
    fn new(heads: Heads) -> Self {
        let divisor = |mut a: usize, mut b: usize| {
            while b != 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        Self { heads, count: divisor(divisor(heads.query, heads.key), heads.value) }
    }

    /// The number of outputs of a group.
    pub(super) fn outputs(&self) -> usize {
        self.heads.output() / self.count
    }

    /// The heads of q, k, v and the state in a group.
    pub(super) fn heads(&self) -> [usize; 4] {
        [self.heads.query, self.heads.key, self.heads.value, self.heads.state()].map(|all| all / self.count)
    }

    /// The index in its tensor of a group's head, of which the group has `few`.
    pub(super) fn head(&self, group: usize, index: usize, few: usize) -> usize {
        match self.heads.order {
            HeadOrder::Interleaved => group * few + index,
            HeadOrder::Tiled => group + index * self.count,
        }
    }

    /// The heads of the i-th output of a group.
    pub(super) fn output(&self, group: usize, i: usize) -> Output {
        let outputs = self.outputs();
        let [q, k, v, state] = self.heads().map(|few| match self.heads.order {
            HeadOrder::Interleaved => {
                let times = outputs / few;
                Shared { index: i / times, first: i.is_multiple_of(times) }
            }
            HeadOrder::Tiled => Shared { index: i % few, first: i < few },
        });
        let [few_q, few_k, few_v, few_states] = self.heads();
        let heads = HeadSet {
            q: self.head(group, q.index, few_q),
            k: self.head(group, k.index, few_k),
            v: self.head(group, v.index, few_v),
            o: self.head(group, i, outputs),
            state: self.head(group, state.index, few_states),
        };
        Output { group, last: i + 1 == outputs, heads, q, k, v, state }
    }
}

/// The bytes of R and its transpose of all heads that one task walks through together, with the rows of a tile
/// of each. They share L2 with the rows of the tensors.
const TASK_BYTES: usize = 512 << 10;

/// The sizes of one task's scratch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(super) key: usize,
    pub(super) value: usize,
    /// The number of tokens of the longest sequence.
    len: usize,
    /// The number of tokens in a tile.
    pub(super) tile: usize,
    /// Columns in a panel.
    pub(super) panel: usize,
    /// 2 where finished chunks have sums of their own, else 1.
    pub(super) sums: usize,
    /// Whether q and k are kept beside their phi.
    pub(super) keeps_inputs: bool,
    /// Whether there is a gate.
    pub(super) gated: bool,
    pub(super) groups: Groups,
    /// The largest number of groups in a task.
    pub(super) together: usize,
}

/// What a token of the second pass needs of the first one: scale / n and dn, of the sums it is added to and of the
/// past; with a gate, phi(q) . da instead of those of the past. After the last token come the numbers that a pass
/// carries from tile to tile.
pub(super) const PER_TOKEN: usize = 4;

/// The rows of K elements of a token: q, k, phi(q), phi(k), an output of a sweep, that of the past, z.
pub(super) const KEY_ROWS: usize = 7;
/// The rows of V elements of a token: v, the gradient of o, dN of the two sums, an output.
pub(super) const VALUE_ROWS: usize = 5;

impl Sizes {
    pub(crate) fn new(lanes: usize, rule: &Rule, shape: &Shape) -> Self {
        let gated = rule.in_blocks();
        let blocking = Blocking::new(lanes, gated);
        let sums = if matches!(rule.normaliser, Normaliser::PerChunk { .. }) { 2 } else { 1 };
        let keeps_inputs = matches!(rule.feature_map, FeatureMap::Relu { .. });
        let Shape { key, value, len, groups, .. } = *shape;
        let (tile, panel) = (blocking.tile, blocking.panel(lanes));
        let groups = Groups::new(groups);
        Self { key, value, len, tile, panel, sums, keeps_inputs, gated, groups, together: 1 }
    }

    /// The same sizes of tasks that walk through heads together that are neighbours in memory, unless that leaves
    /// workers without work: rows of neighbours are in the same lines and pages.
    pub(super) fn together(self, shape: &Shape, workers: usize) -> Self {
        if shape.q_strides.head >= shape.q_strides.token || self.groups.count == 1 {
            return self;
        }
        let bytes = self.matrices().saturating_mul(self.groups.outputs() * size_of::<f32>());
        let all = shape.batch.saturating_mul(self.groups.count);
        Self { together: (TASK_BYTES / bytes).min(all / workers).clamp(1, self.groups.count), ..self }
    }

    /// The number of tasks of a sequence.
    pub(super) fn tasks(&self) -> usize {
        self.groups.count.div_ceil(self.together)
    }

    /// The largest number of outputs of a task.
    pub(super) fn outputs(&self) -> usize {
        self.groups.outputs() * self.together
    }

    /// The multiply-adds of a group.
    pub(crate) fn work(&self) -> usize {
        [self.key, self.value, self.len, 3].into_iter().fold(self.groups.outputs(), usize::saturating_mul)
    }

    /// Elements of a row of K, padded to whole groups.
    pub(super) fn key_row(&self) -> usize {
        padded_key(self.key)
    }

    /// Elements of a row of V, padded to whole groups.
    pub(super) fn value_row(&self) -> usize {
        padded_key(self.value)
    }

    /// Elements of a matrix of K rows of V columns.
    pub(super) fn matrix(&self) -> usize {
        padded(self.key.saturating_mul(self.value_row()))
    }

    /// Elements of a matrix of V rows of K columns.
    pub(super) fn transposed(&self) -> usize {
        padded(self.value.saturating_mul(self.key_row()))
    }

    /// Elements of the matrices of an output: R and its transpose, for each of the sums.
    pub(super) fn matrices(&self) -> usize {
        self.matrix().saturating_add(self.transposed()).saturating_mul(self.sums)
    }

    /// Elements of the vectors z of an output.
    pub(super) fn vectors(&self) -> usize {
        self.key_row().saturating_mul(self.sums)
    }

    /// Elements of the numbers that an output keeps of its tokens.
    pub(super) fn numbers(&self) -> usize {
        padded(self.len.saturating_add(1).saturating_mul(PER_TOKEN))
    }

    pub(super) fn operands(&self) -> usize {
        let rows = if self.gated { operand_rows(2, false) * self.tile / 2 } else { 2 * self.tile };
        rows.saturating_mul(self.key_row().max(self.value_row()))
    }

    /// Elements of the gradients of a tile's gates.
    pub(super) fn gates(&self) -> usize {
        if self.gated { padded(self.groups.heads()[3].saturating_mul(self.tile)) } else { 0 }
    }

    /// Elements of a tile's gradients: first of q, then of k and v.
    pub(super) fn gradients(&self) -> usize {
        let [q, k, v, _] = self.groups.heads();
        let keys = k.saturating_mul(self.key_row()).saturating_add(v.saturating_mul(self.value_row()));
        q.saturating_mul(self.key_row()).max(keys).saturating_mul(self.tile)
    }

    /// Elements of scratch.
    pub(crate) fn len(&self) -> usize {
        let rows = KEY_ROWS
            .saturating_mul(self.key_row())
            .saturating_add(VALUE_ROWS.saturating_mul(self.value_row()))
            .saturating_mul(self.tile);
        let output = self.matrices().saturating_add(self.vectors()).saturating_add(self.numbers());
        [self.operands(), rows, self.gradients(), self.gates()]
            .into_iter()
            .fold(output.saturating_mul(self.outputs()), usize::saturating_add)
    }
}
