//! A measurement that is ready to run: the work, the resources that it needs, and the error of its results.

use std::time::Instant;

use chunkwise::nn::{Model, ModelConfig};
use chunkwise::{Attention, Config, Gate, Isa, Rule, Strides};
use half::{bf16, f16};

use super::super::{exact, memory};
use super::ceiling::{Level, What, level_of};
use super::gradients::Training;
use super::numbers::{Error, Number, norm_error};
use super::shape::Shape;
use super::spec::{Dtype, Map, Norm, Op, Packing, RuleName, Spec};
use super::untrained::{ModelFlops, Run, Untrained};
use super::work::Case;

pub(super) struct Job {
    pub(super) spec: Spec,
    run: Box<dyn FnMut()>,
    /// The number of runs in a reading.
    pub(super) times: usize,
    /// The flops that one run executes.
    pub(super) flops: f64,
    /// The flops of the recurrence in one run of attention: 4 K V for each token and head, 6 K V with the
    /// delta rule, 16 K V with a backward.
    pub(super) recurrent_flops: Option<f64>,
    /// The bytes that one run must move.
    pub(super) bytes: f64,
    /// The tokens of one run.
    pub(super) tokens: f64,
    /// The memory that the bytes come from and go to.
    pub(super) memory: What,
    pub(super) error: Error,
    /// The seconds of one run, by reading.
    pub(super) readings: Vec<f64>,
}

/// The least number of seconds that a reading takes.
const READING: f64 = 2e-3;
/// The number of tokens for which decode and models are checked: a chunk of 64 and a part of the next one.
/// Fewer are checked where a model runs on fewer.
const CHECKED: usize = 80;
/// The largest norm error allowed for a model against f64.
const MODEL_BOUND: f64 = 1e-5;

/// The most bytes that one element of q, k, v or o takes: its own, those of its gradient, those of copies in f32
/// while the numbers are made, and those of the oracle while the results are compared.
const BYTES: usize = 32;
/// The most bytes that one parameter of a model takes: as it is stored, in f32 while it is made, packed, and
/// in f64.
const PARAMETER_BYTES: usize = 20;

/// Checks that a spec can be measured, as far as its sizes show: they do not overflow, and there is memory
/// for them.
pub(super) fn check(spec: &Spec) -> Made<()> {
    match spec.op {
        Op::Backward if !matches!(spec.rule, None | Some(RuleName::Decay | RuleName::ScalarGate)) => {
            Err("backward takes only linear attention, without a gate or with a scalar one".into())
        }
        Op::Prefill | Op::Backward => attention_fits(&config(spec, spec.shape.len)?),
        Op::Decode => attention_fits(&config(spec, CHECKED)?),
        Op::Draft if spec.shape.len > Attention::MAX_DRAFT => {
            Err(format!("a draft has at most {} tokens", Attention::MAX_DRAFT).into())
        }
        Op::Draft => attention_fits(&config(spec, spec.shape.len)?),
        Op::Model | Op::Step => {
            let (config, Shape { batch, len, .. }) = (model_config(spec)?, spec.shape);
            config.check()?;
            memory::check(config.parameters_len().checked_mul(PARAMETER_BYTES))?;
            Ok(memory::check(memory::product([batch, len, config.hidden_size, BYTES]))?)
        }
    }
}

fn attention_fits(config: &Config) -> Made<()> {
    let (attention, chunkwise::Shape { batch, len, heads, key, value, .. }) =
        (Attention::new(*config)?, config.shape);
    // A key gate has as many elements as q would have with all heads.
    let rows = if config.rule.gate == Gate::Key { 3 } else { 2 };
    let tensors =
        key.checked_add(value).and_then(|dims| memory::product([batch, len, heads, dims, rows, BYTES]));
    // The state, and as much memory again for the ceiling that updates memory.
    let scratch =
        attention.scratch_len().max(attention.decode_scratch_len()).max(attention.backward_scratch_len());
    let own =
        attention.state_len().checked_mul(2).and_then(|state| state.checked_add(scratch)?.checked_mul(4));
    Ok(memory::check(tensors.zip(own).and_then(|(tensors, own)| tensors.checked_add(own)))?)
}

type Made<T> = Result<T, Box<dyn std::error::Error>>;

impl Job {
    /// Prepares everything, and computes the error.
    pub(super) fn new(spec: &Spec, levels: &[Level]) -> Made<Self> {
        match spec.dtype {
            Dtype::F32 => Self::of::<f32>(spec, levels),
            Dtype::Bf16 => Self::of::<bf16>(spec, levels),
            Dtype::F16 => Self::of::<f16>(spec, levels),
        }
    }

    fn of<E: Number>(spec: &Spec, levels: &[Level]) -> Made<Self> {
        // The check is repeated, because there is less memory than before other jobs were prepared.
        check(spec)?;
        let mut job = match spec.op {
            Op::Prefill => Self::prefill::<E>(spec, levels)?,
            Op::Backward => Self::backward::<E>(spec, levels)?,
            Op::Decode => Self::decode::<E>(spec)?,
            Op::Draft => Self::draft::<E>(spec)?,
            Op::Model | Op::Step => Self::model::<E>(spec)?,
        };
        job.times = (READING / job.seconds()).ceil().clamp(1.0, 1e9) as usize;
        Ok(job)
    }

    fn prefill<E: Number>(spec: &Spec, levels: &[Level]) -> Made<Self> {
        let mut case = Case::<E>::new(config(spec, spec.shape.len)?)?;
        let (error, bytes) = (case.forward_error(), case.tensor_bytes());
        Ok(Self {
            spec: spec.clone(),
            times: 1,
            flops: case.forward_flops(),
            recurrent_flops: Some(case.recurrent_flops()),
            bytes,
            tokens: (spec.shape.batch * spec.shape.len) as f64,
            memory: level_of(levels, bytes),
            error,
            run: Box::new(move || case.forward()),
            readings: Vec::new(),
        })
    }

    fn backward<E: Number>(spec: &Spec, levels: &[Level]) -> Made<Self> {
        let mut training = Training::<E>::new(config(spec, spec.shape.len)?)?;
        let (error, bytes) = (training.error()?, training.tensor_bytes());
        Ok(Self {
            spec: spec.clone(),
            times: 1,
            flops: training.flops(),
            recurrent_flops: Some(training.recurrent_flops()),
            bytes,
            tokens: (spec.shape.batch * spec.shape.len) as f64,
            memory: level_of(levels, bytes),
            error,
            run: Box::new(move || training.run().expect("lengths that fit")),
            readings: Vec::new(),
        })
    }

    fn decode<E: Number>(spec: &Spec) -> Made<Self> {
        let case = |len| -> Made<Case<E>> {
            Ok(Case::with_state_offset(config(spec, len)?, spec.state_offset.unwrap_or(0))?)
        };
        let error = case(CHECKED)?.decode_error();
        let mut case = case(1)?;
        Ok(Self {
            spec: spec.clone(),
            times: 1,
            flops: case.decode_flops(),
            recurrent_flops: Some(case.recurrent_flops()),
            bytes: case.state_bytes(),
            tokens: spec.shape.batch as f64,
            memory: What::Update { of: "state".into(), bytes: case.state_size() },
            error,
            run: Box::new(move || case.decode()),
            readings: Vec::new(),
        })
    }

    fn draft<E: Number>(spec: &Spec) -> Made<Self> {
        let offset = spec.state_offset.unwrap_or(0);
        let mut case = Case::<E>::with_state_offset(config(spec, spec.shape.len)?, offset)?;
        Ok(Self {
            spec: spec.clone(),
            times: 1,
            error: case.draft_error(),
            flops: case.draft_flops(),
            recurrent_flops: Some(case.recurrent_flops()),
            // The state is read, then read and written.
            bytes: case.state_size() as f64 + case.state_bytes(),
            tokens: (spec.shape.batch * spec.shape.len) as f64,
            memory: What::Update { of: "state".into(), bytes: case.state_size() },
            run: Box::new(move || case.draft()),
            readings: Vec::new(),
        })
    }

    fn model<E: Number>(spec: &Spec) -> Made<Self> {
        let (isa, Shape { batch, len, .. }) = (Isa::from_name(&spec.isa)?, spec.shape);
        let config = model_config(spec)?;
        // The memory is never freed, because a model borrows its weights.
        let untrained: &'static _ = Box::leak(Box::new(Untrained::<E>::new(config)?));
        let model = match spec.weights {
            Some(Packing::Packed) => untrained.packed(isa, spec.threads)?,
            _ => untrained.model(untrained.blocks().leak(), isa, spec.threads)?,
        };
        memory::check_run(&model, batch, len)?;
        let error = model_error(&model, spec.op, len)?;
        let mut run = Run::new(model, batch, len)?;
        let (weights, flops) = (untrained.weights_bytes(), ModelFlops { config: &config });
        let (flops, run): (_, Box<dyn FnMut()>) = match spec.op {
            Op::Step => (flops.step(batch), Box::new(move || run.step())),
            _ => (flops.forward(batch, len), Box::new(move || run.forward())),
        };
        Ok(Self {
            spec: spec.clone(),
            times: 1,
            flops,
            recurrent_flops: None,
            bytes: weights,
            tokens: (batch * len) as f64,
            memory: What::Read { of: "weights".into(), bytes: weights as usize },
            error,
            run,
            readings: Vec::new(),
        })
    }

    /// The seconds of one run, as the mean of `times` runs.
    fn seconds(&mut self) -> f64 {
        // The first run is not timed, so that a reading does not depend on what other work left in the
        // caches.
        (self.run)();
        let begin = Instant::now();
        for _ in 0..self.times {
            (self.run)();
        }
        begin.elapsed().as_secs_f64() / self.times as f64
    }

    /// Takes a reading.
    pub(super) fn measure(&mut self) {
        let seconds = self.seconds();
        self.readings.push(seconds);
    }
}

/// The attention of a shape, for `len` tokens.
fn config(spec: &Spec, len: usize) -> Made<Config> {
    let Shape { batch, heads, key, value, .. } = spec.shape;
    let linear = || {
        let rule = Rule::linear(spec.normaliser()).feature_map(spec.map.unwrap_or(Map::Identity).into());
        match spec.norm {
            // fla's scale is used where nothing divides the outputs, which would otherwise be too large for
            // f16.
            Some(Norm::None) => rule.scale((key as f32).sqrt().recip()),
            _ => rule,
        }
    };
    let rule = spec.rule.map_or_else(linear, |name| name.rule().scale_by_key(key));
    let mut shape = chunkwise::Shape::grouped(batch, len, spec.shape.groups(), key, value);
    if spec.rule == Some(RuleName::Decay) {
        shape = shape.with_gates(Strides::PER_HEAD, Strides::bthd(len, heads, 1));
    }
    Ok(Config::new(rule, shape).isa(Isa::from_name(&spec.isa)?).threads(spec.threads))
}

/// The model of a shape, with defaults for everything else, and without an input projection.
fn model_config(spec: &Spec) -> Made<ModelConfig> {
    let Shape { heads, key_heads, key, value, .. } = spec.shape;
    if key != value || key_heads.is_some() {
        return Err("a model has K = V, and as many heads of q and k as of v".into());
    }
    let hidden_size = heads.checked_mul(key).ok_or("the shape is too large")?;
    let mut config = ModelConfig { hidden_size, num_heads: heads, ..ModelConfig::new(hidden_size) };
    if let Some(chunk) = spec.chunk {
        (config.chunk_size, config.seq_len) = (chunk, chunk);
    }
    config.feature_map = spec.map.unwrap_or(Map::Elu).into();
    Ok(config)
}

/// The error against the model in f64, on the first tokens of the first sequence.
fn model_error(model: &Model<'_>, op: Op, len: usize) -> Made<Error> {
    let (input, output) = match op {
        Op::Step => Run::new(*model, 1, CHECKED)?.into_steps(),
        _ => Run::new(*model, 1, len.min(CHECKED))?.into_forward(),
    };
    let len = input.len() / model.config().embed_dim;
    let exact = exact::run(model.config(), model.weights(), len, &input);
    let want = exact.iter().find(|(name, _)| name == "output").map_or(&[][..], |(_, want)| want);
    Ok(Error { norm: norm_error(&output, want), allowed: MODEL_BOUND })
}
