//! What is shipped, as text: that the kernels take the structures that the library fills.

#[path = "../src/cuda/args.rs"]
#[allow(dead_code, reason = "only their sizes are asked for")]
mod args;

use std::fs;
use std::path::Path;

use args::{DecodeArgs, DenseArgs, PrefillArgs};

/// The modules, by path below `src/cuda/ptx`.
fn modules() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/ptx");
    let mut modules = Vec::new();
    for arch in fs::read_dir(folder).expect("the folder of modules") {
        for file in fs::read_dir(arch.expect("a folder").path()).expect("a folder") {
            let path = file.expect("a file").path();
            modules.push((path.display().to_string(), fs::read_to_string(&path).expect("a text")));
        }
    }
    modules
}

/// Names and bytes of the structures that a module's kernels take by value.
fn structures(text: &str) -> impl Iterator<Item = (&str, usize)> {
    text.lines().filter_map(|line| {
        let (name, bytes) = line.trim().strip_prefix(".param .align 8 .b8 ")?.split_once("_param_0[")?;
        let bytes = bytes.trim_end_matches([',', ']']).parse().expect("a size");
        Some((name, bytes))
    })
}

#[test]
fn structures_have_the_size_that_kernels_take() {
    let mut seen = [0; 3];
    for (module, text) in modules() {
        let mut by_value = 0;
        for (kernel, bytes) in structures(&text) {
            let (which, size) = match kernel.split('_').next() {
                Some("prefill") => (0, size_of::<PrefillArgs>()),
                Some("decode") => (1, size_of::<DecodeArgs>()),
                Some("dense") => (2, size_of::<DenseArgs>()),
                _ => panic!("what {kernel} of {module} takes is not known"),
            };
            assert_eq!(bytes, size, "{kernel} of {module}");
            seen[which] += 1;
            by_value += 1;
        }
        let params = text.lines().filter(|line| line.contains(".param") && line.contains(".b8"));
        assert_eq!(params.count(), by_value, "a structure of {module} is written otherwise");
    }
    assert!(seen.iter().all(|kernels| *kernels > 0), "{seen:?}");
}
