//! Sizes and strides, checked once at the entry.
//!
//! A tensor is a slice, three sizes and three strides: batch, token and head. The innermost dimension (K for
//! q and k, V for v and o) is contiguous.

use crate::error::{Error, Result};

/// The sizes of a call, in elements, and the strides of its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shape {
    /// Sequences, B.
    pub batch: usize,
    /// Tokens in each sequence, T; may be 0.
    pub len: usize,
    /// Heads, H, at least 1.
    pub heads: usize,
    /// Elements of a row of q and k, K, at least 1.
    pub key: usize,
    /// Elements of a row of v and o, V, at least 1.
    pub value: usize,
    /// Strides of q `[B, T, H, K]`.
    pub q_strides: Strides,
    /// Strides of k `[B, T, H, K]`.
    pub k_strides: Strides,
    /// Strides of v `[B, T, H, V]`.
    pub v_strides: Strides,
    /// Strides of o `[B, T, H, V]`; rows must not overlap.
    pub o_strides: Strides,
}

impl Shape {
    /// Contiguous tensors `[B, T, H, K]` and `[B, T, H, V]`.
    pub const fn new(batch: usize, len: usize, heads: usize, key: usize, value: usize) -> Self {
        let (keys, values) = (Strides::bthd(len, heads, key), Strides::bthd(len, heads, value));
        Self {
            batch,
            len,
            heads,
            key,
            value,
            q_strides: keys,
            k_strides: keys,
            v_strides: values,
            o_strides: values,
        }
    }

    /// The same sizes with q, k and v of these strides.
    #[must_use]
    pub const fn with_inputs(self, q: Strides, k: Strides, v: Strides) -> Self {
        Self { q_strides: q, k_strides: k, v_strides: v, ..self }
    }

    /// The same sizes with o of these strides.
    #[must_use]
    pub const fn with_output(self, o: Strides) -> Self {
        Self { o_strides: o, ..self }
    }

    /// The same tensors with another number of tokens.
    #[must_use]
    pub const fn with_len(self, len: usize) -> Self {
        Self { len, ..self }
    }

    /// Sizes that are possible, and an o whose rows don't overlap.
    pub(crate) fn check(&self) -> Result<()> {
        for (size, what) in [(self.heads, "heads"), (self.key, "key"), (self.value, "value")] {
            if size == 0 {
                return Err(Error::Zero { what });
            }
        }
        self.reach()?;
        self.check_output()
    }

    /// An o whose rows don't overlap.
    pub(crate) fn check_output(&self) -> Result<()> {
        self.extent(self.value).check_disjoint(self.o_strides, "o")
    }

    /// Elements that q, k, v and o reach from their first one on.
    pub(crate) fn reach(&self) -> Result<[usize; 4]> {
        Ok([
            self.extent(self.key).reach(self.q_strides, "q")?,
            self.extent(self.key).reach(self.k_strides, "k")?,
            self.extent(self.value).reach(self.v_strides, "v")?,
            self.extent(self.value).reach(self.o_strides, "o")?,
        ])
    }

    /// Heads of all sequences.
    pub(crate) fn all_heads(&self) -> usize {
        self.batch * self.heads
    }

    fn extent(&self, dim: usize) -> Extent {
        Extent { batch: self.batch, len: self.len, heads: self.heads, dim }
    }
}

/// Distances in elements between neighbours along batch, token and head. The innermost dimension is contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strides {
    /// From one sequence to the next.
    pub batch: usize,
    /// From one token to the next.
    pub token: usize,
    /// From one head to the next.
    pub head: usize,
}

impl Strides {
    /// Where a row begins.
    #[inline(always)]
    pub(crate) fn offset(&self, row: Row) -> usize {
        row.batch * self.batch + row.token * self.token + row.head * self.head
    }

    /// Strides of a contiguous `[B, T, H, D]`: saturating, so that absurd sizes are caught by the check of lengths.
    pub const fn bthd(len: usize, heads: usize, dim: usize) -> Self {
        Self::packed(len, heads.saturating_mul(dim), dim)
    }

    /// Strides of a contiguous `[B, H, T, D]`.
    pub const fn bhtd(len: usize, heads: usize, dim: usize) -> Self {
        let head = len.saturating_mul(dim);
        Self { batch: heads.saturating_mul(head), token: dim, head }
    }

    /// Strides of columns inside packed rows `[B, T, row]`, heads side by side: one of q, k and v in the output
    /// of a qkv layer, whose slice then starts at its first column.
    pub const fn packed(len: usize, row: usize, dim: usize) -> Self {
        Self { batch: len.saturating_mul(row), token: row, head: dim }
    }
}

/// Which row of a tensor is meant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) batch: usize,
    pub(crate) token: usize,
    pub(crate) head: usize,
}

/// The sizes a tensor is checked against: batch, tokens, heads, and the length of one row.
#[derive(Clone, Copy, Debug)]
struct Extent {
    batch: usize,
    len: usize,
    heads: usize,
    dim: usize,
}

impl Extent {
    /// Elements from the first to the last one reached, or an error where that overflows.
    fn reach(&self, strides: Strides, what: &'static str) -> Result<usize> {
        if self.batch == 0 || self.len == 0 || self.heads == 0 {
            return Ok(0);
        }
        let far = |count: usize, stride: usize| (count - 1).checked_mul(stride);
        let sum = far(self.batch, strides.batch)
            .zip(far(self.len, strides.token))
            .and_then(|(a, b)| a.checked_add(b))
            .zip(far(self.heads, strides.head))
            .and_then(|(a, b)| a.checked_add(b))
            .and_then(|a| a.checked_add(self.dim));
        match sum {
            Some(n) if n <= isize::MAX as usize / size_of::<f32>() => Ok(n),
            _ => Err(Error::Overflow { what }),
        }
    }

    /// Refuses strides under which two rows could share an element. Sufficient, not necessary: taken from the
    /// smallest stride to the largest, each must be at least as long as all that the smaller ones reach.
    fn check_disjoint(&self, strides: Strides, what: &'static str) -> Result<()> {
        if self.batch == 0 || self.len == 0 || self.heads == 0 {
            return Ok(());
        }
        let mut dims = [(strides.batch, self.batch), (strides.token, self.len), (strides.head, self.heads)];
        dims.sort_unstable();
        let mut covered = self.dim;
        for (stride, count) in dims {
            if count == 1 {
                continue;
            }
            if stride < covered {
                return Err(Error::Overlap { what });
            }
            covered = (count - 1)
                .checked_mul(stride)
                .and_then(|far| far.checked_add(covered))
                .ok_or(Error::Overflow { what })?;
        }
        Ok(())
    }
}
