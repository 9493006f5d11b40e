//! `validation.wit`: is this data well formed?

use serde::{Deserialize, Serialize};
use wasmtime::component::{ComponentType, Lift, Lower};

use super::types::Finding;

/// Where a sample comes from.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[component(enum)]
#[repr(u8)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A client's request: `body` is its JSON as it came.
    #[component(name = "request")]
    Request,
    /// A dataset's row: `body` is its JSON.
    #[component(name = "row")]
    Row,
}

/// A piece of text inside a sample.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[component(record)]
pub struct Segment {
    /// JSON Pointer (RFC 6901) to the text inside `body`.
    pub path: String,
    /// `system`, `user`, `assistant`, `tool`, or empty where roles mean nothing.
    pub role: String,
    /// The text.
    pub text: String,
}

/// One thing to judge.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[component(record)]
pub struct Sample {
    /// Where it comes from.
    pub origin: Origin,
    /// The whole as JSON.
    pub body: String,
    /// Its texts, in order.
    pub segments: Vec<Segment>,
}

/// A safe correction of one text.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[component(record)]
pub struct Repair {
    /// The `path` of the segment to replace: one of those given.
    pub path: String,
    /// The corrected text.
    pub text: String,
}

/// What to do with a sample.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[component(variant)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Use it as it is.
    #[component(name = "accept")]
    Accept,
    /// Use it with these corrections.
    #[component(name = "repair")]
    Repair(Vec<Repair>),
    /// Refuse it; the message says what to change.
    #[component(name = "reject")]
    Reject(String),
}

/// The judgement of one sample. A finding's span counts bytes of the sample's `body` or, as the
/// plugin says in its rule, of a segment: the host checks only that it is in range of the longest.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[component(record)]
pub struct Judgement {
    /// What to do with the sample.
    pub outcome: Outcome,
    /// Evidence.
    pub findings: Vec<Finding>,
}
