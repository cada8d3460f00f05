//! How precisely a GPU multiplies.

/// In which numbers the products of many tokens are taken; sums and states are f32 in both. [`super::Attention::decode`]
/// takes no products by tensor cores and is the same in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Precision {
    /// As precisely as f32 does: the errors are those of summation.
    #[default]
    F32,
    /// phi(q), phi(k), v, scores and the copy of the state that is multiplied are rounded to bf16, as fla does; in a model, rows
    /// and weights too. Errors are as large as those of rounding q, k, v and o.
    Bf16Dot,
}
