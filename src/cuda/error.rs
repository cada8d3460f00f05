//! The errors of the GPU, each with the driver's own text where it has one.

use std::fmt;
use std::string::String;

/// Why nothing ran. A call that returns an error has not written any output.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The driver's library cannot be opened, as on a machine without an NVIDIA GPU.
    NoDriver {
        /// The loader's text.
        text: String,
    },
    /// The library is not the CUDA driver, or is incomplete.
    MissingSymbol {
        /// The function that is missing.
        symbol: &'static str,
        /// The loader's text.
        text: String,
    },
    /// The driver is older than the kernels' PTX.
    DriverTooOld {
        /// The CUDA version that the driver is for, 1000 x major + 10 x minor.
        version: i32,
        /// The CUDA version that is needed, in the same form.
        need: i32,
    },
    /// There is no such device.
    NoDevice {
        /// The number of the device that was requested.
        ordinal: usize,
        /// The number of devices that exist.
        count: usize,
        /// The driver's text, or nothing.
        text: String,
    },
    /// The device is older than the kernels, which need at least compute capability 8.0 (Ampere).
    Capability {
        /// The name of the device.
        name: String,
        /// The compute capability of the device, major and minor.
        capability: (i32, i32),
    },
    /// The device does not have that much memory left.
    OutOfMemory {
        /// The number of bytes requested.
        bytes: usize,
        /// The driver's text.
        text: String,
    },
    /// The driver does not accept a module of kernels.
    UnsupportedPtx {
        /// The name of the module.
        module: String,
        /// The driver's text, with its compiler's log.
        text: String,
    },
    /// The driver is configured not to compile PTX, which all kernels are.
    JitDisabled {
        /// The driver's text.
        text: String,
    },
    /// Another call of the driver failed, possibly because of a kernel that was launched before.
    Driver {
        /// The name of the driver's function.
        call: &'static str,
        /// The result of that function.
        code: i32,
        /// The driver's text.
        text: String,
    },
    /// Memory of one device was given to another.
    OtherDevice {
        /// The name of the argument.
        what: &'static str,
    },
    /// An error of the caller, as on the CPU.
    Argument(crate::Error),
    /// The CPU supports this and the GPU does not.
    Unsupported {
        /// What is not supported.
        what: &'static str,
    },
}

/// The result of a call.
pub type Result<T> = core::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoDriver { text } => write!(f, "no CUDA driver: {text}"),
            Error::MissingSymbol { symbol, text } => write!(f, "the CUDA driver has no {symbol}: {text}"),
            Error::DriverTooOld { version, need } => {
                let dotted = |v: &i32| (v / 1000, v % 1000 / 10);
                let ((a, b), (c, d)) = (dotted(version), dotted(need));
                write!(f, "the driver is for CUDA {a}.{b}, the kernels need one for CUDA {c}.{d}")
            }
            Error::NoDevice { ordinal, count, text } => {
                write!(f, "no CUDA device {ordinal}, there are {count}")?;
                if text.is_empty() { Ok(()) } else { write!(f, ": {text}") }
            }
            Error::Capability { name, capability: (major, minor) } => {
                write!(f, "{name} has compute capability {major}.{minor}, the kernels need 8.0")
            }
            Error::OutOfMemory { bytes, text } => {
                write!(f, "{bytes} bytes are more than the device has left: {text}")
            }
            Error::UnsupportedPtx { module, text } => {
                write!(f, "the driver does not take the module {module}: {text}")
            }
            Error::JitDisabled { text } => write!(
                f,
                "the driver may not compile the kernels while CUDA_DISABLE_PTX_JIT or CUDA_DISABLE_JIT is set: {text}"
            ),
            Error::Driver { call, code, text } => write!(f, "{call} failed with {code}: {text}"),
            Error::OtherDevice { what } => write!(f, "{what} is in the memory of another device"),
            Error::Argument(error) => error.fmt(f),
            Error::Unsupported { what } => write!(f, "not on the GPU: {what}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<crate::Error> for Error {
    fn from(error: crate::Error) -> Self {
        Error::Argument(error)
    }
}
