//! Some of the `B x H` heads of one call, for threads of the caller's own: a call is checked once, then split like a
//! slice. The bits are those of the whole call.

use core::ops::Range;

use super::draft::Record;
use super::{Attention, Op, Slice, State};
use crate::error::Result;
use crate::scratch::{self, align};
use crate::tensors::{Disjoint, Tensors};

/// The state of some heads: from where, and to where or both in one; and where a verify records its tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct States<'a> {
    pub(crate) initial: Option<&'a [f32]>,
    pub(crate) last: Option<Disjoint<'a>>,
    pub(crate) carried: Option<Disjoint<'a>>,
    pub(crate) record: Option<Record<'a>>,
}

impl<'a> States<'a> {
    /// Of all heads. `check` is given each slice, and whether it is read.
    pub(crate) fn new(state: State<'a>, check: impl Fn(&[f32], bool) -> Result<()>) -> Result<Self> {
        let mut states = Self::default();
        match state {
            State::Zero => {}
            State::Initial(from) => {
                check(from, true)?;
                states.initial = Some(from);
            }
            State::Final(to) => {
                check(to, false)?;
                states.last = Some(Disjoint::new(to));
            }
            State::InitialFinal(from, to) => {
                check(from, true)?;
                check(to, false)?;
                (states.initial, states.last) = (Some(from), Some(Disjoint::new(to)));
            }
            State::Carried(state) => {
                check(state, true)?;
                states.carried = Some(Disjoint::new(state));
            }
        }
        Ok(states)
    }

    /// Those of some of the heads, each of `len` elements.
    pub(crate) fn cut(self, heads: Range<usize>, len: usize) -> Self {
        let (begin, elements) = (heads.start * len, heads.len() * len);
        Self {
            initial: self.initial.map(|state| &state[begin..][..elements]),
            last: self.last.map(|state| state.cut(begin, elements)),
            carried: self.carried.map(|state| state.cut(begin, elements)),
            record: self.record.map(|record| record.cut(heads)),
        }
    }
}

/// Some heads of one checked call, of all sequences counted through; to be split, sent to threads and run.
///
/// ```
/// use chunkwise::{Attention, Config, Normaliser, Rule, Shape, State, Tensors};
///
/// let attention = Attention::new(Config::new(Rule::linear(Normaliser::None), Shape::new(1, 32, 4, 8, 8)))?;
/// let (q, k, v) = (vec![0.1; 1024], vec![0.2; 1024], vec![0.3; 1024]);
/// let mut o = vec![0.0; 1024];
/// let all = attention.forward_part(Tensors::new(&q, &k, &v, &mut o), State::Zero)?;
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
    heads: Range<usize>,
    tensors: Tensors<'a>,
    /// Of these heads.
    states: States<'a>,
}

impl<'a> Part<'a> {
    /// `states` are those of `heads`, checked like the tensors.
    pub(crate) fn new(
        attention: &Attention,
        op: Op,
        heads: Range<usize>,
        tensors: Tensors<'a>,
        states: States<'a>,
    ) -> Self {
        Self { attention: attention.on_one_thread(), op, heads, tensors, states }
    }

    /// Heads in this part.
    pub fn len(&self) -> usize {
        self.heads.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// The first `heads` of them, and the others; all of them, where there are no more.
    #[must_use]
    pub fn split_at(self, heads: usize) -> (Part<'a>, Part<'a>) {
        let Self { attention, op, heads: all, tensors, states } = self;
        let (heads, head) = (heads.min(all.len()), attention.head_state_len());
        let (middle, len) = (all.start + heads, all.len());
        let part = |heads, states| Part { attention, op, heads, tensors: tensors.share(), states };
        (
            part(all.start..middle, states.cut(0..heads, head)),
            part(middle..all.end, states.cut(heads..len, head)),
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
    /// Scratch that is too short. Outputs and state are left untouched then.
    pub fn run(self, scratch: &mut [f32]) -> Result<()> {
        scratch::check(scratch, self.scratch_len())?;
        let scratch = align(scratch);
        let Self { attention, op, heads: all, tensors, states } = &self;
        if *op == Op::Forward && attention.is_idle(*states) {
            return Ok(());
        }
        let shape = &attention.config().shape;
        let (mut head, state) = (all.start, attention.head_state_len());
        let plan = match op {
            Op::Forward => attention.plan::<false>(),
            Op::Decode => attention.plan::<true>(),
        };
        while head < all.end {
            // Neighbours of one sequence are walked together.
            let first = head % shape.heads;
            let group = plan.group.min(shape.heads - first).min(all.end - head);
            let states = states.cut(head - all.start..head - all.start + group, state);
            let (sequence, heads, columns) = (head / shape.heads, first..first + group, 0..shape.value);
            let sizes = plan.sizes.with(heads.len(), columns.len());
            let slice = Slice { tensors, states, sequence, heads, columns };
            match op {
                Op::Forward => attention.dispatch::<false>(slice, sizes, scratch),
                Op::Decode => attention.dispatch::<true>(slice, sizes, scratch),
            }
            head += group;
        }
        Ok(())
    }
}
