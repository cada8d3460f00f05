//! Measures how far outputs are from the recurrence in f64 for every feature map, normaliser, type and
//! length, prints tables and draws a plot. docs/numerics.md has the output of this command:
//!
//! ```sh
//! cargo run --release -p chunkwise-cli --example numerics -- --long --plot docs/numerics.svg
//! ```
//!
//! `--long` adds streams of 2^20 tokens; CHUNKWISE_ISA chooses the instruction set of the table and the plot.

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../tests/stream/mod.rs"]
mod stream;

use std::error::Error;

use chunkwise::{Config, FeatureMap, Isa, Normaliser, Rule, Shape, State, Tensors};
use chunkwise_cli::plot_style::{COLOURS, INK, PALE, font, styled};
use common::{Case, Number, element_error, first_difference, narrow, norm_error, widen};
use half::{bf16, f16};
use plotters::coord::Shift;
use plotters::prelude::*;

const DIM: usize = 64;
/// The lengths in the table. Outputs do not depend on later tokens, so one run of the longest sequence has
/// the outputs for all lengths.
const LENGTHS: [usize; 6] = [16, 64, 256, 1024, 4096, 16384];
const LEN: usize = LENGTHS[LENGTHS.len() - 1];
const MAPS: [(&str, FeatureMap); 3] =
    [("elu", FeatureMap::Elu), ("relu", FeatureMap::RELU), ("identity", FeatureMap::Identity)];
const NORMALISERS: [(&str, Normaliser); 3] = [
    ("None", Normaliser::None),
    ("Global", Normaliser::Global { eps: 1e-6 }),
    ("PerChunk 64", Normaliser::per_chunk(64)),
];
/// The documented bound of f32 for elu and relu, and the length up to which it holds.
const BOUND: (f64, usize) = (common::NORM_ERROR, 4096);

/// A type of q, k, v and o: f32, bf16 or f16.
struct Dtype {
    /// Rounds a number to this type.
    round: fn(f32) -> f32,
    outputs: fn(&Case) -> Vec<f32>,
}

const DTYPES: [Dtype; 3] = [dtype::<f32>(), dtype::<bf16>(), dtype::<f16>()];

const fn dtype<E: Number>() -> Dtype {
    Dtype { round: |x| E::narrow(x).widen(), outputs: outputs::<E> }
}

/// Outputs of `forward`. Checks that `decode` gives the same bits.
fn outputs<E: Number>(case: &Case) -> Vec<f32> {
    let attention = case.attention();
    let [q, k, v] = [&case.q, &case.k, &case.v].map(|x| narrow::<E>(x));
    let (mut forward, mut decoded) = (vec![E::default(); v.len()], vec![E::default(); v.len()]);
    let scratch = &mut vec![0.0; attention.scratch_len().max(attention.decode_scratch_len())];
    let tensors = Tensors::new(&q, &k, &v, &mut forward);
    attention.forward(tensors, State::Zero, scratch).expect("legal arguments");
    let state = &mut case.zero_state()[..];
    let rows = q.chunks_exact(DIM).zip(k.chunks_exact(DIM)).zip(v.chunks_exact(DIM));
    for (((q, k), v), o) in rows.zip(decoded.chunks_exact_mut(DIM)) {
        attention.decode(Tensors::new(q, k, v, o), state, scratch).expect("legal arguments");
    }
    let [forward, decoded] = [forward, decoded].map(|o| widen(&o));
    assert_eq!(first_difference(&forward, &decoded), None, "decode differs from forward: {:?}", case.config);
    forward
}

/// Norm error and worst element of the first tokens, for each of [`LENGTHS`].
type Errors = [(f64, f64); LENGTHS.len()];

fn errors(got: &[f32], want: &[f64], size: &[f64]) -> Errors {
    LENGTHS.map(|len| {
        let part = ..len * DIM;
        (norm_error(&got[part], &want[part]), element_error(&got[part], &want[part], &size[part]))
    })
}

/// All errors of one map and normaliser.
struct Measured {
    map: &'static str,
    normaliser: &'static str,
    dtypes: Vec<Of>,
}

/// The errors of one type.
struct Of {
    /// The errors of rounding the inputs and the outputs, with exact arithmetic between them.
    rounding: Errors,
    /// The errors of each instruction set.
    kernels: Vec<(Isa, Errors)>,
}

fn measure(
    (map, feature_map): (&'static str, FeatureMap),
    (name, normaliser): (&'static str, Normaliser),
) -> Measured {
    // Without a normaliser the scale is fla's, because the outputs would otherwise be too large for f16.
    let scale = if normaliser == Normaliser::None { (DIM as f32).sqrt().recip() } else { 1.0 };
    let rule = Rule::linear(normaliser).feature_map(feature_map).scale(scale);
    let case = Case::new(Config::new(rule, Shape::new(1, LEN, 1, DIM, DIM)), 1);
    let (want, _) = case.oracle();
    let (size, _) = case.without_cancellation().oracle();
    let dtypes = DTYPES.iter().map(|dtype| {
        let mut rounded = case.clone();
        [&mut rounded.q, &mut rounded.k, &mut rounded.v]
            .into_iter()
            .for_each(|x| x.iter_mut().for_each(|x| *x = (dtype.round)(*x)));
        let exact: Vec<f32> = rounded.oracle().0.into_iter().map(|o| (dtype.round)(o as f32)).collect();
        let kernels =
            Isa::available().map(|isa| (isa, errors(&(dtype.outputs)(&case.on(isa)), &want, &size)));
        Of { rounding: errors(&exact, &want, &size), kernels: kernels.collect() }
    });
    Measured { map, normaliser: name, dtypes: dtypes.collect() }
}

impl Of {
    fn on(&self, isa: Isa) -> &Errors {
        &self.kernels.iter().find(|(of, _)| *of == isa).expect("every available one").1
    }
}

/// A number in a short form for tables, such as 1.2e-7.
fn number(x: f64) -> String {
    format!("{x:.1e}")
}

fn print_lengths(measured: &[Measured], isa: Isa) {
    println!("| map | normaliser | T | f32 | bf16 | over rounding | f16 | over rounding |");
    println!("|---|---|---|---|---|---|---|---|");
    for Measured { map, normaliser, dtypes } in measured {
        for (at, len) in LENGTHS.iter().enumerate() {
            print!("| {map} | {normaliser} | {len} |");
            for (dtype, of) in dtypes.iter().enumerate() {
                let (norm, worst) = of.on(isa)[at];
                print!(" {} ({}) |", number(norm), number(worst));
                if dtype > 0 {
                    print!(" {:.2} |", norm / of.rounding[at].0);
                }
            }
            println!();
        }
    }
}

/// The worst of all maps and normalisers for each instruction set, up to the documented length.
fn print_sets(measured: &[Measured]) {
    println!(
        "| instruction set | f32 norm error | f32 worst element | 16 bits over rounding |\n|---|---|---|---|"
    );
    for isa in Isa::available() {
        let (mut norm, mut worst, mut over) = (0.0_f64, 0.0_f64, 0.0_f64);
        for Measured { dtypes, .. } in measured {
            for at in (0..LENGTHS.len()).filter(|at| LENGTHS[*at] <= BOUND.1) {
                let of = dtypes[0].on(isa)[at];
                (norm, worst) = (norm.max(of.0), worst.max(of.1));
                for of in &dtypes[1..] {
                    over = over.max(of.on(isa)[at].0 / of.rounding[at].0);
                }
            }
        }
        println!("| {isa} | {} | {} | {over:.2} |", number(norm), number(worst));
    }
}

fn print_streams() {
    let isas: Vec<Isa> = Isa::available().collect();
    println!("| tokens | normaliser | plain | compensated forward | compensated token by token |");
    println!("|---|---|---|---|---|");
    for tokens in [stream::Tokens::Normal, stream::Tokens::Same] {
        for (name, normaliser) in NORMALISERS {
            let streams = stream::streams(stream::config(normaliser, tokens), &isas);
            let worst = |kind, forward| {
                let of = streams.iter().filter(|stream| (stream.kind, stream.forward) == (kind, forward));
                of.map(|stream| stream.error).fold(0.0, f64::max)
            };
            let [plain, decoded] = [true, false].map(|forward| worst("plain", forward));
            assert_eq!(plain, decoded, "decode differs from forward: {tokens:?}, {name}");
            let [forward, decoded] = [true, false].map(|forward| number(worst("compensated", forward)));
            println!("| {tokens:?} | {name} | {} | {forward} | {decoded} |", number(plain));
        }
    }
}

/// The ranges of the axes, both logarithmic: tokens, and errors in a unit that gives short labels.
const X: (f64, f64) = (12.0, 22_000.0);
const Y: (f64, f64) = (0.45, 45.0);
const UNIT: f64 = 1e-7;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

fn plot(path: &str, measured: &[Measured], isa: Isa) -> Drawn {
    let root = SVGBackend::new(path, (1200, 560)).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, body) = root.split_vertically(84);
    head.draw(&Text::new("Norm error of f32 against the recurrence in f64", (26, 18), font(24, INK)))?;
    let about = format!("{isa}, one head, K = V = {DIM}, standard normal numbers, from the zero state");
    head.draw(&Text::new(about, (26, 52), font(15, PALE)))?;
    let (panels, legend) = body.split_vertically(420);
    for ((name, _), area) in NORMALISERS.iter().zip(panels.split_evenly((1, 3))) {
        let of: Vec<&Measured> = measured.iter().filter(|m| m.normaliser == *name).collect();
        panel(&area, name, &of, isa)?;
    }
    draw_legend(&legend)?;
    root.present()?;
    Ok(())
}

fn panel(area: &Area<'_>, name: &str, measured: &[&Measured], isa: Isa) -> Drawn {
    let mut chart = ChartBuilder::on(area)
        .caption(format!("normaliser {name}"), font(17, INK))
        .margin_left(10)
        .margin_right(16)
        .x_label_area_size(52)
        .y_label_area_size(72)
        .build_cartesian_2d((X.0..X.1).log_scale().base(4.0), (Y.0..Y.1).log_scale().base(2.0))?;
    styled(
        chart
            .configure_mesh()
            .x_desc("T (tokens)")
            .y_desc(format!("norm error (in {UNIT:e})"))
            .x_labels(8)
            .y_labels(10)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| y.to_string()),
    )
    .draw()?;

    let (bound, end) = (BOUND.0 / UNIT, BOUND.1 as f64);
    chart.draw_series(DashedLineSeries::new([(X.0, bound), (end, bound)], 2, 3, PALE.stroke_width(1)))?;
    chart.draw_series([Text::new("documented bound", (X.0 * 1.3, bound * 1.22), font(13, PALE))])?;

    for (Measured { dtypes, .. }, colour) in measured.iter().zip(COLOURS) {
        let errors = LENGTHS.iter().zip(dtypes[0].on(isa));
        let points: Vec<(f64, f64)> = errors.map(|(len, (norm, _))| (*len as f64, norm / UNIT)).collect();
        chart.draw_series(points.iter().map(|at| Circle::new(*at, 4, colour.filled())))?;
        chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
    }
    Ok(())
}

/// Draws one legend for all panels, with the colours of the maps.
fn draw_legend(area: &Area<'_>) -> Drawn {
    const Y: i32 = 24;
    let mut x = 84;
    for ((name, _), colour) in MAPS.iter().zip(COLOURS) {
        area.draw(&Rectangle::new([(x, Y - 6), (x + 26, Y + 6)], colour.filled()))?;
        area.draw(&Text::new(*name, (x + 36, Y - 8), font(15, INK)))?;
        x += 150;
    }
    Ok(())
}

fn main() -> Drawn {
    let (mut long, mut path) = (false, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--long" => long = true,
            "--plot" => path = Some(args.next().ok_or("--plot takes a path")?),
            _ => return Err(format!("unknown option {arg}; the options are --long and --plot PATH").into()),
        }
    }
    let isa = Isa::choose()?;
    let cases = NORMALISERS.iter().flat_map(|normaliser| MAPS.iter().map(|map| (*map, *normaliser)));
    let measured: Vec<Measured> = cases.map(|(map, normaliser)| measure(map, normaliser)).collect();
    println!("Norm error, and in brackets the worst element, on {isa}:\n");
    print_lengths(&measured, isa);
    println!("\nThe worst of all maps and normalisers up to {} tokens:\n", BOUND.1);
    print_sets(&measured);
    if long {
        println!(
            "\nNorm error of the last {} of {} tokens, the worst of all instruction sets:\n",
            stream::JUDGED,
            stream::TOKENS
        );
        print_streams();
    }
    if let Some(path) = path {
        plot(&path, &measured, isa)?;
    }
    Ok(())
}
