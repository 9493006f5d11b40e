//! Whether a stage's verdict counts, and for which requests.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Time;

/// Whether a stage's verdict counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StageMode {
    /// For every request.
    #[default]
    Enforce,
    /// For none: the stage runs after the answer, on what it would have seen, and its verdict is kept and compared.
    Shadow,
    /// For a share of requests; it falls back to the shadow by itself when it does harm.
    Canary,
}

impl StageMode {
    /// Its name in configs, traces and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            StageMode::Enforce => "enforce",
            StageMode::Shadow => "shadow",
            StageMode::Canary => "canary",
        }
    }

    pub(crate) fn is_enforce(&self) -> bool {
        *self == StageMode::Enforce
    }
}

/// A canary stage: for which share of requests its verdict counts, and when it no longer does. The requests for which it
/// does are compared with the others, by a test that may look after every request.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CanaryConfig {
    /// The share of requests for which its verdict counts, above 0 and below 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub share: f64,
    /// What a request sticks to its side by: the first that it has. A request with none of them goes by its trace.
    #[serde(default = "sticky_by")]
    pub sticky_by: Vec<Sticky>,
    /// The most that the share of requests on which the stage failed (a trap, a time-out) may be.
    #[serde(default = "failed_margin")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub failed: f64,
    /// By how much the share of refused requests may differ, up or down.
    #[serde(default = "blocked_margin")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub blocked: f64,
    /// How many times the other requests' time its requests may take.
    #[serde(default = "latency_ratio")]
    #[schemars(range(min = 1.0, max = 100.0))]
    pub latency: f64,
    /// The chance that a stage within all of these falls, over its whole time.
    #[serde(default = "alpha")]
    #[schemars(range(min = 0.0, max = 0.5))]
    pub alpha: f64,
    /// Requests that each side must have before they are compared.
    #[serde(default = "min_requests")]
    #[schemars(range(min = 2))]
    pub min_requests: u64,
    /// After this long without a request on one of the sides it pauses: there is no data to judge it by.
    #[serde(default = "no_data")]
    pub no_data: Time,
}

fn sticky_by() -> Vec<Sticky> {
    vec![Sticky::User, Sticky::Session]
}

fn failed_margin() -> f64 {
    0.01
}

fn blocked_margin() -> f64 {
    0.02
}

fn latency_ratio() -> f64 {
    1.2
}

fn alpha() -> f64 {
    0.05
}

fn min_requests() -> u64 {
    50
}

fn no_data() -> Time {
    Time(Duration::from_secs(900))
}

/// What a request sticks to its side by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Sticky {
    /// The request's `user`, of its tenant.
    User,
    /// `metadata.session`, of its tenant.
    Session,
    /// The tenant.
    Tenant,
}
