//! Attention on an NVIDIA GPU, for C: `include/chunkwise_cuda.h`.

use core::ffi::{c_char, c_void};
use std::boxed::Box;

use half::{bf16, f16};

use super::args::{Headed, Output, cw_attention, cw_call, cw_sizes, cw_tensor};
use super::message::Message;
use super::span::{apart, needed, of};
use super::status::*;
use super::{Result, arguments, bytes, guard};
use crate::attention::Op;
use crate::cuda::{Attention, DecodeStep, Device, Error, Forward, Precision, Slice, SliceMut, State, Stream};
use crate::element::Element;

/// A GPU. Its mark shows that it has been opened and not yet closed.
pub struct cw_cuda {
    mark: u64,
    device: Device,
}

const MARK: u64 = u64::from_le_bytes(*b"cw_cuda\0");

impl cw_cuda {
    unsafe fn get<'a>(cuda: *const Self) -> Result<&'a Self> {
        of(cuda, 1)?;
        // SAFETY: non-null and aligned, as just checked. That the pointer is to a `cw_cuda` is the caller's
        // promise, which the mark checks.
        let this = unsafe { &*cuda };
        if this.mark == MARK { Ok(this) } else { Err(Status(CW_MODEL)) }
    }

    /// The attention for the shapes of a call.
    fn attention(&self, attention: &cw_attention, call: &cw_call, message: Message) -> Result<Attention> {
        let config = attention.config(call)?;
        let precision = match attention.products {
            CW_PRODUCTS_BF16 => Precision::Bf16Dot,
            _ => Precision::F32,
        };
        Attention::new(&self.device, config, precision).map_err(|error| {
            message.say(&error);
            code(&error)
        })
    }
}

fn code(error: &Error) -> Status {
    match error {
        Error::Argument(error) => (*error).into(),
        Error::OutOfMemory { .. } | Error::Driver { .. } => Status(CW_GPU),
        _ => Status(CW_UNAVAILABLE),
    }
}

/// Opens a GPU by its number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cuda_open(
    ordinal: u32,
    cuda: *mut *const cw_cuda,
    message: *mut c_char,
    message_bytes: u64,
) -> i32 {
    guard(|| {
        let message = Message::new(message, message_bytes)?;
        apart(&[of(cuda, 1)?, message.span], &[])?;
        let device = Device::open(ordinal as usize).map_err(|error| {
            message.say(&error);
            code(&error)
        })?;
        let opened = Box::into_raw(Box::new(cw_cuda { mark: MARK, device }));
        // SAFETY: non-null and aligned, as just checked; the caller promises that it can be written.
        unsafe { cuda.write(opened) };
        Ok(())
    })
}

/// Closes a GPU.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cuda_close(cuda: *const cw_cuda) -> i32 {
    guard(|| {
        if cuda.is_null() {
            return Ok(());
        }
        // SAFETY: the caller's promise, passed on.
        unsafe { cw_cuda::get(cuda)? };
        // SAFETY: `cw_cuda_open` made it, and its mark was there.
        let mut this = unsafe { Box::from_raw(cuda.cast_mut()) };
        this.mark = 0;
        Ok(())
    })
}

/// Writes the sizes of the memory that calls need.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cuda_sizes(
    cuda: *const cw_cuda,
    attention: *const cw_attention,
    call: *const cw_call,
    sizes: *mut cw_sizes,
    message: *mut c_char,
    message_bytes: u64,
) -> i32 {
    guard(|| {
        let message = Message::new(message, message_bytes)?;
        // SAFETY: the caller's promise, passed on.
        let (attention, call) = unsafe { arguments(attention, call)? };
        // SAFETY: likewise.
        let (sizes, cuda) = unsafe { (Output::new(sizes)?, cw_cuda::get(cuda)?) };
        let attention = cuda.attention(&attention, &call, message)?;
        sizes.write(cw_sizes {
            state_bytes: bytes(attention.state_len())?,
            state_align: align_of::<f32>() as u64,
            forward_scratch_bytes: bytes(attention.workspace_len())?,
            decode_scratch_bytes: 0,
            scratch_align: align_of::<f32>() as u64,
            ..cw_sizes::DEFAULT
        });
        Ok(())
    })
}

/// Compiles the kernels of a forward and of a decode.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cuda_prepare(
    cuda: *const cw_cuda,
    attention: *const cw_attention,
    call: *const cw_call,
    message: *mut c_char,
    message_bytes: u64,
) -> i32 {
    guard(|| {
        let message = Message::new(message, message_bytes)?;
        // SAFETY: the caller's promise, passed on.
        let (attention, call, cuda) = unsafe {
            let (attention, call) = arguments(attention, call)?;
            (attention, call, cw_cuda::get(cuda)?)
        };
        let attention = cuda.attention(&attention, &call, message)?;
        let result = match dtype(&call)? {
            CW_BF16 => attention.prepare::<bf16>(),
            CW_F16 => attention.prepare::<f16>(),
            CW_F32 => attention.prepare::<f32>(),
            _ => return Err(Status(CW_UNKNOWN)),
        };
        result.map_err(|error| {
            message.say(&error);
            code(&error)
        })
    })
}

/// The element type that q, k, v and o share.
fn dtype(call: &cw_call) -> Result<u32> {
    let dtype = call.q.dtype;
    let same = [&call.k, &call.v, &call.o].iter().all(|tensor| tensor.dtype == dtype);
    if same { Ok(dtype) } else { Err(Status(CW_UNAVAILABLE)) }
}

/// Computes the outputs of all tokens of all heads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cuda_forward(
    cuda: *const cw_cuda,
    attention: *const cw_attention,
    call: *const cw_call,
    stream: *mut c_void,
    message: *mut c_char,
    message_bytes: u64,
) -> i32 {
    // SAFETY: the caller's promise, passed on.
    guard(|| unsafe {
        run(Op::Forward, cuda, attention, call, stream, Message::new(message, message_bytes)?)
    })
}

/// Decodes one token of all heads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cuda_decode(
    cuda: *const cw_cuda,
    attention: *const cw_attention,
    call: *const cw_call,
    stream: *mut c_void,
    message: *mut c_char,
    message_bytes: u64,
) -> i32 {
    // SAFETY: the caller's promise, passed on.
    guard(|| unsafe { run(Op::Decode, cuda, attention, call, stream, Message::new(message, message_bytes)?) })
}

unsafe fn run(
    op: Op,
    cuda: *const cw_cuda,
    attention: *const cw_attention,
    call: *const cw_call,
    stream: *mut c_void,
    message: Message,
) -> Result<()> {
    // SAFETY: the caller's promise, passed on.
    let (attention, call, cuda) = unsafe {
        let (attention, call) = arguments(attention, call)?;
        (attention, call, cw_cuda::get(cuda)?)
    };
    let attention = cuda.attention(&attention, &call, message)?;
    let dtype = dtype(&call)?;
    if op == Op::Decode {
        if call.state_in.is_null() || call.state_out.is_null() {
            return Err(Status(CW_NULL));
        }
        if attention.config().shape.len != 1 || call.state_in != call.state_out.cast_const() {
            return Err(Status(CW_SHAPE));
        }
    }
    // SAFETY: it is a stream of this device, by the caller's promise.
    let stream = unsafe { Stream::from_raw(stream) };
    // SAFETY: the caller's promise, passed on.
    let result = unsafe {
        match dtype {
            CW_BF16 => launch::<bf16>(op, &attention, &call, stream)?,
            CW_F16 => launch::<f16>(op, &attention, &call, stream)?,
            _ => launch::<f32>(op, &attention, &call, stream)?,
        }
    };
    result.map_err(|error| {
        message.say(&error);
        code(&error)
    })
}

/// Checks device addresses as host addresses are checked: null, aligned, apart. The device's memory is not
/// accessed.
unsafe fn launch<E: Element>(
    op: Op,
    attention: &Attention,
    call: &cw_call,
    stream: Stream,
) -> Result<crate::cuda::Result<()>> {
    let [q, k, v, o] = attention.config().shape.reach()?;
    let (all, scratch) =
        (attention.state_len(), if op == Op::Forward { attention.workspace_len() } else { 0 });
    let carried = call.state_in == call.state_out.cast_const();
    let state = |at: *const f32| {
        if at.is_null() { Ok(Default::default()) } else { needed(at, call.state_bytes, all) }
    };
    let read = [
        call.q.span(q)?,
        call.k.span(k)?,
        call.v.span(v)?,
        if carried { Default::default() } else { state(call.state_in)? },
    ];
    let scratch_span = needed(call.scratch.cast::<f32>(), call.scratch_bytes, scratch)?;
    apart(&[call.o.span(o)?, state(call.state_out)?, scratch_span], &read)?;
    // SAFETY: that these are addresses of such memory on the device is the caller's promise.
    unsafe {
        let input = |tensor: &cw_tensor, len| Slice::<E>::from_raw(tensor.data.addr() as u64, len);
        let (q, k, v) = (input(&call.q, q), input(&call.k, k), input(&call.v, v));
        let o = SliceMut::<E>::from_raw(call.o.data.addr() as u64, o);
        let initial = || Slice::from_raw(call.state_in.addr() as u64, all);
        let last = || SliceMut::from_raw(call.state_out.addr() as u64, all);
        if op == Op::Decode {
            return Ok(attention.decode(DecodeStep { q, k, v, state: last(), o }, stream));
        }
        let state = match (call.state_in.is_null(), call.state_out.is_null()) {
            (true, true) => State::Zero,
            (true, false) => State::Final(last()),
            (false, true) => State::Initial(initial()),
            (false, false) if carried => State::Carried(last()),
            (false, false) => State::InitialFinal(initial(), last()),
        };
        let workspace = SliceMut::from_raw(call.scratch.addr() as u64, scratch);
        Ok(attention.forward(Forward { q, k, v, state, o, workspace }, stream))
    }
}
