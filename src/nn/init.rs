//! Untrained models: the reference's initialisers, from a seed.

use super::config::ModelConfig;
use crate::error::{Result, check_len};

/// Fills a flat model (see [`super::Weights::from_flat`]): kernels uniform within `sqrt(6 / (in + out))`
/// (Glorot), gammas uniform within `sqrt 3`, biases and betas zero. The distributions are those of the
/// reference; the random numbers are not.
///
/// # Errors
/// An invalid configuration, or a length other than [`ModelConfig::parameters_len`].
pub fn init(config: &ModelConfig, seed: u64, flat: &mut [f32]) -> Result<()> {
    config.check()?;
    check_len("the flat model", config.parameters_len(), flat.len())?;
    let mut random = SplitMix64(seed);
    let mut rest = flat;
    for parameter in config.parameters() {
        let (data, after) = rest.split_at_mut(parameter.len());
        rest = after;
        let bound = match parameter.field {
            "kernel" => libm::sqrtf(6.0 / (parameter.shape[0] + parameter.shape[1]) as f32),
            "gamma" => libm::sqrtf(3.0),
            _ => 0.0,
        };
        for x in data {
            // Adding 0 avoids a bias of -0.
            *x = bound * random.symmetric() + 0.0;
        }
    }
    Ok(())
}

/// The generator of Steele, Lea and Flood (2014): small, and good enough for weights.
struct SplitMix64(u64);

impl SplitMix64 {
    /// A number uniform in [-1, 1).
    fn symmetric(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bits = (z ^ (z >> 31)) >> 40;
        bits as f32 / (1u64 << 23) as f32 - 1.0
    }
}
