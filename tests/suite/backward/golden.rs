//! Gradients that JAX has computed in f64 (`tests/golden/README.md` describes the files): every file, on every
//! instruction set.

use std::path::Path;

use chunkwise::backward::{Gradients, Inputs};
use chunkwise::files;
use chunkwise::{Attention, Config, FeatureMap, Gate, HeadOrder, Heads, Isa, Normaliser, Rule, Shape};

use crate::common::*;
use crate::family::golden::{Unread, choice, configuration};

/// The number of files, so that a missing file fails the test.
const FILES: usize = 11;

fn rule(config: &serde_json::Value) -> Rule {
    let chunk = config["chunk"].as_u64().unwrap_or(1) as usize;
    let normalisers = [
        ("none", Normaliser::None),
        ("global", Normaliser::Global { eps: 1e-6 }),
        ("per_chunk", Normaliser::PerChunk { chunk, eps: 1e-8 }),
    ];
    let maps = [("elu", FeatureMap::Elu), ("relu", FeatureMap::RELU), ("identity", FeatureMap::Identity)];
    let gate = if config["gate"].as_bool().expect("true or false") { Gate::Scalar } else { Gate::None };
    Rule::gated(gate)
        .normaliser(choice(config, "normaliser", &normalisers))
        .feature_map(choice(config, "feature_map", &maps))
        .scale(config["scale"].as_f64().expect("a scale") as f32)
}

fn check(name: &str, bytes: &[u8], isa: Isa) {
    let config = configuration(bytes);
    let mut unread = Unread::parse(bytes);
    let mut take = |name: &str| unread.take(name);
    let ((q_shape, q), (k_shape, k), (v_shape, v)) = (take("q"), take("k"), take("v"));
    let order = [("interleaved", HeadOrder::Interleaved), ("tiled", HeadOrder::Tiled)];
    let groups = Heads::new(q_shape[2], k_shape[2], v_shape[2]).order(choice(&config, "order", &order));
    let shape = Shape::grouped(1, q_shape[1], groups, q_shape[3], v_shape[3]);
    let attention = Attention::new(Config::new(rule(&config), shape).isa(isa)).expect("a legal case");
    let [output, g, initial, last] = ["output", "g", "initial", "last"].map(|name| take(name).1);

    let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|x| vec![SENTINEL; x.len()]);
    let (mut dg, mut state) = (vec![SENTINEL; g.len()], vec![SENTINEL; initial.len()]);
    let mut inputs = Inputs::new(&q[..], &k[..], &v[..], &output[..]).gate(&g[..]);
    let mut gradients = Gradients::new(&mut dq[..], &mut dk[..], &mut dv[..]);
    if !g.is_empty() {
        gradients = gradients.gate(&mut dg[..]);
    }
    if !initial.is_empty() {
        inputs = inputs.initial(&initial).last(&last);
        gradients = gradients.initial(&mut state);
    }
    let mut scratch = vec![f32::NAN; attention.backward_scratch_len()];
    attention.backward(inputs, gradients, &mut scratch).expect("a legal call");

    for (of, got) in [("dq", dq), ("dk", dk), ("dv", dv), ("dg", dg), ("dinitial", state)] {
        let want: Vec<f64> = take(of).1.into_iter().map(f64::from).collect();
        assert_eq!(got.len(), want.len(), "{name}: {of}");
        let error = norm_error(&got, &want);
        assert!(got.is_empty() || error <= super::GRADIENT_ERROR, "{isa}, {name}: {of} is off by {error:e}");
    }
    assert!(unread.names.is_empty(), "{name}: not used: {:?}", unread.names);
}

#[test]
fn every_file() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gradients");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).expect("the folder") {
        let path = entry.expect("an entry").path();
        seen += 1;
        let (name, bytes) = (path.display().to_string(), files::read(&path).expect("a file"));
        Isa::available().for_each(|isa| check(&name, &bytes, isa));
    }
    assert_eq!(seen, FILES);
}
