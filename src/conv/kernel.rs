//! Tiles of tokens and channels, copied behind the inputs that precede them and convolved in place.
//!
//! ```text
//! for each sequence, for each tile of its tokens, for each block of channels:
//!     rows = [the W-1 inputs before the tile | the tile's]          f32, from the state and from x in its type and strides
//!     if the sequence ends here: state = the last W-1 rows
//!     for each row t of the tile:  rows[t] = bias + weight[0] rows[t] + .. + weight[W-1] rows[t + W-1]
//!     rows[..] = silu(rows[..])
//!     y = rows[..]
//! ```
//!
//! 1. A row is replaced by an output as soon as no later output needs it, so that one buffer on the stack is
//!    enough.
//! 2. Along channels a row is one token of some channels. Where tokens are contiguous, as in `[B, C, T]`, the
//!    same loop runs along tokens: a row is one element, and a vector is several tokens of one channel. Only
//!    the distance between taps and the vectors of weights differ, so that the chain of an output is the
//!    same.
//! 3. Rows are padded to whole vectors of any instruction set, so that no loop has a tail.

use core::ops::Range;

use pulp::{Simd, WithSimd};

use super::part::{Part, read_part, write_part};
use super::{Activation, Config, MAX_WIDTH, Strides, Tensors};
use crate::attention::State;
use crate::isa::outline;
use crate::math::silu;
use crate::scratch::round_up;
use crate::vector::{copy_row, load, store};

/// The number of channels that are computed together: 1 KB of each token. Where tokens are far apart in
/// memory, this is long enough for the hardware's prefetchers; with 64 channels a forward of 512 tokens of
/// 6144 channels takes more than twice as long.
const BLOCK: usize = 256;

/// The number of lanes in the longest vector of any instruction set.
const PAD: usize = 16;

/// Elements of the rows of a tile, 16 KB on the stack: with 256 channels and 4 taps, 13 tokens and the 3
/// inputs before them.
const ROWS: usize = 4096;

// Only the first tile of a sequence may read the state, because the last one writes it. So a tile must have
// at least as many tokens as there are inputs before it.
const _: () = assert!(ROWS / BLOCK + 1 - MAX_WIDTH >= MAX_WIDTH - 1);

/// A checked call.
pub(super) struct Task<'a> {
    pub(super) config: &'a Config,
    /// The number of tokens in each sequence, unless sequences of different lengths are given.
    pub(super) len: usize,
    pub(super) tensors: Tensors<'a>,
    pub(super) state: State<'a>,
}

/// The working memory of a call, on the stack.
struct Space {
    rows: [f32; ROWS],
    weights: Weights,
}

/// The taps and the bias of a block of channels, padded with zeros.
struct Weights {
    taps: [[f32; BLOCK]; MAX_WIDTH],
    bias: [f32; BLOCK],
}

/// Channels that are computed together, and the number of elements from one of their rows to the next.
#[derive(Clone)]
struct Block {
    channels: Range<usize>,
    pitch: usize,
}

/// A sequence: its index, the elements at which its x and y begin, and its number of tokens.
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
        let Config { batch, channels, width, x_strides, y_strides, .. } = *self.config;
        // The loop runs along tokens where they are contiguous in both x and y, and channels are not.
        let along_tokens = |strides: Strides| strides.token == 1 && strides.channel != 1;
        let along_tokens = self.len > 1 && along_tokens(x_strides) && along_tokens(y_strides);
        let (step, most) = if along_tokens {
            (1, ROWS - PAD - MAX_WIDTH)
        } else {
            (BLOCK, ROWS / round_up(channels.min(BLOCK), PAD) + 1 - width)
        };
        let blocks = (0..channels).step_by(step).map(|first| {
            let channels = first..channels.min(first + step);
            let pitch = if along_tokens { 1 } else { round_up(channels.len(), PAD) };
            Block { channels, pitch }
        });
        let weights = Weights { taps: [[0.0; BLOCK]; MAX_WIDTH], bias: [0.0; BLOCK] };
        let mut space = Space { rows: [0.0; ROWS], weights };
        if self.len == 1 {
            // The weights of a block are loaded once for all sequences.
            for block in blocks {
                self.load_weights(simd, &block, &mut space.weights);
                for index in 0..batch {
                    let sequence = self.sequence(index);
                    self.tile(simd, &block, (sequence, 0..sequence.len), &mut space);
                }
            }
            return;
        }
        for index in 0..batch {
            let sequence = self.sequence(index);
            let mut begin = 0;
            // A sequence without tokens is one tile without tokens, which passes on its state.
            loop {
                let tokens = begin..sequence.len.min(begin + most);
                for block in blocks.clone() {
                    self.load_weights(simd, &block, &mut space.weights);
                    self.tile(simd, &block, (sequence, tokens.clone()), &mut space);
                }
                begin = tokens.end;
                if begin == sequence.len {
                    break;
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
                // Where no token follows, the offset may be beyond any address.
                let first = if begin == end { 0 } else { begin };
                let (x, y) = (first * x_strides.token, first * y_strides.token);
                Sequence { index, x, y, len: end - begin }
            }
            None => Sequence { index, x: index * x_strides.batch, y: index * y_strides.batch, len: self.len },
        }
    }

    /// Loads the taps and the bias of a block.
    #[inline(always)]
    fn load_weights<S: Simd>(&self, simd: S, block: &Block, weights: &mut Weights) {
        let (width, channels) = (self.config.width, &block.channels);
        let taps = &self.tensors.weight[channels.start * width..channels.end * width];
        let bias = self.tensors.bias.map(|bias| &bias[channels.clone()]);
        by_width(simd, width, Load { taps, bias, weights });
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
        let Space { rows, weights } = space;
        let (history, len, count) = (width - 1, tokens.len(), channels.len());

        // The inputs before the tile: `known` of them are in x, and the others in the state, or zero.
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

        by_width(simd, width, Chains { weights, rows, tokens: len, pitch });
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

/// A step whose loops are unrolled for the width.
trait ByWidth {
    fn run<S: Simd, const W: usize>(self, simd: S);
}

/// A function of its own for each width, so that its weights stay in registers.
struct Width<Step, const W: usize>(Step);

impl<Step: ByWidth, const W: usize> WithSimd for Width<Step, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.0.run::<S, W>(simd);
    }
}

#[inline(always)]
fn by_width<S: Simd>(simd: S, width: usize, step: impl ByWidth) {
    match width {
        1 => outline(simd, Width::<_, 1>(step)),
        2 => outline(simd, Width::<_, 2>(step)),
        3 => outline(simd, Width::<_, 3>(step)),
        4 => outline(simd, Width::<_, 4>(step)),
        5 => outline(simd, Width::<_, 5>(step)),
        6 => outline(simd, Width::<_, 6>(step)),
        7 => outline(simd, Width::<_, 7>(step)),
        _ => outline(simd, Width::<_, 8>(step)),
    }
}

/// Transposes taps `[channels, W]` into rows, and copies the bias.
struct Load<'a> {
    taps: &'a [f32],
    bias: Option<&'a [f32]>,
    weights: &'a mut Weights,
}

impl ByWidth for Load<'_> {
    #[inline(always)]
    fn run<S: Simd, const W: usize>(self, _: S) {
        let Weights { taps, bias } = self.weights;
        let channels = self.taps.as_chunks::<W>().0;
        // This is a plain loop, which the compiler vectorises where there is a whole block.
        if let Some(channels) = channels.first_chunk::<BLOCK>() {
            for channel in 0..BLOCK {
                for j in 0..W {
                    taps[j][channel] = channels[channel][j];
                }
            }
        } else {
            for j in 0..W {
                taps[j][channels.len()..round_up(channels.len(), PAD)].fill(0.0);
                for (tap, channel) in taps[j].iter_mut().zip(channels) {
                    *tap = channel[j];
                }
            }
            bias[channels.len()..round_up(channels.len(), PAD)].fill(0.0);
        }
        if let Some(given) = self.bias {
            bias[..given.len()].copy_from_slice(given);
        }
    }
}

/// Computes the chains of a tile, in place.
struct Chains<'a> {
    weights: &'a Weights,
    rows: &'a mut [f32],
    tokens: usize,
    pitch: usize,
}

impl ByWidth for Chains<'_> {
    #[inline(always)]
    fn run<S: Simd, const W: usize>(self, simd: S) {
        let Self { weights: Weights { taps, bias }, rows, tokens, pitch } = self;
        let lanes = S::F32_LANES;
        let mut wide = [simd.splat_f32s(0.0); W];
        if pitch == 1 {
            for j in 0..W {
                wide[j] = simd.splat_f32s(taps[j][0]);
            }
            let bias = simd.splat_f32s(bias[0]);
            for first in (0..tokens).step_by(lanes) {
                chain(simd, &wide, bias, pitch, &mut rows[first..]);
            }
            return;
        }
        for column in (0..pitch).step_by(lanes) {
            for j in 0..W {
                [wide[j]] = load::<S, 1>(&taps[j][column..]);
            }
            let [bias] = load::<S, 1>(&bias[column..]);
            for token in 0..tokens {
                chain(simd, &wide, bias, pitch, &mut rows[token * pitch + column..]);
            }
        }
    }
}

/// Computes one vector of outputs in the place of the oldest of its inputs, which are `distance` elements
/// apart.
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
