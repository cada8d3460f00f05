//! Many tokens of a group of heads: the chunked form.
//!
//! ```text
//! for each tile of up to 16 tokens, for each head:
//!     pack phi(Q), phi(K)                            rows padded to whole vectors
//!     pack V                                         in panels of columns, below S: the columns are [S ; V]
//!     A  = tril(phi(Q) phi(K)^T) / norm              norm = rowsum A + phi(Q) z + eps
//!     for each panel of V's columns:
//!         O  = phi(Q) S / norm + A V                 the last MR rows of A V a triangle
//!         S += phi(K)^T V
//!     z += sum of phi(K)'s rows
//! ```
//!
//! Tricks:
//! 1. A tile of 16 tokens, whatever the model's chunk: it costs 12 % more than the recurrence at K = 64, a tile
//!    of 64 would cost 50 %.
//! 2. S lives in panels of two vectors' width, so that a panel stays in L1 between the two products, and a row
//!    of it is one cache line. V is packed directly below it, so that a panel is one stretch of memory.
//! 3. A is computed from dot products, not outer ones: no operand is transposed, only the triangle is
//!    computed, and phi(Q) z is one more column of it.
//! 4. Heads are inside, tiles outside: with heads side by side in memory, rows of 256 bytes 1 KB apart would
//!    starve the prefetcher; this way every byte of a line is used while it is near.
//!
//! PerChunk keeps the sums of the current chunk (S, below which V is packed) and of the finished ones (past)
//! apart and adds the two quotients; the sums are folded at the chunk's end.
//!
//! Dot products of bf16 ([`dot`]), where they are asked for, take the two products that grow with K V; A, A V, the norms
//! and all sums are as above.
//!
//! A compensated state sums each tile (for PerChunk: each chunk) by itself and adds it with what rounding took before.

mod dot;
mod panel;
mod rows;

use core::ops::Range;

use pulp::{Simd, WithSimd};

use self::dot::DotWork;
use self::panel::{Panel, PanelArgs};
use self::rows::PackRows;
use crate::feature_map::FeatureMap;
use crate::isa::{Bf16Dot, outline};
use crate::scratch::round_up;
use crate::shape::{Disjoint, Rows, RowsMut};
use crate::state::{Layout, Normaliser, Sums};
use crate::tile::{NV, copy_row, panel_width};

/// Tokens in a tile.
pub(crate) const TILE: usize = 16;

/// Working memory of one task: where its pieces lie and how large they are, in elements.
#[derive(Clone, Copy)]
struct Work {
    /// K rounded up to whole vectors.
    key: usize,
    /// Columns of all panels: this task's part of V rounded up to whole vectors.
    width: usize,
    /// Elements of one head: panels, past, lost, z, past z, lost z.
    head: usize,
    past: bool,
    compensated: bool,
    dot: DotWork,
}

/// Sizes saturate: what is absurd stays absurd, and is refused at the entry.
impl Work {
    const fn new(sizes: PrefillSizes) -> Self {
        let PrefillSizes { lanes, key, columns, per_chunk, compensated, dot, .. } = sizes;
        let (key, width) = (round_up(key, lanes), round_up(columns, lanes));
        let sums = width.saturating_mul(key).saturating_add(key);
        let panels = sums.saturating_add(width.saturating_mul(TILE));
        let more = sums.saturating_mul(per_chunk as usize + compensated as usize);
        let head = panels.saturating_add(more);
        let dot = DotWork::new(dot, key, panel_width(lanes));
        Self { key, width, head, past: per_chunk, compensated, dot }
    }

    const fn len(&self, heads: usize) -> usize {
        let rows = self.key.saturating_mul(2 * TILE);
        rows.saturating_add(self.dot.len()).saturating_add(heads.saturating_mul(self.head))
    }
}

/// What a [`Prefill`]'s scratch depends on.
#[derive(Clone, Copy)]
pub(crate) struct PrefillSizes {
    pub(crate) lanes: usize,
    pub(crate) heads: usize,
    pub(crate) key: usize,
    /// Of V, in one task.
    pub(crate) columns: usize,
    pub(crate) per_chunk: bool,
    pub(crate) compensated: bool,
    pub(crate) dot: bool,
}

impl PrefillSizes {
    /// Elements of scratch, beyond alignment.
    pub(crate) const fn scratch_len(self) -> usize {
        Work::new(self).len(self.heads)
    }
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
    pub(crate) dot: Option<Bf16Dot>,
    pub(crate) layout: Layout,
    /// State of these heads before the first token; zero if there is none.
    pub(crate) initial: Option<&'a [f32]>,
    /// State of these heads after the last token, written at the end.
    pub(crate) last: Option<Disjoint<'a>>,
    /// Instead of both: read at the beginning, written at the end, by this task alone.
    pub(crate) carried: Option<Disjoint<'a>>,
    pub(crate) scratch: &'a mut [f32],
}

/// A tile of one head, and which sums it uses and adds to.
#[derive(Clone, Copy)]
struct Tile {
    token: usize,
    head: usize,
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
        let work = Work::new(PrefillSizes {
            lanes: S::F32_LANES,
            heads: self.heads.len(),
            key: self.layout.key,
            columns: self.columns.len(),
            per_chunk: matches!(self.normaliser, Normaliser::PerChunk { .. }),
            compensated: self.layout.compensated,
            dot: self.dot.is_some(),
        });
        let scratch = core::mem::take(&mut self.scratch);
        let (q, rest) = scratch.split_at_mut(TILE * work.key);
        let (k, rest) = rest.split_at_mut(TILE * work.key);
        let (dot, rest) = rest.split_at_mut(work.dot.len());
        let heads = &mut rest[..self.heads.len() * work.head];

        #[allow(unsafe_code, reason = "a carried state is read, then written")]
        // SAFETY: this task alone has it, and is done reading before it writes.
        let carried = self.carried.map(|state| unsafe { &*state.whole() });
        let initial = self.initial.or(carried);
        for (h, head) in heads.chunks_exact_mut(work.head).enumerate() {
            self.load(simd, &work, initial, h, head);
        }
        let mut place = Place {
            token: 0,
            count: initial.map_or(0, |state| self.layout.count(state)),
            use_past: initial.is_some(),
        };
        while place.token < self.len {
            let tile = place.next_tile(&self);
            for (h, head) in heads.chunks_exact_mut(work.head).enumerate() {
                self.tile(simd, &work, Tile { head: tile.head + h, ..tile }, q, k, dot, head);
            }
        }
        if let Some(last) = self.last.or(self.carried) {
            for (h, head) in heads.chunks_exact_mut(work.head).enumerate() {
                self.store::<S>(&work, last, h, head, place.count);
            }
        }
    }
}

/// How far the heads have come.
#[derive(Clone, Copy)]
struct Place {
    token: usize,
    /// Tokens in the current chunk.
    count: usize,
    /// Whether a chunk, or an initial state, lies before it.
    use_past: bool,
}

impl Place {
    /// The first head's tile that begins here; moves on to its end.
    #[inline(always)]
    fn next_tile(&mut self, task: &Prefill<'_>) -> Tile {
        let rows = TILE.min(task.len - self.token);
        let mut tile = Tile {
            token: self.token,
            head: task.heads.start,
            rows,
            use_current: true,
            use_past: false,
            add_to_past: false,
            fold: false,
        };
        if let Normaliser::PerChunk { chunk, .. } = task.normaliser {
            tile.rows = rows.min(chunk - self.count);
            let (begins, ends) = (self.count == 0, self.count + tile.rows == chunk);
            tile.use_current = !begins;
            tile.use_past = self.use_past;
            tile.add_to_past = begins && ends;
            tile.fold = ends && !begins;
            self.count = if ends { 0 } else { self.count + tile.rows };
            self.use_past |= ends;
        }
        self.token += tile.rows;
        tile
    }
}

/// The pieces of one head's working memory.
struct Head<'a> {
    panels: &'a mut [f32],
    z: &'a mut [f32],
    past: &'a mut [f32],
    past_z: &'a mut [f32],
    /// What rounding took from past, where there is one, else from S.
    lost: &'a mut [f32],
    lost_z: &'a mut [f32],
}

impl Work {
    #[inline(always)]
    fn split<'a>(&self, head: &'a mut [f32]) -> Head<'a> {
        let (panels, rest) = head.split_at_mut(self.width * (self.key + TILE));
        let (past, rest) = rest.split_at_mut(if self.past { self.width * self.key } else { 0 });
        let (lost, rest) = rest.split_at_mut(if self.compensated { self.width * self.key } else { 0 });
        let (z, rest) = rest.split_at_mut(self.key);
        let (past_z, lost_z) = rest.split_at_mut(if self.past { self.key } else { 0 });
        Head { panels, z, past, past_z, lost, lost_z }
    }
}

impl Prefill<'_> {
    /// Whether outputs are multiplied with anything but 1.
    #[inline(always)]
    fn divides(&self) -> bool {
        self.normaliser != Normaliser::None || self.scale != 1.0
    }

    /// One tile of one head.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "one call, in `with_simd`")]
    fn tile<S: Simd>(
        &self,
        simd: S,
        work: &Work,
        tile: Tile,
        q: &mut [f32],
        k: &mut [f32],
        dot: &mut [f32],
        head: &mut [f32],
    ) {
        let Head { panels, z, past, past_z, lost, lost_z } = work.split(head);
        let rows = PackRows { task: self, work, tile, q, k, dot, panels, z, past_z, lost_z };
        let scores = outline(simd, rows);

        // Each tile asks for its head's next one, spread over the panels. That is one turn through the heads ahead;
        // asking for the next head's rows, or for two tiles ahead, measured slower.
        let next_token = tile.token + tile.rows;
        let next_rows = TILE.min(self.len - next_token);
        let full = panel_width(S::F32_LANES);
        let count = work.width.div_ceil(full);
        for panel in 0..count {
            for i in next_rows * panel / count..next_rows * (panel + 1) / count {
                let (token, key) = (next_token + i, self.layout.key);
                let (begin, columns) = (self.columns.start, self.columns.len());
                self.q.prefetch(self.batch, token, tile.head, 0, key);
                self.k.prefetch(self.batch, token, tile.head, 0, key);
                self.v.prefetch(self.batch, token, tile.head, begin, columns);
                self.o.prefetch(self.batch, token, tile.head, begin, columns);
            }
            let from = panel * full;
            let width = full.min(work.width - from);
            let args = PanelArgs {
                task: self,
                work,
                tile,
                q,
                k,
                dot,
                scores: &scores,
                from,
                panel: &mut panels[from * (work.key + TILE)..][..width * (work.key + TILE)],
                past: if work.past { &mut past[from * work.key..][..width * work.key] } else { &mut [] },
                lost: if work.compensated {
                    &mut lost[from * work.key..][..width * work.key]
                } else {
                    &mut []
                },
            };
            if width == full {
                outline(simd, Panel::<NV>(args));
            } else {
                outline(simd, Panel::<1>(args));
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
                to.lost.fill(0.0);
                to.lost_z.fill(0.0);
            }
            Some(state) => {
                let sums = if work.past { Sums::Chunk } else { Sums::All };
                self.load_sums(simd, work, state, sums, to.panels, TILE, to.z);
                if work.past {
                    self.load_sums(simd, work, state, Sums::All, to.past, 0, to.past_z);
                }
                if work.compensated {
                    self.load_sums(simd, work, state, Sums::Lost, to.lost, 0, to.lost_z);
                }
            }
        }
    }

    /// One pair S and z, into panels of `key + below` rows.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "three calls, all in `load`")]
    fn load_sums<S: Simd>(
        &self,
        simd: S,
        work: &Work,
        state: &[f32],
        sums: Sums,
        panels: &mut [f32],
        below: usize,
        z: &mut [f32],
    ) {
        let Layout { key, value, .. } = self.layout;
        let s = &state[self.layout.s_at(sums)..][..key * value];
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
            copy_row(simd, &state[self.layout.z_at(sums)..][..key], z);
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
        let store = |sums: Sums, panels: &[f32], rows: usize, z: &[f32], empty: bool| {
            let full = panel_width(S::F32_LANES);
            for from in (0..work.width).step_by(full) {
                let width = full.min(work.width - from);
                let begin = self.columns.start + from;
                let columns = width.min(self.columns.end - begin);
                let panel = &panels[from * rows..][..layout.key * width];
                for (i, row) in panel.chunks_exact(width).enumerate() {
                    let to = part(layout.s_at(sums) + i * layout.value + begin, columns);
                    if empty { to.fill(0.0) } else { to.copy_from_slice(&row[..columns]) }
                }
            }
            if first && self.normaliser != Normaliser::None {
                let to = part(layout.z_at(sums), layout.key);
                if empty { to.fill(0.0) } else { to.copy_from_slice(&z[..layout.key]) }
            }
        };
        if work.past {
            store(Sums::All, from.past, work.key, from.past_z, false);
            store(Sums::Chunk, from.panels, work.key + TILE, from.z, count == 0);
            if first {
                part(layout.count_at(), 1)[0] = count as f32;
            }
        } else {
            store(Sums::All, from.panels, work.key + TILE, from.z, false);
        }
        if work.compensated {
            store(Sums::Lost, from.lost, work.key, from.lost_z, false);
        }
    }
}
