//! Device memory: allocations, copies and fills. A range must lie in one live allocation; otherwise the call returns
//! CUDA_ERROR_INVALID_VALUE.

use super::stream::stream;
use super::{Out, put};
use crate::memory::Buffer;
use crate::state::{Code, Need, Res, State, call};
use std::ffi::{c_int, c_uchar, c_uint, c_void};

/// See NVIDIA's documentation. The bytes are 0xff, so that a float that is read before it is written is NaN, and an
/// index is out of bounds.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemAlloc_v2(out: Out<u64>, bytes: usize) -> Code {
    call("cuMemAlloc_v2", Need::Context, |s| {
        if bytes == 0 {
            return Err(1);
        }
        if s.used().saturating_add(bytes) > s.memory_limit {
            return Err(2);
        }
        let buffer = Buffer::new(bytes, 512, 0xff);
        put(out, buffer.address())?;
        s.memory.insert(buffer.address(), buffer);
        Ok(())
    })
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(at: u64) -> Code {
    call("cuMemFree_v2", Need::Sync, |s| s.memory.remove(&at).map(drop).ok_or(1))
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) -> Code {
    call("cuMemGetInfo_v2", Need::Context, |s| {
        put(free, s.memory_limit.saturating_sub(s.used()))?;
        put(total, s.memory_limit)
    })
}

/// Returns the host's pointer to a range.
fn device(s: &State, at: u64, bytes: usize) -> Result<*mut u8, Code> {
    let module = s.modules.values().flat_map(|m| &m.globals).map(|(_, b)| b);
    let in_module = |b: &Buffer| {
        at.checked_sub(b.address())
            .is_some_and(|offset| offset <= b.len() as u64 && b.len() as u64 - offset >= bytes as u64)
    };
    if s.find(at, bytes).is_none() && !module.into_iter().any(in_module) {
        return Err(1);
    }
    Ok(std::ptr::with_exposed_provenance_mut(at as usize))
}

fn upload(s: &State, to: u64, from: *const c_void, bytes: usize) -> Res {
    if bytes == 0 {
        return Ok(());
    }
    if from.is_null() {
        return Err(1);
    }
    let to = device(s, to, bytes)?;
    // SAFETY: the range is in a live allocation; the caller guarantees the range of the host.
    unsafe { to.copy_from(from.cast(), bytes) };
    Ok(())
}

fn download(s: &State, to: *mut c_void, from: u64, bytes: usize) -> Res {
    if bytes == 0 {
        return Ok(());
    }
    if to.is_null() {
        return Err(1);
    }
    let from = device(s, from, bytes)?;
    // SAFETY: the range is in a live allocation; the caller guarantees the range of the host.
    unsafe { from.copy_to(to.cast(), bytes) };
    Ok(())
}

/// See NVIDIA's documentation.
///
/// # Safety
/// `from` must have `bytes` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> Code {
    call("cuMemcpyHtoD_v2", Need::Sync, |s| upload(s, to, from, bytes))
}

/// See NVIDIA's documentation.
///
/// # Safety
/// `to` must have `bytes` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> Code {
    call("cuMemcpyDtoH_v2", Need::Sync, |s| download(s, to, from, bytes))
}

/// See NVIDIA's documentation.
///
/// # Safety
/// `from` must have `bytes` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, on: usize) -> Code {
    call("cuMemcpyHtoDAsync_v2", Need::Context, |s| stream(s, on).and_then(|()| upload(s, to, from, bytes)))
}

/// See NVIDIA's documentation.
///
/// # Safety
/// `to` must have `bytes` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, on: usize) -> Code {
    call("cuMemcpyDtoHAsync_v2", Need::Context, |s| stream(s, on).and_then(|()| download(s, to, from, bytes)))
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, on: usize) -> Code {
    call("cuMemcpyDtoDAsync_v2", Need::Context, |s| {
        stream(s, on)?;
        if bytes == 0 {
            return Ok(());
        }
        let (to, from) = (device(s, to, bytes)?, device(s, from, bytes)?);
        // SAFETY: both ranges are in live allocations.
        unsafe { to.copy_from(from, bytes) };
        Ok(())
    })
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(to: u64, value: c_uchar, count: usize, on: usize) -> Code {
    call("cuMemsetD8Async", Need::Context, |s| {
        stream(s, on)?;
        if count > 0 {
            // SAFETY: the range is in a live allocation.
            unsafe { device(s, to, count)?.write_bytes(value, count) };
        }
        Ok(())
    })
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD32Async(to: u64, value: c_uint, count: usize, on: usize) -> Code {
    call("cuMemsetD32Async", Need::Context, |s| {
        stream(s, on)?;
        if !to.is_multiple_of(4) {
            return Err(1);
        }
        if count > 0 {
            let at = device(s, to, count.checked_mul(4).ok_or(1)?)?.cast::<u32>();
            for i in 0..count {
                // SAFETY: the range is in a live allocation, and its start is a multiple of 4.
                unsafe { at.add(i).write(value) };
            }
        }
        Ok(())
    })
}

/// See NVIDIA's documentation. The known attributes are the context (1), the kind of memory (2) and the device (9).
///
/// # Safety
/// `out` must point to memory for the value of the attribute.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuPointerGetAttribute(out: *mut c_void, attribute: c_int, at: u64) -> Code {
    call("cuPointerGetAttribute", Need::Init, |s| {
        if out.is_null() || s.find(at, 1).is_none() {
            return Err(1);
        }
        // SAFETY: the caller guarantees memory for the attribute's value, which is a pointer or an int.
        unsafe {
            match attribute {
                1 => out.cast::<usize>().write(State::context(0)),
                2 => out.cast::<c_uint>().write(2),
                9 => out.cast::<c_int>().write(0),
                _ => return Err(801),
            }
        }
        Ok(())
    })
}
