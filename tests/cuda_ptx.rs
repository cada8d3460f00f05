//! The text of the shipped PTX: kernels take structures of the sizes that the library passes, and each kernel
//! can be compiled separately.

#[path = "../src/cuda/args.rs"]
#[allow(dead_code, reason = "only the sizes of the structures are used")]
mod args;

#[path = "cuda_common/ptx.rs"]
mod ptx;

use args::{DecodeArgs, DenseArgs, PrefillArgs};

/// The names of a module's kernels that take a structure by value, and its number of bytes.
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
    for module in ptx::names() {
        let text = ptx::text(&module);
        let mut by_value = 0;
        for (kernel, bytes) in structures(text) {
            let (which, size) = match kernel.split('_').next() {
                Some("prefill") => (0, size_of::<PrefillArgs>()),
                Some("decode") => (1, size_of::<DecodeArgs>()),
                Some("dense") => (2, size_of::<DenseArgs>()),
                _ => panic!("unknown structure of {kernel} of {module}"),
            };
            assert_eq!(bytes, size, "{kernel} of {module}");
            seen[which] += 1;
            by_value += 1;
        }
        let params = text.lines().filter(|line| line.contains(".param") && line.contains(".b8"));
        assert_eq!(params.count(), by_value, "a structure of {module} has another form");
    }
    assert!(seen.iter().all(|kernels| *kernels > 0), "{seen:?}");
}

/// The library passes one kernel at a time to the driver, so that the head of the text and the kernel must be
/// sufficient.
#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn each_kernel_is_whole_without_the_others() {
    use cuda_emulator::parse::module;
    for name in ptx::names() {
        let all = module(ptx::text(&name)).expect("what is shipped");
        assert!(!all.entries.is_empty(), "{name}");
        for kernel in &all.entries {
            let alone = module(&ptx::entry(&name, &kernel.name)).unwrap_or_else(|e| panic!("{name}: {e}"));
            let names: Vec<_> = alone.entries.iter().map(|entry| &entry.name).collect();
            assert_eq!(names, [&kernel.name], "{name}");
        }
    }
}
