//! Many tokens of a group of heads: the chunked form.
//!
//! ```text
//! for each tile of up to 16 tokens, for each head:
//!     pack phi(Q), phi(K)                            rows padded to whole vectors
//!     A  = tril(phi(Q) phi(K)^T)                     beside phi(Q): the rows are [phi(Q) | A]
//!     1 / norm                                       from A's row sums and phi(Q) z
//!     for each panel of V's columns:
//!         pack V                                     below S: the columns are [S ; V]
//!         O  = [phi(Q) | A] [S ; V] / norm           one product, the last MR rows a triangle
//!         S += phi(K)^T V
//!     z += sum of phi(K)'s rows
//! ```
//!
//! Tricks:
//! 1. A tile of 16 tokens, whatever the model's chunk: it costs 12 % more than the recurrence at K = 64, a tile
//!    of 64 would cost 50 %.
//! 2. S lives in panels of two vectors' width, so that a panel stays in L1 between the two products, and a row
//!    of it is one cache line. V is packed directly below it: intra and inter are one product.
//! 3. A is computed from dot products, not outer ones: no operand is transposed, only the triangle is
//!    computed, and phi(Q) z is one more column of it.
//! 4. Heads are inside, tiles outside: with heads side by side in memory, rows of 256 bytes 1 KB apart would
//!    starve the prefetcher; this way every byte of a line is used while it is near.
//!
//! PerChunk keeps the sums of the current chunk (S, below which V is packed) and of the finished ones (past)
//! apart and adds the two quotients; the sums are folded at the chunk's end.

use core::ops::Range;

use pulp::{Simd, WithSimd};

use crate::feature_map::FeatureMap;
use crate::isa::prefetch;
use crate::shape::{Disjoint, Rows, RowsMut};
use crate::state::{Layout, Normaliser};
use crate::tile::{
    self, NV, RowTile, copy_row, for_row_tiles, mul_ab, mul_ab_tril, mul_abt, mul_atb, panel_width, vectors_mut,
};

/// Tokens in a tile.
pub(crate) const TILE: usize = 16;

/// Working memory of one task: where its pieces lie and how large they are, in elements.
#[derive(Clone, Copy)]
struct Work {
    /// K rounded up to whole vectors.
    key: usize,
    /// Columns of all panels: this task's part of V rounded up to whole vectors.
    width: usize,
    /// Elements of one head: panels, past, z, past z.
    head: usize,
    past: bool,
}

impl Work {
    const fn new(lanes: usize, key: usize, columns: usize, per_chunk: bool) -> Self {
        let key = key.next_multiple_of(lanes);
        let width = columns.next_multiple_of(lanes);
        let sums = width * key + key;
        let head = sums + width * TILE + if per_chunk { sums } else { 0 };
        Self { key, width, head, past: per_chunk }
    }

    /// Elements of a row of `[phi(Q) | A]`.
    const fn q_stride(&self) -> usize {
        self.key + TILE
    }

    const fn len(&self, heads: usize) -> usize {
        TILE * self.q_stride() + TILE * self.key + heads * self.head
    }
}

/// Elements of scratch that a [`Prefill`] of so many heads and columns needs, beyond alignment.
pub(crate) const fn prefill_scratch_len(lanes: usize, heads: usize, key: usize, columns: usize, per_chunk: bool) -> usize {
    Work::new(lanes, key, columns, per_chunk).len(heads)
}

/// One task: some heads of one sequence, some columns of V.
pub(crate) struct Prefill<'a> {
    pub(crate) batch: usize,
    pub(crate) heads: Range<usize>,
    /// Columns of V and o, beginning at a whole panel.
    pub(crate) columns: Range<usize>,
    pub(crate) len: usize,
    /// q `[B, T, H, K]`.
    pub(crate) q: Rows<'a>,
    /// k `[B, T, H, K]`.
    pub(crate) k: Rows<'a>,
    /// v `[B, T, H, V]`.
    pub(crate) v: Rows<'a>,
    /// o `[B, T, H, V]`.
    pub(crate) o: RowsMut<'a>,
    pub(crate) feature_map: FeatureMap,
    pub(crate) normaliser: Normaliser,
    pub(crate) scale: f32,
    pub(crate) layout: Layout,
    /// State of these heads before the first token; zero if there is none.
    pub(crate) initial: Option<&'a [f32]>,
    /// State of these heads after the last token, written at the end.
    pub(crate) last: Option<Disjoint<'a>>,
    /// Instead of both: read at the beginning, written at the end, by this task alone.
    pub(crate) carried: Option<Disjoint<'a>>,
    pub(crate) scratch: &'a mut [f32],
}

/// Which sums a tile uses and adds to.
#[derive(Clone, Copy)]
struct Phase {
    /// Tokens in the tile.
    rows: usize,
    /// S and z hold something: not so in the first tile of a chunk.
    use_current: bool,
    /// past and its z hold something.
    use_past: bool,
    /// The tile is a whole chunk: it is added to past directly.
    add_to_past: bool,
    /// The tile ends a longer chunk: S is folded into past.
    fold: bool,
}

impl WithSimd for Prefill<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let work = Work::new(
            S::F32_LANES,
            self.layout.key,
            self.columns.len(),
            matches!(self.normaliser, Normaliser::PerChunk { .. }),
        );
        let scratch = core::mem::take(&mut self.scratch);
        let (q, rest) = scratch.split_at_mut(TILE * work.q_stride());
        let (k, rest) = rest.split_at_mut(TILE * work.key);
        let heads = &mut rest[..self.heads.len() * work.head];

        #[allow(unsafe_code, reason = "a carried state is read, then written")]
        // SAFETY: this task alone has it, and is done reading before it writes.
        let carried = self.carried.map(|state| unsafe { &*state.whole() });
        let initial = self.initial.or(carried);
        let mut count = initial.map_or(0, |state| self.layout.count(state));
        for (h, head) in heads.chunks_exact_mut(work.head).enumerate() {
            self.load(simd, &work, initial, h, head);
        }
        let mut token = 0;
        let mut use_past = initial.is_some();
        while token < self.len {
            let left = self.len - token;
            let phase = match self.normaliser {
                Normaliser::PerChunk { chunk, .. } => {
                    let rows = TILE.min(left).min(chunk - count);
                    let ends = count + rows == chunk;
                    let phase = Phase {
                        rows,
                        use_current: count > 0,
                        use_past,
                        add_to_past: ends && count == 0,
                        fold: ends && count > 0,
                    };
                    count = if ends { 0 } else { count + rows };
                    use_past |= ends;
                    phase
                }
                _ => Phase {
                    rows: TILE.min(left),
                    use_current: true,
                    use_past: false,
                    add_to_past: false,
                    fold: false,
                },
            };
            for (h, head) in heads.chunks_exact_mut(work.head).enumerate() {
                self.tile(simd, &work, phase, token, h, q, k, head);
            }
            token += phase.rows;
        }
        if let Some(last) = self.last.or(self.carried) {
            for (h, head) in heads.chunks_exact_mut(work.head).enumerate() {
                self.store::<S>(&work, last, h, head, count);
            }
        }
    }
}

/// The pieces of one head's working memory.
struct Head<'a> {
    panels: &'a mut [f32],
    z: &'a mut [f32],
    past: &'a mut [f32],
    past_z: &'a mut [f32],
}

impl Work {
    #[inline(always)]
    fn split<'a>(&self, head: &'a mut [f32]) -> Head<'a> {
        let (panels, rest) = head.split_at_mut(self.width * (self.key + TILE));
        let (past, rest) = rest.split_at_mut(if self.past { self.width * self.key } else { 0 });
        let (z, past_z) = rest.split_at_mut(self.key);
        Head { panels, z, past, past_z }
    }
}

impl Prefill<'_> {
    /// One tile of one head.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "the loop's own variables; a struct would only rename them")]
    fn tile<S: Simd>(
        &self,
        simd: S,
        work: &Work,
        phase: Phase,
        token: usize,
        h: usize,
        q: &mut [f32],
        k: &mut [f32],
        head: &mut [f32],
    ) {
        let Head { panels, z, past, past_z } = work.split(head);
        let at_head = self.heads.start + h;
        for i in 0..phase.rows {
            let row = &mut q[i * work.q_stride()..][..work.key];
            self.feature_map.pack(simd, self.q.row(self.batch, token + i, at_head), row);
            let row = &mut k[i * work.key..][..work.key];
            self.feature_map.pack(simd, self.k.row(self.batch, token + i, at_head), row);
        }
        scores(simd, work, phase.rows, q, k);

        let (mut inverse, mut past_inverse) = ([self.scale; TILE], [self.scale; TILE]);
        match self.normaliser {
            Normaliser::None => {}
            Normaliser::Global { eps } => {
                let mut norm = row_sums(work, phase.rows, q);
                add_products(simd, work, phase.rows, q, z, &mut norm);
                invert(&mut inverse, &norm, eps);
                add_rows(simd, z, k, work.key, phase.rows, false);
            }
            Normaliser::PerChunk { eps, .. } => {
                let mut norm = row_sums(work, phase.rows, q);
                if phase.use_current {
                    add_products(simd, work, phase.rows, q, z, &mut norm);
                }
                invert(&mut inverse, &norm, eps);
                if phase.use_past {
                    let mut norm = [0.0; TILE];
                    add_products(simd, work, phase.rows, q, past_z, &mut norm);
                    invert(&mut past_inverse, &norm, eps);
                }
                if phase.add_to_past {
                    add_rows(simd, past_z, k, work.key, phase.rows, !phase.use_past);
                } else {
                    add_rows(simd, z, k, work.key, phase.rows, !phase.use_current);
                }
                if phase.fold {
                    add_rows(simd, past_z, z, work.key, 1, !phase.use_past);
                }
            }
        }

        // Prefetching is spread over the panels: each asks for its share of the next head's rows.
        let (next_token, next_head) =
            if h + 1 < self.heads.len() { (token, at_head + 1) } else { (token + phase.rows, self.heads.start) };
        let next_rows = TILE.min(self.len.saturating_sub(next_token));
        let full = panel_width(S::F32_LANES);
        let count = work.width.div_ceil(full);
        for panel in 0..count {
            for i in next_rows * panel / count..next_rows * (panel + 1) / count {
                prefetch(self.q.row(self.batch, next_token + i, next_head));
                prefetch(self.k.row(self.batch, next_token + i, next_head));
                prefetch(self.v.row(self.batch, next_token + i, next_head));
            }
            let from = panel * full;
            let args = Panel {
                simd,
                key: work.key,
                q_stride: work.q_stride(),
                q,
                k,
                inverse: &inverse,
                past_inverse: &past_inverse,
                phase,
                from,
            };
            let panels = &mut panels[from * (work.key + TILE)..];
            let past = if work.past { &mut past[from * work.key..] } else { &mut *past };
            if work.width - from >= full {
                self.panel::<S, NV>(args, token, at_head, panels, past);
            } else {
                self.panel::<S, 1>(args, token, at_head, panels, past);
            }
        }
    }

    /// One panel of N vectors of columns.
    #[inline(always)]
    fn panel<S: Simd, const N: usize>(
        &self,
        args: Panel<'_, S>,
        token: usize,
        head: usize,
        panels: &mut [f32],
        past: &mut [f32],
    ) {
        let (simd, key, rows) = (args.simd, args.key, args.phase.rows);
        let width = N * S::F32_LANES;
        let begin = self.columns.start + args.from;
        let columns = width.min(self.columns.end - begin);
        let panels = &mut panels[..(key + TILE) * width];
        for (i, to) in panels[key * width..].chunks_exact_mut(width).take(rows).enumerate() {
            let from = &self.v.row(self.batch, token + i, head)[begin..][..columns];
            copy_row(simd, from, to);
        }
        let panels = vectors_mut::<S, N>(panels);
        let past = if args.phase.use_past || args.phase.add_to_past || args.phase.fold {
            &mut vectors_mut::<S, N>(past)[..key]
        } else {
            &mut []
        };

        for_row_tiles::<S>(
            rows,
            &mut OutputTile::<S, _, N> {
                args: &args,
                b: &panels[..key + rows],
                past: &*past,
                out: |i: usize| {
                    #[allow(unsafe_code, reason = "rows of o are split among tasks")]
                    // SAFETY: tasks differ in batch, head or columns, and this one holds one row at a time.
                    unsafe {
                        self.o.row(self.batch, token + i, head, begin, columns)
                    }
                },
            },
        );
        let (s, v) = panels.split_at_mut(key);
        let (sum, fresh) = if args.phase.add_to_past {
            (&mut *past, !args.phase.use_past)
        } else {
            (&mut *s, !args.phase.use_current)
        };
        for_row_tiles::<S>(
            self.layout.key,
            &mut StateTile::<S, N> { simd, k: &args.k[..rows * key], stride: key, v: &v[..rows], s: sum, fresh },
        );
        if args.phase.fold {
            for (past, s) in past.iter_mut().zip(s.iter()) {
                for j in 0..N {
                    past[j] = if args.phase.use_past { simd.add_f32s(past[j], s[j]) } else { s[j] };
                }
            }
        }
    }

    /// Fills a head's working memory from the initial state, or with zeros.
    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, work: &Work, initial: Option<&[f32]>, h: usize, head: &mut [f32]) {
        let to = work.split(head);
        let state = initial.map(|state| &state[h * self.layout.len()..][..self.layout.len()]);
        match state {
            None => {
                to.panels.fill(0.0);
                to.past.fill(0.0);
                to.z.fill(0.0);
                to.past_z.fill(0.0);
            }
            Some(state) => {
                self.load_sums(simd, work, state, work.past, to.panels, TILE, to.z);
                if work.past {
                    self.load_sums(simd, work, state, false, to.past, 0, to.past_z);
                }
            }
        }
    }

    /// One pair S and z, into panels of `key + below` rows.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "two calls, both in `load`")]
    fn load_sums<S: Simd>(
        &self,
        simd: S,
        work: &Work,
        state: &[f32],
        current: bool,
        panels: &mut [f32],
        below: usize,
        z: &mut [f32],
    ) {
        let Layout { key, value, .. } = self.layout;
        let s = &state[self.layout.s_at(current)..][..key * value];
        let full = panel_width(S::F32_LANES);
        for from in (0..work.width).step_by(full) {
            let width = full.min(work.width - from);
            let begin = self.columns.start + from;
            let columns = width.min(self.columns.end - begin);
            let panel = &mut panels[from * (work.key + below)..][..width * work.key];
            let (rows, padding) = panel.split_at_mut(key * width);
            for (to, from) in rows.chunks_exact_mut(width).zip(s.chunks_exact(value)) {
                copy_row(simd, &from[begin..][..columns], to);
            }
            padding.fill(0.0);
        }
        if self.normaliser == Normaliser::None {
            z.fill(0.0);
        } else {
            copy_row(simd, &state[self.layout.z_at(current)..][..key], z);
        }
    }

    /// Writes a head's state. Of z and the count there is one for all columns: the first task writes them.
    #[inline(always)]
    fn store<S: Simd>(&self, work: &Work, last: Disjoint<'_>, h: usize, head: &mut [f32], count: usize) {
        let from = work.split(head);
        let layout = self.layout;
        #[allow(unsafe_code, reason = "columns of the state are split among tasks")]
        let part = |at: usize, len: usize| {
            // SAFETY: tasks differ in the head or in the columns of S, and only the first columns' task takes
            // z and the count; this one holds one part at a time.
            unsafe { last.part(h * layout.len() + at, len) }
        };
        let first = self.columns.start == 0;
        let sums = |current: bool, panels: &[f32], rows: usize, z: &[f32], empty: bool| {
            let full = panel_width(S::F32_LANES);
            for from in (0..work.width).step_by(full) {
                let width = full.min(work.width - from);
                let begin = self.columns.start + from;
                let columns = width.min(self.columns.end - begin);
                let panel = &panels[from * rows..][..layout.key * width];
                for (i, row) in panel.chunks_exact(width).enumerate() {
                    let to = part(layout.s_at(current) + i * layout.value + begin, columns);
                    if empty { to.fill(0.0) } else { to.copy_from_slice(&row[..columns]) }
                }
            }
            if first && self.normaliser != Normaliser::None {
                let to = part(layout.z_at(current), layout.key);
                if empty { to.fill(0.0) } else { to.copy_from_slice(&z[..layout.key]) }
            }
        };
        if work.past {
            sums(false, from.past, work.key, from.past_z, false);
            sums(true, from.panels, work.key + TILE, from.z, count == 0);
            if first {
                part(layout.count_at(), 1)[0] = count as f32;
            }
        } else {
            sums(false, from.panels, work.key + TILE, from.z, false);
        }
    }
}

/// What the two products of a panel share.
struct Panel<'a, S: Simd> {
    simd: S,
    /// K rounded up.
    key: usize,
    q_stride: usize,
    /// Rows `[phi(Q) | A]`.
    q: &'a [f32],
    /// Rows phi(K).
    k: &'a [f32],
    inverse: &'a [f32; TILE],
    past_inverse: &'a [f32; TILE],
    phase: Phase,
    /// Columns before this panel.
    from: usize,
}

/// `O = [phi(Q) | A] [S ; V] / norm`, and for PerChunk `+ phi(Q) past / past norm`.
struct OutputTile<'a, S: Simd, Out, const N: usize> {
    args: &'a Panel<'a, S>,
    b: &'a [[S::f32s; N]],
    past: &'a [[S::f32s; N]],
    out: Out,
}

impl<'a, S: Simd, Out: FnMut(usize) -> &'a mut [f32], const N: usize> RowTile for OutputTile<'_, S, Out, N> {
    #[inline(always)]
    fn run<const MR: usize>(&mut self, row: usize) {
        let Panel { simd, key, q_stride, q, phase, .. } = *self.args;
        let q = &q[row * q_stride..];
        let begin = if phase.use_current { 0 } else { key };
        let mut acc = tile::zero::<S, MR, N>(simd);
        mul_ab(simd, &mut acc, &q[begin..], q_stride, &self.b[begin..key + row]);
        mul_ab_tril(simd, &mut acc, &q[key + row..], q_stride, &self.b[key + row..]);
        for i in 0..MR {
            let inverse = simd.splat_f32s(self.args.inverse[row + i]);
            for j in 0..N {
                acc[i][j] = simd.mul_f32s(acc[i][j], inverse);
            }
        }
        if phase.use_past {
            let mut past = tile::zero::<S, MR, N>(simd);
            mul_ab(simd, &mut past, q, q_stride, self.past);
            for i in 0..MR {
                let inverse = simd.splat_f32s(self.args.past_inverse[row + i]);
                for j in 0..N {
                    acc[i][j] = simd.mul_add_e_f32s(past[i][j], inverse, acc[i][j]);
                }
            }
        }
        for i in 0..MR {
            let to = (self.out)(row + i);
            let from = bytemuck::cast_slice::<S::f32s, f32>(&acc[i]);
            if to.len() == N * S::F32_LANES {
                to.copy_from_slice(from);
            } else {
                to.copy_from_slice(&from[..to.len()]);
            }
        }
    }
}

/// `S += phi(K)^T V`, or `=` where S is fresh.
struct StateTile<'a, S: Simd, const N: usize> {
    simd: S,
    k: &'a [f32],
    stride: usize,
    v: &'a [[S::f32s; N]],
    s: &'a mut [[S::f32s; N]],
    fresh: bool,
}

impl<S: Simd, const N: usize> RowTile for StateTile<'_, S, N> {
    #[inline(always)]
    fn run<const MR: usize>(&mut self, row: usize) {
        let s = &mut self.s[row..][..MR];
        let mut acc = tile::zero::<S, MR, N>(self.simd);
        if !self.fresh {
            for i in 0..MR {
                acc[i] = s[i];
            }
        }
        mul_atb(self.simd, &mut acc, &self.k[row..], self.stride, self.v);
        for i in 0..MR {
            s[i] = acc[i];
        }
    }
}

/// `A = phi(Q) phi(K)^T` for the rows and columns of the lower triangle, beside phi(Q). Above the diagonal there
/// may be anything: nothing reads it.
#[inline(always)]
fn scores<S: Simd>(simd: S, work: &Work, rows: usize, q: &mut [f32], k: &[f32]) {
    // 4 x 2 accumulators: as many as hide the latency, and steps of the triangle that fit its height.
    const M: usize = 4;
    const N: usize = 2;
    let stride = work.q_stride();
    for i in (0..rows).step_by(M) {
        for j in (0..rows.min(i + M)).step_by(N) {
            let mut a: [&[S::f32s]; M] = [&[]; M];
            for (x, a) in a.iter_mut().enumerate() {
                *a = S::as_simd_f32s(&q[(i + x) * stride..][..work.key]).0;
            }
            let mut b: [&[S::f32s]; N] = [&[]; N];
            for (y, b) in b.iter_mut().enumerate() {
                *b = S::as_simd_f32s(&k[(j + y) * work.key..][..work.key]).0;
            }
            let products = mul_abt(simd, a, b);
            for (x, products) in products.iter().enumerate() {
                q[(i + x) * stride + work.key + j..][..N].copy_from_slice(products);
            }
        }
    }
}

/// `norm[i] = sum over j <= i of A[i][j]`.
#[inline(always)]
fn row_sums(work: &Work, rows: usize, q: &[f32]) -> [f32; TILE] {
    let mut norm = [0.0; TILE];
    for (i, norm) in norm.iter_mut().enumerate().take(rows) {
        for a in &q[i * work.q_stride() + work.key..][..=i] {
            *norm += a;
        }
    }
    norm
}

/// `norm[i] += phi(q_i) . z`.
#[inline(always)]
fn add_products<S: Simd>(simd: S, work: &Work, rows: usize, q: &[f32], z: &[f32], norm: &mut [f32; TILE]) {
    const M: usize = 4;
    let z = S::as_simd_f32s(z).0;
    for i in (0..rows).step_by(M) {
        let mut a: [&[S::f32s]; M] = [&[]; M];
        for (x, a) in a.iter_mut().enumerate() {
            *a = S::as_simd_f32s(&q[(i + x) * work.q_stride()..][..work.key]).0;
        }
        let products = mul_abt(simd, a, [z]);
        for x in 0..M {
            norm[i + x] += products[x][0];
        }
    }
}

/// `inverse[i] = inverse[i] / (norm[i] + eps)`.
#[inline(always)]
fn invert(inverse: &mut [f32; TILE], norm: &[f32; TILE], eps: f32) {
    for i in 0..TILE {
        inverse[i] /= norm[i] + eps;
    }
}

/// `z += sum of the rows of k`, or `=` where z is fresh.
#[inline(always)]
fn add_rows<S: Simd>(simd: S, z: &mut [f32], k: &[f32], stride: usize, rows: usize, fresh: bool) {
    let z = S::as_mut_simd_f32s(z).0;
    for (at, z) in z.iter_mut().enumerate() {
        let mut sum = if fresh { simd.splat_f32s(0.0) } else { *z };
        for row in k.chunks_exact(stride).take(rows) {
            sum = simd.add_f32s(sum, S::as_simd_f32s(row).0[at]);
        }
        *z = sum;
    }
}
