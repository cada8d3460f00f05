//! The core and the model allocate nothing: neither their constructors nor `forward`, `decode` and `step`,
//! also where these return errors. Calls of the allocator are counted on the calling thread, which is the
//! only one here.

mod family;

use chunkwise::backward::{Gradients, Inputs};
use chunkwise::conv::{self, Activation, CausalConv};
use chunkwise::gated_norm::{self, GatedNorm};
use chunkwise::nn::{AttentionKind, BlockWeights, Model, ModelConfig, OutputMode, Weights, init};
use chunkwise::{Attention, Config, Isa, Lightning, Rule, Shape, State, Tensors, lightning};

use crate::CALLS;
use crate::common::*;

/// The result of `run`, after a check that it has not called the allocator, not even to free memory.
#[track_caller]
fn without_allocating<R>(what: &str, run: impl FnOnce() -> R) -> R {
    let before = CALLS.get();
    let result = run();
    let calls = CALLS.get() - before;
    assert_eq!(calls, 0, "{what}: {calls} calls of the allocator");
    result
}

#[test]
fn the_allocator_counts() {
    let before = CALLS.get();
    drop(std::hint::black_box(vec![1.0_f32; 100]));
    assert_eq!(CALLS.get() - before, 2);
}

#[test]
fn attention() {
    // The CPU is detected once, by the first of these calls.
    without_allocating("Isa::available", || assert!(Isa::available().count() > 0));
    without_allocating("Isa::best", Isa::best);
    for isa in Isa::available() {
        for normaliser in normalisers(&[5, 20, 1000]) {
            for (batch, len, heads, key, value) in [(1, 1, 1, 1, 1), (2, 50, 3, 20, 70), (1, 16, 4, 64, 64)] {
                let config =
                    Config::new(Rule::linear(normaliser), Shape::new(batch, len, heads, key, value)).isa(isa);
                let attention =
                    without_allocating("new", || Attention::new(config)).expect("a legal configuration");
                let case = Case::new(config, 1);
                let [q, k, v] = [&case.q, &case.k, &case.v].map(|x| &x[..]);
                let o = &mut vec![0.0; batch * len * heads * value][..];
                let initial = &mut vec![0.0; attention.state_len()];
                let last = &mut vec![0.0; attention.state_len()];
                let scratch = &mut vec![0.0; attention.scratch_len().max(attention.decode_scratch_len())];
                let mut forward = |what: &str, state: State<'_>| {
                    let run = || attention.forward(Tensors::new(q, k, v, &mut *o), state, scratch);
                    without_allocating(what, run).expect("legal arguments");
                };
                forward("Zero", State::Zero);
                forward("Initial", State::Initial(initial));
                forward("Final", State::Final(last));
                forward("InitialFinal", State::InitialFinal(initial, last));
                forward("Carried", State::Carried(initial));
                let run = || attention.decode(Tensors::new(q, k, v, &mut *o), initial, scratch);
                without_allocating("decode", run).expect("legal arguments");
                let scratch = &mut vec![0.0; attention.backward_scratch_len()];
                let [dq, dk, dv] = &mut [q, k, v].map(<[f32]>::to_vec);
                let gradients = Gradients::new(&mut dq[..], &mut dk[..], &mut dv[..]).initial(initial);
                let run = || attention.backward(Inputs::new(q, k, v, v).last(last), gradients, scratch);
                without_allocating("backward", run).expect("legal arguments");
                let run = || attention.forward(Tensors::new(q, k, v, &mut *o), State::Zero, &mut []);
                without_allocating("an error", run).expect_err("no scratch");
            }
        }
    }
}

#[test]
fn layers_around_attention() {
    for isa in Isa::available() {
        let config = conv::Config::new(2, 40, 20, 4).activation(Activation::Silu).isa(isa);
        let first = conv::Strides::channels_first(40, 20);
        for config in [config, config.strides(first, first)] {
            let conv = without_allocating("CausalConv::new", || CausalConv::new(config));
            let conv = conv.expect("a legal configuration");
            let (x, weight, y) =
                (normals(1, 2 * 40 * 20), normals(2, 20 * 4), &mut vec![0.0; 2 * 40 * 20][..]);
            let state = &mut vec![0.0; conv.state_len()];
            let run = || conv.forward(conv::Tensors::new(&x[..], &weight, &mut *y), State::Carried(state));
            without_allocating("CausalConv::forward", run).expect("legal arguments");
            let run = || conv.decode(conv::Tensors::new(&x[..], &weight, &mut *y), state);
            without_allocating("CausalConv::decode", run).expect("legal arguments");
            let run = || conv.decode(conv::Tensors::new(&x[..], &weight, &mut *y), &mut []);
            without_allocating("an error", run).expect_err("no state");
        }
        let config = gated_norm::Config::new(2, 3, 4, 200).isa(isa);
        let norm = without_allocating("GatedNorm::new", || GatedNorm::new(config));
        let norm = norm.expect("a legal configuration");
        let (x, y) = (normals(1, 2 * 3 * 4 * 200), &mut vec![0.0; 2 * 3 * 4 * 200][..]);
        let run = || norm.forward(gated_norm::Tensors::new(&x[..], &x[..], &mut *y));
        without_allocating("GatedNorm::forward", run).expect("legal arguments");
        let run = || norm.forward(gated_norm::Tensors::in_place(&x[..], &mut *y));
        without_allocating("GatedNorm::forward", run).expect("legal arguments");
    }
}

#[test]
fn lightning_attention() {
    for isa in Isa::available() {
        for chunk in [1, 5, 20, 1000] {
            let shape = Shape::new(2, 50, 3, 20, 70);
            let config = lightning::Config::new(chunk, shape).isa(isa);
            let lightning =
                without_allocating("new", || Lightning::new(config)).expect("a legal configuration");
            let (x, o) = (normals(1, 2 * 50 * 3 * 70), &mut vec![0.0; 2 * 50 * 3 * 70][..]);
            let initial = &mut vec![0.0; lightning.state_len()];
            let last = &mut vec![0.0; lightning.state_len()];
            let scratch = &mut vec![0.0; lightning.scratch_len().max(lightning.decode_scratch_len())];
            let mut forward = |what: &str, state: State<'_>| {
                let run = || lightning.forward(Tensors::new(&x[..], &x[..], &x[..], &mut *o), state, scratch);
                without_allocating(what, run).expect("legal arguments");
            };
            forward("Zero", State::Zero);
            forward("Initial", State::Initial(initial));
            forward("Final", State::Final(last));
            forward("InitialFinal", State::InitialFinal(initial, last));
            forward("Carried", State::Carried(initial));
            let run = || lightning.decode(Tensors::new(&x[..], &x[..], &x[..], &mut *o), initial, scratch);
            without_allocating("decode", run).expect("legal arguments");
            let run =
                || lightning.forward(Tensors::new(&x[..], &x[..], &x[..], &mut *o), State::Zero, &mut []);
            without_allocating("an error", run).expect_err("no scratch");
        }
    }
}

#[test]
fn model() {
    let modes = [OutputMode::LastTimestep, OutputMode::All, OutputMode::Mean]
        .map(|mode| (mode, AttentionKind::Linear));
    for isa in Isa::available() {
        for (output_mode, attention) in modes.into_iter().chain([(OutputMode::All, AttentionKind::Lightning)])
        {
            let config = ModelConfig {
                attention,
                hidden_size: 50,
                num_heads: 3,
                num_layers: 2,
                output_mode,
                ..ModelConfig::new(7)
            };
            let flat = &mut vec![0.0; config.parameters_len()];
            without_allocating("init", || init(&config, 1, flat)).expect("a flat model");
            let blocks = &mut [BlockWeights::default(); 2];
            let weights = without_allocating("from_flat", || Weights::from_flat(&config, flat, blocks));
            let weights = weights.expect("a flat model");
            let model = without_allocating("Model::new", || Model::new(config, weights, Some(isa), 1));
            let model = model.expect("a legal model");
            // Several sequences in a tile, and one sequence of more than a tile (256 rows).
            for (batch, len) in [(3, 20), (1, 300)] {
                let scratch_len = without_allocating("scratch_len", || model.scratch_len(batch, len));
                let scratch = &mut vec![0.0; scratch_len.expect("a legal size")];
                let (input, output) =
                    (normals(1, batch * len * 7), &mut vec![0.0; model.output_len(batch, len)]);
                without_allocating("Model::forward", || model.forward(batch, len, &input, output, scratch))
                    .expect("legal arguments");
                let state = &mut vec![0.0; model.state_len(batch).expect("a legal size")];
                let scratch = &mut vec![0.0; model.step_scratch_len(batch).expect("a legal size")];
                let (input, output) = (&input[..batch * 7], &mut vec![0.0; batch * 50]);
                without_allocating("Model::step", || model.step(batch, input, state, output, scratch))
                    .expect("legal arguments");
            }
        }
    }
}
