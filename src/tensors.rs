//! The tensors of a call (q, k, v and o, and gates and beginnings of sequences where there are any) in one
//! structure that is passed on from the call to the kernel.
#![allow(unsafe_code, reason = "tasks on different threads write different rows of one slice")]

use core::marker::PhantomData;
use core::ops::Range;

use half::{bf16, f16};
use pulp::{Simd, WithSimd};

use crate::element::{Elements, ElementsMut, narrow_bf16};
use crate::error::{Error, Result, check_room};
use crate::isa::{self, Lines, outline};
use crate::rule::{Gate, GateMap, Rule, Update};
use crate::shape::{Row, Shape, Strides};
use crate::vector::{copy_row, store};

/// The tensors of a call, each a slice of f32, bf16 or f16 ([`crate::Element`]); the strides are in
/// [`Shape`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Tensors<'a> {
    pub(crate) q: Elements<'a>,
    pub(crate) k: Elements<'a>,
    pub(crate) v: Elements<'a>,
    pub(crate) o: Outputs<'a>,
    pub(crate) g: Elements<'a>,
    pub(crate) beta: Elements<'a>,
    pub(crate) a_log: &'a [f32],
    pub(crate) dt_bias: &'a [f32],
    pub(crate) sequences: Option<&'a [u32]>,
}

impl<'a> Tensors<'a> {
    /// q and k `[B, T, H, K]`, v and o `[B, T, H, V]`. Elements of o between its rows are left untouched.
    pub fn new(
        q: impl Into<Elements<'a>>,
        k: impl Into<Elements<'a>>,
        v: impl Into<Elements<'a>>,
        o: impl Into<ElementsMut<'a>>,
    ) -> Self {
        let (none, o) = (Elements::default(), o.into().into());
        Self {
            q: q.into(),
            k: k.into(),
            v: v.into(),
            o,
            g: none,
            beta: none,
            a_log: &[],
            dt_bias: &[],
            sequences: None,
        }
    }

    /// The same tensors with a gate g: `[B, T, H]` for a scalar gate, `[B, T, H, K]` for a key gate.
    #[must_use]
    pub fn gate(self, g: impl Into<Elements<'a>>) -> Self {
        Self { g: g.into(), ..self }
    }

    /// The same tensors with beta `[B, T, H]`, for the delta rule.
    #[must_use]
    pub fn beta(self, beta: impl Into<Elements<'a>>) -> Self {
        Self { beta: beta.into(), ..self }
    }

    /// The same tensors with the parameters of a gate's map ([`crate::rule::GateMap`]): A_log `[H]`, and
    /// dt_bias `[H]`, or `[H, K]` for a key gate. Either may be empty.
    #[must_use]
    pub fn gate_parameters(self, a_log: &'a [f32], dt_bias: &'a [f32]) -> Self {
        Self { a_log, dt_bias, ..self }
    }

    /// The same tensors as a ragged batch ([`Shape::with_sequences`]): `begins` contains the tokens at which
    /// its N sequences begin, followed by the number of tokens, thus N + 1 numbers that start at 0 and never
    /// decrease (`cu_seqlens`). An empty sequence keeps its state.
    #[must_use]
    pub fn sequences(self, begins: &'a [u32]) -> Self {
        Self { sequences: Some(begins), ..self }
    }

    /// A second set of the same tensors, for a task that writes other rows of o.
    pub(crate) fn share(&self) -> Self {
        Self { ..*self }
    }

    /// Checks the lengths, and that no tensor is given that the rule does not use.
    pub(crate) fn check(&self, rule: &Rule, shape: &Shape) -> Result<()> {
        let [q, k, v, o] = shape.reach()?;
        check_room("q", q, self.q.len())?;
        check_room("k", k, self.k.len())?;
        check_room("v", v, self.v.len())?;
        check_room("o", o, self.o.len())?;
        let row = rule.gate_row(shape.key);
        let check = |used: bool, what, need: Result<usize>, got| match used {
            true => check_room(what, need?, got),
            false if got > 0 => Err(Error::Unused { what }),
            false => Ok(()),
        };
        check(rule.gate != Gate::None, "g", shape.reach_g(row), self.g.len())?;
        check(rule.update == Update::Delta, "beta", shape.reach_beta(), self.beta.len())?;
        let mapped = matches!(rule.gate_map, GateMap::Softplus | GateMap::Bounded { .. });
        let parameters = [("A_log", self.a_log, 1), ("dt_bias", self.dt_bias, row)];
        for (what, slice, row) in parameters.into_iter().filter(|(_, slice, _)| !slice.is_empty()) {
            check(mapped, what, Ok(shape.heads.saturating_mul(row)), slice.len())?;
        }
        Ok(())
    }

    /// A row of q, `[K]`.
    #[inline(always)]
    pub(crate) fn q(&self, shape: &Shape, row: Row) -> Elements<'a> {
        let begin = shape.q_strides.offset(row, row.heads.q);
        self.q.slice(begin..begin + shape.key)
    }

    /// A row of k, `[K]`.
    #[inline(always)]
    pub(crate) fn k(&self, shape: &Shape, row: Row) -> Elements<'a> {
        let begin = shape.k_strides.offset(row, row.heads.k);
        self.k.slice(begin..begin + shape.key)
    }

    /// Columns of a row of v.
    #[inline(always)]
    pub(crate) fn v(&self, shape: &Shape, row: Row, columns: Range<usize>) -> Elements<'a> {
        let begin = shape.v_strides.offset(row, row.heads.v);
        self.v.slice(begin + columns.start..begin + columns.end)
    }

    /// A row of g, of `len` elements.
    #[inline(always)]
    pub(crate) fn g(&self, shape: &Shape, row: Row, len: usize) -> Elements<'a> {
        let begin = shape.g_strides(len).offset(row, row.heads.state);
        self.g.slice(begin..begin + len)
    }

    /// beta of a token, one element.
    #[inline(always)]
    pub(crate) fn beta_of(&self, shape: &Shape, row: Row) -> Elements<'a> {
        let begin = shape.beta_strides().offset(row, row.heads.state);
        self.beta.slice(begin..begin + 1)
    }

    /// The addresses of the rows of q, k, v, o and g from a token on; rows of g have `gate` elements.
    #[inline(always)]
    pub(crate) fn lines(&self, shape: &Shape, row: Row, gate: usize) -> [Lines; 5] {
        let line = |address, strides: Strides, head: usize, len: usize| {
            Lines::rows(address, strides.offset(row, head), strides.token, len)
        };
        [
            line(self.q.address(), shape.q_strides, row.heads.q, shape.key),
            line(self.k.address(), shape.k_strides, row.heads.k, shape.key),
            line(self.v.address(), shape.v_strides, row.heads.v, shape.value),
            line(self.o.address(), shape.o_strides, row.heads.o, shape.value),
            line(self.g.address(), shape.g_strides(gate), row.heads.state, gate),
        ]
    }

    /// Writes columns of a row of o, rounded to its type: the first `columns` elements of N vectors.
    ///
    /// # Safety
    /// The lengths were checked, and no other task holds columns of this row that overlap these.
    #[inline(always)]
    pub(crate) unsafe fn write<S: Simd, const N: usize>(
        &self,
        simd: S,
        begin: usize,
        columns: usize,
        from: [S::f32s; N],
    ) {
        match self.o {
            Outputs::F32(o) if columns == N * S::F32_LANES => {
                // SAFETY: rows are disjoint by the check of the shape, columns by the caller's promise.
                store::<S, N>(from, unsafe { o.part(begin, columns) });
            }
            o => {
                // This is a copy, so that `from` itself may stay in registers.
                let row = from;
                let row = &bytemuck::cast_slice::<S::f32s, f32>(&row)[..columns];
                outline(simd, Write { o, begin, row });
            }
        }
    }
}

/// Checks the tokens at which sequences begin, which only a ragged batch has.
pub(crate) fn check_sequences(sequences: Option<&[u32]>, shape: &Shape) -> Result<()> {
    let possible = match sequences {
        None => !shape.ragged,
        Some(begins) => {
            shape.ragged
                && begins.len() == shape.batch.saturating_add(1)
                && begins.first() == Some(&0)
                && begins.is_sorted()
                && begins.last().is_some_and(|end| *end as usize == shape.len)
        }
    };
    if possible { Ok(()) } else { Err(Error::Sequences) }
}

/// The write of columns that are rounded, or that end within a vector. It is a function of its own, so that
/// the usual path stays small.
struct Write<'a> {
    o: Outputs<'a>,
    begin: usize,
    row: &'a [f32],
}

impl WithSimd for Write<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { o, begin, row } = self;
        // SAFETY: promised by the callers of `Tensors::write` and `Outputs::write_row`, which alone make a `Write`.
        unsafe {
            match o {
                Outputs::F32(o) => copy_row(simd, row, o.part(begin, row.len())),
                Outputs::Bf16(o) => narrow_bf16(row, o.part(begin, row.len())),
                Outputs::F16(o) => isa::narrow_f16(simd, row, o.part(begin, row.len())),
            }
        }
    }
}

/// A [`Disjoint`] of one of the types of elements.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outputs<'a> {
    F32(Disjoint<'a>),
    Bf16(Disjoint<'a, bf16>),
    F16(Disjoint<'a, f16>),
}

impl<'a> From<ElementsMut<'a>> for Outputs<'a> {
    fn from(slice: ElementsMut<'a>) -> Self {
        match slice {
            ElementsMut::F32(data) => Outputs::F32(Disjoint::new(data)),
            ElementsMut::Bf16(data) => Outputs::Bf16(Disjoint::new(data)),
            ElementsMut::F16(data) => Outputs::F16(Disjoint::new(data)),
        }
    }
}

impl Outputs<'_> {
    pub(crate) fn address(&self) -> (*const u8, usize) {
        match self {
            Outputs::F32(data) => (data.data.cast_const().cast(), 4),
            Outputs::Bf16(data) => (data.data.cast_const().cast(), 2),
            Outputs::F16(data) => (data.data.cast_const().cast(), 2),
        }
    }

    /// Writes a row, rounded to the type of the elements.
    ///
    /// # Safety
    /// The length was checked, and no other task holds elements of this row.
    #[inline(always)]
    pub(crate) unsafe fn write_row<S: Simd>(self, simd: S, begin: usize, row: &[f32]) {
        outline(simd, Write { o: self, begin, row });
    }

    fn len(&self) -> usize {
        match self {
            Outputs::F32(data) => data.len,
            Outputs::Bf16(data) => data.len,
            Outputs::F16(data) => data.len,
        }
    }
}

/// A slice of which different tasks write different parts. The borrow excludes all other accesses; that no
/// two tasks take the same part is the caller's promise, made where the parts are cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disjoint<'a, T = f32> {
    data: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` that was cut up; `part` passes the duty to keep the parts disjoint on to its
// caller.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}
// SAFETY: as above; without `part` nothing can be reached through a shared one.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), borrow: PhantomData }
    }

    /// A slice without a borrow, for the C ABI.
    ///
    /// # Safety
    /// `len` elements at `data` can be written for 'a (where `len` is 0, `data` may be any address), and
    /// elements of parts that are taken are not accessed in another way meanwhile.
    #[cfg(feature = "cdylib")]
    pub(crate) unsafe fn from_raw(data: *mut T, len: usize) -> Self {
        // For no elements C may pass any address, but a slice may not have any address.
        let data = if len == 0 { core::ptr::NonNull::dangling().as_ptr() } else { data };
        Self { data, len, borrow: PhantomData }
    }

    /// The elements `begin .. begin + len`, of which parts can still be taken.
    pub(crate) fn cut(self, begin: usize, len: usize) -> Self {
        assert!(begin <= self.len && len <= self.len - begin, "part out of bounds");
        // SAFETY: in bounds by the assertion.
        Self { data: unsafe { self.data.add(begin) }, len, borrow: PhantomData }
    }

    /// The whole slice.
    ///
    /// # Safety
    /// No part that overlaps this slice is alive.
    pub(crate) unsafe fn whole(self) -> &'a mut [T] {
        // SAFETY: this is the slice it was made from; it is not shared, by the caller's promise.
        unsafe { core::slice::from_raw_parts_mut(self.data, self.len) }
    }

    /// Elements `begin .. begin + len`.
    ///
    /// # Safety
    /// No other part that is alive overlaps this one.
    #[inline(always)]
    pub(crate) unsafe fn part(&self, begin: usize, len: usize) -> &'a mut [T] {
        assert!(begin <= self.len && len <= self.len - begin, "part out of bounds");
        // SAFETY: in bounds by the assertion, inside the slice borrowed for 'a; disjoint by the caller's
        // promise.
        unsafe { core::slice::from_raw_parts_mut(self.data.add(begin), len) }
    }
}
