//! A small image: attention in f32 on a Cortex-M, one token at a time and, with the feature `forward`, many
//! tokens before. `tools/sizes/run` reports the size of its code. The image can also be run, and exits with 0
//! if the outputs are right.
#![no_std]
#![no_main]

#[cfg(feature = "forward")]
use chunkwise::State;
use chunkwise::{Attention, Config, Isa, Normaliser, Rule, Shape, Tensors};
use semihosting::process;

const HEADS: usize = 2;
const DIM: usize = 16;
const ROWS: usize = TOKENS * HEADS * DIM;
/// The length of the state: S and z of each head.
const STATE: usize = HEADS * (DIM + 1) * DIM;
const TOKENS: usize = if cfg!(feature = "forward") { 20 } else { 1 };
const SCRATCH: usize = if cfg!(feature = "forward") { 4096 } else { 256 };

#[cortex_m_rt::entry]
fn main() -> ! {
    process::exit(i32::from(run() != Some(true)))
}

fn run() -> Option<bool> {
    let rule = Rule::linear(Normaliser::Global { eps: 1e-6 });
    let config = Config::new(rule, Shape::new(1, TOKENS, HEADS, DIM, DIM)).isa(Isa::Scalar);
    let attention = Attention::new(config).ok()?;
    let (mut state, mut scratch) = ([0.0; STATE], [0.0; SCRATCH]);
    let (q, k, v) = ([0.5; ROWS], [0.25; ROWS], [2.0; ROWS]);
    let mut o = [0.0; ROWS];
    #[cfg(feature = "forward")]
    {
        let state = State::Carried(&mut state);
        let scratch = scratch.get_mut(..attention.scratch_len())?;
        attention.forward(Tensors::new(&q, &k, &v, &mut o), state, scratch).ok()?;
        if o.iter().any(|o| (o - 2.0).abs() > 1e-5) {
            return None;
        }
    }
    for _ in 0..10 {
        let scratch = scratch.get_mut(..attention.decode_scratch_len())?;
        attention.decode(Tensors::new(&q, &k, &v, &mut o), &mut state, scratch).ok()?;
    }
    // All values are 2, and so is their weighted mean.
    Some(o[..HEADS * DIM].iter().all(|o| (o - 2.0).abs() < 1e-5))
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    process::exit(2)
}
