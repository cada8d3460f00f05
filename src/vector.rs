//! Rows of f32 as vectors of an instruction set.

use pulp::Simd;

/// A part of a row as groups of N vectors; elements beyond the last whole group are left out.
#[inline(always)]
pub(crate) fn vectors<S: Simd, const N: usize>(row: &[f32]) -> &[[S::f32s; N]] {
    S::as_simd_f32s(row).0.as_chunks().0
}

/// The same groups of N vectors, to be written.
#[inline(always)]
pub(crate) fn vectors_mut<S: Simd, const N: usize>(row: &mut [f32]) -> &mut [[S::f32s; N]] {
    S::as_mut_simd_f32s(row).0.as_chunks_mut().0
}

/// The first N vectors of a row that has them.
#[inline(always)]
pub(crate) fn load<S: Simd, const N: usize>(row: &[f32]) -> [S::f32s; N] {
    vectors::<S, N>(&row[..N * S::F32_LANES])[0]
}

/// Replaces the first N vectors of a row that has them.
#[inline(always)]
pub(crate) fn store<S: Simd, const N: usize>(from: [S::f32s; N], row: &mut [f32]) {
    vectors_mut::<S, N>(&mut row[..N * S::F32_LANES])[0] = from;
}

/// The first element of a vector.
#[inline(always)]
pub(crate) fn first_lane<S: Simd>(x: S::f32s) -> f32 {
    bytemuck::cast_slice::<S::f32s, f32>(&[x])[0]
}

/// Copies a row and pads it with zeros. Whole vectors are copied as vectors: rows are short, and a call of
/// memcpy would take longer.
#[inline(always)]
pub(crate) fn copy_row<S: Simd>(_: S, from: &[f32], to: &mut [f32]) {
    let (from_vectors, from_tail) = S::as_simd_f32s(from);
    let (to_whole, to_rest) = to.split_at_mut(from_vectors.len() * S::F32_LANES);
    for (to, from) in S::as_mut_simd_f32s(to_whole).0.iter_mut().zip(from_vectors) {
        *to = *from;
    }
    for (i, to) in to_rest.iter_mut().enumerate() {
        *to = if i < from_tail.len() { from_tail[i] } else { 0.0 };
    }
}
