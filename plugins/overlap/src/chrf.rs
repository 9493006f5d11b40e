//! chrF2 and chrF++, equal to sacreBLEU 2 (`nc:6|nw:0|space:no|eff:yes` and `nw:2`).
//!
//! M. Popović, "chrF: character n-gram F-score for automatic MT evaluation", 2015. Several
//! references: the one with the highest score counts, and its counts go into the set's score.

use crate::ngrams::Ngrams;
use crate::text::{Vocabulary, chrf_words, is_space};

/// The longest character n-grams counted.
const CHARACTER_ORDERS: usize = 6;

/// All orders: those of characters, then up to two of words.
const ORDERS: usize = CHARACTER_ORDERS + 2;

/// Recall counts twice as much as precision; the square.
const BETA_SQUARED: f64 = 4.0;

/// The sums that chrF is computed from: by order, n-grams of the answers, of the references, and
/// common to both.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChrfCounts {
    orders: [(usize, usize, usize); ORDERS],
}

impl ChrfCounts {
    /// Counts one answer against the best of its references. `word_order` is 0 for chrF, 2 for
    /// chrF++.
    pub fn of(answer: &str, references: &[&str], word_order: usize) -> Self {
        let mut vocabulary = Vocabulary::default();
        let mut grams = |text: &str| {
            let words = match word_order {
                0 => Default::default(),
                _ => vocabulary.numbers(chrf_words(text)),
            };
            let characters = text.chars().filter(|&character| !is_space(character));
            (Ngrams::of_characters(characters), Ngrams::of_words(&words))
        };
        let own = grams(answer);
        let mut best: Option<(f64, Self)> = None;
        for reference in references {
            let other = grams(reference);
            let mut counts = Self::default();
            for order in 1..=CHARACTER_ORDERS {
                counts.orders[order - 1] = count(&own.0, &other.0, order);
            }
            for order in 1..=word_order.min(ORDERS - CHARACTER_ORDERS) {
                counts.orders[CHARACTER_ORDERS + order - 1] = count(&own.1, &other.1, order);
            }
            let score = counts.score();
            if best.is_none_or(|(highest, _)| score > highest) {
                best = Some((score, counts));
            }
        }
        best.map(|(_, counts)| counts).unwrap_or_default()
    }

    /// Adds the counts of another answer.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.orders.iter_mut().zip(&other.orders) {
            *sum = (sum.0 + more.0, sum.1 + more.1, sum.2 + more.2);
        }
    }

    /// The score, 0 to 100: the F2 of the mean precision and the mean recall over the orders that
    /// both sides are long enough for.
    pub fn score(&self) -> f64 {
        let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
        for &(answer, reference, common) in &self.orders {
            if answer > 0 && reference > 0 {
                precision += common as f64 / answer as f64;
                recall += common as f64 / reference as f64;
                orders += 1.0;
            }
        }
        if precision + recall == 0.0 {
            return 0.0;
        }
        let (precision, recall) = (precision / orders, recall / orders);
        100.0 * (1.0 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
    }
}

fn count(answer: &Ngrams, reference: &Ngrams, order: usize) -> (usize, usize, usize) {
    let total = reference.total(order);
    // An order that the reference is too short for does not count against the answer.
    let own = if total > 0 { answer.total(order) } else { 0 };
    (own, total, answer.matches(reference, order))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_reference_counts() {
        let one = ChrfCounts::of("kitten", &["kitten"], 0).score();
        let two = ChrfCounts::of("kitten", &["dog", "kitten"], 0).score();
        assert_eq!((one, two), (100.0, 100.0));
    }

    #[test]
    fn white_space_does_not_count_in_chrf() {
        assert_eq!(ChrfCounts::of("a b\u{a0}c", &["abc"], 0).score(), 100.0);
        assert!(ChrfCounts::of("a b c", &["abc"], 2).score() < 100.0);
    }
}
