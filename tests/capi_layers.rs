//! The C ABI of the layers around attention: calls have the bits of the Rust calls with every way of passing
//! memory, and a refused call writes nothing.
#![allow(unsafe_code, reason = "the C ABI is called")]
mod capi_common;
mod common;

use std::mem::size_of_val;
use std::ptr::{null, null_mut};

use capi_common::*;
use chunkwise::capi::args::*;
use chunkwise::capi::layers::*;
use chunkwise::capi::status::*;
use chunkwise::conv::{self, Activation, CausalConv};
use chunkwise::gated_norm::{self, Gate, GatedNorm};
use chunkwise::{State, Strides};
use common::*;
use half::bf16;

fn tensor<T>(data: *const T, dtype: u32, dims: &[usize], strides: &[usize]) -> cw_tensor {
    let four = |sizes: &[usize]| std::array::from_fn(|i| sizes.get(i).map_or(0, |size| *size as u64));
    cw_tensor {
        data: data.cast_mut().cast(),
        dtype,
        rank: dims.len() as u32,
        dims: four(dims),
        strides: four(strides),
    }
}

/// The bits of the memory that a call may write.
fn bits(written: [&[f32]; 2]) -> Vec<u32> {
    written.into_iter().flatten().map(|x| x.to_bits()).collect()
}

/// A convolution of 2 sequences of 7 tokens with 5 channels and 4 taps; x is contiguous `[B, T, C]`, y has
/// the channels first.
struct Conv {
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    y: Vec<f32>,
    state: Vec<f32>,
    begins: [u32; 3],
}

const B: usize = 2;
const T: usize = 7;
const C: usize = 5;
const W: usize = 4;

impl Conv {
    fn new() -> Self {
        Self {
            x: normals(1, B * T * C),
            weight: normals(2, C * W),
            bias: normals(3, C),
            y: vec![SENTINEL; B * T * C],
            state: normals(4, B * (W - 1) * C),
            begins: [0, 4, (B * T) as u32],
        }
    }

    fn config() -> conv::Config {
        let strides = conv::Strides::token_major(T, C);
        conv::Config::new(B, T, C, W)
            .strides(strides, conv::Strides::channels_first(T, C))
            .activation(Activation::Silu)
    }

    fn call(&mut self) -> cw_conv {
        cw_conv {
            x: tensor(self.x.as_ptr(), CW_F32, &[B, T, C], &[T * C, C, 1]),
            y: tensor(self.y.as_mut_ptr(), CW_F32, &[B, T, C], &[T * C, 1, T]),
            weight: self.weight.as_ptr(),
            bias: self.bias.as_ptr(),
            width: W as u64,
            activation: CW_ACTIVATION_SILU,
            state_in: self.state.as_ptr(),
            state_out: self.state.as_mut_ptr(),
            state_bytes: size_of_val(&self.state[..]) as u64,
            ..cw_conv::DEFAULT
        }
    }

    /// A call of one token of each sequence, with a contiguous y.
    fn one(&mut self) -> cw_conv {
        let mut call = self.call();
        (call.x.dims[1], call.y.dims[1], call.y.strides) = (1, 1, [C as u64, 0, 1, 0]);
        call
    }

    /// A call of a ragged batch of two sequences.
    fn ragged(&mut self) -> cw_conv {
        let mut call = self.call();
        for tensor in [&mut call.x, &mut call.y] {
            (tensor.dims[0], tensor.dims[1]) = (1, (B * T) as u64);
        }
        call.y.strides[2] = (B * T) as u64;
        cw_conv { sequences: self.begins.as_ptr(), sequence_count: B as u64, ..call }
    }

    fn written(&self) -> Vec<u32> {
        bits([&self.y, &self.state])
    }
}

#[test]
fn convolutions_are_those_of_the_rust_calls() {
    let rust = CausalConv::new(Conv::config()).unwrap();
    let base = Conv::new();
    let (initial, other) = (base.state.clone(), normals(5, base.state.len()));
    let want = |state: State<'_>| {
        let mut y = base.y.clone();
        rust.forward(conv::Tensors::new(&base.x, &base.weight, &mut y).bias(&base.bias), state).unwrap();
        y
    };
    let mut last = initial.clone();
    let carried = want(State::Carried(&mut last));
    let mut bytes = 0;
    // SAFETY: the memory is this test's, here and below.
    unsafe {
        let mut c = Conv::new();
        assert_eq!(cw_conv_sizes(&c.call(), &mut bytes), CW_OK);
        assert_eq!(bytes, size_of_val(&initial[..]) as u64);
        assert_eq!(cw_conv_forward(&c.call()), CW_OK);
        assert!(untouched(&c.y, &carried) && untouched(&c.state, &last), "carried");

        let mut c = Conv::new();
        let mut to = other.clone();
        assert_eq!(cw_conv_forward(&cw_conv { state_out: to.as_mut_ptr(), ..c.call() }), CW_OK);
        assert!(untouched(&c.y, &carried) && untouched(&to, &last) && untouched(&c.state, &initial), "both");

        let mut c = Conv::new();
        assert_eq!(cw_conv_forward(&cw_conv { state_out: null_mut(), ..c.call() }), CW_OK);
        assert!(untouched(&c.y, &carried) && untouched(&c.state, &initial), "only read");

        let mut c = Conv::new();
        let mut last = initial.clone();
        let from_zero = want(State::Final(&mut last));
        assert_eq!(cw_conv_forward(&cw_conv { state_in: null(), ..c.call() }), CW_OK);
        assert!(untouched(&c.y, &from_zero) && untouched(&c.state, &last), "only written");
        let none = cw_conv { state_in: null(), state_out: null_mut(), state_bytes: 0, ..c.call() };
        c.y.fill(SENTINEL);
        assert_eq!(cw_conv_forward(&none), CW_OK);
        assert!(untouched(&c.y, &from_zero), "no state");

        // One token, without a bias and an activation.
        let mut c = Conv::new();
        let call = cw_conv { bias: null(), activation: CW_ACTIVATION_NONE, ..c.one() };
        assert_eq!(cw_conv_decode(&call), CW_OK);
        let (mut y, mut state) = (base.y.clone(), initial.clone());
        let strides = |batch| conv::Strides { batch, token: 0, channel: 1 };
        let one = conv::Config::new(B, 1, C, W).strides(strides(T * C), strides(C));
        let tensors = conv::Tensors::new(&base.x, &base.weight, &mut y);
        CausalConv::new(one).unwrap().decode(tensors, &mut state).unwrap();
        assert!(untouched(&c.y, &y) && untouched(&c.state, &state), "decode");

        // A ragged batch, x in bf16.
        let mut c = Conv::new();
        let x: Vec<bf16> = narrow(&base.x);
        let mut call = c.ragged();
        (call.x.data, call.x.dtype) = (x.as_ptr().cast_mut().cast(), CW_BF16);
        assert_eq!(cw_conv_forward(&call), CW_OK);
        let (mut y, mut state) = (base.y.clone(), initial.clone());
        let strides = (conv::Strides::token_major(B * T, C), conv::Strides::channels_first(B * T, C));
        let ragged = conv::Config::new(B, B * T, C, W).strides(strides.0, strides.1);
        let tensors = conv::Tensors::new(&x, &base.weight, &mut y).bias(&base.bias).sequences(&base.begins);
        let conv = CausalConv::new(ragged.activation(Activation::Silu)).unwrap();
        conv.forward(tensors, State::Carried(&mut state)).unwrap();
        assert!(untouched(&c.y, &y) && untouched(&c.state, &state), "ragged");
    }
}

#[test]
fn convolutions_that_are_refused_have_written_nothing() {
    type Change = fn(&mut cw_conv);
    let forward: &[(i32, Change)] = &[
        (CW_SIZE, |c| c.size += 1),
        (CW_ABI, |c| c.abi += 1),
        (CW_UNKNOWN, |c| c.activation = 2),
        (CW_UNKNOWN, |c| c.isa = 99),
        (CW_UNKNOWN, |c| c.x.dtype = 0),
        (CW_UNKNOWN, |c| c.y.dtype = 4),
        (CW_SHAPE, |c| c.x.rank = 4),
        (CW_SHAPE, |c| c.y.rank = 2),
        (CW_SHAPE, |c| c.y.dims[0] = 1),
        (CW_SHAPE, |c| c.y.dims[1] += 1),
        (CW_SHAPE, |c| c.x.dims[2] -= 1),
        (CW_SHAPE, |c| c.sequence_count = 2),
        (CW_ZERO, |c| c.width = 0),
        (CW_ZERO, |c| (c.x.dims[2], c.y.dims[2]) = (0, 0)),
        (CW_RANGE, |c| c.width = 9),
        (CW_OVERLAP, |c| c.y.strides[2] = 1),
        (CW_OVERFLOW, |c| c.x.strides[0] = 1 << 62),
        (CW_NULL, |c| c.x.data = null_mut()),
        (CW_NULL, |c| c.y.data = null_mut()),
        (CW_NULL, |c| c.weight = null()),
        (CW_MISALIGNED, |c| c.weight = c.weight.wrapping_byte_add(1)),
        (CW_MISALIGNED, |c| c.bias = c.bias.wrapping_byte_add(2)),
        (CW_MISALIGNED, |c| c.state_in = c.state_in.wrapping_byte_add(2)),
        (CW_TOO_SMALL, |c| c.state_bytes -= 1),
        (CW_OVERLAP, |c| c.y.data = c.x.data),
        (CW_OVERLAP, |c| c.weight = c.state_out),
        (CW_OVERLAP, |c| c.bias = c.y.data.cast()),
        (CW_OVERLAP, |c| c.state_in = c.state_in.wrapping_add(1)),
        (CW_OVERLAP, |c| c.state_out = c.y.data.cast()),
    ];
    let ragged: &[(i32, Change)] = &[
        (CW_SHAPE, |c| (c.x.dims[0], c.y.dims[0]) = (2, 2)),
        (CW_NULL, |c| c.sequences = null()),
        (CW_MISALIGNED, |c| c.sequences = c.sequences.wrapping_byte_add(1)),
        (CW_OVERLAP, |c| c.sequences = c.y.data.cast()),
        (CW_SHAPE, |c| c.sequences = c.sequences.wrapping_add(1)),
        (CW_SHAPE, |c| c.sequence_count = 1),
        (CW_OVERFLOW, |c| c.sequence_count = u64::MAX),
    ];
    let decode: &[(i32, Change)] = &[
        (CW_NULL, |c| (c.state_in, c.state_out) = (null(), null_mut())),
        (CW_SHAPE, |c| c.state_in = c.x.data.cast()),
        (CW_SHAPE, |c| (c.x.dims[1], c.y.dims[1], c.y.strides) = (2, 2, [99, 50, 1, 0])),
        (CW_SHAPE, |c| (c.x.dims[0], c.y.dims[0], c.sequence_count) = (1, 1, 1)),
    ];
    let mut conv = Conv::new();
    let before = conv.written();
    type Run = unsafe extern "C" fn(*const cw_conv) -> i32;
    let mut check = |kind: &str, refusals: &[(i32, Change)], call: fn(&mut Conv) -> cw_conv, run: Run| {
        for (at, (want, change)) in refusals.iter().enumerate() {
            let mut call = call(&mut conv);
            change(&mut call);
            // SAFETY: the call is refused before any memory is accessed.
            assert_eq!(unsafe { run(&call) }, *want, "{kind}, refusal {at}");
            assert!(conv.written() == before, "{kind}, refusal {at}");
        }
    };
    check("forward", forward, Conv::call, cw_conv_forward);
    check("ragged", ragged, Conv::ragged, cw_conv_forward);
    check("decode", decode, Conv::one, cw_conv_decode);
    // SAFETY: as above.
    unsafe {
        assert_eq!(cw_conv_forward(null()), CW_NULL);
        assert_eq!(cw_conv_sizes(&conv.call(), null_mut()), CW_NULL);
        let mut bytes = 7;
        let wide = cw_conv { width: 9, ..conv.call() };
        assert_eq!((cw_conv_sizes(&wide, &mut bytes), bytes), (CW_RANGE, 7));
    }
    for size in refused::<cw_conv>() {
        let call = cw_conv { size: size as u32, ..conv.call() };
        // SAFETY: as above.
        assert_eq!(unsafe { cw_conv_forward(&call) }, CW_SIZE, "{size} bytes");
    }
    assert!(conv.written() == before);
}

/// A norm of rows of 20 elements, of 2 sequences of 3 tokens and 2 heads; z is a part of wider rows.
struct Norm {
    x: Vec<f32>,
    z: Vec<f32>,
    y: Vec<f32>,
    weight: Vec<f32>,
}

const D: usize = 20;

impl Norm {
    fn new() -> Self {
        let len = 2 * 3 * 2 * D;
        Self { x: normals(1, len), z: normals(2, 2 * len), y: vec![SENTINEL; len], weight: normals(3, D) }
    }

    fn call(&mut self) -> cw_gated_norm {
        let dims = &[2, 3, 2, D];
        cw_gated_norm {
            x: tensor(self.x.as_ptr(), CW_F32, dims, &[6 * D, 2 * D, D, 1]),
            z: tensor(self.z.as_ptr(), CW_F32, dims, &[12 * D, 4 * D, D, 1]),
            y: tensor(self.y.as_mut_ptr(), CW_F32, dims, &[6 * D, 2 * D, D, 1]),
            weight: self.weight.as_ptr(),
            ..cw_gated_norm::DEFAULT
        }
    }

    fn written(&self) -> Vec<u32> {
        bits([&self.y, &self.x])
    }
}

#[test]
fn norms_are_those_of_the_rust_calls() {
    for (gate, weighted) in [(Gate::Silu, true), (Gate::Sigmoid, false)] {
        let strides = Strides::bthd(3, 2, D);
        let wide = Strides { batch: 12 * D, token: 4 * D, head: D };
        let config = gated_norm::Config::new(2, 3, 2, D).strides(strides, wide, strides).gate(gate).eps(1e-3);
        let mut norm = Norm::new();
        let mut want = norm.y.clone();
        let tensors = gated_norm::Tensors::new(&norm.x, &norm.z, &mut want);
        let tensors = if weighted { tensors.weight(&norm.weight) } else { tensors };
        GatedNorm::new(config).unwrap().forward(tensors).unwrap();
        let mut call = norm.call();
        (call.gate, call.eps) = (u32::from(gate == Gate::Sigmoid), 1e-3);
        if !weighted {
            call.weight = null();
        }
        // SAFETY: the memory is this test's.
        unsafe {
            assert_eq!(cw_gated_norm_forward(&call), CW_OK);
            assert!(untouched(&norm.y, &want), "{gate:?}");
            // In place.
            call.y.data = call.x.data;
            assert_eq!(cw_gated_norm_forward(&call), CW_OK);
            assert!(untouched(&norm.x, &want), "{gate:?}, in place");
        }
    }
}

#[test]
fn norms_that_are_refused_have_written_nothing() {
    type Change = fn(&mut cw_gated_norm);
    let refusals: &[(i32, Change)] = &[
        (CW_SIZE, |c| c.size -= 1),
        (CW_ABI, |c| c.abi = 0),
        (CW_UNKNOWN, |c| c.gate = 2),
        (CW_UNKNOWN, |c| c.isa = 99),
        (CW_UNKNOWN, |c| c.z.dtype = 9),
        (CW_RANGE, |c| c.eps = 0.0),
        (CW_RANGE, |c| c.eps = f32::NAN),
        (CW_SHAPE, |c| c.x.rank = 3),
        (CW_SHAPE, |c| c.z.dims[2] = 1),
        (CW_SHAPE, |c| c.x.dims[3] = 19),
        (CW_SHAPE, |c| c.y.strides[3] = 2),
        (CW_ZERO, |c| (c.x.dims[3], c.y.dims[3], c.z.dims[3]) = (0, 0, 0)),
        (CW_OVERLAP, |c| c.y.strides[2] = 19),
        (CW_OVERFLOW, |c| c.z.strides[1] = 1 << 62),
        (CW_NULL, |c| c.x.data = null_mut()),
        (CW_NULL, |c| c.z.data = null_mut()),
        (CW_NULL, |c| c.y.data = null_mut()),
        (CW_MISALIGNED, |c| c.weight = c.weight.wrapping_byte_add(2)),
        (CW_OVERLAP, |c| c.z.data = c.y.data),
        (CW_OVERLAP, |c| c.weight = c.y.data.cast()),
        // y overlaps x, but its elements are not those of x.
        (CW_OVERLAP, |c| (c.y.data, c.y.strides[1]) = (c.x.data, 20 * 3)),
        (CW_OVERLAP, |c| c.y.data = c.x.data.wrapping_byte_add(4)),
    ];
    let mut norm = Norm::new();
    let before = norm.written();
    for (at, (want, change)) in refusals.iter().enumerate() {
        let mut call = norm.call();
        change(&mut call);
        // SAFETY: the call is refused before any memory is accessed.
        assert_eq!(unsafe { cw_gated_norm_forward(&call) }, *want, "refusal {at}");
        assert!(norm.written() == before, "refusal {at}");
    }
    // SAFETY: as above.
    assert_eq!(unsafe { cw_gated_norm_forward(null()) }, CW_NULL);
}
