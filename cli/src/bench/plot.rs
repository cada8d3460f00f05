//! The plot: a roofline, and speed against T, K or chunk where at least three sizes are measured.

use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::report::{Limit, Measurement, Report};
use super::shape::Shape;
use super::show::digits;
use super::spec::Spec;
use crate::plot_style::{COLOURS, INK, PALE, font, styled};

const WIDTH: u32 = 1200;
const HEAD: u32 = 84;
const PANEL: u32 = 470;
/// The pixels to the right of a chart, for its labels.
const MARGIN: u32 = 380;
/// Pixels from one label to the next.
const LINE: u32 = 18;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

/// The plot as an SVG.
pub(super) fn plot(report: &Report) -> Result<String, Box<dyn Error>> {
    let mut svg = String::new();
    let variants = Variants::new(&report.measurements);
    let points = points(&report.measurements, &variants);
    let series = Axis::ALL.into_iter().map(|axis| (axis, series(&report.measurements, &variants, axis)));
    let second = series.into_iter().find(|(_, series)| !series.is_empty());

    // A chart is taller where it has more labels than fit beside it.
    let height = |labels: usize| PANEL.max(120 + LINE * labels as u32);
    let first_height = height(points.len());
    let second_height = second.as_ref().map_or(0, |(_, series)| height(series.len()));
    let root =
        SVGBackend::with_string(&mut svg, (WIDTH, HEAD + first_height + second_height)).into_drawing_area();
    root.fill(&WHITE)?;
    let Report { machine, version, date, rounds, .. } = report;
    root.draw(&Text::new("Speed compared with the limits of the machine", (26, 18), font(24, INK)))?;
    let day = date.split('T').next().unwrap_or_default();
    let about =
        format!("{}, chunkwise {version}, {day}, best of {rounds} rounds{}", machine.cpu, variants.common);
    root.draw(&Text::new(about, (26, 52), font(15, PALE)))?;

    let (_, body) = root.split_vertically(HEAD);
    let (first, rest) = body.split_vertically(first_height);
    roofline(&root, &first, &report.ceilings, &points, &variants)?;
    if let Some((axis, series)) = second {
        against(&root, &rest, axis, &series)?;
    }
    root.present()?;
    drop((root, first, rest, body));
    Ok(svg)
}

/// How measurements are distinguished: instruction sets and threads by colour, and everything else that
/// differs in words.
struct Variants {
    machines: Vec<(String, usize)>,
    dtypes: bool,
    maps: bool,
    norms: bool,
    /// The words that are the same everywhere.
    common: String,
}

impl Variants {
    fn new(all: &[Measurement]) -> Self {
        let mut machines = Vec::new();
        for Measurement { spec, .. } in all {
            let machine = (spec.isa.clone(), spec.threads);
            if !machines.contains(&machine) {
                machines.push(machine);
            }
        }
        let differ = |word: &dyn Fn(&Spec) -> String| {
            let mut words =
                all.iter().map(|measurement| word(&measurement.spec)).filter(|word| !word.is_empty());
            let first = words.next().unwrap_or_default();
            (words.any(|word| word != first), first)
        };
        let (dtypes, dtype) = differ(&|spec| spec.dtype.to_string());
        let (maps, map) = differ(&|spec| spec.map.map_or(String::new(), |map| map.to_string()));
        let (norms, norm) = differ(&normaliser);
        let mut common = String::new();
        for (differs, word) in [(dtypes, dtype), (maps, map), (norms, norm)] {
            if !differs && !word.is_empty() {
                common += &format!(", {word}");
            }
        }
        if let [machine] = &machines[..] {
            common += &format!(", {}", named(machine));
        }
        Self { machines, dtypes, maps, norms, common }
    }

    fn colour(&self, isa: &str, threads: usize) -> RGBColor {
        let at = self.machines.iter().position(|machine| (&machine.0[..], machine.1) == (isa, threads));
        COLOURS[at.unwrap_or(0) % COLOURS.len()]
    }

    fn words(&self, spec: &Spec) -> String {
        let mut words = Vec::new();
        if self.dtypes {
            words.push(spec.dtype.to_string());
        }
        if let Some(map) = spec.map.filter(|_| self.maps) {
            words.push(map.to_string());
        }
        if self.norms {
            words.push(normaliser(spec));
        }
        words.extend(spec.weights.map(|weights| weights.to_string()));
        words.extend(spec.state_words());
        if self.machines.len() > 1 {
            words.push(named(&(spec.isa.clone(), spec.threads)));
        }
        words
            .into_iter()
            .filter(|word| !word.is_empty())
            .fold(String::new(), |all, word| format!("{all} {word}"))
    }
}

fn named((isa, threads): &(String, usize)) -> String {
    if *threads == 1 { isa.clone() } else { format!("{isa} x {threads} threads") }
}

fn normaliser(spec: &Spec) -> String {
    match (spec.norm, spec.chunk) {
        (_, Some(chunk)) => format!("chunk {chunk}"),
        (Some(norm), None) => norm.to_string(),
        (None, None) => String::new(),
    }
}

/// A measurement in the roofline.
struct Point {
    /// Executed flops a byte, and executed GFLOP/s.
    at: (f64, f64),
    label: String,
    colour: RGBColor,
}

fn points(all: &[Measurement], variants: &Variants) -> Vec<Point> {
    let point = |measurement: &Measurement| {
        let Measurement { spec, flops, bytes, gflops, bound, .. } = measurement;
        let Spec { shape, isa, threads, .. } = spec;
        let (work, words) = (spec.work(), variants.words(spec));
        let label = format!("{work} {shape}{words}: {:.0} % of {}", bound.best_percent, bound.ceiling);
        Point { at: (flops / bytes, gflops.best), label, colour: variants.colour(isa, *threads) }
    };
    all.iter().map(point).collect()
}

fn roofline(
    root: &Area<'_>,
    area: &Area<'_>,
    limits: &[Limit],
    points: &[Point],
    variants: &Variants,
) -> Drawn {
    let fma: Vec<&Limit> = limits.iter().filter(|limit| limit.bytes == 0).collect();
    let peak = fma.iter().map(|limit| limit.rate.best).fold(0.0, f64::max);
    let range = |at: fn(&Point) -> f64, low: f64, high: f64| {
        points.iter().map(at).fold((low, high), |(low, high), x| (low.min(x / 2.0), high.max(x * 2.0)))
    };
    let (x, y) = (range(|p| p.at.0, 1.0 / 16.0, 128.0), range(|p| p.at.1, peak / 64.0, peak * 2.0));
    let mut chart = ChartBuilder::on(area)
        .margin_left(10)
        .margin_right(MARGIN)
        .margin_top(8)
        .x_label_area_size(52)
        .y_label_area_size(72)
        .build_cartesian_2d((x.0..x.1).log_scale().base(2.0), (y.0..y.1).log_scale().base(2.0))?;
    styled(
        chart
            .configure_mesh()
            .x_desc("executed flops per byte that must be moved")
            .y_desc("executed GFLOP/s")
            .x_labels(12)
            .y_labels(10)
            .x_label_formatter(&|x| x.to_string())
            .y_label_formatter(&|y| digits(*y)),
    )
    .draw()?;

    for (at, Limit { isa, threads, rate, .. }) in fma.iter().enumerate() {
        let colour = variants.colour(isa, *threads);
        chart.draw_series(LineSeries::new([(x.0, rate.best), (x.1, rate.best)], colour.stroke_width(2)))?;
        let what = format!("FMA, {}, {} GFLOP/s", named(&(isa.clone(), *threads)), digits(rate.best));
        let (left, line) = chart.backend_coord(&(x.0, rate.best));
        // The labels are placed side by side, because two sets may be equally fast.
        let left = left + 8 + at as i32 % 3 * 235;
        root.draw(&Text::new(what, (left, line - 17), font(13, colour)))?;
    }
    let mut labels = Vec::new();
    for Limit { name, rate, .. } in levels(limits, &fma) {
        let roof = |x: f64| (x, rate.best * x);
        let (left, right) = (x.0.max(y.0 / rate.best), x.1.min(peak / rate.best));
        chart.draw_series(DashedLineSeries::new([roof(left), roof(right)], 5, 4, PALE.stroke_width(1)))?;
        let at = chart.backend_coord(&roof(left));
        labels.push(Label { at, text: format!("{name}, {} GB/s", digits(rate.best)), colour: PALE });
    }
    // The labels are below the lines, one under another.
    let bottom = chart.backend_coord(&(x.0, y.0)).1;
    let room = (bottom - (LINE * labels.len() as u32) as i32 - 8, bottom - LINE as i32);
    let column = chart.backend_coord(&(x.0 * 32.0, y.0)).0;
    draw_labels(root, labels, column, room)?;

    chart.draw_series(points.iter().map(|point| Circle::new(point.at, 5, point.colour.filled())))?;
    let labels = points.iter().map(|point| Label {
        at: chart.backend_coord(&point.at),
        text: point.label.clone(),
        colour: point.colour,
    });
    let (labels, right) = (labels.collect(), chart.backend_coord(&(x.1, y.0)).0);
    let top = chart.backend_coord(&(x.0, y.1)).1;
    draw_labels(root, labels, right + 14, (top, bottom))
}

/// The ceilings of memory on the fastest instruction set and number of threads: more lines would hide the points.
fn levels<'a>(limits: &'a [Limit], fma: &[&'a Limit]) -> Vec<&'a Limit> {
    let Some(fastest) = fma.iter().max_by(|a, b| a.rate.best.total_cmp(&b.rate.best)) else {
        return Vec::new();
    };
    let names = ["L1", "L2", "L3", "DRAM"].map(|level| format!("update {level}"));
    let on_fastest = |limit: &&Limit| (&limit.isa, limit.threads) == (&fastest.isa, fastest.threads);
    limits.iter().filter(on_fastest).filter(|limit| names.contains(&limit.name)).collect()
}

/// A text for a point in a chart.
struct Label {
    at: (i32, i32),
    text: String,
    colour: RGBColor,
}

/// Draws labels in a column from `x` on, each as near to its point as the others allow, and a thin line from
/// each to its point.
fn draw_labels(root: &Area<'_>, mut labels: Vec<Label>, x: i32, (top, bottom): (i32, i32)) -> Drawn {
    labels.sort_by_key(|label| label.at.1);
    let line = LINE as i32;
    let mut rows = Vec::new();
    let mut next = top;
    for Label { at, .. } in &labels {
        rows.push(next.max(at.1));
        next = next.max(at.1) + line;
    }
    let mut last = bottom;
    for row in rows.iter_mut().rev() {
        *row = (*row).min(last);
        last = *row - line;
    }
    for (Label { at, text, colour }, row) in labels.into_iter().zip(rows) {
        root.draw(&PathElement::new([at, (x - 4, row)], colour.mix(0.45).stroke_width(1)))?;
        root.draw(&Text::new(text, (x, row - 8), font(13, colour)))?;
    }
    Ok(())
}

/// The size against which speed is drawn.
#[derive(Clone, Copy, PartialEq)]
enum Axis {
    Len,
    Dim,
    Chunk,
}

impl Axis {
    const ALL: [Axis; 3] = [Axis::Len, Axis::Dim, Axis::Chunk];

    fn of(self, spec: &Spec) -> Option<usize> {
        match self {
            Axis::Len => Some(spec.shape.len),
            Axis::Dim => Some(spec.shape.key),
            Axis::Chunk => spec.chunk,
        }
    }

    /// The spec without this size, equal for all measurements that differ by this size alone.
    fn without(self, spec: &Spec) -> Spec {
        let Spec { shape, chunk, .. } = *spec;
        let (shape, chunk) = match self {
            Axis::Len => (Shape { len: 0, ..shape }, chunk),
            Axis::Dim => (Shape { key: 0, value: 0, ..shape }, chunk),
            Axis::Chunk => (shape, None),
        };
        Spec { shape, chunk, ..spec.clone() }
    }

    fn name(self) -> &'static str {
        match self {
            Axis::Len => "T (tokens)",
            Axis::Dim => "K (elements of a head)",
            Axis::Chunk => "chunk (tokens)",
        }
    }

    /// The label of a series: what its measurements have in common.
    fn label(self, spec: &Spec) -> String {
        let words = match self {
            Axis::Len => [Some("T"), None, None],
            Axis::Dim => [None, Some("K"), Some("V")],
            Axis::Chunk => [None; 3],
        };
        format!("{} {}", spec.work(), spec.shape.with_words(words))
    }
}

/// Measurements that differ by one size.
struct Series {
    label: String,
    colour: RGBColor,
    /// The size, and the GFLOP/s (recurrent where there are any) by the median, the p90 and the p10 of the
    /// times.
    points: Vec<(f64, [f64; 3])>,
}

/// The measurements as series along an axis. A series with fewer than three sizes is left out, because it
/// shows nothing.
fn series(all: &[Measurement], variants: &Variants, axis: Axis) -> Vec<Series> {
    let mut groups: Vec<(Spec, Series)> = Vec::new();
    for Measurement { spec, flops, recurrent_flops, seconds, .. } in all {
        let Some(at) = axis.of(spec) else { continue };
        let flops = recurrent_flops.unwrap_or(*flops);
        let rates = [seconds.median, seconds.p90, seconds.p10].map(|seconds| 1e-9 * flops / seconds);
        let (key, point) = (axis.without(spec), (at as f64, rates));
        match groups.iter_mut().find(|(other, _)| *other == key) {
            Some((_, series)) => series.points.push(point),
            None => {
                let label = axis.label(spec) + &variants.words(spec);
                let colour = COLOURS[groups.len() % COLOURS.len()];
                groups.push((key, Series { label, colour, points: vec![point] }));
            }
        }
    }
    let mut all: Vec<Series> = groups.into_iter().map(|(_, series)| series).collect();
    all.retain(|series| series.points.len() >= 3);
    all.iter_mut().for_each(|series| series.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    all
}

fn against(root: &Area<'_>, area: &Area<'_>, axis: Axis, all: &[Series]) -> Drawn {
    let points = || all.iter().flat_map(|series| &series.points);
    let x = points().fold((f64::INFINITY, 0.0_f64), |(low, high), (x, _)| (low.min(*x), high.max(*x)));
    let x = (x.0 / 1.2, x.1 * 1.2);
    let y = (0.0, 1.1 * points().map(|(_, [.., high])| *high).fold(0.0, f64::max));
    let mut chart = ChartBuilder::on(area)
        .margin_left(10)
        .margin_right(MARGIN)
        .margin_top(24)
        .x_label_area_size(52)
        .y_label_area_size(72)
        .build_cartesian_2d((x.0..x.1).log_scale().base(2.0), y.0..y.1)?;
    styled(
        chart
            .configure_mesh()
            .x_desc(axis.name())
            .y_desc("GFLOP/s (for attention: recurrent), median, p10 to p90")
            .x_labels(12)
            .y_labels(8)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y:.0}")),
    )
    .draw()?;
    let mut labels = Vec::new();
    for Series { label, colour, points } in all {
        let medians: Vec<(f64, f64)> = points.iter().map(|(x, [median, ..])| (*x, *median)).collect();
        let spreads =
            points.iter().map(|(x, [_, low, high])| PathElement::new([(*x, *low), (*x, *high)], colour));
        chart.draw_series(spreads)?;
        chart.draw_series(LineSeries::new(medians.clone(), colour.stroke_width(2)))?;
        chart.draw_series(medians.iter().map(|at| Circle::new(*at, 4, colour.filled())))?;
        let end = medians[medians.len() - 1];
        labels.push(Label { at: chart.backend_coord(&end), text: label.clone(), colour: *colour });
    }
    let (right, bottom) = chart.backend_coord(&(x.1, y.0));
    let top = chart.backend_coord(&(x.0, y.1)).1;
    draw_labels(root, labels, right + 14, (top, bottom))
}
