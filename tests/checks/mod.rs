//! What must hold of any bytes: arguments are drawn from them, and a promise that is broken is a panic. `fuzz/` calls
//! these on bytes that it invents, `tests/suite/fuzz.rs` on some that are the same in every run.
#![allow(dead_code, reason = "each caller uses its part")]

mod attention;
#[cfg(feature = "cdylib")]
mod capi;
mod family;
#[cfg(feature = "files")]
pub(crate) mod files;
mod sequence;

use arbitrary::{Result, Unstructured};

/// Many tokens and one, of any sizes, strides, types and numbers.
pub fn attention(bytes: &[u8]) {
    draw(attention::check, bytes);
}

/// A sequence in pieces, with steps back.
pub fn sequence(bytes: &[u8]) {
    draw(sequence::check, bytes);
}

/// Weights and configuration.
#[cfg(feature = "files")]
pub fn files(bytes: &[u8]) {
    draw(files::check, bytes);
}

/// The structures of the C ABI.
#[cfg(feature = "cdylib")]
pub fn capi(bytes: &[u8]) {
    draw(capi::check, bytes);
}

/// Bytes that don't suffice are as good as a check that holds.
fn draw(check: fn(&mut Unstructured<'_>) -> Result<()>, bytes: &[u8]) {
    let _ = check(&mut Unstructured::new(bytes));
}
