//! The precision of products on a GPU.

/// The numbers in which products over many tokens are taken; sums and states are f32 in both.
/// [`super::Attention::decode`] does not use tensor cores for its products and is the same in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Precision {
    /// Products are as precise as f32: the errors are those of summation.
    #[default]
    F32,
    /// phi(q), phi(k), v, scores and the copy of the state that is multiplied are rounded to bf16, as fla
    /// does; in a model, rows and weights too. Errors are as large as those of rounding q, k, v and o.
    Bf16Dot,
}
