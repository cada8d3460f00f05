//! Functions that run the program.
#![allow(dead_code, reason = "each test program uses a part of this file")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::test_file;

/// The result of a run.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) fn command() -> Command {
    let mut command = crate::child::command(test_file("chunkwise", env!("CARGO_BIN_EXE_chunkwise")));
    command.env_remove("CHUNKWISE_ISA");
    command
}

/// The program, started by a shell that runs a script first.
pub(crate) fn under<S: AsRef<OsStr>>(script: &str, args: impl IntoIterator<Item = S>) -> Command {
    let program = command();
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{script}\nexec \"$@\""), "sh"]);
    shell.arg(program.get_program()).args(program.get_args()).args(args).env_remove("CHUNKWISE_ISA");
    shell
}

pub(crate) fn chunkwise<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Run {
    finish(command().args(args))
}

pub(crate) fn finish(command: &mut Command) -> Run {
    let output = command.output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Run { code: output.status.code().expect("no signal"), out: text(output.stdout), err: text(output.stderr) }
}

/// The path of a file for this test. Tests run at the same time, so names must differ.
pub(crate) fn scratch_file(name: &str) -> PathBuf {
    // Files that were copied to this machine may be in a folder that cannot be written.
    match std::env::var_os("CHUNKWISE_TEST_FILES") {
        Some(_) => std::env::temp_dir(),
        None => env!("CARGO_TARGET_TMPDIR").into(),
    }
    .join(name)
}

/// Checks that the run failed as unusable, with one line that contains all of `parts`.
#[track_caller]
pub(crate) fn refused(run: &Run, parts: &[&str]) {
    assert_eq!(run.code, 2, "{}{}", run.out, run.err);
    assert_eq!(run.err.lines().count(), 1, "{}", run.err);
    assert!(run.err.starts_with("chunkwise: "), "{}", run.err);
    for part in parts {
        assert!(run.err.contains(part), "{part:?} in {}", run.err);
    }
}

/// Checks that the run succeeded without an error or a warning.
#[track_caller]
pub(crate) fn fine(run: &Run) {
    assert_eq!((run.code, run.err.as_str()), (0, ""), "{}{}", run.out, run.err);
}

/// A golden file of the reference.
pub(crate) fn golden(name: &str) -> PathBuf {
    let name = format!("golden/{name}.safetensors");
    test_file(&name, Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(&name))
}

/// The built-in model.
pub(crate) fn digits() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/digits.safetensors")
}
