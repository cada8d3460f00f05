//! The results of a run as they are stored: readings, and what follows from them.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ceiling::{Ceiling, What};
use super::job::Job;
use super::machine::Machine;
use super::spec::Spec;
use super::stats::Summary;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(super) version: String,
    /// The time at which the first round began, in UTC.
    pub(super) date: String,
    /// The name and the arguments of the program.
    pub(super) command: Vec<String>,
    pub(super) machine: Machine,
    /// The number of readings of each ceiling and measurement.
    pub(super) rounds: usize,
    /// Whether the run was stopped before all rounds were done.
    pub(super) interrupted: bool,
    pub(super) ceilings: Vec<Limit>,
    pub(super) measurements: Vec<Measurement>,
}

/// A ceiling with its readings.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Limit {
    pub(super) isa: String,
    pub(super) threads: usize,
    pub(super) name: String,
    /// The footprint of all threads in bytes; 0 for arithmetic.
    pub(super) bytes: usize,
    pub(super) unit: String,
    pub(super) rate: Summary,
    pub(super) readings: Vec<f64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Measurement {
    #[serde(flatten)]
    pub(super) spec: Spec,
    /// The flops that one run executes. Those of a second state that the per-chunk normaliser reads are
    /// counted; those of rows that a model leaves out are not.
    pub(super) flops: f64,
    /// The flops of the recurrence in one run of attention: 4 K V for each token and head of the state, 6 K V
    /// with the delta rule, 16 K V with a backward, whatever is executed.
    #[serde(default)]
    pub(super) recurrent_flops: Option<f64>,
    /// The bytes of one run: the state read and written, or a model's weights read, or else each tensor once
    /// (with a backward once more, and the gradients).
    pub(super) bytes: f64,
    /// The tokens of one run.
    pub(super) tokens: f64,
    /// The number of runs in a reading.
    pub(super) repeats: usize,
    /// The seconds of one run.
    pub(super) seconds: Summary,
    /// Tokens a second, by the median.
    pub(super) tokens_per_s: f64,
    /// 1e9 executed flops a second.
    pub(super) gflops: Rate,
    /// 1e9 recurrent flops a second. `recurrent_bound` is their share of the FMA ceiling, which is how speeds
    /// are published.
    #[serde(default)]
    pub(super) recurrent_gflops: Option<Rate>,
    #[serde(default)]
    pub(super) recurrent_bound: Option<Bound>,
    /// 1e9 bytes a second.
    pub(super) gbs: Rate,
    pub(super) bound: Bound,
    /// The norm error against the oracle in f64; `allowed_error` is the documented bound.
    pub(super) error: f64,
    pub(super) allowed_error: f64,
    /// The seconds of one run, in the order in which they were measured.
    pub(super) readings: Vec<f64>,
    /// The comparison with an older report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) against: Option<Against>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Rate {
    pub(super) best: f64,
    pub(super) median: f64,
}

/// A ceiling, and the share of it that was reached. For a measurement it is the ceiling that allows the
/// least.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Bound {
    pub(super) ceiling: String,
    /// The share by the best time and the best reading of the ceiling.
    pub(super) best_percent: f64,
    /// The share by the medians.
    pub(super) median_percent: f64,
}

/// The new time divided by the old time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Against {
    /// The ratio of the medians.
    pub(super) ratio: f64,
    /// The new p10 over the old p90.
    pub(super) low: f64,
    /// The new p90 over the old p10.
    pub(super) high: f64,
    pub(super) verdict: String,
}

impl Limit {
    pub(super) fn new(ceiling: &Ceiling) -> Self {
        let Ceiling { isa, threads, what, readings, .. } = ceiling;
        Self {
            isa: isa.name().into(),
            threads: *threads,
            name: what.name(),
            bytes: what.bytes(),
            unit: what.unit().into(),
            rate: Summary::of_rates(readings),
            readings: readings.clone(),
        }
    }

    fn is(&self, what: &What, spec: &Spec) -> bool {
        (&self.isa, self.threads, self.bytes) == (&spec.isa, spec.threads, what.bytes())
            && self.name == what.name()
    }
}

impl Measurement {
    /// `limits` contains the ceilings of the job.
    pub(super) fn new(job: &Job, limits: &[Limit]) -> Self {
        let Job { spec, times, flops, recurrent_flops, bytes, tokens, memory, error, readings, .. } = job;
        let seconds = Summary::of_times(readings);
        let rate = |amount: &f64| Rate {
            best: 1e-9 * amount / seconds.best,
            median: 1e-9 * amount / seconds.median,
        };
        let share = |what: &What, rate: Rate| {
            let limit = limits.iter().find(|limit| limit.is(what, spec)).expect("every job has its ceilings");
            let percent = |rate, limit| 100.0 * rate / limit;
            Bound {
                ceiling: what.name(),
                best_percent: percent(rate.best, limit.rate.best),
                median_percent: percent(rate.median, limit.rate.median),
            }
        };
        let (gflops, recurrent_gflops, gbs) = (rate(flops), recurrent_flops.as_ref().map(rate), rate(bytes));
        // Work is bound by the ceiling that it comes closest to.
        let shares = [share(&What::Fma, gflops), share(memory, gbs)];
        let bound = shares.into_iter().max_by(|a, b| a.best_percent.total_cmp(&b.best_percent));
        Self {
            spec: spec.clone(),
            flops: *flops,
            recurrent_flops: *recurrent_flops,
            bytes: *bytes,
            tokens: *tokens,
            repeats: *times,
            seconds,
            tokens_per_s: tokens / seconds.median,
            gflops,
            recurrent_gflops,
            recurrent_bound: recurrent_gflops.map(|rate| share(&What::Fma, rate)),
            gbs,
            bound: bound.expect("two shares"),
            error: error.norm,
            allowed_error: error.allowed,
            readings: readings.clone(),
            against: None,
        }
    }

    /// Whether the error is within the documented bound, which a NaN never is.
    pub(super) fn is_right(&self) -> bool {
        self.error <= self.allowed_error
    }
}

impl Report {
    /// A report that was written as JSON.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        serde_json::from_str(&text)
            .map_err(|error| format!("{} is not a report of bench: {error}", path.display()))
    }

    /// Compares every measurement with the older one of the same work.
    pub(super) fn compare(&mut self, old: &Report) {
        for new in &mut self.measurements {
            let same = old.measurements.iter().find(|old| old.spec == new.spec);
            new.against = same.map(|old| Against::new(new.seconds, old.seconds));
        }
    }
}

impl Against {
    fn new(new: Summary, old: Summary) -> Self {
        let (ratio, low, high) = (new.median / old.median, new.p10 / old.p90, new.p90 / old.p10);
        let verdict = match () {
            () if low <= 1.0 && 1.0 <= high => "within noise",
            () if high < 1.0 => "faster",
            () => "slower",
        };
        Self { ratio, low, high, verdict: verdict.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let times = |scale: f64| Summary { best: 0.8, median: 1.0, p10: 0.9, p90: 1.1 }.scaled(scale);
        let against = |new, old| Against::new(times(new), times(old));
        assert_eq!(against(1.1, 1.0).verdict, "within noise");
        assert_eq!(against(2.0, 1.0).verdict, "slower");
        assert_eq!(against(1.0, 2.0).verdict, "faster");
        let Against { ratio, low, high, .. } = against(1.0, 2.0);
        assert!(ratio == 0.5 && low < 0.5 && high > 0.5);
    }

    impl Summary {
        fn scaled(self, by: f64) -> Self {
            let Self { best, median, p10, p90 } = self;
            Self { best: by * best, median: by * median, p10: by * p10, p90: by * p90 }
        }
    }
}
