//! The oracle: the definition in f64, one token at a time, to be checked by eye.
//!
//! ```text
//! w_s = exp(q_t . k_s / sqrt K - max),                      s <= t in t's chunk
//! o_t = sum_s w_s v_s / (sum_s w_s + 1e-8) + q_t^T S / (q_t . z + 1e-8)
//! S = sum k_s v_s^T, z = sum k_s                            over the finished chunks
//! ```
//!
//! It is slow; tests and the command line's check compare the kernels with it.

/// The recurrence of one head, fed one token at a time; memory for its sums is the caller's.
#[derive(Debug)]
pub struct Recurrence<'a> {
    /// The number of tokens in a chunk.
    pub chunk: usize,
    /// S of the finished chunks, `[K, V]`, zero at first.
    pub s: &'a mut [f64],
    /// z of the finished chunks, `[K]`, zero at first.
    pub z: &'a mut [f64],
    /// Keys of the current chunk, `[chunk, K]`.
    pub keys: &'a mut [f64],
    /// Values of the current chunk, `[chunk, V]`.
    pub values: &'a mut [f64],
    /// The number of tokens in the current chunk.
    pub count: usize,
}

impl Recurrence<'_> {
    /// Computes one token: q `[K]`, k `[K]`, v `[V]`, o `[V]`.
    pub fn step(&mut self, q: &[f32], k: &[f32], v: &[f32], o: &mut [f64]) {
        let (key, value) = (k.len(), v.len());
        widen(k, &mut self.keys[self.count * key..]);
        widen(v, &mut self.values[self.count * value..]);
        self.count += 1;
        let keys = self.keys.chunks_exact(key).take(self.count);
        let score = |k: &[f64]| dot(q, k) / libm::sqrt(key as f64);
        let largest = keys.clone().map(score).fold(f64::NEG_INFINITY, f64::max);
        o.fill(0.0);
        let mut sum = 1e-8;
        for (k, v) in keys.zip(self.values.chunks_exact(value)) {
            let weight = libm::exp(score(k) - largest);
            sum += weight;
            add(weight, v, o);
        }
        o.iter_mut().for_each(|o| *o /= sum);
        let norm = dot(q, self.z) + 1e-8;
        for (q, s) in q.iter().zip(self.s.chunks_exact(value)) {
            add(f64::from(*q) / norm, s, o);
        }
        if self.count == self.chunk {
            self.fold(key, value);
        }
    }

    /// Ends a chunk: adds its sums to S and z.
    fn fold(&mut self, key: usize, value: usize) {
        for (k, v) in self.keys.chunks_exact(key).zip(self.values.chunks_exact(value)) {
            add(1.0, k, self.z);
            for (k, s) in k.iter().zip(self.s.chunks_exact_mut(value)) {
                add(*k, v, s);
            }
        }
        self.count = 0;
    }
}

fn widen(from: &[f32], to: &mut [f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = f64::from(*from);
    }
}

fn dot(a: &[f32], b: &[f64]) -> f64 {
    // The sum begins at +0; `Iterator::sum` would begin at -0.
    a.iter().zip(b).fold(0.0, |sum, (a, b)| sum + f64::from(*a) * b)
}

/// `sum += factor x`.
fn add(factor: f64, x: &[f64], sum: &mut [f64]) {
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum += factor * x;
    }
}
