//! Some of the `B x H` heads of one call, for the caller's own threads: a call is checked once, then split
//! like a slice. The results have the bits of the whole call.

use core::ops::Range;

use super::draft::Record;
use super::{Attention, Op, Slice, State};
use crate::error::Result;
use crate::scratch::{self, align};
use crate::tensors::{Disjoint, Tensors};

/// The states of some heads: where they are read from, where they are written to, or one slice for both; and
/// where a verify records its tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct States<'a> {
    pub(crate) initial: Option<&'a [f32]>,
    pub(crate) last: Option<Disjoint<'a>>,
    pub(crate) carried: Option<Disjoint<'a>>,
    pub(crate) record: Option<Record<'a>>,
}

impl<'a> States<'a> {
    /// The states of all heads. `check` receives each slice and whether it is read.
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

    /// The states of some of the heads, `len` elements for each head.
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

/// Some heads of one checked call, numbered through all sequences, to be split, sent to threads and run.
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
    /// The attention, planned for one thread.
    attention: Attention,
    op: Op,
    heads: Range<usize>,
    tensors: Tensors<'a>,
    /// The states of `heads`.
    states: States<'a>,
}

impl<'a> Part<'a> {
    /// `states` are the states of `heads`, checked like the tensors.
    pub(crate) fn new(
        attention: &Attention,
        op: Op,
        heads: Range<usize>,
        tensors: Tensors<'a>,
        states: States<'a>,
    ) -> Self {
        Self { attention: attention.on_one_thread(), op, heads, tensors, states }
    }

    /// The number of heads in this part.
    pub fn len(&self) -> usize {
        self.heads.len()
    }

    /// Whether this part has no heads.
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// Splits the part into its first `heads` heads, or all where there are no more, and the others.
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

    /// Elements of scratch that this part needs, of any content. It is the same however the call was split.
    pub fn scratch_len(&self) -> usize {
        match self.op {
            Op::Forward => self.attention.scratch_len(),
            Op::Decode => self.attention.decode_scratch_len(),
        }
    }

    /// Computes the heads of this part on the calling thread.
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
            // Neighbouring heads of one sequence are walked through together.
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
