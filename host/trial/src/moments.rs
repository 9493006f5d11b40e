//! Running statistics of one metric: what was seen since a point in time, and pairs of arms over
//! the steps of a rollout.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// Count, mean and sum of squared deviations (Welford) of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Moments {
    /// How many values.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The sum of their squared deviations from the mean.
    pub m2: f64,
}

impl Moments {
    /// What was added since `earlier`. `None` when it was not a part of this: the count is lower.
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        let count = self.count.checked_sub(earlier.count)?;
        if count == 0 {
            return Some(Self::default());
        }
        let (whole, part, rest) = (self.count as f64, earlier.count as f64, count as f64);
        let mean = (self.mean * whole - earlier.mean * part) / rest;
        let gap = mean - earlier.mean;
        // Chan's formula for joining two parts, solved for one of them; rounding may go below zero.
        let m2 = (self.m2 - earlier.m2 - gap * gap * part * rest / whole).max(0.0);
        Some(Self { count, mean, m2 })
    }
}

/// The same metric on both arms, while the weights stood still.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Pair {
    /// The arm on trial.
    pub candidate: Moments,
    /// The arm that it is held against.
    pub stable: Moments,
}

impl Pair {
    /// What was added to both since `earlier`.
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        Some(Self {
            candidate: self.candidate.since(&earlier.candidate)?,
            stable: self.stable.since(&earlier.stable)?,
        })
    }
}

/// Pooled over the steps: how many values, their mean, and their variance inside the steps.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pooled {
    /// How many values.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The variance of one value, never zero.
    pub variance: f64,
    /// Whether every value was 0 or 1.
    pub is_rate: bool,
}

impl Pooled {
    /// Pools one arm's parts.
    pub fn of(parts: impl Iterator<Item = Moments>) -> Self {
        let parts: Vec<Moments> = parts.filter(|part| part.count > 0).collect();
        let count: u64 = parts.iter().map(|part| part.count).sum();
        if count == 0 {
            return Self::default();
        }
        let n = count as f64;
        let mean = parts
            .iter()
            .map(|part| part.mean * part.count as f64)
            .sum::<f64>()
            / n;
        let is_rate = parts.iter().all(is_rate);
        let variance = match is_rate {
            // With Laplace's two extra values: no error in 50 requests is not "no variance".
            true => {
                let rate = (mean * n + 1.0) / (n + 2.0);
                rate * (1.0 - rate)
            }
            false => {
                let m2: f64 = parts.iter().map(|part| part.m2).sum();
                let freedom = (n - parts.len() as f64).max(1.0);
                // A constant is known to a thousandth of itself, not for certain.
                let least = 1e-3 * mean.abs().max(1e-9);
                (m2 / freedom).max(least * least)
            }
        };
        Self {
            count,
            mean,
            variance,
            is_rate,
        }
    }
}

/// Whether all values were 0 or 1: then the squared deviations follow from the mean.
fn is_rate(part: &Moments) -> bool {
    let expected = part.count as f64 * part.mean * (1.0 - part.mean);
    (0.0..=1.0).contains(&part.mean) && (part.m2 - expected).abs() <= 1e-6 * expected.max(1e-3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn moments(values: &[f64]) -> Moments {
        let mut moments = Moments::default();
        for value in values {
            moments.count += 1;
            let before = value - moments.mean;
            moments.mean += before / moments.count as f64;
            moments.m2 += before * (value - moments.mean);
        }
        moments
    }

    proptest! {
        #[test]
        fn the_rest_is_what_came_later(
            early in prop::collection::vec(-100.0..100.0f64, 0..50),
            late in prop::collection::vec(-100.0..100.0f64, 0..50),
        ) {
            let all: Vec<f64> = early.iter().chain(&late).copied().collect();
            let rest = moments(&all).since(&moments(&early)).unwrap();
            let expected = moments(&late);
            prop_assert_eq!(rest.count, expected.count);
            prop_assert!((rest.mean - expected.mean).abs() < 1e-9);
            prop_assert!((rest.m2 - expected.m2).abs() < 1e-6);
        }
    }

    #[test]
    fn a_count_that_shrank_has_no_rest() {
        assert_eq!(moments(&[1.0]).since(&moments(&[1.0, 2.0])), None);
    }

    #[test]
    fn no_error_at_all_still_has_a_variance() {
        let pooled = Pooled::of([moments(&[0.0; 50])].into_iter());
        assert!((pooled.variance - 1.0 / 52.0 * 51.0 / 52.0).abs() < 1e-12);
        let constant = Pooled::of([moments(&[7.0; 50])].into_iter());
        assert!(constant.variance > 0.0);
        assert_eq!(Pooled::of(core::iter::empty()).count, 0);
    }
}
