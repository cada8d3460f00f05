//! No access is outside a slice. Every buffer of a call lies next to pages that fault: in one run each slice
//! ends at such pages, in another it begins after them, so that an access to one element too far crashes the
//! test. The first run gives slices every alignment that their types allow, the second aligns them to pages.
//! Both must give the same bits.
#![allow(unsafe_code, reason = "pages of memory are mapped and become slices")]

use std::ptr::null_mut;

use chunkwise::nn::{BlockWeights, LayerNorm, Linear, Model, ModelConfig, OutputMode, Weights, init};
use chunkwise::{Config, Isa, Normaliser, Rule, Shape, State, Tensors};
use half::{bf16, f16};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use crate::common::*;

/// The number of bytes on each side that fault, and of those between them, which are usable. Both are
/// multiples of the page size of any system.
const FENCE: usize = 1 << 16;
const ROOM: usize = 1 << 22;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Side {
    Left,
    Right,
}

/// Memory for one slice at a time, between pages that fault.
pub(crate) struct Fence(*mut u8);

impl Fence {
    pub(crate) fn new() -> Self {
        // SAFETY: this is a new mapping, whose middle is then made usable.
        unsafe {
            let all = mmap_anonymous(null_mut(), ROOM + 2 * FENCE, ProtFlags::empty(), MapFlags::PRIVATE)
                .expect("memory to map");
            let room = all.cast::<u8>().add(FENCE);
            mprotect(room.cast(), ROOM, MprotectFlags::READ | MprotectFlags::WRITE).expect("usable pages");
            Self(room)
        }
    }

    /// Copies numbers of any type to one side of the usable memory.
    pub(crate) fn place<E: Copy>(&mut self, side: Side, numbers: &[E]) -> &mut [E] {
        let bytes = size_of_val(numbers);
        assert!(bytes <= ROOM, "{bytes} bytes are more than there is room for");
        let at = if side == Side::Left { 0 } else { ROOM - bytes };
        // SAFETY: the slice is within the mapping, any bytes are valid numbers, both ends of the mapping are
        // aligned for all types of numbers, and the slice borrows the fence.
        let slice = unsafe { std::slice::from_raw_parts_mut(self.0.add(at).cast::<E>(), numbers.len()) };
        slice.copy_from_slice(numbers);
        slice
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        // SAFETY: this is the mapping of `new`, and no slice of it is alive.
        unsafe { munmap(self.0.sub(FENCE).cast(), ROOM + 2 * FENCE).expect("a mapping of our own") };
    }
}

/// Checks that the results of `run` have the same bits on both sides.
#[track_caller]
pub(crate) fn on_both_sides(run: impl FnMut(Side) -> Vec<f32>) {
    let [left, right] = [Side::Left, Side::Right].map(run);
    assert_eq!(first_difference(&left, &right), None, "results depend on where the slices lie");
}

/// The buffers of attention.
struct Buffers {
    q: Fence,
    k: Fence,
    v: Fence,
    o: Fence,
    initial: Fence,
    last: Fence,
    scratch: Fence,
}

impl Buffers {
    fn new() -> Self {
        let [q, k, v, o, initial, last, scratch] = std::array::from_fn(|_| Fence::new());
        Self { q, k, v, o, initial, last, scratch }
    }
}

/// A run of attention with given types of q, k, v and o.
type Types = fn(&mut Buffers, &Case);
const TYPES: [Types; 5] = [
    attention::<f32, f32, f32, f32>,
    attention::<bf16, bf16, bf16, bf16>,
    attention::<f16, f16, f16, f16>,
    attention::<bf16, f16, f32, f16>,
    attention::<f32, bf16, f16, f32>,
];

/// Computes all tokens twice, the second time on the state after the first, then decodes one more.
fn attention<Q: Number, K: Number, V: Number, O: Number>(buffers: &mut Buffers, case: &Case) {
    let config = case.config;
    let attention = case.attention();
    let (all_q, all_k, all_v) = (narrow::<Q>(&case.q), narrow::<K>(&case.k), narrow::<V>(&case.v));
    let (all_o, zero) = (narrow::<O>(&case.output()), case.zero_state());
    let scratch = vec![SENTINEL; attention.scratch_len()];
    let one_scratch = vec![SENTINEL; attention.decode_scratch_len()];
    let one = with(config, |c| c.shape.len = c.shape.len.min(1));
    let Shape { key, value, q_strides, k_strides, v_strides, o_strides, .. } = one.shape;
    let one_q = &all_q[..reach(&one, q_strides, key)];
    let one_k = &all_k[..reach(&one, k_strides, key)];
    let one_v = &all_v[..reach(&one, v_strides, value)];
    let one_o = &all_o[..reach(&one, o_strides, value)];
    on_both_sides(|side| {
        let q = &*buffers.q.place(side, &all_q);
        let k = &*buffers.k.place(side, &all_k);
        let v = &*buffers.v.place(side, &all_v);
        let o = buffers.o.place(side, &all_o);
        let initial = buffers.initial.place(side, &zero);
        let state = buffers.last.place(side, &zero);
        let brought = buffers.scratch.place(side, &scratch);
        let mut seen = Vec::new();
        for pass in 0..2 {
            let state = if pass == 0 { State::InitialFinal(initial, state) } else { State::Carried(state) };
            attention.forward(Tensors::new(q, k, v, &mut *o), state, brought).expect("legal arguments");
            seen.extend(widen(o));
        }
        if config.shape.len > 0 {
            let (q, k) = (&*buffers.q.place(side, one_q), &*buffers.k.place(side, one_k));
            let (v, o) = (&*buffers.v.place(side, one_v), buffers.o.place(side, one_o));
            let scratch = buffers.scratch.place(side, &one_scratch);
            attention.decode(Tensors::new(q, k, v, &mut *o), state, scratch).expect("legal arguments");
            seen.extend(widen(o));
        }
        seen.extend(&*state);
        seen
    });
}

/// A configuration of these sizes, for [`check`], which replaces the rule.
fn sized(shape: Shape) -> Config {
    Config::new(Rule::linear(Normaliser::None), shape)
}

/// Runs a configuration with every instruction set, feature map, normaliser, combination of types and kind of
/// state.
fn check(buffers: &mut Buffers, config: Config) {
    for feature_map in MAPS {
        for normaliser in normalisers(&[5, TILE]) {
            let rule = Rule::linear(normaliser).feature_map(feature_map);
            let mut case = Case::new(with(config, |c| c.rule = rule), 1);
            for isa in Isa::available() {
                for compensated in [false, true] {
                    case.config.rule.compensated = compensated;
                    case.config.execution.isa = Some(isa);
                    for types in TYPES {
                        types(buffers, &case);
                    }
                }
            }
        }
    }
}

#[test]
fn every_tail_of_a_row() {
    let buffers = &mut Buffers::new();
    let mut check = |key, value| check(buffers, sized(Shape::new(1, TILE + 3, 1, key, value)));
    // K has every remainder of a group of 16, after none and after one whole group. V has every remainder of
    // the widest panel, 64 columns, and lengths around the 128 columns that a decode sweeps at once.
    for key in (1..=33).chain([63, 64, 65]) {
        check(key, 3);
    }
    for value in (1..=66).chain([127, 128, 129]) {
        check(5, value);
    }
    for (key, value) in [(17, 31), (31, 17), (63, 65), (37, 67), (64, 64)] {
        check(key, value);
    }
}

#[test]
fn every_tail_of_a_sequence() {
    let buffers = &mut Buffers::new();
    for len in (0..=2 * TILE + 1).chain([63, 64, 65, 95, 96, 97]) {
        check(buffers, sized(Shape::new(1, len, 1, 7, 19)));
    }
}

#[test]
fn layouts() {
    let buffers = &mut Buffers::new();
    for len in [1, TILE + 2] {
        let config = sized(Shape::new(2, len, 3, 9, 18));
        for order in 0..6 {
            for gaps in [[0, 0, 0], [1, 0, 3]] {
                let layouts = [0, 1, 3, 4].map(|more| ((order + more) % 6, gaps));
                check(buffers, with_layouts(config, layouts));
            }
        }
    }
}

/// Calls on several threads: the scratch of each worker, the copy of the state, and columns of V that are
/// divided among workers.
#[cfg(feature = "std")]
#[test]
fn threads() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("three threads");
    pool.install(|| {
        let buffers = &mut Buffers::new();
        for heads in [1, 6] {
            for normaliser in normalisers(&[20]) {
                let config =
                    Config::new(Rule::linear(normaliser), Shape::new(1, 600 / heads, heads, 40, 170));
                for isa in Isa::available() {
                    let mut case = Case::new(config.isa(isa).threads(3), 1);
                    let many = case.attention().scratch_len();
                    TYPES[0](buffers, &case);
                    case.config.execution.threads = 1;
                    assert!(many > case.attention().scratch_len(), "not cut");
                }
            }
        }
    });
}

/// Fences for x, y, scratch, packed weights and two parameters.
fn layer_buffers() -> [Fence; 6] {
    std::array::from_fn(|_| Fence::new())
}

fn dense<E: Number>(
    isa: Isa,
    inputs: usize,
    outputs: usize,
    [x, y, scratch, memory, kernel, bias]: &mut [Fence; 6],
) {
    let all_kernel = narrow::<E>(&normals(1, inputs * outputs));
    let all_bias = narrow::<E>(&normals(2, outputs));
    // These are all small numbers of rows, for which weights are streamed, and more rows, which are computed
    // in tiles.
    for rows in [1, 2, 3, 4, 5, 6, 17] {
        let all_x = normals(3, rows * inputs);
        on_both_sides(|side| {
            let layer = Linear::new(&*kernel.place(side, &all_kernel), &*bias.place(side, &all_bias));
            let memory = memory.place(side, &vec![SENTINEL; layer.packed_len(isa)]);
            let packed = layer.pack(isa, memory).expect("enough memory");
            let x = &*x.place(side, &all_x);
            let mut seen = Vec::new();
            for layer in [layer, packed] {
                let y = y.place(side, &vec![SENTINEL; rows * outputs]);
                let scratch = scratch.place(side, &vec![SENTINEL; layer.scratch_len(isa, 1, rows)]);
                layer.forward(isa, 1, x, y, scratch).expect("legal arguments");
                seen.extend(&*y);
            }
            seen
        });
    }
}

#[test]
fn dense_layers() {
    let buffers = &mut layer_buffers();
    for isa in Isa::available() {
        for outputs in (1..=66).chain([127, 128, 129, 255, 257]) {
            for inputs in [1, 2, 7, 8, 9, 33] {
                dense::<f32>(isa, inputs, outputs, buffers);
                dense::<bf16>(isa, inputs, outputs, buffers);
                dense::<f16>(isa, inputs, outputs, buffers);
            }
        }
    }
}

fn norm<E: Number>(isa: Isa, size: usize, [x, y, _, _, gamma, beta]: &mut [Fence; 6]) {
    let (all_gamma, all_beta) = (narrow::<E>(&normals(1, size)), narrow::<E>(&normals(2, size)));
    for rows in [0, 1, 3] {
        let all_x = normals(3, rows * size);
        on_both_sides(|side| {
            let norm = LayerNorm {
                gamma: (&*gamma.place(side, &all_gamma)).into(),
                beta: (&*beta.place(side, &all_beta)).into(),
                eps: 1e-5,
                clip: false,
            };
            let y = y.place(side, &vec![SENTINEL; rows * size]);
            norm.forward(isa, x.place(side, &all_x), y).expect("legal arguments");
            y.to_vec()
        });
    }
}

#[test]
fn layer_norms() {
    let buffers = &mut layer_buffers();
    for isa in Isa::available() {
        for size in 1..=200 {
            norm::<f32>(isa, size, buffers);
            norm::<bf16>(isa, size, buffers);
            norm::<f16>(isa, size, buffers);
        }
    }
}

/// Runs a forward and two steps of a model with a fence for each parameter, with its weights as they are and
/// packed.
fn model<E: Number>(
    isa: Isa,
    config: ModelConfig,
    [x, y, scratch, state, memory]: &mut [Fence; 5],
    fences: &mut [Fence],
) {
    let mut flat = vec![0.0; config.parameters_len()];
    init(&config, 7, &mut flat).expect("a flat model");
    let flat = narrow::<E>(&flat);
    for (batch, len) in [(1, 1), (1, 17), (3, 20), (1, 260), (6, 1)] {
        let input = normals(1, batch * len * config.embed_dim);
        on_both_sides(|side| {
            let (mut rest, mut fences) = (&flat[..], fences.iter_mut());
            let mut blocks = vec![BlockWeights::default(); config.num_layers];
            let weights = Weights::collect(&config, &mut blocks, |parameter| {
                let (data, after) = rest.split_at(parameter.len());
                rest = after;
                let fence = fences.next().expect("a fence for each parameter");
                Ok::<_, chunkwise::Error>((&*fence.place(side, data)).into())
            });
            let weights = weights.expect("parameters of this model");
            let memory = memory.place(side, &vec![SENTINEL; weights.packed_len(isa)]);
            let mut blocks = vec![BlockWeights::default(); config.num_layers];
            let packed = weights.pack(isa, &mut blocks, memory).expect("enough memory");
            let mut seen = Vec::new();
            for weights in [weights, packed] {
                let model = Model::new(config, weights, Some(isa), 1).expect("a legal model");
                let scratch_len = model.scratch_len(batch, len).expect("a legal size");
                let output = y.place(side, &vec![SENTINEL; model.output_len(batch, len)]);
                let brought = scratch.place(side, &vec![SENTINEL; scratch_len]);
                model.forward(batch, len, x.place(side, &input), output, brought).expect("legal arguments");
                seen.extend(&*output);

                let state = state.place(side, &vec![0.0; model.state_len(batch).expect("a legal size")]);
                let scratch_len = model.step_scratch_len(batch).expect("a legal size");
                let scratch = scratch.place(side, &vec![SENTINEL; scratch_len]);
                let output = y.place(side, &vec![SENTINEL; batch * config.output_size()]);
                let row = x.place(side, &input[..batch * config.embed_dim]);
                for _ in 0..2 {
                    model.step(batch, row, state, output, scratch).expect("legal arguments");
                    seen.extend(&*output);
                }
                seen.extend(&*state);
            }
            seen
        });
    }
}

#[test]
fn models() {
    let buffers = &mut std::array::from_fn(|_| Fence::new());
    let small = ModelConfig { num_layers: 2, chunk_size: 7, ..ModelConfig::new(3) };
    let fences = &mut (0..small.parameters().count()).map(|_| Fence::new()).collect::<Vec<_>>();
    for (hidden_size, num_heads) in [(1, 1), (5, 2), (8, 2), (17, 1), (33, 2), (50, 3)] {
        for output_mode in [OutputMode::LastTimestep, OutputMode::All, OutputMode::Mean] {
            let config = ModelConfig { hidden_size, num_heads, output_mode, ..small };
            for isa in Isa::available() {
                model::<f32>(isa, config, buffers, fences);
                model::<bf16>(isa, config, buffers, fences);
                model::<f16>(isa, config, buffers, fences);
            }
        }
    }
}
