//! Speculative decoding: a draft of a few tokens is verified on a state that is only read, then the accepted
//! tokens are committed to it.

use core::ops::Range;

use super::{Attention, Part, State, States};
use crate::error::{Error, Result, check_len, check_most};
use crate::isa::dispatch;
use crate::parallel;
use crate::scratch;
use crate::sweep::draft::{self, Commit, MOST_TOKENS, RecordLayout};
use crate::tensors::{Disjoint, Tensors};

impl Attention {
    /// The largest number of tokens in a draft.
    pub const MAX_DRAFT: usize = MOST_TOKENS;

    /// Elements of the record that [`Attention::verify`] writes and [`Attention::commit`] reads: `B x H x T`
    /// times K + V, K + V + 1 for a scalar gate, or 2 K + V for a key gate.
    pub fn record_len(&self) -> usize {
        self.record_layout().len().saturating_mul(self.all_heads())
    }

    /// Computes the T tokens of a draft, at most 16 of each sequence, on a state that is only read. The
    /// outputs have the bits of [`Attention::forward`] on [`State::Initial`]. What [`Attention::commit`]
    /// needs of the tokens is written to `record`, of [`Attention::record_len`] elements; the tensors are not
    /// needed afterwards.
    ///
    /// `scratch` must have at least [`Attention::scratch_len`] elements, of any content.
    ///
    /// ```
    /// use chunkwise::{Attention, Config, Gate, Rule, Shape, Tensors};
    ///
    /// // A draft of 4 tokens, K = V = 2, of one sequence and head.
    /// let attention = Attention::new(Config::new(Rule::delta(Gate::None), Shape::new(1, 4, 1, 2, 2)))?;
    /// let (q, k, v) = ([0.5; 8], [0.6, 0.8, 0.8, 0.6, 0.6, 0.8, 1.0, 0.0], [1.0; 8]);
    /// let beta = [0.5; 4];
    /// let (mut o, mut state) = ([0.0; 8], [0.0; 4]);
    /// let mut record = vec![0.0; attention.record_len()];
    /// let mut scratch = vec![0.0; attention.scratch_len()];
    /// let tensors = Tensors::new(&q, &k, &v, &mut o).beta(&beta);
    /// attention.verify(tensors, &state, &mut record, &mut scratch)?;
    /// // The outputs say that the first three were right: they become part of the state.
    /// attention.commit(&record, &[3], &mut state)?;
    /// assert!(state[0] > 0.5);
    /// # Ok::<(), chunkwise::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`Attention::forward`]; more than 16 tokens, a ragged batch, attention that is not causal, a
    /// record of another length.
    pub fn verify(
        &self,
        tensors: Tensors<'_>,
        state: &[f32],
        record: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<()> {
        let states = self.check_verify(&tensors, state, record)?;
        scratch::check(scratch, self.scratch_len())?;
        self.run::<false>(&tensors, states, scratch);
        Ok(())
    }

    /// Checks a call of [`Attention::verify`] without running it, as [`Attention::forward_part`] does for a
    /// forward.
    ///
    /// # Errors
    /// As for [`Attention::verify`].
    pub fn verify_part<'a>(
        &self,
        tensors: Tensors<'a>,
        state: &'a [f32],
        record: &'a mut [f32],
    ) -> Result<Part<'a>> {
        let states = self.check_verify(&tensors, state, record)?;
        Ok(Part::new(self, super::Op::Forward, 0..self.all_heads(), tensors, states))
    }

    /// Adds the first tokens of a verified draft to the state, in place: `accepted[b]` tokens of sequence b,
    /// from 0 to all. The result is the state after as many calls of [`Attention::decode`]: bit for bit with
    /// the linear update; with the delta rule within that rule's bound of rounding errors, because
    /// [`Attention::verify`] solves for the tokens of a block together. The call needs no scratch.
    ///
    /// # Errors
    /// More tokens than the draft has, a number of sequences, a record or a state of another length, a state
    /// whose count of tokens is not possible, and a configuration that [`Attention::verify`] refuses. The
    /// state is left untouched then.
    pub fn commit(&self, record: &[f32], accepted: &[u32], state: &mut [f32]) -> Result<()> {
        self.check_draft()?;
        let shape = &self.config.shape;
        check_len("record", self.record_len(), record.len())?;
        check_len("accepted", shape.batch, accepted.len())?;
        for &tokens in accepted {
            check_most("accepted tokens", shape.len, tokens as usize)?;
        }
        self.check_state(state, 0..self.all_heads())?;
        let (record_layout, state) = (self.record_layout(), Disjoint::new(state));
        let (records, len) = (record_layout.len(), self.head_state_len());
        let tasks = parallel::Tasks { count: self.all_heads(), workers: self.decode.workers };
        parallel::for_each(tasks, &mut [], 0, |head, _| {
            let accepted = accepted[head / shape.heads] as usize;
            if accepted == 0 {
                return;
            }
            #[allow(unsafe_code, reason = "heads are split among tasks")]
            // SAFETY: each task has a head of its own.
            let state = unsafe { state.part(head * len, len) };
            let record = &record[head * records..][..records];
            let (rule, layout) = (&self.config.rule, &self.layout);
            dispatch(self.isa, Commit { rule, layout, record, record_layout, accepted, state });
        });
        Ok(())
    }

    pub(crate) fn record_layout(&self) -> RecordLayout {
        RecordLayout::new(&self.config.rule, &self.config.shape)
    }

    /// Checks that the configuration allows a draft.
    pub(crate) fn check_draft(&self) -> Result<()> {
        let shape = &self.config.shape;
        check_most("tokens of a draft", MOST_TOKENS, shape.len)?;
        if shape.ragged {
            return Err(Error::Conflict { what: "a draft and a ragged batch" });
        }
        if !self.config.rule.causal {
            return Err(Error::Conflict { what: "a draft and attention that is not causal" });
        }
        Ok(())
    }

    fn check_verify<'a>(
        &self,
        tensors: &Tensors<'_>,
        state: &'a [f32],
        record: &'a mut [f32],
    ) -> Result<States<'a>> {
        self.check_draft()?;
        self.check_tensors(super::Op::Forward, tensors)?;
        check_len("record", self.record_len(), record.len())?;
        let record = Record { data: Disjoint::new(record), layout: self.record_layout() };
        Ok(States { record: Some(record), ..self.states(State::Initial(state))? })
    }
}

/// The records of some heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    pub(crate) data: Disjoint<'a>,
    /// The layout of the record of one head.
    pub(crate) layout: RecordLayout,
}

impl<'a> Record<'a> {
    pub(crate) fn cut(self, heads: Range<usize>) -> Self {
        let len = self.layout.len();
        Self { data: self.data.cut(heads.start * len, heads.len() * len), ..self }
    }

    /// The record of one head, for a tile that begins with this token.
    pub(super) fn of(self, head: usize, token: usize) -> draft::Record<'a> {
        draft::Record { data: self.cut(head..head + 1).data, layout: self.layout, token }
    }
}
