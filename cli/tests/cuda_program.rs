//! The program with a GPU. The loader finds the emulator under the driver's name, or a real GPU's driver.

#[path = "../../tests/common/child.rs"]
mod child;
#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../tests/cuda_common/mod.rs"]
mod cuda_common;
#[path = "suite/program.rs"]
mod program;

use std::path::{Path, PathBuf};

use cuda_common::{devices, emulator_path, with_emulator};
use program::{command, fine, finish, golden, refused, scratch_file};

/// A folder where the loader finds a file under the driver's name.
fn with_driver(name: &str, driver: impl FnOnce(&Path)) -> PathBuf {
    let folder = scratch_file(name);
    std::fs::create_dir_all(&folder).expect("a folder");
    let _ = std::fs::remove_file(folder.join("libcuda.so.1"));
    driver(&folder.join("libcuda.so.1"));
    folder
}

/// `chunkwise run --device cuda`, with the emulator or with a real GPU.
#[test]
fn from_the_command_line() {
    let copy = |path: &Path| {
        std::fs::copy(emulator_path(), path).expect("the emulator");
    };
    let folder = with_emulator().then(|| with_driver("cuda_model", copy));
    let on_gpu = || {
        let mut command = command();
        if let Some(folder) = &folder {
            command.env("LD_LIBRARY_PATH", folder);
        }
        command
    };
    let device = devices()[0].clone();
    let run = finish(on_gpu().args(["run", "--device", "cuda", "--model"]).arg(golden("fla_small_elu")));
    fine(&run);
    assert!(run.out.contains(device.name()), "{}", run.out);
    assert!(run.out.contains("from the stored one"), "{}", run.out);
    let info = finish(on_gpu().arg("info"));
    assert!(info.out.contains(&format!("GPU               Device({}", device.name())), "{}", info.out);

    // The driver's library cannot be loaded, whether the machine has one or not.
    let empty = with_driver("cuda_model_none", |path| std::fs::write(path, "").expect("an empty file"));
    let mut none = command();
    let none = none.env("LD_LIBRARY_PATH", empty).args(["run", "--device", "cuda", "--model"]);
    refused(&finish(none.arg(golden("fla_small_elu"))), &["no CUDA driver"]);
    let bad = finish(command().args(["run", "--device", "rocm"]));
    refused(&bad, &["rocm", "cpu, cuda or cuda:N"]);
    let mut stream = command();
    let stream = stream.args(["run", "--device", "cuda", "--stream", "--model"]).arg(golden("fla_small_elu"));
    refused(&finish(stream), &["--device", "--stream"]);
}
