//! The oracle: the recurrence in f64, one token at a time, to be checked by eye.
//!
//! ```text
//! S'  = a_t S_{t-1}                      a_t = 1, a number, or a number for each row of S
//! u   = v_t                              or, of the delta rule, beta_t (v_t - S'^T phi(k_t))
//! S_t = S' + phi(k_t) u^T
//! z_t = a_t z_{t-1} + phi(k_t)
//! o_t = scale phi(q_t)^T S_t / norm_t
//! ```
//!
//! phi itself is evaluated in f32, since the order of its roundings is part of its definition; everything
//! after it is f64. It is slow; tests, benches and fuzzing compare the kernels with it.

use crate::rule::{BetaMap, FeatureMap, GateMap, Normaliser, Update};

/// phi(x) as defined: f32, in the order of operations of [`FeatureMap`].
pub fn phi(map: FeatureMap, x: f32) -> f64 {
    f64::from(match map {
        FeatureMap::Elu if x <= 0.0 => 1.0 + (libm::exp(f64::from(x)) as f32 - 1.0),
        FeatureMap::Elu => 1.0 + x,
        FeatureMap::Relu { eps } => (if x <= 0.0 { 0.0 } else { x }) + eps,
        FeatureMap::Identity => x,
    })
}

/// The decay a of an element of g, with the A_log of its head and its dt_bias, which are 0 where they are not
/// given.
pub fn decay(map: GateMap, g: f32, a_log: f32, dt_bias: f32) -> f64 {
    let (x, rate) = (f64::from(g) + f64::from(dt_bias), libm::exp(f64::from(a_log)));
    match map {
        GateMap::Log => libm::exp(f64::from(g)),
        GateMap::Linear => f64::from(g),
        GateMap::Softplus if x > 0.0 => libm::exp(-rate * (x + libm::log1p(libm::exp(-x)))),
        GateMap::Softplus => libm::exp(-rate * libm::log1p(libm::exp(x))),
        GateMap::Bounded { lower } => libm::exp(f64::from(lower) / (1.0 + libm::exp(-rate * x))),
    }
}

/// beta of an element of its tensor.
pub fn beta(map: BetaMap, x: f32) -> f64 {
    let sigmoid = 1.0 / (1.0 + libm::exp(-f64::from(x)));
    match map {
        BetaMap::Given => f64::from(x),
        BetaMap::Sigmoid => sigmoid,
        BetaMap::TwiceSigmoid => 2.0 * sigmoid,
    }
}

/// The inputs of one token of a head.
#[derive(Clone, Copy, Debug)]
pub struct Token<'a> {
    /// The row of q, `[K]`.
    pub q: &'a [f32],
    /// The row of k, `[K]`.
    pub k: &'a [f32],
    /// The row of v, `[V]`.
    pub v: &'a [f32],
    /// The decays of the rows of S: `[K]`, `[1]` where they are all the same, `[0]` where there are none.
    pub decays: &'a [f64],
    /// beta, for the delta rule.
    pub beta: f64,
}

/// The recurrence of one head, fed one token at a time; memory for its sums is the caller's.
#[derive(Debug)]
pub struct Recurrence<'a> {
    /// What a token adds to S.
    pub update: Update,
    /// The eps of the norm of phi(q) and phi(k), if there is one.
    pub qk_norm: Option<f32>,
    /// The map on q and k.
    pub feature_map: FeatureMap,
    /// The number by which outputs are divided.
    pub normaliser: Normaliser,
    /// The factor of the outputs.
    pub scale: f64,
    /// S of all tokens (for PerChunk: of the finished chunks), `[K, V]`, zero at first.
    pub s: &'a mut [f64],
    /// z of the same tokens as `s`, `[K]`, zero at first.
    pub z: &'a mut [f64],
    /// S of the current chunk, `[K, V]`, zero at first; used by PerChunk.
    pub chunk_s: &'a mut [f64],
    /// z of the current chunk, `[K]`, zero at first; used by PerChunk.
    pub chunk_z: &'a mut [f64],
    /// The number of tokens in the current chunk.
    pub count: usize,
}

impl Recurrence<'_> {
    /// Computes one token without decays: q `[K]`, k `[K]`, v `[V]`, o `[V]`.
    pub fn step(&mut self, q: &[f32], k: &[f32], v: &[f32], o: &mut [f64]) {
        self.token(Token { q, k, v, decays: &[], beta: 1.0 }, o);
    }

    /// Computes one token and its output, `[V]`.
    pub fn token(&mut self, token: Token<'_>, o: &mut [f64]) {
        o.fill(0.0);
        self.write(token);
        self.read(token.q, o);
    }

    /// Adds a token to the sums, without an output.
    pub fn write(&mut self, token: Token<'_>) {
        let per_chunk = matches!(self.normaliser, Normaliser::PerChunk { .. });
        let k = Vector { map: self.feature_map, norm: self.qk_norm, x: token.k };
        if per_chunk {
            write(k, token, self.update, self.chunk_s, self.chunk_z);
        } else {
            write(k, token, self.update, self.s, self.z);
        }
    }

    /// Computes an output from the sums and adds it to `o`; then a chunk may end.
    pub fn read(&mut self, q: &[f32], o: &mut [f64]) {
        let q = Vector { map: self.feature_map, norm: self.qk_norm, x: q };
        let scale = self.scale;
        let factor = |z: &[f64], eps: f32| scale / (q.dot(z) + f64::from(eps));
        match self.normaliser {
            Normaliser::None => read(q, self.s, scale, o),
            Normaliser::Global { eps } => read(q, self.s, factor(self.z, eps), o),
            Normaliser::PerChunk { chunk, eps } => {
                read(q, self.chunk_s, factor(self.chunk_z, eps), o);
                read(q, self.s, factor(self.z, eps), o);
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

/// A row of q or k under its map and norm.
#[derive(Clone, Copy)]
struct Vector<'a> {
    map: FeatureMap,
    norm: Option<f32>,
    x: &'a [f32],
}

impl Vector<'_> {
    fn iter(&self) -> impl Iterator<Item = f64> {
        let map = self.map;
        let length = self.norm.map_or(1.0, |eps| {
            let sum: f64 = self.x.iter().map(|x| phi(map, *x) * phi(map, *x)).sum();
            libm::sqrt(sum + f64::from(eps))
        });
        self.x.iter().map(move |x| phi(map, *x) / length)
    }

    fn dot(&self, z: &[f64]) -> f64 {
        // The sum begins at +0; `Iterator::sum` would begin at -0.
        self.iter().zip(z).fold(0.0, |sum, (x, z)| sum + x * z)
    }
}

/// `S = a S + phi(k) u^T, z = a z + phi(k)`.
fn write(k: Vector<'_>, token: Token<'_>, update: Update, s: &mut [f64], z: &mut [f64]) {
    let Token { v, decays, beta, .. } = token;
    let decay = |i: usize| decays.get(i).or(decays.first()).copied();
    for (i, (row, z)) in s.chunks_exact_mut(v.len()).zip(&mut *z).enumerate() {
        if let Some(a) = decay(i) {
            *z *= a;
            row.iter_mut().for_each(|s| *s *= a);
        }
    }
    match update {
        Update::Linear => {
            for (k, row) in k.iter().zip(s.chunks_exact_mut(v.len())) {
                for (s, v) in row.iter_mut().zip(v) {
                    *s += k * f64::from(*v);
                }
            }
        }
        Update::Delta => {
            for (j, v) in v.iter().enumerate() {
                let rows = k.iter().zip(s.chunks_exact(token.v.len()));
                let found = rows.fold(0.0, |sum, (k, row)| sum + k * row[j]);
                let u = beta * (f64::from(*v) - found);
                for (k, row) in k.iter().zip(s.chunks_exact_mut(token.v.len())) {
                    row[j] += k * u;
                }
            }
        }
    }
    for (k, z) in k.iter().zip(z) {
        *z += k;
    }
}

/// `o += factor phi(q)^T S`.
fn read(q: Vector<'_>, s: &[f64], factor: f64, o: &mut [f64]) {
    for (q, row) in q.iter().zip(s.chunks_exact(o.len())) {
        let weight = factor * q;
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
