//! What the tests share: numbers to compute with, the oracle over whole tensors, and the error measure.
#![allow(dead_code, reason = "each test file uses its part")]

use chunkwise::reference::Recurrence;
use chunkwise::{Config, Normaliser, Strides};

/// Numbers that look normal (sum of uniforms), the same for the same seed.
pub fn normals(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    let mut uniform = || {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..len).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

/// `||got - want|| / ||want||`; 0 where both are zero. NaN anywhere is an error of infinity.
pub fn norm_error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let (mut difference, mut size) = (0.0, 0.0);
    for (got, want) in got.iter().zip(want) {
        difference += (f64::from(*got) - want).powi(2);
        size += want.powi(2);
    }
    if difference == 0.0 {
        0.0
    } else if difference.is_nan() {
        f64::INFINITY
    } else {
        (difference / size).sqrt()
    }
}

/// Where a row of a strided tensor begins.
pub fn at(strides: Strides, batch: usize, token: usize, head: usize) -> usize {
    batch * strides.batch + token * strides.token + head * strides.head
}

/// The oracle over whole tensors, from the zero state: o `[B, T, H, V]`, contiguous.
pub fn oracle(config: &Config, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
    let Config { batch, len, heads, key, value, normaliser, .. } = *config;
    let mut o = vec![0.0; batch * len * heads * value];
    for b in 0..batch {
        for h in 0..heads {
            let (s, chunk_s) = (&mut vec![0.0; key * value], &mut vec![0.0; key * value]);
            let (z, chunk_z) = (&mut vec![0.0; key], &mut vec![0.0; key]);
            let scale = f64::from(config.scale);
            let feature_map = config.feature_map;
            let mut head = Recurrence { feature_map, normaliser, scale, s, z, chunk_s, chunk_z, count: 0 };
            for t in 0..len {
                let q = &q[at(config.q_strides, b, t, h)..][..key];
                let k = &k[at(config.k_strides, b, t, h)..][..key];
                let v = &v[at(config.v_strides, b, t, h)..][..value];
                head.step(q, k, v, &mut o[((b * len + t) * heads + h) * value..][..value]);
            }
        }
    }
    o
}

/// The rows of a strided output, contiguous `[B, T, H, V]`.
pub fn gather(config: &Config, o: &[f32]) -> Vec<f32> {
    let mut out = Vec::new();
    for b in 0..config.batch {
        for t in 0..config.len {
            for h in 0..config.heads {
                out.extend_from_slice(&o[at(config.o_strides, b, t, h)..][..config.value]);
            }
        }
    }
    out
}

/// Every normaliser, with the chunk lengths given.
pub fn normalisers(chunks: &[usize]) -> Vec<Normaliser> {
    let mut all = vec![Normaliser::None, Normaliser::Global { eps: 1e-6 }];
    all.extend(chunks.iter().map(|&chunk| Normaliser::per_chunk(chunk)));
    all
}
