//! `chunkwise check` on intact files with wrong contents: a file that cannot be used is counted as unusable,
//! and the run continues.

use std::path::{Path, PathBuf};

use crate::program::{chunkwise, fine, finish, golden, refused, scratch_file, under};
use crate::weights::{CONFIG, File, JSON, numbers};
use chunkwise::files::{self, ModelFile, Options, Tensor};

fn written(name: &str, file: &File) -> PathBuf {
    let path = scratch_file(&format!("{name}.safetensors"));
    std::fs::write(&path, file.bytes()).unwrap();
    path
}

/// A kernel file with two heads and chunks of four. With the identity map, the tolerance needs a run in f64,
/// which is possible only if the shapes agree.
fn kernel(map: &str, qkv: &[usize], out: &[usize]) -> File {
    let json =
        format!(r#"{{"kind": "kernel_fla", "num_heads": 2, "chunk_size": 4, "feature_map": "{map}"}}"#);
    let none = File { config: Some(json), tensors: Vec::new() };
    none.with("qkv", qkv).with("out", out)
}

/// Checks that the run continues with a good file after this one, and returns the output.
#[track_caller]
fn goes_on(file: &Path, code: i32) -> String {
    let run = chunkwise(["check".as_ref(), file.as_os_str(), golden("k_elu_s1").as_os_str()]);
    assert_eq!(run.code, code, "{}{}", run.out, run.err);
    assert!(!run.err.contains("panicked") && run.err.lines().count() <= 1, "{}", run.err);
    assert!(run.out.contains("k_elu_s1"), "{}", run.out);
    run.out
}

#[test]
fn kernel_files_of_odd_shapes() {
    let huge = 3 << 40;
    for map in ["elu", "relu", "identity"] {
        for (at, (qkv, out, code)) in [
            // The stored shape differs: fewer elements, as many elements, another rank.
            (vec![1, 5, 12], vec![1, 5, 2], 1),
            (vec![1, 5, 12], vec![5, 1, 4], 1),
            (vec![1, 5, 12], vec![20], 1),
            (vec![1, 5, 12], vec![0], 1),
            // There is nothing to compute. Only the last of these stored shapes differs.
            (vec![0, 5, 12], vec![0, 5, 4], 0),
            (vec![2, 0, 12], vec![2, 0, 4], 0),
            (vec![0, 0, 12], vec![0, 0, 4], 0),
            (vec![huge, 0, huge], vec![huge, 0, huge / 3], 0),
            (vec![0, huge, 12], vec![1, 5, 4], 1),
            // The rows of qkv are not q, k and v of two heads.
            (vec![1, 5, 0], vec![1, 5, 0], 2),
            (vec![1, 5, 10], vec![1, 5, 4], 2),
            (vec![5, 12], vec![5, 4], 2),
            (vec![60], vec![20], 2),
            (vec![], vec![], 2),
        ]
        .into_iter()
        .enumerate()
        {
            goes_on(&written(&format!("kernel_{map}_{at}"), &kernel(map, &qkv, &out)), code);
        }
    }
}

/// Three times these numbers of heads overflows, or nearly does.
#[test]
fn more_heads_than_can_be_counted() {
    for (at, heads) in [1 << 63, u64::MAX, u64::MAX / 3, u64::MAX / 3 + 1].into_iter().enumerate() {
        let file = kernel("elu", &[1, 1, 2], &[1, 1, 1]);
        let json = file.config.as_ref().unwrap().replace(": 2", &format!(": {heads}"));
        goes_on(&written(&format!("kernel_heads_{at}"), &file.config(&json)), 2);
    }
}

/// The state grows with the square of a row, so that a file that is not large can need more memory than
/// there is.
#[test]
fn a_state_larger_than_memory() {
    let wide = 1 << 21;
    let json = r#"{"kind": "kernel_fla", "num_heads": 1, "chunk_size": 4, "feature_map": "elu"}"#;
    let file = kernel("elu", &[1, 1, 3 * wide], &[1, 1, wide]).config(json);
    let path = written("kernel_wide", &file);
    goes_on(&path, 2);
    std::fs::remove_file(path).unwrap();
}

/// Many short sequences, each with a state that is much larger than its input.
#[cfg(target_os = "linux")]
#[test]
fn more_sequences_than_there_is_memory_for() {
    let file =
        File::good().without("input").with("input", &[1_000_000, 1, 3]).with("output", &[1_000_000, 8]);
    let path = written("many_sequences", &file);
    for command in [["check"].as_slice(), &["run", "--model"]] {
        let args = command.iter().map(AsRef::as_ref).chain([path.as_os_str()]);
        let run = finish(&mut under("ulimit -v 700000", args));
        refused(&run, &["many_sequences", "too large", "GiB"]);
    }
    std::fs::remove_file(path).unwrap();
}

/// A file with an input of this shape, and with the output that the library computes for it.
fn with_output(file: File, shape: &[usize], json: &str, name: &str) -> File {
    let mut file = file.without("input").config(json);
    let input = numbers(shape.iter().product());
    file.add("input", shape, &input);
    let bytes = file.bytes();
    let model_file = ModelFile::parse(&bytes, &Options::default()).unwrap();
    let mut blocks = Vec::new();
    let model = model_file.model(&mut blocks, None, 1).unwrap();
    // `output_single_chunk_patched` is the output for the tokens of the first chunk alone.
    let [.., len, embed] = *shape else { panic!("{shape:?}") };
    let first = if name == "output" { len } else { len.min(CONFIG.chunk_size) };
    let batch: usize = shape[..shape.len() - 2].iter().product();
    let data: Vec<f32> =
        (0..batch).flat_map(|b| &input[b * len * embed..][..first * embed]).copied().collect();
    let shape = [&shape[..shape.len() - 2], &[first, embed]].concat();
    let output = files::forward(&model, &Tensor { shape, data: data.into() }).unwrap();
    file.add(name, &output.shape, &output.data);
    file
}

/// Inputs with and without a batch, in every mode, with a positive and a signed map.
#[test]
fn outputs_of_inputs_with_and_without_a_batch() {
    for shape in [&[10, 3][..], &[1, 10, 3], &[2, 10, 3], &[4, 3], &[3, 3]] {
        for map in ["elu", "identity"] {
            for mode in ["last_timestep", "all", "mean"] {
                for name in ["output", "output_single_chunk_patched"] {
                    let json = format!(
                        r#"{{"num_heads": 2, "chunk_size": 4, "feature_map": "{map}", "output_mode": "{mode}"}}"#
                    );
                    let file = with_output(File::good(), shape, &json, name);
                    let file = written(&format!("model_{map}_{mode}_{}_{name}", shape.len()), &file);
                    let out = goes_on(&file, 0);
                    assert!(out.lines().any(|line| line.contains(name) && line.contains("pass")), "{out}");
                }
            }
        }
    }
}

/// Each stored tensor of an input without a batch is compared.
#[test]
fn intermediates_without_a_batch() {
    let bytes = files::read(golden("fla_small_elu")).unwrap();
    let tensors = files::Tensors::parse(&bytes).unwrap();
    let json = r#"{"num_heads": 4, "chunk_size": 8, "feature_map": "elu", "layer_norm_clip": true}"#;
    let mut file = File { config: Some(json.into()), tensors: Vec::new() };
    let mut stored = Vec::new();
    for name in tensors.names() {
        let Tensor { shape, data } = tensors.tensor(&name).unwrap();
        if name.contains('.') {
            file.add(&name, &shape, &data);
        } else {
            // The first sequence alone.
            let elements = data.len() / shape[0];
            file.add(&name, &shape[1..], &data[..elements]);
            stored.push(name);
        }
    }
    let out = goes_on(&written("without_a_batch", &file), 0);
    assert!(stored.iter().any(|name| name.starts_with("after_block")), "{stored:?}");
    for name in stored.iter().filter(|name| *name != "input") {
        assert!(
            out.lines().any(|line| line.contains(name.as_str()) && line.contains("pass")),
            "{name} in {out}"
        );
    }
    assert!(out.contains("0 skipped"), "{out}");
}

#[test]
fn inputs_without_elements() {
    for map in ["elu", "identity"] {
        for (at, (input, mode, output, code)) in [
            (vec![2, 0, 3], "all", vec![2, 0, 8], 0),
            (vec![0, 3], "all", vec![0, 8], 0),
            (vec![0, 5, 3], "all", vec![0, 5, 8], 0),
            (vec![0, 5, 3], "last_timestep", vec![0, 8], 0),
            (vec![0, 1 << 60, 3], "mean", vec![0, 8], 0),
            (vec![1 << 60, 0, 3], "all", vec![1 << 60, 0, 8], 0),
            (vec![0, 3], "last_timestep", vec![8], 2),
            (vec![3], "all", vec![8], 2),
            (vec![], "all", vec![], 2),
            (vec![2, 0, 0], "all", vec![], 2),
            (vec![1, 2, 2, 3], "all", vec![], 2),
        ]
        .into_iter()
        .enumerate()
        {
            let json = format!(
                r#"{{"num_heads": 2, "chunk_size": 4, "feature_map": "{map}", "output_mode": "{mode}"}}"#
            );
            let mut file = File::good().without("input").config(&json);
            file.add("input", &input, &numbers(input.iter().product()));
            file.add("output", &output, &numbers(output.iter().product()));
            goes_on(&written(&format!("empty_{map}_{at}"), &file), code);
        }
    }
}

/// `--weights` takes precedence over the file's `weights_from`, also where that is invalid.
#[test]
fn weights_of_the_command_line() {
    let all = with_output(File::good(), &[2, 10, 3], JSON, "output");
    let parameters = written("all_parameters", &all);
    for (at, elsewhere) in ["../elsewhere", "/", "", "..", "missing"].into_iter().enumerate() {
        let json = JSON.replace('}', &format!(r#", "weights_from": "{elsewhere}"}}"#));
        let mut results = all.clone().config(&json);
        results.tensors.retain(|tensor| !tensor.0.contains('.'));
        let path = written(&format!("results_{at}"), &results);
        refused(&chunkwise(["check".as_ref(), path.as_os_str()]), &[]);
        for command in [["check"].as_slice(), &["run", "--model"]] {
            let words = command.iter().map(AsRef::as_ref).chain([path.as_os_str()]);
            fine(&chunkwise(words.chain(["--weights".as_ref(), parameters.as_os_str()])));
        }
    }
}
