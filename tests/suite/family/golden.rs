//! The outputs of the reference implementations of gates and delta rules (`tests/golden/family/README.md`
//! describes the files): every file is recomputed by forward and by decode, on every instruction set.

use std::path::{Path, PathBuf};

use chunkwise::files::{self, Tensors};
use chunkwise::{
    BetaMap, Config, FeatureMap, Gate, GateMap, HeadOrder, Heads, Isa, Normaliser, Rule, Shape, Update,
};
use serde_json::Value;

use crate::common::family::*;
use crate::common::*;

/// The number of files of the kind `family`, so that a missing file fails the test.
const FILES: usize = 47;

/// Files of other kinds, which other tests read.
const OTHERS: [&str; 2] = ["onnx_causal_conv", "onnx_linear_attention"];

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/family").join(name).with_extension("safetensors")
}

/// The JSON of a file's header.
pub(crate) fn header(bytes: &[u8]) -> Value {
    let (len, rest) = bytes.split_first_chunk::<8>().expect("a header");
    serde_json::from_slice(&rest[..u64::from_le_bytes(*len) as usize]).expect("a header of JSON")
}

/// The JSON of a file's metadata.
pub(crate) fn configuration(bytes: &[u8]) -> Value {
    let header = header(bytes);
    let text = header["__metadata__"]["config"].as_str().expect("a configuration");
    serde_json::from_str(text).expect("a configuration of JSON")
}

/// The tensors of a file, with the names of those that have not been taken.
pub(crate) struct Unread<'a> {
    tensors: Tensors<'a>,
    pub(crate) names: Vec<String>,
}

impl<'a> Unread<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Self {
        let tensors = Tensors::parse(bytes).expect("a safetensors file");
        Self { names: tensors.names(), tensors }
    }

    /// The shape and the numbers of a tensor, which are empty where the file does not have it.
    pub(crate) fn take(&mut self, name: &str) -> (Vec<usize>, Vec<f32>) {
        if !self.names.iter().any(|have| have == name) {
            return (vec![], vec![]);
        }
        self.names.retain(|have| have != name);
        let tensor = self.tensors.tensor(name).expect("a tensor of numbers");
        (tensor.shape, tensor.data.into_owned())
    }
}

/// The value that belongs to the text of a field.
#[track_caller]
pub(crate) fn choice<T: Copy>(config: &Value, field: &str, choices: &[(&str, T)]) -> T {
    let text = config[field].as_str().unwrap_or_else(|| panic!("{field} is no text: {config}"));
    let found = choices.iter().find(|(name, _)| *name == text);
    found.unwrap_or_else(|| panic!("{field}: {text} is not known")).1
}

/// The value of a field that is a number or null.
#[track_caller]
fn number(config: &Value, field: &str) -> Option<f32> {
    let value = config.get(field).unwrap_or_else(|| panic!("{field} is missing: {config}"));
    assert!(value.is_null() || value.is_number(), "{field}: {value}");
    value.as_f64().map(|x| x as f32)
}

/// All fields of a configuration, so that a new field can't be ignored.
const FIELDS: [&str; 15] = [
    "beta_map",
    "eps",
    "feature_map",
    "gate",
    "gate_lower",
    "gate_map",
    "head_order",
    "kind",
    "normaliser",
    "note",
    "qk_norm_eps",
    "scale",
    "source",
    "tolerance",
    "update",
];

fn rule(config: &Value) -> Rule {
    let mut fields: Vec<&str> = config.as_object().expect("an object").keys().map(|key| &key[..]).collect();
    fields.sort_unstable();
    assert_eq!(fields, FIELDS);
    let update = choice(config, "update", &[("linear", Update::Linear), ("delta", Update::Delta)]);
    let gate = choice(config, "gate", &[("none", Gate::None), ("scalar", Gate::Scalar), ("key", Gate::Key)]);
    let lower = number(config, "gate_lower");
    let gate_map = choice(
        config,
        "gate_map",
        &[
            ("log", GateMap::Log),
            ("linear", GateMap::Linear),
            ("softplus", GateMap::Softplus),
            ("bounded", GateMap::Bounded { lower: lower.unwrap_or(f32::NAN) }),
        ],
    );
    assert_eq!(lower.is_some(), matches!(gate_map, GateMap::Bounded { .. }), "gate_lower");
    let eps = number(config, "eps");
    let normaliser = choice(
        config,
        "normaliser",
        &[("none", Normaliser::None), ("global", Normaliser::Global { eps: eps.unwrap_or(f32::NAN) })],
    );
    assert_eq!(eps.is_some(), normaliser != Normaliser::None, "eps");
    let rule = match update {
        Update::Delta => Rule::delta(gate),
        _ => Rule::gated(gate),
    };
    let rule = rule
        .gate_map(gate_map)
        .beta_map(choice(
            config,
            "beta_map",
            &[
                ("given", BetaMap::Given),
                ("sigmoid", BetaMap::Sigmoid),
                ("twice_sigmoid", BetaMap::TwiceSigmoid),
            ],
        ))
        .feature_map(choice(
            config,
            "feature_map",
            &[("identity", FeatureMap::Identity), ("elu", FeatureMap::Elu), ("relu", FeatureMap::RELU)],
        ))
        .normaliser(normaliser)
        .scale(number(config, "scale").expect("a scale"));
    match number(config, "qk_norm_eps") {
        Some(eps) => rule.qk_norm(eps),
        None => rule,
    }
}

/// A case, and the results and tolerance of the reference.
struct Golden {
    case: FamilyCase,
    o: Vec<f64>,
    state: Vec<f64>,
    tolerance: f64,
}

fn read(name: &str, bytes: &[u8]) -> Golden {
    let config = configuration(bytes);
    let mut unread = Unread::parse(bytes);
    let mut take = |name: &str| unread.take(name);
    let ((q_shape, q), (k_shape, k), (v_shape, v)) = (take("q"), take("k"), take("v"));
    let sizes = |shape: &[usize]| -> [usize; 4] { shape.try_into().expect("four sizes") };
    let [batch, len, query, key] = sizes(&q_shape);
    let ([_, _, keys, _], [_, _, values, value]) = (sizes(&k_shape), sizes(&v_shape));
    let order = choice(
        &config,
        "head_order",
        &[("interleaved", HeadOrder::Interleaved), ("tiled", HeadOrder::Tiled)],
    );
    let groups = Heads::new(query, keys, values).order(order);
    let rule = rule(&config);
    let heads = groups.state();
    // In a state, z of each head follows its S.
    let states = |(_, s): (Vec<usize>, Vec<f32>), (_, z): (Vec<usize>, Vec<f32>)| -> Vec<f32> {
        let (s, z) = if s.is_empty() {
            (vec![0.0; batch * heads * key * value], vec![0.0; batch * heads * key])
        } else {
            (s, z)
        };
        let heads = s.chunks_exact(key * value).enumerate();
        heads
            .flat_map(|(i, s)| {
                let z = if rule.normaliser == Normaliser::None { &[][..] } else { &z[i * key..][..key] };
                [s, z].concat()
            })
            .collect()
    };
    let initial = states(take("initial_state"), take("initial_z"));
    let last = states(take("final_state"), take("final_z"));
    let case = FamilyCase {
        config: Config::new(rule, Shape::grouped(batch, len, groups, key, value)),
        q,
        k,
        v,
        g: take("g").1,
        beta: take("beta").1,
        a_log: take("a_log").1,
        dt_bias: take("dt_bias").1,
        sequences: None,
        initial,
    };
    let o = take("o").1;
    assert_eq!(o.len(), case.output().len(), "{name}: o");
    assert!(unread.names.is_empty(), "{name}: not used: {:?}", unread.names);
    let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect();
    let tolerance = config["tolerance"].as_f64().expect("a tolerance");
    Golden { case, o: wide(o), state: wide(last), tolerance }
}

fn files_of_the_folder() -> Vec<PathBuf> {
    let folder = std::fs::read_dir(golden("x").parent().expect("a folder")).expect("the folder");
    let mut paths: Vec<_> = folder.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    paths.sort();
    paths
}

#[test]
fn every_file() {
    let (mut others, mut seen, mut outside) = (vec![], 0, vec![]);
    for path in files_of_the_folder() {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let bytes = files::read(&path).expect("a file");
        if configuration(&bytes)["kind"] != "family" {
            others.push(name);
            continue;
        }
        seen += 1;
        let Golden { case, o, state, tolerance } = read(&name, &bytes);
        for isa in Isa::available() {
            let case = case.on(isa);
            for (call, (got_o, got_state)) in [("forward", case.forward()), ("decode", case.decode())] {
                for (what, got, want) in [("o", &got_o, &o), ("state", &got_state, &state)] {
                    let error = norm_error(got, want);
                    if error > tolerance {
                        outside.push(format!("{name}, {isa}, {call}, {what}: {error:e} > {tolerance:e}"));
                    }
                }
            }
        }
    }
    assert!(outside.is_empty(), "{outside:#?}");
    assert_eq!((seen, &others[..]), (FILES, &OTHERS.map(String::from)[..]));
}

/// The oracle, with which all other tests compare, is itself compared with the references.
#[test]
fn the_oracle() {
    for path in files_of_the_folder() {
        let bytes = files::read(&path).expect("a file");
        if configuration(&bytes)["kind"] == "family" {
            let name = path.display().to_string();
            let Golden { case, o, state, tolerance } = read(&name, &bytes);
            let (got_o, got_state) = case.oracle();
            let off = |got: &[f64], want: &[f64]| {
                norm_error(&got.iter().map(|x| *x as f32).collect::<Vec<_>>(), want)
            };
            assert!(off(&got_o, &o) <= tolerance, "{name}: o is off by {:e}", off(&got_o, &o));
            assert!(off(&got_state, &state) <= tolerance, "{name}: the state");
        }
    }
}
