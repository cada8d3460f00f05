//! Copies between the rows of a tile and a tensor of any type and strides.

use half::{bf16, f16};
use pulp::Simd;

use super::Strides;
use crate::element::{Elements, ElementsMut, widen};

/// The place of some tokens of some channels in a tensor, and their layout in a tile.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) offset: usize,
    pub(super) strides: Strides,
    pub(super) tokens: usize,
    pub(super) channels: usize,
    /// Elements from one row of the tile to the next; 1 for one channel along its tokens.
    pub(super) pitch: usize,
}

impl Part {
    /// The runs of contiguous elements of the part, unless no two elements are contiguous.
    #[inline(always)]
    fn runs(&self) -> Option<Runs> {
        let Self { strides, tokens, channels, pitch, .. } = *self;
        if pitch == 1 {
            // One channel, along its tokens.
            Some(Runs { stride: 0, count: 1, len: tokens })
        } else if strides.channel == 1 || channels == 1 {
            Some(Runs { stride: strides.token, count: tokens, len: channels })
        } else {
            None
        }
    }
}

/// Runs of `len` elements that begin `stride` apart in a tensor; in a tile each is a row.
struct Runs {
    stride: usize,
    count: usize,
    len: usize,
}

/// Widens a part of x into the rows of a tile, which are padded with zeros.
#[inline(always)]
pub(super) fn read_part<S: Simd>(simd: S, x: Elements<'_>, part: Part, rows: &mut [f32]) {
    match part.runs() {
        Some(Runs { stride, count, len }) => {
            for run in 0..count {
                let begin = part.offset + run * stride;
                let row = &mut rows[run * part.pitch..][..len.max(part.pitch)];
                widen(simd, x.slice(begin..begin + len), row);
            }
        }
        None => match x {
            Elements::F32(x) => gather(x, part, rows, |x| x),
            Elements::Bf16(x) => gather(x, part, rows, bf16::to_f32),
            Elements::F16(x) => gather(x, part, rows, f16::to_f32),
        },
    }
}

/// Rounds the rows of a tile into a part of y.
#[inline(always)]
pub(super) fn write_part<S: Simd>(simd: S, y: &mut ElementsMut<'_>, part: Part, rows: &[f32]) {
    match part.runs() {
        Some(Runs { stride, count, len }) => {
            for run in 0..count {
                y.write(simd, part.offset + run * stride, &rows[run * part.pitch..][..len]);
            }
        }
        None => match y {
            ElementsMut::F32(y) => scatter(y, part, rows, |x| x),
            ElementsMut::Bf16(y) => scatter(y, part, rows, bf16::from_f32),
            ElementsMut::F16(y) => scatter(y, part, rows, f16::from_f32),
        },
    }
}

/// Copies a part element by element.
#[inline(always)]
fn gather<E: Copy>(from: &[E], part: Part, rows: &mut [f32], wide: impl Fn(E) -> f32) {
    let Part { offset, strides, tokens, channels, pitch } = part;
    for channel in 0..channels {
        for token in 0..tokens {
            let at = offset + channel * strides.channel + token * strides.token;
            rows[token * pitch + channel] = wide(from[at]);
        }
    }
}

/// Copies a part element by element.
#[inline(always)]
fn scatter<E: Copy>(to: &mut [E], part: Part, rows: &[f32], narrow: impl Fn(f32) -> E) {
    let Part { offset, strides, tokens, channels, pitch } = part;
    for channel in 0..channels {
        for token in 0..tokens {
            let at = offset + channel * strides.channel + token * strides.token;
            to[at] = narrow(rows[token * pitch + channel]);
        }
    }
}
