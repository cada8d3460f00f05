//! Numbers on which C and Rust must agree: status codes with their sentences, and the values of choices.

use core::ffi::{CStr, c_char};

use crate::error::Error;

/// A code other than [`CW_OK`], as the error of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub i32);

macro_rules! statuses {
    ($($name:ident = $code:literal, $text:literal;)*) => {
        $(#[doc = concat!("`", $text, "`")] pub const $name: i32 = $code;)*

        /// All codes, with their names.
        pub const STATUSES: &[(&str, i32)] = &[$((stringify!($name), $name)),*];

        fn text(status: i32) -> Option<&'static CStr> {
            match status {
                $($name => CStr::from_bytes_with_nul(concat!($text, "\0").as_bytes()).ok(),)*
                _ => None,
            }
        }
    };
}

statuses! {
    CW_OK = 0, "done";
    CW_NULL = 1, "a pointer is null that must not be null";
    CW_MISALIGNED = 2, "a pointer is not aligned to its type";
    CW_OVERLAP = 3, "memory that is written overlaps other memory of the call, or itself by its strides";
    CW_TOO_SMALL = 4, "fewer bytes were given than are needed";
    CW_OVERFLOW = 5, "sizes or strides reach beyond the address space";
    CW_ZERO = 6, "a size is zero that must be at least one";
    CW_RANGE = 7, "a number is not finite, is negative, or is out of its range";
    CW_UNKNOWN = 8, "the value of a field is none of its constants, or a reserved field is not 0";
    CW_SIZE = 9, "a structure is larger than this library knows, or its size ends within a field";
    CW_ABI = 10, "a structure was filled by a header of another ABI version";
    CW_SHAPE = 11, "the dimensions or strides of tensors, or the sequences, do not fit together";
    CW_STATE = 12, "the state was not made by this configuration";
    CW_UNAVAILABLE = 13, "this machine or this build does not support the request";
    CW_PARAMETER = 14, "a parameter of the model is missing, misshapen or unexpected";
    CW_FILE = 15, "the bytes are not a safetensors file, or not a complete one";
    CW_OPTION = 16, "a required option of the model is missing, or an option is invalid";
    CW_IO = 17, "the file cannot be read";
    CW_MODEL = 18, "the pointer is not to a model, or not to a model that can be closed";
    CW_PANIC = 19, "a bug in the library: outputs and states must not be used";
    CW_GPU = 20, "the GPU or its driver returned an error, see chunkwise_cuda.h";
    CW_CONFLICT = 21, "options or tensors cannot be combined";
}

macro_rules! choices {
    ($($name:ident = $value:literal;)*) => {
        $(#[allow(missing_docs, reason = "documented in the header")] pub const $name: u32 = $value;)*

        /// All choices, with their names.
        pub const CHOICES: &[(&str, u32)] = &[$((stringify!($name), $name)),*];
    };
}

// Where something must be chosen, no constant is 0, so that a forgotten field is found. Choices that were
// added later start at 0, which stands for what the library did before.
choices! {
    CW_F32 = 1;
    CW_BF16 = 2;
    CW_F16 = 3;
    CW_ELU = 1;
    CW_RELU = 2;
    CW_IDENTITY = 3;
    CW_NONE = 1;
    CW_GLOBAL = 2;
    CW_PER_CHUNK = 3;
    CW_PRODUCTS_F32 = 1;
    CW_PRODUCTS_BF16 = 2;
    CW_LINEAR = 1;
    CW_LIGHTNING = 2;
    CW_LAST_TIMESTEP = 1;
    CW_ALL = 2;
    CW_MEAN = 3;
    CW_UPDATE_LINEAR = 0;
    CW_UPDATE_DELTA = 1;
    CW_GATE_NONE = 0;
    CW_GATE_SCALAR = 1;
    CW_GATE_KEY = 2;
    CW_GATE_MAP_LOG = 0;
    CW_GATE_MAP_LINEAR = 1;
    CW_GATE_MAP_SOFTPLUS = 2;
    CW_GATE_MAP_BOUNDED = 3;
    CW_BETA_GIVEN = 0;
    CW_BETA_SIGMOID = 1;
    CW_BETA_TWICE_SIGMOID = 2;
    CW_HEADS_INTERLEAVED = 0;
    CW_HEADS_TILED = 1;
    CW_ACTIVATION_NONE = 0;
    CW_ACTIVATION_SILU = 1;
    CW_NORM_SILU = 0;
    CW_NORM_SIGMOID = 1;
    CW_ISA_DEFAULT = 0;
    CW_ISA_SCALAR = 1;
    CW_ISA_SIMD128 = 2;
    CW_ISA_NEON = 3;
    CW_ISA_AVX2 = 4;
    CW_ISA_AVX512 = 5;
}

/// The sentence for a status code.
#[unsafe(no_mangle)]
pub extern "C" fn cw_status_string(status: i32) -> *const c_char {
    text(status).unwrap_or(c"not a status of this library").as_ptr()
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Status(match error {
            Error::Zero { .. } => CW_ZERO,
            Error::Overflow { .. } => CW_OVERFLOW,
            Error::TooShort { .. } | Error::Length { .. } => CW_TOO_SMALL,
            Error::Overlap { .. } => CW_OVERLAP,
            Error::NotFinite { .. } | Error::NotPositive { .. } | Error::TooMany { .. } => CW_RANGE,
            Error::BadState => CW_STATE,
            Error::Conflict { .. } | Error::Unused { .. } => CW_CONFLICT,
            Error::Sequences => CW_SHAPE,
            Error::Isa { .. } => CW_UNAVAILABLE,
            Error::Parameter { .. } | Error::Part { .. } => CW_PARAMETER,
        })
    }
}
