//! Programs that a test starts.

use std::ffi::OsStr;
use std::process::Command;

/// A program under what the variable CHUNKWISE_TEST_RUNNER names, an emulator and its options, as Cargo's own
/// runner has it: a test that is emulated would else start its programs on the machine itself, or not at all.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let runner = std::env::var("CHUNKWISE_TEST_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace();
    match words.next() {
        None => Command::new(program),
        Some(emulator) => {
            let mut command = Command::new(emulator);
            command.args(words).arg(program);
            command
        }
    }
}
