//! x86-64: detection, and the conversions of F16C.
//!
//! Detection is sound without an operating system's help: CPUID reports what the CPU can do, and XGETBV what
//! the OS (or the firmware) saves across a context switch; only both together allow the wider registers.

#[cfg(feature = "std")]
use core::arch::asm;
use core::arch::x86_64::*;

use half::f16;

use super::{AVX2, AVX512, SCALAR};
use crate::math::GROUP;

/// Widens a whole row: pulp's tokens don't include F16C, so that these conversions are calls, never inlined.
#[target_feature(enable = "avx,f16c")]
pub(super) fn widen_f16(from: &[f16], to: &mut [f32]) {
    let (from8, from_tail) = from.as_chunks::<8>();
    let (to8, to_tail) = to[..from.len()].as_chunks_mut::<8>();
    for (to, from) in to8.iter_mut().zip(from8) {
        // SAFETY: 16 bytes are read from an array of 16, 32 written to one of 32; neither need be aligned.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast()))) };
    }
    let mut padded = [f16::ZERO; 8];
    padded[..from_tail.len()].copy_from_slice(from_tail);
    let mut wide = [0.0; 8];
    // SAFETY: as above.
    unsafe { _mm256_storeu_ps(wide.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(padded.as_ptr().cast()))) };
    to_tail.copy_from_slice(&wide[..to_tail.len()]);
}

#[target_feature(enable = "avx,f16c")]
pub(super) fn narrow_f16(from: &[f32], to: &mut [f16]) {
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;
    let (from8, from_tail) = from.as_chunks::<8>();
    let (to8, to_tail) = to[..from.len()].as_chunks_mut::<8>();
    for (to, from) in to8.iter_mut().zip(from8) {
        // SAFETY: 32 bytes are read from an array of 32, 16 written to one of 16; neither need be aligned.
        unsafe {
            let half = _mm256_cvtps_ph::<NEAREST>(_mm256_loadu_ps(from.as_ptr()));
            _mm_storeu_si128(to.as_mut_ptr().cast(), half);
        }
    }
    let mut padded = [0.0; 8];
    padded[..from_tail.len()].copy_from_slice(from_tail);
    let mut half = [f16::ZERO; 8];
    // SAFETY: as above.
    unsafe {
        let bits = _mm256_cvtps_ph::<NEAREST>(_mm256_loadu_ps(padded.as_ptr()));
        _mm_storeu_si128(half.as_mut_ptr().cast(), bits);
    }
    to_tail.copy_from_slice(&half[..to_tail.len()]);
}

/// [`super::sum_groups`] in vectors of 16. In each step `low` and `high` are the halves of two vectors, which
/// are added.
#[target_feature(enable = "avx512f")]
pub(super) fn sum_groups_of_16(groups: &[[f32; GROUP]; GROUP]) -> [f32; GROUP] {
    // The last steps put element 4 i + j of their order at 4 j + i: groups are taken in the order that undoes
    // it.
    // SAFETY: each group is 16 elements.
    let group = |i: usize| unsafe { _mm512_loadu_ps(groups[i % 4 * 4 + i / 4].as_ptr()) };
    let halves = |i: usize| {
        let (a, b) = (group(2 * i), group(2 * i + 1));
        _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b))
    };
    let quarters = |i: usize| {
        let (a, b) = (halves(2 * i), halves(2 * i + 1));
        _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b))
    };
    let pairs = |i: usize| {
        let (a, b) = (_mm512_castps_pd(quarters(2 * i)), _mm512_castps_pd(quarters(2 * i + 1)));
        let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
        _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
    };
    let (a, b) = (pairs(0), pairs(1));
    let sums = _mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b));
    let mut to = [0.0; GROUP];
    // SAFETY: there are 16 elements.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), sums) };
    to
}

/// [`super::sum_groups`] in vectors of 8.
#[target_feature(enable = "avx2")]
pub(super) fn sum_groups_of_8(groups: &[[f32; GROUP]; GROUP]) -> [f32; GROUP] {
    let mut to = [0.0; GROUP];
    for (i, to) in to.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        // The last steps put element 2 i + j of their order at 4 j + i.
        let halves = |k: usize| {
            let group = &groups[8 * i + k % 2 * 4 + k / 2];
            // SAFETY: each group is 16 elements.
            unsafe { _mm256_add_ps(_mm256_loadu_ps(group.as_ptr()), _mm256_loadu_ps(group[8..].as_ptr())) }
        };
        let quarters = |k: usize| {
            let (a, b) = (halves(2 * k), halves(2 * k + 1));
            _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b))
        };
        let pairs = |k: usize| {
            let (a, b) = (_mm256_castps_pd(quarters(2 * k)), _mm256_castps_pd(quarters(2 * k + 1)));
            let (low, high) = (_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
            _mm256_add_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high))
        };
        let (a, b) = (pairs(0), pairs(1));
        let sums = _mm256_add_ps(_mm256_shuffle_ps::<0x88>(a, b), _mm256_shuffle_ps::<0xdd>(a, b));
        // SAFETY: there are 8 elements.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), sums) };
    }
    to
}

/// MXCSR: rounding, flushing of denormal inputs and outputs, and which exceptions trap.
#[cfg(feature = "std")]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Mode(u32);

#[cfg(feature = "std")]
impl Mode {
    /// The flags of exceptions that have been raised, which are no part of the mode.
    const FLAGS: u32 = 0x3f;

    pub(super) fn get() -> Self {
        let mut mxcsr = 0_u32;
        // SAFETY: STMXCSR writes four bytes; SSE is part of x86-64.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack, preserves_flags)) };
        Self(mxcsr & !Self::FLAGS)
    }

    /// # Safety
    /// The code that runs until the mode is set back must tolerate it.
    pub(super) unsafe fn set(self) {
        // SAFETY: LDMXCSR reads four bytes, which STMXCSR has written; the rest is the caller's promise.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const self.0, options(nostack)) };
    }
}

/// The queries of detection; a trait, so that tests can give other answers.
pub(super) trait Ask {
    /// EAX, EBX, ECX, EDX of a leaf and subleaf.
    fn cpuid(&self, leaf: u32, sub: u32) -> [u32; 4];
    /// XCR0; read only where CPUID reports OSXSAVE.
    fn xcr0(&self) -> u64;
}

pub(super) struct Cpu;

impl Ask for Cpu {
    fn cpuid(&self, leaf: u32, sub: u32) -> [u32; 4] {
        #[allow(unused_unsafe, reason = "CPUID became a safe function in newer compilers than our minimum")]
        // SAFETY: every x86-64 CPU has CPUID.
        let r = unsafe { __cpuid_count(leaf, sub) };
        [r.eax, r.ebx, r.ecx, r.edx]
    }

    fn xcr0(&self) -> u64 {
        #[target_feature(enable = "xsave")]
        fn read() -> u64 {
            // SAFETY: XCR0 always exists where XGETBV does.
            unsafe { _xgetbv(0) }
        }
        // SAFETY: `level` calls this only after CPUID reported OSXSAVE, which implies XSAVE.
        unsafe { read() }
    }
}

pub(super) fn level(ask: &impl Ask) -> u8 {
    let has = |word: u32, bits: &[u32]| bits.iter().all(|bit| word >> bit & 1 == 1);
    let [leaves, ..] = ask.cpuid(0, 0);
    if leaves < 7 {
        return SCALAR;
    }
    let [.., one_ecx, _] = ask.cpuid(1, 0);
    let [_, seven_ebx, ..] = ask.cpuid(7, 0);
    // FMA 12, OSXSAVE 27, AVX 28, F16C 29 in leaf 1; BMI1 3, AVX2 5, BMI2 8 in leaf 7.
    if !has(one_ecx, &[12, 27, 28, 29]) || !has(seven_ebx, &[3, 5, 8]) {
        return SCALAR;
    }
    let xcr0 = ask.xcr0() as u32;
    // XMM 1, YMM 2; for AVX-512 also the mask registers 5 and both halves of ZMM 6, 7.
    if !has(xcr0, &[1, 2]) {
        return SCALAR;
    }
    // F 16, DQ 17, CD 28, BW 30, VL 31.
    if !has(seven_ebx, &[16, 17, 28, 30, 31]) || !has(xcr0, &[5, 6, 7]) {
        return AVX2;
    }
    AVX512
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake {
        leaves: u32,
        one_ecx: u32,
        seven_ebx: u32,
        xcr0: Option<u64>,
    }

    impl Ask for Fake {
        fn cpuid(&self, leaf: u32, sub: u32) -> [u32; 4] {
            match (leaf, sub) {
                (0, _) => [self.leaves, 0, 0, 0],
                (1, _) => [0, 0, self.one_ecx, 0],
                (7, 0) => [0, self.seven_ebx, 0, 0],
                leaf => panic!("unexpected leaf {leaf:?}"),
            }
        }
        fn xcr0(&self) -> u64 {
            self.xcr0.expect("XGETBV without OSXSAVE is an illegal instruction")
        }
    }

    const V3_1: u32 = 1 << 12 | 1 << 27 | 1 << 28 | 1 << 29;
    const V3_7: u32 = 1 << 3 | 1 << 5 | 1 << 8;
    const V4_7: u32 = V3_7 | 1 << 16 | 1 << 17 | 1 << 28 | 1 << 30 | 1 << 31;

    #[test]
    fn the_os_has_the_last_word() {
        let fake = |one_ecx, seven_ebx, xcr0| level(&Fake { leaves: 7, one_ecx, seven_ebx, xcr0 });
        assert_eq!(fake(V3_1, V4_7, Some(0xe7)), AVX512);
        assert_eq!(fake(V3_1, V4_7, Some(0x07)), AVX2, "ZMM is not saved");
        assert_eq!(fake(V3_1, V4_7, Some(0x67)), AVX2, "the upper sixteen ZMM are not saved");
        assert_eq!(fake(V3_1, V3_7, Some(0xe7)), AVX2);
        assert_eq!(fake(V3_1, V4_7, Some(0x03)), SCALAR, "YMM is not saved");
        assert_eq!(fake(V3_1 & !(1 << 27), V4_7, None), SCALAR, "no OSXSAVE");
        assert_eq!(fake(V3_1 & !(1 << 12), V4_7, Some(0xe7)), SCALAR, "no FMA");
        assert_eq!(fake(V3_1 & !(1 << 29), V4_7, Some(0xe7)), SCALAR, "no F16C");
        assert_eq!(fake(V3_1, V3_7 & !(1 << 5), Some(0xe7)), SCALAR, "no AVX2");
        let old = Fake { leaves: 6, one_ecx: V3_1, seven_ebx: V4_7, xcr0: None };
        assert_eq!(level(&old), SCALAR);
    }
}
