//! The CUDA driver's library, opened at run time, and the few functions of it that are used. A program with
//! the feature `cuda` can be built and started without a GPU and without CUDA.
#![allow(unsafe_code, reason = "functions of a C library")]

use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_void};
use std::mem::ManuallyDrop;
use std::ptr;
use std::string::{String, ToString};

use libloading::Library;

use super::error::{Error, Result};

/// `NEED` is the first version that supports PTX ISA 7.0, and `KNOWS_HOPPER` the first that supports ISA 8.0,
/// which Hopper's own kernels need.
const NEED: i32 = 11_000;
const KNOWS_HOPPER: i32 = 12_000;

#[cfg(windows)]
const LIBRARY: &str = "nvcuda.dll";
#[cfg(not(windows))]
const LIBRARY: &str = "libcuda.so.1";

/// Result codes of the driver that are handled separately.
pub(super) mod code {
    pub(crate) const OUT_OF_MEMORY: i32 = 2;
    pub(crate) const NO_DEVICE: i32 = 100;
    /// No binary for this GPU, PTX that is invalid, PTX that is too new, no compiler for PTX.
    pub(crate) const PTX: [i32; 4] = [209, 218, 222, 221];
    pub(crate) const JIT_DISABLED: i32 = 223;
}

pub(super) type Context = *mut c_void;
pub(super) type Module = *mut c_void;
pub(super) type Function = *mut c_void;
pub(super) type RawStream = *mut c_void;

macro_rules! functions {
    ($($name:ident: $symbol:literal($($argument:ty),*);)*) => {
        /// The driver's functions, by their names without `cu` and version.
        #[derive(Debug)]
        struct Functions {
            $($name: unsafe extern "system" fn($($argument),*) -> c_int,)*
        }

        impl Functions {
            /// # Safety
            /// The library is the CUDA driver, or acts as one.
            unsafe fn load(library: &Library) -> Result<Self> {
                Ok(Self {
                    $($name: {
                        // SAFETY: these are the types that CUDA's documentation of the driver API gives.
                        let found = unsafe { library.get(concat!($symbol, "\0").as_bytes()) };
                        *found.map_err(|e| Error::MissingSymbol { symbol: $symbol, text: e.to_string() })?
                    },)*
                })
            }
        }
    };
}

functions! {
    init: "cuInit"(c_uint);
    driver_version: "cuDriverGetVersion"(*mut c_int);
    device_count: "cuDeviceGetCount"(*mut c_int);
    device_get: "cuDeviceGet"(*mut c_int, c_int);
    device_name: "cuDeviceGetName"(*mut c_char, c_int, c_int);
    device_attribute: "cuDeviceGetAttribute"(*mut c_int, c_int, c_int);
    context_retain: "cuDevicePrimaryCtxRetain"(*mut Context, c_int);
    context_release: "cuDevicePrimaryCtxRelease_v2"(c_int);
    context_push: "cuCtxPushCurrent_v2"(Context);
    context_pop: "cuCtxPopCurrent_v2"(*mut Context);
    context_synchronize: "cuCtxSynchronize"();
    module_load: "cuModuleLoadDataEx"(*mut Module, *const c_void, c_uint, *mut c_int, *mut *mut c_void);
    module_unload: "cuModuleUnload"(Module);
    module_function: "cuModuleGetFunction"(*mut Function, Module, *const c_char);
    function_set: "cuFuncSetAttribute"(Function, c_int, c_int);
    launch: "cuLaunchKernel"(
        Function, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, RawStream, *mut *mut c_void, *mut *mut c_void
    );
    alloc: "cuMemAlloc_v2"(*mut u64, usize);
    free: "cuMemFree_v2"(u64);
    to_device: "cuMemcpyHtoDAsync_v2"(u64, *const c_void, usize, RawStream);
    to_host: "cuMemcpyDtoHAsync_v2"(*mut c_void, u64, usize, RawStream);
    fill: "cuMemsetD8Async"(u64, u8, usize, RawStream);
    synchronize: "cuStreamSynchronize"(RawStream);
    error_text: "cuGetErrorString"(c_int, *mut *const c_char);
}

/// The driver. It is never closed, because other parts of the program may use it and its threads do not end.
#[derive(Debug)]
pub(super) struct Driver {
    functions: Functions,
    version: i32,
    _library: ManuallyDrop<Library>,
}

/// The numbers of attributes for `cuDeviceGetAttribute`.
#[derive(Clone, Copy)]
pub(super) enum Attribute {
    Multiprocessors = 16,
    Major = 75,
    Minor = 76,
    SharedMemoryOptIn = 97,
}

impl Driver {
    /// Opens the driver, under its usual name or at a path, and initialises it.
    ///
    /// # Safety
    /// The library that is opened is the CUDA driver, or acts as one: its initialisers run.
    pub(super) unsafe fn open(path: Option<&OsStr>) -> Result<Self> {
        let path = path.unwrap_or(OsStr::new(LIBRARY));
        // SAFETY: the caller's promise.
        let library = unsafe { Library::new(path) };
        let library = ManuallyDrop::new(library.map_err(|e| Error::NoDriver { text: e.to_string() })?);
        // SAFETY: the caller's promise.
        let functions = unsafe { Functions::load(&library) }?;
        let mut driver = Self { functions, version: 0, _library: library };
        // SAFETY: the version may be queried before `init`.
        let version = unsafe {
            driver.get("cuDriverGetVersion", |version| (driver.functions.driver_version)(version))
        }?;
        if version < NEED {
            return Err(Error::DriverTooOld { version, need: NEED });
        }
        driver.version = version;
        // SAFETY: 0 is the only value that the flags may have.
        match unsafe { (driver.functions.init)(0) } {
            code::NO_DEVICE => {
                Err(Error::NoDevice { ordinal: 0, count: 0, text: driver.text(code::NO_DEVICE) })
            }
            code => driver.check("cuInit", code).map(|()| driver),
        }
    }

    /// Whether the driver compiles Hopper's own kernels.
    pub(super) fn knows_hopper(&self) -> bool {
        self.version >= KNOWS_HOPPER
    }

    /// The driver's text for a result code.
    pub(super) fn text(&self, code: c_int) -> String {
        let mut text = ptr::null();
        // SAFETY: the function writes a pointer to a static string, or null for a result that it does not
        // know.
        unsafe {
            (self.functions.error_text)(code, &mut text);
            if text.is_null() {
                "unknown error".into()
            } else {
                CStr::from_ptr(text).to_string_lossy().into()
            }
        }
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<()> {
        if code == 0 { Ok(()) } else { Err(Error::Driver { call, code, text: self.text(code) }) }
    }

    /// The value that a function writes.
    ///
    /// # Safety
    /// `f` writes a value where it returns 0.
    unsafe fn get<T: Default>(&self, call: &'static str, f: impl FnOnce(*mut T) -> c_int) -> Result<T> {
        let mut value = T::default();
        let code = f(&mut value);
        self.check(call, code).map(|()| value)
    }

    pub(super) fn device(&self, ordinal: usize) -> Result<c_int> {
        // SAFETY: the pointers are to numbers.
        unsafe {
            let count = self.get("cuDeviceGetCount", |count| (self.functions.device_count)(count))?;
            let count = usize::try_from(count).unwrap_or(0);
            match c_int::try_from(ordinal) {
                Ok(number) if ordinal < count => {
                    self.get("cuDeviceGet", |device| (self.functions.device_get)(device, number))
                }
                _ => Err(Error::NoDevice { ordinal, count, text: String::new() }),
            }
        }
    }

    pub(super) fn name(&self, device: c_int) -> Result<String> {
        let mut name = [0u8; 256];
        // SAFETY: the buffer has the length given; the driver ends the name with a zero.
        let code = unsafe { (self.functions.device_name)(name.as_mut_ptr().cast(), 255, device) };
        self.check("cuDeviceGetName", code)?;
        let len = name.iter().position(|byte| *byte == 0).unwrap_or(0);
        Ok(String::from_utf8_lossy(&name[..len]).into())
    }

    pub(super) fn attribute(&self, attribute: Attribute, device: c_int) -> Result<i32> {
        // SAFETY: the pointer is to a number.
        unsafe {
            self.get("cuDeviceGetAttribute", |value| {
                (self.functions.device_attribute)(value, attribute as c_int, device)
            })
        }
    }

    pub(super) fn retain(&self, device: c_int) -> Result<Context> {
        let mut context = ptr::null_mut();
        // SAFETY: the pointer is to a handle.
        let code = unsafe { (self.functions.context_retain)(&mut context, device) };
        self.check("cuDevicePrimaryCtxRetain", code).map(|()| context)
    }

    pub(super) fn release(&self, device: c_int) -> Result<()> {
        // SAFETY: it is a device's number.
        self.check("cuDevicePrimaryCtxRelease", unsafe { (self.functions.context_release)(device) })
    }

    pub(super) fn push(&self, context: Context) -> Result<()> {
        // SAFETY: the context is retained; the driver returns an error where it is not.
        self.check("cuCtxPushCurrent", unsafe { (self.functions.context_push)(context) })
    }

    pub(super) fn pop(&self) -> Result<()> {
        let mut context = ptr::null_mut();
        // SAFETY: the pointer is to a handle.
        self.check("cuCtxPopCurrent", unsafe { (self.functions.context_pop)(&mut context) })
    }

    /// Waits for all work of the current context.
    pub(super) fn synchronize_context(&self) -> Result<()> {
        // SAFETY: the function takes nothing, and returns an error where no context is current.
        self.check("cuCtxSynchronize", unsafe { (self.functions.context_synchronize)() })
    }

    /// Compiles a module from PTX that ends with a zero.
    pub(super) fn load(&self, name: &str, ptx: &CStr) -> Result<Module> {
        const ERROR_LOG: c_int = 5;
        const ERROR_LOG_BYTES: c_int = 6;
        let mut log = [0u8; 4096];
        let mut options = [ERROR_LOG, ERROR_LOG_BYTES];
        let mut values = [log.as_mut_ptr().cast(), ptr::without_provenance_mut(log.len() - 1)];
        let mut module = ptr::null_mut();
        // SAFETY: there are as many options as values; the log has the bytes that it is said to have, and one
        // more.
        let code = unsafe {
            let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
            (self.functions.module_load)(&mut module, ptx.as_ptr().cast(), 2, options, values)
        };
        if code == code::JIT_DISABLED {
            return Err(Error::JitDisabled { text: self.text(code) });
        }
        if code::PTX.contains(&code) {
            let len = log.iter().position(|byte| *byte == 0).unwrap_or(0);
            let log = String::from_utf8_lossy(&log[..len]);
            let text = std::format!("{} {}", self.text(code), log.trim());
            return Err(Error::UnsupportedPtx { module: name.into(), text: text.trim().into() });
        }
        self.check("cuModuleLoadDataEx", code).map(|()| module)
    }

    /// # Safety
    /// No function of the module will be launched again, and all that were launched have ended.
    pub(super) unsafe fn unload(&self, module: Module) -> Result<()> {
        // SAFETY: the module is loaded, and is unloaded for the last time, by the caller's promise.
        self.check("cuModuleUnload", unsafe { (self.functions.module_unload)(module) })
    }

    /// # Safety
    /// The module is loaded.
    pub(super) unsafe fn function(&self, module: Module, name: &CStr) -> Result<Function> {
        let mut function = ptr::null_mut();
        // SAFETY: the pointer is to a handle, and the string ends with a zero.
        let code = unsafe { (self.functions.module_function)(&mut function, module, name.as_ptr()) };
        self.check("cuModuleGetFunction", code).map(|()| function)
    }

    /// Allows launches of a function up to this many bytes of shared memory.
    ///
    /// # Safety
    /// The function's module is loaded.
    pub(super) unsafe fn allow_shared(&self, function: Function, bytes: c_int) -> Result<()> {
        const MAX_DYNAMIC_SHARED_BYTES: c_int = 8;
        // SAFETY: it is a function of a loaded module.
        let code = unsafe { (self.functions.function_set)(function, MAX_DYNAMIC_SHARED_BYTES, bytes) };
        self.check("cuFuncSetAttribute", code)
    }

    /// # Safety
    /// The arguments are those of the function, and what they point to may be read and written until the
    /// stream's work is done.
    pub(super) unsafe fn launch(
        &self,
        function: Function,
        [gx, gy, gz]: [u32; 3],
        threads: u32,
        shared: u32,
        stream: RawStream,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        let code = unsafe {
            let (arguments, none) = (arguments.as_mut_ptr(), ptr::null_mut());
            (self.functions.launch)(function, gx, gy, gz, threads, 1, 1, shared, stream, arguments, none)
        };
        self.check("cuLaunchKernel", code)
    }

    pub(super) fn alloc(&self, bytes: usize) -> Result<u64> {
        let mut address = 0;
        // SAFETY: the pointer is to an address.
        match unsafe { (self.functions.alloc)(&mut address, bytes) } {
            code @ code::OUT_OF_MEMORY => Err(Error::OutOfMemory { bytes, text: self.text(code) }),
            code => self.check("cuMemAlloc", code).map(|()| address),
        }
    }

    /// # Safety
    /// The memory is from `alloc`, and nothing will use it again.
    pub(super) unsafe fn free(&self, address: u64) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check("cuMemFree", unsafe { (self.functions.free)(address) })
    }

    /// Copies to the device, and waits until the copy is done.
    ///
    /// # Safety
    /// `bytes` bytes may be read at `from` and written at `to`.
    pub(super) unsafe fn copy_to_device(
        &self,
        to: u64,
        from: *const c_void,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check("cuMemcpyHtoDAsync", unsafe { (self.functions.to_device)(to, from, bytes, stream) })?;
        self.synchronize(stream)
    }

    /// Copies from the device, and waits until the copy is done.
    ///
    /// # Safety
    /// `bytes` bytes may be read at `from` and written at `to`.
    pub(super) unsafe fn copy_to_host(
        &self,
        to: *mut c_void,
        from: u64,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check("cuMemcpyDtoHAsync", unsafe { (self.functions.to_host)(to, from, bytes, stream) })?;
        self.synchronize(stream)
    }

    /// # Safety
    /// `bytes` bytes may be written at `at`.
    pub(super) unsafe fn fill(&self, at: u64, byte: u8, bytes: usize, stream: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check("cuMemsetD8Async", unsafe { (self.functions.fill)(at, byte, bytes, stream) })
    }

    pub(super) fn synchronize(&self, stream: RawStream) -> Result<()> {
        // SAFETY: it is a stream, by the promise with which it was made.
        self.check("cuStreamSynchronize", unsafe { (self.functions.synchronize)(stream) })
    }
}
