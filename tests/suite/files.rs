//! Reading model files: a valid file gives the model, and an invalid one an error that names the fault.

use std::path::Path;

use chunkwise::FeatureMap;
use chunkwise::element::Elements;
use chunkwise::files::{self, Error, ModelFile, Options, Tensor, Tensors};
use chunkwise::nn::{AttentionKind, BlockWeights, Model, ModelConfig, OutputMode, Weights, init};

use crate::weights::{CONFIG, File, JSON, numbers};

/// The valid file with every parameter in a type of 16 bits, and a file with the same numbers in f32.
fn narrowed(dtype: &'static str, narrow: impl Fn(f32) -> ([u8; 2], f32)) -> [File; 2] {
    let (mut narrow_file, mut wide_file) = (File::good(), File::good());
    for (narrow_tensor, wide_tensor) in narrow_file.tensors.iter_mut().zip(&mut wide_file.tensors) {
        let numbers = wide_tensor.3.as_chunks().0.iter().map(|bytes| narrow(f32::from_le_bytes(*bytes)));
        if wide_tensor.0.contains('.') {
            let numbers: Vec<_> = numbers.collect();
            narrow_tensor.1 = dtype;
            narrow_tensor.3 = numbers.iter().flat_map(|(bytes, _)| *bytes).collect();
            wide_tensor.3 = numbers.iter().flat_map(|(_, wide)| wide.to_le_bytes()).collect();
        }
    }
    [narrow_file, wide_file]
}

type Way = fn(&Model<'_>, &Tensor<'_>) -> files::Result<Tensor<'static>>;

fn load(bytes: &[u8]) -> files::Result<ModelFile<'_>> {
    ModelFile::parse(bytes, &Options::default())
}

fn run(bytes: &[u8]) -> Vec<f32> {
    let file = load(bytes).unwrap();
    let mut blocks = Vec::new();
    let model = file.model(&mut blocks, None, 1).unwrap();
    files::forward(&model, &file.tensor("input").unwrap()).unwrap().data.into_owned()
}

/// Checks that a result is an error whose message is one line and contains all of `parts`.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: files::Result<T>, parts: &[&str]) {
    let message = result.expect_err("refused").to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} in {message:?}");
    }
    assert!(!message.contains('\n'), "{message:?} is one sentence");
}

#[test]
fn a_good_file() {
    let bytes = File::good().bytes();
    let file = load(&bytes).unwrap();
    assert_eq!(*file.config(), CONFIG);
    let mut blocks = Vec::new();
    let model = file.model(&mut blocks, None, 1).unwrap();
    let input = file.tensor("input").unwrap();
    let output = files::forward(&model, &input).unwrap();
    assert_eq!(output.shape, [2, 8]);

    // The same model without a file.
    let mut flat = vec![0.0; CONFIG.parameters_len()];
    init(&CONFIG, 7, &mut flat).unwrap();
    let mut blocks = vec![BlockWeights::default(); CONFIG.num_layers];
    let weights = Weights::from_flat(&CONFIG, &flat, &mut blocks).unwrap();
    let direct = Model::new(CONFIG, weights, None, 1).unwrap();
    assert_eq!(files::forward(&direct, &input).unwrap(), output);
    assert!(files::logits(&direct, &output).unwrap().is_none());

    let logits = files::logits(&model, &output).unwrap().unwrap();
    assert_eq!(logits.shape, [2, 5]);
    let by_hand = |row: usize, column: usize| -> f32 {
        let dot = (0..8).map(|i| output.data[row * 8 + i] * numbers(40)[i * 5 + column]).sum::<f32>();
        dot + numbers(5)[column]
    };
    assert!((logits.data[7] - by_hand(1, 2)).abs() < 1e-5);
}

/// Outputs whose length overflows 32 bits, or exceeds any memory with 32-bit addresses.
#[test]
#[cfg(target_pointer_width = "32")]
fn outputs_beyond_the_address_space() {
    let config =
        ModelConfig { hidden_size: 256, num_layers: 1, output_mode: OutputMode::All, ..ModelConfig::new(1) };
    let mut flat = vec![0.0; config.parameters_len()];
    init(&config, 7, &mut flat).unwrap();
    let mut blocks = vec![BlockWeights::default(); config.num_layers];
    let mut weights = Weights::from_flat(&config, &flat, &mut blocks).unwrap();
    let (kernel, bias) = (vec![0.0; 256 << 14], vec![0.0; 1 << 14]);
    weights.head = Some(chunkwise::nn::Linear::new(&kernel, &bias));
    let model = Model::new(config, weights, None, 1).unwrap();
    // The outputs have 2^29 elements of 4 bytes, and the logits 2^32 and 2^31 elements.
    let input = Tensor { shape: vec![1 << 21, 1], data: vec![0.0; 1 << 21].into() };
    for way in [files::forward as Way, files::stream as Way] {
        refused(way(&model, &input), &["too large"]);
    }
    for rows in [1 << 18, 1 << 17] {
        let output = Tensor { shape: vec![rows, 256], data: vec![0.0; rows * 256].into() };
        refused(files::logits(&model, &output), &["too large"]);
    }
}

/// Results have the same bits at every alignment, and tensors are borrowed where their alignment allows it.
#[test]
fn alignment() {
    let bytes = File::good().bytes();
    let want = run(&bytes);
    let mut borrowed = 0;
    for shift in 0..8 {
        let shifted = [vec![0; shift], bytes.clone()].concat();
        assert_eq!(run(&shifted[shift..]), want, "{shift}");
        let tensors = Tensors::parse(&shifted[shift..]).unwrap();
        borrowed += u32::from(matches!(tensors.tensor("input").unwrap().data, std::borrow::Cow::Borrowed(_)));
    }
    assert_eq!(borrowed, if cfg!(target_endian = "little") { 2 } else { 0 });
}

#[test]
fn halves_are_widened() {
    let data = numbers(60);
    let bf16: Vec<u8> = data.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
    let f16: Vec<u8> = data.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
    let cases = [("BF16", bf16, 1f32 / 256.0), ("F16", f16, 1.0 / 2048.0)];
    for (dtype, bytes, rounding) in cases {
        let mut file = File::good().without("input");
        file.tensors.push(("input".into(), dtype, vec![2, 10, 3], bytes));
        let bytes = file.bytes();
        let got = load(&bytes).unwrap().tensor("input").unwrap();
        for (got, want) in got.data.iter().zip(&data) {
            assert!((got - want).abs() <= rounding * want.abs() + 1e-7, "{dtype} {got} {want}");
        }
        assert_ne!(*got.data, data);
    }
}

#[test]
fn files_that_are_not_safetensors() {
    refused(load(b""), &["header", "byte 8", "has 0"]);
    refused(load(&[1; 7]), &["header", "has 7"]);
    refused(load(&u64::MAX.to_le_bytes()), &["header", &u64::MAX.to_string()]);
    refused(load(&[&3u64.to_le_bytes()[..], b"{}"].concat()), &["header", "byte 11", "has 10"]);
    let file = File { config: None, tensors: Vec::new() };
    refused(load(&file.with_header("")), &["header", "JSON"]);
    refused(load(&file.with_header("{")), &["header", "JSON"]);
    refused(load(&file.with_header("{} x")), &["header", "JSON"]);
    refused(load(&file.with_header("[]")), &["safetensors"]);
    refused(load(&file.with_header(&"[".repeat(100_000))), &["header", "JSON", "recursion"]);
    refused(load(&[&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat()), &["header", "JSON"]);
    refused(load(&file.with_header("{}")), &["no parameters", "fla_block_1_attn_norm.gamma"]);
    refused(load(&file.with_header(r#"{"__metadata__": {"config": 3}}"#)), &["safetensors"]);
}

#[test]
fn a_key_that_is_there_twice() {
    let file = File::good();
    let mut entries = file.entries();
    entries.push(entries.last().unwrap().clone());
    refused(load(&file.with_header(&format!("{{{}}}", entries.join(", ")))), &["header", "`input`", "twice"]);
    let twice = r#"{"num_heads": 2, "num_heads": 4, "chunk_size": 4, "feature_map": "elu"}"#;
    refused(load(&File::good().config(twice).bytes()), &["configuration", "`num_heads`", "twice"]);
    refused(Options::from_json(twice), &["configuration", "`num_heads`", "twice"]);
}

/// Every prefix of a file is refused without a panic.
#[test]
fn every_prefix() {
    let bytes = File::good().bytes();
    for len in 0..bytes.len() {
        let error = load(&bytes[..len]).expect_err("cut short");
        assert!(matches!(error, Error::Truncated { .. }), "{len}: {error}");
    }
    refused(load(&bytes[..bytes.len() - 1]), &["input", &bytes.len().to_string()]);
    refused(load(&[&bytes[..], &[0]].concat()), &["not fully covered"]);
}

/// Replacing any byte of the header by some others does not cause a panic.
#[test]
fn every_byte_of_the_header() {
    let good = File::good().bytes();
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    for at in 0..header {
        let mut bytes = good.clone();
        for byte in [0, b'"', b'}', b'9', b'-', 0xff, good[at] ^ 1] {
            bytes[at] = byte;
            if let Ok(file) = load(&bytes) {
                let mut blocks = Vec::new();
                let model = file.model(&mut blocks, None, 1).unwrap();
                let _ = file.tensor("input").and_then(|input| files::forward(&model, &input));
            }
        }
    }
}

/// The header of one tensor `x` with four bytes of data.
fn one(entry: &str) -> Vec<u8> {
    let mut file = File { config: None, tensors: Vec::new() };
    file.add("x", &[1], &[1.0]);
    file.with_header(&format!(r#"{{"x": {entry}}}"#))
}

#[test]
fn sizes_that_can_not_be() {
    let parse = |entry: &str| Tensors::parse(&one(entry)).map(|tensors| tensors.names());
    assert_eq!(parse(r#"{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}"#).unwrap(), ["x"]);
    assert_eq!(parse(r#"{"dtype": "F32", "shape": [], "data_offsets": [0, 4]}"#).unwrap(), ["x"]);
    let cases = [
        (r#"{"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}"#, "x: F32 [2]"),
        (r#"{"dtype": "F16", "shape": [1], "data_offsets": [0, 4]}"#, "x: F16 [1]"),
        (r#"{"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}"#, "x: F32 [1]"),
        (r#"{"dtype": "F32", "shape": [0], "data_offsets": [0, 4]}"#, "x: F32 [0]"),
        (
            r#"{"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 4]}"#,
            "x: F32 [4294967296, 4294967296]",
        ),
        (
            r#"{"dtype": "F32", "shape": [4611686018427387905], "data_offsets": [0, 4]}"#,
            "x: F32 [4611686018427387905]",
        ),
        (
            r#"{"dtype": "F32", "shape": [1099511627776], "data_offsets": [0, 4398046511104]}"#,
            "x reaches byte",
        ),
        (r#"{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}"#, "x reaches byte"),
        (r#"{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}"#, "not fully covered"),
        (r#"{"dtype": "F32", "shape": [0], "data_offsets": [4, 4]}"#, "invalid offset"),
        (r#"{"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}"#, "JSON"),
        (r#"{"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}"#, ""),
        (r#"{"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}"#, ""),
        (r#"{"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}"#, ""),
        (r#"{"dtype": "F32", "shape": [1], "data_offsets": [0]}"#, ""),
        (r#"{"dtype": "F32", "shape": [1], "data_offsets": [0, 18446744073709551616]}"#, ""),
        (r#"{"dtype": "F32", "shape": [1]}"#, ""),
        (r#"{}"#, ""),
        ("3", ""),
    ];
    for (entry, part) in cases {
        let part = if part == "JSON" { "x has no dtype" } else { part };
        refused(parse(entry), &[if part.is_empty() { "x has no dtype known here" } else { part }]);
    }
}

#[test]
fn every_parameter_missing() {
    for parameter in CONFIG.parameters() {
        let name = parameter.to_string();
        let bytes = File::good().without(&name).config(&all_options()).bytes();
        refused(load(&bytes), &[&name, &format!("{:?}", parameter.dims()), "missing"]);
    }
    refused(load(&File::good().without("head.kernel").bytes()), &["head.kernel [8, 5]", "missing"]);
    refused(load(&File::good().without("head.bias").bytes()), &["head.bias [5]", "missing"]);
}

/// The options with all sizes, so that no size is derived from a wrong shape.
fn all_options() -> String {
    JSON.replace('}', r#", "embed_dim": 3, "hidden_size": 8, "num_layers": 2, "final_norm": true}"#)
}

#[test]
fn every_parameter_misshaped() {
    let head = [("head.kernel".to_string(), vec![8, 5]), ("head.bias".to_string(), vec![5])];
    let parameters = CONFIG.parameters().map(|p| (p.to_string(), p.dims().to_vec()));
    for (name, want) in parameters.chain(head) {
        for at in 0..want.len() {
            let mut got = want.clone();
            got[at] += 1;
            let bytes = File::good().without(&name).with(&name, &got).config(&all_options()).bytes();
            if (name.as_str(), at) == ("head.kernel", 1) {
                // The kernel and the bias contradict each other, and the message names the bias.
                refused(load(&bytes), &["head.bias", "[5]", "[6]"]);
            } else if name == "head.bias" {
                refused(load(&bytes), &["head.bias", "[5]", "[6]"]);
            } else {
                refused(load(&bytes), &[&name, &format!("{got:?}"), &format!("{want:?}")]);
            }
        }
        // A matrix in place of a vector, or a vector in place of a matrix, with the same number of elements.
        let flat = if want.len() == 1 { vec![1, want[0]] } else { vec![want.iter().product()] };
        let bytes = File::good().without(&name).with(&name, &flat).config(&all_options()).bytes();
        refused(load(&bytes), &["shape"]);
    }
}

#[test]
fn every_parameter_mistyped() {
    for parameter in CONFIG.parameters() {
        let name = parameter.to_string();
        for (dtype, size) in [("F64", 8), ("I32", 4), ("U8", 1), ("BOOL", 1)] {
            let mut file = File::good().without(&name);
            file.tensors.push((
                name.clone(),
                dtype,
                parameter.dims().into(),
                vec![0; size * parameter.len()],
            ));
            refused(load(&file.bytes()), &[&name, dtype, "F32", &format!("{:?}", parameter.dims())]);
        }
    }
}

#[test]
fn unknown_parameters() {
    let unknown = |name: &str| load(&File::good().with(name, &[2, 3]).bytes()).map(|_| ());
    for name in ["dense_0.kernel", "dense_0.bias", "fla_block_1_attn_norm.kernel", "norm.gamma", "a.b.beta"] {
        refused(unknown(name), &[name, "[2, 3]", "no place"]);
    }
    // A parameter of another block implies that block, all of whose parameters must then be present.
    refused(unknown("fla_block_3_attn_qkv.bias"), &["fla_block_3_attn_norm.gamma [8]", "missing"]);
    refused(unknown("fla_block_99999999999999999999_attn_norm.gamma"), &["no place"]);
    refused(unknown(&format!("fla_block_{}_attn_norm.gamma", usize::MAX)), &["too large"]);
    for name in ["labels", "kernel", "attn1_out", "x.weight", "x.kernels"] {
        unknown(name).unwrap();
    }
}

#[test]
fn options_not_implied_by_shapes() {
    for (option, flag) in
        [("num_heads", "--num-heads"), ("chunk_size", "--chunk-size"), ("feature_map", "--feature-map")]
    {
        let mut json: serde_json::Value = serde_json::from_str(JSON).unwrap();
        json[option].take();
        refused(load(&File::good().config(&json.to_string()).bytes()), &[option, flag, "JSON"]);
    }
    let mut file = File::good();
    file.config = None;
    refused(load(&file.bytes()), &["num_heads"]);
    let options = Options {
        num_heads: Some(2),
        chunk_size: Some(4),
        seq_len: Some(12),
        feature_map: Some(FeatureMap::Elu),
        ..Options::default()
    };
    assert_eq!(*ModelFile::parse(&file.bytes(), &options).unwrap().config(), CONFIG);
}

/// The precedence of options: the caller's, then those of the metadata, then those that follow from shapes,
/// then defaults.
#[test]
fn which_option_counts() {
    let file = File::good().config(
        r#"{"num_heads": 4, "chunk_size": 5, "window_size": 9, "feature_map": "relu", "output_mode": "mean_pool",
            "layer_norm_eps": 0.5, "layer_norm_clip": true, "dropout": 0.25, "hidden_size": null, "note": [1, {}]}"#,
    );
    let bytes = file.bytes();
    let want = ModelConfig {
        num_heads: 4,
        chunk_size: 5,
        seq_len: 9,
        feature_map: FeatureMap::RELU,
        output_mode: OutputMode::Mean,
        layer_norm_eps: 0.5,
        layer_norm_clip: true,
        dropout: 0.25,
        ..CONFIG
    };
    assert_eq!(*load(&bytes).unwrap().config(), want);
    let options = Options::from_json(
        r#"{"num_heads": 2, "seq_len": 7, "window_size": 8, "feature_map": "identity", "output_mode": "all"}"#,
    );
    let got = ModelFile::parse(&bytes, &options.unwrap()).unwrap();
    let feature_map = FeatureMap::Identity;
    let want = ModelConfig { num_heads: 2, seq_len: 7, feature_map, output_mode: OutputMode::All, ..want };
    assert_eq!(*got.config(), want);
    // A model whose file has no final norm has none.
    let file = File::good().without("final_norm.gamma").without("final_norm.beta").bytes();
    assert!(!load(&file).unwrap().config().final_norm);
    // Without a projection, embed_dim is hidden_size.
    let file = File::good().without("input_projection.kernel").without("input_projection.bias").bytes();
    assert_eq!(load(&file).unwrap().config().embed_dim, 8);
}

#[test]
fn options_that_contradict_the_shapes() {
    let bytes = File::good().bytes();
    let contradict = |json: &str| ModelFile::parse(&bytes, &Options::from_json(json).unwrap()).map(|_| ());
    refused(contradict(r#"{"embed_dim": 4}"#), &["input_projection.kernel", "[3, 8]", "[4, 8]"]);
    refused(contradict(r#"{"embed_dim": 8}"#), &["input_projection.kernel", "[3, 8]", "[8, 8]"]);
    refused(contradict(r#"{"hidden_size": 16}"#), &["input_projection.kernel", "[3, 8]", "[3, 16]"]);
    refused(contradict(r#"{"num_heads": 3}"#), &["fla_block_1_attn_out.kernel", "[8, 8]", "[6, 8]"]);
    refused(contradict(r#"{"num_heads": 9}"#), &["head_dim"]);
    refused(contradict(r#"{"num_layers": 3}"#), &["fla_block_3_attn_norm.gamma", "missing"]);
    refused(contradict(r#"{"num_layers": 1}"#), &["fla_block_2_", "no place"]);
    let layers = |count: usize| contradict(&format!(r#"{{"num_layers": {count}}}"#));
    refused(layers(1 << (usize::BITS - 2)), &["too large"]);
    // This is a very large number of layers, or the largest that is possible with 32-bit addresses.
    refused(layers((usize::MAX >> 15).min(1_000_000_000)), &["fla_block_3_attn_norm.gamma", "missing"]);
    refused(contradict(r#"{"final_norm": false}"#), &["final_norm", "no place"]);
    let bare = File::good().without("input_projection.kernel").without("input_projection.bias").bytes();
    let options = Options { embed_dim: Some(3), ..Options::default() };
    refused(ModelFile::parse(&bare, &options), &["input_projection.kernel [3, 8]", "missing"]);
    let bare = File::good().without("final_norm.gamma").without("final_norm.beta").bytes();
    let options = Options { final_norm: Some(true), ..Options::default() };
    refused(ModelFile::parse(&bare, &options), &["final_norm.gamma [8]", "missing"]);
}

#[test]
fn options_that_make_no_sense() {
    let sizes =
        ["embed_dim", "hidden_size", "num_heads", "num_layers", "chunk_size", "seq_len", "window_size"];
    for size in sizes {
        for value in ["0", "-1", "1.5", "\"4\"", "true", "[4]", "1e3", "18446744073709551616"] {
            refused(Options::from_json(&format!(r#"{{"{size}": {value}}}"#)), &[size, "whole number"]);
        }
    }
    for (option, value, want) in [
        ("feature_map", "\"gelu\"", "relu"),
        ("feature_map", "1", "relu"),
        ("output_mode", "\"first\"", "last_timestep"),
        ("final_norm", "1", "true or false"),
        ("layer_norm_clip", "\"yes\"", "true or false"),
        ("layer_norm_eps", "\"small\"", "a number"),
        ("dropout", "{}", "a number"),
        ("kind", "1", "a string"),
        ("weights_from", "1", "a string"),
    ] {
        refused(Options::from_json(&format!(r#"{{"{option}": {value}}}"#)), &[option, value, want]);
    }
    for text in ["", "{", "[]", "3", "nothing", "{\"num_heads\": 2}}"] {
        refused(Options::from_json(text), &["configuration", "JSON"]);
        refused(load(&File::good().config(text).bytes()), &["configuration in the metadata", "JSON"]);
    }
    let eps = |eps: &str| {
        load(&File::good().config(&JSON.replace('}', &format!(r#", "layer_norm_eps": {eps}}}"#))).bytes())
            .map(|_| ())
    };
    for value in ["0", "-1", "1e300", "1e-60"] {
        refused(eps(value), &["layer_norm_eps"]);
    }
    eps("1e-3").unwrap();
    let chunk =
        JSON.replace("\"chunk_size\": 4, \"seq_len\": 12", "\"chunk_size\": 99999999, \"seq_len\": 99999999");
    refused(load(&File::good().config(&chunk).bytes()), &["99999999 tokens of a chunk"]);
}

#[test]
fn kinds_and_other_files() {
    let with = |more: &str| JSON.replace('}', &format!(", {more}}}"));
    load(&File::good().config(&with(r#""kind": "fla""#)).bytes()).unwrap();
    refused(load(&File::good().config(&with(r#""kind": "thunder""#)).bytes()), &["kind is thunder"]);
    // The names of blocks begin with the kind of attention.
    refused(load(&File::good().config(&with(r#""kind": "lightning""#)).bytes()), &["lightning_block_1_"]);
    let mut file = File::good().config(&with(r#""weights_from": "other.safetensors""#));
    file.tensors.retain(|tensor| tensor.0 == "input");
    refused(load(&file.bytes()), &["other.safetensors"]);
}

/// The names of the blocks or the option `kind` determine the attention; a feature map is not required.
#[test]
fn files_of_lightning_attention() {
    let file = File::lightning();
    let want = ModelConfig { attention: AttentionKind::Lightning, ..CONFIG };
    let by_names = r#"{"num_heads": 2, "block_size": 4, "seq_len": 12}"#;
    let by_kind = r#"{"num_heads": 2, "chunk_size": 4, "block_size": 5, "seq_len": 12, "kind": "lightning"}"#;
    for json in [by_names, by_kind] {
        assert_eq!(*load(&file.clone().config(json).bytes()).unwrap().config(), want, "{json}");
    }
    let bytes = file.clone().config(by_names).bytes();
    assert_ne!(run(&bytes), run(&File::good().bytes()));
    let all = load(&bytes).unwrap();
    let mut blocks = Vec::new();
    let model = all.model(&mut blocks, None, 1).unwrap();
    let input = all.tensor("input").unwrap();
    assert_eq!(files::stream(&model, &input).unwrap(), files::forward(&model, &input).unwrap());

    refused(load(&file.clone().config(r#"{"num_heads": 2, "seq_len": 12}"#).bytes()), &["chunk_size"]);
    let fla = r#"{"num_heads": 2, "chunk_size": 4, "feature_map": "elu", "kind": "fla"}"#;
    refused(load(&file.clone().config(fla).bytes()), &["no parameters", "fla_block_1_attn_norm.gamma"]);
    // If there are blocks of both kinds, those of the other kind are refused.
    let both = file.with("fla_block_1_attn_norm.gamma", &[8]);
    refused(load(&both.clone().config(by_kind).bytes()), &["fla_block_1_attn_norm.gamma", "no place"]);
    refused(load(&both.config(JSON).bytes()), &["fla_block_1_attn_norm.beta", "missing"]);
    // The sequence length limits the chunks of linear attention, but not those of lightning attention.
    let long = ModelConfig { chunk_size: 99, seq_len: 12, ..want };
    assert_eq!((long.chunk(), ModelConfig { attention: AttentionKind::Linear, ..long }.chunk()), (99, 12));
}

#[test]
fn tensors_that_are_asked_for() {
    let mut file = File::good();
    file.tensors.push(("count".into(), "I64", vec![1], vec![0; 8]));
    let bytes = file.bytes();
    let file = load(&bytes).unwrap();
    refused(file.tensor("outputs"), &["outputs", "count, input"]);
    refused(file.tensor("count"), &["count", "I64 [1]", "F32"]);
    assert_eq!(file.tensors().shape("input"), Some(&[2, 10, 3][..]));
    let bare = File::good().without("input").bytes();
    refused(load(&bare).unwrap().tensor("input"), &["input", "only parameters"]);
}

#[test]
fn inputs() {
    let bytes = File::good().bytes();
    let file = load(&bytes).unwrap();
    let mut blocks = Vec::new();
    let model = file.model(&mut blocks, None, 1).unwrap();
    for run in [files::forward as Way, files::stream] {
        let run = |shape: &[usize], len: usize| {
            run(&model, &Tensor { shape: shape.into(), data: numbers(len).into() })
        };
        for shape in [&[][..], &[3], &[60], &[1, 2, 10, 3], &[10, 4], &[2, 10, 4], &[10, 0], &[20, 3, 1]] {
            refused(run(shape, shape.iter().product()), &[&format!("{shape:?}"), "[B, T, 3]"]);
        }
        // These shapes contradict the length of the data, which is not possible in a file.
        refused(run(&[2, 10, 3], 59), &["[2, 10, 3]"]);
        refused(run(&[usize::MAX, 10, 3], 60), &["[B, T, 3]"]);
        refused(run(&[0, 3], 0), &["T"]);
        refused(run(&[2, 0, 3], 0), &["T"]);
        assert_eq!(run(&[0, 10, 3], 0).unwrap().shape, [0, 8]);
        assert_eq!(run(&[10, 3], 30).unwrap().shape, [8]);
    }
}

/// A stream of single steps agrees with a forward, with and without a batch, in every output mode.
#[test]
fn stream_is_forward() {
    for (mode, shapes) in [
        ("last_timestep", [vec![2, 8], vec![8]]),
        ("all", [vec![2, 10, 8], vec![10, 8]]),
        ("mean", [vec![2, 8], vec![8]]),
    ] {
        let bytes =
            File::good().config(&JSON.replace('}', &format!(r#", "output_mode": "{mode}"}}"#))).bytes();
        let file = load(&bytes).unwrap();
        let mut blocks = Vec::new();
        let model = file.model(&mut blocks, None, 1).unwrap();
        let batch = file.tensor("input").unwrap();
        let single = Tensor { shape: vec![10, 3], data: batch.data[30..].to_vec().into() };
        for (input, shape) in [&batch, &single].into_iter().zip(shapes) {
            let (all, steps) =
                (files::forward(&model, input).unwrap(), files::stream(&model, input).unwrap());
            assert_eq!((&all.shape, &steps.shape), (&shape, &shape), "{mode}");
            let worst = all.data.iter().zip(&*steps.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-5, "{mode} {worst}");
        }
    }
}

#[test]
fn written_and_read() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("written_and_read.safetensors");
    let a = Tensor {
        shape: vec![2, 3],
        data: vec![1.0, -0.0, f32::MIN_POSITIVE, f32::INFINITY, 5.5, 1e-45].into(),
    };
    let b = Tensor { shape: vec![0, 3], data: vec![].into() };
    files::write(&path, &[("a", &a), ("b", &b)]).unwrap();
    let bytes = files::read(&path).unwrap();
    let tensors = Tensors::parse(&bytes).unwrap();
    assert_eq!(tensors.names(), ["a", "b"]);
    assert_eq!(tensors.tensor("a").unwrap(), a);
    assert_eq!(tensors.tensor("b").unwrap(), b);
    let short = Tensor { shape: vec![2, 3], data: vec![1.0].into() };
    refused(files::write(&path, &[("short", &short)]), &["short"]);
    let huge = Tensor { shape: vec![usize::MAX, 3], data: vec![1.0].into() };
    refused(files::write(&path, &[("huge", &huge)]), &["huge"]);
    assert_eq!(files::read(&path).unwrap(), bytes, "nothing was written");
    let nowhere = path.with_file_name("no_such_folder").join("x");
    refused(files::read(&nowhere), &["no_such_folder"]);
    refused(files::write(&nowhere, &[("a", &a)]), &["no_such_folder"]);
}

#[test]
fn narrow_parameters_give_the_bits_of_the_same_numbers_in_f32() {
    let bf16 = narrowed("BF16", |x| {
        let x = half::bf16::from_f32(x);
        (x.to_le_bytes(), x.to_f32())
    });
    let f16 = narrowed("F16", |x| {
        let x = half::f16::from_f32(x);
        (x.to_le_bytes(), x.to_f32())
    });
    for [narrow, wide] in [bf16, f16] {
        assert_eq!(run(&narrow.bytes()), run(&wide.bytes()));
        assert_ne!(run(&narrow.bytes()), run(&File::good().bytes()), "rounding the parameters shows");
    }
}

/// Parameters in bf16 are not copied or widened: the model uses the bytes of the file.
#[test]
fn narrow_parameters_are_borrowed() {
    let [file, _] = narrowed("BF16", |x| (half::bf16::from_f32(x).to_le_bytes(), x));
    let bytes = file.bytes();
    // One more space is added where the data would otherwise begin at an odd offset.
    let header = bytes.len() - file.tensors.iter().map(|tensor| tensor.3.len()).sum::<usize>();
    let bytes = if header.is_multiple_of(2) {
        bytes
    } else {
        file.with_header(&format!("{{{}}} ", file.entries().join(", ")))
    };
    let parsed = load(&bytes).unwrap();
    let mut blocks = Vec::new();
    let kernel = parsed.weights(&mut blocks).unwrap().blocks[1].ffn_up.kernel();
    let Elements::Bf16(kernel) = kernel else { panic!("{kernel:?}") };
    assert!(bytes.as_ptr_range().contains(&kernel.as_ptr().cast()), "copied");
}
