//! `monitoring.wit`: is something changing?

use serde::{Deserialize, Serialize};
use wasmtime::component::{ComponentType, Lift, Lower};

use super::types::{Label, Measure};

/// A finished request, without its texts.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[component(record)]
pub struct Event {
    /// The trace's id.
    #[component(name = "trace-id")]
    pub trace_id: String,
    /// Milliseconds since 1970 at which it finished.
    #[component(name = "at-ms")]
    pub at_ms: u64,
    /// Names such as `model`, `arm`, `tenant`, `finish-reason`, `verdict.<stage>`.
    pub labels: Vec<Label>,
    /// Numbers such as `prompt-tokens`, `latency-ms`, `entropy`.
    pub measures: Vec<Measure>,
}

/// How bad it is.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[component(enum)]
#[repr(u8)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Within its limits.
    #[component(name = "ok")]
    Ok,
    /// Look at it.
    #[component(name = "warning")]
    Warning,
    /// Act.
    #[component(name = "critical")]
    Critical,
    /// Not enough is known; never the same as `Ok`.
    #[component(name = "no-data")]
    NoData,
}

/// The state of one rule.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[component(record)]
pub struct Alert {
    /// The rule, such as `psi.completion-tokens`.
    pub rule: String,
    /// How bad it is.
    pub severity: Severity,
    /// The statistic as measured.
    pub value: f64,
    /// The limit that it was held against.
    pub threshold: f64,
    /// One sentence for the person on call.
    pub message: String,
}

/// What a monitor has to say after a batch or a tick.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[component(record)]
pub struct Report {
    /// The state of its rules.
    pub alerts: Vec<Alert>,
    /// Gauges to export under the stage's name.
    pub metrics: Vec<Measure>,
}
