//! The types that tensors and weights may have: f32, bf16, f16. All arithmetic is f32: widening is exact,
//! storing rounds to nearest even, and NaN stays NaN.
//!
//! The kernels are not compiled once for each type: a row is widened while it is packed, with one `match` for
//! each row.

use core::ops::Range;

use half::{bf16, f16};
use pulp::Simd;

use crate::isa;
use crate::vector::copy_row;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
    impl Sealed for half::f16 {}
}

/// A type of element: `f32`, [`half::bf16`] or [`half::f16`].
pub trait Element: sealed::Sealed + Copy + Default + Send + Sync + 'static {
    /// A slice of this type as [`Elements`].
    fn elements(slice: &[Self]) -> Elements<'_>;
    /// A slice of this type as [`ElementsMut`].
    fn elements_mut(slice: &mut [Self]) -> ElementsMut<'_>;
}

/// A slice of elements of one of the types.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Elements<'a> {
    /// A slice of f32.
    F32(&'a [f32]),
    /// A slice of bf16.
    Bf16(&'a [bf16]),
    /// A slice of f16.
    F16(&'a [f16]),
}

/// A slice of elements of one of the types, to be written.
#[derive(Debug)]
pub enum ElementsMut<'a> {
    /// A slice of f32.
    F32(&'a mut [f32]),
    /// A slice of bf16.
    Bf16(&'a mut [bf16]),
    /// A slice of f16.
    F16(&'a mut [f16]),
}

macro_rules! element {
    ($($type:ty, $variant:ident;)*) => {$(
        impl Element for $type {
            fn elements(slice: &[Self]) -> Elements<'_> {
                Elements::$variant(slice)
            }
            fn elements_mut(slice: &mut [Self]) -> ElementsMut<'_> {
                ElementsMut::$variant(slice)
            }
        }
    )*};
}

element! { f32, F32; bf16, Bf16; f16, F16; }

impl<'a, E: Element> From<&'a [E]> for Elements<'a> {
    fn from(slice: &'a [E]) -> Self {
        E::elements(slice)
    }
}

impl<'a, E: Element, const N: usize> From<&'a [E; N]> for Elements<'a> {
    fn from(array: &'a [E; N]) -> Self {
        E::elements(array)
    }
}

#[cfg(feature = "std")]
impl<'a, E: Element> From<&'a std::vec::Vec<E>> for Elements<'a> {
    fn from(vector: &'a std::vec::Vec<E>) -> Self {
        E::elements(vector)
    }
}

#[cfg(feature = "std")]
impl<'a, E: Element> From<&'a mut std::vec::Vec<E>> for ElementsMut<'a> {
    fn from(vector: &'a mut std::vec::Vec<E>) -> Self {
        E::elements_mut(vector)
    }
}

impl<'a, E: Element> From<&'a mut [E]> for ElementsMut<'a> {
    fn from(slice: &'a mut [E]) -> Self {
        E::elements_mut(slice)
    }
}

impl<'a, E: Element, const N: usize> From<&'a mut [E; N]> for ElementsMut<'a> {
    fn from(array: &'a mut [E; N]) -> Self {
        E::elements_mut(array)
    }
}

impl Default for Elements<'_> {
    fn default() -> Self {
        Elements::F32(&[])
    }
}

impl<'a> Elements<'a> {
    /// Elements in the slice.
    #[inline(always)]
    pub fn len(&self) -> usize {
        match self {
            Elements::F32(slice) => slice.len(),
            Elements::Bf16(slice) => slice.len(),
            Elements::F16(slice) => slice.len(),
        }
    }

    /// Whether the slice has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of the elements.
    ///
    /// # Panics
    /// Where the range is not inside the slice.
    #[inline(always)]
    #[must_use]
    pub fn slice(self, range: Range<usize>) -> Elements<'a> {
        match self {
            Elements::F32(slice) => Elements::F32(&slice[range]),
            Elements::Bf16(slice) => Elements::Bf16(&slice[range]),
            Elements::F16(slice) => Elements::F16(&slice[range]),
        }
    }

    /// The elements one by one, widened.
    pub fn iter(self) -> impl ExactSizeIterator<Item = f32> + Clone + 'a {
        (0..self.len()).map(move |at| match self {
            Elements::F32(slice) => slice[at],
            Elements::Bf16(slice) => slice[at].to_f32(),
            Elements::F16(slice) => slice[at].to_f32(),
        })
    }

    /// The first element, widened.
    #[inline(always)]
    pub(crate) fn first(self) -> f32 {
        match self {
            Elements::F32(slice) => slice[0],
            Elements::Bf16(slice) => slice[0].wide(),
            Elements::F16(slice) => slice[0].to_f32(),
        }
    }

    /// The address of the first element, for a prefetch, and the size of one element in bytes.
    #[inline(always)]
    pub(crate) fn address(&self) -> (*const u8, usize) {
        match self {
            Elements::F32(slice) => (slice.as_ptr().cast(), 4),
            Elements::Bf16(slice) => (slice.as_ptr().cast(), 2),
            Elements::F16(slice) => (slice.as_ptr().cast(), 2),
        }
    }

    /// The elements as f32: the slice itself, or a widened copy in `space`, which must have room for it.
    #[inline(always)]
    pub(crate) fn widened<'s, S: Simd>(self, simd: S, space: &'s mut [f32]) -> &'s [f32]
    where
        'a: 's,
    {
        match self {
            Elements::F32(slice) => slice,
            other => {
                let space = &mut space[..other.len()];
                widen(simd, other, space);
                space
            }
        }
    }
}

impl ElementsMut<'_> {
    /// The same elements, to be read.
    #[inline(always)]
    pub(crate) fn as_elements(&self) -> Elements<'_> {
        match self {
            ElementsMut::F32(slice) => Elements::F32(slice),
            ElementsMut::Bf16(slice) => Elements::Bf16(slice),
            ElementsMut::F16(slice) => Elements::F16(slice),
        }
    }

    /// Rounds a row into the elements from `begin` on.
    #[inline(always)]
    pub(crate) fn write<S: Simd>(&mut self, simd: S, begin: usize, row: &[f32]) {
        match self {
            ElementsMut::F32(slice) => copy_row(simd, row, &mut slice[begin..begin + row.len()]),
            ElementsMut::Bf16(slice) => narrow_bf16(row, &mut slice[begin..begin + row.len()]),
            ElementsMut::F16(slice) => isa::narrow_f16(simd, row, &mut slice[begin..begin + row.len()]),
        }
    }
}

/// A type of element that can be loaded as vectors in the middle of a loop.
pub(crate) trait Lane: Copy {
    fn wide(self) -> f32;
    /// Loads two vectors of elements, in whatever order is cheapest.
    fn load<S: Simd>(simd: S, from: &[Self]) -> [S::f32s; 2];
}

impl Lane for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
    #[inline(always)]
    fn load<S: Simd>(_: S, from: &[f32]) -> [S::f32s; 2] {
        S::as_simd_f32s(from).0.as_chunks().0[0]
    }
}

/// Loads the elements at even places, then those at odd places: each half of a u32 takes a shift or a mask,
/// whereas widening in order would take a shuffle for each vector.
impl Lane for bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[bf16]) -> [S::f32s; 2] {
        let lanes = S::F32_LANES;
        // The first of a pair is the lower half on little-endian machines, as are all that have sets of
        // several lanes.
        if lanes == 1 || cfg!(target_endian = "big") {
            let mut wide = [[0.0; 16]; 2];
            for i in 0..lanes {
                for j in 0..2 {
                    wide[j][i] = from[2 * i + j].wide();
                }
            }
            return wide.map(|wide| S::as_simd_f32s(&wide[..lanes]).0[0]);
        }
        let mut halves = [bf16::ZERO; 32];
        halves[..2 * lanes].copy_from_slice(&from[..2 * lanes]);
        let words: [u32; 16] = bytemuck::cast(halves);
        let words = S::as_simd_u32s(&words[..lanes]).0[0];
        let even = simd.wrapping_dyn_shl_u32s(words, simd.splat_u32s(16));
        let odd = simd.and_u32s(words, simd.splat_u32s(0xffff_0000));
        [simd.transmute_f32s_u32s(even), simd.transmute_f32s_u32s(odd)]
    }
}

/// Restores the order of elements in results of the pairs of vectors as which bf16 is loaded; elements beyond
/// the last whole pair are in order already.
#[inline(always)]
pub(crate) fn order_bf16<S: Simd>(_: S, pairs: &mut [f32]) {
    let lanes = S::F32_LANES;
    for pairs in pairs.chunks_exact_mut(2 * lanes) {
        let mut copy = [0.0; 32];
        copy[..2 * lanes].copy_from_slice(pairs);
        for i in 0..lanes {
            pairs[2 * i] = copy[i];
            pairs[2 * i + 1] = copy[lanes + i];
        }
    }
}

/// Widens a row and pads it with zeros.
#[inline(always)]
pub(crate) fn widen<S: Simd>(simd: S, from: Elements<'_>, to: &mut [f32]) {
    match from {
        Elements::F32(from) => copy_row(simd, from, to),
        Elements::Bf16(from) => {
            let (to, rest) = to.split_at_mut(from.len());
            // This is a plain loop, which the compiler vectorises under the dispatch.
            for (to, from) in to.iter_mut().zip(from) {
                *to = f32::from_bits(u32::from(from.to_bits()) << 16);
            }
            rest.fill(0.0);
        }
        Elements::F16(from) => {
            let (to, rest) = to.split_at_mut(from.len());
            isa::widen_f16(simd, from, to);
            rest.fill(0.0);
        }
    }
}

/// The nearest bf16, ties to even, in the upper half of 32 bits; the lower half is arbitrary.
#[inline(always)]
fn upper_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    // The payload may be entirely in the lower half: a bit is set so that NaN doesn't become an infinity.
    if x.is_nan() { bits | 0x40_0000 } else { bits.wrapping_add(0x7fff + (bits >> 16 & 1)) }
}

/// Rounds a row to bf16.
#[inline(always)]
pub(crate) fn narrow_bf16(from: &[f32], to: &mut [bf16]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = bf16::from_bits((upper_bf16(*from) >> 16) as u16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, dispatch};
    use pulp::WithSimd;
    use std::vec;
    use std::vec::Vec;

    struct Widen<'a>(Elements<'a>, &'a mut [f32]);

    impl WithSimd for Widen<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            widen(simd, self.0, self.1);
        }
    }

    struct Narrow<'a>(&'a [f32], &'a mut [f16], &'a mut [bf16]);

    impl WithSimd for Narrow<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            isa::narrow_f16(simd, self.0, self.1);
            narrow_bf16(self.0, self.2);
        }
    }

    /// Widens every number of 16 bits and rounds it back; padding follows the numbers.
    #[test]
    fn widening_is_exact() {
        for isa in Isa::available() {
            let all_f16: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
            let all_bf16: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
            let mut wide = vec![9.0; (1 << 16) + 5];
            let (mut back_f16, mut back_bf16) = (vec![f16::ONE; 1 << 16], vec![bf16::ONE; 1 << 16]);
            dispatch(isa, Widen((&all_f16[..]).into(), &mut wide));
            for (narrow, wide) in all_f16.iter().zip(&wide) {
                let want = narrow.to_f32();
                assert!(want == *wide || want.is_nan() && wide.is_nan(), "{isa}: {narrow:?} {wide}");
            }
            assert_eq!(wide[1 << 16..], [0.0; 5]);
            dispatch(isa, Narrow(&wide[..1 << 16], &mut back_f16, &mut vec![bf16::ONE; 1 << 16]));
            dispatch(isa, Widen((&all_bf16[..]).into(), &mut wide));
            for (narrow, wide) in all_bf16.iter().zip(&wide) {
                let want = narrow.to_f32();
                assert!(want == *wide || want.is_nan() && wide.is_nan(), "{isa}: {narrow:?} {wide}");
            }
            dispatch(isa, Narrow(&wide[..1 << 16], &mut vec![f16::ONE; 1 << 16], &mut back_bf16));
            for (from, to) in all_f16.iter().zip(&back_f16) {
                assert!(
                    from.to_bits() == to.to_bits() || from.is_nan() && to.is_nan(),
                    "{isa}: {from:?} {to:?}"
                );
            }
            for (from, to) in all_bf16.iter().zip(&back_bf16) {
                assert!(
                    from.to_bits() == to.to_bits() || from.is_nan() && to.is_nan(),
                    "{isa}: {from:?} {to:?}"
                );
            }
        }
    }

    /// Rounds as the half crate does around every number of 16 bits: below, at and above the middle to the
    /// next one.
    #[test]
    fn rounding_is_to_nearest_even() {
        let mut wide = Vec::new();
        for bits in 0..=u16::MAX {
            for (x, ulp) in
                [(bf16::from_bits(bits).to_f32(), 1 << 16), (f16::from_bits(bits).to_f32(), 1 << 13)]
            {
                for step in [1, ulp / 2 - 1, ulp / 2, ulp / 2 + 1, ulp - 1] {
                    wide.push(f32::from_bits(x.to_bits().wrapping_add(step)));
                }
            }
        }
        // Below the smallest normal f16 the steps have another size.
        wide.extend((0..200_000).map(|i| i as f32 * 3e-10));
        wide.extend([65_519.9, 65_520.0, 65_535.0, -65_520.0, 1e-8, f32::MAX, f32::MIN_POSITIVE]);
        for isa in Isa::available() {
            let (mut to_f16, mut to_bf16) = (vec![f16::ONE; wide.len()], vec![bf16::ONE; wide.len()]);
            dispatch(isa, Narrow(&wide, &mut to_f16, &mut to_bf16));
            for ((x, f), b) in wide.iter().zip(&to_f16).zip(&to_bf16) {
                let (want_f, want_b) = (f16::from_f32(*x), bf16::from_f32(*x));
                assert!(
                    f.to_bits() == want_f.to_bits() || f.is_nan() && want_f.is_nan(),
                    "{isa}: {x:e} {f:?}"
                );
                assert!(
                    b.to_bits() == want_b.to_bits() || b.is_nan() && want_b.is_nan(),
                    "{isa}: {x:e} {b:?}"
                );
            }
        }
    }
}
