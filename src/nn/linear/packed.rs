//! W packed once: panels of two vectors of columns, each contiguous from the first row of W to the last, in W's own type.
//!
//! Tiles of f32 multiply with panels where they lie. A few rows, as of one time step, read them as one stream, which the
//! hardware's prefetchers follow to the end: rows of W as they are stored are streams of a few KiB each, of which the
//! beginnings are waited for.

use half::{bf16, f16};
use pulp::{Simd, WithSimd};

use super::Task;
use super::stream::finish;
use crate::element::{Element, Elements, Lane, order_bf16, widen};
use crate::scratch::padded;
use crate::tile::{NV, panel_width};

/// W in panels for vectors of so many lanes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Packed<'w> {
    pub(super) lanes: usize,
    /// `[ceil(out / panel), in, panel]`, zeros where W ends.
    pub(super) panels: Elements<'w>,
}

/// Elements of f32 that W of such a type takes when it is packed; parts begin on cache lines.
pub(super) fn packed_len(lanes: usize, kernel: Elements<'_>, inputs: usize, outputs: usize) -> usize {
    let elements = inputs.saturating_mul(outputs.next_multiple_of(panel_width(lanes)));
    let (_, size) = kernel.address(0);
    padded(elements.saturating_mul(size).div_ceil(size_of::<f32>()))
}

/// Packs W into memory of that many elements.
pub(super) fn pack<'m>(
    lanes: usize,
    kernel: Elements<'_>,
    inputs: usize,
    outputs: usize,
    memory: &'m mut [f32],
) -> Packed<'m> {
    let panels = match kernel {
        Elements::F32(kernel) => copy::<f32>(lanes, kernel, inputs, outputs, memory),
        Elements::Bf16(kernel) => copy::<bf16>(lanes, kernel, inputs, outputs, memory),
        Elements::F16(kernel) => copy::<f16>(lanes, kernel, inputs, outputs, memory),
    };
    Packed { lanes, panels }
}

fn copy<'m, E: Element + bytemuck::Pod>(
    lanes: usize,
    kernel: &[E],
    inputs: usize,
    outputs: usize,
    memory: &'m mut [f32],
) -> Elements<'m> {
    let width = panel_width(lanes);
    let len = inputs * outputs.next_multiple_of(width);
    let panels = &mut bytemuck::cast_slice_mut::<f32, E>(memory)[..len];
    for (panel, from) in panels.chunks_exact_mut(inputs * width).zip((0..outputs).step_by(width)) {
        let columns = width.min(outputs - from);
        for (to, row) in panel.chunks_exact_mut(width).zip(kernel.chunks_exact(outputs)) {
            let (to, rest) = to.split_at_mut(columns);
            to.copy_from_slice(&row[from..from + columns]);
            rest.fill(E::default());
        }
    }
    E::elements(panels)
}

/// Elements of f16 that are widened at once: their conversion is a call.
const BLOCK: usize = 1024;

/// Elements of scratch of [`Stream`]: elements that are widened, and the bias of a panel.
pub(super) const SCRATCH: usize = BLOCK + NV * 16;

/// A few rows of x, of which each reads a panel in turn.
pub(super) struct Stream<'a> {
    pub(super) task: Task<'a>,
    pub(super) panels: Elements<'a>,
    pub(super) scratch: &'a mut [f32],
}

impl WithSimd for Stream<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { task, panels, scratch } = self;
        let (inputs, width) = (task.layer.inputs(), panel_width(S::F32_LANES));
        let (space, bias) = scratch.split_at_mut(BLOCK);
        for from in task.columns.clone().step_by(width) {
            let columns = width.min(task.columns.end - from);
            let at = from / width * inputs * width;
            let panel = panels.slice(at..at + inputs * width);
            let bias = task.layer.bias.slice(from..from + columns).widened(simd, bias);
            for (i, x) in task.x.chunks_exact(inputs).enumerate() {
                let sums = multiply(simd, x, panel, space);
                let sums = &bytemuck::cast_slice::<S::f32s, f32>(&sums)[..columns];
                #[allow(unsafe_code, reason = "columns of y are split among tasks")]
                // SAFETY: one row at a time.
                let to = unsafe { task.output(i, from, columns) };
                finish(simd, task.epilogue, sums, bias, to);
            }
        }
    }
}

/// A row of x with a panel.
#[inline(always)]
fn multiply<S: Simd>(simd: S, x: &[f32], panel: Elements<'_>, space: &mut [f32]) -> [S::f32s; NV] {
    let zero = [[simd.splat_f32s(0.0); NV]; 2];
    match panel {
        Elements::F32(panel) => sum(simd, add(simd, zero, x, panel)),
        Elements::Bf16(panel) => {
            let mut sums = sum(simd, add(simd, zero, x, panel));
            order_bf16(simd, bytemuck::cast_slice_mut::<S::f32s, f32>(&mut sums));
            sums
        }
        Elements::F16(_) => {
            let width = panel_width(S::F32_LANES);
            let rows = BLOCK / width;
            let mut acc = zero;
            for (i, x) in x.chunks(rows).enumerate() {
                let space = &mut space[..x.len() * width];
                let at = i * rows * width;
                widen(simd, panel.slice(at..at + space.len()), space);
                acc = add(simd, acc, x, space);
            }
            sum(simd, acc)
        }
    }
}

/// `acc += x panel`, rows of the panel in turn on two accumulators, so that memory is waited for and not the sums.
#[inline(always)]
fn add<S: Simd, L: Lane>(simd: S, mut acc: [[S::f32s; NV]; 2], x: &[f32], panel: &[L]) -> [[S::f32s; NV]; 2] {
    let width = panel_width(S::F32_LANES);
    let (pairs, odd) = x.as_chunks::<2>();
    let (both, last) = panel.split_at(pairs.len() * 2 * width);
    for (x, rows) in pairs.iter().zip(both.chunks_exact(2 * width)) {
        for i in 0..2 {
            let row = L::load(simd, &rows[i * width..][..width]);
            for j in 0..NV {
                acc[i][j] = simd.mul_add_e_f32s(simd.splat_f32s(x[i]), row[j], acc[i][j]);
            }
        }
    }
    if let [x] = odd {
        let row = L::load(simd, &last[..width]);
        for j in 0..NV {
            acc[0][j] = simd.mul_add_e_f32s(simd.splat_f32s(*x), row[j], acc[0][j]);
        }
    }
    acc
}

#[inline(always)]
fn sum<S: Simd>(simd: S, [even, odd]: [[S::f32s; NV]; 2]) -> [S::f32s; NV] {
    core::array::from_fn(|j| simd.add_f32s(even[j], odd[j]))
}
