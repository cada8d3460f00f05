//! The C ABI. `include/chunkwise.h` documents each function; the comments here do not repeat it.
//!
//! Pointers become slices in this module and nowhere else, after every check that a pointer allows: not null,
//! aligned, as long as its shape, apart from what is written. Arguments are copied before anything is
//! written.
//!
//! `cargo rustc --release --features cdylib --crate-type cdylib` builds the shared library, `staticlib` the
//! static one.
#![allow(unsafe_code, reason = "pointers of C")]
#![allow(non_camel_case_types, reason = "types are called what the header calls them")]
#![allow(clippy::missing_safety_doc, reason = "the header says what callers owe")]

pub mod args;
pub mod attention;
pub mod backward;
mod config;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod draft;
#[cfg(feature = "files")]
pub mod file;
pub mod layers;
#[cfg(any(feature = "cuda", feature = "files"))]
mod message;
pub mod model;
#[cfg(all(feature = "panic-handler", not(feature = "std"), not(test)))]
mod panic;
mod span;
pub mod state;
pub mod status;

use core::ffi::{CStr, c_char};

use args::copy;
use status::*;

use crate::isa::{Isa, NAMES};

/// The ABI version. It increases with the first change that a program compiled before that change would
/// notice.
pub const CW_ABI_VERSION: u32 = 1;

pub(crate) type Result<T> = core::result::Result<T, Status>;

/// Converts a size or a stride of C.
fn size(value: u64) -> Result<usize> {
    value.try_into().map_err(|_| Status(CW_OVERFLOW))
}

/// Runs the body of a function. With `std`, a panic, of which none is known, ends here.
fn guard(body: impl FnOnce() -> Result<()>) -> i32 {
    #[cfg(feature = "std")]
    let result =
        std::panic::catch_unwind(core::panic::AssertUnwindSafe(body)).unwrap_or(Err(Status(CW_PANIC)));
    #[cfg(not(feature = "std"))]
    let result = body();
    match result {
        Ok(()) => CW_OK,
        Err(Status(code)) => code,
    }
}

/// The library's version.
#[unsafe(no_mangle)]
pub extern "C" fn cw_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => c"",
        };
    VERSION.as_ptr()
}

/// [`CW_ABI_VERSION`] of the library, which may differ from that of the header.
#[unsafe(no_mangle)]
pub extern "C" fn cw_abi_version() -> u32 {
    CW_ABI_VERSION
}

/// Instruction sets by number. The number 0, the default, is not among them.
const ISAS: [(u32, &CStr); 5] = [
    (CW_ISA_SCALAR, c"scalar"),
    (CW_ISA_SIMD128, c"simd128"),
    (CW_ISA_NEON, c"neon"),
    (CW_ISA_AVX2, c"avx2"),
    (CW_ISA_AVX512, c"avx512"),
];

// A set that is added to `NAMES` must be added here and to the header.
const _: () = assert!(ISAS.len() == NAMES.len());

/// The instruction sets that this machine has, one bit for each.
#[unsafe(no_mangle)]
pub extern "C" fn cw_isas() -> u32 {
    Isa::available().fold(0, |bits, isa| bits | 1 << isa_number(isa))
}

/// Writes the number of the default instruction set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_isa_default(isa: *mut u32) -> i32 {
    guard(|| {
        span::of(isa, 1)?;
        let chosen = Isa::choose()?;
        // SAFETY: non-null and aligned, as just checked; the caller promises that it can be written.
        unsafe { isa.write(isa_number(chosen)) };
        Ok(())
    })
}

/// The name of an instruction set, or null for a number that is none.
#[unsafe(no_mangle)]
pub extern "C" fn cw_isa_name(isa: u32) -> *const c_char {
    ISAS.iter().find(|(number, _)| *number == isa).map_or(core::ptr::null(), |(_, name)| name.as_ptr())
}

fn isa_number(isa: Isa) -> u32 {
    let is = |(_, name): &&(u32, &CStr)| name.to_bytes() == isa.name().as_bytes();
    ISAS.iter().find(is).map_or(CW_ISA_DEFAULT, |(number, _)| *number)
}

/// The instruction set for a number from C; `None` for the default.
fn isa(number: u32) -> Result<Option<Isa>> {
    if number == CW_ISA_DEFAULT {
        return Ok(None);
    }
    let (_, name) = ISAS.iter().find(|(known, _)| *known == number).ok_or(Status(CW_UNKNOWN))?;
    Ok(Some(Isa::from_name(name.to_str().unwrap_or_default())?))
}

/// The bytes of this many f32 elements. More than an allocation can have is an overflow.
fn bytes(elements: usize) -> Result<u64> {
    match elements.checked_mul(size_of::<f32>()) {
        Some(bytes) if bytes <= isize::MAX as usize => Ok(bytes as u64),
        _ => Err(Status(CW_OVERFLOW)),
    }
}

/// Checks and copies the structures of a call.
unsafe fn arguments<A: args::Headed, B: args::Headed>(a: *const A, b: *const B) -> Result<(A, B)> {
    // SAFETY: the caller's promise, passed on.
    unsafe { Ok((copy(a)?, copy(b)?)) }
}
