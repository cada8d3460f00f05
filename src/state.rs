//! The state between tokens, as callers hold it: f32, contiguous, one part for each sequence and head.
//!
//! ```text
//! None       S [K, V]
//! Global     S [K, V], z [K]
//! PerChunk   S [K, V], z [K]      of all finished chunks
//!            S [K, V], z [K]      of the current chunk, zero where none has begun
//!            tokens               in the current chunk, 0 <= tokens < chunk
//! ```
//!
//! All zeros is the state before the first token. A copy of the slice is a snapshot.
//!
//! With [`crate::Rule::compensated`] the first S and z are followed by as many elements again: their rounding
//! errors so far.

use crate::error::{Error, Result, check_len};
use crate::rule::{Normaliser, Rule};

/// The layout of one head's state: where its pieces begin, in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) key: usize,
    pub(crate) value: usize,
    pub(crate) normalised: bool,
    pub(crate) per_chunk: bool,
    pub(crate) compensated: bool,
}

/// One pair of S and z in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sums {
    /// The sums over all tokens; for PerChunk, over the finished chunks.
    All,
    /// The rounding errors of the sums `All`.
    Error,
    /// The sums over the current chunk.
    Chunk,
}

/// The three matrices S and vectors z of a head (the sums that tokens are added to, the sums of the finished
/// chunks, and rounding errors), and the count of tokens in the current chunk.
pub(crate) struct Pieces<'a> {
    pub(crate) matrices: [&'a mut [f32]; 3],
    pub(crate) z: [&'a mut [f32]; 3],
    pub(crate) count: &'a mut [f32],
}

impl Layout {
    pub(crate) fn new(key: usize, value: usize, rule: &Rule) -> Self {
        Self {
            key,
            value,
            normalised: rule.normaliser != Normaliser::None,
            per_chunk: matches!(rule.normaliser, Normaliser::PerChunk { .. }),
            compensated: rule.compensated,
        }
    }

    /// Elements of one head's state, or an error where that overflows.
    pub(crate) fn checked_len(&self) -> Result<usize> {
        let overflow = Error::Overflow { what: "the state" };
        let s = self.key.checked_mul(self.value).ok_or(overflow)?;
        // A state has at most three pairs and a count.
        s.checked_add(self.key).and_then(|sums| sums.checked_mul(4)).ok_or(overflow)?;
        Ok(self.len())
    }

    /// Elements of one head's state, once checked for overflow.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        if self.per_chunk { self.count_offset() + 1 } else { self.s_offset(Sums::Chunk) }
    }

    #[inline(always)]
    pub(crate) fn matrix(&self) -> usize {
        self.key * self.value
    }

    /// Elements of one pair of S and z.
    #[inline(always)]
    fn sums(&self) -> usize {
        self.matrix() + if self.normalised { self.key } else { 0 }
    }

    /// The element at which S of these sums begins.
    #[inline(always)]
    pub(crate) fn s_offset(&self, sums: Sums) -> usize {
        match sums {
            Sums::All => 0,
            Sums::Error => self.sums(),
            Sums::Chunk => self.sums() * if self.compensated { 2 } else { 1 },
        }
    }

    /// The element at which z of these sums begins.
    #[inline(always)]
    pub(crate) fn z_offset(&self, sums: Sums) -> usize {
        self.s_offset(sums) + self.matrix()
    }

    /// The pieces of a head's state; pieces that the state does not have are empty.
    pub(crate) fn split<'a>(&self, state: &'a mut [f32]) -> Pieces<'a> {
        let z = if self.normalised { self.key } else { 0 };
        let mut rest = state;
        let mut take = |len: usize| rest.split_off_mut(..len).unwrap_or_default();
        let mut pair =
            |is_there: bool| if is_there { (take(self.matrix()), take(z)) } else { Default::default() };
        let (all, errors, chunk) = (pair(true), pair(self.compensated), pair(self.per_chunk));
        let (matrices, z) = if self.per_chunk {
            ([chunk.0, all.0, errors.0], [chunk.1, all.1, errors.1])
        } else {
            ([all.0, chunk.0, errors.0], [all.1, chunk.1, errors.1])
        };
        Pieces { matrices, z, count: rest }
    }

    /// The element that contains the count of tokens.
    #[inline(always)]
    pub(crate) fn count_offset(&self) -> usize {
        self.s_offset(Sums::Chunk) + self.sums()
    }

    /// The number of tokens in the current chunk of a head's state, 0 for normalisers without chunks.
    #[inline(always)]
    pub(crate) fn count(&self, head: &[f32]) -> usize {
        if self.per_chunk { head[self.count_offset()] as usize } else { 0 }
    }

    /// Checks the counts of tokens of heads, of which the first is head `first` of the whole batch: they must
    /// be whole numbers below the chunk length, and the same for all heads of a sequence (sequences of a
    /// batch may differ).
    pub(crate) fn check(
        &self,
        state: &[f32],
        first: usize,
        heads: usize,
        normaliser: Normaliser,
    ) -> Result<()> {
        let Normaliser::PerChunk { chunk, .. } = normaliser else { return Ok(()) };
        let mut before = None;
        for (row, head) in state.chunks_exact(self.len()).enumerate() {
            let count = head[self.count_offset()];
            let whole = count >= 0.0 && count < chunk as f32 && count as usize as f32 == count;
            let same = (first + row).is_multiple_of(heads) || before.is_none_or(|before| before == count);
            if !(whole && same) {
                return Err(Error::BadState);
            }
            before = Some(count);
        }
        Ok(())
    }
}

/// Transposes the states of any number of heads, `[.., K, V]`, into `[.., V, K]`: the layout of ONNX
/// Runtime's GatedDeltaNet, of ggml and of vLLM.
///
/// `from` and `to` have the same length, a multiple of K V elements. They must be states of rules without a
/// normaliser and without compensation, which consist of S alone.
///
/// # Errors
/// K or V is 0, their product overflows, or a slice has another length. `to` is left untouched then.
///
/// ```
/// use chunkwise::state::{from_value_major, to_value_major};
///
/// // One head, K = 2, V = 3.
/// let state = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
/// let (mut theirs, mut ours) = ([0.0; 6], [0.0; 6]);
/// to_value_major(2, 3, &state, &mut theirs)?;
/// assert_eq!(theirs, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
/// from_value_major(2, 3, &theirs, &mut ours)?;
/// assert_eq!(ours, state);
/// # Ok::<(), chunkwise::Error>(())
/// ```
pub fn to_value_major(key: usize, value: usize, from: &[f32], to: &mut [f32]) -> Result<()> {
    let matrix = check_matrices(key, value, from, to)?;
    for (from, to) in from.chunks_exact(matrix).zip(to.chunks_exact_mut(matrix)) {
        transpose(value, from, to);
    }
    Ok(())
}

/// Transposes the states of any number of heads, `[.., V, K]`, into this crate's `[.., K, V]`: the inverse of
/// [`to_value_major`].
///
/// # Errors
/// As for [`to_value_major`].
pub fn from_value_major(key: usize, value: usize, from: &[f32], to: &mut [f32]) -> Result<()> {
    let matrix = check_matrices(key, value, from, to)?;
    for (from, to) in from.chunks_exact(matrix).zip(to.chunks_exact_mut(matrix)) {
        transpose(key, from, to);
    }
    Ok(())
}

/// Elements of a matrix, after a check that both slices contain the same whole number of matrices.
fn check_matrices(key: usize, value: usize, from: &[f32], to: &[f32]) -> Result<usize> {
    for (size, what) in [(key, "key"), (value, "value")] {
        if size == 0 {
            return Err(Error::Zero { what });
        }
    }
    let overflow = Error::Overflow { what: "the state" };
    let matrix = key.checked_mul(value).ok_or(overflow)?;
    check_len("the state", from.len().checked_next_multiple_of(matrix).ok_or(overflow)?, from.len())?;
    check_len("the transposed state", from.len(), to.len())?;
    Ok(matrix)
}

/// Transposes a matrix whose rows have `columns` elements.
fn transpose(columns: usize, from: &[f32], to: &mut [f32]) {
    let rows = from.len() / columns;
    for (j, to) in to.chunks_exact_mut(rows).enumerate() {
        for (to, from) in to.iter_mut().zip(from.chunks_exact(columns)) {
            *to = from[j];
        }
    }
}
