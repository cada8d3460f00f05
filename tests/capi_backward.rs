//! Gradients through the C ABI: calls have the bits of the Rust calls, structures of any size are read, and a
//! refused call writes nothing.
#![allow(unsafe_code, reason = "the C ABI is called")]
mod capi_common;
mod common;

use std::mem::size_of_val;
use std::ptr::{null, null_mut};

use capi_common::*;
use chunkwise::backward::{Gradients, Inputs};
use chunkwise::capi::args::*;
use chunkwise::capi::attention::*;
use chunkwise::capi::backward::*;
use chunkwise::capi::status::*;
use chunkwise::{Attention, Config, FeatureMap, Normaliser, Rule, Shape, Strides};
use common::*;
use half::{bf16, f16};

const T: usize = 21;
const H: usize = 3;
const K: usize = 5;
const V: usize = 6;

/// A type with its number in C.
trait Typed: Number {
    const DTYPE: u32;
}

impl Typed for f32 {
    const DTYPE: u32 = CW_F32;
}

impl Typed for bf16 {
    const DTYPE: u32 = CW_BF16;
}

impl Typed for f16 {
    const DTYPE: u32 = CW_F16;
}

/// A configuration with gaps between the rows of all tensors.
fn config(normaliser: Normaliser, map: FeatureMap, shape: Shape) -> Config {
    let strides = |dim: usize| {
        let (head, token) = (dim + 1, shape.heads * (dim + 1) + 2);
        Strides { batch: shape.len * token + 3, token, head }
    };
    let (key, value) = (strides(shape.key), strides(shape.value));
    let shape = shape.with_inputs(key, key, value).with_output(value);
    Config::new(Rule::linear(normaliser).feature_map(map).scale(0.5), shape)
}

/// The structure of C that corresponds to a configuration.
fn attention(config: &Config) -> cw_attention {
    let Rule { normaliser, feature_map, scale, .. } = config.rule;
    let (normaliser, normaliser_eps, chunk) = match normaliser {
        Normaliser::Global { eps } => (CW_GLOBAL, eps, 0),
        Normaliser::PerChunk { chunk, eps } => (CW_PER_CHUNK, eps, chunk as u64),
        _ => (CW_NONE, 0.0, 0),
    };
    let feature_map = match feature_map {
        FeatureMap::Elu => CW_ELU,
        FeatureMap::Relu { .. } => CW_RELU,
        _ => CW_IDENTITY,
    };
    cw_attention { normaliser, normaliser_eps, chunk, scale, feature_map, ..cw_attention::DEFAULT }
}

/// The memory to which the structures of a call point. Tensors have elements of type E, and their gradients
/// of type G. A state that is not given has no elements.
#[derive(Clone)]
struct Memory<E, G> {
    config: Config,
    q: Vec<E>,
    k: Vec<E>,
    v: Vec<E>,
    output: Vec<G>,
    sequences: Option<Vec<u32>>,
    initial: Vec<f32>,
    last: Vec<f32>,
    dq: Vec<G>,
    dk: Vec<G>,
    dv: Vec<G>,
    initial_gradient: Vec<f32>,
    scratch: Vec<f32>,
}

impl<E: Typed, G: Typed> Memory<E, G> {
    /// `given` says whether there are an initial state, a gradient of the last state, and a place for the
    /// gradient of the initial state.
    fn new(config: Config, sequences: Option<Vec<u32>>, given: [bool; 3]) -> Self {
        // All tokens of a ragged batch are in one batch row.
        let rows = with(config, |c| c.shape.batch = if sequences.is_some() { 1 } else { c.shape.batch });
        let case = Case::new(rows, 1);
        let rust = Attention::new(config).unwrap();
        // The last number of a head's state is a count of tokens with CW_PER_CHUNK.
        let counted = matches!(config.rule.normaliser, Normaliser::PerChunk { .. });
        let state = |seed, count: f32| {
            let mut state: Vec<f32> = normals(seed, rust.state_len()).iter().map(|x| x.abs()).collect();
            let head = state.len() / (config.shape.batch * config.shape.heads);
            if counted {
                state.chunks_mut(head).for_each(|head| head[head.len() - 1] = count);
            }
            state
        };
        let states = [state(5, 2.0), state(6, f32::NAN), vec![SENTINEL; rust.state_len()]];
        let mut states =
            states.into_iter().zip(given).map(|(state, given)| if given { state } else { vec![] });
        let [initial, last, initial_gradient] = std::array::from_fn(|_| states.next().unwrap());
        let sentinels = |len| vec![G::narrow(SENTINEL); len];
        Self {
            config,
            output: narrow(&normals(7, reach(&rows, config.shape.o_strides, config.shape.value))),
            sequences,
            initial,
            last,
            dq: sentinels(case.q.len()),
            dk: sentinels(case.k.len()),
            dv: sentinels(case.v.len()),
            q: narrow(&case.q),
            k: narrow(&case.k),
            v: narrow(&case.v),
            initial_gradient,
            scratch: vec![SENTINEL; rust.backward_scratch_len()],
        }
    }

    fn tensor<X: Typed>(&self, data: *const X, strides: Strides, dim: usize) -> cw_tensor {
        let Shape { batch, len, heads, .. } = self.config.shape;
        let batch = if self.sequences.is_some() { 1 } else { batch };
        let Strides { batch: to_batch, token, head } = strides;
        cw_tensor {
            data: data.cast_mut().cast(),
            dtype: X::DTYPE,
            rank: 4,
            dims: [batch, len, heads, dim].map(|size| size as u64),
            strides: [to_batch, token, head, 1].map(|stride| stride as u64),
        }
    }

    /// The structures of a call. The data of o are not accessed.
    fn call(&mut self) -> (cw_call, cw_gradients) {
        let Shape { key, value, q_strides, k_strides, v_strides, o_strides, batch, .. } = self.config.shape;
        let state = |state: &[f32]| if state.is_empty() { null() } else { state.as_ptr() };
        let (gradient, dq) = (self.initial_gradient.as_mut_ptr(), self.dq.as_mut_ptr());
        let (dk, dv) = (self.dk.as_mut_ptr(), self.dv.as_mut_ptr());
        let scratch = self.scratch.as_mut_ptr();
        let call = cw_call {
            q: self.tensor(self.q.as_ptr(), q_strides, key),
            k: self.tensor(self.k.as_ptr(), k_strides, key),
            v: self.tensor(self.v.as_ptr(), v_strides, value),
            o: self.tensor(null::<E>(), o_strides, value),
            state_in: state(&self.initial),
            state_bytes: size_of_val(&self.initial[..]) as u64,
            sequences: self.sequences.as_ref().map_or(null(), |begins| begins.as_ptr()),
            sequence_count: if self.sequences.is_some() { batch as u64 } else { 0 },
            scratch: scratch.cast(),
            scratch_bytes: size_of_val(&self.scratch[..]) as u64,
            ..cw_call::DEFAULT
        };
        let gradients = cw_gradients {
            o: self.tensor(self.output.as_ptr(), o_strides, value),
            q: self.tensor(dq, q_strides, key),
            k: self.tensor(dk, k_strides, key),
            v: self.tensor(dv, v_strides, value),
            state_out: state(&self.last),
            state_in: if self.initial_gradient.is_empty() { null_mut() } else { gradient },
            state_bytes: size_of_val(&self.last[..]).max(size_of_val(&self.initial_gradient[..])) as u64,
            ..cw_gradients::DEFAULT
        };
        (call, gradients)
    }

    /// The bits of the memory that a call may write. Scratch is included only where a call was refused,
    /// because its contents after a call are not specified.
    fn written(&self, status: i32) -> Vec<u32> {
        let scratch = if status == CW_OK { &[][..] } else { &self.scratch };
        let gradients = [&self.dq, &self.dk, &self.dv].map(|x| widen(x));
        let all = gradients.iter().flatten().chain(&self.initial_gradient).chain(scratch);
        all.map(|x| x.to_bits()).collect()
    }

    /// The same memory after the Rust call.
    fn after_rust(&self) -> Self {
        let mut after = self.clone();
        let rust = Attention::new(self.config).unwrap();
        let mut inputs = Inputs::new(&self.q[..], &self.k[..], &self.v[..], &self.output[..]);
        let mut gradients = Gradients::new(&mut after.dq[..], &mut after.dk[..], &mut after.dv[..]);
        if let Some(begins) = &self.sequences {
            inputs = inputs.sequences(begins);
        }
        if !self.initial.is_empty() {
            inputs = inputs.initial(&self.initial);
        }
        if !self.last.is_empty() {
            inputs = inputs.last(&self.last);
        }
        if !self.initial_gradient.is_empty() {
            gradients = gradients.initial(&mut after.initial_gradient);
        }
        rust.backward(inputs, gradients, &mut after.scratch).unwrap();
        after
    }
}

/// Compares a call with the Rust call on the same numbers.
#[track_caller]
fn same_as_rust<E: Typed, G: Typed>(config: Config, sequences: Option<Vec<u32>>, given: [bool; 3]) {
    let mut memory = Memory::<E, G>::new(config, sequences, given);
    let want = memory.after_rust().written(CW_OK);
    assert!(want != memory.written(CW_OK), "{config:?}: no change");
    for threads in [1, 3] {
        let attention = cw_attention { threads, ..attention(&config) };
        let mut sizes = cw_sizes::DEFAULT;
        // SAFETY: the memory is this test's.
        unsafe {
            assert_eq!(cw_attention_sizes(&attention, &memory.call().0, &mut sizes), CW_OK);
            memory.scratch = vec![SENTINEL; sizes.backward_scratch_bytes as usize / 4];
            let (call, gradients) = memory.call();
            assert_eq!(cw_backward(&attention, &call, &gradients), CW_OK, "{config:?}");
        }
        assert!(memory.written(CW_OK) == want, "{threads} threads, states {given:?}: {config:?}");
        let rust = Attention::new(config.threads(threads as usize)).unwrap();
        assert_eq!(sizes.backward_scratch_bytes, 4 * rust.backward_scratch_len() as u64);
    }
}

#[test]
fn the_bits_are_those_of_the_rust_call() {
    let states = (0..8).map(|bits| [bits & 1 > 0, bits & 2 > 0, bits & 4 > 0]);
    for given in states {
        for normaliser in normalisers(&[7]) {
            for map in MAPS {
                let config = |shape| config(normaliser, map, shape);
                same_as_rust::<f32, f32>(config(Shape::new(2, T, H, K, V)), None, given);
                let ragged = Shape::new(1, T, H, K, V).with_sequences(4);
                same_as_rust::<f32, f32>(config(ragged), Some(vec![0, 7, 7, 20, 21]), given);
            }
        }
    }
    // This is enough work for three threads.
    let config = config(Normaliser::per_chunk(20), FeatureMap::Elu, Shape::new(3, 200, 2, 24, 40));
    same_as_rust::<f32, f32>(config, None, [true; 3]);
}

#[test]
fn types() {
    let config = config(Normaliser::Global { eps: 1e-6 }, FeatureMap::Elu, Shape::new(2, T, H, K, V));
    same_as_rust::<bf16, bf16>(config, None, [true; 3]);
    same_as_rust::<f16, f16>(config, None, [false; 3]);
    same_as_rust::<f32, bf16>(config, None, [true; 3]);
    same_as_rust::<bf16, f32>(config, None, [true; 3]);
}

/// With a scalar gate and with one head of q and k for all heads of v, a call has the bits of the Rust call.
#[cfg(feature = "family")]
#[test]
fn a_scalar_gate_and_shared_heads() {
    use chunkwise::{Gate, Heads};
    let shape = Shape::grouped(2, T, Heads::new(1, 1, H), K, V);
    let config = Config::new(Rule::gated(Gate::Scalar).feature_map(FeatureMap::Elu), shape);
    let rust = Attention::new(config).unwrap();
    let (rows, heads) = (2 * T, 2 * T * H);
    let [q, k] = [1, 2].map(|seed| normals(seed, rows * K));
    let [v, output] = [3, 4].map(|seed| normals(seed, heads * V));
    let g: Vec<f32> = normals(5, heads).iter().map(|x| -x.abs()).collect();
    let zeros = || [vec![0.0; rows * K], vec![0.0; rows * K], vec![0.0; heads * V], vec![0.0; heads]];
    let (mut want, mut got) = (zeros(), zeros());
    let mut scratch = vec![0.0; rust.backward_scratch_len()];
    let [dq, dk, dv, dg] = &mut want;
    let gradients = Gradients::new(&mut dq[..], &mut dk[..], &mut dv[..]).gate(&mut dg[..]);
    let inputs = Inputs::new(&q[..], &k[..], &v[..], &output[..]).gate(&g[..]);
    rust.backward(inputs, gradients, &mut scratch).unwrap();
    let tensor = |data: *const f32, heads: usize, dim: usize| cw_tensor {
        data: data.cast_mut().cast(),
        dtype: CW_F32,
        rank: if dim == 1 { 3 } else { 4 },
        dims: [2, T, heads, dim].map(|size| size as u64),
        strides: [T * heads * dim, heads * dim, dim, 1].map(|stride| stride as u64),
    };
    let attention =
        cw_attention { gate: CW_GATE_SCALAR, scale: 1.0, feature_map: CW_ELU, ..cw_attention::DEFAULT };
    let attention = cw_attention { normaliser: CW_NONE, ..attention };
    let call = cw_call {
        q: tensor(q.as_ptr(), 1, K),
        k: tensor(k.as_ptr(), 1, K),
        v: tensor(v.as_ptr(), H, V),
        o: tensor(null(), H, V),
        g: tensor(g.as_ptr(), H, 1),
        scratch: scratch.as_mut_ptr().cast(),
        scratch_bytes: size_of_val(&scratch[..]) as u64,
        ..cw_call::DEFAULT
    };
    let [dq, dk, dv, dg] = got.each_mut().map(|gradient| gradient.as_mut_ptr().cast_const());
    let gradients = cw_gradients {
        o: tensor(output.as_ptr(), H, V),
        q: tensor(dq, 1, K),
        k: tensor(dk, 1, K),
        v: tensor(dv, H, V),
        g: tensor(dg, H, 1),
        ..cw_gradients::DEFAULT
    };
    // SAFETY: the memory is this test's.
    assert_eq!(unsafe { cw_backward(&attention, &call, &gradients) }, CW_OK);
    assert!(got == want && want.iter().flatten().any(|x| *x != 0.0));
}

/// Changes of structures that are accepted, for which a call is refused, with the status of each.
type Change = fn(&mut cw_attention, &mut cw_call, &mut cw_gradients);

const REFUSALS: &[(i32, Change)] = &[
    (CW_SIZE, |a, _, _| a.size -= 2),
    (CW_SIZE, |_, _, g| g.size += 8),
    (CW_SIZE, |_, _, g| g.size = 0),
    (CW_ABI, |_, c, _| c.abi = 0),
    (CW_ABI, |_, _, g| g.abi += 1),
    (CW_UNKNOWN, |a, _, _| a.feature_map = 0),
    (CW_UNKNOWN, |_, c, _| c.q.dtype = 0),
    (CW_UNKNOWN, |_, c, _| c.o.dtype = 9),
    (CW_UNKNOWN, |_, _, g| g.o.dtype = 0),
    (CW_UNKNOWN, |_, _, g| g.q.dtype = 4),
    (CW_UNKNOWN, |_, _, g| g.k.dtype = u32::MAX),
    (CW_UNKNOWN, |_, _, g| g.v.dtype = 0),
    (CW_UNAVAILABLE, |a, _, _| a.products = CW_PRODUCTS_BF16),
    (CW_ZERO, |a, _, _| a.threads = 0),
    (CW_RANGE, |a, _, _| a.scale = f32::NAN),
    (CW_CONFLICT, |a, _, _| a.compensated = 1),
    (CW_CONFLICT, |_, c, _| c.state_out = c.state_in.cast_mut()),
    (CW_CONFLICT, |_, c, _| c.beta = c.q),
    (CW_SHAPE, |_, c, _| c.k.dims[3] += 1),
    (CW_SHAPE, |_, _, g| g.o.dims[1] += 1),
    (CW_SHAPE, |_, _, g| g.q.rank = 3),
    (CW_SHAPE, |_, _, g| g.k.dims[3] -= 1),
    (CW_SHAPE, |_, _, g| g.v.strides[0] += 1),
    (CW_SHAPE, |_, _, g| g.o.strides[3] = 2),
    (CW_UNKNOWN, |_, _, g| g.q = cw_gradients::DEFAULT.q),
    (CW_OVERFLOW, |_, c, _| c.k.strides[1] = 1 << 62),
    (CW_OVERFLOW, |_, _, g| g.v.data = std::ptr::without_provenance_mut(usize::MAX - 3)),
    (CW_OVERLAP, |_, c, g| (c.q.strides[1], g.q.strides[1]) = (0, 0)),
    (CW_OVERLAP, |_, c, g| (c.v.strides[2], g.v.strides[2]) = (5, 5)),
    (CW_OVERLAP, |_, c, g| (c.o.strides[1], g.o.strides[1]) = (0, 0)),
    (CW_OVERLAP, |_, c, g| g.q.data = c.q.data),
    (CW_OVERLAP, |_, c, g| g.k.data = c.k.data.wrapping_byte_add(4)),
    (CW_OVERLAP, |_, _, g| g.k.data = g.q.data),
    (CW_OVERLAP, |_, _, g| g.v.data = g.o.data),
    (CW_OVERLAP, |_, c, g| g.state_in = c.state_in.cast_mut()),
    (CW_OVERLAP, |_, _, g| g.state_in = g.state_out.cast_mut()),
    (CW_OVERLAP, |_, c, g| c.scratch = g.v.data),
    (CW_OVERLAP, |_, c, g| c.scratch = g.state_in.cast()),
    (CW_NULL, |_, c, _| c.q.data = null_mut()),
    (CW_NULL, |_, c, _| c.v.data = null_mut()),
    (CW_NULL, |_, c, _| c.scratch = null_mut()),
    (CW_NULL, |_, _, g| g.o.data = null_mut()),
    (CW_NULL, |_, _, g| g.q.data = null_mut()),
    (CW_NULL, |_, _, g| g.k.data = null_mut()),
    (CW_NULL, |_, _, g| g.v.data = null_mut()),
    (CW_MISALIGNED, |_, c, _| c.k.data = c.k.data.wrapping_byte_add(1)),
    (CW_MISALIGNED, |_, c, _| c.state_in = c.state_in.wrapping_byte_add(2)),
    (CW_MISALIGNED, |_, c, _| c.scratch = c.scratch.wrapping_byte_add(3)),
    (CW_MISALIGNED, |_, _, g| g.o.data = g.o.data.wrapping_byte_add(2)),
    (CW_MISALIGNED, |_, _, g| g.v.data = g.v.data.wrapping_byte_add(1)),
    (CW_MISALIGNED, |_, _, g| g.state_out = g.state_out.wrapping_byte_add(2)),
    (CW_MISALIGNED, |_, _, g| g.state_in = g.state_in.wrapping_byte_add(1)),
    (CW_TOO_SMALL, |_, c, _| c.state_bytes -= 1),
    (CW_TOO_SMALL, |_, c, _| c.scratch_bytes -= 1),
    (CW_TOO_SMALL, |_, _, g| g.state_bytes -= 1),
];

/// Refusals of options of the feature `family`.
#[cfg(feature = "family")]
const FAMILY: &[(i32, Change)] = &[
    (CW_CONFLICT, |a, _, _| (a.not_causal, a.normaliser) = (1, CW_GLOBAL)),
    (CW_CONFLICT, |a, _, _| a.qk_norm = 1),
    (CW_CONFLICT, |a, c, _| (a.gate, a.normaliser, c.g) = (CW_GATE_KEY, CW_NONE, c.q)),
    (CW_CONFLICT, |a, c, _| {
        (a.update, a.normaliser, c.beta) = (CW_UPDATE_DELTA, CW_NONE, c.q);
        c.beta.rank = 3;
        c.beta.dims[3] = 1;
    }),
    (CW_CONFLICT, |a, c, _| {
        (a.gate, a.gate_map, a.normaliser) = (CW_GATE_SCALAR, CW_GATE_MAP_LINEAR, CW_NONE);
        c.g = c.q;
        c.g.rank = 3;
        c.g.dims[3] = 1;
    }),
    // There is no g of which this would be the gradient.
    (CW_SHAPE, |_, _, g| g.g = g.q),
];
#[cfg(not(feature = "family"))]
const FAMILY: &[(i32, Change)] = &[];

#[test]
fn what_is_refused_has_written_nothing() {
    let config = config(Normaliser::per_chunk(7), FeatureMap::Elu, Shape::new(2, T, H, K, V));
    let good = attention(&config);
    let mut memory = Memory::<f32, f32>::new(config, None, [true; 3]);
    let before = memory.written(CW_NULL);
    for (at, (want, change)) in REFUSALS.iter().chain(FAMILY).enumerate() {
        let (mut attention, (mut call, mut gradients)) = (good, memory.call());
        change(&mut attention, &mut call, &mut gradients);
        // SAFETY: the call is refused before any memory is written.
        let got = unsafe { cw_backward(&attention, &call, &gradients) };
        assert_eq!(got, *want, "refusal {at}");
        assert!(memory.written(got) == before, "refusal {at}");
    }
    let (call, gradients) = memory.call();
    // SAFETY: as above.
    unsafe {
        assert_eq!(cw_backward(null(), &call, &gradients), CW_NULL);
        assert_eq!(cw_backward(&good, null(), &gradients), CW_NULL);
        assert_eq!(cw_backward(&good, &call, null()), CW_NULL);
        let misplaced = (&raw const gradients).wrapping_byte_add(4);
        assert_eq!(cw_backward(&good, &call, misplaced), CW_MISALIGNED);
        let last = memory.initial.len() - 1;
        memory.initial[last] = 7.0;
        let (call, gradients) = memory.call();
        assert_eq!(cw_backward(&good, &call, &gradients), CW_STATE);
    }
    assert!(memory.written(CW_STATE) == before);
}

/// Sequences that do not fit the tensors are refused.
#[test]
fn sequences_that_are_refused() {
    let shape = Shape::new(1, T, H, K, V).with_sequences(3);
    let config = config(Normaliser::None, FeatureMap::Elu, shape);
    for begins in [vec![0, 7, 20, 20], vec![0, 9, 7, 21], vec![1, 7, 20, 21]] {
        let mut memory = Memory::<f32, f32>::new(config, Some(begins), [true; 3]);
        let before = memory.written(CW_SHAPE);
        let (call, gradients) = memory.call();
        // SAFETY: the memory is this test's.
        assert_eq!(unsafe { cw_backward(&attention(&config), &call, &gradients) }, CW_SHAPE);
        assert!(memory.written(CW_SHAPE) == before);
    }
}

/// The size of scratch is 0 where cw_backward refuses a call that cw_forward accepts.
#[test]
fn sizes_of_calls_that_are_refused() {
    let config = config(Normaliser::None, FeatureMap::Elu, Shape::new(2, T, H, K, V));
    let mut memory = Memory::<f32, f32>::new(config, None, [false; 3]);
    let good = attention(&config);
    let (call, _) = memory.call();
    let mut repeated = call;
    repeated.k.strides[1] = 0;
    let compensated = cw_attention { compensated: 1, ..good };
    for (attention, call) in [(compensated, call), (good, repeated)] {
        let mut sizes = cw_sizes { backward_scratch_bytes: 1, ..cw_sizes::DEFAULT };
        // SAFETY: the structures are this test's.
        assert_eq!(unsafe { cw_attention_sizes(&attention, &call, &mut sizes) }, CW_OK);
        assert!(sizes.forward_scratch_bytes > 0);
        assert_eq!(sizes.backward_scratch_bytes, 0);
    }
}

/// Without tokens, tensors need no memory, and the gradient of the initial state is that of the last state.
#[test]
fn no_tokens() {
    let config = config(Normaliser::Global { eps: 1e-6 }, FeatureMap::Elu, Shape::new(2, 0, H, K, V));
    let mut memory = Memory::<f32, f32>::new(config, None, [true; 3]);
    let (mut call, mut gradients) = memory.call();
    for tensor in [&mut call.q, &mut call.k, &mut call.v, &mut call.o] {
        tensor.data = null_mut();
    }
    for tensor in [&mut gradients.o, &mut gradients.q, &mut gradients.k, &mut gradients.v] {
        tensor.data = null_mut();
    }
    // SAFETY: the memory is this test's.
    assert_eq!(unsafe { cw_backward(&attention(&config), &call, &gradients) }, CW_OK);
    assert!(untouched(&memory.initial_gradient, &memory.last));
}

/// The structure of gradients is read up to its own size, and missing fields take their defaults.
#[test]
fn structures_of_other_sizes() {
    let config = config(Normaliser::per_chunk(7), FeatureMap::Elu, Shape::new(2, T, H, K, V));
    let fresh = Memory::<f32, f32>::new(config, None, [true; 3]);
    let backward = |change: &dyn Fn(cw_gradients) -> cw_gradients| {
        let mut memory = fresh.clone();
        let (call, gradients) = memory.call();
        // SAFETY: the memory is this test's.
        let status = unsafe { cw_backward(&attention(&config), &call, &change(gradients)) };
        (status, memory.written(status))
    };
    // Each structure points to memory of its own, so that only the size is taken from the other one.
    for size in ends::<cw_gradients>() {
        let got = backward(&|gradients| older(&gradients, size).0);
        let want = backward(&|gradients| older(&gradients, size).1);
        assert!(got == want, "of {size} bytes: {}, and as a whole {}", got.0, want.0);
    }
    // Without the gradients of states the call is a legal one.
    assert_eq!(
        backward(&|gradients| older(&gradients, std::mem::offset_of!(cw_gradients, state_out)).0).0,
        CW_OK
    );
    for size in refused::<cw_gradients>() {
        let got = backward(&|gradients| cw_gradients { size: size as u32, ..gradients });
        assert_eq!(got, (CW_SIZE, fresh.written(CW_SIZE)), "of {size} bytes");
    }
}
