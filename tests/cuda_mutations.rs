//! Whether the tests would notice: the PTX that is shipped with one fault planted in it, a barrier or a wait taken away, a
//! mask or an operand turned, must fault in the emulator or give another result. Which faults do neither is listed, with why.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(unsafe_code, reason = "a kernel runs on memory by its address")]
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

/// Orders in which a fault may show: a race that one hides, another may not.
const ORDERS: [Policy; 3] = [Policy::Ascending, Policy::Descending, Policy::Random];

/// Columns of K and V. Those of V leave a part of the panel empty, or not.
const KEY: usize = 64;
const VALUE: usize = 40;
const WHOLE: usize = 64;

/// Plans that are told from the others.
const THREE_TERMS: &str = "three terms";
const INFINITY: &str = "an infinity";
const TWO_PASSES: &str = "two passes";

/// The error of a kernel of f32 where all numbers are positive and all cuts of tensor cores, as the emulator makes them, add up:
/// as large as a product of third terms, so that one that is lacking shows only beside the kernel's own result.
const CUTS: f64 = 1e-5;

/// What a kernel is given, as it lies in memory.
fn bytes(args: &PrefillArgs) -> Vec<u8> {
    let len = offset_of!(PrefillArgs, scale) + size_of::<f32>();
    // SAFETY: numbers without padding between them; what follows the last is left out.
    let mut bytes = unsafe { std::slice::from_raw_parts((&raw const *args).cast::<u8>(), len) }.to_vec();
    bytes.resize(size_of::<PrefillArgs>(), 0);
    bytes
}

/// By what a kernel divides: each has an entry of its own.
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

/// A kernel for K of 64, and how variant.rs cuts it.
#[derive(Clone, Copy)]
struct Kernel {
    text: &'static str,
    division: Division,
    /// Whether q, k, v and o are of bf16, with dot products of bf16; f32 otherwise, three terms to each number.
    narrow: bool,
    /// Whether three groups of warps hand tiles to one another, which are copied where they are read.
    hopper: bool,
    /// Tokens in a tile.
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

/// The same by wgmma, on Hopper. Without stages rows are not copied ahead.
const WGMMA: Kernel = Kernel {
    text: "sm_90a/prefill_bf16_dot",
    hopper: true,
    // Four tiles with their rows of columns and flags, S, z and ones; with PerChunk S and z twice.
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
    /// One for each of its entries.
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

    /// The lines of its text, without other entries.
    fn lines(&self) -> Vec<String> {
        ptx::entry(self.text, self.entry()).lines().map(str::to_owned).collect()
    }
}

/// What of a sequence a launch computes.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Whole,
    /// What comes after so many tokens, from the state that they leave.
    After(usize),
    /// The first segment's sums, not outputs.
    Sums,
}

/// What a launch is given, and what it must give.
struct Plan {
    kernel: Kernel,
    name: &'static str,
    case: Case,
    stages: usize,
    part: Part,
    /// The state that it begins from.
    initial: Vec<f32>,
    want: Vec<f64>,
    size: Vec<f64>,
}

/// Tokens of the segment whose sums are asked for.
fn segment_len(kernel: &Kernel) -> usize {
    2 * kernel.tokens
}

/// What became of a launch.
enum Verdict {
    Fault(String),
    Wrong(f64),
    /// As good as it should be; the numbers.
    Right(Vec<f32>),
}

impl Verdict {
    fn is_right(&self) -> bool {
        matches!(self, Verdict::Right(_))
    }
}

impl Plan {
    fn new(kernel: Kernel, name: &'static str, normaliser: Normaliser, stages: usize) -> Self {
        // So many whole tiles that stages are used again, and a part of one.
        let tiles = if kernel.hopper && stages > 0 { 6 } else { 3 };
        let len = tiles * kernel.tokens + kernel.tokens / 2 + 3;
        let case = edges_weigh(Case::new(
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

    /// A launch of an entry: o and the state, or the segment's sums.
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
        // SAFETY: the map names these buffers, which only this launch has.
        let (_, result) = unsafe { launch(entry, &bytes(&args), map, grid, options) };
        result.map_err(|fault| fault.text)?;
        if sums {
            let z = if self.kernel.division == Division::None { 0 } else { KEY };
            return Ok(self.numbers(&segments, false)[..KEY * value + z].to_vec());
        }
        let o = self.numbers(&o, self.kernel.narrow);
        Ok([o[from * value..].to_vec(), self.numbers(&last, false)].concat())
    }

    /// The worst element beside the oracle's; what is not finite there must not be finite here, and the other way round.
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

    /// What the rounding of operands and of outputs may cost: as `allowed` in cuda.rs.
    fn allowed(&self) -> f64 {
        let bound = element_bound(&self.case.config);
        match self.kernel.narrow {
            true => bound + 1.0 / 256.0 + 6.0 / 512.0,
            // Beside the kernel as it is shipped.
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

/// The first and last columns of q and k are large, so that what is off by one is more than a rounding.
fn edges_weigh(mut case: Case) -> Case {
    for row in case.q.chunks_exact_mut(KEY).chain(case.k.chunks_exact_mut(KEY)) {
        (row[0], row[KEY - 1]) = (row[0] + 3.0, row[KEY - 1] + 3.0);
    }
    case
}

/// Launches that between them reach every barrier and wait of a kernel, with what each is for.
fn plans(kernel: Kernel) -> Vec<Plan> {
    let normaliser = match kernel.division {
        Division::None => Normaliser::None,
        Division::Global => Normaliser::Global { eps: 1e-6 },
        // Chunks that are tiles.
        Division::PerChunk => Normaliser::per_chunk(kernel.tokens),
    };
    let mut plans = vec![
        Plan::new(kernel, "two stages", normaliser, 2),
        Plan::new(kernel, "one stage", normaliser, 1),
        Plan::new(kernel, "no stages", normaliser, 0),
    ];
    let mut case = plans[2].case.clone();
    if kernel.division == Division::PerChunk {
        // Chunks that are not tiles: outputs take a second pass, through S of the finished chunks; and from within a chunk.
        plans.push(Plan::new(kernel, TWO_PASSES, Normaliser::per_chunk(100), 2));
        let case = Plan::new(kernel, TWO_PASSES, Normaliser::per_chunk(100), 0).case;
        plans.push(Plan::of(kernel, "a chunk that has begun", case, 2, Part::After(110)));
    }
    if kernel.narrow {
        // Whole tiles have a path of their own.
        let shape = Shape::new(1, plans[0].case.config.shape.len, 1, KEY, WHOLE);
        let whole = edges_weigh(Case::new(Config::new(Rule::linear(normaliser), shape), 12));
        plans.push(Plan::of(kernel, "whole tiles", whole, 2, Part::Whole));
    }
    // Sums alone have a barrier of their own.
    plans.push(Plan::of(kernel, "sums", case.clone(), 2, Part::Sums));
    // Rows that are not finite, which some warps find and all must hear of: in both halves of a 16 x 16 on the diagonal.
    case.v[(kernel.tokens + 5) * VALUE + 3] = f32::INFINITY;
    case.v[(kernel.tokens + 12) * VALUE + 6] = f32::INFINITY;
    plans.push(Plan::of(kernel, INFINITY, case, 2, Part::Whole));
    if !kernel.narrow {
        // With a normaliser what the scores lack is lacking in their sum too: an eps as large as the sums keeps the two from
        // cancelling. Two passes take place where a chunk is more than a tile.
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

/// Whether all three bf16 whose sum a number is are large and positive, so that a product without one is off by more than is
/// allowed, on the side to which the cuts of tensor cores go.
fn has_three_terms(x: f32) -> bool {
    let first = bf16::from_f32(x).to_f32();
    let second = bf16::from_f32(x - first).to_f32();
    let third = x - first - second;
    second / x >= 1.7e-3 && third / x >= 3e-6
}

/// Tensors whose third terms do not cancel in sums, nor do those of the scores, of S and of z: of three numbers and powers of
/// two, which differ from token to token in q and k, and from column to column in v, so that a transposed one shows.
fn of_three_terms(config: Config) -> Case {
    let config = with(config, |c| c.rule.feature_map = FeatureMap::Identity);
    let find = |fits: &dyn Fn(f32) -> bool| {
        let mut numbers = (0..1 << 23).map(|i| 1.0 + i as f32 / (1 << 23) as f32);
        numbers.find(|x| has_three_terms(*x) && fits(*x)).expect("such a number")
    };
    // The sum of k's powers over eight tokens.
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

/// A fault to plant: a line, and what it becomes.
struct Mutation {
    line: usize,
    old: String,
    new: String,
}

impl Mutation {
    /// All of a kernel that `change` makes of single lines.
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

/// Plants each fault; those that neither fault nor differ in any plan under any order.
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

/// What was missed is what may be, no more and no less.
fn assert_missed(missed: &[String], allowed: &[&str]) {
    let fits = missed.len() == allowed.len() && missed.iter().zip(allowed).all(|(m, a)| m.contains(a));
    assert!(fits, "missed: {missed:#?}, but may be: {allowed:#?}");
}

/// As shipped, in every order: right, in the same bits.
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

/// Every barrier is needed, and every arrival. That of the votes goes in two ways: with the barrier, and the vote alone.
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

/// Every wait for copies is needed, and for as many as it says.
fn waits(kernel: Kernel) {
    let change = |line: &str| {
        let Some((before, count)) = line.split_once("cp.async.wait_group") else { return Vec::new() };
        let count: u32 = count.trim_matches([' ', '\t', ';']).parse().expect("a number of groups");
        vec![String::new(), format!("{before}cp.async.wait_group {};", count + 1)]
    };
    for kernel in kernel.entries() {
        let mutations = Mutation::all(kernel, change);
        let missed = missed(kernel, &plans(kernel), &mutations, "waits");
        // The last one is after the last tile, when the tiles ahead had no rows: nothing is on its way. It is there for the
        // rule that a block does not end before its copies, should the tiles ahead ever be others.
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

/// Every fence before products, of memory and of registers, and every wait for them.
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

/// A product that is left out, one whose operand is read the other way round.
fn products(kernel: Kernel) {
    let change = |line: &str| {
        if let Some((product, flags)) = line.split_once(", add, 1, 1, ") {
            // Left out, and each of its operands in shared memory the other way round.
            let flags: Vec<_> = flags.trim_end_matches([';', '}']).split(", ").collect();
            // Eight columns that are all alike are also their own transposed where they are ones.
            let sums = line.contains("m64n8k16");
            let turned = (0..flags.len() - usize::from(sums)).map(|at| {
                let mut flags = flags.clone();
                flags[at] = if flags[at] == "0" { "1" } else { "0" };
                format!("{product}, add, 1, 1, {};}}", flags.join(", "))
            });
            // Sums that begin anew would go on, and the other way round.
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

/// The words by which pairs are masked: one that lets through the number above the diagonal, one that stops that on it.
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

/// Comparisons that are off by one: of a tile's rows, of the tensor's ends, of the diagonal. Each that changes a bit of a result
/// must be noticed. Those of no effect are of what these launches do not reach, stop loops whose steps are larger than one, or
/// compare what is never equal: half of a fragment's rows and columns.
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
