//! Writes the stored model of digits as files that the module includes. model.rs has its configuration, the sizes of its
//! memory, the place of every pixel and a few digits to show, and weights.bin has its weights, rounded to f16.

use std::error::Error;
use std::fmt::Write;
use std::path::Path;

use chunkwise::Isa;
use chunkwise::files::{self, ModelFile, Options, Tensor};
use chunkwise::nn::{BlockWeights, Model, OutputMode};
use half::f16;

#[path = "../../firmware/model_config.rs"]
mod model_config;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const STORED: &str = "../../cli/src/digits.safetensors";
/// The digits to show, by their number in the file: one of each kind, and two that the model reads wrong.
const SAMPLES: [usize; 12] = [12, 9, 3, 18, 13, 4, 0, 27, 33, 11, 15, 59];

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={STORED}");
    if std::env::var("CARGO_CFG_TARGET_ARCH")? == "wasm32" {
        // The module neither recurses nor keeps arrays on the stack. With a small stack it needs 1 MB less memory.
        println!("cargo:rustc-link-arg=-zstack-size=65536");
    }

    let bytes = files::read(STORED)?;
    let file = ModelFile::parse(&bytes, &Options::default())?;
    assert_eq!(file.config().output_mode, OutputMode::LastTimestep, "the answer is read from the last pixel");
    let digits = Digits::read(&file)?;
    let weights = weights(&file)?;

    let mut code = String::new();
    model_config::write(&mut code, file.config())?;
    write_sizes(&mut code, &file, digits.tokens, weights.len())?;
    digits.write(&mut code)?;

    let out = std::env::var("OUT_DIR")?;
    let narrow: Vec<u8> = weights.iter().flat_map(|w| f16::from_f32(*w).to_bits().to_le_bytes()).collect();
    std::fs::write(Path::new(&out).join("weights.bin"), narrow)?;
    std::fs::write(Path::new(&out).join("model.rs"), code)?;
    Ok(())
}

/// All weights, in the order in which the module takes them: the parameters that the configuration lists, and the head.
fn weights(file: &ModelFile<'_>) -> Result<Vec<f32>> {
    let parameters = file.config().parameters().map(|parameter| parameter.to_string());
    let head = ["head.kernel", "head.bias"].map(String::from);
    let mut weights = Vec::new();
    for name in parameters.chain(head) {
        weights.extend_from_slice(&file.tensor(&name)?.data);
    }
    Ok(weights)
}

/// Writes the sizes of the model and of its memory, for one lane and one thread. The module leaves room for what its
/// vectors round up.
fn write_sizes(code: &mut String, file: &ModelFile<'_>, tokens: usize, parameters: usize) -> Result<()> {
    let isa = Isa::Scalar;
    let (mut blocks, mut packed) = (Vec::new(), vec![BlockWeights::default(); file.config().num_layers]);
    let stored = file.weights(&mut blocks)?;
    let packed_len = stored.packed_len(isa);
    let mut memory = vec![0.0; packed_len];
    let model = Model::new(*file.config(), stored.pack(isa, &mut packed, &mut memory)?, Some(isa), 1)?;
    let head = file.tensor("head.kernel")?;
    let classes = *head.shape.last().ok_or("the head has no shape")?;
    for (name, value) in [
        ("TOKENS", tokens),
        ("CLASSES", classes),
        ("PARAMETERS", parameters),
        ("PACKED", packed_len),
        ("STATE", model.state_len(1)?),
        ("STEP_SCRATCH", model.step_scratch_len(1)?),
        ("FORWARD_SCRATCH", model.scratch_len(1, tokens)?),
        ("HEAD_SCRATCH", model.head_scratch_len(1)),
    ] {
        writeln!(code, "const {name}: usize = {value};")?;
    }
    Ok(())
}

/// The stored digits. A token is a pixel and its place, which is the same in every digit.
struct Digits<'a> {
    tokens: usize,
    embed: usize,
    input: Tensor<'a>,
    labels: Tensor<'a>,
}

impl<'a> Digits<'a> {
    fn read(file: &ModelFile<'a>) -> Result<Self> {
        let (input, labels) = (file.tensor("input")?, file.tensor("labels")?);
        let [_, tokens, embed] = input.shape[..] else {
            return Err("the input is not [B, T, embed]".into());
        };
        let digits = Self { tokens, embed, input, labels };
        for digit in digits.input.data.chunks_exact(tokens * embed) {
            for (token, first) in digit.chunks_exact(embed).zip(digits.digit(0).chunks_exact(embed)) {
                assert_eq!(token[1..], first[1..], "the place of a pixel depends on the digit");
            }
        }
        Ok(digits)
    }

    /// The tokens of one digit.
    fn digit(&self, at: usize) -> &[f32] {
        let len = self.tokens * self.embed;
        &self.input.data[at * len..][..len]
    }

    /// Writes the places of all pixels, and of each digit to show its label and its pixels from 0 to 16.
    fn write(&self, code: &mut String) -> Result<()> {
        let samples = SAMPLES.map(|at| {
            let pixels = self.digit(at).iter().step_by(self.embed).map(|pixel| (pixel * 16.0) as u8);
            std::iter::once(self.labels.data[at] as u8).chain(pixels).collect::<Vec<_>>()
        });
        let places: Vec<&[f32]> = self.digit(0).chunks_exact(self.embed).map(|token| &token[1..]).collect();
        // Rust prints the shortest decimal number that is parsed as the same bits.
        writeln!(code, "static PLACES: [[f32; {}]; TOKENS] = {places:?};", self.embed - 1)?;
        writeln!(code, "static SAMPLES: [[u8; 1 + TOKENS]; {}] = {samples:?};", samples.len())?;
        Ok(())
    }
}
