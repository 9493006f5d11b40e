//! How far two distributions are apart, and whether that could be chance.

use alloc::vec;
use alloc::vec::Vec;

use crate::sketch::Sketch;

/// Population stability index of binned counts: sum of (p - q) ln(p / q). A share of zero counts
/// as 0.0001, or as a millionth of the smallest share where that is smaller (as Evidently does).
pub fn psi(reference: &[u64], current: &[u64]) -> f64 {
    let shares = |counts: &[u64]| {
        let mut shares = shares(counts);
        let least = shares
            .iter()
            .copied()
            .filter(|&share| share > 0.0)
            .fold(1.0, f64::min);
        let zero = if least <= 1e-4 { least / 1e6 } else { 1e-4 };
        for share in &mut shares {
            if *share == 0.0 {
                *share = zero;
            }
        }
        shares
    };
    let (p, q) = (shares(reference), shares(current));
    p.iter()
        .zip(&q)
        .map(|(p, q)| (p - q) * libm::log(p / q))
        .sum()
}

/// Jensen-Shannon distance of binned counts: the square root of the divergence, with natural
/// logarithms (as `scipy.spatial.distance.jensenshannon`). 0 to 0.8326.
pub fn jensen_shannon(reference: &[u64], current: &[u64]) -> f64 {
    let divergence = |p: f64, middle: f64| {
        if p > 0.0 {
            p * libm::log(p / middle)
        } else {
            0.0
        }
    };
    let sum: f64 = shares(reference)
        .iter()
        .zip(&shares(current))
        .map(|(&p, &q)| {
            let middle = (p + q) / 2.0;
            divergence(p, middle) + divergence(q, middle)
        })
        .sum();
    libm::sqrt((sum / 2.0).max(0.0))
}

fn shares(counts: &[u64]) -> Vec<f64> {
    let total = (counts.iter().sum::<u64>() as f64).max(1.0);
    counts.iter().map(|&count| count as f64 / total).collect()
}

/// The two-sample Kolmogorov-Smirnov statistic: the largest distance of the two distribution
/// functions, at the sketches' resolution.
pub fn ks_distance(reference: &Sketch, current: &Sketch) -> f64 {
    let totals = (reference.count() as f64, current.count() as f64);
    if totals.0 == 0.0 || totals.1 == 0.0 {
        return 0.0;
    }
    let (mut left, mut right) = (reference.bins().peekable(), current.bins().peekable());
    let (mut below, mut furthest): ((u64, u64), f64) = ((0, 0), 0.0);
    // Where one is used up the distance only shrinks.
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let next = a.0.min(b.0);
        below.0 += left.next_if(|bin| bin.0 == next).map_or(0, |bin| bin.1);
        below.1 += right.next_if(|bin| bin.0 == next).map_or(0, |bin| bin.1);
        let distance = below.0 as f64 / totals.0 - below.1 as f64 / totals.1;
        furthest = furthest.max(distance.abs());
    }
    furthest
}

/// The largest distance of the distribution functions of counts in the same ordered bins: a lower
/// bound of the Kolmogorov-Smirnov statistic.
pub fn ks_distance_binned(reference: &[u64], current: &[u64]) -> f64 {
    let (mut below, mut furthest): (f64, f64) = (0.0, 0.0);
    for (p, q) in shares(reference).iter().zip(&shares(current)) {
        below += p - q;
        furthest = furthest.max(below.abs());
    }
    furthest
}

/// The p-value of a Kolmogorov-Smirnov distance of samples of `n` and `m` values, by Stephens'
/// approximation: Q((sqrt(e) + 0.12 + 0.11 / sqrt(e)) D), e = nm / (n + m).
pub fn ks_p_value(distance: f64, n: u64, m: u64) -> f64 {
    let (n, m) = (n as f64, m as f64);
    let root = libm::sqrt(n * m / (n + m));
    kolmogorov((root + 0.12 + 0.11 / root) * distance)
}

/// Kolmogorov's Q(lambda) = 2 sum (-1)^(j-1) exp(-2 j² lambda²).
fn kolmogorov(lambda: f64) -> f64 {
    // Below this Q is 1 to ten digits, and the series converges too slowly.
    if lambda < 0.2 {
        return 1.0;
    }
    let mut sum = 0.0;
    let mut sign = 1.0;
    for j in 1..=100 {
        let term = libm::exp(-2.0 * f64::from(j * j) * lambda * lambda);
        sum += sign * term;
        if term < 1e-16 {
            break;
        }
        sign = -sign;
    }
    (2.0 * sum).clamp(0.0, 1.0)
}

/// The p-value of Pearson's chi-square test that two rows of counts have the same distribution.
/// Categories that are too rare for the test (expected below 5) are taken together.
pub fn chi_square_p_value(reference: &[u64], current: &[u64]) -> f64 {
    let totals = (
        reference.iter().sum::<u64>() as f64,
        current.iter().sum::<u64>() as f64,
    );
    let all = totals.0 + totals.1;
    if totals.0 == 0.0 || totals.1 == 0.0 {
        return 1.0;
    }
    let expected = |pair: (f64, f64)| {
        let both = pair.0 + pair.1;
        (both * totals.0 / all, both * totals.1 / all)
    };
    let rare = |pair: (f64, f64)| {
        let expected = expected(pair);
        expected.0.min(expected.1) < 5.0
    };
    let mut cells = Vec::new();
    let mut rest = (0.0, 0.0);
    for (&a, &b) in reference.iter().zip(current) {
        let pair = (a as f64, b as f64);
        if rare(pair) {
            rest = (rest.0 + pair.0, rest.1 + pair.1);
        } else {
            cells.push(pair);
        }
    }
    if rest.0 + rest.1 > 0.0 {
        // A rest that is too rare itself goes to the last category.
        match cells.last_mut().filter(|_| rare(rest)) {
            Some(last) => *last = (last.0 + rest.0, last.1 + rest.1),
            None => cells.push(rest),
        }
    }
    if cells.len() < 2 {
        return 1.0;
    }
    let statistic: f64 = cells
        .iter()
        .map(|&pair| {
            let (a, b) = expected(pair);
            (pair.0 - a) * (pair.0 - a) / a + (pair.1 - b) * (pair.1 - b) / b
        })
        .sum();
    upper_gamma((cells.len() - 1) as f64 / 2.0, statistic / 2.0)
}

/// The regularised upper incomplete gamma function Q(a, x): series below a + 1, continued fraction
/// (Lentz) above.
fn upper_gamma(a: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 1.0;
    }
    let scale = libm::exp(a * libm::log(x) - x - libm::lgamma(a));
    if x < a + 1.0 {
        let (mut term, mut sum, mut n) = (1.0 / a, 1.0 / a, a);
        while term > sum * 1e-16 {
            n += 1.0;
            term *= x / n;
            sum += term;
        }
        return (1.0 - sum * scale).clamp(0.0, 1.0);
    }
    let tiny = 1e-300;
    let mut b = x + 1.0 - a;
    let mut c = 1.0 / tiny;
    let mut d = 1.0 / b;
    let mut fraction = d;
    for i in 1..=500 {
        let i = f64::from(i);
        let numerator = -i * (i - a);
        b += 2.0;
        let nonzero = |value: f64| if value.abs() < tiny { tiny } else { value };
        d = 1.0 / nonzero(numerator * d + b);
        c = nonzero(b + numerator / c);
        fraction *= c * d;
        if (c * d - 1.0).abs() < 1e-16 {
            break;
        }
    }
    (fraction * scale).clamp(0.0, 1.0)
}

/// Benjamini and Hochberg's adjusted p-values (q-values), in the order given.
pub fn benjamini_hochberg(p_values: &[f64]) -> Vec<f64> {
    let count = p_values.len();
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&a, &b| p_values[b].total_cmp(&p_values[a]));
    let mut adjusted = vec![1.0; count];
    let mut lowest: f64 = 1.0;
    for (place, &index) in order.iter().enumerate() {
        let rank = (count - place) as f64;
        lowest = lowest.min(p_values[index] * count as f64 / rank);
        adjusted[index] = lowest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [u64; 7] = [120, 80, 100, 95, 105, 0, 30];
    const B: [u64; 7] = [60, 70, 40, 50, 45, 12, 0];

    fn near(value: f64, expected: f64) {
        assert!((value - expected).abs() < 1e-9, "{value} is not {expected}");
    }

    // The values are SciPy 1.15's: tests/make_golden.py prints them.

    #[test]
    fn distances_equal_those_of_scipy() {
        near(psi(&A, &B), 0.692_366_330_466_052_8);
        near(jensen_shannon(&A, &B), 0.208_636_441_804_707_64);
        near(
            jensen_shannon(&[1, 0], &[0, 1]),
            core::f64::consts::LN_2.sqrt(),
        );
    }

    #[test]
    fn a_share_of_zero_counts_as_a_small_one() {
        near(
            psi(&[50, 50], &[100, 0]),
            0.5 * 2f64.ln() + (0.5 - 1e-4) * (0.5f64 / 1e-4).ln(),
        );
        assert_eq!(psi(&[0, 0], &[0, 0]), 0.0);
    }

    #[test]
    fn kolmogorov_and_smirnov_equal_scipy() {
        for (lambda, expected) in [
            (0.3, 0.999_990_694_198_665_5),
            (0.8, 0.544_142_411_574_198_1),
            (1.0, 0.269_999_671_677_354_56),
            (1.36, 0.049_485_876_755_377_876),
            (2.0, 0.000_670_925_255_779_695_3),
        ] {
            near(kolmogorov(lambda), expected);
        }
        let (mut a, mut b) = (Sketch::default(), Sketch::default());
        for n in 0..150u32 {
            if n < 100 {
                a.add(f64::from(n % 37));
            }
            b.add(f64::from(n * 7 % 41));
        }
        near(ks_distance(&a, &b), 0.133_333_333_333_333_33);
        assert_eq!(ks_distance(&a, &Sketch::default()), 0.0);
    }

    #[test]
    fn chi_square_equals_scipy() {
        near(
            chi_square_p_value(&[30, 40, 50], &[45, 30, 25]),
            0.004_016_034_453_943_48,
        );
        for (freedom, value, expected) in [
            (1.0, 3.84, 0.050_043_521_248_705_19),
            (5.0, 2.0, 0.849_145_036_084_609_6),
            (9.0, 30.0, 0.000_438_721_770_979_479_36),
            (63.0, 50.0, 0.882_679_692_399_11),
        ] {
            near(upper_gamma(freedom / 2.0, value / 2.0), expected);
        }
    }

    #[test]
    fn rare_categories_do_not_make_a_test() {
        assert_eq!(chi_square_p_value(&[1000, 1], &[100, 0]), 1.0);
        assert_eq!(chi_square_p_value(&[], &[]), 1.0);
    }

    #[test]
    fn q_values_equal_scipy() {
        let q = benjamini_hochberg(&[0.01, 0.04, 0.03, 0.005, 0.5]);
        for (value, expected) in q.iter().zip([0.025, 0.05, 0.05, 0.025, 0.5]) {
            near(*value, expected);
        }
    }
}
