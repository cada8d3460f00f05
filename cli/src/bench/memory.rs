//! Memory that begins on a cache line.

use std::ops::{Deref, DerefMut};

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Elements, the first of which is a chosen number of bytes after the beginning of a cache line.
pub(crate) struct Aligned<E> {
    memory: Vec<E>,
    begin: usize,
    len: usize,
}

impl<E: Copy> Aligned<E> {
    /// `len` elements from the beginning of a cache line on.
    pub(crate) fn filled(value: E, len: usize) -> Self {
        Self::with_offset(value, len, 0)
    }

    /// `len` elements from `offset` bytes after the beginning of a cache line on. `offset` is a multiple of
    /// an element's size.
    pub(crate) fn with_offset(value: E, len: usize, offset: usize) -> Self {
        assert!(offset.is_multiple_of(size_of::<E>()), "whole elements");
        let memory = vec![value; len + (LINE + offset) / size_of::<E>()];
        let begin = memory.as_ptr().align_offset(LINE) + offset / size_of::<E>();
        Self { memory, begin, len }
    }
}

impl<E: Copy + Default> Aligned<E> {
    /// A copy that begins on a cache line.
    pub(crate) fn copy_of(from: &[E]) -> Self {
        let mut copy = Self::filled(E::default(), from.len());
        copy.copy_from_slice(from);
        copy
    }
}

impl<E> Deref for Aligned<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        &self.memory[self.begin..][..self.len]
    }
}

impl<E> DerefMut for Aligned<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        &mut self.memory[self.begin..][..self.len]
    }
}
