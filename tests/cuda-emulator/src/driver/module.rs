//! Modules, their functions, and launches.

use super::stream::stream;
use super::{Out, put};
use crate::isa::Entry;
use crate::launch::{Grid, launch};
use crate::memory::Map;
use crate::parse;
use crate::state::{Code, Function, Need, Res, State, call, lock};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The PTX ISA that a driver knows, as ten times major plus minor.
fn isa_of(driver: i32) -> u32 {
    match (driver / 1000, driver % 1000 / 10) {
        (..11, _) => 65,
        (11, minor) => 70 + minor as u32,
        (12, minor @ 0..=5) => 80 + minor as u32,
        (12, minor) => 79 + minor as u32,
        (major, minor) => (major as u32 - 4) * 10 + minor as u32,
    }
}

/// Loads a text, or says why not: the code, and for the log.
fn load(s: &State, text: &[u8]) -> Result<parse::Module, (Code, String)> {
    let text = std::str::from_utf8(text).map_err(|_| (200, "no PTX".to_string()))?;
    let (version, target) = parse::header(text).map_err(|e| (218, e))?;
    if version > isa_of(s.driver) {
        return Err((222, format!("PTX ISA {}.{} is newer than the driver", version / 10, version % 10)));
    }
    let capability = (s.device.major * 10 + s.device.minor) as u32;
    let fits = match target.1 {
        Some('a') => target.0 == capability,
        Some(_) => target.0 <= capability && target.0 / 10 == capability / 10,
        None => target.0 <= capability,
    };
    if !fits {
        return Err((209, format!("sm_{} does not run on sm_{capability}", target.0)));
    }
    parse::module(text).map_err(|e| (218, e))
}

/// Where a log is wanted: its buffer and the slot of its size.
struct Log {
    buffer: *mut u8,
    size: *mut usize,
}

impl Log {
    /// # Safety
    /// The pointers are those of the caller of cuModuleLoadDataEx.
    unsafe fn write(&self, text: &str) {
        if self.buffer.is_null() || self.size.is_null() {
            return;
        }
        // SAFETY: the slot holds the size of the buffer; at most that much is written.
        unsafe {
            let n = text.len().min(self.size.read().saturating_sub(1));
            if self.size.read() > 0 {
                self.buffer.copy_from_nonoverlapping(text.as_ptr(), n);
                self.buffer.add(n).write(0);
            }
            self.size.write(n);
        }
    }
}

/// How long a load takes at least, in milliseconds.
static HOLD: AtomicU64 = AtomicU64::new(0);

/// Loads of modules take so many milliseconds, or until this is called again with fewer: as those of a real driver take time, in
/// which other calls are made. Counted by this name as loads begin.
#[unsafe(no_mangle)]
pub extern "C" fn emulator_hold_loads(milliseconds: u64) {
    HOLD.store(milliseconds, Ordering::SeqCst);
}

fn hold() {
    *lock().calls.entry("emulator_hold_loads".to_string()).or_insert(0) += 1;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(HOLD.load(Ordering::SeqCst)) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// See NVIDIA's documentation. Of the options those for logs are honoured.
///
/// # Safety
/// `image` is a C string; the arrays have `count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    out: Out<usize>,
    image: *const c_char,
    count: c_uint,
    options: *const c_int,
    values: *mut *mut c_void,
) -> Code {
    // Before the lock that all calls take.
    hold();
    call("cuModuleLoadDataEx", Need::Context, |s| {
        if image.is_null() || count > 0 && (options.is_null() || values.is_null()) {
            return Err(1);
        }
        let mut logs = [3, 5].map(|_| Log { buffer: std::ptr::null_mut(), size: std::ptr::null_mut() });
        for i in 0..count as usize {
            // SAFETY: both arrays have `count` elements.
            let (option, value) = unsafe { (*options.add(i), values.add(i)) };
            match option {
                // SAFETY: as above; the value of a buffer's option is its address.
                3 | 5 => logs[option as usize / 4].buffer = unsafe { *value }.cast(),
                // The slot itself holds the size.
                4 | 6 => logs[option as usize / 5].size = value.cast(),
                _ => {}
            }
        }
        // SAFETY: the caller's promise.
        match load(s, unsafe { CStr::from_ptr(image) }.to_bytes()) {
            Ok(module) => {
                // SAFETY: the log is the caller's.
                unsafe { logs[0].write("") };
                let handle = s.handle();
                put(out, handle)?;
                s.modules.insert(handle, module);
                Ok(())
            }
            Err((code, text)) => {
                // SAFETY: the log is the caller's.
                unsafe { logs[1].write(&format!("emulator: {text}\n")) };
                Err(code)
            }
        }
    })
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: usize) -> Code {
    call("cuModuleUnload", Need::Context, |s| {
        s.functions.retain(|_, f| f.module != module);
        s.modules.remove(&module).map(drop).ok_or(400)
    })
}

/// See NVIDIA's documentation.
///
/// # Safety
/// `name` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(out: Out<usize>, module: usize, name: *const c_char) -> Code {
    call("cuModuleGetFunction", Need::Context, |s| {
        if name.is_null() {
            return Err(1);
        }
        // SAFETY: the caller's promise.
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

fn entry(s: &State, function: usize) -> Result<(&Entry, &Function), Code> {
    let f = s.functions.get(&function).ok_or(400)?;
    Ok((&s.modules.get(&f.module).ok_or(400)?.entries[f.entry], f))
}

/// Dynamic shared memory that a launch may use.
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
            // A hint about the division of L1.
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
            // What a compiler would make of it is not known; that many fit.
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

/// See NVIDIA's documentation. Registers are not counted.
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
        // Each block costs a KiB more.
        let by_shared = (s.device.shared + 1024) / (e.shared_bytes as i32 + dynamic as i32 + 1024);
        put(out, by_threads.min(by_shared).min(32))
    })
}

/// See NVIDIA's documentation. The kernel has run when the call returns; what it did wrong, later calls say.
///
/// # Safety
/// `params` has a pointer to each argument.
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
            // SAFETY: the caller's promise: a pointer for each parameter, to as many bytes as it has.
            unsafe {
                let from = *params.add(i);
                if from.is_null() {
                    return Err(1);
                }
                bytes[p.offset..].as_mut_ptr().copy_from_nonoverlapping(from.cast(), p.size);
            }
        }
        if s.fault.is_some() {
            // The context is lost, though no one has been told.
            return Ok(());
        }
        let globals = s.modules.values().flat_map(|m| &m.globals).map(|(_, b)| b);
        let map = Map::new(s.memory.values().chain(globals).map(|b| (b.address(), b.len() as u64)));
        // SAFETY: all of it is the state's, which is locked.
        let (counters, result) = unsafe { launch(e, &bytes, map, grid, s.options) };
        s.counters.add(&counters);
        if let Err(fault) = result {
            s.fault = Some((fault.code, false));
            s.fault_text = fault.text;
        }
        Ok(())
    })
}

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
