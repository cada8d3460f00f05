//! Tests that run the program: what it prints and writes, its exit codes, and that every mistake is reported
//! in one line on standard error.

// Code that these tests share with each other, with the library's tests and with fuzz/.
mod checks;
#[path = "../../../tests/common/child.rs"]
mod child;
#[path = "../../../tests/common/mod.rs"]
mod common;
mod program;
#[path = "../../../tests/weights/mod.rs"]
mod weights;

mod bench;
mod check;
mod commands;
mod fuzz;
mod golden;
#[cfg(unix)]
mod write;
