//! The benchmark of one token, `decode/isa/BxHxD/rule`. Bytes are those of the state, read and written.

mod common;

use chunkwise::Isa;
use common::{Case, DECODE_SHAPES, RULES, config};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn decode(criterion: &mut Criterion) {
    for isa in Isa::available() {
        let mut group = criterion.benchmark_group(format!("decode/{isa}"));
        for [batch, heads, dim] in DECODE_SHAPES {
            for (name, rule) in RULES {
                let case = |len| Case::<f32>::new(config(isa, rule, [batch, heads, len, dim])).unwrap();
                case(80).decode_error().assert();
                let mut case = case(1);
                group.throughput(Throughput::Bytes(case.state_bytes() as u64));
                group.bench_function(format!("{batch}x{heads}x{dim}/{name}"), |b| b.iter(|| case.decode()));
            }
        }
    }
}

criterion_group!(benches, decode);
criterion_main!(benches);
