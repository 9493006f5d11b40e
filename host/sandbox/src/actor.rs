//! Long-lived plugins: monitors and deployment strategies.

use std::time::Duration;

use crate::call::CallContext;
use crate::contract::deployment::{Arm, Choice, Recommendation, Rollout};
use crate::contract::monitoring::Event;
use crate::contract::types::Label;
use crate::failure::Failure;

/// How a monitor is driven.
#[derive(Clone, Copy, Debug)]
pub struct MonitorOptions {
    /// How often `tick` is called.
    pub tick: Duration,
    /// The most events in one `observe`.
    pub batch: usize,
    /// How long a batch waits to fill.
    pub linger: Duration,
    /// The most events that wait; more are dropped and counted.
    pub mailbox: usize,
    /// How often the state is saved.
    pub save: Duration,
}

impl Default for MonitorOptions {
    fn default() -> Self {
        MonitorOptions {
            tick: Duration::from_secs(10),
            batch: 256,
            linger: Duration::from_millis(200),
            mailbox: 8192,
            save: Duration::from_secs(30),
        }
    }
}

/// A running monitor. Reports go to [`Services::report`](crate::Services::report). Dropping the
/// last clone saves the state and stops it.
#[derive(Clone)]
pub struct MonitorActor {}

impl MonitorActor {
    /// Hands over a finished request. Never waits: false when the mailbox is full and the event
    /// was dropped (and counted).
    pub fn observe(&self, _event: Event) -> bool {
        false
    }

    /// Adds another instance's saved state.
    pub async fn merge(&self, _state: Vec<u8>) -> Result<(), Failure> {
        Err(Failure::Unavailable {
            why: "not yet".into(),
        })
    }

    /// Events dropped because the mailbox was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        0
    }

    /// Works off the mailbox, saves the state and stops. Blocking, at most `timeout`.
    pub fn shutdown(&self, _timeout: Duration) {}
}

/// A running deployment strategy. Dropping the last clone saves the state and stops it.
#[derive(Clone)]
pub struct DeploymentActor {}

impl DeploymentActor {
    /// Picks an arm. Waits at most the stage's `limits.wait` for its turn; on a failure the
    /// caller takes the stable arm. The choice is one of the arms given, its propensity in (0, 1].
    pub async fn route(
        &self,
        _context: &CallContext,
        _features: &[Label],
        _arms: &[Arm],
    ) -> Result<Choice, Failure> {
        Err(Failure::Unavailable {
            why: "not yet".into(),
        })
    }

    /// Looks at a rollout.
    pub async fn review(&self, _rollout: &Rollout) -> Result<Recommendation, Failure> {
        Err(Failure::Unavailable {
            why: "not yet".into(),
        })
    }

    /// Saves the state and stops. Blocking, at most `timeout`.
    pub fn shutdown(&self, _timeout: Duration) {}
}
