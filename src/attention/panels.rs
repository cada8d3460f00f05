//! How a state is copied into panels and back.

use core::ops::Range;

use pulp::Simd;

use super::task::{Pieces, Task};
use crate::state::Sums as Which;
use crate::tensors::Disjoint;
use crate::vector::copy_row;

impl<const DECODE: bool> Task<'_, DECODE> {
    /// Fills a head's panels from a state, or with zeros.
    #[inline(always)]
    pub(super) fn load<S: Simd>(&self, simd: S, state: Option<&[f32]>, head: &mut Pieces<'_>) {
        let layout = self.layout;
        for (which, (matrix, z)) in self.order().into_iter().zip(head.matrices.iter_mut().zip(&mut head.z)) {
            if z.is_empty() {
                continue;
            }
            z.fill(0.0);
            let Some(state) = state else {
                matrix.fill(0.0);
                continue;
            };
            if layout.normalised {
                copy_row(simd, &state[layout.z_offset(which)..][..layout.key], z);
            }
            let s = &state[layout.s_offset(which)..][..layout.matrix()];
            for (begin, stride, columns) in self.columns_of_panels() {
                let panel = &mut matrix[begin * layout.key..][..stride * layout.key];
                for (to, from) in panel.chunks_exact_mut(stride).zip(s.chunks_exact(layout.value)) {
                    copy_row(simd, &from[columns.clone()], to);
                }
            }
        }
    }

    /// Writes a head's state. z and the count belong to all columns; the task of the first columns writes
    /// them.
    #[inline(always)]
    pub(super) fn store(&self, last: Disjoint<'_>, h: usize, head: &Pieces<'_>, count: usize) {
        let layout = self.layout;
        #[allow(unsafe_code, reason = "columns of the state are split among tasks")]
        let part = |begin: usize, len: usize| {
            // SAFETY: tasks differ in the head or in the columns of S, and only the task of the first columns
            // takes z and the count; this task holds one part at a time.
            unsafe { last.part(h * layout.len() + begin, len) }
        };
        let first = self.columns.start == 0;
        for (which, (matrix, z)) in self.order().into_iter().zip(head.matrices.iter().zip(&head.z)) {
            if z.is_empty() {
                continue;
            }
            for (begin, stride, columns) in self.columns_of_panels() {
                let panel = &matrix[begin * layout.key..][..stride * layout.key];
                for (i, from) in panel.chunks_exact(stride).enumerate() {
                    let to = layout.s_offset(which) + i * layout.value + columns.start;
                    part(to, columns.len()).copy_from_slice(&from[..columns.len()]);
                }
            }
            if first && layout.normalised {
                part(layout.z_offset(which), layout.key).copy_from_slice(&z[..layout.key]);
            }
        }
        if first && layout.per_chunk {
            part(layout.count_offset(), 1)[0] = count as f32;
        }
    }

    /// Which sums of a state each matrix of a head contains.
    #[inline(always)]
    fn order(&self) -> [Which; 3] {
        let s = if self.layout.per_chunk { Which::Chunk } else { Which::All };
        [s, Which::All, Which::Error]
    }

    /// Each panel's first column in the scratch, its stride, and its columns of V.
    #[inline(always)]
    fn columns_of_panels(&self) -> impl Iterator<Item = (usize, usize, Range<usize>)> {
        let (width, columns) = (self.sizes.width(), self.columns.clone());
        let panel = self.sizes.panel();
        (0..width).step_by(panel).map(move |begin| {
            let stride = panel.min(width - begin);
            let from = columns.start + begin;
            (begin, stride, from..columns.end.min(from + stride))
        })
    }
}
