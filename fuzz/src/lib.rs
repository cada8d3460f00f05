//! What the targets call: the checks of the library's own tests.

#[path = "../../tests/checks/mod.rs"]
pub mod checks;
#[path = "../../tests/checks/cli.rs"]
pub mod cli;
#[path = "../../tests/common/mod.rs"]
mod common;
/// The command line, its `main` left out.
#[path = "../../src/bin/chunkwise/main.rs"]
#[allow(dead_code, unexpected_cfgs, reason = "it is another crate's, whose features are the program's")]
mod program;
#[path = "../../tests/weights/mod.rs"]
mod weights;
