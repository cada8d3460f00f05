//! A safetensors file as a set of named f32 tensors.

use core::fmt;
use std::borrow::Cow;
use std::format;
use std::path::Path;
use std::string::{String, ToString};
use std::vec::Vec;

use bytemuck::AnyBitPattern;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorView};
use safetensors::{SafeTensorError, SafeTensors};
use serde::Deserialize;
use serde_json::Value;

use super::{Error, Options, Result, json};
use crate::element::Elements;

/// The bytes before the header, which contain its length.
const PREFIX: usize = 8;
/// The bytes of the longest header that the format allows.
const LONGEST: usize = 100_000_000;

/// A tensor in f32, row by row; borrowed from the file's bytes where possible.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<'a> {
    /// The sizes of the tensor, outermost first.
    pub shape: Vec<usize>,
    /// The elements of the tensor, as many as the shape says.
    pub data: Cow<'a, [f32]>,
}

/// The tensors of a safetensors file, borrowed from its bytes.
pub struct Tensors<'a> {
    metadata: Metadata,
    data: &'a [u8],
}

impl fmt::Debug for Tensors<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl<'a> Tensors<'a> {
    /// Reads the header, and checks it against the length of the file.
    ///
    /// # Errors
    /// Bytes that are not a safetensors file, or not all of one.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let text = header_text(bytes)?;
        json::check(text, "the header")?;
        let data = PREFIX + text.len();
        let (_, metadata) =
            SafeTensors::read_metadata(bytes).map_err(|error| explain(text, data, bytes.len(), &error))?;
        Ok(Self { metadata, data: &bytes[data..] })
    }

    /// All names, in alphabetical order.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.metadata.offset_keys();
        names.sort_unstable();
        names
    }

    /// The shape of a tensor, if the tensor exists.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.metadata.info(name).map(|info| &info.shape[..])
    }

    /// A tensor in f32: F32 as it is, F16 and BF16 widened, which is exact.
    ///
    /// # Errors
    /// No tensor with that name, or one of another type.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'a>> {
        let data = match self.stored(name)? {
            Stored::F32(data) => data,
            Stored::Bf16(data) => data.iter().map(|x| x.to_f32()).collect(),
            Stored::F16(data) => data.iter().map(|x| x.to_f32()).collect(),
        };
        Ok(Tensor { shape: self.shape(name).unwrap_or_default().to_vec(), data })
    }

    /// A tensor in the type it has in the file.
    pub(super) fn stored(&self, name: &str) -> Result<Stored<'a>> {
        let Some(info) = self.metadata.info(name) else {
            let have = self.names().into_iter().filter(|name| !is_parameter(name)).collect();
            return Err(Error::NoTensor { name: name.into(), have });
        };
        let (from, to) = info.data_offsets;
        let bytes = &self.data[from..to];
        match info.dtype {
            Dtype::F32 => Ok(Stored::F32(native(bytes, f32::from_le_bytes))),
            Dtype::BF16 => Ok(Stored::Bf16(native(bytes, bf16::from_le_bytes))),
            Dtype::F16 => Ok(Stored::F16(native(bytes, f16::from_le_bytes))),
            other => {
                let (tensor, got) = (name.into(), other.to_string());
                Err(Error::Dtype { tensor, got, shape: info.shape.clone() })
            }
        }
    }

    /// The options in the file's metadata, under `config`; none if there is no such key.
    ///
    /// # Errors
    /// JSON that does not parse, or an invalid value.
    pub fn options(&self) -> Result<Options> {
        match self.metadata.metadata().as_ref().and_then(|metadata| metadata.get("config")) {
            Some(text) => Options::read(text, "the configuration in the metadata"),
            None => Ok(Options::default()),
        }
    }
}

/// Whether a name is one that only parameters of layers have.
pub(super) fn is_parameter(name: &str) -> bool {
    matches!(name.rsplit_once('.'), Some((_, "kernel" | "bias" | "gamma" | "beta")))
}

/// A tensor's elements, borrowed from the file's bytes where possible.
#[derive(Debug)]
pub(super) enum Stored<'a> {
    F32(Cow<'a, [f32]>),
    Bf16(Cow<'a, [bf16]>),
    F16(Cow<'a, [f16]>),
}

impl<'a> Stored<'a> {
    /// The elements in the file's bytes, if they are not a copy.
    #[cfg(feature = "cdylib")]
    pub(super) fn borrowed(&self) -> Option<Elements<'a>> {
        match *self {
            Stored::F32(Cow::Borrowed(data)) => Some(data.into()),
            Stored::Bf16(Cow::Borrowed(data)) => Some(data.into()),
            Stored::F16(Cow::Borrowed(data)) => Some(data.into()),
            _ => None,
        }
    }

    pub(super) fn elements(&self) -> Elements<'_> {
        match self {
            Stored::F32(data) => (&data[..]).into(),
            Stored::Bf16(data) => (&data[..]).into(),
            Stored::F16(data) => (&data[..]).into(),
        }
    }
}

/// Little-endian bytes as numbers: in place, where that is the machine's representation, else a copy.
fn native<T: AnyBitPattern, const N: usize>(bytes: &[u8], number: fn([u8; N]) -> T) -> Cow<'_, [T]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(numbers) if cfg!(target_endian = "little") => Cow::Borrowed(numbers),
        _ => bytes.as_chunks().0.iter().map(|bytes| number(*bytes)).collect(),
    }
}

fn header_text(bytes: &[u8]) -> Result<&[u8]> {
    let truncated = |need| Error::Truncated { what: "the header".into(), need, have: bytes.len() };
    let (prefix, rest) = bytes.split_first_chunk::<PREFIX>().ok_or(truncated(PREFIX as u64))?;
    let len = u64::from_le_bytes(*prefix);
    let text = usize::try_from(len).ok().and_then(|len| rest.get(..len));
    let text = text.ok_or(truncated(len.saturating_add(PREFIX as u64)))?;
    if text.len() > LONGEST {
        return Err(Error::Header { reason: format!("its header is longer than {LONGEST} bytes") });
    }
    Ok(text)
}

/// An error that names the tensor which the parser's error is about. The parser does not always name it. The
/// data begins at byte `data`.
fn explain(text: &[u8], data: usize, have: usize, error: &SafeTensorError) -> Error {
    // A header that is too long to be parsed into values is explained by the parser's message alone.
    let header = json::parse(text, "the header").unwrap_or_default();
    let tensors = header.as_object().into_iter().flatten().filter(|(name, _)| *name != "__metadata__");
    for (name, info) in tensors {
        let Some((dtype, shape, place)) = entry(info) else {
            let reason = "has no dtype known here, shape and data_offsets";
            return Error::Header { reason: format!("{name} {reason}") };
        };
        let bits = shape.iter().try_fold(dtype.bitsize() as u64, |bits, n| bits.checked_mul(*n));
        let [from, to] = place;
        if bits.is_none() || bits != to.checked_sub(from).and_then(|bytes| bytes.checked_mul(8)) {
            return Error::Size { tensor: name.clone(), dtype: dtype.to_string(), shape, place };
        }
        let need = to.saturating_add(data as u64);
        if need > have as u64 {
            return Error::Truncated { what: name.clone(), need, have };
        }
    }
    Error::Header { reason: error.to_string() }
}

fn entry(info: &Value) -> Option<(Dtype, Vec<u64>, [u64; 2])> {
    let numbers =
        |key: &str| -> Option<Vec<u64>> { info.get(key)?.as_array()?.iter().map(Value::as_u64).collect() };
    let dtype = Dtype::deserialize(info.get("dtype")?).ok()?;
    Some((dtype, numbers("shape")?, numbers("data_offsets")?.try_into().ok()?))
}

/// Writes a safetensors file.
///
/// # Errors
/// Errors of [`serialize`]; the file cannot be written, and may have been written in part.
pub fn write(path: impl AsRef<Path>, tensors: &[(&str, &Tensor<'_>)]) -> Result<()> {
    let path = path.as_ref();
    std::fs::write(path, serialize(tensors)?).map_err(|error| Error::Io(error).in_file(path))
}

/// The bytes of a safetensors file.
///
/// # Errors
/// A tensor whose data is not as long as its shape says.
pub fn serialize(tensors: &[(&str, &Tensor<'_>)]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for (name, Tensor { shape, data }) in tensors {
        // This check precedes the format's own, which multiplies whatever it is given.
        if shape.iter().try_fold(1, |product: usize, n| product.checked_mul(*n)) != Some(data.len()) {
            return Err(Error::Length { tensor: (*name).into(), shape: shape.clone(), got: data.len() });
        }
        bytes.push(data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
    }
    let unfit = |error: SafeTensorError| Error::Header { reason: error.to_string() };
    let mut views = Vec::new();
    for ((name, tensor), bytes) in tensors.iter().zip(&bytes) {
        views.push((*name, TensorView::new(Dtype::F32, tensor.shape.clone(), bytes).map_err(unfit)?));
    }
    safetensors::serialize(views, None).map_err(unfit)
}
