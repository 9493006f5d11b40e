//! The plugin sandbox: load, verify, snapshot, pool, call.
//!
//! A plugin is a WebAssembly component that exports one or more of the five stage interfaces of
//! the contract (`wit/`). This crate turns its bytes and an operator's [`StageSpec`] into a
//! [`Stage`] that answers calls, each in a sandbox of its own, and bounds everything that the
//! plugin can use up. It knows Wasm; it knows nothing of models, stores or HTTP: what a plugin may
//! ask of the host goes through the [`Services`] trait.

mod actor;
mod call;
pub mod contract;
mod error;
mod failure;
mod inspection;
mod manifest;
mod sandbox;
mod services;
mod spec;
mod stage;

pub use actor::{DeploymentActor, MonitorActor, MonitorOptions};
pub use call::{CallContext, Direction};
pub use contract::Interface;
pub use contract::compliance::{Decision, Edit, Refusal, Regeneration, Verdict};
pub use contract::deployment::{
    Action, Arm, ArmRole, ArmSummary, Choice, MetricSummary, Recommendation, Rollout,
};
pub use contract::evaluation::{Answer, CaseScores, Evaluation, Score};
pub use contract::inference::{Completion, CompletionRequest, Level};
pub use contract::monitoring::{Alert, Event, Report, Severity};
pub use contract::types::{ErrorKind, Finding, Label, Measure, Span, StageError};
pub use contract::validation::{Judgement, Origin, Outcome, Repair, Sample, Segment};
pub use error::{Error, Result};
pub use failure::Failure;
pub use inspection::{Held, Inspection};
pub use manifest::{Capability, Manifest};
pub use sandbox::{PluginInfo, Sandbox, SandboxOptions};
pub use services::Services;
pub use spec::{FailurePolicy, Grant, InferenceGrant, Isolation, Limits, StageSpec, StateGrant};
pub use stage::{Stage, StageStats};
