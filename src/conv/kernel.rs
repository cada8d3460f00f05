//! Tiles of tokens and channels, copied beside what came before them, and convolved where they lie.
//!
//! ```text
//! for each block of channels, for each sequence, for each tile of its tokens:
//!     rows = [the W-1 inputs before the tile | the tile's]          f32, from the state and from x in its type and strides
//!     if the sequence ends here: state = the last W-1 rows
//!     for each row t of the tile:  rows[t] = bias + weight[0] rows[t] + .. + weight[W-1] rows[t + W-1]
//!     rows[..] = silu(rows[..])
//!     y = rows[..]
//! ```
//!
//! 1. A row is replaced by its output as soon as no later one needs it, so that one buffer on the stack is enough.
//! 2. Along channels a row is one token of some channels. Where tokens are contiguous, as in `[B, C, T]`, the same loop runs
//!    along tokens: a row is one element, and a vector is as many tokens of one channel. Only the distance between taps
//!    and the vectors of weights differ, so the chain of an output is the same.
//! 3. Rows are padded to whole vectors of any instruction set: no loop has a tail.

use core::ops::Range;

use half::{bf16, f16};
use pulp::{Simd, WithSimd};

use super::{Activation, Config, MAX_WIDTH, Strides, Tensors};
use crate::attention::State;
use crate::element::{Elements, ElementsMut, widen};
use crate::isa::outline;
use crate::math::silu;
use crate::scratch::round_up;
use crate::vector::{copy_row, load, store};

/// Channels that are computed together: a few cache lines of each token.
const BLOCK: usize = 64;

/// The longest vector of any instruction set.
const PAD: usize = 16;

/// Elements of the rows of a tile, on the stack: with 64 channels and 4 taps, 29 tokens behind 3 others.
const ROWS: usize = 2048;

/// One call, checked.
pub(super) struct Task<'a> {
    pub(super) config: &'a Config,
    /// Tokens of a sequence, unless there are ragged ones.
    pub(super) len: usize,
    pub(super) tensors: Tensors<'a>,
    pub(super) state: State<'a>,
}

/// What a call works in, on the stack.
struct Space {
    rows: [f32; ROWS],
    /// The taps of a block, `[W, pitch]`.
    taps: [f32; MAX_WIDTH * BLOCK],
    /// `[pitch]`.
    bias: [f32; BLOCK],
}

/// Channels that are computed together, and the elements from one row of them to the next.
#[derive(Clone)]
struct Block {
    channels: Range<usize>,
    pitch: usize,
}

/// A sequence: which it is, where x and y begin, and how many tokens it has.
#[derive(Clone, Copy)]
struct Sequence {
    index: usize,
    x: usize,
    y: usize,
    len: usize,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let Config { batch, channels, x_strides, y_strides, .. } = *self.config;
        // Along tokens where they are contiguous on both sides, and channels are not.
        let along_tokens = |strides: Strides| strides.token == 1 && strides.channel != 1;
        let along_tokens = self.len > 1 && along_tokens(x_strides) && along_tokens(y_strides);
        let step = if along_tokens { 1 } else { BLOCK };
        let mut space = Space { rows: [0.0; ROWS], taps: [0.0; MAX_WIDTH * BLOCK], bias: [0.0; BLOCK] };
        for first in (0..channels).step_by(step) {
            let channels = first..channels.min(first + step);
            let pitch = if along_tokens { 1 } else { round_up(channels.len(), PAD) };
            let most = if along_tokens { ROWS - PAD - MAX_WIDTH } else { ROWS / pitch - MAX_WIDTH };
            let block = Block { channels, pitch };
            self.load_weights(&block, &mut space);
            for index in 0..batch {
                let sequence = self.sequence(index);
                let mut begin = 0;
                // A sequence without tokens is one tile without tokens, which passes on its state.
                loop {
                    let tokens = begin..sequence.len.min(begin + most);
                    begin = tokens.end;
                    self.tile(simd, &block, (sequence, tokens), &mut space);
                    if begin == sequence.len {
                        break;
                    }
                }
            }
        }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn sequence(&self, index: usize) -> Sequence {
        let Config { x_strides, y_strides, .. } = self.config;
        match self.tensors.sequences {
            Some(sequences) => {
                let (begin, end) = (sequences[index] as usize, sequences[index + 1] as usize);
                // Where no token follows, the strides may lead beyond any address.
                let first = if begin == end { 0 } else { begin };
                let (x, y) = (first * x_strides.token, first * y_strides.token);
                Sequence { index, x, y, len: end - begin }
            }
            None => Sequence { index, x: index * x_strides.batch, y: index * y_strides.batch, len: self.len },
        }
    }

    /// The taps and the bias of a block, padded with zeros.
    #[inline(always)]
    fn load_weights(&self, block: &Block, space: &mut Space) {
        let (width, Block { channels, pitch }) = (self.config.width, block.clone());
        let Space { taps, bias, .. } = space;
        if channels.len() < pitch {
            taps[..width * pitch].fill(0.0);
            bias[..pitch].fill(0.0);
        }
        let weight = &self.tensors.weight[channels.start * width..channels.end * width];
        for (channel, weight) in weight.chunks_exact(width).enumerate() {
            for (j, weight) in weight.iter().enumerate() {
                taps[j * pitch + channel] = *weight;
            }
        }
        if let Some(given) = self.tensors.bias {
            bias[..channels.len()].copy_from_slice(&given[channels]);
        }
    }

    #[inline(always)]
    fn tile<S: Simd>(
        &mut self,
        simd: S,
        block: &Block,
        (sequence, tokens): (Sequence, Range<usize>),
        space: &mut Space,
    ) {
        let Config { channels: all, width, activation, x_strides, y_strides, .. } = *self.config;
        let Block { channels, pitch } = block.clone();
        let Space { rows, taps, bias } = space;
        let (history, len, count) = (width - 1, tokens.len(), channels.len());

        // The inputs before the tile that are in the state, or zero, and those that are in x.
        let known = tokens.start.min(history);
        let state_row = |row: usize| {
            let begin = (sequence.index * history + row) * all;
            begin + channels.start..begin + channels.end
        };
        for row in 0..history - known {
            let to = &mut rows[row * pitch..][..pitch];
            match initial(&self.state) {
                Some(state) => copy_row(simd, &state[state_row(known + row)], to),
                None => to.fill(0.0),
            }
        }
        let first = tokens.start - known;
        let offset = sequence.x + first * x_strides.token + channels.start * x_strides.channel;
        let part = Part { offset, strides: x_strides, tokens: tokens.end - first, channels: count, pitch };
        read_part(simd, self.tensors.x, part, &mut rows[(history - known) * pitch..]);

        if tokens.end == sequence.len
            && let Some(state) = last(&mut self.state)
        {
            for row in 0..history {
                copy_row(simd, &rows[(len + row) * pitch..][..count], &mut state[state_row(row)]);
            }
        }
        if len == 0 {
            return;
        }

        let chains = Chains { taps: &taps[..width * pitch], bias: &bias[..pitch], rows, tokens: len };
        match width {
            1 => outline(simd, Width::<1>(chains)),
            2 => outline(simd, Width::<2>(chains)),
            3 => outline(simd, Width::<3>(chains)),
            4 => outline(simd, Width::<4>(chains)),
            5 => outline(simd, Width::<5>(chains)),
            6 => outline(simd, Width::<6>(chains)),
            7 => outline(simd, Width::<7>(chains)),
            _ => outline(simd, Width::<8>(chains)),
        }
        if activation == Activation::Silu {
            for x in S::as_mut_simd_f32s(&mut rows[..round_up(len * pitch, PAD)]).0 {
                *x = silu(simd, *x);
            }
        }
        let offset = sequence.y + tokens.start * y_strides.token + channels.start * y_strides.channel;
        let part = Part { offset, strides: y_strides, tokens: len, channels: count, pitch };
        write_part(simd, &mut self.tensors.y, part, rows);
    }
}

/// The state that a call begins with, unless it is zero.
#[inline(always)]
fn initial<'s>(state: &'s State<'_>) -> Option<&'s [f32]> {
    match state {
        State::Zero | State::Final(_) => None,
        State::Initial(state) | State::InitialFinal(state, _) => Some(state),
        State::Carried(state) => Some(state),
    }
}

/// The state that is written at the end, if any.
#[inline(always)]
fn last<'s>(state: &'s mut State<'_>) -> Option<&'s mut [f32]> {
    match state {
        State::Zero | State::Initial(_) => None,
        State::Final(state) | State::InitialFinal(_, state) | State::Carried(state) => Some(state),
    }
}

/// The chains of a tile, in place: taps `[W, pitch]`, bias `[pitch]`.
struct Chains<'a> {
    taps: &'a [f32],
    bias: &'a [f32],
    rows: &'a mut [f32],
    tokens: usize,
}

/// A function of its own for each width, so that its weights stay in registers.
struct Width<'a, const W: usize>(Chains<'a>);

impl<const W: usize> WithSimd for Width<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Chains { taps, bias, rows, tokens } = self.0;
        let (lanes, pitch) = (S::F32_LANES, bias.len());
        if pitch == 1 {
            let mut wide = [simd.splat_f32s(0.0); W];
            for j in 0..W {
                wide[j] = simd.splat_f32s(taps[j]);
            }
            let bias = simd.splat_f32s(bias[0]);
            for first in (0..tokens).step_by(lanes) {
                chain(simd, &wide, bias, pitch, &mut rows[first..]);
            }
            return;
        }
        for column in (0..pitch).step_by(lanes) {
            let mut wide = [simd.splat_f32s(0.0); W];
            for j in 0..W {
                [wide[j]] = load::<S, 1>(&taps[j * pitch + column..]);
            }
            let [bias] = load::<S, 1>(&bias[column..]);
            for token in 0..tokens {
                chain(simd, &wide, bias, pitch, &mut rows[token * pitch + column..]);
            }
        }
    }
}

/// One vector of outputs in the place of the oldest of its inputs, which lie `distance` apart.
#[inline(always)]
fn chain<S: Simd, const W: usize>(
    simd: S,
    taps: &[S::f32s; W],
    bias: S::f32s,
    distance: usize,
    rows: &mut [f32],
) {
    let mut sum = bias;
    for j in 0..W {
        let [x] = load::<S, 1>(&rows[j * distance..]);
        sum = simd.mul_add_e_f32s(taps[j], x, sum);
    }
    store::<S, 1>([sum], rows);
}

/// Where some tokens of some channels lie in a tensor, and how they lie in a tile.
#[derive(Clone, Copy)]
struct Part {
    offset: usize,
    strides: Strides,
    tokens: usize,
    channels: usize,
    pitch: usize,
}

impl Part {
    /// Its runs of contiguous elements, unless each element lies alone.
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
fn read_part<S: Simd>(simd: S, x: Elements<'_>, part: Part, rows: &mut [f32]) {
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
fn write_part<S: Simd>(simd: S, y: &mut ElementsMut<'_>, part: Part, rows: &[f32]) {
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

/// Element by element.
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

/// Element by element.
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
