//! The program from outside: what it prints and writes, its exit codes, and that every mistake is one line on stderr.

// What they share, with the library's tests and with fuzz/.
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
