//! Checks that must pass for any bytes. Each derives arguments from the bytes and panics where the library
//! breaks a guarantee. The fuzz targets call them on bytes that the fuzzer generates, and
//! `tests/suite/fuzz.rs` on bytes that are the same in every run.
#![allow(dead_code, reason = "each caller uses its part")]

mod attention;
mod backward;
#[cfg(feature = "cdylib")]
mod capi;
mod family;
#[cfg(feature = "files")]
pub(crate) mod files;
mod sequence;

use arbitrary::{Result, Unstructured};

/// Checks forward and decode with any sizes, strides, types and numbers.
pub fn attention(bytes: &[u8]) {
    draw(attention::check, bytes);
}

/// Checks gradients.
pub fn backward(bytes: &[u8]) {
    draw(backward::check, bytes);
}

/// Checks a sequence that is computed in pieces, with snapshots that are restored.
pub fn sequence(bytes: &[u8]) {
    draw(sequence::check, bytes);
}

/// Checks model files.
#[cfg(feature = "files")]
pub fn files(bytes: &[u8]) {
    draw(files::check, bytes);
}

/// Checks the C ABI with structures of any contents.
#[cfg(feature = "cdylib")]
pub fn capi(bytes: &[u8]) {
    draw(capi::check, bytes);
}

/// Runs a check on arguments that are drawn from bytes. If there are too few bytes, nothing is checked.
fn draw(check: fn(&mut Unstructured<'_>) -> Result<()>, bytes: &[u8]) {
    let _ = check(&mut Unstructured::new(bytes));
}
