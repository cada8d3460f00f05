//! Hostile files: each returns an error, within a time and an amount of memory that the length of the file
//! bounds. The bytes that the calling thread has allocated are counted.

use std::time::{Duration, Instant};

use chunkwise::files::{self, ModelFile, Options, Tensor};

use crate::weights::{File, JSON};
use crate::{HOLDS, MOST};

/// The bytes that reading may hold at once for each byte of the file: the names, shapes and offsets of its
/// tensors, twice while they are sorted.
const HELD: usize = 24;
/// The bytes that reading may hold in addition, whatever the length of the file.
const HELD_AT_LEAST: usize = 1 << 16;
/// The bytes for each byte of JSON that is parsed into values, for a configuration or to explain an error.
const VALUES: usize = 100;
/// The same for all JSON that is parsed into values, which is at most 1 MiB.
const MOST_VALUES: usize = VALUES << 20;
/// The longest time that reading may take. A debug build of the parsers reads some 50 MB/s, so that this
/// leaves room for a busy machine.
const TIME: Duration = Duration::from_secs(20);

/// The result of `run`, and the largest number of bytes that it held at once, in addition to those held
/// before.
fn measured<R>(what: &str, run: impl FnOnce() -> R) -> (R, usize) {
    let before = HOLDS.get();
    MOST.set(before);
    let start = Instant::now();
    let result = run();
    let time = start.elapsed();
    assert!(time < TIME, "{what} took {time:?}");
    (result, (MOST.get() - before) as usize)
}

fn bound(len: usize) -> usize {
    HELD * len + MOST_VALUES.min(VALUES * len) + HELD_AT_LEAST
}

/// Checks that a file returns an error, within the bound of memory.
fn refused(what: &str, bytes: &[u8]) {
    let (result, most) = measured(what, || ModelFile::parse(bytes, &Options::default()).map(|_| ()));
    let error = result.expect_err(what).to_string();
    let start = error.chars().take(100).collect::<String>();
    assert!(most <= bound(bytes.len()), "{what}: held {most} bytes for {} of file: {start}", bytes.len());
}

fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

/// `item` for each number below `count`, joined with commas, between `open` and `close`.
fn many(open: &str, count: usize, item: impl Fn(usize) -> String, close: &str) -> String {
    format!("{open}{}{close}", (0..count).map(item).collect::<Vec<_>>().join(","))
}

#[test]
fn the_allocator_counts() {
    let (held, most) = measured("a vector", || drop(std::hint::black_box(vec![1u8; 1000])));
    assert_eq!((held, most), ((), 1000));
}

/// Headers of different lengths. The longest ones are so long that constants are negligible, and longer than
/// the JSON that is parsed to explain errors.
#[test]
fn huge_headers() {
    for count in [1000, 40_000, 400_000] {
        let some = count / 10;
        let x = r#"{"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}"#;
        let number = "1".repeat(count);
        let cases = [
            ("numbers", many("[", count, |_| "0".into(), "]")),
            ("numbers in a tensor", many(r#"{"x": ["#, count, |_| "0".into(), "]}")),
            ("lists", many(r#"{"x": ["#, count, |_| "[]".into(), "]}")),
            ("objects", many(r#"{"x": ["#, count, |_| "{}".into(), "]}")),
            ("keys", many(r#"{"x": {"#, some, |i| format!(r#""{i}":0"#), "}}")),
            (
                "sizes",
                many(
                    r#"{"x": {"dtype": "U8", "shape": ["#,
                    count,
                    |_| "1".into(),
                    r#"], "data_offsets": [0, 1]}}"#,
                ),
            ),
            (
                "offsets",
                many(r#"{"x": {"dtype": "U8", "shape": [], "data_offsets": ["#, count, |_| "0".into(), "]}}"),
            ),
            ("tensors", many("{", some, |i| format!(r#""{i}": {x}"#), "}")),
            ("one tensor again and again", many("{", some, |_| format!(r#""a": {x}"#), "}")),
            ("parameters", many("{", some, |i| format!(r#""fla_block_{i}_attn_norm.gamma": {x}"#), "}")),
            ("metadata", many(r#"{"__metadata__": {"#, some, |i| format!(r#""{i}": """#), "}}")),
            ("a name", format!(r#"{{"{}": {x}}}"#, "n".repeat(count))),
            ("an escaped name", format!(r#"{{"{}": {x}}}"#, "\\u0001".repeat(count))),
            ("digits", format!(r#"{{"x": {number}}}"#)),
            ("an exponent", format!(r#"{{"x": 1e{number}}}"#)),
            ("a fraction", format!(r#"{{"x": 0.{number}}}"#)),
            ("depth", format!(r#"{{"x": {}"#, "[".repeat(count))),
            ("depth of objects", r#"{"x":"#.repeat(count)),
            ("space", format!("{{{}", " ".repeat(count))),
        ];
        for (what, header) in cases {
            refused(what, &file(&header, 1));
            refused(what, &file(&header, 0));
        }
    }
}

#[test]
fn headers_that_are_not_there() {
    for len in [1 << 20, 100_000_000, 100_000_001, u64::MAX / 2, u64::MAX - 8, u64::MAX] {
        refused("a length", &[&len.to_le_bytes()[..], b"{}"].concat());
    }
    // This header is longer than the format allows, and the file contains it.
    refused("a long header", &file(&" ".repeat(100_000_001), 0));
}

/// Two tensors of four bytes each.
fn two(a: &str, b: &str, data: usize) -> Vec<u8> {
    let entry = |place: &str| format!(r#"{{"dtype": "F32", "shape": [1], "data_offsets": {place}}}"#);
    file(&format!(r#"{{"a": {}, "b": {}}}"#, entry(a), entry(b)), data)
}

#[test]
fn places_that_can_not_be() {
    for (a, b, data) in [
        ("[0, 4]", "[0, 4]", 4),
        ("[0, 4]", "[0, 4]", 8),
        ("[0, 4]", "[2, 6]", 6),
        ("[0, 4]", "[3, 7]", 7),
        ("[0, 4]", "[5, 9]", 9),
        ("[4, 8]", "[8, 12]", 12),
        ("[0, 4]", "[4, 8]", 7),
        ("[0, 4]", "[4, 8]", 9),
        ("[0, 4]", "[18446744073709551612, 0]", 8),
        ("[0, 4]", "[18446744073709551611, 18446744073709551615]", 8),
        ("[0, 4]", "[9223372036854775807, 9223372036854775811]", 8),
        ("[4, 0]", "[0, 4]", 4),
    ] {
        refused(&format!("{a} {b} {data}"), &two(a, b, data));
    }
}

/// Parameters with a size of zero.
#[test]
fn sizes_of_zero() {
    for at in 0..File::good().tensors.len() - 1 {
        let dims = File::good().tensors[at].2.len();
        for dim in 0..dims {
            let mut file = File::good();
            file.tensors[at].3.clear();
            // The other size is valid, or so large that their product could overflow.
            file.tensors[at].2[dim] = 0;
            refused(&format!("{:?}", file.tensors[at]), &file.bytes());
            if dims == 2 {
                file.tensors[at].2[1 - dim] = usize::MAX;
                refused(&format!("{:?}", file.tensors[at]), &file.bytes());
            }
        }
    }
}

#[test]
fn configurations() {
    for count in [1000, 100_000, 10_000_000] {
        let number = "1".repeat(count);
        let cases = [
            ("numbers", many(r#"{"x": ["#, count / 2, |_| "0".into(), "]}")),
            ("objects", many(r#"{"x": ["#, count / 3, |_| "{}".into(), "]}")),
            ("a size of objects", many(r#"{"num_heads": ["#, count / 3, |_| "{}".into(), "]}")),
            ("keys", many("{", count / 12, |i| format!(r#""{i}":0"#), "}")),
            ("digits", format!(r#"{{"num_heads": {number}}}"#)),
            ("a word", format!(r#"{{"feature_map": "{number}"}}"#)),
            ("an exponent", format!(r#"{{"layer_norm_eps": 1e{number}}}"#)),
            ("depth", format!(r#"{{"x": {}"#, "[".repeat(count))),
        ];
        for (what, text) in cases {
            let bytes = File::good().config(&text).bytes();
            let (result, most) = measured(what, || ModelFile::parse(&bytes, &Options::default()).map(|_| ()));
            result.expect_err(what);
            assert!(most <= bound(bytes.len()), "{what}: held {most} bytes for {} of file", bytes.len());
            let (_, most) = measured(what, || Options::from_json(&text).map(|_| ()));
            assert!(most <= bound(text.len()), "{what}: held {most} bytes for {} of text", text.len());
        }
    }
    for number in ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e40", "1e-50", "-0.0", "0x10", "+1"] {
        let text = JSON.replace('}', &format!(r#", "layer_norm_eps": {number}}}"#));
        refused(number, &File::good().config(&text).bytes());
    }
    for size in ["num_heads", "chunk_size", "seq_len", "hidden_size", "num_layers", "embed_dim"] {
        for number in ["18446744073709551615", "9223372036854775808", "4611686018427387904", "4294967296"] {
            // Options that do not contradict a shape may be large.
            let mut json: serde_json::Value = serde_json::from_str(JSON).expect("JSON");
            json[size] = number.parse::<u64>().expect("a number").into();
            let bytes = File::good().config(&json.to_string()).bytes();
            let (result, most) = measured(size, || ModelFile::parse(&bytes, &Options::default()).map(|_| ()));
            assert_eq!(result.is_err(), !["chunk_size", "seq_len"].contains(&size), "{size} {number}");
            assert!(most <= bound(bytes.len()), "{size} {number}: held {most} bytes");
        }
    }
}

/// An input without elements may have a shape of any number of sequences or steps, which takes neither memory
/// nor time.
#[test]
fn inputs_with_false_sizes() {
    for mode in ["last_timestep", "all", "mean"] {
        let bytes =
            File::good().config(&JSON.replace('}', &format!(r#", "output_mode": "{mode}"}}"#))).bytes();
        let parsed = ModelFile::parse(&bytes, &Options::default()).expect("a good file");
        let mut blocks = Vec::new();
        let model = parsed.model(&mut blocks, None, 1).expect("a good file");
        for shape in
            [vec![1 << 40, 0, 3], vec![usize::MAX, 0, 3], vec![0, 1 << 40, 3], vec![0, usize::MAX, 3]]
        {
            let what = format!("{mode} {shape:?}");
            let input = Tensor { shape: shape.clone(), data: vec![].into() };
            let (results, most) =
                measured(&what, || [files::forward(&model, &input), files::stream(&model, &input)]);
            for result in results {
                match result {
                    Ok(output) => {
                        assert!(output.data.is_empty() && (mode == "all" || shape[0] == 0), "{what}")
                    }
                    Err(_) => assert!(mode != "all" && shape[1] == 0, "{what}"),
                }
            }
            assert!(most <= HELD_AT_LEAST, "{what}: held {most} bytes");
        }
    }
}

/// Lightning attention keeps the tokens of a chunk. Memory is allocated for the tokens of the input, however
/// long the chunk is.
#[test]
fn chunk_with_false_size() {
    let file = File::lightning();
    let results = |chunk: usize| {
        let bytes = file.clone().config(&format!(r#"{{"num_heads": 2, "chunk_size": {chunk}}}"#)).bytes();
        let parsed = ModelFile::parse(&bytes, &Options::default()).expect("a good file");
        let mut blocks = Vec::new();
        let model = parsed.model(&mut blocks, None, 1).expect("a good file");
        let input = parsed.tensor("input").expect("an input");
        let what = format!("chunks of {chunk}");
        let (results, most) =
            measured(&what, || [files::forward(&model, &input), files::stream(&model, &input)]);
        assert!(most <= HELD_AT_LEAST, "{what}: held {most} bytes");
        results.map(|result| result.expect("a good input"))
    };
    assert_eq!(results(1 << 24), results(10));
    assert_ne!(results(1 << 24), results(9));
}
