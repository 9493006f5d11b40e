//! The inspection of one segment of text, and what may leave of it.

use crate::call::CallContext;
use crate::contract::compliance::{Edit, Verdict};
use crate::failure::Failure;
use crate::stage::Stage;

/// One segment of text under inspection by one stage. Holds its instance until it is dropped.
pub struct Inspection {
    pub(crate) stage: Stage,
    pub(crate) context: CallContext,
}

impl Inspection {
    /// More text. The verdict has been checked against the contract; its offsets count bytes of
    /// the segment's original text over all pushes. After a failure the inspection is over: every
    /// later push and finish gives the same failure again.
    pub fn push(&mut self, _chunks: &[&str]) -> Result<Verdict, Failure> {
        Err(Failure::Unavailable {
            why: format!("{} {:?}", self.stage.name(), self.context),
        })
    }

    /// [`push`](Inspection::push) for any stage.
    pub async fn push_async(&mut self, _chunks: &[&str]) -> Result<Verdict, Failure> {
        Err(Failure::Unavailable {
            why: "not yet".into(),
        })
    }

    /// The segment is complete.
    pub fn finish(&mut self) -> Result<Verdict, Failure> {
        Err(Failure::Unavailable {
            why: "not yet".into(),
        })
    }

    /// [`finish`](Inspection::finish) for any stage.
    pub async fn finish_async(&mut self) -> Result<Verdict, Failure> {
        Err(Failure::Unavailable {
            why: "not yet".into(),
        })
    }

    /// Bytes pushed so far.
    #[must_use]
    pub fn pushed(&self) -> u32 {
        0
    }

    /// Bytes settled so far.
    #[must_use]
    pub fn settled(&self) -> u32 {
        0
    }
}

/// Text that a stage has not settled yet: what was pushed and has not left.
///
/// ```text
/// let mut held = Held::default();
/// held.push(chunk);
/// let verdict = inspection.push(&[chunk])?;
/// let leaves: String = held.settle(&verdict);   // edits applied
/// ```
#[derive(Clone, Debug, Default)]
pub struct Held {
    text: String,
    /// Offset in the segment's original text of the first byte of `text`.
    start: u32,
}

impl Held {
    /// Adds pushed text.
    pub fn push(&mut self, chunk: &str) {
        self.text.push_str(chunk);
    }

    /// What is still held, as it was pushed.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The offset in the segment's original text of the first held byte: all before it has left.
    #[must_use]
    pub fn start(&self) -> u32 {
        self.start
    }

    /// Takes what the verdict settles out of the held text, with its edits applied.
    pub fn settle(&mut self, verdict: &Verdict) -> String {
        let settled = verdict.settled.saturating_sub(self.start) as usize;
        let rest = self.text.split_off(settled.min(self.text.len()));
        let leaves = std::mem::replace(&mut self.text, rest);
        let out = apply(&leaves, self.start, &verdict.edits);
        self.start = verdict.settled.max(self.start);
        out
    }
}

/// Applies edits to a piece of text that begins at offset `start` of its segment.
fn apply(text: &str, start: u32, edits: &[Edit]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for edit in edits {
        let from = edit.span.start.saturating_sub(start) as usize;
        let to = edit.span.end.saturating_sub(start) as usize;
        out.push_str(text.get(at..from).unwrap_or_default());
        out.push_str(&edit.replacement);
        at = to;
    }
    out.push_str(text.get(at..).unwrap_or_default());
    out
}
