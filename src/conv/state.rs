//! The state in other libraries' layouts.

use super::CausalConv;
use crate::error::{Result, check_len};

impl CausalConv {
    /// Converts ONNX's `past_state` from `[B, C, W-1]` to `[B, W-1, C]`, which the calls take.
    ///
    /// # Errors
    /// A slice of another length. Nothing has been written then.
    pub fn state_from_channels_first(&self, from: &[f32], state: &mut [f32]) -> Result<()> {
        self.state_from_columns(from, state, self.config.width - 1)
    }

    /// Converts the state of transformers' `conv_states` and of flash-linear-attention from `[B, C, W]`, of
    /// which the oldest column is dropped, to `[B, W-1, C]`, which the calls take. (A cache that is to be
    /// written back as `[B, C, W]` may have any number in that column, because no output depends on it.)
    ///
    /// # Errors
    /// A slice of another length. Nothing has been written then.
    pub fn state_from_full(&self, from: &[f32], state: &mut [f32]) -> Result<()> {
        self.state_from_columns(from, state, self.config.width)
    }

    /// Converts a state from `[B, W-1, C]` to ONNX's `present_state`, `[B, C, W-1]`.
    ///
    /// # Errors
    /// A slice of another length. Nothing has been written then.
    pub fn state_to_channels_first(&self, state: &[f32], to: &mut [f32]) -> Result<()> {
        check_len("state", self.state_len, state.len())?;
        check_len("the state to write", self.state_len, to.len())?;
        let (channels, rows) = (self.config.channels, self.config.width - 1);
        if rows == 0 {
            return Ok(());
        }
        let sequences = to.chunks_exact_mut(channels * rows).zip(state.chunks_exact(channels * rows));
        for (to, state) in sequences {
            for (channel, columns) in to.chunks_exact_mut(rows).enumerate() {
                for (row, to) in columns.iter_mut().enumerate() {
                    *to = state[row * channels + channel];
                }
            }
        }
        Ok(())
    }

    /// Converts a state from `[B, C, columns]`, the newest column last.
    fn state_from_columns(&self, from: &[f32], state: &mut [f32], columns: usize) -> Result<()> {
        let (channels, rows) = (self.config.channels, self.config.width - 1);
        let want = self.config.batch.saturating_mul(channels).saturating_mul(columns);
        check_len("the state to read", want, from.len())?;
        check_len("state", self.state_len, state.len())?;
        if rows == 0 {
            return Ok(());
        }
        let sequences = state.chunks_exact_mut(rows * channels).zip(from.chunks_exact(channels * columns));
        for (state, from) in sequences {
            for (row, state) in state.chunks_exact_mut(channels).enumerate() {
                for (channel, to) in state.iter_mut().enumerate() {
                    *to = from[channel * columns + columns - rows + row];
                }
            }
        }
        Ok(())
    }
}
