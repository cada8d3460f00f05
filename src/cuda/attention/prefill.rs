//! Launches of the kernels of prefill.cu and hopper.cu: many tokens.

use std::ffi::c_void;
use std::ptr::from_mut;

use super::super::args::PrefillArgs;
use super::super::device::Stream;
use super::super::error::Result;
use super::super::kernels::{Kernel, Kind};
use super::super::memory::Slice;
use super::{Attention, Forward, State, options, strides};
use crate::attention::Config;
use crate::element::Element;
use crate::error::check_room;
use crate::rule::Normaliser;
use crate::shape::{Shape, Strides};

impl Attention {
    /// Computes the outputs of all tokens of all heads: `o_t = scale phi(q_t)^T S_t / norm_t`. The work is
    /// queued on the stream; an error on the device is returned by a later call that waits for it. A state
    /// whose count of tokens is impossible is treated as if it had the nearest possible count.
    ///
    /// # Errors
    /// A tensor shorter than its shape and strides reach, a state of another length, a workspace that is too
    /// short; errors of the driver.
    pub fn forward<E: Element>(&self, args: Forward<'_, E>, stream: Stream) -> Result<()> {
        let Forward { q, k, v, state, o, workspace } = args;
        let Config { rule, shape, .. } = self.config;
        self.check(
            shape.len,
            [q.len_and_device(), k.len_and_device(), v.len_and_device(), o.len_and_device()],
        )?;
        check_room("workspace", self.workspace_len(), workspace.len())?;
        self.device.check_memory("workspace", workspace.len_and_device().1)?;
        let (initial, last) = self.state_addresses(&state)?;
        if self.rows() == 0 || shape.len == 0 && last == 0 {
            return Ok(());
        }
        let _current = self.device.current()?;
        let kind = Kind::of::<E>();
        let variant = self.variant(kind);
        let rows = self.rows();

        // The workspace contains S of the finished chunks, a snapshot of z, and the segments' sums, in this
        // order.
        let bytes = |elements: usize| (rows * elements * 4) as u64;
        let finished = workspace.address();
        let snapshot = finished + bytes(self.finished_len());
        let segments_at = snapshot + bytes(self.snapshot_len());

        // A given state may be inside a chunk, which only the device's memory tells.
        let segments = if self.chunk() > 0 && initial != 0 { 1 } else { self.segments };
        let unit = self.segment_unit();
        let segment_len = shape.len.div_ceil(segments).next_multiple_of(unit).max(1);
        let segments = shape.len.div_ceil(segment_len).max(1);
        let panels = shape.value.div_ceil(variant.columns);

        let overwritten =
            initial != 0 && initial == last && rule.normaliser != Normaliser::None && panels > 1;
        if overwritten && segments == 1 {
            self.snapshot(snapshot, initial, stream)?;
        }
        let aligned = self.is_aligned(kind, q.address() | k.address() | v.address());
        let many = rows * panels * segments > self.device.multiprocessors();
        let stages = if aligned { variant.stages(self.device.shared_memory(), many) } else { 0 };
        let mut args = PrefillArgs {
            q: q.address().into(),
            k: k.address().into(),
            v: v.address().into(),
            o: o.address().into(),
            initial: initial.into(),
            sums: if overwritten && segments == 1 { snapshot } else { 0 }.into(),
            last: last.into(),
            finished: finished.into(),
            segments: if segments > 1 { segments_at } else { 0 }.into(),
            segment_len: segment_len as i64,
            aligned: aligned.into(),
            neighbours: self.neighbours(kind, o.address()),
            stages: stages as i32,
            ..self.prefill_args()
        };
        let shared = variant.shared + stages * variant.stage;
        let kernel = self.prefill(kind);
        let launch = |args: &mut PrefillArgs, segments: usize| {
            // The panels of a head are neighbours in the grid, because they read the same q and k.
            let grid = [(rows * panels) as u32, 1, segments as u32];
            let arguments = [from_mut(args).cast::<c_void>()];
            // SAFETY: the arguments are those of prefill.cu; the tensors have been checked for what their
            // strides reach, and stay for as long as the work takes, by the promise of whoever made the
            // slices.
            unsafe { self.device.launch(kernel, grid, variant.threads, shared, stream, arguments) }
        };
        if segments > 1 {
            // First the sums of all segments but the last, then the states before each segment, from which
            // the outputs begin.
            launch(&mut args, segments - 1)?;
            self.scan(segments_at, initial, segments, stream)?;
        }
        args.outputs = 1;
        launch(&mut args, segments)
    }

    /// The addresses of the states before and after, or 0; their lengths are checked.
    fn state_addresses(&self, state: &State<'_>) -> Result<(u64, u64)> {
        let (initial, last) = match state {
            State::Zero => (None, None),
            State::Initial(state) => (Some(*state), None),
            State::Final(state) => (None, Some(state.as_slice())),
            State::InitialFinal(from, to) => (Some(*from), Some(to.as_slice())),
            State::Carried(state) => (Some(state.as_slice()), Some(state.as_slice())),
        };
        for state in initial.iter().chain(&last) {
            self.check_state(state)?;
        }
        let address = |state: Option<Slice<'_>>| state.map_or(0, |state| state.address());
        Ok((address(initial), address(last)))
    }

    /// The arguments that follow from the configuration alone.
    fn prefill_args(&self) -> PrefillArgs {
        let Config { rule, shape, .. } = self.config;
        let (chunk, eps, feature_map, map_eps) = options(&rule);
        PrefillArgs {
            q: 0.into(),
            k: 0.into(),
            v: 0.into(),
            o: 0.into(),
            initial: 0.into(),
            sums: 0.into(),
            last: 0.into(),
            finished: 0.into(),
            segments: 0.into(),
            q_strides: strides(shape.q_strides),
            k_strides: strides(shape.k_strides),
            v_strides: strides(shape.v_strides),
            o_strides: strides(shape.o_strides),
            state_len: self.layout.len() as i64,
            len: shape.len as i64,
            segment_len: 0,
            heads: shape.heads as i32,
            key: shape.key as i32,
            value: shape.value as i32,
            chunk,
            feature_map,
            outputs: 0,
            aligned: 0,
            neighbours: 0,
            stages: 0,
            eps,
            map_eps,
            scale: rule.scale,
        }
    }

    fn snapshot(&self, to: u64, state: u64, stream: Stream) -> Result<()> {
        let (mut to, mut state, mut state_len) = (to, state, self.layout.len() as i64);
        let mut key = self.config.shape.key as i32;
        let mut matrix = (self.config.shape.key * self.config.shape.value) as i32;
        let mut per_chunk = i32::from(self.chunk() > 0);
        let arguments = [
            from_mut(&mut to).cast::<c_void>(),
            from_mut(&mut state).cast(),
            from_mut(&mut state_len).cast(),
            from_mut(&mut key).cast(),
            from_mut(&mut matrix).cast(),
            from_mut(&mut per_chunk).cast(),
        ];
        // SAFETY: the arguments are those of decode.cu; the workspace and the state have been checked.
        unsafe { self.device.launch(Kernel::Snapshot, [self.rows() as u32, 1, 1], 256, 0, stream, arguments) }
    }

    fn scan(&self, sums: u64, initial: u64, segments: usize, stream: Stream) -> Result<()> {
        let (mut sums, mut initial, mut state_len) = (sums, initial, self.layout.len() as i64);
        let (mut segments, mut len) = (segments as i32, self.sums_len() as i32);
        let arguments = [
            from_mut(&mut sums).cast::<c_void>(),
            from_mut(&mut initial).cast(),
            from_mut(&mut state_len).cast(),
            from_mut(&mut segments).cast(),
            from_mut(&mut len).cast(),
        ];
        let grid = [self.rows() as u32, self.sums_len().div_ceil(256) as u32, 1];
        // SAFETY: the arguments are those of decode.cu; the workspace and the state have been checked.
        unsafe { self.device.launch(Kernel::Scan, grid, 256, 0, stream, arguments) }
    }

    /// Whether rows of q, k and v can be read in pieces of eight elements, aligned to 16 bytes.
    fn is_aligned(&self, kind: Kind, addresses: u64) -> bool {
        let Shape { key, value, q_strides, k_strides, v_strides, .. } = self.config.shape;
        let whole = |strides: Strides| {
            [strides.batch, strides.token, strides.head].iter().all(|s| (s * kind.size()).is_multiple_of(16))
        };
        addresses.is_multiple_of(16)
            && (key | value).is_multiple_of(8)
            && [q_strides, k_strides, v_strides].into_iter().all(whole)
    }

    /// The number of neighbouring elements of a row of o that can be written at once: 8 where these are
    /// pieces of at least 16 bytes, aligned to 16.
    fn neighbours(&self, kind: Kind, address: u64) -> i32 {
        let Shape { value, o_strides: Strides { batch, token, head }, .. } = self.config.shape;
        let can = |elements: usize, bytes: usize| {
            address.is_multiple_of(bytes as u64)
                && value.is_multiple_of(elements)
                && [batch, token, head].iter().all(|stride| (stride * kind.size()).is_multiple_of(bytes))
        };
        if can(8, 16) {
            8
        } else if can(2, 2 * kind.size()) {
            2
        } else {
            1
        }
    }
}
