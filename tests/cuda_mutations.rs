//! Mutations of the kernels: if the shipped PTX lacks a barrier or a wait, or has a changed mask or operand,
//! it must fault in the emulator or give another result. The mutations that do neither are listed with the
//! reason.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(unsafe_code, reason = "a kernel accesses memory by its address")]
#[path = "../src/cuda/args.rs"]
#[allow(dead_code, reason = "the kernels of one source are launched")]
mod args;
mod common;
#[path = "cuda_common/ptx.rs"]
mod ptx;

use std::mem::offset_of;

use args::{PrefillArgs, Strides};
use chunkwise::{Config, FeatureMap, Normaliser, Rule, Shape};
use common::*;
use cuda_emulator::isa::Entry;
use cuda_emulator::launch::{Grid, Options, Policy, launch};
use cuda_emulator::memory::{Buffer, Map};
use cuda_emulator::parse;
use half::bf16;

/// The orders in which warps and blocks run. A race that has no effect in one order may have one in another.
const ORDERS: [Policy; 3] = [Policy::Ascending, Policy::Descending, Policy::Random];

const KEY: usize = 64;
/// A V that leaves a part of the panel empty.
const VALUE: usize = 40;
/// A V that fills the panel.
const WHOLE: usize = 64;

/// The names of plans that are treated differently from the others.
const THREE_TERMS: &str = "three terms";
const INFINITY: &str = "an infinity";
const TWO_PASSES: &str = "two passes";

/// The error of a kernel of f32 where all numbers are positive, so that all errors of tensor cores, which
/// truncate in the emulator, add up. It is as large as a product of third terms, so that a missing product is
/// only visible in comparison with the shipped kernel's result.
const CUTS: f64 = 1e-5;

/// The bytes of a kernel's arguments.
fn bytes(args: &PrefillArgs) -> Vec<u8> {
    let len = offset_of!(PrefillArgs, scale) + size_of::<f32>();
    // SAFETY: these bytes are numbers without padding between them; the padding at the end is not included.
    let mut bytes = unsafe { std::slice::from_raw_parts((&raw const *args).cast::<u8>(), len) }.to_vec();
    bytes.resize(size_of::<PrefillArgs>(), 0);
    bytes
}

/// The divisor of a kernel's outputs; each has an entry of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Division {
    None,
    Global,
    PerChunk,
}

impl Division {
    fn of(normaliser: Normaliser) -> Self {
        match normaliser {
            Normaliser::None => Self::None,
            Normaliser::Global { .. } => Self::Global,
            Normaliser::PerChunk { .. } => Self::PerChunk,
            other => panic!("{other:?} is new"),
        }
    }
}

/// A kernel for K = 64, with its parameters in src/cuda/variant.rs.
#[derive(Clone, Copy)]
struct Kernel {
    text: &'static str,
    division: Division,
    /// Whether tensors and dot products are bf16. Otherwise they are f32, and each number is represented by
    /// three terms.
    narrow: bool,
    /// Whether the kernel is one of Hopper's, in which three groups of warps pass tiles to each other.
    hopper: bool,
    /// The number of tokens in a tile.
    tokens: usize,
    shared: usize,
    stage: usize,
}

const BF16_DOT: Kernel = Kernel {
    text: "sm_80/prefill_bf16_dot",
    division: Division::Global,
    narrow: true,
    hopper: false,
    tokens: 64,
    shared: 2 * (64 * 3 * 64 + 64 * 65) + 12 * 64,
    stage: 64 * 3 * 64 * 2,
};

/// The same kernel with wgmma, on Hopper. Without stages, rows are not copied ahead.
const WGMMA: Kernel = Kernel {
    text: "sm_90a/prefill_bf16_dot",
    hopper: true,
    // Four tiles with their rows of columns and their flags; S and z, twice for PerChunk; and ones.
    shared: 4 * (64 * 3 * 64 * 2 + 4 * 64 * 4 + 16) + 2 * (64 * 64 * 2 + 64 * 16) + 256,
    stage: 0,
    ..BF16_DOT
};

const F32: Kernel = Kernel {
    text: "sm_80/prefill_f32",
    narrow: false,
    tokens: 32,
    shared: 2 * (32 * 9 * 64 + 3 * 64 * 65) + 12 * 64,
    stage: 32 * 3 * 64 * 4,
    ..BF16_DOT
};

impl Kernel {
    /// A kernel for each of its entries.
    fn entries(self) -> [Self; 3] {
        [Division::None, Division::Global, Division::PerChunk].map(|division| Self { division, ..self })
    }

    fn entry(&self) -> &'static str {
        match self.division {
            Division::None => "prefill_64_none",
            Division::Global => "prefill_64_global",
            Division::PerChunk => "prefill_64_per_chunk",
        }
    }

    fn name(&self) -> String {
        format!("{}, {}", self.text, self.entry())
    }

    /// The lines of the text, without other entries.
    fn lines(&self) -> Vec<String> {
        ptx::entry(self.text, self.entry()).lines().map(str::to_owned).collect()
    }
}

/// The part of a sequence that a launch computes.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Whole,
    /// The tokens after this number of tokens, from the state after these.
    After(usize),
    /// The sums of the first segment, without outputs.
    Sums,
}

/// The inputs of a launch, and its expected results.
struct Plan {
    kernel: Kernel,
    name: &'static str,
    case: Case,
    stages: usize,
    part: Part,
    /// The state before the first token.
    initial: Vec<f32>,
    want: Vec<f64>,
    size: Vec<f64>,
}

/// The number of tokens in the segment whose sums are computed.
fn segment_len(kernel: &Kernel) -> usize {
    2 * kernel.tokens
}

/// The outcome of a launch.
enum Verdict {
    Fault(String),
    Wrong(f64),
    /// The results are within the bound; these are the numbers.
    Right(Vec<f32>),
}

impl Verdict {
    fn is_right(&self) -> bool {
        matches!(self, Verdict::Right(_))
    }
}

impl Plan {
    fn new(kernel: Kernel, name: &'static str, normaliser: Normaliser, stages: usize) -> Self {
        // There are so many whole tiles that stages are used again, and a part of one.
        let tiles = if kernel.hopper && stages > 0 { 6 } else { 3 };
        let len = tiles * kernel.tokens + kernel.tokens / 2 + 3;
        let case = with_large_edges(Case::new(
            Config::new(Rule::linear(normaliser), Shape::new(1, len, 1, KEY, VALUE)),
            11,
        ));
        Self::of(kernel, name, case, stages, Part::Whole)
    }

    fn of(kernel: Kernel, name: &'static str, mut case: Case, stages: usize, part: Part) -> Self {
        if kernel.narrow {
            for x in [&mut case.q, &mut case.k, &mut case.v] {
                *x = widen(&narrow::<bf16>(x));
            }
        }
        let from = if let Part::After(from) = part { from } else { 0 };
        let before = |case: &Case| {
            let mut oracle = Oracle::new(&case.config);
            oracle.run(&case.q, &case.k, &case.v, 0..from);
            oracle
        };
        let of = |case: &Case| {
            let mut oracle = before(case);
            let len = if part == Part::Sums { segment_len(&kernel) } else { case.config.shape.len };
            let o = oracle.run(&case.q, &case.k, &case.v, from..len);
            if part == Part::Sums { oracle.state() } else { [o, oracle.state()].concat() }
        };
        let (want, size) = (of(&case), of(&case.without_cancellation()));
        let initial =
            if from == 0 { Vec::new() } else { before(&case).state().iter().map(|x| *x as f32).collect() };
        Self { kernel, name, case, stages, part, initial, want, size }
    }

    fn elements(&self, x: &[f32]) -> Buffer {
        let bytes: Vec<u8> = if self.kernel.narrow {
            x.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()
        } else {
            x.iter().flat_map(|x| x.to_le_bytes()).collect()
        };
        let buffer = Buffer::new(bytes.len(), 256, 0xff);
        buffer.copy_from(&bytes);
        buffer
    }

    fn numbers(&self, buffer: &Buffer, narrow: bool) -> Vec<f32> {
        let mut bytes = vec![0; buffer.len()];
        buffer.copy_to(&mut bytes);
        if narrow {
            bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        } else {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
    }

    /// Launches an entry; returns o and the state, or the sums of the segment.
    fn launch(&self, entry: &Entry, policy: Policy) -> Result<Vec<f32>, String> {
        let Config { rule, shape: Shape { len, value, .. }, .. } = self.case.config;
        assert_eq!(Division::of(rule.normaliser), self.kernel.division, "the entry for {}", self.name);
        let (chunk, eps) = match rule.normaliser {
            Normaliser::Global { eps } => (0, eps),
            Normaliser::PerChunk { chunk, eps } => (chunk as i32, eps),
            _ => (0, 0.0),
        };
        let [q, k, v] = [&self.case.q, &self.case.k, &self.case.v].map(|x| self.elements(x));
        let o = self.elements(&self.case.output());
        let state = self.case.attention().state_len();
        let [last, initial] = [(); 2].map(|()| Buffer::new(state * 4, 256, 0xff));
        initial.copy_from(&self.initial.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>());
        let sums = self.part == Part::Sums;
        let from = if let Part::After(from) = self.part { from } else { 0 };
        let row = |dim: usize| (from * dim * if self.kernel.narrow { 2 } else { 4 }) as u64;
        let len = len - from;
        let segments = Buffer::new(2 * (KEY * value + KEY) * 4, 256, 0xff);
        let [keys, values] = [KEY, value].map(|dim| {
            let (len, dim) = (len as i64, dim as i64);
            Strides { batch: len * dim, token: dim, head: dim }
        });
        let args = PrefillArgs {
            q: (q.address() + row(KEY)).into(),
            k: (k.address() + row(KEY)).into(),
            v: (v.address() + row(value)).into(),
            o: (o.address() + row(value)).into(),
            initial: if from > 0 { initial.address() } else { 0 }.into(),
            sums: 0.into(),
            last: if sums { 0 } else { last.address() }.into(),
            finished: 0.into(),
            segments: if sums { segments.address() } else { 0 }.into(),
            q_strides: keys,
            k_strides: keys,
            v_strides: values,
            o_strides: values,
            state_len: state as i64,
            len: len as i64,
            segment_len: if sums { segment_len(&self.kernel) } else { len.next_multiple_of(64) } as i64,
            heads: 1,
            key: KEY as i32,
            value: value as i32,
            chunk,
            feature_map: if rule.feature_map == FeatureMap::Identity { 2 } else { 0 },
            outputs: i32::from(!sums),
            aligned: i32::from(self.stages > 0 || !self.kernel.hopper),
            neighbours: 8,
            stages: self.stages as i32,
            eps,
            map_eps: 0.0,
            scale: rule.scale,
        };
        let dynamic_shared = (self.kernel.shared + self.stages * self.kernel.stage) as u32;
        let threads = if self.kernel.hopper { 384 } else { 256 };
        let grid = Grid { blocks: [1, 1, 1], threads: [threads, 1, 1], dynamic_shared };
        let options = Options { policy, seed: 3, budget: 1 << 24, ..Options::default() };
        let map =
            Map::new([&q, &k, &v, &o, &initial, &last, &segments].map(|b| (b.address(), b.len() as u64)));
        // SAFETY: the map contains these buffers, which only this launch accesses.
        let (_, result) = unsafe { launch(entry, &bytes(&args), map, grid, options) };
        result.map_err(|fault| fault.text)?;
        if sums {
            let z = if self.kernel.division == Division::None { 0 } else { KEY };
            return Ok(self.numbers(&segments, false)[..KEY * value + z].to_vec());
        }
        let o = self.numbers(&o, self.kernel.narrow);
        Ok([o[from * value..].to_vec(), self.numbers(&last, false)].concat())
    }

    /// The error of the worst element against the oracle; infinity if an element is finite in only one of the
    /// two.
    fn error(&self, got: &[f32]) -> f64 {
        let (mut numbers, mut want, mut size) = (Vec::new(), Vec::new(), Vec::new());
        for (i, number) in got.iter().enumerate() {
            if number.is_finite() != self.want[i].is_finite() {
                return f64::INFINITY;
            }
            if number.is_finite() {
                numbers.push(*number);
                want.push(self.want[i]);
                size.push(self.size[i]);
            }
        }
        element_error(&numbers, &want, &size)
    }

    /// The error that is allowed for the rounding of operands and outputs, as `allowed` in cuda.rs.
    fn allowed(&self) -> f64 {
        let bound = element_bound(&self.case.config);
        match self.kernel.narrow {
            true => bound + 1.0 / 256.0 + 6.0 / 512.0,
            // These results are compared with the shipped kernel's.
            false if self.name == THREE_TERMS => 2f64.powi(-22),
            false => bound,
        }
    }

    fn judge(&self, entry: &Entry, policy: Policy) -> Verdict {
        match self.launch(entry, policy) {
            Err(fault) => Verdict::Fault(fault),
            Ok(numbers) => {
                let error = self.error(&numbers);
                if error <= self.allowed() { Verdict::Right(numbers) } else { Verdict::Wrong(error) }
            }
        }
    }
}

/// Makes the first and last columns of q and k large, so that an index that is off by one has more effect
/// than rounding.
fn with_large_edges(mut case: Case) -> Case {
    for row in case.q.chunks_exact_mut(KEY).chain(case.k.chunks_exact_mut(KEY)) {
        (row[0], row[KEY - 1]) = (row[0] + 3.0, row[KEY - 1] + 3.0);
    }
    case
}

/// Launches that together reach every barrier and wait of a kernel.
fn plans(kernel: Kernel) -> Vec<Plan> {
    let normaliser = match kernel.division {
        Division::None => Normaliser::None,
        Division::Global => Normaliser::Global { eps: 1e-6 },
        // Each chunk is a tile.
        Division::PerChunk => Normaliser::per_chunk(kernel.tokens),
    };
    let mut plans = vec![
        Plan::new(kernel, "two stages", normaliser, 2),
        Plan::new(kernel, "one stage", normaliser, 1),
        Plan::new(kernel, "no stages", normaliser, 0),
    ];
    let mut case = plans[2].case.clone();
    if kernel.division == Division::PerChunk {
        // Where chunks are not tiles, outputs take a second pass over S of the finished chunks. The second
        // plan begins within a chunk.
        plans.push(Plan::new(kernel, TWO_PASSES, Normaliser::per_chunk(100), 2));
        let case = Plan::new(kernel, TWO_PASSES, Normaliser::per_chunk(100), 0).case;
        plans.push(Plan::of(kernel, "a chunk that has begun", case, 2, Part::After(110)));
    }
    if kernel.narrow {
        // Whole tiles have a separate path.
        let shape = Shape::new(1, plans[0].case.config.shape.len, 1, KEY, WHOLE);
        let whole = with_large_edges(Case::new(Config::new(Rule::linear(normaliser), shape), 12));
        plans.push(Plan::of(kernel, "whole tiles", whole, 2, Part::Whole));
    }
    // The computation of sums without outputs has a separate barrier.
    plans.push(Plan::of(kernel, "sums", case.clone(), 2, Part::Sums));
    // Rows that are not finite, in both halves of a 16 x 16 block on the diagonal. Only some warps read them,
    // and all warps must be informed.
    case.v[(kernel.tokens + 5) * VALUE + 3] = f32::INFINITY;
    case.v[(kernel.tokens + 12) * VALUE + 6] = f32::INFINITY;
    plans.push(Plan::of(kernel, INFINITY, case, 2, Part::Whole));
    if !kernel.narrow {
        // With a normaliser, an error in the scores is also in their sum. An eps as large as the sums
        // prevents the two from cancelling. There are two passes, because a chunk is longer than a tile.
        let normaliser = match kernel.division {
            Division::None => Normaliser::None,
            Division::Global => Normaliser::Global { eps: 1e10 },
            Division::PerChunk => Normaliser::PerChunk { chunk: 64, eps: 1e9 },
        };
        let config = with(plans[2].case.config, |c| c.rule.normaliser = normaliser);
        let mut plan = Plan::of(kernel, THREE_TERMS, of_three_terms(config), 2, Part::Whole);
        let shipped = entry(&kernel.lines()).expect("what is shipped");
        let got = plan.launch(&shipped, Policy::Ascending).expect("no fault");
        let error = plan.error(&got);
        assert!(error <= CUTS, "off by {error:e} where all cuts of tensor cores add up, {normaliser:?}");
        plan.want = got.iter().copied().map(f64::from).collect();
        plans.push(plan);
    }
    plans
}

/// Whether the three numbers of bf16 whose sum is x are all positive and large enough. A product without one
/// of them is then off by more than is allowed, in the direction in which tensor cores truncate.
fn has_three_terms(x: f32) -> bool {
    let first = bf16::from_f32(x).to_f32();
    let second = bf16::from_f32(x - first).to_f32();
    let third = x - first - second;
    second / x >= 1.7e-3 && third / x >= 3e-6
}

/// A case in which third terms do not cancel in any sums: those of the tensors, of the scores, of S and of z.
/// It consists of three numbers times powers of two, which differ between tokens in q and k and between
/// columns in v, so that a transposed operand has an effect.
fn of_three_terms(config: Config) -> Case {
    let config = with(config, |c| c.rule.feature_map = FeatureMap::Identity);
    let find = |fits: &dyn Fn(f32) -> bool| {
        let mut numbers = (0..1 << 23).map(|i| 1.0 + i as f32 / (1 << 23) as f32);
        numbers.find(|x| has_three_terms(*x) && fits(*x)).expect("such a number")
    };
    // The sum of the powers in k over eight tokens.
    let eight = 21845.0;
    let q = find(&|_| true);
    let k = find(&|k| has_three_terms(q * k) && has_three_terms(eight * k));
    let v = find(&|v| has_three_terms(eight * k * v));
    let mut case = Case::new(config, 11);
    for (token, row) in case.q.chunks_exact_mut(KEY).enumerate() {
        row.fill(q * 2f32.powi(token as i32 % 8));
    }
    for (token, row) in case.k.chunks_exact_mut(KEY).enumerate() {
        row.fill(k * 4f32.powi(token as i32 % 8));
    }
    for row in case.v.chunks_exact_mut(VALUE) {
        for (column, x) in row.iter_mut().enumerate() {
            *x = v * 2f32.powi(column as i32 % 8);
        }
    }
    case
}

/// A mutation: a line of the text, and its replacement.
struct Mutation {
    line: usize,
    old: String,
    new: String,
}

impl Mutation {
    /// All mutations of a kernel that `change` makes from single lines.
    fn all(kernel: Kernel, change: impl Fn(&str) -> Vec<String>) -> Vec<Self> {
        let of_line = |(line, old): (usize, String)| {
            let made: Vec<_> =
                change(&old).into_iter().map(|new| Self { line, old: old.clone(), new }).collect();
            made
        };
        kernel.lines().into_iter().enumerate().flat_map(of_line).collect()
    }

    fn plant(&self, kernel: Kernel) -> Entry {
        let mut lines = kernel.lines();
        lines[self.line].clone_from(&self.new);
        entry(&lines).unwrap_or_else(|error| panic!("{self}: {error}"))
    }
}

impl std::fmt::Display for Mutation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (old, new) = (self.old.trim(), self.new.trim());
        write!(f, "line {}, {old} -> {}", self.line + 1, if new.is_empty() { "nothing" } else { new })
    }
}

fn entry(lines: &[String]) -> Result<Entry, String> {
    let module = parse::module(&lines.join("\n"))?;
    module.entries.into_iter().next().ok_or_else(|| "no entry".to_owned())
}

/// Runs each mutation; returns those that neither fault nor give another result with any plan in any order.
fn missed(kernel: Kernel, plans: &[Plan], mutations: &[Mutation], what: &str) -> Vec<String> {
    assert!(!mutations.is_empty(), "no {what} in {}", kernel.name());
    let (mut missed, mut faults, mut wrong) = (Vec::new(), 0, 0);
    for mutation in mutations {
        let entry = mutation.plant(kernel);
        let tries = ORDERS.iter().flat_map(|order| plans.iter().map(move |plan| (plan, *order)));
        match tries.map(|(plan, order)| plan.judge(&entry, order)).find(|verdict| !verdict.is_right()) {
            Some(Verdict::Fault(_)) => faults += 1,
            Some(_) => wrong += 1,
            None => missed.push(mutation.to_string()),
        }
    }
    report(&format!(
        "{}: {what}: {} faults planted, {} noticed: {faults} by a check of the emulator, {wrong} by the result",
        kernel.name(),
        mutations.len(),
        faults + wrong
    ));
    missed
}

/// Checks that exactly the allowed mutations were missed.
fn assert_missed(missed: &[String], allowed: &[&str]) {
    let fits = missed.len() == allowed.len() && missed.iter().zip(allowed).all(|(m, a)| m.contains(a));
    assert!(fits, "missed: {missed:#?}, but may be: {allowed:#?}");
}

/// The shipped kernels are right, and give the same bits in every order.
#[test]
fn unharmed() {
    for kernel in [BF16_DOT, WGMMA, F32].into_iter().flat_map(Kernel::entries) {
        let entry = entry(&kernel.lines()).expect("what is shipped");
        for plan in plans(kernel) {
            let mut first = None;
            for order in ORDERS {
                match plan.judge(&entry, order) {
                    Verdict::Right(numbers) => {
                        let first = first.get_or_insert_with(|| numbers.clone());
                        assert_eq!(first_difference(first, &numbers), None, "{order:?}, {}", plan.name);
                    }
                    Verdict::Wrong(error) => {
                        panic!("off by {error:e}: {}, {}, {order:?}", kernel.name(), plan.name)
                    }
                    Verdict::Fault(fault) => panic!("{fault}: {}, {}, {order:?}", kernel.name(), plan.name),
                }
            }
            if plan.part == Part::Whole && plan.name != INFINITY {
                let (o, state) = plan.case.whole_and_state();
                let error = plan.error(&[o, state].concat());
                let allowed = if plan.name == THREE_TERMS { CUTS } else { plan.allowed() };
                assert!(
                    error <= allowed,
                    "the CPU's are off by {error:e}, allowed {allowed:e}: {}",
                    plan.name
                );
            }
        }
    }
}

/// Every barrier and every arrival is needed. The barrier that also combines votes is removed in two ways:
/// completely, or only the vote.
fn barriers(kernel: Kernel) {
    let change = |line: &str| {
        if line.contains("bar.red.or.pred") {
            return vec!["mov.pred %p2, %p1;".to_owned(), "bar.sync 0; mov.pred %p2, %p1;".to_owned()];
        }
        let is_barrier = line.contains("bar.sync") || line.contains("bar.arrive");
        if is_barrier { vec![String::new()] } else { Vec::new() }
    };
    for kernel in kernel.entries() {
        let missed = missed(kernel, &plans(kernel), &Mutation::all(kernel, change), "barriers");
        assert_missed(&missed, &[]);
    }
}

#[test]
fn barriers_of_bf16_dot() {
    barriers(BF16_DOT);
}

#[test]
fn barriers_of_wgmma() {
    barriers(WGMMA);
}

#[test]
fn barriers_of_f32() {
    barriers(F32);
}

/// Every wait for copies is needed, and so is the number of copies for which it waits.
fn waits(kernel: Kernel) {
    let change = |line: &str| {
        let Some((before, count)) = line.split_once("cp.async.wait_group") else { return Vec::new() };
        let count: u32 = count.trim_matches([' ', '\t', ';']).parse().expect("a number of groups");
        vec![String::new(), format!("{before}cp.async.wait_group {};", count + 1)]
    };
    for kernel in kernel.entries() {
        let mutations = Mutation::all(kernel, change);
        let missed = missed(kernel, &plans(kernel), &mutations, "waits");
        // The last wait is after the last tile, when no copy is pending, because the tiles ahead had no rows.
        // It exists because a block must not end before its copies, in case the order of the tiles ever
        // changes.
        let last = format!("line {}", mutations.last().expect("a wait").line + 1);
        assert_missed(&missed, &[&last, &last]);
    }
}

#[test]
fn waits_of_bf16_dot() {
    waits(BF16_DOT);
}

#[test]
fn waits_of_wgmma() {
    waits(WGMMA);
}

/// Every fence of memory and of registers before products is needed, and so is every wait for products.
#[test]
fn fences_of_wgmma() {
    let change = |line: &str| {
        let alone = ["fence.proxy.async", "wgmma.fence"].iter().any(|fence| line.contains(fence));
        let wait = line.contains("wgmma.wait_group").then(|| "wgmma.commit_group.sync.aligned;".to_owned());
        alone.then(String::new).or(wait).into_iter().collect()
    };
    for kernel in WGMMA.entries() {
        let missed =
            missed(kernel, &plans(kernel), &Mutation::all(kernel, change), "fences and waits of wgmma");
        assert_missed(&missed, &[]);
    }
}

#[test]
fn waits_of_f32() {
    waits(F32);
}

/// Every product is needed, and so is the order in which its operands are read.
fn products(kernel: Kernel) {
    let change = |line: &str| {
        if let Some((product, flags)) = line.split_once(", add, 1, 1, ") {
            // The product is left out, or one of its operands in shared memory is transposed.
            let flags: Vec<_> = flags.trim_end_matches([';', '}']).split(", ").collect();
            // An operand of ones, whose eight columns are equal, is its own transpose.
            let sums = line.contains("m64n8k16");
            let turned = (0..flags.len() - usize::from(sums)).map(|at| {
                let mut flags = flags.clone();
                flags[at] = if flags[at] == "0" { "1" } else { "0" };
                format!("{product}, add, 1, 1, {};}}", flags.join(", "))
            });
            // A sum that should begin at zero continues another, and the reverse.
            let adds = line.replace("setp.ne.b32 add", "setp.eq.b32 add");
            [String::new(), adds].into_iter().chain(turned).collect()
        } else if line.contains("mma.sync") {
            vec![String::new()]
        } else if line.contains(".trans.shared") {
            vec![line.replace(".trans.shared", ".shared")]
        } else if line.contains("ldmatrix") {
            vec![line.replace(".shared", ".trans.shared")]
        } else {
            Vec::new()
        }
    };
    for kernel in kernel.entries() {
        let mutations = Mutation::all(kernel, change);
        let missed = missed(kernel, &plans(kernel), &mutations, "products and their operands");
        assert_missed(&missed, &[]);
    }
}

#[test]
fn products_of_bf16_dot() {
    products(BF16_DOT);
}

#[test]
fn products_of_wgmma() {
    products(WGMMA);
}

#[test]
fn products_of_f32() {
    products(F32);
}

/// Every mask of a pair of numbers is needed: one mutation keeps the number above the diagonal, the other
/// drops the number on it.
fn masks(kernel: Kernel) {
    const ON_IT: &str = "65535, 0, %p";
    let change = |line: &str| {
        if !line.contains(ON_IT) {
            return Vec::new();
        }
        ["-1, 0, %p", "0, 0, %p"].map(|word| line.replace(ON_IT, word)).to_vec()
    };
    for kernel in kernel.entries() {
        let missed = missed(kernel, &plans(kernel), &Mutation::all(kernel, change), "masks");
        assert_missed(&missed, &[]);
    }
}

#[test]
fn masks_of_bf16_dot() {
    masks(BF16_DOT);
}

#[test]
fn masks_of_wgmma() {
    masks(WGMMA);
}

#[test]
fn masks_of_f32() {
    masks(F32);
}

/// Comparisons that are off by one, of the rows of a tile, the ends of a tensor and the diagonal. Each that
/// changes a bit of a result must be noticed. The others have no effect: these launches do not reach them,
/// they end loops whose steps are larger than one, or they compare numbers that are never equal, such as half
/// of the rows and columns of a fragment.
fn comparisons(kernel: Kernel) {
    let change = |line: &str| {
        let moved = |(old, new): (&str, &str)| line.contains(old).then(|| line.replace(old, new));
        let pairs = [
            ("setp.gt.", "setp.ge."),
            ("setp.ge.", "setp.gt."),
            ("setp.lt.", "setp.le."),
            ("setp.le.", "setp.lt."),
        ];
        let of_numbers = [".s32", ".u32"].iter().any(|kind| line.contains(kind));
        pairs.into_iter().filter_map(moved).filter(|_| of_numbers).collect()
    };
    let [.., kernel] = kernel.entries();
    let mut plans = plans(kernel);
    plans.retain(|plan| plan.name == INFINITY || plan.name == TWO_PASSES);
    let launch = |entry: &Entry, plan: &Plan| plan.launch(entry, Policy::Ascending);
    let shipped = entry(&kernel.lines()).expect("what is shipped");
    let right: Vec<_> = plans.iter().map(|plan| launch(&shipped, plan).expect("no fault")).collect();
    let mutations = Mutation::all(kernel, change);
    let (mut noticed, mut equal, mut missed) = (0, 0, Vec::new());
    for mutation in &mutations {
        let entry = mutation.plant(kernel);
        let mut differs = false;
        let found = plans.iter().zip(&right).any(|(plan, right)| match launch(&entry, plan) {
            Err(_) => true,
            Ok(got) => {
                differs |= first_difference(&got, right).is_some();
                plan.error(&got) > plan.allowed()
            }
        });
        match (found, differs) {
            (true, _) => noticed += 1,
            (false, true) => missed.push(mutation.to_string()),
            (false, false) => equal += 1,
        }
    }
    report(&format!(
        "{}: comparisons: {} moved by one, {noticed} noticed, {equal} without effect on any bit",
        kernel.name(),
        mutations.len()
    ));
    assert_missed(&missed, &[]);
    assert!(noticed >= 30, "only {noticed} were noticed");
}

#[test]
fn comparisons_of_bf16_dot() {
    comparisons(BF16_DOT);
}

#[test]
fn comparisons_of_wgmma() {
    comparisons(WGMMA);
}

#[test]
fn comparisons_of_f32() {
    comparisons(F32);
}
