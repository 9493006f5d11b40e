//! ROUGE-N and ROUGE-L F-measures, equal to PyPI `rouge-score` 0.1.2.
//!
//! C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004. Several references:
//! the one with the highest F-measure counts, for each kind of ROUGE on its own.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use crate::ngrams::Ngrams;

/// Precision, recall and their harmonic mean, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rouge {
    /// The share of the answer that is in the reference.
    pub precision: f64,
    /// The share of the reference that is in the answer.
    pub recall: f64,
    /// The F1 of the two.
    pub f1: f64,
}

impl Rouge {
    /// From the number of common units and the sizes of answer and reference.
    pub fn from_counts(common: usize, answer: usize, reference: usize) -> Self {
        let precision = common as f64 / answer.max(1) as f64;
        let recall = common as f64 / reference.max(1) as f64;
        let f1 = match precision + recall > 0.0 {
            true => 2.0 * precision * recall / (precision + recall),
            false => 0.0,
        };
        Self {
            precision,
            recall,
            f1,
        }
    }

    /// The better by F1; the first of equals.
    pub fn better(self, other: Self) -> Self {
        if other.f1 > self.f1 { other } else { self }
    }
}

/// ROUGE-N of one answer against one reference.
pub fn rouge_n(answer: &Ngrams, reference: &Ngrams, order: usize) -> Rouge {
    Rouge::from_counts(
        answer.matches(reference, order),
        answer.total(order),
        reference.total(order),
    )
}

/// ROUGE-L (longest common subsequence) of one answer against one reference, both as word numbers.
pub fn rouge_l(answer: &[u32], reference: &[u32]) -> Rouge {
    Rouge::from_counts(
        longest_common_subsequence(answer, reference),
        answer.len(),
        reference.len(),
    )
}

/// The length of the longest common subsequence.
///
/// Bit-parallel, 64 cells of the table a step: H. Hyyrö, "Bit-parallel LCS-length computation
/// revisited", 2004. A zero bit in `row` marks a column where the table's row grows by one.
fn longest_common_subsequence(a: &[u32], b: &[u32]) -> usize {
    let width = a.len().div_ceil(64);
    let mut places: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for (index, &word) in a.iter().enumerate() {
        let mask = places.entry(word).or_insert_with(|| vec![0; width]);
        mask[index / 64] |= 1 << (index % 64);
    }
    let mut row = vec![u64::MAX; width];
    for word in b {
        let Some(mask) = places.get(word) else {
            continue;
        };
        let mut carry = false;
        for (cells, mask) in row.iter_mut().zip(mask) {
            let (sum, first) = cells.overflowing_add(*cells & mask);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            carry = first || second;
            *cells = sum | (*cells & !mask);
        }
    }
    // Bits beyond the last column stay one: nothing is added there but a carry into ones, which
    // the second half of the step sets again.
    row.iter().map(|cells| cells.count_zeros() as usize).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn by_table(a: &[u32], b: &[u32]) -> usize {
        let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
        for (i, x) in a.iter().enumerate() {
            for (j, y) in b.iter().enumerate() {
                table[i + 1][j + 1] = match x == y {
                    true => table[i][j] + 1,
                    false => table[i + 1][j].max(table[i][j + 1]),
                };
            }
        }
        table[a.len()][b.len()]
    }

    proptest! {
        #[test]
        fn the_bits_give_what_the_table_gives(
            a in prop::collection::vec(0u32..5, 0..200),
            b in prop::collection::vec(0u32..5, 0..200),
        ) {
            prop_assert_eq!(longest_common_subsequence(&a, &b), by_table(&a, &b));
        }
    }

    #[test]
    fn nothing_in_common_scores_zero() {
        assert_eq!(rouge_l(&[], &[]), Rouge::default());
        assert_eq!(rouge_l(&[1, 2], &[3]), Rouge::default());
    }
}
