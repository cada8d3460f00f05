//! The model of handwritten digits as a WebAssembly module without an allocator. `npm/index.js` makes a JavaScript class of
//! these functions.
//!
//! The weights are stored in f16. When the module starts, it widens them and packs them for its vectors, so that a step
//! reads them in sequence. All memory is static, and the module never grows it, so a view of the memory stays valid.
#![cfg_attr(target_arch = "wasm32", no_std)]

use chunkwise::nn::{BlockWeights, Linear, Model, ModelConfig, OutputMode, Weights};
use chunkwise::{FeatureMap, Isa, Result};
use half::f16;

include!(concat!(env!("OUT_DIR"), "/model.rs"));

static NARROW: &[u8; 2 * PARAMETERS] = include_bytes!(concat!(env!("OUT_DIR"), "/weights.bin"));

/// The build script computes the sizes for one lane. Four lanes round them up: packed weights to whole panels, and scratch
/// to at most four times the size. The library refuses memory that is too small, so calls fail if this is too little.
const PACKED_ROOM: usize = PACKED + PACKED / 8;
const SCRATCH: usize = 4 * max(max(STEP_SCRATCH, FORWARD_SCRATCH), HEAD_SCRATCH);

const fn max(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

/// The weights, wide and packed. Only [`start`] writes them, and the model then borrows them.
struct Parts {
    weights: [f32; PARAMETERS],
    memory: [f32; PACKED_ROOM],
}

/// The weights of each layer, which borrow [`Parts`]: as they are stored, and as they are packed.
struct Layers {
    stored: [BlockWeights<'static>; CONFIG.num_layers],
    packed: [BlockWeights<'static>; CONFIG.num_layers],
}

/// The memory that all calls but [`start`] read and write.
struct Work {
    tokens: usize,
    pixels: [f32; TOKENS],
    input: [f32; TOKENS * CONFIG.embed_dim],
    state: [f32; STATE],
    hidden: [f32; CONFIG.hidden_size],
    logits: [f32; CLASSES],
    scratch: [f32; SCRATCH],
}

// A static that is zero takes no space in the module's file. A single bit that is not zero, such as one of the address of an
// empty slice, would store the whole static. This is why there are four of them.
static mut PARTS: Parts = Parts { weights: [0.0; PARAMETERS], memory: [0.0; PACKED_ROOM] };

static mut LAYERS: Layers = Layers {
    stored: [BlockWeights::EMPTY; CONFIG.num_layers],
    packed: [BlockWeights::EMPTY; CONFIG.num_layers],
};

static mut MODEL: Option<Model<'static>> = None;

static mut WORK: Work = Work {
    tokens: 0,
    pixels: [0.0; TOKENS],
    input: [0.0; TOKENS * CONFIG.embed_dim],
    state: [0.0; STATE],
    hidden: [0.0; CONFIG.hidden_size],
    logits: [0.0; CLASSES],
    scratch: [0.0; SCRATCH],
};

/// The sizes, in the order in which `npm/index.js` reads them.
static SIZES: [u32; 9] = [
    TOKENS as u32,
    CLASSES as u32,
    CONFIG.num_layers as u32,
    CONFIG.num_heads as u32,
    CONFIG.head_dim() as u32,
    CONFIG.chunk() as u32,
    STATE as u32,
    PARAMETERS as u32,
    SAMPLES.len() as u32,
];

/// What a call returns if it has done its work, if there is no model or it refuses to compute, and if all pixels are read.
const DONE: u32 = 0;
const REFUSED: u32 = 1;
const FULL: u32 = 2;

/// Borrows the memory of a call.
fn work() -> &'static mut Work {
    let work = &raw mut WORK;
    // SAFETY: the module has one thread. Every exported function borrows this once, and none calls another one or
    // JavaScript, so there are never two borrows at a time.
    unsafe { &mut *work }
}

/// The model, or `None` before [`start`].
fn model() -> Option<&'static Model<'static>> {
    let model = &raw const MODEL;
    // SAFETY: the module has one thread, and `start` writes the model before anything borrows it and never again.
    unsafe { (*model).as_ref() }
}

/// Makes the model. This must be the first call; a second one does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn start() -> u32 {
    if model().is_some() {
        return DONE;
    }
    let (parts, layers) = (&raw mut PARTS, &raw mut LAYERS);
    // SAFETY: the module has one thread, and this line is reached once: if the model can't be made, `npm/index.js` does not
    // call the module again.
    let (parts, layers) = unsafe { (&mut *parts, &mut *layers) };
    match build(parts, layers) {
        Ok(model) => {
            // SAFETY: as above; nothing has borrowed the model yet.
            unsafe { MODEL = Some(model) };
            DONE
        }
        Err(_) => REFUSED,
    }
}

fn build(parts: &'static mut Parts, layers: &'static mut Layers) -> Result<Model<'static>> {
    let (Parts { weights, memory }, Layers { stored, packed }) = (parts, layers);
    for (wide, bytes) in weights.iter_mut().zip(NARROW.as_chunks().0) {
        *wide = f16::from_le_bytes(*bytes).to_f32();
    }
    // The head follows the parameters that the configuration lists: its kernel, then its bias.
    let (body, head) = weights.split_at(PARAMETERS - (CONFIG.hidden_size + 1) * CLASSES);
    let (kernel, bias) = head.split_at(CONFIG.hidden_size * CLASSES);
    let mut weights = Weights::from_flat(&CONFIG, body, stored)?;
    weights.head = Some(Linear::new(kernel, bias));
    let isa = Isa::choose()?;
    Model::new(CONFIG, weights.pack(isa, packed, memory)?, Some(isa), 1)
}

/// Forgets all pixels, so that the next [`step`] reads the first pixel of a digit.
#[unsafe(no_mangle)]
pub extern "C" fn reset() {
    let work = work();
    work.tokens = 0;
    work.state.fill(0.0);
    work.logits.fill(0.0);
}

/// Reads the next pixel, a number from 0 to 1, and writes the model's answer if it is the last one.
#[unsafe(no_mangle)]
pub extern "C" fn step(pixel: f32) -> u32 {
    let Work { tokens, input, state, hidden, logits, scratch, .. } = work();
    let Some(place) = PLACES.get(*tokens) else { return FULL };
    let Some(model) = model() else { return REFUSED };
    let token = &mut input[..CONFIG.embed_dim];
    set(token, pixel, place);
    let mut run = || {
        let len = model.step_scratch_len(1)?;
        model.step(1, token, state, hidden, scratch.get_mut(..len).unwrap_or_default())?;
        head(model, hidden, logits, scratch)
    };
    if run().is_err() {
        return REFUSED;
    }
    *tokens += 1;
    DONE
}

/// Reads all pixels of [`pixels`] at once and writes the answer. It neither reads nor writes the state of [`step`].
#[unsafe(no_mangle)]
pub extern "C" fn forward() -> u32 {
    let Work { pixels, input, hidden, logits, scratch, .. } = work();
    let Some(model) = model() else { return REFUSED };
    for ((token, pixel), place) in input.chunks_exact_mut(CONFIG.embed_dim).zip(pixels).zip(&PLACES) {
        set(token, *pixel, place);
    }
    let mut run = || {
        let len = model.scratch_len(1, TOKENS)?;
        model.forward(1, TOKENS, input, hidden, scratch.get_mut(..len).unwrap_or_default())?;
        head(model, hidden, logits, scratch)
    };
    if run().is_err() { REFUSED } else { DONE }
}

/// Writes a token, which is a pixel and its place.
fn set(token: &mut [f32], pixel: f32, place: &[f32; CONFIG.embed_dim - 1]) {
    token[0] = pixel;
    token[1..].copy_from_slice(place);
}

/// Computes logits from the hidden state of the last token.
fn head(model: &Model<'_>, hidden: &[f32], logits: &mut [f32], scratch: &mut [f32]) -> Result<()> {
    let len = model.head_scratch_len(1);
    model.apply_head(hidden, logits, scratch.get_mut(..len).unwrap_or_default())
}

/// The address of the pixels that [`forward`] reads, each an f32 from 0 to 1, row by row.
#[unsafe(no_mangle)]
pub extern "C" fn pixels() -> *mut f32 {
    work().pixels.as_mut_ptr()
}

/// The address of the logits that the last call has written, an f32 for each digit.
#[unsafe(no_mangle)]
pub extern "C" fn logits() -> *const f32 {
    work().logits.as_ptr()
}

/// The address of the state of [`step`]. For each layer and head, it has S `[K, V]` and z `[K]` of all finished chunks, S
/// and z of the current chunk, and the number of tokens in the current chunk.
#[unsafe(no_mangle)]
pub extern "C" fn state() -> *const f32 {
    work().state.as_ptr()
}

/// The address of the sizes, each a u32.
#[unsafe(no_mangle)]
pub extern "C" fn sizes() -> *const u32 {
    SIZES.as_ptr()
}

/// The address of the digits to show. Each has a label and pixels from 0 to 16, all of them u8.
#[unsafe(no_mangle)]
pub extern "C" fn samples() -> *const u8 {
    SAMPLES.as_flattened().as_ptr()
}

/// The number of lanes of the vectors with which the model computes.
#[unsafe(no_mangle)]
pub extern "C" fn lanes() -> u32 {
    model().map_or(0, |model| model.isa().lanes()) as u32
}

/// Stops the module. No call is known to panic.
#[cfg(target_arch = "wasm32")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    core::arch::wasm32::unreachable()
}
