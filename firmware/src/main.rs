//! A model of the reference without an operating system: weights in flash, state and scratch in static
//! arrays, no allocator. The image runs the model by forward and token by token, compares both with the
//! reference's stored output, prints the errors, and exits with 0 only if both are small enough.
//!
//! The code that depends on the machine, from the first instruction to [`main`], is in `start/`.
#![no_std]
#![no_main]

#[cfg_attr(target_arch = "arm", path = "start/cortex_m.rs")]
#[cfg_attr(target_arch = "aarch64", path = "start/aarch64.rs")]
#[cfg_attr(any(target_arch = "riscv32", target_arch = "riscv64"), path = "start/riscv.rs")]
mod start;

use chunkwise::nn::{BlockWeights, Model, ModelConfig, OutputMode, Weights};
use chunkwise::{FeatureMap, Result};
use semihosting::{println, process};

include!(concat!(env!("OUT_DIR"), "/model.rs"));

/// The tolerance of the golden files.
const TOLERANCE: f32 = 1e-5;

/// The build script computes the scratch that scalar code needs. Vectors need at most this many times as
/// much, because they round sizes up.
const LANES: usize = if cfg!(target_arch = "aarch64") { 4 } else { 1 };
const ROOM: usize = LANES * if SCRATCH > STEP_SCRATCH { SCRATCH } else { STEP_SCRATCH };

/// The entry point, which the start-up code calls once.
extern "C" fn main() -> ! {
    static mut BLOCKS: [BlockWeights<'static>; CONFIG.num_layers] = [BlockWeights::EMPTY; CONFIG.num_layers];
    static mut MEMORY: Memory =
        Memory { state: [0.0; STATE], scratch: [0.0; ROOM], output: [0.0; OUTPUT.len()] };
    // SAFETY: this is called once, by one processor, and nothing interrupts it.
    let (blocks, memory) = unsafe { (&mut *(&raw mut BLOCKS), &mut *(&raw mut MEMORY)) };
    match run(blocks, memory) {
        Ok(good) => process::exit(if good { 0 } else { 1 }),
        Err(error) => {
            println!("error: {error}");
            process::exit(1)
        }
    }
}

struct Memory {
    state: [f32; STATE],
    scratch: [f32; ROOM],
    output: [f32; OUTPUT.len()],
}

fn run(blocks: &'static mut [BlockWeights<'static>], memory: &mut Memory) -> Result<bool> {
    let model = Model::new(CONFIG, Weights::from_flat(&CONFIG, &WEIGHTS, blocks)?, None, 1)?;
    // The build script computed this length on another machine.
    assert_eq!(model.state_len(BATCH)?, STATE);
    let (scratch_len, step_scratch_len) = (model.scratch_len(BATCH, LEN)?, model.step_scratch_len(BATCH)?);
    if model.isa().lanes() == 1 {
        assert_eq!((scratch_len, step_scratch_len), (SCRATCH, STEP_SCRATCH));
    }
    println!(
        "{} layers of {}, {} sequences of {} tokens, on {}",
        CONFIG.num_layers,
        CONFIG.hidden_size,
        BATCH,
        LEN,
        model.isa()
    );
    println!(
        "weights {} bytes, state {} bytes, scratch {} bytes for forward, {} for step",
        size_of_val(&WEIGHTS),
        4 * STATE,
        4 * scratch_len,
        4 * step_scratch_len
    );

    let Memory { state, scratch, output } = memory;
    model.forward(BATCH, LEN, &INPUT, output, &mut scratch[..scratch_len])?;
    let forward = report("forward", output);

    let (embed, hidden) = (CONFIG.embed_dim, CONFIG.hidden_size);
    let mut input = [0.0; BATCH * CONFIG.embed_dim];
    let mut row = [0.0; BATCH * CONFIG.hidden_size];
    output.fill(f32::NAN);
    for t in 0..LEN {
        for b in 0..BATCH {
            input[b * embed..][..embed].copy_from_slice(&INPUT[(b * LEN + t) * embed..][..embed]);
        }
        model.step(BATCH, &input, state, &mut row, &mut scratch[..step_scratch_len])?;
        for b in 0..BATCH {
            output[(b * LEN + t) * hidden..][..hidden].copy_from_slice(&row[b * hidden..][..hidden]);
        }
    }
    let step = report("step", output);
    Ok(forward && step)
}

/// Whether every element is close to the reference's, which a NaN is not; prints the largest error.
fn report(what: &str, output: &[f32]) -> bool {
    let mut worst = 0.0_f32;
    for (got, want) in output.iter().zip(&OUTPUT) {
        let difference = (got - want).abs();
        if difference.is_nan() || difference > worst {
            worst = if difference.is_nan() { f32::INFINITY } else { difference };
        }
    }
    let good = worst <= TOLERANCE;
    println!(
        "{}: {} elements, off by {:e} at most: {}",
        what,
        output.len(),
        worst,
        if good { "pass" } else { "FAIL" }
    );
    good
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("{info}");
    process::exit(1)
}
