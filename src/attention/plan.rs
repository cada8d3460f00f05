//! How a call is cut into tasks: by shapes, the instruction set and the number of threads, never by which
//! thread runs a task.

use super::Config;
use super::sizes::{Operands, Sizes};
use crate::parallel;
use crate::rule::{Normaliser, Rule};
use crate::scratch::padded;
use crate::sweep::Blocking;

/// The number of flops for which it pays to wake a thread, some 40 microseconds' worth. With half this
/// number, 64 tokens of 4 heads took a median of 65 us on two threads and 39 us on one.
const GRAIN_FLOPS: usize = 1 << 22;
/// The bytes of state in one decode for which it pays to wake a thread, some 40 microseconds' worth. With a
/// quarter of this number, 1 MiB of state took a median of 44 us on two threads and 19 us on one.
const GRAIN_BYTES: usize = 1 << 21;
/// The bytes of S of all heads that one task walks through together. They share L2 with the rows of the
/// tensors.
const GROUP_BYTES: usize = 256 << 10;

/// How one call is cut into tasks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// The number of neighbouring heads in a task.
    pub(crate) group: usize,
    /// The number of tasks along V for each group of heads.
    pub(crate) parts: usize,
    /// The number of columns of V in each of these tasks but the last.
    pub(crate) columns: usize,
    pub(crate) workers: usize,
    /// Elements of scratch for each worker.
    pub(crate) part_len: usize,
    pub(crate) sizes: Sizes,
}

/// The number of matrices of a head: S and those that are kept beside it.
const fn matrices(rule: &Rule) -> usize {
    1 + matches!(rule.normaliser, Normaliser::PerChunk { .. }) as usize + rule.compensated as usize
}

impl Plan {
    /// The plan for many tokens.
    pub(crate) fn forward(config: &Config, lanes: usize) -> Self {
        let (shape, rule) = (&config.shape, &config.rule);
        let blocking = Blocking::new(lanes, rule.in_blocks());
        let sequences = if shape.ragged { 1 } else { shape.batch };
        let tokens = sequences.saturating_mul(shape.len).saturating_mul(shape.groups.output());
        let flops = tokens.saturating_mul(4).saturating_mul(shape.key).saturating_mul(shape.value);
        let wanted = parallel::workers(config.execution.threads, flops, GRAIN_FLOPS);
        // A task walks through heads that are neighbours in memory together, unless that leaves threads
        // without work.
        let all = shape.batch.saturating_mul(shape.heads);
        let nested = shape.q_strides.head < shape.q_strides.token && shape.heads > 1;
        let group = if nested {
            let fits = GROUP_BYTES / shape.key.saturating_mul(shape.value).saturating_mul(size_of::<f32>());
            fits.min(all / wanted).clamp(1, shape.heads)
        } else {
            1
        };
        let groups = shape.batch.saturating_mul(shape.heads.div_ceil(group)).max(1);
        let vectors = shape.value.div_ceil(lanes);
        let parts = wanted.div_ceil(groups).min(vectors);
        let columns = vectors.div_ceil(parts).saturating_mul(lanes).min(shape.value);
        let parts = shape.value.div_ceil(columns);
        let sizes = Sizes {
            lanes,
            heads: group,
            key: shape.key,
            columns,
            matrices: matrices(rule),
            blocking,
            operands: Operands::of(rule),
            spare: usize::from(shape.groups.queries() > 1),
            in_place: false,
        };
        let workers = wanted.min(groups.saturating_mul(parts));
        Self { group, parts, columns, workers, part_len: padded(sizes.scratch_len()), sizes }
    }

    /// The plan for one token of each head, on the caller's state.
    pub(crate) fn decode(config: &Config, lanes: usize, state_len: usize) -> Self {
        let shape = &config.shape;
        let all = shape.batch.saturating_mul(shape.heads);
        let sizes = Sizes {
            lanes,
            heads: 1,
            key: shape.key,
            columns: shape.value,
            matrices: matrices(&config.rule),
            blocking: Blocking { tile: 1, ..Blocking::new(lanes, config.rule.in_blocks()) },
            operands: Operands::of(&config.rule),
            spare: if shape.groups.queries() > 1 { state_len / all.max(1) } else { 0 },
            in_place: true,
        };
        let threads = config.execution.threads.min(all.max(1));
        let workers = parallel::workers(threads, state_len.saturating_mul(size_of::<f32>()), GRAIN_BYTES);
        // There are a few tasks for each worker, so that other workers can take over those of a late one.
        let tasks = if workers == 1 { shape.batch.max(1) } else { 4 * workers };
        let group = all.div_ceil(tasks).clamp(1, shape.heads);
        let part_len = padded(sizes.scratch_len());
        Self { group, parts: 1, columns: shape.value, workers, part_len, sizes }
    }

    /// The largest scratch, in elements, that one thread needs on any instruction set, for rules of this kind
    /// whose tensors have as many heads as the state.
    pub(crate) const fn bound(heads: usize, key: usize, value: usize, operands: Operands) -> usize {
        const LANES: [usize; 4] = [1, 4, 8, 16];
        let in_blocks = !matches!(operands, Operands::Linear);
        let (mut most, mut i) = (0, 0);
        while i < LANES.len() {
            let lanes = LANES[i];
            let blocking = Blocking::new(lanes, in_blocks);
            let matrices = if in_blocks { 1 } else { 3 };
            let sizes = Sizes {
                lanes,
                heads,
                key,
                columns: value,
                matrices,
                blocking,
                operands,
                spare: 0,
                in_place: false,
            };
            let len = padded(sizes.scratch_len());
            if len > most {
                most = len;
            }
            i += 1;
        }
        most
    }
}
