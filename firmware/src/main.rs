//! A reference model on a Cortex-M7 without an operating system: weights in flash, state and scratch in static arrays,
//! no allocator. Runs it over all tokens at once and token by token, compares each with what the reference stored, says
//! how far off it was, and exits with 0 only if both are close enough.
#![no_std]
#![no_main]

use chunkwise::nn::{BlockWeights, Model, ModelConfig, OutputMode, Weights};
use chunkwise::{FeatureMap, Result};
use cortex_m_rt::{ExceptionFrame, entry, exception};
use cortex_m_semihosting::{debug, hprintln};

include!(concat!(env!("OUT_DIR"), "/model.rs"));

/// As for the golden files everywhere.
const TOLERANCE: f32 = 1e-5;

#[entry]
fn main() -> ! {
    static mut BLOCKS: [BlockWeights<'static>; CONFIG.num_layers] = [BlockWeights::EMPTY; CONFIG.num_layers];
    static mut MEMORY: Memory = Memory {
        state: [0.0; STATE],
        scratch: [0.0; if SCRATCH > STEP_SCRATCH { SCRATCH } else { STEP_SCRATCH }],
        output: [0.0; OUTPUT.len()],
    };
    let verdict = match run(BLOCKS, MEMORY) {
        Ok(true) => debug::EXIT_SUCCESS,
        Ok(false) => debug::EXIT_FAILURE,
        Err(error) => {
            hprintln!("error: {}", error);
            debug::EXIT_FAILURE
        }
    };
    debug::exit(verdict);
    #[allow(clippy::empty_loop, reason = "QEMU has gone by now; without it there is nothing to return to")]
    loop {}
}

struct Memory {
    state: [f32; STATE],
    scratch: [f32; if SCRATCH > STEP_SCRATCH { SCRATCH } else { STEP_SCRATCH }],
    output: [f32; OUTPUT.len()],
}

fn run(blocks: &'static mut [BlockWeights<'static>], memory: &mut Memory) -> Result<bool> {
    let model = Model::new(CONFIG, Weights::from_flat(&CONFIG, &WEIGHTS, blocks)?, None, 1)?;
    // The build script asked the library on another machine.
    assert_eq!(model.state_len(BATCH)?, STATE);
    assert_eq!(model.scratch_len(BATCH, LEN)?, SCRATCH);
    assert_eq!(model.step_scratch_len(BATCH)?, STEP_SCRATCH);
    hprintln!(
        "{} layers of {}, {} sequences of {} tokens, on {}",
        CONFIG.num_layers,
        CONFIG.hidden_size,
        BATCH,
        LEN,
        model.isa()
    );
    hprintln!(
        "weights {} bytes, state {} bytes, scratch {} bytes for forward, {} for step",
        size_of_val(&WEIGHTS),
        4 * STATE,
        4 * SCRATCH,
        4 * STEP_SCRATCH
    );

    let Memory { state, scratch, output } = memory;
    model.forward(BATCH, LEN, &INPUT, output, &mut scratch[..SCRATCH])?;
    let forward = report("forward", output);

    let (embed, hidden) = (CONFIG.embed_dim, CONFIG.hidden_size);
    let mut input = [0.0; BATCH * CONFIG.embed_dim];
    let mut row = [0.0; BATCH * CONFIG.hidden_size];
    output.fill(f32::NAN);
    for t in 0..LEN {
        for b in 0..BATCH {
            input[b * embed..][..embed].copy_from_slice(&INPUT[(b * LEN + t) * embed..][..embed]);
        }
        model.step(BATCH, &input, state, &mut row, &mut scratch[..STEP_SCRATCH])?;
        for b in 0..BATCH {
            output[(b * LEN + t) * hidden..][..hidden].copy_from_slice(&row[b * hidden..][..hidden]);
        }
    }
    let step = report("step", output);
    Ok(forward && step)
}

/// Whether every element is close to the reference's; NaN is not.
fn report(what: &str, output: &[f32]) -> bool {
    let mut worst = 0.0_f32;
    for (got, want) in output.iter().zip(&OUTPUT) {
        let difference = (got - want).abs();
        if difference.is_nan() || difference > worst {
            worst = if difference.is_nan() { f32::INFINITY } else { difference };
        }
    }
    let good = worst <= TOLERANCE;
    hprintln!(
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
    hprintln!("{}", info);
    debug::exit(debug::EXIT_FAILURE);
    loop {
        cortex_m::asm::nop();
    }
}

#[exception]
#[allow(non_snake_case, reason = "the vector's name")]
unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
    hprintln!("hard fault: {:?}", frame);
    debug::exit(debug::EXIT_FAILURE);
    loop {
        cortex_m::asm::nop();
    }
}
