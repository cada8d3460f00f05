//! Streams and events. All work is finished when the call that starts it returns, so they only have to exist.

use super::{Out, put};
use crate::state::{Code, Need, Res, State, call};
use std::ffi::c_uint;
use std::time::Instant;

/// Checks a stream, which is one of the default streams or one that the program has created.
pub(super) fn stream(s: &State, stream: usize) -> Res {
    if stream <= 2 || s.streams.contains(&stream) { Ok(()) } else { Err(400) }
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamCreate(out: Out<usize>, flags: c_uint) -> Code {
    call("cuStreamCreate", Need::Context, |s| {
        if flags > 1 {
            return Err(1);
        }
        let handle = s.handle();
        put(out, handle)?;
        s.streams.insert(handle);
        Ok(())
    })
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(handle: usize) -> Code {
    call("cuStreamDestroy_v2", Need::Context, |s| if s.streams.remove(&handle) { Ok(()) } else { Err(400) })
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(handle: usize) -> Code {
    call("cuStreamSynchronize", Need::Sync, |s| stream(s, handle))
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(handle: usize, event: usize, _flags: c_uint) -> Code {
    call("cuStreamWaitEvent", Need::Context, |s| {
        stream(s, handle)?;
        if s.events.contains_key(&event) { Ok(()) } else { Err(400) }
    })
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventCreate(out: Out<usize>, _flags: c_uint) -> Code {
    call("cuEventCreate", Need::Context, |s| {
        let handle = s.handle();
        put(out, handle)?;
        s.events.insert(handle, None);
        Ok(())
    })
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: usize, handle: usize) -> Code {
    call("cuEventRecord", Need::Context, |s| {
        stream(s, handle)?;
        *s.events.get_mut(&event).ok_or(400)? = Some(Instant::now());
        Ok(())
    })
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: usize) -> Code {
    call("cuEventSynchronize", Need::Sync, |s| if s.events.contains_key(&event) { Ok(()) } else { Err(400) })
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventElapsedTime(out: Out<f32>, start: usize, end: usize) -> Code {
    call("cuEventElapsedTime", Need::Sync, |s| {
        let at = |e: usize| s.events.get(&e).copied().ok_or(400)?.ok_or(400);
        let (start, end) = (at(start)?, at(end)?);
        let forth = end.saturating_duration_since(start).as_secs_f32();
        put(out, (forth - start.saturating_duration_since(end).as_secs_f32()) * 1e3)
    })
}

/// See NVIDIA's documentation.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: usize) -> Code {
    call("cuEventDestroy_v2", Need::Context, |s| {
        if s.events.remove(&event).is_some() { Ok(()) } else { Err(400) }
    })
}
