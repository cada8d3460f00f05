//! The tensors that golden files store, recomputed by the library.

use std::borrow::Cow;

use chunkwise::files::{self, Error, Options, Result, Tensor};
use chunkwise::nn::{AttentionKind, Block, Linear, Model, ModelConfig};
use chunkwise::{
    Attention, Config, Isa, Lightning, Normaliser, Rule, Shape, State, Strides, Tensors, lightning,
};

use super::{exact, memory};

/// A recomputed tensor.
pub(crate) struct Recomputed {
    /// The name under which files store it.
    pub(crate) name: String,
    /// How it was computed, where there is more than one way.
    pub(crate) how: &'static str,
    pub(crate) tensor: Tensor<'static>,
}

fn plain(name: impl Into<String>, shape: &[usize], data: Vec<f32>) -> Recomputed {
    Recomputed { name: name.into(), how: "", tensor: Tensor { shape: shape.into(), data: Cow::Owned(data) } }
}

/// The tensors that a model file may contain, for an input `[B, T, embed]` or `[T, embed]`.
pub(crate) fn model(model: &Model<'_>, threads: usize, input: &Tensor<'_>) -> Result<Vec<Recomputed>> {
    let [batch, len] = sizes(input);
    memory::check_run(model, batch, len)?;
    let forward = files::forward(model, input)?;
    let logits = files::logits(model, &forward)?;
    let mut all = intermediates(model, threads, input)?;
    all.push(Recomputed {
        name: "output_single_chunk_patched".into(),
        how: "",
        tensor: files::forward(model, &first_chunk(model.config(), input))?,
    });
    all.push(Recomputed { name: "output".into(), how: "by step", tensor: files::stream(model, input)? });
    all.push(Recomputed { name: "output".into(), how: "", tensor: forward });
    all.extend(logits.map(|tensor| Recomputed { name: "logits".into(), how: "", tensor }));
    Ok(all)
}

/// The sequences and tokens of an input that the model takes. Without a batch there is one sequence.
pub(crate) fn sizes(input: &Tensor<'_>) -> [usize; 2] {
    match input.shape[..] {
        [batch, len, _] => [batch, len],
        [len, _] => [1, len],
        _ => [0, 0],
    }
}

fn intermediates(model: &Model<'_>, threads: usize, input: &Tensor<'_>) -> Result<Vec<Recomputed>> {
    let (config, weights, isa) = (model.config(), model.weights(), model.isa());
    let [batch, len] = sizes(input);
    if batch == 0 || len == 0 {
        // Shapes without elements may have any sizes.
        return Ok(Vec::new());
    }
    // The shape has no batch where the input has none.
    let rows = |name: &str, columns: usize, data: Vec<f32>| {
        let shape = [&input.shape[..input.shape.len() - 1], &[columns]].concat();
        plain(name, &shape, data)
    };
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
        let kernel = Kernel { attention: exact::Attention::of(config, len), batch, isa, threads };
        all.push(rows("attn1_out", config.num_heads * config.head_dim(), kernel.forward(&qkv)?));
        all.push(rows("attn1_qkv", 3 * hidden_size, qkv));
    }
    for (i, weights) in weights.blocks.iter().enumerate() {
        let block = Block::new(config, *weights, isa, threads)?;
        block.forward(batch, len, &mut x, &mut vec![0.0; block.scratch_len(batch, len)?])?;
        all.push(rows(&format!("after_block_{}", i + 1), hidden_size, x.clone()));
    }
    if let Some(norm) = weights.final_norm {
        let mut normed = vec![0.0; x.len()];
        norm.forward(isa, &x, &mut normed)?;
        all.push(rows("final_norm_out", hidden_size, normed));
    }
    Ok(all)
}

/// The tokens of the input that are in the first chunk.
fn first_chunk<'a>(config: &ModelConfig, input: &Tensor<'a>) -> Tensor<'a> {
    let [_, len] = sizes(input);
    let (first, embed) = (len.min(config.chunk()), config.embed_dim);
    let mut shape = input.shape.clone();
    let tokens = shape.len() - 2;
    shape[tokens] = first;
    let data = match first < len {
        true => {
            input.data.chunks_exact(len * embed).flat_map(|rows| &rows[..first * embed]).copied().collect()
        }
        false => input.data.clone(),
    };
    Tensor { shape, data }
}

fn dense(layer: &Linear<'_>, isa: Isa, threads: usize, x: &[f32]) -> Result<Vec<f32>> {
    let rows = x.len() / layer.inputs().max(1);
    let mut y = vec![0.0; rows * layer.outputs()];
    layer.forward(isa, threads, x, &mut y, &mut vec![0.0; layer.scratch_len(isa, threads, rows)])?;
    Ok(y)
}

/// The attention alone, on packed rows of q | k | v.
pub(crate) struct Kernel {
    pub(crate) attention: exact::Attention,
    batch: usize,
    isa: Isa,
    threads: usize,
}

impl Kernel {
    /// The kernel of a kernel file, whose rows are q, k and v and nothing else.
    pub(crate) fn of_file(
        kind: AttentionKind,
        options: &Options,
        qkv: &Tensor<'_>,
        isa: Isa,
        threads: usize,
    ) -> Option<Self> {
        let [batch, len, row] = qkv.shape[..] else { return None };
        let whole = |heads: &usize| heads.checked_mul(3).is_some_and(|parts| row.is_multiple_of(parts));
        let heads = options.num_heads.filter(|heads| row > 0 && whole(heads))?;
        let (dim, chunk, feature_map) = (row / 3 / heads, options.chunk_size?, options.feature_map?);
        let attention = exact::Attention { kind, len, heads, dim, row, chunk, feature_map };
        Some(Self { attention, batch, isa, threads })
    }

    fn out_shape(&self) -> [usize; 3] {
        [self.batch, self.attention.len, self.attention.width()]
    }

    /// The tensors that a kernel file contains.
    pub(crate) fn outputs(&self, qkv: &[f32]) -> Result<Vec<Recomputed>> {
        let (whole, by_step) = match qkv {
            // Shapes without elements may have any sizes.
            [] => (Vec::new(), Vec::new()),
            qkv => {
                self.fits()?;
                (self.forward(qkv)?, self.decode(qkv)?)
            }
        };
        let out = |how, data| Recomputed { how, ..plain("out", &self.out_shape(), data) };
        Ok(vec![out("", whole), out("by step", by_step)])
    }

    /// Checks that there is memory for the state, which grows with the square of a row.
    fn fits(&self) -> Result<()> {
        let attention = self.build(self.attention.len)?;
        let elements = attention.state_len().checked_add(attention.scratch_len());
        memory::check(elements.and_then(|elements| elements.checked_mul(4))).map_err(Error::Io)
    }

    fn build(&self, len: usize) -> Result<Built> {
        let exact::Attention { kind, len: all, heads, dim, row, chunk, feature_map } = self.attention;
        // The strides are those of the whole tensor, also for a call that computes only some of the tokens.
        let packed = Strides::packed(all, row, dim);
        let shape =
            Shape::new(self.batch, all, heads, dim, dim).with_inputs(packed, packed, packed).with_len(len);
        Ok(match kind {
            AttentionKind::Lightning => {
                let config = lightning::Config::new(chunk, shape).isa(self.isa).threads(self.threads);
                Built::Lightning(Lightning::new(config)?)
            }
            _ => {
                let rule = Rule::linear(Normaliser::per_chunk(chunk)).feature_map(feature_map);
                let config = Config::new(rule, shape).isa(self.isa).threads(self.threads);
                Built::Linear(Attention::new(config)?)
            }
        })
    }

    fn forward(&self, qkv: &[f32]) -> Result<Vec<f32>> {
        let attention = self.build(self.attention.len)?;
        let width = self.attention.width();
        let mut o = vec![0.0; self.out_shape().iter().product()];
        let scratch = &mut vec![0.0; attention.scratch_len()];
        let [q, k, v] = [0, 1, 2].map(|which| &qkv[(which * width).min(qkv.len())..]);
        attention.forward(Tensors::new(q, k, v, &mut o), scratch)?;
        Ok(o)
    }

    fn decode(&self, qkv: &[f32]) -> Result<Vec<f32>> {
        let attention = self.build(1)?;
        let width = self.attention.width();
        let mut o = vec![0.0; self.out_shape().iter().product()];
        let scratch = &mut vec![0.0; attention.scratch_len()];
        let state = &mut vec![0.0; attention.state_len()];
        for t in 0..self.attention.len {
            let [q, k, v] = [0, 1, 2].map(|which| &qkv[t * self.attention.row + which * width..]);
            attention.decode(Tensors::new(q, k, v, &mut o[t * width..]), state, scratch)?;
        }
        Ok(o)
    }
}

/// An attention of either kind.
enum Built {
    Linear(Attention),
    Lightning(Lightning),
}

impl Built {
    fn state_len(&self) -> usize {
        match self {
            Built::Linear(attention) => attention.state_len(),
            Built::Lightning(lightning) => lightning.state_len(),
        }
    }

    /// The elements of scratch that suffice for both calls.
    fn scratch_len(&self) -> usize {
        match self {
            Built::Linear(attention) => attention.scratch_len().max(attention.decode_scratch_len()),
            Built::Lightning(lightning) => lightning.scratch_len().max(lightning.decode_scratch_len()),
        }
    }

    fn forward(&self, tensors: Tensors<'_>, scratch: &mut [f32]) -> chunkwise::Result<()> {
        match self {
            Built::Linear(attention) => attention.forward(tensors, State::Zero, scratch),
            Built::Lightning(lightning) => lightning.forward(tensors, State::Zero, scratch),
        }
    }

    fn decode(&self, tensors: Tensors<'_>, state: &mut [f32], scratch: &mut [f32]) -> chunkwise::Result<()> {
        match self {
            Built::Linear(attention) => attention.decode(tensors, state, scratch),
            Built::Lightning(lightning) => lightning.decode(tensors, state, scratch),
        }
    }
}
