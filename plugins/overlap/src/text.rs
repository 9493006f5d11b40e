//! Words of a text, as each metric's reference implementation sees them.
//!
//! The references are Python programs: what they take for white space, lower case and punctuation
//! decides the score, so it is spelled out here rather than left to Rust's own notions.

use alloc::borrow::{Cow, ToOwned};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use crate::porter;

/// Numbers for words: equal words get equal numbers.
#[derive(Default)]
pub struct Vocabulary {
    numbers: BTreeMap<String, u32>,
}

impl Vocabulary {
    /// The number of a word.
    pub fn number(&mut self, word: &str) -> u32 {
        if let Some(&number) = self.numbers.get(word) {
            return number;
        }
        let number = self.numbers.len() as u32;
        self.numbers.insert(word.to_owned(), number);
        number
    }

    /// The numbers of words, in order.
    pub fn numbers<'a>(&mut self, words: impl Iterator<Item = &'a str>) -> Vec<u32> {
        words.map(|word| self.number(word)).collect()
    }
}

/// White space as Python's `str.isspace` has it: Unicode's, and the four information separators.
pub fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// The words between white space.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// The tokens of ROUGE (PyPI `rouge-score` 0.1.2): lower-case runs of `a-z` and `0-9`, everything
/// else separates; with `stem`, tokens of more than three characters are stemmed.
pub fn rouge_tokens(text: &str, stem: bool) -> Vec<Cow<'static, str>> {
    let mut tokens = Vec::new();
    let mut token = String::new();
    for character in text.chars().chain([' ']) {
        // The two characters outside ASCII whose lower case begins with an ASCII letter.
        let lower = match character {
            '\u{212a}' => 'k',
            '\u{130}' => 'i',
            other => other.to_ascii_lowercase(),
        };
        if lower.is_ascii_lowercase() || lower.is_ascii_digit() {
            token.push(lower);
        }
        // The lower case of U+0130 ends in a combining dot, which separates.
        let separates = !(lower.is_ascii_lowercase() || lower.is_ascii_digit());
        if (separates || character == '\u{130}') && !token.is_empty() {
            let whole = core::mem::take(&mut token);
            tokens.push(match stem && whole.len() > 3 {
                true => porter::stem(whole),
                false => Cow::Owned(whole),
            });
        }
    }
    tokens
}

/// The normalisation of SQuAD's official script: lower case, no ASCII punctuation, no articles,
/// single spaces.
pub fn squad_normal(text: &str) -> String {
    let bare: String = text
        .to_lowercase()
        .chars()
        .filter(|character| !character.is_ascii_punctuation())
        .collect();
    let mut normal = String::new();
    for word in words(&without_articles(&bare)) {
        if !normal.is_empty() {
            normal.push(' ');
        }
        normal.push_str(word);
    }
    normal
}

/// Replaces `a`, `an` and `the` by a space where they stand between word boundaries, which are
/// the changes between letters or digits and anything else.
fn without_articles(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(char::is_alphanumeric) {
        let word = &rest[start..];
        let end = word
            .find(|character: char| !character.is_alphanumeric())
            .unwrap_or(word.len());
        kept.push_str(&rest[..start]);
        kept.push_str(match &word[..end] {
            "a" | "an" | "the" => " ",
            other => other,
        });
        rest = &word[end..];
    }
    kept.push_str(rest);
    kept
}

/// The tokenisation `13a` of sacreBLEU 2 (after mteval-v13a.pl), with spaces between the tokens.
pub fn bleu_line(text: &str) -> String {
    let mut line = text
        .trim_end_matches(is_space)
        .replace("<skipped>", "")
        .replace("-\n", "")
        .replace('\n', " ");
    if line.contains('&') {
        for (entity, character) in [
            ("&quot;", "\""),
            ("&amp;", "&"),
            ("&lt;", "<"),
            ("&gt;", ">"),
        ] {
            line = line.replace(entity, character);
        }
    }
    let mut spaced = String::from(" ");
    for character in line.chars() {
        // ASCII punctuation but for the apostrophe, the comma, the hyphen and the full stop.
        let alone =
            character.is_ascii_punctuation() && !matches!(character, '\'' | ',' | '-' | '.');
        if alone {
            spaced.push(' ');
        }
        spaced.push(character);
        if alone {
            spaced.push(' ');
        }
    }
    spaced.push(' ');
    let digit = |character: char| character.is_ascii_digit();
    let stop = |character: char| matches!(character, '.' | ',');
    let line = space_pairs(&spaced, |c| !digit(c), stop, ["", " ", " "]);
    let line = space_pairs(&line, stop, |c| !digit(c), [" ", " ", ""]);
    space_pairs(&line, digit, |c| c == '-', ["", " ", " "])
}

/// Puts `around[0]` before, `around[1]` between and `around[2]` after each pair of neighbours that
/// `first` and `second` accept. Pairs do not overlap, as in a regular expression's substitution.
fn space_pairs(
    line: &str,
    first: impl Fn(char) -> bool,
    second: impl Fn(char) -> bool,
    around: [&str; 3],
) -> String {
    let mut spaced = String::with_capacity(line.len() + line.len() / 4);
    let mut characters = line.chars().peekable();
    while let Some(left) = characters.next() {
        let right = match first(left) {
            true => characters.next_if(|&right| second(right)),
            false => None,
        };
        match right {
            Some(right) => {
                spaced.push_str(around[0]);
                spaced.push(left);
                spaced.push_str(around[1]);
                spaced.push(right);
                spaced.push_str(around[2]);
            }
            None => spaced.push(left),
        }
    }
    spaced
}

/// The words of chrF++: a punctuation mark at a word's end, or else at its beginning, stands alone.
pub fn chrf_words(text: &str) -> impl Iterator<Item = &str> {
    words(text).flat_map(|word| {
        let whole = [word, ""];
        let mut characters = word.chars();
        let parts = match (characters.next(), characters.next_back()) {
            (Some(_), Some(last)) if last.is_ascii_punctuation() => {
                let (head, tail) = word.split_at(word.len() - 1);
                [head, tail]
            }
            (Some(first), Some(_)) if first.is_ascii_punctuation() => {
                let (head, tail) = word.split_at(1);
                [head, tail]
            }
            _ => whole,
        };
        parts.into_iter().filter(|part| !part.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_characters_have_an_ascii_lower_case_from_outside() {
        let strange: Vec<char> = ('\u{80}'..=char::MAX)
            .filter(|character| character.to_lowercase().any(|lower| lower.is_ascii()))
            .collect();
        assert_eq!(strange, ['\u{130}', '\u{212a}']);
    }

    #[test]
    fn articles_go_only_as_whole_words() {
        assert_eq!(
            squad_normal("The cat, an Ant & a théâtre."),
            "cat ant théâtre"
        );
        assert_eq!(squad_normal("a_b x-a"), "ab xa");
        assert_eq!(squad_normal(" A "), "");
    }

    #[test]
    fn rouge_tokens_are_ascii_runs() {
        assert_eq!(
            rouge_tokens("Ein Café-Haus №5 \u{212a}g", false),
            ["ein", "caf", "haus", "5", "kg"]
        );
        assert_eq!(rouge_tokens("running runners", true), ["run", "runner"]);
    }

    #[test]
    fn numbers_keep_their_points_in_13a() {
        let tokens: Vec<String> = words(&bleu_line("It's $3,000.50 - or 1990-1995, \"ok\"."))
            .map(str::to_owned)
            .collect();
        assert_eq!(
            tokens,
            [
                "It's", "$", "3,000.50", "-", "or", "1990", "-", "1995", ",", "\"", "ok", "\"", "."
            ]
        );
    }
}
