//! Writes a golden file as Rust code: the configuration, the weights as one flat array, the reference's input
//! and output, and the lengths of state and scratch that the model needs.

use std::error::Error;
use std::fmt::Write;
use std::path::Path;

use chunkwise::Isa;
use chunkwise::files::{self, ModelFile, Options};
use chunkwise::nn::OutputMode;

mod model_config;

const GOLDEN: &str = "../tests/golden/fla_all_elu.safetensors";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={GOLDEN}");
    println!("cargo:rerun-if-changed=memory.x");
    println!("cargo:rerun-if-changed=virt.x");
    println!("cargo:rustc-link-search={}", std::env::var("CARGO_MANIFEST_DIR")?);
    let args: &[&str] = match &std::env::var("CARGO_CFG_TARGET_ARCH")?[..] {
        // This is the script of cortex-m-rt, which includes memory.x.
        "arm" => &["-Tlink.x"],
        // The image begins after the device tree, which QEMU puts at the beginning of RAM.
        "aarch64" => &["-Tvirt.x", "--defsym=START=0x40200000"],
        "riscv32" | "riscv64" => &["-Tvirt.x", "--defsym=START=0x80000000"],
        other => return Err(format!("no start-up for {other}").into()),
    };
    for arg in args {
        println!("cargo:rustc-link-arg={arg}");
    }

    let bytes = files::read(GOLDEN)?;
    let file = ModelFile::parse(&bytes, &Options::default())?;
    let config = *file.config();
    let mut blocks = Vec::new();
    // The sizes are those of one lane and one thread. A target with one lane asserts that its sizes are the
    // same.
    let model = file.model(&mut blocks, Some(Isa::Scalar), 1)?;
    let input = file.tensor("input")?;
    let output = file.tensor("output")?;
    assert_eq!(config.output_mode, OutputMode::All, "a reference for every step");
    let [batch, len, _] = input.shape[..] else { return Err("the input is not [B, T, embed]".into()) };

    let mut weights = Vec::new();
    for parameter in config.parameters() {
        weights.extend_from_slice(&file.tensor(&parameter.to_string())?.data);
    }

    let mut code = String::new();
    model_config::write(&mut code, &config)?;
    for (name, value) in [
        ("BATCH", batch),
        ("LEN", len),
        ("STATE", model.state_len(batch)?),
        ("SCRATCH", model.scratch_len(batch, len)?),
        ("STEP_SCRATCH", model.step_scratch_len(batch)?),
    ] {
        writeln!(code, "const {name}: usize = {value};")?;
    }
    for (name, data) in [("WEIGHTS", &weights[..]), ("INPUT", &input.data), ("OUTPUT", &output.data)] {
        // Rust prints the shortest decimal number that is parsed as the same bits.
        writeln!(code, "static {name}: [f32; {}] = {data:?};", data.len())?;
    }
    std::fs::write(Path::new(&std::env::var("OUT_DIR")?).join("model.rs"), code)?;
    Ok(())
}
