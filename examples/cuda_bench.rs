//! How fast a GPU is at attention beside what its memory allows: `cargo run --release --features cuda --example cuda_bench`.
//!
//! Times are the clock's, over launches that are queued and waited for together; the median and the least of some rounds, in
//! which all lines take turns. TB/s are of the bytes that must be moved at least: q, k, v and o once, and for one token the state
//! there and back. With `quick` shapes are small, to see that it runs.

use std::time::Instant;

use chunkwise::cuda::{Attention, Buffer, DecodeStep, Device, Forward, Precision, Result, State, Stream};
use chunkwise::{Config, Normaliser, Rule, Shape};
use half::bf16;

/// One line: what is run, and the bytes that it must move.
struct Line {
    name: String,
    bytes: usize,
    times: Vec<f64>,
    attention: Attention,
    q: Buffer<bf16>,
    k: Buffer<bf16>,
    v: Buffer<bf16>,
    o: Buffer<bf16>,
    state: Buffer,
    workspace: Buffer,
    decode: bool,
}

impl Line {
    fn new(device: &Device, shape: Shape, precision: Precision, decode: bool) -> Result<Self> {
        let Shape { batch, len, heads, key, value, .. } = shape;
        let config = Config::new(Rule::linear(Normaliser::None), shape);
        let attention = Attention::new(device, config, precision)?;
        let rows = batch * len * heads;
        // Small numbers of both signs.
        let tensor = |dim: usize| {
            let numbers = (0..rows * dim).map(|i| bf16::from_f32(((i * 37) % 101) as f32 / 50.0 - 1.0));
            Buffer::from_slice(device, &numbers.collect::<Vec<_>>())
        };
        let state_bytes = 4 * attention.state_len();
        let tensors = 2 * rows * 2 * (key + value);
        Ok(Self {
            name: format!(
                "{} {precision:?} B={batch} T={len} H={heads} K={key} V={value}, {} segments",
                if decode { "decode" } else { "prefill" },
                attention.segments()
            ),
            bytes: tensors + if decode { 2 * state_bytes } else { 0 },
            times: Vec::new(),
            q: tensor(key)?,
            k: tensor(key)?,
            v: tensor(value)?,
            o: tensor(value)?,
            state: Buffer::zeros(device, if decode { attention.state_len() } else { 0 })?,
            workspace: Buffer::zeros(device, attention.workspace_len())?,
            attention,
            decode,
        })
    }

    fn launch(&mut self) -> Result<()> {
        let (q, k, v, o) = (self.q.slice(), self.k.slice(), self.v.slice(), self.o.slice_mut());
        if self.decode {
            return self
                .attention
                .decode(DecodeStep { q, k, v, state: self.state.slice_mut(), o }, Stream::DEFAULT);
        }
        let workspace = self.workspace.slice_mut();
        self.attention.forward(Forward { q, k, v, state: State::Zero, o, workspace }, Stream::DEFAULT)
    }

    /// Microseconds of one launch, by so many.
    fn time(&mut self, device: &Device, launches: usize) -> Result<f64> {
        device.synchronize(Stream::DEFAULT)?;
        let begin = Instant::now();
        for _ in 0..launches {
            self.launch()?;
        }
        device.synchronize(Stream::DEFAULT)?;
        Ok(begin.elapsed().as_secs_f64() * 1e6 / launches as f64)
    }
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|argument| argument == "quick");
    let (rounds, launches) = if quick { (1, 1) } else { (15, 20) };
    let device = Device::open(0)?;
    println!("{device:?}, {} multiprocessors", device.multiprocessors());
    let scale = |n: usize| if quick { (n / 64).max(1) } else { n };
    let mut lines = Vec::new();
    for dim in [64, 128] {
        for precision in [Precision::Bf16Dot, Precision::F32] {
            for (batch, len) in [(scale(8), scale(4096)), (1, scale(16384))] {
                let shape = Shape::new(batch, len, scale(16), dim, dim);
                lines.push(Line::new(&device, shape, precision, false)?);
            }
        }
        let shape = Shape::new(scale(256), 1, scale(16), dim, dim);
        lines.push(Line::new(&device, shape, Precision::F32, true)?);
    }
    for line in &mut lines {
        line.time(&device, 2)?;
    }
    for _ in 0..rounds {
        for line in &mut lines {
            let time = line.time(&device, launches)?;
            line.times.push(time);
        }
    }
    println!("{:>10} {:>10} {:>10}", "median us", "least us", "TB/s");
    for line in &mut lines {
        line.times.sort_by(f64::total_cmp);
        let (median, least) = (line.times[line.times.len() / 2], line.times[0]);
        println!("{median:10.1} {least:10.1} {:10.2}  {}", line.bytes as f64 / median / 1e6, line.name);
    }
    Ok(())
}
