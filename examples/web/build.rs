//! The stored model of digits as Rust: its configuration and the sizes of its memory, its weights rounded to f16, the
//! position of every pixel, and a few digits to show.

use std::error::Error;
use std::fmt::Write;
use std::path::Path;

use chunkwise::Isa;
use chunkwise::files::{self, ModelFile, Options};
use chunkwise::nn::{BlockWeights, ModelConfig, OutputMode};
use half::f16;

const STORED: &str = "../../cli/src/digits.safetensors";
/// The digits to show, by their number in the file: one of each kind, and two that the model reads wrong.
const SAMPLES: [usize; 12] = [12, 9, 3, 18, 13, 4, 0, 27, 33, 11, 15, 59];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={STORED}");
    if std::env::var("CARGO_CFG_TARGET_ARCH")? == "wasm32" {
        // Nothing here recurses or keeps arrays on the stack; a module then asks for 1 MB less.
        println!("cargo:rustc-link-arg=-zstack-size=65536");
    }

    let bytes = files::read(STORED)?;
    let file = ModelFile::parse(&bytes, &Options::default())?;
    let config = *file.config();
    assert_eq!(config.output_mode, OutputMode::LastTimestep, "the answer is read from the last pixel");
    let input = file.tensor("input")?;
    let labels = file.tensor("labels")?;
    let head = file.tensor("head.kernel")?;
    let [digits, tokens, embed] = input.shape[..] else {
        return Err("the input is not [B, T, embed]".into());
    };
    let classes = *head.shape.last().ok_or("the head has no shape")?;

    // A token is a pixel and its place, the same for every digit.
    let first = &input.data[..tokens * embed];
    for digit in input.data.chunks_exact(tokens * embed) {
        for (token, other) in digit.chunks_exact(embed).zip(first.chunks_exact(embed)) {
            assert_eq!(token[1..], other[1..], "the place of a pixel depends on the digit");
        }
    }

    let mut weights = Vec::new();
    for parameter in config.parameters() {
        weights.extend_from_slice(&file.tensor(&parameter.to_string())?.data);
    }
    weights.extend_from_slice(&head.data);
    weights.extend_from_slice(&file.tensor("head.bias")?.data);
    let narrow: Vec<u8> = weights.iter().flat_map(|w| f16::from_f32(*w).to_bits().to_le_bytes()).collect();

    let mut samples = Vec::new();
    for at in SAMPLES {
        assert!(at < digits);
        samples.push(labels.data[at] as u8);
        let pixels = input.data[at * tokens * embed..][..tokens * embed].iter().step_by(embed);
        samples.extend(pixels.map(|pixel| (pixel * 16.0) as u8));
    }

    let (mut blocks, mut packed) = (Vec::new(), vec![BlockWeights::default(); config.num_layers]);
    // One lane and one thread; the module's vectors round sizes up, for which it leaves room.
    let isa = Isa::Scalar;
    let stored = file.weights(&mut blocks)?;
    let packed_len = stored.packed_len(isa);
    let mut memory = vec![0.0; packed_len];
    let weights_of_model = stored.pack(isa, &mut packed, &mut memory)?;
    let model = chunkwise::nn::Model::new(config, weights_of_model, Some(isa), 1)?;

    let mut code = String::new();
    let ModelConfig { embed_dim, hidden_size, num_heads, num_layers, chunk_size, seq_len, .. } = config;
    let ModelConfig { feature_map, output_mode, final_norm, layer_norm_eps, layer_norm_clip, .. } = config;
    writeln!(
        code,
        "const CONFIG: ModelConfig = ModelConfig {{ hidden_size: {hidden_size}, num_heads: {num_heads}, \
         num_layers: {num_layers}, chunk_size: {chunk_size}, seq_len: {seq_len}, \
         feature_map: FeatureMap::{feature_map:?}, output_mode: OutputMode::{output_mode:?}, \
         final_norm: {final_norm}, layer_norm_eps: {layer_norm_eps:?}, layer_norm_clip: {layer_norm_clip}, \
         ..ModelConfig::new({embed_dim}) }};"
    )?;
    for (name, value) in [
        ("TOKENS", tokens),
        ("CLASSES", classes),
        ("PARAMETERS", weights.len()),
        ("PACKED", packed_len),
        ("STATE", model.state_len(1)?),
        ("STEP_SCRATCH", model.step_scratch_len(1)?),
        ("FORWARD_SCRATCH", model.scratch_len(1, tokens)?),
        ("HEAD_SCRATCH", model.head_scratch_len(1)),
    ] {
        writeln!(code, "const {name}: usize = {value};")?;
    }
    // Rust prints the shortest decimal that reads back as the same bits.
    let places: Vec<&[f32]> = first.chunks_exact(embed).map(|token| &token[1..]).collect();
    writeln!(code, "static PLACES: [[f32; {}]; TOKENS] = {places:?};", embed - 1)?;
    writeln!(code, "static SAMPLES: [[u8; 1 + TOKENS]; {}] = {:?};", SAMPLES.len(), {
        samples.chunks_exact(1 + tokens).collect::<Vec<_>>()
    })?;

    let out = std::env::var("OUT_DIR")?;
    std::fs::write(Path::new(&out).join("weights.bin"), narrow)?;
    std::fs::write(Path::new(&out).join("model.rs"), code)?;
    Ok(())
}
