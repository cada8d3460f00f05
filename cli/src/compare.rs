//! The distance of two tensors.

use std::fmt;

/// The distance of two tensors, by the worst element and as a whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Distance {
    /// The largest difference of two elements.
    pub(crate) max_abs: f64,
    /// `||got - want|| / ||want||`.
    pub(crate) norm: f64,
}

impl Distance {
    /// The distance of tensors with equally many elements. A NaN on either side counts as infinitely far
    /// away.
    pub(crate) fn new<T: Copy + Into<f64>, U: Copy + Into<f64>>(got: &[T], want: &[U]) -> Self {
        assert_eq!(got.len(), want.len(), "compared element by element");
        let (mut max_abs, mut difference, mut size) = (0.0f64, 0.0, 0.0);
        for (got, want) in got.iter().zip(want) {
            let (got, want): (f64, f64) = ((*got).into(), (*want).into());
            let apart = (got - want).abs();
            max_abs = max_abs.max(if apart.is_nan() { f64::INFINITY } else { apart });
            difference += apart * apart;
            size += want * want;
        }
        let norm = match (difference / size).sqrt() {
            _ if difference == 0.0 => 0.0,
            norm if norm.is_nan() => f64::INFINITY,
            norm => norm,
        };
        Self { max_abs, norm }
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "max abs {:.1e}, norm error {:.1e}", self.max_abs, self.norm)
    }
}
