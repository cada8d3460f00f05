//! One sequence: `prefill/isa/BxHxTxD/normaliser`, elements are recurrent flops.

mod common;

use chunkwise::{Config, Isa};
use common::{Case, NORMALISERS, SHAPES};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn prefill(criterion: &mut Criterion) {
    for isa in Isa::available() {
        let mut group = criterion.benchmark_group(format!("prefill/{isa}"));
        for (batch, heads, len, dim) in SHAPES {
            for (name, normaliser) in NORMALISERS {
                let config =
                    Config { isa: Some(isa), ..Config::new(batch, len, heads, dim, dim, normaliser) };
                let mut case = Case::<f32>::new(config).unwrap();
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
