//! Compliance without streams: the author judges a text, or one window of it, and the SDK cuts the
//! stream into windows.
//!
//! The cuts depend on the text alone, never on where its chunks break, and a window is judged only
//! when all of it is there. So the result is split invariant by construction, whatever `check` does.

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use crate::types::offset;
use crate::{
    Compliance, Context, Decision, Edit, Finding, Plugin, Segment, Span, StageError, Verdict,
};

/// Judges a segment as a whole. Everything is held back until the segment is complete, so prefer
/// [`Windowed`] where the rule allows it: the client of a streaming answer waits.
pub trait WholeText: Plugin {
    /// Judges the text. Spans count from its first byte.
    fn check(&self, segment: &Segment, text: &str) -> Checked;
}

/// Judges a segment window by window.
pub trait Windowed: Plugin {
    /// How the text is cut.
    fn window(&self) -> Window;

    /// Judges one window. Spans count from the window's first byte.
    fn check(&self, segment: &Segment, window: &str) -> Checked;
}

/// How a text is cut into windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// The whole segment is one window.
    Whole,
    /// Line by line, with the newline. A line longer than `max` bytes is cut there.
    Lines {
        /// The longest window, in bytes.
        max: usize,
    },
    /// Sentence by sentence: to the white space behind `.`, `!`, `?` or their like, or to a newline.
    Sentences {
        /// The longest window, in bytes.
        max: usize,
    },
    /// For rules whose matches are at most this many bytes long and that look at most as far around
    /// them: the text is cut every so many bytes, and a window shows one such piece, the one before
    /// it and the one behind it. Only what starts in the middle piece counts. Each byte is seen
    /// three times, and at most twice this many bytes are held back.
    Matches {
        /// The longest match, in bytes.
        longest: usize,
    },
}

impl<P: WholeText> Windowed for P {
    fn window(&self) -> Window {
        Window::Whole
    }

    fn check(&self, segment: &Segment, window: &str) -> Checked {
        WholeText::check(self, segment, window)
    }
}

/// What a check found in its window.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// Changes, in any order; where two overlap, the one that starts first wins.
    pub edits: Vec<Edit>,
    /// Evidence.
    pub findings: Vec<Finding>,
    /// Pass, block or regenerate.
    pub decision: Decision,
}

impl Checked {
    /// Nothing to object to.
    #[must_use]
    pub fn pass() -> Self {
        Checked {
            edits: Vec::new(),
            findings: Vec::new(),
            decision: Decision::Pass,
        }
    }

    /// Replaces a span and says why.
    pub fn replace(
        &mut self,
        span: impl Into<Span>,
        replacement: impl Into<String>,
        finding: Finding,
    ) {
        let span = span.into();
        self.edits.push(Edit {
            span,
            replacement: replacement.into(),
        });
        self.findings.push(finding.at(span));
    }

    /// Reports without changing anything.
    pub fn note(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Refuses the text.
    pub fn block(&mut self, code: impl Into<String>, message: impl Into<String>, finding: Finding) {
        self.decision = Decision::block(code, message);
        self.findings.push(finding);
    }
}

impl Default for Checked {
    fn default() -> Self {
        Checked::pass()
    }
}

/// What is held of a segment.
#[derive(Debug)]
pub struct Held {
    segment: Segment,
    /// The text from `base` on.
    text: String,
    /// The offset in the segment of `text`'s first byte.
    base: usize,
    /// Up to where the text is decided.
    settled: usize,
    /// Where the next window's own piece begins. Not `settled`: an edit may reach beyond a cut.
    next: usize,
    /// Set by a refusal: nothing more is said.
    refused: Option<Decision>,
    /// A whole text is judged even when it is empty.
    judged: bool,
}

/// A window: the text that is shown, and the part of it that counts.
struct Piece {
    shown: Range<usize>,
    counts: Range<usize>,
}

impl Piece {
    /// Whether what starts at an offset counts. Where nothing is shown behind the part that counts,
    /// an empty span at its end does too.
    fn counts(&self, start: usize) -> bool {
        self.counts.contains(&start)
            || (start == self.counts.end && self.counts.end == self.shown.end)
    }
}

impl Held {
    fn end(&self) -> usize {
        self.base + self.text.len()
    }

    /// The text of a range of the segment.
    fn slice(&self, range: Range<usize>) -> &str {
        self.text
            .get(range.start - self.base..range.end - self.base)
            .unwrap_or_default()
    }

    /// The last character boundary at or before an offset of the segment, for offsets up to the end.
    fn boundary(&self, at: usize) -> usize {
        let at = at.min(self.end());
        self.base + self.text.floor_char_boundary(at.saturating_sub(self.base))
    }

    /// The next window, when all of it is there.
    fn piece(&self, window: Window, complete: bool) -> Option<Piece> {
        let from = self.next;
        let end = self.end();
        if let Window::Matches { longest } = window {
            let longest = longest.max(16);
            if from >= end {
                return None;
            }
            // `from` is the boundary of a multiple of `longest`; characters are shorter than it.
            let number = from.div_ceil(longest);
            if end < (number + 2) * longest && !complete {
                return None;
            }
            let before = self.boundary(number.saturating_sub(1) * longest);
            let to = self.boundary((number + 1) * longest);
            let behind = self.boundary((number + 2) * longest);
            return Some(Piece {
                shown: before..behind,
                counts: from..to,
            });
        }
        let rest = self.slice(from..end);
        let to = match window {
            Window::Lines { max } => cut(rest, max, false),
            Window::Sentences { max } => cut(rest, max, true),
            Window::Whole | Window::Matches { .. } => None,
        };
        match to {
            Some(length) => Some(Piece {
                shown: from..from + length,
                counts: from..from + length,
            }),
            None if complete && (!rest.is_empty() || !self.judged) => Some(Piece {
                shown: from..end,
                counts: from..end,
            }),
            None => None,
        }
    }
}

/// The length of the first line or sentence of a text, if its end is there. Looks at most one
/// character beyond it, and never cuts where only the end of what came so far would have it.
fn cut(rest: &str, max: usize, sentences: bool) -> Option<usize> {
    let max = max.max(4);
    let mut terminated = false;
    for (at, character) in rest.char_indices() {
        let behind = at + character.len_utf8();
        if behind > max {
            return Some(at);
        }
        if character == '\n' || (sentences && terminated && character.is_whitespace()) {
            return Some(behind);
        }
        terminated = matches!(character, '.' | '!' | '?' | '…' | '。' | '！' | '？')
            || (terminated && matches!(character, '"' | '\'' | ')' | ']' | '”' | '’' | '»'));
    }
    None
}

impl<P: Windowed> Compliance for P {
    type Inspection = Held;

    fn begin(&self, ctx: &Context<'_>) -> Held {
        Held {
            segment: Segment::of(ctx),
            text: String::new(),
            base: 0,
            settled: 0,
            next: 0,
            refused: None,
            judged: self.window() != Window::Whole,
        }
    }

    fn push(&self, held: &mut Held, chunks: &[String]) -> Result<Verdict, StageError> {
        for chunk in chunks {
            held.text.push_str(chunk);
        }
        advance(self, held, false)
    }

    fn finish(&self, held: &mut Held) -> Result<Verdict, StageError> {
        advance(self, held, true)
    }
}

/// Judges every window that is there.
fn advance<P: Windowed>(
    plugin: &P,
    held: &mut Held,
    complete: bool,
) -> Result<Verdict, StageError> {
    let mut verdict = Verdict::pass(offset(held.settled));
    if let Some(decision) = &held.refused {
        verdict.decision = decision.clone();
        return Ok(verdict);
    }
    let window = plugin.window();
    while let Some(piece) = held.piece(window, complete) {
        held.judged = true;
        let checked = plugin.check(&held.segment, held.slice(piece.shown.clone()));
        let at = piece.shown.start;
        let counts = |start: usize| piece.counts(start);
        let decided = !matches!(checked.decision, Decision::Pass);

        for mut finding in checked.findings {
            if let Some(span) = &mut finding.span {
                *span = shift(held, &piece, *span)?;
                let start = span.start as usize;
                if start < held.settled || !(decided || counts(start)) {
                    continue;
                }
            }
            verdict.findings.push(finding);
        }
        if decided {
            // Nothing of this window leaves, so its edits do not matter.
            verdict.decision = checked.decision;
            if let Decision::Regenerate(regeneration) = &mut verdict.decision {
                let keep = held.boundary((at + regeneration.keep as usize).max(held.settled));
                regeneration.keep = offset(keep);
                held.text.truncate(keep - held.base);
                held.next = held.next.min(keep);
            } else {
                held.refused = Some(verdict.decision.clone());
            }
            return Ok(verdict);
        }
        let mut edits = checked.edits;
        for edit in &mut edits {
            edit.span = shift(held, &piece, edit.span)?;
        }
        edits.sort_by_key(|edit| (edit.span.start, edit.span.end));
        for edit in edits {
            let (start, end) = (edit.span.start as usize, edit.span.end as usize);
            if start >= held.settled && counts(start) {
                held.settled = end;
                verdict.edits.push(edit);
            }
        }
        held.next = piece.counts.end;
        held.settled = held.settled.max(held.next);
        verdict.settled = offset(held.settled);
    }
    // Keep what the next window shows.
    let keep = match window {
        Window::Matches { longest } => {
            held.boundary(held.next.div_ceil(longest.max(16)).saturating_sub(1) * longest.max(16))
        }
        _ => held.next,
    };
    held.text.drain(..keep.max(held.base) - held.base);
    held.base = keep.max(held.base);
    Ok(verdict)
}

/// A span of a window as one of the segment.
fn shift(held: &Held, piece: &Piece, span: Span) -> Result<Span, StageError> {
    let (start, end) = (
        piece.shown.start + span.start as usize,
        piece.shown.start + span.end as usize,
    );
    let local = |at: usize| at <= piece.shown.end && held.text.is_char_boundary(at - held.base);
    if start > end || !local(start) || !local(end) {
        return Err(StageError::internal(
            "span-out-of-range",
            alloc::format!(
                "the check returned the span {span}, which is no range of characters of its window"
            ),
        ));
    }
    Ok(Span {
        start: offset(start),
        end: offset(end),
    })
}
