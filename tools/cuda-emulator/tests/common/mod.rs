//! Texts of small kernels, functions to run them, and reference arithmetic.
#![allow(dead_code, reason = "each test file uses some of the functions")]

use cuda_emulator::launch::{Arg, Grid, Options, Policy, run};

pub const ORDERS: [Policy; 4] = [Policy::Ascending, Policy::Descending, Policy::Random, Policy::Interleaved];

/// Returns a module with one entry `k` whose parameters p0, p1 and so on have 64 bits.
pub fn module(target: &str, params: usize, directives: &str, body: &str) -> String {
    let params: Vec<String> = (0..params).map(|i| format!(".param .u64 p{i}")).collect();
    format!(
        ".version 8.0\n.target {target}\n.address_size 64\n.visible .entry k({})\n{directives}\n{{\n{body}\nret;\n}}\n",
        params.join(", ")
    )
}

/// Declares registers of all types, and sets %r0 to tid.x and %d0 to 4 tid.x.
pub const HEAD: &str =
    ".reg .pred %p<16>; .reg .b16 %h<16>; .reg .b32 %r<64>; .reg .f32 %f<160>; .reg .b64 %d<32>;
.reg .f64 %e<16>; mov.u32 %r0, %tid.x; mul.wide.u32 %d0, %r0, 4;";

pub fn grid(threads: u32) -> Grid {
    Grid { blocks: [1, 1, 1], threads: [threads, 1, 1], dynamic_shared: 0 }
}

pub fn with(policy: Policy) -> Options {
    Options { policy, seed: 5, budget: 1 << 20, ..Options::default() }
}

/// Runs a body on one buffer of words in all orders, which must give the same result.
pub fn words(threads: u32, body: &str, memory: &mut [u32]) -> Result<(), String> {
    let text =
        module("sm_80", 1, "", &format!("{HEAD} ld.param.u64 %d1, [p0]; add.u64 %d2, %d1, %d0;\n{body}"));
    run_words(&text, threads, memory)
}

/// Runs a text on one buffer of words in all orders, which must give the same result.
pub fn run_words(text: &str, threads: u32, memory: &mut [u32]) -> Result<(), String> {
    let start: Vec<u8> = memory.iter().flat_map(|w| w.to_le_bytes()).collect();
    let mut first = None;
    for order in ORDERS {
        let mut bytes = start.clone();
        run(text, "k", grid(threads), &mut [Arg::Memory(&mut bytes)], with(order)).map(drop)?;
        let got = first.get_or_insert_with(|| bytes.clone());
        assert_eq!(*got, bytes, "{order:?} gives something else");
    }
    for (w, bytes) in memory.iter_mut().zip(first.expect("four orders").chunks_exact(4)) {
        *w = u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    }
    Ok(())
}

/// Runs a body that must fault in every order, and returns the text of the fault.
pub fn fault(threads: u32, body: &str, words_of_memory: usize) -> String {
    let mut found = None;
    let text =
        module("sm_80", 1, "", &format!("{HEAD} ld.param.u64 %d1, [p0]; add.u64 %d2, %d1, %d0;\n{body}"));
    for order in ORDERS {
        let mut bytes = vec![0; words_of_memory * 4];
        match run(&text, "k", grid(threads), &mut [Arg::Memory(&mut bytes)], with(order)) {
            Ok(_) => panic!("{order:?}: no fault"),
            Err(text) => found = Some(text),
        }
    }
    found.expect("four orders")
}

/// A generator of random words.
pub struct Words(pub u64);

impl Words {
    pub fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }
}

/// Computes a sum as the documentation of `matrix::sums` describes it, in integers of 128 bits.
pub fn cut_sum(pairs: &[(f32, f32)], c: f32) -> f32 {
    let part = |x: f64| {
        let bits = x.to_bits();
        let (e, m) = ((bits >> 52 & 2047) as i32, (bits & ((1 << 52) - 1)) as i128);
        let m = if e == 0 { m } else { m | 1 << 52 };
        (if x < 0.0 { -m } else { m }, e.max(1) - 1075)
    };
    let terms: Vec<f64> =
        pairs.iter().map(|(a, b)| f64::from(*a) * f64::from(*b)).chain([c.into()]).collect();
    let top = terms.iter().filter(|t| **t != 0.0).map(|t| t.abs().log2().floor() as i32).max();
    let Some(top) = top else { return 0.0 };
    let unit = top.max(-126) - 24;
    let sum: i128 = terms
        .iter()
        .map(|t| part(*t))
        .map(|(m, e)| {
            if e >= unit {
                m << (e - unit)
            } else if unit - e > 100 {
                0
            } else {
                m / (1 << (unit - e))
            }
        })
        .sum();
    let extra = (128 - sum.unsigned_abs().leading_zeros()).saturating_sub(24);
    let cut = (sum.unsigned_abs() >> extra << extra) as f64 * 2f64.powi(unit);
    (if sum < 0 { -cut } else { cut }) as f32
}

/// Converts to bfloat16 by a comparison of the distances to both neighbours.
pub fn bf16(x: f32) -> u32 {
    let low = x.to_bits() >> 16;
    if x.is_nan() {
        return 0x7fff;
    }
    if x.to_bits() & 0xffff == 0 {
        return low;
    }
    let (down, up) = (f64::from(f32::from_bits(low << 16)), next_bf16(low));
    let (a, b) = ((f64::from(x) - down).abs(), (up - f64::from(x)).abs());
    if a < b || a == b && low.is_multiple_of(2) { low } else { low + 1 }
}

fn next_bf16(low: u32) -> f64 {
    let next = f32::from_bits((low + 1) << 16);
    if next.is_infinite() { 2f64.powi(128).copysign(next.into()) } else { next.into() }
}

/// Rounds to IEEE half precision.
pub fn through_f16(x: f32) -> f32 {
    if x.is_nan() || x.is_infinite() {
        return x;
    }
    let unit = if x.abs() < 2f32.powi(-14) {
        2f64.powi(-24)
    } else {
        2f64.powi(f64::from(x).abs().log2().floor() as i32 - 10)
    };
    let y = (f64::from(x) / unit).round_ties_even() * unit;
    if y.abs() > 65504.0 { f32::INFINITY.copysign(x) } else { (y as f32).copysign(x) }
}

/// Returns the bits of a value that f16 represents exactly.
pub fn f16_bits(x: f32) -> u32 {
    let sign = x.to_bits() >> 16 & 0x8000;
    let y = x.abs();
    if y < 2f32.powi(-14) {
        return sign | (y * 2f32.powi(24)) as u32;
    }
    sign | ((y.to_bits() >> 13) - (112 << 10))
}
