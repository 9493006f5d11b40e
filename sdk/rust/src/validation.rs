//! Is this data well formed?

use alloc::vec::Vec;

use crate::{Context, Finding, Plugin, StageError};

pub use crate::bindings::validation::exports::millgate::stage::validation::{
    Judgement, Origin, Outcome, Repair, Sample, Segment as TextSegment,
};

/// Judges requests on their way in, and the rows of datasets.
pub trait Validation: Plugin {
    /// Judges a batch: as many judgements as samples, in the same order.
    ///
    /// # Errors
    /// When the batch cannot be judged; a bad sample is a `reject`, not an error.
    fn validate(&self, ctx: &Context<'_>, samples: &[Sample])
    -> Result<Vec<Judgement>, StageError>;
}

impl Judgement {
    /// Nothing to object to.
    #[must_use]
    pub fn accept() -> Self {
        Judgement {
            outcome: Outcome::Accept,
            findings: Vec::new(),
        }
    }

    /// Refuses the sample; the message says what to change.
    pub fn reject(message: impl Into<alloc::string::String>, findings: Vec<Finding>) -> Self {
        Judgement {
            outcome: Outcome::Reject(message.into()),
            findings,
        }
    }
}
