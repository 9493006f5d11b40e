//! A call that gave no answer, and why.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::contract::types::StageError;

/// A failed call. The instance that failed is gone; the caller applies the stage's
/// [`FailurePolicy`](crate::FailurePolicy), and the next call gets a new instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// The plugin trapped. `message` holds its panic text where it left one, bounded and free of
    /// control characters.
    #[error("the plugin trapped: {message}")]
    Trap {
        /// What happened, in words.
        message: String,
    },
    /// The plugin ran longer than it may.
    #[error("the plugin ran longer than {} ms; raise `limits.deadline` or give it less to do", limit.as_millis())]
    Timeout {
        /// The limit that it ran into.
        limit: Duration,
    },
    /// The plugin wanted more memory than it may have.
    #[error(
        "the plugin wanted more than {limit} bytes of memory; raise `limits.memory` if it needs them"
    )]
    Memory {
        /// The limit in bytes, summed over the plugin's memories.
        limit: u64,
    },
    /// The answer, or a host call, is larger than it may be.
    #[error("the plugin's answer is too large: {what}")]
    Oversized {
        /// What is too large, and the limit.
        what: String,
    },
    /// The answer breaks the contract.
    #[error("the plugin's answer breaks the contract: {why}")]
    Invalid {
        /// Which rule it breaks, with the numbers.
        why: String,
    },
    /// The plugin itself returned an error.
    #[error("the plugin returned an error: {0}")]
    Stage(#[from] StageError),
    /// No instance was free in time, or the stage is shutting down.
    #[error("no instance of the plugin is free: {why}")]
    Unavailable {
        /// What was exhausted.
        why: String,
    },
}

impl Failure {
    /// One word for metrics: `trap`, `timeout`, `memory`, `oversized`, `invalid`, `error`,
    /// `unavailable`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Failure::Trap { .. } => "trap",
            Failure::Timeout { .. } => "timeout",
            Failure::Memory { .. } => "memory",
            Failure::Oversized { .. } => "oversized",
            Failure::Invalid { .. } => "invalid",
            Failure::Stage(_) => "error",
            Failure::Unavailable { .. } => "unavailable",
        }
    }
}
