//! N-grams of a sequence of symbols, sorted once for all orders.
//!
//! Each position gives one key: the symbol there and those after it, the first one highest. The
//! sorted keys then hold the n-grams of every order up to the widest, because a prefix of a sorted
//! key is sorted too. One sort and one allocation serve six orders, which matters in a sandbox
//! where every page touched is a page copied.

use alloc::vec::Vec;

/// How many bits hold the symbols of one key.
const KEY_BITS: u32 = 128;

/// The n-grams of one text.
pub struct Ngrams {
    /// One key for each position, ascending; positions near the end are padded with zeros.
    keys: Vec<u128>,
    /// Bits of one symbol. Symbols are stored plus one, so that zero is the padding.
    bits: u32,
}

impl Ngrams {
    /// The n-grams of characters, up to order 6.
    pub fn of_characters(characters: impl Iterator<Item = char>) -> Self {
        let symbols: Vec<u32> = characters.map(u32::from).collect();
        Self::new(&symbols, 21)
    }

    /// The n-grams of words (as numbers from a [`Vocabulary`](crate::text::Vocabulary)), up to
    /// order 4.
    pub fn of_words(words: &[u32]) -> Self {
        Self::new(words, 32)
    }

    fn new(symbols: &[u32], bits: u32) -> Self {
        let width = (KEY_BITS / bits) as usize;
        let mut keys: Vec<u128> = (0..symbols.len())
            .map(|start| {
                (0..width).fold(0, |key, offset| {
                    let symbol = symbols
                        .get(start + offset)
                        .map_or(0, |&symbol| u128::from(symbol) + 1);
                    key << bits | symbol
                })
            })
            .collect();
        keys.sort_unstable();
        Self { keys, bits }
    }

    /// How many n-grams of this order there are, repeats counted.
    pub fn total(&self, order: usize) -> usize {
        (self.keys.len() + 1).saturating_sub(order)
    }

    /// How many n-grams of this order both texts have: the size of the multiset intersection.
    pub fn matches(&self, other: &Self, order: usize) -> usize {
        let (mut left, mut right) = (self.of_order(order), other.of_order(order));
        let (mut a, mut b) = (left.next(), right.next());
        let mut matched = 0;
        while let (Some(x), Some(y)) = (a, b) {
            if x <= y {
                a = left.next();
            }
            if y <= x {
                b = right.next();
            }
            matched += usize::from(x == y);
        }
        matched
    }

    /// As [`matches`](Self::matches), against the union of several texts: each n-gram counts as
    /// often as the text that has it most often.
    pub fn matches_any(&self, others: &[Self], order: usize) -> usize {
        let mut matched = 0;
        let mut own = self.of_order(order).peekable();
        while let Some(gram) = own.next() {
            let mut count = 1;
            while own.next_if_eq(&gram).is_some() {
                count += 1;
            }
            let most = others.iter().map(|other| other.count(gram, order)).max();
            matched += count.min(most.unwrap_or(0));
        }
        matched
    }

    fn count(&self, gram: u128, order: usize) -> usize {
        let shift = self.shift(order);
        let from = self.keys.partition_point(|key| key >> shift < gram);
        let to = self.keys.partition_point(|key| key >> shift <= gram);
        to - from
    }

    /// The n-grams of one order, ascending, without those that run over the end.
    fn of_order(&self, order: usize) -> impl Iterator<Item = u128> + '_ {
        let shift = self.shift(order);
        let last = (1u128 << self.bits) - 1;
        self.keys
            .iter()
            .map(move |key| key >> shift)
            .filter(move |gram| gram & last != 0)
    }

    fn shift(&self, order: usize) -> u32 {
        let width = KEY_BITS / self.bits;
        (width - order as u32) * self.bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn counted(symbols: &[u32], order: usize) -> HashMap<Vec<u32>, usize> {
        let mut counts = HashMap::new();
        for gram in symbols.windows(order) {
            *counts.entry(gram.to_vec()).or_default() += 1;
        }
        counts
    }

    proptest! {
        #[test]
        fn counts_equal_those_of_hash_maps(
            texts in prop::collection::vec(prop::collection::vec(0u32..4, 0..30), 2..5),
        ) {
            let grams: Vec<Ngrams> = texts.iter().map(|text| Ngrams::of_words(text)).collect();
            for order in 1..=4 {
                let counts: Vec<_> = texts.iter().map(|text| counted(text, order)).collect();
                prop_assert_eq!(grams[0].total(order), counts[0].values().sum::<usize>());
                let clipped = |most: &dyn Fn(&Vec<u32>) -> usize| -> usize {
                    counts[0].iter().map(|(gram, &count)| count.min(most(gram))).sum()
                };
                let one = clipped(&|gram| counts[1].get(gram).copied().unwrap_or(0));
                prop_assert_eq!(grams[0].matches(&grams[1], order), one);
                let any = clipped(&|gram| {
                    counts[1..].iter().map(|c| c.get(gram).copied().unwrap_or(0)).max().unwrap()
                });
                prop_assert_eq!(grams[0].matches_any(&grams[1..], order), any);
            }
        }
    }

    #[test]
    fn the_highest_character_fits_in_a_symbol() {
        let text = Ngrams::of_characters("\u{10ffff}\u{10ffff}\u{10ffff}".chars());
        assert_eq!(text.matches(&text, 3), 1);
        assert_eq!(text.total(6), 0);
    }
}
