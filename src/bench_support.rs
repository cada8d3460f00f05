//! Internals for benchmarks: the machine's limits, measured under the same dispatch as the kernels. They are
//! no part of the API and change without notice.

use core::hint::black_box;

use pulp::{Simd, WithSimd};

use crate::isa::{Isa, dispatch};

/// Starts the threads that calls with several threads use, `threads` of them with the caller's own.
///
/// # Errors
/// The threads can't be started.
#[cfg(feature = "std")]
pub fn start_threads(threads: usize) -> Result<(), std::boxed::Box<dyn std::error::Error>> {
    Ok(crate::parallel::pool::start(threads)?)
}

/// Runs `work` on `threads` parts of `memory`, of `part` elements each, on the threads that calls use. Each
/// part runs on a thread of its own, provided that `work` waits for all the others and that [`start_threads`]
/// has started that many threads.
#[cfg(feature = "std")]
pub fn on_threads(threads: usize, memory: &mut [f32], part: usize, work: impl Fn(&mut [f32]) + Sync) {
    use crate::parallel::{Tasks, for_each};
    for_each(Tasks { count: threads, workers: threads }, memory, part, |_, part| work(part));
}

/// Runs chains of multiply-adds, each `steps` long and independent of the others; returns the flops.
pub fn multiply_adds(isa: Isa, steps: usize) -> f64 {
    (dispatch(isa, MultiplyAdds { steps }) * steps * 2 * isa.lanes()) as f64
}

struct MultiplyAdds {
    steps: usize,
}

impl WithSimd for MultiplyAdds {
    type Output = usize;
    /// Returns the number of chains: 12 hide a latency of 4 cycles at 2 per cycle and fit in 16 registers;
    /// where there are twice as many registers there are twice as many chains. The compiler may vectorise
    /// scalar chains, as it does in the kernels.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> usize {
        if S::F32_LANES == 1 {
            self.chains::<S, 32>(simd)
        } else if S::REGISTER_COUNT >= 32 {
            self.chains::<S, 24>(simd)
        } else {
            self.chains::<S, 12>(simd)
        }
    }
}

impl MultiplyAdds {
    #[inline(always)]
    fn chains<S: Simd, const N: usize>(self, simd: S) -> usize {
        let (x, y) = (simd.splat_f32s(black_box(0.999_999)), simd.splat_f32s(black_box(1e-7)));
        let mut acc = [simd.splat_f32s(black_box(0.5)); N];
        for _ in 0..self.steps {
            for acc in &mut acc {
                *acc = simd.mul_add_e_f32s(*acc, x, y);
            }
        }
        let sum = acc[1..].iter().fold(acc[0], |sum, acc| simd.add_f32s(sum, *acc));
        black_box(simd.reduce_sum_f32s(sum));
        N
    }
}

/// Reads `data` `passes` times, as several streams. Elements beyond a whole number of 2 vectors of each
/// stream are left out.
pub fn read(isa: Isa, data: &[f32], passes: usize) {
    dispatch(isa, Read { data, passes });
}

/// The number of streams that [`read`] reads at once: the hardware's prefetchers follow several streams
/// further than one, and a model's dense layers read several rows at once. On a Xeon (Granite Rapids) 12 MiB
/// are read from memory at 22 GB/s instead of 18.
const STREAMS: usize = 4;

struct Read<'a> {
    data: &'a [f32],
    passes: usize,
}

impl WithSimd for Read<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for _ in 0..self.passes {
            let mut acc = [[simd.splat_f32s(0.0); 2]; STREAMS];
            let pairs = S::as_simd_f32s(black_box(self.data)).0.as_chunks::<2>().0;
            let len = pairs.len() / STREAMS;
            let streams: [_; STREAMS] = core::array::from_fn(|i| &pairs[i * len..][..len]);
            for at in 0..len {
                for (acc, stream) in acc.iter_mut().zip(streams) {
                    for j in 0..2 {
                        acc[j] = simd.add_f32s(acc[j], stream[at][j]);
                    }
                }
            }
            let acc = acc.as_flattened();
            let sum = acc[1..].iter().fold(acc[0], |sum, acc| simd.add_f32s(sum, *acc));
            black_box(simd.reduce_sum_f32s(sum));
        }
    }
}

/// Reads, changes and writes `data` `passes` times. Elements beyond a whole number of 8 vectors are left out.
pub fn update(isa: Isa, data: &mut [f32], passes: usize) {
    dispatch(isa, Update { data, passes });
}

struct Update<'a> {
    data: &'a mut [f32],
    passes: usize,
}

impl WithSimd for Update<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // All elements converge to 10, whatever they were, and never become denormal.
        let (x, y) = (simd.splat_f32s(black_box(0.9999)), simd.splat_f32s(black_box(1e-3)));
        for _ in 0..self.passes {
            for row in S::as_mut_simd_f32s(black_box(&mut *self.data)).0.as_chunks_mut::<8>().0 {
                for i in 0..8 {
                    row[i] = simd.mul_add_e_f32s(row[i], x, y);
                }
            }
        }
    }
}
