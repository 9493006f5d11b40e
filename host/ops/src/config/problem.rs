//! What is wrong with a config, said so that it can be mended: the file, the line, what was found,
//! what was expected.

use std::{fmt, ops::Range, path::PathBuf};

/// One thing that is wrong with a config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, as the operator named it.
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do about it; empty when the message says it all.
    pub help: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            line,
            column,
            message,
            help,
        } = self;
        write!(f, "{}:{line}:{column}: {message}", file.display())?;
        if !help.is_empty() {
            write!(f, "\n    help: {help}")?;
        }
        Ok(())
    }
}

/// Gathers problems in the order of the text.
pub(super) struct Problems<'a> {
    text: &'a str,
    file: PathBuf,
    found: Vec<(usize, Problem)>,
}

impl<'a> Problems<'a> {
    pub(super) fn new(text: &'a str, file: PathBuf) -> Self {
        Self {
            text,
            file,
            found: Vec::new(),
        }
    }

    pub(super) fn add(
        &mut self,
        span: &Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        let (line, column) = position(self.text, span.start);
        let problem = Problem {
            file: self.file.clone(),
            line,
            column,
            message: message.into(),
            help: help.into(),
        };
        if !self.found.iter().any(|(_, known)| *known == problem) {
            self.found.push((span.start, problem));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Whether a problem stands inside a part of the text.
    pub(super) fn any_within(&self, span: &Range<usize>) -> bool {
        self.found.iter().any(|(offset, _)| span.contains(offset))
    }

    pub(super) fn len(&self) -> usize {
        self.found.len()
    }

    pub(super) fn into_sorted(mut self) -> Vec<Problem> {
        self.found.sort_by_key(|(offset, _)| *offset);
        self.found.into_iter().map(|(_, problem)| problem).collect()
    }
}

/// Line and column, from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let mut end = offset.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let before = &text[..end];
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    (line, before[start..].chars().count() + 1)
}

/// `did you mean ...?`, or the list of what there is.
pub(super) fn suggest<'n>(
    wanted: &str,
    names: impl Iterator<Item = &'n str>,
    what: &str,
) -> String {
    let names: Vec<&str> = names.collect();
    let closest = names
        .iter()
        .map(|name| (distance(wanted, name), *name))
        .filter(|(distance, name)| *distance <= (wanted.len().max(name.len()) / 3).max(1))
        .min();
    match closest {
        Some((_, name)) => format!("did you mean `{name}`?"),
        None if names.is_empty() => format!("no {what} is defined"),
        None => format!("{what}: {}", names.join(", ")),
    }
}

/// The number of insertions, deletions and substitutions between two words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_characters_from_one() {
        assert_eq!(position("a\nüb = 1", 5), (2, 3));
        assert_eq!(position("", 0), (1, 1));
        assert_eq!(position("a\n", 9), (2, 1));
    }

    #[test]
    fn a_typo_is_answered_with_the_nearest_name() {
        let names = ["input", "output", "monitors"];
        assert_eq!(
            suggest("ouput", names.into_iter(), "keys"),
            "did you mean `output`?"
        );
        assert_eq!(
            suggest("zzz", names.into_iter(), "keys"),
            "keys: input, output, monitors"
        );
    }
}
