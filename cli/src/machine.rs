//! Instruction sets and threads, as arguments.

use std::thread::available_parallelism;
use std::time::Duration;

use chunkwise::Isa;

#[derive(clap::Args)]
pub(crate) struct Machine {
    /// Instruction set [default: CHUNKWISE_ISA, else the best available]
    #[arg(long, value_parser = isa)]
    pub(crate) isa: Option<Isa>,
    #[command(flatten)]
    pub(crate) threads: Threads,
}

/// The device on which a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Cpu,
    /// The GPU with this number.
    Cuda(usize),
}

/// Parses `cpu`, `cuda` or `cuda:N`.
pub(crate) fn device(name: &str) -> Result<Device, String> {
    let number = match name.split_once(':') {
        None if name == "cpu" => return Ok(Device::Cpu),
        None if name == "cuda" => 0,
        Some(("cuda", number)) => number.parse().map_err(|_| "GPUs are cuda:0, cuda:1, ...".to_string())?,
        _ => return Err("the device must be cpu, cuda or cuda:N".into()),
    };
    if cfg!(feature = "cuda") {
        Ok(Device::Cuda(number))
    } else {
        Err("this program was built without the feature cuda".into())
    }
}

#[derive(clap::Args)]
pub(crate) struct Threads {
    /// Maximum number of threads [default: as many as the machine runs at once]
    #[arg(long = "threads", value_name = "N")]
    count: Option<std::num::NonZeroUsize>,
}

impl Threads {
    pub(crate) fn count(&self) -> usize {
        self.count.or(available_parallelism().ok()).map_or(1, usize::from)
    }
}

/// An instruction set by name; the error lists the available ones.
pub(crate) fn isa(name: &str) -> Result<Isa, String> {
    let names: Vec<_> = Isa::available().map(Isa::name).collect();
    Isa::from_name(name).map_err(|_| format!("the instruction sets of this machine are {}", names.join(", ")))
}

/// Instruction sets, as an argument: some by name, or all.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Isas(pub(crate) Vec<Isa>);

/// Parses names with commas between them, or `all`.
pub(crate) fn isas(names: &str) -> Result<Isas, String> {
    match names {
        "all" => Ok(Isas(Isa::available().collect())),
        names => names.split(',').map(isa).collect::<Result<_, _>>().map(Isas),
    }
}

/// A time with its unit.
pub(crate) fn pretty(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s < 1e-3 => format!("{:.1} us", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}
