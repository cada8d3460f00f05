//! Structures of C in the sizes of other versions of the header.
#![allow(unsafe_code, reason = "structures are read and written as bytes")]
#![allow(dead_code, reason = "each test file uses its part")]

use std::mem::MaybeUninit;

use chunkwise::capi::args::Headed;
use chunkwise::capi::status::{CW_ABI, CW_OK, CW_SIZE};

/// The value of bytes that the library must neither read nor write.
pub(crate) const BEHIND: u8 = 0xa5;

/// A structure of which only the first `size` bytes are the caller's and others follow, and the structure as
/// which the library must treat it.
pub(crate) fn older<T: Headed>(whole: &T, size: usize) -> (T, T) {
    let mut behind = MaybeUninit::<T>::uninit();
    // SAFETY: the trait requires that every bit pattern is a value and that the first field is the size.
    unsafe {
        behind.as_mut_ptr().write_bytes(BEHIND, 1);
        let (mut short, mut long) = (behind.assume_init(), T::DEFAULT);
        let from = (&raw const *whole).cast::<u8>();
        for to in [&raw mut short, &raw mut long] {
            to.cast::<u8>().copy_from_nonoverlapping(from, size);
        }
        (&raw mut short).cast::<u32>().write(size as u32);
        (&raw mut long).cast::<u32>().write(size_of::<T>() as u32);
        (short, long)
    }
}

/// The sizes at which a structure may end: after its head, and before and after each field.
pub(crate) fn ends<T: Headed>() -> Vec<usize> {
    let mut ends: Vec<usize> = T::FIELDS.iter().flatten().copied().collect();
    ends.dedup();
    ends
}

/// The sizes that are refused, including some that are too large.
pub(crate) fn refused<T: Headed>() -> impl Iterator<Item = usize> {
    let ends = ends::<T>();
    (0..size_of::<T>() + 20).filter(move |size| !ends.contains(size))
}

/// The bytes of a structure.
pub(crate) fn bytes<T: Headed>(of: &T) -> &[u8] {
    // SAFETY: the structures for which this is called have no padding.
    unsafe { std::slice::from_raw_parts((&raw const *of).cast(), size_of::<T>()) }
}

/// Checks that the library writes the same fields to a structure of any size as to the whole structure, and
/// nothing else.
pub(crate) fn writes_fields_of_any_size<T: Headed>(fill: impl Fn(&mut T) -> i32) {
    let mut whole = T::DEFAULT;
    assert_eq!(fill(&mut whole), CW_OK);
    for size in ends::<T>() {
        let (mut got, _) = older(&T::DEFAULT, size);
        let (before, _) = older(&T::DEFAULT, size);
        assert_eq!(fill(&mut got), CW_OK, "of {size} bytes");
        assert_eq!(bytes(&got)[..8], bytes(&before)[..8], "of {size} bytes: the head");
        assert_eq!(bytes(&got)[8..size], bytes(&whole)[8..size], "of {size} bytes: fields");
        assert_eq!(bytes(&got)[size..], bytes(&before)[size..], "of {size} bytes: behind them");
    }
    for size in refused::<T>() {
        let (mut got, _) = older(&T::DEFAULT, size.clamp(8, size_of::<T>()));
        // SAFETY: this is the first field, as above.
        unsafe { (&raw mut got).cast::<u32>().write(size as u32) };
        let before = got;
        assert_eq!(fill(&mut got), CW_SIZE, "of {size} bytes");
        assert_eq!(bytes(&got), bytes(&before), "of {size} bytes");
    }
}

/// Checks that the library reads the fields of a structure of any size, and takes defaults for the others.
/// `answer` returns the status and the bits of what was written.
pub(crate) fn reads_fields_of_any_size<T: Headed>(whole: &T, mut answer: impl FnMut(&T) -> (i32, Vec<u32>)) {
    for size in ends::<T>() {
        let (short, long) = older(whole, size);
        let (got, want) = (answer(&short), answer(&long));
        assert!(got == want, "of {size} bytes: {}, and as a whole {}", got.0, want.0);
    }
    let mut other = *whole;
    // SAFETY: this is the second field, the ABI version.
    unsafe { (&raw mut other).cast::<u32>().add(1).write(0) };
    let (status, untouched) = answer(&other);
    assert_eq!(status, CW_ABI);
    for size in refused::<T>() {
        let mut other = *whole;
        // SAFETY: this is the first field, as above.
        unsafe { (&raw mut other).cast::<u32>().write(size as u32) };
        let (status, written) = answer(&other);
        assert_eq!(status, CW_SIZE, "of {size} bytes");
        assert!(written == untouched, "of {size} bytes");
    }
}
