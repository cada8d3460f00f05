//! One token: `decode/isa/BxHxD/normaliser`, bytes are those of the state, read and written.

mod common;

use chunkwise::{Config, Isa};
use common::{Case, DECODE_SHAPES, NORMALISERS};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn decode(criterion: &mut Criterion) {
    for isa in Isa::available() {
        let mut group = criterion.benchmark_group(format!("decode/{isa}"));
        for (batch, heads, dim) in DECODE_SHAPES {
            for (name, normaliser) in NORMALISERS {
                let config = Config { isa: Some(isa), ..Config::new(batch, 1, heads, dim, dim, normaliser) };
                let mut case = Case::new(config);
                case.check();
                group.throughput(Throughput::Bytes(case.state_bytes() as u64));
                group.bench_function(format!("{batch}x{heads}x{dim}/{name}"), |b| b.iter(|| case.decode()));
            }
        }
    }
}

criterion_group!(benches, decode);
criterion_main!(benches);
