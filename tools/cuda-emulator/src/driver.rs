//! The driver API under its C names. This file has devices and contexts, and submodules have memory, modules, functions
//! and streams.
//!
//! A pointer for one result is taken as `Option<&mut MaybeUninit<T>>`; a null pointer gives CUDA_ERROR_INVALID_VALUE.
//! Handles are numbers. Codes of errors and attributes are NVIDIA's numbers; `errors` names the former.
#![allow(non_snake_case, reason = "the names are NVIDIA's")]

mod errors;
mod function;
mod memory;
mod module;
mod stream;

pub use errors::*;
pub use function::*;
pub use memory::*;
pub use module::*;
pub use stream::*;

use crate::state::{Code, Need, Res, State, call};
use std::ffi::{c_char, c_int, c_uint};
use std::mem::MaybeUninit;

/// The type of a pointer for a result.
pub type Out<'a, T> = Option<&'a mut MaybeUninit<T>>;

fn put<T>(out: Out<T>, v: T) -> Res {
    out.ok_or(1)?.write(v);
    Ok(())
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuInit(flags: c_uint) -> Code {
    call("cuInit", Need::Nothing, |s| {
        if flags != 0 {
            return Err(1);
        }
        if s.device.count == 0 {
            return Err(100);
        }
        s.initialised = true;
        Ok(())
    })
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuDriverGetVersion(version: Out<c_int>) -> Code {
    call("cuDriverGetVersion", Need::Nothing, |s| put(version, s.driver))
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetCount(count: Out<c_int>) -> Code {
    call("cuDeviceGetCount", Need::Init, |s| put(count, s.device.count))
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGet(device: Out<c_int>, ordinal: c_int) -> Code {
    call("cuDeviceGet", Need::Init, |s| {
        known(s, ordinal)?;
        put(device, ordinal)
    })
}

/// Checks the number of a device.
fn known(s: &State, device: c_int) -> Res {
    if (0..s.device.count).contains(&device) { Ok(()) } else { Err(101) }
}

/// See NVIDIA's documentation.
///
/// # Safety
/// `name` must have `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int) -> Code {
    call("cuDeviceGetName", Need::Init, |s| {
        known(s, device)?;
        if name.is_null() || len < 1 {
            return Err(1);
        }
        let text = format!("Emulated sm_{}{}", s.device.major, s.device.minor);
        let n = text.len().min(len as usize - 1);
        // SAFETY: the text and the zero fit in the caller's `len` bytes.
        unsafe {
            name.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), n);
            name.add(n).write(0);
        }
        Ok(())
    })
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: c_int) -> Code {
    call("cuDeviceTotalMem_v2", Need::Init, |s| {
        known(s, device)?;
        put(bytes, s.memory_limit)
    })
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetAttribute(value: Out<c_int>, attribute: c_int, device: c_int) -> Code {
    call("cuDeviceGetAttribute", Need::Init, |s| {
        known(s, device)?;
        let v = match attribute {
            1..=3 => 1024,
            4 => 64,
            5 => i32::MAX,
            6 | 7 => 65535,
            8 => 48 << 10,
            9 => 64 << 10,
            10 => 32,
            12 | 82 => 65536,
            13 => 1_755_000,
            16 => s.device.sms,
            36 => 2_619_000,
            37 => 5120,
            38 => 50 << 20,
            39 => 2048,
            75 => s.device.major,
            76 => s.device.minor,
            81 => s.device.shared + 1024,
            97 => s.device.shared,
            106 => 32,
            111 => 1024,
            ..=150 => 0,
            _ => return Err(1),
        };
        put(value, v)
    })
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRetain(context: Out<usize>, device: c_int) -> Code {
    call("cuDevicePrimaryCtxRetain", Need::Init, |s| {
        known(s, device)?;
        put(context, State::context(device))?;
        *s.retained.entry(device).or_insert(0) += 1;
        Ok(())
    })
}

/// See NVIDIA's documentation. The last release keeps the objects of the context, so that tests can see those that are
/// still alive.
#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> Code {
    call("cuDevicePrimaryCtxRelease_v2", Need::Init, |s| {
        known(s, device)?;
        let count = s.retained.get_mut(&device).ok_or(201)?;
        *count -= 1;
        if *count == 0 {
            s.retained.remove(&device);
            s.fault = None;
        }
        Ok(())
    })
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetCurrent(context: Out<usize>) -> Code {
    call("cuCtxGetCurrent", Need::Init, |s| put(context, s.stack(|c| c.last().copied()).unwrap_or(0)))
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: usize) -> Code {
    call("cuCtxSetCurrent", Need::Init, |s| {
        if context == 0 {
            s.stack(Vec::pop);
            return Ok(());
        }
        s.device_of(context).ok_or(201)?;
        s.stack(|c| {
            c.pop();
            c.push(context);
        });
        Ok(())
    })
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxPushCurrent_v2(context: usize) -> Code {
    call("cuCtxPushCurrent_v2", Need::Init, |s| {
        s.device_of(context).ok_or(201)?;
        s.stack(|c| c.push(context));
        s.pushed += 1;
        Ok(())
    })
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxPopCurrent_v2(context: Out<usize>) -> Code {
    call("cuCtxPopCurrent_v2", Need::Init, |s| {
        let popped = s.stack(Vec::pop).ok_or(201)?;
        s.pushed -= 1;
        if let Some(out) = context {
            out.write(popped);
        }
        Ok(())
    })
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetDevice(device: Out<c_int>) -> Code {
    call("cuCtxGetDevice", Need::Context, |s| {
        let current = s.current().ok_or(201)?;
        put(device, s.device_of(current).ok_or(201)?)
    })
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> Code {
    call("cuCtxSynchronize", Need::Sync, |_| Ok(()))
}
