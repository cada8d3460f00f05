//! Options, each of which may be given or not, and their parsing from JSON.

use std::string::{String, ToString};

use serde_json::{Map, Value};

use super::{Error, Result, json};
use crate::nn::OutputMode;
use crate::rule::FeatureMap;

/// What is known of a model. The fields have the names of those of [`crate::nn::ModelConfig`], also in JSON.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs, reason = "documented in ModelConfig")]
pub struct Options {
    pub embed_dim: Option<usize>,
    pub hidden_size: Option<usize>,
    pub num_heads: Option<usize>,
    pub num_layers: Option<usize>,
    /// Also called `block_size` in JSON, as in the reference's LightningAttention.
    pub chunk_size: Option<usize>,
    /// Also called `window_size` in JSON, as in the reference.
    pub seq_len: Option<usize>,
    pub feature_map: Option<FeatureMap>,
    pub dropout: Option<f32>,
    /// In JSON `last_timestep`, `all` or `mean` (or, as in the reference, `mean_pool`).
    pub output_mode: Option<OutputMode>,
    pub final_norm: Option<bool>,
    pub layer_norm_eps: Option<f32>,
    pub layer_norm_clip: Option<bool>,
    /// The kind of a file: `fla` is a model of linear attention, `lightning` one of lightning attention.
    /// Without it, the names of the parameters determine the kind.
    pub kind: Option<String>,
    /// The name of another file, which contains the parameters.
    pub weights_from: Option<String>,
}

impl Options {
    /// Reads options from a JSON object. Keys that are not options are ignored, and `null` counts as absent.
    ///
    /// # Errors
    /// Text that is not a JSON object, a key that occurs twice, or an invalid value.
    pub fn from_json(text: &str) -> Result<Self> {
        Self::read(text, "the configuration")
    }

    pub(super) fn read(text: &str, what: &'static str) -> Result<Self> {
        let Value::Object(json) = json::parse(text.as_bytes(), what)? else {
            return Err(Error::Json { what, reason: "it is not an object".into() });
        };
        let either = |option, other| match size(&json, option)? {
            None => size(&json, other),
            given => Ok(given),
        };
        Ok(Self {
            embed_dim: size(&json, "embed_dim")?,
            hidden_size: size(&json, "hidden_size")?,
            num_heads: size(&json, "num_heads")?,
            num_layers: size(&json, "num_layers")?,
            chunk_size: either("chunk_size", "block_size")?,
            seq_len: either("seq_len", "window_size")?,
            feature_map: word(&json, "feature_map", FEATURE_MAPS, feature_map)?,
            dropout: number(&json, "dropout")?,
            output_mode: word(&json, "output_mode", OUTPUT_MODES, output_mode)?,
            final_norm: get(&json, "final_norm", "true or false", Value::as_bool)?,
            layer_norm_eps: number(&json, "layer_norm_eps")?,
            layer_norm_clip: get(&json, "layer_norm_clip", "true or false", Value::as_bool)?,
            kind: text_of(&json, "kind")?,
            weights_from: text_of(&json, "weights_from")?,
        })
    }

    /// These options, completed by `others` where one is not given.
    pub fn or(self, others: Options) -> Self {
        Self {
            embed_dim: self.embed_dim.or(others.embed_dim),
            hidden_size: self.hidden_size.or(others.hidden_size),
            num_heads: self.num_heads.or(others.num_heads),
            num_layers: self.num_layers.or(others.num_layers),
            chunk_size: self.chunk_size.or(others.chunk_size),
            seq_len: self.seq_len.or(others.seq_len),
            feature_map: self.feature_map.or(others.feature_map),
            dropout: self.dropout.or(others.dropout),
            output_mode: self.output_mode.or(others.output_mode),
            final_norm: self.final_norm.or(others.final_norm),
            layer_norm_eps: self.layer_norm_eps.or(others.layer_norm_eps),
            layer_norm_clip: self.layer_norm_clip.or(others.layer_norm_clip),
            kind: self.kind.or(others.kind),
            weights_from: self.weights_from.or(others.weights_from),
        }
    }
}

const FEATURE_MAPS: &str = "elu, relu or identity";
const OUTPUT_MODES: &str = "last_timestep, all or mean";

fn feature_map(word: &str) -> Option<FeatureMap> {
    match word {
        "elu" => Some(FeatureMap::Elu),
        "relu" => Some(FeatureMap::RELU),
        "identity" => Some(FeatureMap::Identity),
        _ => None,
    }
}

fn output_mode(word: &str) -> Option<OutputMode> {
    match word {
        "last_timestep" => Some(OutputMode::LastTimestep),
        "all" => Some(OutputMode::All),
        "mean" | "mean_pool" => Some(OutputMode::Mean),
        _ => None,
    }
}

fn get<T>(
    json: &Map<String, Value>,
    option: &'static str,
    want: &'static str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Option<T>> {
    match json.get(option) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(Error::BadOption { option, value: value.to_string(), want }),
        },
    }
}

fn size(json: &Map<String, Value>, option: &'static str) -> Result<Option<usize>> {
    get(json, option, "a whole number, at least 1", |value| {
        usize::try_from(value.as_u64()?).ok().filter(|size| *size > 0)
    })
}

fn number(json: &Map<String, Value>, option: &'static str) -> Result<Option<f32>> {
    get(json, option, "a number", |value| value.as_f64().map(|number| number as f32))
}

fn text_of(json: &Map<String, Value>, option: &'static str) -> Result<Option<String>> {
    get(json, option, "a string", |value| value.as_str().map(str::to_string))
}

fn word<T>(
    json: &Map<String, Value>,
    option: &'static str,
    want: &'static str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>> {
    get(json, option, want, |value| read(value.as_str()?))
}
