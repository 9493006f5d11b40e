//! Is this answer good?

use alloc::string::String;

use crate::{Context, Plugin, StageError};

pub use crate::bindings::evaluation::exports::millgate::stage::evaluation::{
    Answer, CaseScores, Evaluation as Scores, Score,
};

/// Scores answers, one by one and as a set.
pub trait Evaluation: Plugin {
    /// Scores a batch. An empty batch gives an empty evaluation.
    ///
    /// # Errors
    /// When the batch cannot be scored.
    fn evaluate(&self, ctx: &Context<'_>, answers: &[Answer]) -> Result<Scores, StageError>;
}

impl Score {
    /// A score that its name explains.
    pub fn new(name: impl Into<String>, value: f64) -> Self {
        Score {
            name: name.into(),
            value,
            explanation: String::new(),
        }
    }
}
