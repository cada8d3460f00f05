//! A report as text: a table, Markdown, comma-separated values, JSON.

use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::report::{Against, Bound, Limit, Measurement, Report};
use super::spec::{Dtype, Map, Norm, Packing, RuleName, Spec};
use super::stats::Summary;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Table in plain text
    Table,
    /// Everything, with all readings, as --compare reads it
    Json,
    /// One line for each ceiling and each measurement, with all readings
    Csv,
    /// Table in Markdown
    Md,
}

type Shown = Result<String, Box<dyn std::error::Error>>;

pub(super) fn show(report: &Report, format: Format) -> Shown {
    match format {
        Format::Table => Ok(text(report, false)),
        Format::Md => Ok(text(report, true)),
        Format::Json => Ok(serde_json::to_string_pretty(report)? + "\n"),
        Format::Csv => csv(report),
    }
}

fn text(report: &Report, markdown: bool) -> String {
    let bullet = if markdown { "- " } else { "" };
    let Report { version, date, command, machine, rounds, interrupted, ceilings, measurements } = report;
    let stopped = if *interrupted { ", stopped early" } else { "" };
    let mut text = format!(
        "{bullet}chunkwise {version}, {date}, {} on {} threads, none pinned\n",
        machine.cpu, machine.threads
    );
    text += &format!("{bullet}{}\n", command.join(" "));
    text += &format!("{bullet}{rounds} rounds of ceilings and work in turn{stopped}\n\n");

    text += &format!("{}\n\n", ceilings_table(ceilings, markdown).trim_fmt());
    text += &format!("{}\n", measurements_table(measurements, markdown).trim_fmt());
    text += NOTE;
    text
}

fn ceilings_table(ceilings: &[Limit], markdown: bool) -> Table {
    let mut limits =
        table(markdown, &["ceiling", "isa", "threads", "footprint", "best", "median", "p10 to p90", ""], 4);
    for Limit { isa, threads, name, bytes, unit, rate, .. } in ceilings {
        let spread = format!("{} to {}", digits(rate.p10), digits(rate.p90));
        limits.add_row([
            name.clone(),
            isa.clone(),
            threads.to_string(),
            if *bytes == 0 { String::new() } else { size(*bytes) },
            digits(rate.best),
            digits(rate.median),
            spread,
            unit.clone(),
        ]);
    }
    limits
}

fn measurements_table(measurements: &[Measurement], markdown: bool) -> Table {
    let mut header = vec![
        "op",
        "B,H,T,K,V",
        "type",
        "rule, map, norm",
        "isa",
        "threads",
        "median",
        "p10 to p90",
        "best",
        "tokens/s",
        "recurrent GFLOP/s",
        "% of FMA",
        "executed GFLOP/s",
        "GB/s",
        "bound",
        "% best",
        "% median",
        "error",
    ];
    let compared = measurements.iter().any(|measurement| measurement.against.is_some());
    if compared {
        header.push("time / old");
    }
    let mut work = table(markdown, &header, 5);
    for measurement in measurements {
        let Measurement { spec, seconds, tokens_per_s, gflops, gbs, bound, error, against, .. } = measurement;
        let Measurement { recurrent_gflops, recurrent_bound, .. } = measurement;
        let percent = |percent: f64| format!("{percent:.1}");
        let mut row = vec![
            spec.op.to_string(),
            spec.shape.to_string(),
            spec.dtype.to_string(),
            how(spec),
            spec.isa.clone(),
            spec.threads.to_string(),
            time(seconds.median),
            format!("{} to {}", time(seconds.p10), time(seconds.p90)),
            time(seconds.best),
            count(*tokens_per_s),
            recurrent_gflops.map(|rate| digits(rate.best)).unwrap_or_default(),
            recurrent_bound.as_ref().map(|bound| percent(bound.best_percent)).unwrap_or_default(),
            digits(gflops.best),
            digits(gbs.best),
            bound.ceiling.clone(),
            percent(bound.best_percent),
            percent(bound.median_percent),
            format!("{error:.1e}{}", if measurement.is_right() { "" } else { " WRONG" }),
        ];
        if compared {
            row.push(against.as_ref().map(beside).unwrap_or_default());
        }
        work.add_row(row);
    }
    work
}

const NOTE: &str = "
GFLOP/s and GB/s follow from the best time. Recurrent flops are 4 K V for each token and head of the state,
6 K V with the delta rule, and 16 K V with a backward, whatever a kernel executes. Speeds of attention are
published in recurrent flops, and the first percentage is their share of the FMA ceiling. Executed flops are those
that run: up to 6 K V with chunks, which read a second state (24 K V with a backward); for a model, those of the
dense layers and of attention, without the rows that are left out. The column `bound` has the ceiling that limits
executed flops or bytes, and the two columns after it have the share of it that is reached, by the best readings
and by the medians. The ceilings `update` read, change and write memory in place, and their bytes count in both
directions.
";

/// A table whose first `left` columns are words.
fn table(markdown: bool, header: &[&str], left: usize) -> Table {
    let mut table = Table::new();
    table.load_style(if markdown { presets::ASCII_MARKDOWN } else { presets::NOTHING });
    table.set_header(header.iter().copied());
    for (at, column) in table.column_iter_mut().enumerate() {
        if !markdown {
            column.set_padding((0, 2));
        }
        if at >= left {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn how(spec: &Spec) -> String {
    let chunk = spec.chunk.map(|chunk| format!("chunk {chunk}"));
    let norm = spec.norm.filter(|norm| *norm != Norm::PerChunk).map(|norm| norm.to_string());
    let weights = spec.weights.map(|weights| weights.to_string());
    let (rule, map) = (spec.rule.map(|rule| rule.to_string()), spec.map.map(|map| map.to_string()));
    let words = [rule, map, norm, chunk, weights, spec.state_words()];
    words.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn beside(against: &Against) -> String {
    let Against { ratio, low, high, verdict } = against;
    format!("{ratio:.3} ({low:.3} to {high:.3}), {verdict}")
}

/// A number with three significant digits, or three decimals below 1.
pub(super) fn digits(x: f64) -> String {
    match x.abs() {
        x if x >= 100.0 => format!("{x:.0}"),
        x if x >= 10.0 => format!("{x:.1}"),
        x if x >= 1.0 => format!("{x:.2}"),
        _ => format!("{x:.3}"),
    }
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-6 => format!("{} ns", digits(s * 1e9)),
        s if s < 1e-3 => format!("{} us", digits(s * 1e6)),
        s if s < 1.0 => format!("{} ms", digits(s * 1e3)),
        s => format!("{} s", digits(s)),
    }
}

fn count(x: f64) -> String {
    match x {
        x if x >= 1e9 => format!("{} G", digits(x * 1e-9)),
        x if x >= 1e6 => format!("{} M", digits(x * 1e-6)),
        x if x >= 1e3 => format!("{} k", digits(x * 1e-3)),
        x => digits(x),
    }
}

fn size(bytes: usize) -> String {
    match bytes {
        b if b >= 1 << 20 => format!("{} MiB", digits(b as f64 / f64::from(1 << 20))),
        b => format!("{} KiB", digits(b as f64 / 1024.0)),
    }
}

/// A line of CSV, for a ceiling or a measurement. Fields that do not apply are empty.
#[derive(Default, Serialize)]
struct Line<'a> {
    kind: &'a str,
    /// The operation, or the name of the ceiling.
    op: String,
    rule: Option<RuleName>,
    batch: Option<usize>,
    key_heads: Option<usize>,
    heads: Option<usize>,
    len: Option<usize>,
    key: Option<usize>,
    value: Option<usize>,
    dtype: Option<Dtype>,
    map: Option<Map>,
    norm: Option<Norm>,
    chunk: Option<usize>,
    weights: Option<Packing>,
    state_offset: Option<usize>,
    isa: &'a str,
    threads: usize,
    /// The unit of the next four fields and of the readings.
    unit: &'a str,
    median: f64,
    p10: f64,
    p90: f64,
    best: f64,
    flops: Option<f64>,
    recurrent_flops: Option<f64>,
    bytes: f64,
    tokens: Option<f64>,
    repeats: Option<usize>,
    tokens_per_s: Option<f64>,
    gflops_best: Option<f64>,
    gflops_median: Option<f64>,
    recurrent_gflops_best: Option<f64>,
    recurrent_gflops_median: Option<f64>,
    recurrent_best_percent: Option<f64>,
    recurrent_median_percent: Option<f64>,
    gbs_best: Option<f64>,
    gbs_median: Option<f64>,
    ceiling: Option<&'a str>,
    best_percent: Option<f64>,
    median_percent: Option<f64>,
    error: Option<f64>,
    allowed_error: Option<f64>,
    against_old: Option<f64>,
    against_low: Option<f64>,
    against_high: Option<f64>,
    verdict: Option<&'a str>,
    version: &'a str,
    date: &'a str,
    cpu: &'a str,
    readings: String,
}

fn csv(report: &Report) -> Shown {
    let Report { version, date, machine, ceilings, measurements, .. } = report;
    let line = |Summary { median, p10, p90, best }, readings: &[f64]| Line {
        version,
        date,
        cpu: &machine.cpu,
        median,
        p10,
        p90,
        best,
        readings: readings.iter().map(f64::to_string).collect::<Vec<_>>().join(" "),
        ..Line::default()
    };
    let mut writer = csv::Writer::from_writer(Vec::new());
    for Limit { isa, threads, name, bytes, unit, rate, readings } in ceilings {
        writer.serialize(Line {
            kind: "ceiling",
            op: name.clone(),
            isa,
            threads: *threads,
            unit,
            bytes: *bytes as f64,
            ..line(*rate, readings)
        })?;
    }
    for measurement in measurements {
        let summary = line(measurement.seconds, &measurement.readings);
        writer.serialize(results(measurement, settings(&measurement.spec, summary)))?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

/// A line with what was measured.
fn settings<'a>(spec: &'a Spec, line: Line<'a>) -> Line<'a> {
    let Spec { op, rule, shape, dtype, map, norm, chunk, weights, state_offset, isa, threads } = spec;
    Line {
        kind: "measurement",
        op: op.to_string(),
        rule: *rule,
        batch: Some(shape.batch),
        key_heads: shape.key_heads,
        heads: Some(shape.heads),
        len: Some(shape.len),
        key: Some(shape.key),
        value: Some(shape.value),
        dtype: Some(*dtype),
        map: *map,
        norm: *norm,
        chunk: *chunk,
        weights: *weights,
        state_offset: *state_offset,
        isa,
        threads: *threads,
        unit: "s",
        ..line
    }
}

/// A line with the results of a measurement.
fn results<'a>(measurement: &'a Measurement, line: Line<'a>) -> Line<'a> {
    let Measurement { flops, bytes, tokens, repeats, tokens_per_s, gflops, gbs, bound, .. } = measurement;
    let Measurement { recurrent_flops, recurrent_gflops, recurrent_bound, .. } = measurement;
    let Measurement { error, allowed_error, against, .. } = measurement;
    let recurrent = |of: fn(&Bound) -> f64| recurrent_bound.as_ref().map(of);
    let against = against.as_ref();
    Line {
        flops: Some(*flops),
        recurrent_flops: *recurrent_flops,
        bytes: *bytes,
        tokens: Some(*tokens),
        repeats: Some(*repeats),
        tokens_per_s: Some(*tokens_per_s),
        gflops_best: Some(gflops.best),
        gflops_median: Some(gflops.median),
        recurrent_gflops_best: recurrent_gflops.map(|rate| rate.best),
        recurrent_gflops_median: recurrent_gflops.map(|rate| rate.median),
        recurrent_best_percent: recurrent(|bound| bound.best_percent),
        recurrent_median_percent: recurrent(|bound| bound.median_percent),
        gbs_best: Some(gbs.best),
        gbs_median: Some(gbs.median),
        ceiling: Some(&bound.ceiling),
        best_percent: Some(bound.best_percent),
        median_percent: Some(bound.median_percent),
        error: Some(*error),
        allowed_error: Some(*allowed_error),
        against_old: against.map(|against| against.ratio),
        against_low: against.map(|against| against.low),
        against_high: against.map(|against| against.high),
        verdict: against.map(|against| &against.verdict[..]),
        ..line
    }
}
