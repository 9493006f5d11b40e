//! Is the candidate worse than it may be? A test that may be looked at after every request.
//!
//! The mixture sequential probability ratio test (mSPRT; Robbins 1970; Johari, Pekelis, Walsh,
//! "Always valid inference", 2015) of the null hypothesis "worse by no more than the margin"
//! against "worse by more", and of its mirror image for the non-inferiority that a promotion needs.
//! The effect beyond the margin is mixed over a half-normal prior, which makes the test one-sided
//! (Howard et al., "Time-uniform, nonparametric, nonasymptotic confidence sequences", 2021, the
//! one-sided normal mixture). With x the estimate beyond the margin, v its variance and tau the
//! prior's scale:
//!
//! ```text
//! L = 2 sqrt(v / (v + tau²)) exp(z² / 2) Phi(z),   z = x tau / sqrt(v (v + tau²)),   p = 1 / L
//! ```
//!
//! For n requests on either arm v = 2 s² / n. Its running minimum is a p-value at every stopping
//! time. Steps of a rollout are strata: the arms are compared inside each step and the differences
//! are weighted by their information, so that a bad hour while the candidate's share was small is
//! not held against the stable arm.

use crate::moments::{Moments, Pair, Pooled};

/// Which way a metric is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// Errors, latency.
    #[default]
    Lower,
    /// Scores.
    Higher,
}

/// How much worse the candidate may be: lower is better: up to `ratio` times the stable arm's mean
/// plus `margin`; higher is better: down to `ratio` times the mean less `margin`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Which way is better.
    pub better: Better,
    /// A factor on the stable arm's mean; 1 is none.
    pub ratio: f64,
    /// In the metric's own unit.
    pub margin: f64,
}

impl Tolerance {
    /// By how much the candidate is beyond what it may be; negative: how far inside.
    pub fn excess(&self, candidate: f64, stable: f64) -> f64 {
        let worse = match self.better {
            Better::Lower => candidate - self.ratio * stable,
            Better::Higher => self.ratio * stable - candidate,
        };
        worse - self.margin
    }

    /// The worst mean that is tolerated of the candidate.
    fn edge(&self, stable: f64) -> f64 {
        match self.better {
            Better::Lower => self.ratio * stable + self.margin,
            Better::Higher => self.ratio * stable - self.margin,
        }
    }
}

/// What is known about one metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// The candidate over all steps.
    pub candidate: Pooled,
    /// The stable arm over all steps.
    pub stable: Pooled,
    /// By how much the candidate is beyond the tolerance (negative: inside), weighted over the
    /// steps.
    pub excess: f64,
    /// The variance of `excess`.
    pub variance: f64,
    /// The prior's scale, in the metric's unit.
    tau: f64,
}

impl Comparison {
    /// Compares the arms over the steps. `effect` is the size of effect that the test is to be
    /// quickest at, in standard deviations of the metric. `None` before both arms have
    /// `least` values in some step.
    pub fn of(steps: &[Pair], tolerance: Tolerance, effect: f64, least: u64) -> Option<Self> {
        let mut candidate = Pooled::of(steps.iter().map(|step| step.candidate));
        let stable = Pooled::of(steps.iter().map(|step| step.stable));
        if candidate.is_rate && stable.is_rate {
            // Few events understate their own variance: take it at the edge of the tolerance, where
            // both hypotheses begin, if that is larger.
            let edge = tolerance.edge(stable.mean).clamp(0.0, 1.0);
            candidate.variance = candidate.variance.max(edge * (1.0 - edge));
        }
        let scaled = tolerance.ratio * tolerance.ratio * stable.variance;
        let (mut information, mut weighted) = (0.0, 0.0);
        let compared = |step: &&Pair| step.candidate.count.min(step.stable.count) >= least.max(2);
        for step in steps.iter().filter(compared) {
            let of = |moments: Moments, variance: f64| variance / moments.count as f64;
            let variance = of(step.candidate, candidate.variance) + of(step.stable, scaled);
            information += 1.0 / variance;
            weighted += tolerance.excess(step.candidate.mean, step.stable.mean) / variance;
        }
        (information > 0.0).then(|| Self {
            candidate,
            stable,
            excess: weighted / information,
            variance: 1.0 / information,
            tau: effect * libm::sqrt((candidate.variance + scaled) / 2.0),
        })
    }

    /// The p-value of "worse by no more than tolerated", at this look alone.
    pub fn p_within(&self) -> f64 {
        p_value(self.excess, self.variance, self.tau)
    }

    /// The p-value of "worse by at least what is tolerated", at this look alone.
    pub fn p_beyond(&self) -> f64 {
        p_value(-self.excess, self.variance, self.tau)
    }

    /// How many values of the candidate it takes in all until [`p_beyond`](Self::p_beyond) falls
    /// to `alpha`, if the arms are equal and the split stays as it is. `None`: never.
    pub fn needed(&self, tolerance: Tolerance, alpha: f64) -> Option<u64> {
        let room = -tolerance.excess(self.stable.mean, self.stable.mean);
        if room <= 0.0 {
            return None;
        }
        let enough = |count: f64| {
            let variance = self.variance * self.candidate.count as f64 / count;
            p_value(room, variance, self.tau) <= alpha
        };
        let (mut low, mut high) = (1.0, 2.0);
        while !enough(high) {
            low = high;
            high *= 2.0;
            if high > 1e15 {
                return None;
            }
        }
        while high - low > 1.0 {
            let middle = libm::floor((low + high) / 2.0);
            if enough(middle) {
                high = middle;
            } else {
                low = middle;
            }
        }
        Some(high as u64)
    }
}

/// One over the mixture likelihood ratio, at most 1.
fn p_value(excess: f64, variance: f64, tau: f64) -> f64 {
    if excess <= 0.0 {
        return 1.0;
    }
    let spread = variance + tau * tau;
    let z = excess * tau / libm::sqrt(variance * spread);
    let normal = 0.5 * libm::erfc(-z / core::f64::consts::SQRT_2);
    let ratio = 0.5 * libm::log(variance / spread) + z * z / 2.0 + libm::log(2.0 * normal);
    libm::exp(-ratio).min(1.0)
}

/// Holm's adjusted p-values, in the order given: reject those at or below alpha and the chance of
/// one false rejection among all is at most alpha.
pub fn holm(p_values: &[f64]) -> alloc::vec::Vec<f64> {
    let mut order: alloc::vec::Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut adjusted = alloc::vec![1.0; p_values.len()];
    let mut highest: f64 = 0.0;
    for (rank, &index) in order.iter().enumerate() {
        let factor = (p_values.len() - rank) as f64;
        highest = highest.max(p_values[index] * factor).min(1.0);
        adjusted[index] = highest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERRORS: Tolerance = Tolerance {
        better: Better::Lower,
        ratio: 1.0,
        margin: 0.0,
    };

    fn rate(count: u64, mean: f64) -> Moments {
        Moments {
            count,
            mean,
            m2: count as f64 * mean * (1.0 - mean),
        }
    }

    #[test]
    fn the_ratio_is_the_published_one_without_the_sign() {
        // Two-sided, n per arm, equal variances: sqrt(2s²/(2s²+n tau²)) exp(n² tau² d² / (4s²(2s²+n tau²))).
        let (n, s2, d, tau): (f64, f64, f64, f64) = (400.0, 0.09, 0.05, 0.06);
        let whole = 2.0 * s2 + n * tau * tau;
        let two_sided =
            (2.0 * s2 / whole).sqrt() * (n * n * tau * tau * d * d / (4.0 * s2 * whole)).exp();
        let v = 2.0 * s2 / n;
        let z = d * tau / (v * (v + tau * tau)).sqrt();
        let phi = 0.5 * libm::erfc(-z / 2f64.sqrt());
        assert!((p_value(d, v, tau) - 1.0 / (two_sided * 2.0 * phi)).abs() < 1e-12);
        assert_eq!(p_value(-d, v, tau), 1.0);
    }

    #[test]
    fn holm_equals_the_textbook() {
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (value, expected) in adjusted.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((value - expected).abs() < 1e-12);
        }
        assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
    }

    #[test]
    fn a_bad_hour_under_a_small_weight_does_not_bias_the_comparison() {
        // Both arms fail alike: 50 % in the first step (5 % of traffic), 1 % in the second (half).
        let steps = [
            Pair {
                candidate: rate(100, 0.5),
                stable: rate(1900, 0.5),
            },
            Pair {
                candidate: rate(1000, 0.01),
                stable: rate(1000, 0.01),
            },
        ];
        let comparison = Comparison::of(&steps, ERRORS, 0.15, 30).unwrap();
        assert!(comparison.excess.abs() < 1e-12);
        // Pooled without regard to the step they differ by nearly 30 points.
        assert!(comparison.stable.mean - comparison.candidate.mean > 0.25);
    }

    #[test]
    fn nothing_is_said_before_there_is_enough() {
        let step = Pair {
            candidate: rate(29, 1.0),
            stable: rate(1000, 0.0),
        };
        assert_eq!(Comparison::of(&[step], ERRORS, 0.15, 30), None);
    }

    #[test]
    fn the_needed_count_is_where_the_test_would_end() {
        let tolerance = Tolerance {
            margin: 0.02,
            ..ERRORS
        };
        let step = |n| Pair {
            candidate: rate(n, 0.05),
            stable: rate(n, 0.05),
        };
        let early = Comparison::of(&[step(200)], tolerance, 0.15, 30).unwrap();
        let needed = early.needed(tolerance, 0.05).unwrap();
        let at = |n| {
            Comparison::of(&[step(n)], tolerance, 0.15, 30)
                .unwrap()
                .p_beyond()
        };
        assert!(at(needed * 11 / 10) <= 0.05, "{needed}");
        assert!(at(needed * 9 / 10) > 0.05, "{needed}");
        assert_eq!(early.needed(ERRORS, 0.05), None);
    }

    #[test]
    fn better_may_be_higher() {
        let score = Tolerance {
            better: Better::Higher,
            ratio: 0.95,
            margin: 0.0,
        };
        assert!(score.excess(0.7, 0.8) > 0.0);
        assert!(score.excess(0.77, 0.8) < 0.0);
    }
}
