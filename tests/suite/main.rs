//! The tests that link once and run in one process, by what they ask of the library; `cargo test --test suite -- oracle::`
//! runs one module. Those that bring a global allocator are in `tests/alloc`.

// What they share, with each other and with fuzz/, examples/ and the other test programs.
#[path = "../checks/mod.rs"]
mod checks;
#[cfg(feature = "std")]
#[path = "../common/child.rs"]
mod child;
#[path = "../common/mod.rs"]
mod common;
#[path = "../stream/mod.rs"]
mod stream;
#[cfg(feature = "files")]
#[path = "../weights/mod.rs"]
mod weights;

// Attention: what it computes, ...
mod compensated;
mod family;
mod lightning;
mod long;
mod oracle;
mod special;
mod types;
mod value_major;
mod zeros;
// ... that nothing else changes a bit of it, ...
mod bits;
#[cfg(all(feature = "std", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod float_mode;
#[cfg(all(feature = "std", unix))]
mod fork;
mod parts;
mod properties;
#[cfg(feature = "std")]
mod soak;
#[cfg(feature = "std")]
mod threads;
// ... what it refuses, what it touches, where it runs.
mod errors;
mod fuzz;
#[cfg(unix)]
mod guard;
mod isa;
// The layers around attention.
mod conv;
mod gated_norm;
// The model, and its files.
#[cfg(feature = "files")]
mod files;
mod model;
