//! The model at its default sizes: `model/isa/BxT` and `step/isa/1`, elements are tokens.

mod common;

use chunkwise::Isa;
use common::{Sized, numbers};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn model(criterion: &mut Criterion) {
    let sized = Sized::new();
    for isa in Isa::available() {
        let mut blocks = sized.blocks();
        let model = sized.model(&mut blocks, isa, 1);
        let mut group = criterion.benchmark_group(format!("model/{isa}"));
        let mut last = Vec::new();
        for (batch, len) in [(1, 64), (8, 64), (1, 1024)] {
            let input = numbers(1, batch * len * 256);
            let mut output = vec![0.0; model.output_len(batch, len)];
            let mut scratch = vec![0.0; model.scratch_len(batch, len).unwrap()];
            let mut forward = || model.forward(batch, len, &input, &mut output, &mut scratch).unwrap();
            group.throughput(Throughput::Elements((batch * len) as u64));
            forward();
            group.bench_function(format!("{batch}x{len}"), |b| b.iter(&mut forward));
            if (batch, len) == (1, 64) {
                last = output.clone();
            }
        }
        group.finish();

        let input = numbers(1, 64 * 256);
        let (mut output, mut state) = (vec![0.0; 256], vec![0.0; model.state_len(1).unwrap()]);
        let mut scratch = vec![0.0; model.step_scratch_len(1).unwrap()];
        for x in input.chunks_exact(256) {
            model.step(1, x, &mut state, &mut output, &mut scratch).unwrap();
        }
        for (step, forward) in output.iter().zip(&last) {
            assert!((step - forward).abs() <= 1e-5, "{isa}: step {step}, forward {forward}");
        }
        let mut group = criterion.benchmark_group(format!("step/{isa}"));
        group.throughput(Throughput::Elements(1));
        group.bench_function("1", |b| {
            b.iter(|| model.step(1, &input[..256], &mut state, &mut output, &mut scratch).unwrap());
        });
    }
}

criterion_group!(benches, model);
criterion_main!(benches);
