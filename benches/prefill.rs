//! The benchmark of many tokens, `prefill/isa/BxHxTxD/rule`. Elements are recurrent flops.

mod common;

use chunkwise::Isa;
use common::{Case, RULES, SHAPES, config};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn prefill(criterion: &mut Criterion) {
    for isa in Isa::available() {
        let mut group = criterion.benchmark_group(format!("prefill/{isa}"));
        for shape in SHAPES {
            let [batch, heads, len, dim] = shape;
            for (name, rule) in RULES {
                let mut case = Case::<f32>::new(config(isa, rule, shape)).unwrap();
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
