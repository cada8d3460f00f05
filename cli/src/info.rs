//! `info`: shows what this machine and this build support.

use std::io::Write;

use chunkwise::Isa;

use super::out::Out;
use super::{Outcome, Verdict};

pub(crate) fn run(out: &mut Out) -> Outcome {
    let names: Vec<_> = Isa::available().map(Isa::name).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    writeln!(out, "chunkwise         {}", env!("CARGO_PKG_VERSION"))?;
    writeln!(out, "cpu               {}", cpu())?;
    writeln!(out, "instruction sets  {}", names.join(", "))?;
    writeln!(out, "threads           {threads}")?;
    #[cfg(feature = "cuda")]
    match chunkwise::cuda::Device::open(0) {
        Ok(device) => {
            writeln!(out, "GPU               {device:?}, {} multiprocessors", device.multiprocessors())?
        }
        Err(error) => writeln!(out, "GPU               none: {error}")?,
    }
    #[cfg(not(feature = "cuda"))]
    writeln!(out, "GPU               not used: this program was built without the feature cuda")?;
    // This line is last, because it is an error if CHUNKWISE_ISA names a set that is not available.
    let chosen = Isa::choose()?;
    writeln!(out, "chosen            {chosen}, {} lanes of f32", chosen.lanes())?;
    Ok(Verdict::Pass)
}

/// The CPU's name, where Linux reports it, and its architecture.
pub(crate) fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = |key: &str| {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        lines.into_iter().find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().to_string())
    };
    let arch = std::env::consts::ARCH;
    name("model name").or(name("Model")).map_or(arch.into(), |name| format!("{name} ({arch})"))
}
