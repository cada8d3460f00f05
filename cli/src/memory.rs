//! Checks that there is enough memory before it is allocated, because the system may kill a program that
//! allocates too much.

use std::fs::read_to_string;
use std::io::{Error, ErrorKind, Result};

use chunkwise::files;
use chunkwise::nn::Model;

/// Checks that there is memory for this many bytes. `None` stands for a number that overflows.
pub(crate) fn check(bytes: Option<usize>) -> Result<()> {
    let refused = |why| Err(Error::new(ErrorKind::OutOfMemory, why));
    let Some(bytes) = bytes else { return refused("the sizes are too large".into()) };
    let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
    match available() {
        Some(there) if bytes > there => refused(format!(
            "the sizes are too large: they need about {:.1} GiB of memory, and {:.1} GiB are available",
            gib(bytes),
            gib(there)
        )),
        None if Vec::<u8>::new().try_reserve_exact(bytes).is_err() => {
            refused(format!("the sizes are too large: the system refuses {:.1} GiB of memory", gib(bytes)))
        }
        _ => Ok(()),
    }
}

/// Checks that there is memory for what a model needs in addition to its weights and its input.
pub(crate) fn check_run(model: &Model<'_>, batch: usize, len: usize) -> files::Result<()> {
    if batch == 0 || len == 0 {
        // Nothing is computed in this case.
        return Ok(());
    }
    let scratch = model.scratch_len(batch, len)?.max(model.step_scratch_len(batch)?);
    let all = [scratch, model.state_len(batch)?, model.output_len(batch, len)];
    let elements = all.into_iter().try_fold(0, usize::checked_add);
    check(elements.and_then(|elements| elements.checked_mul(size_of::<f32>()))).map_err(files::Error::Io)
}

/// The product of sizes, or `None` if it overflows.
pub(crate) fn product<const N: usize>(sizes: [usize; N]) -> Option<usize> {
    sizes.into_iter().try_fold(1, usize::checked_mul)
}

/// The bytes that can be allocated without swapping, where Linux reports them: those of the machine, within
/// the limit of the control group and that of this process.
fn available() -> Option<usize> {
    let machine = kib("/proc/meminfo", "MemAvailable:")?;
    Some([limit_of_group(), limit_of_process()].into_iter().flatten().fold(machine, usize::min))
}

/// The bytes in a line of `name: N kB`.
fn kib(file: &str, name: &str) -> Option<usize> {
    let text = read_to_string(file).ok()?;
    let number = text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"))?;
    Some(number.parse::<usize>().ok()?.saturating_mul(1 << 10))
}

fn limit_of_group() -> Option<usize> {
    let groups = read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    read_to_string(format!("/sys/fs/cgroup{path}/memory.max")).ok()?.trim().parse().ok()
}

fn limit_of_process() -> Option<usize> {
    let limits = read_to_string("/proc/self/limits").ok()?;
    let limit =
        limits.lines().find_map(|line| line.strip_prefix("Max address space")?.split_whitespace().next())?;
    Some(limit.parse::<usize>().ok()?.saturating_sub(kib("/proc/self/status", "VmSize:")?))
}
