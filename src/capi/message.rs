//! Messages for C, for errors that a status alone does not describe.

use core::ffi::c_char;
use core::fmt::Display;
use std::string::ToString;

use super::args::slice_mut;
use super::span::{self, Span};
use super::{Result, size};

/// A buffer for the message of an error, which is cut to the room there is and ended by a zero.
#[derive(Clone, Copy)]
pub(super) struct Message {
    to: *mut c_char,
    bytes: usize,
    pub(super) span: Span,
}

impl Message {
    /// `to` is null where the caller does not want a message.
    pub(super) fn new(to: *mut c_char, bytes: u64) -> Result<Self> {
        let bytes = if to.is_null() { 0 } else { size(bytes)? };
        Ok(Self { to, bytes, span: span::of(to, bytes)? })
    }

    pub(super) fn say(self, error: &impl Display) {
        if self.bytes == 0 {
            return;
        }
        let text = error.to_string();
        let room = self.bytes - 1;
        let cut = (0..=room.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        // SAFETY: `new` has checked `bytes` of them, and `cut` is less than `bytes`, so there is room for the
        // zero.
        let to = unsafe { slice_mut(self.to.cast::<u8>(), cut + 1) };
        to[..cut].copy_from_slice(&text.as_bytes()[..cut]);
        to[cut] = 0;
    }
}
