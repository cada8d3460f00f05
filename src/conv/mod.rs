//! The causal short convolution in front of linear attention: depthwise, over time, with a few taps and a
//! state.
//!
//! ```text
//! y_t[c] = act( bias[c] + sum_{0 <= j < W} weight[c][j] x_{t - (W-1) + j}[c] )        act(a) = a, or a / (1 + exp(-a))
//! ```
//!
//! B is the batch (the number of sequences), T the number of tokens, C the number of channels and W the
//! width. The last tap, `weight[c][W-1]`, multiplies the token itself, as in PyTorch's `Conv1d` with groups =
//! C and padding on the left, in flash-linear-attention's `ShortConvolution` and in ONNX's
//! CausalConvWithState of opset 27 (whose weight `[C, 1, W]` is the same). Before the first token, x is the
//! state, or zero.
//!
//! x and y are f32, bf16 or f16, with any strides: [`Strides::token_major`] is `[B, T, C]`,
//! [`Strides::channels_first`] is ONNX's `[B, C, T]`. Both are fast: one is computed along channels, the
//! other along tokens. Tensors with other strides are gathered element by element. A call uses about 26 KB of
//! the stack.
//!
//! # State
//!
//! The state is the last W-1 inputs, before any activation: f32, contiguous `[B, W-1, C]`, the oldest first,
//! all zero before the first token. Channels are innermost so that one token of all channels is computed with
//! whole vectors. ONNX has `[B, C, W-1]`, see [`CausalConv::state_from_channels_first`] and
//! [`CausalConv::state_to_channels_first`]. transformers (`conv_states`) and flash-linear-attention have
//! `[B, C, W]`, one input more than any output needs: [`CausalConv::state_from_full`] drops the oldest.
//!
//! # Numbers
//!
//! An output is one chain of fused multiply-adds in f32, from the oldest tap to the newest, which begins with
//! the bias or with +0. It therefore has the same bits in one [`CausalConv::forward`], in any pieces of it
//! and in one [`CausalConv::decode`] for each token, under any strides, and on every instruction set that has
//! a fused multiply-add. SiLU is within 5e-7 of its definition, relatively, for sums of at least -87.3;
//! below, it is at most 1.1e-36 in size, and -0 from -104 down. It is infinity for infinity and -0 for minus
//! infinity. A NaN makes NaN of the outputs of the W tokens that depend on it.
//!
//! # Example
//!
//! ```
//! use chunkwise::State;
//! use chunkwise::conv::{Activation, CausalConv, Config, Tensors};
//!
//! // 1 sequence, 3 tokens, 2 channels, width 2: the one before and the token itself.
//! let conv = CausalConv::new(Config::new(1, 3, 2, 2))?;
//! let weight = [0.5, 1.0, -1.0, 1.0];
//! let (x, mut y) = ([1.0, 10.0, 2.0, 20.0, 3.0, 30.0], [0.0; 6]);
//! let mut state = [0.0; 2];
//! assert_eq!(state.len(), conv.state_len());
//! conv.forward(Tensors::new(&x, &weight, &mut y), State::Carried(&mut state))?;
//! assert_eq!(y, [1.0, 10.0, 2.5, 10.0, 4.0, 10.0]);
//!
//! // One more token, on the state that is left.
//! let mut y = [0.0; 2];
//! conv.decode(Tensors::new(&[4.0, 40.0], &weight, &mut y), &mut state)?;
//! assert_eq!((y, state), ([5.5, 10.0], [4.0, 40.0]));
//! # Ok::<(), chunkwise::Error>(())
//! ```

mod kernel;
mod part;
mod state;

use self::kernel::Task;
use crate::attention::State;
use crate::axes::{self, Axis};
use crate::element::{Elements, ElementsMut};
use crate::error::{Error, Result, check_len, check_most, check_room};
use crate::isa::{Isa, dispatch};

/// The largest number of taps of a convolution.
pub const MAX_WIDTH: usize = 8;

/// The sizes, strides and activation of a convolution.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The number of sequences, B.
    pub batch: usize,
    /// The number of tokens in each sequence, T, or in all sequences together where [`Tensors::sequences`]
    /// gives their beginnings; may be 0.
    pub len: usize,
    /// The number of channels, C, at least 1.
    pub channels: usize,
    /// The number of taps, W: 1 to [`MAX_WIDTH`].
    pub width: usize,
    /// The function that is applied to the sums; none by default.
    pub activation: Activation,
    /// Strides of x `[B, T, C]`.
    pub x_strides: Strides,
    /// Strides of y `[B, T, C]`; its elements must not overlap.
    pub y_strides: Strides,
    /// The instruction set; `None` selects [`Isa::choose`].
    pub isa: Option<Isa>,
}

impl Config {
    /// Contiguous x and y `[B, T, C]`, no activation.
    pub const fn new(batch: usize, len: usize, channels: usize, width: usize) -> Self {
        let strides = Strides::token_major(len, channels);
        let activation = Activation::None;
        Self { batch, len, channels, width, activation, x_strides: strides, y_strides: strides, isa: None }
    }

    /// The same configuration with another activation.
    #[must_use]
    pub const fn activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// The same sizes with x and y of these strides.
    #[must_use]
    pub const fn strides(self, x: Strides, y: Strides) -> Self {
        Self { x_strides: x, y_strides: y, ..self }
    }

    /// The same configuration on a pinned instruction set.
    #[must_use]
    pub const fn isa(self, isa: Isa) -> Self {
        Self { isa: Some(isa), ..self }
    }

    /// Elements of the state, or an error where that overflows.
    fn checked_state_len(&self) -> Result<usize> {
        let len = self.batch.checked_mul(self.channels).and_then(|rows| rows.checked_mul(self.width - 1));
        match len {
            Some(len) if len <= isize::MAX as usize / size_of::<f32>() => Ok(len),
            _ => Err(Error::Overflow { what: "the state" }),
        }
    }
}

/// The function that is applied to the sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// The sums are the outputs.
    #[default]
    None,
    /// `x / (1 + exp(-x))`, which is also called swish.
    Silu,
}

/// Distances in elements between neighbours along batch, token and channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strides {
    /// Elements from one sequence to the next.
    pub batch: usize,
    /// Elements from one token to the next.
    pub token: usize,
    /// Elements from one channel to the next.
    pub channel: usize,
}

impl Strides {
    /// Strides of a contiguous `[B, T, C]`. They saturate, so that the check of lengths refuses absurd sizes.
    pub const fn token_major(len: usize, channels: usize) -> Self {
        Self::packed(len, channels)
    }

    /// Strides of some columns of rows `[B, T, row]`: a part of the output of a projection, whose slice then
    /// starts at its first column.
    pub const fn packed(len: usize, row: usize) -> Self {
        Self { batch: len.saturating_mul(row), token: row, channel: 1 }
    }

    /// Strides of a contiguous `[B, C, T]`.
    pub const fn channels_first(len: usize, channels: usize) -> Self {
        Self { batch: len.saturating_mul(channels), token: 1, channel: len }
    }

    fn axes(&self, batch: usize, len: usize, channels: usize) -> [Axis; 3] {
        [
            Axis { stride: self.batch, count: batch },
            Axis { stride: self.token, count: len },
            Axis { stride: self.channel, count: channels },
        ]
    }
}

/// The tensors of a call; the strides of x and y are in [`Config`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Tensors<'a> {
    x: Elements<'a>,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    sequences: Option<&'a [u32]>,
    y: ElementsMut<'a>,
}

impl<'a> Tensors<'a> {
    /// x and y `[B, T, C]`, and the weight, contiguous `[C, W]`. Elements of y that its strides skip are left
    /// untouched.
    pub fn new(x: impl Into<Elements<'a>>, weight: &'a [f32], y: impl Into<ElementsMut<'a>>) -> Self {
        Self { x: x.into(), weight, bias: None, sequences: None, y: y.into() }
    }

    /// The same tensors with a bias `[C]`.
    #[must_use]
    pub fn bias(self, bias: &'a [f32]) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// The same tensors with sequences of different lengths, one after the other: sequence b is the tokens
    /// `sequences[b] .. sequences[b + 1]` of x and y `[T, C]`. `sequences` has B + 1 elements, of which the
    /// first is 0, none is smaller than the one before, and the last is T. Strides of the batch are not used.
    /// A sequence without tokens keeps its state.
    #[must_use]
    pub fn sequences(self, sequences: &'a [u32]) -> Self {
        Self { sequences: Some(sequences), ..self }
    }
}

/// A checked configuration of a causal convolution.
#[derive(Clone, Copy, Debug)]
pub struct CausalConv {
    config: Config,
    isa: Isa,
    state_len: usize,
}

impl CausalConv {
    /// Checks a configuration.
    ///
    /// # Errors
    /// Zero channels or taps, or more than [`MAX_WIDTH`] taps; sizes that overflow; strides of y under which
    /// elements of one sequence overlap; an instruction set that is not available.
    pub fn new(config: Config) -> Result<Self> {
        for (size, what) in [(config.channels, "channels"), (config.width, "width")] {
            if size == 0 {
                return Err(Error::Zero { what });
            }
        }
        check_most("taps of a convolution", MAX_WIDTH, config.width)?;
        let state_len = config.checked_state_len()?;
        let isa = Isa::resolve(config.isa)?;
        let conv = Self { config, isa, state_len };
        // This checks one sequence: only with the tensors of a call is it known whether the batch's strides
        // are used.
        conv.reach(1, config.len)?;
        Ok(conv)
    }

    /// The configuration, as it was given.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The instruction set on which calls run.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Elements of the state, `B (W-1) C`.
    pub fn state_len(&self) -> usize {
        self.state_len
    }

    /// Computes all tokens. The state has [`CausalConv::state_len`] elements, and is read and written as
    /// [`State`] describes.
    ///
    /// # Errors
    /// A slice shorter than its shape and strides reach; a weight, bias or state of another length; strides
    /// of y under which sequences overlap; sequences that are not B + 1 numbers from 0 to T, none smaller
    /// than the one before. Outputs and state are left untouched then.
    pub fn forward(&self, tensors: Tensors<'_>, state: State<'_>) -> Result<()> {
        let Config { batch, len, .. } = self.config;
        let batch = match tensors.sequences {
            Some(sequences) => {
                // No slice can have the saturated length.
                check_len("sequences", batch.saturating_add(1), sequences.len())?;
                let ends = (sequences[0], sequences[batch]);
                if !sequences.is_sorted() || ends.0 != 0 || usize::try_from(ends.1) != Ok(len) {
                    return Err(Error::Sequences);
                }
                1
            }
            None => batch,
        };
        self.check(&tensors, &state, batch, len)?;
        if len == 0 {
            // There may be any number of sequences then, which take no memory but time.
            match state {
                State::Final(last) => last.fill(0.0),
                State::InitialFinal(initial, last) => last.copy_from_slice(initial),
                State::Zero | State::Initial(_) | State::Carried(_) => {}
            }
            return Ok(());
        }
        dispatch(self.isa, Task { config: &self.config, len, tensors, state });
        Ok(())
    }

    /// Computes one token of each sequence, x and y `[B, C]`, on the state, which is updated in place, with
    /// the bits of [`CausalConv::forward`] with T = 1. The strides of tokens are not used, and
    /// [`Tensors::sequences`] must not be given.
    ///
    /// # Errors
    /// As for [`CausalConv::forward`]; [`Error::Sequences`] where sequences are given.
    pub fn decode(&self, tensors: Tensors<'_>, state: &mut [f32]) -> Result<()> {
        if tensors.sequences.is_some() {
            return Err(Error::Sequences);
        }
        let state = State::Carried(state);
        self.check(&tensors, &state, self.config.batch, 1)?;
        dispatch(self.isa, Task { config: &self.config, len: 1, tensors, state });
        Ok(())
    }

    /// Elements that x and y reach, after a check that elements of y don't overlap.
    pub(crate) fn reach(&self, batch: usize, len: usize) -> Result<[usize; 2]> {
        let Config { channels, x_strides, y_strides, .. } = self.config;
        let (x, y) = (x_strides.axes(batch, len, channels), y_strides.axes(batch, len, channels));
        let reach = [axes::reach("x", x)?, axes::reach("y", y)?];
        axes::check_disjoint("y", y)?;
        Ok(reach)
    }

    /// Checks the tensors and the state of a call.
    fn check(&self, tensors: &Tensors<'_>, state: &State<'_>, batch: usize, len: usize) -> Result<()> {
        let Config { channels, width, .. } = self.config;
        let [x, y] = self.reach(batch, len)?;
        check_room("x", x, tensors.x.len())?;
        check_len("weight", channels.saturating_mul(width), tensors.weight.len())?;
        if let Some(bias) = tensors.bias {
            check_len("bias", channels, bias.len())?;
        }
        check_room("y", y, tensors.y.as_elements().len())?;
        let check_state = |state: &[f32]| check_len("state", self.state_len, state.len());
        match state {
            State::Zero => Ok(()),
            State::Initial(state) => check_state(state),
            State::Final(state) | State::Carried(state) => check_state(state),
            State::InitialFinal(initial, last) => {
                check_state(initial)?;
                check_state(last)
            }
        }
    }
}
