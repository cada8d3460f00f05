//! Launches of the kernels of decode.cu: the bits are the same however a head is divided, and mutations of
//! the kernels are detected. If the shipped PTX lacks one barrier, has one comparison off by one, or leaves
//! one number out of a sum, it must fault in the emulator or give another result.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(unsafe_code, reason = "a kernel accesses memory by its address")]
#[path = "../src/cuda/args.rs"]
#[allow(dead_code, reason = "the kernels of one source are launched")]
mod args;
mod common;
#[path = "cuda_common/ptx.rs"]
mod ptx;

use std::mem::offset_of;

use args::{DecodeArgs, Strides};
use chunkwise::{Config, Normaliser, Rule, Shape};
use common::*;
use cuda_emulator::isa::Entry;
use cuda_emulator::launch::{Grid, Options, Policy, launch};
use cuda_emulator::memory::{Buffer, Map};
use cuda_emulator::parse;

const HEADS: usize = 2;
const ORDERS: [Policy; 3] = [Policy::Ascending, Policy::Descending, Policy::Random];

/// The bytes of a kernel's arguments.
fn bytes(args: &DecodeArgs) -> Vec<u8> {
    let len = offset_of!(DecodeArgs, scale) + size_of::<f32>();
    // SAFETY: these bytes are numbers without padding between them; the padding at the end is not included.
    let mut bytes = unsafe { std::slice::from_raw_parts((&raw const *args).cast::<u8>(), len) }.to_vec();
    bytes.resize(size_of::<DecodeArgs>(), 0);
    bytes
}

/// A decode of the last token of two heads, from the state before it.
struct Plan {
    normaliser: Normaliser,
    case: Case,
    before: Vec<f32>,
    /// o and the last state, and their sizes without cancellation.
    want: Vec<f64>,
    size: Vec<f64>,
    /// The number of threads of a block, and of blocks for each head.
    cut: (u32, u32),
}

impl Plan {
    fn new(normaliser: Normaliser, [len, key, value]: [usize; 3], cut: (u32, u32)) -> Self {
        let config = Config::new(Rule::linear(normaliser), Shape::new(1, len, HEADS, key, value));
        let mut case = Case::new(config, 7);
        // The first and last columns are large, so that an index that is off by one has more effect than
        // rounding.
        for row in case.q.chunks_exact_mut(key).chain(case.k.chunks_exact_mut(key)) {
            (row[0], row[key - 1]) = (row[0] + 3.0, row[key - 1] + 3.0);
        }
        let last = |case: &Case| {
            let mut oracle = Oracle::new(&config);
            oracle.run(&case.q, &case.k, &case.v, 0..len - 1);
            let before = oracle.state();
            let o = oracle.run(&case.q, &case.k, &case.v, len - 1..len);
            (before, [o, oracle.state()].concat())
        };
        let (before, want) = last(&case);
        let size = last(&case.without_cancellation()).1;
        let before = before.into_iter().map(|x| x as f32).collect();
        Self { normaliser, case, before, want, size, cut }
    }

    fn entry(&self) -> &'static str {
        match self.normaliser {
            Normaliser::None => "decode_none",
            Normaliser::Global { .. } => "decode_global",
            _ => "decode_per_chunk",
        }
    }

    /// Launches an entry; returns o and the state.
    fn launch(&self, entry: &Entry, policy: Policy) -> Result<Vec<f32>, String> {
        let Shape { len, key, value, .. } = self.case.config.shape;
        let (chunk, eps) = match self.normaliser {
            Normaliser::Global { eps } => (0, eps),
            Normaliser::PerChunk { chunk, eps } => (chunk as i32, eps),
            _ => (0, 0.0),
        };
        let upload = |x: &[f32]| {
            let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
            let buffer = Buffer::new(bytes.len(), 256, 0xff);
            buffer.copy_from(&bytes);
            buffer
        };
        let last = |x: &[f32], dim: usize| upload(&x[(len - 1) * HEADS * dim..]);
        let tensors = [last(&self.case.q, key), last(&self.case.k, key), last(&self.case.v, value)];
        let (o, state) = (upload(&[SENTINEL].repeat(HEADS * value)), upload(&self.before));
        let [q, k, v] = tensors.each_ref().map(|tensor| tensor.address());
        let strides = |dim: usize| Strides {
            batch: (HEADS * dim) as i64,
            token: (HEADS * dim) as i64,
            head: dim as i64,
        };
        let args = DecodeArgs {
            q: q.into(),
            k: k.into(),
            v: v.into(),
            o: o.address().into(),
            state: state.address().into(),
            q_strides: strides(key),
            k_strides: strides(key),
            v_strides: strides(value),
            o_strides: strides(value),
            state_len: (self.before.len() / HEADS) as i64,
            heads: HEADS as i32,
            key: key as i32,
            value: value as i32,
            chunk,
            feature_map: 0,
            kind: 0,
            splits: self.cut.1 as i32,
            eps,
            map_eps: 0.0,
            scale: self.case.config.rule.scale,
        };
        let (threads, splits) = self.cut;
        let grid =
            Grid { blocks: [HEADS as u32 * splits, 1, 1], threads: [threads, 1, 1], dynamic_shared: 0 };
        let options = Options { policy, seed: 3, budget: 1 << 22, ..Options::default() };
        let buffers = tensors.iter().chain([&o, &state]);
        let map = Map::new(buffers.map(|buffer| (buffer.address(), buffer.len() as u64)));
        // SAFETY: the map contains these buffers, which only this launch accesses.
        let (_, result) = unsafe { launch(entry, &bytes(&args), map, grid, options) };
        result.map_err(|fault| fault.text)?;
        let numbers = [o, state].into_iter().flat_map(|buffer| {
            let mut bytes = vec![0; buffer.len()];
            buffer.copy_to(&mut bytes);
            let numbers = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            numbers.collect::<Vec<_>>()
        });
        Ok(numbers.collect())
    }

    fn is_right(&self, got: &[f32]) -> bool {
        element_error(got, &self.want, &self.size) <= element_bound(&self.case.config)
    }
}

/// Plans with each normaliser, accesses of 16 and of 4 bytes, tokens within a chunk and at its end, one and
/// several panels, and fewer and more rows than a block loads at once. Plans that differ only in how a head
/// is divided follow each other.
fn plans() -> Vec<Plan> {
    let (none, global, per_chunk) =
        (Normaliser::None, Normaliser::Global { eps: 1e-6 }, Normaliser::per_chunk(3));
    vec![
        Plan::new(none, [3, 33, 72], (128, 3)),
        Plan::new(none, [3, 33, 72], (256, 2)),
        Plan::new(none, [3, 33, 72], (256, 1)),
        Plan::new(none, [3, 33, 72], (64, 2)),
        Plan::new(none, [3, 130, 22], (64, 2)),
        Plan::new(none, [3, 130, 22], (128, 1)),
        Plan::new(global, [3, 33, 72], (256, 1)),
        Plan::new(global, [3, 33, 72], (512, 1)),
        Plan::new(global, [3, 130, 22], (64, 1)),
        Plan::new(global, [3, 130, 22], (128, 1)),
        Plan::new(per_chunk, [5, 33, 72], (256, 1)),
        Plan::new(per_chunk, [5, 33, 72], (512, 1)),
        Plan::new(per_chunk, [6, 33, 72], (256, 1)),
        Plan::new(per_chunk, [6, 33, 72], (512, 1)),
        Plan::new(per_chunk, [6, 80, 22], (64, 1)),
        Plan::new(per_chunk, [6, 80, 22], (128, 1)),
    ]
}

fn lines(entry: &str) -> Vec<String> {
    ptx::entry("sm_80/decode", entry).lines().map(str::to_owned).collect()
}

fn parsed(lines: &[String]) -> Result<Entry, String> {
    let module = parse::module(&lines.join("\n"))?;
    module.entries.into_iter().next().ok_or_else(|| "no entry".to_owned())
}

/// The shipped PTX is right, and gives the same bits in every order and however a head is divided.
#[test]
fn cuts_give_the_same_bits() {
    let mut last: Option<(&str, Vec<f32>, Vec<f32>)> = None;
    for plan in plans() {
        let entry = parsed(&lines(plan.entry())).expect("what is shipped");
        for order in ORDERS {
            let got = plan.launch(&entry, order).expect("no fault");
            let name = format!("{:?}, {:?}, {order:?}", plan.case.config, plan.cut);
            let error = element_error(&got, &plan.want, &plan.size);
            assert!(error <= element_bound(&plan.case.config), "off by {error:e}: {name}");
            if let Some((_, _, same)) =
                last.as_ref().filter(|(entry, before, _)| *entry == plan.entry() && *before == plan.before)
            {
                assert_eq!(first_difference(same, &got), None, "{name}");
            }
            last = Some((plan.entry(), plan.before.clone(), got));
        }
    }
}

/// Runs the PTX with single lines replaced by what `change` returns. A mutation that changes a bit of a
/// result must fault or exceed the bound of rounding errors; with `all`, every mutation must.
fn faults(what: &str, all: bool, change: impl Fn(&str) -> Vec<String>) {
    let plans = plans();
    let (mut noticed, mut equal, mut missed) = (0, 0, Vec::new());
    for name in ["decode_none", "decode_global", "decode_per_chunk"] {
        let shipped = lines(name);
        let entry = parsed(&shipped).expect("what is shipped");
        let plans = plans.iter().filter(|plan| plan.entry() == name);
        let launch = |entry: &Entry, plan: &Plan, order| plan.launch(entry, order);
        let plans: Vec<_> =
            plans.map(|plan| (plan, launch(&entry, plan, ORDERS[0]).expect("no fault"))).collect();
        for (at, line) in shipped.iter().enumerate() {
            for new in change(line) {
                let mut lines = shipped.clone();
                lines[at].clone_from(&new);
                let entry = parsed(&lines).unwrap_or_else(|error| panic!("{new}: {error}"));
                let mut differs = false;
                let mut tries = ORDERS.iter().flat_map(|order| plans.iter().map(move |plan| (plan, *order)));
                let found = tries.any(|((plan, right), order)| {
                    launch(&entry, plan, order).map_or(true, |got| {
                        differs |= first_difference(&got, right).is_some();
                        !plan.is_right(&got)
                    })
                });
                match (found, differs || all) {
                    (true, _) => noticed += 1,
                    (false, true) => {
                        missed.push(format!("{name}, line {}: {} -> {}", at + 1, line.trim(), new.trim()));
                    }
                    (false, false) => equal += 1,
                }
            }
        }
    }
    report(&format!("decode: {what}: {noticed} faults noticed, {equal} without effect on any bit"));
    assert!(noticed > 0 && missed.is_empty(), "missed: {missed:#?}");
}

#[test]
fn barriers() {
    let change = |line: &str| if line.contains("bar.sync") { vec![String::new()] } else { Vec::new() };
    faults("barriers", true, change);
}

#[test]
fn sums() {
    let change = |line: &str| {
        // A product is not added, or a number from shared memory is taken as 0.
        let fma = line.contains("fma.rn.f32").then(|| {
            let (before, sum) = line.rsplit_once(", ").expect("operands");
            let to = before.split_whitespace().nth(1).expect("a register").trim_end_matches(',');
            format!("mov.f32 {to}, {sum}")
        });
        let load = line.contains("ld.shared.f32").then(|| {
            let to = line.split_whitespace().nth(1).expect("a register").trim_end_matches(',');
            format!("mov.f32 {to}, 0f00000000;")
        });
        fma.into_iter().chain(load).collect()
    };
    faults("sums", true, change);
}

#[test]
fn comparisons() {
    let change = |line: &str| {
        let pairs = [
            ("setp.gt.", "setp.ge."),
            ("setp.ge.", "setp.gt."),
            ("setp.lt.", "setp.le."),
            ("setp.le.", "setp.lt."),
        ];
        let moved = |(old, new): (&str, &str)| line.contains(old).then(|| line.replace(old, new));
        let of_numbers = [".s32", ".u32"].iter().any(|kind| line.contains(kind));
        pairs.into_iter().filter_map(moved).filter(|_| of_numbers).collect()
    };
    faults("comparisons", false, change);
}
