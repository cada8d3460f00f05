//! Instruction sets as values, and the one place where code is dispatched to them.
//!
//! A value of [`Isa`] proves that the machine has the instruction set: the only ways to one are the
//! constructors, which ask. Detection is only the default; tests, benches and callers may pin any value.
//!
//! This is the only file with `cfg(target_arch)`.
#![allow(unsafe_code, reason = "XGETBV, and prefetch hints")]

use core::fmt;

use half::f16;
use pulp::{Simd, WithSimd};

use crate::error::{Error, Result};

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
    /// Plain Rust, one lane: what the compiler makes of it.
    Scalar,
    /// 8 lanes, 16 registers.
    Avx2(Avx2),
    /// 16 lanes, 32 registers.
    Avx512(Avx512),
    /// 4 lanes, 32 registers.
    Neon(Neon),
    /// 4 lanes. A module either has it or not: this is the only set that nothing is asked for at run time.
    Simd128(Simd128),
}

/// Every name there is, best last; [`Isa::from_name`] says which of them this machine has.
pub const NAMES: [&str; 5] = ["scalar", "simd128", "neon", "avx2", "avx512"];

impl Isa {
    /// AVX2, if this machine has it.
    pub fn avx2() -> Option<Isa> {
        matches!(detect(), AVX2 | AVX512).then_some(Isa::Avx2(Avx2(())))
    }

    /// AVX-512, if this machine has it.
    pub fn avx512() -> Option<Isa> {
        (detect() == AVX512).then_some(Isa::Avx512(Avx512(())))
    }

    /// Neon, if this machine has it.
    pub fn neon() -> Option<Isa> {
        (detect() == NEON).then_some(Isa::Neon(Neon(())))
    }

    /// WebAssembly's 128-bit vectors, if this was compiled with them.
    pub fn simd128() -> Option<Isa> {
        (detect() == SIMD128).then_some(Isa::Simd128(Simd128(())))
    }

    /// The instruction set of that name ([`NAMES`]), or an error if it is unknown or not available here.
    pub fn from_name(name: &str) -> Result<Isa> {
        let known = NAMES.into_iter().find(|known| known.eq_ignore_ascii_case(name));
        let isa = match known {
            Some("scalar") => Some(Isa::Scalar),
            Some("simd128") => Isa::simd128(),
            Some("neon") => Isa::neon(),
            Some("avx2") => Isa::avx2(),
            Some("avx512") => Isa::avx512(),
            _ => None,
        };
        isa.ok_or(Error::Isa { name: known.unwrap_or("asked for") })
    }

    /// All that this machine has, best last. Never empty.
    pub fn available() -> impl Iterator<Item = Isa> {
        NAMES.into_iter().filter_map(|name| Isa::from_name(name).ok())
    }

    /// The best that this machine has.
    pub fn best() -> Isa {
        Isa::available().last().unwrap_or(Isa::Scalar)
    }

    /// The default: with `std`, what the environment variable `CHUNKWISE_ISA` names (read once; an error if it
    /// can't be had, rather than a silent substitute), else [`Isa::best`].
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

    /// Its name, as [`Isa::from_name`] takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Neon(_) => "neon",
            Isa::Simd128(_) => "simd128",
            Isa::Avx2(_) => "avx2",
            Isa::Avx512(_) => "avx512",
        }
    }

    /// f32 lanes in one vector.
    pub const fn lanes(self) -> usize {
        match self {
            Isa::Scalar => 1,
            Isa::Neon(_) | Isa::Simd128(_) => 4,
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

/// Runs a kernel under an instruction set. Everything below must be `#[inline(always)]`; one call that stays
/// out of line costs a factor of ten.
pub(crate) fn dispatch<Op: WithSimd>(isa: Isa, op: Op) -> Op::Output {
    // pulp's own check (a cached load) repeats ours: it is what makes its tokens safe to have.
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(_) => match pulp::x86::V4::try_new() {
            Some(simd) => Simd::vectorize(simd, op),
            None => op.with_simd(pulp::Scalar::new()),
        },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(_) => match pulp::x86::V3::try_new() {
            Some(simd) => Simd::vectorize(simd, op),
            None => op.with_simd(pulp::Scalar::new()),
        },
        #[cfg(target_arch = "aarch64")]
        Isa::Neon(_) => match pulp::aarch64::Neon::try_new() {
            Some(simd) => Simd::vectorize(simd, op),
            None => op.with_simd(pulp::Scalar::new()),
        },
        // Not where it is only enabled at run time: a module with one such instruction doesn't load elsewhere.
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        Isa::Simd128(_) => match pulp::wasm::Simd128::try_new() {
            Some(simd) => Simd::vectorize(simd, op),
            None => op.with_simd(pulp::Scalar::new()),
        },
        _ => op.with_simd(pulp::Scalar::new()),
    }
}

/// A step of a dispatched kernel as a function of its own. Inlined into one body, constants of one loop are kept
/// alive through all the others and fill their registers; a call that is made once in thousands of cycles is
/// cheaper. (That it isn't inlined is certain: a function with fewer features can't take in one with more.)
#[inline(never)]
pub(crate) fn outline<S: Simd, Op: WithSimd>(simd: S, op: Op) -> Op::Output {
    simd.vectorize(op)
}

/// Asks for the cache lines of `len` bytes that will be read or written some microseconds from now.
#[inline(always)]
pub(crate) fn prefetch(row: *const u8, len: usize) {
    for at in (0..len).step_by(64) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint, valid on any address; SSE is part of x86-64.
        unsafe {
            use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(at).cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (row, at);
    }
}

/// Widens f16, by the instruction set's own conversion where it has one. Both have one length.
#[inline(always)]
pub(crate) fn widen_f16<S: Simd>(_: S, from: &[f16], to: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if S::F32_LANES >= 8 {
        // SAFETY: with 8 lanes or more S is pulp's V3 or V4, which `dispatch` reaches by an `Isa` that proves F16C.
        return unsafe { x86::widen_f16(from, to) };
    }
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.to_f32();
    }
}

/// Rounds to f16, to nearest, ties to even, likewise.
#[inline(always)]
pub(crate) fn narrow_f16<S: Simd>(_: S, from: &[f32], to: &mut [f16]) {
    #[cfg(target_arch = "x86_64")]
    if S::F32_LANES >= 8 {
        // SAFETY: as for `widen_f16`.
        return unsafe { x86::narrow_f16(from, to) };
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
fn detect() -> u8 {
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
    if pulp::aarch64::Neon::try_new().is_some() { NEON } else { SCALAR }
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

/// Detection that is sound without an operating system's help: CPUID says what the CPU can do, XGETBV what the
/// OS (or the firmware) saves across a context switch; only both together allow the wider registers.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{AVX2, AVX512, SCALAR};
    use core::arch::x86_64::*;

    use half::f16;

    /// Rows at a time: pulp's tokens don't include F16C, so these are calls, never inlined.
    #[target_feature(enable = "avx,f16c")]
    pub(super) fn widen_f16(from: &[f16], to: &mut [f32]) {
        let (from8, from_tail) = from.as_chunks::<8>();
        let (to8, to_tail) = to[..from.len()].as_chunks_mut::<8>();
        for (to, from) in to8.iter_mut().zip(from8) {
            // SAFETY: 16 bytes are read from an array of 16, 32 written to one of 32; neither need be aligned.
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())))
            };
        }
        let mut padded = [f16::ZERO; 8];
        padded[..from_tail.len()].copy_from_slice(from_tail);
        let mut wide = [0.0; 8];
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(wide.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(padded.as_ptr().cast())))
        };
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

    /// What detection asks; a trait so that tests can lie.
    pub(super) trait Ask {
        /// EAX, EBX, ECX, EDX of a leaf and subleaf.
        fn cpuid(&self, leaf: u32, sub: u32) -> [u32; 4];
        /// XCR0; asked only where CPUID says OSXSAVE.
        fn xcr0(&self) -> u64;
    }

    pub(super) struct Cpu;

    impl Ask for Cpu {
        fn cpuid(&self, leaf: u32, sub: u32) -> [u32; 4] {
            #[allow(
                unused_unsafe,
                reason = "CPUID became a safe function in newer compilers than our minimum"
            )]
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
        if has(seven_ebx, &[16, 17, 28, 30, 31]) && has(xcr0, &[5, 6, 7]) { AVX512 } else { AVX2 }
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
            fn cpuid(&self, leaf: u32, _: u32) -> [u32; 4] {
                match leaf {
                    0 => [self.leaves, 0, 0, 0],
                    1 => [0, 0, self.one_ecx, 0],
                    _ => [0, self.seven_ebx, 0, 0],
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
}
