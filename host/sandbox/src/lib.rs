//! The plugin sandbox: load, verify, snapshot, pool, call.
//!
//! A plugin is a WebAssembly component that exports one or more of the five stage interfaces of
//! the contract (`wit/`). This crate turns its bytes and an operator's [`StageSpec`] into a
//! [`Stage`] that answers calls, each in a sandbox of its own, and bounds everything that the
//! plugin can use up. It knows Wasm; it knows nothing of models, stores or HTTP: what a plugin may
//! ask of the host goes through the [`Services`] trait.

mod actor;
pub mod bench;
mod budget;
mod cache;
mod call;
mod config;
pub mod contract;
mod engine;
mod error;
mod exports;
mod failure;
mod fault;
mod held;
mod image;
mod imports;
mod inspection;
mod instance;
pub mod invariance;
mod manifest;
mod memory;
mod permits;
mod plugin;
mod sandbox;
mod services;
mod spec;
mod stage;
mod state;
pub mod tape;
mod verify;

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
pub use held::{Held, apply};
pub use inspection::Inspection;
pub use manifest::{Capability, Manifest, SECTION};
pub use memory::MemoryServices;
pub use plugin::PluginInfo;
pub use sandbox::{Sandbox, SandboxOptions};
pub use services::{Embedded, Services};
pub use spec::{FailurePolicy, Grant, InferenceGrant, Isolation, Limits, StageSpec, StateGrant};
pub use stage::{Stage, StageStats};
pub use tape::Tape;
