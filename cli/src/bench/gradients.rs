//! A forward and a backward that are measured, as one step of training executes them, and the error of the
//! gradients.

use chunkwise::backward::{Gradients, Inputs as Given};
use chunkwise::reference::phi;
use chunkwise::{Attention, Config, FeatureMap, Gate, Normaliser, Rule, Shape, State, Tensors};

use super::inputs::{Inputs, is_constant};
use super::memory::Aligned;
use super::numbers::{Error, Number, loaded, numbers, over_rounding, stored_aligned};
use super::work::attention_flops;

/// The documented bound of the norm error in f32, relative to the norm that a gradient would have if none of
/// its terms cancelled.
const BOUND: f64 = 5e-6;

/// Attention on contiguous `[B, T, H, D]`, the gradient of its outputs, and the gradients of q, k, v and g; g is f32.
pub(super) struct Training<E> {
    attention: Attention,
    q: Aligned<E>,
    k: Aligned<E>,
    v: Aligned<E>,
    g: Aligned<f32>,
    o: Aligned<E>,
    output: Aligned<E>,
    dq: Aligned<E>,
    dk: Aligned<E>,
    dv: Aligned<E>,
    /// Empty without a gate, and with a constant decay, which is not learned.
    dg: Aligned<f32>,
    scratch: Aligned<f32>,
}

impl<E: Number> Training<E> {
    pub(super) fn new(config: Config) -> chunkwise::Result<Self> {
        let attention = Attention::new(config)?;
        let Inputs { q, k, v, g, .. } = Inputs::new(&config);
        let output = gradient_of_outputs(&config.shape);
        let zeros = |len| Aligned::filled(E::default(), len);
        Ok(Self {
            attention,
            o: zeros(output.len()),
            dq: zeros(q.len()),
            dk: zeros(k.len()),
            dv: zeros(v.len()),
            dg: Aligned::filled(0.0, if is_constant(&config.shape) { 0 } else { g.len() }),
            g: Aligned::copy_of(&g),
            q: stored_aligned(&q),
            k: stored_aligned(&k),
            v: stored_aligned(&v),
            output: stored_aligned(&output),
            scratch: Aligned::filled(0.0, attention.scratch_len().max(attention.backward_scratch_len())),
        })
    }

    pub(super) fn run(&mut self) -> chunkwise::Result<()> {
        let Self { attention, q, k, v, g, o, output, dq, dk, dv, dg, scratch } = self;
        let tensors = Tensors::new(&q[..], &k[..], &v[..], &mut o[..]).gate(&g[..]);
        attention.forward(tensors, State::Zero, scratch)?;
        let mut gradients = Gradients::new(&mut dq[..], &mut dk[..], &mut dv[..]);
        if !dg.is_empty() {
            gradients = gradients.gate(&mut dg[..]);
        }
        let given = Given::new(&q[..], &k[..], &v[..], &output[..]).gate(&g[..]);
        attention.backward(given, gradients, scratch)
    }

    /// The flops of the recurrence: 4 K V for each token and head forwards, and 12 K V backwards.
    pub(super) fn recurrent_flops(&self) -> f64 {
        let Shape { batch, heads, key, value, len, .. } = self.attention.config().shape;
        (batch * heads) as f64 * attention_flops(16, [key, value], len, 0)
    }

    /// The flops that are executed. Sums of finished chunks are read by each pass but the last one, which
    /// adds all tokens to the sums of both sets of chunks.
    pub(super) fn flops(&self) -> f64 {
        let Config { rule, shape, .. } = self.attention.config();
        let Shape { batch, heads, key, value, len, .. } = *shape;
        let (products, past) = match rule.normaliser {
            Normaliser::PerChunk { chunk, .. } => (20, 2 * len.saturating_sub(chunk)),
            _ => (16, 0),
        };
        (batch * heads) as f64 * attention_flops(products, [key, value], len, past)
    }

    /// The bytes of all tensors, read or written once by the forward and once by the backward.
    pub(super) fn tensor_bytes(&self) -> f64 {
        let read = self.q.len() + self.k.len() + self.v.len();
        let gates = 2 * self.g.len() + self.dg.len();
        (size_of::<E>() * (3 * read + 2 * self.o.len()) + size_of::<f32>() * gates) as f64
    }

    /// The largest error of the gradients of q, k, v and g of two heads: the last one, and one in the middle.
    pub(super) fn error(&mut self) -> chunkwise::Result<Error> {
        self.run()?;
        let config = *self.attention.config();
        let Shape { batch, heads, .. } = config.shape;
        let exact = (Inputs::new(&config), gradient_of_outputs(&config.shape));
        let [dq, dk, dv] = [&self.dq, &self.dk, &self.dv].map(|x| loaded(x));
        let got = [dq, dk, dv, self.dg.to_vec()];
        let mut worst = Error { norm: 0.0, allowed: BOUND };
        for (b, h) in [(0, (heads - 1) / 2), (batch - 1, heads - 1)] {
            let want = oracle(&config, &exact, [b, h], false);
            let size = oracle(&config, &exact, [b, h], true);
            let rounded = (size_of::<E>() < size_of::<f32>()).then(|| {
                let output = loaded(&self.output);
                oracle(&config, &(Inputs::new(&config).rounded::<E>(), output), [b, h], false)
            });
            for (i, got) in got.iter().enumerate().filter(|(_, got)| !got.is_empty()) {
                let got = head(&config, got, i, [b, h]);
                let norm = |of: &[f64]| of.iter().map(|x| x * x).sum::<f64>().sqrt();
                let difference: Vec<f64> = got.iter().zip(&want[i]).map(|(x, y)| f64::from(*x) - y).collect();
                let scale = norm(&size[i]);
                let allowed = rounded.as_ref().map_or(BOUND, |rounded| {
                    // The gradient of g is f32.
                    let store = |x: &f64| if i == 3 { *x as f32 } else { E::store(*x as f32).load() };
                    let rounded: Vec<f32> = rounded[i].iter().map(store).collect();
                    over_rounding(&rounded, &want[i]) * norm(&want[i]) / scale
                });
                let error = Error { norm: norm(&difference) / scale, allowed };
                let share = error.norm / error.allowed;
                if share.is_nan() || share > worst.norm / worst.allowed {
                    worst = error;
                }
            }
        }
        Ok(worst)
    }
}

fn gradient_of_outputs(shape: &Shape) -> Vec<f32> {
    numbers(6, shape.batch * shape.len * shape.groups.output() * shape.value)
}

/// The rows of the head of q (0), k (1), v (2) or g (3) that a head of o uses.
fn head(config: &Config, x: &[f32], tensor: usize, [b, h]: [usize; 2]) -> Vec<f32> {
    let Shape { len, heads, groups, key, value, .. } = config.shape;
    let (few, dim) = [(groups.query, key), (groups.key, key), (groups.value, value), (heads, 1)][tensor];
    let row = |t: usize| ((b * len + t) * few + h / (heads / few)) * dim;
    (0..len).flat_map(|t| &x[row(t)..row(t) + dim]).copied().collect()
}

/// The gradients, in f64, of the heads of q, k, v and g that a head of o uses: sums over all heads of o that use
/// them. With `absolute` no terms cancel.
fn oracle(config: &Config, given: &(Inputs, Vec<f32>), of: [usize; 2], absolute: bool) -> [Vec<f64>; 4] {
    let Config { rule, shape, .. } = config;
    let Shape { len, heads, groups, key, value, .. } = *shape;
    let (inputs, output) = given;
    let [b, h] = of;
    let shared = heads / groups.query;
    let first = h / shared * shared;
    let mut sums = [vec![0.0; len * key], vec![0.0; len * key], vec![], vec![]];
    for other in first..first + shared {
        let row = |t: usize| ((b * len + t) * heads + other) * value;
        let output: Vec<f32> = (0..len).flat_map(|t| &output[row(t)..row(t) + value]).copied().collect();
        let [q, k, v] =
            [(&inputs.q, 0), (&inputs.k, 1), (&inputs.v, 2)].map(|(x, i)| head(config, x, i, [b, other]));
        let mapped = |x: &[f32]| x.iter().map(|x| phi(rule.feature_map, *x)).collect();
        let wide = |x: &[f32]| x.iter().copied().map(f64::from).collect();
        let g: Vec<f32> = match rule.gate {
            Gate::None => vec![0.0; len],
            _ if is_constant(shape) => vec![inputs.g[other]; len],
            _ => head(config, &inputs.g, 3, [b, other]),
        };
        let decays: Vec<f64> = g.iter().map(|g| f64::from(*g).exp()).collect();
        let mut rows: [Vec<f64>; 4] = [mapped(&q), mapped(&k), wide(&v), wide(&output)];
        if absolute {
            rows.iter_mut().flatten().for_each(|x| *x = x.abs());
        }
        let [da, dc, dv, dg] = recurrence(rule, &rows, &decays, absolute);
        for (sum, (gradient, x)) in sums.iter_mut().zip([(da, q), (dc, k)]) {
            for (sum, (gradient, x)) in sum.iter_mut().zip(gradient.iter().zip(x)) {
                *sum += gradient * derivative(rule.feature_map, x);
            }
        }
        if other == h {
            (sums[2], sums[3]) = (dv, dg);
        }
    }
    sums
}

/// S and z, or their gradients.
#[derive(Clone)]
struct Sums {
    s: Vec<f64>,
    z: Vec<f64>,
}

impl Sums {
    fn decay(&mut self, decay: f64) {
        self.s.iter_mut().chain(&mut self.z).for_each(|x| *x *= decay);
    }

    /// Adds an outer product to S, and to z.
    fn add(&mut self, rows: &[f64], columns: &[f64], factor: f64) {
        for ((row, z), x) in self.s.chunks_exact_mut(columns.len()).zip(&mut self.z).zip(rows) {
            row.iter_mut().zip(columns).for_each(|(s, y)| *s += x * y);
            *z += factor * x;
        }
    }
}

/// The gradients of phi(q), phi(k), v and g of one head, token by token as `chunkwise::backward` defines them.
fn recurrence(
    rule: &Rule,
    [a, c, v, output]: &[Vec<f64>; 4],
    decays: &[f64],
    absolute: bool,
) -> [Vec<f64>; 4] {
    let len = decays.len();
    let (key, value) = (a.len() / len, v.len() / len);
    let (chunk, eps) = match rule.normaliser {
        Normaliser::Global { eps } => (None, Some(f64::from(eps))),
        Normaliser::PerChunk { chunk, eps } => (Some(chunk), Some(f64::from(eps))),
        _ => (None, None),
    };
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let is_boundary = |t: usize| chunk.is_some_and(|chunk| t > 0 && t.is_multiple_of(chunk));
    let zero = Sums { s: vec![0.0; key * value], z: vec![0.0; key] };
    let (mut da, mut dc, mut dv) = (vec![0.0; a.len()], vec![0.0; c.len()], vec![0.0; v.len()]);
    // scale / n and dn of each token, of the sums of its chunk and of the finished chunks.
    let mut numbers = vec![[(0.0, 0.0); 2]; len];
    let mut sums = [zero.clone(), zero.clone()];
    for t in 0..len {
        if is_boundary(t) {
            let [current, past] = &mut sums;
            past.s.iter_mut().zip(&current.s).for_each(|(past, s)| *past += s);
            past.z.iter_mut().zip(&current.z).for_each(|(past, z)| *past += z);
            *current = zero.clone();
        }
        let [of_key, of_value] = [t * key..(t + 1) * key, t * value..(t + 1) * value];
        sums[0].decay(decays[t]);
        sums[0].add(&c[of_key.clone()], &v[of_value.clone()], 1.0);
        let reads_past = chunk.is_some_and(|chunk| t >= chunk);
        for (sums, numbers) in sums.iter().zip(&mut numbers[t]).take(1 + usize::from(reads_past)) {
            let a = &a[of_key.clone()];
            let read: Vec<f64> =
                sums.s.chunks_exact(value).map(|row| dot(row, &output[of_value.clone()])).collect();
            let n = eps.map_or(1.0, |eps| dot(a, &sums.z) + eps);
            let factor = f64::from(rule.scale) / n;
            let sign = if absolute { 1.0 } else { -1.0 };
            let dn = if eps.is_some() { sign * factor * dot(a, &read) / n } else { 0.0 };
            for ((da, read), z) in da[of_key.clone()].iter_mut().zip(&read).zip(&sums.z) {
                *da += factor * read + dn * z;
            }
            *numbers = (factor, dn);
        }
    }
    let mut sums = [zero.clone(), zero];
    let (mut dg, mut of_later) = (vec![0.0; len], 0.0);
    for t in (0..len).rev() {
        if is_boundary(t + 1) {
            sums[0] = sums[1].clone();
        }
        let [of_key, of_value] = [t * key..(t + 1) * key, t * value..(t + 1) * value];
        sums[0].decay(decays.get(t + 1).copied().unwrap_or(1.0));
        for (sums, (factor, dn)) in sums.iter_mut().zip(numbers[t]) {
            let dn_row: Vec<f64> = output[of_value.clone()].iter().map(|x| factor * x).collect();
            sums.add(&a[of_key.clone()], &dn_row, dn);
        }
        let Sums { s, z } = &sums[0];
        let dv = &mut dv[of_value.clone()];
        for (i, (row, z)) in s.chunks_exact(value).zip(z).enumerate() {
            dc[t * key + i] = dot(row, &v[of_value.clone()]) + z;
            dv.iter_mut().zip(row).for_each(|(dv, r)| *dv += c[t * key + i] * r);
        }
        let sign = if absolute { 1.0 } else { -1.0 };
        let of_key = t * key..(t + 1) * key;
        of_later +=
            dot(&a[of_key.clone()], &da[of_key.clone()]) + sign * dot(&c[of_key.clone()], &dc[of_key]);
        dg[t] = of_later;
    }
    [da, dc, dv, dg]
}

fn derivative(map: FeatureMap, x: f32) -> f64 {
    match map {
        FeatureMap::Elu => phi(map, x).min(1.0),
        FeatureMap::Relu { .. } => f64::from(x > 0.0),
        _ => 1.0,
    }
}
