//! Models from files: safetensors by the reference's parameter names, options from JSON.
//!
//! ```no_run
//! use chunkwise::files::{self, ModelFile, Options};
//!
//! let bytes = files::read("model.safetensors")?;
//! let file = ModelFile::parse(&bytes, &Options { num_heads: Some(4), ..Options::default() })?;
//! let mut blocks = Vec::new();
//! let model = file.model(&mut blocks, None, 1)?;
//! let output = files::forward(&model, &file.tensor("input")?)?;
//! # Ok::<(), files::Error>(())
//! ```
//!
//! Options come, in this order of precedence, from the caller, from the JSON in the file's metadata (key
//! `config`), from the shapes of the parameters, and from the reference's defaults. The shapes do not
//! determine `num_heads`, `chunk_size` and, for linear attention, `feature_map`, and a wrong value would be a
//! silent mistake: without them a file is refused. The attention of a model is given by the option `kind`, or
//! by the names of its blocks' parameters: `fla_block_1_...` or `lightning_block_1_...`.
//!
//! Whatever a file contains, nothing here panics, and memory is allocated for what the file contains, not for
//! what it claims.

mod error;
mod json;
mod model;
mod options;
mod run;
mod tensors;

pub use error::Error;
pub use model::ModelFile;
pub use options::Options;
#[cfg(feature = "cuda")]
pub use run::forward_on_gpu;
pub use run::{forward, logits, stream};
pub use tensors::{Tensor, Tensors, serialize, write};

use std::path::Path;
use std::vec::Vec;

/// The result of reading or using a file.
pub type Result<T> = core::result::Result<T, Error>;

/// The bytes of a file, for [`Tensors::parse`] and [`ModelFile::parse`].
///
/// # Errors
/// The file cannot be read; the error names it.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = path.as_ref();
    std::fs::read(path).map_err(|error| Error::Io(error).in_file(path))
}
