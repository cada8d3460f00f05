//! Outputs and gradients of one head in f64, as sums over pairs of tokens: the definition without a
//! recurrence, in O(T^2).

use chunkwise::FeatureMap;
use chunkwise::reference::phi;

/// A head after its feature map. Matrices are row-major.
#[derive(Clone, Default)]
pub(super) struct Head {
    pub(super) key: usize,
    pub(super) value: usize,
    pub(super) scale: f64,
    /// `None` without a normaliser.
    pub(super) eps: Option<f64>,
    /// The length of a chunk, and the number of tokens in the chunk that the initial state has begun.
    pub(super) chunk: Option<usize>,
    pub(super) count: usize,
    /// Whether sums add the absolute values of their terms: what they would be if no terms cancelled.
    pub(super) absolute: bool,
    /// Whether there is an initial state: with chunks, its sums are the past of the first chunk.
    pub(super) has_initial: bool,
    /// phi(q) and phi(k) `[T, K]`, v and the gradient of o `[T, V]`.
    pub(super) a: Vec<f64>,
    pub(super) c: Vec<f64>,
    pub(super) v: Vec<f64>,
    pub(super) output: Vec<f64>,
    /// The logarithm of each token's decay; empty without a gate.
    pub(super) g: Vec<f64>,
    /// S and z of the initial state, and the gradients of the last one; with chunks of the past, then of the
    /// current chunk.
    pub(super) initial: [Sums; 2],
    pub(super) last: [Sums; 2],
}

#[derive(Clone, Default)]
pub(super) struct Sums {
    pub(super) s: Vec<f64>,
    pub(super) z: Vec<f64>,
}

impl Sums {
    pub(super) fn zeros(key: usize, value: usize) -> Self {
        Self { s: vec![0.0; key * value], z: vec![0.0; key] }
    }
}

pub(super) struct Gradients {
    pub(super) a: Vec<f64>,
    pub(super) c: Vec<f64>,
    pub(super) v: Vec<f64>,
    pub(super) g: Vec<f64>,
    pub(super) initial: [Sums; 2],
}

const PAST: usize = 0;
const CURRENT: usize = 1;

impl Head {
    fn dot(&self, x: &[f64], y: &[f64]) -> f64 {
        x.iter().zip(y).map(|(x, y)| if self.absolute { (x * y).abs() } else { x * y }).sum()
    }

    /// `y += factor x`.
    fn add(&self, factor: f64, x: &[f64], y: &mut [f64]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += if self.absolute { (factor * x).abs() } else { factor * x };
        }
    }

    pub(super) fn len(&self) -> usize {
        self.v.len() / self.value
    }

    fn chunk_of(&self, token: usize) -> usize {
        self.chunk.map_or(0, |chunk| (token + self.count) / chunk)
    }

    /// The chunk that is current after the last token.
    fn last_chunk(&self) -> usize {
        self.chunk_of(self.len())
    }

    /// In which sums chunk `written` is while chunk `current` is computed.
    fn place(&self, written: usize, current: usize) -> usize {
        if self.chunk.is_none() || written == current { CURRENT } else { PAST }
    }

    /// In which sums the pieces of the initial state are then.
    fn initial_places(&self, current: usize) -> [usize; 2] {
        [PAST, self.place(0, current)]
    }

    fn of<'a>(&self, rows: &'a [f64], token: usize) -> &'a [f64] {
        let width = rows.len() / self.len();
        &rows[token * width..][..width]
    }

    /// The decay of what the tokens before `from` have left, after `token`.
    fn decay(&self, from: usize, token: usize) -> f64 {
        if self.g.is_empty() { 1.0 } else { self.g[from..=token].iter().sum::<f64>().exp() }
    }

    /// `a^T S` and `a . z` of both sums that a token reads.
    fn read(&self, token: usize) -> [(Vec<f64>, f64); 2] {
        let (a, now) = (self.of(&self.a, token), self.chunk_of(token));
        let mut sums = [const { (Vec::new(), 0.0) }; 2];
        sums.iter_mut().for_each(|sum| sum.0 = vec![0.0; self.value]);
        for r in 0..=token {
            let place = &mut sums[self.place(self.chunk_of(r), now)];
            let weight = self.decay(r + 1, token) * self.dot(a, self.of(&self.c, r));
            self.add(weight, self.of(&self.v, r), &mut place.0);
            place.1 += weight;
        }
        let decay = self.decay(0, token);
        for (initial, place) in self.initial.iter().zip(self.initial_places(now)) {
            for (a, row) in a.iter().zip(initial.s.chunks(self.value)) {
                self.add(decay * a, row, &mut sums[place].0);
            }
            sums[place].1 += decay * self.dot(a, &initial.z);
        }
        sums
    }

    /// Whether a token reads these sums.
    fn reads(&self, token: usize, place: usize) -> bool {
        place == CURRENT || self.chunk.is_some() && (self.has_initial || self.chunk_of(token) > 0)
    }

    fn norm(&self, sum: f64) -> f64 {
        self.eps.map_or(1.0, |eps| sum + eps)
    }

    /// o `[T, V]`.
    pub(super) fn outputs(&self) -> Vec<f64> {
        let mut all = Vec::new();
        for token in 0..self.len() {
            let mut o = vec![0.0; self.value];
            for (place, (y, n)) in self.read(token).iter().enumerate() {
                if self.reads(token, place) {
                    self.add(self.scale / self.norm(*n), y, &mut o);
                }
            }
            all.extend(o);
        }
        all
    }

    /// The sums after the last token.
    fn last_sums(&self) -> [Sums; 2] {
        let now = self.last_chunk();
        let mut sums = [Sums::zeros(self.key, self.value), Sums::zeros(self.key, self.value)];
        let last = self.len() - 1;
        for (initial, place) in self.initial.iter().zip(self.initial_places(now)) {
            self.add(self.decay(0, last), &initial.s, &mut sums[place].s);
            self.add(self.decay(0, last), &initial.z, &mut sums[place].z);
        }
        for token in 0..self.len() {
            let place = &mut sums[self.place(self.chunk_of(token), now)];
            let (c, v) = (self.of(&self.c, token), self.of(&self.v, token));
            let decay = self.decay(token + 1, last);
            for (c, row) in c.iter().zip(place.s.chunks_mut(self.value)) {
                self.add(decay * c, v, row);
            }
            self.add(decay, c, &mut place.z);
        }
        sums
    }

    /// The loss whose gradients are `output` and `last`.
    pub(super) fn loss(&self) -> f64 {
        let sums = self.last_sums();
        let of_sums = sums
            .iter()
            .zip(&self.last)
            .map(|(sums, last)| self.dot(&sums.s, &last.s) + self.dot(&sums.z, &last.z));
        self.dot(&self.outputs(), &self.output) + of_sums.sum::<f64>()
    }

    pub(super) fn gradients(&self) -> Gradients {
        let (key, value) = (self.key, self.value);
        let mut to = Gradients {
            a: vec![0.0; self.a.len()],
            c: vec![0.0; self.c.len()],
            v: vec![0.0; self.v.len()],
            g: vec![0.0; self.g.len()],
            initial: [Sums::zeros(key, value), Sums::zeros(key, value)],
        };
        let last = self.len() - 1;
        // What a product depends on is derived with respect to the logarithms of all decays between.
        let mut of_gates = |tokens: std::ops::RangeInclusive<usize>, product: f64| {
            to.g.get_mut(tokens).into_iter().flatten().for_each(|g| *g += product);
        };
        for token in 0..self.len() {
            let (a, output, now) =
                (self.of(&self.a, token), self.of(&self.output, token), self.chunk_of(token));
            let mut da = vec![0.0; key];
            let sums = self.read(token);
            // The gradients of y and n of both sums.
            let of_sums: [(Vec<f64>, f64); 2] = std::array::from_fn(|place| {
                let (y, n) = (&sums[place].0, self.norm(sums[place].1));
                let factor = if self.reads(token, place) { self.scale / n } else { 0.0 };
                let sign = if self.absolute { 1.0 } else { -1.0 };
                let dn = if self.eps.is_some() { sign * factor * self.dot(output, y) / n } else { 0.0 };
                let mut dy = vec![0.0; value];
                self.add(factor, output, &mut dy);
                (dy, dn)
            });
            for r in 0..=token {
                let (dy, dn) = &of_sums[self.place(self.chunk_of(r), now)];
                let (c, v) = (self.of(&self.c, r), self.of(&self.v, r));
                let decay = self.decay(r + 1, token);
                let weight = decay * (self.dot(dy, v) + dn);
                self.add(weight, c, &mut da);
                self.add(weight, a, &mut to.c[r * key..][..key]);
                self.add(decay * self.dot(a, c), dy, &mut to.v[r * value..][..value]);
                of_gates(r + 1..=token, weight * self.dot(a, c));
            }
            let decay = self.decay(0, token);
            for (i, place) in self.initial_places(now).into_iter().enumerate() {
                let (dy, dn) = &of_sums[place];
                for (k, row) in self.initial[i].s.chunks(value).enumerate() {
                    let z = &self.initial[i].z[k..=k];
                    da[k] += decay * self.dot(row, dy);
                    self.add(decay * dn, z, &mut da[k..=k]);
                    self.add(decay * a[k], dy, &mut to.initial[i].s[k * value..][..value]);
                    self.add(decay * dn, &a[k..=k], &mut to.initial[i].z[k..=k]);
                    of_gates(
                        0..=token,
                        decay * self.dot(&a[k..=k], &[self.dot(row, dy) + self.dot(&[*dn], z)]),
                    );
                }
            }
            to.a[token * key..][..key].copy_from_slice(&da);
        }
        let now = self.last_chunk();
        for token in 0..self.len() {
            let of_last = &self.last[self.place(self.chunk_of(token), now)];
            let (c, v) = (self.of(&self.c, token), self.of(&self.v, token));
            let decay = self.decay(token + 1, last);
            for (k, row) in of_last.s.chunks(value).enumerate() {
                let z = &of_last.z[k..=k];
                to.c[token * key + k] += decay * self.dot(row, v);
                self.add(decay, z, &mut to.c[token * key + k..][..1]);
                self.add(decay * c[k], row, &mut to.v[token * value..][..value]);
                of_gates(
                    token + 1..=last,
                    decay * (self.dot(&c[k..=k], &[self.dot(row, v)]) + self.dot(&c[k..=k], z)),
                );
            }
        }
        let decay = self.decay(0, last);
        for (i, place) in self.initial_places(now).into_iter().enumerate() {
            let (initial, of_last) = (&self.initial[i], &self.last[place]);
            self.add(decay, &of_last.s, &mut to.initial[i].s);
            self.add(decay, &of_last.z, &mut to.initial[i].z);
            of_gates(0..=last, decay * (self.dot(&initial.s, &of_last.s) + self.dot(&initial.z, &of_last.z)));
        }
        to
    }
}

/// The derivative of the feature map.
pub(super) fn derivative(map: FeatureMap, x: f32) -> f64 {
    match map {
        FeatureMap::Elu => phi(map, x).min(1.0),
        FeatureMap::Relu { .. } => f64::from(x > 0.0),
        _ => 1.0,
    }
}
