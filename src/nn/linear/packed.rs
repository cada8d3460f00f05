//! W packed once: panels of two vectors of columns, each contiguous from the first row of W to the last, in
//! W's own type.
//!
//! Tiles of f32 multiply with panels in place. A few rows, as in one time step, read them sequentially, which
//! hardware prefetchers follow to the end. Rows of W as they are stored are runs of a few KiB each, at whose
//! beginning the prefetcher has not started.

use half::{bf16, f16};
use pulp::{Simd, WithSimd};

use super::stream::finish;
use super::tile::{NV, cut, panel_width};
use super::{DEPTH, Stage, Task};
use crate::element::{Element, Elements, Lane, order_bf16, widen};
use crate::scratch::padded;

/// W in panels, for vectors of `lanes` lanes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Packed<'w> {
    pub(super) lanes: usize,
    /// `[ceil(out / panel), in, panel]`, with zeros after the last column of W.
    pub(super) panels: Elements<'w>,
}

/// The number of f32 elements that W takes when it is packed in its own type; parts begin on cache lines.
pub(super) fn packed_len(lanes: usize, kernel: Elements<'_>, inputs: usize, outputs: usize) -> usize {
    let elements = inputs.saturating_mul(outputs.next_multiple_of(panel_width(lanes)));
    let (_, size) = kernel.address();
    padded(elements.saturating_mul(size).div_ceil(size_of::<f32>()))
}

/// Packs W into memory of [`packed_len`] elements.
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

/// The elements of f16 that are widened at once, because their conversion is a call.
const BLOCK: usize = 1024;

/// The number of panels that are read at once, so that their sums do not wait for each other.
const TOGETHER: usize = 2;

/// Elements of scratch of [`Stream`]: elements that are widened, and the bias of the panels.
pub(super) const SCRATCH: usize = TOGETHER * (BLOCK + NV * 16);

/// The product of a few rows of x, each of which reads the panels in turn.
pub(super) struct Stream<'a> {
    pub(super) task: Task<'a>,
    pub(super) panels: Elements<'a>,
    pub(super) scratch: &'a mut [f32],
}

impl WithSimd for Stream<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let width = panel_width(S::F32_LANES);
        let mut from = self.task.columns.start;
        while self.task.columns.end > from + width {
            self.columns::<S, TOGETHER>(simd, from);
            from += TOGETHER * width;
        }
        if self.task.columns.end > from {
            self.columns::<S, 1>(simd, from);
        }
    }
}

impl Stream<'_> {
    /// Computes the columns of P panels.
    #[inline(always)]
    fn columns<S: Simd, const P: usize>(&mut self, simd: S, from: usize) {
        let Self { task, panels, scratch } = self;
        let (inputs, width) = (task.layer.inputs(), panel_width(S::F32_LANES));
        let (space, bias) = scratch.split_at_mut(TOGETHER * BLOCK);
        let columns = (P * width).min(task.columns.end - from);
        let bias = task.layer.bias.slice(from..from + columns).widened(simd, bias);
        for (i, x) in task.x.chunks_exact(inputs).enumerate() {
            for begin in (0..inputs).step_by(DEPTH) {
                let block = begin..inputs.min(begin + DEPTH);
                let panels = core::array::from_fn(|panel| {
                    let panel = (from / width + panel) * inputs;
                    panels.slice((panel + block.start) * width..(panel + block.end) * width)
                });
                let sums = multiply::<S, P>(simd, &x[block.clone()], panels, space);
                let sums = &bytemuck::cast_slice::<[S::f32s; NV], f32>(&sums)[..columns];
                #[allow(unsafe_code, reason = "columns of y are split among tasks")]
                // SAFETY: one row is borrowed at a time.
                let to = unsafe { task.output(i, from, columns) };
                finish(simd, Stage::new(&block, inputs, task.epilogue), sums, bias, to);
            }
        }
    }
}

/// Sums of P panels.
type Sums<S, const P: usize> = [[<S as Simd>::f32s; NV]; P];

/// The product of some elements of a row of x and as many rows of P panels.
#[inline(always)]
fn multiply<S: Simd, const P: usize>(
    simd: S,
    x: &[f32],
    panels: [Elements<'_>; P],
    space: &mut [f32],
) -> Sums<S, P> {
    let zero = [[simd.splat_f32s(0.0); NV]; P];
    match panels[0] {
        Elements::F32(_) => {
            add(simd, zero, x, panels.map(|panel| if let Elements::F32(panel) = panel { panel } else { &[] }))
        }
        Elements::Bf16(_) => {
            let panels = panels.map(|panel| if let Elements::Bf16(panel) = panel { panel } else { &[] });
            let mut sums = add(simd, zero, x, panels);
            for sums in &mut sums {
                order_bf16(simd, bytemuck::cast_slice_mut::<S::f32s, f32>(sums));
            }
            sums
        }
        Elements::F16(_) => {
            let width = panel_width(S::F32_LANES);
            let rows = BLOCK / width;
            let mut acc = zero;
            for (i, x) in x.chunks(rows).enumerate() {
                let len = x.len() * width;
                for (space, panel) in space.chunks_exact_mut(BLOCK).zip(panels) {
                    widen(simd, panel.slice(i * rows * width..i * rows * width + len), &mut space[..len]);
                }
                let mut wide = space.chunks_exact(BLOCK);
                acc = add(simd, acc, x, core::array::from_fn(|_| &wide.next().unwrap_or_default()[..len]));
            }
            acc
        }
    }
}

/// `acc += x panel`, as one chain for each element, in the order of x.
#[inline(always)]
fn add<S: Simd, L: Lane, const P: usize>(
    simd: S,
    mut acc: Sums<S, P>,
    x: &[f32],
    panels: [&[L]; P],
) -> Sums<S, P> {
    let width = panel_width(S::F32_LANES);
    let panels = cut(panels, x.len() * width);
    for (i, x) in x.iter().enumerate() {
        let x = simd.splat_f32s(*x);
        for p in 0..P {
            let row = L::load(simd, &panels[p][i * width..][..width]);
            for j in 0..NV {
                acc[p][j] = simd.mul_add_e_f32s(x, row[j], acc[p][j]);
            }
        }
    }
    acc
}
