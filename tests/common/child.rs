//! How tests start other programs.

use std::ffi::OsStr;
use std::process::Command;

/// The command that starts a program: under the emulator and options that the environment variable
/// CHUNKWISE_TEST_RUNNER contains, if it is set. An emulated test needs it, because its programs would
/// otherwise start on the machine itself, or not at all.
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
