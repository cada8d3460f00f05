//! The errors of files, in one sentence each.

use core::fmt;
use std::boxed::Box;
use std::path::{Path, PathBuf};
use std::string::String;
use std::vec::Vec;

/// Why a file cannot be used, or cannot be used for what was requested.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The operating system returned an error.
    Io(std::io::Error),
    /// Another error, with the file that it is about.
    File {
        /// The path of the file.
        path: PathBuf,
        /// The error in that file.
        error: Box<Error>,
    },
    /// The file ends before the end of something that it announces.
    Truncated {
        /// What is cut short: the header, or a tensor by name.
        what: String,
        /// The byte up to which it reaches.
        need: u64,
        /// Bytes in the file.
        have: usize,
    },
    /// JSON that does not parse, or has a key twice.
    Json {
        /// What the JSON text is, such as the header.
        what: &'static str,
        /// The parser's message.
        reason: String,
    },
    /// The header is JSON, but not that of a safetensors file.
    Header {
        /// What is wrong.
        reason: String,
    },
    /// A tensor's shape and its place in the file contradict each other, or its size overflows.
    Size {
        /// The name of the tensor.
        tensor: String,
        /// The type of the tensor.
        dtype: String,
        /// The shape of the tensor.
        shape: Vec<u64>,
        /// The bytes of the file's data that the header gives it: the first, and the one after the last.
        place: [u64; 2],
    },
    /// A tensor to be written, whose data is not as long as its shape says.
    Length {
        /// The name of the tensor.
        tensor: String,
        /// The shape of the tensor.
        shape: Vec<usize>,
        /// The number of elements given.
        got: usize,
    },
    /// A tensor whose type cannot be read as f32 without loss.
    Dtype {
        /// The name of the tensor.
        tensor: String,
        /// The type of the tensor.
        got: String,
        /// The shape of the tensor.
        shape: Vec<usize>,
    },
    /// A parameter whose shape is not the configuration's.
    Shape {
        /// The name of the parameter.
        tensor: String,
        /// The shape in the configuration.
        want: Vec<usize>,
        /// The shape in the file.
        got: Vec<usize>,
    },
    /// A parameter of the configuration is not in the file.
    Missing {
        /// The name of the parameter.
        tensor: String,
        /// The shape that it should have.
        want: Vec<usize>,
    },
    /// A parameter that does not belong to the configuration.
    Unknown {
        /// The name of the tensor.
        tensor: String,
        /// The shape of the tensor.
        shape: Vec<usize>,
    },
    /// A requested tensor is not in the file.
    NoTensor {
        /// The name of the tensor.
        name: String,
        /// The names of the tensors in the file, without parameters.
        have: Vec<String>,
    },
    /// The file contains no parameters of this model.
    NotAModel,
    /// The parameters are in another file.
    Elsewhere {
        /// The name of that file.
        file: String,
    },
    /// A model or kernel of another kind.
    Kind {
        /// The kind that the file gives.
        kind: String,
    },
    /// A required option is not known.
    MissingOption {
        /// The option's name, in JSON and in [`super::Options`].
        option: &'static str,
        /// The option's name on the command line.
        flag: &'static str,
    },
    /// An option has an invalid value.
    BadOption {
        /// The option's name.
        option: &'static str,
        /// The option's value.
        value: String,
        /// The values that it may have.
        want: &'static str,
    },
    /// An input whose rows do not have the model's size.
    Input {
        /// The shape of the input.
        shape: Vec<usize>,
        /// The elements of a row of the model's input.
        embed: usize,
    },
    /// The model itself refuses the configuration or the call.
    Model(crate::Error),
    /// A GPU does not support what was requested, or there is no GPU.
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda::Error),
}

impl Error {
    /// The same error, with the name of the file that it is about.
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
