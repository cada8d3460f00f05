//! The benchmark of the model at its default sizes, `model/isa/BxT` and `step/isa/1`. Elements are tokens.

mod common;

use chunkwise::Isa;
use chunkwise::nn::ModelConfig;
use common::{Run, Untrained};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn model(criterion: &mut Criterion) {
    let untrained = Untrained::<f32>::new(ModelConfig::new(256)).unwrap();
    for isa in Isa::available() {
        let mut blocks = untrained.blocks();
        let model = untrained.model(&mut blocks, isa, 1).unwrap();
        let run = |batch, len| Run::new(model, batch, len).unwrap();
        let [(_, stepped), (_, forward)] = [run(1, 64).into_steps(), run(1, 64).into_forward()];
        for (step, forward) in stepped.iter().zip(&forward) {
            assert!((step - forward).abs() <= 1e-5, "{isa}: step {step}, forward {forward}");
        }

        let mut group = criterion.benchmark_group(format!("model/{isa}"));
        for (batch, len) in [(1, 64), (8, 64), (1, 1024)] {
            let mut run = run(batch, len);
            group.throughput(Throughput::Elements((batch * len) as u64));
            group.bench_function(format!("{batch}x{len}"), |b| b.iter(|| run.forward()));
        }
        group.finish();

        let mut group = criterion.benchmark_group(format!("step/{isa}"));
        let mut run = run(1, 1);
        group.throughput(Throughput::Elements(1));
        group.bench_function("1", |b| b.iter(|| run.step()));
    }
}

criterion_group!(benches, model);
criterion_main!(benches);
