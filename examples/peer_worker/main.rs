//! A worker for measuring this library beside others: a harness starts one for each library, gives all of them the same
//! inputs and lets them run in turn. Commands come on stdin, one a line; each is answered by one line of JSON.
//!
//! ```text
//! load PEER DIR MODE THREADS   DIR holds meta.json {"B", "H", "T", "D"} and q.bin, k.bin, v.bin, f32 [B, H, T, D]
//!                              MODE norm, unnorm, decode_norm, decode_unnorm; or e2e, DIR being a safetensors file
//!                              with weights, input and configuration             {"ok": 1} or {"error": "..."}
//! run PEER MS                  runs for about MS milliseconds, at most 200 times {"ok": 1, "ms": [...], "cpu": [...]}
//! out PEER PATH                runs once, writes f32 [B, H, T, D] or [B, hidden] {"ok": 1}
//! drop                         forgets all peers                                 {"ok": 1}
//! quit
//! ```
//!
//! norm divides by `phi(q) . z + 1e-8`, unnorm by nothing, both with elu + 1 and scale 1. decode is T single steps from
//! the zero state, all in one timing. q, k, v and o are bf16 or f16 where PEER ends so (`chunkwise_bf16`), or where the
//! environment variable CHUNKWISE_WORKER_DTYPE says so; inputs are rounded when they are loaded.
//!
//! ```sh
//! cargo build --release --features files --example peer_worker
//! ```

mod worker;

fn main() -> std::io::Result<()> {
    let dtype = std::env::var("CHUNKWISE_WORKER_DTYPE").unwrap_or_default();
    worker::serve(&dtype, std::io::stdin().lock(), std::io::stdout().lock())
}
