//! A smoke test of the kernels on a GPU, which takes seconds: it runs each entry of the PTX once, on cases
//! that are small enough for compute-sanitizer, and fails if a number is wrong or missing.
//!
//! ```sh
//! cargo run --release --features cuda --example cuda_smoke
//! ```
//!
//! It covers every type, both precisions, K of 64, 128 and 256 and a little less, and every normaliser. Each
//! case consists of two pieces of a sequence on a carried state, the second of which ends within a tile, and
//! a decoded token. Then there are sequences in segments, and a model.

#[path = "../tests/common/mod.rs"]
mod common;

use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use chunkwise::cuda::{self, Attention, Buffer, DecodeStep, Device, Forward, Precision, State, Stream};
use chunkwise::nn::{self, BlockWeights, ModelConfig, OutputMode, Weights};
use chunkwise::{Config, FeatureMap, Normaliser, Rule, Shape};
use common::{Case, MAPS, NORM_ERROR, Number, narrow, norm_error, normals, with};
use half::{bf16, f16};

/// The tokens at which pieces end: two pieces, and one token that is decoded.
const PIECES: [usize; 3] = [70, 129, 130];

/// The number of comparisons, the worst error relative to what is allowed, with the name of its case, and the
/// descriptions of errors.
#[derive(Default)]
struct Report {
    compared: usize,
    worst: (f64, String),
    wrong: Vec<String>,
}

impl Report {
    fn compare(&mut self, what: &str, error: f64, allowed: f64) {
        self.compared += 1;
        if error / allowed > self.worst.0 {
            self.worst = (error / allowed, what.into());
        }
        // `norm_error` is infinite if anything is NaN.
        if error > allowed {
            self.wrong.push(format!("{what}: off by {error:.1e}, allowed {allowed:.1e}"));
        }
    }

    fn add(&mut self, other: Self) {
        self.compared += other.compared;
        if other.worst.0 > self.worst.0 {
            self.worst = other.worst;
        }
        self.wrong.extend(other.wrong);
    }
}

/// The norm errors that are allowed for outputs and for the state. In f32 this is the documented one. Numbers
/// that are represented by two numbers of bf16 have an error of 2^-16, and outputs are rounded to their type.
/// With `Bf16Dot`, phi, v, scores and S are rounded to bf16 for the products.
fn allowed<E: Number>(precision: Precision) -> (f64, f64) {
    let (unit, sums) = match E::NAME {
        "bf16" => (2f64.powi(-9), 2f64.powi(-16)),
        "f16" => (2f64.powi(-12), 2f64.powi(-16)),
        _ => (0.0, NORM_ERROR),
    };
    let sums = if precision == Precision::Bf16Dot { 2f64.powi(-8) } else { sums };
    (unit + sums, sums)
}

/// A device and a precision.
#[derive(Clone, Copy)]
struct Run<'a> {
    device: &'a Device,
    precision: Precision,
}

impl Run<'_> {
    /// The kind of products, for messages.
    fn products(&self) -> String {
        let wgmma = self.precision == Precision::Bf16Dot && self.device.has_wgmma();
        format!("{:?}{}", self.precision, if wgmma { " by wgmma" } else { "" })
    }

    /// Compares a sequence with the oracle, in pieces that end at `ends`; a piece of one token is decoded.
    fn attention<E: Number>(&self, config: Config, ends: &[usize], segments: usize) -> cuda::Result<Report> {
        let Self { device, precision } = *self;
        let case = Case::new(config, 1);
        let rounded = |x: &[f32]| narrow::<E>(x).into_iter().map(E::widen).collect::<Vec<_>>();
        let case = Case { q: rounded(&case.q), k: rounded(&case.k), v: rounded(&case.v), ..case };
        let (want, want_state) = case.oracle();
        let upload = |x: &[f32]| Buffer::from_slice(device, &narrow::<E>(x));
        let (q, k, v, mut o) =
            (upload(&case.q)?, upload(&case.k)?, upload(&case.v)?, upload(&case.output())?);
        let shape = config.shape;
        let mut state = None;
        let mut from = 0;
        for &to in ends {
            let attention = Attention::new(device, with(config, |c| c.shape.len = to - from), precision)?;
            let attention = attention.with_segments(segments);
            assert_eq!(attention.segments(), segments, "segments");
            let state = match &mut state {
                Some(state) => state,
                none => none.insert(Buffer::<f32>::zeros(device, attention.state_len())?),
            }
            .slice_mut();
            let mut workspace = Buffer::from_slice(device, &vec![f32::NAN; attention.workspace_len()])?;
            let (q, k) =
                (q.slice().from(from * shape.q_strides.token), k.slice().from(from * shape.k_strides.token));
            let v = v.slice().from(from * shape.v_strides.token);
            let o = o.slice_mut().split_at(from * shape.o_strides.token).1;
            if to - from == 1 {
                attention.decode(DecodeStep { q, k, v, state, o }, Stream::DEFAULT)?;
            } else {
                let (state, workspace) = (State::Carried(state), workspace.slice_mut());
                attention.forward(Forward { q, k, v, state, o, workspace }, Stream::DEFAULT)?;
            }
            device.synchronize(Stream::DEFAULT)?;
            from = to;
        }
        let got: Vec<f32> = o.read(Stream::DEFAULT)?.into_iter().map(E::widen).collect();
        let got_state = state.map_or(Ok(Vec::new()), |state| state.read(Stream::DEFAULT))?;
        let (of_o, of_state) = allowed::<E>(precision);
        let name = format!(
            "{} {} K {} V {} {:?} {:?} in {segments}",
            E::NAME,
            self.products(),
            shape.key,
            shape.value,
            config.rule.feature_map,
            config.rule.normaliser
        );
        let mut report = Report::default();
        report.compare(&name, norm_error(&got, &want), of_o);
        report.compare(&format!("{name}, the state"), norm_error(&got_state, &want_state), of_state);
        Ok(report)
    }

    /// Compares a small model with weights in one type with the CPU's.
    fn model<E: Number>(&self) -> cuda::Result<Report> {
        let (batch, len) = (2, 33);
        let output_mode = OutputMode::Mean;
        let config =
            ModelConfig { hidden_size: 48, num_heads: 3, num_layers: 2, output_mode, ..ModelConfig::new(10) };
        let mut flat = vec![0.0; config.parameters_len()];
        nn::init::init(&config, 3, &mut flat)?;
        let flat = narrow::<E>(&flat);
        let mut blocks = vec![BlockWeights::EMPTY; config.num_layers];
        let model = nn::Model::new(config, Weights::from_flat(&config, &flat, &mut blocks)?, None, 1)?;
        let input = normals(1, batch * len * config.embed_dim);
        let mut want = vec![0.0; model.output_len(batch, len)];
        model.forward(batch, len, &input, &mut want, &mut vec![0.0; model.scratch_len(batch, len)?])?;
        let want: Vec<f64> = want.into_iter().map(f64::from).collect();
        let got = cuda::Model::new(self.device, &model, self.precision)?.run(batch, len, &input)?;
        let mut report = Report::default();
        let allowed = if self.precision == Precision::Bf16Dot { 2e-2 } else { 5e-6 };
        report.compare(&format!("model, {} {}", E::NAME, self.products()), norm_error(&got, &want), allowed);
        Ok(report)
    }

    /// Runs all cases in one type.
    fn all<E: Number>(&self) -> cuda::Result<Report> {
        let config = |[len, key, value]: [usize; 3], normaliser, map: FeatureMap| {
            Config::new(Rule::linear(normaliser).feature_map(map), Shape::new(1, len, 2, key, value))
        };
        let normalisers =
            |chunk| [Normaliser::None, Normaliser::Global { eps: 1e-6 }, Normaliser::per_chunk(chunk)];
        let mut report = self.model::<E>()?;
        for (at, key) in [64, 128, 256].into_iter().enumerate() {
            // Rows of whole 16 bytes with chunks of one tile, and neither.
            for (key, value, chunk) in [(key, 64, 64), (key - 3, 33, 20)] {
                for (more, normaliser) in normalisers(chunk).into_iter().enumerate() {
                    let config = config([PIECES[2], key, value], normaliser, MAPS[(at + more) % 3]);
                    report.add(self.attention::<E>(config, &PIECES, 1)?);
                }
            }
        }
        for normaliser in normalisers(16) {
            report.add(self.attention::<E>(config([520, 64, 64], normaliser, FeatureMap::Elu), &[520], 2)?);
        }
        Ok(report)
    }
}

fn main() -> ExitCode {
    let begin = Instant::now();
    let device = match Device::open(0) {
        Ok(device) => device,
        Err(error) => {
            eprintln!("cuda_smoke: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("{device:?}, {} multiprocessors", device.multiprocessors());
    // The cases run on several threads, because the driver compiles each kernel at its first use.
    let report = Mutex::new(Report::default());
    let add = |name: &str, run: Run, part: cuda::Result<Report>| {
        let failed = |error| vec![format!("{name} {}: {error}", run.products())];
        let part = part.unwrap_or_else(|error| Report { wrong: failed(error), ..Report::default() });
        report.lock().expect("no panic").add(part);
    };
    let add = &add;
    let mut runs = vec![(device.clone(), Precision::F32), (device.clone(), Precision::Bf16Dot)];
    if device.has_wgmma() {
        // These are the kernels of older GPUs.
        runs.push((device.without_wgmma(), Precision::Bf16Dot));
    }
    std::thread::scope(|scope| {
        for (device, precision) in &runs {
            let run = Run { device, precision: *precision };
            scope.spawn(move || add("f32", run, run.all::<f32>()));
            scope.spawn(move || add("bf16", run, run.all::<bf16>()));
            scope.spawn(move || add("f16", run, run.all::<f16>()));
        }
    });
    let Report { compared, worst: (worst, whose), wrong } = report.into_inner().expect("no panic");
    for line in &wrong {
        println!("WRONG: {line}");
    }
    println!(
        "{compared} results compared, {} wrong, the worst error {worst:.2} of what is allowed ({whose}), {:.1} s",
        wrong.len(),
        begin.elapsed().as_secs_f64()
    );
    if compared > 0 && wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
