//! The program `chunkwise`, which the library `chunkwise_cli` implements.

use std::process::ExitCode;

fn main() -> ExitCode {
    chunkwise_cli::main()
}
