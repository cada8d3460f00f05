//! Lightning attention: softmax inside a chunk of tokens, linear attention over the chunks before it
//! (Edifice's LightningAttention, after Qin et al. 2024).
//!
//! ```text
//! o_t = sum_{s <= t, in t's chunk} softmax_s(q_t . k_s / sqrt K) v_s  +  q_t^T S / (q_t . z + 1e-8)
//! S = sum k_s v_s^T [K, V],  z = sum k_s [K]      over all s in finished chunks; both terms of S are 0 in the first chunk
//! ```
//!
//! There is no feature map: q and k are used as they are, the denominator `q . z` can have either sign, and
//! near zero a small change of the input is a large change of the output. The reference adds 1e-8 to the sum
//! of the softmax, too. The largest score is subtracted before exp, so that this sum is at least 1, and
//! adding 1e-8 would not change it in f32; that term is left out here.
//!
//! # State
//!
//! The state is f32 and contiguous, with one part for each sequence and head. Rows are padded to multiples of
//! 16 elements, which is written as V16 for the padded V:
//!
//! ```text
//! S [K, V16], z [K16]       of all finished chunks
//! keys [K, C16]             of the current chunk, a column for each token, zero where there is no token yet
//! values [C, V16]           likewise, a row for each token
//! tokens [16]               the number of tokens in the current chunk, 0 <= tokens < C, and zeros
//! ```
//!
//! All zeros is the state before the first token. A copy of the slice is a snapshot. The contents of the
//! padding after a call have no meaning.
//!
//! # Numbers
//!
//! Against f64, the norm error is at most 2e-6 where q and k are positive (`tests/suite/lightning.rs`), as
//! for linear attention. Where `q . z` is near zero no f32 computation has such a bound.
//!
//! # Bits
//!
//! A sequence has the same bits wherever it is cut, also inside a chunk, and one call of `decode` for each
//! token gives the bits of `forward`. In all other respects the crate's documentation on linear attention
//! holds here as well.

mod head;
mod layout;
mod product;
pub mod reference;
mod softmax;

use self::head::Head;
use self::layout::Layout;
use crate::attention::{Execution, State, States};
use crate::error::{Error, Result, check_len};
use crate::isa::{Isa, dispatch};
use crate::parallel;
use crate::rule::{Normaliser, Rule, check_chunk};
use crate::scratch::{self, align, with_alignment};
use crate::shape::{Heads, Row, Shape};

use crate::tensors::{Tensors, check_sequences};

/// The number of flops for which it pays to wake a thread, as in linear attention.
const GRAIN_FLOPS: usize = 1 << 22;
/// The bytes of state in one decode for which it pays to wake a thread, as in linear attention.
const GRAIN_BYTES: usize = 1 << 21;

/// What to compute, on which sizes, instruction set and threads.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The number of tokens in a chunk, at least 1 and at most 2^24: a part of the model, not a tuning
    /// choice.
    pub chunk: usize,
    /// The sizes and strides of the tensors.
    pub shape: Shape,
    /// The instruction set and threads, which change only the time that a call takes.
    pub execution: Execution,
}

impl Config {
    /// Chunks of this number of tokens on a shape, on the default instruction set and one thread.
    pub const fn new(chunk: usize, shape: Shape) -> Self {
        Self { chunk, shape, execution: Execution { isa: None, threads: 1 } }
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
    fn check(&self) -> Result<Layout> {
        let Config { chunk, shape, execution } = self;
        if execution.threads == 0 {
            return Err(Error::Zero { what: "threads" });
        }
        shape.check()?;
        if shape.ragged || shape.groups != Heads::equal(shape.heads) {
            return Err(Error::Conflict {
                what: "lightning attention and a ragged batch or different numbers of heads",
            });
        }
        check_chunk(*chunk)?;
        let layout = Layout { key: shape.key, value: shape.value, chunk: *chunk };
        let all = shape.batch.max(1).checked_mul(shape.heads);
        let all = all.zip(layout.checked_len()).and_then(|(heads, len)| heads.checked_mul(len));
        match all {
            Some(all) if all <= isize::MAX as usize / size_of::<f32>() / 4 => Ok(layout),
            _ => Err(Error::Overflow { what: "the state" }),
        }
    }
}

/// The rule against which tensors are checked: a call has the tensors of a rule without a gate.
const RULE: Rule = Rule::linear(Normaliser::None);

/// A checked configuration.
///
/// ```
/// use chunkwise::lightning::{Config, Lightning};
/// use chunkwise::{Shape, State, Tensors};
///
/// // 1 sequence, 100 tokens, 4 heads, K = V = 8, contiguous [B, T, H, D]; chunks of 16 tokens.
/// let lightning = Lightning::new(Config::new(16, Shape::new(1, 100, 4, 8, 8)))?;
/// let (q, k, v) = ([0.1; 3200], [0.2; 3200], [0.3; 3200]);
/// let mut o = [0.0; 3200];
/// let mut scratch = vec![0.0; lightning.scratch_len()];
/// lightning.forward(Tensors::new(&q, &k, &v, &mut o), State::Zero, &mut scratch)?;
/// // An average over the chunk, and one over all chunks before it where there are any.
/// assert!((o[0] - 0.3).abs() < 1e-6 && (o[3199] - 0.6).abs() < 1e-6);
/// # Ok::<(), chunkwise::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Lightning {
    config: Config,
    isa: Isa,
    layout: Layout,
}

impl Lightning {
    /// Checks a configuration.
    ///
    /// # Errors
    /// Zero heads, K, V or threads; sizes that overflow; strides of o under which rows overlap; a chunk of 0
    /// or more than 2^24 tokens; an instruction set that is not available.
    pub fn new(config: Config) -> Result<Self> {
        let layout = config.check()?;
        let isa = Isa::resolve(config.execution.isa)?;
        Ok(Self { config, isa, layout })
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

    /// Elements of scratch that [`Lightning::forward`] needs.
    pub fn scratch_len(&self) -> usize {
        with_alignment(self.forward_workers().saturating_mul(self.layout.forward_scratch_len()))
    }

    /// Elements of scratch that [`Lightning::decode`] needs.
    pub fn decode_scratch_len(&self) -> usize {
        with_alignment(self.decode_workers().saturating_mul(self.layout.rows_len()))
    }

    /// Computes all tokens of all heads.
    ///
    /// `scratch` must have at least [`Lightning::scratch_len`] elements, of any content. The state has
    /// [`Lightning::state_len`] elements; where a state is written, the call works in its memory.
    ///
    /// # Errors
    /// A slice shorter than its shape and strides reach, a state of another length, scratch that is too
    /// short, a state whose count of tokens is not possible. Outputs and state are left untouched then.
    pub fn forward(&self, tensors: Tensors<'_>, state: State<'_>, scratch: &mut [f32]) -> Result<()> {
        let shape = &self.config.shape;
        tensors.check(&RULE, shape)?;
        check_sequences(tensors.sequences, shape)?;
        scratch::check(scratch, self.scratch_len())?;
        let states = self.states(state)?;
        if shape.len == 0 && states.last.is_none() {
            // There may be any number of heads then, which take no memory but time.
            return Ok(());
        }
        let call = Call { tensors: &tensors, states, len: shape.len };
        self.run(call, self.forward_workers(), self.layout.forward_scratch_len(), scratch);
        Ok(())
    }

    /// Computes one token of all heads on the same state, with the bits of [`Lightning::forward`] with T = 1.
    /// The strides of tokens are not used. The state is updated in place, which is fastest where it begins on
    /// a cache line of 64 bytes.
    ///
    /// `scratch` must have at least [`Lightning::decode_scratch_len`] elements, of any content.
    ///
    /// # Errors
    /// As for [`Lightning::forward`].
    pub fn decode(&self, tensors: Tensors<'_>, state: &mut [f32], scratch: &mut [f32]) -> Result<()> {
        let one = self.config.shape.with_len(1);
        // The strides of a configuration without tokens have not been checked for one token.
        one.check_output()?;
        tensors.check(&RULE, &one)?;
        check_sequences(tensors.sequences, &one)?;
        scratch::check(scratch, self.decode_scratch_len())?;
        let states = self.states(State::Carried(state))?;
        let call = Call { tensors: &tensors, states, len: 1 };
        self.run(call, self.decode_workers(), self.layout.rows_len(), scratch);
        Ok(())
    }

    /// Checks the state of all heads.
    pub(crate) fn check_state(&self, state: &[f32]) -> Result<()> {
        check_len("state", self.state_len(), state.len())?;
        self.layout.check(state)
    }

    fn states<'a>(&self, state: State<'a>) -> Result<States<'a>> {
        States::new(state, |state, is_read| {
            if is_read { self.check_state(state) } else { check_len("state", self.state_len(), state.len()) }
        })
    }

    /// Runs a checked call, with a task for each head.
    fn run(&self, call: Call<'_>, workers: usize, part: usize, scratch: &mut [f32]) {
        let shape = &self.config.shape;
        let tasks = parallel::Tasks { count: shape.all_heads(), workers };
        parallel::for_each(tasks, align(scratch), part, |task, scratch| {
            let first =
                Row { batch: task / shape.heads, token: 0, heads: shape.groups.of(task % shape.heads, 0) };
            let states = call.states.cut(task..task + 1, self.layout.len());
            let Call { tensors, len, .. } = call;
            let (shape, layout) = (&self.config.shape, &self.layout);
            dispatch(self.isa, Head { shape, layout, tensors, states, first, len, scratch });
        });
    }

    fn forward_workers(&self) -> usize {
        let Config { chunk, shape, execution } = &self.config;
        let heads = shape.batch.saturating_mul(shape.heads);
        // For each token S is read, and on average half of a chunk's keys and values; S is written once for a
        // chunk.
        let products = shape.key.saturating_mul(shape.value).saturating_mul(4);
        let inside = (*chunk).min(shape.len).saturating_mul(shape.key + shape.value);
        let token = products.saturating_add(inside);
        let flops = token.saturating_mul(shape.len).saturating_mul(heads);
        parallel::workers(execution.threads.min(heads.max(1)), flops, GRAIN_FLOPS)
    }

    fn decode_workers(&self) -> usize {
        let heads = self.config.shape.all_heads().max(1);
        let bytes = self.state_len().saturating_mul(size_of::<f32>());
        parallel::workers(self.config.execution.threads.min(heads), bytes, GRAIN_BYTES)
    }
}

/// The arguments of a checked call.
#[derive(Clone, Copy)]
struct Call<'a> {
    tensors: &'a Tensors<'a>,
    states: States<'a>,
    len: usize,
}
