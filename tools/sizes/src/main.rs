//! Prints the bytes of state and scratch of attention by shape, on every instruction set of this machine, as
//! a table in Markdown.
//!
//! ```sh
//! cargo run --release -p sizes
//! ```

use chunkwise::{Attention, Config, Isa, Normaliser, Rule, Shape};

fn main() -> chunkwise::Result<()> {
    let isas: Vec<Isa> = Isa::available().collect();
    print!("| B, H, K, V | normaliser | state |");
    for isa in &isas {
        print!(" {isa}: decode, forward |");
    }
    println!("\n|---|---|---|{}", "---|".repeat(isas.len()));
    let global = ("global", Normaliser::Global { eps: 1e-6 });
    let per_chunk = ("per chunk", Normaliser::per_chunk(64));
    for ([batch, heads, key, value], (name, normaliser)) in [
        ([1, 1, 16, 16], global),
        ([1, 4, 32, 32], global),
        ([1, 4, 64, 64], global),
        ([1, 4, 64, 64], per_chunk),
        ([1, 8, 128, 128], global),
        ([8, 16, 128, 128], global),
    ] {
        // The length of scratch does not depend on the number of tokens.
        let config = Config::new(Rule::linear(normaliser), Shape::new(batch, 4096, heads, key, value));
        let state = Attention::new(config)?.state_len();
        print!("| {batch}, {heads}, {key}, {value} | {name} | {} |", 4 * state);
        for isa in &isas {
            let attention = Attention::new(config.isa(*isa))?;
            print!(" {}, {} |", 4 * attention.decode_scratch_len(), 4 * attention.scratch_len());
        }
        println!();
    }
    Ok(())
}
