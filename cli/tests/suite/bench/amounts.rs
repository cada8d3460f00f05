//! The flops and bytes that `chunkwise bench` counts.

use super::*;

/// Executed and recurrent flops of attention: tokens after the first chunk read a second state.
#[test]
fn flops_of_attention() {
    let flops = |op: &str, more: &[&str]| {
        let measured = only(&bench(["--op", op, "--format", "json"].into_iter().chain(more.iter().copied())));
        ["flops", "recurrent_flops"].map(|key| number(&measured, key))
    };
    // 20 tokens of 2 heads, K = V = 8.
    let recurrent = f64::from(20 * 2 * 4 * 8 * 8);
    for norm in ["none", "global"] {
        assert_eq!(flops("prefill", &["--norm", norm]), [recurrent; 2]);
        assert_eq!(flops("decode", &["--norm", norm]), [recurrent / 20.0; 2]);
    }
    let chunks = |chunk| ["--norm", "per-chunk", "--chunk", chunk];
    assert_eq!(flops("prefill", &chunks("64")), [recurrent; 2]);
    assert_eq!(flops("prefill", &chunks("8")), [recurrent + f64::from(12 * 2 * 2 * 8 * 8), recurrent]);
    assert_eq!(flops("decode", &chunks("8")), [f64::from(2 * 6 * 8 * 8), recurrent / 20.0]);
}

/// Bytes of the state that one decode moves.
#[test]
fn bytes_of_decode() {
    let bytes = |norm: &str| {
        let run = bench(["--op", "decode", "--norm", norm, "--format", "json"]);
        let report = json(&run);
        let ceilings = list(&report, "ceilings").iter();
        let state: Vec<f64> = ceilings
            .filter(|each| each["name"] == "update state")
            .map(|each| number(each, "bytes"))
            .collect();
        [number(&list(&report, "measurements")[0], "bytes"), state[0]]
    };
    // There are two heads. S [K, V] is read and written, and so is z [K] where there is one.
    let (s, z) = (8.0 * 8.0, 8.0);
    assert_eq!(bytes("none"), [4.0 * 2.0 * 2.0 * s, 4.0 * 2.0 * s]);
    assert_eq!(bytes("global"), [4.0 * 2.0 * 2.0 * (s + z), 4.0 * 2.0 * (s + z)]);
    // The sums of finished chunks are only read; the count of tokens is read and written.
    let two = [3.0 * (s + z) + 2.0, 2.0 * (s + z) + 1.0];
    assert_eq!(bytes("per-chunk"), two.map(|elements| 4.0 * 2.0 * elements));
}

/// The flops that a model executes, layer by layer as the library runs them, with hidden size 16, 4 blocks of
/// 2 heads of 8, and the last time step as output. Each token is one row of every product with a matrix.
#[test]
fn flops_of_a_model() {
    /// Rows times inputs times outputs, where a multiply-add counts as two.
    fn dense(rows: u32, inputs: u32, outputs: u32) -> f64 {
        f64::from(2 * rows * inputs * outputs)
    }
    /// The attention of both heads, for `rows` rows, of which `past` also read the sums of finished chunks.
    fn attention(rows: u32, past: u32) -> f64 {
        f64::from(2 * 8 * 8 * (4 * rows + 2 * past))
    }
    let whole = |rows: u32, past: u32| {
        dense(rows, 16, 48) // qkv
            + attention(rows, past)
            + dense(rows, 16, 16) // out
            + dense(rows, 16, 64) // up
            + dense(rows, 64, 16) // down
    };
    // In the last block, k, v and attention are computed for all rows ...
    let unasked = |rows: u32, past: u32| dense(rows, 16, 32) + attention(rows, past);
    // ... and everything else for the last row only: q, out, up and down.
    let last = dense(1, 16, 16) + dense(1, 16, 16) + dense(1, 16, 64) + dense(1, 64, 16);

    let flops = |op: &str, shape: &str, chunk: &str| {
        let words = ["bench", "--rounds", "1", "--weights", "stored", "--op", op, "--shape", shape];
        let run =
            chunkwise(words.into_iter().chain(["--norm", "per-chunk", "--chunk", chunk, "--format", "json"]));
        number(&only(&run), "flops")
    };
    // Some numbers are written out, so that the functions above are checked too.
    let short = 3.0 * whole(20, 0) + unasked(20, 0) + last;
    assert_eq!(short, 435_200.0);
    assert_eq!(flops("model", "1,2,20,8,8", "64"), short);
    assert_eq!(flops("model", "3,2,20,8,8", "64"), 3.0 * short);
    // 12 tokens follow the first chunk.
    assert_eq!(flops("model", "1,2,20,8,8", "8"), 3.0 * whole(20, 12) + unasked(20, 12) + last);
    // With so few rows, all of them are computed.
    assert_eq!(flops("model", "1,2,15,8,8", "64"), 4.0 * whole(15, 0));
    // There are tiles of 256 and 44 tokens, and the state is carried from the first to the second.
    let long = 3.0 * whole(300, 300) + unasked(256, 256) + unasked(44, 44) + last;
    assert_eq!(long, 6_763_520.0);
    assert_eq!(flops("model", "1,2,300,8,8", "64"), long);
    // All four rows of the second tile are computed.
    assert_eq!(flops("model", "1,2,260,8,8", "64"), 3.0 * whole(260, 260) + unasked(256, 256) + whole(4, 4));
    // A step reads the sums of finished chunks, whether a chunk is finished or not.
    assert_eq!(flops("step", "2,2,20,8,8", "64"), 2.0 * 27_648.0);
    assert_eq!(4.0 * whole(1, 1), 27_648.0);
}
