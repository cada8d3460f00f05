//! Gradients of attention: [`Attention::backward`].
//!
//! For a loss whose gradient with respect to the outputs o is known, it computes the gradients with respect
//! to q, k, v and the initial state. With a = phi(q), c = phi(k), n the norm and s the scale,
//!
//! ```text
//! forwards in time     da_t = S_t dN_t + dn_t z_t      dN_t = s do_t / n_t,  dn_t = -(a_t . S_t dN_t) / n_t
//! backwards in time    dc_t = R_t v_t + r_t            R_t = R_{t+1} + a_t dN_t^T,  r_t = r_{t+1} + dn_t a_t
//!                      dv_t = R_t^T c_t
//! ```
//!
//! and dq = da phi'(q), dk = dc phi'(k). With a scalar gate S and z decay by exp(g_t) before token t, R and r by
//! exp(g_{t+1}) before token t, and dg_t is the sum of a_u . da_u - c_u . dc_u over all tokens u from t on, and of
//! the product of the last state and its gradient. Each line with a matrix is the sweep of a forward with other
//! operands: S^T, R^T and R are the matrices, and no other state is kept, so that memory grows with T by four
//! numbers for each token of the heads that are computed at the same time. A backward executes three times
//! the multiply-adds of a forward.
//!
//! ```
//! use chunkwise::backward::{Gradients, Inputs};
//! use chunkwise::{Attention, Config, Normaliser, Rule, Shape};
//!
//! // 1 sequence, 2 tokens, 1 head, K = V = 1: o_2 is the average of v_1 and v_2, weighted by phi(k).
//! let rule = Rule::linear(Normaliser::Global { eps: 0.0 });
//! let attention = Attention::new(Config::new(rule, Shape::new(1, 2, 1, 1, 1)))?;
//! let (q, k, v) = ([1.0, 1.0], [0.0, 2.0], [4.0, 8.0]);
//! let loss = [0.0, 1.0]; // the gradient of o_2
//! let (mut dq, mut dk, mut dv) = ([0.0; 2], [0.0; 2], [0.0; 2]);
//! let mut scratch = vec![0.0; attention.backward_scratch_len()];
//! let gradients = Gradients::new(&mut dq[..], &mut dk[..], &mut dv[..]);
//! attention.backward(Inputs::new(&q, &k, &v, &loss), gradients, &mut scratch)?;
//! // phi(k) is 1 and 3.
//! assert!((dv[0] - 0.25).abs() < 1e-6 && (dv[1] - 0.75).abs() < 1e-6);
//! # Ok::<(), chunkwise::Error>(())
//! ```

mod keys;
mod queries;
mod rows;
mod sizes;
mod sweep;
mod task;

use self::sizes::Sizes;
use self::task::Task;
use crate::attention::Attention;
use crate::element::{Elements, ElementsMut};
use crate::error::{Error, Result, check_len, check_room};
use crate::isa::dispatch;
use crate::parallel;
use crate::rule::{Gate, GateMap, Update};
use crate::scratch::{self, align, with_alignment};
use crate::state::Layout;
use crate::tensors::{Disjoint, Outputs, Tensors, check_sequences};

/// The tensors of a forward, and the gradients with respect to its results.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Inputs<'a> {
    pub(crate) q: Elements<'a>,
    pub(crate) k: Elements<'a>,
    pub(crate) v: Elements<'a>,
    pub(crate) output: Elements<'a>,
    pub(crate) g: Elements<'a>,
    pub(crate) sequences: Option<&'a [u32]>,
    initial: Option<&'a [f32]>,
    last: Option<&'a [f32]>,
}

impl<'a> Inputs<'a> {
    /// q and k `[B, T, H, K]`, v, and the gradient of o, `[B, T, H, V]`, by the strides of q, k, v and o.
    pub fn new(
        q: impl Into<Elements<'a>>,
        k: impl Into<Elements<'a>>,
        v: impl Into<Elements<'a>>,
        output: impl Into<Elements<'a>>,
    ) -> Self {
        let (q, k, v, output) = (q.into(), k.into(), v.into(), output.into());
        Self { q, k, v, output, g: Elements::default(), sequences: None, initial: None, last: None }
    }

    /// The same inputs with a scalar gate g `[B, T, H]`, the logarithms of decays.
    #[must_use]
    pub fn gate(self, g: impl Into<Elements<'a>>) -> Self {
        Self { g: g.into(), ..self }
    }

    /// The same inputs for a forward that began at this state, of [`Attention::state_len`] elements.
    #[must_use]
    pub fn initial(self, state: &'a [f32]) -> Self {
        Self { initial: Some(state), ..self }
    }

    /// The same inputs with the gradient of the last state, in the layout of a state. Its counts of tokens
    /// are not read.
    #[must_use]
    pub fn last(self, gradient: &'a [f32]) -> Self {
        Self { last: Some(gradient), ..self }
    }

    /// The same inputs of a ragged batch, see [`crate::Tensors::sequences`].
    #[must_use]
    pub fn sequences(self, begins: &'a [u32]) -> Self {
        Self { sequences: Some(begins), ..self }
    }
}

/// The gradients that [`Attention::backward`] computes. What they held before is replaced, and elements
/// between rows are left untouched.
#[derive(Debug)]
#[non_exhaustive]
pub struct Gradients<'a> {
    q: ElementsMut<'a>,
    k: ElementsMut<'a>,
    v: ElementsMut<'a>,
    g: Option<ElementsMut<'a>>,
    initial: Option<&'a mut [f32]>,
}

impl<'a> Gradients<'a> {
    /// The gradients of q, k and v, by the strides of q, k and v.
    pub fn new(
        q: impl Into<ElementsMut<'a>>,
        k: impl Into<ElementsMut<'a>>,
        v: impl Into<ElementsMut<'a>>,
    ) -> Self {
        Self { q: q.into(), k: k.into(), v: v.into(), g: None, initial: None }
    }

    /// The same gradients and that of g, by the strides of g. Where a decay is 0, it is 0.
    #[must_use]
    pub fn gate(self, g: impl Into<ElementsMut<'a>>) -> Self {
        Self { g: Some(g.into()), ..self }
    }

    /// The same gradients and that of the initial state, in the layout of a state, its counts of tokens 0.
    #[must_use]
    pub fn initial(self, state: &'a mut [f32]) -> Self {
        Self { initial: Some(state), ..self }
    }
}

/// Where the tasks of a call write.
#[derive(Clone, Copy)]
pub(crate) struct Written<'a> {
    pub(crate) q: Outputs<'a>,
    pub(crate) k: Outputs<'a>,
    pub(crate) v: Outputs<'a>,
    pub(crate) g: Option<Outputs<'a>>,
    initial: Option<Disjoint<'a>>,
}

impl Attention {
    /// Elements of scratch that [`Attention::backward`] needs. For each thread that takes part it holds the
    /// rows of one tile and, for each head of o, two matrices `[K, V]` (four with
    /// [`crate::Normaliser::PerChunk`]) and four numbers for each token of a sequence. Heads that share a head
    /// of q, k or v are computed by one thread; without shared heads it has one head at a time.
    pub fn backward_scratch_len(&self) -> usize {
        let (sizes, workers) = self.backward_sizes();
        with_alignment(workers.saturating_mul(sizes.len()))
    }

    /// Computes the gradients with respect to q, k, v and the initial state of a loss, from its gradients
    /// with respect to o and the last state. The bits do not depend on threads, strides, or the batch around
    /// a sequence.
    ///
    /// `scratch` must have at least [`Attention::backward_scratch_len`] elements, of any content.
    ///
    /// Where q or k is 0, [`crate::FeatureMap::Relu`] has the derivative 0.
    ///
    /// # Errors
    /// The delta rule, a key gate, a gate whose map is not [`GateMap::Log`], a norm of q and k, attention that
    /// is not causal, a compensated state; a slice shorter than its shape and strides reach; g, or a place for
    /// its gradient, without a gate; strides of q, k or v under which rows overlap, or those of g where its
    /// gradient is asked for; a state of another length; scratch that is too short. Nothing has been written
    /// then.
    pub fn backward(&self, inputs: Inputs<'_>, gradients: Gradients<'_>, scratch: &mut [f32]) -> Result<()> {
        self.check_backward(&inputs, &gradients)?;
        scratch::check(scratch, self.backward_scratch_len())?;
        let Gradients { q, k, v, g, initial } = gradients;
        let (q, k, v, g) = (q.into(), k.into(), v.into(), g.map(Outputs::from));
        let written = Written { q, k, v, g, initial: initial.map(Disjoint::new) };
        let tensors = Tensors::new(inputs.q, inputs.k, inputs.v, &mut [0.0_f32; 0][..]).gate(inputs.g);
        let (config, (sizes, workers)) = (self.config(), self.backward_sizes());
        let shape = &config.shape;
        let layout = Layout::new(shape.key, shape.value, &config.rule);
        let (groups, each) = (sizes.groups.count, sizes.tasks());
        let tasks = parallel::Tasks { count: shape.batch.saturating_mul(each), workers };
        parallel::for_each(tasks, align(scratch), sizes.len(), |task, scratch| {
            let (sequence, first) = (task / each, task % each * sizes.together);
            let (batch, begin, len) = match inputs.sequences {
                Some(begins) => {
                    let (begin, end) = (begins[sequence] as usize, begins[sequence + 1] as usize);
                    (0, begin, end - begin)
                }
                None => (sequence, 0, shape.len),
            };
            let states = shape.heads * layout.len();
            let states = sequence * states..(sequence + 1) * states;
            let task = Task {
                rule: &config.rule,
                shape,
                layout: &layout,
                inputs: &inputs,
                tensors: &tensors,
                written: &written,
                batch,
                begin,
                len,
                groups: first..groups.min(first + sizes.together),
                initial: inputs.initial.map(|state| &state[states.clone()]),
                last: inputs.last.map(|state| &state[states.clone()]),
                initial_gradient: written.initial.map(|state| state.cut(states.start, states.len())),
                sizes,
                scratch,
            };
            dispatch(self.isa(), task);
        });
        Ok(())
    }

    fn backward_sizes(&self) -> (Sizes, usize) {
        let config = self.config();
        let sizes = Sizes::new(self.isa().lanes(), &config.rule, &config.shape);
        let groups = config.shape.batch.saturating_mul(sizes.groups.count).max(1);
        let work = sizes.work().saturating_mul(groups);
        let workers = parallel::workers(config.execution.threads.min(groups), work, GRAIN);
        (sizes.together(&config.shape, workers), workers)
    }

    /// Checks that there are gradients for the rule, the heads and the strides.
    pub(crate) fn check_gradients(&self) -> Result<()> {
        let crate::Config { rule, shape, .. } = self.config();
        for (refused, what) in [
            (rule.update != Update::Linear, "backward and the delta rule"),
            (rule.gate == Gate::Key, "backward and a key gate"),
            (rule.gate_map != GateMap::Log, "backward and a map of the gate"),
            (rule.qk_norm.is_some(), "backward and the norm of q and k"),
            (!rule.causal, "backward and attention that is not causal"),
            (rule.compensated, "backward and a compensated state"),
        ] {
            if refused {
                return Err(Error::Conflict { what });
            }
        }
        shape.check_inputs()
    }

    fn check_backward(&self, inputs: &Inputs<'_>, gradients: &Gradients<'_>) -> Result<()> {
        self.check_gradients()?;
        let crate::Config { rule, shape, .. } = self.config();
        let [q, k, v, o] = shape.reach()?;
        for (what, need, got) in [
            ("q", q, inputs.q.len()),
            ("k", k, inputs.k.len()),
            ("v", v, inputs.v.len()),
            ("the gradient of o", o, inputs.output.len()),
            ("the gradient of q", q, gradients.q.as_elements().len()),
            ("the gradient of k", k, gradients.k.as_elements().len()),
            ("the gradient of v", v, gradients.v.as_elements().len()),
        ] {
            check_room(what, need, got)?;
        }
        if rule.gate == Gate::None {
            for (what, given) in [("g", !inputs.g.is_empty()), ("the gradient of g", gradients.g.is_some())] {
                if given {
                    return Err(Error::Unused { what });
                }
            }
        } else {
            let need = shape.reach_g(1)?;
            check_room("g", need, inputs.g.len())?;
            if let Some(g) = &gradients.g {
                shape.check_gate()?;
                check_room("the gradient of g", need, g.as_elements().len())?;
            }
        }
        check_sequences(inputs.sequences, shape)?;
        let state = |what, state: Option<usize>| match state {
            Some(len) => check_len(what, self.state_len(), len),
            None => Ok(()),
        };
        state("the gradient of the last state", inputs.last.map(<[f32]>::len))?;
        state("the gradient of the initial state", gradients.initial.as_ref().map(|state| state.len()))?;
        inputs.initial.map_or(Ok(()), |initial| self.check_state(initial, 0..self.all_heads()))
    }
}

/// Multiply-adds that are worth a thread.
const GRAIN: usize = 1 << 20;
