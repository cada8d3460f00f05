//! Many heads: what to bring, what is checked, and how the work is cut into tasks.

use core::ops::Range;

use crate::chunk::{Prefill, PrefillSizes};
use crate::decode::{Decode, decode_scratch_len};
use crate::element::{Element, Elements};
use crate::error::{Error, Result, check_len};
use crate::feature_map::FeatureMap;
use crate::isa::{Bf16Dot, Isa, dispatch};
use crate::parallel;
use crate::part::{Op, Part, States, Tensors};
use crate::scratch::{self, align, padded, with_alignment};
use crate::shape::{Disjoint, Extent, Outputs, Rows, RowsMut, Strides};
use crate::state::{Layout, Normaliser};
use crate::tile::panel_width;

/// What to compute. All sizes are in elements, all counts from shapes; see [`Config::new`] for the defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// Sequences, B.
    pub batch: usize,
    /// Tokens in each, T; may be 0.
    pub len: usize,
    /// Heads, H, at least 1.
    pub heads: usize,
    /// Elements of a row of q and k, K, at least 1.
    pub key: usize,
    /// Elements of a row of v and o, V, at least 1.
    pub value: usize,
    /// Strides of q `[B, T, H, K]`.
    pub q_strides: Strides,
    /// Strides of k `[B, T, H, K]`.
    pub k_strides: Strides,
    /// Strides of v `[B, T, H, V]`.
    pub v_strides: Strides,
    /// Strides of o `[B, T, H, V]`; rows must not overlap.
    pub o_strides: Strides,
    /// The map on q and k.
    pub feature_map: FeatureMap,
    /// By what outputs are divided.
    pub normaliser: Normaliser,
    /// Multiplies the outputs. 1 by default, as in the reference model; fla's default is K^-1/2.
    pub scale: f32,
    /// Keeps beside the state what rounding takes from it, and adds it again: for streams of very many tokens. Costs
    /// as many elements of state more, and time. Off by default.
    pub compensated: bool,
    /// How [`Attention::forward`] multiplies; f32 by default.
    pub precision: Precision,
    /// The instruction set; `None` for [`Isa::choose`].
    pub isa: Option<Isa>,
    /// Threads to use at most, of the current rayon pool. 1 by default, and always 1 without `std`. Small work
    /// stays on the calling thread; the result does not depend on it.
    pub threads: usize,
}

impl Config {
    /// Contiguous `[B, T, H, D]` tensors, Elu, scale 1, the default instruction set, one thread.
    pub const fn new(
        batch: usize,
        len: usize,
        heads: usize,
        key: usize,
        value: usize,
        normaliser: Normaliser,
    ) -> Self {
        let (keys, values) = (Strides::bthd(len, heads, key), Strides::bthd(len, heads, value));
        Self {
            batch,
            len,
            heads,
            key,
            value,
            q_strides: keys,
            k_strides: keys,
            v_strides: values,
            o_strides: values,
            feature_map: FeatureMap::Elu,
            normaliser,
            scale: 1.0,
            compensated: false,
            precision: Precision::F32,
            isa: None,
            threads: 1,
        }
    }

    /// Checks all but what depends on the machine, and says how a state is laid out.
    pub(crate) fn check(&self) -> Result<Layout> {
        let Config { heads, key, value, scale, normaliser, .. } = *self;
        for (size, what) in [(heads, "heads"), (key, "key"), (value, "value"), (self.threads, "threads")] {
            if size == 0 {
                return Err(Error::Zero { what });
            }
        }
        self.feature_map.check()?;
        normaliser.check()?;
        if !scale.is_finite() {
            return Err(Error::NotFinite { what: "scale" });
        }
        if let Normaliser::PerChunk { eps, .. } = normaliser {
            // Before the first chunk has ended the past is 0 / eps: that must be 0.
            if !(scale / eps).is_finite() {
                return Err(Error::NotFinite { what: "scale / eps of the per-chunk normaliser" });
            }
        }
        let layout = Layout::new(key, value, normaliser, self.compensated);
        let all = self.batch.max(1).checked_mul(heads);
        limit(all.and_then(|rows| rows.checked_mul(layout.checked_len().ok()?)), "the state")?;
        let extent = |dim| Extent { batch: self.batch, len: self.len, heads, dim };
        extent(key).reach(self.q_strides, "q")?;
        extent(key).reach(self.k_strides, "k")?;
        extent(value).reach(self.v_strides, "v")?;
        extent(value).reach(self.o_strides, "o")?;
        extent(value).check_disjoint(self.o_strides, "o")?;
        Ok(layout)
    }
}

/// A number of elements that memory can have.
fn limit(elements: Option<usize>, what: &'static str) -> Result<()> {
    match elements {
        Some(n) if n <= isize::MAX as usize / size_of::<f32>() / 4 => Ok(()),
        _ => Err(Error::Overflow { what }),
    }
}

/// In which numbers the products of many tokens are taken. States and sums are f32 in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Precision {
    /// f32: the errors are those of summation.
    #[default]
    F32,
    /// phi is rounded to bf16, and `phi(Q) S` and `phi(K)^T V` are dot products of pairs of bf16 (AVX512-BF16's VDPBF16PS,
    /// Arm's BFDOT), S rounded for the product: errors as large as rounding q, k, v and o costs. Only where
    /// [`Isa::has_bf16_dot`] says so; never chosen unasked. [`Attention::decode`], which waits for memory and not for
    /// products, is the same in both.
    Bf16Dot,
}

/// The state that goes into and out of [`Attention::forward`]: `[B, H, state of one head]`, contiguous, of
/// [`Attention::state_len`] elements; its layout is in [`crate::state`].
#[derive(Debug)]
pub enum State<'a> {
    /// Begins at zero; what is left at the end is dropped.
    Zero,
    /// Begins at this one; dropped at the end.
    Initial(&'a [f32]),
    /// Begins at zero; written here at the end.
    Final(&'a mut [f32]),
    /// Begins at the first; written to the second at the end.
    InitialFinal(&'a [f32], &'a mut [f32]),
    /// Begins at this one and is replaced at the end: a stream in pieces.
    Carried(&'a mut [f32]),
}

/// Arguments of [`Attention::forward`]. Each tensor may be f32, bf16 or f16 ([`Element`]).
#[derive(Debug)]
pub struct Forward<'a, Q = f32, K = Q, V = Q, O = Q> {
    /// q `[B, T, H, K]` by its strides.
    pub q: &'a [Q],
    /// k `[B, T, H, K]` by its strides.
    pub k: &'a [K],
    /// v `[B, T, H, V]` by its strides.
    pub v: &'a [V],
    /// The state before and after.
    pub state: State<'a>,
    /// o `[B, T, H, V]` by its strides. Elements between the rows are left alone.
    pub o: &'a mut [O],
    /// At least [`Attention::scratch_len`] elements, of any content.
    pub scratch: &'a mut [f32],
}

/// Arguments of [`Attention::decode`], of any types likewise. The strides of tokens play no part.
#[derive(Debug)]
pub struct DecodeStep<'a, Q = f32, K = Q, V = Q, O = Q> {
    /// q `[B, H, K]` by its strides.
    pub q: &'a [Q],
    /// k `[B, H, K]` by its strides.
    pub k: &'a [K],
    /// v `[B, H, V]` by its strides.
    pub v: &'a [V],
    /// The state, [`Attention::state_len`] elements, replaced.
    pub state: &'a mut [f32],
    /// o `[B, H, V]` by its strides.
    pub o: &'a mut [O],
    /// At least [`Attention::decode_scratch_len`] elements, of any content.
    pub scratch: &'a mut [f32],
}

/// Flops for which it pays to wake a thread: some 20 microseconds' worth.
const GRAIN_FLOPS: usize = 1 << 21;
/// Bytes of state in one decode for which it pays to wake a thread: some 40 microseconds' worth. With a quarter of it,
/// 1 MiB of state took 44 us on two threads, by median, and 19 on one.
const GRAIN_BYTES: usize = 1 << 21;
/// Bytes of S of the heads that one task walks through together: they share L2 with the rows.
const GROUP_BYTES: usize = 256 << 10;

/// A checked configuration.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    config: Config,
    isa: Isa,
    dot: Option<Bf16Dot>,
    layout: Layout,
    plan: Plan,
}

/// How the prefill is cut: from shapes, the instruction set and the number of threads.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Neighbouring heads in a task.
    group: usize,
    /// Tasks along V for each group.
    parts: usize,
    /// Columns in each of them but the last.
    columns: usize,
    workers: usize,
    /// Elements of scratch for each worker.
    part_len: usize,
}

impl Plan {
    fn new(config: &Config, lanes: usize) -> Self {
        let Config { batch, len, heads, key, value, compensated, .. } = *config;
        let tokens = batch.saturating_mul(len).saturating_mul(heads);
        let flops = tokens.saturating_mul(4).saturating_mul(key).saturating_mul(value);
        let wanted = parallel::workers(config.threads, flops, GRAIN_FLOPS);
        // Heads that are neighbours in memory are walked together, unless that leaves threads without work.
        let nested = config.q_strides.head < config.q_strides.token && heads > 1;
        let group = if nested {
            let fits = GROUP_BYTES / key.saturating_mul(value).saturating_mul(size_of::<f32>());
            fits.min(batch.saturating_mul(heads) / wanted).clamp(1, heads)
        } else {
            1
        };
        let groups = batch.saturating_mul(heads.div_ceil(group)).max(1);
        let panels = value.div_ceil(panel_width(lanes));
        let parts = wanted.div_ceil(groups).min(panels);
        let columns = panels.div_ceil(parts).saturating_mul(panel_width(lanes)).min(value);
        let parts = value.div_ceil(columns);
        let workers = wanted.min(groups.saturating_mul(parts));
        let per_chunk = matches!(config.normaliser, Normaliser::PerChunk { .. });
        let dot = config.precision == Precision::Bf16Dot;
        let sizes = PrefillSizes { lanes, heads: group, key, columns, per_chunk, compensated, dot };
        let part_len = padded(sizes.scratch_len());
        Self { group, parts, columns, workers, part_len }
    }
}

impl Attention {
    /// Checks a configuration.
    ///
    /// # Errors
    /// Zero heads, K or V; sizes that overflow; strides of o under which rows overlap; a number that is not
    /// finite; a chunk of 0 or more than 2^24 tokens; an instruction set, or dot products, that are not available.
    pub fn new(config: Config) -> Result<Self> {
        let layout = config.check()?;
        let isa = match config.isa {
            Some(isa) => isa,
            None => Isa::choose()?,
        };
        let dot = match config.precision {
            Precision::F32 => None,
            Precision::Bf16Dot => Some(isa.bf16_dot().ok_or(Error::NoBf16Dot { isa: isa.name() })?),
        };
        let plan = Plan::new(&config, isa.lanes());
        limit(plan.part_len.checked_mul(plan.workers), "scratch")?;
        Ok(Self { config, isa, dot, layout, plan })
    }

    /// The configuration, as it was given.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The instruction set that runs.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Elements of the state, `B x H` times that of one head.
    pub fn state_len(&self) -> usize {
        self.rows() * self.layout.len()
    }

    /// Elements of scratch that [`Attention::forward`] needs.
    pub fn scratch_len(&self) -> usize {
        let copy = if self.plan.parts > 1 { padded(self.state_len()) } else { 0 };
        with_alignment(copy + self.plan.workers * self.plan.part_len)
    }

    /// Elements of scratch that [`Attention::decode`] needs.
    pub fn decode_scratch_len(&self) -> usize {
        with_alignment(
            self.decode_workers()
                * padded(decode_scratch_len(self.isa.lanes(), self.config.key, self.config.value)),
        )
    }

    /// An upper bound of [`Attention::scratch_len`] and [`Attention::decode_scratch_len`] for one thread, any
    /// instruction set and any layout: for static arrays.
    pub const fn scratch_bound(heads: usize, key: usize, value: usize) -> usize {
        const LANES: usize = 16;
        let (lanes, columns) = (LANES, value);
        let sizes =
            PrefillSizes { lanes, heads, key, columns, per_chunk: true, compensated: true, dot: true };
        with_alignment(padded(sizes.scratch_len()))
    }

    /// All tokens of all heads: `o_t = scale phi(q_t)^T S_t / norm_t`.
    ///
    /// # Errors
    /// A slice shorter than its shape and strides reach, a state of another length, scratch that is too short,
    /// a state whose count of tokens is not possible. Nothing has been written then.
    pub fn forward<Q: Element, K: Element, V: Element, O: Element>(
        &self,
        args: Forward<'_, Q, K, V, O>,
    ) -> Result<()> {
        let tensors = self.tensors(Op::Forward, args.q.into(), args.k.into(), args.v.into(), args.o)?;
        scratch::check(args.scratch, self.scratch_len())?;
        let states = self.states(args.state)?;
        self.forward_checked(&tensors, states, args.scratch);
        Ok(())
    }

    /// Without tokens, and nothing to write: there may be any number of heads then, which take no memory but time.
    pub(crate) fn is_idle(&self, states: States<'_>) -> bool {
        self.config.len == 0 && states.last.is_none() && states.carried.is_none()
    }

    /// [`Attention::forward`], checked and not yet run, to be split among the caller's own threads. The scratch in the
    /// arguments is not used and may be empty: each part brings its own. [`Config::threads`] plays no part.
    ///
    /// # Errors
    /// As for [`Attention::forward`].
    pub fn forward_part<'a, Q: Element, K: Element, V: Element, O: Element>(
        &self,
        args: Forward<'a, Q, K, V, O>,
    ) -> Result<Part<'a>> {
        let tensors = self.tensors(Op::Forward, args.q.into(), args.k.into(), args.v.into(), args.o)?;
        Ok(Part::new(self, Op::Forward, 0..self.rows(), tensors, self.states(args.state)?))
    }

    /// One token of all heads on the same state: as [`Attention::forward`] with T = 1, in one pass over S.
    ///
    /// # Errors
    /// As for [`Attention::forward`].
    pub fn decode<Q: Element, K: Element, V: Element, O: Element>(
        &self,
        args: DecodeStep<'_, Q, K, V, O>,
    ) -> Result<()> {
        let tensors = self.tensors(Op::Decode, args.q.into(), args.k.into(), args.v.into(), args.o)?;
        scratch::check(args.scratch, self.decode_scratch_len())?;
        self.check_state(args.state, 0..self.rows())?;
        self.decode_checked(&tensors, Disjoint::new(args.state), args.scratch);
        Ok(())
    }

    /// [`Attention::decode`], checked and not yet run, as [`Attention::forward_part`].
    ///
    /// # Errors
    /// As for [`Attention::decode`].
    pub fn decode_part<'a, Q: Element, K: Element, V: Element, O: Element>(
        &self,
        args: DecodeStep<'a, Q, K, V, O>,
    ) -> Result<Part<'a>> {
        let tensors = self.tensors(Op::Decode, args.q.into(), args.k.into(), args.v.into(), args.o)?;
        Ok(Part::new(self, Op::Decode, 0..self.rows(), tensors, self.states(State::Carried(args.state))?))
    }

    /// Checks lengths and strides.
    pub(crate) fn tensors<'a>(
        &self,
        op: Op,
        q: Elements<'a>,
        k: Elements<'a>,
        v: Elements<'a>,
        o: impl Into<Outputs<'a>>,
    ) -> Result<Tensors<'a>> {
        let Config { key, value, .. } = self.config;
        let extent = |dim| match op {
            Op::Forward => self.extent(dim),
            Op::Decode => Extent { len: 1, ..self.extent(dim) },
        };
        Ok(Tensors {
            q: Rows::new(q, extent(key), self.config.q_strides, "q")?,
            k: Rows::new(k, extent(key), self.config.k_strides, "k")?,
            v: Rows::new(v, extent(value), self.config.v_strides, "v")?,
            o: RowsMut::new(o.into(), extent(value), self.config.o_strides, "o")?,
        })
    }

    /// Checks the state of all heads.
    fn states<'a>(&self, state: State<'a>) -> Result<States<'a>> {
        let rows = 0..self.rows();
        match &state {
            State::Zero => {}
            State::Initial(state) => self.check_state(state, rows)?,
            State::Final(state) => self.check_state_len(state, rows)?,
            State::InitialFinal(initial, last) => {
                self.check_state(initial, rows.clone())?;
                self.check_state_len(last, rows)?;
            }
            State::Carried(state) => self.check_state(state, rows)?,
        }
        let none = States::default();
        Ok(match state {
            State::Zero => none,
            State::Initial(state) => States { initial: Some(state), ..none },
            State::Final(state) => States { last: Some(Disjoint::new(state)), ..none },
            State::InitialFinal(from, to) => {
                States { initial: Some(from), last: Some(Disjoint::new(to)), ..none }
            }
            State::Carried(state) => States { carried: Some(Disjoint::new(state)), ..none },
        })
    }

    /// All tokens of all heads, once checked.
    pub(crate) fn forward_checked(&self, tensors: &Tensors<'_>, states: States<'_>, scratch: &mut [f32]) {
        if self.is_idle(states) {
            return;
        }
        let Config { batch, heads, value, .. } = self.config;
        let plan = self.plan;
        let (mut states, mut scratch) = (states, align(scratch));
        if let Some(state) = states.carried
            && plan.parts > 1
        {
            // Tasks that share a head all read its z, and one of them writes it: they read a copy.
            let (copy, rest) = scratch.split_at_mut(padded(self.state_len()));
            let copy = &mut copy[..self.state_len()];
            #[allow(unsafe_code, reason = "no task has begun")]
            // SAFETY: nothing else is alive that was made of it.
            copy.copy_from_slice(unsafe { state.whole() });
            scratch = rest;
            states = States { initial: Some(copy), last: Some(state), carried: None };
        }
        let groups = heads.div_ceil(plan.group);
        let head_len = self.layout.len();
        parallel::for_each(
            plan.workers,
            batch * groups * plan.parts,
            scratch,
            plan.part_len,
            |task, scratch| {
                let (row, part) = (task / plan.parts, task % plan.parts);
                let (batch, first) = (row / groups, row % groups * plan.group);
                let group = first..heads.min(first + plan.group);
                let states = states.cut((batch * heads + first) * head_len, group.len() * head_len);
                let columns = part * plan.columns..value.min((part + 1) * plan.columns);
                self.prefill(tensors, states, batch, group, columns, scratch);
            },
        );
    }

    /// Some heads of one sequence and their states, some columns of V. Tasks that run at once differ in either.
    pub(crate) fn prefill(
        &self,
        tensors: &Tensors<'_>,
        states: States<'_>,
        batch: usize,
        heads: Range<usize>,
        columns: Range<usize>,
        scratch: &mut [f32],
    ) {
        let Tensors { q, k, v, o } = *tensors;
        let States { initial, last, carried } = states;
        let Config { len, feature_map, normaliser, scale, .. } = self.config;
        let (dot, layout) = (self.dot, self.layout);
        dispatch(
            self.isa,
            Prefill {
                batch,
                heads,
                columns,
                len,
                q,
                k,
                v,
                o,
                feature_map,
                normaliser,
                scale,
                dot,
                layout,
                initial,
                last,
                carried,
                scratch,
            },
        );
    }

    /// One token of all heads, once checked.
    pub(crate) fn decode_checked(&self, tensors: &Tensors<'_>, state: Disjoint<'_>, scratch: &mut [f32]) {
        let Config { key, value, .. } = self.config;
        let (rows, head_len) = (self.rows(), self.layout.len());
        let workers = self.decode_workers();
        // A few tasks for each worker, so that a late one can be helped out.
        let step = if workers == 1 { rows } else { rows.div_ceil(4 * workers) }.max(1);
        let part = padded(decode_scratch_len(self.isa.lanes(), key, value));
        parallel::for_each(workers, rows.div_ceil(step), align(scratch), part, |task, scratch| {
            let rows = task * step..rows.min((task + 1) * step);
            let state = state.cut(rows.start * head_len, rows.len() * head_len);
            self.decode_rows(tensors, state, rows, scratch);
        });
    }

    /// One token of some heads, counted over the whole batch, and their state.
    pub(crate) fn decode_rows(
        &self,
        tensors: &Tensors<'_>,
        state: Disjoint<'_>,
        rows: Range<usize>,
        scratch: &mut [f32],
    ) {
        let Tensors { q, k, v, o } = *tensors;
        let Config { heads, feature_map, normaliser, scale, .. } = self.config;
        let layout = self.layout;
        dispatch(
            self.isa,
            Decode { rows, heads, q, k, v, o, feature_map, normaliser, scale, layout, state, scratch },
        );
    }

    /// The same attention, planned for one thread.
    pub(crate) fn on_one_thread(&self) -> Self {
        let config = Config { threads: 1, ..self.config };
        Self { config, plan: Plan::new(&config, self.isa.lanes()), ..*self }
    }

    /// Heads of all sequences.
    pub(crate) fn rows(&self) -> usize {
        self.config.batch * self.config.heads
    }

    /// Neighbouring heads that one task walks together.
    pub(crate) fn group(&self) -> usize {
        self.plan.group
    }

    /// Elements of the state of one head.
    pub(crate) fn head_state_len(&self) -> usize {
        self.layout.len()
    }

    fn decode_workers(&self) -> usize {
        parallel::workers(
            self.config.threads.min(self.rows().max(1)),
            self.state_len() * size_of::<f32>(),
            GRAIN_BYTES,
        )
    }

    fn extent(&self, dim: usize) -> Extent {
        Extent { batch: self.config.batch, len: self.config.len, heads: self.config.heads, dim }
    }

    fn check_state_len(&self, state: &[f32], rows: Range<usize>) -> Result<()> {
        check_len("state", rows.len() * self.layout.len(), state.len())
    }

    /// Checks the state of some heads.
    pub(crate) fn check_state(&self, state: &[f32], rows: Range<usize>) -> Result<()> {
        let first = rows.start;
        self.check_state_len(state, rows)?;
        self.layout.check(state, first, self.config.heads, self.config.normaliser)
    }
}
