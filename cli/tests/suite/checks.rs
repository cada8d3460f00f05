//! The checks of the command line that `fuzz/` also runs.
#![allow(dead_code, reason = "the library's suite uses the rest")]

#[path = "../../../tests/checks/cli.rs"]
pub(crate) mod cli;
#[path = "../../../tests/checks/files.rs"]
pub(crate) mod files;
