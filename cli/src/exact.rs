//! The model in f64 by its definition, written so that it can be checked by reading: it has no state and no
//! tiles, and carries no sums from one chunk to the next.

use chunkwise::FeatureMap;
use chunkwise::nn::{AttentionKind, LayerNorm, Linear, ModelConfig, OutputMode, Weights};

/// Every intermediate tensor that golden files store, and the output, by name.
pub(crate) fn run(
    config: &ModelConfig,
    weights: &Weights<'_>,
    len: usize,
    input: &[f32],
) -> Vec<(String, Vec<f64>)> {
    let mut all = Vec::new();
    let mut x: Vec<f64> = input.iter().copied().map(f64::from).collect();
    if let Some(projection) = &weights.input_projection {
        x = dense(projection, &x);
    }
    for (i, block) in weights.blocks.iter().enumerate() {
        let qkv = dense(&block.attn_qkv, &layer_norm(&block.attn_norm, &x));
        let mixed = Attention::of(config, len).run(&qkv);
        add(&mut x, &dense(&block.attn_out, &mixed));
        let inner: Vec<f64> =
            dense(&block.ffn_up, &layer_norm(&block.ffn_norm, &x)).into_iter().map(gelu).collect();
        add(&mut x, &dense(&block.ffn_down, &inner));
        if i == 0 {
            all.push(("attn1_qkv".into(), qkv));
            all.push(("attn1_out".into(), mixed));
        }
        all.push((format!("after_block_{}", i + 1), x.clone()));
    }
    if let Some(norm) = &weights.final_norm {
        x = layer_norm(norm, &x);
        all.push(("final_norm_out".into(), x.clone()));
    }
    all.push(("output".into(), output(config, len, &x)));
    all
}

/// y = x W + b
fn dense(layer: &Linear<'_>, x: &[f64]) -> Vec<f64> {
    let kernel: Vec<f64> = layer.kernel().iter().map(f64::from).collect();
    let mut y = Vec::new();
    for row in x.chunks_exact(layer.inputs()) {
        for (j, bias) in layer.bias().iter().enumerate() {
            let column = kernel.iter().skip(j).step_by(layer.outputs());
            y.push(f64::from(bias) + row.iter().zip(column).map(|(x, w)| x * w).sum::<f64>());
        }
    }
    y
}

/// y = (x - mean) gamma / sqrt(var + eps) + beta; with `clip` the root is sqrt(eps) where var < eps.
fn layer_norm(norm: &LayerNorm<'_>, x: &[f64]) -> Vec<f64> {
    let (size, eps) = (norm.gamma.len(), f64::from(norm.eps));
    let mut y = Vec::new();
    for row in x.chunks_exact(size) {
        let mean = row.iter().sum::<f64>() / size as f64;
        let var = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / size as f64;
        let root = if norm.clip && var < eps { eps.sqrt() } else { (var + eps).sqrt() };
        for ((x, gamma), beta) in row.iter().zip(norm.gamma.iter()).zip(norm.beta.iter()) {
            y.push((x - mean) * f64::from(gamma) / root + f64::from(beta));
        }
    }
    y
}

/// x (1 + erf(x / sqrt 2)) / 2
fn gelu(x: f64) -> f64 {
    x * (1.0 + libm::erf(x / 2f64.sqrt())) / 2.0
}

fn add(x: &mut [f64], y: &[f64]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

fn output(config: &ModelConfig, len: usize, x: &[f64]) -> Vec<f64> {
    let hidden = config.hidden_size;
    let sequences = x.chunks_exact((len * hidden).max(1));
    match config.output_mode {
        OutputMode::All => x.to_vec(),
        OutputMode::LastTimestep => sequences.flat_map(|rows| rows[(len - 1) * hidden..].to_vec()).collect(),
        OutputMode::Mean => {
            let mean = |rows: &[f64], j: usize| rows.iter().skip(j).step_by(hidden).sum::<f64>() / len as f64;
            sequences.flat_map(|rows| (0..hidden).map(move |j| mean(rows, j))).collect()
        }
    }
}

/// The attention on rows of q | k | v, which may contain further elements.
#[derive(Clone, Copy)]
pub(crate) struct Attention {
    pub(crate) kind: AttentionKind,
    pub(crate) len: usize,
    pub(crate) heads: usize,
    pub(crate) dim: usize,
    pub(crate) row: usize,
    pub(crate) chunk: usize,
    pub(crate) feature_map: FeatureMap,
}

impl Attention {
    pub(crate) fn of(config: &ModelConfig, len: usize) -> Self {
        Self {
            kind: config.attention,
            len,
            heads: config.num_heads,
            dim: config.head_dim(),
            row: 3 * config.hidden_size,
            chunk: config.chunk(),
            feature_map: config.feature_map,
        }
    }

    /// The elements of q, of k and of v in a row.
    pub(crate) fn width(&self) -> usize {
        self.heads * self.dim
    }

    /// ```text
    /// w_s = phi(q_t) . phi(k_s)
    /// o_t = sum_s w_s v_s / (sum_s w_s + 1e-8), over s <= t of t's chunk, plus the same over all s before it
    /// lightning: phi(x) = x, and in t's chunk w_s = exp(q_t . k_s / sqrt(dim) - the largest of these)
    /// ```
    pub(crate) fn run(&self, qkv: &[f64]) -> Vec<f64> {
        let Self { len, heads, dim, row, chunk, .. } = *self;
        let width = self.width();
        let mut o = vec![0.0; qkv.len() / row * width];
        for (at, o) in o.chunks_exact_mut(dim).enumerate() {
            let (t, head) = (at / heads % len, at % heads);
            let sequence = &qkv[at / heads / len * len * row..];
            let part = |s: usize, which: usize| &sequence[s * row + which * width + head * dim..][..dim];
            let begin = t - t % chunk;
            for (range, own) in [(begin..t + 1, true), (0..begin, false)] {
                let mut weights: Vec<f64> = range
                    .clone()
                    .map(|s| {
                        part(t, 0).iter().zip(part(s, 1)).map(|(q, k)| self.phi(*q) * self.phi(*k)).sum()
                    })
                    .collect();
                if own && self.kind == AttentionKind::Lightning {
                    let largest = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    weights.iter_mut().for_each(|w| *w = ((*w - largest) / (dim as f64).sqrt()).exp());
                }
                let mut sum = 0.0;
                let mut mixed = vec![0.0; dim];
                for (s, w) in range.zip(weights) {
                    sum += w;
                    mixed.iter_mut().zip(part(s, 2)).for_each(|(mixed, v)| *mixed += w * v);
                }
                o.iter_mut().zip(mixed).for_each(|(o, mixed)| *o += mixed / (sum + 1e-8));
            }
        }
        o
    }

    fn phi(&self, x: f64) -> f64 {
        match self.feature_map {
            _ if self.kind == AttentionKind::Lightning => x,
            FeatureMap::Relu { eps } => x.max(0.0) + f64::from(eps),
            FeatureMap::Identity => x,
            _ if x > 0.0 => 1.0 + x,
            _ => x.exp(),
        }
    }
}
