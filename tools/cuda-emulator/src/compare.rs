//! Comparisons of `setp` and `set`: a function that maps a name and a type to a function for 32 lanes.

use crate::float::flush;
use crate::isa::Ty::{self, *};
use crate::lanes::{Regs, compare};

/// A comparison of two registers, which returns the lanes where it holds.
pub type Compare = fn(&Regs, u32, u32) -> u32;

macro_rules! ordered {
    ($k:ident, $name:expr) => {
        match $name {
            "eq" => compare!($k, a, b => a == b),
            "ne" => compare!($k, a, b => a != b),
            "lt" | "lo" => compare!($k, a, b => a < b),
            "le" | "ls" => compare!($k, a, b => a <= b),
            "gt" | "hi" => compare!($k, a, b => a > b),
            "ge" | "hs" => compare!($k, a, b => a >= b),
            _ => return None,
        }
    };
}

// This macro picks a comparison of floats. The names that end in `u` also hold if an operand is NaN; `$z` is applied to
// the operands first.
macro_rules! floats {
    ($k:ident, $name:expr, $z:ident) => {
        match $name {
            "eq" => compare!($k, a, b => $z(a) == $z(b)),
            "ne" => compare!($k, a, b => !a.is_nan() && !b.is_nan() && $z(a) != $z(b)),
            "lt" => compare!($k, a, b => $z(a) < $z(b)),
            "le" => compare!($k, a, b => $z(a) <= $z(b)),
            "gt" => compare!($k, a, b => $z(a) > $z(b)),
            "ge" => compare!($k, a, b => $z(a) >= $z(b)),
            "equ" => compare!($k, a, b => a.is_nan() || b.is_nan() || $z(a) == $z(b)),
            "neu" => compare!($k, a, b => $z(a) != $z(b)),
            "ltu" => compare!($k, a, b => a.is_nan() || b.is_nan() || $z(a) < $z(b)),
            "leu" => compare!($k, a, b => a.is_nan() || b.is_nan() || $z(a) <= $z(b)),
            "gtu" => compare!($k, a, b => a.is_nan() || b.is_nan() || $z(a) > $z(b)),
            "geu" => compare!($k, a, b => a.is_nan() || b.is_nan() || $z(a) >= $z(b)),
            "num" => compare!($k, a, b => !a.is_nan() && !b.is_nan()),
            "nan" => compare!($k, a, b => a.is_nan() || b.is_nan()),
            _ => return None,
        }
    };
}

#[inline(always)]
fn same<T>(x: T) -> T {
    x
}

/// Returns the comparison with a name for a type.
pub fn pick(name: &str, ty: Ty, ftz: bool) -> Option<Compare> {
    Some(match ty {
        U32 | B32 => ordered!(w, name),
        S32 => ordered!(s, name),
        U64 | B64 => ordered!(x, name),
        S64 => ordered!(y, name),
        U16 | B16 => ordered!(h, name),
        S16 => ordered!(i, name),
        F32 if ftz => floats!(f, name, flush),
        F32 => floats!(f, name, same),
        F64 => floats!(d, name, same),
        _ => return None,
    })
}
