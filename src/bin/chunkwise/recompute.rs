//! The tensors that golden files store, computed anew by the library.

use std::borrow::Cow;

use chunkwise::files::{self, Options, Result, Tensor};
use chunkwise::nn::{Block, Linear, Model, ModelConfig, OutputMode};
use chunkwise::{Attention, Config, FeatureMap, Isa, Normaliser, Rule, Shape, State, Strides, Tensors};

/// A tensor computed anew.
pub(crate) struct Recomputed {
    /// The name under which files store it.
    pub(crate) name: String,
    /// How, where there is more than one way.
    pub(crate) how: &'static str,
    pub(crate) tensor: Tensor<'static>,
}

fn plain(name: impl Into<String>, shape: &[usize], data: Vec<f32>) -> Recomputed {
    Recomputed { name: name.into(), how: "", tensor: Tensor { shape: shape.into(), data: Cow::Owned(data) } }
}

/// What a model file may hold, for an input `[B, T, embed]`.
pub(crate) fn model(model: &Model<'_>, threads: usize, input: &Tensor<'_>) -> Result<Vec<Recomputed>> {
    let forward = files::forward(model, input)?;
    let logits = files::logits(model, &forward)?;
    let mut all = intermediates(model, threads, input)?;
    all.push(Recomputed {
        name: "output_single_chunk_patched".into(),
        how: "",
        tensor: one_chunk(model, threads, input)?,
    });
    all.push(Recomputed { name: "output".into(), how: "by step", tensor: files::stream(model, input)? });
    all.push(Recomputed { name: "output".into(), how: "", tensor: forward });
    all.extend(logits.map(|tensor| Recomputed { name: "logits".into(), how: "", tensor }));
    Ok(all)
}

fn intermediates(model: &Model<'_>, threads: usize, input: &Tensor<'_>) -> Result<Vec<Recomputed>> {
    let (config, weights, isa) = (model.config(), model.weights(), model.isa());
    let [batch, len, _] = input.shape[..] else { return Ok(Vec::new()) };
    let ModelConfig { hidden_size, .. } = *config;
    let mut all = Vec::new();
    let mut x = match &weights.input_projection {
        Some(layer) => dense(layer, isa, threads, &input.data)?,
        None => input.data.to_vec(),
    };
    if let Some(block) = weights.blocks.first() {
        let mut normed = vec![0.0; x.len()];
        block.attn_norm.forward(isa, &x, &mut normed)?;
        let qkv = dense(&block.attn_qkv, isa, threads, &normed)?;
        let kernel = Kernel::of(config, batch, len, isa, threads);
        all.push(plain("attn1_out", &kernel.out_shape(), kernel.forward(&qkv)?));
        all.push(plain("attn1_qkv", &[batch, len, 3 * hidden_size], qkv));
    }
    for (i, weights) in weights.blocks.iter().enumerate() {
        let block = Block::new(config, *weights, isa, threads)?;
        block.forward(batch, len, &mut x, &mut vec![0.0; block.scratch_len(batch, len)?])?;
        all.push(plain(format!("after_block_{}", i + 1), &[batch, len, hidden_size], x.clone()));
    }
    if let Some(norm) = weights.final_norm {
        let mut normed = vec![0.0; x.len()];
        norm.forward(isa, &x, &mut normed)?;
        all.push(plain("final_norm_out", &[batch, len, hidden_size], normed));
    }
    Ok(all)
}

/// The last time step of the first chunk alone.
fn one_chunk(model: &Model<'_>, threads: usize, input: &Tensor<'_>) -> Result<Tensor<'static>> {
    let config = ModelConfig { output_mode: OutputMode::LastTimestep, ..*model.config() };
    let [batch, len, embed] = input.shape[..] else { return files::forward(model, input) };
    let first = len.min(config.chunk());
    let data = (0..batch).flat_map(|b| &input.data[b * len * embed..][..first * embed]).copied().collect();
    let model = Model::new(config, *model.weights(), Some(model.isa()), threads)?;
    files::forward(&model, &Tensor { shape: vec![batch, first, embed], data })
}

fn dense(layer: &Linear<'_>, isa: Isa, threads: usize, x: &[f32]) -> Result<Vec<f32>> {
    let rows = x.len() / layer.inputs().max(1);
    let mut y = vec![0.0; rows * layer.outputs()];
    layer.forward(isa, threads, x, &mut y, &mut vec![0.0; layer.scratch_len(isa, threads, rows)])?;
    Ok(y)
}

/// The attention alone, on packed rows of q | k | v.
pub(crate) struct Kernel {
    pub(crate) batch: usize,
    pub(crate) len: usize,
    pub(crate) heads: usize,
    pub(crate) dim: usize,
    /// Elements from one row to the next: there may be more than q, k and v.
    pub(crate) row: usize,
    pub(crate) chunk: usize,
    pub(crate) feature_map: FeatureMap,
    pub(crate) isa: Isa,
    pub(crate) threads: usize,
}

impl Kernel {
    fn of(config: &ModelConfig, batch: usize, len: usize, isa: Isa, threads: usize) -> Self {
        Self {
            batch,
            len,
            heads: config.num_heads,
            dim: config.head_dim(),
            row: 3 * config.hidden_size,
            chunk: config.chunk(),
            feature_map: config.feature_map,
            isa,
            threads,
        }
    }

    /// Of a kernel file, whose rows are q, k and v and nothing else.
    pub(crate) fn of_file(options: &Options, qkv: &Tensor<'_>, isa: Isa, threads: usize) -> Option<Self> {
        let [batch, len, row] = qkv.shape[..] else { return None };
        let heads = options.num_heads.filter(|heads| row % (3 * heads) == 0 && row > 0)?;
        let dim = row / 3 / heads;
        Some(Self {
            batch,
            len,
            heads,
            dim,
            row,
            chunk: options.chunk_size?,
            feature_map: options.feature_map?,
            isa,
            threads,
        })
    }

    fn out_shape(&self) -> [usize; 3] {
        [self.batch, self.len, self.heads * self.dim]
    }

    /// What a kernel file holds.
    pub(crate) fn outputs(&self, qkv: &[f32]) -> Result<Vec<Recomputed>> {
        let by_step = plain("out", &self.out_shape(), self.decode(qkv)?);
        Ok(vec![
            plain("out", &self.out_shape(), self.forward(qkv)?),
            Recomputed { how: "by step", ..by_step },
        ])
    }

    fn attention(&self, len: usize) -> Result<Attention> {
        // The strides of the whole tensor, whatever part of the tokens one call takes.
        let packed = Strides::packed(self.len, self.row, self.dim);
        let shape = Shape::new(self.batch, self.len, self.heads, self.dim, self.dim)
            .with_inputs(packed, packed, packed)
            .with_len(len);
        let rule = Rule::linear(Normaliser::per_chunk(self.chunk)).feature_map(self.feature_map);
        Ok(Attention::new(Config::new(rule, shape).isa(self.isa).threads(self.threads))?)
    }

    fn forward(&self, qkv: &[f32]) -> Result<Vec<f32>> {
        let attention = self.attention(self.len)?;
        let width = self.heads * self.dim;
        let mut o = vec![0.0; self.out_shape().iter().product()];
        let scratch = &mut vec![0.0; attention.scratch_len()];
        let [q, k, v] = [0, 1, 2].map(|which| &qkv[(which * width).min(qkv.len())..]);
        attention.forward(Tensors::new(q, k, v, &mut o), State::Zero, scratch)?;
        Ok(o)
    }

    fn decode(&self, qkv: &[f32]) -> Result<Vec<f32>> {
        let attention = self.attention(1)?;
        let width = self.heads * self.dim;
        let mut o = vec![0.0; self.out_shape().iter().product()];
        let scratch = &mut vec![0.0; attention.decode_scratch_len()];
        let state = &mut vec![0.0; attention.state_len()];
        for t in 0..self.len {
            let [q, k, v] = [0, 1, 2].map(|which| &qkv[t * self.row + which * width..]);
            attention.decode(Tensors::new(q, k, v, &mut o[t * width..]), state, scratch)?;
        }
        Ok(o)
    }
}
