//! Many rows: W is packed, and multiplied tile by tile.
//!
//! ```text
//! for each block of up to 256 rows of W:                a panel of it and six rows of x share L1
//!     for each group of four panels of columns:         rows of W are read four cache lines at a time
//!         pack the group
//!         for each panel, for each tile of rows:
//!             y  = b, or y + b, or what the block before left
//!             y += x W                                  in registers
//!             y  = gelu(y)                              behind the last block
//! ```
//!
//! While a group is multiplied, the next one is asked for: its rows lie kilobytes apart, where no prefetcher of the
//! hardware follows.

use core::ops::Range;

use pulp::{Simd, WithSimd};

use super::{Epilogue, Task};
use crate::element::{Elements, widen};
use crate::isa::prefetch;
use crate::math::gelu;
use crate::tile::{Acc, NV, RowTile, copy_row, for_row_tiles, mul_ab, panel_width, vectors, vectors_mut};

/// Rows of W in a block: 16 KiB of a panel on AVX2.
const DEPTH: usize = 256;
/// Panels in a group.
const GROUP: usize = 4;

/// Elements of scratch: a group, packed.
pub(super) fn scratch_len(lanes: usize, inputs: usize, columns: usize) -> usize {
    let panel = panel_width(lanes);
    inputs.min(DEPTH) * columns.next_multiple_of(panel).min(GROUP * panel)
}

pub(super) struct Tiles<'a> {
    pub(super) task: Task<'a>,
    pub(super) scratch: &'a mut [f32],
}

/// A block of rows of W, a group of its columns.
#[derive(Clone)]
struct Part {
    rows: Range<usize>,
    columns: Range<usize>,
}

impl WithSimd for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { task, scratch } = self;
        let inputs = task.layer.inputs();
        let group = GROUP * panel_width(S::F32_LANES);
        let at = |from: usize, column: usize| Part {
            rows: from..inputs.min(from + DEPTH),
            columns: column..task.columns.end.min(column + group),
        };
        for from in (0..inputs).step_by(DEPTH) {
            for column in task.columns.clone().step_by(group) {
                let part = at(from, column);
                let next = if part.columns.end < task.columns.end {
                    at(from, part.columns.end)
                } else {
                    at(part.rows.end, task.columns.start)
                };
                task.group(simd, part, next, scratch);
            }
        }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn group<S: Simd>(&self, simd: S, part: Part, next: Part, scratch: &mut [f32]) {
        let full = panel_width(S::F32_LANES);
        let depth = part.rows.len();
        self.pack(simd, &part, scratch);
        let mut ask = Ask::new(self, next, part.columns.len().div_ceil(full));
        for (panel, column) in scratch.chunks_mut(depth * full).zip(part.columns.clone().step_by(full)) {
            let columns = full.min(part.columns.end - column);
            if columns > S::F32_LANES {
                self.panel::<S, NV>(simd, part.rows.clone(), column, columns, panel, &mut ask);
            } else {
                self.panel::<S, 1>(simd, part.rows.clone(), column, columns, panel, &mut ask);
            }
        }
    }

    /// A group of W, panel by panel, each padded to whole vectors.
    #[inline(always)]
    fn pack<S: Simd>(&self, simd: S, part: &Part, scratch: &mut [f32]) {
        let full = panel_width(S::F32_LANES);
        let (depth, outputs) = (part.rows.len(), self.layer.outputs());
        for (i, row) in part.rows.clone().enumerate() {
            let row =
                self.layer.kernel.slice(row * outputs + part.columns.start..row * outputs + part.columns.end);
            let mut from = 0;
            // Whole panels of f32 without a thought for tails.
            if let Elements::F32(row) = row {
                let whole = vectors::<S, NV>(row);
                for (panel, row) in scratch.chunks_exact_mut(depth * full).zip(whole) {
                    vectors_mut::<S, NV>(panel)[i] = *row;
                }
                from = whole.len() * full;
            }
            while from < row.len() {
                let columns = full.min(row.len() - from);
                let width = if columns > S::F32_LANES { full } else { S::F32_LANES };
                let to = &mut scratch[from * depth + i * width..][..width];
                widen(simd, row.slice(from..from + columns), to);
                from += full;
            }
        }
    }

    #[inline(always)]
    fn panel<S: Simd, const N: usize>(
        &self,
        simd: S,
        rows: Range<usize>,
        from: usize,
        columns: usize,
        panel: &mut [f32],
        ask: &mut Ask<'_>,
    ) {
        let mut bias = [[simd.splat_f32s(0.0); N]];
        let padded = bytemuck::cast_slice_mut(bias[0].as_mut_slice());
        widen(simd, self.layer.bias.slice(from..from + columns), padded);
        let first = rows.start == 0;
        let last = rows.end == self.layer.inputs();
        for_row_tiles::<S>(
            self.rows,
            &mut DenseTile::<S, N> {
                simd,
                task: self,
                depth: rows.start,
                b: &vectors::<S, N>(panel)[..rows.len()],
                bias: bias[0],
                old: !first || self.epilogue == Epilogue::Add,
                first,
                gelu: last && self.epilogue == Epilogue::Gelu,
                from,
                columns,
                ask,
            },
        );
    }
}

/// `y = epilogue(y + x[row ..] panel + bias)`, as far as the panel goes.
struct DenseTile<'a, 'k, S: Simd, const N: usize> {
    simd: S,
    task: &'a Task<'a>,
    /// Rows of W before the panel.
    depth: usize,
    b: &'a [[S::f32s; N]],
    bias: [S::f32s; N],
    /// y holds something that is added to.
    old: bool,
    first: bool,
    gelu: bool,
    from: usize,
    columns: usize,
    ask: &'a mut Ask<'k>,
}

impl<S: Simd, const N: usize> RowTile for DenseTile<'_, '_, S, N> {
    #[inline(always)]
    fn run<const MR: usize>(&mut self, row: usize) {
        let Self { simd, task, from, columns, .. } = *self;
        self.ask.some(MR);
        let inputs = task.layer.inputs();
        let start = if self.first { self.bias } else { [simd.splat_f32s(0.0); N] };
        let mut acc: Acc<S, MR, N> = [start; MR];
        if self.old {
            for i in 0..MR {
                #[allow(unsafe_code, reason = "columns of y are split among tasks")]
                // SAFETY: one row at a time.
                let old = load::<S, N>(simd, unsafe { task.output(row + i, from, columns) });
                for j in 0..N {
                    acc[i][j] = simd.add_f32s(acc[i][j], old[j]);
                }
            }
        }
        acc = mul_ab(simd, acc, &task.x[row * inputs + self.depth..], inputs, self.b);
        for i in 0..MR {
            if self.gelu {
                for j in 0..N {
                    acc[i][j] = gelu(simd, acc[i][j]);
                }
            }
            #[allow(unsafe_code, reason = "columns of y are split among tasks")]
            // SAFETY: one row at a time.
            store::<S, N>(acc[i], unsafe { task.output(row + i, from, columns) });
        }
    }
}

/// N vectors, of which the row may be a part.
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

/// Asks for the next group of W, a few rows of it at a time.
struct Ask<'a> {
    kernel: Elements<'a>,
    outputs: usize,
    next: Part,
    /// Rows of x for each row of W.
    pace: usize,
    owed: usize,
}

impl<'a> Ask<'a> {
    /// Spread over so many panels of all rows of x.
    #[inline(always)]
    fn new(task: &Task<'a>, next: Part, panels: usize) -> Self {
        let pace = (task.rows * panels / next.rows.len().max(1)).max(1);
        Self { kernel: task.layer.kernel, outputs: task.layer.outputs(), next, pace, owed: 0 }
    }

    /// As much as multiplying some rows of x with a panel has time for.
    #[inline(always)]
    fn some(&mut self, rows: usize) {
        self.owed += rows;
        while self.owed >= self.pace && self.next.rows.start < self.next.rows.end {
            let (row, size) =
                self.kernel.address(self.next.rows.start * self.outputs + self.next.columns.start);
            prefetch(row, self.next.columns.len() * size);
            self.next.rows.start += 1;
            self.owed -= self.pace;
        }
    }
}
