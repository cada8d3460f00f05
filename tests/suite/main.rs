//! The tests of the library, linked as one program; `cargo test --test suite -- oracle::` runs one module of
//! it. Tests that need a global allocator of their own are in `tests/alloc`.

// Code that the tests share with each other, with fuzz/, examples/ and the other test programs.
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

// Results of attention.
mod compensated;
mod family;
mod lightning;
mod long;
mod oracle;
mod special;
mod types;
mod value_major;
mod zeros;
// ... its gradients, ...
mod backward;
// Bits of attention, and what they must not depend on.
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
// Errors, accesses to memory, and instruction sets.
mod errors;
mod fuzz;
#[cfg(unix)]
mod guard;
mod isa;
// The layers around attention.
mod conv;
mod gated_norm;
// The model and its files.
#[cfg(feature = "files")]
mod files;
mod model;
