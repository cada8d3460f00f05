//! The worker's outputs agree with a case computed by hand, with the oracle and with a stored output of the
//! reference, and mistakes are answered with errors.

#[path = "../../../tests/common/mod.rs"]
mod common;
#[path = "../src/worker.rs"]
mod worker;

use std::path::{Path, PathBuf};

use chunkwise::files::{self, Tensors};
use chunkwise::{Config, Gate, Heads, Rule, Shape};
use serde_json::Value;

use common::family::FamilyCase;
use common::norm_error;

fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peer_worker");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn write(path: &Path, numbers: &[f32]) {
    std::fs::write(path, numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
}

fn read(path: &Path) -> Vec<f32> {
    std::fs::read(path).unwrap().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn answers(dtype: &str, commands: &[String]) -> Vec<Value> {
    let mut output = Vec::new();
    worker::serve(dtype, commands.join("\n").as_bytes(), &mut output).unwrap();
    String::from_utf8(output).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A folder with a case of B = 1, H = 2, T = 2, D = 1. In both heads q is 0 (phi is 1), and k is 0, then 1
/// (phi is 1, then 2).
fn case(name: &str) -> PathBuf {
    let folder = folder().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("meta.json"), r#"{"B": 1, "H": 2, "T": 2, "D": 1}"#).unwrap();
    write(&folder.join("q.bin"), &[0.0; 4]);
    write(&folder.join("k.bin"), &[0.0, 1.0, 0.0, 1.0]);
    write(&folder.join("v.bin"), &[3.0, 6.0, 30.0, 60.0]);
    folder
}

#[test]
fn a_case_by_hand() {
    let (folder, out) = (case("by_hand"), folder().join("by_hand.bin"));
    // In the first head S is 1 x 3 = 3, then 3 + 2 x 6 = 15, and z is 1, then 3.
    let want = [("unnorm", [3.0, 15.0, 30.0, 150.0]), ("norm", [3.0, 5.0, 30.0, 50.0])];
    for (mode, want) in want {
        for way in ["", "decode_"] {
            for (dtype, peer) in
                [("", "chunkwise"), ("", "chunkwise_bf16"), ("", "chunkwise_f16"), ("bf16", "chunkwise")]
            {
                let answers = answers(
                    dtype,
                    &[
                        format!("load {peer} {} {way}{mode} 2", folder.display()),
                        format!("run {peer} 1"),
                        format!("out {peer} {}", out.display()),
                        "quit".into(),
                        "run after quit".into(),
                    ],
                );
                let [loaded, ran, written] = &answers[..] else { panic!("{answers:?}") };
                assert_eq!((&loaded["ok"], &written["ok"]), (&1.into(), &1.into()), "{answers:?}");
                let times = |key: &str| ran[key].as_array().unwrap().len();
                assert!(times("ms") >= 1 && times("ms") <= 200 && times("ms") == times("cpu"), "{ran}");
                // The numbers are small integers, which are exact in every type except for the quotients.
                for (got, want) in read(&out).iter().zip(want) {
                    assert!((got - want).abs() <= 0.004 * want, "{way}{mode} {dtype} {peer}: {got}, {want}");
                }
            }
        }
    }
}

/// Outputs and last states of gates and delta rules agree with the oracle, by forward and by decode, where
/// two heads of v share a head of q and k.
#[test]
fn layers() {
    let modes = [
        ("ret", Rule::gated(Gate::Scalar)),
        ("sg", Rule::gated(Gate::Scalar)),
        ("gla", Rule::gated(Gate::Key)),
        ("delta", Rule::delta(Gate::None)),
        ("gdn", Rule::delta(Gate::Scalar)),
        ("kda", Rule::delta(Gate::Key)),
    ];
    let [batch, len, key_heads, heads, key, value] = [2, 7, 2, 4, 12, 5];
    let meta = r#"{"B": 2, "T": 7, "H": 2, "HV": 4, "K": 12, "V": 5, "rule": "", "decay": ""}"#;
    for (mode, rule) in modes {
        let shape = Shape::grouped(batch, len, Heads::new(key_heads, key_heads, heads), key, value);
        let mut case = FamilyCase::new(Config::new(rule.scale_by_key(key), shape), 6);
        // Keys are short, so that the state stays small, and it begins at zero.
        case.k.iter_mut().for_each(|k| *k *= 0.3);
        case.initial.fill(0.0);
        let folder = folder().join(mode);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("meta.json"), meta).unwrap();
        let mut g = case.g.clone();
        if mode == "ret" {
            // There is one decay for each head, which is repeated for the oracle.
            g.truncate(heads);
            case.g = g.repeat(batch * len);
        }
        // The file exists for every rule, also where it is not read.
        let unused = vec![f32::NAN; batch * len * heads];
        let beta = if case.beta.is_empty() { &unused } else { &case.beta };
        for (name, numbers) in [("q", &case.q), ("k", &case.k), ("v", &case.v), ("g", &g), ("beta", beta)] {
            write(&folder.join(format!("{name}.bin")), numbers);
        }
        let (want, want_state) = case.oracle();
        for way in ["", "decode_"] {
            let out = folder.join(format!("{way}out.bin"));
            let commands = [
                format!("load chunkwise {} {way}{mode} 1", folder.display()),
                format!("out chunkwise {}", out.display()),
            ];
            for answer in answers("", &commands) {
                assert_eq!(answer["ok"], 1, "{way}{mode}: {answer}");
            }
            let got = read(&out);
            let (o, state) = got.split_at(batch * len * heads * value);
            assert_eq!(state.len(), batch * heads * key * value, "{way}{mode}");
            let off = [norm_error(o, &want), norm_error(state, &want_state)];
            assert!(off.iter().all(|off| *off <= 3e-6), "{way}{mode}: o and the state are off by {off:?}");
        }
    }
}

#[test]
fn a_type_is_rounded_to() {
    let (folder, out) = (case("rounded"), folder().join("rounded.bin"));
    write(&folder.join("v.bin"), &[1.001, 1.001, 1.001, 1.001]);
    let output = |dtype: &str, peer: &str| {
        let load = format!("load {peer} {} norm 1", folder.display());
        answers(dtype, &[load, format!("out {peer} {}", out.display())]);
        read(&out)[0]
    };
    assert_eq!(output("", "chunkwise"), 1.001);
    assert_eq!(output("", "chunkwise_bf16"), 1.0);
    assert_eq!(output("bf16", "chunkwise"), 1.0);
    assert_eq!(output("", "chunkwise_f16"), 1.000_976_6);
}

#[test]
fn a_model() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fla_manychunks_elu.safetensors");
    let out = folder().join("model.bin");
    let commands = [
        format!("load e2e_chunkwise {} e2e 2", path.display()),
        format!("out e2e_chunkwise {}", out.display()),
    ];
    for answer in answers("", &commands) {
        assert_eq!(answer["ok"], 1, "{answer}");
    }
    let bytes = files::read(path).unwrap();
    let want = Tensors::parse(&bytes).unwrap().tensor("output").unwrap();
    let got = read(&out);
    assert_eq!(got.len(), want.data.len());
    for (got, want) in got.iter().zip(&*want.data) {
        assert!((got - want).abs() <= 1e-5, "{got}, {want}");
    }
}

/// A mistake is answered with an error, and the worker continues.
#[test]
fn mistakes_are_answered() {
    let folder = case("mistakes");
    let short = case("short");
    write(&short.join("k.bin"), &[1.0]);
    let load =
        |folder: &Path, mode: &str, threads: &str| format!("load p {} {mode} {threads}", folder.display());
    let commands = [
        load(&folder, "bwd", "1"),
        // meta.json lacks the sizes of this mode.
        load(&folder, "gla", "1"),
        load(&folder.join("nowhere"), "norm", "1"),
        load(&short, "norm", "1"),
        load(&folder, "norm", "0"),
        // Two threads, as in the other tests, and then more.
        load(&folder, "norm", "2"),
        load(&folder, "norm", "3"),
        "drop".into(),
        load(&folder, "e2e", "1"),
        "run p 1".into(),
        "dance".into(),
        load(&folder, "norm", "1"),
        "drop".into(),
        "run p 1".into(),
        String::new(),
    ];
    let answers = answers("", &commands);
    let says = [
        "mode bwd",
        "no size HV",
        "nowhere",
        "k.bin",
        "threads",
        "",
        "3 threads",
        "",
        "peer_worker",
        "not loaded",
        "no such command",
        "",
        "",
    ];
    assert_eq!(answers.len(), commands.len() - 1);
    for (answer, part) in answers.iter().zip(says) {
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(error.contains(part) && error.is_empty() == part.is_empty(), "{part} in {answer}");
        assert_eq!(answer["ok"] == 1, part.is_empty(), "{answer}");
    }
    assert!(answers[13]["error"].as_str().unwrap().contains("not loaded"));
}
