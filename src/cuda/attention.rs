//! Attention over many heads on a GPU, as the CPU's [`crate::Attention`], for tensors in a device's memory.
#![allow(unsafe_code, reason = "kernels take addresses")]

use std::ffi::c_void;
use std::ptr::from_mut;

use super::args::{DecodeArgs, PrefillArgs};
use super::device::{Device, Stream};
use super::error::{Error, Result};
use super::kernels::{Division, Kernel, Kind, Products};
use super::memory::{Slice, SliceMut};
use super::precision::Precision;
use super::variant::Variant;
use crate::attention::Config;
use crate::element::Element;
use crate::error::{check_len, check_room};
use crate::rule::{FeatureMap, Normaliser, Rule};
use crate::shape::{Shape, Strides};
use crate::state::Layout;

/// The largest number of elements of a row of q and k.
const MOST_KEY: usize = 256;
/// The largest number of elements of a row of v: the grid of a scan over S counts its blocks in 16 bits.
const MOST_VALUE: usize = 1 << 15;

/// The state that goes into and out of [`Attention::forward`], as [`crate::State`].
#[derive(Debug)]
pub enum State<'a> {
    /// The state begins at zero and is dropped at the end.
    Zero,
    /// The state begins at this one and is dropped at the end.
    Initial(Slice<'a>),
    /// The state begins at zero and is written here at the end.
    Final(SliceMut<'a>),
    /// The state begins at the first and is written to the second at the end.
    InitialFinal(Slice<'a>, SliceMut<'a>),
    /// The state begins at this one, which is replaced at the end, for a stream in pieces.
    Carried(SliceMut<'a>),
}

/// The arguments of [`Attention::forward`]; q, k, v and o have one element type.
#[derive(Debug)]
pub struct Forward<'a, E> {
    /// q `[B, T, H, K]` by its strides.
    pub q: Slice<'a, E>,
    /// k `[B, T, H, K]` by its strides.
    pub k: Slice<'a, E>,
    /// v `[B, T, H, V]` by its strides.
    pub v: Slice<'a, E>,
    /// The state before and after.
    pub state: State<'a>,
    /// o `[B, T, H, V]` by its strides. Elements between the rows are left alone.
    pub o: SliceMut<'a, E>,
    /// At least [`Attention::workspace_len`] elements, of any content.
    pub workspace: SliceMut<'a>,
}

/// The arguments of [`Attention::decode`]; q, k, v and o have one element type.
#[derive(Debug)]
pub struct DecodeStep<'a, E> {
    /// q `[B, H, K]` by its strides.
    pub q: Slice<'a, E>,
    /// k `[B, H, K]` by its strides.
    pub k: Slice<'a, E>,
    /// v `[B, H, V]` by its strides.
    pub v: Slice<'a, E>,
    /// The state, [`Attention::state_len`] elements, which is replaced.
    pub state: SliceMut<'a>,
    /// o `[B, H, V]` by its strides.
    pub o: SliceMut<'a, E>,
}

/// A checked configuration, on a device.
#[derive(Clone, Debug)]
pub struct Attention {
    device: Device,
    config: Config,
    precision: Precision,
    layout: Layout,
    segments: usize,
}

/// The options of a rule as numbers for the kernels: chunk, the normaliser's eps, the feature map, its eps.
fn options(rule: &Rule) -> (i32, f32, i32, f32) {
    let (chunk, eps) = match rule.normaliser {
        Normaliser::None => (0, 0.0),
        Normaliser::Global { eps } => (0, eps),
        // The configuration has been checked: a chunk has at most 2^24 tokens.
        Normaliser::PerChunk { chunk, eps } => (chunk as i32, eps),
    };
    let (map, map_eps) = match rule.feature_map {
        FeatureMap::Elu => (0, 0.0),
        FeatureMap::Relu { eps } => (1, eps),
        FeatureMap::Identity => (2, 0.0),
    };
    (chunk, eps, map, map_eps)
}

/// Strides in the type that kernels take.
fn strides(of: Strides) -> super::args::Strides {
    super::args::Strides { batch: of.batch as i64, token: of.token as i64, head: of.head as i64 }
}

impl Attention {
    /// Checks a configuration, whose [`crate::Execution`] is ignored. `precision` is that of
    /// [`Attention::forward`].
    ///
    /// # Errors
    /// As for [`crate::Attention::new`]; and the compensated state, K above 256 and V above 2^15, which the
    /// kernels do not support.
    pub fn new(device: &Device, config: Config, precision: Precision) -> Result<Self> {
        let layout = config.check()?;
        let Config { rule, shape, .. } = config;
        if rule.compensated {
            return Err(Error::Unsupported { what: "the compensated state" });
        }
        let heads = shape.groups;
        if rule.in_blocks() || rule.qk_norm.is_some() || !rule.causal {
            return Err(Error::Unsupported {
                what: "a gate, the delta rule, a norm of q and k, or attention that is not causal",
            });
        }
        if shape.ragged
            || heads.query != shape.heads
            || heads.key != shape.heads
            || heads.value != shape.heads
        {
            return Err(Error::Unsupported {
                what: "a ragged batch or different numbers of heads of q, k and v",
            });
        }
        if shape.key > MOST_KEY || shape.value > MOST_VALUE {
            return Err(Error::Unsupported { what: "K above 256 or V above 2^15" });
        }
        let heads = shape.batch.checked_mul(shape.heads).filter(|heads| *heads <= i32::MAX as usize);
        if heads.is_none() {
            return Err(crate::Error::Overflow { what: "batch x heads" }.into());
        }
        let mut this = Self { device: device.clone(), config, precision, layout, segments: 1 };
        let rows = this.rows();
        let each = layout.len() as u128 * 3 + 2 * shape.key as u128 + 1;
        if rows as u128 * each * 64 > isize::MAX as u128 {
            return Err(crate::Error::Overflow { what: "the workspace" }.into());
        }
        // A grid counts heads and the panels of each head in one dimension.
        let panels = |kind| shape.value.div_ceil(this.variant(kind).columns);
        let most = panels(Kind::F32).max(panels(Kind::F16)).max(panels(Kind::Bf16));
        if rows > i32::MAX as usize / most.max(1) {
            return Err(crate::Error::Overflow { what: "batch x heads x panels of V" }.into());
        }
        // Sequences are cut where there are at most half as many blocks of threads as multiprocessors.
        let panels = panels(Kind::Bf16);
        let blocks = (rows * panels).max(1);
        this = this.with_segments(device.multiprocessors() / blocks);
        Ok(this)
    }

    /// The same attention with sequences cut into at most `segments` segments, which are computed at the same
    /// time: first their sums, then their outputs. This reads more, for GPUs with more multiprocessors than
    /// there are heads. The default follows from the shapes and the device. Results of different numbers of
    /// segments differ by rounding; results of one number have the same bits, whatever the batch.
    #[must_use]
    pub fn with_segments(mut self, segments: usize) -> Self {
        let tokens = self.segment_unit();
        // A segment of fewer than four tiles is not worth the additional reads.
        let most = if self.can_be_cut() { self.config.shape.len / (4 * tokens.max(64)) } else { 1 };
        self.segments = segments.clamp(1, most.clamp(1, 64));
        self
    }

    /// The number of segments of each sequence.
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// The configuration, as it was given.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The elements of the state, in the layout of [`crate::state`].
    pub fn state_len(&self) -> usize {
        self.rows() * self.layout.len()
    }

    /// The elements of workspace that [`Attention::forward`] needs, for any element type and any [`State`].
    pub fn workspace_len(&self) -> usize {
        let segments = if self.segments > 1 { self.segments * self.sums_len() } else { 0 };
        self.rows() * (self.finished_len() + self.snapshot_len() + segments)
    }

    fn rows(&self) -> usize {
        self.config.shape.all_heads()
    }

    /// Elements of S and z of one head.
    fn sums_len(&self) -> usize {
        let Config { rule, shape, .. } = self.config;
        shape.key * shape.value + if rule.normaliser == Normaliser::None { 0 } else { shape.key }
    }

    /// The elements of S of the finished chunks of one head; 0 where there are no chunks.
    fn finished_len(&self) -> usize {
        if self.chunk() == 0 { 0 } else { self.config.shape.key * self.config.shape.value }
    }

    /// The elements of z, the chunk's z, and the count of one head.
    fn snapshot_len(&self) -> usize {
        if self.config.rule.normaliser == Normaliser::None { 0 } else { 2 * self.config.shape.key + 1 }
    }

    fn chunk(&self) -> usize {
        if let Normaliser::PerChunk { chunk, .. } = self.config.rule.normaliser { chunk } else { 0 }
    }

    /// The number of tokens of which the length of a segment must be a multiple.
    fn segment_unit(&self) -> usize {
        match self.chunk() {
            0 => 64,
            chunk => chunk,
        }
    }

    /// Whether sequences can be cut into segments: the sums of a chunk that is longer than a tile are not
    /// sums of a segment. The tiles of f32 are the smallest.
    fn can_be_cut(&self) -> bool {
        self.chunk() <= self.variant(Kind::F32).tokens
    }

    fn products(&self) -> Products {
        match self.precision {
            Precision::F32 => Products::Exact,
            Precision::Bf16Dot if self.device.has_wgmma() => Products::WarpgroupDot,
            Precision::Bf16Dot => Products::Dot,
        }
    }

    fn variant(&self, kind: Kind) -> Variant {
        let Config { rule, shape, .. } = self.config;
        Variant::new(kind, self.products(), shape.key, Division::of(rule.normaliser))
    }

    /// The kernel for many tokens.
    pub(super) fn prefill(&self, kind: Kind) -> Kernel {
        let division = Division::of(self.config.rule.normaliser);
        Kernel::Prefill { kind, products: self.products(), key: self.variant(kind).key, division }
    }

    /// Compiles the kernels that [`Attention::forward`] and [`Attention::decode`] may launch for tensors of
    /// `E`, unless they have been compiled for this device before. Without it, each kernel is compiled at its
    /// first launch, which then takes up to seconds, and fails while a stream is captured into a graph.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn prepare<E: Element>(&self) -> Result<()> {
        let scan = (self.segments > 1).then_some(Kernel::Scan);
        let snapshot = (self.snapshot_len() > 0).then_some(Kernel::Snapshot);
        let each = [self.prefill(Kind::of::<E>()), Kernel::Decode(Division::of(self.config.rule.normaliser))];
        self.device.prepare(each.into_iter().chain(scan).chain(snapshot))
    }

    /// Checks lengths, as [`crate::Attention`] does, and that no tensor is in the memory of another device.
    fn check(&self, len: usize, places: [(usize, Option<&Device>); 4]) -> Result<()> {
        let shape = self.config.shape.with_len(len);
        shape.check()?;
        for ((what, need), (got, of)) in ["q", "k", "v", "o"].into_iter().zip(shape.reach()?).zip(places) {
            check_room(what, need, got)?;
            self.device.check_memory(what, of)?;
        }
        Ok(())
    }

    fn check_state(&self, state: &Slice<'_>) -> Result<()> {
        let (len, of) = state.place();
        check_len("state", self.state_len(), len)?;
        self.device.check_memory("state", of)
    }

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
        self.check(shape.len, [q.place(), k.place(), v.place(), o.place()])?;
        check_room("workspace", self.workspace_len(), workspace.len())?;
        self.device.check_memory("workspace", workspace.place().1)?;
        let (initial, last) = match &state {
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
        let (initial, last) = (address(initial), address(last));
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
        let (chunk, eps, feature_map, map_eps) = options(&rule);
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
            q_strides: strides(shape.q_strides),
            k_strides: strides(shape.k_strides),
            v_strides: strides(shape.v_strides),
            o_strides: strides(shape.o_strides),
            state_len: self.layout.len() as i64,
            len: shape.len as i64,
            segment_len: segment_len as i64,
            heads: shape.heads as i32,
            key: shape.key as i32,
            value: shape.value as i32,
            chunk,
            feature_map,
            outputs: 0,
            aligned: aligned.into(),
            neighbours: self.neighbours(kind, o.address()),
            stages: stages as i32,
            eps,
            map_eps,
            scale: rule.scale,
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

    /// Decodes one token of all heads on a state that is replaced: as [`Attention::forward`] with T = 1, in
    /// one pass over S, in f32.
    ///
    /// # Errors
    /// As for [`Attention::forward`].
    pub fn decode<E: Element>(&self, args: DecodeStep<'_, E>, stream: Stream) -> Result<()> {
        let DecodeStep { q, k, v, state, o } = args;
        let Config { rule, shape, .. } = self.config;
        self.check(1, [q.place(), k.place(), v.place(), o.place()])?;
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
