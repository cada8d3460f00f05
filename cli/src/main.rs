//! The program. `chunkwise_cli` says what it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    chunkwise_cli::main()
}
