//! `chunkwise bench`: what it writes, in every format, and what it refuses. Speed itself is not tested.

mod amounts;
mod rules;

use std::path::Path;

use crate::program::{Run, chunkwise, command, fine, finish, refused, scratch_file, under};
use chunkwise::Isa;
use serde_json::Value;

/// Sizes that take almost no time.
const SMALL: [&str; 5] = ["bench", "--rounds", "2", "--shape", "1,2,20,8,8"];

fn bench<'a>(more: impl IntoIterator<Item = &'a str>) -> Run {
    chunkwise(SMALL.into_iter().chain(more))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json(run: &Run) -> Value {
    fine(run);
    serde_json::from_str(&run.out).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("{key} in {value}"))
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} in {value}"))
}

/// JSON has every field for each operation except drafts, and the derived numbers follow from the readings.
#[test]
fn json_holds_everything() {
    let ops = ["prefill", "backward", "decode", "model", "step"];
    let report = json(&bench(["--op", &ops.join(","), "--weights", "stored", "--format", "json", "--check"]));
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["rounds"], 2);
    assert_eq!(report["interrupted"], false);
    assert!(report["date"].as_str().unwrap().ends_with('Z'), "{}", report["date"]);
    assert_eq!(list(&report, "command")[1], "bench");
    assert!(!report["machine"]["cpu"].as_str().unwrap().is_empty());

    let ceilings = list(&report, "ceilings");
    let names: Vec<&str> = ceilings.iter().map(|ceiling| ceiling["name"].as_str().unwrap()).collect();
    for name in ["FMA", "update L1", "update L2", "update L3", "update DRAM", "update state", "read weights"]
    {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    for ceiling in ceilings {
        assert_eq!(list(ceiling, "readings").len(), 2);
        assert!(number(&ceiling["rate"], "best") > 0.0);
    }

    let measurements = list(&report, "measurements");
    let measured: Vec<&str> = measurements.iter().map(|each| each["op"].as_str().unwrap()).collect();
    assert_eq!(measured, ops);
    for each in measurements {
        let op = each["op"].as_str().unwrap();
        let readings: Vec<f64> = list(each, "readings").iter().map(|x| x.as_f64().unwrap()).collect();
        let best = readings.iter().copied().fold(f64::INFINITY, f64::min);
        assert_eq!(readings.len(), 2, "{op}");
        assert_eq!(number(&each["seconds"], "best"), best, "{op}");
        assert!(number(&each["bound"], "best_percent") > 0.0, "{op}");
        assert!(number(each, "error") <= number(each, "allowed_error"), "{op}");
        let close = |got: f64, want: f64| assert!((got - want).abs() <= 1e-9 * want, "{op}: {got}, {want}");
        close(number(&each["gbs"], "best"), 1e-9 * number(each, "bytes") / best);
        close(number(&each["gflops"], "best"), 1e-9 * number(each, "flops") / best);
        if ["prefill", "backward", "decode"].contains(&op) {
            close(number(&each["recurrent_gflops"], "best"), 1e-9 * number(each, "recurrent_flops") / best);
            assert_eq!(each["recurrent_bound"]["ceiling"], "FMA");
        } else {
            assert!(each["recurrent_flops"].is_null() && each["recurrent_bound"].is_null(), "{op}");
        }
    }
}

/// Gradients of every map, normaliser and type are right, with heads of q and k that two heads share.
#[test]
fn backward() {
    for shape in ["1,2,20,8,8", "2,2,4,70,9,17"] {
        let words = ["--shape", shape, "--map", "elu,relu,identity", "--norm", "none,global,per-chunk"];
        let more =
            ["--dtype", "f32,bf16,f16", "--chunk", "16", "--check", "--format", "json", "--rounds", "1"];
        let run = chunkwise(["bench", "--op", "backward"].into_iter().chain(words).chain(more));
        let report = json(&run);
        let measurements = list(&report, "measurements");
        assert_eq!(measurements.len(), 27, "{shape}");
        for each in measurements {
            assert!(number(each, "error") <= number(each, "allowed_error"), "{each}");
            let per_chunk = each["norm"] == "per-chunk";
            assert_eq!(number(each, "flops") > number(each, "recurrent_flops"), per_chunk, "{each}");
        }
    }
}

/// So are those with decays, and the gradient of the gate.
#[test]
fn backward_with_decays() {
    for shape in ["1,2,20,8,8", "2,2,4,70,9,17"] {
        let words = ["--op", "backward", "--shape", shape, "--rule", "decay,scalar-gate", "--check"];
        let more = ["--dtype", "f32,bf16,f16", "--format", "json", "--rounds", "1"];
        let report = json(&chunkwise(["bench"].into_iter().chain(words).chain(more)));
        let measurements = list(&report, "measurements");
        assert_eq!(measurements.len(), 6, "{shape}");
        for each in measurements {
            assert!(number(each, "error") <= number(each, "allowed_error"), "{each}");
        }
    }
}

/// The only measurement of a report.
fn only(run: &Run) -> Value {
    let report = json(run);
    let [measurement] = list(&report, "measurements") else { panic!("one in {report}") };
    measurement.clone()
}

/// decode is measured with each offset of the state, with right results. Prefill and step have no offsets.
#[test]
fn a_state_off_the_line() {
    let words = ["--op", "prefill,decode,step", "--weights", "stored", "--state-offset", "0,4,60"];
    let report = json(&bench(words.into_iter().chain(["--check", "--format", "json"])));
    let found: Vec<(&str, Option<u64>)> = list(&report, "measurements")
        .iter()
        .map(|each| (each["op"].as_str().unwrap(), each["state_offset"].as_u64()))
        .collect();
    let decode = |offset| ("decode", offset);
    assert_eq!(found, [("prefill", None), decode(None), decode(Some(4)), decode(Some(60)), ("step", None)]);
    let run = bench(["--op", "decode", "--state-offset", "16"]);
    fine(&run);
    assert!(run.out.contains("state off by 16 bytes"), "{}", run.out);
}

/// All types, maps, normalisers and instruction sets, on one thread and on two, have right results.
#[test]
fn every_combination_once() {
    let words = ["--dtype", "f32,bf16,f16", "--map", "elu,relu,identity", "--norm", "none,global,per-chunk"];
    let more = ["--op", "prefill,decode", "--chunk", "8,16", "--threads", "1,2", "--isa", "all"];
    let report = json(&bench(words.into_iter().chain(more).chain(["--check", "--format", "json"])));
    let isas = list(&report["machine"], "isas").len();
    // Only one normaliser has chunks.
    assert_eq!(list(&report, "measurements").len(), 2 * 3 * 3 * (2 + 2) * isas * 2);
    let ceilings = list(&report, "ceilings");
    assert!(ceilings.iter().any(|ceiling| ceiling["threads"] == 2 && ceiling["name"] == "FMA"));
}

/// Models are measured with stored and with packed weights, and other operations once.
#[test]
fn weights() {
    let words = ["--op", "prefill,decode,model,step", "--weights", "stored,packed"];
    let report = json(&bench(words.into_iter().chain(["--isa", "all", "--check", "--format", "json"])));
    let count = |op: &str, word: Value| {
        let all = list(&report, "measurements").iter();
        all.filter(|each| each["op"] == op && each["weights"] == word).count()
    };
    let isas = Isa::available().count();
    for op in ["prefill", "decode", "model", "step"] {
        assert_eq!(count(op, Value::Null), isas, "{op}");
        assert_eq!(
            count(op, "packed".into()),
            if ["model", "step"].contains(&op) { isas } else { 0 },
            "{op}"
        );
    }
}

#[test]
fn tables() {
    let run = bench(["--op", "prefill,decode"]);
    fine(&run);
    for part in [
        "FMA",
        "update DRAM",
        "update state",
        "prefill",
        "1,2,20,8,8",
        "1,2,1,8,8",
        "2 rounds",
        "none pinned",
        "recurrent GFLOP/s",
        "executed GFLOP/s",
    ] {
        assert!(run.out.contains(part), "{part} in {}", run.out);
    }

    let run = bench(["--op", "prefill,decode", "--format", "md"]);
    fine(&run);
    let rows: Vec<&str> = run.out.lines().filter(|line| line.starts_with('|')).collect();
    let cells = |row: &str| row.matches('|').count();
    assert!(rows.iter().filter(|row| row.starts_with("|--")).count() == 2, "{}", run.out);
    for table in rows.chunk_by(|a, b| cells(a) == cells(b)) {
        assert!(table.len() >= 4, "a table lacks its header, its line or its rows: {}", run.out);
    }

    let run = bench(["--op", "prefill,decode", "--format", "csv"]);
    fine(&run);
    let mut reader = csv::Reader::from_reader(run.out.as_bytes());
    let header = reader.headers().unwrap().clone();
    let column =
        |name: &str| header.iter().position(|column| column == name).unwrap_or_else(|| panic!("{name}"));
    let lines: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    let ops: Vec<&str> = lines
        .iter()
        .filter(|line| &line[column("kind")] == "measurement")
        .map(|line| &line[column("op")])
        .collect();
    assert_eq!(ops, ["prefill", "decode"]);
    for line in &lines {
        assert!(line[column("median")].parse::<f64>().unwrap() > 0.0);
        assert_eq!(line[column("readings")].split(' ').count(), 2);
    }
}

/// A run that is compared with itself is within noise. A measurement that the older run lacks has no
/// comparison.
#[test]
fn compared_with_itself() {
    let old = scratch_file("bench_old.json");
    let run = bench(["--format", "json", "--output", text(&old)]);
    fine(&run);
    assert!(run.out.contains("prefill"), "the table was not printed: {}", run.out);
    let report = json(&bench(["--op", "prefill,decode", "--compare", text(&old), "--format", "json"]));
    let [prefill, decode] = list(&report, "measurements") else { panic!("two in {report}") };
    let against = &prefill["against"];
    let ratio = number(against, "ratio");
    assert!(ratio > 0.0 && number(against, "low") <= ratio && ratio <= number(against, "high"), "{against}");
    assert!(decode["against"].is_null());

    // With these percentiles of the older times, the interval of the ratio always contains 1.
    let mut same: Value = serde_json::from_str(&std::fs::read_to_string(&old).unwrap()).unwrap();
    let Value::Object(seconds) = &mut same["measurements"][0]["seconds"] else { panic!("{same}") };
    seconds["p10"] = 1e-12.into();
    seconds["p90"] = 1e3.into();
    std::fs::write(&old, same.to_string()).unwrap();
    let run = bench(["--compare", text(&old)]);
    fine(&run);
    assert!(run.out.contains("time / old") && run.out.contains("within noise"), "{}", run.out);
    // The older run took a thousand seconds.
    for (_, time) in same["measurements"][0]["seconds"].as_object_mut().unwrap() {
        *time = 1e3.into();
    }
    std::fs::write(&old, same.to_string()).unwrap();
    assert!(bench(["--compare", text(&old)]).out.contains("faster"));
}

#[test]
fn a_plot() {
    let path = scratch_file("bench.svg");
    let more = ["--shape", "1,2,40,8,8", "--shape", "1,2,80,8,8", "--plot", text(&path)];
    fine(&bench(more));
    let svg = std::fs::read_to_string(&path).unwrap();
    let document = roxmltree::Document::parse(&svg).unwrap();
    let texts: String = document.descendants().filter_map(|node| node.text()).collect();
    for part in
        ["FMA", "L1", "DRAM", "prefill 1,2,20,8,8", "prefill 1,2,80,8,8", "T (tokens)", "prefill 1,2,T,8,8"]
    {
        assert!(texts.contains(part), "{part} in {texts}");
    }
    refused(&bench(["--plot", text(&scratch_file("no_such_folder/bench.svg"))]), &["no_such_folder"]);
}

#[test]
fn mistakes() {
    refused(&chunkwise(["bench", "--op", "sideways"]), &["sideways", "--op", "prefill"]);
    refused(&chunkwise(["bench", "--op", "backward", "--rule", "delta"]), &["backward", "linear"]);
    refused(&chunkwise(["bench", "--shape", "1,2,3"]), &["1,2,3", "B,H,T,K,V"]);
    refused(&chunkwise(["bench", "--shape", "1,2,0,4,4"]), &["1,2,0,4,4"]);
    refused(&chunkwise(["bench", "--op", "model", "--shape", "1,2,3,4,5"]), &["K = V", "1,2,3,4,5"]);
    refused(&chunkwise(["bench", "--isa", "scalar,quantum"]), &["quantum", "scalar"]);
    refused(&chunkwise(["bench", "--threads", "0"]), &["--threads"]);
    refused(&chunkwise(["bench", "--rounds", "0"]), &["--rounds"]);
    refused(&chunkwise(["bench", "--time", "soon"]), &["--time", "soon"]);
    for bytes in ["2", "64", "-4", "a line"] {
        refused(
            &chunkwise(["bench", &format!("--state-offset={bytes}")]),
            &["--state-offset", "multiple of 4"],
        );
    }
    refused(&chunkwise(["bench", "--shape", "1000000,1000000,1000000,1000000,1"]), &["1000000,1000000"]);
    let none = scratch_file("there_is_no_such_report");
    refused(&chunkwise(["bench", "--compare", text(&none)]), &[text(&none)]);
    let not = scratch_file("not_a_report.json");
    std::fs::write(&not, "{}").unwrap();
    refused(&chunkwise(["bench", "--compare", text(&not)]), &[text(&not), "not a report"]);
    refused(&bench(["--output", text(&scratch_file("no_such_folder/bench.json"))]), &["no_such_folder"]);
}

/// Sizes whose products overflow, wrap around to 0 or a small number, or need more memory than there is, are
/// refused in one line, before anything is measured.
#[test]
fn sizes_that_are_too_large() {
    const WORD: u64 = 1 << 32;
    let sizes = [WORD, 1 << 48, 1 << 62, u64::MAX / 2 + 1, u64::MAX];
    let mut shapes = vec![[1 << 22, 4, 64, 64, 64], [1, 4, 1 << 22, 64, 64], [1, 1, 1, 1 << 20, 1 << 20]];
    for at in 0..5 {
        for large in sizes {
            let mut shape = [1, 2, 3, 4, 4];
            shape[at] = large;
            if at > 2 {
                // A model has K = V.
                (shape[3], shape[4]) = (large, large);
            }
            shapes.push(shape);
        }
    }
    // These products are 0, or small, after they wrap around.
    shapes.extend([[WORD, WORD, 1, 1, 1], [1, WORD, WORD, 4, 4], [WORD, 1, WORD, 4, 4]]);
    shapes.extend([
        [1, 1 << 31, 1, 1 << 31, 1 << 31],
        [u64::MAX / 5, 5, 1, 8, 8],
        [3, u64::MAX / 3 + 1, 1, 1, 1],
    ]);
    for shape in shapes {
        let text = shape.map(|size| size.to_string()).join(",");
        // decode and step compute one token whatever T is, so these sizes must be too large for one token.
        let [batch, heads, _, key, value] = shape.map(|size| size as f64);
        let one = if batch * heads * key * value < 1e6 { &[][..] } else { &["decode", "step"] };
        for op in ["prefill", "model"].iter().chain(one) {
            let norms = ["--norm", "per-chunk", "--rounds", "1"];
            let run = chunkwise(["bench", "--op", op, "--shape", &text].into_iter().chain(norms));
            refused(&run, &["too large"]);
            assert!(run.out.is_empty(), "{op} {text}: {}", run.out);
        }
    }
    refused(&chunkwise(["bench", "--threads", "1,1025"]), &["1025", "--threads", "1024"]);
    refused(&chunkwise(["bench", "--threads", "18446744073709551616"]), &["--threads", "1024"]);
    let many = vec!["1,1,1,1,1"; 6000].into_iter().flat_map(|shape| ["--shape", shape]);
    let words = ["bench", "--op", "prefill,decode,model,step,prefill,decode"];
    refused(&chunkwise(words.into_iter().chain(many)), &["combinations", "30000"]);
}

/// A run ends after the given time.
#[test]
fn time_is_over() {
    let report = json(&chunkwise(
        SMALL
            .into_iter()
            .filter(|word| !["--rounds", "2"].contains(word))
            .chain(["--time", "1ms", "--format", "json"]),
    ));
    assert_eq!(report["rounds"], 1);
}

/// After Ctrl-C, a run still writes what it has measured.
#[cfg(unix)]
#[test]
fn interrupted() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    // A signal that arrives before the handler is installed ends the program, so several waits are tried.
    for wait in [300, 1000, 3000, 9000] {
        let words = ["bench", "--time", "20s", "--shape", "1,2,20,8,8", "--format", "json"];
        let child = command().args(words).stdout(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let begin = Instant::now();
        let output = child.wait_with_output().unwrap();
        if output.status.code().is_none() {
            continue;
        }
        assert_eq!(output.status.code(), Some(0));
        assert!(begin.elapsed() < Duration::from_secs(10), "the run continued");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["interrupted"], true);
        let rounds = report["rounds"].as_u64().unwrap();
        assert_eq!(list(&list(&report, "measurements")[0], "readings").len() as u64, rounds);
        return;
    }
    panic!("the program has no handler after 9 seconds");
}

/// A limit on the memory of the process counts like the memory of the machine.
#[cfg(target_os = "linux")]
#[test]
fn less_memory_than_the_machine_has() {
    let run =
        |shape: &str| finish(&mut under("ulimit -v 2000000", ["bench", "--rounds", "1", "--shape", shape]));
    refused(&run("1,4,100000,64,64"), &["1,4,100000,64,64", "too large", "GiB"]);
    fine(&run("1,2,20,8,8"));
}
