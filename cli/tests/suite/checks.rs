//! The checks that `fuzz/` has of the command line.
#![allow(dead_code, reason = "the library's suite uses the rest")]

#[path = "../../../tests/checks/cli.rs"]
pub(crate) mod cli;
#[path = "../../../tests/checks/files.rs"]
pub(crate) mod files;
