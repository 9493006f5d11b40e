//! Who gets the new version?

use alloc::vec::Vec;

use crate::{Context, Label, Plugin, StageError};

pub use crate::bindings::deployment::exports::millgate::stage::deployment::{
    Action, Arm, ArmRole, ArmSummary, Choice, MetricSummary, Recommendation, Rollout,
};

/// Routes requests and reviews rollouts. One long-lived actor, so its memory is a real heap.
pub trait Deployment: Plugin {
    /// Picks an arm for a request. Called for every request: keep it short.
    ///
    /// # Errors
    /// When no arm can be picked; the host then takes the stable one.
    fn route(
        &mut self,
        ctx: &Context<'_>,
        features: &[Label],
        arms: &[Arm],
    ) -> Result<Choice, StageError>;

    /// Looks at the rollout, at the interval that the operator set.
    ///
    /// # Errors
    /// When nothing can be said; the host then holds.
    fn review(&mut self, rollout: &Rollout) -> Result<Recommendation, StageError>;

    /// The state, to survive a restart.
    ///
    /// # Errors
    /// When it cannot be written down.
    fn save(&self) -> Result<Vec<u8>, StageError>;

    /// Takes a saved state in place of the present one.
    ///
    /// # Errors
    /// When the bytes are not a state of this plugin and config.
    fn restore(&mut self, state: &[u8]) -> Result<(), StageError>;
}

impl ArmSummary {
    /// One of the arm's running statistics.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<&MetricSummary> {
        self.metrics.iter().find(|metric| metric.name == name)
    }
}
