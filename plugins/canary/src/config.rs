//! The config, as `plugin.toml` describes it, and its checks beyond what a schema can say.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use millgate_sdk::{ArmRole, StageError};
use serde::Deserialize;

use crate::review::{Metric, Rules};
use millgate_trial::sequential::{Better, Tolerance};

/// The config.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Config {
    pub(crate) salt: String,
    pub(crate) sticky_by: Vec<String>,
    pub(crate) pins: Vec<Pin>,
    steps: Vec<f64>,
    min_requests: u64,
    min_interval_seconds: u64,
    no_data_seconds: u64,
    max_duration_hours: u64,
    alpha: f64,
    effect_size: f64,
    min_values: u64,
    metrics: Vec<MetricConfig>,
}

/// Requests with this feature always go to this arm.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Pin {
    pub(crate) feature: String,
    pub(crate) value: String,
    pub(crate) arm: PinnedArm,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PinnedArm {
    Stable,
    Candidate,
}

impl PinnedArm {
    pub(crate) fn role(self) -> ArmRole {
        match self {
            Self::Stable => ArmRole::Stable,
            Self::Candidate => ArmRole::Candidate,
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct MetricConfig {
    name: String,
    #[serde(default)]
    better: Better,
    #[serde(default)]
    margin: f64,
    #[serde(default = "one")]
    ratio: f64,
    limit: Option<f64>,
}

fn one() -> f64 {
    1.0
}

impl Default for Config {
    fn default() -> Self {
        let metric = |name: &str, margin, ratio| MetricConfig {
            name: name.into(),
            better: Better::Lower,
            margin,
            ratio,
            limit: None,
        };
        Self {
            salt: String::new(),
            sticky_by: ["user", "session"].map(String::from).to_vec(),
            pins: Vec::new(),
            steps: [0.05, 0.1, 0.25, 0.5].to_vec(),
            min_requests: 200,
            min_interval_seconds: 300,
            no_data_seconds: 900,
            max_duration_hours: 168,
            alpha: 0.05,
            effect_size: 0.15,
            min_values: 50,
            metrics: [
                metric("error", 0.01, 1.0),
                metric("blocked", 0.02, 1.0),
                metric("latency-ms", 0.0, 1.2),
            ]
            .to_vec(),
        }
    }
}

impl Config {
    /// The rules of a review, checked.
    pub(crate) fn rules(&self) -> Result<Rules, StageError> {
        let ascending = self.steps.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = self.steps.iter().all(|step| *step > 0.0 && *step <= 1.0);
        if self.steps.is_empty() || !ascending || !inside {
            return Err(invalid(
                "steps",
                "must be shares above 0 and up to 1, each larger than the one before",
            ));
        }
        if !(self.alpha > 0.0 && self.alpha < 0.5) {
            return Err(invalid("alpha", "must lie between 0 and 0.5, such as 0.05"));
        }
        if !(self.effect_size > 0.0 && self.effect_size.is_finite()) {
            return Err(invalid(
                "effect-size",
                "must be above 0, in standard deviations, such as 0.15",
            ));
        }
        if self.metrics.is_empty() {
            return Err(invalid(
                "metrics",
                "must name at least one metric: a rollout judged by nothing never ends",
            ));
        }
        for (index, metric) in self.metrics.iter().enumerate() {
            metric.check()?;
            if self.metrics[..index]
                .iter()
                .any(|other| other.name == metric.name)
            {
                return Err(invalid("metrics", &format!("name `{}` twice", metric.name)));
            }
        }
        Ok(Rules {
            steps: self.steps.clone(),
            min_requests: self.min_requests,
            min_interval_ms: self.min_interval_seconds.saturating_mul(1000),
            no_data_ms: self.no_data_seconds.saturating_mul(1000),
            max_duration_ms: self.max_duration_hours.saturating_mul(3_600_000),
            alpha: self.alpha,
            effect: self.effect_size,
            min_values: self.min_values,
            metrics: self.metrics.iter().map(MetricConfig::metric).collect(),
        })
    }
}

impl MetricConfig {
    fn check(&self) -> Result<(), StageError> {
        let name = &self.name;
        if !(self.margin >= 0.0
            && self.margin.is_finite()
            && self.ratio > 0.0
            && self.ratio.is_finite())
        {
            return Err(invalid(
                "metrics",
                &format!("`{name}`: `margin` is at least 0 and `ratio` above 0"),
            ));
        }
        let (loose, hint) = match self.better {
            Better::Lower => (self.ratio >= 1.0, "at least 1"),
            Better::Higher => (self.ratio <= 1.0, "at most 1"),
        };
        if !loose {
            return Err(invalid(
                "metrics",
                &format!("`{name}`: `ratio` must be {hint}: it says how much worse is tolerated"),
            ));
        }
        if self.margin == 0.0 && self.ratio == 1.0 {
            let text = format!(
                "`{name}` needs a `margin` above 0 or a `ratio` other than 1: that two arms do not differ at all cannot be shown"
            );
            return Err(invalid("metrics", &text));
        }
        Ok(())
    }

    fn metric(&self) -> Metric {
        Metric {
            name: self.name.clone(),
            tolerance: Tolerance {
                better: self.better,
                ratio: self.ratio,
                margin: self.margin,
            },
            limit: self.limit,
        }
    }
}

fn invalid(key: &str, what: &str) -> StageError {
    StageError::invalid_config(key, format!("`{key}` {what}"))
}
