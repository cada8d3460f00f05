//! Summaries of readings.

use serde::{Deserialize, Serialize};

/// Percentiles of some readings. For times p10 is the faster end, for rates the slower one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Summary {
    /// The smallest time, or the largest rate.
    pub(super) best: f64,
    pub(super) median: f64,
    pub(super) p10: f64,
    pub(super) p90: f64,
}

impl Summary {
    pub(super) fn of_times(readings: &[f64]) -> Self {
        let summary = Self::new(readings);
        Self { best: readings.iter().copied().fold(f64::INFINITY, f64::min), ..summary }
    }

    pub(super) fn of_rates(readings: &[f64]) -> Self {
        let summary = Self::new(readings);
        Self { best: readings.iter().copied().fold(0.0, f64::max), ..summary }
    }

    fn new(readings: &[f64]) -> Self {
        let mut sorted = readings.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| percentile(&sorted, share);
        Self { best: 0.0, median: at(0.5), p10: at(0.1), p90: at(0.9) }
    }
}

/// The percentile, interpolated linearly between the two readings around it.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_by_hand() {
        let readings = [5.0, 1.0, 4.0, 2.0, 3.0];
        let times = Summary { best: 1.0, median: 3.0, p10: 1.4, p90: 4.6 };
        assert_eq!(Summary::of_times(&readings), times);
        assert_eq!(Summary::of_rates(&readings), Summary { best: 5.0, ..times });
        assert_eq!(Summary::of_times(&[7.0]).p90, 7.0);
    }
}
