//! The ONNX operator CausalConvWithState (opset 27), which is a convolution with channels first: every case
//! of its node tests, in the types of that case.

use chunkwise::conv::{Activation, CausalConv, Config, Strides, Tensors};
use chunkwise::files;
use chunkwise::{Isa, State};
use half::f16;

use crate::common::*;
use crate::family::golden::{choice, configuration, golden, header};

/// The number of cases in the file.
const CASES: usize = 13;

/// The outputs and the last state, with channels first, computed in one type.
fn run<E: Number>(config: Config, [x, weight, bias]: [&[f32]; 3], past: &[f32]) -> [Vec<f32>; 2] {
    let conv = CausalConv::new(config).expect("a legal configuration");
    let mut state = vec![0.0; conv.state_len()];
    conv.state_from_channels_first(past, &mut state).expect("a state");
    let (x, mut y) = (narrow::<E>(x), vec![E::narrow(SENTINEL); x.len()]);
    let tensors = Tensors::new(&x[..], weight, &mut y[..]);
    let tensors = if bias.is_empty() { tensors } else { tensors.bias(bias) };
    conv.forward(tensors, State::Carried(&mut state)).expect("legal arguments");
    let mut last = vec![0.0; state.len()];
    conv.state_to_channels_first(&state, &mut last).expect("a state");
    [widen(&y), last]
}

#[test]
fn every_case() {
    let bytes = files::read(golden("onnx_causal_conv")).expect("a file");
    let tensors = files::Tensors::parse(&bytes).expect("a safetensors file");
    let (config, header) = (configuration(&bytes), header(&bytes));
    assert_eq!(config["kind"], "onnx_causal_conv");
    let cases = config["cases"].as_array().expect("cases");
    let (mut halves, mut outside) = (0, vec![]);
    for node in cases {
        let name = node["name"].as_str().expect("a name");
        let given = node["inputs"].as_array().expect("inputs");
        let tensor = |what: &str| tensors.tensor(&format!("{name}/{what}")).expect("a tensor");
        let numbers = |what: &str| -> Vec<f32> {
            if given.iter().any(|input| input == what) { tensor(what).data.into_owned() } else { vec![] }
        };
        let [batch, channels, len] = tensor("input").shape[..].try_into().expect("three sizes");
        let width = tensor("weight").shape[2];
        let activation = choice(
            &node["attributes"],
            "activation",
            &[("none", Activation::None), ("silu", Activation::Silu), ("swish", Activation::Silu)],
        );
        let (x, weight, bias) = (numbers("input"), numbers("weight"), numbers("bias"));
        let mut past = numbers("past_state");
        past.resize(batch * channels * (width - 1), 0.0);
        let half = header[format!("{name}/input")]["dtype"] == "F16";
        halves += usize::from(half);
        let strides = Strides::channels_first(len, channels);
        let tolerance = node["tolerance"].as_f64().expect("a tolerance");
        for isa in Isa::available() {
            let config =
                Config::new(batch, len, channels, width).activation(activation).strides(strides, strides);
            let inputs = [&x[..], &weight, &bias];
            let run = if half { run::<f16> } else { run::<f32> };
            let got = run(config.isa(isa), inputs, &past);
            for (what, got) in ["output", "present_state"].into_iter().zip(got) {
                let want: Vec<f64> = tensor(what).data.iter().map(|x| f64::from(*x)).collect();
                let error = norm_error(&got, &want);
                if error > tolerance {
                    outside.push(format!("{name}, {isa}, {what}: {error:e}, {tolerance:e} allowed"));
                }
            }
        }
    }
    assert!(outside.is_empty(), "{outside:#?}");
    assert_eq!((cases.len(), halves), (CASES, 2));
}
