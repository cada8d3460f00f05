//! The C ABI of gates, the delta rule, grouped heads, ragged batches, drafts and attention that is not
//! causal: calls have the bits of the Rust calls, structures of older headers are accepted, and a refused
//! call writes nothing.
#![allow(unsafe_code, reason = "the C ABI is called")]
mod capi_common;
mod common;

use std::mem::{offset_of, size_of_val};
use std::ptr::{null, null_mut};

use capi_common::*;
use chunkwise::capi::args::*;
use chunkwise::capi::attention::*;
use chunkwise::capi::draft::*;
use chunkwise::capi::state::*;
use chunkwise::capi::status::*;
use chunkwise::{
    Attention, BetaMap, Config, FeatureMap, Gate, GateMap, HeadOrder, Heads, Normaliser, Rule, Shape, State,
    Update,
};
use common::family::FamilyCase;
use common::*;
use half::{bf16, f16};

/// The structure of C that corresponds to a configuration.
fn attention(config: &Config) -> cw_attention {
    let Rule { update, gate, gate_map, beta_map, feature_map, qk_norm, normaliser, scale, causal, .. } =
        config.rule;
    let (normaliser, normaliser_eps, chunk) = match normaliser {
        Normaliser::Global { eps } => (CW_GLOBAL, eps, 0),
        Normaliser::PerChunk { chunk, eps } => (CW_PER_CHUNK, eps, chunk as u64),
        _ => (CW_NONE, 0.0, 0),
    };
    cw_attention {
        feature_map: match feature_map {
            FeatureMap::Elu => CW_ELU,
            FeatureMap::Relu { .. } => CW_RELU,
            _ => CW_IDENTITY,
        },
        normaliser,
        normaliser_eps,
        chunk,
        scale,
        update: if update == Update::Delta { 1 } else { 0 },
        gate: match gate {
            Gate::Scalar => 1,
            Gate::Key => 2,
            _ => 0,
        },
        gate_map: match gate_map {
            GateMap::Linear => 1,
            GateMap::Softplus => 2,
            GateMap::Bounded { .. } => 3,
            _ => 0,
        },
        gate_lower: if let GateMap::Bounded { lower } = gate_map { lower } else { f32::NAN },
        beta_map: match beta_map {
            BetaMap::Sigmoid => 1,
            BetaMap::TwiceSigmoid => 2,
            _ => 0,
        },
        head_order: if config.shape.groups.order == HeadOrder::Tiled { 1 } else { 0 },
        qk_norm: u32::from(qk_norm.is_some()),
        qk_norm_eps: qk_norm.unwrap_or(f32::NAN),
        not_causal: u32::from(!causal),
        ..cw_attention::DEFAULT
    }
}

/// A contiguous tensor of f32. A last dimension of 0 stands for a tensor of rank 3.
fn tensor(data: *const f32, [b, t, h, d]: [usize; 4]) -> cw_tensor {
    let (rank, row) = if d == 0 { (3, 1) } else { (4, d) };
    let strides = [t * h * row, h * row, row, 1];
    cw_tensor {
        data: data.cast_mut().cast(),
        dtype: CW_F32,
        rank,
        dims: [b, t, h, row].map(|size| size as u64),
        strides: strides.map(|size| size as u64),
    }
}

/// The memory to which a call points.
#[derive(Clone)]
struct Memory {
    case: FamilyCase,
    o: Vec<f32>,
    state: Vec<f32>,
    scratch: Vec<f32>,
}

impl Memory {
    fn new(case: &FamilyCase) -> Self {
        let attention = attention(&case.config);
        let mut memory = Self { case: case.clone(), o: case.output(), state: vec![], scratch: vec![] };
        let mut sizes = cw_sizes::DEFAULT;
        // SAFETY: the structures are this test's.
        assert_eq!(unsafe { cw_attention_sizes(&attention, &memory.call(), &mut sizes) }, CW_OK);
        memory.state = vec![0.0; sizes.state_bytes as usize / 4];
        if memory.state.len() == case.initial.len() {
            memory.state.clone_from(&case.initial);
        }
        memory.scratch =
            vec![SENTINEL; sizes.forward_scratch_bytes.max(sizes.decode_scratch_bytes) as usize / 4];
        memory
    }

    fn call(&mut self) -> cw_call {
        let Self { case, o, state, scratch } = self;
        let Shape { batch, len, groups, key, value, heads, ragged, .. } = case.config.shape;
        let rows = if ragged { 1 } else { batch };
        let gate = |x: &[f32], row| match x {
            [] if len > 0 => cw_call::DEFAULT.g,
            x => tensor(x.as_ptr(), [rows, len, heads, row]),
        };
        let parameter = |x: &[f32]| if x.is_empty() { null() } else { x.as_ptr() };
        cw_call {
            q: tensor(case.q.as_ptr(), [rows, len, groups.query, key]),
            k: tensor(case.k.as_ptr(), [rows, len, groups.key, key]),
            v: tensor(case.v.as_ptr(), [rows, len, groups.value, value]),
            o: tensor(o.as_mut_ptr(), [rows, len, groups.output(), value]),
            g: gate(&case.g, if case.config.rule.gate == Gate::Key { key } else { 0 }),
            beta: gate(&case.beta, 0),
            a_log: parameter(&case.a_log),
            dt_bias: parameter(&case.dt_bias),
            sequences: case.sequences.as_ref().map_or(null(), |begins| begins.as_ptr()),
            sequence_count: if ragged { batch as u64 } else { 0 },
            state_in: state.as_ptr(),
            state_out: state.as_mut_ptr(),
            state_bytes: size_of_val(&state[..]) as u64,
            scratch: scratch.as_mut_ptr().cast(),
            scratch_bytes: size_of_val(&scratch[..]) as u64,
            ..cw_call::DEFAULT
        }
    }

    /// The bits of the memory that a call may write. Scratch is included only where a call was refused,
    /// because its contents after a call are not specified.
    fn written(&self, status: i32) -> Vec<u32> {
        let scratch = if status == CW_OK { &[][..] } else { &self.scratch };
        [&self.o, &self.state, scratch].into_iter().flatten().map(|x| x.to_bits()).collect()
    }
}

type Run = unsafe extern "C" fn(*const cw_attention, *const cw_call) -> i32;

/// Compares a call with the Rust call on the same numbers.
fn same_as_rust(name: &str, case: &FamilyCase, decode: bool) {
    let rust = Attention::new(case.config).unwrap();
    for threads in [1, 2] {
        let mut memory = Memory::new(case);
        assert_eq!(memory.state.len(), rust.state_len(), "{name}");
        let (mut o, mut state) = (case.output(), memory.state.clone());
        let mut scratch = vec![f32::NAN; rust.scratch_len().max(rust.decode_scratch_len())];
        let tensors = case.tensors(&mut o);
        let run: Run = if decode {
            rust.decode(tensors, &mut state, &mut scratch).unwrap();
            cw_decode
        } else {
            rust.forward(tensors, State::Carried(&mut state), &mut scratch).unwrap();
            cw_forward
        };
        let attention = cw_attention { threads, ..attention(&case.config) };
        // SAFETY: the memory is this test's.
        assert_eq!(unsafe { run(&attention, &memory.call()) }, CW_OK, "{name}");
        assert!(untouched(&o, &memory.o), "{name}: o of {:?}", case.config);
        assert!(untouched(&state, &memory.state), "{name}: the state of {:?}", case.config);
        assert!(
            case.config.shape.len == 0 || !untouched(&state, &Memory::new(case).state),
            "{name}: no change"
        );
    }
}

/// Rules with every gate, map, normaliser and norm.
fn rules() -> Vec<(&'static str, Rule)> {
    let bounded = GateMap::Bounded { lower: -4.0 };
    let mut rules = common::family::rules();
    rules.extend([
        ("linear", Rule::linear(Normaliser::None).scale(0.5)),
        ("linear, normalised", Rule::linear(Normaliser::Global { eps: 1e-5 })),
        ("linear, by chunks", Rule::linear(Normaliser::per_chunk(7)).qk_norm(1e-3)),
        ("scalar gate, decays", Rule::gated(Gate::Scalar).gate_map(GateMap::Linear)),
        ("scalar gate, softplus", Rule::gated(Gate::Scalar).gate_map(GateMap::Softplus)),
        ("key gate, bounded", Rule::gated(Gate::Key).gate_map(bounded)),
        ("delta, sigmoid", Rule::delta(Gate::None).beta_map(BetaMap::Sigmoid).qk_norm(1e-6)),
        (
            "gated delta, softplus",
            Rule::delta(Gate::Scalar)
                .gate_map(GateMap::Softplus)
                .beta_map(BetaMap::TwiceSigmoid)
                .qk_norm(1e-2),
        ),
        ("gated delta, key gate, softplus", Rule::delta(Gate::Key).gate_map(GateMap::Softplus).qk_norm(1e-6)),
    ]);
    rules
}

#[test]
fn the_bits_are_those_of_the_rust_calls() {
    for (name, rule) in rules() {
        for (q, k, v) in [(2, 2, 2), (4, 2, 2), (2, 1, 4), (6, 3, 1)] {
            for order in [HeadOrder::Interleaved, HeadOrder::Tiled] {
                let shape = |len| Shape::grouped(2, len, Heads::new(q, k, v).order(order), 5, 6);
                same_as_rust(name, &FamilyCase::new(Config::new(rule, shape(21)), 1), false);
                same_as_rust(name, &FamilyCase::new(Config::new(rule, shape(1)), 2), true);
            }
        }
    }
    let rule = Rule::linear(Normaliser::Global { eps: 1e-6 }).causal(false);
    let shape = Shape::grouped(2, 21, Heads::new(4, 2, 1), 5, 6);
    same_as_rust("not causal", &FamilyCase::new(Config::new(rule, shape), 3), false);
}

#[test]
fn ragged_batches() {
    for (name, rule) in rules() {
        let shape = |len| Shape::grouped(1, len, Heads::new(4, 2, 2), 5, 6).with_sequences(4);
        let mut case = FamilyCase::new(Config::new(rule, shape(30)), 4);
        case.sequences = Some(vec![0, 7, 7, 25, 30]);
        same_as_rust(name, &case, false);
        // A decode takes one token of each of the four sequences, and does not use the beginnings.
        same_as_rust(name, &FamilyCase::new(Config::new(rule, shape(4)), 5), true);
    }
}

/// Ranges count heads of the state, whatever the number of outputs.
#[test]
fn ranges_of_grouped_heads() {
    let (_, rule) = rules().pop().unwrap();
    for (decode, len) in [(false, 21), (true, 1)] {
        let shape = Shape::grouped(2, len, Heads::new(6, 1, 3), 5, 6);
        let case = FamilyCase::new(Config::new(rule, shape), 6);
        let (mut whole, mut parts) = (Memory::new(&case), Memory::new(&case));
        let attention = attention(&case.config);
        let (run, range): (Run, unsafe extern "C" fn(_, _, _, _) -> _) =
            if decode { (cw_decode, cw_decode_range) } else { (cw_forward, cw_forward_range) };
        // SAFETY: the memory is this test's.
        unsafe {
            assert_eq!(run(&attention, &whole.call()), CW_OK);
            for (first, count) in [(2, 3), (0, 2), (5, 1), (6, 0)] {
                assert_eq!(range(&attention, &parts.call(), first, count), CW_OK);
            }
            assert_eq!(range(&attention, &parts.call(), 5, 2), CW_RANGE);
        }
        assert!(untouched(&whole.o, &parts.o) && untouched(&whole.state, &parts.state), "{decode}");
    }
}

/// A draft and its record.
struct Draft {
    memory: Memory,
    record: Vec<f32>,
    accepted: [u32; 2],
}

impl Draft {
    fn new(case: &FamilyCase) -> Self {
        let mut memory = Memory::new(case);
        let mut sizes = cw_sizes::DEFAULT;
        // SAFETY: the structures are this test's.
        let asked = unsafe { cw_attention_sizes(&attention(&case.config), &memory.call(), &mut sizes) };
        assert_eq!(asked, CW_OK);
        Self { memory, record: vec![SENTINEL; sizes.record_bytes as usize / 4], accepted: [9, 4] }
    }

    fn call(&mut self) -> cw_call {
        cw_call { state_out: null_mut(), ..self.memory.call() }
    }

    fn record_bytes(&self) -> u64 {
        size_of_val(&self.record[..]) as u64
    }

    fn written(&self, status: i32) -> Vec<u32> {
        [self.memory.written(status), self.record.iter().map(|x| x.to_bits()).collect()].concat()
    }
}

#[test]
fn drafts_are_those_of_the_rust_calls() {
    for (name, rule) in rules() {
        let shape = Shape::grouped(2, 9, Heads::new(4, 2, 2), 5, 6);
        let case = FamilyCase::new(Config::new(rule, shape), 1);
        let (rust, mut c) = (case.attention(), Draft::new(&case));
        assert_eq!(c.record.len(), rust.record_len(), "{name}");
        let (mut o, mut state, mut record) = (case.output(), c.memory.state.clone(), c.record.clone());
        let scratch = &mut vec![f32::NAN; rust.scratch_len()];
        rust.verify(case.tensors(&mut o), &state, &mut record, scratch).unwrap();
        rust.commit(&record, &c.accepted, &mut state).unwrap();
        let attention = attention(&case.config);
        let (call, at, bytes) = (c.call(), c.record.as_mut_ptr(), c.record_bytes());
        // SAFETY: the memory is this test's.
        unsafe {
            for (first, count) in [(1, 3), (0, 1)] {
                assert_eq!(cw_verify_range(&attention, &call, at, bytes, first, count), CW_OK, "{name}");
            }
            assert!(untouched(&o, &c.memory.o) && untouched(&record, &c.record), "{name}: a range");
            c.record.fill(SENTINEL);
            assert_eq!(cw_verify(&attention, &call, at, bytes), CW_OK, "{name}");
            assert!(untouched(&o, &c.memory.o) && untouched(&record, &c.record), "{name}");
            let call = c.memory.call();
            assert_eq!(cw_commit(&attention, &call, at, bytes, c.accepted.as_ptr()), CW_OK, "{name}");
        }
        assert!(untouched(&state, &c.memory.state), "{name}: the state");
    }
}

#[test]
fn drafts_that_are_refused_have_written_nothing() {
    let rule = Rule::delta(Gate::Key).qk_norm(1e-6);
    let case = FamilyCase::of(rule, [2, 9, 3, 5, 6]);
    let good = attention(&case.config);
    let mut draft = Draft::new(&case);
    let before = draft.written(CW_SHAPE);
    type Change = fn(&mut cw_call, &mut *mut f32, &mut u64);
    let longer = |call: &mut cw_call| {
        for tensor in [&mut call.q, &mut call.k, &mut call.v, &mut call.o, &mut call.g, &mut call.beta] {
            (tensor.dims[1], tensor.strides[0]) = (17, 17 * tensor.strides[1]);
        }
    };
    let refusals: &[(i32, Change)] = &[
        (CW_NULL, |c, _, _| c.state_in = null()),
        (CW_CONFLICT, |c, _, _| c.state_out = c.state_in.cast_mut()),
        (CW_NULL, |_, record, _| *record = null_mut()),
        (CW_MISALIGNED, |_, record, _| *record = record.wrapping_byte_add(2)),
        (CW_TOO_SMALL, |_, _, bytes| *bytes -= 1),
        (CW_OVERLAP, |c, record, _| *record = c.o.data.cast()),
        (CW_OVERLAP, |c, record, _| *record = c.scratch.cast()),
        (CW_OVERLAP, |c, record, _| *record = c.state_in.cast_mut()),
        (CW_OVERLAP, |c, record, _| *record = c.k.data.cast()),
        (CW_TOO_SMALL, |c, _, _| c.scratch_bytes -= 1),
        (CW_SHAPE, |c, _, _| c.k.dims[1] -= 1),
    ];
    for (at, (want, change)) in refusals.iter().enumerate() {
        let (mut call, mut record, mut bytes) =
            (draft.call(), draft.record.as_mut_ptr(), draft.record_bytes());
        change(&mut call, &mut record, &mut bytes);
        // SAFETY: the call is refused before any memory is accessed.
        assert_eq!(unsafe { cw_verify(&good, &call, record, bytes) }, *want, "refusal {at}");
        assert!(draft.written(CW_SHAPE) == before, "refusal {at}");
    }
    type ChangeCommit = fn(&mut cw_call, &mut *const f32, &mut u64, &mut *const u32);
    static MANY: [u32; 2] = [9, 10];
    let refusals: &[(i32, ChangeCommit)] = &[
        (CW_SHAPE, |c, _, _, _| c.state_in = null()),
        (CW_NULL, |c, _, _, _| (c.state_in, c.state_out) = (null(), null_mut())),
        (CW_SHAPE, |c, _, _, _| c.state_out = c.o.data.cast()),
        (CW_TOO_SMALL, |c, _, _, _| c.state_bytes -= 1),
        (CW_NULL, |_, record, _, _| *record = null()),
        (CW_TOO_SMALL, |_, _, bytes, _| *bytes -= 1),
        (CW_OVERLAP, |c, record, _, _| *record = c.state_in),
        (CW_NULL, |_, _, _, accepted| *accepted = null()),
        (CW_MISALIGNED, |_, _, _, accepted| *accepted = accepted.wrapping_byte_add(1)),
        (CW_OVERLAP, |c, _, _, accepted| *accepted = c.state_in.cast()),
        (CW_RANGE, |_, _, _, accepted| *accepted = MANY.as_ptr()),
    ];
    for (at, (want, change)) in refusals.iter().enumerate() {
        let (mut record, mut bytes, mut accepted) =
            (draft.record.as_ptr(), draft.record_bytes(), draft.accepted.as_ptr());
        let mut call = draft.memory.call();
        change(&mut call, &mut record, &mut bytes, &mut accepted);
        // SAFETY: as above.
        let got = unsafe { cw_commit(&good, &call, record, bytes, accepted) };
        assert_eq!(got, *want, "commit, refusal {at}");
        assert!(draft.written(CW_SHAPE) == before, "commit, refusal {at}");
    }
    // With more tokens than a draft may have there is no record, and both calls are refused.
    let (mut call, mut carried) = (draft.call(), draft.memory.call());
    longer(&mut call);
    longer(&mut carried);
    let mut sizes = cw_sizes { record_bytes: 7, ..cw_sizes::DEFAULT };
    let (record, bytes) = (draft.record.as_mut_ptr(), draft.record_bytes());
    // SAFETY: as above.
    unsafe {
        assert_eq!(cw_attention_sizes(&good, &call, &mut sizes), CW_OK);
        assert_eq!(sizes.record_bytes, 0);
        assert_eq!(cw_verify(&good, &call, record, bytes), CW_RANGE);
        assert_eq!(cw_commit(&good, &carried, record, bytes, draft.accepted.as_ptr()), CW_RANGE);
    }
    assert!(draft.written(CW_SHAPE) == before, "seventeen tokens");
}

/// Decays that are the same for all tokens, with strides of 0, and gates in 16 bits, with other strides.
#[test]
fn gates_of_other_strides_and_types() {
    let rule = Rule::delta(Gate::Scalar).qk_norm(1e-6);
    let mut case = FamilyCase::of(rule, [2, 21, 3, 5, 6]);
    let decays = [-0.5, -0.25, -0.125];
    case.g = decays.repeat(2 * 21);
    let attention = attention(&case.config);
    let (mut want, mut got) = (Memory::new(&case), Memory::new(&case));
    let mut call = got.call();
    call.g.data = decays.as_ptr().cast_mut().cast();
    call.g.strides = [0, 0, 1, 99];
    // SAFETY: the memory is this test's.
    unsafe {
        assert_eq!(cw_forward(&attention, &want.call()), CW_OK);
        assert_eq!(cw_forward(&attention, &call), CW_OK);
    }
    assert!(untouched(&want.o, &got.o) && untouched(&want.state, &got.state), "strides of 0");

    // g has rank 4, with rows of one element, and consists of every second element of its memory; beta is
    // contiguous.
    let (g, beta): (Vec<bf16>, Vec<f16>) = (narrow(&case.g), narrow(&case.beta));
    (case.g, case.beta) = (widen(&g), widen(&beta));
    let (mut want, mut got) = (Memory::new(&case), Memory::new(&case));
    let spread: Vec<bf16> = g.iter().flat_map(|x| [*x, bf16::NAN]).collect();
    let mut call = got.call();
    call.g = cw_tensor {
        data: spread.as_ptr().cast_mut().cast(),
        dtype: CW_BF16,
        rank: 4,
        strides: [2 * 21 * 3, 2 * 3, 2, 1],
        ..call.g
    };
    call.beta = cw_tensor { data: beta.as_ptr().cast_mut().cast(), dtype: CW_F16, ..call.beta };
    // SAFETY: as above.
    unsafe {
        assert_eq!(cw_forward(&attention, &want.call()), CW_OK);
        assert_eq!(cw_forward(&attention, &call), CW_OK);
    }
    assert!(untouched(&want.o, &got.o) && untouched(&want.state, &got.state), "16 bits");
}

/// A case with all optional arguments: grouped heads, a ragged batch, a mapped gate with its parameters, and
/// beta.
fn everything() -> FamilyCase {
    let rule = Rule::delta(Gate::Key)
        .gate_map(GateMap::Bounded { lower: -5.0 })
        .beta_map(BetaMap::Sigmoid)
        .qk_norm(1e-6);
    let shape = Shape::grouped(1, 12, Heads::new(4, 1, 2), 5, 6).with_sequences(2);
    FamilyCase { sequences: Some(vec![0, 5, 12]), ..FamilyCase::new(Config::new(rule, shape), 7) }
}

/// Changes of a call that is accepted, for which a forward is refused, with the status of each.
#[test]
fn what_is_refused_has_written_nothing() {
    type Change = fn(&mut cw_attention, &mut cw_call);
    const NONE: cw_tensor = cw_call::DEFAULT.g;
    static SEQUENCES: [[u32; 4]; 4] = [[1, 5, 12, 0], [0, 5, 11, 0], [0, 13, 12, 0], [0, 5, 12, 12]];
    let refusals: &[(i32, Change)] = &[
        // Choices and numbers.
        (CW_UNKNOWN, |a, _| a.update = 2),
        (CW_UNKNOWN, |a, _| a.gate = 3),
        (CW_UNKNOWN, |a, _| a.gate_map = 4),
        (CW_UNKNOWN, |a, _| a.beta_map = 3),
        (CW_UNKNOWN, |a, _| a.head_order = 2),
        (CW_UNKNOWN, |a, _| a.qk_norm = 2),
        (CW_UNKNOWN, |a, _| a.not_causal = u32::MAX),
        (CW_RANGE, |a, _| a.qk_norm_eps = -1.0),
        (CW_RANGE, |a, _| a.gate_lower = f32::NEG_INFINITY),
        // Options that do not go together.
        (CW_CONFLICT, |a, _| a.update = CW_UPDATE_LINEAR),
        (CW_CONFLICT, |a, c| (a.update, c.beta) = (CW_UPDATE_LINEAR, NONE)),
        (CW_CONFLICT, |a, _| a.gate = CW_GATE_NONE),
        (CW_CONFLICT, |a, c| (a.gate, c.g) = (CW_GATE_NONE, NONE)),
        (CW_CONFLICT, |a, c| (a.gate_map, c.a_log) = (CW_GATE_MAP_LOG, null())),
        (CW_CONFLICT, |a, c| (a.gate_map, c.dt_bias) = (CW_GATE_MAP_LINEAR, null())),
        (CW_CONFLICT, |a, _| a.normaliser = CW_GLOBAL),
        (CW_CONFLICT, |a, _| a.not_causal = 1),
        (CW_CONFLICT, |a, _| a.compensated = 1),
        (CW_CONFLICT, |_, c| c.g = NONE),
        (CW_CONFLICT, |_, c| c.beta = NONE),
        (CW_CONFLICT, |_, c| (c.q.dims[2], c.o.dims[2]) = (3, 3)),
        // Tensors.
        (CW_UNKNOWN, |_, c| c.g.dtype = 4),
        (CW_UNKNOWN, |_, c| c.beta.dtype = 0),
        (CW_SHAPE, |_, c| c.g.rank = 3),
        (CW_SHAPE, |_, c| c.g.rank = 0),
        (CW_SHAPE, |_, c| c.beta.rank = 2),
        (CW_SHAPE, |_, c| c.g.dims[0] = 2),
        (CW_SHAPE, |_, c| c.g.dims[1] += 1),
        (CW_SHAPE, |_, c| c.g.dims[2] = 4),
        (CW_SHAPE, |_, c| c.g.dims[3] -= 1),
        (CW_SHAPE, |_, c| c.g.strides[3] = 2),
        (CW_SHAPE, |_, c| c.beta.dims[1] -= 1),
        (CW_SHAPE, |_, c| c.beta.dims[2] = 1),
        (CW_SHAPE, |a, _| a.gate = CW_GATE_SCALAR),
        (CW_SHAPE, |_, c| c.o.dims[2] = 2),
        (CW_SHAPE, |_, c| c.k.dims[1] -= 1),
        (CW_SHAPE, |_, c| {
            for tensor in [&mut c.q, &mut c.k, &mut c.v, &mut c.o, &mut c.g, &mut c.beta] {
                tensor.dims[0] = 2;
            }
        }),
        (CW_ZERO, |_, c| c.k.dims[2] = 0),
        (CW_OVERFLOW, |_, c| c.g.strides[1] = 1 << 62),
        (CW_OVERFLOW, |_, c| c.beta.strides[2] = u64::MAX),
        // Memory.
        (CW_NULL, |_, c| c.g.data = null_mut()),
        (CW_NULL, |_, c| c.beta.data = null_mut()),
        (CW_MISALIGNED, |_, c| c.g.data = c.g.data.wrapping_byte_add(2)),
        (CW_MISALIGNED, |_, c| c.beta.data = c.beta.data.wrapping_byte_add(1)),
        (CW_MISALIGNED, |_, c| c.a_log = c.a_log.wrapping_byte_add(3)),
        (CW_MISALIGNED, |_, c| c.dt_bias = c.dt_bias.wrapping_byte_add(2)),
        (CW_MISALIGNED, |_, c| c.sequences = c.sequences.wrapping_byte_add(1)),
        (CW_OVERFLOW, |_, c| c.a_log = std::ptr::without_provenance(usize::MAX - 3)),
        (CW_OVERFLOW, |_, c| c.dt_bias = std::ptr::without_provenance(usize::MAX - 7)),
        (CW_OVERFLOW, |_, c| c.sequences = std::ptr::without_provenance(usize::MAX - 3)),
        (CW_OVERLAP, |_, c| c.g.data = c.o.data),
        (CW_OVERLAP, |_, c| c.beta.data = c.scratch),
        (CW_OVERLAP, |_, c| c.a_log = c.state_out),
        // dt_bias has ten elements, of which the last is the first one of the state.
        (CW_OVERLAP, |_, c| c.dt_bias = c.state_out.cast_const().wrapping_sub(9)),
        (CW_OVERLAP, |_, c| c.sequences = c.o.data.cast()),
        // Sequences.
        (CW_NULL, |_, c| c.sequences = null()),
        (CW_SHAPE, |_, c| c.sequence_count = 0),
        (CW_SHAPE, |_, c| c.sequence_count = 1),
        (CW_SHAPE, |_, c| c.sequences = SEQUENCES[0].as_ptr()),
        (CW_SHAPE, |_, c| c.sequences = SEQUENCES[1].as_ptr()),
        (CW_SHAPE, |_, c| c.sequences = SEQUENCES[2].as_ptr()),
        (CW_OVERFLOW, |_, c| c.sequence_count = u64::MAX),
        // The state lacks the part of a third sequence, which is empty.
        (CW_TOO_SMALL, |_, c| (c.sequences, c.sequence_count) = (SEQUENCES[3].as_ptr(), 3)),
        (CW_TOO_SMALL, |_, c| c.scratch_bytes -= 1),
    ];
    let case = everything();
    let good = attention(&case.config);
    let mut memory = Memory::new(&case);
    let before = memory.written(CW_SHAPE);
    for (at, (want, change)) in refusals.iter().enumerate() {
        let (mut attention, mut call) = (good, memory.call());
        change(&mut attention, &mut call);
        // SAFETY: the call is refused before any memory is accessed.
        let got = unsafe { cw_forward(&attention, &call) };
        assert_eq!(got, *want, "refusal {at}");
        assert!(memory.written(got) == before, "refusal {at}");
        let mut sizes = cw_sizes::DEFAULT;
        // SAFETY: the structures are this test's.
        let got = unsafe { cw_attention_sizes(&attention, &call, &mut sizes) };
        assert!(*want != CW_CONFLICT || got == CW_CONFLICT, "refusal {at}: sizes: {got}");
    }
    // SAFETY: as above.
    unsafe {
        // A decode takes one token of each of the two sequences, and the tensors have twelve.
        assert_eq!(cw_decode(&good, &memory.call()), CW_SHAPE);
        assert!(memory.written(CW_SHAPE) == before);
        assert_eq!(cw_forward(&good, &memory.call()), CW_OK);
    }
}

/// Attention that is not causal can't be decoded.
#[test]
fn no_decode_of_what_is_not_causal() {
    let rule = Rule::linear(Normaliser::None).causal(false);
    let mut memory = Memory::new(&FamilyCase::of(rule, [2, 1, 3, 5, 6]));
    let (attention, before) = (attention(&memory.case.config), memory.written(CW_CONFLICT));
    // SAFETY: the memory is this test's.
    assert_eq!(unsafe { cw_decode(&attention, &memory.call()) }, CW_CONFLICT);
    assert!(memory.written(CW_CONFLICT) == before);
}

/// The structures of the header before there were gates, with other bytes after them.
#[test]
fn structures_without_the_fields_of_the_family() {
    let sizes = [offset_of!(cw_attention, update), offset_of!(cw_call, g)];
    if cfg!(target_pointer_width = "64") {
        assert_eq!(sizes, [56, 368], "sizes of structures that programs have been compiled with");
    }
    for normaliser in [Normaliser::None, Normaliser::Global { eps: 1e-5 }, Normaliser::per_chunk(7)] {
        let case = FamilyCase::of(Rule::linear(normaliser), [2, 21, 3, 5, 6]);
        let (mut want, mut got) = (Memory::new(&case), Memory::new(&case));
        let attention = attention(&case.config);
        let (attention_then, _) = older(&attention, sizes[0]);
        let (call_then, _) = older(&got.call(), sizes[1]);
        assert!(attention_then.gate != CW_GATE_NONE && call_then.g.rank != 0, "no other bytes follow");
        // SAFETY: the memory is this test's.
        unsafe {
            assert_eq!(cw_forward(&attention, &want.call()), CW_OK);
            assert_eq!(cw_forward(&attention_then, &call_then), CW_OK);
        }
        let rust = case.attention();
        let (mut o, mut state) = (case.output(), vec![0.0; rust.state_len()]);
        let initial = Memory::new(&case).state;
        let scratch = &mut vec![0.0; rust.scratch_len()];
        rust.forward(case.tensors(&mut o), State::InitialFinal(&initial, &mut state), scratch).unwrap();
        for memory in [&want, &got] {
            assert!(untouched(&memory.o, &o) && untouched(&memory.state, &state), "{normaliser:?}");
        }
    }
}

/// Structures that end after any field are accepted, and those of other sizes are refused.
#[test]
fn structures_of_other_sizes() {
    let case = everything();
    let good = attention(&case.config);
    let forward = |attention: &cw_attention, change: &dyn Fn(cw_call) -> cw_call| {
        let mut memory = Memory::new(&case);
        let call = change(memory.call());
        // SAFETY: the memory is this test's.
        let status = unsafe { cw_forward(attention, &call) };
        (status, memory.written(status))
    };
    reads_fields_of_any_size(&good, |attention| forward(attention, &|call| call));
    for size in ends::<cw_call>() {
        let got = forward(&good, &|call| older(&call, size).0);
        let want = forward(&good, &|call| older(&call, size).1);
        assert!(got == want, "of {size} bytes: {}, and as a whole {}", got.0, want.0);
    }
    for size in refused::<cw_call>() {
        assert_eq!(
            forward(&good, &|call| cw_call { size: size as u32, ..call }).0,
            CW_SIZE,
            "of {size} bytes"
        );
    }
}

/// Sizes can be computed before memory is allocated. The size of the state of a ragged batch depends on the
/// number of sequences.
#[test]
fn sizes_of_ragged_batches() {
    let case = everything();
    let (attention, mut memory) = (attention(&case.config), Memory::new(&case));
    let mut call = memory.call();
    for tensor in [&mut call.q, &mut call.k, &mut call.v, &mut call.o, &mut call.g, &mut call.beta] {
        tensor.data = null_mut();
    }
    call = cw_call { a_log: null(), dt_bias: null(), sequences: null(), state_in: null(), ..call };
    call = cw_call { state_out: null_mut(), scratch: null_mut(), sequence_count: 7, ..call };
    let mut sizes = cw_sizes::DEFAULT;
    // SAFETY: the structures are this test's.
    assert_eq!(unsafe { cw_attention_sizes(&attention, &call, &mut sizes) }, CW_OK);
    assert_eq!(sizes.state_bytes, 7 * 2 * 5 * 6 * 4, "[N, H, K, V]");
    let rust = Attention::new(with(case.config, |c| c.shape = c.shape.with_sequences(7))).unwrap();
    assert_eq!(sizes.forward_scratch_bytes, 4 * rust.scratch_len() as u64);
    assert_eq!(sizes.decode_scratch_bytes, 4 * rust.decode_scratch_len() as u64);
}

/// States are transposed from `[.., K, V]` to `[.., V, K]` and back as by the Rust calls.
#[test]
fn states_of_other_layouts() {
    let (key, value, heads) = (5, 6, 3);
    let state = normals(1, heads * key * value);
    let (mut there, mut back, mut rust) = (vec![SENTINEL; 90], vec![SENTINEL; 90], vec![0.0; 90]);
    chunkwise::state::to_value_major(key, value, &state, &mut rust).unwrap();
    // SAFETY: the memory is this test's.
    unsafe {
        assert_eq!(cw_state_to_value_major(5, 6, state.as_ptr(), there.as_mut_ptr(), 360), CW_OK);
        assert_eq!(cw_state_from_value_major(5, 6, there.as_ptr(), back.as_mut_ptr(), 360), CW_OK);
        assert!(untouched(&rust, &there) && untouched(&state, &back));
        assert!(!untouched(&there, &state));

        let to = back.as_mut_ptr();
        back.fill(SENTINEL);
        let from = state.as_ptr();
        for transpose in [cw_state_to_value_major, cw_state_from_value_major] {
            for (want, got) in [
                (CW_ZERO, transpose(0, 6, from, to, 360)),
                (CW_ZERO, transpose(5, 0, from, to, 0)),
                (CW_OVERFLOW, transpose(1 << 40, 1 << 40, from, to, 360)),
                (CW_RANGE, transpose(5, 6, from, to, 359)),
                (CW_RANGE, transpose(5, 6, from, to, 356)),
                (CW_NULL, transpose(5, 6, null(), to, 360)),
                (CW_NULL, transpose(5, 6, from, null_mut(), 360)),
                (CW_MISALIGNED, transpose(5, 6, from.wrapping_byte_add(1), to, 360)),
                (CW_MISALIGNED, transpose(5, 6, from, to.wrapping_byte_add(2), 360)),
                (CW_OVERLAP, transpose(5, 6, to, to, 360)),
                (CW_OVERLAP, transpose(5, 6, to.wrapping_add(30), to, 240)),
                (CW_OK, transpose(5, 6, null(), null_mut(), 0)),
            ] {
                assert_eq!(got, want);
            }
        }
        assert!(back.iter().all(|x| x.to_bits() == SENTINEL.to_bits()));
    }
}
