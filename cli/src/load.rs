//! Model files and their options, as arguments of the program.

use std::path::{Path, PathBuf};

use chunkwise::files::{self, Error, ModelFile, Options, Result, Tensors};
use serde_json::{Map, Value};

/// Options of the model. They take precedence over those in JSON, which take precedence over those in the
/// file.
#[derive(clap::Args)]
#[group(id = "options", multiple = true, requires = "model")]
pub(crate) struct Flags {
    /// JSON file with options of the model
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// File with the parameters [default: the model's `weights_from`, else the model file]
    #[arg(long, value_name = "FILE")]
    pub(crate) weights: Option<PathBuf>,
    /// Elements of a row of the input [default: from the shapes]
    #[arg(long, value_name = "N")]
    embed_dim: Option<String>,
    /// Elements of a row inside the model [default: from the shapes]
    #[arg(long, value_name = "N")]
    hidden_size: Option<String>,
    /// Number of heads
    #[arg(long, value_name = "N")]
    num_heads: Option<String>,
    /// Number of blocks [default: from the names of parameters]
    #[arg(long, value_name = "N")]
    num_layers: Option<String>,
    /// Tokens in a chunk
    #[arg(long, value_name = "N")]
    chunk_size: Option<String>,
    /// Tokens for which the model was built; no chunk is longer [default: 64]
    #[arg(long, value_name = "N", visible_alias = "window-size")]
    seq_len: Option<String>,
    /// Feature map: elu, relu or identity; lightning attention has none
    #[arg(long, value_name = "MAP")]
    feature_map: Option<String>,
    /// Output: last_timestep, all or mean [default: last_timestep]
    #[arg(long, value_name = "MODE")]
    output_mode: Option<String>,
    /// Whether there is a final norm, true or false [default: whether the file has its parameters]
    #[arg(long, value_name = "BOOL")]
    final_norm: Option<String>,
    /// Eps of the layer norms [default: 1e-5]
    #[arg(long, value_name = "EPS")]
    layer_norm_eps: Option<String>,
    /// Whether to use the layer norm of Axon 0.8.0, true or false [default: false]
    #[arg(long, value_name = "BOOL")]
    layer_norm_clip: Option<String>,
}

impl Flags {
    pub(crate) fn options(&self) -> Result<Options> {
        let given = [
            ("embed_dim", &self.embed_dim),
            ("hidden_size", &self.hidden_size),
            ("num_heads", &self.num_heads),
            ("num_layers", &self.num_layers),
            ("chunk_size", &self.chunk_size),
            ("seq_len", &self.seq_len),
            ("feature_map", &self.feature_map),
            ("output_mode", &self.output_mode),
            ("final_norm", &self.final_norm),
            ("layer_norm_eps", &self.layer_norm_eps),
            ("layer_norm_clip", &self.layer_norm_clip),
        ];
        // The values are parsed as JSON, so that a value has the same meaning, or is refused with the same
        // error, here and in a JSON file.
        let json: Map<String, Value> = given
            .into_iter()
            .filter_map(|(name, value)| value.as_ref().map(|value| (name.to_string(), value)))
            .map(|(name, value)| match serde_json::from_str(value) {
                // A null that is given here is a value; only in JSON does a null count as absent.
                Ok(Value::Null) | Err(_) => (name, value.as_str().into()),
                Ok(json) => (name, json),
            })
            .collect();
        let flags = Options::from_json(&Value::Object(json).to_string())?;
        let Some(path) = &self.config else { return Ok(flags) };
        let text = String::from_utf8_lossy(&files::read(path)?).into_owned();
        Ok(flags.or(Options::from_json(&text).map_err(|error| error.in_file(path))?))
    }
}

/// A model file, and the file that contains its parameters if that is another one.
pub(crate) struct Source {
    path: PathBuf,
    bytes: Vec<u8>,
    weights: Option<(PathBuf, Vec<u8>)>,
    options: Options,
}

impl Source {
    /// A source made from a file's bytes; `weights` and `options` take precedence over what the file says.
    pub(crate) fn new(path: &Path, bytes: Vec<u8>, weights: Option<&Path>, options: Options) -> Result<Self> {
        let own = Tensors::parse(&bytes).and_then(|tensors| tensors.options());
        let options = options.or(own.map_err(|error| error.in_file(path))?);
        let weights = match (weights, &options.weights_from) {
            (Some(given), _) => Some(given.into()),
            (None, Some(name)) => Some(sibling(path, name)?),
            (None, None) => None,
        };
        let weights = match weights {
            Some(path) => Some((path.clone(), files::read(path)?)),
            None => None,
        };
        Ok(Self { path: path.into(), bytes, weights, options })
    }

    /// The files that were read.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        [&*self.path].into_iter().chain(self.weights.iter().map(|(path, _)| &**path))
    }

    /// The file's tensors.
    pub(crate) fn tensors(&self) -> Result<Tensors<'_>> {
        Tensors::parse(&self.bytes).map_err(|error| error.in_file(&self.path))
    }

    /// The options of the model that are known before its shapes are read.
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// The model.
    pub(crate) fn model(&self) -> Result<ModelFile<'_>> {
        let (path, bytes) = match &self.weights {
            Some((path, bytes)) => (path, bytes),
            None => (&self.path, &self.bytes),
        };
        ModelFile::parse(bytes, &self.options).map_err(|error| error.in_file(path))
    }
}

/// The file with that name beside `path`; a file cannot refer to another folder.
fn sibling(path: &Path, name: &str) -> Result<PathBuf> {
    if Path::new(name).file_name().is_none_or(|file| file != name) {
        let want = "the name of a file in the same folder";
        return Err(Error::BadOption { option: "weights_from", value: name.into(), want }.in_file(path));
    }
    Ok(path.with_file_name(name))
}
