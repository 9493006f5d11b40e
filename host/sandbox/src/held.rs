//! Text on its way: what was pushed and has not been settled yet.

use crate::contract::compliance::{Edit, Verdict};

/// The part of a segment that is held back until a stage settles it.
///
/// ```
/// use millgate_sandbox::{Edit, Held, Span, Verdict};
///
/// let mut held = Held::default();
/// held.push("write to jane@example.com or");
/// let verdict = Verdict {
///     settled: 26,
///     edits: vec![Edit { span: Span { start: 9, end: 25 }, replacement: "[email]".into() }],
///     ..Verdict::default()
/// };
/// assert_eq!(held.settle(&verdict), "write to [email] ");
/// assert_eq!(held.text(), "or");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Held {
    text: String,
    /// The offset in the segment of the first byte of `text`.
    start: u32,
}

impl Held {
    /// Adds text that was pushed.
    pub fn push(&mut self, chunk: &str) {
        self.text.push_str(chunk);
    }

    /// What is still held, as it was pushed.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The offset in the segment of the first held byte: all before it has been settled.
    #[must_use]
    pub fn start(&self) -> u32 {
        self.start
    }

    /// The length of the segment so far: all that was pushed.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.start
            .saturating_add(u32::try_from(self.text.len()).unwrap_or(u32::MAX))
    }

    /// Whether an offset of the segment lies in the held text (or at its end) between two
    /// characters.
    #[must_use]
    pub fn is_boundary(&self, offset: u32) -> bool {
        offset
            .checked_sub(self.start)
            .is_some_and(|at| self.text.is_char_boundary(at as usize))
    }

    /// Lets go of the text up to an offset that has been checked.
    pub(crate) fn forget(&mut self, settled: u32) {
        let length = self
            .text
            .floor_char_boundary(settled.saturating_sub(self.start) as usize);
        self.start = self
            .start
            .saturating_add(u32::try_from(length).unwrap_or(u32::MAX));
        if length == self.text.len() {
            self.text.clear();
        } else {
            self.text.drain(..length);
        }
    }

    /// Takes out what a verdict settles, and gives it back with the verdict's edits applied. The
    /// verdict must have been checked, as those of [`Inspection`](crate::Inspection) are; one that
    /// does not fit the held text settles what it can.
    pub fn settle(&mut self, verdict: &Verdict) -> String {
        let length = verdict.settled.saturating_sub(self.start) as usize;
        let length = self.text.floor_char_boundary(length);
        let from = self.start;
        self.start = from.saturating_add(u32::try_from(length).unwrap_or(u32::MAX));
        let rest = self.text.split_off(length);
        let settled = std::mem::replace(&mut self.text, rest);
        if verdict.edits.is_empty() {
            return settled;
        }
        apply(&settled, from, &verdict.edits)
    }
}

/// A text with edits applied. `from` is the offset of the text's first byte in the segment that
/// the edits count in; they are in order and do not overlap. An edit that does not fit is left
/// out.
#[must_use]
pub fn apply(text: &str, from: u32, edits: &[Edit]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for edit in edits {
        let (Some(start), Some(end)) = (
            edit.span.start.checked_sub(from),
            edit.span.end.checked_sub(from),
        ) else {
            continue;
        };
        let (start, end) = (start as usize, end as usize);
        let (Some(between), Some(_)) = (text.get(at..start), text.get(start..end)) else {
            continue;
        };
        out.push_str(between);
        out.push_str(&edit.replacement);
        at = end;
    }
    out.push_str(text.get(at..).unwrap_or_default());
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::contract::types::Span;

    fn edit(start: u32, end: u32, replacement: &str) -> Edit {
        Edit {
            span: Span { start, end },
            replacement: replacement.into(),
        }
    }

    #[test]
    fn edits_replace_remove_and_insert() {
        let edits = [edit(10, 12, "XY"), edit(12, 13, ""), edit(14, 14, "+")];
        assert_eq!(apply("abcdef", 10, &edits), "XYd+ef");
        assert_eq!(apply("abcdef", 10, &[]), "abcdef");
    }

    #[test]
    fn an_edit_that_does_not_fit_is_left_out() {
        let edits = [
            edit(0, 1, "!"),
            edit(11, 12, "!"),
            edit(11, 13, "B"),
            edit(12, 13, "!"),
        ];
        assert_eq!(apply("aébc", 10, &edits), "aBbc");
    }

    #[test]
    fn what_is_not_settled_stays() {
        let mut held = Held::default();
        held.push("ab");
        held.push("cé");
        assert_eq!((held.start(), held.end()), (0, 5));
        assert_eq!(
            held.settle(&Verdict {
                settled: 2,
                ..Verdict::default()
            }),
            "ab"
        );
        assert_eq!((held.text(), held.start(), held.end()), ("cé", 2, 5));
        assert!(held.is_boundary(3) && held.is_boundary(5));
        assert!(!held.is_boundary(4) && !held.is_boundary(1) && !held.is_boundary(6));
        assert_eq!(
            held.settle(&Verdict {
                settled: 9,
                ..Verdict::default()
            }),
            "cé"
        );
    }

    proptest! {
        #[test]
        fn settling_in_steps_gives_what_settling_at_once_gives(
            text in "[a-é]{0,40}",
            cuts in proptest::collection::vec(0usize..80, 0..6),
            marks in proptest::collection::vec((0usize..80, 0usize..4), 0..5),
        ) {
            let boundary = |at: usize| text.floor_char_boundary(at.min(text.len()));
            // Edits in order, none overlapping.
            let mut edits: Vec<Edit> = Vec::new();
            let mut marks = marks;
            marks.sort_unstable();
            for (at, length) in marks {
                let start = boundary(at).max(edits.last().map_or(0, |e: &Edit| e.span.end as usize));
                let end = boundary(start + length).max(start);
                edits.push(edit(start as u32, end as u32, "<>"));
            }
            // Cuts that no edit crosses.
            let mut cuts: Vec<usize> = cuts.into_iter().map(boundary).collect();
            cuts.push(text.len());
            cuts.sort_unstable();
            cuts.retain(|&cut| {
                !edits.iter().any(|e| (e.span.start as usize) < cut && cut < e.span.end as usize)
            });
            let whole = apply(&text, 0, &edits);

            let mut held = Held::default();
            held.push(&text);
            let (mut out, mut rest) = (String::new(), edits);
            for cut in cuts {
                let later = rest.iter().position(|e| e.span.end as usize > cut).unwrap_or(rest.len());
                let now: Vec<Edit> = rest.drain(..later).collect();
                out += &held.settle(&Verdict { settled: cut as u32, edits: now, ..Verdict::default() });
            }
            prop_assert_eq!(out, whole);
            prop_assert_eq!(held.text(), "");
        }
    }
}
