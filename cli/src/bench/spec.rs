//! What is measured: the words of the command line, and every combination of them that makes sense.

use std::fmt;

use chunkwise::{FeatureMap, Gate, Normaliser, Rule};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::shape::{Shape, Sizes, usual};

/// Enums whose words are the same on the command line, in tables and in JSON.
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
        /// Many tokens: `Attention::forward` from the zero state
        Prefill,
        /// One step of training, for many tokens: `Attention::forward`, then `Attention::backward`; only with
        /// linear, decay and scalar-gate
        Backward,
        /// One token of each sequence: `Attention::decode` on its state
        Decode,
        /// A draft of T tokens, at most 16: `Attention::verify` on a state, then `Attention::commit` of all
        /// tokens
        Draft,
        /// All tokens at once through a model with H heads, hidden size H K and 4 layers; the output is the
        /// last time step
        Model,
        /// One time step of that model
        Step
    }
    /// What a token does to the state. All but linear have the identity map, no normaliser, the scale K^-1/2,
    /// and q and k of length 1.
    RuleName {
        /// Linear attention, with --map and --norm
        Linear,
        /// Linear attention with a constant decay for each head (RetNet)
        Decay,
        /// Linear attention with a decay for each token and head (Mamba-2, simple GLA)
        ScalarGate,
        /// Linear attention with a decay for each token, head and row of the state (GLA)
        KeyGate,
        /// The delta rule (DeltaNet)
        Delta,
        /// The delta rule with a decay for each token and head (Qwen3.5)
        GatedDelta,
        /// The delta rule with a decay for each token, head and row of the state (Kimi Delta Attention)
        Kda
    }
    /// The type of q, k, v and o, or of the model's weights.
    Dtype { F32, Bf16, F16 }
    /// The map on q and k.
    Map { Elu, Relu, Identity }
    /// The normaliser, by which outputs are divided.
    Norm {
        None,
        /// With eps 1e-6
        Global,
        /// Edifice's normaliser, with eps 1e-8 and the chunk length of --chunk
        PerChunk
    }
    /// The layout of a model's dense weights.
    Packing {
        /// Row by row, as in files
        Stored,
        /// In panels for the instruction set
        Packed
    }
}

impl RuleName {
    /// The rule with this update and gate.
    pub(super) fn rule(self) -> Rule {
        match self {
            RuleName::Linear => Rule::linear(Normaliser::None),
            RuleName::Decay | RuleName::ScalarGate => Rule::gated(Gate::Scalar),
            RuleName::KeyGate => Rule::gated(Gate::Key),
            RuleName::Delta => Rule::delta(Gate::None),
            RuleName::GatedDelta => Rule::delta(Gate::Scalar),
            RuleName::Kda => Rule::delta(Gate::Key),
        }
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

/// The parameters of one measurement. Those that an operation does not use are left out, or 1. Weights as
/// they are stored and a state that begins on a cache line are left out too, because older reports do not
/// name them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(super) op: Op,
    /// The rule; left out where it is linear, because older reports do not name it.
    pub(super) rule: Option<RuleName>,
    pub(super) shape: Shape,
    pub(super) dtype: Dtype,
    pub(super) map: Option<Map>,
    pub(super) norm: Option<Norm>,
    pub(super) chunk: Option<usize>,
    pub(super) weights: Option<Packing>,
    /// The bytes from the beginning of a cache line to the beginning of the state.
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

    /// All parameters but the instruction set and the threads, in short.
    pub(super) fn label(&self) -> String {
        let Self { shape, dtype, map, norm, chunk, weights, .. } = self;
        let mut label = format!("{} {shape} {dtype}", self.work());
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

    /// The operation, and its rule unless that is linear.
    pub(super) fn work(&self) -> String {
        match self.rule {
            Some(rule) => format!("{} {rule}", self.op),
            None => self.op.to_string(),
        }
    }

    /// Where the state begins, if not on a cache line.
    pub(super) fn state_words(&self) -> Option<String> {
        self.state_offset.map(|bytes| format!("state off by {bytes} bytes"))
    }
}

/// The words of the command line, which are combined.
pub(super) struct Words {
    pub(super) ops: Vec<Op>,
    /// The rules; empty for those of the shapes.
    pub(super) rules: Vec<RuleName>,
    /// The shapes; empty for the [`usual`] ones.
    pub(super) shapes: Vec<Sizes>,
    pub(super) dtypes: Vec<Dtype>,
    pub(super) maps: Vec<Map>,
    pub(super) norms: Vec<Norm>,
    pub(super) chunks: Vec<usize>,
    pub(super) weights: Vec<Packing>,
    pub(super) state_offsets: Vec<usize>,
    pub(super) isas: Vec<String>,
    pub(super) threads: Vec<usize>,
}

impl Words {
    /// Every combination, once.
    pub(super) fn specs(&self) -> Result<Vec<Spec>, String> {
        self.check_number()?;
        let mut specs = Vec::new();
        for &op in &self.ops {
            let first = |(rule, shape): (RuleName, Shape)| Spec {
                op,
                rule: Some(rule),
                shape,
                dtype: Dtype::F32,
                map: None,
                norm: None,
                chunk: None,
                weights: None,
                state_offset: None,
                isa: String::new(),
                threads: 1,
            };
            let mut all: Vec<Spec> = self.rules_and_shapes(op).into_iter().map(first).collect();
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

    fn rules_and_shapes(&self, op: Op) -> Vec<(RuleName, Shape)> {
        let linear = [RuleName::Linear];
        let rules = if self.rules.is_empty() { &linear[..] } else { &self.rules };
        let pair = |rule: RuleName| -> Vec<(RuleName, Shape)> {
            match &self.shapes[..] {
                [] => usual(op, rule).into_iter().map(|shape| (rule, shape)).collect(),
                shapes if self.rules.is_empty() => {
                    shapes.iter().map(|sizes| (sizes.rule.unwrap_or(rule), sizes.shape)).collect()
                }
                shapes => shapes.iter().map(|sizes| (rule, sizes.shape)).collect(),
            }
        };
        rules.iter().copied().flat_map(pair).collect()
    }

    /// Checks the number of combinations, which even a short command line can make larger than can be
    /// measured.
    fn check_number(&self) -> Result<(), String> {
        const MOST: usize = 30_000;
        let Self { ops, rules, shapes, dtypes, maps, norms, chunks, weights, state_offsets, isas, threads } =
            self;
        let sizes = rules.len().max(1).saturating_mul(shapes.len().max(1));
        let lists = [ops.len(), sizes, dtypes.len(), maps.len(), norms.len(), chunks.len()];
        let all = lists.into_iter().chain([weights.len(), state_offsets.len(), isas.len(), threads.len()]);
        match all.fold(1, usize::saturating_mul) {
            ..=MOST => Ok(()),
            number => Err(format!("there are {number} combinations, and a run measures at most {MOST}")),
        }
    }
}

/// Every spec with every word.
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
        let rule = self.rule.filter(|rule| *rule != RuleName::Linear);
        let weights = self.weights.filter(|weights| *weights != Packing::Stored);
        let state_offset = self.state_offset.filter(|bytes| *bytes != 0);
        let (map, norm) = if rule.is_some() { (None, None) } else { (self.map, self.norm) };
        let chunk = self.chunk.filter(|_| norm == Some(Norm::PerChunk));
        let attention = Self { rule, map, norm, chunk, weights: None, ..self.clone() };
        let model = Self { rule: None, norm: None, weights, state_offset: None, ..self };
        match self.op {
            Op::Prefill | Op::Backward => Self { state_offset: None, ..attention },
            Op::Decode => Self { shape: one, state_offset, ..attention },
            Op::Draft => Self { state_offset, ..attention },
            Op::Model => model,
            Op::Step => Self { shape: one, ..model },
        }
    }
}
