//! Some of the `B x H` heads of one call, for threads of the caller's own: a call is checked once, then split like a
//! slice. The bits are those of the whole call.

use core::ops::Range;

use crate::attention::Attention;
use crate::error::Result;
use crate::scratch::{self, align};
use crate::shape::{Disjoint, Rows, RowsMut};

/// The tensors of a call, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tensors<'a> {
    pub(crate) q: Rows<'a>,
    pub(crate) k: Rows<'a>,
    pub(crate) v: Rows<'a>,
    pub(crate) o: RowsMut<'a>,
}

/// The state of some heads: from where, and to where or both in one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct States<'a> {
    pub(crate) initial: Option<&'a [f32]>,
    pub(crate) last: Option<Disjoint<'a>>,
    pub(crate) carried: Option<Disjoint<'a>>,
}

impl States<'_> {
    /// Elements `at .. at + len` of each.
    pub(crate) fn cut(self, at: usize, len: usize) -> Self {
        Self {
            initial: self.initial.map(|state| &state[at..][..len]),
            last: self.last.map(|state| state.cut(at, len)),
            carried: self.carried.map(|state| state.cut(at, len)),
        }
    }
}

/// Which of the two calls a part is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Forward,
    Decode,
}

/// Some heads of one checked call, of all sequences counted through; to be split, sent to threads and run.
///
/// ```
/// use chunkwise::{Attention, Config, Forward, Normaliser, State};
///
/// let attention = Attention::new(Config::new(1, 32, 4, 8, 8, Normaliser::None))?;
/// let (q, k, v) = (vec![0.1; 1024], vec![0.2; 1024], vec![0.3; 1024]);
/// let mut o = vec![0.0; 1024];
/// let all = attention.forward_part(Forward { q: &q, k: &k, v: &v, state: State::Zero, o: &mut o, scratch: &mut [] })?;
/// let (low, high) = all.split_at(2);
/// std::thread::scope(|scope| {
///     for part in [low, high] {
///         let mut scratch = vec![0.0; part.scratch_len()];
///         scope.spawn(move || part.run(&mut scratch));
///     }
/// });
/// assert!(o[1023] > 0.0);
/// # Ok::<(), chunkwise::Error>(())
/// ```
#[derive(Debug)]
pub struct Part<'a> {
    /// On one thread.
    attention: Attention,
    op: Op,
    rows: Range<usize>,
    tensors: Tensors<'a>,
    /// Of these rows.
    states: States<'a>,
}

impl<'a> Part<'a> {
    /// `states` are those of `rows`, checked like the tensors.
    pub(crate) fn new(
        attention: &Attention,
        op: Op,
        rows: Range<usize>,
        tensors: Tensors<'a>,
        states: States<'a>,
    ) -> Self {
        Self { attention: attention.on_one_thread(), op, rows, tensors, states }
    }

    /// Heads in this part.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The first `heads` of them, and the others; all of them, where there are no more.
    #[must_use]
    pub fn split_at(self, heads: usize) -> (Part<'a>, Part<'a>) {
        let Self { attention, op, rows, tensors, states } = self;
        let (heads, head) = (heads.min(rows.len()), attention.head_state_len());
        let (at, all) = (rows.start + heads, rows.len() * head);
        let part = |rows, states| Part { attention, op, rows, tensors, states };
        (
            part(rows.start..at, states.cut(0, heads * head)),
            part(at..rows.end, states.cut(heads * head, all - heads * head)),
        )
    }

    /// Elements of scratch that it needs, of any content: the same however it was split.
    pub fn scratch_len(&self) -> usize {
        match self.op {
            Op::Forward => self.attention.scratch_len(),
            Op::Decode => self.attention.decode_scratch_len(),
        }
    }

    /// Computes these heads, on the calling thread.
    ///
    /// # Errors
    /// Scratch that is too short. Nothing has been written then.
    pub fn run(self, scratch: &mut [f32]) -> Result<()> {
        scratch::check(scratch, self.scratch_len())?;
        let scratch = align(scratch);
        if let (Op::Decode, Some(state)) = (self.op, self.states.carried) {
            self.attention.decode_rows(&self.tensors, state, self.rows, scratch);
            return Ok(());
        }
        if self.attention.is_idle(self.states) {
            return Ok(());
        }
        let (heads, first, head) =
            (self.attention.config().heads, self.rows.start, self.attention.head_state_len());
        let mut row = first;
        while row < self.rows.end {
            // Neighbours of one sequence are walked together.
            let at = row % heads;
            let group = self.attention.group().min(heads - at).min(self.rows.end - row);
            let states = self.states.cut((row - first) * head, group * head);
            let columns = 0..self.attention.config().value;
            self.attention.prefill(&self.tensors, states, row / heads, at..at + group, columns, scratch);
            row += group;
        }
        Ok(())
    }
}
