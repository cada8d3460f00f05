//! aarch64: Neon's conversions of f16, written in assembly, because the compiler has no stable type for these
//! elements.

use core::arch::aarch64::*;
use core::arch::asm;

use half::f16;

/// FPCR: rounding, flushing of denormals, and which exceptions trap.
#[cfg(feature = "std")]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Mode(u64);

#[cfg(feature = "std")]
impl Mode {
    pub(super) fn get() -> Self {
        let fpcr;
        // SAFETY: every program may read FPCR.
        unsafe { asm!("mrs {}, fpcr", out(reg) fpcr, options(nostack, preserves_flags)) };
        Self(fpcr)
    }

    /// # Safety
    /// The code that runs until the mode is set back must tolerate it.
    pub(super) unsafe fn set(self) {
        // SAFETY: the value is one that `get` has read; the rest is the caller's promise.
        unsafe { asm!("msr fpcr, {}", in(reg) self.0, options(nostack)) };
    }
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
        // SAFETY: both arrays have four elements.
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
        // SAFETY: both arrays have four elements.
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
