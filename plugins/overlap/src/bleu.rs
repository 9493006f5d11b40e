//! BLEU-4, equal to sacreBLEU 2 with the signature `nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp`
//! (a set of answers) and with `eff:yes` (one answer, as its `sentence_bleu`).
//!
//! K. Papineni et al., "BLEU", 2002; the smoothing is that of NIST's mteval-v13a. Several
//! references: an n-gram counts as often as the reference that has it most, and the length is that
//! of the reference closest in length, the shorter of two.

use alloc::vec::Vec;

use crate::ngrams::Ngrams;
use crate::text::{Vocabulary, bleu_line, words};

/// The longest n-grams counted.
const ORDERS: usize = 4;

/// The sums that BLEU is computed from. Those of a set are the sums over its answers.
#[derive(Debug, Clone, Copy, Default)]
pub struct BleuCounts {
    /// Tokens of the answers, and of the references closest in length.
    answer: usize,
    reference: usize,
    /// By order: n-grams of the answers that are in a reference, and all of them.
    correct: [usize; ORDERS],
    total: [usize; ORDERS],
}

/// A BLEU score and its parts.
#[derive(Debug, Clone, Copy)]
pub struct Bleu {
    /// 0 to 100.
    pub score: f64,
    /// By order, smoothed, 0 to 100.
    pub precisions: [f64; ORDERS],
    /// What short answers are multiplied by, 0 to 1.
    pub brevity_penalty: f64,
}

impl BleuCounts {
    /// Counts one answer against its references (at least one).
    pub fn of(answer: &str, references: &[&str]) -> Self {
        let mut vocabulary = Vocabulary::default();
        let mut tokens = |text: &str| vocabulary.numbers(words(&bleu_line(text)));
        let answer = tokens(answer);
        // The difference in length, then the length: the smallest pair is the closest reference.
        let mut closest: Option<(usize, usize)> = None;
        let mut grams: Vec<Ngrams> = Vec::with_capacity(references.len());
        for reference in references {
            let reference = tokens(reference);
            let length = reference.len();
            let distance = (length.abs_diff(answer.len()), length);
            closest = Some(closest.map_or(distance, |closest| closest.min(distance)));
            grams.push(Ngrams::of_words(&reference));
        }
        let own = Ngrams::of_words(&answer);
        let mut counts = Self {
            answer: answer.len(),
            reference: closest.map_or(0, |(_, length)| length),
            ..Self::default()
        };
        for order in 1..=ORDERS {
            counts.correct[order - 1] = own.matches_any(&grams, order);
            counts.total[order - 1] = own.total(order);
        }
        counts
    }

    /// Adds the counts of another answer.
    pub fn add(&mut self, other: &Self) {
        self.answer += other.answer;
        self.reference += other.reference;
        for order in 0..ORDERS {
            self.correct[order] += other.correct[order];
            self.total[order] += other.total[order];
        }
    }

    /// The score. `effective_order` leaves out orders for which the answer is too short: right for
    /// one answer, off for a set.
    pub fn score(&self, effective_order: bool) -> Bleu {
        let brevity_penalty = match self.answer {
            0 if self.reference > 0 => 0.0,
            answer if answer < self.reference => {
                libm::exp(1.0 - self.reference as f64 / answer as f64)
            }
            _ => 1.0,
        };
        let mut precisions = [0.0; ORDERS];
        let nothing = Bleu {
            score: 0.0,
            precisions,
            brevity_penalty,
        };
        if self.correct.iter().all(|&correct| correct == 0) {
            return nothing;
        }
        let mut smoothing = 1.0;
        let mut orders = 0;
        let counts = self.correct.iter().zip(&self.total);
        for (precision, (&correct, &total)) in precisions.iter_mut().zip(counts) {
            if total == 0 {
                break;
            }
            orders += 1;
            *precision = match correct {
                0 => {
                    smoothing *= 2.0;
                    100.0 / (smoothing * total as f64)
                }
                _ => 100.0 * correct as f64 / total as f64,
            };
        }
        if orders < ORDERS && !effective_order {
            return Bleu {
                precisions,
                ..nothing
            };
        }
        let logs: f64 = precisions[..orders]
            .iter()
            .map(|&precision| libm::log(precision))
            .sum();
        Bleu {
            score: brevity_penalty * libm::exp(logs / orders as f64),
            precisions,
            brevity_penalty,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_reference_gives_the_length_and_the_shorter_of_two() {
        let counts = BleuCounts::of("a b c", &["a b c d e", "a b c d", "a b"]);
        assert_eq!((counts.answer, counts.reference), (3, 2));
    }

    #[test]
    fn a_perfect_answer_scores_100() {
        let score =
            BleuCounts::of("the cat sat on the mat", &["the cat sat on the mat"]).score(false);
        assert!((score.score - 100.0).abs() < 1e-9);
    }

    #[test]
    fn an_empty_answer_scores_0() {
        assert_eq!(BleuCounts::of("", &["a"]).score(true).score, 0.0);
        assert_eq!(BleuCounts::of("", &[""]).score(true).score, 0.0);
    }
}
