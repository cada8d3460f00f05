//! The ONNX operator LinearAttention (opset 27), which is a choice of strides and of a rule: every case of
//! its node tests, packed `[B, T, H*D]`, in the types of that case.

use chunkwise::files::{self, Tensors};
use chunkwise::{Config, Gate, Heads, Isa, Normaliser, Rule, Shape, Strides, Update};
use half::f16;
use serde_json::Value;

use super::golden::{choice, configuration, golden, header};
use crate::common::family::*;
use crate::common::*;

/// The number of cases in the file.
const CASES: usize = 14;

/// An attribute of a case that is a whole number.
#[track_caller]
fn count(attributes: &Value, name: &str) -> usize {
    attributes[name].as_u64().unwrap_or_else(|| panic!("{name}: {attributes}")) as usize
}

/// A case of the file, its outputs and tolerance, and whether its tensors are f16.
struct Node {
    case: FamilyCase,
    output: Vec<f64>,
    present: Vec<f64>,
    tolerance: f64,
    half: bool,
}

fn read(tensors: &Tensors<'_>, header: &Value, node: &Value) -> Node {
    let name = node["name"].as_str().expect("a name");
    let dtype = header[format!("{name}/query")]["dtype"].as_str().expect("a type");
    assert!(["F16", "F32"].contains(&dtype), "{name}: {dtype}");
    let attributes = &node["attributes"];
    let given: Vec<&str> =
        node["inputs"].as_array().expect("inputs").iter().map(|x| x.as_str().expect("a name")).collect();
    let tensor = |what: &str| {
        given.contains(&what).then(|| tensors.tensor(&format!("{name}/{what}")).expect("a tensor"))
    };
    let output = |what: &str| -> Vec<f64> {
        let tensor = tensors.tensor(&format!("{name}/{what}")).expect("an output");
        tensor.data.iter().map(|x| f64::from(*x)).collect()
    };
    let [query, key, value] = ["query", "key", "value"].map(|what| tensor(what).expect("an input"));
    let (q_heads, kv_heads) = (count(attributes, "q_num_heads"), count(attributes, "kv_num_heads"));
    let [batch, len, q_row] = query.shape[..].try_into().expect("three sizes");
    let (key_size, value_size) = (q_row / q_heads, value.shape[2] / kv_heads);
    assert_eq!(key.shape, [batch, len, kv_heads * key_size], "{name}");
    // decay is [B, T, H] or [B, T, H*K], which are the same for K = 1.
    let (decay, beta) = (tensor("decay"), tensor("beta"));
    let gate = match &decay {
        None => Gate::None,
        Some(decay) if decay.shape[2] == kv_heads => Gate::Scalar,
        Some(decay) => {
            assert_eq!(decay.shape, [batch, len, kv_heads * key_size], "{name}");
            Gate::Key
        }
    };
    let (update, gated) = choice(
        attributes,
        "update_rule",
        &[
            ("linear", (Update::Linear, false)),
            ("gated", (Update::Linear, true)),
            ("delta", (Update::Delta, false)),
            ("gated_delta", (Update::Delta, true)),
        ],
    );
    assert_eq!((gated, update == Update::Delta), (decay.is_some(), beta.is_some()), "{name}");
    let rule = if update == Update::Delta { Rule::delta(gate) } else { Rule::gated(gate) };
    let rule = match attributes["scale"].as_f64().expect("a scale") {
        0.0 => rule.scale_by_key(key_size),
        scale => rule.scale(scale as f32),
    };
    assert_eq!(rule.normaliser, Normaliser::None);
    // beta [B, T, 1] is one number for all heads.
    let one_beta = beta.as_ref().is_some_and(|beta| beta.shape[2] == 1);
    let gate_row = if gate == Gate::Key { key_size } else { 1 };
    let beta_strides =
        if one_beta { Strides { batch: len, token: 1, head: 0 } } else { Strides::bthd(len, kv_heads, 1) };
    let groups = Heads::new(q_heads, kv_heads, kv_heads);
    let shape = Shape::grouped(batch, len, groups, key_size, value_size)
        .with_inputs(
            Strides::packed(len, q_row, key_size),
            Strides::packed(len, key.shape[2], key_size),
            Strides::packed(len, value.shape[2], value_size),
        )
        .with_gates(Strides::packed(len, kv_heads * gate_row, gate_row), beta_strides)
        .with_output(Strides::packed(len, q_heads * value_size, value_size));
    let numbers =
        |tensor: Option<files::Tensor<'_>>| tensor.map_or(vec![], |tensor| tensor.data.into_owned());
    let initial = tensor("past_state");
    let state = batch * kv_heads * key_size * value_size;
    let outputs: Vec<_> = node["outputs"].as_array().expect("outputs").iter().collect();
    assert_eq!(outputs, ["output", "present_state"], "{name}");
    Node {
        case: FamilyCase {
            config: Config::new(rule, shape),
            q: query.data.into_owned(),
            k: key.data.into_owned(),
            v: value.data.into_owned(),
            g: numbers(decay),
            beta: numbers(beta),
            a_log: vec![],
            dt_bias: vec![],
            sequences: None,
            initial: initial.map_or(vec![0.0; state], |state| state.data.into_owned()),
        },
        output: output("output"),
        present: output("present_state"),
        tolerance: node["tolerance"].as_f64().expect("a tolerance"),
        half: dtype == "F16",
    }
}

#[test]
fn every_case() {
    let bytes = files::read(golden("onnx_linear_attention")).expect("a file");
    let (tensors, config) = (Tensors::parse(&bytes).expect("a safetensors file"), configuration(&bytes));
    assert_eq!(config["kind"], "onnx_linear_attention");
    let header = header(&bytes);
    let cases = config["cases"].as_array().expect("cases");
    let (mut halves, mut outside) = (0, vec![]);
    for node in cases {
        let name = node["name"].as_str().expect("a name");
        let Node { case, output, present, tolerance, half } = read(&tensors, &header, node);
        halves += usize::from(half);
        let len = case.config.shape.len;
        for isa in Isa::available() {
            let case = case.on(isa);
            for decode in [false, true] {
                let step = if decode { 1 } else { len };
                let pieces = (0..len).step_by(step).map(|token| (token..token + step, decode));
                let (o, state) =
                    if half { case.pieces_in::<f16>(pieces) } else { case.pieces_in::<f32>(pieces) };
                for (what, got, want) in [("o", &o, &output), ("state", &state, &present)] {
                    let error = norm_error(got, want);
                    if error > tolerance {
                        outside.push(format!("{name}, {isa}, decode {decode}, {what}: {error:e}"));
                    }
                }
            }
        }
    }
    assert!(outside.is_empty(), "{outside:#?}");
    assert_eq!((cases.len(), halves), (CASES, 1));
}
