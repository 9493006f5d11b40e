//! A histogram of numbers whose merge is exact.
//!
//! A value's bin is the upper half of its bit pattern: sign, exponent and seven bits of the
//! mantissa, so a bin is at most 1/128 of its value wide and whole numbers up to 256 have bins of
//! their own. Bins are fixed, so adding counts is all there is to a merge: it gives the same sketch
//! to the bit, in whatever order the parts come. (KLL and t-digest keep fewer numbers, but what
//! they keep depends on the order.)

use alloc::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Mantissa bits that a bin keeps.
const MANTISSA_BITS: u32 = 7;

/// Counts by bin, in the order of the values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sketch {
    bins: BTreeMap<Bin, u64>,
}

/// A bin's number: bins are ordered as their values are.
pub type Bin = i32;

/// The bin of a value. Zero has one of its own; negative values mirror the positive ones.
pub fn bin(value: f64) -> Bin {
    let magnitude = (value.abs().to_bits() >> (f64::MANTISSA_DIGITS - 1 - MANTISSA_BITS)) as Bin;
    if value < 0.0 { -magnitude } else { magnitude }
}

/// The smallest magnitude in a bin, with the bin's sign.
pub fn edge(bin: Bin) -> f64 {
    let bits = u64::from(bin.unsigned_abs()) << (f64::MANTISSA_DIGITS - 1 - MANTISSA_BITS);
    let magnitude = f64::from_bits(bits);
    if bin < 0 { -magnitude } else { magnitude }
}

impl Sketch {
    /// Counts a value. What is not finite is no measurement and is left out.
    pub fn add(&mut self, value: f64) {
        if value.is_finite() {
            *self.bins.entry(bin(value)).or_default() += 1;
        }
    }

    /// Adds the counts of another sketch.
    pub fn merge(&mut self, other: &Self) {
        for (&bin, &count) in &other.bins {
            let sum = self.bins.entry(bin).or_default();
            *sum = sum.saturating_add(count);
        }
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.bins.values().sum()
    }

    /// The bins that have values, ascending, and how many.
    pub fn bins(&self) -> impl Iterator<Item = (Bin, u64)> + '_ {
        self.bins.iter().map(|(&bin, &count)| (bin, count))
    }

    /// The bin in which the share `q` of the values is reached.
    pub fn quantile(&self, q: f64) -> Option<Bin> {
        let rank = libm::ceil(q * self.count() as f64).max(1.0) as u64;
        let mut seen = 0;
        self.bins().find_map(|(bin, count)| {
            seen += count;
            (seen >= rank).then_some(bin)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn whole_numbers_up_to_256_have_bins_of_their_own() {
        let bins: std::collections::BTreeSet<Bin> =
            (-256..=256).map(|n| bin(f64::from(n))).collect();
        assert_eq!(bins.len(), 513);
        assert_eq!(bin(-0.0), bin(0.0));
    }

    proptest! {
        #[test]
        fn a_bin_is_narrow_and_in_order(a in -1e12..1e12f64, b in -1e12..1e12f64) {
            prop_assert!((a.abs() - edge(bin(a)).abs()) <= a.abs() / 128.0);
            prop_assert!(a.abs() >= edge(bin(a)).abs());
            if a <= b {
                prop_assert!(bin(a) <= bin(b));
            }
        }

        #[test]
        fn quantiles_are_those_of_the_sorted_values(
            mut values in prop::collection::vec(0.0..1e6f64, 1..200), q in 0.0..1.0f64,
        ) {
            let mut sketch = Sketch::default();
            for &value in &values {
                sketch.add(value);
            }
            values.sort_by(f64::total_cmp);
            let rank = ((q * values.len() as f64).ceil() as usize).max(1);
            prop_assert_eq!(sketch.quantile(q), Some(bin(values[rank - 1])));
        }
    }

    #[test]
    fn what_is_no_number_is_not_counted() {
        let mut sketch = Sketch::default();
        for value in [f64::NAN, f64::INFINITY, 1.0] {
            sketch.add(value);
        }
        assert_eq!(sketch.count(), 1);
        assert_eq!(Sketch::default().quantile(0.5), None);
    }
}
