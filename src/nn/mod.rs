//! The small models for which the kernels were made: Edifice's FlashLinearAttention and LightningAttention,
//! at inference. They differ only in the attention ([`AttentionKind`]).
//!
//! ```text
//! x [B, T, embed] -> input_projection, only if embed != hidden
//! blocks:  x = x + attn_out( attention( attn_qkv( attn_norm(x) ) ) )
//!          x = x + ffn_down( gelu( ffn_up( ffn_norm(x) ) ) )
//! final_norm (option), then the last time step, all of them, or their mean
//! ```
//!
//! Like the kernels, the models allocate nothing: weights are borrowed, from flash or from a mapped file, and
//! outputs, state and scratch are the caller's.

pub mod block;
pub mod config;
pub mod init;
pub mod linear;
mod mixer;
pub mod model;
pub mod norm;
pub mod weights;

pub use block::Block;
pub use config::{AttentionKind, ModelConfig, OutputMode, Parameter};
pub use init::init;
pub use linear::Linear;
pub use model::Model;
pub use norm::LayerNorm;
pub use weights::{BlockWeights, Weights};
