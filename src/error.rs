//! One error for the whole core: what is wrong with a call, in one sentence. It works without `std`.

use core::fmt;

/// What is wrong with a call. Outputs and state are left untouched whenever an error is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A dimension that must be at least one is zero.
    Zero {
        /// The dimension or option.
        what: &'static str,
    },
    /// The product or sum of sizes does not fit the address space.
    Overflow {
        /// The size that was being computed.
        what: &'static str,
    },
    /// A slice contains fewer elements than its shape and strides reach.
    TooShort {
        /// The argument.
        what: &'static str,
        /// The number of elements needed.
        need: usize,
        /// The number of elements given.
        got: usize,
    },
    /// A slice does not contain exactly as many elements as its shape requires.
    Length {
        /// The argument.
        what: &'static str,
        /// The number of elements required.
        want: usize,
        /// The number of elements given.
        got: usize,
    },
    /// Two rows of an output share elements, or may share them: strides must nest, each at least the extent
    /// of the smaller ones.
    Overlap {
        /// The output.
        what: &'static str,
    },
    /// A number that must be finite (and, for an epsilon, not negative) is not.
    NotFinite {
        /// The option.
        what: &'static str,
    },
    /// A number that must be finite and above zero is not.
    NotPositive {
        /// The option.
        what: &'static str,
    },
    /// There are more than possible: tokens of a chunk (at most 2^24, which are counted in an f32), tokens of
    /// a draft (16), accepted tokens of a draft (all of its tokens), or taps of a short convolution (8).
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// The largest number possible.
        most: usize,
        /// The number given.
        got: usize,
    },
    /// The state's count of tokens in the current chunk is not a whole number below the chunk length: the
    /// state was not made by this configuration.
    BadState,
    /// Options that do not go together, or that this build of the library does not have.
    Conflict {
        /// The options.
        what: &'static str,
    },
    /// A tensor is given that the rule does not use.
    Unused {
        /// The tensor.
        what: &'static str,
    },
    /// The beginnings of sequences must start at 0, never decrease and end at the number of tokens, one more
    /// number than there are sequences. This error also means that they are given for a shape that is not
    /// ragged or for a decode, or are missing for a ragged shape.
    Sequences,
    /// The instruction set named is unknown, or this machine does not have it.
    Isa {
        /// The instruction set.
        name: &'static str,
    },
    /// A parameter of a model does not have the shape that the configuration requires.
    Parameter {
        /// The name of the parameter inside its block.
        name: &'static str,
        /// The block, counted from 1; 0 for parameters outside the blocks.
        block: usize,
        /// The shape required, `[rows, columns]`; vectors have one row.
        want: [usize; 2],
        /// The shape given.
        got: [usize; 2],
    },
    /// The model needs this part and does not have it, or has one it must not have.
    Part {
        /// The part.
        name: &'static str,
        /// Whether it is present.
        present: bool,
    },
}

/// The result of a checked call.
pub type Result<T> = core::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Error::Zero { what } => write!(f, "{what} must be at least 1"),
            Error::Overflow { what } => write!(f, "{what} is too large for this machine's address space"),
            Error::TooShort { what, need, got } => {
                write!(f, "{what} holds {got} elements, its shape and strides reach {need}")
            }
            Error::Length { what, want, got } => write!(f, "{what} holds {got} elements, expected {want}"),
            Error::Overlap { what } => {
                write!(f, "the strides of {what} let two of its rows overlap")
            }
            Error::NotFinite { what } => {
                write!(f, "{what} must be a finite number, and not negative for an epsilon")
            }
            Error::NotPositive { what } => write!(f, "{what} must be a finite number above zero"),
            Error::TooMany { what, most, got } => write!(f, "{got} {what}: at most {most} are possible"),
            Error::BadState => write!(f, "the state was not made by this configuration"),
            Error::Conflict { what } => write!(f, "{what} do not go together"),
            Error::Unused { what } => write!(f, "{what} is given, but the rule has no use for it"),
            Error::Sequences => write!(
                f,
                "the beginnings of sequences must start at 0, never decrease and end at the number of tokens, and are there for the forward of a ragged batch alone"
            ),
            Error::Isa { name } => {
                write!(f, "the instruction set {name} is unknown or not available on this machine")
            }
            Error::Parameter { name, block: 0, want, got } => {
                write!(f, "{name}: shape {got:?}, expected {want:?}")
            }
            Error::Parameter { name, block, want, got } => {
                write!(f, "block {block}, {name}: shape {got:?}, expected {want:?}")
            }
            Error::Part { name, present: true } => {
                write!(f, "{name} is present but the configuration has no place for it")
            }
            Error::Part { name, present: false } => write!(f, "{name} is missing"),
        }
    }
}

impl core::error::Error for Error {}

/// Checks that a slice has at least `need` elements.
pub(crate) fn check_room(what: &'static str, need: usize, got: usize) -> Result<()> {
    if got >= need { Ok(()) } else { Err(Error::TooShort { what, need, got }) }
}

/// Checks that a number is at most `most`.
pub(crate) fn check_most(what: &'static str, most: usize, got: usize) -> Result<()> {
    if got <= most { Ok(()) } else { Err(Error::TooMany { what, most, got }) }
}

/// Checks that a slice has exactly `want` elements.
pub(crate) fn check_len(what: &'static str, want: usize, got: usize) -> Result<()> {
    if want == got { Ok(()) } else { Err(Error::Length { what, want, got }) }
}
