//! Shapes and strides, checked once at the entry; below it rows are taken without further thought.
//!
//! A tensor is a slice, three sizes and three strides: batch, token and head. The innermost dimension (K for
//! q and k, V for v and o) is contiguous.
#![allow(unsafe_code, reason = "tasks on different threads write different rows of one slice")]

use core::marker::PhantomData;

use half::{bf16, f16};
use pulp::Simd;

use crate::element::{Element, Elements, ElementsMut, narrow_bf16};
use crate::error::{Error, Result, check_room};
use crate::isa;

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

/// The sizes a tensor is checked against: batch, tokens, heads, and the length of one row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) batch: usize,
    pub(crate) len: usize,
    pub(crate) heads: usize,
    pub(crate) dim: usize,
}

impl Extent {
    /// Elements from the first to the last one reached, or an error where that overflows.
    pub(crate) fn reach(&self, strides: Strides, what: &'static str) -> Result<usize> {
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
    pub(crate) fn check_disjoint(&self, strides: Strides, what: &'static str) -> Result<()> {
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

/// A read-only tensor whose length was checked against its [`Extent`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    data: Elements<'a>,
    strides: Strides,
    dim: usize,
}

/// Where a row begins.
#[inline(always)]
fn at(strides: Strides, batch: usize, token: usize, head: usize) -> usize {
    batch * strides.batch + token * strides.token + head * strides.head
}

impl<'a> Rows<'a> {
    pub(crate) fn new(
        data: Elements<'a>,
        extent: Extent,
        strides: Strides,
        what: &'static str,
    ) -> Result<Self> {
        let need = extent.reach(strides, what)?;
        check_room(what, need, data.len())?;
        Ok(Self { data, strides, dim: extent.dim })
    }

    #[inline(always)]
    pub(crate) fn row(&self, batch: usize, token: usize, head: usize) -> Elements<'a> {
        let at = at(self.strides, batch, token, head);
        self.data.slice(at..at + self.dim)
    }

    /// The rows of so many tokens from one on.
    #[inline(always)]
    pub(crate) fn tokens(
        &self,
        batch: usize,
        token: usize,
        head: usize,
        count: usize,
    ) -> impl Iterator<Item = Elements<'a>> {
        let Self { data, strides, dim } = *self;
        let first = at(strides, batch, token, head);
        (0..count).map(move |i| data.slice(first + i * strides.token..first + i * strides.token + dim))
    }

    /// Asks for a part of a row.
    #[inline(always)]
    pub(crate) fn prefetch(&self, batch: usize, token: usize, head: usize, from: usize, len: usize) {
        let (row, size) = self.data.address(at(self.strides, batch, token, head) + from);
        isa::prefetch(row, len * size);
    }
}

/// A slice of which different tasks write different parts. The borrow keeps everyone else out; that no two
/// tasks take the same part is the caller's promise, made where the parts are cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disjoint<'a, T = f32> {
    data: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` that was cut up; `part` passes on the duty to keep the parts apart.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}
// SAFETY: as above; without `part` nothing can be reached through a shared one.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), borrow: PhantomData }
    }

    /// Without a borrow: the C ABI's.
    ///
    /// # Safety
    /// `len` elements there can be written for 'a (where there are none it may be any address), and elements of parts that
    /// are taken are not reached in another way meanwhile.
    #[cfg(feature = "cdylib")]
    pub(crate) unsafe fn from_raw(data: *mut T, len: usize) -> Self {
        // Of no elements C may give any address; a slice may not have any.
        let data = if len == 0 { core::ptr::NonNull::dangling().as_ptr() } else { data };
        Self { data, len, borrow: PhantomData }
    }

    /// Elements `at .. at + len`, still to be taken.
    pub(crate) fn cut(self, at: usize, len: usize) -> Self {
        assert!(at <= self.len && len <= self.len - at, "part out of bounds");
        // SAFETY: in bounds by the assertion.
        Self { data: unsafe { self.data.add(at) }, len, borrow: PhantomData }
    }

    /// The whole of it.
    ///
    /// # Safety
    /// No part that overlaps it is alive.
    pub(crate) unsafe fn whole(self) -> &'a mut [T] {
        // SAFETY: the slice it was made of; not shared by the caller's promise.
        unsafe { core::slice::from_raw_parts_mut(self.data, self.len) }
    }

    /// Elements `at .. at + len`.
    ///
    /// # Safety
    /// No other part that is alive overlaps this one.
    #[inline(always)]
    pub(crate) unsafe fn part(&self, at: usize, len: usize) -> &'a mut [T] {
        assert!(at <= self.len && len <= self.len - at, "part out of bounds");
        // SAFETY: in bounds by the assertion, inside the slice borrowed for 'a; disjoint by the caller's promise.
        unsafe { core::slice::from_raw_parts_mut(self.data.add(at), len) }
    }
}

/// An output tensor: [`Disjoint`] with strides, checked for length and for rows that don't overlap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowsMut<'a> {
    data: Outputs<'a>,
    strides: Strides,
    dim: usize,
}

/// A [`Disjoint`] of one of the types.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outputs<'a> {
    F32(Disjoint<'a>),
    Bf16(Disjoint<'a, bf16>),
    F16(Disjoint<'a, f16>),
}

impl<'a, E: Element> From<&'a mut [E]> for Outputs<'a> {
    fn from(slice: &'a mut [E]) -> Self {
        match E::elements_mut(slice) {
            ElementsMut::F32(data) => Outputs::F32(Disjoint::new(data)),
            ElementsMut::Bf16(data) => Outputs::Bf16(Disjoint::new(data)),
            ElementsMut::F16(data) => Outputs::F16(Disjoint::new(data)),
        }
    }
}

impl Outputs<'_> {
    fn len(&self) -> usize {
        match self {
            Outputs::F32(data) => data.len,
            Outputs::Bf16(data) => data.len,
            Outputs::F16(data) => data.len,
        }
    }
}

impl<'a> RowsMut<'a> {
    pub(crate) fn new(
        data: Outputs<'a>,
        extent: Extent,
        strides: Strides,
        what: &'static str,
    ) -> Result<Self> {
        let need = extent.reach(strides, what)?;
        check_room(what, need, data.len())?;
        extent.check_disjoint(strides, what)?;
        Ok(Self { data, strides, dim: extent.dim })
    }

    /// Asks for a part of a row.
    #[inline(always)]
    pub(crate) fn prefetch(&self, batch: usize, token: usize, head: usize, from: usize, len: usize) {
        let at = at(self.strides, batch, token, head) + from;
        let (row, size) = match self.data {
            Outputs::F32(data) => (data.data.wrapping_add(at).cast(), 4),
            Outputs::Bf16(data) => (data.data.wrapping_add(at).cast(), 2),
            Outputs::F16(data) => (data.data.wrapping_add(at).cast(), 2),
        };
        isa::prefetch(row, len * size);
    }

    /// Columns `from .. from + len` of a row in f32, if that is the type.
    ///
    /// # Safety
    /// No other task holds columns of this row that overlap these.
    #[inline(always)]
    pub(crate) unsafe fn row(
        &self,
        batch: usize,
        token: usize,
        head: usize,
        from: usize,
        len: usize,
    ) -> Option<&'a mut [f32]> {
        let at = at(self.strides, batch, token, head) + from;
        match self.data {
            // SAFETY: rows are disjoint by `check_disjoint`, columns by the caller's promise.
            Outputs::F32(data) => Some(unsafe { data.part(at, len) }),
            _ => None,
        }
    }

    /// Writes columns of a row from `from` on, rounded to its type.
    ///
    /// # Safety
    /// No other task holds columns of this row that overlap these.
    #[inline(always)]
    pub(crate) unsafe fn write<S: Simd>(&self, simd: S, place: [usize; 3], from: usize, columns: &[f32]) {
        // SAFETY: the caller's promise.
        unsafe { self.write_rows(simd, place, from, [columns]) }
    }

    /// Writes columns of MR tokens' rows likewise.
    ///
    /// # Safety
    /// No other task holds columns of these rows that overlap these.
    #[inline(always)]
    pub(crate) unsafe fn write_rows<S: Simd, const MR: usize>(
        &self,
        simd: S,
        [batch, token, head]: [usize; 3],
        from: usize,
        rows: [&[f32]; MR],
    ) {
        debug_assert!(from + rows[0].len() <= self.dim, "columns out of the row");
        let first = at(self.strides, batch, token, head) + from;
        for (i, columns) in rows.into_iter().enumerate() {
            let (at, len) = (first + i * self.strides.token, columns.len());
            // SAFETY: rows are disjoint by `check_disjoint`, columns by the caller's promise.
            unsafe {
                match self.data {
                    Outputs::F32(data) => data.part(at, len).copy_from_slice(columns),
                    Outputs::Bf16(data) => narrow_bf16(columns, data.part(at, len)),
                    Outputs::F16(data) => isa::narrow_f16(simd, columns, data.part(at, len)),
                }
            }
        }
    }
}
