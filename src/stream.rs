//! A stream that owns its state and scratch, for callers that do not manage this memory themselves.

use std::vec;
use std::vec::Vec;

use crate::attention::{Attention, Config, State};
use crate::error::{Result, check_len};
use crate::scratch;
use crate::tensors::Tensors;

/// Sequences that are fed in pieces of any length, many tokens at a time or one.
///
/// ```
/// use chunkwise::{Config, Normaliser, Rule, Shape, Stream, Tensors};
///
/// let rule = Rule::linear(Normaliser::Global { eps: 1e-6 });
/// let mut stream = Stream::new(Config::new(rule, Shape::new(1, 100, 4, 64, 64)))?;
/// let (q, k, v, mut o) = (vec![0.1; 25_600], vec![0.2; 25_600], vec![0.3; 25_600], vec![0.0; 25_600]);
/// stream.forward(100, Tensors::new(&q, &k, &v, &mut o))?;
/// stream.decode(Tensors::new(&q[..256], &k[..256], &v[..256], &mut o[..256]))?;
/// # Ok::<(), chunkwise::Error>(())
/// ```
#[derive(Debug)]
pub struct Stream {
    attention: Attention,
    /// Memory for the state, which begins at the first whole cache line.
    memory: Vec<f32>,
    scratch: Vec<f32>,
}

/// A state to return to; it belongs to streams of the configuration that it was taken from.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot(Vec<f32>);

impl Stream {
    /// A stream before its first token. The shape's number of tokens is not used.
    ///
    /// # Errors
    /// As for [`Attention::new`].
    pub fn new(config: Config) -> Result<Self> {
        let attention = Attention::new(config)?;
        let memory = vec![0.0; scratch::with_alignment(attention.state_len())];
        let scratch = vec![0.0; attention.decode_scratch_len()];
        Ok(Self { attention, memory, scratch })
    }

    /// The attention that is computed.
    pub fn attention(&self) -> &Attention {
        &self.attention
    }

    /// Computes the next `len` tokens, with the strides of the configuration: [`Attention::forward`] on the
    /// stream's state.
    ///
    /// # Errors
    /// A tensor shorter than its shape and strides reach; strides of o under which the rows of `len` tokens
    /// overlap. Outputs and state are left untouched then.
    pub fn forward(&mut self, len: usize, tensors: Tensors<'_>) -> Result<()> {
        let config = *self.attention.config();
        let attention = Attention::new(Config { shape: config.shape.with_len(len), ..config })?;
        self.scratch.resize(self.scratch.len().max(attention.scratch_len()), 0.0);
        let state = &mut scratch::align(&mut self.memory)[..attention.state_len()];
        attention.forward(tensors, State::Carried(state), &mut self.scratch)
    }

    /// Computes the next token: [`Attention::decode`] on the stream's state.
    ///
    /// # Errors
    /// As for [`Stream::forward`].
    pub fn decode(&mut self, tensors: Tensors<'_>) -> Result<()> {
        let state = &mut scratch::align(&mut self.memory)[..self.attention.state_len()];
        self.attention.decode(tensors, state, &mut self.scratch)
    }

    /// The state so far, to which [`Stream::restore`] can return.
    pub fn snapshot(&self) -> Snapshot {
        let begin = scratch::misalignment(&self.memory);
        Snapshot(self.memory[begin..][..self.attention.state_len()].to_vec())
    }

    /// Returns to a snapshot.
    ///
    /// # Errors
    /// A snapshot of another configuration. The stream is left untouched then.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<()> {
        check_len("the snapshot", self.attention.state_len(), snapshot.0.len())?;
        self.attention.check_state(&snapshot.0, 0..self.attention.all_heads())?;
        scratch::align(&mut self.memory)[..snapshot.0.len()].copy_from_slice(&snapshot.0);
        Ok(())
    }

    /// Returns to the state before the first token.
    pub fn reset(&mut self) {
        self.memory.fill(0.0);
    }
}

/// A stream that goes on from the same state.
impl Clone for Stream {
    fn clone(&self) -> Self {
        let mut stream = Self {
            attention: self.attention,
            memory: vec![0.0; self.memory.len()],
            scratch: vec![0.0; self.scratch.len()],
        };
        // The copy's memory may begin at another place in a cache line.
        let from = &self.memory[scratch::misalignment(&self.memory)..][..self.attention.state_len()];
        scratch::align(&mut stream.memory)[..from.len()].copy_from_slice(from);
        stream
    }
}
