//! Which arm a request goes to: sticky, weighted, and stable while weights grow.
//!
//! For each candidate the sticky key is hashed, with the salt and the candidate's name, to a bucket
//! in [0, 1), and the request is the candidate's if its bucket lies below the candidate's share. So
//! a user who was given the candidate keeps it when its weight grows, a second rollout draws its
//! users anew, and no list of users is kept anywhere.
//!
//! Several candidates are asked one after the other, in the order of their names, each for its
//! share of what those before it left ("stick breaking"). When one of them grows it keeps all its
//! users, and the others lose users to it alone.

use alloc::vec::Vec;

use xxhash_rust::xxh64::Xxh64;

/// An arm as the split sees it.
#[derive(Debug, Clone, Copy)]
pub struct Share<'a> {
    /// The arm's name.
    pub name: &'a str,
    /// Whether it is a candidate; there is one arm that is not.
    pub candidate: bool,
    /// Its weight; weights need not add up to 1.
    pub weight: f64,
}

/// Where a key falls.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placed {
    /// The index of the arm.
    pub arm: usize,
    /// The probability that a random key comes to this arm.
    pub propensity: f64,
    /// The bucket that decided, 0 to 1.
    pub bucket: f64,
}

/// Places a key. `None` where there is no arm to fall back on, that is, no stable one.
pub fn place(salt: &str, key: &[&str], arms: &[Share<'_>]) -> Option<Placed> {
    let stable = arms.iter().position(|arm| !arm.candidate)?;
    // A weight that is no number gets no traffic.
    let weight = |arm: &Share<'_>| {
        if arm.weight.is_finite() {
            arm.weight.max(0.0)
        } else {
            0.0
        }
    };
    let total: f64 = arms.iter().map(weight).sum();
    let mut candidates: Vec<usize> = (0..arms.len())
        .filter(|&index| arms[index].candidate && weight(&arms[index]) > 0.0)
        .collect();
    candidates.sort_by_key(|&index| arms[index].name);

    let mut left = 1.0;
    let mut last = 1.0;
    for index in candidates {
        let share = weight(&arms[index]) / total;
        let bucket = bucket(salt, arms[index].name, key);
        // `left` is above zero: this share is part of it. Rounding must not leave a sliver.
        if bucket < share / left || share >= left {
            return Some(Placed {
                arm: index,
                propensity: share.min(1.0),
                bucket,
            });
        }
        left -= share;
        last = bucket;
    }
    Some(Placed {
        arm: stable,
        propensity: left,
        bucket: last,
    })
}

/// A uniform number in [0, 1) from strings. Each is hashed with its length before it, so that
/// ("ab", "c") and ("a", "bc") differ.
fn bucket(salt: &str, arm: &str, key: &[&str]) -> f64 {
    let mut hash = Xxh64::new(0);
    for part in [salt, arm].iter().chain(key) {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    // The upper 53 bits: every value is an exact f64.
    (hash.digest() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn two(weight: f64) -> [Share<'static>; 2] {
        [
            Share {
                name: "stable",
                candidate: false,
                weight: 1.0 - weight,
            },
            Share {
                name: "candidate",
                candidate: true,
                weight,
            },
        ]
    }

    fn counts(arms: &[Share<'_>]) -> Vec<usize> {
        let mut counts = vec![0; arms.len()];
        for user in 0..100_000 {
            counts[place("salt", &["user", &user.to_string()], arms)
                .unwrap()
                .arm] += 1;
        }
        counts
    }

    #[test]
    fn the_split_is_within_one_percent_over_a_hundred_thousand_users() {
        for weight in [0.01, 0.05, 0.1, 0.25, 0.5, 0.9] {
            let share = counts(&two(weight))[1] as f64 / 1e5;
            assert!((share - weight).abs() < 0.01, "{share} for {weight}");
        }
    }

    #[test]
    fn several_candidates_get_their_shares_and_their_propensities_add_up() {
        let arms = [
            Share {
                name: "b",
                candidate: true,
                weight: 2.0,
            },
            Share {
                name: "stable",
                candidate: false,
                weight: 5.0,
            },
            Share {
                name: "a",
                candidate: true,
                weight: 3.0,
            },
        ];
        let counts = counts(&arms);
        let mut propensities = [0.0; 3];
        for user in 0..1000 {
            let placed = place("salt", &[&user.to_string()], &arms).unwrap();
            propensities[placed.arm] = placed.propensity;
        }
        for (index, expected) in [0.2, 0.5, 0.3].into_iter().enumerate() {
            assert!((counts[index] as f64 / 1e5 - expected).abs() < 0.01);
            assert!((propensities[index] - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn the_ends_of_the_scale_are_whole() {
        assert_eq!(counts(&two(0.0)), [100_000, 0]);
        assert_eq!(counts(&two(1.0)), [0, 100_000]);
        assert_eq!(place("", &["x"], &two(f64::NAN)).unwrap().arm, 0);
        assert_eq!(place("", &["x"], &two(1.0)[1..]), None);
    }

    proptest! {
        #[test]
        fn who_saw_the_candidate_keeps_it_when_its_weight_grows(
            user: u64, before in 0.0..1.0f64, growth in 0.0..1.0f64, other in 0.0..0.5f64,
        ) {
            let arms = |weight: f64| [
                Share { name: "stable", candidate: false, weight: (1.0 - other) * (1.0 - weight) },
                Share { name: "a", candidate: true, weight: (1.0 - other) * weight },
                Share { name: "b", candidate: true, weight: other },
            ];
            let user = user.to_string();
            let first = place("s", &[&user], &arms(before)).unwrap();
            let later = place("s", &[&user], &arms(before + (1.0 - before) * growth)).unwrap();
            prop_assert!(first.arm != 1 || later.arm == 1);
            prop_assert!(first.arm != 2 || later.arm == 1 || later.arm == 2);
            prop_assert!(first.propensity > 0.0 && first.propensity <= 1.0);
        }

        #[test]
        fn the_order_of_the_arms_does_not_matter(user: u64, weight in 0.0..1.0f64) {
            let user = user.to_string();
            let mut arms = two(weight);
            let name = arms[place("s", &[&user], &arms).unwrap().arm].name;
            arms.reverse();
            prop_assert_eq!(arms[place("s", &[&user], &arms).unwrap().arm].name, name);
        }
    }
}
