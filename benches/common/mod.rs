//! What the benches share: the FMA ceiling, inputs, and a check of each result.
#![allow(dead_code, reason = "each bench uses its part")]

use std::hint::black_box;
use std::time::Instant;

use chunkwise::Isa;
use pulp::{Simd, WithSimd};

/// 12 independent chains of multiply-adds: enough to hide a latency of 4 cycles at 2 a cycle, and all the
/// registers that AVX2 leaves.
struct Fma {
    steps: usize,
}

impl WithSimd for Fma {
    type Output = f32;
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (x, y) = (simd.splat_f32s(black_box(0.999_999)), simd.splat_f32s(black_box(1e-7)));
        let mut acc = [simd.splat_f32s(black_box(0.5)); 12];
        for _ in 0..self.steps {
            for acc in &mut acc {
                *acc = simd.mul_add_e_f32s(*acc, x, y);
            }
        }
        let mut sum = acc[0];
        for acc in &acc[1..] {
            sum = simd.add_f32s(sum, *acc);
        }
        simd.reduce_sum_f32s(sum)
    }
}

fn dispatch<Op: WithSimd>(isa: Isa, op: Op) -> Op::Output {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Avx512(_) => return Simd::vectorize(pulp::x86::V4::try_new().unwrap(), op),
        Isa::Avx2(_) => return Simd::vectorize(pulp::x86::V3::try_new().unwrap(), op),
        _ => {}
    }
    #[cfg(target_arch = "aarch64")]
    if let Isa::Neon(_) = isa {
        return Simd::vectorize(pulp::aarch64::Neon::try_new().unwrap(), op);
    }
    op.with_simd(pulp::Scalar::new())
}

/// One reading of the FMA rate, in flops a second; about a millisecond.
pub fn fma_rate(isa: Isa) -> f64 {
    let steps = 20_000 * 8 / isa.lanes().max(4);
    let begin = Instant::now();
    black_box(dispatch(isa, Fma { steps }));
    (steps * 12 * 2 * isa.lanes()) as f64 / begin.elapsed().as_secs_f64()
}

/// One reading of the rate at which f32 are read, in bytes a second.
pub fn read_rate(isa: Isa, data: &[f32]) -> f64 {
    struct Read<'a>(&'a [f32]);
    impl WithSimd for Read<'_> {
        type Output = f32;
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> f32 {
            let mut acc = [simd.splat_f32s(0.0); 8];
            for row in S::as_simd_f32s(self.0).0.as_chunks::<8>().0 {
                for i in 0..8 {
                    acc[i] = simd.add_f32s(acc[i], row[i]);
                }
            }
            let mut sum = acc[0];
            for acc in &acc[1..] {
                sum = simd.add_f32s(sum, *acc);
            }
            simd.reduce_sum_f32s(sum)
        }
    }
    let begin = Instant::now();
    black_box(dispatch(isa, Read(black_box(data))));
    size_of_val(data) as f64 / begin.elapsed().as_secs_f64()
}

/// Numbers between -1 and 1, the same every time.
pub fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Best, median of repeated readings (the best is the smallest).
pub fn summary(mut readings: Vec<f64>) -> (f64, f64) {
    readings.sort_by(f64::total_cmp);
    (readings[0], readings[readings.len() / 2])
}
