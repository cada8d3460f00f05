//! A worker for measurements of this library in turn with others. A harness starts one worker for each
//! library and passes the same inputs to all of them. The worker reads commands from stdin, one for each
//! line, and answers each by one line of JSON:
//!
//! ```text
//! load PEER DIR MODE THREADS   loads meta.json and the inputs from DIR, see below; if MODE is e2e, DIR is a
//!                              safetensors file with weights, an input and a configuration
//!                              {"ok": 1} or {"error": "..."}
//! run PEER MS                  runs for about MS milliseconds, at most 200 times
//!                              {"ok": 1, "ms": [...], "cpu": [...]}
//! out PEER PATH                runs once, and writes o and, in some modes, the last state, as f32
//!                              {"ok": 1}
//! drop                         drops all peers
//!                              {"ok": 1}
//! quit
//! ```
//!
//! Modes of linear attention are norm, unnorm, decode_norm and decode_unnorm. meta.json is
//! `{"B", "H", "T", "D"}`; q.bin, k.bin, v.bin and o are f32 `[B, H, T, D]`. norm divides by
//! `phi(q) . z + 1e-8` and unnorm does not divide; both have phi = elu + 1 and scale 1.
//!
//! The other modes are ret (constant decays), sg (a scalar gate), gla (a key gate), delta, gdn (the delta
//! rule with a scalar gate), kda (the delta rule with a key gate), and the same with decode_ before them.
//! meta.json is `{"B", "H", "HV", "T", "K", "V"}`; q.bin and k.bin are f32 `[B, T, H, K]`, v.bin and o
//! `[B, T, HV, V]`, beta.bin `[B, T, HV]`. g.bin contains logarithms of decays: `[HV]` for ret,
//! `[B, T, HV]` for sg and gdn, `[B, T, HV, K]` for gla and kda. The scale is K^-1/2, value head h shares
//! key head h / (HV / H), and o is followed by the last state, `[B, HV, K, V]`.
//!
//! The modes with decode_ decode T tokens one by one from a state of zeros, all in one reading. q, k, v and o
//! are bf16 or f16 where the name of the peer ends with the type (`chunkwise_bf16`), or where the environment
//! variable CHUNKWISE_WORKER_DTYPE names it; inputs are rounded when they are loaded. g, beta and the state
//! are f32.
//!
//! ```sh
//! cargo build --release -p peer-worker
//! ```

mod worker;

fn main() -> std::io::Result<()> {
    let dtype = std::env::var("CHUNKWISE_WORKER_DTYPE").unwrap_or_default();
    worker::serve(&dtype, std::io::stdin().lock(), std::io::stdout().lock())
}
