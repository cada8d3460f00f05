//! Models through the C ABI, with every way to create one: the golden files, calls that are refused and write
//! nothing, and threads that share a model.
#![allow(unsafe_code, reason = "the C ABI is called")]
mod capi_common;
mod common;

use std::ffi::{CStr, CString, c_void};
use std::mem::size_of_val;
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};

use capi_common::*;
use chunkwise::capi::args::*;
use chunkwise::capi::attention::*;
use chunkwise::capi::file::*;
use chunkwise::capi::model::*;
use chunkwise::capi::status::*;
use chunkwise::files::{self, ModelFile, Options, Tensor, Tensors};
use chunkwise::{Attention, Config, FeatureMap, Normaliser, Rule, Shape, State, Strides};
use common::*;

/// The allowed difference from the reference's outputs. Models with the identity map divide by sums that
/// change sign, and are not compared here; `cli/tests/suite/golden.rs` compares them.
const CLOSE: f32 = 1e-5;

fn golden() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    files
}

/// Bytes with the alignment that a file must have, and their number.
struct Aligned(Vec<u64>, usize);

impl Aligned {
    fn new(bytes: &[u8]) -> Self {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks(8)) {
            let mut last = [0; 8];
            last[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(last);
        }
        Self(words, bytes.len())
    }

    fn file(&self) -> cw_model_file {
        cw_model_file {
            bytes: self.0.as_ptr().cast(),
            bytes_len: self.1 as u64,
            threads: 1,
            ..cw_model_file::DEFAULT
        }
    }
}

fn config_of(file: &cw_model_file) -> cw_model_config {
    let mut config = cw_model_config::DEFAULT;
    // SAFETY: the memory is this test's.
    assert_eq!(unsafe { cw_model_file_config(file, &mut config) }, CW_OK);
    config
}

fn room(config: &cw_model_config) -> Vec<u64> {
    let (mut bytes, mut align) = (0, 0);
    // SAFETY: the memory is this test's.
    assert_eq!(unsafe { cw_model_memory(config, &mut bytes, &mut align) }, CW_OK);
    assert!(align <= 8, "more than the alignment of Vec<u64>");
    vec![u64::MAX; (bytes as usize).div_ceil(8)]
}

fn load(file: &cw_model_file, memory: &mut [u64]) -> *const cw_model {
    let mut model = null();
    let bytes = size_of_val(memory) as u64;
    // SAFETY: the memory is this test's.
    assert_eq!(unsafe { cw_model_load(file, memory.as_mut_ptr().cast(), bytes, &mut model) }, CW_OK);
    model
}

/// The table of the parameters, in reverse order. It points to the names and data of `tensors`.
fn table(tensors: &[(CString, Tensor<'_>)]) -> Vec<cw_parameter> {
    let entry = |(name, tensor): &(CString, Tensor<'_>)| {
        let (mut dims, mut strides) = ([0; 4], [0; 4]);
        let mut stride = 1;
        for (at, size) in tensor.shape.iter().enumerate().rev() {
            (dims[at], strides[at]) = (*size as u64, stride);
            stride *= *size as u64;
        }
        let data = tensor.data.as_ptr().cast_mut().cast();
        let tensor = cw_tensor { data, dtype: CW_F32, rank: tensor.shape.len() as u32, dims, strides };
        cw_parameter { name: name.as_ptr(), tensor }
    };
    tensors.iter().rev().map(entry).collect()
}

fn parameters<'a>(tensors: &Tensors<'a>) -> Vec<(CString, Tensor<'a>)> {
    let names = tensors.names().into_iter().filter(|name| name.contains('.'));
    names.map(|name| (CString::new(&*name).unwrap(), tensors.tensor(&name).unwrap())).collect()
}

fn sizes_of(model: *const cw_model, batch: usize, len: usize) -> cw_model_sizes {
    let mut sizes = cw_model_sizes::DEFAULT;
    // SAFETY: the model is this test's.
    assert_eq!(unsafe { cw_model_sizes_of(model, batch as u64, len as u64, &mut sizes) }, CW_OK);
    sizes
}

/// The memory of a call.
struct Memory {
    output: Vec<f32>,
    state: Vec<f32>,
    scratch: Vec<f32>,
}

impl Memory {
    fn new(sizes: &cw_model_sizes, output: usize) -> Self {
        let scratch = sizes.forward_scratch_bytes.max(sizes.step_scratch_bytes) as usize / 4;
        let state = vec![0.0; sizes.state_bytes as usize / 4];
        Self { output: vec![SENTINEL; output], state, scratch: vec![SENTINEL; scratch] }
    }

    fn call(&mut self, batch: usize, len: usize, input: &[f32]) -> cw_model_call {
        cw_model_call {
            batch: batch as u64,
            len: len as u64,
            input: input.as_ptr(),
            input_bytes: size_of_val(input) as u64,
            output: self.output.as_mut_ptr(),
            output_bytes: size_of_val(&self.output[..]) as u64,
            state: self.state.as_mut_ptr(),
            state_bytes: size_of_val(&self.state[..]) as u64,
            scratch: self.scratch.as_mut_ptr().cast(),
            scratch_bytes: size_of_val(&self.scratch[..]) as u64,
            ..cw_model_call::DEFAULT
        }
    }
}

fn forward(model: *const cw_model, input: &Tensor<'_>) -> Vec<f32> {
    let (batch, len) = (input.shape[0], input.shape[1]);
    let sizes = sizes_of(model, batch, len);
    let mut memory = Memory::new(&sizes, sizes.output_bytes as usize / 4);
    let call = memory.call(batch, len, &input.data);
    // SAFETY: the memory is this test's.
    assert_eq!(unsafe { cw_model_forward(model, &call) }, CW_OK);
    memory.output
}

/// The output of the last of all steps.
fn steps(model: *const cw_model, input: &Tensor<'_>) -> Vec<f32> {
    let [batch, len, embed] = input.shape[..] else { panic!("{:?}", input.shape) };
    let sizes = sizes_of(model, batch, 1);
    let mut memory = Memory::new(&sizes, batch * sizes.hidden_size as usize);
    for t in 0..len {
        let rows = (0..batch).flat_map(|b| &input.data[(b * len + t) * embed..][..embed]);
        let rows: Vec<f32> = rows.copied().collect();
        let call = memory.call(batch, 1, &rows);
        // SAFETY: the memory is this test's.
        assert_eq!(unsafe { cw_model_step(model, &call) }, CW_OK);
    }
    memory.output
}

#[test]
fn golden_models() {
    let (mut seen, mut lightning) = (0, 0);
    for path in golden() {
        let bytes = files::read(&path).unwrap();
        let tensors = Tensors::parse(&bytes).unwrap();
        let options = tensors.options().unwrap();
        let known = |kind| ["fla", "lightning"].contains(&kind);
        if options.kind.as_deref().is_some_and(|kind| !known(kind)) || options.weights_from.is_some() {
            continue;
        }
        seen += 1;
        lightning += usize::from(options.kind.as_deref() == Some("lightning"));
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let parsed = ModelFile::parse(&bytes, &Options::default()).unwrap();
        let mut blocks = Vec::new();
        let model = parsed.model(&mut blocks, None, 1).unwrap();
        let (input, stored) = (tensors.tensor("input").unwrap(), tensors.tensor("output").unwrap());
        let want = files::forward(&model, &input).unwrap();
        let last = files::stream(&model, &input).unwrap();

        let aligned = Aligned::new(&bytes);
        let file = aligned.file();
        let config = config_of(&file);
        let mut memory = room(&config);
        let loaded = load(&file, &mut memory);

        let parameters = parameters(&tensors);
        let table = table(&parameters);
        let mut memory = room(&config);
        let (mut made, mut opened) = (null(), null());
        let (at, bytes_len) = (memory.as_mut_ptr().cast(), size_of_val(&memory[..]) as u64);
        let text = CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the memory is this test's.
        unsafe {
            let count = table.len() as u64;
            let status = cw_model_init(&config, table.as_ptr(), count, 0, 1, at, bytes_len, &mut made);
            assert_eq!(status, CW_OK, "{name}");
            let file = cw_model_file { threads: 1, ..cw_model_file::DEFAULT };
            assert_eq!(cw_model_open(text.as_ptr(), &file, &mut opened), CW_OK, "{name}");
        }
        drop(table);

        for (how, model) in [("load", loaded), ("init", made), ("open", opened)] {
            let got = forward(model, &input);
            assert!(untouched(&got, &want.data), "{name} {how}: not the bits of the Rust call");
            if config.feature_map != CW_IDENTITY && config.attention == CW_LINEAR {
                let worst = got.iter().zip(&stored.data[..]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(got.len() == stored.data.len() && worst <= CLOSE, "{name} {how}: {worst}");
            }
            let step = steps(model, &input);
            let (hidden, len) = (config.hidden_size as usize, input.shape[1]);
            for (b, row) in step.chunks(hidden).enumerate() {
                let at = if config.output_mode == CW_ALL { b * len + len - 1 } else { b };
                assert!(untouched(row, &last.data[at * hidden..][..hidden]), "{name} {how}: step");
            }
        }
        // SAFETY: each model is closed once.
        unsafe {
            assert_eq!(cw_model_close(opened), CW_OK);
            assert_eq!(cw_model_close(loaded), CW_MODEL);
        }
    }
    assert!(seen >= 10 && lightning == 1, "{seen} golden models, {lightning} of lightning attention");
}

#[test]
fn golden_kernels() {
    let mut seen = 0;
    for path in golden() {
        let bytes = files::read(&path).unwrap();
        let tensors = Tensors::parse(&bytes).unwrap();
        let options = tensors.options().unwrap();
        if options.kind.as_deref() != Some("kernel_fla") {
            continue;
        }
        seen += 1;
        let (qkv, stored) = (tensors.tensor("qkv").unwrap(), tensors.tensor("out").unwrap());
        let [batch, len, row] = qkv.shape[..] else { panic!("{:?}", qkv.shape) };
        let (heads, chunk) = (options.num_heads.unwrap(), options.chunk_size.unwrap());
        let (feature_map, map) = match options.feature_map.unwrap() {
            FeatureMap::Elu => (FeatureMap::Elu, CW_ELU),
            FeatureMap::Identity => (FeatureMap::Identity, CW_IDENTITY),
            relu => (relu, CW_RELU),
        };
        let dim = row / 3 / heads;
        let width = heads * dim;
        let column = |i: usize| {
            let strides = [(len * row) as u64, row as u64, dim as u64, 1];
            let dims = [batch as u64, len as u64, heads as u64, dim as u64];
            let data = qkv.data[i * width..].as_ptr().cast_mut().cast();
            cw_tensor { data, dtype: CW_F32, rank: 4, dims, strides }
        };
        let mut o = vec![SENTINEL; batch * len * width];
        let contiguous = [(len * width) as u64, width as u64, dim as u64, 1];
        let attention = cw_attention {
            feature_map: map,
            normaliser: CW_PER_CHUNK,
            feature_eps: 1e-6,
            normaliser_eps: 1e-8,
            chunk: chunk as u64,
            scale: 1.0,
            products: CW_PRODUCTS_F32,
            threads: 1,
            ..cw_attention::DEFAULT
        };
        let mut call = cw_call {
            q: column(0),
            k: column(1),
            v: column(2),
            o: cw_tensor { data: o.as_mut_ptr().cast(), strides: contiguous, ..column(0) },
            ..cw_call::DEFAULT
        };
        let mut sizes = cw_sizes::DEFAULT;
        // SAFETY: the memory is this test's.
        unsafe {
            assert_eq!(cw_attention_sizes(&attention, &call, &mut sizes), CW_OK);
            let mut scratch = vec![SENTINEL; sizes.forward_scratch_bytes as usize / 4];
            (call.scratch, call.scratch_bytes) = (scratch.as_mut_ptr().cast(), sizes.forward_scratch_bytes);
            assert_eq!(cw_forward(&attention, &call), CW_OK);
        }

        let packed = Strides::packed(len, row, dim);
        let rule = Rule::linear(Normaliser::per_chunk(chunk)).feature_map(feature_map);
        let shape = Shape::new(batch, len, heads, dim, dim).with_inputs(packed, packed, packed);
        let rust = Attention::new(Config::new(rule, shape)).unwrap();
        let (mut want, mut scratch) = (vec![0.0; o.len()], vec![0.0; rust.scratch_len()]);
        let [q, k, v] = [0, 1, 2].map(|i| &qkv.data[i * width..]);
        let tensors = chunkwise::Tensors::new(q, k, v, &mut want);
        rust.forward(tensors, State::Zero, &mut scratch).unwrap();
        let name = path.display();
        assert!(untouched(&o, &want), "{name}: not the bits of the Rust call");
        if map != CW_IDENTITY {
            let size = stored.data.iter().fold(1.0, |size: f32, x| size.max(x.abs()));
            let worst = o.iter().zip(&stored.data[..]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= CLOSE * size, "{name}: {worst}");
        }
    }
    assert!(seen >= 10, "{seen} golden kernels");
}

fn small() -> Vec<u8> {
    files::read(golden().iter().find(|path| path.ends_with("fla_odd_elu.safetensors")).unwrap()).unwrap()
}

#[test]
fn eight_threads_share_one_model() {
    let bytes = small();
    let tensors = Tensors::parse(&bytes).unwrap();
    let input = tensors.tensor("input").unwrap();
    let aligned = Aligned::new(&bytes);
    let mut memory = room(&config_of(&aligned.file()));
    // Threads may share a model, but Rust does not send pointers to threads, so that this passes the address.
    let model = load(&aligned.file(), &mut memory).expose_provenance();
    let shared = || std::ptr::with_exposed_provenance(model);
    let (want, last) = (forward(shared(), &input), steps(shared(), &input));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert!(untouched(&forward(shared(), &input), &want));
                    assert!(untouched(&steps(shared(), &input), &last));
                }
            });
        }
    });
}

#[test]
fn calls_that_are_refused_have_written_nothing() {
    let bytes = small();
    let tensors = Tensors::parse(&bytes).unwrap();
    let input = tensors.tensor("input").unwrap();
    let (batch, len) = (input.shape[0], input.shape[1]);
    let aligned = Aligned::new(&bytes);
    let mut room = room(&config_of(&aligned.file()));
    let model = load(&aligned.file(), &mut room);
    type Change = fn(&mut cw_model_call);
    let refusals: &[(i32, Change)] = &[
        (CW_SIZE, |c| c.size += 1),
        (CW_SIZE, |c| c.size -= 1),
        (CW_ABI, |c| c.abi = 7),
        (CW_NULL, |c| c.input = null()),
        (CW_NULL, |c| c.output = null_mut()),
        (CW_NULL, |c| c.scratch = null_mut()),
        (CW_MISALIGNED, |c| c.input = c.input.wrapping_byte_add(1)),
        (CW_MISALIGNED, |c| c.output = c.output.wrapping_byte_add(2)),
        (CW_MISALIGNED, |c| c.scratch = c.scratch.wrapping_byte_add(3)),
        (CW_TOO_SMALL, |c| c.input_bytes -= 1),
        (CW_TOO_SMALL, |c| c.output_bytes = 0),
        (CW_TOO_SMALL, |c| c.scratch_bytes = 8),
        (CW_OVERLAP, |c| c.output = c.input.cast_mut()),
        (CW_OVERLAP, |c| c.scratch = c.output.cast()),
        (CW_OVERLAP, |c| c.scratch = c.input.cast_mut().cast()),
        (CW_OVERFLOW, |c| c.batch = u64::MAX),
    ];
    let sizes = sizes_of(model, batch, len);
    let mut memory = Memory::new(&sizes, sizes.output_bytes as usize / 4);
    for (at, (want, change)) in refusals.iter().enumerate() {
        let mut call = memory.call(batch, len, &input.data);
        change(&mut call);
        // SAFETY: the call is refused before any memory is accessed.
        assert_eq!(unsafe { cw_model_forward(model, &call) }, *want, "refusal {at}");
        assert!(memory.output.iter().all(|x| x.to_bits() == SENTINEL.to_bits()), "refusal {at}");
        assert!(memory.scratch.iter().all(|x| x.to_bits() == SENTINEL.to_bits()), "refusal {at}");
    }
    let good = memory.call(batch, len, &input.data);
    // SAFETY: the memory is this test's.
    unsafe {
        assert_eq!(cw_model_forward(null(), &good), CW_NULL);
        assert_eq!(cw_model_forward(room.as_ptr().wrapping_byte_add(2).cast(), &good), CW_MISALIGNED);
        let nothing = vec![0u64; 64];
        assert_eq!(cw_model_forward(nothing.as_ptr().cast(), &good), CW_MODEL);
        assert_eq!(cw_model_head(model, &good), CW_PARAMETER);
        assert_eq!(cw_model_step(model, &good), CW_SHAPE);
        let step = cw_model_call { len: 1, state_bytes: 4, ..good };
        assert_eq!(cw_model_step(model, &step), CW_TOO_SMALL);
        let step = cw_model_call { state: memory.output.as_mut_ptr(), state_bytes: 1 << 40, ..step };
        assert_eq!(cw_model_step(model, &step), CW_OVERLAP);
        memory.state.fill(0.5);
        assert_eq!(cw_model_step(model, &cw_model_call { len: 1, ..good }), CW_STATE);
        assert!(memory.output.iter().all(|x| x.to_bits() == SENTINEL.to_bits()));
        assert!(memory.state.iter().all(|x| *x == 0.5));
        assert_eq!(cw_model_sizes_of(model, u64::MAX, 2, &mut { cw_model_sizes::DEFAULT }), CW_OVERFLOW);
        assert_eq!(cw_model_sizes_of(model, 1, 2, null_mut()), CW_NULL);
        assert_eq!(cw_model_close(null()), CW_OK);
    }
}

#[test]
fn models_that_are_refused() {
    let bytes = small();
    let tensors = Tensors::parse(&bytes).unwrap();
    let parameters = parameters(&tensors);
    let aligned = Aligned::new(&bytes);
    let good = config_of(&aligned.file());
    let mut memory = room(&good);
    let before = memory.clone();
    let (at, all) = (memory.as_mut_ptr().cast::<c_void>(), size_of_val(&memory[..]) as u64);
    let mark = std::ptr::without_provenance::<cw_model>(64);
    let mut model = mark;

    type Change = fn(&mut cw_model_config, &mut Vec<cw_parameter>);
    let refusals: &[(i32, Change)] = &[
        (CW_SIZE, |c, _| c.size = 12),
        (CW_SIZE, |c, _| c.size += 4),
        (CW_ABI, |c, _| c.abi = 2),
        (CW_ZERO, |c, _| c.num_heads = 0),
        (CW_ZERO, |c, _| c.num_layers = 0),
        (CW_OVERFLOW, |c, _| c.hidden_size = u64::MAX / 2),
        (CW_UNKNOWN, |c, _| c.feature_map = 0),
        (CW_UNKNOWN, |c, _| c.output_mode = 4),
        (CW_UNKNOWN, |c, _| c.final_norm = 2),
        (CW_UNKNOWN, |c, _| c.attention = 0),
        (CW_UNKNOWN, |c, _| c.attention = 3),
        (CW_UNKNOWN, |c, _| c.reserved = 1),
        // The parameters of lightning attention have other names.
        (CW_PARAMETER, |c, _| c.attention = CW_LIGHTNING),
        (CW_RANGE, |c, _| c.layer_norm_eps = f32::NAN),
        (CW_PARAMETER, |c, _| c.hidden_size += 1),
        (CW_PARAMETER, |c, _| c.final_norm = 0),
        (CW_PARAMETER, |_, t| t.truncate(t.len() - 1)),
        (CW_PARAMETER, |_, t| t.push(t[0])),
        (CW_PARAMETER, |_, t| t[3].name = c"fla_block_1_attn_norm.gammas".as_ptr()),
        (CW_PARAMETER, |_, t| t[3].tensor.rank = 3),
        (CW_PARAMETER, |_, t| t[3].tensor.dims[0] += 1),
        (CW_SHAPE, |_, t| t[3].tensor.strides[0] += 1),
        (CW_NULL, |_, t| t[3].name = null()),
        (CW_NULL, |_, t| t[3].tensor.data = null_mut()),
        (CW_MISALIGNED, |_, t| t[3].tensor.data = t[3].tensor.data.wrapping_byte_add(1)),
        (CW_UNKNOWN, |_, t| t[3].tensor.dtype = 4),
    ];
    for (i, (want, change)) in refusals.iter().enumerate() {
        let (mut config, mut table) = (good, table(&parameters));
        change(&mut config, &mut table);
        // SAFETY: the memory is this test's.
        let got = unsafe {
            cw_model_init(&config, table.as_ptr(), table.len() as u64, 0, 1, at, 1 << 40, &mut model)
        };
        assert_eq!(got, *want, "refusal {i}");
        assert!(memory == before && model == mark, "refusal {i}");
    }

    let mut text = [b'#'; 40];
    let message = text.as_mut_ptr().cast();
    let file = cw_model_file { message, message_bytes: 40, ..aligned.file() };
    // SAFETY: the memory is this test's.
    unsafe {
        let mut table = table(&parameters);
        let (start, count) = (table.as_ptr(), table.len() as u64);
        let init = |bytes, isa, threads, at, model| {
            cw_model_init(&good, start, count, isa, threads, at, bytes, model)
        };
        assert_eq!(init(all - 8, 0, 1, at, &mut model), CW_TOO_SMALL);
        assert_eq!(init(all, 6, 1, at, &mut model), CW_UNKNOWN);
        assert_eq!(init(all, 0, 0, at, &mut model), CW_ZERO);
        assert_eq!(init(all, 0, 1, null_mut(), &mut model), CW_NULL);
        assert_eq!(init(all, 0, 1, at.wrapping_byte_add(2), &mut model), CW_MISALIGNED);
        assert_eq!(init(all, 0, 1, at, null_mut()), CW_NULL);
        assert_eq!(init(all, 0, 1, at, at.cast()), CW_OVERLAP);
        assert_eq!(init(all, 0, 1, start.cast_mut().cast(), &mut model), CW_OVERLAP);
        let weights = table[0].tensor.data;
        let near = weights.wrapping_byte_sub(64 + weights.addr() % 8);
        assert_eq!(init(all, 0, 1, near, &mut model), CW_OVERLAP);
        table.clear();

        assert_eq!(cw_model_load(&file, at, all - 8, &mut model), CW_TOO_SMALL);
        assert_eq!(cw_model_load(&file, file.bytes.cast_mut(), all, &mut model), CW_OVERLAP);
        assert_eq!(text, [b'#'; 40]);
        assert_eq!(cw_model_load(&cw_model_file { bytes_len: 7, ..file }, at, all, &mut model), CW_FILE);
        assert!(text.contains(&0) && CStr::from_ptr(message).to_str().unwrap().contains("cut short"));
        let json = b"{\"num_heads\": 0}";
        let asked = cw_model_file { json: json.as_ptr().cast(), json_len: json.len() as u64, ..file };
        assert_eq!(cw_model_load(&asked, at, all, &mut model), CW_OPTION);
        assert!(CStr::from_ptr(message).to_str().unwrap().starts_with("num_heads"));
        assert_eq!(CStr::from_ptr(message).to_bytes().len(), 39, "cut to fit");
        let json = b"{\"num_layers\": 9}";
        let asked = cw_model_file { json: json.as_ptr().cast(), json_len: json.len() as u64, ..file };
        assert_eq!(cw_model_load(&asked, at, all, &mut model), CW_PARAMETER);

        // Every tensor is misaligned by one byte, so that the model could not use the bytes in place.
        let mut moved = vec![0u8; bytes.len() + 8];
        let from = moved.as_ptr().align_offset(8) + 1;
        let from = if from + bytes.len() > moved.len() { from - 8 } else { from };
        moved[from..][..bytes.len()].copy_from_slice(&bytes);
        let askew = cw_model_file { bytes: moved[from..].as_ptr().cast(), ..file };
        assert_eq!(cw_model_load(&askew, at, all, &mut model), CW_MISALIGNED);

        let none = cw_model_file { threads: 1, message, message_bytes: 40, ..cw_model_file::DEFAULT };
        assert_eq!(cw_model_open(c"/nowhere".as_ptr(), &none, &mut model), CW_IO);
        assert_eq!(cw_model_open(null(), &none, &mut model), CW_NULL);
        assert_eq!(cw_model_open(c"/nowhere".as_ptr(), &file, &mut model), CW_RANGE);
    }
    assert!(memory == before && model == mark);
}

/// Structures of programs that were compiled with an older header are accepted, and those of sizes that no
/// header has are refused.
#[test]
fn structures_of_other_sizes() {
    let bytes = small();
    let tensors = Tensors::parse(&bytes).unwrap();
    let input = tensors.tensor("input").unwrap();
    let (batch, len) = (input.shape[0], input.shape[1]);
    let aligned = Aligned::new(&bytes);
    let file = aligned.file();
    let config = config_of(&file);
    let mut memory = room(&config);
    let model = load(&file, &mut memory);

    // SAFETY: the memory is this test's, here and below.
    writes_fields_of_any_size(|config| unsafe { cw_model_file_config(&file, config) });
    // SAFETY: as above.
    writes_fields_of_any_size(|sizes| unsafe { cw_model_sizes_of(model, batch as u64, len as u64, sizes) });
    reads_fields_of_any_size(&config, |config| {
        let (mut bytes, mut align) = (0, 0);
        // SAFETY: as above.
        let status = unsafe { cw_model_memory(config, &mut bytes, &mut align) };
        (status, vec![bytes as u32, align as u32])
    });
    reads_fields_of_any_size(&file, |file| {
        let mut config = cw_model_config::DEFAULT;
        // SAFETY: as above.
        let status = unsafe { cw_model_file_config(file, &mut config) };
        (status, capi_common::bytes(&config).iter().map(|byte| u32::from(*byte)).collect())
    });

    let sizes = sizes_of(model, batch, len);
    let forward = |change: &dyn Fn(cw_model_call) -> cw_model_call| {
        let mut memory = Memory::new(&sizes, sizes.output_bytes as usize / 4);
        let call = change(memory.call(batch, len, &input.data));
        // SAFETY: as above.
        let status = unsafe { cw_model_forward(model, &call) };
        // The contents of scratch after a call are not specified.
        let scratch = if status == CW_OK { &[][..] } else { &memory.scratch };
        (status, memory.output.iter().chain(scratch).map(|x| x.to_bits()).collect::<Vec<_>>())
    };
    for size in ends::<cw_model_call>() {
        let (got, want) = (forward(&|call| older(&call, size).0), forward(&|call| older(&call, size).1));
        assert!(got == want, "of {size} bytes: {}, and as a whole {}", got.0, want.0);
    }
    // The size of scratch is the last field. Without it there is no scratch.
    assert_eq!(forward(&|call| older(&call, size_of::<cw_model_call>() - 8).0).0, CW_TOO_SMALL);
    let untouched = forward(&|call| cw_model_call { abi: 0, ..call }).1;
    for size in refused::<cw_model_call>() {
        let got = forward(&|call| cw_model_call { size: size as u32, ..call });
        assert!(got.0 == CW_SIZE && got.1 == untouched, "of {size} bytes: {}", got.0);
    }
}
