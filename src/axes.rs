//! Checks of tensors with any number of strided axes.

use crate::error::{Error, Result};

/// One axis of a tensor: the elements from one index to the next, and how many indices there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Axis {
    pub(crate) stride: usize,
    pub(crate) count: usize,
}

/// Elements from the first to the last one reached, 0 where an axis has no index, or an error where that
/// overflows.
pub(crate) fn reach<const N: usize>(what: &'static str, axes: [Axis; N]) -> Result<usize> {
    if axes.iter().any(|axis| axis.count == 0) {
        return Ok(0);
    }
    let far = axes.iter().try_fold(1_usize, |sum, axis| {
        let far = (axis.count - 1).checked_mul(axis.stride)?;
        sum.checked_add(far)
    });
    match far {
        Some(n) if n <= isize::MAX as usize / size_of::<f32>() => Ok(n),
        _ => Err(Error::Overflow { what }),
    }
}

/// Refuses strides under which two indices of an output could share an element. The check is sufficient, not
/// necessary: taken from the smallest stride to the largest, each must be at least as long as all that the
/// smaller ones reach.
pub(crate) fn check_disjoint<const N: usize>(what: &'static str, mut axes: [Axis; N]) -> Result<()> {
    if axes.iter().any(|axis| axis.count == 0) {
        return Ok(());
    }
    axes.sort_unstable();
    let mut covered = 1_usize;
    for Axis { stride, count } in axes {
        if count == 1 {
            continue;
        }
        if stride < covered {
            return Err(Error::Overlap { what });
        }
        let far = (count - 1).checked_mul(stride).and_then(|far| far.checked_add(covered));
        covered = far.ok_or(Error::Overflow { what })?;
    }
    Ok(())
}
