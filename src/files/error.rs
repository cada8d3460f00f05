//! What can be wrong with a file, in one sentence each.

use core::fmt;
use std::boxed::Box;
use std::path::{Path, PathBuf};
use std::string::String;
use std::vec::Vec;

/// Why a file, or what was asked of it, can't be used.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    Io(std::io::Error),
    /// Another error, and the file it is about.
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<Error>,
    },
    /// The file ends before something that it announces.
    Truncated {
        /// The header, or a tensor's name.
        what: String,
        /// The byte up to which it reaches.
        need: u64,
        /// Bytes in the file.
        have: usize,
    },
    /// JSON that does not parse, or has a key twice.
    Json {
        /// Which JSON.
        what: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// The header is JSON, but not that of a safetensors file.
    Header {
        /// What is wrong.
        reason: String,
    },
    /// A tensor's shape and its place in the file contradict each other, or its size overflows.
    Size {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: String,
        /// Its shape.
        shape: Vec<u64>,
        /// Where its bytes are said to be.
        place: [u64; 2],
    },
    /// A tensor to be written whose data is not as long as its shape says.
    Length {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Elements given.
        got: usize,
    },
    /// A tensor of a type that can't be read as f32 without loss.
    Dtype {
        /// The tensor.
        tensor: String,
        /// Its type.
        got: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A parameter whose shape is not the configuration's.
    Shape {
        /// The parameter.
        tensor: String,
        /// The configuration's shape.
        want: Vec<usize>,
        /// The file's.
        got: Vec<usize>,
    },
    /// A parameter that the configuration asks for is not there.
    Missing {
        /// The parameter.
        tensor: String,
        /// The shape it should have.
        want: Vec<usize>,
    },
    /// A parameter for which the configuration has no place.
    Unknown {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A tensor that was asked for is not there.
    NoTensor {
        /// Its name.
        name: String,
        /// Those that are there, parameters left out.
        have: Vec<String>,
    },
    /// There are no parameters of this model in the file.
    NotAModel,
    /// The parameters are in another file.
    Elsewhere {
        /// Its name.
        file: String,
    },
    /// A model or kernel of another kind.
    Kind {
        /// What the file says of itself.
        kind: String,
    },
    /// An option that must be known is not.
    MissingOption {
        /// Its name, in JSON and in [`super::Options`].
        option: &'static str,
        /// Its name on the command line.
        flag: &'static str,
    },
    /// An option whose value makes no sense.
    BadOption {
        /// Its name.
        option: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        want: &'static str,
    },
    /// An input that is not rows of the model's size.
    Input {
        /// Its shape.
        shape: Vec<usize>,
        /// Elements of a row.
        embed: usize,
    },
    /// The configuration, or what was asked of the model, is refused by the model itself.
    Model(crate::Error),
    /// A GPU can't do what was asked, or there is none.
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda::Error),
}

impl Error {
    /// The same error, naming the file it is about.
    pub fn in_file(self, path: impl AsRef<Path>) -> Error {
        Error::File { path: path.as_ref().into(), error: Box::new(self) }
    }
}

impl From<crate::Error> for Error {
    fn from(error: crate::Error) -> Self {
        Error::Model(error)
    }
}

#[cfg(feature = "cuda")]
impl From<crate::cuda::Error> for Error {
    fn from(error: crate::cuda::Error) -> Self {
        Error::Cuda(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io(error) => write!(f, "{error}"),
            Error::File { path, error } => write!(f, "{}: {error}", path.display()),
            Error::Truncated { what, need, have } => {
                write!(f, "the file is cut short or damaged: {what} reaches byte {need}, the file has {have}")
            }
            Error::Json { what, reason } => write!(f, "{what} is not valid JSON: {reason}"),
            Error::Header { reason } => write!(f, "not a safetensors file: {reason}"),
            Error::Size { tensor, dtype, shape, place: [from, to] } => {
                write!(
                    f,
                    "{tensor}: {dtype} {shape:?} does not take the bytes {from} to {to} it is said to have"
                )
            }
            Error::Length { tensor, shape, got } => {
                write!(f, "{tensor}: {got} elements are not a tensor {shape:?}")
            }
            Error::Dtype { tensor, got, shape } => {
                write!(f, "{tensor}: {got} {shape:?}, expected F32 (or F16, BF16) {shape:?}")
            }
            Error::Shape { tensor, want, got } => {
                write!(f, "{tensor}: shape {got:?}, but the configuration asks for {want:?}")
            }
            Error::Missing { tensor, want } => write!(f, "{tensor} {want:?} is missing"),
            Error::Unknown { tensor, shape } => {
                write!(f, "{tensor} {shape:?} is a parameter for which the configuration has no place")
            }
            Error::NoTensor { name, have } if have.is_empty() => {
                write!(f, "there is no tensor {name}, only parameters")
            }
            Error::NoTensor { name, have } => {
                write!(f, "there is no tensor {name}; there are {}", have.join(", "))
            }
            Error::NotAModel => {
                write!(
                    f,
                    "there are no parameters of the model here (fla_block_1_attn_norm.gamma or \
                 lightning_block_1_attn_norm.gamma, ...)"
                )
            }
            Error::Elsewhere { file } => write!(f, "the parameters are not in this file but in {file}"),
            Error::Kind { kind } => write!(f, "its kind is {kind}, which is not supported"),
            Error::MissingOption { option, flag } => write!(
                f,
                "{option} is not known, and the shapes don't tell it: give it in JSON as \"{option}\" or on the \
                 command line as {flag}"
            ),
            Error::BadOption { option, value, want } => write!(f, "{option} is {value}, expected {want}"),
            Error::Input { shape, embed } => {
                write!(f, "an input of shape {shape:?}, expected [B, T, {embed}] or [T, {embed}]")
            }
            Error::Model(error) => write!(f, "{error}"),
            #[cfg(feature = "cuda")]
            Error::Cuda(error) => write!(f, "{error}"),
        }
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Error::Io(error) => Some(error),
            Error::File { error, .. } => Some(&**error),
            Error::Model(error) => Some(error),
            #[cfg(feature = "cuda")]
            Error::Cuda(error) => Some(error),
            _ => None,
        }
    }
}
