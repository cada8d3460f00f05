//! Sizes: their form on the command line, and those of layers that models have.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::spec::{Op, RuleName};

/// Sizes, B,H,T,K,V; or B,H,HV,T,K,V where q and k have H heads, and v, o and the state have HV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shape {
    pub(super) batch: usize,
    /// The heads of q and k, where these have fewer than v, o and the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key_heads: Option<usize>,
    pub(super) heads: usize,
    pub(super) len: usize,
    pub(super) key: usize,
    pub(super) value: usize,
}

impl Shape {
    const fn new([batch, heads, len, key, value]: [usize; 5]) -> Self {
        Self { batch, key_heads: None, heads, len, key, value }
    }

    const fn grouped([batch, key_heads, heads, len, key, value]: [usize; 6]) -> Self {
        let key_heads = if key_heads == heads { None } else { Some(key_heads) };
        Self { batch, key_heads, heads, len, key, value }
    }

    /// Heads of q, k and v.
    pub(super) fn groups(&self) -> chunkwise::shape::Heads {
        let key_heads = self.key_heads.unwrap_or(self.heads);
        chunkwise::shape::Heads::new(key_heads, key_heads, self.heads)
    }

    /// The sizes as on the command line, with words in place of T, K and V.
    pub(super) fn with_words(&self, words: [Option<&str>; 3]) -> String {
        let Self { batch, key_heads, heads, len, key, value } = self;
        let heads = key_heads.map_or(heads.to_string(), |key_heads| format!("{key_heads},{heads}"));
        let sizes = [len, key, value].into_iter().zip(words);
        let sizes = sizes.map(|(size, word)| word.map_or(size.to_string(), str::to_owned));
        format!("{batch},{heads},{}", sizes.collect::<Vec<_>>().join(","))
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sizes: Option<Vec<usize>> =
            text.split([',', 'x']).map(|size| size.trim().parse().ok().filter(|size| *size > 0)).collect();
        match sizes.as_deref() {
            Some(&[batch, heads, len, dim]) => Ok(Self::new([batch, heads, len, dim, dim])),
            Some(&[batch, heads, len, key, value]) => Ok(Self::new([batch, heads, len, key, value])),
            Some(&[batch, key_heads, heads, len, key, value]) if heads.is_multiple_of(key_heads) => {
                Ok(Self::grouped([batch, key_heads, heads, len, key, value]))
            }
            _ => Err(
                "expected whole numbers above 0, B,H,T,D or B,H,T,K,V or B,H,HV,T,K,V with HV a multiple of H"
                    .into(),
            ),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.with_words([None; 3]))
    }
}

/// Sizes, and the rule of the layer that has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) shape: Shape,
    /// The rule of the layer; `None` where only numbers were given.
    pub(super) rule: Option<RuleName>,
}

/// The sizes for which one word of the command line stands.
#[derive(Clone, Debug)]
pub(super) struct Shapes(pub(super) Vec<Sizes>);

/// The word for all of [`LAYERS`].
const ALL_LAYERS: &str = "layers";

/// Layers of models by name, with 2048 tokens of one sequence.
const LAYERS: [(&str, RuleName, Shape); 8] = [
    ("qwen3.5-0.8b", RuleName::GatedDelta, Shape::grouped([1, 16, 16, 2048, 128, 128])),
    ("qwen3.5-4b", RuleName::GatedDelta, Shape::grouped([1, 16, 32, 2048, 128, 128])),
    ("olmo-hybrid", RuleName::GatedDelta, Shape::grouped([1, 30, 30, 2048, 96, 192])),
    ("kimi-linear", RuleName::Kda, Shape::grouped([1, 32, 32, 2048, 128, 128])),
    ("granite-4-h", RuleName::ScalarGate, Shape::grouped([1, 1, 48, 2048, 128, 64])),
    ("falcon-h1-1.5b", RuleName::ScalarGate, Shape::grouped([1, 1, 48, 2048, 256, 64])),
    ("falcon-h1-7b", RuleName::ScalarGate, Shape::grouped([1, 1, 24, 2048, 256, 128])),
    ("retnet", RuleName::Decay, Shape::grouped([1, 8, 8, 2048, 256, 512])),
];

impl FromStr for Shapes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let layers = LAYERS.iter().filter(|(name, ..)| [name, ALL_LAYERS].contains(&text));
        let layers: Vec<Sizes> =
            layers.map(|(_, rule, shape)| Sizes { shape: *shape, rule: Some(*rule) }).collect();
        if !layers.is_empty() {
            return Ok(Self(layers));
        }
        let shape = text.parse().map_err(|error| {
            let names: Vec<&str> = LAYERS.iter().map(|(name, ..)| *name).collect();
            format!("{error}; or the name of a layer ({}), or {ALL_LAYERS} for all of them", names.join(", "))
        })?;
        Ok(Self(vec![Sizes { shape, rule: None }]))
    }
}

/// The shapes at which an operation is measured where none is given.
pub(super) fn usual(op: Op, rule: RuleName) -> Vec<Shape> {
    const PREFILL: [Shape; 5] = [
        Shape::new([1, 4, 4096, 64, 64]),
        Shape::new([1, 8, 2048, 128, 128]),
        Shape::new([4, 4, 1024, 64, 64]),
        Shape::new([1, 1, 16384, 64, 64]),
        Shape::new([1, 4, 64, 64, 64]),
    ];
    const DECODE: [Shape; 3] =
        [Shape::new([1, 4, 1, 64, 64]), Shape::new([1, 16, 1, 128, 128]), Shape::new([8, 16, 1, 128, 128])];
    const DRAFT: [Shape; 3] = [
        Shape::new([1, 16, 4, 128, 128]),
        Shape::new([1, 16, 8, 128, 128]),
        Shape::new([1, 16, 16, 128, 128]),
    ];
    const MODEL: [Shape; 3] =
        [Shape::new([1, 4, 64, 64, 64]), Shape::new([8, 4, 64, 64, 64]), Shape::new([1, 4, 1024, 64, 64])];
    let shapes = match op {
        Op::Prefill | Op::Backward => &PREFILL[..],
        Op::Decode => &DECODE,
        Op::Draft => &DRAFT,
        Op::Model => &MODEL,
        Op::Step => &MODEL[..1],
    };
    let layers = LAYERS.iter().filter(|(_, of, _)| *of == rule).map(|(.., shape)| *shape);
    match (op, rule) {
        (Op::Draft | Op::Model | Op::Step, _) | (_, RuleName::Linear) => shapes.to_vec(),
        // The shapes at which other libraries were measured as well, and the layers.
        _ => shapes[..2].iter().copied().chain(layers).collect(),
    }
}
