//! Counts of categories, bounded, whose merge is exact.
//!
//! At most [`MOST`] categories are kept, those first in the order of their names, and all others
//! are one count. A category that is among the first of all is among the first of every part, so
//! its count is complete however the parts are merged.

use alloc::collections::BTreeMap;
use alloc::string::String;

use serde::{Deserialize, Serialize};

/// How many categories are kept by name.
pub const MOST: usize = 64;

/// The longest name that is kept, in bytes.
const LONGEST: usize = 64;

/// Counts by category.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    counts: BTreeMap<String, u64>,
    others: u64,
}

impl Tally {
    /// Counts a category. Long names are cut.
    pub fn add(&mut self, category: &str, count: u64) {
        let mut end = category.len().min(LONGEST);
        while !category.is_char_boundary(end) {
            end -= 1;
        }
        let category = &category[..end];
        if let Some(sum) = self.counts.get_mut(category) {
            *sum = sum.saturating_add(count);
            return;
        }
        self.counts.insert(category.into(), count);
        if self.counts.len() > MOST
            && let Some((_, count)) = self.counts.pop_last()
        {
            self.others = self.others.saturating_add(count);
        }
    }

    /// Adds the counts of another tally.
    pub fn merge(&mut self, other: &Self) {
        for (category, &count) in &other.counts {
            self.add(category, count);
        }
        self.others = self.others.saturating_add(other.others);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.counts.values().sum::<u64>() + self.others
    }

    /// How often a category was counted; `None` is the rest.
    pub fn of(&self, category: Option<&str>) -> u64 {
        match category {
            Some(category) => self.counts.get(category).copied().unwrap_or(0),
            None => self.others,
        }
    }

    /// The categories that are kept by name.
    pub fn categories(&self) -> impl Iterator<Item = &str> {
        self.counts.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_order_of_parts_does_not_matter(
            names in prop::collection::vec(0u32..200, 0..600), cut in 0usize..600,
        ) {
            let tally = |names: &[u32]| {
                let mut tally = Tally::default();
                for name in names {
                    tally.add(&format!("category {name}"), 1);
                }
                tally
            };
            let whole = tally(&names);
            let (left, right) = names.split_at(cut.min(names.len()));
            let (left, right) = (tally(left), tally(right));
            for (mut sum, part) in [(left.clone(), &right), (right.clone(), &left)] {
                sum.merge(part);
                prop_assert_eq!(&sum, &whole);
            }
            prop_assert_eq!(whole.count(), names.len() as u64);
            prop_assert!(whole.categories().count() <= MOST);
        }
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        let mut tally = Tally::default();
        tally.add(&"é".repeat(40), 1);
        assert_eq!(tally.categories().next().unwrap().len(), 64);
    }
}
