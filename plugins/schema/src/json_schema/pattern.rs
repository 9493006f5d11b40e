//! Regular expressions of ECMA-262, as far as they can be matched in linear time, compiled to dense
//! automata: nothing is written when they are used.

use alloc::format;
use alloc::string::String;

use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::{Input, MatchKind};

/// The most memory that one pattern's automaton may take, in bytes.
const MAX_AUTOMATON: usize = 4 << 20;

/// A compiled pattern and its source.
pub(super) struct Pattern {
    automaton: dense::DFA<alloc::vec::Vec<u32>>,
    source: String,
}

impl core::fmt::Debug for Pattern {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "/{}/", self.source)
    }
}

impl Pattern {
    /// Compiles a pattern, or says why it cannot be.
    pub(super) fn compile(source: &str) -> Result<Self, String> {
        let built = dense::Builder::new()
            .configure(
                dense::Config::new()
                    .start_kind(StartKind::Unanchored)
                    .match_kind(MatchKind::All)
                    .dfa_size_limit(Some(MAX_AUTOMATON))
                    .determinize_size_limit(Some(2 * MAX_AUTOMATON)),
            )
            .thompson(thompson::Config::new().nfa_size_limit(Some(MAX_AUTOMATON)))
            .build(&translate(source));
        match built {
            Ok(automaton) => Ok(Self {
                automaton,
                source: source.into(),
            }),
            Err(error) => Err(format!(
                "the pattern cannot be used ({error}): look-around and back-references are not supported, and long repetitions belong in `maxLength`"
            )),
        }
    }

    /// Whether the pattern is found anywhere in the text.
    pub(super) fn is_match(&self, text: &str) -> bool {
        let found = self
            .automaton
            .try_search_fwd(&Input::new(text).earliest(true));
        // The search gives up on nothing: no quit bytes are configured.
        matches!(found, Ok(Some(_)))
    }

    /// The pattern as it was written.
    pub(super) fn source(&self) -> &str {
        &self.source
    }
}

/// ECMA's `\d`, `\w`, `\b` and their opposites are of ASCII alone.
fn translate(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut characters = source.chars();
    let mut in_class = false;
    while let Some(character) = characters.next() {
        if character != '\\' {
            in_class = match character {
                '[' => true,
                ']' => false,
                _ => in_class,
            };
            // In a class of ECMA these mean themselves.
            if in_class && matches!(character, '&' | '~') {
                text.push('\\');
            }
            text.push(character);
            continue;
        }
        match (characters.next(), in_class) {
            (Some('d'), true) => text.push_str("0-9"),
            (Some('d'), false) => text.push_str("[0-9]"),
            (Some('D'), _) => text.push_str("[^0-9]"),
            (Some('w'), true) => text.push_str("A-Za-z0-9_"),
            (Some('w'), false) => text.push_str("[A-Za-z0-9_]"),
            (Some('W'), _) => text.push_str("[^A-Za-z0-9_]"),
            (Some('s'), true) => text.push_str(SPACES),
            (Some('s'), false) => text.push_str(&format!("[{SPACES}]")),
            (Some('S'), _) => text.push_str(&format!("[^{SPACES}]")),
            (Some('b'), true) => text.push_str("\\x08"),
            (Some('b'), false) => text.push_str("(?-u:\\b)"),
            (Some('B'), false) => text.push_str("(?-u:\\B)"),
            (Some(other), _) => {
                text.push('\\');
                text.push(other);
            }
            (None, _) => text.push('\\'),
        }
    }
    text
}

/// ECMA's white space and line ends.
const SPACES: &str =
    "\\t-\\r \\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000\\ufeff";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_ecma() {
        for (pattern, text, expected) in [
            ("a+", "xaay", true),
            ("^a*$", "aab", false),
            ("^\\d+$", "12", true),
            ("^\\d+$", "१२", false),
            ("^[\\w.-]+$", "a_b.c-d", true),
            ("^\\S+$", "a\u{a0}b", false),
            ("\\bcat\\b", "a cat.", true),
            ("\\bcat\\b", "concat", false),
            ("^\\p{L}+$", "héllo", true),
            ("^[a-z&&]+$", "a&b", true),
            ("^\\u00e9$", "é", true),
            ("^a\\/b$", "a/b", true),
            ("", "", true),
        ] {
            assert_eq!(
                Pattern::compile(pattern).unwrap().is_match(text),
                expected,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn what_is_not_linear_or_too_large_is_refused() {
        for pattern in ["(?=a)b", "(a)\\1", "(", "(\\p{L}{1,400}){1,400}"] {
            assert!(Pattern::compile(pattern).is_err(), "{pattern}");
        }
    }
}
