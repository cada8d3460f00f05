//! One tile product, 16 rows with a state: `tile/isa/KxV`, elements are flops.

mod common;

use chunkwise::Isa;
use common::Product;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn tile(criterion: &mut Criterion) {
    for isa in Isa::available() {
        let mut group = criterion.benchmark_group(format!("tile/{isa}"));
        for (key, value) in [(64, 64), (128, 128)] {
            let mut product = Product::new(isa, key, value);
            product.error().assert();
            group.throughput(Throughput::Elements(product.flops() as u64));
            group.bench_function(format!("{key}x{value}"), |b| b.iter(|| product.run()));
        }
    }
}

criterion_group!(benches, tile);
criterion_main!(benches);
