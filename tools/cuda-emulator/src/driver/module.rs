//! Modules: loading and unloading.

use super::{Out, put};
use crate::parse;
use crate::state::{Code, Need, State, call, lock};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Returns the newest version of the PTX ISA that a driver knows, as ten times the major number plus the minor one.
fn isa_of(driver: i32) -> u32 {
    match (driver / 1000, driver % 1000 / 10) {
        (..11, _) => 65,
        (11, minor) => 70 + minor as u32,
        (12, minor @ 0..=5) => 80 + minor as u32,
        (12, minor) => 79 + minor as u32,
        (major, minor) => (major as u32 - 4) * 10 + minor as u32,
    }
}

/// Loads a text. An error consists of its code and a text for the log.
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

/// The place for a log: its buffer, and the slot that holds the size of the buffer and receives that of the log.
struct Log {
    buffer: *mut u8,
    size: *mut usize,
}

impl Log {
    /// Writes a log, cut to the size of the buffer.
    ///
    /// # Safety
    /// The pointers must be those of the caller of cuModuleLoadDataEx.
    unsafe fn write(&self, text: &str) {
        if self.buffer.is_null() || self.size.is_null() {
            return;
        }
        // SAFETY: the slot holds the size of the buffer, and at most that many bytes are written.
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

/// The least time that a load takes, in milliseconds.
static HOLD: AtomicU64 = AtomicU64::new(0);

/// Makes loads of modules take that many milliseconds, or until another call sets a shorter time. Tests use it to make
/// other calls during a load, which takes time with a real driver. When a load starts to wait, it is counted as a call
/// of this function, so that a test can see it.
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

/// See NVIDIA's documentation. Of the options, only those for logs have an effect.
///
/// # Safety
/// `image` must be a C string, and the arrays must have `count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    out: Out<usize>,
    image: *const c_char,
    count: c_uint,
    options: *const c_int,
    values: *mut *mut c_void,
) -> Code {
    // The wait must come before `call`, which locks the state for all threads.
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
                // SAFETY: the array has the element; the value of an option for a buffer is its address.
                3 | 5 => logs[option as usize / 4].buffer = unsafe { *value }.cast(),
                // The value of an option for a size is the size itself, so its slot is the place for the result.
                4 | 6 => logs[option as usize / 5].size = value.cast(),
                _ => {}
            }
        }
        // SAFETY: the caller guarantees that `image` is a C string.
        match load(s, unsafe { CStr::from_ptr(image) }.to_bytes()) {
            Ok(module) => {
                // SAFETY: the pointers are those of the caller.
                unsafe { logs[0].write("") };
                let handle = s.handle();
                put(out, handle)?;
                s.modules.insert(handle, module);
                Ok(())
            }
            Err((code, text)) => {
                // SAFETY: the pointers are those of the caller.
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
