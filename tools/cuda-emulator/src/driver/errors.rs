//! The names and texts of the codes that the emulator returns, or that tests make it return.

use super::{Out, put};
use crate::state::{Code, Need, call};
use std::ffi::{CStr, CString, c_char};
use std::sync::LazyLock;

/// A code, its name and its text in each line.
const ERRORS: &str = "\
0 CUDA_SUCCESS no error
1 CUDA_ERROR_INVALID_VALUE invalid argument
2 CUDA_ERROR_OUT_OF_MEMORY out of memory
3 CUDA_ERROR_NOT_INITIALIZED initialization error
4 CUDA_ERROR_DEINITIALIZED driver shutting down
34 CUDA_ERROR_STUB_LIBRARY CUDA driver is a stub library
100 CUDA_ERROR_NO_DEVICE no CUDA-capable device is detected
101 CUDA_ERROR_INVALID_DEVICE invalid device ordinal
200 CUDA_ERROR_INVALID_IMAGE device kernel image is invalid
201 CUDA_ERROR_INVALID_CONTEXT invalid device context
209 CUDA_ERROR_NO_BINARY_FOR_GPU no kernel image is available for execution on the device
218 CUDA_ERROR_INVALID_PTX a PTX JIT compilation failed
222 CUDA_ERROR_UNSUPPORTED_PTX_VERSION the provided PTX was compiled with an unsupported toolchain.
223 CUDA_ERROR_JIT_COMPILATION_DISABLED PTX JIT compilation was disabled
400 CUDA_ERROR_INVALID_HANDLE invalid resource handle
500 CUDA_ERROR_NOT_FOUND named symbol not found
600 CUDA_ERROR_NOT_READY device not ready
700 CUDA_ERROR_ILLEGAL_ADDRESS an illegal memory access was encountered
701 CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES too many resources requested for launch
702 CUDA_ERROR_LAUNCH_TIMEOUT the launch timed out and was terminated
716 CUDA_ERROR_MISALIGNED_ADDRESS misaligned address
719 CUDA_ERROR_LAUNCH_FAILED unspecified launch failure
801 CUDA_ERROR_NOT_SUPPORTED operation not supported
802 CUDA_ERROR_SYSTEM_NOT_READY system not yet initialized
803 CUDA_ERROR_SYSTEM_DRIVER_MISMATCH system has unsupported display driver / cuda driver combination
999 CUDA_ERROR_UNKNOWN unknown error";

static TABLE: LazyLock<Vec<(Code, CString, CString)>> = LazyLock::new(|| {
    let c_string = |text: &str| CString::new(text).expect("the texts contain no zero");
    let row = |line: &str| {
        let (code, rest) = line.split_once(' ')?;
        let (name, text) = rest.split_once(' ')?;
        Some((code.parse().ok()?, c_string(name), c_string(text)))
    };
    ERRORS.lines().map(|line| row(line).expect("a line has three parts")).collect()
});

fn find(error: Code) -> Option<&'static (Code, CString, CString)> {
    TABLE.iter().find(|e| e.0 == error)
}

fn text(out: Out<*const c_char>, found: Option<&CStr>) -> Result<(), Code> {
    put(out, found.map_or(std::ptr::null(), CStr::as_ptr))?;
    if found.is_some() { Ok(()) } else { Err(1) }
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorName(error: Code, out: Out<*const c_char>) -> Code {
    call("cuGetErrorName", Need::Nothing, |_| text(out, find(error).map(|e| &*e.1)))
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorString(error: Code, out: Out<*const c_char>) -> Code {
    call("cuGetErrorString", Need::Nothing, |_| text(out, find(error).map(|e| &*e.2)))
}
