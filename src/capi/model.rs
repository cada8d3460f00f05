//! Models in memory that the caller provides, from a table of tensors and without an allocator. Module `file`
//! makes models from files.

use core::ffi::{CStr, c_void};
use core::fmt::{self, Write};

use super::args::{
    Headed, Output, copy, cw_model_call, cw_model_config, cw_model_sizes, cw_parameter, slice, slice_mut,
};
use super::config::{feature_map, flag};
use super::span::{self, Span, apart, needed};
use super::status::*;
use super::{Result, bytes, guard, isa, size};
use crate::element::Elements;
use crate::isa::Isa;
use crate::nn::{AttentionKind, BlockWeights, Linear, Model, ModelConfig, OutputMode, Weights};
use crate::rule::FeatureMap;

/// The target of a handle. It is at the beginning of the caller's memory, followed by the blocks of the
/// model.
pub struct cw_model {
    mark: u64,
    pub(super) model: Model<'static>,
    /// What `cw_model_open` allocated for the model, or null.
    #[cfg(feature = "files")]
    pub(super) owner: *mut c_void,
}

/// Distinguishes a model from other memory, most of the time.
const MARK: u64 = u64::from_le_bytes(*b"chunkwis");

impl cw_model {
    /// A model without an owner.
    pub(super) fn new(model: Model<'static>) -> Self {
        Self {
            mark: MARK,
            model,
            #[cfg(feature = "files")]
            owner: core::ptr::null_mut(),
        }
    }

    /// Checks that a pointer is to a model.
    ///
    /// # Safety
    /// `model` is null, or points to memory that can be read.
    pub(super) unsafe fn get<'a>(model: *const cw_model) -> Result<&'a cw_model> {
        span::of(model, 1)?;
        // SAFETY: non-null and aligned, as just checked; the field is an integer, whatever the memory
        // contains.
        let mark = unsafe { (&raw const (*model).mark).read() };
        if mark != MARK {
            return Err(Status(CW_MODEL));
        }
        // SAFETY: this library made it, or someone has forged its mark.
        Ok(unsafe { &*model })
    }

    /// Clears the mark of a model that will not be used again.
    #[cfg(feature = "files")]
    pub(super) unsafe fn forget(model: *mut cw_model) {
        // SAFETY: the caller has the pointer from `get`.
        unsafe { (&raw mut (*model).mark).write(0) };
    }
}

/// The bytes of memory for a model with this configuration, and the byte at which its blocks begin.
fn memory_len(config: &ModelConfig) -> Result<(usize, usize)> {
    let blocks = size_of::<cw_model>().next_multiple_of(align_of::<BlockWeights<'_>>());
    let bytes = size_of::<BlockWeights<'_>>().checked_mul(config.num_layers);
    let all = bytes.and_then(|bytes| bytes.checked_add(blocks)).filter(|all| *all <= isize::MAX as usize);
    Ok((all.ok_or(Status(CW_OVERFLOW))?, blocks))
}

// One alignment must serve both.
const _: () = assert!(align_of::<cw_model>() >= align_of::<BlockWeights<'_>>());

/// Memory for a model that is not yet written.
pub(super) struct Room {
    at: *mut u8,
    blocks: usize,
    pub(super) span: Span,
}

impl Room {
    pub(super) fn new(config: &ModelConfig, memory: *mut c_void, bytes: u64) -> Result<Self> {
        let (all, blocks) = memory_len(config)?;
        span::of(memory.cast::<cw_model>(), 1)?;
        let span = needed(memory.cast::<u8>(), bytes, all)?;
        Ok(Self { at: memory.cast(), blocks, span })
    }

    /// Writes a model into the memory.
    ///
    /// # Safety
    /// The memory can be written, by nothing else, and stays as long as the model is used, as does what
    /// `weights` borrows.
    pub(super) unsafe fn fill(
        self,
        config: &ModelConfig,
        isa: Option<Isa>,
        threads: usize,
        weights: impl FnOnce(&'static mut [BlockWeights<'static>]) -> Result<Weights<'static>>,
    ) -> Result<*const cw_model> {
        // SAFETY: inside the room and aligned, as `new` has checked; the blocks are written before anything
        // refers to them.
        let blocks = unsafe {
            let blocks = self.at.add(self.blocks).cast::<BlockWeights<'static>>();
            for at in 0..config.num_layers {
                blocks.add(at).write(BlockWeights::EMPTY);
            }
            slice_mut(blocks, config.num_layers)
        };
        let model = Model::new(*config, weights(blocks)?, isa, threads)?;
        let handle = self.at.cast::<cw_model>();
        // SAFETY: likewise; the handle precedes the blocks.
        unsafe { handle.write(cw_model::new(model)) };
        Ok(handle)
    }
}

/// Writes the bytes of memory that a model needs, and their alignment.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_model_memory(
    config: *const cw_model_config,
    bytes: *mut u64,
    align: *mut u64,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, passed on.
        let config = unsafe { copy(config)? }.checked()?;
        apart(&[span::of(bytes, 1)?, span::of(align, 1)?], &[])?;
        let (all, _) = memory_len(&config)?;
        // SAFETY: non-null and aligned, as just checked.
        unsafe {
            bytes.write(all as u64);
            align.write(align_of::<cw_model>() as u64);
        }
        Ok(())
    })
}

/// Makes a model from a table of tensors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_model_init(
    config: *const cw_model_config,
    parameters: *const cw_parameter,
    count: u64,
    isa: u32,
    threads: u32,
    memory: *mut c_void,
    memory_bytes: u64,
    model: *mut *const cw_model,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, passed on.
        let config = unsafe { copy(config)? }.checked()?;
        let (isa, threads) = run_on(isa, threads)?;
        let count = size(count)?;
        let table = span::of(parameters, count)?;
        let room = Room::new(&config, memory, memory_bytes)?;
        let to = span::of(model, 1)?;
        // SAFETY: non-null and aligned if there are any; that they can be read is the caller's promise.
        let table_of = Table { parameters: unsafe { slice(parameters, count) } };
        apart(&[room.span, to], &[table])?;
        // All parameters are checked before anything is written.
        let mut found = 0;
        for parameter in config.parameters() {
            let tensor = table_of.get(&parameter, parameter.dims())?;
            apart(&[room.span, to], &[tensor.span])?;
            found += 1;
        }
        let head = table_of.head(config.output_size())?;
        if let Some([kernel, bias]) = &head {
            apart(&[room.span, to], &[kernel.span, bias.span])?;
            found += 2;
        }
        // Each name must occur once, and each must belong to the model.
        if found != count {
            return Err(Status(CW_PARAMETER));
        }
        // SAFETY: the room was checked, and is apart from everything else; the tensors stay as long as the
        // model, by the caller's promise.
        let handle = unsafe {
            room.fill(&config, isa, threads, |blocks| {
                let mut weights = Weights::collect(&config, blocks, |parameter| {
                    Ok::<_, Status>(table_of.get(parameter, parameter.dims())?.elements)
                })?;
                weights.head = head.map(|[kernel, bias]| Linear::new(kernel.elements, bias.elements));
                Ok(weights)
            })?
        };
        // SAFETY: non-null and aligned, as checked above.
        unsafe { model.write(handle) };
        Ok(())
    })
}

/// Writes the sizes of a model's inputs, outputs, state and scratch.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_model_sizes_of(
    model: *const cw_model,
    batch: u64,
    len: u64,
    sizes: *mut cw_model_sizes,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, passed on.
        let model = unsafe { cw_model::get(model)? }.model;
        // SAFETY: likewise.
        let sizes = unsafe { Output::new(sizes)? };
        let (batch, len) = (size(batch)?, size(len)?);
        let output = model.output_len(batch, len);
        let hidden = model.config().output_size();
        bytes(batch.saturating_mul(len).saturating_mul(model.config().embed_dim))?;
        sizes.write(cw_model_sizes {
            embed_dim: model.config().embed_dim as u64,
            hidden_size: hidden as u64,
            head_size: model.head_len().unwrap_or(0) as u64,
            output_bytes: bytes(output)?,
            state_bytes: bytes(model.state_len(batch)?)?,
            forward_scratch_bytes: bytes(model.scratch_len(batch, len)?)?,
            step_scratch_bytes: bytes(model.step_scratch_len(batch)?)?,
            head_scratch_bytes: bytes(model.head_scratch_len(output / hidden))?,
            align: align_of::<f32>() as u64,
            ..cw_model_sizes::DEFAULT
        });
        Ok(())
    })
}

/// Runs a model over all tokens.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_model_forward(model: *const cw_model, call: *const cw_model_call) -> i32 {
    // SAFETY: the caller's promise, passed on.
    guard(|| unsafe {
        let (model, call) = (cw_model::get(model)?.model, copy(call)?);
        let (batch, len) = (size(call.batch)?, size(call.len)?);
        let rows = batch.saturating_mul(len);
        let lens = Lens {
            input: rows.saturating_mul(model.config().embed_dim),
            state: 0,
            output: model.output_len(batch, len),
            scratch: model.scratch_len(batch, len)?,
        };
        let Slices { input, output, scratch, .. } = call.slices(lens)?;
        Ok(model.forward(batch, len, input, output, scratch)?)
    })
}

/// Runs a model over one time step of each sequence.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_model_step(model: *const cw_model, call: *const cw_model_call) -> i32 {
    // SAFETY: the caller's promise, passed on.
    guard(|| unsafe {
        let (model, call) = (cw_model::get(model)?.model, copy(call)?);
        let batch = size(call.batch)?;
        if call.len != 1 {
            return Err(Status(CW_SHAPE));
        }
        let lens = Lens {
            input: batch.saturating_mul(model.config().embed_dim),
            state: model.state_len(batch)?,
            output: batch.saturating_mul(model.config().output_size()),
            scratch: model.step_scratch_len(batch)?,
        };
        let Slices { input, state, output, scratch } = call.slices(lens)?;
        Ok(model.step(batch, input, state, output, scratch)?)
    })
}

/// Applies the dense head to rows of an output.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_model_head(model: *const cw_model, call: *const cw_model_call) -> i32 {
    // SAFETY: the caller's promise, passed on.
    guard(|| unsafe {
        let (model, call) = (cw_model::get(model)?.model, copy(call)?);
        let rows = size(call.batch)?.saturating_mul(size(call.len)?);
        let columns = model.head_len().ok_or(Status(CW_PARAMETER))?;
        let lens = Lens {
            input: rows.saturating_mul(model.config().output_size()),
            state: 0,
            output: rows.saturating_mul(columns),
            scratch: model.head_scratch_len(rows),
        };
        let Slices { input, output, scratch, .. } = call.slices(lens)?;
        Ok(model.apply_head(input, output, scratch)?)
    })
}

/// The numbers of elements that a call needs.
struct Lens {
    input: usize,
    state: usize,
    output: usize,
    scratch: usize,
}

struct Slices<'a> {
    input: &'a [f32],
    state: &'a mut [f32],
    output: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl cw_model_call {
    /// # Safety
    /// The memory exists, and nothing else writes it.
    unsafe fn slices<'a>(&self, lens: Lens) -> Result<Slices<'a>> {
        let scratch = self.scratch.cast::<f32>();
        let input = needed(self.input, self.input_bytes, lens.input)?;
        let written = [
            needed(self.output, self.output_bytes, lens.output)?,
            needed(self.state, self.state_bytes, lens.state)?,
            needed(scratch, self.scratch_bytes, lens.scratch)?,
        ];
        apart(&written, &[input])?;
        // SAFETY: each span has been checked, and what is written is apart from everything else.
        unsafe {
            Ok(Slices {
                input: slice(self.input, lens.input),
                state: slice_mut(self.state, lens.state),
                output: slice_mut(self.output, lens.output),
                scratch: slice_mut(scratch, lens.scratch),
            })
        }
    }
}

pub(super) fn run_on(number: u32, threads: u32) -> Result<(Option<Isa>, usize)> {
    if threads == 0 {
        return Err(Status(CW_ZERO));
    }
    let isa = Isa::resolve(isa(number)?)?;
    Ok((Some(isa), threads as usize))
}

impl cw_model_config {
    fn checked(&self) -> Result<ModelConfig> {
        if self.reserved != 0 {
            return Err(Status(CW_UNKNOWN));
        }
        let config = ModelConfig {
            attention: match self.attention {
                CW_LINEAR => AttentionKind::Linear,
                CW_LIGHTNING => AttentionKind::Lightning,
                _ => return Err(Status(CW_UNKNOWN)),
            },
            hidden_size: size(self.hidden_size)?,
            num_heads: size(self.num_heads)?,
            num_layers: size(self.num_layers)?,
            chunk_size: size(self.chunk_size)?,
            seq_len: size(self.seq_len)?,
            feature_map: feature_map(self.feature_map, self.feature_eps)?,
            output_mode: match self.output_mode {
                CW_LAST_TIMESTEP => OutputMode::LastTimestep,
                CW_ALL => OutputMode::All,
                CW_MEAN => OutputMode::Mean,
                _ => return Err(Status(CW_UNKNOWN)),
            },
            final_norm: flag(self.final_norm)?,
            layer_norm_eps: self.layer_norm_eps,
            layer_norm_clip: flag(self.layer_norm_clip)?,
            ..ModelConfig::new(size(self.embed_dim)?)
        };
        config.check()?;
        Ok(config)
    }
}

impl From<&ModelConfig> for cw_model_config {
    fn from(config: &ModelConfig) -> Self {
        let (feature_map, feature_eps) = match config.feature_map {
            FeatureMap::Elu => (CW_ELU, 0.0),
            FeatureMap::Relu { eps } => (CW_RELU, eps),
            FeatureMap::Identity => (CW_IDENTITY, 0.0),
        };
        Self {
            embed_dim: config.embed_dim as u64,
            hidden_size: config.hidden_size as u64,
            num_heads: config.num_heads as u64,
            num_layers: config.num_layers as u64,
            chunk_size: config.chunk_size as u64,
            seq_len: config.seq_len as u64,
            feature_map,
            feature_eps,
            output_mode: match config.output_mode {
                OutputMode::LastTimestep => CW_LAST_TIMESTEP,
                OutputMode::All => CW_ALL,
                OutputMode::Mean => CW_MEAN,
            },
            final_norm: config.final_norm.into(),
            layer_norm_eps: config.layer_norm_eps,
            layer_norm_clip: config.layer_norm_clip.into(),
            attention: match config.attention {
                AttentionKind::Linear => CW_LINEAR,
                AttentionKind::Lightning => CW_LIGHTNING,
            },
            ..Self::DEFAULT
        }
    }
}

/// A parameter that was found, and its memory.
#[derive(Clone, Copy)]
struct Found {
    elements: Elements<'static>,
    span: Span,
}

/// The caller's table of parameters.
#[derive(Clone, Copy)]
struct Table<'a> {
    parameters: &'a [cw_parameter],
}

impl Table<'_> {
    /// The first tensor with a name. It must be contiguous and have these dims.
    fn get(&self, name: &impl fmt::Display, dims: &[usize]) -> Result<Found> {
        let tensor = self.find(name)?.ok_or(Status(CW_PARAMETER))?;
        let (mut len, mut strides) = (1usize, true);
        if tensor.rank as usize != dims.len() {
            return Err(Status(CW_PARAMETER));
        }
        for (at, want) in dims.iter().enumerate().rev() {
            if tensor.dims[at] != *want as u64 {
                return Err(Status(CW_PARAMETER));
            }
            strides &= tensor.strides[at] == len as u64;
            len = len.checked_mul(*want).ok_or(Status(CW_OVERFLOW))?;
        }
        if !strides {
            return Err(Status(CW_SHAPE));
        }
        let span = tensor.span(len)?;
        // SAFETY: just checked; that it can be read as long as the model is used is the caller's promise.
        Ok(Found { elements: unsafe { tensor.elements(len) }, span })
    }

    /// The dense layer after the output, if there is one.
    fn head(&self, hidden: usize) -> Result<Option<[Found; 2]>> {
        let Some(kernel) = self.find(&"head.kernel")? else { return Ok(None) };
        let columns = size(kernel.dims[1])?;
        if columns == 0 {
            return Err(Status(CW_PARAMETER));
        }
        Ok(Some([self.get(&"head.kernel", &[hidden, columns])?, self.get(&"head.bias", &[columns])?]))
    }

    fn find(&self, name: &impl fmt::Display) -> Result<Option<super::args::cw_tensor>> {
        for parameter in self.parameters {
            span::of(parameter.name, 1)?;
            // SAFETY: not null, as just checked; that a zero ends the name is the caller's promise.
            let mut rest = Rest(unsafe { CStr::from_ptr(parameter.name) }.to_bytes());
            if write!(rest, "{name}").is_ok() && rest.0.is_empty() {
                return Ok(Some(parameter.tensor));
            }
        }
        Ok(None)
    }
}

/// What remains of a name after the text written so far has been removed from its beginning.
struct Rest<'a>(&'a [u8]);

impl Write for Rest<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 = self.0.strip_prefix(text.as_bytes()).ok_or(fmt::Error)?;
        Ok(())
    }
}
