//! `chunkwise bench --rule`: gates and the delta rule, different numbers of heads, and layers by name.

use super::*;

const RULES: [&str; 6] = ["decay", "scalar-gate", "key-gate", "delta", "gated-delta", "kda"];

/// The measurements of a run with these words.
fn measured<'a>(words: impl IntoIterator<Item = &'a str>) -> Vec<Value> {
    let run = chunkwise(["bench", "--rounds", "1", "--format", "json"].into_iter().chain(words));
    list(&json(&run), "measurements").to_vec()
}

/// One field of each measurement.
fn words<'a>(measurements: &'a [Value], key: &str) -> Vec<&'a Value> {
    measurements.iter().map(|each| &each[key]).collect()
}

/// Every rule has right results in every type, on every instruction set, on one thread and on two: with K and
/// V that are not multiples of a vector, with heads that share a head of q and k, and with a number of tokens
/// that is not a multiple of a block.
#[test]
fn every_rule_is_right() {
    let rules = RULES.join(",");
    let sizes = ["--shape", "1,2,4,37,20,12", "--shape", "2,1,3,9,16,33", "--shape", "1,1,5,3,4"];
    let more = ["--dtype", "f32,bf16,f16", "--threads", "1,2", "--isa", "all", "--check"];
    let all = measured(["--op", "prefill,decode", "--rule", &rules].into_iter().chain(sizes).chain(more));
    assert_eq!(all.len(), 2 * RULES.len() * sizes.len() / 2 * 3 * 2 * Isa::available().count());
    for each in &all {
        // An error of 0 would mean that nothing was compared.
        assert!(number(each, "error") > 0.0 && number(each, "allowed_error") < 0.02, "{each}");
        assert!(each["map"].is_null() && each["norm"].is_null() && each["chunk"].is_null(), "{each}");
    }
}

/// A draft executes a forward, which reads the state, and then adds its tokens to the state, which reads and
/// writes it.
#[test]
fn drafts() {
    let rules = format!("linear,{}", RULES.join(","));
    let words = ["--op", "draft", "--rule", &rules, "--shape", "3,2,6,16,8,16", "--isa", "all", "--check"];
    let all = measured(words);
    assert_eq!(all.len(), 7 * Isa::available().count());
    for (each, products) in all.iter().zip(
        [6, 6, 6, 6, 8, 8, 8]
            .into_iter()
            .flat_map(|products| std::iter::repeat_n(products, Isa::available().count())),
    ) {
        let normalised = each["rule"].is_null();
        let state = 3 * 6 * (8 * 16 + if normalised { 8 } else { 0 }) * 4;
        assert_eq!(number(each, "bytes"), f64::from(3 * state), "{each}");
        assert_eq!(number(each, "flops"), f64::from(3 * 6 * 16 * products * 8 * 16), "{each}");
        assert!(number(each, "error") > 0.0, "{each}");
    }
    refused(&chunkwise(["bench", "--op", "draft", "--shape", "1,1,17,8"]), &["at most 16 tokens"]);
}

/// 4 K V for each token and head of the state, and 6 K V where the delta rule reads the state twice.
#[test]
fn flops_of_rules() {
    for (rule, products) in RULES.into_iter().zip([4, 4, 4, 6, 6, 6]) {
        for (op, tokens) in [("prefill", 20), ("decode", 1)] {
            let all = measured(["--op", op, "--rule", rule, "--shape", "3,2,6,20,8,16"]);
            let want = f64::from(3 * 6 * tokens * products * 8 * 16);
            assert_eq!(
                ["flops", "recurrent_flops"].map(|key| number(&all[0], key)),
                [want; 2],
                "{op} {rule}"
            );
        }
    }
}

/// Prefill moves all tensors once. Decode reads and writes the state, which has the heads of v.
#[test]
fn bytes_of_rules() {
    let bytes = |op: &str, rule: &str, dtype: &str| {
        let words = ["--op", op, "--rule", rule, "--dtype", dtype, "--shape", "3,2,6,20,8,16"];
        number(&measured(words)[0], "bytes")
    };
    let (tokens, qkvo) = (3 * 20, 2 * 2 * 8 + 2 * 6 * 16);
    // The elements of g and beta, which are f32.
    let gates = [6, tokens * 6, tokens * 6 * 8, tokens * 6, tokens * 2 * 6, tokens * 6 * (8 + 1)];
    for (rule, gates) in RULES.into_iter().zip(gates) {
        for (dtype, size) in [("f32", 4), ("bf16", 2)] {
            let want = tokens * qkvo * size + 4 * gates;
            assert_eq!(bytes("prefill", rule, dtype), f64::from(want), "{rule} {dtype}");
            assert_eq!(bytes("decode", rule, dtype), f64::from(2 * 4 * 3 * 6 * 8 * 16), "{rule} {dtype}");
        }
    }
}

/// Only the linear rule, which reports do not name, has maps and normalisers.
#[test]
fn maps_and_normalisers_of_the_linear_rule() {
    let maps = ["--rule", "linear,delta", "--map", "elu,relu", "--norm", "none,global"];
    let all = measured(maps.into_iter().chain(["--shape", "1x2x20x8"]));
    assert_eq!(words(&all, "rule").iter().filter(|rule| rule.is_null()).count(), 4);
    assert_eq!(words(&all, "rule").iter().filter(|rule| **rule == "delta").count(), 1);
    let all = measured(["--rule", "delta", "--op", "step", "--shape", "1x2x20x8", "--weights", "stored"]);
    assert!(words(&all, "rule")[0].is_null(), "a model has a rule of its own");
}

/// All forms of sizes.
#[test]
fn shapes() {
    let shape = |text: &str| {
        let all = measured(["--rule", "scalar-gate", "--shape", text]);
        ["batch", "key_heads", "heads", "len", "key", "value"].map(|key| all[0]["shape"][key].as_u64())
    };
    let equal = [Some(1), None, Some(2), Some(20), Some(8), Some(8)];
    for text in ["1,2,20,8,8", "1x2x20x8x8", "1x2x20x8", "1,2,20,8", "1x2x2x20x8x8"] {
        assert_eq!(shape(text), equal, "{text}");
    }
    assert_eq!(shape("1x2x20x8x12"), [Some(1), None, Some(2), Some(20), Some(8), Some(12)]);
    assert_eq!(shape("1x2x4x20x8x12"), [Some(1), Some(2), Some(4), Some(20), Some(8), Some(12)]);

    for text in ["1,2,3,20,8,8", "2,1,1", "1,2,0,20,8,8", "1,2,2,20,8,8,8"] {
        refused(&chunkwise(["bench", "--shape", text]), &[text, "B,H,HV,T,K,V", "multiple of H"]);
    }
    refused(&chunkwise(["bench", "--shape", "qwen2"]), &["qwen2", "qwen3.5-4b", "retnet"]);
    refused(&chunkwise(["bench", "--rule", "gated-omega"]), &["gated-omega", "gated-delta"]);
    refused(&chunkwise(["bench", "--op", "model", "--shape", "1,2,4,20,8,8"]), &["heads", "1,2,4,20,8,8"]);
    let huge = "1,1,18446744073709551615,20,8,8";
    refused(&chunkwise(["bench", "--rule", "kda", "--shape", huge]), &["too large", huge]);
}

/// The name of a layer stands for its sizes, and for its rule unless `--rule` names another.
#[test]
fn layers_by_name() {
    let found = |words: &[&str]| -> Vec<(String, String)> {
        let all = measured(["--op", "decode", "--check"].into_iter().chain(words.iter().copied()));
        let text = |each: &Value| {
            let sizes = ["key_heads", "heads", "key", "value"].map(|key| each["shape"][key].as_u64());
            let sizes = sizes.iter().flatten().map(u64::to_string).collect::<Vec<_>>().join(" ");
            (each["rule"].as_str().unwrap_or_default().to_owned(), sizes)
        };
        all.iter().map(text).collect()
    };
    let pair = |rule: &str, sizes: &str| (rule.to_owned(), sizes.to_owned());
    assert_eq!(
        found(&["--shape", "qwen3.5-4b", "--shape", "1,2,1,8,8"]),
        [pair("gated-delta", "16 32 128 128"), pair("", "2 8 8")]
    );
    assert_eq!(found(&["--shape", "granite-4-h", "--rule", "kda"]), [pair("kda", "1 48 128 64")]);
    let rules =
        ["gated-delta", "gated-delta", "gated-delta", "kda", "scalar-gate", "scalar-gate", "scalar-gate"];
    let all = found(&["--shape", "layers"]);
    assert_eq!(all.iter().map(|(rule, _)| &rule[..]).collect::<Vec<_>>(), [&rules[..], &["decay"]].concat());
    assert_eq!(all.last(), Some(&pair("decay", "8 256 512")));
}

/// The table, the comma-separated values and the plot show the rule and the heads.
#[test]
fn rules_are_shown() {
    let words = ["bench", "--rounds", "1", "--rule", "kda", "--shape", "1,2,4,20,8,8"];
    let plot = scratch_file("bench_rules.svg");
    let run = chunkwise(words.into_iter().chain(["--plot", text(&plot)]));
    fine(&run);
    for part in ["rule, map, norm", "kda", "1,2,4,20,8,8", "6 K V with the delta rule"] {
        assert!(run.out.contains(part), "{part} in {}", run.out);
    }
    let svg = std::fs::read_to_string(&plot).unwrap();
    assert!(svg.contains("prefill kda 1,2,4,20,8,8"), "{svg}");

    let run = chunkwise(words.into_iter().chain(["--format", "csv"]));
    fine(&run);
    let mut reader = csv::Reader::from_reader(run.out.as_bytes());
    let header = reader.headers().unwrap().clone();
    let last = reader.records().last().unwrap().unwrap();
    let cell = |name: &str| header.iter().zip(&last).find(|(column, _)| *column == name).unwrap().1;
    assert_eq!(["rule", "key_heads", "heads"].map(cell), ["kda", "2", "4"]);
}
