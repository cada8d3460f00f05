//! Attention over many heads on a GPU, as the CPU's [`crate::Attention`], for tensors in a device's memory.
#![allow(unsafe_code, reason = "kernels take addresses")]

mod decode;
mod prefill;

use super::device::Device;
use super::error::{Error, Result};
use super::kernels::{Division, Kernel, Kind, Products};
use super::memory::{Slice, SliceMut};
use super::precision::Precision;
use super::variant::Variant;
use crate::attention::Config;
use crate::element::Element;
use crate::error::{check_len, check_room};
use crate::rule::{FeatureMap, Normaliser, Rule};
use crate::shape::Strides;
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
    fn check(&self, len: usize, tensors: [(usize, Option<&Device>); 4]) -> Result<()> {
        let shape = self.config.shape.with_len(len);
        shape.check()?;
        for ((what, need), (got, of)) in ["q", "k", "v", "o"].into_iter().zip(shape.reach()?).zip(tensors) {
            check_room(what, need, got)?;
            self.device.check_memory(what, of)?;
        }
        Ok(())
    }

    fn check_state(&self, state: &Slice<'_>) -> Result<()> {
        let (len, of) = state.len_and_device();
        check_len("state", self.state_len(), len)?;
        self.device.check_memory("state", of)
    }
}
