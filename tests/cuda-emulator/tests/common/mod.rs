//! Texts of small kernels, and ways to run them.
#![allow(dead_code, reason = "each test file uses its part")]

use cuda_emulator::launch::{Arg, Grid, Options, Policy, run};

pub const ORDERS: [Policy; 4] = [Policy::Ascending, Policy::Descending, Policy::Random, Policy::Interleaved];

/// A module of one entry `k` with parameters of 64 bits, p0 and so on.
pub fn module(target: &str, params: usize, directives: &str, body: &str) -> String {
    let params: Vec<String> = (0..params).map(|i| format!(".param .u64 p{i}")).collect();
    format!(
        ".version 8.0\n.target {target}\n.address_size 64\n.visible .entry k({})\n{directives}\n{{\n{body}\nret;\n}}\n",
        params.join(", ")
    )
}

/// Registers of all kinds, and %r0 = tid.x, %d0 = 4 tid.x.
pub const HEAD: &str =
    ".reg .pred %p<16>; .reg .b16 %h<16>; .reg .b32 %r<64>; .reg .f32 %f<160>; .reg .b64 %d<32>;
.reg .f64 %e<16>; mov.u32 %r0, %tid.x; mul.wide.u32 %d0, %r0, 4;";

pub fn grid(threads: u32) -> Grid {
    Grid { blocks: [1, 1, 1], threads: [threads, 1, 1], dynamic_shared: 0 }
}

pub fn with(policy: Policy) -> Options {
    Options { policy, seed: 5, budget: 1 << 20, ..Options::default() }
}

/// Runs a body on one buffer of words; in all orders, which must agree.
pub fn words(threads: u32, body: &str, memory: &mut [u32]) -> Result<(), String> {
    let text =
        module("sm_80", 1, "", &format!("{HEAD} ld.param.u64 %d1, [p0]; add.u64 %d2, %d1, %d0;\n{body}"));
    run_words(&text, threads, memory)
}

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

/// The fault of a body, in every order.
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

/// A generator of words.
pub struct Words(pub u64);

impl Words {
    pub fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }
}

/// Sums as the documentation of `matrix` says, in integers of 128 bits.
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
