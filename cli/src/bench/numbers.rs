//! Numbers to measure with, of any element type, and the errors of results. The criterion benches include
//! this file too.
#![allow(dead_code, reason = "each program uses a part of this file")]

use chunkwise::element::Element;
use half::{bf16, f16};

use super::memory::Aligned;

/// Numbers in [-1, 1), the same every time.
pub(crate) fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// An element type in which f32 can be stored.
pub(crate) trait Number: Element {
    fn store(x: f32) -> Self;
    fn load(self) -> f32;
}

impl Number for f32 {
    fn store(x: f32) -> Self {
        x
    }
    fn load(self) -> f32 {
        self
    }
}

impl Number for bf16 {
    fn store(x: f32) -> Self {
        bf16::from_f32(x)
    }
    fn load(self) -> f32 {
        self.to_f32()
    }
}

impl Number for f16 {
    fn store(x: f32) -> Self {
        f16::from_f32(x)
    }
    fn load(self) -> f32 {
        self.to_f32()
    }
}

pub(crate) fn stored<E: Number>(from: &[f32]) -> Vec<E> {
    from.iter().copied().map(E::store).collect()
}

/// The numbers stored from the beginning of a cache line on.
pub(crate) fn stored_aligned<E: Number>(from: &[f32]) -> Aligned<E> {
    Aligned::copy_of(&stored(from))
}

pub(crate) fn loaded<E: Number>(from: &[E]) -> Vec<f32> {
    from.iter().copied().map(E::load).collect()
}

/// The error of a result, `||got - want|| / ||want||`, and the documented bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Error {
    pub(crate) norm: f64,
    pub(crate) allowed: f64,
}

/// The documented bounds of f32, without and with the delta rule, and the number of tokens up to which they
/// hold. Beyond that number they grow in proportion to the number of tokens.
const BOUNDS: ([f64; 2], usize) = ([2e-6, 3e-6], 4096);
/// The factor by which the error of a 16-bit type may exceed that of rounding inputs and outputs.
const OVER_ROUNDING: f64 = 1.5;

/// The largest norm error allowed for f32.
pub(crate) fn allowed_f32(delta: bool, len: usize) -> f64 {
    let ([linear, corrected], tokens) = BOUNDS;
    (if delta { corrected } else { linear }) * (len as f64 / tokens as f64).max(1.0)
}

/// The largest norm error allowed for a 16-bit type, where rounding alone takes outputs from `want` to
/// `rounded`.
pub(crate) fn over_rounding(rounded: &[f32], want: &[f64]) -> f64 {
    OVER_ROUNDING * norm_error(rounded, want)
}

impl Error {
    #[track_caller]
    pub(crate) fn assert(self) {
        assert!(self.norm <= self.allowed, "{self:?}");
    }
}

/// The norm error. It is NaN, which no bound allows, where one of the results is.
pub(crate) fn norm_error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "compared element by element");
    let difference: f64 = got.iter().zip(want).map(|(got, want)| (f64::from(*got) - want).powi(2)).sum();
    let size: f64 = want.iter().map(|want| want.powi(2)).sum();
    if difference == 0.0 { 0.0 } else { (difference / size).sqrt() }
}
