//! Few rows, as in one time step. Every element of W is used only a few times, so W is read once, in its own
//! order, eight of its rows together, while the sums stay in L1. The speed of memory is the limit.

use half::bf16;
use pulp::{Simd, WithSimd};

use super::tile::cut;
use super::{DEPTH, Stage, Task};
use crate::element::{Elements, Lane, order_bf16, widen};
use crate::vector::copy_row;

/// The rows of W that are streamed together: more streams than a prefetcher follows are of no use.
const TOGETHER: usize = 8;

/// The columns of these rows that are widened at once where they are f16: the sums and these columns stay in
/// L1.
const BLOCK: usize = 256;

/// Elements of scratch: the sums, and rows of W where they are widened first.
pub(super) fn scratch_len(rows: usize, columns: usize) -> usize {
    rows * columns + TOGETHER * BLOCK
}

pub(super) struct Stream<'a> {
    pub(super) task: Task<'a>,
    pub(super) scratch: &'a mut [f32],
}

impl WithSimd for Stream<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { task, scratch } = self;
        let inputs = task.layer.inputs();
        let columns = task.columns.len();
        let (sums, space) = scratch.split_at_mut(task.rows * columns);
        for begin in (0..inputs).step_by(DEPTH) {
            let block = begin..inputs.min(begin + DEPTH);
            let stage = Stage::new(&block, inputs, task.epilogue);
            sums.fill(0.0);
            let mut input = begin;
            while block.end - input >= TOGETHER {
                task.rows::<S, TOGETHER>(simd, input, sums, space);
                input += TOGETHER;
            }
            while input < block.end {
                task.rows::<S, 1>(simd, input, sums, space);
                input += 1;
            }
            for (i, sums) in sums.chunks_exact_mut(columns).enumerate() {
                if let Elements::Bf16(_) = task.layer.kernel {
                    order_bf16(simd, sums);
                }
                #[allow(unsafe_code, reason = "columns of y are split among tasks")]
                // SAFETY: one row is borrowed at a time.
                let to = unsafe { task.output(i, task.columns.start, columns) };
                for (part, (sums, to)) in sums.chunks(BLOCK).zip(to.chunks_mut(BLOCK)).enumerate() {
                    let from = task.columns.start + part * BLOCK;
                    let bias = task.layer.bias.slice(from..from + sums.len()).widened(simd, space);
                    finish(simd, stage, sums, bias, to);
                }
            }
        }
    }
}

impl Task<'_> {
    /// Multiplies R rows of W from row `at` on, and adds to the sums of every row of x.
    #[inline(always)]
    fn rows<S: Simd, const R: usize>(&self, simd: S, at: usize, sums: &mut [f32], space: &mut [f32]) {
        let (outputs, columns) = (self.layer.outputs(), self.columns.len());
        let begin = |i: usize| (at + i) * outputs + self.columns.start;
        match self.layer.kernel {
            Elements::F32(kernel) => {
                let rows = core::array::from_fn(|i| &kernel[begin(i)..][..columns]);
                self.add::<S, f32, R>(simd, at, rows, 0, sums);
            }
            Elements::Bf16(kernel) => {
                let rows = core::array::from_fn(|i| &kernel[begin(i)..][..columns]);
                self.add::<S, bf16, R>(simd, at, rows, 0, sums);
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
                    self.add(simd, at, rows, from, sums);
                }
            }
        }
    }

    /// Multiplies R rows of W from row `at` on, cut to some columns, and adds to the sums of every row of x
    /// from column `from` on.
    #[inline(always)]
    fn add<S: Simd, L: Lane, const R: usize>(
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
}

/// `sum += sum_i x[i] rows[i]`, with the sums in the order in which L is loaded.
#[inline(always)]
fn add_rows<S: Simd, L: Lane, const R: usize>(simd: S, x: &[f32], rows: [&[L]; R], sum: &mut [f32]) {
    let x = &x[..R];
    let rows = cut(rows, sum.len());
    let mut wide = [simd.splat_f32s(0.0); R];
    for i in 0..R {
        wide[i] = simd.splat_f32s(x[i]);
    }
    let width = 2 * S::F32_LANES;
    let (sums, tail) = sum.split_at_mut(sum.len() / width * width);
    for (i, sum) in S::as_mut_simd_f32s(sums).0.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let mut acc = *sum;
        for r in 0..R {
            let row = L::load(simd, &rows[r][i * width..][..width]);
            for j in 0..2 {
                acc[j] = simd.mul_add_e_f32s(wide[r], row[j], acc[j]);
            }
        }
        *sum = acc;
    }
    let whole = sums.len();
    // Columns that do not fill two vectors are in order. They are fused like the others, so they are padded
    // to vectors.
    for (i, sum) in tail.chunks_mut(S::F32_LANES).enumerate() {
        let mut acc = [simd.splat_f32s(0.0)];
        copy_row(simd, sum, bytemuck::cast_slice_mut(acc.as_mut_slice()));
        for r in 0..R {
            let mut row = [simd.splat_f32s(0.0)];
            let from = &rows[r][whole + i * S::F32_LANES..][..sum.len()];
            for (to, from) in bytemuck::cast_slice_mut::<S::f32s, f32>(&mut row).iter_mut().zip(from) {
                *to = from.wide();
            }
            acc[0] = simd.mul_add_e_f32s(wide[r], row[0], acc[0]);
        }
        sum.copy_from_slice(&bytemuck::cast_slice::<S::f32s, f32>(&acc)[..sum.len()]);
    }
}

/// Finishes some columns of a row of y.
#[inline(always)]
pub(super) fn finish<S: Simd>(simd: S, stage: Stage, sums: &[f32], bias: &[f32], to: &mut [f32]) {
    for ((sums, bias), to) in
        sums.chunks(S::F32_LANES).zip(bias.chunks(S::F32_LANES)).zip(to.chunks_mut(S::F32_LANES))
    {
        let mut all = [[simd.splat_f32s(0.0)]; 3];
        for (all, from) in all.iter_mut().zip([sums, bias, to]) {
            copy_row(simd, from, bytemuck::cast_slice_mut(all.as_mut_slice()));
        }
        let [[sum], [bias], [old]] = all;
        let new = [stage.apply(simd, sum, bias, old)];
        to.copy_from_slice(&bytemuck::cast_slice::<S::f32s, f32>(&new)[..to.len()]);
    }
}
