//! Products of tiles whose elements are pairs of bf16: one body for the instruction sets that have them.
//!
//! pulp's tokens don't include these instructions, so they can't be inlined into what it dispatches: each whole product
//! is a call, to a function that has the feature and takes this body in.

use super::Bf16Dot;

/// A product of pairs, the first of each in the lower half of a u32:
///
/// ```text
/// acc[i][j] += sum_l a[i row + l step] . b[l][j]
/// ```
///
/// acc and b are one or two vectors wide; there are as many rows as acc has, as many steps as b has.
pub(crate) struct DotPairs<'a> {
    pub(crate) width: usize,
    pub(crate) acc: &'a mut [f32],
    pub(crate) a: &'a [u32],
    pub(crate) row: usize,
    pub(crate) step: usize,
    pub(crate) b: &'a [u32],
}

impl DotPairs<'_> {
    #[inline(always)]
    pub(crate) fn run(self, _: Bf16Dot) {
        let (rows, steps) = (self.acc.len() / self.width, self.b.len() / self.width);
        if rows == 0 || steps == 0 {
            return;
        }
        assert!(
            (rows - 1) * self.row + (steps - 1) * self.step < self.a.len(),
            "a reaches as far as acc and b"
        );
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the proof is made only where CPUID says AVX512-BF16 and the OS saves ZMM; `a` was checked.
        unsafe {
            super::x86::dot_pairs(self);
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the proof is made only where FEAT_BF16 is; `a` was checked.
        unsafe {
            super::arm::dot_pairs(self);
        }
    }
}

/// Vectors of pairs.
///
/// # Safety
/// Methods may be called only where the instruction set is, pointers are to whole vectors.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) trait Pairs {
    const LANES: usize;
    /// Sums.
    type F32: Copy;
    /// As many pairs.
    type U32: Copy;
    unsafe fn load(from: *const f32) -> Self::F32;
    unsafe fn store(to: *mut f32, sums: Self::F32);
    unsafe fn load_pairs(from: *const u32) -> Self::U32;
    unsafe fn splat(pair: u32) -> Self::U32;
    unsafe fn dot(sums: Self::F32, a: Self::U32, b: Self::U32) -> Self::F32;
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
impl DotPairs<'_> {
    /// # Safety
    /// The instruction set is there, and `a` reaches `(rows - 1) * row + (steps - 1) * step`.
    #[inline(always)]
    pub(super) unsafe fn run_on<P: Pairs>(self) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.width / P::LANES {
                1 => self.columns::<P, 1>(),
                2 => self.columns::<P, 2>(),
                vectors => unreachable!("{vectors} vectors"),
            }
        }
    }

    /// Rows in tiles of 8: 8 x 2 accumulators, as in the products of f32.
    ///
    /// # Safety
    /// As for `run_on`; the width is N vectors.
    #[inline(always)]
    unsafe fn columns<P: Pairs, const N: usize>(mut self) {
        let rows = self.acc.len() / self.width;
        let mut at = 0;
        // SAFETY: as many rows as the tile has are left.
        unsafe {
            while rows - at >= 8 {
                self.tile::<P, 8, N>(at);
                at += 8;
            }
            if rows - at >= 4 {
                self.tile::<P, 4, N>(at);
                at += 4;
            }
            while at < rows {
                self.tile::<P, 1, N>(at);
                at += 1;
            }
        }
    }

    /// # Safety
    /// As for `columns`; there are MR rows from `at` on.
    #[inline(always)]
    unsafe fn tile<P: Pairs, const MR: usize, const N: usize>(&mut self, at: usize) {
        let steps = self.b.len() / (N * P::LANES);
        let to = self.acc[at * N * P::LANES..][..MR * N * P::LANES].as_mut_ptr();
        // SAFETY: N vectors in each of the MR rows of acc and of the steps of b; `a` reaches the last row and step by
        // the caller's promise.
        unsafe {
            let mut acc = [[P::load(to); N]; MR];
            for i in 0..MR {
                for j in 0..N {
                    acc[i][j] = P::load(to.add((i * N + j) * P::LANES));
                }
            }
            let a = self.a.as_ptr().add(at * self.row);
            let b = self.b.as_ptr();
            for l in 0..steps {
                let mut columns = [P::load_pairs(b.add(l * N * P::LANES)); N];
                for j in 1..N {
                    columns[j] = P::load_pairs(b.add((l * N + j) * P::LANES));
                }
                for i in 0..MR {
                    let pair = P::splat(*a.add(i * self.row + l * self.step));
                    for j in 0..N {
                        acc[i][j] = P::dot(acc[i][j], pair, columns[j]);
                    }
                }
            }
            for i in 0..MR {
                for j in 0..N {
                    P::store(to.add((i * N + j) * P::LANES), acc[i][j]);
                }
            }
        }
    }
}
