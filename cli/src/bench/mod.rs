//! `bench`: measures speed as a share of the machine's limits, the ceilings. Ceilings and work are measured
//! alternately, round by round, so that other load on the machine slows both.

mod ceiling;
mod gradients;
mod inputs;
mod job;
mod machine;
mod memory;
mod numbers;
mod plot;
mod report;
mod shape;
mod show;
mod spec;
mod stats;
mod untrained;
mod work;

use std::io::{IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use chunkwise::Isa;
use chunkwise::bench_support::start_threads;

use self::ceiling::{Ceiling, What, levels};
use self::job::Job;
use self::machine::Machine;
use self::memory::{Aligned, LINE};
use self::report::{Limit, Measurement, Report};
use self::shape::Shapes;
use self::show::Format;
use self::spec::{Dtype, Map, Norm, Op, Packing, RuleName, Spec, Words};
use super::machine::{Isas, isas};
use super::out::Out;
use super::target::Target;
use super::{Outcome, Verdict};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Operations to measure
    #[arg(long, value_delimiter = ',', default_value = "prefill", value_name = "OP,..")]
    op: Vec<Op>,
    /// Rules of prefill, decode and draft [default: the rule of a layer that --shape names, else linear]
    #[arg(long, value_delimiter = ',', value_name = "RULE,..")]
    rule: Vec<RuleName>,
    /// Sizes B,H,T,K,V; or B,H,T,D where K = V = D; or B,H,HV,T,K,V where q and k have H heads and v has HV;
    /// or the name of a layer, such as qwen3.5-4b; or layers for all of them. Can be given more than once
    /// [default: some for each operation]
    #[arg(long, value_name = "B,H,T,K,V|LAYER")]
    shape: Vec<Shapes>,
    /// Types of q, k, v and o, or of a model's weights
    #[arg(long, value_delimiter = ',', default_value = "f32", value_name = "TYPE,..")]
    dtype: Vec<Dtype>,
    /// Feature maps of the linear rule and of models
    #[arg(long, value_delimiter = ',', default_value = "elu", value_name = "MAP,..")]
    map: Vec<Map>,
    /// Normalisers of the linear rule (models always use per-chunk)
    #[arg(long, value_delimiter = ',', default_value = "global", value_name = "NORM,..")]
    norm: Vec<Norm>,
    /// Tokens in a chunk, for per-chunk and models
    #[arg(long, value_delimiter = ',', default_value = "64", value_name = "N,..")]
    chunk: Vec<NonZeroUsize>,
    /// Layouts of the dense weights of model and step
    #[arg(long, value_delimiter = ',', default_value = "stored,packed", value_name = "HOW,..")]
    weights: Vec<Packing>,
    /// Bytes by which the state of decode and draft is off a cache line, a multiple of 4 below 64
    #[arg(long, value_delimiter = ',', default_value = "0", value_name = "BYTES,..", value_parser = state_offset)]
    state_offset: Vec<usize>,
    /// Instruction sets, or all [default: CHUNKWISE_ISA, else the best available]
    #[arg(long, value_name = "all|NAME,..", value_parser = isas)]
    isa: Option<Isas>,
    /// Maximum numbers of threads
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "N,..", value_parser = threads)]
    threads: Vec<NonZeroUsize>,
    /// Rounds, each with one reading of every ceiling and work [default: 40, or as many as --time allows]
    #[arg(long, value_name = "N")]
    rounds: Option<NonZeroUsize>,
    /// Time after which no further round begins, such as 30s
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    time: Option<Duration>,
    /// Fail if the error of a result exceeds the documented bound
    #[arg(long)]
    check: bool,
    /// Format of the report
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// File to write the report to; the table is printed as well
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Older report in JSON to compare with
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// File for a plot: a roofline, and speed against T, K or chunk if at least three are measured
    #[arg(long, value_name = "SVG")]
    plot: Option<PathBuf>,
}

/// Parses the number of bytes by which a state of f32 is off a cache line.
fn state_offset(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(bytes) if bytes < LINE && bytes.is_multiple_of(size_of::<f32>()) => Ok(bytes),
        _ => Err(format!("expected a multiple of {} below {LINE}", size_of::<f32>())),
    }
}

/// The most threads that are worth measuring; a larger number is a mistake.
const MOST_THREADS: usize = 1024;

fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let count = text.parse().ok().filter(|count: &NonZeroUsize| count.get() <= MOST_THREADS);
    count.ok_or(format!("expected a whole number from 1 to {MOST_THREADS}"))
}

impl Args {
    /// The files to write: --output and --plot.
    fn targets(&self) -> Result<[Option<Target>; 2], String> {
        let target = |path: &Option<PathBuf>, others: [&Option<PathBuf>; 2]| {
            let others: Vec<&Path> = others.into_iter().flatten().map(|path| &**path).collect();
            path.as_ref().map(|path| Target::new(path, &others)).transpose()
        };
        let (compare, output, plot) = (&self.compare, &self.output, &self.plot);
        Ok([target(output, [compare, plot])?, target(plot, [compare, output])?])
    }

    /// The older report.
    fn old(&self) -> Result<Option<Report>, String> {
        self.compare.as_deref().map(Report::read).transpose()
    }

    /// Prints the report, and writes the files.
    fn tell(
        &self,
        mut report: Report,
        old: Option<Report>,
        [output, plot]: [Option<Target>; 2],
        out: &mut Out,
    ) -> Outcome {
        if let Some(old) = &old {
            report.compare(old);
            if old.machine.cpu != report.machine.cpu {
                out.complain(&format!("the older report is from another machine, {}", old.machine.cpu));
            }
        }
        // An error in one output does not prevent the others, because a measurement takes long.
        let text = show::show(&report, self.format)?;
        let (printed, written) = match output {
            None => (text, Ok(())),
            Some(output) => (show::show(&report, Format::Table)?, output.write(text.as_bytes())),
        };
        let plotted = match plot {
            None => Ok(()),
            Some(target) => plot::plot(&report).and_then(|svg| Ok(target.write(svg.as_bytes())?)),
        };
        write!(out, "{printed}")?;
        written?;
        plotted?;
        let wrong = report.measurements.iter().filter(|measurement| !measurement.is_right()).count();
        Ok(if self.check && wrong > 0 { Verdict::Fail } else { Verdict::Pass })
    }

    /// Everything that is to be measured. For each spec alone there is enough memory.
    fn specs(&self) -> Result<Vec<Spec>, Box<dyn std::error::Error>> {
        let isas = match &self.isa {
            Some(Isas(isas)) => isas.clone(),
            None => vec![Isa::choose()?],
        };
        let words = Words {
            ops: self.op.clone(),
            rules: self.rule.clone(),
            shapes: self.shape.iter().flat_map(|Shapes(shapes)| shapes).copied().collect(),
            dtypes: self.dtype.clone(),
            maps: self.map.clone(),
            norms: self.norm.clone(),
            chunks: self.chunk.iter().copied().map(usize::from).collect(),
            weights: self.weights.clone(),
            state_offsets: self.state_offset.clone(),
            isas: isas.iter().map(|isa| isa.name().into()).collect(),
            threads: self.threads.iter().copied().map(usize::from).collect(),
        };
        let specs = words.specs()?;
        for spec in &specs {
            job::check(spec).map_err(|error| format!("{}: {error}", spec.label()))?;
        }
        Ok(specs)
    }
}

/// The number of rounds by default.
const ROUNDS: usize = 40;

pub(crate) fn run(args: &Args, measure: bool, out: &mut Out) -> Outcome {
    let (old, targets) = (args.old()?, args.targets()?);
    if !measure {
        args.specs()?;
        let [output, _] = targets;
        return old.clone().map_or(Ok(Verdict::Pass), |report| args.tell(report, old, [output, None], out));
    }
    if let Err(error) = stop_on_interrupt() {
        out.complain(&format!("Ctrl-C will end the program without a report: {error}"));
    }
    let report = self::measure(args)?;
    args.tell(report, old, targets, out)
}

/// Whether Ctrl-C has been pressed.
static STOP: AtomicBool = AtomicBool::new(false);

/// The first Ctrl-C ends the measurement after the current round, the second one ends the program.
fn stop_on_interrupt() -> Result<(), Box<dyn std::error::Error>> {
    // ctrlc takes the signal before it starts the thread that waits for it, and keeps it if that fails, so
    // that Ctrl-C would do nothing. A thread is therefore started here first.
    std::thread::Builder::new().spawn(|| ())?.join().map_err(|_| "a thread failed")?;
    ctrlc::set_handler(|| {
        if STOP.swap(true, Relaxed) {
            std::process::exit(130);
        }
    })?;
    Ok(())
}

fn measure(args: &Args) -> Result<Report, Box<dyn std::error::Error>> {
    let machine = Machine::new();
    let specs = args.specs()?;
    if let Some(most) = specs.iter().map(|spec| spec.threads).max().filter(|most| *most > 1) {
        // The threads are started before anything is timed.
        start_threads(most).map_err(|error| format!("{most} threads can't be started: {error}"))?;
    }

    let mut progress = Progress::new();
    let (mut ceilings, mut jobs) = (Vec::new(), Vec::new());
    for (at, spec) in specs.iter().enumerate() {
        progress.say(&format!("preparing {} of {}: {}", at + 1, specs.len(), spec.label()));
        let isa = Isa::from_name(&spec.isa)?;
        let levels = levels(&machine.caches, spec.threads);
        let job = Job::new(spec, &levels).map_err(|error| format!("{}: {error}", spec.label()))?;
        let whats = [What::Fma].into_iter().chain(levels.into_iter().map(|level| level.what));
        for what in whats.chain([job.memory.clone()]) {
            let same = |old: &Ceiling| (old.isa, old.threads, &old.what) == (isa, spec.threads, &what);
            if !ceilings.iter().any(same) {
                ceilings.push(Ceiling::new(isa, spec.threads, what));
            }
        }
        jobs.push(job);
    }
    // The memory that ceilings read and write.
    let most = ceilings.iter().map(Ceiling::memory).max().unwrap_or(0);
    super::memory::check(most.checked_mul(size_of::<f32>()))?;
    let mut memory = Aligned::filled(1.0, most);

    let (date, begin) = (SystemTime::now(), Instant::now());
    let most = args.rounds.map_or(if args.time.is_some() { usize::MAX } else { ROUNDS }, usize::from);
    let mut rounds = 0;
    while rounds < most {
        progress.say(&match most {
            usize::MAX => format!("round {}", rounds + 1),
            most => format!("round {} of {most}", rounds + 1),
        });
        round(rounds, &mut ceilings, &mut jobs, &mut memory);
        rounds += 1;
        if STOP.load(Relaxed) || args.time.is_some_and(|time| begin.elapsed() >= time) {
            break;
        }
    }
    progress.clear();

    let words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    let limits: Vec<Limit> = ceilings.iter().map(Limit::new).collect();
    Ok(Report {
        version: env!("CARGO_PKG_VERSION").into(),
        date: humantime::format_rfc3339_seconds(date).to_string(),
        command: std::iter::once("chunkwise".into()).chain(words).collect(),
        machine,
        rounds,
        interrupted: STOP.load(Relaxed) && rounds < most,
        measurements: jobs.iter().map(|job| Measurement::new(job, &limits)).collect(),
        ceilings: limits,
    })
}

/// Takes one reading of everything. Every other round runs in reverse order, so that no work always follows
/// the same other work.
fn round(at: usize, ceilings: &mut [Ceiling], jobs: &mut [Job], memory: &mut [f32]) {
    let all = ceilings.len() + jobs.len();
    for i in 0..all {
        let i = if at.is_multiple_of(2) { i } else { all - 1 - i };
        match i.checked_sub(ceilings.len()) {
            None => ceilings[i].measure(memory),
            Some(i) => jobs[i].measure(),
        }
    }
}

/// A line of progress that is overwritten; it is shown only on a terminal.
struct Progress {
    terminal: bool,
}

impl Progress {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal() }
    }

    fn say(&mut self, what: &str) {
        if self.terminal {
            // The cursor returns to the beginning of the line, and the old text is erased.
            let _ = write!(std::io::stderr(), "\r\x1b[K{what}");
        }
    }

    fn clear(&mut self) {
        self.say("");
    }
}
