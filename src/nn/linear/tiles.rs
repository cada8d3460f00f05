//! Many rows: W is packed, and multiplied tile by tile.
//!
//! ```text
//! for each block of up to 256 rows of W:                a panel of it and six rows of x share L1
//!     for each group of eight panels of columns:        rows of W are read by stretches of eight cache lines
//!         pack the group                              unless W has been packed before
//!         for each panel, for each tile of rows:
//!             y  = x W                              in registers
//!             y += b in the first block, += what was there for a residual sum and in later blocks
//!             y  = gelu(y)                          after the last block
//! ```
//!
//! Rows of W are kilobytes apart, where no hardware prefetcher follows, so they are prefetched a few rows
//! before they are packed. (Prefetching the next group while one is multiplied, or packing it meanwhile,
//! measured slower: rows 4 KiB apart share a few sets of the caches and evict each other.)

use core::ops::Range;

use pulp::{Simd, WithSimd};

use super::tile::{Acc, NV, RowTile, for_row_tiles, mul_ab, panel_width, zero};
use super::{DEPTH, Stage, Task};
use crate::element::{Elements, widen};
use crate::isa::{LINE, outline, prefetch};
use crate::vector::{copy_row, vectors, vectors_mut};

/// Panels in a group.
const GROUP: usize = 8;
/// How many rows ahead of packing the rows of W are prefetched.
const AHEAD: usize = 4;

/// The elements of scratch, for one packed group.
pub(super) fn scratch_len(lanes: usize, inputs: usize, columns: usize) -> usize {
    let panel = panel_width(lanes);
    inputs.min(DEPTH) * columns.next_multiple_of(panel).min(GROUP * panel)
}

pub(super) struct Tiles<'a> {
    pub(super) task: Task<'a>,
    /// W in panels, if it has been packed; this task's columns begin with a panel.
    pub(super) packed: Option<Elements<'a>>,
    pub(super) scratch: &'a mut [f32],
}

/// A block of rows of W, and a group of its columns.
#[derive(Clone)]
struct Part {
    rows: Range<usize>,
    columns: Range<usize>,
}

impl WithSimd for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { task, packed, scratch } = self;
        let inputs = task.layer.inputs();
        let group = GROUP * panel_width(S::F32_LANES);
        let at = |from: usize, column: usize| Part {
            rows: from..inputs.min(from + DEPTH),
            columns: column..task.columns.end.min(column + group),
        };
        for from in (0..inputs).step_by(DEPTH) {
            for column in task.columns.clone().step_by(group) {
                let part = at(from, column);
                match packed {
                    Some(panels) => task.packed_group(simd, part, panels, scratch),
                    None => {
                        outline(simd, Pack { task: &task, part: part.clone(), to: &mut *scratch });
                        task.group(simd, part, scratch);
                    }
                }
            }
        }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn group<S: Simd>(&self, simd: S, part: Part, packed: &[f32]) {
        let full = panel_width(S::F32_LANES);
        for (packed, from) in packed.chunks(part.rows.len() * full).zip(part.columns.clone().step_by(full)) {
            let columns = full.min(part.columns.end - from);
            let args = PanelArgs { task: self, rows: part.rows.clone(), from, columns, packed };
            if columns > S::F32_LANES {
                outline(simd, Panel::<NV>(args));
            } else {
                outline(simd, Panel::<1>(args));
            }
        }
    }

    /// Multiplies a group from the panels of all of W, in place or widened.
    #[inline(always)]
    fn packed_group<S: Simd>(&self, simd: S, part: Part, panels: Elements<'_>, space: &mut [f32]) {
        let full = panel_width(S::F32_LANES);
        for from in part.columns.clone().step_by(full) {
            let columns = full.min(part.columns.end - from);
            let at = (from / full * self.layer.inputs() + part.rows.start) * full;
            let panel = panels.slice(at..at + part.rows.len() * full);
            let packed = panel.widened(simd, space);
            let args = PanelArgs { task: self, rows: part.rows.clone(), from, columns, packed };
            outline(simd, Panel::<NV>(args));
        }
    }
}

/// Packs a group of W, panel by panel, each padded to whole vectors.
struct Pack<'a> {
    task: &'a Task<'a>,
    part: Part,
    to: &'a mut [f32],
}

impl WithSimd for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { task, part: Part { rows, columns }, to } = self;
        let (depth, outputs) = (rows.len(), task.layer.outputs());
        for (i, row) in rows.clone().enumerate() {
            if row + AHEAD < rows.end {
                let (kernel, size) = task.layer.kernel.address();
                let ahead = (row + AHEAD) * outputs + columns.start;
                let first = kernel.wrapping_add(ahead * size);
                for byte in (0..columns.len() * size).step_by(LINE) {
                    prefetch(first.wrapping_add(byte));
                }
            }
            let row = task.layer.kernel.slice(row * outputs + columns.start..row * outputs + columns.end);
            pack_row(simd, row, to, depth, i);
        }
    }
}

/// The product of all rows of x and a panel of N vectors of columns.
struct Panel<'a, const N: usize>(PanelArgs<'a>);

struct PanelArgs<'a> {
    task: &'a Task<'a>,
    /// The rows of W in the panel.
    rows: Range<usize>,
    from: usize,
    columns: usize,
    packed: &'a [f32],
}

impl<const N: usize> WithSimd for Panel<'_, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let PanelArgs { task, rows, from, columns, packed } = self.0;
        let mut bias = [[simd.splat_f32s(0.0); N]];
        let padded = bytemuck::cast_slice_mut(bias[0].as_mut_slice());
        widen(simd, task.layer.bias.slice(from..from + columns), padded);
        for_row_tiles::<S>(
            task.rows,
            &mut DenseTile::<S, N> {
                simd,
                task,
                depth: rows.start,
                b: &vectors::<S, N>(packed)[..rows.len()],
                bias: bias[0],
                stage: Stage::new(&rows, task.layer.inputs(), task.epilogue),
                from,
                columns,
            },
        );
    }
}

/// `y = epilogue(y + x[row ..] panel + bias)`, for the columns of the panel.
struct DenseTile<'a, S: Simd, const N: usize> {
    simd: S,
    task: &'a Task<'a>,
    /// The number of rows of W before the panel.
    depth: usize,
    b: &'a [[S::f32s; N]],
    bias: [S::f32s; N],
    stage: Stage,
    from: usize,
    columns: usize,
}

impl<S: Simd, const N: usize> RowTile for DenseTile<'_, S, N> {
    #[inline(always)]
    fn run<const MR: usize>(&mut self, row: usize) {
        let Self { simd, task, stage, from, columns, .. } = *self;
        let inputs = task.layer.inputs();
        let mut acc: Acc<S, MR, N> = zero::<S, MR, N>(simd);
        acc = mul_ab(simd, acc, &task.x[row * inputs + self.depth..], inputs, self.b);
        for i in 0..MR {
            // Sums that begin at zero have smaller rounding errors than those that begin at y.
            let mut old = [simd.splat_f32s(0.0); N];
            if stage.adds() {
                #[allow(unsafe_code, reason = "columns of y are split among tasks")]
                // SAFETY: one row is borrowed at a time.
                let row = unsafe { task.output(row + i, from, columns) };
                old = load::<S, N>(simd, row);
            }
            for j in 0..N {
                acc[i][j] = stage.apply(simd, acc[i][j], self.bias[j], old[j]);
            }
            #[allow(unsafe_code, reason = "columns of y are split among tasks")]
            // SAFETY: one row is borrowed at a time.
            store::<S, N>(acc[i], unsafe { task.output(row + i, from, columns) });
        }
    }
}

/// Loads N vectors; a row that is shorter is padded with zeros.
#[inline(always)]
fn load<S: Simd, const N: usize>(simd: S, row: &[f32]) -> [S::f32s; N] {
    match vectors::<S, N>(row).first() {
        Some(whole) => *whole,
        None => {
            let mut padded = [simd.splat_f32s(0.0); N];
            copy_row(simd, row, bytemuck::cast_slice_mut(padded.as_mut_slice()));
            padded
        }
    }
}

#[inline(always)]
fn store<S: Simd, const N: usize>(from: [S::f32s; N], row: &mut [f32]) {
    let len = row.len();
    match vectors_mut::<S, N>(row).first_mut() {
        Some(whole) => *whole = from,
        None => row.copy_from_slice(&bytemuck::cast_slice(from.as_slice())[..len]),
    }
}

/// Widens a row into row `i` of panels of `depth` rows each, padded to whole vectors: as many panels of NV
/// vectors as the row fills, and a last one, which may be of one vector.
#[inline(always)]
fn pack_row<S: Simd>(simd: S, from: Elements<'_>, panels: &mut [f32], depth: usize, i: usize) {
    let full = panel_width(S::F32_LANES);
    let mut at = 0;
    // Whole panels of f32, the most frequent case, need no treatment of tails.
    if let Elements::F32(row) = from {
        let whole = vectors::<S, NV>(row);
        for (panel, row) in panels.chunks_exact_mut(depth * full).zip(whole) {
            vectors_mut::<S, NV>(panel)[i] = *row;
        }
        at = whole.len() * full;
    }
    while at < from.len() {
        let columns = full.min(from.len() - at);
        let width = if columns > S::F32_LANES { full } else { S::F32_LANES };
        let to = &mut panels[at * depth + i * width..][..width];
        widen(simd, from.slice(at..at + columns), to);
        at += columns;
    }
}
