//! One GPU: its context, its streams, and the kernels that were compiled for it.
#![allow(unsafe_code, reason = "handles of the driver cross threads")]

use std::collections::HashMap;
use std::ffi::{OsStr, c_int, c_void};
use std::fmt;
use std::string::String;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use super::driver::{Attribute, Context, Driver, Function, Module, RawStream};
use super::error::{Error, Result};
use super::kernels::Kernel;

/// A GPU, by its primary context, which is the one that torch, candle and cudarc use. Each call makes that
/// context current for itself and leaves the caller's as it was. Clones are the same device; buffers,
/// attentions and models hold one too. Dropping the last one waits for all work of the context and unloads
/// the kernels: this must not happen while a stream is captured into a graph, nor before graphs that launch
/// the kernels are gone.
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
    wgmma: bool,
}

struct Inner {
    driver: Driver,
    device: c_int,
    context: Context,
    name: String,
    capability: (i32, i32),
    multiprocessors: usize,
    shared_memory: usize,
    kernels: RwLock<HashMap<Kernel, Arc<Slot>>>,
}

/// The place of a kernel once it has been compiled.
#[derive(Default)]
struct Slot {
    loaded: OnceLock<Loaded>,
    /// Held while the kernel is compiled, which takes up to seconds: only calls that need the same kernel
    /// wait.
    compiling: Mutex<()>,
}

/// A kernel, alone in its module.
struct Loaded {
    module: Module,
    function: Function,
}

// SAFETY: the driver's functions may be called from any thread, with handles made on any other thread.
unsafe impl Send for Inner {}
// SAFETY: as above; what is modified here is behind locks.
unsafe impl Sync for Inner {}

/// A queue of work: a `CUstream` of the device's primary context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(pub(super) RawStream);

// SAFETY: it is a handle, which the driver's functions take on any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// The default stream.
    pub const DEFAULT: Self = Self(std::ptr::null_mut());

    /// A stream of another library, for example `torch.cuda.current_stream().cuda_stream`.
    ///
    /// # Safety
    /// The stream is one of the device that it is used with, and lives as long as its work.
    pub const unsafe fn from_raw(stream: *mut c_void) -> Self {
        Self(stream)
    }
}

/// The device's context, which is current until this is dropped.
pub(super) struct Current<'a>(&'a Inner);

impl Drop for Current<'_> {
    fn drop(&mut self) {
        // At the end of a program the driver may be gone. A drop cannot return an error, and nothing is left
        // to undo.
        let _ = self.0.driver.pop();
    }
}

impl Device {
    /// The device with this number, counted from 0.
    ///
    /// # Errors
    /// No driver, or one that is incomplete or too old; no such device, or one below compute capability 8.0.
    pub fn open(ordinal: usize) -> Result<Self> {
        // SAFETY: this is the name under which the CUDA driver is installed.
        Self::new(unsafe { Driver::open(None) }?, ordinal)
    }

    /// As [`Device::open`], with the driver's library at a path: for a library that the loader does not find,
    /// or a stand-in for it.
    ///
    /// # Errors
    /// As for [`Device::open`].
    ///
    /// # Safety
    /// The library is the CUDA driver, or acts as one.
    pub unsafe fn open_with(driver: impl AsRef<OsStr>, ordinal: usize) -> Result<Self> {
        // SAFETY: the caller's promise.
        Self::new(unsafe { Driver::open(Some(driver.as_ref())) }?, ordinal)
    }

    fn new(driver: Driver, ordinal: usize) -> Result<Self> {
        let device = driver.device(ordinal)?;
        let name = driver.name(device)?;
        let number = |attribute| driver.attribute(attribute, device);
        let capability = (number(Attribute::Major)?, number(Attribute::Minor)?);
        if capability < (8, 0) {
            return Err(Error::Capability { name, capability });
        }
        let multiprocessors = usize::try_from(number(Attribute::Multiprocessors)?).unwrap_or(1);
        let shared_memory = usize::try_from(number(Attribute::SharedMemoryOptIn)?).unwrap_or(0);
        let wgmma = capability == (9, 0) && driver.knows_hopper();
        let context = driver.retain(device)?;
        let kernels = RwLock::default();
        let inner =
            Inner { driver, device, context, name, capability, multiprocessors, shared_memory, kernels };
        Ok(Self { inner: Arc::new(inner), wgmma })
    }

    /// The device's name, as the driver gives it.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Compute capability, major and minor.
    pub fn capability(&self) -> (i32, i32) {
        self.inner.capability
    }

    /// The number of multiprocessors.
    pub fn multiprocessors(&self) -> usize {
        self.inner.multiprocessors
    }

    /// Bytes of shared memory that one block of threads may have.
    pub fn shared_memory(&self) -> usize {
        self.inner.shared_memory
    }

    /// Whether Hopper's own kernels are launched: on Hopper, with a driver that compiles them.
    #[doc(hidden)]
    pub fn has_wgmma(&self) -> bool {
        self.wgmma
    }

    /// The same device with the kernels that all GPUs run, so that tests and measurements on Hopper cover
    /// both.
    #[doc(hidden)]
    #[must_use]
    pub fn without_wgmma(&self) -> Self {
        Self { wgmma: false, ..self.clone() }
    }

    /// Waits until all work on a stream is done.
    ///
    /// # Errors
    /// Errors in that work.
    pub fn synchronize(&self, stream: Stream) -> Result<()> {
        let _current = self.current()?;
        self.driver().synchronize(stream.0)
    }

    pub(super) fn driver(&self) -> &Driver {
        &self.inner.driver
    }

    pub(super) fn current(&self) -> Result<Current<'_>> {
        self.inner.driver.push(self.inner.context)?;
        Ok(Current(&self.inner))
    }

    /// Refuses memory that is known to be another device's. A device that was opened twice is one device,
    /// because it has one primary context.
    pub(super) fn check_memory(&self, what: &'static str, of: Option<&Device>) -> Result<()> {
        match of {
            Some(device) if device.inner.context != self.inner.context => Err(Error::OtherDevice { what }),
            _ => Ok(()),
        }
    }

    /// Queues a kernel, which is compiled first if it has not been.
    ///
    /// # Safety
    /// `A` is what the kernel takes, and what it points to may be read and written until the stream's work is
    /// done. The context is current.
    pub(super) unsafe fn launch<const N: usize>(
        &self,
        kernel: Kernel,
        grid: [u32; 3],
        threads: u32,
        shared: usize,
        stream: Stream,
        mut arguments: [*mut c_void; N],
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let function = self.function(kernel)?;
        let shared = u32::try_from(shared).unwrap_or(u32::MAX);
        // SAFETY: the caller's promise.
        unsafe { self.driver().launch(function, grid, threads, shared, stream.0, &mut arguments) }
    }

    /// Compiles those of the kernels that have not been compiled.
    pub(super) fn prepare(&self, kernels: impl IntoIterator<Item = Kernel>) -> Result<()> {
        let _current = self.current()?;
        kernels.into_iter().try_for_each(|kernel| self.function(kernel).map(drop))
    }

    fn function(&self, kernel: Kernel) -> Result<Function> {
        let slot = self.slot(kernel);
        if let Some(loaded) = slot.loaded.get() {
            return Ok(loaded.function);
        }
        // A panic elsewhere leaves nothing half done behind these locks.
        let _turn = slot.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = slot.loaded.get() {
            return Ok(loaded.function);
        }
        let loaded = self.load(kernel)?;
        Ok(slot.loaded.get_or_init(|| loaded).function)
    }

    fn slot(&self, kernel: Kernel) -> Arc<Slot> {
        let kernels = self.inner.kernels.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = kernels.get(&kernel) {
            return slot.clone();
        }
        drop(kernels);
        self.inner.kernels.write().unwrap_or_else(PoisonError::into_inner).entry(kernel).or_default().clone()
    }

    /// Compiles a kernel. After an error nothing stays loaded.
    fn load(&self, kernel: Kernel) -> Result<Loaded> {
        let driver = self.driver();
        let module = driver.load(&kernel.name(), &kernel.text()?)?;
        // SAFETY: the module is loaded, and is unloaded only with the device, or here when no function was
        // found in it.
        unsafe {
            let function = driver.function(module, kernel.entry()).and_then(|function| {
                if kernel.takes_shared() {
                    let bytes = c_int::try_from(self.shared_memory()).unwrap_or(c_int::MAX);
                    driver.allow_shared(function, bytes)?;
                }
                Ok(function)
            });
            match function {
                Ok(function) => Ok(Loaded { module, function }),
                Err(error) => {
                    // Nothing was launched.
                    let _ = driver.unload(module);
                    Err(error)
                }
            }
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.capability();
        let less = if (major, minor) == (9, 0) && !self.wgmma { ", without wgmma" } else { "" };
        write!(f, "Device({}, compute capability {major}.{minor}{less})", self.name())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // As for `Current`, a drop cannot return an error.
        if self.driver.push(self.context).is_ok() {
            let kernels = self.kernels.get_mut().unwrap_or_else(PoisonError::into_inner);
            let mut loaded = kernels.values().filter_map(|slot| slot.loaded.get()).peekable();
            // Launches are not waited for, so kernels may still run. If it cannot be established that they
            // have ended, they stay loaded until the context goes.
            if loaded.peek().is_some() && self.driver.synchronize_context().is_ok() {
                for loaded in loaded {
                    // SAFETY: nothing can launch its function any more, and all launches have just ended.
                    let _ = unsafe { self.driver.unload(loaded.module) };
                }
            }
            let _ = self.driver.pop();
        }
        let _ = self.driver.release(self.device);
    }
}
