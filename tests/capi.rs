//! The C ABI, called as from C: calls have the bits of the Rust calls, ranges may run on the caller's own
//! threads, and a refused call writes nothing.
#![allow(unsafe_code, reason = "the C ABI is called")]
mod capi_common;
mod common;

use std::mem::{offset_of, size_of_val};
use std::ops::Range;
use std::ptr::{null, null_mut};

use capi_common::*;
use chunkwise::capi::args::*;
use chunkwise::capi::attention::*;
use chunkwise::capi::state::cw_state_init;
use chunkwise::capi::status::*;
use chunkwise::capi::*;
use chunkwise::{Attention, Config, Normaliser, Rule, Shape, State, Tensors};
use common::*;

const B: usize = 2;
const T: usize = 21;
const H: usize = 3;
const K: usize = 5;
const V: usize = 6;

fn attention(normaliser: u32) -> cw_attention {
    cw_attention { normaliser, normaliser_eps: 1e-6, chunk: 7, ..cw_attention::DEFAULT }
}

fn tensor(data: *const f32, len: usize, dim: usize) -> cw_tensor {
    let (b, t, h, d) = (B as u64, len as u64, H as u64, dim as u64);
    cw_tensor {
        data: data.cast_mut().cast(),
        dtype: CW_F32,
        rank: 4,
        dims: [b, t, h, d],
        strides: [t * h * d, h * d, d, 1],
    }
}

/// The memory to which a call points.
#[derive(Clone)]
struct Memory {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    o: Vec<f32>,
    state: Vec<f32>,
    scratch: Vec<f32>,
}

impl Memory {
    fn new(attention: &cw_attention, len: usize) -> Self {
        let [q, k] = [1, 2].map(|seed| normals(seed, B * len * H * K));
        let v = normals(3, B * len * H * V);
        let mut memory = Memory { o: vec![SENTINEL; v.len()], q, k, v, state: vec![], scratch: vec![] };
        let mut sizes = cw_sizes::DEFAULT;
        // SAFETY: the structures are this test's.
        let status = unsafe { cw_attention_sizes(attention, &memory.call(len), &mut sizes) };
        assert_eq!(status, CW_OK);
        memory.state = vec![0.0; sizes.state_bytes as usize / 4];
        memory.scratch =
            vec![SENTINEL; sizes.forward_scratch_bytes.max(sizes.decode_scratch_bytes) as usize / 4];
        memory
    }

    fn call(&mut self, len: usize) -> cw_call {
        cw_call {
            q: tensor(self.q.as_ptr(), len, K),
            k: tensor(self.k.as_ptr(), len, K),
            v: tensor(self.v.as_ptr(), len, V),
            o: tensor(self.o.as_mut_ptr(), len, V),
            state_in: self.state.as_ptr(),
            state_out: self.state.as_mut_ptr(),
            state_bytes: size_of_val(&self.state[..]) as u64,
            scratch: self.scratch.as_mut_ptr().cast(),
            scratch_bytes: size_of_val(&self.scratch[..]) as u64,
            ..cw_call::DEFAULT
        }
    }

    /// A call of some of the `T` tokens.
    fn piece(&mut self, tokens: Range<usize>) -> cw_call {
        let mut call = self.call(T);
        for tensor in [&mut call.q, &mut call.k, &mut call.v, &mut call.o] {
            let skip = tokens.start * tensor.strides[1] as usize;
            tensor.data = tensor.data.cast::<f32>().wrapping_add(skip).cast();
            tensor.dims[1] = tokens.len() as u64;
        }
        call
    }

    /// The bits of the memory that a call may write. Scratch is included only where a call was refused,
    /// because its contents after a call are not specified.
    fn written(&self, status: i32) -> Vec<u32> {
        let scratch = if status == CW_OK { &[][..] } else { &self.scratch };
        [&self.o, &self.state, scratch].into_iter().flatten().map(|x| x.to_bits()).collect()
    }

    /// Whether everything that a call may write has the same bits.
    fn is(&self, other: &Memory) -> bool {
        untouched(&self.o, &other.o)
            && untouched(&self.state, &other.state)
            && untouched(&self.scratch, &other.scratch)
    }
}

fn normaliser(number: u32) -> Normaliser {
    match number {
        CW_NONE => Normaliser::None,
        CW_GLOBAL => Normaliser::Global { eps: 1e-6 },
        _ => Normaliser::PerChunk { chunk: 7, eps: 1e-6 },
    }
}

#[test]
fn the_bits_are_those_of_the_rust_calls() {
    for number in [CW_NONE, CW_GLOBAL, CW_PER_CHUNK] {
        let config = |len| Config::new(Rule::linear(normaliser(number)), Shape::new(B, len, H, K, V));
        let rust = Attention::new(config(T)).unwrap();
        for threads in [1, 2] {
            let attention = cw_attention { threads, ..attention(number) };
            let mut memory = Memory::new(&attention, T);
            assert_eq!(memory.state.len(), rust.state_len());
            let (mut o, mut state) = (vec![SENTINEL; memory.o.len()], vec![0.0; rust.state_len()]);
            let mut scratch = vec![0.0; rust.scratch_len().max(rust.decode_scratch_len())];
            let Memory { q, k, v, .. } = memory.clone();
            let tensors = Tensors::new(&q, &k, &v, &mut o);
            rust.forward(tensors, State::Carried(&mut state), &mut scratch).unwrap();
            // SAFETY: the memory is this test's.
            assert_eq!(unsafe { cw_forward(&attention, &memory.call(T)) }, CW_OK);
            assert!(untouched(&o, &memory.o) && untouched(&state, &memory.state), "forward");

            let one = Attention::new(config(1)).unwrap();
            let (rows, columns) = (B * H * K, B * H * V);
            let tensors = Tensors::new(&q[..rows], &k[..rows], &v[..columns], &mut o[..columns]);
            one.decode(tensors, &mut state, &mut scratch).unwrap();
            // SAFETY: as above.
            assert_eq!(unsafe { cw_decode(&attention, &memory.call(1)) }, CW_OK);
            assert!(untouched(&o[..columns], &memory.o[..columns]), "decode");
            assert!(untouched(&state, &memory.state), "decode");
        }
    }
}

/// The bits are the same wherever a stream is cut, whichever of the two calls computes a token, and on every
/// instruction set that has a fused multiply-add.
#[test]
fn a_stream_has_the_bits_of_one_forward() {
    for number in [CW_NONE, CW_GLOBAL, CW_PER_CHUNK] {
        let mut fused = None;
        for isa in (1..=5).filter(|isa| cw_isas() >> isa & 1 == 1) {
            let attention = cw_attention { isa, ..attention(number) };
            let mut whole = Memory::new(&attention, T);
            let fresh = whole.clone();
            // SAFETY: the memory is this test's.
            assert_eq!(unsafe { cw_forward(&attention, &whole.call(T)) }, CW_OK);
            for cuts in [&[][..], &[1, 4, 5, 16], &[3, 10, 11, 12, 13], &[20]] {
                let mut pieces = fresh.clone();
                let mut begin = 0;
                for end in cuts.iter().copied().chain([T]) {
                    let call = pieces.piece(begin..end);
                    let run = if end - begin == 1 { cw_decode } else { cw_forward };
                    // SAFETY: as above.
                    assert_eq!(unsafe { run(&attention, &call) }, CW_OK);
                    begin = end;
                }
                let same = untouched(&whole.o, &pieces.o) && untouched(&whole.state, &pieces.state);
                assert!(same, "{number} on {isa}, cut at {cuts:?}");
            }
            if [CW_ISA_NEON, CW_ISA_AVX2, CW_ISA_AVX512].contains(&isa) {
                let (o, state) = fused.get_or_insert_with(|| (whole.o.clone(), whole.state.clone()));
                assert!(untouched(o, &whole.o) && untouched(state, &whole.state), "{number} on {isa}");
            }
        }
    }
}

/// A call that several threads share; each has its own scratch.
#[derive(Clone, Copy)]
struct Shared(cw_attention, cw_call);

// SAFETY: ranges write different rows and different parts of the state.
unsafe impl Send for Shared {}

impl Shared {
    fn run(self, decode: bool, first: usize, count: usize, scratch_len: usize) -> i32 {
        let mut scratch = vec![SENTINEL; scratch_len];
        let call =
            cw_call { scratch: scratch.as_mut_ptr().cast(), scratch_bytes: 4 * scratch_len as u64, ..self.1 };
        let range = if decode { cw_decode_range } else { cw_forward_range };
        // SAFETY: the memory outlives the scope of the threads.
        unsafe { range(&self.0, &call, first as u64, count as u64) }
    }
}

#[test]
fn ranges_on_threads_of_one_s_own_give_the_same_bits() {
    for number in [CW_NONE, CW_GLOBAL, CW_PER_CHUNK] {
        for (decode, len) in [(false, T), (true, 1)] {
            let attention = attention(number);
            let mut whole = Memory::new(&attention, len);
            let mut parts = whole.clone();
            // SAFETY: the memory is this test's.
            let status = unsafe {
                match decode {
                    true => cw_decode(&attention, &whole.call(len)),
                    false => cw_forward(&attention, &whole.call(len)),
                }
            };
            assert_eq!(status, CW_OK);
            let scratch_len = parts.scratch.len();
            let shared = Shared(attention, parts.call(len));
            std::thread::scope(|scope| {
                // One head, heads of both sequences, the other heads, and no heads.
                for (first, count) in [(0, 1), (1, 3), (4, 2), (6, 0)] {
                    scope.spawn(move || assert_eq!(shared.run(decode, first, count, scratch_len), CW_OK));
                }
            });
            assert!(
                untouched(&whole.o, &parts.o) && untouched(&whole.state, &parts.state),
                "{number} {decode}"
            );
            for (first, count) in [(5, 2), (7, 0), (usize::MAX, 2)] {
                assert_eq!(shared.run(decode, first, count, scratch_len), CW_RANGE);
            }
        }
    }
}

/// Eight threads make the same call, each with memory of its own.
#[test]
fn calls_from_many_threads() {
    let attention = attention(CW_PER_CHUNK);
    let mut want = Memory::new(&attention, T);
    let fresh = want.clone();
    // SAFETY: the memory is this test's.
    assert_eq!(unsafe { cw_forward(&attention, &want.call(T)) }, CW_OK);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let mut mine = fresh.clone();
                    let call = mine.call(T);
                    // SAFETY: the memory is this thread's.
                    assert_eq!(unsafe { cw_forward(&attention, &call) }, CW_OK);
                    assert!(untouched(&mine.o, &want.o) && untouched(&mine.state, &want.state));
                }
            });
        }
    });
}

/// Changes of a call that is accepted, for which a forward is refused, with the status of each.
#[test]
fn what_is_refused_has_written_nothing() {
    type Change = fn(&mut cw_attention, &mut cw_call);
    let refusals: &[(i32, Change)] = &[
        (CW_SIZE, |a, _| a.size -= 2),
        (CW_SIZE, |a, _| a.size += 8),
        (CW_SIZE, |_, c| c.size = 0),
        (CW_SIZE, |_, c| c.size = u32::MAX),
        (CW_ABI, |a, _| a.abi = 0),
        (CW_ABI, |_, c| c.abi += 1),
        (CW_UNKNOWN, |a, _| a.feature_map = 0),
        (CW_UNKNOWN, |a, _| a.feature_map = 4),
        (CW_UNKNOWN, |a, _| a.normaliser = 0),
        (CW_UNKNOWN, |a, _| a.normaliser = u32::MAX),
        (CW_UNKNOWN, |a, _| a.compensated = 2),
        (CW_UNKNOWN, |a, _| a.products = 0),
        (CW_UNKNOWN, |a, _| a.products = 3),
        (CW_UNAVAILABLE, |a, _| a.products = CW_PRODUCTS_BF16),
        (CW_UNKNOWN, |a, _| a.isa = 6),
        (CW_UNKNOWN, |a, _| a.not_causal = 2),
        (CW_CONFLICT, |a, _| a.not_causal = 1),
        (CW_UNKNOWN, |_, c| c.q.dtype = 0),
        (CW_UNKNOWN, |_, c| c.o.dtype = 9),
        (CW_ZERO, |a, _| a.threads = 0),
        (CW_ZERO, |a, _| a.chunk = 0),
        (CW_RANGE, |a, _| a.chunk = (1 << 24) + 1),
        (CW_RANGE, |a, _| a.scale = f32::NAN),
        (CW_RANGE, |a, _| a.normaliser_eps = -1.0),
        (CW_SHAPE, |_, c| c.q.rank = 3),
        (CW_SHAPE, |_, c| c.k.dims[3] += 1),
        (CW_SHAPE, |_, c| c.v.dims[0] -= 1),
        (CW_SHAPE, |_, c| c.o.dims[1] += 1),
        (CW_SHAPE, |_, c| c.v.strides[3] = 2),
        (CW_OVERFLOW, |_, c| c.q.strides[0] = u64::MAX),
        (CW_OVERFLOW, |_, c| c.k.strides[1] = 1 << 62),
        (CW_OVERFLOW, |_, c| {
            for tensor in [&mut c.q, &mut c.k, &mut c.v, &mut c.o] {
                tensor.dims[0] = u64::MAX;
            }
        }),
        (CW_OVERLAP, |_, c| c.o.strides[2] -= 1),
        (CW_OVERLAP, |_, c| c.o.data = c.q.data),
        (CW_OVERLAP, |_, c| c.state_out = c.o.data.cast()),
        (CW_OVERLAP, |_, c| c.state_in = c.state_in.wrapping_sub(1).cast_mut()),
        (CW_OVERLAP, |_, c| c.scratch = c.v.data),
        (CW_OVERLAP, |_, c| c.scratch = c.state_out.cast()),
        (CW_NULL, |_, c| c.q.data = null_mut()),
        (CW_NULL, |_, c| c.o.data = null_mut()),
        (CW_NULL, |_, c| c.scratch = null_mut()),
        (CW_MISALIGNED, |_, c| c.k.data = c.k.data.wrapping_byte_add(1)),
        (CW_MISALIGNED, |_, c| c.state_out = c.state_out.wrapping_byte_add(2)),
        (CW_MISALIGNED, |_, c| c.scratch = c.scratch.wrapping_byte_add(3)),
        (CW_OVERFLOW, |_, c| c.v.data = std::ptr::without_provenance_mut(usize::MAX - 3)),
        (CW_TOO_SMALL, |_, c| c.state_bytes -= 1),
        (CW_TOO_SMALL, |_, c| c.scratch_bytes -= 1),
    ];
    let good = attention(CW_PER_CHUNK);
    let mut memory = Memory::new(&good, T);
    let before = memory.clone();
    for (at, (want, change)) in refusals.iter().enumerate() {
        let (mut attention, mut call) = (good, memory.call(T));
        change(&mut attention, &mut call);
        // SAFETY: the call is refused before any memory is accessed.
        let got = unsafe { cw_forward(&attention, &call) };
        assert_eq!(got, *want, "refusal {at}");
        assert!(memory.is(&before), "refusal {at}");
    }

    let last = memory.state.len() - 1;
    memory.state[last] = 7.0;
    // SAFETY: the memory is this test's.
    assert_eq!(unsafe { cw_forward(&good, &memory.call(T)) }, CW_STATE);
    assert!(untouched(&memory.o, &before.o));
    memory.state[last] = 0.0;
    let missing = (1..=5).find(|isa| cw_isas() >> isa & 1 == 0).unwrap();
    // SAFETY: as above.
    unsafe {
        assert_eq!(cw_forward(&cw_attention { isa: missing, ..good }, &memory.call(T)), CW_UNAVAILABLE);
        assert_eq!(cw_forward(null(), &memory.call(T)), CW_NULL);
        assert_eq!(cw_forward(&good, null()), CW_NULL);
        let misplaced = (&raw const good).wrapping_byte_add(1);
        assert_eq!(cw_forward(misplaced, &memory.call(T)), CW_MISALIGNED);
        assert_eq!(cw_decode(&good, &memory.call(T)), CW_SHAPE);
        let call = cw_call { state_in: null(), state_out: null_mut(), ..memory.call(1) };
        assert_eq!(cw_decode(&good, &call), CW_NULL);
        assert_eq!(cw_attention_sizes(&good, &memory.call(T), null_mut()), CW_NULL);
        let mut sizes = cw_sizes::DEFAULT;
        let bf16 = cw_attention { products: CW_PRODUCTS_BF16, ..good };
        assert_eq!(cw_attention_sizes(&bf16, &memory.call(T), &mut sizes), CW_UNAVAILABLE);
        assert_eq!(sizes.state_bytes, 0);
        assert_eq!(cw_isa_default(null_mut()), CW_NULL);
        assert_eq!(cw_state_init(null_mut(), 4), CW_NULL);
        assert_eq!(cw_state_init(memory.state.as_mut_ptr(), 5), CW_RANGE);
        assert_eq!(cw_state_init(memory.state.as_mut_ptr().wrapping_byte_add(1), 4), CW_MISALIGNED);
        assert!(memory.is(&before));
        assert_eq!(cw_forward(&good, &memory.call(T)), CW_OK);
    }
}

/// Calls without tokens, which need no memory, and calls that only read or only write a state.
#[test]
fn edges() {
    let good = attention(CW_GLOBAL);
    let mut memory = Memory::new(&good, T);
    let zero = memory.state.clone();
    let mut call = memory.call(0);
    for tensor in [&mut call.q, &mut call.k, &mut call.v, &mut call.o] {
        tensor.data = null_mut();
    }
    // SAFETY: the memory is this test's.
    unsafe {
        assert_eq!(cw_forward(&good, &call), CW_OK);
        assert!(untouched(&memory.state, &zero));

        let call = memory.call(T);
        assert_eq!(cw_forward(&good, &cw_call { state_in: null(), state_out: null_mut(), ..call }), CW_OK);
        let from_nothing = memory.o.clone();
        assert_eq!(cw_forward(&good, &cw_call { state_out: null_mut(), ..call }), CW_OK);
        assert!(untouched(&memory.o, &from_nothing) && untouched(&memory.state, &zero));
        assert_eq!(cw_forward(&good, &cw_call { state_in: null(), ..call }), CW_OK);
        assert!(untouched(&memory.o, &from_nothing) && !untouched(&memory.state, &zero));
        let mut other = memory.state.clone();
        assert_eq!(cw_forward(&good, &cw_call { state_in: other.as_mut_ptr(), ..call }), CW_OK);
        assert!(!untouched(&memory.state, &other));
        assert_eq!(cw_state_init(memory.state.as_mut_ptr(), call.state_bytes), CW_OK);
        assert!(untouched(&memory.state, &zero));
    }
}

/// The scratch of this configuration does not fit in the address space, though its state does: scratch
/// contains rows of k for several tokens.
#[cfg(target_pointer_width = "64")]
#[test]
fn scratch_that_no_memory_has_room_for() {
    let tensor = |dim: u64| cw_tensor {
        data: null_mut(),
        dtype: CW_F32,
        rank: 4,
        dims: [1, 0, 2, dim],
        strides: [0, 2 * dim, dim, 1],
    };
    let (keys, values) = (tensor(1 << 56), tensor(2));
    let call = cw_call { q: keys, k: keys, v: values, o: values, ..cw_call::DEFAULT };
    let mut sizes = cw_sizes::DEFAULT;
    // SAFETY: the structures are this function's.
    unsafe { assert_eq!(cw_attention_sizes(&attention(CW_NONE), &call, &mut sizes), CW_OVERFLOW) };
    assert_eq!((sizes.state_bytes, sizes.forward_scratch_bytes), (0, 0));
}

/// Structures of programs that were compiled with an older header are accepted, and those of sizes that no
/// header has are refused.
#[test]
fn structures_of_other_sizes() {
    let good = cw_attention { threads: 2, ..attention(CW_PER_CHUNK) };
    let fresh = Memory::new(&good, T);
    let forward = |attention: &cw_attention, change: &dyn Fn(cw_call) -> cw_call| {
        let mut memory = fresh.clone();
        let call = change(memory.call(T));
        // SAFETY: the memory is this test's.
        let status = unsafe { cw_forward(attention, &call) };
        (status, memory.written(status))
    };
    reads_fields_of_any_size(&good, |attention| forward(attention, &|call| call));

    // Each call points to memory of its own, so that only the size is taken from the other structure.
    for size in ends::<cw_call>() {
        let got = forward(&good, &|call| older(&call, size).0);
        let want = forward(&good, &|call| older(&call, size).1);
        assert!(got == want, "of {size} bytes: {}, and as a whole {}", got.0, want.0);
    }
    // Without the size of scratch there is no scratch.
    let without = offset_of!(cw_call, scratch_bytes);
    assert_eq!(forward(&good, &|call| older(&call, without).0), (CW_TOO_SMALL, fresh.written(CW_SIZE)));
    for size in refused::<cw_call>() {
        let got = forward(&good, &|call| cw_call { size: size as u32, ..call });
        assert_eq!(got, (CW_SIZE, fresh.written(CW_SIZE)), "of {size} bytes");
    }
    // Where `not_causal` or `threads` is missing, it has its default.
    for (size, threads) in [(offset_of!(cw_attention, not_causal), 2), (offset_of!(cw_attention, threads), 1)]
    {
        let (short, long) = older(&good, size);
        assert_eq!((long.threads, long.not_causal), (threads, 0));
        assert_eq!(forward(&short, &|call| call).0, CW_OK);
    }

    let mut memory = fresh.clone();
    let call = memory.call(T);
    // SAFETY: the memory is this test's.
    writes_fields_of_any_size(|sizes| unsafe { cw_attention_sizes(&good, &call, sizes) });
}

#[test]
fn names() {
    // SAFETY: these are strings of the library.
    let text = |string| unsafe { std::ffi::CStr::from_ptr(string) }.to_str().unwrap();
    assert_eq!(text(cw_version()), env!("CARGO_PKG_VERSION"));
    assert_eq!(cw_abi_version(), CW_ABI_VERSION);
    let mut texts: Vec<_> = STATUSES.iter().map(|(_, status)| text(cw_status_string(*status))).collect();
    let header = include_str!("../include/chunkwise.h");
    for ((name, status), text) in STATUSES.iter().zip(&texts).skip(1) {
        let line = header.lines().find(|line| line.trim_start().starts_with(&format!("{name} = {status}")));
        assert!(line.is_some_and(|line| line.ends_with(&format!("/* {text} */"))), "{line:?}, {text}");
    }
    texts.push(text(cw_status_string(-1)));
    texts.sort_unstable();
    texts.dedup();
    assert_eq!(texts.len(), STATUSES.len() + 1);
    assert_eq!(text(cw_status_string(i32::MIN)), text(cw_status_string(1000)));
    let names: Vec<_> = (1..=5).map(|isa| text(cw_isa_name(isa))).collect();
    assert_eq!(names, chunkwise::isa::NAMES);
    assert!(cw_isa_name(0).is_null() && cw_isa_name(6).is_null());
    let mut isa = 0;
    // SAFETY: the number is this test's.
    assert_eq!(unsafe { cw_isa_default(&mut isa) }, CW_OK);
    assert_eq!(text(cw_isa_name(isa)), chunkwise::Isa::choose().unwrap().name());
    let bits = chunkwise::Isa::available().fold(0, |bits, isa| {
        bits | 1 << (1 + chunkwise::isa::NAMES.iter().position(|name| *name == isa.name()).unwrap())
    });
    assert_eq!(cw_isas(), bits);
}
