//! One error for the whole core: what the caller got wrong, in one sentence. It works without `std`.

use core::fmt;

/// What was wrong with a call. Outputs and state are left untouched whenever one is returned.
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
    /// A slice holds fewer elements than its shape and strides reach.
    TooShort {
        /// The argument.
        what: &'static str,
        /// Elements needed.
        need: usize,
        /// Elements given.
        got: usize,
    },
    /// A slice must hold exactly as many elements as its shape says.
    Length {
        /// The argument.
        what: &'static str,
        /// Elements wanted.
        want: usize,
        /// Elements given.
        got: usize,
    },
    /// Two rows of an output would share elements, or may: strides must nest, each at least the extent of
    /// the smaller ones.
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
    /// More than are possible: the tokens of a chunk (2^24, for they are counted in an f32), those of a draft (16) or of those
    /// accepted of it, the taps of a short convolution (8).
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many there can be.
        most: usize,
        /// How many were asked for.
        got: usize,
    },
    /// The state's count of tokens in the current chunk is not a whole number below the chunk length: the
    /// state was not made by this configuration.
    BadState,
    /// Options that do not go together, or that are not there together.
    Conflict {
        /// The options.
        what: &'static str,
    },
    /// A tensor is given that the rule has no use for.
    Unused {
        /// The tensor.
        what: &'static str,
    },
    /// The beginnings of sequences must start at 0, never decrease and end at the number of tokens, one more than there are
    /// sequences; or they are given for a shape that is not ragged or for a decode, or not for a ragged shape.
    Sequences,
    /// The instruction set named is unknown, or this machine does not have it.
    Isa {
        /// The instruction set.
        name: &'static str,
    },
    /// A model's parts do not fit together: the shape of a parameter against what the configuration asks.
    Parameter {
        /// The parameter, as it is called inside its block.
        name: &'static str,
        /// The block, counted from 1; 0 for parameters outside the blocks.
        block: usize,
        /// Shape wanted, `[rows, columns]`; vectors have one row.
        want: [usize; 2],
        /// Shape given.
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

/// A slice that has to reach so far.
pub(crate) fn check_room(what: &'static str, need: usize, got: usize) -> Result<()> {
    if got >= need { Ok(()) } else { Err(Error::TooShort { what, need, got }) }
}

/// A number that has a limit.
pub(crate) fn check_most(what: &'static str, most: usize, got: usize) -> Result<()> {
    if got <= most { Ok(()) } else { Err(Error::TooMany { what, most, got }) }
}

/// A slice whose length its shape fixes.
pub(crate) fn check_len(what: &'static str, want: usize, got: usize) -> Result<()> {
    if want == got { Ok(()) } else { Err(Error::Length { what, want, got }) }
}
