//! One sequence: `prefill/isa/BxHxTxD/normaliser`, elements are recurrent flops.

mod common;

use chunkwise::Isa;
use common::{Case, NORMALISERS, SHAPES, config};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn prefill(criterion: &mut Criterion) {
    for isa in Isa::available() {
        let mut group = criterion.benchmark_group(format!("prefill/{isa}"));
        for shape in SHAPES {
            let [batch, heads, len, dim] = shape;
            for (name, normaliser) in NORMALISERS {
                let mut case = Case::<f32>::new(config(isa, normaliser, shape)).unwrap();
                case.forward_error().assert();
                group.throughput(Throughput::Elements(case.recurrent_flops() as u64));
                group.bench_function(format!("{batch}x{heads}x{len}x{dim}/{name}"), |b| {
                    b.iter(|| case.forward())
                });
            }
        }
    }
}

criterion_group!(benches, prefill);
criterion_main!(benches);
