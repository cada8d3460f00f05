//! Launches of the kernel of decode.cu: one token.

use std::ffi::c_void;
use std::ptr::from_mut;

use super::super::args::DecodeArgs;
use super::super::device::Stream;
use super::super::error::Result;
use super::super::kernels::{Division, Kernel, Kind};
use super::{Attention, DecodeStep, options, strides};
use crate::attention::Config;
use crate::element::Element;
use crate::rule::Normaliser;

impl Attention {
    /// Decodes one token of all heads on a state that is replaced: as [`Attention::forward`] with T = 1, in
    /// one pass over S, in f32.
    ///
    /// # Errors
    /// As for [`Attention::forward`].
    pub fn decode<E: Element>(&self, args: DecodeStep<'_, E>, stream: Stream) -> Result<()> {
        let DecodeStep { q, k, v, state, o } = args;
        let Config { rule, shape, .. } = self.config;
        self.check(1, [q.len_and_device(), k.len_and_device(), v.len_and_device(), o.len_and_device()])?;
        self.check_state(&state.as_slice())?;
        let _current = self.device.current()?;
        let (chunk, eps, feature_map, map_eps) = options(&rule);
        let (threads, splits) = self.decode_blocks();
        let mut args = DecodeArgs {
            q: q.address().into(),
            k: k.address().into(),
            v: v.address().into(),
            o: o.address().into(),
            state: state.address().into(),
            q_strides: strides(shape.q_strides),
            k_strides: strides(shape.k_strides),
            v_strides: strides(shape.v_strides),
            o_strides: strides(shape.o_strides),
            state_len: self.layout.len() as i64,
            heads: shape.heads as i32,
            key: shape.key as i32,
            value: shape.value as i32,
            chunk,
            feature_map,
            kind: Kind::of::<E>() as i32,
            splits: splits as i32,
            eps,
            map_eps,
            scale: rule.scale,
        };
        let kernel = Kernel::Decode(Division::of(rule.normaliser));
        let grid = [(self.rows() * splits) as u32, 1, 1];
        let arguments = [from_mut(&mut args).cast::<c_void>()];
        // SAFETY: the arguments are those of decode.cu, checked as in `forward`.
        unsafe { self.device.launch(kernel, grid, threads, 0, stream, arguments) }
    }

    /// How decode.cu is launched: the threads of a block, four for each column of its panels, and the number
    /// of blocks for each head. The bits of the result depend on neither.
    fn decode_blocks(&self) -> (u32, usize) {
        let (rows, multiprocessors) = (self.rows(), self.device.multiprocessors());
        let value = self.config.shape.value;
        let mut columns = value.next_power_of_two().clamp(16, 64);
        if self.config.rule.normaliser != Normaliser::None {
            // A block that is alone on its multiprocessor should read more at once.
            if value > columns && rows <= multiprocessors {
                columns *= 2;
            }
            return (4 * columns as u32, 1);
        }
        // Rows of 32 columns are whole lines of memory.
        while columns > 32 && rows * value.div_ceil(columns) < multiprocessors {
            columns /= 2;
        }
        // A grid has at most 2^31 - 1 blocks. Where that limits the blocks of a head, they take its panels in
        // turn.
        let splits = value.div_ceil(columns).min(i32::MAX as usize / rows.max(1));
        (4 * columns as u32, splits)
    }
}
