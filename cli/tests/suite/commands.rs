//! The commands `run`, `check` and `info`: what they print, their exit codes, and that every mistake is
//! reported in one line on standard error.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::program::{Run, chunkwise, command, digits, fine, finish, golden, refused, scratch_file};
use chunkwise::Isa;
use chunkwise::files::{self, Tensor, Tensors};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A copy of some tensors of a file, without metadata, like the reference's own checkpoints.
fn stripped(from: &Path, to: &str, keep: impl Fn(&str) -> bool) -> PathBuf {
    let bytes = files::read(from).unwrap();
    let tensors = Tensors::parse(&bytes).unwrap();
    let names: Vec<String> = tensors.names().into_iter().filter(|name| keep(name)).collect();
    let all: Vec<Tensor<'_>> = names.iter().map(|name| tensors.tensor(name).unwrap()).collect();
    let path = scratch_file(to);
    files::write(&path, &names.iter().map(String::as_str).zip(&all).collect::<Vec<_>>()).unwrap();
    path
}

fn tensor(path: &Path, name: &str) -> Tensor<'static> {
    let bytes = files::read(path).unwrap();
    let Tensor { shape, data } = Tensors::parse(&bytes).unwrap().tensor(name).unwrap();
    Tensor { shape, data: data.into_owned().into() }
}

fn distance(a: &Tensor<'_>, b: &Tensor<'_>) -> f32 {
    assert_eq!(a.shape, b.shape);
    a.data.iter().zip(&*b.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn the_demonstration() {
    for isa in Isa::available() {
        let run = chunkwise(["run", "--isa", isa.name(), "--threads", "1"]);
        fine(&run);
        assert!(run.out.contains("335 of 360 right, 93.06 %"), "{}", run.out);
        assert_eq!(run.out.matches("the same answers").count(), 3, "{}", run.out);
        assert!(run.out.trim_end().ends_with("pass"), "{}", run.out);
        assert!(run.out.contains(isa.name()));
        assert!(run.out.contains("@@"), "digits are drawn");
    }
}

/// Runs the program as in a container that allows no more processes: no thread starts, because its stack
/// would be too large.
fn without_threads(args: &[&str]) -> Run {
    finish(command().args(args).env("RUST_MIN_STACK", (1_u64 << 60).to_string()))
}

#[test]
fn where_no_thread_can_be_started() {
    let model = text(&golden("fla_all_elu")).to_owned();
    fine(&without_threads(&["check", "--threads", "2", &model]));
    let answers = ["1", "2"].map(|threads| {
        let output = scratch_file(&format!("alone_{threads}.safetensors"));
        let model = text(&digits()).to_owned();
        let args = ["run", "--model", &model, "--output", text(&output), "--threads", threads];
        fine(&without_threads(&args));
        std::fs::read(output).unwrap()
    });
    assert!(answers[0] == answers[1], "outputs differ if a second thread cannot be started");
    // One thread can still be measured; for two threads there is an error.
    let args = ["bench", "--rounds", "1", "--shape", "1,1,64,16,16"];
    let run = without_threads(&args);
    assert!(run.code == 0 && run.err.lines().count() == 1 && run.err.contains("Ctrl-C"), "{}", run.err);
    let run = without_threads(&[&args[..], &["--threads", "2"]].concat());
    assert!(run.code == 2 && run.err.contains("2 threads can't be started"), "{}", run.err);
}

#[test]
fn info() {
    let run = chunkwise(["info"]);
    fine(&run);
    for part in [env!("CARGO_PKG_VERSION"), "scalar", Isa::best().name(), "threads", "GPU"] {
        assert!(run.out.contains(part), "{part} in {}", run.out);
    }
    refused(&finish(command().arg("info").env("CHUNKWISE_ISA", "quantum")), &["CHUNKWISE_ISA"]);
}

#[test]
fn the_environment_chooses() {
    let run = finish(command().arg("info").env("CHUNKWISE_ISA", "scalar"));
    fine(&run);
    assert!(run.out.contains("chosen            scalar"), "{}", run.out);
}

#[test]
fn mistakes_in_arguments() {
    refused(&chunkwise(["run", "--bogus"]), &["--bogus"]);
    refused(&chunkwise(["run", "--isa", "quantum"]), &["quantum", "--isa", "scalar"]);
    refused(&chunkwise(["run", "--threads", "0"]), &["--threads"]);
    refused(&chunkwise(["check"]), &["<FILE>"]);
    // Without a model these options would have no effect.
    for flag in ["--input=x", "--tensor=x", "--output=x", "--stream", "--num-heads=2", "--config=x"] {
        refused(&chunkwise(["run", flag]), &["--model"]);
    }
    let run = chunkwise([""; 0]);
    assert_eq!(run.code, 2);
    assert!(run.err.contains("Usage"));
    fine(&chunkwise(["--help"]));
    fine(&chunkwise(["--version"]));
}

#[test]
fn files_that_can_not_be_used() {
    let none = scratch_file("there_is_no_such_file");
    let not = scratch_file("not.safetensors");
    std::fs::write(&not, "not a safetensors file").unwrap();
    for file in [&none, &not] {
        refused(&chunkwise(["run", "--model", text(file)]), &[text(file)]);
        refused(&chunkwise(["run", "--model", text(&digits()), "--input", text(file)]), &[text(file)]);
        refused(&chunkwise(["run", "--model", text(&digits()), "--config", text(file)]), &[text(file)]);
        refused(&chunkwise(["check", text(file)]), &[text(file)]);
    }
    let model = text(&digits()).to_string();
    refused(&chunkwise(["run", "--model", &model, "--tensor", "nothing"]), &["nothing", "labels", &model]);
    refused(&chunkwise(["run", "--model", &model, "--tensor", "labels"]), &["[360]", "[B, T, 3]"]);
    refused(
        &chunkwise(["run", "--model", &model, "--num-heads", "5"]),
        &["attn_out.kernel", "[48, 48]", "[45, 48]"],
    );
    refused(
        &chunkwise(["run", "--model", &model, "--num-heads", "many"]),
        &["num_heads", "many", "whole number"],
    );
    refused(
        &chunkwise(["run", "--model", &model, "--feature-map", "gelu"]),
        &["feature_map", "gelu", "relu"],
    );
    // On the command line, null is a value like any other, and not an option that was left out.
    for (flag, option) in [
        ("--num-heads", "num_heads"),
        ("--chunk-size", "chunk_size"),
        ("--window-size", "seq_len"),
        ("--feature-map", "feature_map"),
        ("--final-norm", "final_norm"),
        ("--layer-norm-eps", "layer_norm_eps"),
    ] {
        for null in ["null", " null "] {
            refused(&chunkwise(["run", "--model", &model, flag, null]), &[option, "null", "expected"]);
        }
    }
    for eps in ["0", "-0.0", "1e-60", "-1e-5", "1e39"] {
        let flag = format!("--layer-norm-eps={eps}");
        refused(&chunkwise(["run", "--model", &model, &flag]), &["layer_norm_eps", "finite", "above zero"]);
    }
    let nowhere = scratch_file("no_such_folder/out.safetensors");
    refused(&chunkwise(["run", "--model", &model, "--output", text(&nowhere)]), &[text(&nowhere)]);
    // A bad file does not prevent the others from being checked.
    let run = chunkwise(["check", text(&not), text(&golden("k_elu_s1"))]);
    assert_eq!(run.code, 2);
    assert!(run.out.contains("k_elu_s1") && run.out.contains("1 unusable"), "{}", run.out);
}

#[test]
fn only_parameters_are_nothing_to_check() {
    let path = stripped(&golden("fla_small_elu"), "parameters_only.safetensors", |name| name.contains('.'));
    refused(&chunkwise(["check", text(&path)]), &["num_heads"]);
}

#[test]
fn check_fails_with_one() {
    // A copy in which the last element of the output is wrong.
    let bytes = files::read(golden("fla_small_elu")).unwrap();
    let at = bytes.len() - 4;
    let path = scratch_file("wrong_output.safetensors");
    std::fs::write(&path, [&bytes[..at], &9f32.to_le_bytes()].concat()).unwrap();
    let run = chunkwise(["check", text(&path)]);
    assert_eq!(run.code, 1, "{}", run.out);
    assert!(run.err.is_empty(), "{}", run.err);
    // A file of an unsupported kind neither passes nor fails.
    let mut bytes = files::read(golden("k_lightning_s1")).unwrap();
    let at = bytes.windows(16).position(|text| text == b"kernel_lightning").expect("its kind");
    bytes[at..at + 16].copy_from_slice(b"kernel_thunder__");
    let path = scratch_file("unsupported_kind.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let run = chunkwise(["check", text(&path)]);
    fine(&run);
    assert!(run.out.contains("0 passed, 0 failed, 1 skipped"), "{}", run.out);
}

#[test]
fn an_output_round_trip() {
    let path = scratch_file("round_trip.safetensors");
    let run = chunkwise(["run", "--model", text(&digits()), "--output", text(&path)]);
    fine(&run);
    assert!(run.out.contains("input [360, 64, 3]") && run.out.contains("[360, 48]"), "{}", run.out);
    assert!(run.out.contains("from the stored one: max abs"), "{}", run.out);
    for name in ["output", "logits"] {
        assert!(distance(&tensor(&path, name), &tensor(&digits(), name)) <= 5e-5);
    }
}

#[test]
fn stream_is_forward() {
    for (name, mode) in [("fla_odd_elu", "last_timestep"), ("fla_odd_elu", "all"), ("fla_small_relu", "mean")]
    {
        let outputs = ["--threads=1", "--stream"].map(|flag| {
            let path = scratch_file(&format!("{name}_{mode}_{flag}.safetensors"));
            let model = golden(name);
            let args = ["run", "--model", text(&model), "--output-mode", mode, "--output", text(&path), flag];
            fine(&chunkwise(args));
            tensor(&path, "output")
        });
        assert!(distance(&outputs[0], &outputs[1]) <= 1e-5, "{name} {mode}");
    }
}

/// The input is one sequence without a batch, under another name and in another file.
#[test]
fn an_input_of_its_own() {
    let Tensor { data, .. } = tensor(&digits(), "input");
    let one = Tensor { shape: vec![64, 3], data: data[64 * 3..2 * 64 * 3].to_vec().into() };
    let (input, output) = (scratch_file("one_digit.safetensors"), scratch_file("one_digit_out.safetensors"));
    files::write(&input, &[("second", &one)]).unwrap();
    let model = digits();
    let args =
        ["--model", text(&model), "--input", text(&input), "--tensor", "second", "--output", text(&output)];
    fine(&chunkwise(["run"].iter().chain(&args)));
    let want = Tensor { shape: vec![10], data: tensor(&digits(), "logits").data[10..20].to_vec().into() };
    assert!(distance(&tensor(&output, "logits"), &want) <= 5e-5);
}

/// A checkpoint as the reference writes it: options that do not follow from shapes come from flags or from
/// JSON.
#[test]
fn a_stripped_checkpoint() {
    let model = stripped(&golden("fla_heads3_of_32"), "stripped.safetensors", |name| name.contains('.'));
    let input = golden("fla_heads3_of_32");
    let want = tensor(&input, "output");
    let output = scratch_file("stripped_out.safetensors");
    let base = ["run", "--model", text(&model), "--input", text(&input), "--output", text(&output)];
    let run = |more: &[&str]| chunkwise(base.iter().chain(more));

    refused(&run(&[]), &["num_heads", "--num-heads"]);
    refused(&run(&["--num-heads", "3"]), &["chunk_size", "--chunk-size"]);
    refused(&run(&["--num-heads", "3", "--chunk-size", "8"]), &["feature_map", "--feature-map"]);
    let flags = ["--num-heads", "3", "--chunk-size", "8", "--feature-map", "elu"];
    fine(&run(&flags));
    assert!(distance(&tensor(&output, "output"), &want) <= 1e-5);

    let json = scratch_file("stripped.json");
    std::fs::write(&json, r#"{"num_heads": 3, "chunk_size": 8, "feature_map": "relu", "window_size": 16}"#)
        .unwrap();
    let config = ["--config", text(&json)];
    fine(&run(&config));
    assert!(distance(&tensor(&output, "output"), &want) > 1e-3, "relu is another model");
    fine(&run(&[config[0], config[1], "--feature-map", "elu"]));
    assert!(distance(&tensor(&output, "output"), &want) <= 1e-5, "a flag comes before JSON");

    std::fs::write(&json, r#"{"num_heads": 3, "chunk_size": 8, "chunk_size": 4}"#).unwrap();
    refused(&run(&config), &["chunk_size", "twice", "stripped.json"]);
}

/// A file whose parameters are in another file, which its metadata or a flag names.
#[test]
fn parameters_in_another_file() {
    let folder = scratch_file("weights_from");
    std::fs::create_dir_all(&folder).unwrap();
    let parameters =
        stripped(&golden("fla_small_elu"), "weights_from/parameters.safetensors", |name| name.contains('.'));
    let original = files::read(golden("fla_small_elu")).unwrap();
    let with_metadata = |weights_from: &str, names: &[&str]| {
        let tensors = Tensors::parse(&original).unwrap();
        let options =
            r#"{\"num_heads\": 4, \"chunk_size\": 8, \"feature_map\": \"elu\", \"layer_norm_clip\": true, "#;
        let mut header =
            format!(r#"{{"__metadata__": {{"config": "{options}\"weights_from\": {weights_from}}}"}}"#);
        let mut data = Vec::new();
        for name in names {
            let tensor = tensors.tensor(name).unwrap();
            let begin = data.len();
            data.extend(tensor.data.iter().flat_map(|x| x.to_le_bytes()));
            let (shape, end) = (tensor.shape, data.len());
            header += &format!(
                r#", "{name}": {{"dtype": "F32", "shape": {shape:?}, "data_offsets": [{begin}, {end}]}}"#
            );
        }
        header += "}";
        let path = folder.join("model.safetensors");
        std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat())
            .unwrap();
        path
    };
    let path = with_metadata(r#"\"parameters.safetensors\""#, &["input", "output"]);
    fine(&chunkwise(["check", text(&path)]));
    fine(&chunkwise(["run", "--model", text(&path)]));
    let path = with_metadata(r#"\"missing.safetensors\""#, &["input", "output"]);
    refused(&chunkwise(["check", text(&path)]), &["missing.safetensors"]);
    fine(&chunkwise(["check", text(&path), "--weights", text(&parameters)]));
    let path = with_metadata(r#"\"../weights_from/parameters.safetensors\""#, &["input", "output"]);
    refused(&chunkwise(["check", text(&path)]), &["weights_from", "same folder"]);
    let path = with_metadata(r#"\"parameters.safetensors\""#, &["input"]);
    refused(&chunkwise(["check", text(&path)]), &["without results"]);
    let path = with_metadata("null", &["input", "output"]);
    refused(&chunkwise(["check", text(&path)]), &["no parameters"]);
}

/// `chunkwise check ... | head -1` does not panic, and the exit code is still the verdict.
#[test]
fn a_closed_pipe() {
    for (args, code) in [(["check", text(&golden("k_elu_s1"))], 0), (["run", "--threads=1"], 0)] {
        let mut child = command().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
        assert_eq!(output.status.code(), Some(code));
    }
}
