//! Is something changing?

use alloc::vec::Vec;

use crate::{Plugin, StageError};

pub use crate::bindings::monitoring::exports::millgate::stage::monitoring::{
    Alert, Event, Report, Severity,
};

/// Watches finished requests. One long-lived actor, so its memory is a real heap.
pub trait Monitoring: Plugin {
    /// A batch of finished requests, oldest first.
    ///
    /// # Errors
    /// When the events cannot be used.
    fn observe(&mut self, events: Vec<Event>) -> Result<Report, StageError>;

    /// Time passes: milliseconds since 1970.
    ///
    /// # Errors
    /// When no report can be made.
    fn tick(&mut self, now_ms: u64) -> Result<Report, StageError>;

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

    /// Adds another instance's saved state to the present one, in any order.
    ///
    /// # Errors
    /// As for `restore`.
    fn merge(&mut self, state: &[u8]) -> Result<(), StageError>;
}

impl Event {
    /// The value of a label.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|label| label.name == name)
            .map(|label| label.value.as_str())
    }

    /// The value of a measure.
    #[must_use]
    pub fn measure(&self, name: &str) -> Option<f64> {
        self.measures
            .iter()
            .find(|measure| measure.name == name)
            .map(|measure| measure.value)
    }
}
