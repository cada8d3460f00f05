//! Writes the configuration of a model as Rust code. The build scripts of the firmware and of examples/web use this file.

use std::fmt::{self, Write};

use chunkwise::nn::ModelConfig;

/// Appends the definition of `CONFIG` to `code`. It needs `ModelConfig`, `FeatureMap` and `OutputMode` in scope.
pub fn write(code: &mut String, config: &ModelConfig) -> fmt::Result {
    let ModelConfig { embed_dim, hidden_size, num_heads, num_layers, chunk_size, seq_len, .. } = config;
    let ModelConfig { feature_map, output_mode, final_norm, layer_norm_eps, layer_norm_clip, .. } = config;
    writeln!(
        code,
        "const CONFIG: ModelConfig = ModelConfig {{ hidden_size: {hidden_size}, num_heads: {num_heads}, \
         num_layers: {num_layers}, chunk_size: {chunk_size}, seq_len: {seq_len}, \
         feature_map: FeatureMap::{feature_map:?}, output_mode: OutputMode::{output_mode:?}, \
         final_norm: {final_norm}, layer_norm_eps: {layer_norm_eps:?}, layer_norm_clip: {layer_norm_clip}, \
         ..ModelConfig::new({embed_dim}) }};"
    )
}
