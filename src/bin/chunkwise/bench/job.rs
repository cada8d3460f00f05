//! A measurement made ready: the work, how much of what it needs, and how far its answer is off.

use std::time::Instant;

use chunkwise::nn::{Model, ModelConfig};
use chunkwise::{Config, Isa};
use half::{bf16, f16};

use super::ceiling::{Level, What, level_of};
use super::spec::{Dtype, Map, Norm, Op, Packing, Products, Shape, Spec};
use super::work::{Case, Error, Mapped, Number, Product, Run, Untrained, model_flops, norm_error};
use crate::exact;

pub(super) struct Job {
    pub(super) spec: Spec,
    run: Box<dyn FnMut()>,
    /// Runs in a reading.
    pub(super) times: usize,
    /// Of one run; no one counts those of a feature map.
    pub(super) flops: Option<f64>,
    /// That one run can't do without moving.
    pub(super) bytes: f64,
    /// Of one run; rows, for tile and feature-map.
    pub(super) tokens: f64,
    /// Where the bytes come from and go to.
    pub(super) memory: What,
    pub(super) error: Error,
    /// Seconds of one run.
    pub(super) readings: Vec<f64>,
}

/// Seconds that a reading takes at least.
const READING: f64 = 2e-3;
/// Tokens that are checked of a decode and of a model: a chunk of 64 and some of the next.
const CHECKED: usize = 80;
/// Norm error of a model against f64.
const MODEL_BOUND: f64 = 1e-5;

type Made<T> = Result<T, Box<dyn std::error::Error>>;

impl Job {
    /// Makes everything ready, and computes the error.
    pub(super) fn new(spec: &Spec, levels: &[Level]) -> Made<Self> {
        match spec.dtype {
            Dtype::F32 => Self::of::<f32>(spec, levels),
            Dtype::Bf16 => Self::of::<bf16>(spec, levels),
            Dtype::F16 => Self::of::<f16>(spec, levels),
        }
    }

    fn of<E: Number>(spec: &Spec, levels: &[Level]) -> Made<Self> {
        let isa = Isa::from_name(&spec.isa)?;
        let Shape { batch, heads, len, key, value } = spec.shape;
        let map = spec.map.unwrap_or(Map::Identity).into();
        let config = Config {
            feature_map: map,
            // fla's scale where nothing divides the outputs, which f16 could not hold otherwise.
            scale: if spec.norm == Some(Norm::None) { (key as f32).sqrt().recip() } else { 1.0 },
            precision: spec.precision.unwrap_or(Products::F32).into(),
            isa: Some(isa),
            threads: spec.threads,
            ..Config::new(batch, len, heads, key, value, spec.normaliser())
        };
        let own = |bytes: f64| What::Update { of: "state".into(), bytes: bytes as usize };
        let job = |run, error, flops, bytes, tokens, memory| Self {
            spec: spec.clone(),
            run,
            times: 1,
            flops,
            bytes,
            tokens: tokens as f64,
            memory,
            error,
            readings: Vec::new(),
        };
        let mut job = match spec.op {
            Op::Prefill => {
                let mut case = Case::<E>::new(config)?;
                let (error, flops, bytes) =
                    (case.forward_error(), case.recurrent_flops(), case.tensor_bytes());
                let run = Box::new(move || case.forward());
                job(run, error, Some(flops), bytes, batch * len, level_of(levels, bytes))
            }
            Op::Decode => {
                let many = Config::new(batch, CHECKED, heads, key, value, config.normaliser);
                let Config { q_strides, k_strides, v_strides, o_strides, .. } = many;
                let many = Config { len: CHECKED, q_strides, k_strides, v_strides, o_strides, ..config };
                let error = Case::<E>::new(many)?.decode_error();
                let mut case = Case::<E>::new(config)?;
                let (flops, bytes) = (case.recurrent_flops(), case.state_bytes());
                let run = Box::new(move || case.decode());
                job(run, error, Some(flops), bytes, batch, own(bytes / 2.0))
            }
            Op::Model | Op::Step => {
                let config = model_config(spec)?;
                // For the program's life: a model borrows its weights.
                let untrained: &'static _ = Box::leak(Box::new(Untrained::<E>::new(config)?));
                let model = match spec.weights {
                    Some(Packing::Packed) => untrained.packed(isa, spec.threads)?,
                    _ => untrained.model(untrained.blocks().leak(), isa, spec.threads)?,
                };
                let error = model_error(&model, spec.op, len)?;
                let mut run = Run::new(model, batch, len)?;
                let (weights, tokens) = (untrained.weights_bytes(), batch * len);
                let run: Box<dyn FnMut()> = match spec.op {
                    Op::Model => Box::new(move || run.forward()),
                    _ => Box::new(move || run.step()),
                };
                let memory = What::Read { of: "weights".into(), bytes: weights as usize };
                job(run, error, Some(model_flops(&config, tokens)), weights, tokens, memory)
            }
            Op::Tile => {
                let mut product = Product::new(isa, key, value);
                let (error, flops, bytes) = (product.error(), product.flops(), product.bytes());
                let run = Box::new(move || product.run());
                job(run, error, Some(flops), bytes, len, level_of(levels, bytes))
            }
            Op::FeatureMap => {
                let rows = batch * heads * len;
                let mut mapped = Mapped::<E>::new(isa, map, rows, key);
                let (error, bytes) = (mapped.error(), mapped.bytes());
                let run = Box::new(move || mapped.run());
                job(run, error, None, bytes, rows, level_of(levels, bytes))
            }
        };
        job.times = (READING / job.seconds()).ceil().max(1.0) as usize;
        Ok(job)
    }

    /// Of `times` runs, each.
    fn seconds(&mut self) -> f64 {
        // What others left in the caches is no part of it.
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

/// The model of a shape, the rest of it by default; without an input projection.
fn model_config(spec: &Spec) -> Made<ModelConfig> {
    let Shape { heads, key, value, .. } = spec.shape;
    if key != value {
        return Err("a model has K = V".into());
    }
    let hidden_size = heads.checked_mul(key).ok_or("the shape is too large")?;
    let mut config = ModelConfig { hidden_size, num_heads: heads, ..ModelConfig::new(hidden_size) };
    if let Some(chunk) = spec.chunk {
        (config.chunk_size, config.seq_len) = (chunk, chunk);
    }
    config.feature_map = spec.map.unwrap_or(Map::Elu).into();
    Ok(config)
}

/// Against the model in f64, on the first tokens of the first sequence.
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
