//! Attention with any of the rules, on inputs from a folder.

use std::path::Path;

use chunkwise::element::Element;
use chunkwise::{
    Attention, Config, Gate, Heads, Normaliser, Rule, Shape, State, Strides, Tensors, Update, files,
};
use serde_json::Value;

use self::memory::Aligned;
use super::{Peer, Result};

// The inputs of the other libraries begin on a cache line too.
#[path = "../../../cli/src/bench/memory.rs"]
mod memory;

/// The arguments of a `load` command.
pub(super) struct Load<'a> {
    pub(super) folder: &'a Path,
    pub(super) mode: &'a str,
    pub(super) threads: usize,
}

/// A case that is run by forward or token by token.
pub(super) struct Case<E> {
    attention: Attention,
    decode: bool,
    /// Whether the rule is one of the family, so that the output includes the last state.
    family: bool,
    load: fn(E) -> f32,
    q: Aligned<E>,
    k: Aligned<E>,
    v: Aligned<E>,
    g: Aligned<f32>,
    beta: Aligned<f32>,
    o: Aligned<E>,
    state: Aligned<f32>,
    scratch: Aligned<f32>,
}

impl<E: Element> Case<E> {
    pub(super) fn load(from: &Load<'_>, store: fn(f32) -> E, load: fn(E) -> f32) -> Result<Self> {
        let (decode, mode) = match from.mode.strip_prefix("decode_") {
            Some(mode) => (true, mode),
            None => (false, from.mode),
        };
        let meta: Value = serde_json::from_slice(&files::read(from.folder.join("meta.json"))?)?;
        let (family, config) = match normalised(mode) {
            Some(normaliser) => (false, heads_first(&meta, normaliser)?),
            None => (true, layer(&meta, mode)?),
        };
        let attention = Attention::new(config.threads(from.threads))?;
        let Shape { batch, len, heads, groups, key, value, .. } = config.shape;
        let tokens = batch * len;
        let gates = match config.rule.gate {
            Gate::None => 0,
            _ if config.shape.g_strides == Some(Strides::PER_HEAD) => heads,
            Gate::Key => tokens * heads * key,
            _ => tokens * heads,
        };
        let betas = if config.rule.update == Update::Delta { tokens * heads } else { 0 };
        let tensor = |name: &str, len: usize| -> Result<Aligned<E>> {
            let numbers = read(from.folder, name, len)?.into_iter().map(store);
            Ok(Aligned::copy_of(&numbers.collect::<Vec<E>>()))
        };
        Ok(Self {
            attention,
            decode,
            family,
            load,
            q: tensor("q.bin", tokens * groups.query * key)?,
            k: tensor("k.bin", tokens * groups.key * key)?,
            v: tensor("v.bin", tokens * groups.value * value)?,
            g: Aligned::copy_of(&read(from.folder, "g.bin", gates)?),
            beta: Aligned::copy_of(&read(from.folder, "beta.bin", betas)?),
            o: Aligned::filled(E::default(), tokens * groups.output() * value),
            state: Aligned::filled(0.0, attention.state_len()),
            scratch: Aligned::filled(0.0, attention.scratch_len().max(attention.decode_scratch_len())),
        })
    }
}

/// The normaliser of a mode of linear attention without a gate, or `None` for the other modes.
fn normalised(mode: &str) -> Option<Normaliser> {
    match mode {
        "norm" => Some(Normaliser::Global { eps: 1e-8 }),
        "unnorm" => Some(Normaliser::None),
        _ => None,
    }
}

fn sizes<const N: usize>(meta: &Value, names: [&str; N]) -> Result<[usize; N]> {
    let mut sizes = [0; N];
    for (size, name) in sizes.iter_mut().zip(names) {
        *size = meta[name].as_u64().ok_or_else(|| format!("no size {name} in meta.json"))? as usize;
    }
    Ok(sizes)
}

/// The configuration of linear attention on `[B, H, T, D]`.
fn heads_first(meta: &Value, normaliser: Normaliser) -> Result<Config> {
    let [batch, heads, len, dim] = sizes(meta, ["B", "H", "T", "D"])?;
    let strides = Strides::bhtd(len, heads, dim);
    let shape = Shape::new(batch, len, heads, dim, dim);
    let shape = shape.with_inputs(strides, strides, strides).with_output(strides);
    Ok(Config::new(Rule::linear(normaliser), shape))
}

/// The configuration of a rule with a gate or the delta rule on `[B, T, H, K]` and `[B, T, HV, V]`.
fn layer(meta: &Value, mode: &str) -> Result<Config> {
    let rule = match mode {
        "ret" | "sg" => Rule::gated(Gate::Scalar),
        "gla" => Rule::gated(Gate::Key),
        "delta" => Rule::delta(Gate::None),
        "gdn" => Rule::delta(Gate::Scalar),
        "kda" => Rule::delta(Gate::Key),
        _ => return Err(format!("no mode {mode} here").into()),
    };
    let [batch, key_heads, heads, len, key, value] = sizes(meta, ["B", "H", "HV", "T", "K", "V"])?;
    let mut shape = Shape::grouped(batch, len, Heads::new(key_heads, key_heads, heads), key, value);
    if mode == "ret" {
        shape = shape.with_gates(Strides::PER_HEAD, Strides::bthd(len, heads, 1));
    }
    Ok(Config::new(rule.scale_by_key(key), shape))
}

/// The `len` numbers of a file, which is not read if `len` is 0.
fn read(folder: &Path, name: &str, len: usize) -> Result<Vec<f32>> {
    if len == 0 {
        return Ok(vec![]);
    }
    let bytes = files::read(folder.join(name))?;
    let (numbers, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() || numbers.len() != len {
        return Err(format!("{name} has {} bytes, not those of {len} numbers", bytes.len()).into());
    }
    Ok(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

impl<E: Element> Peer for Case<E> {
    fn run(&mut self) {
        let Self { attention, decode, family, q, k, v, g, beta, o, state, scratch, .. } = self;
        if !*decode {
            let tensors = Tensors::new(&q[..], &k[..], &v[..], &mut o[..]).gate(&g[..]).beta(&beta[..]);
            let state = if *family { State::Final(state) } else { State::Zero };
            attention.forward(tensors, state, scratch).expect("lengths that fit");
            return;
        }
        state.fill(0.0);
        let Shape { len, q_strides, k_strides, v_strides, o_strides, g_strides, beta_strides, .. } =
            attention.config().shape;
        // The distance between the rows of two tokens in g or beta: 0 where there is no such tensor, or the
        // same row for all tokens.
        let gates = |x: &[f32], strides: Option<Strides>| {
            if x.is_empty() { 0 } else { strides.map_or(0, |strides| strides.token) }
        };
        let (gate, beta_row) = (gates(g, g_strides), gates(beta, beta_strides));
        for t in 0..len {
            let tensors = Tensors::new(
                &q[t * q_strides.token..],
                &k[t * k_strides.token..],
                &v[t * v_strides.token..],
                &mut o[t * o_strides.token..],
            );
            let tensors = tensors.gate(&g[t * gate..]).beta(&beta[t * beta_row..]);
            attention.decode(tensors, state, scratch).expect("lengths that fit");
        }
    }

    fn output(&self) -> Vec<f32> {
        let state = if self.family { &self.state[..] } else { &[] };
        self.o.iter().copied().map(self.load).chain(state.iter().copied()).collect()
    }
}
