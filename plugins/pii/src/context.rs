//! Words that make a match more likely: one among the five tokens before it counts.

use millgate_sdk::prelude::*;

/// How many tokens before a match are looked at.
const TOKENS: usize = 5;

/// The longest word that is compared, in bytes.
const LONGEST_WORD: usize = 32;

/// A set of words in lower case.
#[derive(Debug)]
pub struct Words(Vec<Box<[u8]>>);

impl Words {
    /// The built-in words and the operator's.
    pub fn new(built_in: &[&str], own: &[String]) -> Self {
        let own = own.iter().map(String::as_str);
        let mut words: Vec<Box<[u8]>> = built_in
            .iter()
            .copied()
            .chain(own)
            .map(|word| word.to_lowercase().into_bytes().into())
            .collect();
        words.sort_unstable();
        words.dedup();
        Words(words)
    }

    /// Whether a token of the text is one of the words, its ASCII letters in either case.
    pub fn contains(&self, token: &[u8]) -> bool {
        let mut lower = [0; LONGEST_WORD];
        let Some(lower) = lower.get_mut(..token.len()) else {
            return false;
        };
        lower.copy_from_slice(token);
        lower.make_ascii_lowercase();
        self.0.binary_search_by(|word| (**word).cmp(lower)).is_ok()
    }
}

/// How far back they are looked for, in bytes.
pub const REACH: usize = 96;

/// The tokens before an offset of a text, last first. A token is a run of letters, digits, `-` and
/// `#`, without dashes at its ends, so `e-mail` and `ss#` are one each. One that begins farther
/// back than the reach does not count.
pub fn words_before(text: &[u8], at: usize) -> impl Iterator<Item = &[u8]> {
    let token =
        |byte: u8| byte.is_ascii_alphanumeric() || byte >= 0x80 || matches!(byte, b'-' | b'#');
    let from = at.saturating_sub(REACH);
    let mut rest = text.get(from..at).unwrap_or_default();
    core::iter::from_fn(move || {
        let end = rest.iter().rposition(|&byte| token(byte))? + 1;
        let start = match rest.get(..end)?.iter().rposition(|&byte| !token(byte)) {
            Some(before) => before + 1,
            None if from == 0 => 0,
            None => return None,
        };
        let mut word = rest.get(start..end)?;
        rest = rest.get(..start)?;
        while let [inner @ .., b'-'] | [b'-', inner @ ..] = word {
            word = inner;
        }
        Some(word)
    })
    .filter(|word| !word.is_empty())
    .take(TOKENS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&str> {
        words_before(text.as_bytes(), text.len())
            .map(|word| core::str::from_utf8(word).unwrap_or("?"))
            .collect()
    }

    #[test]
    fn the_last_five_tokens_come_last_first() {
        assert_eq!(
            words("one two three four five six: "),
            ["six", "five", "four", "three", "two"]
        );
        assert_eq!(words("My e-mail -- (ss#) "), ["ss#", "e-mail", "My"]);
        assert_eq!(words(""), [""; 0]);
    }

    #[test]
    fn a_token_that_begins_beyond_the_reach_does_not_count() {
        let long = "x".repeat(REACH + 1);
        assert_eq!(words(&format!("{long} ")), [""; 0]);
        assert_eq!(words(&format!("{long} tel ")), ["tel"]);
    }

    #[test]
    fn words_are_compared_in_either_case() {
        let set = Words::new(&["téléphone", "tel"], &["Ruf".into()]);
        assert!(
            set.contains(b"TEL") && set.contains(b"ruf") && set.contains("Téléphone".as_bytes())
        );
        assert!(!set.contains(b"telex") && !set.contains("x".repeat(99).as_bytes()));
    }
}
