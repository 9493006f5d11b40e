//! A text as it comes: keeps what is not decided yet, and as much before it as the scanner looks
//! back.

use core::ops::ControlFlow;

use millgate_sdk::prelude::*;

use crate::Pii;
use crate::config::Action;
use crate::cursor::Cursor;
use crate::scanner::{Found, HISTORY, Progress};

/// One segment under inspection.
#[derive(Debug, Default)]
pub struct Inspection {
    /// The text from `base` on.
    held: Vec<u8>,
    /// The offset in the segment of the first byte held.
    base: usize,
    /// How far the scan has come, in offsets of what is held.
    progress: Progress,
    /// Set by a refusal: nothing more leaves and nothing more is said.
    refused: Option<Decision>,
}

impl Inspection {
    /// More text.
    pub fn push(&mut self, pii: &Pii, chunks: &[String]) -> Verdict {
        match chunks {
            // The usual case of a text in one piece is scanned where it lies.
            [chunk] if self.held.is_empty() => {
                let verdict = self.scan(pii, chunk.as_bytes(), false);
                let keep = self.forget();
                self.held = chunk.as_bytes().get(keep..).unwrap_or_default().into();
                verdict
            }
            _ => {
                let mut held = core::mem::take(&mut self.held);
                for chunk in chunks {
                    held.extend_from_slice(chunk.as_bytes());
                }
                let verdict = self.scan(pii, &held, false);
                held.drain(..self.forget());
                self.held = held;
                verdict
            }
        }
    }

    /// The end of the text.
    pub fn finish(&mut self, pii: &Pii) -> Verdict {
        let held = core::mem::take(&mut self.held);
        self.scan(pii, &held, true)
    }

    /// How many bytes in front are needed no more; offsets count from behind them afterwards.
    fn forget(&mut self) -> usize {
        let gone = self.progress.settled.saturating_sub(HISTORY);
        self.base += gone;
        self.progress.at -= gone;
        self.progress.settled -= gone;
        self.progress.floor = self.progress.floor.saturating_sub(gone);
        gone
    }

    fn scan(&mut self, pii: &Pii, text: &[u8], complete: bool) -> Verdict {
        let mut verdict = Verdict::pass(0);
        if let Some(decision) = &self.refused {
            verdict.decision = decision.clone();
        } else {
            let cursor = Cursor::new(text, complete);
            self.progress = pii.scanner.advance(&cursor, self.progress, |found| {
                report(pii, self.base, text, found, &mut verdict)
            });
            if verdict.decision != Decision::Pass {
                self.refused = Some(verdict.decision.clone());
            }
        }
        verdict.settled = offset(self.base + self.progress.settled);
        verdict
    }
}

/// Writes a match into the verdict; breaks when it ends the text.
fn report(
    pii: &Pii,
    base: usize,
    text: &[u8],
    found: Found,
    verdict: &mut Verdict,
) -> ControlFlow<()> {
    let entity = found.entity;
    let span = Span {
        start: offset(base + found.start),
        end: offset(base + found.end),
    };
    let explanation = match found.context {
        true => format!("{}; a context word stands before it", found.evidence),
        false => found.evidence.into(),
    };
    verdict
        .findings
        .push(Finding::new(entity.name(), found.score, explanation).at(span));
    let value = || String::from_utf8_lossy(text.get(found.start..found.end).unwrap_or_default());
    let replacement = match pii.action(entity) {
        Action::Mask => crate::replace::mask(pii.mask, entity, &value()),
        Action::Pseudonym => match &pii.pseudonyms {
            Some(pseudonyms) => pseudonyms.of(entity, &value()),
            // `configure` refuses a config in which this could happen.
            None => entity.label().into(),
        },
        Action::Block => {
            let message = format!(
                "The text contains {}, which is not allowed here.",
                entity.phrase()
            );
            verdict.decision = Decision::block(entity.name(), message);
            return ControlFlow::Break(());
        }
    };
    verdict.edits.push(Edit::new(span, replacement));
    ControlFlow::Continue(())
}

/// An offset as the contract carries it; a guest's memory is below 4 GiB.
fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}
