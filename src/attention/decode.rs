//! One token of each head: the sweep on the caller's state, in place.

use pulp::Simd;

use super::task::{Pieces, Progress, Scratch, Task, fold};
use crate::state;
use crate::sweep::{Pass, Rows};
use crate::vector::copy_row;

/// A head of a decode: its index in the task, the index of the output among those that share it, its state
/// and its scratch.
struct Head<'a> {
    h: usize,
    query: usize,
    state: &'a mut [f32],
    memory: &'a mut [f32],
}

impl<const DECODE: bool> Task<'_, DECODE> {
    /// Computes one token of each head on the caller's state.
    #[inline(always)]
    pub(super) fn decode<S: Simd, const N: usize, const H: usize>(mut self, simd: S) {
        let (mut scratch, heads) = Scratch::new(core::mem::take(&mut self.scratch), &self.sizes);
        let (Some(carried), len) = (self.states.carried, self.layout.len()) else { return };
        for h in 0..self.heads.len() {
            #[allow(unsafe_code, reason = "heads are split among tasks")]
            // SAFETY: this task alone has these heads, and takes each once.
            let state = unsafe { carried.part(h * len, len) };
            let (memory, spare) = heads.split_at_mut(self.sizes.head());
            let queries = self.config.shape.groups.queries();
            // All outputs but the last compute on a copy of the state.
            for query in 0..queries - 1 {
                let copy = &mut spare[..len];
                copy.copy_from_slice(state);
                let head = Head { h, query, state: copy, memory: &mut *memory };
                self.decode_head::<S, N, H>(simd, head, &mut scratch);
            }
            let head = Head { h, query: queries - 1, state, memory };
            self.decode_head::<S, N, H>(simd, head, &mut scratch);
        }
    }

    #[inline(always)]
    fn decode_head<S: Simd, const N: usize, const H: usize>(
        &self,
        simd: S,
        head: Head<'_>,
        scratch: &mut Scratch<'_>,
    ) {
        let layout = self.layout;
        let Head { h, query, state, memory } = head;
        let mut progress =
            Progress { token: 0, count: layout.count(state), use_past: true, pass: Pass::Both };
        let Pieces { z, matrices: tails } = self.split(memory);
        let state::Pieces { mut matrices, z: callers_z, count } = layout.split(state);
        let mut pieces = Pieces { z, matrices: tails };
        for (z, from) in pieces.z.iter_mut().zip(&callers_z) {
            let (whole, padding) = z.split_at_mut(from.len());
            whole.copy_from_slice(from);
            padding.fill(0.0);
        }
        let span = progress.next(self.config.rule.normaliser, 1, 1);
        let row = self.first(span, h, query);
        let factors = self.prepare::<S, 1>(simd, span, row, &mut pieces, scratch);
        let tile = self.swept(span, row, &factors, scratch, None);
        // Whole vectors of columns are swept in place, the others in a panel.
        let (lanes, value) = (S::F32_LANES, layout.value);
        let whole = value / lanes * lanes;
        let rows = matrices.each_mut().map(|data| Rows { data, stride: value });
        self.panels::<S, 1, N, H>(simd, &tile, 0..whole, rows.into());
        if lanes > 1 && whole < value {
            for (matrix, tail) in matrices.iter().zip(&mut pieces.matrices) {
                for (from, to) in matrix.chunks(value).zip(tail.chunks_exact_mut(lanes)) {
                    copy_row(simd, &from[whole..], to);
                }
            }
            let rows = pieces.matrices.each_mut().map(|data| Rows { data, stride: lanes });
            self.panels::<S, 1, N, H>(simd, &tile, whole..whole + lanes, rows.into());
            for (matrix, tail) in matrices.iter_mut().zip(&pieces.matrices) {
                for (to, from) in matrix.chunks_mut(value).zip(tail.chunks_exact(lanes)) {
                    to[whole..].copy_from_slice(&from[..value - whole]);
                }
            }
        }
        if span.fold {
            fold(simd, matrices, &mut pieces.z);
        }
        for (z, to) in pieces.z.iter().zip(callers_z) {
            to.copy_from_slice(&z[..to.len()]);
        }
        if let Some(count) = count.first_mut() {
            *count = progress.count as f32;
        }
    }
}
