//! `chunkwise check` on the reference's results: it passes on every instruction set, and fails for wrong
//! results.

use std::path::{Path, PathBuf};

use chunkwise::Isa;
use chunkwise::files::{self, ModelFile, Options, Tensor, Tensors};
use chunkwise::nn::Model;

use crate::program::{Run, chunkwise, digits, golden, scratch_file};

/// All golden files by name, so that a missing file makes a test fail.
const FILES: [&str; 32] = [
    "fla_all_elu",
    "fla_chunk1_elu",
    "fla_hd128_elu",
    "fla_heads3_of_32",
    "fla_longer_than_built",
    "fla_manychunks_elu",
    "fla_odd_elu",
    "fla_odd_identity",
    "fla_rawinit_elu",
    "fla_single_chunk_patched_elu",
    "fla_small_elu",
    "fla_small_relu",
    "fla_tinyvar_elu",
    "fla_tinyvar_elu_axon081",
    "k_chunk1_elu",
    "k_elu_big",
    "k_elu_hd64",
    "k_elu_neg12",
    "k_elu_s1",
    "k_elu_s4",
    "k_identity_pos",
    "k_identity_s1",
    "k_identity_s4",
    "k_lightning_s1",
    "k_onehead_hd128",
    "k_patched_1chunk_elu",
    "k_relu_allneg",
    "k_relu_s1",
    "k_relu_s4",
    "k_zero_elu",
    "k_zeroqk_identity",
    "lightning_a",
];

type Way = fn(&Model<'_>, &Tensor<'_>) -> files::Result<Tensor<'static>>;

/// The verdict of a line of the table, if there is such a line.
fn verdict<'a>(run: &'a Run, file: &str, isa: &str, tensor: &str) -> Option<&'a str> {
    run.out.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let here = words.len() > 3 && words[..3] == [file, isa, tensor] && words[3] != "by";
        here.then(|| words[words.len() - 1])
    })
}

/// The names of the results in a file.
fn results(bytes: &[u8]) -> Vec<String> {
    let names = Tensors::parse(bytes).unwrap().names();
    names.into_iter().filter(|name| !name.contains('.') && name != "input" && name != "qkv").collect()
}

#[test]
fn the_list_is_the_folder() {
    let folder = std::fs::read_dir(golden(FILES[0]).parent().unwrap()).unwrap();
    let mut found: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    found.sort();
    assert_eq!(found, FILES.map(golden));
}

#[test]
fn every_stored_tensor_on_every_instruction_set() {
    let paths = FILES.map(golden);
    let run = chunkwise(
        ["check".as_ref(), "--isa".as_ref(), "all".as_ref()]
            .into_iter()
            .chain(paths.iter().map(|p| p.as_os_str())),
    );
    let mut wrong = Vec::new();
    for name in FILES {
        let bytes = files::read(golden(name)).unwrap();
        let results = results(&bytes);
        assert!(!results.is_empty(), "{name} contains no results");
        for isa in Isa::available() {
            for tensor in &results {
                let verdict = verdict(&run, name, isa.name(), tensor);
                if verdict != Some("pass") {
                    wrong.push(format!("{name} {isa} {tensor}: {verdict:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{}{}", run.out, run.err);
    assert!(!run.out.contains("skipped: "), "{}", run.out);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
}

/// The built-in model classifies 335 of 360 digits correctly, with the logits that were computed in f64, all
/// tokens at once and step by step.
#[test]
fn digits_on_every_instruction_set() {
    let bytes = files::read(digits()).unwrap();
    let file = ModelFile::parse(&bytes, &Options::default()).unwrap();
    let (input, labels, want) =
        (file.tensor("input").unwrap(), file.tensor("labels").unwrap(), file.tensor("logits").unwrap());
    for isa in Isa::available() {
        let mut blocks = Vec::new();
        let model = file.model(&mut blocks, Some(isa), 1).unwrap();
        for (how, run) in [("forward", files::forward as Way), ("stream", files::stream)] {
            let output = run(&model, &input).unwrap();
            let logits = files::logits(&model, &output).unwrap().unwrap();
            assert_eq!(logits.shape, [360, 10]);
            let worst = logits.data.iter().zip(&*want.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 5e-5, "{isa} {how}: {worst}");
            let answer = |row: &[f32]| (0..10).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
            let answers: Vec<usize> = logits.data.chunks(10).map(answer).collect();
            assert_eq!(answers, want.data.chunks(10).map(answer).collect::<Vec<_>>(), "{isa} {how}");
            assert_eq!(
                answers.iter().zip(&*labels.data).filter(|(a, b)| **a as f32 == **b).count(),
                335,
                "{isa} {how}"
            );
        }
    }
}

/// A copy of a golden file with one tensor changed, under the same file name.
fn changed(name: &str, tensor: &str, change: impl Fn(&mut Vec<f32>)) -> PathBuf {
    let mut bytes = files::read(golden(name)).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let offset = |i: usize| header[tensor]["data_offsets"][i].as_u64().unwrap() as usize + 8 + header_len;
    let mut data = Tensors::parse(&bytes).unwrap().tensor(tensor).unwrap().data.into_owned();
    change(&mut data);
    let data: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
    bytes[offset(0)..offset(1)].copy_from_slice(&data);
    let folder =
        scratch_file(&format!("golden_{name}_{tensor}_{}", data.iter().map(|b| u64::from(*b)).sum::<u64>()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name).with_extension("safetensors");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A copy of a golden file with some text of its header replaced by text of the same length.
fn edited(name: &str, was: &str, is: &str) -> PathBuf {
    let mut bytes = files::read(golden(name)).unwrap();
    let at =
        bytes.windows(was.len()).position(|window| window == was.as_bytes()).expect("text of the header");
    bytes[at..at + was.len()].copy_from_slice(is.as_bytes());
    let path = scratch_file(&format!("edited_{name}_{}.safetensors", is.len()));
    std::fs::write(&path, bytes).unwrap();
    path
}

fn check(path: &Path) -> Run {
    chunkwise(["check".as_ref(), "--isa".as_ref(), Isa::best().name().as_ref(), path.as_os_str()])
}

#[test]
fn one_wrong_element_fails() {
    // Each change is three times the distance that is allowed.
    let cases = [
        ("k_elu_s1", "out", 3e-5),
        ("k_relu_s4", "out", 3e-5),
        ("k_elu_neg12", "out", 3e-3),
        ("fla_small_relu", "attn1_qkv", 3e-5),
        ("fla_small_relu", "attn1_out", 3e-5),
        ("fla_small_relu", "after_block_1", 3e-5),
        ("fla_small_relu", "after_block_2", 3e-5),
        ("fla_small_relu", "final_norm_out", 3e-5),
        ("fla_small_relu", "output", 3e-5),
        ("fla_odd_identity", "output", 1.5e-4),
        ("lightning_a", "output", 1.5e-4),
    ];
    for (name, tensor, by) in cases {
        let run = check(&changed(name, tensor, |data| data[7] += by));
        assert_eq!(verdict(&run, name, Isa::best().name(), tensor), Some("FAIL"), "{}", run.out);
        assert_eq!(run.code, 1);
    }
}

#[test]
fn tolerances_are_no_tighter_than_they_should_be() {
    for (name, tensor, by) in
        [("k_elu_neg12", "out", 5e-4), ("fla_odd_identity", "output", 3e-5), ("k_identity_s1", "out", 1e-4)]
    {
        let run = check(&changed(name, tensor, |data| data[7] += by));
        assert_eq!(run.code, 0, "{}", run.out);
    }
}

/// Every element is off by a little in the same direction. The worst element is allowed, all together are
/// not.
#[test]
fn a_small_bias_fails_by_its_norm() {
    let run = check(&changed("k_elu_s1", "out", |data| data.iter_mut().for_each(|x| *x *= 1.0 + 2.5e-6)));
    assert_eq!(run.code, 1, "{}", run.out);
    let line = run.out.lines().find(|line| line.contains("FAIL")).unwrap();
    let max_abs: f64 = line.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert!(max_abs < 1e-5, "{line}");
}

/// A NaN fails, whether there is a tolerance for the norm or only one for the worst element.
#[test]
fn nan_fails() {
    for (name, tensor) in [("k_elu_s1", "out"), ("k_elu_neg12", "out"), ("fla_odd_identity", "output")] {
        let run = check(&changed(name, tensor, |data| data[3] = f32::NAN));
        assert_eq!(run.code, 1, "{}", run.out);
    }
}

#[test]
fn a_wrong_shape_fails() {
    let run = check(&edited("k_elu_s1", r#"[2,64,32]"#, "[2,32,64]"));
    assert_eq!(run.code, 1, "{}", run.out);
    assert!(run.out.contains("stored [2, 32, 64], computed [2, 64, 32]"), "{}", run.out);
}

/// Where the tolerance is computed from the stored tensor, a wrong tensor must not allow every result.
#[test]
fn a_wrong_answer_does_not_excuse_itself() {
    for name in ["k_identity_pos", "k_identity_s1", "k_identity_s4", "k_lightning_s1"] {
        let run = check(&changed(name, "out", |data| data.iter_mut().for_each(|x| *x *= 1.01)));
        assert_eq!(run.code, 1, "{}", run.out);
    }
    for (name, tensor) in [("fla_odd_identity", "after_block_1"), ("lightning_a", "after_block_2")] {
        let run = check(&changed(name, tensor, |data| data.rotate_left(1)));
        assert_eq!(run.code, 1, "{}", run.out);
    }
    // Two rows of 64 are more than the share of rows that may be ill-conditioned.
    let two_rows = |data: &mut Vec<f32>| data[..64].iter_mut().for_each(|x| *x *= 1.01);
    let run = check(&changed("lightning_a", "after_block_2", two_rows));
    assert_eq!(run.code, 1, "{}", run.out);
}

/// The length of a chunk is part of the model, so that another length gives wrong results.
#[test]
fn a_wrong_chunk_length_fails() {
    for (name, was, is) in
        [("k_elu_s1", ":16", ":32"), ("k_identity_s4", ":4,", ":8,"), ("k_lightning_s1", ":8,", ":4,")]
    {
        let chunk_size = r#"\"chunk_size\""#;
        let run = check(&edited(name, &format!("{chunk_size}{was}"), &format!("{chunk_size}{is}")));
        assert_eq!(run.code, 1, "{}", run.out);
    }
}
