//! `run`: runs a model on an input.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chunkwise::files::{self, Options, Tensor, Tensors};
use chunkwise::nn::{AttentionKind, Model, ModelConfig};

use super::compare::Distance;
use super::gpu::{Ran, on_gpu};
use super::load::{Flags, Source};
use super::machine::{Device, Machine, device, pretty};
use super::out::Out;
use super::target::Target;
use super::{Outcome, Verdict, demo, memory, recompute};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Safetensors file of the model, with the reference's names of parameters
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// File with the input [default: the model file]
    #[arg(long, value_name = "FILE", requires = "model")]
    input: Option<PathBuf>,
    /// Name of the input, [B, T, embed] or [T, embed], in that file [default: input]
    #[arg(long, value_name = "NAME", requires = "model")]
    tensor: Option<String>,
    /// File to write `output` to, and `logits` if the model has a head
    #[arg(long, value_name = "FILE", requires = "model")]
    output: Option<PathBuf>,
    /// Run one time step at a time
    #[arg(long, requires = "model")]
    stream: bool,
    /// Device to run on: cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = device, conflicts_with = "stream")]
    device: Device,
    #[command(flatten)]
    machine: Machine,
    #[command(
        flatten,
        next_help_heading = "Options of the model (these override --config, which overrides the file)"
    )]
    flags: Flags,
}

pub(crate) fn run(args: &Args, out: &mut Out) -> Outcome {
    let Some(path) = &args.model else { return demo::run(&args.machine, args.device, out) };
    let source = Source::new(path, files::read(path)?, args.flags.weights.as_deref(), args.flags.options()?)?;
    let mut inputs: Vec<&Path> = source.paths().collect();
    inputs.extend([&args.flags.config, &args.input].into_iter().flatten().map(|path| &**path));
    let target = args.output.as_ref().map(|path| Target::new(path, &inputs)).transpose()?;
    let model_file = source.model()?;
    let mut blocks = Vec::new();
    let threads = args.machine.threads.count();
    let model = model_file.model(&mut blocks, args.machine.isa, threads)?;

    let input_path = args.input.as_ref().unwrap_or(path);
    let other = args.input.as_ref().map(files::read).transpose()?;
    let tensors = match &other {
        Some(bytes) => Tensors::parse(bytes).map_err(|error| error.in_file(input_path))?,
        None => source.tensors()?,
    };
    let name = args.tensor.as_deref().unwrap_or("input");
    let input = tensors.tensor(name).map_err(|error| error.in_file(input_path))?;

    let [batch, len] = recompute::sizes(&input);
    memory::check_run(&model, batch, len).map_err(|error| error.in_file(input_path))?;
    let ran = match args.device {
        Device::Cpu => on_cpu(&model, &input, args.stream, threads),
        Device::Cuda(number) => on_gpu(&model, &input, number),
    };
    let (output, time, place) = ran.map_err(|error| error.in_file(input_path))?;
    let logits = files::logits(&model, &output)?;

    writeln!(out, "model   {}", describe(model.config(), source.options()))?;
    writeln!(out, "input   {name} {:?}", input.shape)?;
    writeln!(out, "time    {}, {place}", speed(&model, args.stream, &input, time))?;
    let mut results = vec![("output", &output)];
    results.extend(logits.as_ref().map(|logits| ("logits", logits)));
    for (name, result) in &results {
        writeln!(out, "{name}  {:?} {}", result.shape, first_values(result))?;
        // The stored results are those of the stored input, so they are not compared for another one.
        if args.tensor.is_none() && tensors.shape(name).is_some() {
            writeln!(out, "        {}", against_stored(result, &tensors.tensor(name)?))?;
        }
    }
    if let (Some(target), Some(path)) = (target, &args.output) {
        target.write(&files::serialize(&results)?)?;
        writeln!(out, "written {}", path.display())?;
    }
    Ok(Verdict::Pass)
}

fn describe(config: &ModelConfig, given: &Options) -> String {
    let ModelConfig { embed_dim, hidden_size, num_heads, num_layers, output_mode, .. } = config;
    let attention = match config.attention {
        AttentionKind::Lightning => "Lightning".into(),
        _ => format!("{:?}", config.feature_map),
    };
    let chunk = config.chunk();
    let bounded = match given.chunk_size {
        Some(size) if size != chunk => format!(" (chunk_size {size}, but seq_len {chunk})"),
        _ => String::new(),
    };
    format!(
        "embed {embed_dim}, hidden {hidden_size}, {num_heads} heads, {num_layers} layers, chunk {chunk}{bounded}, \
         {attention}, {output_mode:?}, {} parameters",
        config.parameters_len()
    )
}

fn speed(model: &Model<'_>, stream: bool, input: &Tensor<'_>, time: Duration) -> String {
    let tokens = input.data.len() / model.config().embed_dim;
    let each = time / u32::try_from(tokens.max(1)).unwrap_or(u32::MAX);
    let how = if stream { "step by step" } else { "at once" };
    format!("{}, {} per token, {how}", pretty(time), pretty(each))
}

fn on_cpu(model: &Model<'_>, input: &Tensor<'_>, stream: bool, threads: usize) -> files::Result<Ran> {
    let begin = Instant::now();
    let output = if stream { files::stream(model, input) } else { files::forward(model, input) };
    Ok((output?, begin.elapsed(), format!("{}, up to {threads} threads", model.isa())))
}

fn first_values(tensor: &Tensor<'_>) -> String {
    const SHOWN: usize = 6;
    let values: Vec<_> = tensor.data.iter().take(SHOWN).map(|x| format!("{x:.6}")).collect();
    values.join(" ") + if tensor.data.len() > SHOWN { " ..." } else { "" }
}

fn against_stored(result: &Tensor<'_>, stored: &Tensor<'_>) -> String {
    if result.shape == stored.shape {
        format!("from the stored one: {}", Distance::new(&result.data, &stored.data))
    } else {
        format!("not compared with the stored one, whose shape is {:?}", stored.shape)
    }
}
