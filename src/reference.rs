//! The oracle: the recurrence in f64, one token at a time, to be checked by eye.
//!
//! ```text
//! S_t = S_{t-1} + phi(k_t) v_t^T
//! z_t = z_{t-1} + phi(k_t)
//! o_t = scale phi(q_t)^T S_t / norm_t
//! ```
//!
//! phi itself is evaluated in f32, since the order of its roundings is part of its definition; everything after
//! it is f64. It is slow, and it is the judge: tests, benches and fuzzing call it.

use crate::rule::{FeatureMap, Normaliser};

/// phi(x) as defined: f32, in the order of operations of [`FeatureMap`].
pub fn phi(map: FeatureMap, x: f32) -> f64 {
    f64::from(match map {
        FeatureMap::Elu if x <= 0.0 => 1.0 + (libm::exp(f64::from(x)) as f32 - 1.0),
        FeatureMap::Elu => 1.0 + x,
        FeatureMap::Relu { eps } => (if x <= 0.0 { 0.0 } else { x }) + eps,
        FeatureMap::Identity => x,
    })
}

/// The recurrence of one head, fed one token at a time; memory for its sums is the caller's.
#[derive(Debug)]
pub struct Recurrence<'a> {
    /// The map on q and k.
    pub feature_map: FeatureMap,
    /// By what outputs are divided.
    pub normaliser: Normaliser,
    /// Multiplies the outputs.
    pub scale: f64,
    /// S of all tokens (for PerChunk: of the finished chunks), `[K, V]`, zero at first.
    pub s: &'a mut [f64],
    /// z likewise, `[K]`.
    pub z: &'a mut [f64],
    /// S of the current chunk, `[K, V]`, zero at first; used by PerChunk.
    pub chunk_s: &'a mut [f64],
    /// z of the current chunk, `[K]`.
    pub chunk_z: &'a mut [f64],
    /// Tokens in the current chunk.
    pub count: usize,
}

impl Recurrence<'_> {
    /// One token: q `[K]`, k `[K]`, v `[V]`, o `[V]`.
    pub fn step(&mut self, q: &[f32], k: &[f32], v: &[f32], o: &mut [f64]) {
        let (map, scale) = (self.feature_map, self.scale);
        let factor = |z: &[f64], eps: f32| scale / (norm(map, q, z) + f64::from(eps));
        o.fill(0.0);
        match self.normaliser {
            Normaliser::None => {
                write(map, k, v, self.s, self.z);
                read(map, q, self.s, scale, o);
            }
            Normaliser::Global { eps } => {
                write(map, k, v, self.s, self.z);
                read(map, q, self.s, factor(self.z, eps), o);
            }
            Normaliser::PerChunk { chunk, eps } => {
                write(map, k, v, self.chunk_s, self.chunk_z);
                read(map, q, self.chunk_s, factor(self.chunk_z, eps), o);
                read(map, q, self.s, factor(self.z, eps), o);
                self.count += 1;
                if self.count == chunk {
                    self.count = 0;
                    fold(self.s, self.chunk_s);
                    fold(self.z, self.chunk_z);
                }
            }
        }
    }
}

/// `S += phi(k) v^T, z += phi(k)`.
fn write(map: FeatureMap, k: &[f32], v: &[f32], s: &mut [f64], z: &mut [f64]) {
    for ((k, row), z) in k.iter().zip(s.chunks_exact_mut(v.len())).zip(z) {
        let k = phi(map, *k);
        *z += k;
        for (s, v) in row.iter_mut().zip(v) {
            *s += k * f64::from(*v);
        }
    }
}

/// `phi(q) . z`.
fn norm(map: FeatureMap, q: &[f32], z: &[f64]) -> f64 {
    // From +0 on; `sum` begins at -0.
    q.iter().zip(z).fold(0.0, |norm, (q, z)| norm + phi(map, *q) * z)
}

/// `o += factor phi(q)^T S`.
fn read(map: FeatureMap, q: &[f32], s: &[f64], factor: f64, o: &mut [f64]) {
    for (q, row) in q.iter().zip(s.chunks_exact(o.len())) {
        let weight = factor * phi(map, *q);
        for (o, s) in o.iter_mut().zip(row) {
            *o += weight * s;
        }
    }
}

/// `sum += part, part = 0`.
fn fold(sum: &mut [f64], part: &mut [f64]) {
    for (sum, part) in sum.iter_mut().zip(part) {
        *sum += *part;
        *part = 0.0;
    }
}
