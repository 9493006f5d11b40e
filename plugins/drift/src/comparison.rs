//! One column, reference against current: the bins, the statistics, the p-value.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use serde::Deserialize;

use crate::sketch::{Bin, Sketch, bin, edge};
use crate::statistics;
use crate::tally::Tally;

/// How one column's window differs from its reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// Values of the reference and of the window.
    pub reference: u64,
    /// See `reference`.
    pub current: u64,
    /// Population stability index.
    pub psi: f64,
    /// Jensen-Shannon distance.
    pub js: f64,
    /// Kolmogorov-Smirnov distance; categories have none.
    pub ks: Option<f64>,
    /// That chance alone makes such a difference: by Kolmogorov-Smirnov, for categories by
    /// chi-square.
    pub p_value: f64,
    /// The medians, to a percent; categories have none.
    pub medians: Option<(f64, f64)>,
}

/// A reference given in the config, as the plugin logs it when it has learned one.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Baseline {
    /// Numbers: counts of the values up to each edge, and of those above the last.
    Numbers {
        /// Ascending.
        edges: Vec<f64>,
        /// One more than edges.
        counts: Vec<u64>,
    },
    /// Categories: counts by name.
    Categories {
        /// By name.
        counts: BTreeMap<String, u64>,
    },
}

/// Compares numbers, in `bins` quantile bins of the reference.
pub fn numbers(reference: &Sketch, current: &Sketch, bins: usize) -> Comparison {
    let edges = quantile_edges(reference, bins);
    let (p, q) = (binned(reference, &edges), binned(current, &edges));
    let ks = statistics::ks_distance(reference, current);
    let medians = reference.quantile(0.5).zip(current.quantile(0.5));
    Comparison {
        medians: medians.map(|(a, b)| (edge(a), edge(b))),
        ..binned_numbers(&p, &q, ks)
    }
}

/// Compares numbers with a reference of which only bins are known.
pub fn numbers_with_baseline(edges: &[f64], counts: &[u64], current: &Sketch) -> Comparison {
    let edges: Vec<Bin> = edges.iter().map(|&edge| bin(edge)).collect();
    let current = binned(current, &edges);
    binned_numbers(
        counts,
        &current,
        statistics::ks_distance_binned(counts, &current),
    )
}

fn binned_numbers(p: &[u64], q: &[u64], ks: f64) -> Comparison {
    let (reference, current) = (p.iter().sum(), q.iter().sum());
    Comparison {
        reference,
        current,
        psi: statistics::psi(p, q),
        js: statistics::jensen_shannon(p, q),
        ks: Some(ks),
        p_value: match reference > 0 && current > 0 {
            true => statistics::ks_p_value(ks, reference, current),
            false => 1.0,
        },
        medians: None,
    }
}

/// Compares categories.
pub fn categories(reference: &Tally, current: &Tally) -> Comparison {
    let names: BTreeSet<&str> = reference.categories().chain(current.categories()).collect();
    let names = names.into_iter().map(Some).chain([None]);
    let (p, q): (Vec<u64>, Vec<u64>) = names
        .map(|name| (reference.of(name), current.of(name)))
        .unzip();
    Comparison {
        reference: reference.count(),
        current: current.count(),
        psi: statistics::psi(&p, &q),
        js: statistics::jensen_shannon(&p, &q),
        ks: None,
        p_value: statistics::chi_square_p_value(&p, &q),
        medians: None,
    }
}

/// The upper edges of the reference's quantile bins, ties merged; the last bin is open.
pub fn quantile_edges(reference: &Sketch, bins: usize) -> Vec<Bin> {
    let mut edges: Vec<Bin> = (1..bins)
        .filter_map(|rank| reference.quantile(rank as f64 / bins as f64))
        .collect();
    // Where many values equal the smallest, what falls below it must not hide among them.
    if let Some(lowest) = reference.quantile(0.0)
        && edges.first() == Some(&lowest)
    {
        edges.insert(0, lowest - 1);
    }
    edges.dedup();
    edges
}

/// Counts by bins with these upper edges.
pub fn binned(sketch: &Sketch, edges: &[Bin]) -> Vec<u64> {
    let mut counts = vec![0; edges.len() + 1];
    for (bin, count) in sketch.bins() {
        counts[edges.partition_point(|&edge| edge < bin)] += count;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sketch(values: impl IntoIterator<Item = f64>) -> Sketch {
        let mut sketch = Sketch::default();
        for value in values {
            sketch.add(value);
        }
        sketch
    }

    #[test]
    fn bins_are_tenths_of_the_reference_and_ties_are_one() {
        let uniform = sketch((1..=200).map(f64::from));
        assert_eq!(binned(&uniform, &quantile_edges(&uniform, 10)), [20; 10]);
        let tied = sketch((0..200).map(|n| f64::from(n / 100)));
        assert_eq!(binned(&tied, &quantile_edges(&tied, 10)), [0, 100, 100, 0]);
    }

    #[test]
    fn a_value_below_a_constant_reference_is_seen() {
        let compared = numbers(&sketch([100.0; 200]), &sketch([50.0; 200]), 10);
        assert!(compared.psi > 1.0 && compared.js > 0.8 && compared.ks == Some(1.0));
        let same = numbers(&sketch([100.0; 200]), &sketch([100.0; 150]), 10);
        assert_eq!(
            (same.psi, same.js, same.ks, same.p_value),
            (0.0, 0.0, Some(0.0), 1.0)
        );
    }

    #[test]
    fn a_logged_baseline_compares_as_its_events_did() {
        let reference = sketch((0..1000).map(|n| f64::from(n % 97)));
        let current = sketch((0..500).map(|n| f64::from(n % 61)));
        let edges = quantile_edges(&reference, 10);
        let counts = binned(&reference, &edges);
        let edges: Vec<f64> = edges.into_iter().map(edge).collect();
        let full = numbers(&reference, &current, 10);
        let given = numbers_with_baseline(&edges, &counts, &current);
        assert_eq!((given.psi, given.js), (full.psi, full.js));
        assert!(given.ks <= full.ks);
    }

    #[test]
    fn a_new_category_is_a_difference() {
        let mut reference = Tally::default();
        reference.add("stop", 900);
        reference.add("length", 100);
        let mut current = Tally::default();
        current.add("stop", 400);
        current.add("content-filter", 100);
        let compared = categories(&reference, &current);
        assert!(compared.psi > 0.25 && compared.p_value < 1e-6);
        assert_eq!(categories(&reference, &reference).psi, 0.0);
    }
}
