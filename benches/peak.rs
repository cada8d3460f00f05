//! Speed as a share of the hardware's limit, ceiling and work taking turns in one run, which criterion does not do.
//! Prints a table; `ROUNDS` and `ISA` in the environment set how often and on what. With `--test`, one round.

mod common;

use std::time::Instant;

use chunkwise::{Config, FeatureMap, Isa};
use common::{
    Case, DECODE_SHAPES, NORMALISERS, SHAPES, Sized, best_and_median, fma_rate, numbers, read_seconds,
};

fn main() {
    let test = std::env::args().any(|arg| arg == "--test");
    let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(40);
    let rounds = if test { 1 } else { rounds };
    let only = std::env::var("ISA").ok().map(|name| Isa::from_name(&name).unwrap());
    for isa in Isa::available().filter(|isa| only.is_none_or(|only| only == *isa)) {
        prefill(isa, rounds);
        decode(isa, rounds);
        model(isa, rounds);
    }
}

fn seconds(mut work: impl FnMut(), times: usize) -> f64 {
    let begin = Instant::now();
    for _ in 0..times {
        work();
    }
    begin.elapsed().as_secs_f64() / times as f64
}

/// % of the FMA peak, in recurrent flops.
fn prefill(isa: Isa, rounds: usize) {
    let mut works = Vec::new();
    for (batch, heads, len, dim) in SHAPES {
        for (name, normaliser) in NORMALISERS {
            for (map, feature_map) in [("elu", FeatureMap::Elu), ("identity", FeatureMap::Identity)] {
                if feature_map == FeatureMap::Identity && name != "none" {
                    continue;
                }
                let config = Config {
                    isa: Some(isa),
                    feature_map,
                    ..Config::new(batch, len, heads, dim, dim, normaliser)
                };
                let mut case = Case::new(config);
                case.check();
                works.push((format!("{batch}x{heads}x{len}x{dim} {name} {map}"), case, Vec::new()));
            }
        }
    }
    let mut peak = Vec::new();
    for _ in 0..rounds {
        for (_, case, readings) in &mut works {
            peak.push(1.0 / fma_rate(isa));
            let times = (2e8 / case.recurrent_flops()) as usize;
            readings.push(seconds(|| case.forward(), times.max(1)));
        }
    }
    let (peak, median_peak) = best_and_median(peak);
    println!("\n{isa}, FMA peak best {:.1}, median {:.1} GFLOP/s", 1e-9 / peak, 1e-9 / median_peak);
    println!(
        "| prefill B x H x T x D | best us | best, % of peak | median, % of median peak |\n|---|---|---|---|"
    );
    for (name, case, readings) in works {
        let (best, median) = best_and_median(readings);
        let percent = |time, peak| 100.0 * case.recurrent_flops() / time * peak;
        println!(
            "| {name} | {:.0} | {:.1} | {:.1} |",
            best * 1e6,
            percent(best, peak),
            percent(median, median_peak)
        );
    }
}

/// Microseconds a token, and the state's bytes read and written a second.
fn decode(isa: Isa, rounds: usize) {
    println!("\n| decode {isa} B x H x D | best us | median us | GB/s |\n|---|---|---|---|");
    for (batch, heads, dim) in DECODE_SHAPES {
        let (name, normaliser) = NORMALISERS[1];
        let mut case =
            Case::new(Config { isa: Some(isa), ..Config::new(batch, 1, heads, dim, dim, normaliser) });
        case.check();
        let times = (4e7 / case.state_bytes()) as usize;
        let readings = (0..rounds * 5).map(|_| seconds(|| case.decode(), times.max(1))).collect();
        let (best, median) = best_and_median(readings);
        let rate = 1e-9 * case.state_bytes() / best;
        println!("| {batch}x{heads}x{dim} {name} | {:.2} | {:.2} | {rate:.1} |", best * 1e6, median * 1e6);
    }
}

/// The model at its default sizes; a step beside one reading of its weights.
fn model(isa: Isa, rounds: usize) {
    let sized = Sized::new();
    let mut blocks = sized.blocks();
    let model = sized.model(&mut blocks, isa, 1);
    println!("\n| model {isa} | best ms | median ms | best, % of peak |\n|---|---|---|---|");
    for (batch, len) in [(1, 64), (8, 64), (1, 1024)] {
        let input = numbers(1, batch * len * 256);
        let mut output = vec![0.0; model.output_len(batch, len)];
        let mut scratch = vec![0.0; model.scratch_len(batch, len).unwrap()];
        let (mut peak, mut readings) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            peak.push(1.0 / fma_rate(isa));
            readings
                .push(seconds(|| model.forward(batch, len, &input, &mut output, &mut scratch).unwrap(), 1));
        }
        let ((peak, _), (best, median)) = (best_and_median(peak), best_and_median(readings));
        let percent = 100.0 * sized.flops(batch * len) / best * peak;
        println!("| forward {batch}x{len} | {:.2} | {:.2} | {percent:.1} |", best * 1e3, median * 1e3);
    }
    let (input, mut output) = (numbers(1, 256), vec![0.0; 256]);
    let mut state = vec![0.0; model.state_len(1).unwrap()];
    let mut scratch = vec![0.0; model.step_scratch_len(1).unwrap()];
    let (mut reads, mut readings) = (Vec::new(), Vec::new());
    for _ in 0..rounds * 10 {
        reads.push(read_seconds(isa, &sized.flat));
        readings.push(seconds(|| model.step(1, &input, &mut state, &mut output, &mut scratch).unwrap(), 1));
    }
    let ((read, _), (best, median)) = (best_and_median(reads), best_and_median(readings));
    println!(
        "\nstep: best {:.0} us, median {:.0} us; reading the weights once: best {:.0} us; ratio {:.2}",
        best * 1e6,
        median * 1e6,
        read * 1e6,
        best / read
    );
}
