//! The smallest build that is of use: attention one token at a time, f32, on a Cortex-M. Its code is counted by
//! `scripts/sizes`; it runs, too, and exits with 0 if the state has come out as it should.
#![no_std]
#![no_main]

use chunkwise::{Attention, Config, DecodeStep, FeatureMap, Isa, Normaliser};
use semihosting::process;

const HEADS: usize = 2;
const DIM: usize = 16;
/// S and z of each head.
const STATE: usize = HEADS * (DIM + 1) * DIM;
const SCRATCH: usize = 256;

#[cortex_m_rt::entry]
fn main() -> ! {
    process::exit(i32::from(run() != Some(true)))
}

fn run() -> Option<bool> {
    let attention = Attention::new(Config {
        feature_map: FeatureMap::Elu,
        isa: Some(Isa::Scalar),
        ..Config::new(1, 1, HEADS, DIM, DIM, Normaliser::Global { eps: 1e-6 })
    })
    .ok()?;
    let (mut state, mut scratch) = ([0.0; STATE], [0.0; SCRATCH]);
    let (q, k, v) = ([0.5; HEADS * DIM], [0.25; HEADS * DIM], [2.0; HEADS * DIM]);
    let mut o = [0.0; HEADS * DIM];
    for _ in 0..10 {
        let scratch = scratch.get_mut(..attention.decode_scratch_len())?;
        attention.decode(DecodeStep { q: &q, k: &k, v: &v, state: &mut state, o: &mut o, scratch }).ok()?;
    }
    // Every value was 2, so their weighted mean is.
    Some(o.iter().all(|o| (o - 2.0).abs() < 1e-5))
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    process::exit(2)
}
