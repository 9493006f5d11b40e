//! What to do with a rollout: start, hold, shift, roll back, pause, promote.
//!
//! The order of the questions matters, and there is one place for it, [`Review::decide`]: harm is
//! looked for first and at any size of sample; then whether there is data at all; then whether the
//! step has run its course; and only then whether to go on. Whatever is not known holds or pauses,
//! it never promotes.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use millgate_sdk::{Action, ArmRole, ArmSummary, Measure, Recommendation, Rollout};
use serde::{Deserialize, Serialize};

use millgate_trial::moments::{Moments, Pair};
use millgate_trial::sequential::{Better, Comparison, Tolerance, holm};

/// The rules of a rollout.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The candidate's shares, ascending.
    pub steps: Vec<f64>,
    /// Requests that either arm must have in a step before the next one.
    pub min_requests: u64,
    /// Milliseconds that a step lasts at least.
    pub min_interval_ms: u64,
    /// Milliseconds without a request to the candidate after which a person is asked.
    pub no_data_ms: u64,
    /// Milliseconds after which a rollout without a decision is inconclusive.
    pub max_duration_ms: u64,
    /// The chance of a false roll-back in the whole rollout, over all metrics; and, for each
    /// metric, of promoting what is worse than tolerated.
    pub alpha: f64,
    /// The size of effect, in standard deviations, that the tests are quickest at.
    pub effect: f64,
    /// Values that either arm must have in a step before they are compared.
    pub min_values: u64,
    /// What is watched.
    pub metrics: Vec<Metric>,
}

/// A metric that a rollout is judged by.
#[derive(Debug, Clone)]
pub struct Metric {
    /// As the host names it, such as `error`.
    pub name: String,
    /// How much worse the candidate may be.
    pub tolerance: Tolerance,
    /// A bound on the candidate's mean, whatever the stable arm does.
    pub limit: Option<f64>,
}

/// What is remembered from one review to the next.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// The rollout that this is about.
    rollout: String,
    /// The candidate's share in the present step.
    weight: f64,
    /// When the present step began, in the rollout's own time.
    began_ms: u64,
    /// When the candidate last had a new request, in the rollout's own time, and how many it had.
    progress_ms: u64,
    progress_requests: u64,
    /// Requests of candidate and stable arm when the present step began.
    requests: (u64, u64),
    /// By metric.
    metrics: BTreeMap<String, Course>,
}

/// One metric's course over the rollout.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Course {
    /// The steps that are over.
    steps: Vec<Pair>,
    /// The totals when the present step began.
    began: Pair,
    /// The smallest p-values so far: of "worse by no more than tolerated" and of "worse by more".
    /// `None`: never compared.
    p_within: Option<f64>,
    p_beyond: Option<f64>,
}

/// Steps that are remembered for each metric, the latest ones: an operator who sets weights by hand
/// makes many.
const MAX_STEPS: usize = 64;

/// Weights closer than this are the same step.
const SAME_WEIGHT: f64 = 1e-6;

/// One look at a rollout.
pub struct Review<'a> {
    rules: &'a Rules,
    rollout: &'a Rollout,
    candidate: &'a ArmSummary,
    stable: &'a ArmSummary,
    memory: &'a Memory,
    metrics: Vec<Look<'a>>,
}

/// One metric at one look.
struct Look<'a> {
    metric: &'a Metric,
    comparison: Option<Comparison>,
    /// Holm-adjusted.
    p_within: f64,
    p_beyond: f64,
    totals: Pair,
}

/// Reviews a rollout and remembers what the next review needs.
pub fn review(rules: &Rules, memory: &mut Memory, rollout: &Rollout) -> Recommendation {
    let arm = |role| {
        let mut arms = rollout
            .arms
            .iter()
            .filter(move |summary| summary.arm.role == role);
        arms.next().filter(|_| arms.next().is_none())
    };
    let (Some(candidate), Some(stable)) = (arm(ArmRole::Candidate), arm(ArmRole::Stable)) else {
        return Recommendation {
            action: Action::Pause,
            reason: "a review needs exactly one candidate and one stable arm".to_string(),
            evidence: Vec::new(),
        };
    };
    memory.follow(rules, rollout, candidate, stable);
    let mut metrics: Vec<Look<'_>> = rules
        .metrics
        .iter()
        .map(|metric| memory.look(rules, metric, totals(candidate, stable, &metric.name)))
        .collect();
    let adjusted = holm(&metrics.iter().map(|look| look.p_within).collect::<Vec<_>>());
    for (look, p_value) in metrics.iter_mut().zip(adjusted) {
        look.p_within = p_value;
    }
    let review = Review {
        rules,
        rollout,
        candidate,
        stable,
        memory,
        metrics,
    };
    let (action, reason) = review.decide();
    Recommendation {
        action,
        reason,
        evidence: review.evidence(),
    }
}

fn totals(candidate: &ArmSummary, stable: &ArmSummary, name: &str) -> Pair {
    let of = |arm: &ArmSummary| {
        arm.metric(name)
            .map_or_else(Moments::default, |metric| Moments {
                count: metric.count,
                mean: metric.mean,
                m2: metric.m2,
            })
    };
    Pair {
        candidate: of(candidate),
        stable: of(stable),
    }
}

impl Memory {
    /// Takes note of a new rollout, a new step, and of whether requests come.
    fn follow(
        &mut self,
        rules: &Rules,
        rollout: &Rollout,
        candidate: &ArmSummary,
        stable: &ArmSummary,
    ) {
        let requests = (candidate.requests, stable.requests);
        if self.rollout != rollout.id {
            *self = Self {
                rollout: rollout.id.clone(),
                weight: rollout.candidate_weight,
                ..Self::default()
            };
        } else if (self.weight - rollout.candidate_weight).abs() > SAME_WEIGHT {
            for metric in &rules.metrics {
                let totals = totals(candidate, stable, &metric.name);
                let course = self.metrics.entry(metric.name.clone()).or_default();
                course.steps.extend(totals.since(&course.began));
                if course.steps.len() > MAX_STEPS {
                    course.steps.remove(0);
                }
                course.began = totals;
            }
            self.weight = rollout.candidate_weight;
            self.began_ms = rollout.elapsed_ms;
            self.requests = requests;
            self.progress_ms = rollout.elapsed_ms;
        }
        if requests.0 < self.requests.0 || requests.1 < self.requests.1 {
            // The host counts anew.
            self.requests = (0, 0);
        }
        if candidate.requests != self.progress_requests {
            self.progress_requests = candidate.requests;
            self.progress_ms = rollout.elapsed_ms;
        }
    }

    /// Compares one metric over all steps and lowers its p-values.
    fn look<'a>(&mut self, rules: &Rules, metric: &'a Metric, totals: Pair) -> Look<'a> {
        let course = self.metrics.entry(metric.name.clone()).or_default();
        let present = totals.since(&course.began).unwrap_or_else(|| {
            // The host counts anew.
            course.began = Pair::default();
            totals
        });
        let mut steps = course.steps.clone();
        steps.push(present);
        let comparison = Comparison::of(&steps, metric.tolerance, rules.effect, rules.min_values);
        if let Some(comparison) = &comparison {
            let lower = |so_far: &mut Option<f64>, now: f64| {
                *so_far = Some(so_far.map_or(now, |so_far| so_far.min(now)));
            };
            lower(&mut course.p_within, comparison.p_within());
            lower(&mut course.p_beyond, comparison.p_beyond());
        }
        Look {
            metric,
            comparison,
            p_within: course.p_within.unwrap_or(1.0),
            p_beyond: course.p_beyond.unwrap_or(1.0),
            totals,
        }
    }
}

impl Review<'_> {
    fn decide(&self) -> (Action, String) {
        let rules = self.rules;
        let percent = |share: f64| format!("{:.4} %", share * 100.0);
        if let Some(worst) = self.worst()
            && worst.p_within <= rules.alpha
        {
            return (Action::RollBack, worst.harm());
        }
        let weight = self.rollout.candidate_weight;
        if weight <= 0.0 {
            let Some(&first) = rules.steps.first().filter(|_| self.candidate.requests == 0) else {
                return (
                    Action::Hold,
                    "the candidate's share was set to 0 by hand".to_string(),
                );
            };
            return (
                Action::Shift(first),
                format!("the rollout begins with {}", percent(first)),
            );
        }
        if let Some(reason) = self.no_data() {
            return (Action::Pause, reason);
        }
        if let Some(look) = self
            .metrics
            .iter()
            .find(|look| look.breaks_limit(rules.min_values))
        {
            return (Action::Pause, look.broken_limit());
        }
        if self.rollout.elapsed_ms >= rules.max_duration_ms {
            let hours = rules.max_duration_ms / 3_600_000;
            return (
                Action::Pause,
                format!(
                    "inconclusive: no decision after {hours} h; {}",
                    self.missing()
                ),
            );
        }
        let (candidate, stable) = self.step_requests();
        // With all traffic on the candidate the stable arm has nothing to add.
        let scarce = if weight < 1.0 {
            candidate.min(stable)
        } else {
            candidate
        };
        if scarce < rules.min_requests {
            let text = format!(
                "this step has {candidate} requests on the candidate and {stable} on the stable arm, of {} each",
                rules.min_requests
            );
            return (Action::Hold, text);
        }
        let lasted = self.rollout.elapsed_ms.saturating_sub(self.memory.began_ms);
        if lasted < rules.min_interval_ms {
            let text = format!(
                "this step has lasted {} s of {}",
                lasted / 1000,
                rules.min_interval_ms / 1000
            );
            return (Action::Hold, text);
        }
        if let Some(look) = self.metrics.iter().find(|look| look.excess() > 0.0) {
            let name = &look.metric.name;
            return (
                Action::Hold,
                format!("`{name}` leans beyond its tolerance, not yet beyond doubt"),
            );
        }
        if let Some(&next) = rules
            .steps
            .iter()
            .find(|&&step| step > weight + SAME_WEIGHT)
        {
            let text = format!(
                "{candidate} requests in this step and no metric beyond its tolerance: on to {}",
                percent(next)
            );
            return (Action::Shift(next), text);
        }
        if self.metrics.iter().all(|look| look.p_beyond <= rules.alpha) {
            let p_value = self
                .metrics
                .iter()
                .map(|look| look.p_beyond)
                .fold(0.0, f64::max);
            return (
                Action::Promote,
                format!("every metric is within its tolerance (largest p {p_value:.2e})"),
            );
        }
        (Action::Hold, format!("the last step: {}", self.missing()))
    }

    /// Why there is nothing to judge by, if so.
    fn no_data(&self) -> Option<String> {
        let silent = self
            .rollout
            .elapsed_ms
            .saturating_sub(self.memory.progress_ms);
        if silent >= self.rules.no_data_ms {
            return Some(format!(
                "no data: no request came to the candidate for {} s",
                silent / 1000
            ));
        }
        // The arm has requests, but the metric has no values: it is misspelt or not measured.
        let least = self.rules.min_requests.max(1);
        let absent = |count: u64, arm: &ArmSummary| count == 0 && arm.requests >= least;
        let look = self.metrics.iter().find(|look| {
            absent(look.totals.candidate.count, self.candidate)
                || absent(look.totals.stable.count, self.stable)
        })?;
        Some(format!(
            "no data: `{}` has no value on one of the arms",
            look.metric.name
        ))
    }

    /// Requests of candidate and stable arm in this step.
    fn step_requests(&self) -> (u64, u64) {
        let (candidate, stable) = self.memory.requests;
        (
            self.candidate.requests.saturating_sub(candidate),
            self.stable.requests.saturating_sub(stable),
        )
    }

    /// The metric that speaks loudest against the candidate.
    fn worst(&self) -> Option<&Look<'_>> {
        let looks = self.metrics.iter();
        looks.min_by(|a, b| {
            a.p_within
                .total_cmp(&b.p_within)
                .then(b.excess().total_cmp(&a.excess()))
        })
    }

    /// How many requests of the candidate in all the slowest metric needs; `None` before that can
    /// be said.
    fn needed(&self) -> Option<u64> {
        let mut needed = 0;
        for look in &self.metrics {
            if look.p_beyond > self.rules.alpha {
                needed = needed.max(look.needed(self.rules.alpha)?);
            }
        }
        Some(needed)
    }

    /// What it takes to promote, in words.
    fn missing(&self) -> String {
        let have = self.candidate.requests;
        match self.needed() {
            Some(needed) if needed > have => {
                format!(
                    "to show that the candidate is no worse takes about {needed} of its requests, it has {have}"
                )
            }
            Some(_) => format!("the candidate's {have} requests do not show that it is no worse"),
            None => "too few values to compare the arms".to_string(),
        }
    }

    fn evidence(&self) -> Vec<Measure> {
        let mut evidence = Vec::new();
        let mut add = |name: String, value: f64| evidence.push(Measure { name, value });
        if let Some(worst) = self.worst() {
            add("p-value".to_string(), worst.p_within);
            if let Some(comparison) = &worst.comparison {
                add(
                    "effect".to_string(),
                    comparison.candidate.mean - comparison.stable.mean,
                );
            }
        }
        if let Some(needed) = self.needed() {
            add("needed-requests".to_string(), needed as f64);
        }
        let (candidate, stable) = self.step_requests();
        add(
            "candidate-requests".to_string(),
            self.candidate.requests as f64,
        );
        add("step-requests".to_string(), candidate as f64);
        add("step-requests-stable".to_string(), stable as f64);
        for look in &self.metrics {
            let name = &look.metric.name;
            add(format!("{name}.p-worse"), look.p_within);
            add(format!("{name}.p-no-worse"), look.p_beyond);
            if let Some(comparison) = &look.comparison {
                add(format!("{name}.candidate"), comparison.candidate.mean);
                add(format!("{name}.stable"), comparison.stable.mean);
                add(format!("{name}.excess"), comparison.excess);
                add(
                    format!("{name}.standard-error"),
                    libm::sqrt(comparison.variance),
                );
            }
            if let Some(needed) = look.needed(self.rules.alpha) {
                add(format!("{name}.needed-requests"), needed as f64);
            }
        }
        evidence
    }
}

impl Look<'_> {
    fn excess(&self) -> f64 {
        self.comparison.map_or(0.0, |comparison| comparison.excess)
    }

    fn needed(&self, alpha: f64) -> Option<u64> {
        self.comparison
            .and_then(|comparison| comparison.needed(self.metric.tolerance, alpha))
    }

    fn breaks_limit(&self, least: u64) -> bool {
        let Moments { count, mean, .. } = self.totals.candidate;
        let beyond = |limit| match self.metric.tolerance.better {
            Better::Lower => mean > limit,
            Better::Higher => mean < limit,
        };
        count >= least.max(1) && self.metric.limit.is_some_and(beyond)
    }

    fn broken_limit(&self) -> String {
        let limit = self.metric.limit.unwrap_or_default();
        let mean = self.totals.candidate.mean;
        format!(
            "`{}` of the candidate is {mean:.4}, beyond its limit of {limit:.4}",
            self.metric.name
        )
    }

    fn harm(&self) -> String {
        let (candidate, stable) = self.comparison.map_or((0.0, 0.0), |comparison| {
            (comparison.candidate.mean, comparison.stable.mean)
        });
        format!(
            "`{}` is worse than tolerated: {candidate:.4} against {stable:.4} (always-valid p {:.2e})",
            self.metric.name, self.p_within
        )
    }
}
