//! The commands and their answers.

use std::collections::HashMap;
use std::error::Error;
use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use chunkwise::Isa;
use chunkwise::bench_support::start_threads;
use chunkwise::files::{self, ModelFile, Options};
use chunkwise::nn::{BlockWeights, Model};
use cpu_time::ProcessTime;
use half::{bf16, f16};
use serde_json::{Value, json};

use self::case::{Case, Load};

// The path is given because main.rs and a test include this file from different folders.
#[path = "case.rs"]
mod case;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Answers commands until `quit` or the end of the input. `dtype` is the type of peers whose names end with
/// no type.
pub(crate) fn serve(dtype: &str, input: impl BufRead, mut output: impl Write) -> std::io::Result<()> {
    let mut peers = HashMap::new();
    for line in input.lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        if words == ["quit"] {
            break;
        }
        let answer =
            answer(dtype, &mut peers, &words).unwrap_or_else(|error| json!({"error": error.to_string()}));
        writeln!(output, "{answer}")?;
        output.flush()?;
    }
    Ok(())
}

/// A computation that can be run repeatedly.
trait Peer {
    fn run(&mut self);
    /// The output of the last run.
    fn output(&self) -> Vec<f32>;
}

type Peers = HashMap<String, Box<dyn Peer>>;

fn answer(dtype: &str, peers: &mut Peers, words: &[&str]) -> Result<Value> {
    match words {
        ["load", name, path, mode, threads] => {
            let threads = pool(threads.parse()?)?;
            let dtype = ["bf16", "f16"]
                .into_iter()
                .find(|dtype| name.ends_with(&format!("_{dtype}")))
                .unwrap_or(dtype);
            let load = Load { folder: Path::new(path), mode, threads };
            let mut peer: Box<dyn Peer> = match (*mode, dtype) {
                ("e2e", _) => Box::new(EndToEnd::load(Path::new(path), threads)?),
                (_, "" | "f32") => Box::new(Case::load(&load, |x| x, |x: f32| x)?),
                (_, "bf16") => Box::new(Case::load(&load, bf16::from_f32, bf16::to_f32)?),
                (_, "f16") => Box::new(Case::load(&load, f16::from_f32, f16::to_f32)?),
                (_, other) => return Err(format!("no type {other}; there are f32, bf16 and f16").into()),
            };
            peer.run();
            peers.insert((*name).into(), peer);
        }
        ["run", name, milliseconds] => {
            let limit = Duration::from_secs_f64(milliseconds.parse::<f64>()? * 1e-3);
            let (wall, cpu) = readings(&mut **find(peers, name)?, limit);
            return Ok(json!({"ok": 1, "ms": wall, "cpu": cpu}));
        }
        ["out", name, path] => {
            let peer = find(peers, name)?;
            peer.run();
            let bytes: Vec<u8> = peer.output().iter().flat_map(|x| x.to_le_bytes()).collect();
            std::fs::write(path, bytes)?;
        }
        ["drop"] => peers.clear(),
        _ => return Err("no such command; there are load, run, out, drop and quit".into()),
    }
    Ok(json!({"ok": 1}))
}

fn find<'a>(peers: &'a mut Peers, name: &str) -> Result<&'a mut Box<dyn Peer>> {
    peers.get_mut(name).ok_or_else(|| format!("{name} is not loaded").into())
}

/// The milliseconds of wall-clock time, and of processor time on all threads, of each run.
fn readings(peer: &mut dyn Peer, limit: Duration) -> (Vec<f64>, Vec<f64>) {
    let (mut wall, mut cpu) = (Vec::new(), Vec::new());
    let first = Instant::now();
    while wall.is_empty() || (first.elapsed() < limit && wall.len() < 200) {
        let (process, begin) = (ProcessTime::now(), Instant::now());
        peer.run();
        wall.push(begin.elapsed().as_secs_f64() * 1e3);
        cpu.push(process.elapsed().as_secs_f64() * 1e3);
    }
    (wall, cpu)
}

/// Starts the library's threads once, with the number of the first load that has more than one; later loads
/// may have fewer. The calling thread is one of them.
fn pool(threads: usize) -> Result<usize> {
    static STARTED: OnceLock<usize> = OnceLock::new();
    if threads > 1 {
        let started = *STARTED.get_or_init(|| if start_threads(threads).is_ok() { threads } else { 1 });
        if threads > started {
            return Err(format!("{threads} threads, but {started} were started at first").into());
        }
    }
    Ok(threads)
}

/// A model, with the input of its file.
struct EndToEnd {
    model: Model<'static>,
    batch: usize,
    len: usize,
    input: Vec<f32>,
    output: Vec<f32>,
    scratch: Vec<f32>,
}

impl EndToEnd {
    fn load(path: &Path, threads: usize) -> Result<Self> {
        // A model borrows the bytes of its file. They are kept until the process ends, because a harness
        // loads few models.
        let bytes: &'static [u8] = files::read(path)?.leak();
        let file: &'static ModelFile<'static> =
            Box::leak(Box::new(ModelFile::parse(bytes, &Options::default())?));
        let (isa, weights) = (Isa::choose()?, file.weights(Box::leak(Box::default()))?);
        // The weights are packed once, as the other libraries prepare their graphs.
        let memory = vec![0.0; weights.packed_len(isa)].leak();
        let blocks = vec![BlockWeights::default(); file.config().num_layers].leak();
        let model = Model::new(*file.config(), weights.pack(isa, blocks, memory)?, Some(isa), threads)?;
        let input = file.tensor("input")?;
        let [batch, len, embed] = input.shape[..] else {
            return Err(format!("an input {:?}, not [B, T, embed]", input.shape).into());
        };
        if embed != model.config().embed_dim {
            return Err(
                format!("an input {:?} for embed_dim {}", input.shape, model.config().embed_dim).into()
            );
        }
        Ok(Self {
            model,
            batch,
            len,
            input: input.data.into_owned(),
            output: vec![0.0; model.output_len(batch, len)],
            scratch: vec![0.0; model.scratch_len(batch, len)?],
        })
    }
}

impl Peer for EndToEnd {
    fn run(&mut self) {
        let Self { model, batch, len, input, output, scratch } = self;
        model.forward(*batch, *len, input, output, scratch).expect("lengths that fit");
    }

    fn output(&self) -> Vec<f32> {
        self.output.clone()
    }
}
