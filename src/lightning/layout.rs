//! The layout of a head's state and of its scratch.

use super::head::BLOCK;
use crate::error::{Error, Result};
use crate::math::GROUP;
use crate::scratch::round_up;

/// The sizes of a head, from which all others follow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) key: usize,
    pub(super) value: usize,
    /// The number of tokens in a chunk.
    pub(super) chunk: usize,
}

/// The pieces of a state.
pub(super) struct State<'a> {
    /// S of the finished chunks, `[K, V16]`.
    pub(super) s: &'a mut [f32],
    /// z of the finished chunks, `[K16]`.
    pub(super) z: &'a mut [f32],
    /// The keys of the current chunk, `[K, C16]`.
    pub(super) keys: &'a mut [f32],
    /// The values of the current chunk, `[C, V16]`.
    pub(super) values: &'a mut [f32],
    /// `[16]`, of which the first element is the number of tokens in the current chunk.
    pub(super) count: &'a mut [f32],
}

/// The rows of a block of tokens in scratch.
pub(super) struct Rows<'a> {
    /// q of the block, `[BLOCK, K16]`.
    pub(super) q: &'a mut [f32],
    /// The scores and then the weights of the block, `[BLOCK, C16]`.
    pub(super) weights: &'a mut [f32],
    /// The part of the outputs from inside the chunk, `[BLOCK, V16]`.
    pub(super) inside: &'a mut [f32],
    /// The part of the outputs from the chunks before, `[BLOCK, V16]`.
    pub(super) before: &'a mut [f32],
}

impl Layout {
    /// K rounded up to whole groups.
    #[inline(always)]
    pub(super) const fn key_row(&self) -> usize {
        round_up(self.key, GROUP)
    }

    /// V rounded up to whole groups.
    #[inline(always)]
    pub(super) const fn value_row(&self) -> usize {
        round_up(self.value, GROUP)
    }

    /// The chunk length rounded up to whole groups.
    #[inline(always)]
    pub(super) const fn chunk_row(&self) -> usize {
        round_up(self.chunk, GROUP)
    }

    /// Elements of a state, or `None` where that overflows.
    pub(super) fn checked_len(&self) -> Option<usize> {
        let s = self.key.checked_mul(self.value_row())?;
        let keys = self.key.checked_mul(self.chunk_row())?;
        let values = self.chunk.checked_mul(self.value_row())?;
        let all = s.checked_add(keys)?.checked_add(values)?;
        all.checked_add(self.key_row())?.checked_add(GROUP)
    }

    /// Elements of a state, once checked for overflow.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.count_offset() + GROUP
    }

    /// The element that contains the number of tokens.
    #[inline(always)]
    fn count_offset(&self) -> usize {
        let Self { key, chunk, .. } = self;
        key * (self.value_row() + self.chunk_row()) + chunk * self.value_row() + self.key_row()
    }

    /// Elements of scratch for [`Rows`]. It saturates, because a state of that length is refused.
    pub(super) const fn rows_len(&self) -> usize {
        let row = self.key_row().saturating_add(self.chunk_row());
        row.saturating_add(2usize.saturating_mul(self.value_row())).saturating_mul(BLOCK)
    }

    /// Elements of scratch for [`Rows`] and for a state that the caller does not provide.
    pub(super) fn forward_scratch_len(&self) -> usize {
        self.len().saturating_add(self.rows_len())
    }

    /// The pieces of a state.
    #[inline(always)]
    pub(super) fn state<'a>(&self, state: &'a mut [f32]) -> State<'a> {
        let (s, rest) = state.split_at_mut(self.key * self.value_row());
        let (z, rest) = rest.split_at_mut(self.key_row());
        let (keys, rest) = rest.split_at_mut(self.key * self.chunk_row());
        let (values, count) = rest.split_at_mut(self.chunk * self.value_row());
        State { s, z, keys, values, count }
    }

    /// The rows of a block.
    #[inline(always)]
    pub(super) fn rows<'a>(&self, scratch: &'a mut [f32]) -> Rows<'a> {
        let (q, rest) = scratch.split_at_mut(BLOCK * self.key_row());
        let (weights, rest) = rest.split_at_mut(BLOCK * self.chunk_row());
        let (inside, rest) = rest.split_at_mut(BLOCK * self.value_row());
        Rows { q, weights, inside, before: &mut rest[..BLOCK * self.value_row()] }
    }

    /// Checks the counts of tokens of all heads: whole numbers below the chunk length.
    pub(super) fn check(&self, states: &[f32]) -> Result<()> {
        for state in states.chunks_exact(self.len()) {
            let count = state[self.count_offset()];
            let whole = count >= 0.0 && count < self.chunk as f32 && count as usize as f32 == count;
            if !whole {
                return Err(Error::BadState);
            }
        }
        Ok(())
    }
}
