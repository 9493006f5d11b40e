//! Write a Millgate plugin in Rust: a config struct and one trait.
//!
//! A plugin implements [`Plugin`], which turns its config into a value, and one or more of the
//! five stage interfaces; [`plugin!`] makes the component of it: exports, memory, panic handler and
//! the manifest, which is the file `plugin.toml` beside `Cargo.toml`.
//!
//! ```
//! #![cfg_attr(target_family = "wasm", no_std)]
//! use millgate_sdk::prelude::*;
//!
//! #[derive(Deserialize)]
//! #[serde(rename_all = "kebab-case")]
//! pub struct Config { words: Vec<String> }
//!
//! pub struct Words(Config);
//!
//! impl Plugin for Words {
//!     type Config = Config;
//!     fn configure(config: Config) -> Result<Self, StageError> { Ok(Words(config)) }
//! }
//!
//! impl Windowed for Words {
//!     fn window(&self) -> Window { Window::Lines { max: 4096 } }
//!     fn check(&self, _: &Segment, line: &str) -> Checked {
//!         let mut checked = Checked::pass();
//!         for word in &self.0.words {
//!             for (at, found) in line.match_indices(word.as_str()) {
//!                 checked.replace(at..at + found.len(), "***", Finding::new("word", 1.0, "on the list"));
//!             }
//!         }
//!         checked
//!     }
//! }
//!
//! # #[cfg(target_family = "wasm")]
//! millgate_sdk::plugin!(Words: Compliance);
//! ```
//!
//! Everything here also compiles natively, where host calls go to the mock of [`testing`], so that
//! `cargo test` in a plugin's folder needs no sandbox.
//!
//! # What makes a plugin fast
//! A request gets a fresh copy of the memory that `configure` left behind, and every page of it
//! that the call writes to costs time. So build tables in `configure` and only read them later.
//! The SDK does the rest: its allocator never grows the memory for texts of ordinary size, and an
//! import that is not used does not end up in the component.
#![cfg_attr(all(target_family = "wasm", not(feature = "std")), no_std)]

extern crate alloc;

pub mod bindings;
mod compliance;
mod context;
mod deployment;
mod evaluation;
#[doc(hidden)]
pub mod guest;
pub mod host;
mod macros;
#[doc(hidden)]
pub mod memory;
mod monitoring;
#[cfg(target_family = "wasm")]
#[doc(hidden)]
pub mod panic;
mod plugin;
#[cfg(not(target_family = "wasm"))]
pub mod testing;
mod types;
mod validation;
mod windows;

pub use compliance::{Compliance, Decision, Edit, Refusal, Regeneration, Verdict};
pub use context::{Context, Direction, Segment};
pub use deployment::{
    Action, Arm, ArmRole, ArmSummary, Choice, Deployment, MetricSummary, Recommendation, Rollout,
};
pub use evaluation::{Answer, CaseScores, Evaluation, Score, Scores};
pub use host::{inference, log, metrics, state};
pub use monitoring::{Alert, Event, Monitoring, Report, Severity};
pub use plugin::{Installed, Plugin};
pub use types::{ErrorKind, Finding, Label, Measure, Span, StageError};
pub use validation::{Judgement, Origin, Outcome, Repair, Sample, TextSegment, Validation};
pub use windows::{Checked, Held, WholeText, Window, Windowed};

/// Everything a plugin usually names, with `alloc`'s types that the standard prelude would bring.
pub mod prelude {
    pub use crate::{
        Action, Alert, Answer, Arm, ArmRole, ArmSummary, CaseScores, Checked, Choice, Compliance,
        Context, Decision, Deployment, Direction, Edit, ErrorKind, Evaluation, Event, Finding,
        Installed, Judgement, Label, Measure, MetricSummary, Monitoring, Origin, Outcome, Plugin,
        Recommendation, Refusal, Regeneration, Repair, Report, Rollout, Sample, Score, Scores,
        Segment, Severity, Span, StageError, TextSegment, Validation, Verdict, WholeText, Window,
        Windowed, inference, log, metrics, state,
    };
    pub use alloc::borrow::ToOwned;
    pub use alloc::boxed::Box;
    pub use alloc::collections::{BTreeMap, BTreeSet};
    pub use alloc::format;
    pub use alloc::string::{String, ToString};
    pub use alloc::vec;
    pub use alloc::vec::Vec;
    pub use serde::{Deserialize, Serialize};
}
