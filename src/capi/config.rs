//! The choices and dimensions of the header, as a configuration.

use super::args::{cw_attention, cw_call, cw_tensor};
use super::status::*;
use super::{Result, isa, size};
use crate::attention::{Attention, Config, Execution};
use crate::rule::{BetaMap, FeatureMap, Gate, GateMap, Normaliser, Rule, Update};
use crate::shape::{HeadOrder, Heads, Shape, Strides};

impl cw_attention {
    /// The attention for the shapes of a call, on the CPU.
    pub(super) fn with(&self, call: &cw_call) -> Result<Attention> {
        let config = self.config(call)?;
        if self.products == CW_PRODUCTS_BF16 {
            // Only GPUs support products of bf16.
            return Err(Status(CW_UNAVAILABLE));
        }
        Ok(Attention::new(config)?)
    }

    /// The configuration for the shapes of a call. It is not checked yet, except that `products` is one of
    /// its constants.
    pub(super) fn config(&self, call: &cw_call) -> Result<Config> {
        let shape = self.shape(call)?;
        if !(CW_PRODUCTS_F32..=CW_PRODUCTS_BF16).contains(&self.products) {
            return Err(Status(CW_UNKNOWN));
        }
        let rule = self.rule()?;
        // Arguments that the rule does not use are refused.
        let mapped = matches!(rule.gate_map, GateMap::Softplus | GateMap::Bounded { .. });
        let parameters = !call.a_log.is_null() || !call.dt_bias.is_null();
        if parameters && !mapped {
            return Err(Status(CW_CONFLICT));
        }
        let [batch, len, ..] = call.q.dims;
        let of_row = |row: usize| [batch, len, shape.heads as u64, row as u64];
        let gated = rule.gate != Gate::None;
        check_gate(&call.g, gated.then(|| of_row(rule.gate_row(shape.key))))?;
        check_gate(&call.beta, (rule.update == Update::Delta).then(|| of_row(1)))?;
        let shape = shape.with_gates(strides(&call.g)?, strides(&call.beta)?);
        let execution = Execution { isa: isa(self.isa)?, threads: self.threads as usize };
        Ok(Config { rule, shape, execution })
    }

    /// The sizes and strides of q, k, v and o.
    fn shape(&self, call: &cw_call) -> Result<Shape> {
        let [batch, len, query_heads, key] = call.q.dims()?;
        let [.., key_heads, _] = call.k.dims()?;
        let [.., value_heads, value] = call.v.dims()?;
        let groups = Heads::new(query_heads, key_heads, value_heads).order(self.head_order()?);
        for (tensor, heads, row) in [
            (&call.q, query_heads, key),
            (&call.k, key_heads, key),
            (&call.v, value_heads, value),
            (&call.o, groups.output(), value),
        ] {
            if !(CW_F32..=CW_F16).contains(&tensor.dtype) {
                return Err(Status(CW_UNKNOWN));
            }
            if tensor.rank != 4 || tensor.dims()? != [batch, len, heads, row] || tensor.strides[3] != 1 {
                return Err(Status(CW_SHAPE));
            }
        }
        let shape = Shape::grouped(batch, len, groups, key, value)
            .with_inputs(strides(&call.q)?, strides(&call.k)?, strides(&call.v)?)
            .with_output(strides(&call.o)?);
        if call.sequences.is_null() && call.sequence_count == 0 {
            return Ok(shape);
        }
        // The sequences follow one another in one batch row.
        if batch != 1 {
            return Err(Status(CW_SHAPE));
        }
        Ok(shape.with_sequences(size(call.sequence_count)?))
    }

    fn rule(&self) -> Result<Rule> {
        Ok(Rule {
            update: match self.update {
                CW_UPDATE_LINEAR => Update::Linear,
                CW_UPDATE_DELTA => Update::Delta,
                _ => return Err(Status(CW_UNKNOWN)),
            },
            gate: match self.gate {
                CW_GATE_NONE => Gate::None,
                CW_GATE_SCALAR => Gate::Scalar,
                CW_GATE_KEY => Gate::Key,
                _ => return Err(Status(CW_UNKNOWN)),
            },
            gate_map: match self.gate_map {
                CW_GATE_MAP_LOG => GateMap::Log,
                CW_GATE_MAP_LINEAR => GateMap::Linear,
                CW_GATE_MAP_SOFTPLUS => GateMap::Softplus,
                CW_GATE_MAP_BOUNDED => GateMap::Bounded { lower: self.gate_lower },
                _ => return Err(Status(CW_UNKNOWN)),
            },
            beta_map: match self.beta_map {
                CW_BETA_GIVEN => BetaMap::Given,
                CW_BETA_SIGMOID => BetaMap::Sigmoid,
                CW_BETA_TWICE_SIGMOID => BetaMap::TwiceSigmoid,
                _ => return Err(Status(CW_UNKNOWN)),
            },
            feature_map: feature_map(self.feature_map, self.feature_eps)?,
            qk_norm: flag(self.qk_norm)?.then_some(self.qk_norm_eps),
            normaliser: self.normaliser()?,
            scale: self.scale,
            compensated: flag(self.compensated)?,
            causal: !flag(self.not_causal)?,
        })
    }

    fn head_order(&self) -> Result<HeadOrder> {
        match self.head_order {
            CW_HEADS_INTERLEAVED => Ok(HeadOrder::Interleaved),
            CW_HEADS_TILED => Ok(HeadOrder::Tiled),
            _ => Err(Status(CW_UNKNOWN)),
        }
    }

    fn normaliser(&self) -> Result<Normaliser> {
        let eps = self.normaliser_eps;
        match self.normaliser {
            CW_NONE => Ok(Normaliser::None),
            CW_GLOBAL => Ok(Normaliser::Global { eps }),
            CW_PER_CHUNK => Ok(Normaliser::PerChunk { chunk: size(self.chunk)?, eps }),
            _ => Err(Status(CW_UNKNOWN)),
        }
    }
}

/// Checks g or beta. Where the rule needs the tensor, its dims must be `[B, T, H, row]`, and may be
/// `[B, T, H]` where a row has one element; elsewhere it must be `CW_NO_TENSOR`.
fn check_gate(tensor: &cw_tensor, dims: Option<[u64; 4]>) -> Result<()> {
    let dims = match dims {
        Some(dims) if !tensor.is_none() => dims,
        None if tensor.is_none() => return Ok(()),
        _ => return Err(Status(CW_CONFLICT)),
    };
    if !(CW_F32..=CW_F16).contains(&tensor.dtype) {
        return Err(Status(CW_UNKNOWN));
    }
    let fits = match tensor.rank {
        3 => dims[3] == 1 && tensor.dims[..3] == dims[..3],
        4 => tensor.dims == dims && tensor.strides[3] == 1,
        _ => false,
    };
    if fits { Ok(()) } else { Err(Status(CW_SHAPE)) }
}

pub(super) fn feature_map(number: u32, eps: f32) -> Result<FeatureMap> {
    match number {
        CW_ELU => Ok(FeatureMap::Elu),
        CW_RELU => Ok(FeatureMap::Relu { eps }),
        CW_IDENTITY => Ok(FeatureMap::Identity),
        _ => Err(Status(CW_UNKNOWN)),
    }
}

/// The value of a flag, which is 0 or 1.
pub(super) fn flag(number: u32) -> Result<bool> {
    match number {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Status(CW_UNKNOWN)),
    }
}

fn strides(tensor: &cw_tensor) -> Result<Strides> {
    let [batch, token, head, _] = tensor.strides;
    Ok(Strides { batch: size(batch)?, token: size(token)?, head: size(head)? })
}
