//! The checks that the fuzz targets call, which are those of the library's tests.

#[path = "../../tests/checks/mod.rs"]
pub mod checks;
#[path = "../../tests/checks/cli.rs"]
pub mod cli;
#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../tests/weights/mod.rs"]
mod weights;
