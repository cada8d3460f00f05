//! The command line with unusual arguments and files. Each run ends with a verdict, and prints lines to
//! stderr exactly if that is [`Verdict::Unusable`]. Only output files are written. Nothing is measured, and
//! no file outside a temporary folder is read or written.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use arbitrary::{Result, Unstructured};
use chunkwise_cli::{Out, Verdict, run};

use crate::checks::files::{damaged, replaced};
use crate::weights::{File, numbers};

/// Checks the command line with arguments that are drawn from bytes. If there are too few bytes, nothing is
/// checked.
pub fn cli(bytes: &[u8]) {
    let _ = check(&mut Unstructured::new(bytes));
}

/// The names of files. Two of them are links, and some do not exist or can't be files.
const NAMES: [&str; 9] = ["model", "input", "config", "report", "link", "hard", "new", "none/new", "."];

fn check(u: &mut Unstructured<'_>) -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).expect("a file");
    write("model", &safetensors(u)?);
    write("input", &safetensors(u)?);
    write("config", &text(u, CONFIG)?);
    write("report", &text(u, REPORT)?);
    #[cfg(unix)]
    std::os::unix::fs::symlink("model", folder.join("link")).expect("a link");
    fs::hard_link(folder.join("input"), folder.join("hard")).expect("a link");

    let Arguments { words, inputs, outputs } = Arguments::draw(u, folder)?;
    let before = contents(folder);
    let complaints = Shared::default();
    let verdict = if !u.ratio(7, 8)? {
        run(words.clone(), false, &mut Out::new(Full, complaints.clone()))
    } else {
        run(words.clone(), false, &mut Out::new(io::sink(), complaints.clone()))
    };

    let complaints = String::from_utf8(complaints.0.take()).expect("UTF-8");
    assert!(complaints.lines().all(|line| line.starts_with("chunkwise: ")), "{words:?}: {complaints}");
    assert_eq!(complaints.is_empty(), verdict != Verdict::Unusable, "{words:?}: {complaints}");
    let after = contents(folder);
    for (path, bytes) in &after {
        if before.get(path) != Some(bytes) {
            assert!(outputs.contains(path), "{words:?} wrote {}", path.display());
            assert!(!inputs.contains(path), "{words:?} destroyed {}", path.display());
        }
    }
    assert!(before.keys().all(|path| after.contains_key(path)), "{words:?} removed a file");
    Ok(())
}

/// The contents of all files in a folder except links, by their real paths.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("a file").path());
    files
        .filter(|path| !path.is_symlink())
        .map(|path| (real(&path), fs::read(&path).expect("a file")))
        .collect()
}

/// The path without links, or, if the file does not exist, the path of its folder without links and its name.
fn real(path: &Path) -> PathBuf {
    let folder = || Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(folder).unwrap_or_default()
}

struct Arguments {
    words: Vec<OsString>,
    /// The real paths of the files that may be read, and of those that may be written.
    inputs: Vec<PathBuf>,
    outputs: Vec<PathBuf>,
}

impl Arguments {
    fn draw(u: &mut Unstructured<'_>, folder: &Path) -> Result<Self> {
        let mut args = Self { words: vec!["chunkwise".into()], inputs: Vec::new(), outputs: Vec::new() };
        let command = *u.choose(&["run", "run", "check", "check", "bench", "bench", "info"])?;
        args.words.push(command.into());
        let paths: &[&str] = match command {
            "run" => {
                // Without a model the program runs its demonstration, which takes long.
                args.path(u, folder, "--model")?;
                &["--config", "--input", "--weights", "--output", "--output"]
            }
            "check" => {
                for _ in 0..u.int_in_range(0..=2)? {
                    args.path(u, folder, "")?;
                }
                &["--weights"]
            }
            "bench" => &["--compare", "--compare", "--output", "--plot"],
            _ => &[],
        };
        let values: &[(&str, &str)] = match command {
            "run" => &RUN,
            "check" => &[("--isa", "scalar"), ("--threads", "2")],
            "bench" => &BENCH,
            _ => &[],
        };
        let most = if u.ratio(3, 4)? { 2 } else { 6 };
        for _ in 0..u.int_in_range(0..=most)? {
            match u.int_in_range(0..=15)? {
                0..=7 if !paths.is_empty() => {
                    let flag = *u.choose(paths)?;
                    args.path(u, folder, flag)?;
                }
                8..=14 if !values.is_empty() => {
                    let (flag, right) = *u.choose(values)?;
                    let value = if u.ratio(3, 4)? { right.into() } else { value(u)? };
                    let word = [flag, "=", &value].concat();
                    args.words.push(word.into());
                }
                _ => args.words.push((*u.choose(&["--stream", "--check", "--bogus", "-", ""])?).into()),
            }
        }
        Ok(args)
    }

    fn path(&mut self, u: &mut Unstructured<'_>, folder: &Path, flag: &str) -> Result<()> {
        let write = ["--output", "--plot"].contains(&flag);
        let path = match self.inputs.last() {
            // A file that is also an input, possibly by another name.
            Some(input) if write && u.ratio(1, 2)? => input.clone(),
            _ => folder.join(u.choose(&NAMES)?),
        };
        if write { &mut self.outputs } else { &mut self.inputs }.push(real(&path));
        self.words.extend(Some(flag.into()).filter(|_| !flag.is_empty()));
        self.words.push(path.into());
        Ok(())
    }
}

/// Flags of `run`, each with a valid value.
const RUN: [(&str, &str); 16] = [
    ("--tensor", "input"),
    ("--device", "cpu"),
    ("--isa", "scalar"),
    ("--threads", "2"),
    ("--embed-dim", "3"),
    ("--hidden-size", "8"),
    ("--num-heads", "2"),
    ("--num-layers", "2"),
    ("--chunk-size", "4"),
    ("--seq-len", "12"),
    ("--feature-map", "relu"),
    ("--output-mode", "mean"),
    ("--final-norm", "true"),
    ("--layer-norm-eps", "1e-5"),
    ("--layer-norm-clip", "true"),
    ("--window-size", "12"),
];

/// Flags of `bench`, each with a valid value.
const BENCH: [(&str, &str); 15] = [
    ("--op", "prefill,decode,model,step"),
    ("--shape", "1,2,3,4,4"),
    ("--shape", "1,2,3,4,5"),
    ("--dtype", "bf16"),
    ("--map", "relu"),
    ("--norm", "per-chunk"),
    ("--chunk", "8"),
    ("--weights", "packed"),
    ("--state-offset", "4"),
    ("--isa", "all"),
    ("--threads", "1,2"),
    ("--rounds", "3"),
    ("--time", "1s"),
    ("--format", "json"),
    ("--format", "csv"),
];

/// A word that some flag accepts, numbers of any size, or any text.
fn value(u: &mut Unstructured<'_>) -> Result<String> {
    const WORDS: [&str; 40] = [
        "0",
        "1",
        "2",
        "3",
        "4",
        "8",
        "64",
        "-1",
        "1e-5",
        "null",
        "true",
        "false",
        "elu",
        "relu",
        "identity",
        "all",
        "mean",
        "last_timestep",
        "scalar",
        "avx2,scalar",
        "cpu",
        "cuda:1",
        "input",
        "output",
        "qkv",
        "prefill",
        "decode,step",
        "model",
        "none",
        "global,per-chunk",
        "f32",
        "bf16,f16",
        "stored",
        "packed",
        "json",
        "csv",
        "md",
        "table",
        "1s",
        "[1]",
    ];
    Ok(match u.int_in_range(0..=7)? {
        0..=3 => (*u.choose(&WORDS)?).into(),
        4 => size(u)?.to_string(),
        5 | 6 => {
            let sizes: [u64; 5] = [size(u)?, size(u)?, size(u)?, size(u)?, size(u)?];
            sizes.map(|size| size.to_string()).join(",")
        }
        _ => u.arbitrary::<&str>()?.replace('\0', ""),
    })
}

/// A size that is small, near a power of two, or any number.
fn size(u: &mut Unstructured<'_>) -> Result<u64> {
    match u.int_in_range(0..=3)? {
        0 => Ok(1),
        1 => u.int_in_range(0..=12),
        2 => Ok((1u64 << u.int_in_range(0..=63)?).wrapping_add(u.int_in_range(0..=2)?).wrapping_sub(1)),
        _ => u.arbitrary(),
    }
}

/// The file of a model or a kernel with stored results of any shapes. It may be damaged, or consist of any
/// bytes.
fn safetensors(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    if !u.ratio(15, 16)? {
        return Ok(u.bytes(u.len().min(100))?.to_vec());
    }
    let mut config = u.choose(&[CONFIG, ELSEWHERE, KERNEL, KERNEL])?.to_string();
    let kernel = config == KERNEL;
    if !u.ratio(3, 4)? {
        config = replaced(u, &config)?;
    }
    let mut file =
        if kernel { File { config: None, tensors: Vec::new() } } else { File::good() }.config(&config);
    let names: &[&str] = match kernel {
        true => &["qkv", "out"],
        false => &[
            "input",
            "output",
            "output_single_chunk_patched",
            "logits",
            "attn1_qkv",
            "attn1_out",
            "after_block_1",
        ],
    };
    for name in names {
        // The file of a model contains only some of the results, that of a kernel all.
        if !kernel && u.ratio(1, 2)? {
            continue;
        }
        let shape = shape(u)?;
        let elements = shape.iter().try_fold(1, |all: usize, n| all.checked_mul(*n)).filter(|n| *n <= 4096);
        // Shapes that are too large for a file only occur in damaged headers.
        let Some(elements) = elements else { continue };
        file.tensors.retain(|tensor| tensor.0 != *name);
        file.add(name, &shape, &numbers(elements));
    }
    // The file is mostly not damaged, because an error in its header would hide errors in its shapes.
    if u.ratio(3, 4)? { Ok(file.bytes()) } else { damaged(u, file) }
}

/// A shape of any rank, which often fits.
fn shape(u: &mut Unstructured<'_>) -> Result<Vec<usize>> {
    let likely: &[&[usize]] = &[
        &[2, 10, 3],
        &[10, 3],
        &[2, 8],
        &[8],
        &[2, 10, 8],
        &[10, 8],
        &[2, 5],
        &[2, 10, 24],
        &[1, 5, 12],
        &[0, 5, 12],
        &[2, 0, 12],
        &[1, 5, 4],
        &[2, 5, 12],
        &[2, 5, 4],
    ];
    let mut shape = u.choose(likely)?.to_vec();
    for _ in 0..u.int_in_range(0..=2)? {
        match u.int_in_range(0..=3)? {
            0 => shape.push(u.int_in_range(0..=4)?),
            1 => drop(shape.pop()),
            _ if shape.is_empty() => {}
            _ => {
                let at = u.int_in_range(0..=shape.len() - 1)?;
                shape[at] = size(u)? as usize;
            }
        }
    }
    Ok(shape)
}

/// JSON in which one word may be replaced.
fn text(u: &mut Unstructured<'_>, json: &str) -> Result<Vec<u8>> {
    let mut json = json.to_string();
    if !u.ratio(3, 4)? {
        json = replaced(u, &json)?;
    }
    Ok(json.into())
}

const CONFIG: &str = r#"{"num_heads": 2, "chunk_size": 4, "seq_len": 12, "feature_map": "identity",
    "output_mode": "all", "layer_norm_eps": 1e-5}"#;
const ELSEWHERE: &str = r#"{"num_heads": 2, "chunk_size": 4, "feature_map": "elu", "weights_from": "input"}"#;
const KERNEL: &str = r#"{"kind": "kernel_fla", "num_heads": 2, "chunk_size": 4, "feature_map": "identity"}"#;
const REPORT: &str = r#"{"version": "0", "date": "2026T", "command": ["a", "b"], "machine": {"cpu": "c", "arch": "d",
    "os": "e", "threads": 2, "isas": ["scalar"], "caches": {"l1": 1, "l2": 2, "l3": 3, "known": true}}, "rounds": 2,
    "interrupted": false, "ceilings": [{"isa": "scalar", "threads": 1, "name": "FMA", "bytes": 0, "unit": "GFLOP/s",
    "rate": {"best": 4.0, "median": 3.0, "p10": 2.5, "p90": 3.5}, "readings": [3.0, 4.0]}], "measurements": [{"op":
    "prefill", "shape": {"batch": 1, "heads": 2, "len": 3, "key": 4, "value": 5}, "dtype": "f32", "map": "elu", "norm":
    "global", "chunk": null, "weights": null, "state_offset": null, "isa": "scalar", "threads": 1, "flops": 10.0,
    "recurrent_flops": 10.0, "bytes": 5.0, "tokens": 20.0, "repeats": 9, "seconds": {"best": 0.1, "median": 0.2, "p10":
    0.15, "p90": 0.3}, "tokens_per_s": 1e3, "gflops": {"best": 0.7, "median": 0.7}, "recurrent_gflops": {"best": 0.7,
    "median": 0.7}, "recurrent_bound": {"ceiling": "FMA", "best_percent": 7.2, "median_percent": 7.2}, "gbs": {"best":
    0.3, "median": 0.4}, "bound": {"ceiling": "FMA", "best_percent": 0.7, "median_percent": 0.7}, "error": 7.9e-8,
    "allowed_error": 2e-6, "readings": [0.1, 0.2]}]}"#;

/// A stream that collects its bytes, which can be read through a clone.
#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream on which every write fails, as on a full disk.
struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
