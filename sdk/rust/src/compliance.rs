//! Is this text allowed? The streaming form; [`WholeText`](crate::WholeText) and
//! [`Windowed`](crate::Windowed) are easier and become this one.

use alloc::string::String;
use alloc::vec::Vec;

use crate::{Context, Plugin, Span, StageError};

pub use crate::bindings::compliance::exports::millgate::stage::compliance::{
    Decision, Edit, Refusal, Regeneration, Verdict,
};

/// Inspects text as it comes.
///
/// The result must not depend on where the chunks break: check it with
/// [`testing::assert_split_invariant`](crate::testing::assert_split_invariant).
pub trait Compliance: Plugin {
    /// What is remembered of one segment between its pushes.
    type Inspection: 'static;

    /// A segment begins. The context is lent for this call alone: take what is needed later.
    fn begin(&self, ctx: &Context<'_>) -> Self::Inspection;

    /// More text, in one or more pieces.
    ///
    /// # Errors
    /// When the text cannot be judged; the host then applies the stage's failure policy.
    fn push(
        &self,
        inspection: &mut Self::Inspection,
        chunks: &[String],
    ) -> Result<Verdict, StageError>;

    /// The segment is complete: settle the rest.
    ///
    /// # Errors
    /// As for `push`.
    fn finish(&self, inspection: &mut Self::Inspection) -> Result<Verdict, StageError>;
}

impl Verdict {
    /// Nothing to object to up to `settled`.
    #[must_use]
    pub fn pass(settled: u32) -> Self {
        Verdict {
            settled,
            edits: Vec::new(),
            findings: Vec::new(),
            decision: Decision::Pass,
        }
    }
}

impl Edit {
    /// Replaces the span's text.
    pub fn new(span: impl Into<Span>, replacement: impl Into<String>) -> Self {
        Edit {
            span: span.into(),
            replacement: replacement.into(),
        }
    }
}

impl Refusal {
    /// A refusal; the message must not repeat the text that was refused.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Refusal {
            code: code.into(),
            message: message.into(),
        }
    }
}

impl Decision {
    /// Refuses the text.
    pub fn block(code: impl Into<String>, message: impl Into<String>) -> Self {
        Decision::Block(Refusal::new(code, message))
    }
}
