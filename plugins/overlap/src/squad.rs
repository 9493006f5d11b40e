//! Exact match and token F1, equal to SQuAD's official evaluation script (`evaluate-v2.0.py`).
//!
//! P. Rajpurkar et al., "SQuAD", 2016 and 2018. Several references: the best counts, for each of
//! the two on its own.

use alloc::string::String;

use serde::Deserialize;

use crate::ngrams::Ngrams;
use crate::rouge::Rouge;
use crate::text::{Vocabulary, words};

/// Precision, recall and F1 of the common tokens of two normalised texts. Where one has no token
/// at all, 1 if the other has none either.
pub fn token_f1(answer: &str, reference: &str) -> Rouge {
    if answer.is_empty() || reference.is_empty() {
        let equal = f64::from(u8::from(answer == reference));
        return Rouge {
            precision: equal,
            recall: equal,
            f1: equal,
        };
    }
    let mut vocabulary = Vocabulary::default();
    let mut grams = |text: &str| Ngrams::of_words(&vocabulary.numbers(words(text)));
    let (answer, reference) = (grams(answer), grams(reference));
    Rouge::from_counts(
        answer.matches(&reference, 1),
        answer.total(1),
        reference.total(1),
    )
}

/// The text as the exact match compares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalisation {
    /// As SQuAD: lower case, no punctuation, no articles, single spaces.
    #[default]
    Squad,
    /// Without white space at both ends.
    Trim,
    /// As it is.
    None,
}

impl Normalisation {
    /// Normalises a text.
    pub fn apply(self, text: &str) -> String {
        match self {
            Self::Squad => crate::text::squad_normal(text),
            Self::Trim => text.trim_matches(crate::text::is_space).into(),
            Self::None => text.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f1_counts_common_tokens() {
        let score = token_f1("cat sat", "cat sat down");
        assert_eq!(
            (score.precision, score.recall, score.f1),
            (1.0, 2.0 / 3.0, 0.8)
        );
        assert_eq!(token_f1("", "").f1, 1.0);
        assert_eq!(token_f1("", "x").f1, 0.0);
    }
}
