//! `compliance.wit`: is this text allowed?

use serde::{Deserialize, Serialize};
use wasmtime::component::{ComponentType, Lift, Lower};

use super::types::{Finding, Span};

/// A change of the text.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[component(record)]
pub struct Edit {
    /// What to replace, in offsets of the segment's original text.
    pub span: Span,
    /// What to put there. Empty removes.
    pub replacement: String,
}

/// A refusal. The client gets `code` and `message` as an error.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[component(record)]
pub struct Refusal {
    /// A short stable word for machines, in kebab case.
    pub code: String,
    /// One sentence for the client.
    pub message: String,
}

/// Ask the model to say it again.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[component(record)]
pub struct Regeneration {
    /// The offset up to which the text is kept; sampling starts again from there.
    pub keep: u32,
    /// Strings that the new text must not contain.
    pub ban: Vec<String>,
    /// Why, for the trace.
    pub reason: Refusal,
}

/// What to do with the segment from here on.
#[derive(
    ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default,
)]
#[component(variant)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// Go on.
    #[default]
    #[component(name = "pass")]
    Pass,
    /// Stop. Nothing that is not settled leaves.
    #[component(name = "block")]
    Block(Refusal),
    /// Take back what is not settled and sample again.
    #[component(name = "regenerate")]
    Regenerate(Regeneration),
}

/// What one push (or the finish) decided. Offsets are those of the segment's original text,
/// counted in bytes from its first byte over all pushes.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[component(record)]
pub struct Verdict {
    /// The offset up to which the text is decided and may leave, with the edits applied.
    pub settled: u32,
    /// Changes inside the newly settled text: in order, not overlapping.
    pub edits: Vec<Edit>,
    /// Evidence, for newly settled text only.
    pub findings: Vec<Finding>,
    /// What to do with the segment from here on.
    pub decision: Decision,
}
