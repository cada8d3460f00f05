//! The program `chunkwise`: it runs a model, checks it against the reference's results, measures speed, and
//! reports what this machine supports. It is a library so that the tests and `fuzz/` can call it.
//!
//! Exit codes: 0 if all is well, 1 if a comparison failed, 2 if the arguments or a file cannot be used.

mod bench;
mod check;
mod compare;
mod demo;
mod exact;
mod gpu;
mod info;
mod load;
mod machine;
mod memory;
mod out;
pub mod plot_style;
mod recompute;
mod run;
mod target;
mod tolerance;

use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
use clap::{Parser, Subcommand};

pub use out::Out;

#[derive(Parser)]
#[command(version, about = "Chunked linear attention on CPUs, and the small model it was made for")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a model (without --model: a built-in one that classifies handwritten digits)
    Run(Box<run::Args>),
    /// Recompute the tensors stored in golden files and compare them
    Check(check::Args),
    /// Measure speed and compare it with the limits of the machine
    Bench(Box<bench::Args>),
    /// Show what this machine and this build support
    Info,
}

/// The result of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything succeeded.
    Pass,
    /// A comparison failed.
    Fail,
    /// The arguments or a file could not be used, which has been reported.
    Unusable,
}

impl From<Verdict> for ExitCode {
    fn from(verdict: Verdict) -> Self {
        ExitCode::from(match verdict {
            Verdict::Pass => 0,
            Verdict::Fail => 1,
            Verdict::Unusable => 2,
        })
    }
}

type Outcome = Result<Verdict, Box<dyn std::error::Error>>;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    run(std::env::args_os(), true, &mut Out::new(io::stdout(), io::stderr())).into()
}

/// Runs a command line, which begins with the program's name. If `measure` is false, `bench` neither measures
/// nor plots, and uses the older report that `--compare` names as its result.
pub fn run(words: impl IntoIterator<Item = OsString>, measure: bool, out: &mut Out) -> Verdict {
    match Cli::try_parse_from(words) {
        Ok(cli) => cli.command.run(measure, out),
        Err(error) => usage(&error, out),
    }
}

impl Command {
    fn run(&self, measure: bool, out: &mut Out) -> Verdict {
        let outcome = match self {
            Command::Run(args) => run::run(args, out),
            Command::Check(args) => check::run(args, out),
            Command::Bench(args) => bench::run(args, measure, out),
            Command::Info => info::run(out),
        };
        // Writing the output that is still buffered can fail, too.
        let flushed = out.flush();
        outcome.and_then(|verdict| Ok(flushed.map(|()| verdict)?)).unwrap_or_else(|error| {
            out.complain(&error.to_string());
            Verdict::Unusable
        })
    }
}

/// Prints help as clap formats it, and an error in the arguments as one line, like all other errors.
fn usage(error: &clap::Error, out: &mut Out) -> Verdict {
    let missing = error.kind() == DisplayHelpOnMissingArgumentOrSubcommand;
    if missing || !error.use_stderr() {
        return match error.print().and_then(|()| out.flush()) {
            _ if missing => Verdict::Unusable,
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                out.complain(&format!("standard output: {error}"));
                Verdict::Unusable
            }
            _ => Verdict::Pass,
        };
    }
    let text = error.to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let line: Vec<&str> =
        lines.filter(|line| !line.is_empty() && !line.starts_with("For more information")).collect();
    out.complain(line.join(" ").trim_start_matches("error: "));
    Verdict::Unusable
}
