//! Instruction sets as values, and the one place where code is dispatched to them.
//!
//! A value of [`Isa`] proves that the machine has the instruction set: the only way to obtain one is by the
//! constructors, which detect it. Detection is only the default; tests, benches and callers may pin any
//! value.
//!
//! This module is the only place with `cfg(target_arch)`.
#![allow(unsafe_code, reason = "XGETBV, prefetch hints, and instructions that pulp does not have")]

#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(target_arch = "x86_64")]
mod x86;

use core::fmt;

use half::f16;
use pulp::{Simd, WithSimd};

use crate::error::{Error, Result};
use crate::math::{GROUP, sum_group};

macro_rules! proof {
    ($($(#[$doc:meta])* $name:ident),*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name(());
    )*};
}

proof! {
    /// Proof that AVX2, FMA and F16C (x86-64-v3) are available and the OS saves their registers.
    Avx2,
    /// Proof that AVX-512 F, BW, CD, DQ and VL (x86-64-v4) are available and the OS saves their registers.
    Avx512,
    /// Proof that Neon is available.
    Neon,
    /// Proof that this was compiled for WebAssembly with `simd128`.
    Simd128
}

/// An instruction set that this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust, one lane, as the compiler translates it. It is available everywhere but in WebAssembly
    /// modules compiled with `simd128`.
    Scalar,
    /// 8 lanes, 16 registers.
    Avx2(Avx2),
    /// 16 lanes, 32 registers.
    Avx512(Avx512),
    /// 4 lanes, 32 registers.
    Neon(Neon),
    /// 4 lanes. A module is compiled with it or without it: these are the only vectors that are not detected
    /// at run time.
    Simd128(Simd128),
}

/// Whether there are no scalar kernels. A WebAssembly module that is compiled with `simd128` does not load on an
/// engine without it, so scalar kernels would be half of its code and never the best choice.
const VECTORS_ONLY: bool = cfg!(all(target_arch = "wasm32", target_feature = "simd128"));

/// The names of all instruction sets, best last; [`Isa::from_name`] tells which of them this machine has.
pub const NAMES: [&str; 5] = ["scalar", "simd128", "neon", "avx2", "avx512"];

impl Isa {
    /// AVX2, if this machine has it.
    pub fn avx2() -> Option<Isa> {
        matches!(level(), AVX2 | AVX512).then_some(Isa::Avx2(Avx2(())))
    }

    /// AVX-512, if this machine has it.
    pub fn avx512() -> Option<Isa> {
        (level() == AVX512).then_some(Isa::Avx512(Avx512(())))
    }

    /// Neon, if this machine has it.
    pub fn neon() -> Option<Isa> {
        (level() == NEON).then_some(Isa::Neon(Neon(())))
    }

    /// WebAssembly's 128-bit vectors, if this was compiled with them.
    pub fn simd128() -> Option<Isa> {
        (level() == SIMD128).then_some(Isa::Simd128(Simd128(())))
    }

    /// The instruction set of that name ([`NAMES`]), or an error if it is unknown or not available here.
    pub fn from_name(name: &str) -> Result<Isa> {
        let known = NAMES.into_iter().find(|known| known.eq_ignore_ascii_case(name));
        let isa = match known {
            Some("scalar") => (!VECTORS_ONLY).then_some(Isa::Scalar),
            Some("simd128") => Isa::simd128(),
            Some("neon") => Isa::neon(),
            Some("avx2") => Isa::avx2(),
            Some("avx512") => Isa::avx512(),
            _ => None,
        };
        isa.ok_or(Error::Isa { name: known.unwrap_or("asked for") })
    }

    /// All instruction sets that this machine has, best last; never empty.
    pub fn available() -> impl Iterator<Item = Isa> {
        NAMES.into_iter().filter_map(|name| Isa::from_name(name).ok())
    }

    /// The best instruction set that this machine has.
    pub fn best() -> Isa {
        let vectors = Isa::avx512().or(Isa::avx2()).or(Isa::neon()).or(Isa::simd128());
        vectors.unwrap_or(Isa::Scalar)
    }

    /// The default: with `std`, the set that the environment variable `CHUNKWISE_ISA` names (it is read once;
    /// a set that is not available is an error and not silently replaced), else [`Isa::best`].
    pub fn choose() -> Result<Isa> {
        #[cfg(feature = "std")]
        {
            static CHOSEN: std::sync::OnceLock<Result<Isa>> = std::sync::OnceLock::new();
            *CHOSEN.get_or_init(|| match std::env::var_os("CHUNKWISE_ISA") {
                Some(name) if !name.is_empty() => {
                    Isa::from_name(&name.to_string_lossy()).map_err(|e| match e {
                        Error::Isa { name: "asked for" } => Error::Isa { name: "in CHUNKWISE_ISA" },
                        other => other,
                    })
                }
                _ => Ok(Isa::best()),
            })
        }
        #[cfg(not(feature = "std"))]
        Ok(Isa::best())
    }

    /// The instruction set that is given, or the default.
    pub(crate) fn resolve(given: Option<Isa>) -> Result<Isa> {
        given.map_or_else(Isa::choose, Ok)
    }

    /// The name of this instruction set, as [`Isa::from_name`] takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Neon(_) => "neon",
            Isa::Simd128(_) => "simd128",
            Isa::Avx2(_) => "avx2",
            Isa::Avx512(_) => "avx512",
        }
    }

    /// The number of f32 lanes in one vector.
    pub const fn lanes(self) -> usize {
        match self {
            Isa::Scalar if !VECTORS_ONLY => 1,
            Isa::Scalar | Isa::Neon(_) | Isa::Simd128(_) => 4,
            Isa::Avx2(_) => 8,
            Isa::Avx512(_) => 16,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Runs a kernel under an instruction set. All functions that the kernel calls must be `#[inline(always)]`;
/// one call that stays out of line costs a factor of ten.
pub(crate) fn dispatch<Op: WithSimd>(isa: Isa, op: Op) -> Op::Output {
    // pulp's own check (a cached load) repeats ours; it is what makes it safe to obtain its tokens. Every arm falls through to
    // one scalar call, because each call compiles the kernel again.
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(_) => {
            if let Some(simd) = pulp::x86::V4::try_new() {
                return Simd::vectorize(simd, op);
            }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(_) => {
            if let Some(simd) = pulp::x86::V3::try_new() {
                return Simd::vectorize(simd, op);
            }
        }
        #[cfg(target_arch = "aarch64")]
        Isa::Neon(_) => {
            if let Some(simd) = pulp::aarch64::Neon::try_new() {
                return Simd::vectorize(simd, op);
            }
        }
        _ => {}
    }
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    {
        // SAFETY: the whole module is compiled with simd128. (After pulp's own check the compiler would keep code for the case
        // that it fails.)
        let simd = unsafe { pulp::wasm::Simd128::new_unchecked() };
        Simd::vectorize(simd, op)
    }
    #[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
    op.with_simd(pulp::Scalar::new())
}

/// Runs a step of a dispatched kernel as a function of its own. In one inlined body, the constants of one
/// loop would be kept alive through all the others and fill their registers; a call that is made once in
/// thousands of cycles is cheaper. (It is certain that the step is not inlined: a function with fewer target
/// features can't inline one with more.)
#[inline(never)]
pub(crate) fn outline<S: Simd, Op: WithSimd>(simd: S, op: Op) -> Op::Output {
    simd.vectorize(op)
}

/// How a thread rounds, and whether it flushes denormal numbers to zero; the operating system keeps this mode
/// for each thread. Rust assumes the default mode. A caller that has another mode (audio hosts flush) runs
/// the kernels in it, and so must the other threads of the call, or bits would depend on which thread runs a
/// task. The mode is read and set on x86-64 and AArch64.
#[cfg(feature = "std")]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct FloatMode(Mode);

#[cfg(all(feature = "std", target_arch = "aarch64"))]
use arm::Mode;
#[cfg(all(feature = "std", target_arch = "x86_64"))]
use x86::Mode;

#[cfg(all(feature = "std", not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mode;

#[cfg(all(feature = "std", not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
impl Mode {
    fn get() -> Self {
        Self
    }

    unsafe fn set(self) {}
}

#[cfg(feature = "std")]
impl FloatMode {
    /// The mode of the calling thread.
    pub(crate) fn current() -> Self {
        Self(Mode::get())
    }

    /// Runs `op` in this mode; the thread's own mode is restored afterwards, even if `op` panics.
    pub(crate) fn during(self, op: impl FnOnce()) {
        struct Restore(Mode);
        impl Drop for Restore {
            fn drop(&mut self) {
                // SAFETY: it was this thread's own mode.
                unsafe { self.0.set() }
            }
        }
        let own = Self::current();
        let _restore = (own != self).then(|| {
            // SAFETY: this is the mode of a thread that runs the same code at the same time, and so already
            // relies on the compiler to leave its arithmetic where it is: between here and `_restore` there
            // are only loads, stores and calls out of line, which do not move across a write to the register.
            unsafe { self.0.set() };
            Restore(own.0)
        });
        op();
    }
}

/// Whether [`prefetch`] does anything.
pub(crate) const PREFETCHES: bool = cfg!(target_arch = "x86_64");

/// Rows at a stride. The stride and the length of a row, `bytes`, are in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Lines {
    pub(crate) first: *const u8,
    pub(crate) stride: isize,
    pub(crate) bytes: usize,
}

impl Lines {
    pub(crate) const NONE: Self = Self { first: core::ptr::null(), stride: 0, bytes: 0 };

    /// Rows of `len` elements of a tensor, which is given by its address and the size of an element in bytes. The
    /// first element and the stride are in elements.
    #[inline(always)]
    pub(crate) fn rows((data, size): (*const u8, usize), first: usize, stride: usize, len: usize) -> Self {
        Self { first: data.wrapping_add(first * size), stride: (stride * size) as isize, bytes: len * size }
    }

    /// The same rows backwards, from the same row on.
    #[inline(always)]
    pub(crate) fn reversed(self) -> Self {
        Self { stride: -self.stride, ..self }
    }
}

/// The number of bytes in a cache line.
pub(crate) const LINE: usize = 64;

/// Prefetches a cache line that will be read or written some microseconds later.
#[inline(always)]
pub(crate) fn prefetch(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: this is a hint, valid for any address; SSE is part of x86-64.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// The sums of sixteen groups, each in the tree of [`sum_group`]. On x86-64 the partial sums of two groups
/// fill a vector after each step of the tree, so that all sixteen together cost no more than two groups cost
/// alone.
#[inline(always)]
pub(crate) fn sum_groups<S: Simd>(_: S, groups: &[[f32; GROUP]; GROUP]) -> [f32; GROUP] {
    #[cfg(target_arch = "x86_64")]
    match S::F32_LANES {
        // SAFETY: S is pulp's V4, which `dispatch` reaches by an `Isa` that proves AVX-512.
        16 => return unsafe { x86::sum_groups_of_16(groups) },
        // SAFETY: S is pulp's V3, which `dispatch` reaches by an `Isa` that proves AVX2.
        8 => return unsafe { x86::sum_groups_of_8(groups) },
        _ => {}
    }
    groups.each_ref().map(sum_group)
}

/// Widens f16, with the instruction set's own conversion where it has one. Both slices have the same length.
#[inline(always)]
pub(crate) fn widen_f16<S: Simd>(_: S, from: &[f16], to: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if S::F32_LANES >= 8 {
        // SAFETY: with 8 lanes or more S is pulp's V3 or V4, which `dispatch` reaches by an `Isa` that proves
        // F16C.
        return unsafe { x86::widen_f16(from, to) };
    }
    #[cfg(target_arch = "aarch64")]
    if S::F32_LANES == 4 {
        // SAFETY: with 4 lanes S is pulp's Neon, which `dispatch` reaches by an `Isa` that proves it.
        return unsafe { arm::widen_f16(from, to) };
    }
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.to_f32();
    }
}

/// Rounds to the nearest f16, ties to even, with the instruction set's own conversion where it has one.
#[inline(always)]
pub(crate) fn narrow_f16<S: Simd>(_: S, from: &[f32], to: &mut [f16]) {
    #[cfg(target_arch = "x86_64")]
    if S::F32_LANES >= 8 {
        // SAFETY: as for `widen_f16`.
        return unsafe { x86::narrow_f16(from, to) };
    }
    #[cfg(target_arch = "aarch64")]
    if S::F32_LANES == 4 {
        // SAFETY: as for `widen_f16`.
        return unsafe { arm::narrow_f16(from, to) };
    }
    for (to, from) in to.iter_mut().zip(from) {
        *to = f16::from_f32(*from);
    }
}

// Levels, as cached and compared: on one architecture they are totally ordered.
const UNKNOWN: u8 = 0;
const SCALAR: u8 = 1;
const AVX2: u8 = 2;
const AVX512: u8 = 3;
const NEON: u8 = 4;
const SIMD128: u8 = 5;

/// The best level, detected once.
fn level() -> u8 {
    use core::sync::atomic::{AtomicU8, Ordering::Relaxed};
    static LEVEL: AtomicU8 = AtomicU8::new(UNKNOWN);
    match LEVEL.load(Relaxed) {
        UNKNOWN => {
            let level = ask();
            LEVEL.store(level, Relaxed);
            level
        }
        level => level,
    }
}

#[cfg(target_arch = "aarch64")]
fn ask() -> u8 {
    match pulp::aarch64::Neon::try_new() {
        Some(_) => NEON,
        None => SCALAR,
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn ask() -> u8 {
    if cfg!(all(target_arch = "wasm32", target_feature = "simd128")) { SIMD128 } else { SCALAR }
}

#[cfg(target_arch = "x86_64")]
fn ask() -> u8 {
    // pulp must agree: its tokens enable the features, so its list of them is the one that counts.
    match x86::level(&x86::Cpu) {
        AVX512 if pulp::x86::V4::try_new().is_some() => AVX512,
        AVX512 | AVX2 if pulp::x86::V3::try_new().is_some() => AVX2,
        _ => SCALAR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for isa in Isa::available() {
            assert_eq!(Isa::from_name(isa.name()), Ok(isa));
        }
        assert_eq!(Isa::available().next(), Some(Isa::Scalar));
        assert_eq!(Isa::from_name("mmx"), Err(Error::Isa { name: "asked for" }));
    }

    #[test]
    fn lanes_are_the_token_s() {
        struct Lanes;
        impl WithSimd for Lanes {
            type Output = usize;
            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) -> usize {
                S::F32_LANES
            }
        }
        for isa in Isa::available() {
            assert_eq!(dispatch(isa, Lanes), isa.lanes(), "{isa}");
        }
    }

    /// The numbers differ so much in size that another order of additions gives other bits.
    #[test]
    fn sums_of_groups_have_the_bits_of_one() {
        struct Sums<'a>(&'a [[f32; GROUP]; GROUP]);
        impl WithSimd for Sums<'_> {
            type Output = [f32; GROUP];
            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) -> [f32; GROUP] {
                sum_groups(simd, self.0)
            }
        }
        let mut groups = [[0.0; GROUP]; GROUP];
        for (i, x) in groups.as_flattened_mut().iter_mut().enumerate() {
            *x = libm::sinf(i as f32) * libm::exp2f((i * 7 % 23) as f32);
        }
        for isa in Isa::available() {
            assert_eq!(dispatch(isa, Sums(&groups)), groups.each_ref().map(sum_group), "{isa}");
        }
    }
}
