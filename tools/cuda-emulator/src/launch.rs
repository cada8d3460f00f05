//! Launches: [`launch`] runs an entry on memory that a map describes, and [`run`] is a shorter way for tests to run a
//! text on plain memory.

use crate::block::{Block, Random};
use crate::counters::Counters;
use crate::fault::{Fault, check};
use crate::isa::{CLASSES, Entry};
use crate::memory::{Buffer, Map};
use crate::shared::{START, Shared};
use crate::warp::Warp;

/// The order in which the warps of a block run, and the blocks of a grid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The first warp that can run does so until it must wait.
    #[default]
    Ascending,
    /// The last warp that can run does so until it must wait.
    Descending,
    /// A random warp runs until it must wait.
    Random,
    /// A random warp runs for a few instructions.
    Interleaved,
}

/// Options of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The order of warps and blocks.
    pub policy: Policy,
    /// The seed of random orders.
    pub seed: u64,
    /// The most warp-instructions that a launch may execute.
    pub budget: u64,
    /// The enabled checks, as bits of [`crate::fault::check`].
    pub checks: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options { policy: Policy::Ascending, seed: 0, budget: 1 << 32, checks: check::ALL }
    }
}

/// The sizes of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// The number of blocks in each dimension.
    pub blocks: [u32; 3],
    /// The number of threads of a block in each dimension.
    pub threads: [u32; 3],
    /// The size of dynamic shared memory in bytes.
    pub dynamic_shared: u32,
}

/// Runs an entry on the memory that `map` describes.
///
/// # Safety
/// All ranges of `map` must be live allocations, which nothing else accesses during the launch.
pub unsafe fn launch(
    entry: &Entry,
    params: &[u8],
    map: Map,
    grid: Grid,
    options: Options,
) -> (Counters, Result<(), Fault>) {
    let [nx, ny, nz] = grid.blocks;
    let threads = grid.threads.iter().product::<u32>();
    let shared = (entry.dynamic_at - START + grid.dynamic_shared).max(entry.shared_bytes) as usize;
    let mut block = Block {
        entry,
        params,
        map,
        shared: Shared::new(shared, options.checks),
        options,
        ctaid: [0; 3],
        nctaid: grid.blocks,
        ntid: grid.threads,
        threads,
        dynamic_shared: grid.dynamic_shared,
        counters: Counters { launches: 1, ..Counters::default() },
        classes: [0; CLASSES],
        mma_k8: 0,
        mma_k4: 0,
        executed: 0,
        random: Random::new(options.seed),
        arrivals: Vec::new(),
    };
    let mut warps: Vec<Warp> = (0..threads.div_ceil(32)).map(|id| Warp::new(entry, id)).collect();
    let total = nx as usize * ny as usize * nz as usize;
    let order: Vec<usize> = match options.policy {
        Policy::Ascending => (0..total).collect(),
        Policy::Descending => (0..total).rev().collect(),
        _ => block.random.order(total),
    };
    let mut result = Ok(());
    for at in order {
        let at = at as u32;
        block.ctaid = [at % nx, at / nx % ny, at / nx / ny];
        result = block.run(&mut warps);
        if result.is_err() {
            break;
        }
    }
    let mut counters = block.counters;
    counters.take(&block.classes, block.mma_k8, block.mma_k4);
    (counters, result)
}

/// An argument of [`run`].
pub enum Arg<'a> {
    /// The bytes of a number or a struct.
    Value(Vec<u8>),
    /// A piece of memory. The kernel gets the address of a copy, which is copied back after the launch.
    Memory(&'a mut [u8]),
}

impl<'a> Arg<'a> {
    /// Creates an argument from a 32-bit integer.
    pub fn int(v: i32) -> Arg<'a> {
        Arg::Value(v.to_le_bytes().to_vec())
    }

    /// Creates an argument from a float.
    pub fn float(v: f32) -> Arg<'a> {
        Arg::Value(v.to_le_bytes().to_vec())
    }
}

/// Loads a text and runs one of its entries. The error is the text of the failed load or of the fault.
pub fn run(
    text: &str,
    entry: &str,
    grid: Grid,
    args: &mut [Arg],
    options: Options,
) -> Result<Counters, String> {
    let module = crate::parse::module(text)?;
    let entry = module.entries.iter().find(|e| e.name == entry).ok_or(format!("no entry {entry}"))?;
    if entry.params.len() != args.len() {
        return Err(format!("{} arguments for {} parameters", args.len(), entry.params.len()));
    }
    let mut params = vec![0; entry.param_bytes];
    let mut buffers = Vec::new();
    for (param, arg) in entry.params.iter().zip(args.iter()) {
        let bytes = match arg {
            Arg::Value(bytes) => bytes.clone(),
            Arg::Memory(bytes) => {
                let buffer = Buffer::new(bytes.len(), 256, 0xff);
                buffer.copy_from(bytes);
                let address = buffer.address().to_le_bytes().to_vec();
                buffers.push(buffer);
                address
            }
        };
        if bytes.len() != param.size {
            return Err(format!("an argument of {} bytes for a parameter of {}", bytes.len(), param.size));
        }
        params[param.offset..param.offset + param.size].copy_from_slice(&bytes);
    }
    let globals = module.globals.iter().map(|(_, b)| b);
    let map = Map::new(buffers.iter().chain(globals).map(|b| (b.address(), b.len() as u64)));
    // SAFETY: the buffers belong to this function or to its module.
    let (counters, result) = unsafe { launch(entry, &params, map, grid, options) };
    let memory = args.iter_mut().filter_map(|a| if let Arg::Memory(bytes) = a { Some(bytes) } else { None });
    for (bytes, buffer) in memory.zip(&buffers) {
        buffer.copy_to(bytes);
    }
    result.map(|()| counters).map_err(|fault| fault.text)
}
