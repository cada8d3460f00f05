//! Models from safetensors bytes and from files. Reading a header allocates. What remains after a call is in
//! the caller's memory or, for [`cw_model_open`], in memory that [`cw_model_close`] frees.

use core::ffi::{CStr, c_char, c_void};
use core::ptr::null_mut;
use std::boxed::Box;
use std::string::ToString;
use std::vec::Vec;

use super::args::{Output, copy, cw_model_config, cw_model_file, slice};
use super::message::Message;
use super::model::{Room, cw_model, run_on};
use super::span::{self, Span, apart};
use super::status::*;
use super::{Result, guard, size};
use crate::files::{self, Error, ModelFile, Options};
use crate::nn::{BlockWeights, Model};

/// The checked fields of a `cw_model_file`.
struct Source {
    bytes: *const u8,
    len: usize,
    span: Span,
    json: *const u8,
    json_len: usize,
    message: Message,
}

impl Source {
    fn new(file: &cw_model_file) -> Result<Self> {
        let (len, json_len) = (size(file.bytes_len)?, size(file.json_len)?);
        let message = Message::new(file.message, file.message_bytes)?;
        let json_len = if file.json.is_null() { 0 } else { json_len };
        let this = Self {
            bytes: file.bytes.cast(),
            len,
            span: span::of(file.bytes.cast::<u8>(), len)?,
            json: file.json.cast(),
            json_len,
            message,
        };
        apart(&[message.span], &[this.span, span::of(this.json, json_len)?])?;
        Ok(this)
    }

    /// # Safety
    /// The spans that `new` has checked can be read for 'a.
    unsafe fn parse<'a>(&self) -> core::result::Result<ModelFile<'a>, Error> {
        // SAFETY: the caller's promise.
        let (bytes, options) = unsafe { (slice(self.bytes, self.len), self.options()?) };
        ModelFile::parse(bytes, &options)
    }

    unsafe fn options(&self) -> core::result::Result<Options, Error> {
        if self.json.is_null() {
            return Ok(Options::default());
        }
        // SAFETY: the caller's promise.
        let text = unsafe { slice(self.json, self.json_len) };
        match core::str::from_utf8(text) {
            Ok(text) => Options::from_json(text),
            Err(error) => Err(Error::Json { what: "the configuration", reason: error.to_string() }),
        }
    }
}

/// Writes an error's message for the caller and returns its status.
fn say(message: Message, error: &Error) -> Status {
    message.say(error);
    code(error)
}

fn code(error: &Error) -> Status {
    Status(match error {
        Error::Io(_) => CW_IO,
        Error::File { error, .. } => return code(error),
        Error::Model(error) => return (*error).into(),
        Error::Truncated { .. } | Error::Json { .. } | Error::Header { .. } | Error::Size { .. } => CW_FILE,
        Error::MissingOption { .. } | Error::BadOption { .. } => CW_OPTION,
        _ => CW_PARAMETER,
    })
}

/// Writes the configuration that a file and the options beside it make.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_model_file_config(
    file: *const cw_model_file,
    config: *mut cw_model_config,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, passed on.
        let source = Source::new(&unsafe { copy(file)? })?;
        // SAFETY: likewise.
        let config = unsafe { Output::new(config)? };
        apart(&[config.span, source.message.span], &[source.span])?;
        // SAFETY: `Source::new` has checked the spans.
        let model = unsafe { source.parse() }.map_err(|error| say(source.message, &error))?;
        config.write(model.config().into());
        Ok(())
    })
}

/// Loads a model from bytes into the caller's memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_model_load(
    file: *const cw_model_file,
    memory: *mut c_void,
    memory_bytes: u64,
    model: *mut *const cw_model,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, passed on.
        let file = unsafe { copy(file)? };
        let source = Source::new(&file)?;
        let (isa, threads) = run_on(file.isa, file.threads)?;
        let to = span::of(model, 1)?;
        // SAFETY: `Source::new` has checked the spans; the bytes stay as long as the model is used, by the
        // caller's promise.
        let parsed: ModelFile<'static> =
            unsafe { source.parse() }.map_err(|error| say(source.message, &error))?;
        let room = Room::new(parsed.config(), memory, memory_bytes)?;
        apart(&[room.span, to, source.message.span], &[source.span])?;
        if !parsed.is_borrowed() {
            return Err(Status(CW_MISALIGNED));
        }
        // SAFETY: the room was checked, and is apart from everything else.
        let handle = unsafe {
            room.fill(parsed.config(), isa, threads, |blocks| {
                parsed.borrowed_weights(blocks).map_err(|error| say(source.message, &error))
            })?
        };
        // SAFETY: not null and aligned, checked above.
        unsafe { model.write(handle) };
        Ok(())
    })
}

/// Everything that a model from a path consists of. Each part borrows from those after it.
struct Owner {
    model: *mut cw_model,
    blocks: *mut Vec<BlockWeights<'static>>,
    file: *mut ModelFile<'static>,
    bytes: *mut Vec<u8>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        /// Frees a pointer from `Box::into_raw`, unless it is null.
        unsafe fn free<T>(pointer: *mut T) {
            if !pointer.is_null() {
                // SAFETY: the caller's promise.
                drop(unsafe { Box::from_raw(pointer) });
            }
        }
        // SAFETY: each is null or from `Box::into_raw`, and what borrows is freed before what it borrows
        // from.
        unsafe {
            free(self.model);
            free(self.blocks);
            free(self.file);
            free(self.bytes);
        }
    }
}

/// Opens a model from a path, in memory that the library allocates.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_model_open(
    path: *const c_char,
    file: *const cw_model_file,
    model: *mut *const cw_model,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, passed on.
        let file = unsafe { copy(file)? };
        let mut source = Source::new(&file)?;
        let message = source.message;
        let (isa, threads) = run_on(file.isa, file.threads)?;
        apart(&[span::of(model, 1)?, message.span], &[])?;
        span::of(path, 1)?;
        if !file.bytes.is_null() {
            return Err(Status(CW_RANGE));
        }
        // SAFETY: not null, as just checked; that a zero ends the string is the caller's promise.
        let path = unsafe { CStr::from_ptr(path) };
        let path = path.to_str().map_err(|_| Status(CW_IO))?;

        let mut owner =
            Box::new(Owner { model: null_mut(), blocks: null_mut(), file: null_mut(), bytes: null_mut() });
        let bytes = files::read(path).map_err(|error| say(message, &error))?;
        (source.bytes, source.len) = (bytes.as_ptr(), bytes.len());
        owner.bytes = Box::into_raw(Box::new(bytes));
        // SAFETY: the bytes do not move until `owner` frees them, after everything else.
        let parsed = unsafe { source.parse() }.map_err(|error| say(message, &error.in_file(path)))?;
        owner.file = Box::into_raw(Box::new(parsed));
        owner.blocks = Box::into_raw(Box::default());
        // SAFETY: the file and the blocks neither move nor are freed before the model is.
        let whole: Model<'static> = unsafe { (*owner.file).model(&mut *owner.blocks, isa, threads) }
            .map_err(|error| say(message, &error))?;
        let handle = Box::into_raw(Box::new(cw_model::new(whole)));
        owner.model = handle;
        let owner = Box::into_raw(owner);
        // SAFETY: `handle` and `owner` are this function's own; `model` was checked above.
        unsafe {
            (*handle).owner = owner.cast();
            model.write(handle);
        }
        Ok(())
    })
}

/// Frees everything that [`cw_model_open`] has allocated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_model_close(model: *const cw_model) -> i32 {
    guard(|| {
        if model.is_null() {
            return Ok(());
        }
        // SAFETY: the caller's promise, passed on.
        let owner = unsafe { cw_model::get(model)? }.owner;
        if owner.is_null() {
            return Err(Status(CW_MODEL));
        }
        // SAFETY: `cw_model_open` made both, and the mark was there, so the model has not been closed before.
        unsafe {
            cw_model::forget(model.cast_mut());
            drop(Box::from_raw(owner.cast::<Owner>()));
        }
        Ok(())
    })
}
