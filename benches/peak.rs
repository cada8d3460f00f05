//! Speed as a share of the hardware's limit, read in the same run: ceilings and work take turns.
//! `cargo bench --bench peak` prints a table; not criterion, which cannot interleave.

mod common;

use std::time::Instant;

use chunkwise::*;
use common::*;

fn main() {
    if std::env::args().any(|a| a == "--test") {
        println!("peak: nothing to test");
    }
    let rounds = std::env::var("ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(40);
    let isas: Vec<Isa> = match std::env::var("ISA") { Ok(n) => vec![Isa::from_name(&n).unwrap()], _ => Isa::available().collect() };
    for isa in isas {
        let mut works = vec![];
        for (name, batch, heads, len, dim) in [("1x4x64x64", 1,4,64,64),("1x4x4096x64",1,4,4096,64),("1x8x2048x128",1,8,2048,128),("1x1x16384x64",1,1,16384,64),("4x4x1024x64",4,4,1024,64)] {
            for (mode, normaliser, map) in [("none elu",Normaliser::None, FeatureMap::Elu),("none id",Normaliser::None, FeatureMap::Identity),("global elu",Normaliser::Global{eps:1e-6}, FeatureMap::Elu),("per64 elu",Normaliser::per_chunk(64), FeatureMap::Elu)] {
                let mut c = Config::new(batch, len, heads, dim, dim, normaliser);
                c.isa = Some(isa); c.feature_map = map;
                let a = Attention::new(c).unwrap();
                let n = batch*heads*len*dim;
                works.push((format!("{name} {mode}"), a, numbers(1,n), numbers(2,n), numbers(3,n), vec![0f32; n], vec![0f32; a.scratch_len()], vec![]));
            }
        }
        let mut peak = vec![];
        for _ in 0..rounds {
            for w in &mut works {
                peak.push(1.0/fma_rate(isa));
                let reps = (4_000_000_000usize / 40 / (4*w.2.len()*w.1.config().key)).max(1);
                let t = Instant::now();
                for _ in 0..reps {
                    w.1.forward(Forward { q: &w.2, k: &w.3, v: &w.4, state: State::Zero, o: &mut w.5, scratch: &mut w.6 }).unwrap();
                }
                w.7.push(t.elapsed().as_secs_f64()/reps as f64);
            }
        }
        let (p, pm) = summary(peak);
        println!("{isa}: fma best {:.1} median {:.1} GFLOP/s", 1e-9/p, 1e-9/pm);
        for w in works {
            let flops = (4*w.2.len()*w.1.config().key) as f64;
            let (b, m) = summary(w.7);
            println!("{:28} best {:8.1} us {:5.1} %  median {:5.1} %", w.0, b*1e6, 100.0*flops/b*p, 100.0*flops/m*pm);
        }
    }
    for (b, h, d) in [(1,4,64),(1,16,128),(8,16,128)] {
        for isa in Isa::available() {
            let a = Attention::new(Config { isa: Some(isa), ..Config::new(b, 1, h, d, d, Normaliser::Global{eps:1e-6}) }).unwrap();
            let n = b*h*d;
            let (q,k,v) = (numbers(1,n), numbers(2,n), numbers(3,n));
            let (mut o, mut s, mut scratch) = (vec![0f32;n], vec![0f32; a.state_len()], vec![0f32; a.decode_scratch_len()]);
            let mut best = f64::MAX;
            for _ in 0..200 {
                let t = Instant::now();
                for _ in 0..20 { a.decode(DecodeStep { q: &q, k: &k, v: &v, state: &mut s, o: &mut o, scratch: &mut scratch }).unwrap(); }
                best = best.min(t.elapsed().as_secs_f64()/20.0);
            }
            println!("decode {b}x{h}x{d} {isa}: {:.2} us, {:.1} GB/s", best*1e6, (a.state_len()*8) as f64/best*1e-9);
        }
    }
}
