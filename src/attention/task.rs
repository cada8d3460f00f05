//! One task: some heads of one sequence and some columns of V, from the first token to the last.
//!
//! ```text
//! load the states into panels (or leave them where they are)
//! for each tile of tokens, cut where chunks end, for each head:
//!     prepare                                            phi, norms, z
//!     for each panel: sweep                              outputs, S
//! store the states
//! ```

use core::ops::Range;

use pulp::{Simd, WithSimd};

use super::Config;
use super::part::States;
use super::sizes::Sizes;
use crate::element::Elements;
use crate::isa::{PREFETCHES, outline};
use crate::rule::{Gate, Normaliser};
use crate::shape::Row;
use crate::state::Layout;
use crate::sweep::decays::Decays;
use crate::sweep::draft::{Keep, Record};
use crate::sweep::prepare::{Normalisers, Prepare, Tokens};
use crate::sweep::{Ahead, Factors, Fold, Pass, Rows, Scores, Tile, padded_key};
use crate::tensors::Tensors;

/// The number of vectors of columns that a decode sweeps at once in the caller's state, so that a row of S is
/// one sequential read.
const WIDE: usize = 8;

/// How many tokens before they are computed rows are prefetched with the linear rule: two tiles. On a Xeon
/// (Granite Rapids) 4096 tokens of 4 heads, read from memory, take a third less time with this prefetch than
/// without, because the rows of one head are too far apart for the hardware's prefetchers. One tile is 2 to 8
/// % slower than two.
const AHEAD: usize = 48;
/// The same number for blocks with decays or a delta, which take more time for a tile: on a Xeon (Ice Lake)
/// 32 and 48 are 3 to 5 % slower.
const AHEAD_IN_BLOCKS: usize = 24;

/// Some heads of one sequence and some columns of V. Tasks that run at once differ in the heads or in the
/// columns. A decode sweeps the state in place. Forward and decode have types of their own, so that a program
/// that only decodes contains no other code.
pub(crate) struct Task<'a, const DECODE: bool> {
    pub(crate) config: &'a Config,
    pub(crate) layout: &'a Layout,
    pub(crate) tensors: &'a Tensors<'a>,
    /// The states of `heads`.
    pub(crate) states: States<'a>,
    /// The index of the sequence along the batch of the tensors.
    pub(crate) batch: usize,
    /// The sequence's first token in the tensors.
    pub(crate) begin: usize,
    /// The heads of the state, within the sequence.
    pub(crate) heads: Range<usize>,
    /// Columns of V and o, beginning at a whole vector.
    pub(crate) columns: Range<usize>,
    /// The number of tokens.
    pub(crate) len: usize,
    pub(crate) sizes: Sizes,
    pub(crate) scratch: &'a mut [f32],
}

impl<const DECODE: bool> WithSimd for Task<'_, DECODE> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // A block has B tokens by N vectors, or by H where there is more to hold in registers. With rounding
        // errors blocks have four tokens on every instruction set, because the bits depend on it. With two
        // matrices to read, blocks of four are faster on AVX-512, and blocks of three on AVX2.
        let Layout { compensated, per_chunk, .. } = *self.layout;
        match S::F32_LANES {
            // On machines without vectors the size of the code counts.
            1 if DECODE => self.decode::<S, 4, 1>(simd),
            _ if DECODE => self.decode::<S, WIDE, { WIDE / 2 }>(simd),
            16 if compensated || per_chunk => self.run::<S, 4, 2, 2>(simd),
            16 => self.run::<S, 3, 4, 2>(simd),
            8 if compensated => self.run::<S, 4, 2, 1>(simd),
            8 => self.run::<S, 3, 2, 1>(simd),
            _ => self.run::<S, 4, 2, 1>(simd),
        }
    }
}

/// How far the heads of a task have come.
#[derive(Clone, Copy)]
pub(super) struct Progress {
    pub(super) token: usize,
    /// The number of tokens in the current chunk.
    pub(super) count: usize,
    /// Whether a finished chunk or an initial state precedes `token`.
    pub(super) use_past: bool,
    pub(super) pass: Pass,
}

/// The next tokens of a head, never beyond the end of a chunk.
#[derive(Clone, Copy)]
pub(super) struct Span {
    token: usize,
    len: usize,
    use_past: bool,
    pub(super) fold: bool,
    pub(super) pass: Pass,
}

impl Progress {
    #[inline(always)]
    pub(super) fn next(&mut self, normaliser: Normaliser, end: usize, tile: usize) -> Span {
        let len = tile.min(end - self.token);
        let mut span = Span { token: self.token, len, use_past: self.use_past, fold: false, pass: self.pass };
        if let Normaliser::PerChunk { chunk, .. } = normaliser {
            span.len = span.len.min(chunk - self.count);
            self.count += span.len;
            if self.count == chunk {
                (span.fold, self.use_past, self.count) = (true, true, 0);
            }
        }
        self.token += span.len;
        span
    }
}

/// The working memory of a tile.
pub(super) struct Scratch<'a> {
    operands: &'a mut [f32],
    space: &'a mut [f32],
    wide_v: &'a mut [f32],
    scores: [Scores; Scores::MOST],
}

impl<'a> Scratch<'a> {
    /// The pieces of a task's scratch, and what is left for the heads.
    #[inline(always)]
    pub(super) fn new(scratch: &'a mut [f32], sizes: &Sizes) -> (Self, &'a mut [f32]) {
        let (rows, heads) = scratch.split_at_mut(sizes.rows());
        let (operands, rest) = rows.split_at_mut(sizes.operands());
        let (space, wide_v) = rest.split_at_mut(sizes.space());
        (Self { operands, space, wide_v, scores: [Scores::ZERO; Scores::MOST] }, heads)
    }
}

/// The sums of a head in scratch: z padded to whole groups, and panels of S, the past and rounding errors.
/// Sums that are not kept are empty.
pub(super) struct Pieces<'a> {
    pub(super) z: [&'a mut [f32]; 3],
    pub(super) matrices: [&'a mut [f32]; 3],
}

impl<const DECODE: bool> Task<'_, DECODE> {
    #[inline(always)]
    fn run<S: Simd, const B: usize, const N: usize, const H: usize>(mut self, simd: S) {
        let sizes = self.sizes;
        let (mut scratch, heads) = Scratch::new(core::mem::take(&mut self.scratch), &sizes);
        let (heads, spare) = heads.split_at_mut(sizes.heads * sizes.head());
        let spare = &mut spare[..sizes.spare * sizes.head()];
        let mut progress = {
            let count = self.initial(0).map(|state| self.layout.count(state));
            let pass = if self.config.rule.in_passes() { Pass::Sum } else { Pass::Both };
            Progress { token: 0, count: count.unwrap_or(0), use_past: count.is_some(), pass }
        };
        // The loop over heads is inside the loop over tiles, so that rows of neighbouring heads are read
        // while they are in a cache. (It is no faster to compute 48 to 192 tokens of a head before the next
        // head, so that S stays in L1.) Without tokens a state is still written, hence the exit at the end.
        loop {
            let begin = progress;
            for (h, head) in heads.chunks_exact_mut(sizes.head()).enumerate() {
                progress = begin;
                if begin.token == 0 && begin.pass != Pass::Read {
                    self.load(simd, self.initial(h), &mut self.split(head));
                }
                let span = progress.next(self.config.rule.normaliser, self.len, sizes.blocking.tile);
                if span.len > 0 {
                    self.queries::<S, B, N, H>(simd, span, h, [&mut *head, &mut *spare], &mut scratch);
                }
                let last = self.states.last.or(self.states.carried);
                if let (true, true, Some(last)) = (progress.token == self.len, begin.pass != Pass::Read, last)
                {
                    self.store(last, h, &self.split(head), progress.count);
                }
            }
            if progress.token == self.len {
                if progress.pass != Pass::Sum {
                    return;
                }
                progress = Progress { token: 0, pass: Pass::Read, ..progress };
            }
        }
    }

    /// Computes one tile of one head, for each output that shares the head. All outputs but the last compute
    /// on a copy of its sums.
    #[inline(always)]
    fn queries<S: Simd, const B: usize, const N: usize, const H: usize>(
        &self,
        simd: S,
        span: Span,
        h: usize,
        [head, spare]: [&mut [f32]; 2],
        scratch: &mut Scratch<'_>,
    ) {
        let queries = self.config.shape.groups.queries();
        for query in 0..queries {
            let sums = match span.pass {
                Pass::Read => &mut *head,
                _ if query + 1 == queries => &mut *head,
                Pass::Sum => continue,
                Pass::Both => {
                    spare.copy_from_slice(head);
                    &mut *spare
                }
            };
            self.tile::<S, B, N, H>(simd, span, [h, query], &mut self.split(sums), scratch);
        }
    }

    /// The state of a head before the first token.
    #[inline(always)]
    fn initial(&self, h: usize) -> Option<&[f32]> {
        let len = self.layout.len();
        match (self.states.initial, self.states.carried) {
            (Some(state), _) => Some(&state[h * len..][..len]),
            #[allow(unsafe_code, reason = "a carried state is read, then written")]
            // SAFETY: this task alone has the head, and reads its part of the state before it writes that
            // part.
            (None, Some(state)) => Some(unsafe { state.part(h * len, len) }),
            (None, None) => None,
        }
    }

    /// The pieces of a head's scratch.
    #[inline(always)]
    pub(super) fn split<'a>(&self, head: &'a mut [f32]) -> Pieces<'a> {
        let (panels, key) = (self.sizes.panels(), padded_key(self.sizes.key));
        let (past, error) = (self.layout.per_chunk as usize, self.layout.compensated as usize);
        let (s, rest) = head.split_at_mut(panels);
        let (past_s, rest) = rest.split_at_mut(past * panels);
        let (error_s, rest) = rest.split_at_mut(error * panels);
        let (z, rest) = rest.split_at_mut(key);
        let (past_z, error_z) = rest.split_at_mut(past * key);
        Pieces { z: [z, past_z, error_z], matrices: [s, past_s, error_s] }
    }

    /// Computes one tile of one head, for one output.
    #[inline(always)]
    fn tile<S: Simd, const B: usize, const N: usize, const H: usize>(
        &self,
        simd: S,
        span: Span,
        [h, query]: [usize; 2],
        head: &mut Pieces<'_>,
        scratch: &mut Scratch<'_>,
    ) {
        let row = self.first(span, h, query);
        let record = self.states.record.map(|records| records.of(h, span.token));
        if let Some(record) = record {
            let (tokens, columns) = (self.tokens(span, row), self.columns.clone());
            outline(simd, Keep { tokens, record, columns, space: &mut *scratch.space });
        }
        let factors = self.prepare::<S, B>(simd, span, row, head, scratch);
        let tile = self.swept(span, row, &factors, scratch, record);
        let (width, panel) = (self.sizes.width(), self.sizes.panel());
        for begin in (0..width).step_by(panel) {
            let stride = panel.min(width - begin);
            let elements = begin * self.sizes.key..(begin + stride) * self.sizes.key;
            let rows = head
                .matrices
                .each_mut()
                .map(|data| Rows { data: data.get_mut(elements.clone()).unwrap_or_default(), stride });
            self.panels::<S, B, N, H>(simd, &tile, begin..begin + stride, rows.into());
        }
        if span.fold {
            fold(simd, head.matrices.each_mut().map(|matrix| &mut **matrix), &mut head.z);
        }
    }

    /// The first row of a tile, for one of the outputs that share a head of the state.
    #[inline(always)]
    pub(super) fn first(&self, span: Span, h: usize, query: usize) -> Row {
        let heads = self.config.shape.groups.of(self.heads.start + h, query);
        Row { batch: self.batch, token: self.begin + span.token, heads }
    }

    /// The tokens of a tile.
    #[inline(always)]
    fn tokens(&self, span: Span, first: Row) -> Tokens<'_> {
        let Config { rule, shape, .. } = &self.config;
        Tokens { rule, shape, tensors: self.tensors, first, len: span.len }
    }

    /// Prepares a tile and adds it to z.
    #[inline(always)]
    pub(super) fn prepare<S: Simd, const B: usize>(
        &self,
        simd: S,
        span: Span,
        first: Row,
        head: &mut Pieces<'_>,
        scratch: &mut Scratch<'_>,
    ) -> Factors {
        let [z, past, error] = &mut head.z;
        let prepare = Prepare::<B> {
            tokens: self.tokens(span, first),
            columns: self.columns.clone(),
            use_past: span.use_past,
            pass: span.pass,
            z: Normalisers { z, past, error },
            operands: &mut *scratch.operands,
            wide_v: &mut *scratch.wide_v,
            space: &mut *scratch.space,
        };
        if self.config.rule.in_blocks() {
            // Blocks with decays or a delta have one token or two, whatever B is for the linear rule.
            let scores = &mut scratch.scores;
            return if DECODE {
                outline(simd, Decays::<1> { prepare: prepare.with_blocks(), scores })
            } else {
                outline(simd, Decays::<2> { prepare: prepare.with_blocks(), scores })
            };
        }
        outline(simd, prepare)
    }

    /// A tile that has been prepared.
    #[inline(always)]
    pub(super) fn swept<'a>(
        &'a self,
        span: Span,
        first: Row,
        factors: &'a Factors,
        scratch: &'a Scratch<'_>,
        record: Option<Record<'a>>,
    ) -> Tile<'a> {
        Tile {
            shape: &self.config.shape,
            tensors: self.tensors,
            first,
            len: span.len,
            operands: scratch.operands,
            factors,
            scores: &scratch.scores,
            wide_v: (!matches!(self.tensors.v, Elements::F32(_))).then_some(&*scratch.wide_v),
            columns: &self.columns,
            use_past: span.use_past,
            pass: span.pass,
            record,
            ahead: self.ahead(first),
        }
    }

    /// The rows that are prefetched while a tile is swept.
    #[inline(always)]
    fn ahead(&self, first: Row) -> Ahead {
        let Config { rule, shape, .. } = &self.config;
        let later =
            Row { token: first.token + if rule.in_blocks() { AHEAD_IN_BLOCKS } else { AHEAD }, ..first };
        match (self.begin + self.len).checked_sub(later.token) {
            Some(tokens) if PREFETCHES && tokens > 0 => {
                // Of a scalar gate there is one number for each token, which is not worth a prefetch.
                let gate = if rule.gate == Gate::Key { shape.key } else { 0 };
                Ahead { lines: self.tensors.lines(shape, later, gate), tokens }
            }
            _ => Ahead::NONE,
        }
    }
}

/// Ends a chunk: adds its sums S and z to those of the past, with their rounding errors, and clears them.
#[inline(always)]
pub(super) fn fold<S: Simd>(
    simd: S,
    [sums, past, error]: [&mut [f32]; 3],
    [z, past_z, error_z]: &mut [&mut [f32]; 3],
) {
    outline(simd, Fold { sums, past, error });
    outline(simd, Fold { sums: z, past: past_z, error: error_z });
}
