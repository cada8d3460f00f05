//! A worker for measuring this library beside others: a harness starts one for each library, gives all of them the same
//! inputs and lets them run in turn. Commands come on stdin, one a line; each is answered by one line of JSON.
//!
//! ```text
//! load PEER DIR MODE THREADS   DIR holds meta.json and the inputs, see below; or MODE is e2e and DIR a safetensors file
//!                              with weights, input and configuration             {"ok": 1} or {"error": "..."}
//! run PEER MS                  runs for about MS milliseconds, at most 200 times {"ok": 1, "ms": [...], "cpu": [...]}
//! out PEER PATH                runs once, writes o and what follows it as f32    {"ok": 1}
//! drop                         forgets all peers                                 {"ok": 1}
//! quit
//! ```
//!
//! norm and unnorm, and decode_norm and decode_unnorm: meta.json is {"B", "H", "T", "D"}, q.bin, k.bin, v.bin and o are f32
//! [B, H, T, D]. norm divides by `phi(q) . z + 1e-8`, unnorm by nothing, both with elu + 1 and scale 1.
//!
//! ret (a constant decay), sg (a scalar gate), gla (a key gate), delta, gdn (the delta rule with a scalar gate) and kda (with a
//! key gate), and decode_ret and so on: meta.json is {"B", "H", "HV", "T", "K", "V"}, q.bin and k.bin are f32 [B, T, H, K],
//! v.bin and o [B, T, HV, V], beta.bin [B, T, HV]. g.bin holds logarithms of decays, [HV] of ret, [B, T, HV] of sg and gdn,
//! [B, T, HV, K] of gla and kda. The scale is K^-1/2; value head h reads key head h / (HV / H); o is followed by the last
//! state, [B, HV, K, V].
//!
//! decode is T single steps from the zero state, all in one timing. q, k, v and o are bf16 or f16 where PEER ends so
//! (`chunkwise_bf16`), or where the environment variable CHUNKWISE_WORKER_DTYPE says so; inputs are rounded when they are
//! loaded. g, beta and the state are f32.
//!
//! ```sh
//! cargo build --release -p peer-worker
//! ```

mod worker;

fn main() -> std::io::Result<()> {
    let dtype = std::env::var("CHUNKWISE_WORKER_DTYPE").unwrap_or_default();
    worker::serve(&dtype, std::io::stdin().lock(), std::io::stdout().lock())
}
