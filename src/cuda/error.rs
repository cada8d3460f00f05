//! What can go wrong between here and a GPU, each with the driver's own words where it has any.

use std::fmt;
use std::string::String;

/// Why nothing ran. Whenever one is returned, no output has been written by this call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The driver's library can't be opened: there is none, on a machine without an NVIDIA GPU.
    NoDriver {
        /// What the loader says.
        text: String,
    },
    /// The library is not, or is not all of, the CUDA driver.
    MissingSymbol {
        /// The function it does not have.
        symbol: &'static str,
        /// What the loader says.
        text: String,
    },
    /// The driver is older than the kernels' PTX.
    DriverTooOld {
        /// The CUDA version it is for, 1000 x major + 10 x minor.
        version: i32,
        /// The version that is needed.
        need: i32,
    },
    /// There is no such device.
    NoDevice {
        /// The one asked for.
        ordinal: usize,
        /// Devices there are.
        count: usize,
        /// What the driver says, or nothing.
        text: String,
    },
    /// The device is older than the kernels: compute capability 8.0 (Ampere) is the least.
    Capability {
        /// The device.
        name: String,
        /// Its compute capability.
        capability: (i32, i32),
    },
    /// The device has not that much memory left.
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
        /// What the driver says.
        text: String,
    },
    /// The driver does not take a module of kernels.
    UnsupportedPtx {
        /// The module.
        module: String,
        /// What the driver says, with its compiler's log.
        text: String,
    },
    /// The driver has been told not to compile PTX, which all kernels are.
    JitDisabled {
        /// What the driver says.
        text: String,
    },
    /// Another call of the driver failed, maybe for a kernel that was launched before.
    Driver {
        /// The driver's function.
        call: &'static str,
        /// Its result.
        code: i32,
        /// What the driver says.
        text: String,
    },
    /// A buffer of one device was given to another.
    OtherDevice {
        /// The argument.
        what: &'static str,
    },
    /// What the caller got wrong, as on the CPU.
    Argument(crate::Error),
    /// The CPU does this, the GPU does not.
    Unsupported {
        /// What.
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
