//! Dense layers: `y = x W + b`, with the operation that follows (GELU, a residual sum) done while the result
//! is in registers.
//!
//! There are two methods, chosen by the number of rows: many rows are computed in tiles, and a few, as in one
//! time step, in a stream. Both are faster where W has been packed before. All give the same bits: an element
//! of `x W` is summed over blocks of 256 inputs, each a chain of fused multiply-adds from zero in the order
//! of the inputs; bias and residual are added to the first block's sum, and then the sums of the other blocks
//! in their order.

mod packed;
mod stream;
mod tile;
mod tiles;

use core::ops::Range;

use pulp::Simd;

use self::packed::Packed;
use self::stream::Stream;
use self::tile::panel_width;
use self::tiles::Tiles;
use crate::element::Elements;
use crate::error::{Error, Result, check_len, check_room};
use crate::isa::{Isa, dispatch};
use crate::math::gelu;
use crate::parallel;
use crate::scratch::{self, align, padded, with_alignment};
use crate::tensors::Disjoint;

/// A dense layer. It borrows its kernel `[in, out]`, row by row, and its bias `[out]`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Linear<'w> {
    kernel: Elements<'w>,
    bias: Elements<'w>,
    packed: Option<Packed<'w>>,
}

/// What is done with `x W + b` before it is stored in y.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Epilogue {
    Store,
    Gelu,
    /// y += x W + b
    Add,
}

/// What a layer computes: rows of x `[rows, in]` into columns of y `[rows, out]`.
pub(super) struct Product<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    epilogue: Epilogue,
    columns: Range<usize>,
}

impl<'a> Product<'a> {
    /// The product over all columns.
    pub(super) fn new(x: &'a [f32], y: &'a mut [f32], epilogue: Epilogue) -> Self {
        Self { x, y, epilogue, columns: 0..usize::MAX }
    }

    /// The product over some columns.
    pub(super) fn columns(self, columns: Range<usize>) -> Self {
        Self { columns, ..self }
    }
}

/// The inputs in a block: on AVX2 they are 16 KiB of a panel of W, which share L1 with the rows of a tile.
const DEPTH: usize = 256;

/// The position of a block of inputs in the sum of an output, and the epilogue of the sum.
#[derive(Clone, Copy)]
struct Stage {
    first: bool,
    last: bool,
    epilogue: Epilogue,
}

impl Stage {
    /// The stage of the block `inputs` of `all` inputs.
    fn new(inputs: &Range<usize>, all: usize, epilogue: Epilogue) -> Self {
        Self { first: inputs.start == 0, last: inputs.end == all, epilogue }
    }

    /// Whether the old content of y is added.
    #[inline(always)]
    fn adds(self) -> bool {
        !self.first || self.epilogue == Epilogue::Add
    }

    /// The new content of y: `old` is the old content, or zero where that is not added.
    #[inline(always)]
    fn apply<S: Simd>(self, simd: S, sum: S::f32s, bias: S::f32s, old: S::f32s) -> S::f32s {
        let sum = if self.first { simd.add_f32s(sum, bias) } else { sum };
        let sum = if self.adds() { simd.add_f32s(sum, old) } else { sum };
        if self.last && self.epilogue == Epilogue::Gelu { gelu(simd, sum) } else { sum }
    }
}

/// The most rows for which W is not packed: packing costs as much as multiplying four rows.
const FEW: usize = 5;

/// The number of multiply-adds for which it pays to wake a thread.
const GRAIN: usize = 1 << 20;

impl<'w> Linear<'w> {
    /// A layer without parameters, to initialise static arrays.
    pub const EMPTY: Self = Self { kernel: Elements::F32(&[]), bias: Elements::F32(&[]), packed: None };

    /// A layer with these parameters, each of any element type.
    pub fn new(kernel: impl Into<Elements<'w>>, bias: impl Into<Elements<'w>>) -> Self {
        Self { kernel: kernel.into(), bias: bias.into(), packed: None }
    }

    /// The kernel as it was given, `[in, out]`.
    pub fn kernel(&self) -> Elements<'w> {
        self.kernel
    }

    /// The bias, `[out]`.
    pub fn bias(&self) -> Elements<'w> {
        self.bias
    }

    /// The layer with its kernel packed for an instruction set, in memory that the caller provides: one row
    /// then reads it as fast as memory can be read, and many rows do not have to pack it each time. The
    /// kernel itself is still borrowed, because other instruction sets use it. The bits are the same.
    ///
    /// # Errors
    /// A kernel that is not `[in, out]`, or less memory than [`Linear::packed_len`]. Nothing has been written
    /// then.
    pub fn pack<'m>(&self, isa: Isa, memory: &'m mut [f32]) -> Result<Linear<'m>>
    where
        'w: 'm,
    {
        self.check()?;
        let need = self.packed_len(isa);
        check_room("memory", need, memory.len())?;
        let Self { kernel, bias, .. } = *self;
        let packed = packed::pack(isa.lanes(), kernel, self.inputs(), self.outputs(), &mut memory[..need]);
        Ok(Linear { kernel, bias, packed: Some(packed) })
    }

    /// The elements of memory, of 4 bytes each, that [`Linear::pack`] needs; they contain the kernel in its
    /// own type.
    pub fn packed_len(&self, isa: Isa) -> usize {
        packed::packed_len(isa.lanes(), self.kernel, self.inputs(), self.outputs())
    }

    pub(super) fn set(&mut self, field: &str, data: Elements<'w>) {
        if field == "kernel" {
            self.kernel = data;
        } else {
            self.bias = data;
        }
    }

    /// The shape of a parameter, which follows from the length of the bias; a kernel that is not whole rows
    /// counts as one row.
    pub(super) fn shape(&self, field: &str) -> [usize; 2] {
        match (field, self.check()) {
            ("kernel", Ok(())) => [self.inputs(), self.outputs()],
            ("kernel", Err(_)) => [1, self.kernel.len()],
            _ => [1, self.outputs()],
        }
    }

    /// Elements of an output row.
    pub fn outputs(&self) -> usize {
        self.bias.len()
    }

    /// Elements of an input row.
    pub fn inputs(&self) -> usize {
        self.kernel.len().checked_div(self.bias.len()).unwrap_or(0)
    }

    /// Computes y `[rows, out]` from x `[rows, in]`.
    ///
    /// # Errors
    /// A kernel that is not `[in, out]`; x that is not whole rows; y or scratch of the wrong length. Nothing
    /// has been written then.
    pub fn forward(
        &self,
        isa: Isa,
        threads: usize,
        x: &[f32],
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<()> {
        self.check()?;
        let (inputs, outputs) = (self.inputs(), self.outputs());
        check_len("x", x.len().next_multiple_of(inputs), x.len())?;
        let rows = x.len() / inputs;
        let y_len = rows.checked_mul(outputs).ok_or(Error::Overflow { what: "y" })?;
        check_len("y", y_len, y.len())?;
        scratch::check(scratch, self.scratch_len(isa, threads, rows))?;
        self.run(isa, threads, Product::new(x, y, Epilogue::Store), scratch);
        Ok(())
    }

    /// Checks that the kernel is `[in, out]`.
    pub(super) fn check(&self) -> Result<()> {
        let (inputs, outputs, got) = (self.inputs(), self.outputs(), self.kernel.len());
        if inputs == 0 || inputs * outputs != got {
            let want = [inputs.max(1), outputs];
            return Err(Error::Parameter { name: "kernel", block: 0, want, got: [1, got] });
        }
        Ok(())
    }

    /// The elements of scratch that [`Linear::forward`] needs for `rows` rows.
    pub fn scratch_len(&self, isa: Isa, threads: usize, rows: usize) -> usize {
        scratch_len(isa, threads, rows, self.inputs(), self.outputs())
    }

    /// Computes a product whose lengths the caller has checked. Columns of y `[rows, out]` outside the
    /// product are not changed.
    pub(super) fn run(&self, isa: Isa, threads: usize, product: Product<'_>, scratch: &mut [f32]) {
        let Product { x, y, epilogue, columns } = product;
        let columns = columns.start..columns.end.min(self.outputs());
        let rows = x.len() / self.inputs();
        if rows == 0 || columns.is_empty() {
            return;
        }
        let plan = Plan::new(isa, threads, rows, self.inputs(), columns.len());
        let y = Disjoint::new(y);
        // Packed panels do not fit columns that begin within a panel, which do not end with one either.
        let packed = self.packed.filter(|packed| {
            packed.lanes == isa.lanes() && columns.start.is_multiple_of(panel_width(packed.lanes))
        });
        let packed = packed.map(|packed| packed.panels);
        let tasks = columns.len().div_ceil(plan.columns);
        let tasks = parallel::Tasks { count: tasks, workers: plan.workers };
        parallel::for_each(tasks, align(scratch), plan.part_len, |task, scratch| {
            let begin = columns.start + task * plan.columns;
            let columns = begin..columns.end.min(begin + plan.columns);
            let task = Task { layer: *self, rows, columns, x, y, epilogue };
            match packed {
                Some(panels) if rows <= FEW => dispatch(isa, packed::Stream { task, panels, scratch }),
                None if rows <= FEW => dispatch(isa, Stream { task, scratch }),
                packed => dispatch(isa, Tiles { task, packed, scratch }),
            }
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

/// How the columns are divided into tasks.
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
        // Each worker gets a few tasks, of whole panels.
        let tasks = if wanted == 1 { 1 } else { 4 * wanted };
        let columns = outputs.div_ceil(width).div_ceil(tasks) * width;
        let workers = wanted.min(outputs.div_ceil(columns)).max(1);
        let part_len = if rows <= FEW {
            stream::scratch_len(rows, columns.min(outputs)).max(packed::SCRATCH)
        } else {
            tiles::scratch_len(isa.lanes(), inputs, columns.min(outputs))
        };
        Self { columns, workers, part_len: padded(part_len) }
    }
}

/// A task: some columns of the output.
struct Task<'a> {
    layer: Linear<'a>,
    rows: usize,
    columns: Range<usize>,
    x: &'a [f32],
    y: Disjoint<'a>,
    epilogue: Epilogue,
}

impl<'a> Task<'a> {
    /// `columns` columns of a row of y from column `from` on, which must be among this task's columns.
    ///
    /// # Safety
    /// This task holds no other part that overlaps.
    #[inline(always)]
    #[allow(unsafe_code, reason = "columns of y are split among tasks")]
    unsafe fn output(&self, row: usize, from: usize, columns: usize) -> &'a mut [f32] {
        // SAFETY: tasks differ in their columns; within this task it is the caller's promise.
        unsafe { self.y.part(row * self.layer.outputs() + from, columns) }
    }
}
