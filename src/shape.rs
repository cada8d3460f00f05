//! Sizes and strides, checked once at the entry.
//!
//! A tensor is a slice, three sizes and three strides: batch, token and head. The innermost dimension (K for
//! q and k, V for v and o) is contiguous.

use crate::error::{Error, Result};

/// The sizes of a call, in elements, and the strides of its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shape {
    /// The number of sequences, B.
    pub batch: usize,
    /// The number of tokens in each sequence, T; may be 0. For a ragged batch, the tokens of all sequences
    /// together.
    pub len: usize,
    /// The number of heads of the state, H, at least 1: the larger of [`Heads::key`] and [`Heads::value`].
    pub heads: usize,
    /// The numbers of heads of q, k and v.
    pub groups: Heads,
    /// Elements in a row of q and k, K, at least 1.
    pub key: usize,
    /// Elements in a row of v and o, V, at least 1.
    pub value: usize,
    /// Whether the sequences follow each other along T, each with a length of its own
    /// ([`crate::Tensors::sequences`]). The strides of the batch are not used then.
    pub ragged: bool,
    /// Strides of q `[B, T, Hq, K]`.
    pub q_strides: Strides,
    /// Strides of k `[B, T, Hk, K]`.
    pub k_strides: Strides,
    /// Strides of v `[B, T, Hv, V]`.
    pub v_strides: Strides,
    /// Strides of o `[B, T, Ho, V]`; rows must not overlap.
    pub o_strides: Strides,
    /// Strides of g, `[B, T, H]` or `[B, T, H, K]`; `None` is contiguous.
    pub g_strides: Option<Strides>,
    /// Strides of beta `[B, T, H]`; `None` is contiguous.
    pub beta_strides: Option<Strides>,
}

impl Shape {
    /// Contiguous tensors `[B, T, H, K]` and `[B, T, H, V]`.
    pub const fn new(batch: usize, len: usize, heads: usize, key: usize, value: usize) -> Self {
        Self::grouped(batch, len, Heads::equal(heads), key, value)
    }

    /// Contiguous tensors whose numbers of heads differ: q `[B, T, Hq, K]`, k `[B, T, Hk, K]`, v
    /// `[B, T, Hv, V]`, o `[B, T, Ho, V]`.
    pub const fn grouped(batch: usize, len: usize, groups: Heads, key: usize, value: usize) -> Self {
        Self {
            batch,
            len,
            heads: groups.state(),
            groups,
            key,
            value,
            ragged: false,
            q_strides: Strides::bthd(len, groups.query, key),
            k_strides: Strides::bthd(len, groups.key, key),
            v_strides: Strides::bthd(len, groups.value, value),
            o_strides: Strides::bthd(len, groups.output(), value),
            g_strides: None,
            beta_strides: None,
        }
    }

    /// A ragged batch of this number of sequences, whose tokens are those of this shape, which was made for
    /// one sequence of all tokens.
    #[must_use]
    pub const fn with_sequences(self, sequences: usize) -> Self {
        Self { batch: sequences, ragged: true, ..self }
    }

    /// The same sizes with q, k and v of these strides.
    #[must_use]
    pub const fn with_inputs(self, q: Strides, k: Strides, v: Strides) -> Self {
        Self { q_strides: q, k_strides: k, v_strides: v, ..self }
    }

    /// The same sizes with g and beta of these strides; strides of a tensor that the rule does not use are
    /// ignored.
    #[must_use]
    pub const fn with_gates(self, g: Strides, beta: Strides) -> Self {
        Self { g_strides: Some(g), beta_strides: Some(beta), ..self }
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

    /// Checks that the sizes are possible, that the heads go together, and that rows of o don't overlap.
    pub(crate) fn check(&self) -> Result<()> {
        let Heads { query, key, value, .. } = self.groups;
        for (size, what) in [
            (self.heads, "heads"),
            (query, "heads of q"),
            (key, "heads of k"),
            (value, "heads of v"),
            (self.key, "key"),
            (self.value, "value"),
        ] {
            if size == 0 {
                return Err(Error::Zero { what });
            }
        }
        self.groups.check()?;
        if self.heads != self.groups.state() {
            return Err(Error::Conflict { what: "the heads of the state and those of k and v" });
        }
        self.reach()?;
        self.check_output()
    }

    /// Checks that rows of o don't overlap.
    pub(crate) fn check_output(&self) -> Result<()> {
        self.extent(self.groups.output(), self.value).check_disjoint(self.o_strides, "o")
    }

    /// Checks that rows of q, k and v don't overlap, for gradients with the same strides.
    pub(crate) fn check_inputs(&self) -> Result<()> {
        let Heads { query, key, value, .. } = self.groups;
        self.extent(query, self.key).check_disjoint(self.q_strides, "the gradient of q")?;
        self.extent(key, self.key).check_disjoint(self.k_strides, "the gradient of k")?;
        self.extent(value, self.value).check_disjoint(self.v_strides, "the gradient of v")
    }

    /// Refuses strides under which rows of g, of one element, overlap.
    pub(crate) fn check_gate(&self) -> Result<()> {
        self.extent(self.heads, 1).check_disjoint(self.g_strides(1), "the gradient of g")
    }

    /// Elements that q, k, v and o each reach from their first one on.
    pub(crate) fn reach(&self) -> Result<[usize; 4]> {
        let Heads { query, key, value, .. } = self.groups;
        Ok([
            self.extent(query, self.key).reach(self.q_strides, "q")?,
            self.extent(key, self.key).reach(self.k_strides, "k")?,
            self.extent(value, self.value).reach(self.v_strides, "v")?,
            self.extent(self.groups.output(), self.value).reach(self.o_strides, "o")?,
        ])
    }

    /// Elements that g, with rows of `row` elements, reaches from its first one on.
    pub(crate) fn reach_g(&self, row: usize) -> Result<usize> {
        self.extent(self.heads, row).reach(self.g_strides(row), "g")
    }

    /// Elements that beta reaches from its first one on.
    pub(crate) fn reach_beta(&self) -> Result<usize> {
        self.extent(self.heads, 1).reach(self.beta_strides(), "beta")
    }

    /// The same shape with strides of g, whose rows have `row` elements, and of beta: contiguous where none
    /// were given.
    pub(crate) const fn with_contiguous_gates(self, row: usize) -> Self {
        self.with_gates(self.g_strides(row), self.beta_strides())
    }

    /// The strides of g, whose rows have `row` elements.
    pub(crate) const fn g_strides(&self, row: usize) -> Strides {
        self.gate_strides(self.g_strides, row)
    }

    /// The strides of beta.
    pub(crate) const fn beta_strides(&self) -> Strides {
        self.gate_strides(self.beta_strides, 1)
    }

    const fn gate_strides(&self, given: Option<Strides>, row: usize) -> Strides {
        match given {
            Some(strides) => strides,
            None => Strides::bthd(self.len, self.heads, row),
        }
    }

    /// The shape of one token of each sequence. In a ragged batch these tokens follow each other along T.
    pub(crate) fn one_token(&self) -> Self {
        self.with_len(if self.ragged { self.batch } else { 1 })
    }

    /// The number of heads of the state in all sequences.
    pub(crate) fn all_heads(&self) -> usize {
        self.batch * self.heads
    }

    fn extent(&self, heads: usize, dim: usize) -> Extent {
        let batch = if self.ragged { self.batch.min(1) } else { self.batch };
        Extent { batch, len: self.len, heads, dim }
    }
}

/// The numbers of heads of q, k and v. The state has as many heads as the larger of k and v, which both
/// numbers must divide; o has as many as the larger of q and the state, which both numbers must divide.
/// [`HeadOrder`] determines which heads belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Heads {
    /// The number of heads of q, Hq.
    pub query: usize,
    /// The number of heads of k, Hk.
    pub key: usize,
    /// The number of heads of v, Hv.
    pub value: usize,
    /// Which heads share a head of another tensor.
    pub order: HeadOrder,
}

/// Which of `many` heads share one of the `few` heads of another tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeadOrder {
    /// Neighbouring heads share one: head h of many takes head `h / (many / few)` (fla, transformers, ONNX).
    #[default]
    Interleaved,
    /// Heads at a distance of `few` share one: head h of many takes head `h % few` (GGUF).
    Tiled,
}

impl Heads {
    /// The same number of heads for each tensor.
    pub const fn equal(heads: usize) -> Self {
        Self::new(heads, heads, heads)
    }

    /// These numbers of heads, interleaved. More heads of q than of k and v make grouped-query attention,
    /// more of v than of q and k the grouped-value attention of Qwen3.5 and Mamba-2.
    pub const fn new(query: usize, key: usize, value: usize) -> Self {
        Self { query, key, value, order: HeadOrder::Interleaved }
    }

    /// The same numbers of heads in another order.
    #[must_use]
    pub const fn order(self, order: HeadOrder) -> Self {
        Self { order, ..self }
    }

    /// The number of heads of the state, H.
    pub const fn state(&self) -> usize {
        if self.key > self.value { self.key } else { self.value }
    }

    /// The number of heads of o, Ho.
    pub const fn output(&self) -> usize {
        if self.query > self.state() { self.query } else { self.state() }
    }

    /// The number of heads of o for each head of the state.
    pub(crate) const fn queries(&self) -> usize {
        self.output() / self.state()
    }

    /// The heads of the tensors for a head of the state and one of the queries that share it.
    #[inline(always)]
    pub(crate) fn of(&self, state: usize, query: usize) -> HeadSet {
        let output = match self.order {
            HeadOrder::Interleaved => state * self.queries() + query,
            HeadOrder::Tiled => query * self.state() + state,
        };
        HeadSet {
            q: self.shared(output, self.output(), self.query),
            k: self.shared(state, self.state(), self.key),
            v: self.shared(state, self.state(), self.value),
            o: output,
            state,
        }
    }

    /// The head of `few` that head `head` of `many` takes.
    #[inline(always)]
    fn shared(&self, head: usize, many: usize, few: usize) -> usize {
        if many == few {
            return head;
        }
        match self.order {
            HeadOrder::Interleaved => head / (many / few),
            HeadOrder::Tiled => head % few,
        }
    }

    /// Checks that the numbers of heads, each at least 1, divide each other.
    fn check(&self) -> Result<()> {
        let (state, output) = (self.state(), self.output());
        let divide = state.is_multiple_of(self.key)
            && state.is_multiple_of(self.value)
            && output.is_multiple_of(state)
            && output.is_multiple_of(self.query);
        if divide {
            Ok(())
        } else {
            Err(Error::Conflict { what: "numbers of heads that don't divide each other" })
        }
    }
}

/// The heads of the tensors from which one output is computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadSet {
    pub(crate) q: usize,
    pub(crate) k: usize,
    pub(crate) v: usize,
    pub(crate) o: usize,
    /// The head of the state, g and beta.
    pub(crate) state: usize,
}

/// Distances in elements between neighbours along batch, token and head. The innermost dimension is
/// contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strides {
    /// Elements from one sequence to the next.
    pub batch: usize,
    /// Elements from one token to the next.
    pub token: usize,
    /// Elements from one head to the next.
    pub head: usize,
}

impl Strides {
    /// One element for each head, the same for all tokens of all sequences: a constant decay `[H]`.
    pub const PER_HEAD: Strides = Strides { batch: 0, token: 0, head: 1 };

    /// The element at which the row of a token and one of its heads begins.
    #[inline(always)]
    pub(crate) fn offset(&self, row: Row, head: usize) -> usize {
        self.index([row.batch, row.token, head])
    }

    /// The element at which the row of these indices begins.
    #[inline(always)]
    pub(crate) fn index(&self, [batch, token, head]: [usize; 3]) -> usize {
        batch * self.batch + token * self.token + head * self.head
    }

    /// Strides of a contiguous `[B, T, H, D]`. They saturate, so that the check of lengths refuses absurd
    /// sizes.
    pub const fn bthd(len: usize, heads: usize, dim: usize) -> Self {
        Self::packed(len, heads.saturating_mul(dim), dim)
    }

    /// Strides of a contiguous `[B, H, T, D]`.
    pub const fn bhtd(len: usize, heads: usize, dim: usize) -> Self {
        let head = len.saturating_mul(dim);
        Self { batch: heads.saturating_mul(head), token: dim, head }
    }

    /// Strides of columns inside packed rows `[B, T, row]`, heads side by side: one of q, k and v in the
    /// output of a qkv layer, whose slice then starts at its first column.
    pub const fn packed(len: usize, row: usize, dim: usize) -> Self {
        Self { batch: len.saturating_mul(row), token: row, head: dim }
    }
}

/// The indices of the rows of the tensors that belong to one output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) batch: usize,
    pub(crate) token: usize,
    pub(crate) heads: HeadSet,
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

    /// Refuses strides under which two rows could share an element. The check is sufficient, not necessary:
    /// taken from the smallest stride to the largest, each must be at least as long as all that the smaller
    /// ones reach.
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
