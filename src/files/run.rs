//! Whole tensors through a model. The functions allocate the memory that the calls of [`Model`] take from
//! their callers.

use std::borrow::Cow;
use std::vec;
use std::vec::Vec;

use super::{Error, Result, Tensor};
use crate::nn::{Model, ModelConfig, OutputMode};

/// Runs a model over all tokens at once: input `[B, T, embed]` or `[T, embed]`; the output has no batch where
/// the input has none.
///
/// # Errors
/// An input of another shape, and errors of [`Model::forward`].
pub fn forward(model: &Model<'_>, input: &Tensor<'_>) -> Result<Tensor<'static>> {
    let Sequences { batch, len, .. } = Sequences::new(model.config(), input)?;
    if batch == 0 || len == 0 {
        return empty(model.config(), input, len);
    }
    let (mut output, mut scratch) =
        (zeros(model.output_len(batch, len))?, zeros(model.scratch_len(batch, len)?)?);
    model.forward(batch, len, &input.data, &mut output, &mut scratch)?;
    Ok(shaped(model.config(), input, output))
}

/// Runs a model over all tokens at once on a GPU, as [`forward`] does on the CPU.
///
/// # Errors
/// An input of another shape, and errors of [`crate::cuda::Model::run`].
#[cfg(feature = "cuda")]
pub fn forward_on_gpu(model: &crate::cuda::Model, input: &Tensor<'_>) -> Result<Tensor<'static>> {
    let Sequences { batch, len, .. } = Sequences::new(model.config(), input)?;
    if batch == 0 || len == 0 {
        return empty(model.config(), input, len);
    }
    Ok(shaped(model.config(), input, model.run(batch, len, &input.data)?))
}

/// Computes the same output as [`forward`], one time step at a time.
///
/// # Errors
/// An input of another shape, and errors of [`Model::step`].
pub fn stream(model: &Model<'_>, input: &Tensor<'_>) -> Result<Tensor<'static>> {
    let Sequences { batch, len, embed } = Sequences::new(model.config(), input)?;
    let model = model.for_len(len);
    let ModelConfig { hidden_size, output_mode, .. } = *model.config();
    let all = output_mode == OutputMode::All;
    if batch == 0 || len == 0 {
        return empty(model.config(), input, len);
    }
    let mut state = zeros(model.state_len(batch)?)?;
    let mut scratch = zeros(model.step_scratch_len(batch)?)?;
    let (mut row, mut out) = (zeros(batch * embed)?, zeros(batch.saturating_mul(hidden_size))?);
    let mut output = zeros(model.output_len(batch, len))?;
    for t in 0..len {
        for (b, row) in row.chunks_exact_mut(embed).enumerate() {
            row.copy_from_slice(&input.data[(b * len + t) * embed..][..embed]);
        }
        model.step(batch, &row, &mut state, &mut out, &mut scratch)?;
        for (b, out) in out.chunks_exact(hidden_size).enumerate() {
            let at = if all { b * len + t } else { b };
            output[at * hidden_size..][..hidden_size].copy_from_slice(out);
        }
    }
    Ok(shaped(model.config(), input, output))
}

/// Applies the head to an output `[..., hidden]`; `None` where the model has no head.
///
/// # Errors
/// Errors of [`Model::apply_head`].
pub fn logits(model: &Model<'_>, output: &Tensor<'_>) -> Result<Option<Tensor<'static>>> {
    let Some(columns) = model.head_len() else { return Ok(None) };
    let rows = output.data.len() / model.config().hidden_size;
    let mut data = zeros(rows.saturating_mul(columns))?;
    model.apply_head(&output.data, &mut data, &mut zeros(model.head_scratch_len(rows))?)?;
    let mut shape = output.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = columns;
    }
    Ok(Some(Tensor { shape, data: Cow::Owned(data) }))
}

/// A vector of `len` zeros, unless no memory has room for them: `vec!` would panic.
fn zeros(len: usize) -> Result<Vec<f32>> {
    if len > isize::MAX as usize / size_of::<f32>() {
        return Err(crate::Error::Overflow { what: "the output" }.into());
    }
    Ok(vec![0.0; len])
}

struct Sequences {
    batch: usize,
    len: usize,
    embed: usize,
}

impl Sequences {
    fn new(config: &ModelConfig, input: &Tensor<'_>) -> Result<Self> {
        let embed = config.embed_dim;
        let (batch, len) = match input.shape[..] {
            [batch, len, columns] if columns == embed => (batch, len),
            [len, columns] if columns == embed => (1, len),
            _ => return Err(Error::Input { shape: input.shape.clone(), embed }),
        };
        let elements = batch.checked_mul(len).and_then(|rows| rows.checked_mul(embed));
        if elements != Some(input.data.len()) {
            return Err(Error::Input { shape: input.shape.clone(), embed });
        }
        Ok(Self { batch, len, embed })
    }
}

/// The output for an input without elements. Nothing is computed, because the input may claim any number of
/// sequences or of steps.
fn empty(config: &ModelConfig, input: &Tensor<'_>, len: usize) -> Result<Tensor<'static>> {
    if len == 0 && config.output_mode != OutputMode::All {
        return Err(crate::Error::Zero { what: "T, for an output of one row" }.into());
    }
    Ok(shaped(config, input, Vec::new()))
}

fn shaped(config: &ModelConfig, input: &Tensor<'_>, data: Vec<f32>) -> Tensor<'static> {
    let mut shape = input.shape.clone();
    shape.pop();
    if config.output_mode != OutputMode::All {
        shape.pop();
    }
    shape.push(config.output_size());
    Tensor { shape, data: Cow::Owned(data) }
}
