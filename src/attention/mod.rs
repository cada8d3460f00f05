//! Many heads: the entry point, its checks, the memory it needs, and how its work is cut into tasks.

mod decode;
mod draft;
mod panels;
pub(crate) mod part;
mod plan;
mod sizes;
mod task;
mod walk;

use core::ops::Range;

#[cfg(feature = "cdylib")]
pub(crate) use self::draft::Record;
pub use self::part::Part;
pub(crate) use self::part::States;
use self::plan::Plan;
use self::sizes::{Operands, Sizes};
use self::task::Task;
use crate::error::{Error, Result, check_len};
use crate::isa::{Isa, dispatch};
use crate::parallel;
use crate::rule::Rule;
use crate::scratch::{self, align, padded, with_alignment};
use crate::shape::Shape;
use crate::state::Layout;
use crate::tensors::{Tensors, check_sequences};

/// What to compute, on which sizes, instruction set and threads.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The recurrence that defines every output.
    pub rule: Rule,
    /// The sizes and strides of the tensors.
    pub shape: Shape,
    /// The instruction set and threads, which change only the time that a call takes.
    pub execution: Execution,
}

impl Config {
    /// A rule on a shape, on the default instruction set and one thread.
    pub const fn new(rule: Rule, shape: Shape) -> Self {
        let shape = shape.with_contiguous_gates(rule.gate_row(shape.key));
        Self { rule, shape, execution: Execution { isa: None, threads: 1 } }
    }

    /// The same configuration on a pinned instruction set.
    #[must_use]
    pub const fn isa(mut self, isa: Isa) -> Self {
        self.execution.isa = Some(isa);
        self
    }

    /// The same configuration on at most this number of threads.
    #[must_use]
    pub const fn threads(mut self, threads: usize) -> Self {
        self.execution.threads = threads;
        self
    }

    /// Checks everything that does not depend on the machine, and returns the layout of a state.
    pub(crate) fn check(&self) -> Result<Layout> {
        let Config { rule, shape, execution } = self;
        if execution.threads == 0 {
            return Err(Error::Zero { what: "threads" });
        }
        shape.check()?;
        rule.check()?;
        let layout = Layout::new(shape.key, shape.value, rule);
        let all = shape.batch.max(1).checked_mul(shape.heads);
        limit(all.and_then(|heads| heads.checked_mul(layout.checked_len().ok()?)), "the state")?;
        Ok(layout)
    }
}

/// The instruction set and the threads on which a call runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Execution {
    /// The instruction set; `None` selects [`Isa::choose`].
    pub isa: Option<Isa>,
    /// The largest number of threads to use, the calling one included; 1 by default, and always 1 without
    /// `std`. Small work stays on the calling thread, and the result does not depend on the number. [The
    /// crate's documentation](crate#threads) describes which threads are used.
    pub threads: usize,
}

/// Checks that memory can hold this number of elements.
fn limit(elements: Option<usize>, what: &'static str) -> Result<()> {
    match elements {
        Some(n) if n <= isize::MAX as usize / size_of::<f32>() / 4 => Ok(()),
        _ => Err(Error::Overflow { what }),
    }
}

/// The state that goes into and out of [`Attention::forward`]: `[B, H, state of one head]`, contiguous, of
/// [`Attention::state_len`] elements; its layout is in [`crate::state`].
#[derive(Debug)]
pub enum State<'a> {
    /// A call begins at zero and drops the final state.
    Zero,
    /// A call begins at this state and drops the final one.
    Initial(&'a [f32]),
    /// A call begins at zero and writes the final state here.
    Final(&'a mut [f32]),
    /// A call begins at the first state and writes the final one to the second.
    InitialFinal(&'a [f32], &'a mut [f32]),
    /// A call begins at this state and replaces it by the final one: a stream in pieces.
    Carried(&'a mut [f32]),
}

/// Which of the two calls is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Forward,
    Decode,
}

/// A checked configuration.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    config: Config,
    isa: Isa,
    layout: Layout,
    /// The plan of a decode; [`Attention::plan`] makes that of a forward each time it is needed.
    decode: Plan,
}

impl Attention {
    /// Checks a configuration.
    ///
    /// # Errors
    /// Zero heads, K, V or threads; sizes that overflow; strides of o under which rows overlap; a number that
    /// is not finite; a chunk of 0 or more than 2^24 tokens; an instruction set that is not available.
    pub fn new(config: Config) -> Result<Self> {
        let layout = config.check()?;
        let isa = Isa::resolve(config.execution.isa)?;
        Ok(Self::planned(config, isa, layout))
    }

    fn planned(config: Config, isa: Isa, layout: Layout) -> Self {
        let decode = Plan::decode(&config, isa.lanes(), config.shape.all_heads() * layout.len());
        Self { config, isa, layout, decode }
    }

    /// The configuration, as it was given.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The instruction set on which calls run.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Elements of the state, `B x H` times that of one head.
    pub fn state_len(&self) -> usize {
        self.config.shape.all_heads() * self.layout.len()
    }

    /// Elements of scratch that [`Attention::forward`] needs.
    pub fn scratch_len(&self) -> usize {
        let Plan { parts, workers, part_len, .. } = self.plan::<false>();
        // Where tasks share a head they read a copy of the state (see `run`).
        let copy = if parts > 1 { padded(self.state_len()) } else { 0 };
        with_alignment(copy.saturating_add(workers.saturating_mul(part_len)))
    }

    /// Elements of scratch that [`Attention::decode`] needs.
    pub fn decode_scratch_len(&self) -> usize {
        with_alignment(self.decode.workers.saturating_mul(self.decode.part_len))
    }

    /// An upper bound of [`Attention::scratch_len`] and [`Attention::decode_scratch_len`], for static arrays.
    /// It holds for one thread, any instruction set and any strides, with the linear update without a gate,
    /// where all tensors have `heads` heads.
    pub const fn scratch_bound(heads: usize, key: usize, value: usize) -> usize {
        with_alignment(Plan::bound(heads, key, value, Operands::Linear))
    }

    /// The bound of [`Attention::scratch_bound`] for a gate or the delta rule.
    pub const fn gated_scratch_bound(heads: usize, key: usize, value: usize) -> usize {
        with_alignment(Plan::bound(heads, key, value, Operands::Gated { delta: true }))
    }

    /// Computes all tokens of all heads: `o_t = scale phi(q_t)^T S_t / norm_t`.
    ///
    /// `scratch` must have at least [`Attention::scratch_len`] elements, of any content.
    ///
    /// # Errors
    /// A slice shorter than its shape and strides reach, a state of another length, scratch that is too
    /// short, a state whose count of tokens is not possible. Outputs and state are left untouched then.
    pub fn forward(&self, tensors: Tensors<'_>, state: State<'_>, scratch: &mut [f32]) -> Result<()> {
        self.check_tensors(Op::Forward, &tensors)?;
        scratch::check(scratch, self.scratch_len())?;
        let states = self.states(state)?;
        self.run::<false>(&tensors, states, scratch);
        Ok(())
    }

    /// Computes one token of all heads on the same state, with the bits of [`Attention::forward`] with T = 1.
    /// The strides of tokens are not used. S is updated in place, which is fastest where the state begins on
    /// a cache line of 64 bytes.
    ///
    /// `scratch` must have at least [`Attention::decode_scratch_len`] elements, of any content.
    ///
    /// # Errors
    /// As for [`Attention::forward`].
    pub fn decode(&self, tensors: Tensors<'_>, state: &mut [f32], scratch: &mut [f32]) -> Result<()> {
        self.check_tensors(Op::Decode, &tensors)?;
        scratch::check(scratch, self.decode_scratch_len())?;
        let states = self.states(State::Carried(state))?;
        self.run::<true>(&tensors, states, scratch);
        Ok(())
    }

    /// Checks a call of [`Attention::forward`] without running it, to be split among the caller's own
    /// threads; each part is run with its own scratch. [`Execution::threads`] is not used.
    ///
    /// # Errors
    /// As for [`Attention::forward`].
    pub fn forward_part<'a>(&self, tensors: Tensors<'a>, state: State<'a>) -> Result<Part<'a>> {
        self.check_tensors(Op::Forward, &tensors)?;
        Ok(Part::new(self, Op::Forward, 0..self.all_heads(), tensors, self.states(state)?))
    }

    /// Checks a call of [`Attention::decode`] without running it, as [`Attention::forward_part`] does for a
    /// forward.
    ///
    /// # Errors
    /// As for [`Attention::decode`].
    pub fn decode_part<'a>(&self, tensors: Tensors<'a>, state: &'a mut [f32]) -> Result<Part<'a>> {
        self.check_tensors(Op::Decode, &tensors)?;
        Ok(Part::new(self, Op::Decode, 0..self.all_heads(), tensors, self.states(State::Carried(state))?))
    }

    /// Checks the lengths of tensors.
    pub(crate) fn check_tensors(&self, op: Op, tensors: &Tensors<'_>) -> Result<()> {
        let shape = &self.config.shape;
        let rule = &self.config.rule;
        if op == Op::Forward {
            tensors.check(rule, shape)?;
            return check_sequences(tensors.sequences, shape);
        }
        if !rule.causal {
            return Err(Error::Conflict { what: "decode and attention that is not causal" });
        }
        // The strides of a configuration without tokens have not been checked for one token.
        let one = shape.one_token();
        one.check_output()?;
        tensors.check(rule, &one)
    }

    /// Checks the state of all heads.
    fn states<'a>(&self, state: State<'a>) -> Result<States<'a>> {
        let heads = 0..self.all_heads();
        States::new(state, |state, is_read| {
            if is_read {
                self.check_state(state, heads.clone())
            } else {
                self.check_state_len(state, heads.clone())
            }
        })
    }

    /// Runs a checked call of all heads on threads.
    pub(crate) fn run<const DECODE: bool>(
        &self,
        tensors: &Tensors<'_>,
        states: States<'_>,
        scratch: &mut [f32],
    ) {
        if !DECODE && self.is_idle(states) {
            return;
        }
        let shape = &self.config.shape;
        let plan = self.plan::<DECODE>();
        let (mut states, mut scratch) = (states, align(scratch));
        if let Some(state) = states.carried
            && plan.parts > 1
        {
            // Tasks that share a head all read its z, which one of them writes; so they read a copy.
            let (copy, rest) = scratch.split_at_mut(padded(self.state_len()));
            let copy = &mut copy[..self.state_len()];
            #[allow(unsafe_code, reason = "no task has begun")]
            // SAFETY: nothing else that was made from it is alive.
            copy.copy_from_slice(unsafe { state.whole() });
            scratch = rest;
            states = States { initial: Some(copy), last: Some(state), carried: None, ..states };
        }
        let groups = shape.heads.div_ceil(plan.group);
        let tasks = parallel::Tasks { count: shape.batch * groups * plan.parts, workers: plan.workers };
        parallel::for_each(tasks, scratch, plan.part_len, |task, scratch| {
            let (group, part) = (task / plan.parts, task % plan.parts);
            let (sequence, first) = (group / groups, group % groups * plan.group);
            let heads = first..shape.heads.min(first + plan.group);
            let all = sequence * shape.heads;
            let states = states.cut(all + heads.start..all + heads.end, self.layout.len());
            let columns = part * plan.columns..shape.value.min((part + 1) * plan.columns);
            let sizes = plan.sizes.with(heads.len(), columns.len());
            self.dispatch::<DECODE>(Slice { tensors, states, sequence, heads, columns }, sizes, scratch);
        });
    }

    /// Runs one task on the calling thread.
    pub(crate) fn dispatch<const DECODE: bool>(&self, slice: Slice<'_>, sizes: Sizes, scratch: &mut [f32]) {
        let Slice { tensors, states, sequence, heads, columns } = slice;
        let (config, layout) = (&self.config, &self.layout);
        let (batch, begin, len) = match tensors.sequences {
            _ if DECODE && config.shape.ragged => (0, sequence, 1),
            _ if DECODE => (sequence, 0, 1),
            Some(begins) => {
                let (begin, end) = (begins[sequence] as usize, begins[sequence + 1] as usize);
                (0, begin, end - begin)
            }
            None => (sequence, 0, config.shape.len),
        };
        let task = Task::<DECODE> {
            config,
            layout,
            tensors,
            states,
            batch,
            begin,
            heads,
            columns,
            len,
            sizes,
            scratch,
        };
        dispatch(self.isa, task);
    }

    /// Whether there are no tokens and no state to write. There may be any number of heads then, which take
    /// no memory but time.
    pub(crate) fn is_idle(&self, states: States<'_>) -> bool {
        self.config.shape.len == 0 && states.last.is_none() && states.carried.is_none()
    }

    /// The same attention, planned for one thread.
    pub(crate) fn on_one_thread(&self) -> Self {
        Self::planned(self.config.threads(1), self.isa, self.layout)
    }

    /// The number of heads in all sequences.
    pub(crate) fn all_heads(&self) -> usize {
        self.config.shape.all_heads()
    }

    /// Elements of the state of one head.
    pub(crate) fn head_state_len(&self) -> usize {
        self.layout.len()
    }

    /// How a call is cut into tasks.
    pub(crate) fn plan<const DECODE: bool>(&self) -> Plan {
        if DECODE { self.decode } else { Plan::forward(&self.config, self.isa.lanes()) }
    }

    fn check_state_len(&self, state: &[f32], heads: Range<usize>) -> Result<()> {
        check_len("state", heads.len() * self.layout.len(), state.len())
    }

    /// Checks the state of some heads.
    pub(crate) fn check_state(&self, state: &[f32], heads: Range<usize>) -> Result<()> {
        let first = heads.start;
        self.check_state_len(state, heads)?;
        self.layout.check(state, first, self.config.shape.heads, self.config.rule.normaliser)
    }
}

/// Some heads of one sequence and their states, and some columns of V. Slices that run at once differ in the
/// heads or in the columns.
pub(crate) struct Slice<'a> {
    pub(crate) tensors: &'a Tensors<'a>,
    pub(crate) states: States<'a>,
    pub(crate) sequence: usize,
    pub(crate) heads: Range<usize>,
    pub(crate) columns: Range<usize>,
}
