//! `run` without a model: a small built-in model, trained on real data, classifies 360 digits with which it
//! was not trained.

use std::io::Write;
use std::time::{Duration, Instant};

use chunkwise::files::{self, ModelFile, Options, Tensor};
use chunkwise::nn::{Model, ModelConfig};

use super::compare::Distance;
use super::gpu::on_gpu;
use super::machine::{Device, Machine, pretty};
use super::out::Out;
use super::{Outcome, Verdict};

/// The model, and UCI handwritten digits (CC BY 4.0, E. Alpaydin and C. Kaynak). A digit is a sequence of 64
/// tokens, one for each pixel.
static DIGITS: &[u8] = include_bytes!("digits.safetensors");
/// The largest distance that is allowed to the stored logits, which were computed in f64.
const ALLOWED: f64 = 5e-5;
const SIDE: usize = 8;

pub(crate) fn run(machine: &Machine, device: Device, out: &mut Out) -> Outcome {
    let file = ModelFile::parse(DIGITS, &Options::default())?;
    let (input, labels, want) = (file.tensor("input")?, file.tensor("labels")?, file.tensor("logits")?);
    let mut blocks = Vec::new();
    let model = file.model(&mut blocks, machine.isa, machine.threads.count())?;

    let begin = Instant::now();
    let output = files::forward(&model, &input)?;
    let batch = begin.elapsed();
    let logits = files::logits(&model, &output)?.ok_or("the built-in model has no head")?;
    let answers = answers(&logits);
    let by_forward = one_by_one(&model, &input, files::forward)?;
    let by_step = one_by_one(&model, &input, files::stream)?;

    let gpu = match device {
        Device::Cpu => None,
        Device::Cuda(number) => Some(by_gpu(&model, &input, &want, number)?),
    };

    let digits = answers.len();
    let right = |(answer, label): (&usize, &f32)| *answer as f32 == *label;
    let count = answers.iter().zip(&*labels.data).filter(|pair| right(*pair)).count();
    let wrong = answers.iter().zip(&*labels.data).position(|pair| !right(pair));
    let shown: Vec<usize> = (0..3.min(digits)).chain(wrong.filter(|at| *at >= 3)).collect();
    let distance = Distance::new(&logits.data, &want.data);
    let same = |others: &[usize]| if others == answers { "the same answers" } else { "OTHER ANSWERS" };
    let all_well = distance.max_abs <= ALLOWED
        && [&self::answers(&want), &by_forward.answers, &by_step.answers]
            .iter()
            .all(|others| **others == answers)
        && gpu.iter().all(|gpu| gpu.answers == answers && gpu.distance <= ALLOWED);

    writeln!(out, "{} classifies handwritten digits, one pixel per token.\n", described(model.config()))?;
    draw(out, &input, &shown, &answers, &labels.data)?;
    let each = |time: Duration| pretty(time / digits.max(1) as u32);
    writeln!(out, "accuracy   {count} of {digits} right, {:.2} %", 100.0 * count as f64 / digits as f64)?;
    writeln!(
        out,
        "logits     max abs distance to the stored logits {:.1e}, allowed {ALLOWED:.0e}; {}",
        distance.max_abs,
        same(&self::answers(&want))
    )?;
    writeln!(
        out,
        "forward    {} per digit, {} per digit in one batch; {}",
        each(by_forward.time),
        each(batch),
        same(&by_forward.answers)
    )?;
    let pixel = by_step.time / (digits * SIDE * SIDE).max(1) as u32;
    writeln!(
        out,
        "step       {} per digit, {} per pixel; {}",
        each(by_step.time),
        pretty(pixel),
        same(&by_step.answers)
    )?;
    if let Some(ByGpu { answers, distance, time, name }) = &gpu {
        let (time, same) = (each(*time), same(answers));
        writeln!(
            out,
            "GPU        {time} per digit in one batch, logits within {distance:.1e}; {same}; {name}"
        )?;
    }
    writeln!(out, "runs on    {}", model.isa())?;
    writeln!(out, "{}", if all_well { "pass" } else { "FAIL" })?;
    Ok(if all_well { Verdict::Pass } else { Verdict::Fail })
}

fn described(config: &ModelConfig) -> String {
    let (parameters, chunk) = (config.parameters_len(), config.chunk());
    let ModelConfig { hidden_size, num_heads, num_layers, .. } = config;
    format!(
        "A model with {parameters} parameters (hidden {hidden_size}, {num_heads} heads, {num_layers} layers, chunk {chunk})"
    )
}

struct ByGpu {
    answers: Vec<usize>,
    /// The largest distance of a logit to the stored one.
    distance: f64,
    time: Duration,
    name: String,
}

fn by_gpu(
    model: &Model<'_>,
    input: &Tensor<'_>,
    want: &Tensor<'_>,
    number: usize,
) -> Result<ByGpu, Box<dyn std::error::Error>> {
    let (output, time, name) = on_gpu(model, input, number)?;
    let logits = files::logits(model, &output)?.ok_or("the built-in model has no head")?;
    let distance = Distance::new(&logits.data, &want.data).max_abs;
    Ok(ByGpu { answers: answers(&logits), distance, time, name })
}

struct OneByOne {
    answers: Vec<usize>,
    time: Duration,
}

type Run = fn(&Model<'_>, &Tensor<'_>) -> files::Result<Tensor<'static>>;

/// Runs each digit by itself, as if digits arrived one at a time.
fn one_by_one(model: &Model<'_>, input: &Tensor<'_>, run: Run) -> files::Result<OneByOne> {
    let [_, len, embed] = input.shape[..] else {
        return Ok(OneByOne { answers: Vec::new(), time: Duration::ZERO });
    };
    let mut all = OneByOne { answers: Vec::new(), time: Duration::ZERO };
    for digit in input.data.chunks_exact(len * embed) {
        let digit = Tensor { shape: vec![len, embed], data: digit.into() };
        let begin = Instant::now();
        let output = run(model, &digit)?;
        all.time += begin.elapsed();
        all.answers.extend(files::logits(model, &output)?.iter().flat_map(answers));
    }
    Ok(all)
}

/// The index of the largest element of each row.
fn answers(logits: &Tensor<'_>) -> Vec<usize> {
    let columns = logits.shape.last().copied().unwrap_or(1).max(1);
    let rows = logits.data.chunks_exact(columns);
    rows.map(|row| (0..columns).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap_or(0)).collect()
}

/// Draws digits side by side, with two characters for each pixel.
fn draw(
    out: &mut Out,
    input: &Tensor<'_>,
    shown: &[usize],
    answers: &[usize],
    labels: &[f32],
) -> std::io::Result<()> {
    const INK: [char; 6] = [' ', '.', ':', 'o', 'O', '@'];
    let embed = input.shape.last().copied().unwrap_or(1);
    for y in 0..SIDE {
        let line: String = shown
            .iter()
            .map(|digit| {
                // The first element of a token is the pixel, from 0 to 1; the others are its position.
                let pixel = |x: usize| input.data[(digit * SIDE * SIDE + y * SIDE + x) * embed];
                let ink = |x: usize| INK[(pixel(x) * (INK.len() - 1) as f32).round() as usize % INK.len()];
                (0..SIDE).flat_map(|x| [ink(x); 2]).chain([' '; 4]).collect::<String>()
            })
            .collect();
        writeln!(out, "{}", line.trim_end())?;
    }
    let captions = shown
        .iter()
        .map(|digit| format!("{:<20}", format!("read {}, is {}", answers[*digit], labels[*digit])));
    writeln!(out, "{}\n", captions.collect::<String>().trim_end())
}
