//! A part of the tests against the oracle as a WebAssembly module, without std and without an allocator.
//! Forward and decode are compared with the recurrence in f64 and, bit for bit, with each other, at sizes
//! around those of vectors, panels and tiles.
#![no_std]

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use chunkwise::reference::Recurrence;
use chunkwise::{Attention, Config, FeatureMap, Isa, Normaliser, Rule, Shape, State, Tensors, Update};

/// The bound of the norm error, as in `tests/common`.
const NORM_ERROR: f64 = 2e-6;

const LENS: [usize; 6] = [1, 15, 16, 17, 40, 64];
const SIZES: [(usize, usize); 13] = [
    (1, 1),
    (3, 5),
    (4, 8),
    (5, 7),
    (8, 16),
    (7, 17),
    (15, 33),
    (16, 32),
    (17, 31),
    (12, 48),
    (64, 64),
    (63, 65),
    (37, 70),
];
const MOST: usize = 70;
const ROWS: usize = 64;
const SCRATCH: usize = Attention::scratch_bound(1, MOST, MOST);

struct Memory {
    q: [f32; ROWS * MOST],
    k: [f32; ROWS * MOST],
    v: [f32; ROWS * MOST],
    o: [f32; ROWS * MOST],
    decoded: [f32; ROWS * MOST],
    want: [f64; ROWS * MOST],
    state: [f32; 2 * MOST * (MOST + 1) + 1],
    scratch: [f32; SCRATCH],
    sums: [[f64; MOST * MOST]; 2],
    norms: [[f64; MOST]; 2],
}

/// The last case that failed, in decimal digits: T, K, V (two of each), normaliser, feature map.
static LAST: AtomicU32 = AtomicU32::new(0);

/// A generator of approximately normal numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        let mut sum = -6.0;
        for _ in 0..12 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            sum += ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32;
        }
        sum
    }
}

/// Runs all comparisons; returns their number in the upper 32 bits, and the number of those that failed, or
/// whose call was refused, in the lower ones.
#[unsafe(no_mangle)]
pub extern "C" fn compare() -> u64 {
    static mut MEMORY: Memory = Memory {
        q: [0.0; ROWS * MOST],
        k: [0.0; ROWS * MOST],
        v: [0.0; ROWS * MOST],
        o: [0.0; ROWS * MOST],
        decoded: [0.0; ROWS * MOST],
        want: [0.0; ROWS * MOST],
        state: [0.0; 2 * MOST * (MOST + 1) + 1],
        scratch: [0.0; SCRATCH],
        sums: [[0.0; MOST * MOST]; 2],
        norms: [[0.0; MOST]; 2],
    };
    // SAFETY: the module has one thread, and this function doesn't call itself.
    let memory = unsafe { &mut *(&raw mut MEMORY) };
    let (mut made, mut failed) = (0_u32, 0_u32);
    let normalisers = [
        Normaliser::None,
        Normaliser::Global { eps: 1e-6 },
        Normaliser::per_chunk(1),
        Normaliser::per_chunk(5),
        Normaliser::per_chunk(16),
        Normaliser::per_chunk(20),
    ];
    for isa in Isa::available() {
        for len in LENS {
            for (key, value) in SIZES {
                for (n, normaliser) in normalisers.into_iter().enumerate() {
                    for (m, feature_map) in
                        [FeatureMap::Elu, FeatureMap::RELU, FeatureMap::Identity].into_iter().enumerate()
                    {
                        let rule = Rule::linear(normaliser).feature_map(feature_map);
                        let config = Config::new(rule, Shape::new(1, len, 1, key, value)).isa(isa);
                        let wrong = both(config, memory).unwrap_or(3);
                        made += 3;
                        failed += wrong;
                        if wrong > 0 {
                            LAST.store(
                                (((len * 100 + key) * 100 + value) * 100 + n * 10 + m) as u32,
                                Relaxed,
                            );
                        }
                    }
                }
            }
        }
    }
    u64::from(made) << 32 | u64::from(failed)
}

/// The number of comparisons that fail for a configuration: forward with the oracle, decode with the oracle,
/// and the bits of the two.
fn both(config: Config, memory: &mut Memory) -> chunkwise::Result<u32> {
    let Memory { q, k, v, o, decoded, want, state, scratch, sums: [s, chunk_s], norms: [z, chunk_z] } =
        memory;
    let (Shape { len, key, value, .. }, Rule { feature_map, normaliser, .. }) = (config.shape, config.rule);
    let mut random = Random((len * 1_000_000 + key * 1000 + value) as u64);
    // With T = 1 an output is one product q . k, which has no relative accuracy where its terms cancel.
    let positive = feature_map == FeatureMap::Identity;
    let mut next = |positive: bool| if positive { random.next().abs() } else { random.next() };
    let (q, k, v) = (&mut q[..len * key], &mut k[..len * key], &mut v[..len * value]);
    q.fill_with(|| next(positive));
    k.fill_with(|| next(positive));
    v.fill_with(|| next(false));
    let [o, decoded] = [o, decoded].map(|o| &mut o[..len * value]);
    let want = &mut want[..len * value];

    let (s, z, chunk_s, chunk_z) =
        (&mut s[..key * value], &mut z[..key], &mut chunk_s[..key * value], &mut chunk_z[..key]);
    for sums in [&mut *s, z, chunk_s, chunk_z] {
        sums.fill(0.0);
    }
    let mut oracle = Recurrence {
        update: Update::Linear,
        qk_norm: None,
        feature_map,
        normaliser,
        scale: 1.0,
        s,
        z,
        chunk_s,
        chunk_z,
        count: 0,
    };
    for t in 0..len {
        oracle.step(
            &q[t * key..][..key],
            &k[t * key..][..key],
            &v[t * value..][..value],
            &mut want[t * value..][..value],
        );
    }

    let attention = Attention::new(config)?;
    o.fill(f32::NAN);
    attention.forward(Tensors::new(&*q, &*k, &*v, &mut *o), State::Zero, scratch)?;
    let mut wrong = u32::from(!close(o, want));

    decoded.fill(f32::NAN);
    let state = &mut state[..attention.state_len()];
    state.fill(0.0);
    for t in 0..len {
        let (q, k, v) = (&q[t * key..], &k[t * key..], &v[t * value..]);
        attention.decode(Tensors::new(q, k, v, &mut decoded[t * value..]), state, scratch)?;
    }
    wrong += u32::from(!close(decoded, want));
    let mut pairs = o.iter().zip(decoded);
    wrong += u32::from(!pairs.all(|(one, other)| one.to_bits() == other.to_bits()));
    Ok(wrong)
}

/// Whether `||got - want|| <= NORM_ERROR ||want||`; false if anything is NaN.
fn close(got: &[f32], want: &[f64]) -> bool {
    let (mut difference, mut size) = (0.0, 0.0);
    for (got, want) in got.iter().zip(want) {
        difference += (f64::from(*got) - want) * (f64::from(*got) - want);
        size += want * want;
    }
    difference <= NORM_ERROR * NORM_ERROR * size
}

/// The last case that failed, encoded as in `LAST`.
#[unsafe(no_mangle)]
pub extern "C" fn last_failure() -> u32 {
    LAST.load(Relaxed)
}

/// The number of lanes of the best instruction set: 1, or 4 with simd128.
#[unsafe(no_mangle)]
pub extern "C" fn lanes() -> u32 {
    Isa::best().lanes() as u32
}

#[cfg(target_arch = "wasm32")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    core::arch::wasm32::unreachable()
}
