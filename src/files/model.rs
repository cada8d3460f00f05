//! A model in a file: its configuration is completed and its parameters are found.

use std::collections::BTreeSet;
use std::format;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use super::tensors::{Stored, Tensor, Tensors, is_parameter};
use super::{Error, Options, Result};
use crate::isa::Isa;
use crate::nn::{AttentionKind, BlockWeights, Linear, Model, ModelConfig, Weights};

/// The layer after the output, which is not part of the configuration.
const HEAD: [&str; 2] = ["head.kernel", "head.bias"];

/// A model whose parameters were found in a file, with the shapes of its configuration.
#[derive(Debug)]
pub struct ModelFile<'a> {
    tensors: Tensors<'a>,
    config: ModelConfig,
    /// The parameters in the order of [`ModelConfig::parameters`].
    parameters: Vec<Stored<'a>>,
    head: Option<[Stored<'a>; 2]>,
}

impl<'a> ModelFile<'a> {
    /// Reads a model. `options` take precedence over those in the file's metadata; what neither gives is
    /// inferred from the shapes, or is the reference's default.
    ///
    /// # Errors
    /// Bytes that are not a safetensors file; an option that is needed and not given, or that the model
    /// refuses; a parameter that is missing, has another shape or type, or does not belong to the
    /// configuration. An option that contradicts the shapes is reported as one of these parameter errors.
    pub fn parse(bytes: &'a [u8], options: &Options) -> Result<Self> {
        let tensors = Tensors::parse(bytes)?;
        let options = options.clone().or(tensors.options()?);
        let attention = match &options.kind {
            None => Seen::attention(&tensors),
            Some(kind) => AttentionKind::of_kind(kind).ok_or_else(|| Error::Kind { kind: kind.clone() })?,
        };
        let config = complete(attention, &options, &tensors)?;
        config.check()?;
        let mut expected = BTreeSet::new();
        let mut parameters = Vec::new();
        for parameter in config.parameters() {
            let name = parameter.to_string();
            parameters.push(shaped(&tensors, &name, parameter.dims())?);
            expected.insert(name);
        }
        let head = head(&tensors, config.output_size())?;
        if head.is_some() {
            expected.extend(HEAD.map(String::from));
        }
        let unknown = tensors.names().into_iter().find(|name| is_parameter(name) && !expected.contains(name));
        if let Some(tensor) = unknown {
            let shape = tensors.shape(&tensor).unwrap_or_default().to_vec();
            return Err(Error::Unknown { tensor, shape });
        }
        Ok(Self { tensors, config, parameters, head })
    }

    /// The complete configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// All tensors of the file, parameters and others.
    pub fn tensors(&self) -> &Tensors<'a> {
        &self.tensors
    }

    /// A tensor of the file, such as `input`.
    ///
    /// # Errors
    /// Errors of [`Tensors::tensor`].
    pub fn tensor(&self, name: &str) -> Result<Tensor<'a>> {
        self.tensors.tensor(name)
    }

    /// The parameters, borrowed; `blocks` is where those of the blocks are stored, in place of its old
    /// content.
    ///
    /// # Errors
    /// None that [`ModelFile::parse`] has not returned.
    pub fn weights<'w>(&'w self, blocks: &'w mut Vec<BlockWeights<'w>>) -> Result<Weights<'w>> {
        *blocks = vec![BlockWeights::default(); self.config.num_layers];
        let mut parameters = self.parameters.iter();
        let mut weights = Weights::collect(&self.config, blocks, |parameter| match parameters.next() {
            Some(data) => Ok(data.elements()),
            None => Err(Error::Missing { tensor: parameter.to_string(), want: parameter.dims().to_vec() }),
        })?;
        weights.head =
            self.head.as_ref().map(|[kernel, bias]| Linear::new(kernel.elements(), bias.elements()));
        Ok(weights)
    }

    /// Whether all parameters can be used in the file's bytes: aligned, and in this machine's byte order.
    #[cfg(feature = "cdylib")]
    pub(crate) fn is_borrowed(&self) -> bool {
        self.parameters.iter().chain(self.head.iter().flatten()).all(|stored| stored.borrowed().is_some())
    }

    /// The same weights as [`ModelFile::weights`], borrowed from the file's bytes alone, for a file that
    /// [`ModelFile::is_borrowed`].
    #[cfg(feature = "cdylib")]
    pub(crate) fn borrowed_weights<'w>(&self, blocks: &'w mut [BlockWeights<'w>]) -> Result<Weights<'w>>
    where
        'a: 'w,
    {
        let mut parameters = self.parameters.iter();
        let mut weights = Weights::collect(&self.config, blocks, |parameter| {
            let missing =
                || Error::Missing { tensor: parameter.to_string(), want: parameter.dims().to_vec() };
            parameters.next().and_then(Stored::borrowed).ok_or_else(missing)
        })?;
        let head = self.head.as_ref().and_then(|[kernel, bias]| kernel.borrowed().zip(bias.borrowed()));
        weights.head = head.map(|(kernel, bias)| Linear::new(kernel, bias));
        Ok(weights)
    }

    /// The model, ready to run; `isa` and `threads` are as in [`Model::new`], `blocks` as in
    /// [`ModelFile::weights`].
    ///
    /// # Errors
    /// Errors of [`Model::new`].
    pub fn model<'w>(
        &'w self,
        blocks: &'w mut Vec<BlockWeights<'w>>,
        isa: Option<Isa>,
        threads: usize,
    ) -> Result<Model<'w>> {
        Ok(Model::new(self.config, self.weights(blocks)?, isa, threads)?)
    }
}

impl AttentionKind {
    /// The attention for a kind of file.
    fn of_kind(kind: &str) -> Option<Self> {
        match kind {
            "fla" => Some(AttentionKind::Linear),
            "lightning" => Some(AttentionKind::Lightning),
            _ => None,
        }
    }
}

/// The configuration: each option from `options`, else from the shapes, else the default.
fn complete(attention: AttentionKind, options: &Options, tensors: &Tensors<'_>) -> Result<ModelConfig> {
    let seen = Seen::new(attention, tensors).ok_or_else(|| match &options.weights_from {
        Some(file) => Error::Elsewhere { file: file.clone() },
        None => Error::NotAModel,
    })?;
    let known = |option, flag| Error::MissingOption { option, flag };
    let hidden_size = options.hidden_size.unwrap_or(seen.hidden_size);
    let embed_dim = options.embed_dim.unwrap_or(seen.embed_dim.unwrap_or(hidden_size));
    if let Some(kernel) =
        tensors.shape("input_projection.kernel").filter(|_| seen.embed_dim != Some(embed_dim))
    {
        // Where embed and hidden are equal the model has no projection, and would only report that there is
        // one.
        let want = [embed_dim, hidden_size].into();
        return Err(Error::Shape { tensor: "input_projection.kernel".into(), want, got: kernel.into() });
    }
    let default = ModelConfig::new(embed_dim);
    Ok(ModelConfig {
        attention,
        embed_dim,
        hidden_size,
        num_heads: options.num_heads.ok_or(known("num_heads", "--num-heads"))?,
        num_layers: options.num_layers.unwrap_or(seen.num_layers),
        chunk_size: options.chunk_size.ok_or(known("chunk_size", "--chunk-size"))?,
        seq_len: options.seq_len.unwrap_or(default.seq_len),
        feature_map: match attention {
            // There is no feature map, whatever a file says.
            AttentionKind::Lightning => default.feature_map,
            AttentionKind::Linear => options.feature_map.ok_or(known("feature_map", "--feature-map"))?,
        },
        dropout: options.dropout.unwrap_or(default.dropout),
        output_mode: options.output_mode.unwrap_or(default.output_mode),
        final_norm: options.final_norm.unwrap_or(seen.final_norm),
        layer_norm_eps: options.layer_norm_eps.unwrap_or(default.layer_norm_eps),
        layer_norm_clip: options.layer_norm_clip.unwrap_or(default.layer_norm_clip),
    })
}

/// What names and shapes show of a model.
struct Seen {
    /// The elements of an input row, if there is an input projection.
    embed_dim: Option<usize>,
    hidden_size: usize,
    num_layers: usize,
    final_norm: bool,
}

impl Seen {
    /// The attention that the names indicate: linear attention, unless all blocks are those of lightning
    /// attention.
    fn attention(tensors: &Tensors<'_>) -> AttentionKind {
        let has = |attention: AttentionKind| {
            tensors.names().iter().any(|name| name.starts_with(attention.prefix()))
        };
        if has(AttentionKind::Lightning) && !has(AttentionKind::Linear) {
            AttentionKind::Lightning
        } else {
            AttentionKind::Linear
        }
    }

    /// `None` where there is no block.
    fn new(attention: AttentionKind, tensors: &Tensors<'_>) -> Option<Self> {
        let prefix = attention.prefix();
        let block = |name: &String| name.strip_prefix(prefix)?.split_once('_')?.0.parse().ok();
        let num_layers = tensors.names().iter().filter_map(block).max()?;
        let size =
            |name: &str, at: usize| tensors.shape(name).and_then(|shape: &[usize]| shape.get(at)).copied();
        Some(Self {
            embed_dim: size("input_projection.kernel", 0),
            hidden_size: size(&format!("{prefix}1_attn_norm.gamma"), 0)
                .or(size(&format!("{prefix}1_attn_qkv.kernel"), 0))?,
            num_layers,
            final_norm: tensors.names().iter().any(|name| name.starts_with("final_norm.")),
        })
    }
}

fn head<'a>(tensors: &Tensors<'a>, hidden: usize) -> Result<Option<[Stored<'a>; 2]>> {
    let columns = HEAD.iter().find_map(|name| tensors.shape(name)?.last());
    let Some(&columns) = columns else { return Ok(None) };
    let [kernel, bias] = HEAD;
    Ok(Some([shaped(tensors, kernel, &[hidden, columns])?, shaped(tensors, bias, &[columns])?]))
}

/// A parameter that must exist and have this shape.
fn shaped<'a>(tensors: &Tensors<'a>, name: &str, want: &[usize]) -> Result<Stored<'a>> {
    match tensors.shape(name) {
        None => Err(Error::Missing { tensor: name.into(), want: want.into() }),
        Some(got) if got != want => {
            Err(Error::Shape { tensor: name.into(), want: want.into(), got: got.into() })
        }
        Some(_) => tensors.stored(name),
    }
}
