//! Dense layers: `y = x W + b`, with what follows it (GELU, a residual sum) done while the result is in registers.
//!
//! Two ways, by the number of rows:
//! - many rows: W is packed, a panel of two vectors' columns at a time, and multiplied tile by tile;
//! - few rows (a step): every element of W is used a few times only, so W is read once, in its own order, eight of
//!   its rows together, and the sums wait in L1. This runs as fast as W arrives.

use core::ops::Range;

use pulp::{Simd, WithSimd};

use half::bf16;

use crate::element::{Elements, Lane, widen};
use crate::error::{Error, Result, check_len};
use crate::isa::{Isa, dispatch};
use crate::math::gelu;
use crate::parallel;
use crate::scratch::{self, align, padded, with_alignment};
use crate::shape::Disjoint;
use crate::tile::{self, NV, RowTile, copy_row, cut, for_row_tiles, mul_ab, panel_width, vectors_mut};

/// A dense layer; kernel and bias are borrowed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Linear<'w> {
    /// `[in, out]`, row by row.
    pub kernel: Elements<'w>,
    /// `[out]`.
    pub bias: Elements<'w>,
}

/// What happens to `x W + b` on its way to y.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Epilogue {
    Store,
    Gelu,
    /// y += x W + b
    Add,
}

/// Up to so many rows W is not packed: packing costs as much as multiplying four rows.
const FEW: usize = 5;

/// Rows of W that are streamed together: more streams than a prefetcher follows are no use.
const TOGETHER: usize = 8;

/// Columns of them that are widened at once, where they are f16: the sums and these stay in L1.
const BLOCK: usize = 256;

/// Multiply-adds for which it pays to wake a thread.
const GRAIN: usize = 1 << 20;

impl<'w> Linear<'w> {
    /// A layer of these parameters, of any type each.
    pub fn new(kernel: impl Into<Elements<'w>>, bias: impl Into<Elements<'w>>) -> Self {
        Self { kernel: kernel.into(), bias: bias.into() }
    }

    pub(super) fn slot(&mut self, field: &str) -> &mut Elements<'w> {
        if field == "kernel" { &mut self.kernel } else { &mut self.bias }
    }

    pub(super) fn shape(&self, field: &str) -> [usize; 2] {
        if field == "kernel" { [self.inputs(), self.outputs()] } else { [1, self.outputs()] }
    }

    /// Elements of an output row.
    pub fn outputs(&self) -> usize {
        self.bias.len()
    }

    /// Elements of an input row.
    pub fn inputs(&self) -> usize {
        self.kernel.len().checked_div(self.bias.len()).unwrap_or(0)
    }

    /// Rows of x `[rows, in]` into y `[rows, out]`.
    ///
    /// # Errors
    /// A kernel that is not `[in, out]`; x not whole rows; y or scratch of the wrong length. Nothing has been
    /// written then.
    pub fn forward(
        &self,
        isa: Isa,
        threads: usize,
        x: &[f32],
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<()> {
        let (inputs, outputs) = (self.inputs(), self.outputs());
        if inputs == 0 || inputs * outputs != self.kernel.len() {
            return Err(Error::Parameter {
                name: "kernel",
                block: 0,
                want: [inputs.max(1), outputs],
                got: [1, self.kernel.len()],
            });
        }
        check_len("x", x.len().next_multiple_of(inputs), x.len())?;
        let rows = x.len() / inputs;
        check_len("y", rows * outputs, y.len())?;
        scratch::check(scratch, self.scratch_len(isa, threads, rows))?;
        self.run(isa, threads, x, y, Epilogue::Store, scratch);
        Ok(())
    }

    /// Elements of scratch that [`Linear::forward`] needs.
    pub fn scratch_len(&self, isa: Isa, threads: usize, rows: usize) -> usize {
        scratch_len(isa, threads, rows, self.inputs(), self.outputs())
    }

    /// The same with an epilogue; lengths are the caller's business.
    pub(super) fn run(
        &self,
        isa: Isa,
        threads: usize,
        x: &[f32],
        y: &mut [f32],
        epilogue: Epilogue,
        scratch: &mut [f32],
    ) {
        let (inputs, outputs) = (self.inputs(), self.outputs());
        let rows = x.len() / inputs;
        if rows == 0 {
            return;
        }
        let plan = Plan::new(isa, threads, rows, inputs, outputs);
        let y = Disjoint::new(y);
        let tasks = outputs.div_ceil(plan.columns);
        parallel::for_each(plan.workers, tasks, align(scratch), plan.part_len, |task, scratch| {
            let columns = task * plan.columns..outputs.min((task + 1) * plan.columns);
            dispatch(isa, Task { layer: *self, rows, columns, x, y, epilogue, scratch });
        });
    }
}

/// Elements of scratch of a dense layer, from shapes alone.
pub(super) fn scratch_len(isa: Isa, threads: usize, rows: usize, inputs: usize, outputs: usize) -> usize {
    if rows == 0 || outputs == 0 {
        return 0;
    }
    let plan = Plan::new(isa, threads, rows, inputs, outputs);
    with_alignment(plan.workers * plan.part_len)
}

/// How the columns are cut.
struct Plan {
    columns: usize,
    workers: usize,
    part_len: usize,
}

impl Plan {
    fn new(isa: Isa, threads: usize, rows: usize, inputs: usize, outputs: usize) -> Self {
        let work = rows.saturating_mul(inputs).saturating_mul(outputs);
        let wanted = parallel::workers(threads, work, GRAIN);
        let width = panel_width(isa.lanes());
        // A few tasks for each worker, of whole panels.
        let tasks = if wanted == 1 { 1 } else { 4 * wanted };
        let columns = outputs.div_ceil(width).div_ceil(tasks) * width;
        let workers = wanted.min(outputs.div_ceil(columns)).max(1);
        let part_len =
            if rows <= FEW { rows * columns.min(outputs) + TOGETHER * BLOCK } else { inputs * width };
        Self { columns, workers, part_len: padded(part_len) }
    }
}

/// Some columns of the output.
struct Task<'a> {
    layer: Linear<'a>,
    rows: usize,
    columns: Range<usize>,
    x: &'a [f32],
    y: Disjoint<'a>,
    epilogue: Epilogue,
    scratch: &'a mut [f32],
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let scratch = core::mem::take(&mut self.scratch);
        if self.rows <= FEW {
            self.stream(simd, scratch);
        } else {
            self.tiles(simd, scratch);
        }
    }
}

impl<'a> Task<'a> {
    /// Many rows: panel by panel.
    #[inline(always)]
    fn tiles<S: Simd>(&self, simd: S, scratch: &mut [f32]) {
        let full = panel_width(S::F32_LANES);
        for from in self.columns.clone().step_by(full) {
            let columns = full.min(self.columns.end - from);
            if columns > S::F32_LANES {
                self.panel::<S, NV>(simd, from, columns, scratch);
            } else {
                self.panel::<S, 1>(simd, from, columns, scratch);
            }
        }
    }

    #[inline(always)]
    fn panel<S: Simd, const N: usize>(&self, simd: S, from: usize, columns: usize, scratch: &mut [f32]) {
        let (inputs, outputs) = (self.layer.inputs(), self.layer.outputs());
        let width = N * S::F32_LANES;
        let panel = &mut scratch[..inputs * width];
        for (i, to) in panel.chunks_exact_mut(width).enumerate() {
            let at = i * outputs + from;
            widen(simd, self.layer.kernel.slice(at..at + columns), to);
        }
        let mut bias = [[simd.splat_f32s(0.0); N]];
        widen(simd, self.layer.bias.slice(from..from + columns), bytemuck::cast_slice_mut(&mut bias[0]));
        for_row_tiles::<S>(
            self.rows,
            &mut DenseTile::<S, N> {
                simd,
                task: self,
                b: vectors_mut::<S, N>(panel),
                bias: bias[0],
                from,
                columns,
            },
        );
    }

    /// Few rows: W in its own order.
    #[inline(always)]
    fn stream<S: Simd>(&self, simd: S, scratch: &mut [f32]) {
        let inputs = self.layer.inputs();
        let columns = self.columns.len();
        let (sums, space) = scratch.split_at_mut(self.rows * columns);
        for sum in sums.chunks_exact_mut(columns) {
            widen(simd, self.layer.bias.slice(self.columns.clone()), sum);
        }
        let mut at = 0;
        while inputs - at >= TOGETHER {
            self.stream_rows::<S, TOGETHER>(simd, at, sums, space);
            at += TOGETHER;
        }
        while at < inputs {
            self.stream_rows::<S, 1>(simd, at, sums, space);
            at += 1;
        }
        for (i, sum) in sums.chunks_exact(columns).enumerate() {
            #[allow(unsafe_code, reason = "columns of y are split among tasks")]
            // SAFETY: one row at a time.
            let to = unsafe { self.output(i, self.columns.start, columns) };
            finish(simd, self.epilogue, sum, to);
        }
    }

    /// R rows of W from `at` on, into the sums of every row of x.
    #[inline(always)]
    fn stream_rows<S: Simd, const R: usize>(&self, simd: S, at: usize, sums: &mut [f32], space: &mut [f32]) {
        let (outputs, columns) = (self.layer.outputs(), self.columns.len());
        let begin = |i: usize| (at + i) * outputs + self.columns.start;
        match self.layer.kernel {
            Elements::F32(kernel) => {
                let rows = core::array::from_fn(|i| &kernel[begin(i)..][..columns]);
                self.add_rows::<S, f32, R>(simd, at, rows, 0, sums);
            }
            Elements::Bf16(kernel) => {
                let rows = core::array::from_fn(|i| &kernel[begin(i)..][..columns]);
                self.add_rows::<S, bf16, R>(simd, at, rows, 0, sums);
            }
            // The conversion is a call, so it is made for many columns at once.
            kernel => {
                for from in (0..columns).step_by(BLOCK) {
                    let block = BLOCK.min(columns - from);
                    let mut rest = &mut space[..];
                    let mut rows: [&[f32]; R] = [&[]; R];
                    for (i, row) in rows.iter_mut().enumerate() {
                        let (space, after) = rest.split_at_mut(BLOCK);
                        rest = after;
                        let at = begin(i) + from;
                        widen(simd, kernel.slice(at..at + block), &mut space[..block]);
                        *row = &space[..block];
                    }
                    self.add_rows(simd, at, rows, from, sums);
                }
            }
        }
    }

    /// R rows of W from `at` on, cut to some columns, into those of all sums from `from` on.
    #[inline(always)]
    fn add_rows<S: Simd, L: Lane, const R: usize>(
        &self,
        simd: S,
        at: usize,
        rows: [&[L]; R],
        from: usize,
        sums: &mut [f32],
    ) {
        let inputs = self.layer.inputs();
        for (x, sum) in self.x.chunks_exact(inputs).zip(sums.chunks_exact_mut(self.columns.len())) {
            add_rows(simd, &x[at..], rows, &mut sum[from..][..rows[0].len()]);
        }
    }

    /// Columns of a row of y, of those that are this task's.
    ///
    /// # Safety
    /// This task holds no other part that overlaps.
    #[inline(always)]
    #[allow(unsafe_code, reason = "columns of y are split among tasks")]
    unsafe fn output(&self, row: usize, from: usize, columns: usize) -> &'a mut [f32] {
        // SAFETY: tasks differ in their columns; within this one it is the caller's promise.
        unsafe { self.y.part(row * self.layer.outputs() + from, columns) }
    }
}

/// `y = epilogue(x[row ..] panel + bias)`.
struct DenseTile<'a, S: Simd, const N: usize> {
    simd: S,
    task: &'a Task<'a>,
    b: &'a [[S::f32s; N]],
    bias: [S::f32s; N],
    from: usize,
    columns: usize,
}

impl<S: Simd, const N: usize> RowTile for DenseTile<'_, S, N> {
    #[inline(always)]
    fn run<const MR: usize>(&mut self, row: usize) {
        let inputs = self.b.len();
        let mut acc = tile::zero::<S, MR, N>(self.simd);
        acc = mul_ab(self.simd, acc, &self.task.x[row * inputs..], inputs, self.b);
        for i in 0..MR {
            for j in 0..N {
                acc[i][j] = self.simd.add_f32s(acc[i][j], self.bias[j]);
            }
            #[allow(unsafe_code, reason = "columns of y are split among tasks")]
            // SAFETY: one row at a time.
            let to = unsafe { self.task.output(row + i, self.from, self.columns) };
            let from = &bytemuck::cast_slice::<S::f32s, f32>(&acc[i])[..self.columns];
            finish(self.simd, self.task.epilogue, from, to);
        }
    }
}

/// `sum += sum_i x[i] rows[i]`.
#[inline(always)]
fn add_rows<S: Simd, L: Lane, const R: usize>(simd: S, x: &[f32], rows: [&[L]; R], sum: &mut [f32]) {
    let x = &x[..R];
    let rows = cut(rows, sum.len());
    let (sums, tail) = S::as_mut_simd_f32s(sum);
    let mut wide = [simd.splat_f32s(0.0); R];
    for i in 0..R {
        wide[i] = simd.splat_f32s(x[i]);
    }
    let whole = sums.len() * S::F32_LANES;
    for (at, sum) in sums.iter_mut().enumerate() {
        // Two chains, so that a sum in L1 is not waited for eight multiply-adds long.
        let (mut even, mut odd) = (*sum, simd.splat_f32s(0.0));
        for i in 0..R {
            let to = if i % 2 == 0 { &mut even } else { &mut odd };
            let row = L::load(simd, &rows[i][at * S::F32_LANES..][..S::F32_LANES]);
            *to = simd.mul_add_e_f32s(wide[i], row, *to);
        }
        *sum = simd.add_f32s(even, odd);
    }
    for (at, sum) in tail.iter_mut().enumerate() {
        for i in 0..R {
            *sum += x[i] * rows[i][whole + at].wide();
        }
    }
}

/// The epilogue on part of a row.
#[inline(always)]
fn finish<S: Simd>(simd: S, epilogue: Epilogue, from: &[f32], to: &mut [f32]) {
    let (from_vectors, from_tail) = S::as_simd_f32s(from);
    let (to_vectors, to_tail) = S::as_mut_simd_f32s(to);
    for (to, from) in to_vectors.iter_mut().zip(from_vectors) {
        *to = finish_one(simd, epilogue, *from, *to);
    }
    if !from_tail.is_empty() {
        let (mut from, mut old) = ([simd.splat_f32s(0.0)], [simd.splat_f32s(0.0)]);
        copy_row(simd, from_tail, bytemuck::cast_slice_mut(&mut from));
        copy_row(simd, to_tail, bytemuck::cast_slice_mut(&mut old));
        let new = [finish_one(simd, epilogue, from[0], old[0])];
        let new = bytemuck::cast_slice::<S::f32s, f32>(&new);
        to_tail.copy_from_slice(&new[..to_tail.len()]);
    }
}

#[inline(always)]
fn finish_one<S: Simd>(simd: S, epilogue: Epilogue, from: S::f32s, old: S::f32s) -> S::f32s {
    match epilogue {
        Epilogue::Store => from,
        Epilogue::Gelu => gelu(simd, from),
        Epilogue::Add => simd.add_f32s(old, from),
    }
}
