//! `check`: recomputes the tensors that golden files store, and compares them.

use std::io::Write;
use std::path::{Path, PathBuf};

use chunkwise::Isa;
use chunkwise::files::{self, Error, ModelFile, Options, Tensor, Tensors};
use chunkwise::nn::AttentionKind;
use comfy_table::{Table, presets};

use super::compare::Distance;
use super::load::Source;
use super::machine::{self, Isas, Threads};
use super::out::Out;
use super::recompute::{self, Kernel, Recomputed};
use super::tolerance::{Allowed, Denominators, Inside};
use super::{Outcome, Verdict, exact};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Golden files to check
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// File with the parameters of all models [default: each file's `weights_from`, else the file itself]
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Instruction sets to check, or all
    #[arg(long, default_value = "all", value_name = "all|NAME,..", value_parser = machine::isas)]
    isa: Isas,
    #[command(flatten)]
    threads: Threads,
}

/// A line of the table.
struct Row {
    file: String,
    isa: &'static str,
    /// The name of the stored tensor.
    stored: String,
    /// How the tensor was recomputed.
    how: &'static str,
    verdict: Compared,
}

enum Compared {
    /// The distance to the stored tensor, and what is allowed.
    Distance(Distance, Allowed),
    /// The stored tensor has another shape.
    Shape {
        stored: Vec<usize>,
        computed: Vec<usize>,
    },
    Skipped(String),
}

pub(crate) fn run(args: &Args, out: &mut Out) -> Outcome {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["file", "isa", "tensor", "max abs", "norm error", "allowed", "verdict"]);
    let (mut passed, mut failed, mut skipped, mut unusable) = (0, 0, 0, 0);
    for path in &args.files {
        let rows = match check(path, args) {
            Ok(rows) => rows,
            Err(error) => {
                out.complain(&error.to_string());
                unusable += 1;
                continue;
            }
        };
        for Row { file, isa, stored, how, verdict } in rows {
            let tensor = format!("{stored} {how}").trim_end().to_string();
            let [max_abs, norm, allowed, word] = match verdict {
                Compared::Distance(distance, allowed) => {
                    let holds = allowed.holds(distance);
                    *(if holds { &mut passed } else { &mut failed }) += 1;
                    let word = if holds { "pass" } else { "FAIL" };
                    let Distance { max_abs, norm } = distance;
                    [format!("{max_abs:.1e}"), format!("{norm:.1e}"), allowed.to_string(), word.into()]
                }
                Compared::Shape { stored, computed } => {
                    failed += 1;
                    [
                        String::new(),
                        String::new(),
                        String::new(),
                        format!("FAIL: stored {stored:?}, computed {computed:?}"),
                    ]
                }
                Compared::Skipped(why) => {
                    skipped += 1;
                    [String::new(), String::new(), String::new(), format!("skipped: {why}")]
                }
            };
            table.add_row([file, isa.into(), tensor, max_abs, norm, allowed, word]);
        }
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    if table.row_count() > 0 {
        writeln!(out, "{}", table.trim_fmt())?;
    }
    writeln!(out, "{passed} passed, {failed} failed, {skipped} skipped, {unusable} unusable files")?;
    Ok(match (unusable, failed) {
        (0, 0) => Verdict::Pass,
        (0, _) => Verdict::Fail,
        _ => Verdict::Unusable,
    })
}

/// The rows of the table for one file.
fn check(path: &Path, args: &Args) -> files::Result<Vec<Row>> {
    let file = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let bytes = files::read(path)?;
    let in_file = |error: Error| error.in_file(path);
    let options = Tensors::parse(&bytes).and_then(|tensors| tensors.options()).map_err(in_file)?;
    let rows = match options.kind.as_deref() {
        None | Some("fla" | "lightning") => {
            let source = Source::new(path, bytes, args.weights.as_deref(), Options::default())?;
            model(&source.tensors()?, &source.model()?, &file, args).map_err(in_file)?
        }
        Some("kernel_fla") => {
            kernel(AttentionKind::Linear, &Tensors::parse(&bytes)?, &file, &options, args).map_err(in_file)?
        }
        Some("kernel_lightning") => {
            kernel(AttentionKind::Lightning, &Tensors::parse(&bytes)?, &file, &options, args)
                .map_err(in_file)?
        }
        Some(kind) => {
            let why = format!("kind {kind} is not supported");
            return Ok(vec![Row {
                file,
                isa: "",
                stored: String::new(),
                how: "",
                verdict: Compared::Skipped(why),
            }]);
        }
    };
    if !rows.iter().any(|row| matches!(row.verdict, Compared::Distance(..) | Compared::Shape { .. })) {
        let want = "a file with tensors that can be recomputed";
        return Err(in_file(Error::BadOption { option: "the file", value: "without results".into(), want }));
    }
    Ok(rows)
}

fn model(
    tensors: &Tensors<'_>,
    model_file: &ModelFile<'_>,
    file: &str,
    args: &Args,
) -> files::Result<Vec<Row>> {
    let input = tensors.tensor("input")?;
    let config = model_file.config();
    let [_, len] = recompute::sizes(&input);
    let mut blocks = Vec::new();
    let weights = model_file.weights(&mut blocks)?;
    // The run takes seconds for a large model, and only signed denominators need it.
    let exact = std::cell::LazyCell::new(|| exact::run(config, &weights, len, &input.data));

    let mut rows = Vec::new();
    for &isa in &args.isa.0 {
        let threads = args.threads.count();
        let mut blocks = Vec::new();
        let model = model_file.model(&mut blocks, Some(isa), threads)?;
        let all = recompute::model(&model, threads, &input)?;
        for Recomputed { name, how, tensor } in &all {
            let Some(stored) = stored(tensors, name)? else { continue };
            let inside = || {
                let exact = exact.iter().find(|(exact, _)| exact == name);
                exact.map_or(Inside::UNKNOWN, |(_, exact)| Inside::new(&stored, exact))
            };
            let denominators = Denominators::of(config.attention, config.feature_map);
            let allowed = || Allowed::new(file, denominators, name, config.final_norm, inside);
            rows.push(row(file, isa, name, how, compared(tensor, &stored, allowed)));
        }
    }
    for name in tensors.names() {
        let parameter = name.contains('.');
        if !parameter && name != "input" && !rows.iter().any(|row| row.stored == name) {
            let verdict = Compared::Skipped("the model does not compute it".into());
            rows.push(Row { file: file.into(), isa: "", stored: name, how: "", verdict });
        }
    }
    Ok(rows)
}

fn kernel(
    attention: AttentionKind,
    tensors: &Tensors<'_>,
    file: &str,
    options: &Options,
    args: &Args,
) -> files::Result<Vec<Row>> {
    let (qkv, stored) = (tensors.tensor("qkv")?, tensors.tensor("out")?);
    let mut rows = Vec::new();
    for &isa in &args.isa.0 {
        let Some(kernel) = Kernel::of_file(attention, options, &qkv, isa, args.threads.count()) else {
            let want = "[B, T, 3 heads head_dim], with num_heads, chunk_size and feature_map in the metadata";
            let value = format!("{:?}", qkv.shape);
            return Err(Error::BadOption { option: "the shape of qkv", value, want });
        };
        for Recomputed { name, how, tensor } in kernel.outputs(&qkv.data)? {
            let inside = || {
                let qkv: Vec<f64> = qkv.data.iter().copied().map(f64::from).collect();
                Inside::new(&stored, &kernel.attention.run(&qkv))
            };
            // Attention computed token by token has the same bits, so the same is allowed.
            let denominators = Denominators::of(attention, kernel.attention.feature_map);
            let allowed = || Allowed::new(file, denominators, &name, false, inside);
            rows.push(row(file, isa, &name, how, compared(&tensor, &stored, allowed)));
        }
    }
    Ok(rows)
}

/// The tensor that a file stores under a name, if there is one.
fn stored<'a>(tensors: &Tensors<'a>, name: &str) -> files::Result<Option<Tensor<'a>>> {
    tensors.shape(name).map(|_| tensors.tensor(name)).transpose()
}

/// Compares shapes first: elements can be compared, and the tolerance computed, only where lengths agree.
fn compared(computed: &Tensor<'_>, stored: &Tensor<'_>, allowed: impl FnOnce() -> Allowed) -> Compared {
    if computed.shape != stored.shape {
        return Compared::Shape { stored: stored.shape.clone(), computed: computed.shape.clone() };
    }
    Compared::Distance(Distance::new(&computed.data, &stored.data), allowed())
}

fn row(file: &str, isa: Isa, stored: &str, how: &'static str, verdict: Compared) -> Row {
    Row { file: file.into(), isa: isa.name(), stored: stored.into(), how, verdict }
}
