//! How much scratch a task takes, which depends on shapes alone.

use crate::math::GROUP;
use crate::rule::{Rule, Update};
use crate::scratch::round_up;
use crate::sweep::decays::space_rows;
use crate::sweep::gated::operand_rows;
use crate::sweep::{Blocking, padded_key};

/// The sizes on which a task's scratch depends. They saturate; absurd sizes are refused at the entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) lanes: usize,
    /// The number of heads in the task.
    pub(crate) heads: usize,
    pub(crate) key: usize,
    /// The number of columns of V in the task.
    pub(crate) columns: usize,
    /// The number of matrices of a head: S, and the past and rounding errors where they are kept.
    pub(crate) matrices: usize,
    /// The numbers of vectors in a panel and of tokens in a tile.
    pub(crate) blocking: Blocking,
    /// The kind of operands that a tile is prepared as.
    pub(crate) operands: Operands,
    /// Space for outputs that share a head of the state: in heads or, where S is swept in place, in elements.
    pub(crate) spare: usize,
    /// Whether S is swept in the caller's memory.
    pub(crate) in_place: bool,
}

impl Sizes {
    /// The same sizes for other numbers of heads and columns.
    pub(crate) fn with(self, heads: usize, columns: usize) -> Self {
        Self { heads, columns, ..self }
    }

    /// The number of columns, rounded up to whole vectors.
    pub(super) const fn width(&self) -> usize {
        round_up(self.columns, self.lanes)
    }

    /// Elements of a matrix in panels: all columns, or, where S is swept in place, only those that don't fill
    /// a vector.
    pub(super) const fn panels(&self) -> usize {
        let columns = if !self.in_place {
            self.width()
        } else if self.columns.is_multiple_of(self.lanes) {
            0
        } else {
            self.lanes
        };
        // The next matrix then begins on a whole vector.
        round_up(columns.saturating_mul(self.key), GROUP)
    }

    /// Elements of a head: z and S of each kind.
    pub(super) const fn head(&self) -> usize {
        self.panels().saturating_add(padded_key(self.key)).saturating_mul(self.matrices)
    }

    /// The number of columns of a panel.
    pub(super) const fn panel(&self) -> usize {
        self.blocking.panel(self.lanes)
    }

    /// The largest number of tokens in a block.
    const fn block(&self) -> usize {
        let most = if matches!(self.operands, Operands::Linear) { 4 } else { 2 };
        if self.blocking.tile < most { self.blocking.tile } else { most }
    }

    /// Elements of a tile's operands.
    pub(super) const fn operands(&self) -> usize {
        let (key, tile) = (padded_key(self.key), self.blocking.tile);
        match self.operands {
            Operands::Linear => key.saturating_mul(2 * tile),
            Operands::Gated { delta } => {
                let block = self.block();
                key.saturating_mul(operand_rows(block, delta) * tile.div_ceil(block))
            }
        }
    }

    /// Elements of the rows of a block while it is prepared.
    pub(super) const fn space(&self) -> usize {
        let rows = match self.operands {
            Operands::Linear => 2 * self.block(),
            Operands::Gated { .. } => space_rows(self.block()),
        };
        padded_key(self.key).saturating_mul(rows)
    }

    /// Elements of a tile: operands, rows of a block, v.
    pub(super) const fn rows(&self) -> usize {
        let v = round_up(self.width(), GROUP).saturating_mul(self.blocking.tile);
        self.operands().saturating_add(self.space()).saturating_add(v)
    }

    /// Elements of scratch, without those for alignment.
    pub(crate) const fn scratch_len(&self) -> usize {
        let heads = if self.in_place {
            self.head().saturating_add(round_up(self.spare, GROUP))
        } else {
            self.head().saturating_mul(self.heads + self.spare)
        };
        self.rows().saturating_add(heads)
    }
}

/// The kind of operands that a tile is prepared as, which determines how much memory they take.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operands {
    /// phi of q and k, for the linear rule.
    Linear,
    /// The operands of blocks with decays or a delta.
    Gated {
        /// Whether they include the rows k' of the delta rule.
        delta: bool,
    },
}

impl Operands {
    pub(crate) const fn of(rule: &Rule) -> Self {
        if rule.in_blocks() {
            Self::Gated { delta: matches!(rule.update, Update::Delta) }
        } else {
            Self::Linear
        }
    }
}
