//! Functions: their attributes, and launches.

use super::stream::stream;
use super::{Out, put};
use crate::isa::Entry;
use crate::launch::{Grid, launch};
use crate::memory::Map;
use crate::state::{Code, Function, Need, Res, State, call};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// See NVIDIA's documentation.
///
/// # Safety
/// `name` must be a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(out: Out<usize>, module: usize, name: *const c_char) -> Code {
    call("cuModuleGetFunction", Need::Context, |s| {
        if name.is_null() {
            return Err(1);
        }
        // SAFETY: the caller guarantees a C string.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let entries = &s.modules.get(&module).ok_or(400)?.entries;
        let entry = entries.iter().position(|e| e.name == name).ok_or(500)?;
        let found = s.functions.iter().find(|(_, f)| f.module == module && f.entry == entry).map(|(h, _)| *h);
        let handle = match found {
            Some(handle) => handle,
            None => {
                let handle = s.handle();
                s.functions.insert(handle, Function { module, entry, max_dynamic: 0 });
                handle
            }
        };
        put(out, handle)
    })
}

/// Returns the entry of a function.
fn entry(s: &State, function: usize) -> Result<(&Entry, &Function), Code> {
    let f = s.functions.get(&function).ok_or(400)?;
    Ok((&s.modules.get(&f.module).ok_or(400)?.entries[f.entry], f))
}

/// Returns the most dynamic shared memory that a launch may use, in bytes.
fn dynamic_limit(e: &Entry, f: &Function) -> i32 {
    f.max_dynamic.max((48 << 10) - e.shared_bytes as i32)
}

fn thread_limit(e: &Entry) -> i32 {
    if e.max_threads > 0 { e.max_threads.min(1024) as i32 } else { 1024 }
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(function: usize, attribute: c_int, value: c_int) -> Code {
    call("cuFuncSetAttribute", Need::Context, |s| {
        let statics = entry(s, function)?.0.shared_bytes as i32;
        match attribute {
            8 if value < 0 || value > s.device.shared - statics => Err(1),
            8 => {
                s.functions.get_mut(&function).ok_or(400)?.max_dynamic = value;
                Ok(())
            }
            // The attribute is a hint about the division of the L1 cache.
            9 => Ok(()),
            _ => Err(1),
        }
    })
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuFuncGetAttribute(out: Out<c_int>, attribute: c_int, function: usize) -> Code {
    call("cuFuncGetAttribute", Need::Context, |s| {
        let (e, f) = entry(s, function)?;
        let v = match attribute {
            0 => thread_limit(e),
            1 => e.shared_bytes as i32,
            2 => 0,
            3 => e.local_bytes as i32,
            // The number of registers that a compiler would use is not known, so the largest possible one is returned.
            4 => (65536 / thread_limit(e)).min(255),
            5 => s.modules[&f.module].version as i32,
            6 => s.device.major * 10 + s.device.minor,
            8 => dynamic_limit(e, f),
            9 => -1,
            _ => return Err(1),
        };
        put(out, v)
    })
}

/// See NVIDIA's documentation. Registers are assumed to be no limit.
#[unsafe(no_mangle)]
pub extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    out: Out<c_int>,
    function: usize,
    threads: c_int,
    dynamic: usize,
) -> Code {
    call("cuOccupancyMaxActiveBlocksPerMultiprocessor", Need::Context, |s| {
        let (e, f) = entry(s, function)?;
        if threads < 1 {
            return Err(1);
        }
        if threads > thread_limit(e) || dynamic as i64 > i64::from(dynamic_limit(e, f)) {
            return put(out, 0);
        }
        let by_threads = 2048 / (threads as u32).next_multiple_of(32) as i32;
        // Hardware reserves a KiB of shared memory for each block.
        let by_shared = (s.device.shared + 1024) / (e.shared_bytes as i32 + dynamic as i32 + 1024);
        put(out, by_threads.min(by_shared).min(32))
    })
}

/// See NVIDIA's documentation. The kernel has finished when the call returns; later calls report its faults.
///
/// # Safety
/// `params` must have a pointer to each argument.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: usize,
    gx: c_uint,
    gy: c_uint,
    gz: c_uint,
    bx: c_uint,
    by: c_uint,
    bz: c_uint,
    dynamic: c_uint,
    on: usize,
    params: *const *const c_void,
    extra: *const *const c_void,
) -> Code {
    call("cuLaunchKernel", Need::Context, |s| {
        stream(s, on)?;
        let (e, f) = entry(s, function)?;
        let grid = Grid { blocks: [gx, gy, gz], threads: [bx, by, bz], dynamic_shared: dynamic };
        fits(&grid, e, f)?;
        if !extra.is_null() || params.is_null() && !e.params.is_empty() {
            return Err(1);
        }
        let mut bytes = vec![0u8; e.param_bytes];
        for (i, p) in e.params.iter().enumerate() {
            // SAFETY: the caller guarantees a pointer for each parameter, to as many bytes as the parameter has.
            unsafe {
                let from = *params.add(i);
                if from.is_null() {
                    return Err(1);
                }
                bytes[p.offset..].as_mut_ptr().copy_from_nonoverlapping(from.cast(), p.size);
            }
        }
        if s.fault.is_some() {
            // The context is lost, but no call has reported that yet.
            return Ok(());
        }
        let globals = s.modules.values().flat_map(|m| &m.globals).map(|(_, b)| b);
        let map = Map::new(s.memory.values().chain(globals).map(|b| (b.address(), b.len() as u64)));
        // SAFETY: all memory of the map belongs to the state, which is locked.
        let (counters, result) = unsafe { launch(e, &bytes, map, grid, s.options) };
        s.counters.add(&counters);
        if let Err(fault) = result {
            s.fault = Some((fault.code, false));
            s.fault_text = fault.text;
        }
        Ok(())
    })
}

/// Checks the sizes of a launch.
fn fits(grid: &Grid, e: &Entry, f: &Function) -> Res {
    let ([gx, gy, gz], [bx, by, bz]) = (grid.blocks, grid.threads);
    let threads = [bx, by, bz].iter().fold(1u64, |n, b| n.saturating_mul(u64::from(*b)));
    let wrong = gx == 0
        || gx > i32::MAX as u32
        || !(1..=65535).contains(&gy)
        || !(1..=65535).contains(&gz)
        || threads == 0
        || bz > 64
        || threads > thread_limit(e) as u64
        || e.required != [0; 3] && e.required != grid.threads
        || i64::from(grid.dynamic_shared) > i64::from(dynamic_limit(e, f));
    if wrong { Err(1) } else { Ok(()) }
}
