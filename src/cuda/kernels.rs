//! The kernels that are shipped: PTX, made from `kernels/*.cu` and compressed by `scripts/ptx`. The text of
//! one kernel at a time is decompressed for the driver, which compiles it.
//!
//! `sm_80` runs on every GPU from Ampere (compute capability 8.0) on, `sm_90a` on Hopper (9.0) only.

use std::ffi::{CStr, CString};
use std::format;
use std::io::Read;
use std::string::{String, ToString};

use lzma_rust2::LzmaReader;

use super::error::{Error, Result};
use crate::element::{Element, Elements};
use crate::rule::Normaliser;

/// The type of elements, as `Kind` in element.cuh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    F32,
    Bf16,
    F16,
}

impl Kind {
    pub(super) fn of<E: Element>() -> Self {
        Self::of_elements(E::elements(&[]))
    }

    pub(super) fn of_elements(elements: Elements<'_>) -> Self {
        match elements {
            Elements::F32(_) => Kind::F32,
            Elements::Bf16(_) => Kind::Bf16,
            Elements::F16(_) => Kind::F16,
        }
    }

    /// Bytes of an element.
    pub(super) const fn size(self) -> usize {
        match self {
            Kind::F32 => 4,
            Kind::Bf16 | Kind::F16 => 2,
        }
    }
}

/// How a prefill multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Products {
    /// Products are as precise as f32.
    Exact,
    /// Operands are rounded to bf16.
    Dot,
    /// Operands are rounded to bf16 and multiplied by Hopper's wgmma.
    WarpgroupDot,
}

/// The divisor of outputs, as `Normaliser` in element.cuh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Division {
    None,
    Global,
    PerChunk,
}

impl Division {
    pub(super) fn of(normaliser: Normaliser) -> Self {
        match normaliser {
            Normaliser::None => Division::None,
            Normaliser::Global { .. } => Division::Global,
            Normaliser::PerChunk { .. } => Division::PerChunk,
        }
    }
}

/// A kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kernel {
    /// Attention over many tokens, for one element type. `key` is K rounded up to 64, 128 or 256.
    Prefill {
        kind: Kind,
        products: Products,
        key: usize,
        division: Division,
    },
    /// Decode, for one division.
    Decode(Division),
    Scan,
    Snapshot,
    /// A dense layer, for weights of one element type.
    Dense {
        kind: Kind,
        dot: bool,
    },
    LayerNorm,
    Mean,
}

/// The beginning of each kernel in a text. The text before the first kernel belongs to all of them.
const ENTRY: &str = ".visible .entry ";

macro_rules! ptx {
    ($arch:literal, $name:literal) => {
        (concat!($arch, "/", $name), include_bytes!(concat!("ptx/", $arch, "/", $name, ".ptx.lzma")))
    };
}

impl Kernel {
    /// The text that contains this kernel, by name, and compressed.
    fn archive(self) -> (&'static str, &'static [u8]) {
        use Kind::{Bf16, F16, F32};
        use Products::{Dot, Exact, WarpgroupDot};
        match self {
            Kernel::Prefill { kind, products, .. } => match (kind, products) {
                (F32, Exact) => ptx!("sm_80", "prefill_f32"),
                (Bf16, Exact) => ptx!("sm_80", "prefill_bf16"),
                (F16, Exact) => ptx!("sm_80", "prefill_f16"),
                (F32, Dot) => ptx!("sm_80", "prefill_f32_dot"),
                (Bf16, Dot) => ptx!("sm_80", "prefill_bf16_dot"),
                (F16, Dot) => ptx!("sm_80", "prefill_f16_dot"),
                (F32, WarpgroupDot) => ptx!("sm_90a", "prefill_f32_dot"),
                (Bf16, WarpgroupDot) => ptx!("sm_90a", "prefill_bf16_dot"),
                (F16, WarpgroupDot) => ptx!("sm_90a", "prefill_f16_dot"),
            },
            Kernel::Decode(_) | Kernel::Scan | Kernel::Snapshot => ptx!("sm_80", "decode"),
            Kernel::Dense { kind: F32, .. } => ptx!("sm_80", "dense_f32"),
            Kernel::Dense { kind: Bf16, .. } => ptx!("sm_80", "dense_bf16"),
            Kernel::Dense { kind: F16, .. } => ptx!("sm_80", "dense_f16"),
            Kernel::LayerNorm | Kernel::Mean => ptx!("sm_80", "norm"),
        }
    }

    /// The kernel's name for messages.
    pub(super) fn name(self) -> String {
        format!("{}/{}", self.archive().0, self.entry().to_string_lossy())
    }

    /// A text that contains this kernel alone, so that the driver compiles no other.
    ///
    /// # Errors
    /// [`Error::UnsupportedPtx`]: what is shipped is not what `scripts/ptx` made.
    pub(super) fn text(self) -> Result<CString> {
        let broken = |text: String| Error::UnsupportedPtx { module: self.name(), text };
        let mut all = String::new();
        LzmaReader::new_mem_limit(self.archive().1, u32::MAX, None)
            .and_then(|mut reader| reader.read_to_string(&mut all))
            .map_err(|error| broken(error.to_string()))?;
        let mut parts = all.split(ENTRY);
        let head = parts.next().unwrap_or_default();
        let name = self.entry().to_string_lossy();
        let is_this = |part: &&str| part.strip_prefix(&*name).is_some_and(|rest| rest.starts_with('('));
        let entry = parts.find(is_this).ok_or_else(|| broken("it is not in its text".into()))?;
        CString::new(format!("{head}{ENTRY}{entry}")).map_err(|error| broken(error.to_string()))
    }

    /// The kernel's name in the text.
    pub(super) fn entry(self) -> &'static CStr {
        match self {
            Kernel::Prefill { key, division, .. } => match (key, division) {
                (64, Division::None) => c"prefill_64_none",
                (64, Division::Global) => c"prefill_64_global",
                (64, Division::PerChunk) => c"prefill_64_per_chunk",
                (128, Division::None) => c"prefill_128_none",
                (128, Division::Global) => c"prefill_128_global",
                (128, Division::PerChunk) => c"prefill_128_per_chunk",
                (_, Division::None) => c"prefill_256_none",
                (_, Division::Global) => c"prefill_256_global",
                (_, Division::PerChunk) => c"prefill_256_per_chunk",
            },
            Kernel::Decode(Division::None) => c"decode_none",
            Kernel::Decode(Division::Global) => c"decode_global",
            Kernel::Decode(Division::PerChunk) => c"decode_per_chunk",
            Kernel::Scan => c"scan",
            Kernel::Snapshot => c"snapshot",
            Kernel::Dense { dot: false, .. } => c"dense",
            Kernel::Dense { dot: true, .. } => c"dense_dot",
            Kernel::LayerNorm => c"layer_norm",
            Kernel::Mean => c"mean",
        }
    }

    /// Whether launches of the kernel may have dynamic shared memory.
    pub(super) fn takes_shared(self) -> bool {
        matches!(self, Kernel::Prefill { .. })
    }
}
