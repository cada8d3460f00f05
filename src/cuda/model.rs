//! The model on a GPU: its parameters are copied there once, in their own types, and a forward is a queue of
//! kernels.
#![allow(unsafe_code, reason = "kernels take addresses")]

use std::ffi::c_void;
use std::ptr::from_mut;
use std::vec;
use std::vec::Vec;

use super::args::DenseArgs;
use super::attention::{Attention, Forward, State};
use super::device::{Device, Stream};
use super::error::{Error as CudaError, Result};
use super::kernels::{Kernel, Kind};
use super::memory::{Buffer, Slice, SliceMut};
use super::precision::Precision;
use crate::attention::Config;
use crate::element::Elements;
use crate::error::{Error, check_len, check_room};
use crate::nn::{AttentionKind, BlockWeights, LayerNorm, Linear, Model as CpuModel, ModelConfig, OutputMode};
use crate::rule::Rule;
use crate::shape::{Shape, Strides};

/// A model whose parameters are in a device's memory.
#[derive(Debug)]
pub struct Model {
    device: Device,
    config: ModelConfig,
    precision: Precision,
    input_projection: Option<Dense>,
    blocks: Vec<Block>,
    final_norm: Option<Norm>,
    /// The memory of all parameters.
    parameters: Buffer,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    attn_norm: Norm,
    attn_qkv: Dense,
    attn_out: Dense,
    ffn_norm: Norm,
    ffn_up: Dense,
    ffn_down: Dense,
}

/// A parameter: the byte at which it begins in the memory of all parameters, and its element type.
#[derive(Clone, Copy, Debug)]
struct Parameter {
    bytes: u64,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
struct Dense {
    kernel: Parameter,
    bias: Parameter,
    inputs: usize,
    outputs: usize,
}

#[derive(Clone, Copy, Debug)]
struct Norm {
    gamma: Parameter,
    beta: Parameter,
    eps: f32,
    clip: bool,
}

/// What a dense layer does with its product, as `Epilogue` in dense.cu.
#[derive(Clone, Copy)]
enum Epilogue {
    Store,
    Gelu,
    Add,
}

/// Parameters to be copied to the device: one after another, each at a multiple of 256 bytes.
#[derive(Default)]
struct Upload {
    words: Vec<f32>,
}

impl Upload {
    fn add(&mut self, elements: Elements<'_>) -> Parameter {
        let from = self.words.len();
        let bytes: &[u8] = match elements {
            Elements::F32(slice) => bytemuck::cast_slice(slice),
            Elements::Bf16(slice) => bytemuck::cast_slice(slice),
            Elements::F16(slice) => bytemuck::cast_slice(slice),
        };
        self.words.resize(from + bytes.len().div_ceil(256) * 64, 0.0);
        bytemuck::cast_slice_mut(&mut self.words[from..])[..bytes.len()].copy_from_slice(bytes);
        Parameter { bytes: (from * 4) as u64, kind: Kind::of_elements(elements) }
    }

    fn dense(&mut self, layer: &Linear<'_>) -> Dense {
        let (inputs, outputs) = (layer.inputs(), layer.outputs());
        Dense { kernel: self.add(layer.kernel()), bias: self.add(layer.bias()), inputs, outputs }
    }

    fn norm(&mut self, norm: &LayerNorm<'_>) -> Norm {
        let LayerNorm { gamma, beta, eps, clip } = *norm;
        Norm { gamma: self.add(gamma), beta: self.add(beta), eps, clip }
    }

    fn block(&mut self, block: &BlockWeights<'_>) -> Block {
        Block {
            attn_norm: self.norm(&block.attn_norm),
            attn_qkv: self.dense(&block.attn_qkv),
            attn_out: self.dense(&block.attn_out),
            ffn_norm: self.norm(&block.ffn_norm),
            ffn_up: self.dense(&block.ffn_up),
            ffn_down: self.dense(&block.ffn_down),
        }
    }
}

/// Pieces of a workspace, in elements.
struct Sizes {
    x: usize,
    normed: usize,
    wide: usize,
    attention: usize,
}

impl Model {
    /// Copies a checked model's parameters to a device. [`Precision::F32`] multiplies as precisely as f32
    /// does; [`Precision::Bf16Dot`] rounds rows and weights to bf16 before it multiplies them.
    ///
    /// # Errors
    /// A model of lightning attention, too little memory, errors of the driver, and what [`Attention::new`]
    /// refuses.
    pub fn new(device: &Device, model: &CpuModel<'_>, precision: Precision) -> Result<Self> {
        let (config, weights) = (*model.config(), model.weights());
        if config.attention != AttentionKind::Linear {
            return Err(CudaError::Unsupported { what: "models of lightning attention" });
        }
        let mut upload = Upload::default();
        let input_projection = weights.input_projection.as_ref().map(|layer| upload.dense(layer));
        let blocks: Vec<Block> = weights.blocks.iter().map(|block| upload.block(block)).collect();
        let final_norm = weights.final_norm.as_ref().map(|norm| upload.norm(norm));
        let parameters = Buffer::from_slice(device, &upload.words)?;
        let device = device.clone();
        let this = Self { device, config, precision, input_projection, blocks, final_norm, parameters };
        this.attention(1, 1)?;
        Ok(this)
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn attention(&self, batch: usize, len: usize) -> Result<Attention> {
        let ModelConfig { hidden_size, num_heads, feature_map, .. } = self.config;
        let dim = self.config.head_dim();
        let packed = Strides::packed(len, 3 * hidden_size, dim);
        let rule = Rule::linear(self.config.normaliser()).feature_map(feature_map);
        let shape = Shape::new(batch, len, num_heads, dim, dim).with_inputs(packed, packed, packed);
        Attention::new(&self.device, Config::new(rule, shape), self.precision)
    }

    fn sizes(&self, batch: usize, len: usize) -> Result<Sizes> {
        let ModelConfig { hidden_size, .. } = self.config;
        let (width, inner) = (self.config.attention_width(), self.config.inner_size());
        let overflow = Error::Overflow { what: "the workspace" };
        let rows = batch.checked_mul(len).ok_or(overflow)?;
        // Each piece has at most this many elements, and their sum is at most four times that.
        let most = rows.checked_mul(inner + 3 * hidden_size).filter(|all| *all <= isize::MAX as usize / 32);
        most.ok_or(overflow)?;
        // Kernels and grids count rows in 32 bits.
        if rows > i32::MAX as usize {
            return Err(overflow.into());
        }
        Ok(Sizes {
            x: rows * hidden_size,
            normed: rows * hidden_size,
            wide: rows * inner.max(3 * hidden_size + width),
            attention: self.attention(batch, len)?.workspace_len(),
        })
    }

    /// Elements of workspace that [`Model::forward`] needs.
    ///
    /// # Errors
    /// Sizes that overflow.
    pub fn workspace_len(&self, batch: usize, len: usize) -> Result<usize> {
        let Sizes { x, normed, wide, attention } = self.sizes(batch, len)?;
        Ok(x + normed + wide + attention)
    }

    /// Elements of the output of [`Model::forward`]: `B x T x hidden` for all time steps, else `B x hidden`.
    pub fn output_len(&self, batch: usize, len: usize) -> usize {
        let rows = if self.config.output_mode == OutputMode::All { len } else { 1 };
        batch.saturating_mul(rows).saturating_mul(self.config.output_size())
    }

    /// Compiles the kernels that [`Model::forward`] may launch, as [`Attention::prepare`] does.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn prepare(&self) -> Result<()> {
        let of_blocks = self.blocks.iter().flat_map(|b| [&b.attn_qkv, &b.attn_out, &b.ffn_up, &b.ffn_down]);
        let dense = self.input_projection.iter().chain(of_blocks).map(|layer| self.dense_kernel(layer));
        let attention = self.attention(1, 1)?.prefill(Kind::F32);
        self.device
            .prepare([attention, Kernel::Scan, Kernel::LayerNorm, Kernel::Mean].into_iter().chain(dense))
    }

    /// Runs the model over all tokens: input `[B, T, embed]` into output `[B, hidden]` or, in
    /// [`OutputMode::All`], `[B, T, hidden]`. The work is queued on the stream.
    ///
    /// # Errors
    /// Input, output or workspace of the wrong length; T = 0 where the output is one row for each sequence;
    /// errors of the driver.
    pub fn forward(
        &self,
        batch: usize,
        len: usize,
        input: Slice<'_>,
        output: SliceMut<'_>,
        workspace: SliceMut<'_>,
        stream: Stream,
    ) -> Result<()> {
        let ModelConfig { embed_dim, hidden_size, output_mode, .. } = self.config;
        if len == 0 && output_mode != OutputMode::All {
            return Err(Error::Zero { what: "T, for an output of one row" }.into());
        }
        let sizes = self.sizes(batch, len)?;
        let rows = batch * len;
        let input_len = rows.checked_mul(embed_dim).ok_or(Error::Overflow { what: "input" })?;
        check_len("input", input_len, input.len())?;
        check_len("output", self.output_len(batch, len), output.len())?;
        check_room("workspace", self.workspace_len(batch, len)?, workspace.len())?;
        let slices = [input.len_and_device(), output.len_and_device(), workspace.len_and_device()];
        for (what, (_, of)) in ["input", "output", "workspace"].into_iter().zip(slices) {
            self.device.check_memory(what, of)?;
        }
        if rows == 0 {
            return Ok(());
        }
        let attention = self.attention(batch, len)?;
        let _current = self.device.current()?;
        let (x, rest) = workspace.split_at(sizes.x);
        let (normed, rest) = rest.split_at(sizes.normed);
        let (mut wide, mut rest) = rest.split_at(sizes.wide);
        let (x, normed) = (x.address(), normed.address());
        match &self.input_projection {
            Some(layer) => self.dense(layer, rows, input.address(), x, Epilogue::Store, stream)?,
            None => self.mean(input.address(), x, hidden_size, rows, 1, stream)?,
        }
        for block in &self.blocks {
            self.block(block, &attention, rows, [x, normed], wide.reborrow(), rest.reborrow(), stream)?;
        }
        // The rows that are returned: how many, where the first is, and how far apart they are.
        let row = (hidden_size * size_of::<f32>()) as u64;
        let (count, first, stride) = match output_mode {
            OutputMode::LastTimestep => (batch, x + (len as u64 - 1) * row, len * hidden_size),
            OutputMode::All | OutputMode::Mean => (rows, x, hidden_size),
        };
        let to = if output_mode == OutputMode::Mean { normed } else { output.address() };
        match &self.final_norm {
            Some(norm) => self.norm(norm, count, first, stride, to, stream)?,
            None => self.mean(first, to, stride, count, 1, stream)?,
        }
        if output_mode == OutputMode::Mean {
            self.mean(to, output.address(), len * hidden_size, batch, len, stream)?;
        }
        Ok(())
    }

    /// Runs a block on rows of x in place. `normed` holds its normalised rows; `wide` holds q, k, v and the
    /// output of attention, and later the inner rows of the feed-forward network.
    #[allow(clippy::too_many_arguments, reason = "the pieces of one workspace")]
    fn block(
        &self,
        block: &Block,
        attention: &Attention,
        rows: usize,
        [x, normed]: [u64; 2],
        wide: SliceMut<'_>,
        workspace: SliceMut<'_>,
        stream: Stream,
    ) -> Result<()> {
        let (hidden, width) = (self.config.hidden_size, self.config.attention_width());
        let inner = wide.address();
        self.norm(&block.attn_norm, rows, x, hidden, normed, stream)?;
        self.dense(&block.attn_qkv, rows, normed, inner, Epilogue::Store, stream)?;
        let (qkv, mixed) = wide.split_at(rows * 3 * hidden);
        let mixed_at = mixed.address();
        let q = qkv.as_slice();
        let (k, v) = (q.from(width), q.from(2 * width));
        attention.forward(Forward { q, k, v, state: State::Zero, o: mixed, workspace }, stream)?;
        self.dense(&block.attn_out, rows, mixed_at, x, Epilogue::Add, stream)?;
        self.norm(&block.ffn_norm, rows, x, hidden, normed, stream)?;
        self.dense(&block.ffn_up, rows, normed, inner, Epilogue::Gelu, stream)?;
        self.dense(&block.ffn_down, rows, inner, x, Epilogue::Add, stream)
    }

    /// [`Model::forward`] with input and output in host memory. It allocates what [`Model::forward`] takes
    /// from its caller, and waits for the result.
    ///
    /// # Errors
    /// As for [`Model::forward`].
    pub fn run(&self, batch: usize, len: usize, input: &[f32]) -> Result<Vec<f32>> {
        let workspace_len = self.workspace_len(batch, len)?;
        let input = Buffer::from_slice(&self.device, input)?;
        let mut output = Buffer::zeros(&self.device, self.output_len(batch, len))?;
        let mut workspace = Buffer::zeros(&self.device, workspace_len)?;
        let (from, to) = (input.slice(), output.slice_mut());
        self.forward(batch, len, from, to, workspace.slice_mut(), Stream::DEFAULT)?;
        if output.is_empty() { Ok(vec![]) } else { output.read(Stream::DEFAULT) }
    }

    fn dense(
        &self,
        layer: &Dense,
        rows: usize,
        x: u64,
        y: u64,
        epilogue: Epilogue,
        stream: Stream,
    ) -> Result<()> {
        const TILE: usize = 64;
        let Dense { kernel, bias, inputs, outputs } = *layer;
        let mut args = DenseArgs {
            x: x.into(),
            w: self.address(kernel).into(),
            b: self.address(bias).into(),
            y: y.into(),
            rows: rows as i64,
            inputs: inputs as i32,
            outputs: outputs as i32,
            bias_kind: bias.kind as i32,
            epilogue: epilogue as i32,
        };
        let grid = [rows.div_ceil(TILE) as u32, outputs.div_ceil(TILE) as u32, 1];
        let kernel = self.dense_kernel(layer);
        // SAFETY: the arguments are those of dense.cu; the parameters are this model's, and the rows have
        // been checked.
        unsafe { self.device.launch(kernel, grid, 128, 0, stream, [from_mut(&mut args).cast::<c_void>()]) }
    }

    fn dense_kernel(&self, layer: &Dense) -> Kernel {
        Kernel::Dense { kind: layer.kernel.kind, dot: self.precision == Precision::Bf16Dot }
    }

    fn address(&self, parameter: Parameter) -> u64 {
        self.parameters.slice().address() + parameter.bytes
    }

    fn norm(&self, norm: &Norm, rows: usize, x: u64, stride: usize, y: u64, stream: Stream) -> Result<()> {
        let (mut x, mut y, mut gamma, mut beta) = (x, y, self.address(norm.gamma), self.address(norm.beta));
        let (mut stride, mut rows, mut size) = (stride as i64, rows as i32, self.config.hidden_size as i32);
        let (mut gamma_kind, mut beta_kind) = (norm.gamma.kind as i32, norm.beta.kind as i32);
        let (mut eps, mut clip) = (norm.eps, i32::from(norm.clip));
        let grid = [(rows as u32).div_ceil(8), 1, 1];
        let arguments = [
            from_mut(&mut x).cast::<c_void>(),
            from_mut(&mut y).cast(),
            from_mut(&mut gamma).cast(),
            from_mut(&mut beta).cast(),
            from_mut(&mut stride).cast(),
            from_mut(&mut rows).cast(),
            from_mut(&mut size).cast(),
            from_mut(&mut gamma_kind).cast(),
            from_mut(&mut beta_kind).cast(),
            from_mut(&mut eps).cast(),
            from_mut(&mut clip).cast(),
        ];
        // SAFETY: the arguments are those of norm.cu; the rows have been checked.
        unsafe { self.device.launch(Kernel::LayerNorm, grid, 256, 0, stream, arguments) }
    }

    /// Writes the mean of the `len` rows of each sequence, with `stride` elements from one sequence to the
    /// next.
    fn mean(&self, x: u64, y: u64, stride: usize, batch: usize, len: usize, stream: Stream) -> Result<()> {
        let (mut x, mut y, mut stride, mut len) = (x, y, stride as i64, len as i64);
        let mut size = self.config.hidden_size as i32;
        let grid = [batch as u32, self.config.hidden_size.div_ceil(256) as u32, 1];
        let arguments = [
            from_mut(&mut x).cast::<c_void>(),
            from_mut(&mut y).cast(),
            from_mut(&mut stride).cast(),
            from_mut(&mut len).cast(),
            from_mut(&mut size).cast(),
        ];
        // SAFETY: the arguments are those of norm.cu; the rows have been checked.
        unsafe { self.device.launch(Kernel::Mean, grid, 256, 0, stream, arguments) }
    }
}
