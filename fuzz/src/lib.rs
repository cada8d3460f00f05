//! What the targets call: the checks of the library's own tests.

#[path = "../../tests/checks/mod.rs"]
pub mod checks;
#[path = "../../tests/checks/cli.rs"]
pub mod cli;
#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../tests/weights/mod.rs"]
mod weights;
