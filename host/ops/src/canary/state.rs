//! What is known of a canary: the running statistics of its two sides, and what the tests say of them.

use millgate_trial::{
    moments::{Moments, Pair},
    sequential::{Better, Comparison, Tolerance, holm},
};
use serde::{Deserialize, Serialize};

use super::{CanaryAnswer, CanaryPhase, Sides};
use crate::{config::CanaryConfig, id::now_ms};

/// The size of effect, in standard deviations, that the tests find soonest.
const EFFECT: f64 = 0.15;
/// What is watched, in the order of [`State::tests`].
const TESTS: [&str; 4] = ["failed", "blocked-more", "blocked-less", "latency-ms"];

/// What is kept of a canary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) id: String,
    pub(super) phase: CanaryPhase,
    pub(super) since_ms: u64,
    pub(super) reason: String,
    /// `failed`, `blocked`, `latency-ms`.
    pub(super) pairs: [Pair; 3],
    /// The smallest p-values so far, of being within what is allowed and of being beyond it.
    pub(super) within: [Option<f64>; TESTS.len()],
    pub(super) beyond: [Option<f64>; TESTS.len()],
    /// When either side last had a request.
    pub(super) last_ms: Sides<u64>,
}

impl State {
    pub(super) fn new(id: String) -> Self {
        let now = now_ms();
        Self {
            id,
            phase: CanaryPhase::Running,
            since_ms: now,
            reason: "as configured".to_owned(),
            pairs: [Pair::default(); 3],
            within: [None; TESTS.len()],
            beyond: [None; TESTS.len()],
            last_ms: Sides {
                enforced: now,
                shadow: now,
            },
        }
    }

    pub(super) fn requests(&self) -> Sides<u64> {
        let [pair, ..] = &self.pairs;
        Sides {
            enforced: pair.candidate.count,
            shadow: pair.stable.count,
        }
    }

    /// What is tested: a pair, and how much worse its enforced side may be.
    pub(super) fn tests(&self, config: &CanaryConfig) -> [(Pair, Tolerance); TESTS.len()] {
        let [failed, blocked, latency] = self.pairs;
        let tolerance = |better, ratio, margin| Tolerance {
            better,
            ratio,
            margin,
        };
        [
            (failed, tolerance(Better::Lower, 1.0, config.failed)),
            (blocked, tolerance(Better::Lower, 1.0, config.blocked)),
            (blocked, tolerance(Better::Higher, 1.0, config.blocked)),
            (latency, tolerance(Better::Lower, config.latency, 0.0)),
        ]
    }

    /// Compares the sides and lowers the p-values. The reason to fall, if there is one.
    pub(super) fn look(&mut self, config: &CanaryConfig) -> Option<String> {
        let tests = self.tests(config);
        for (index, (pair, tolerance)) in tests.iter().enumerate() {
            let compared = Comparison::of(
                std::slice::from_ref(pair),
                *tolerance,
                EFFECT,
                config.min_requests,
            );
            let Some(compared) = compared else { continue };
            let lower = |so_far: Option<&mut Option<f64>>, now: f64| {
                if let Some(so_far) = so_far {
                    *so_far = Some(so_far.map_or(now, |so_far| so_far.min(now)));
                }
            };
            lower(self.within.get_mut(index), compared.p_within());
            lower(self.beyond.get_mut(index), compared.p_beyond());
        }
        let adjusted = holm(&self.within.map(|p_value| p_value.unwrap_or(1.0)));
        let worst = adjusted.iter().zip(TESTS).zip(tests);
        let worst = worst.min_by(|((a, _), _), ((b, _), _)| a.total_cmp(b));
        let ((p_value, name), (pair, _)) = worst?;
        (*p_value <= config.alpha).then(|| {
            let what = match name {
                "failed" => format!("it fails on more requests than {}", config.failed),
                "blocked-more" => format!("more is refused, by more than {}", config.blocked),
                "blocked-less" => format!("less is refused, by more than {}", config.blocked),
                _ => format!("it takes more than {} times the others' time", config.latency),
            };
            format!(
                "{what}: {:.4} where its verdict counted ({} requests), {:.4} where it did not ({}); p {p_value:.1e}",
                pair.candidate.mean, pair.candidate.count, pair.stable.mean, pair.stable.count
            )
        })
    }

    /// Pauses where no request comes to one of the sides. Whether it moved.
    pub(super) fn follow(&mut self, config: &CanaryConfig, now: u64) -> bool {
        let last = self.last_ms.enforced.min(self.last_ms.shadow);
        let limit = u64::try_from(config.no_data.0.as_millis()).unwrap_or(u64::MAX);
        let silent = now.saturating_sub(last) >= limit;
        let (phase, reason) = match (self.phase, silent) {
            (CanaryPhase::Running, true) => (
                CanaryPhase::Paused,
                format!(
                    "no data: no request came to one of its sides for {} s",
                    now.saturating_sub(last) / 1000
                ),
            ),
            (CanaryPhase::Paused, false) => {
                (CanaryPhase::Running, "requests come again".to_owned())
            }
            _ => return false,
        };
        (self.phase, self.since_ms, self.reason) = (phase, now, reason);
        true
    }

    pub(super) fn answer(&self, config: &CanaryConfig) -> CanaryAnswer {
        let requests = self.requests();
        match self.phase {
            CanaryPhase::Fallen => CanaryAnswer::Fail,
            CanaryPhase::Paused => CanaryAnswer::NoData,
            CanaryPhase::Running if requests.enforced.min(requests.shadow) == 0 => {
                CanaryAnswer::NoData
            }
            CanaryPhase::Running => {
                let shown = |p_value: &Option<f64>| p_value.is_some_and(|it| it <= config.alpha);
                if self.beyond.iter().all(shown) {
                    CanaryAnswer::Pass
                } else {
                    CanaryAnswer::Inconclusive
                }
            }
        }
    }

    /// How many requests of its side the slowest test needs in all.
    pub(super) fn needed(&self, config: &CanaryConfig) -> Option<u64> {
        let mut needed = 0;
        let shown = |p_value: &Option<f64>| p_value.is_some_and(|it| it <= config.alpha);
        for ((pair, tolerance), beyond) in self.tests(config).iter().zip(&self.beyond) {
            if !shown(beyond) {
                let compared = Comparison::of(
                    std::slice::from_ref(pair),
                    *tolerance,
                    EFFECT,
                    config.min_requests,
                );
                needed = needed.max(compared?.needed(*tolerance, config.alpha)?);
            }
        }
        (needed > 0).then_some(needed)
    }
}

/// Adds a value to a running mean and its squared deviations (Welford 1962).
pub(super) fn add(moments: &mut Moments, value: f64) {
    moments.count += 1;
    let before = value - moments.mean;
    moments.mean += before / moments.count as f64;
    moments.m2 += before * (value - moments.mean);
}
