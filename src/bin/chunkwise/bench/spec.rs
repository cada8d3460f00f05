//! What a measurement is of: the words of the command line, and every combination that makes sense.

use std::fmt;
use std::str::FromStr;

use chunkwise::{FeatureMap, Normaliser};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Words that are the same on the command line, in tables and in JSON.
macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $word:ident),* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub(super) enum $name { $($(#[$word_doc])* $word),* }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.to_possible_value().expect("no word is hidden").get_name())
            }
        }
    )*};
}

words! {
    /// The operation.
    Op {
        /// Many tokens, `Attention::forward` from the zero state
        Prefill,
        /// One token of each sequence, `Attention::decode` on its state
        Decode,
        /// All tokens through the model of H heads and hidden size H K, 4 layers, for the last time step
        Model,
        /// One time step of that model
        Step
    }
    /// The type of q, k, v and o, or of the model's weights.
    Dtype { F32, Bf16, F16 }
    /// The map on q and k.
    Map { Elu, Relu, Identity }
    /// By what outputs are divided.
    Norm {
        None,
        /// With eps 1e-6
        Global,
        /// Edifice's, with eps 1e-8 and the length of --chunk
        PerChunk
    }
    /// How a model's dense weights lie.
    Packing {
        /// As they are in files, row by row
        Stored,
        /// In panels for the instruction set
        Packed
    }
}

impl From<Map> for FeatureMap {
    fn from(map: Map) -> Self {
        match map {
            Map::Elu => FeatureMap::Elu,
            Map::Relu => FeatureMap::RELU,
            Map::Identity => FeatureMap::Identity,
        }
    }
}

/// Sizes, B,H,T,K,V.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shape {
    pub(super) batch: usize,
    pub(super) heads: usize,
    pub(super) len: usize,
    pub(super) key: usize,
    pub(super) value: usize,
}

impl Shape {
    const fn new([batch, heads, len, key, value]: [usize; 5]) -> Self {
        Self { batch, heads, len, key, value }
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sizes: Option<Vec<usize>> = text.split(',').map(|size| size.trim().parse().ok()).collect();
        let sizes: Option<[usize; 5]> = sizes.and_then(|sizes| sizes.try_into().ok());
        match sizes {
            Some(sizes) if !sizes.contains(&0) => Ok(Self::new(sizes)),
            _ => Err("five whole numbers B,H,T,K,V, none of them 0".into()),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batch, heads, len, key, value } = self;
        f.pad(&format!("{batch},{heads},{len},{key},{value}"))
    }
}

/// One measurement's. What plays no part in an operation is left out, or 1; so are weights as they are stored and a state
/// that begins on a cache line, for older reports don't name them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(super) op: Op,
    pub(super) shape: Shape,
    pub(super) dtype: Dtype,
    pub(super) map: Option<Map>,
    pub(super) norm: Option<Norm>,
    pub(super) chunk: Option<usize>,
    pub(super) weights: Option<Packing>,
    /// Bytes from the beginning of a cache line to that of the state.
    pub(super) state_offset: Option<usize>,
    pub(super) isa: String,
    pub(super) threads: usize,
}

impl Spec {
    /// The normaliser, where there is one.
    pub(super) fn normaliser(&self) -> Normaliser {
        match (self.norm, self.chunk) {
            (Some(Norm::Global), _) => Normaliser::Global { eps: 1e-6 },
            (Some(Norm::PerChunk), Some(chunk)) => Normaliser::per_chunk(chunk),
            _ => Normaliser::None,
        }
    }

    /// All but the instruction set and the threads, short.
    pub(super) fn label(&self) -> String {
        let Self { op, shape, dtype, map, norm, chunk, weights, .. } = self;
        let mut label = format!("{op} {shape} {dtype}");
        for word in [
            map.map(|map| map.to_string()),
            norm.map(|norm| norm.to_string()),
            chunk.map(|chunk| format!("chunk {chunk}")),
            weights.map(|weights| weights.to_string()),
            self.state_words(),
        ] {
            label.extend(word.into_iter().flat_map(|word| [" ".into(), word]));
        }
        label
    }

    /// Where the state lies, if not on a cache line.
    pub(super) fn state_words(&self) -> Option<String> {
        self.state_offset.map(|bytes| format!("state off by {bytes} bytes"))
    }
}

/// Words to be combined.
pub(super) struct Words {
    pub(super) ops: Vec<Op>,
    /// Empty for those of [`shapes`].
    pub(super) shapes: Vec<Shape>,
    pub(super) dtypes: Vec<Dtype>,
    pub(super) maps: Vec<Map>,
    pub(super) norms: Vec<Norm>,
    pub(super) chunks: Vec<usize>,
    pub(super) weights: Vec<Packing>,
    pub(super) state_offsets: Vec<usize>,
    pub(super) isas: Vec<String>,
    pub(super) threads: Vec<usize>,
}

/// The shapes that an operation is measured at where none is asked for.
fn shapes(op: Op) -> &'static [Shape] {
    const PREFILL: [Shape; 5] = [
        Shape::new([1, 4, 4096, 64, 64]),
        Shape::new([1, 8, 2048, 128, 128]),
        Shape::new([4, 4, 1024, 64, 64]),
        Shape::new([1, 1, 16384, 64, 64]),
        Shape::new([1, 4, 64, 64, 64]),
    ];
    const DECODE: [Shape; 3] =
        [Shape::new([1, 4, 1, 64, 64]), Shape::new([1, 16, 1, 128, 128]), Shape::new([8, 16, 1, 128, 128])];
    const MODEL: [Shape; 3] =
        [Shape::new([1, 4, 64, 64, 64]), Shape::new([8, 4, 64, 64, 64]), Shape::new([1, 4, 1024, 64, 64])];
    match op {
        Op::Prefill => &PREFILL,
        Op::Decode => &DECODE,
        Op::Model => &MODEL,
        Op::Step => &MODEL[..1],
    }
}

impl Words {
    /// Every combination once.
    pub(super) fn specs(&self) -> Result<Vec<Spec>, String> {
        self.check_number()?;
        let mut specs = Vec::new();
        for &op in &self.ops {
            let shapes = if self.shapes.is_empty() { shapes(op) } else { &self.shapes };
            let first = |shape: &Shape| Spec {
                op,
                shape: *shape,
                dtype: Dtype::F32,
                map: None,
                norm: None,
                chunk: None,
                weights: None,
                state_offset: None,
                isa: String::new(),
                threads: 1,
            };
            let mut all: Vec<Spec> = shapes.iter().map(first).collect();
            all = each(all, &self.dtypes, |spec, dtype| spec.dtype = *dtype);
            all = each(all, &self.maps, |spec, map| spec.map = Some(*map));
            all = each(all, &self.norms, |spec, norm| spec.norm = Some(*norm));
            all = each(all, &self.chunks, |spec, chunk| spec.chunk = Some(*chunk));
            all = each(all, &self.weights, |spec, weights| spec.weights = Some(*weights));
            all = each(all, &self.state_offsets, |spec, bytes| spec.state_offset = Some(*bytes));
            all = each(all, &self.isas, |spec, isa| spec.isa.clone_from(isa));
            all = each(all, &self.threads, |spec, threads| spec.threads = *threads);
            for spec in all.into_iter().map(Spec::without_the_rest) {
                if !specs.contains(&spec) {
                    specs.push(spec);
                }
            }
        }
        Ok(specs)
    }

    /// A command line is soon written that has more combinations than a lifetime has rounds.
    fn check_number(&self) -> Result<(), String> {
        const MOST: usize = 30_000;
        let Self { ops, shapes, dtypes, maps, norms, chunks, weights, state_offsets, isas, threads } = self;
        let lists = [ops.len(), shapes.len().max(1), dtypes.len(), maps.len(), norms.len(), chunks.len()];
        let all = lists.into_iter().chain([weights.len(), state_offsets.len(), isas.len(), threads.len()]);
        match all.fold(1, usize::saturating_mul) {
            ..=MOST => Ok(()),
            number => Err(format!("{number} combinations; at most {MOST} are measured in a run")),
        }
    }
}

/// Every one with every word.
fn each<T>(specs: Vec<Spec>, words: &[T], set: impl Fn(&mut Spec, &T)) -> Vec<Spec> {
    let mut all = Vec::new();
    for spec in specs {
        for word in words {
            let mut spec = spec.clone();
            set(&mut spec, word);
            all.push(spec);
        }
    }
    all
}

impl Spec {
    fn without_the_rest(self) -> Self {
        let one = Shape { len: 1, ..self.shape };
        let chunk = self.chunk.filter(|_| self.norm == Some(Norm::PerChunk));
        let weights = self.weights.filter(|weights| *weights != Packing::Stored);
        let state_offset = self.state_offset.filter(|bytes| *bytes != 0);
        match self.op {
            Op::Prefill => Self { chunk, weights: None, state_offset: None, ..self },
            Op::Decode => Self { shape: one, chunk, weights: None, state_offset, ..self },
            Op::Model => Self { norm: None, weights, state_offset: None, ..self },
            Op::Step => Self { norm: None, weights, state_offset: None, shape: one, ..self },
        }
    }
}
