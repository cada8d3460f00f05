//! Types of registers and memory, as the suffixes of PTX name them.

/// A type suffix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ty {
    /// A predicate: one bit per lane.
    Pred,
    /// An unsigned integer of 8 bits.
    U8,
    /// A signed integer of 8 bits.
    S8,
    /// Untyped 8 bits.
    B8,
    /// An unsigned integer of 16 bits.
    U16,
    /// A signed integer of 16 bits.
    S16,
    /// Untyped 16 bits.
    B16,
    /// An unsigned integer of 32 bits.
    U32,
    /// A signed integer of 32 bits.
    S32,
    /// Untyped 32 bits.
    B32,
    /// An unsigned integer of 64 bits.
    U64,
    /// A signed integer of 64 bits.
    S64,
    /// Untyped 64 bits.
    B64,
    /// IEEE half precision.
    F16,
    /// Two values of IEEE half precision in a word.
    F16x2,
    /// bfloat16.
    Bf16,
    /// Two bfloat16 values in a word.
    Bf16x2,
    /// A float of 32 bits, of which tensor cores use 10 bits of the mantissa.
    Tf32,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
}

impl Ty {
    /// Looks up a suffix, which is given without its dot.
    pub fn parse(text: &str) -> Option<Ty> {
        use Ty::*;
        const ALL: [(&str, Ty); 20] = [
            ("pred", Pred),
            ("u8", U8),
            ("s8", S8),
            ("b8", B8),
            ("u16", U16),
            ("s16", S16),
            ("b16", B16),
            ("u32", U32),
            ("s32", S32),
            ("b32", B32),
            ("u64", U64),
            ("s64", S64),
            ("b64", B64),
            ("f16", F16),
            ("f16x2", F16x2),
            ("bf16", Bf16),
            ("bf16x2", Bf16x2),
            ("tf32", Tf32),
            ("f32", F32),
            ("f64", F64),
        ];
        ALL.iter().find(|(name, _)| *name == text).map(|(_, ty)| *ty)
    }

    /// Returns the size in bits; a predicate has one.
    pub fn bits(self) -> u32 {
        use Ty::*;
        match self {
            Pred => 1,
            U8 | S8 | B8 => 8,
            U16 | S16 | B16 | F16 | Bf16 => 16,
            U64 | S64 | B64 | F64 => 64,
            _ => 32,
        }
    }

    /// Returns whether the type is sign-extended.
    pub fn signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }

    /// Returns whether the type is a float of any format.
    pub fn float(self) -> bool {
        use Ty::*;
        matches!(self, F16 | F16x2 | Bf16 | Bf16x2 | Tf32 | F32 | F64)
    }
}
