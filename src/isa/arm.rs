//! aarch64: Neon's conversions of f16, and the dot products of FEAT_BF16. Written as assembly: the compiler has no
//! stable types of these elements.

use core::arch::aarch64::*;
use core::arch::asm;

use half::f16;

use super::pairs::{DotPairs, Pairs};

/// Whether the CPU has BFDOT: asked of the system with `std`, else known only when compiled for it.
pub(super) fn has_bf16() -> bool {
    #[cfg(feature = "std")]
    return std::arch::is_aarch64_feature_detected!("bf16");
    #[cfg(not(feature = "std"))]
    return cfg!(target_feature = "bf16");
}

#[inline]
#[target_feature(enable = "neon")]
fn widen4(half: uint16x4_t) -> float32x4_t {
    let wide;
    // SAFETY: FCVTL of halves is part of Neon.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) wide, in(vreg) half, options(pure, nomem, nostack, preserves_flags));
    }
    wide
}

#[inline]
#[target_feature(enable = "neon")]
fn narrow4(wide: float32x4_t) -> uint16x4_t {
    let half;
    // SAFETY: as above; rounds as FPCR says, which Rust assumes to be to nearest even.
    unsafe {
        asm!("fcvtn {0:v}.4h, {1:v}.4s", out(vreg) half, in(vreg) wide, options(pure, nomem, nostack, preserves_flags));
    }
    half
}

#[target_feature(enable = "neon")]
pub(super) fn widen_f16(from: &[f16], to: &mut [f32]) {
    let (from4, from_tail) = from.as_chunks::<4>();
    let (to4, to_tail) = to[..from.len()].as_chunks_mut::<4>();
    let one = |from: &[f16; 4], to: &mut [f32; 4]| {
        // SAFETY: arrays of four.
        unsafe { vst1q_f32(to.as_mut_ptr(), widen4(vld1_u16(from.as_ptr().cast()))) }
    };
    for (to, from) in to4.iter_mut().zip(from4) {
        one(from, to);
    }
    let (mut padded, mut wide) = ([f16::ZERO; 4], [0.0; 4]);
    padded[..from_tail.len()].copy_from_slice(from_tail);
    one(&padded, &mut wide);
    to_tail.copy_from_slice(&wide[..to_tail.len()]);
}

#[target_feature(enable = "neon")]
pub(super) fn narrow_f16(from: &[f32], to: &mut [f16]) {
    let (from4, from_tail) = from.as_chunks::<4>();
    let (to4, to_tail) = to[..from.len()].as_chunks_mut::<4>();
    let one = |from: &[f32; 4], to: &mut [f16; 4]| {
        // SAFETY: arrays of four.
        unsafe { vst1_u16(to.as_mut_ptr().cast(), narrow4(vld1q_f32(from.as_ptr()))) }
    };
    for (to, from) in to4.iter_mut().zip(from4) {
        one(from, to);
    }
    let (mut padded, mut half) = ([0.0; 4], [f16::ZERO; 4]);
    padded[..from_tail.len()].copy_from_slice(from_tail);
    one(&padded, &mut half);
    to_tail.copy_from_slice(&half[..to_tail.len()]);
}

struct NeonBf16;

impl Pairs for NeonBf16 {
    const LANES: usize = 4;
    type F32 = float32x4_t;
    type U32 = uint32x4_t;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> float32x4_t {
        // SAFETY: the caller's promise, as below.
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, sums: float32x4_t) {
        // SAFETY: as above.
        unsafe { vst1q_f32(to, sums) }
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const u32) -> uint32x4_t {
        // SAFETY: as above.
        unsafe { vld1q_u32(from) }
    }
    #[inline(always)]
    unsafe fn splat(pair: u32) -> uint32x4_t {
        // SAFETY: as above.
        unsafe { vdupq_n_u32(pair) }
    }
    #[inline(always)]
    unsafe fn dot(sums: float32x4_t, a: uint32x4_t, b: uint32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { bfdot(sums, a, b) }
    }
}

#[inline]
#[target_feature(enable = "neon,bf16")]
fn bfdot(mut sums: float32x4_t, a: uint32x4_t, b: uint32x4_t) -> float32x4_t {
    // SAFETY: BFDOT is part of FEAT_BF16, which the function asks for.
    unsafe {
        asm!(
            "bfdot {0:v}.4s, {1:v}.8h, {2:v}.8h",
            inout(vreg) sums, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// # Safety
/// As for [`DotPairs::run_on`].
#[target_feature(enable = "neon,bf16")]
pub(super) unsafe fn dot_pairs(args: DotPairs<'_>) {
    // SAFETY: the caller's promise.
    unsafe { args.run_on::<NeonBf16>() }
}
