//! `deployment.wit`: who gets the new version?

use serde::{Deserialize, Serialize};
use wasmtime::component::{ComponentType, Lift, Lower};

use super::types::Measure;

/// What an arm is in its rollout.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[component(enum)]
#[repr(u8)]
#[serde(rename_all = "kebab-case")]
pub enum ArmRole {
    /// What served before and serves when in doubt.
    #[component(name = "stable")]
    Stable,
    /// What is on trial.
    #[component(name = "candidate")]
    Candidate,
}

/// One candidate for a request.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[component(record)]
pub struct Arm {
    /// Its name.
    pub name: String,
    /// What it is in its rollout.
    pub role: ArmRole,
    /// The share of traffic that the rollout gives it at present, 0 to 1.
    pub weight: f64,
}

/// Where a request goes.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[component(record)]
pub struct Choice {
    /// The name of one of the arms given.
    pub arm: String,
    /// The probability with which this request could have come to this arm, in (0, 1].
    pub propensity: f64,
    /// Why, in a few words.
    pub reason: String,
}

/// A running statistic of one arm, since the rollout began.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[component(record)]
pub struct MetricSummary {
    /// Such as `error`, `blocked`, `latency-ms`, `score.<name>`.
    pub name: String,
    /// How many values.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The sum of squared deviations from the mean (Welford).
    pub m2: f64,
}

/// One arm's record since the rollout began.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[component(record)]
pub struct ArmSummary {
    /// The arm.
    pub arm: Arm,
    /// How many requests it served.
    pub requests: u64,
    /// Its statistics.
    pub metrics: Vec<MetricSummary>,
}

/// The rollout under review.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[component(record)]
pub struct Rollout {
    /// Its id.
    pub id: String,
    /// How long it has run, in milliseconds.
    #[component(name = "elapsed-ms")]
    pub elapsed_ms: u64,
    /// The present step's share for the candidate, 0 to 1.
    #[component(name = "candidate-weight")]
    pub candidate_weight: f64,
    /// Its arms.
    pub arms: Vec<ArmSummary>,
}

/// What to do with the rollout.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[component(variant)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Stay as it is: not enough is known yet.
    #[component(name = "hold")]
    Hold,
    /// Give the candidate this share, 0 to 1.
    #[component(name = "shift")]
    Shift(f64),
    /// The candidate becomes the stable arm.
    #[component(name = "promote")]
    Promote,
    /// All traffic goes back to the stable arm.
    #[component(name = "roll-back")]
    RollBack,
    /// Stop moving and ask a person.
    #[component(name = "pause")]
    Pause,
}

/// A decision about a rollout, with its evidence.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[component(record)]
pub struct Recommendation {
    /// What to do.
    pub action: Action,
    /// One sentence with the numbers behind it.
    pub reason: String,
    /// The statistics that decided.
    pub evidence: Vec<Measure>,
}
