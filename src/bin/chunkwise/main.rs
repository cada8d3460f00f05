//! The command line: run a model, check it against the reference's answers, measure speed, say what this machine has.
//!
//! Exit codes: 0 all is well, 1 a comparison failed, 2 the arguments or a file can't be used.

mod bench;
mod check;
mod compare;
mod demo;
mod exact;
mod gpu;
mod info;
mod load;
mod machine;
mod out;
mod recompute;
mod run;
mod tolerance;

use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use out::Out;

#[derive(Parser)]
#[command(version, about = "Chunked linear attention on CPUs, and the small model it was made for")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a model; without --model, the built-in one that reads handwritten digits
    Run(Box<run::Args>),
    /// Recompute the tensors stored in golden files and compare
    Check(check::Args),
    /// Measure speed beside what the machine allows
    Bench(Box<bench::Args>),
    /// Say what this machine and this build have
    Info,
}

/// What a command found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Pass,
    Fail,
    /// Something could not be looked at, and has been complained about.
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

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let mut out = Out::new();
    let outcome = match cli.command {
        Command::Run(args) => run::run(&args, &mut out),
        Command::Check(args) => check::run(&args, &mut out),
        Command::Bench(args) => bench::run(&args, &mut out),
        Command::Info => info::run(&mut out),
    };
    outcome
        .unwrap_or_else(|error| {
            complain(&error.to_string());
            Verdict::Unusable
        })
        .into()
}

/// One line on stderr. Nobody may be listening.
fn complain(what: &str) {
    let _ = writeln!(std::io::stderr(), "chunkwise: {what}");
}

/// Help as clap writes it; a mistake in the arguments in one line, as all other mistakes.
fn usage(error: &clap::Error) -> ExitCode {
    let help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if help || !error.use_stderr() {
        let _ = error.print();
        return if help { Verdict::Unusable.into() } else { ExitCode::SUCCESS };
    }
    let text = error.to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let line: Vec<&str> =
        lines.filter(|line| !line.is_empty() && !line.starts_with("For more information")).collect();
    complain(line.join(" ").trim_start_matches("error: "));
    Verdict::Unusable.into()
}
