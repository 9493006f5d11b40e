//! Logits to a token: penalties, filters, and a draw from a seeded generator.

use std::cmp::Ordering;
use std::collections::HashMap;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::cpu::kernels::{Level, exp_all, exp_sums};
use crate::grammar::Matching;
use crate::{Error, Result, Sampling};

/// A token that was picked, and how the model saw it before penalties, temperature and filters.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pick {
    pub(crate) id: u32,
    pub(crate) logprob: f32,
    pub(crate) entropy: f32,
    /// The likeliest ids with their log-probabilities, best first.
    pub(crate) top: Vec<(u32, f32)>,
}

/// Log-probabilities of one row of logits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Distribution {
    /// The id of the largest logit, the lowest of equals.
    best: u32,
    /// log of the sum of exp of all logits.
    log_sum: f32,
    pub(crate) entropy: f32,
}

impl Distribution {
    /// Fails where the logits are not numbers.
    pub(crate) fn of(logits: &[f32]) -> Result<Self> {
        let most = largest(logits);
        let (sum, weighted) = exp_sums(Level::detect(), logits, most);
        if !most.is_finite() || !sum.is_finite() {
            return Err(Error::Device("the model's logits are not finite".into()));
        }
        let entropy = (sum.ln() - weighted / sum).max(0.0) as f32;
        Ok(Self {
            best: first(logits, most).unwrap_or(0),
            log_sum: most + sum.ln() as f32,
            entropy,
        })
    }

    pub(crate) fn logprob(&self, logit: f32) -> f32 {
        logit - self.log_sum
    }
}

fn largest(logits: &[f32]) -> f32 {
    // Lanes of their own let the compiler use SIMD.
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    lanes
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, f32::max)
}

/// The id of the largest logit, the lowest of equals.
fn likeliest(logits: &[f32]) -> Option<u32> {
    first(logits, largest(logits))
}

/// The first id with this logit.
fn first(logits: &[f32], wanted: f32) -> Option<u32> {
    (0u32..)
        .zip(logits)
        .find(|(_, logit)| **logit == wanted)
        .map(|(id, _)| id)
}

/// Higher logits first, then lower ids: one order, so that ties are no chance.
fn better(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The `count` best of the logits, best first.
pub(crate) fn best(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    if count == 0 {
        return Vec::new();
    }
    let mut out: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for candidate in (0u32..).zip(logits.iter().copied()) {
        // Ids rise, so an equal logit comes after the ones that are there.
        if out.len() == count && out.last().is_none_or(|worst| candidate.1 <= worst.1) {
            continue;
        }
        let at = out.partition_point(|other| better(other, &candidate) == Ordering::Less);
        out.insert(at, candidate);
        out.truncate(count);
    }
    out
}

/// Picks the tokens of one sequence.
pub(crate) struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    /// For each token seen: how often in the answer, and whether in the prompt.
    seen: HashMap<u32, (u32, bool)>,
    weights: Vec<f32>,
    candidates: Vec<(u32, f32)>,
}

impl Sampler {
    /// Checks the numbers. `prompt` matters to the repetition penalty alone.
    pub(crate) fn new(sampling: Sampling, prompt: &[u32], vocabulary: usize) -> Result<Self> {
        let s = &sampling;
        let checks = [
            (
                "temperature must be from 0 to 100",
                (0.0..=100.0).contains(&s.temperature),
            ),
            (
                "top_p must be above 0 and at most 1",
                s.top_p > 0.0 && s.top_p <= 1.0,
            ),
            ("min_p must be from 0 to 1", (0.0..=1.0).contains(&s.min_p)),
            (
                "repetition_penalty must be above 0 and at most 100",
                s.repetition_penalty > 0.0 && s.repetition_penalty <= 100.0,
            ),
            (
                "frequency_penalty must be from -100 to 100",
                s.frequency_penalty.abs() <= 100.0,
            ),
            (
                "presence_penalty must be from -100 to 100",
                s.presence_penalty.abs() <= 100.0,
            ),
            (
                "logit_bias must be finite",
                s.logit_bias.iter().all(|(_, bias)| bias.is_finite()),
            ),
            (
                "logit_bias names a token beyond the vocabulary",
                s.logit_bias
                    .iter()
                    .all(|(id, _)| (*id as usize) < vocabulary),
            ),
        ];
        if let Some((message, _)) = checks.iter().find(|(_, holds)| !holds) {
            return Err(Error::Invalid((*message).into()));
        }
        let random =
            ChaCha8Rng::seed_from_u64(sampling.seed.unwrap_or_else(|| rand::rng().random()));
        let mut seen = HashMap::new();
        if sampling.repetition_penalty != 1.0 {
            seen.extend(prompt.iter().map(|id| (*id, (0, true))));
        }
        Ok(Self {
            sampling,
            random,
            seen,
            weights: Vec::new(),
            candidates: Vec::new(),
        })
    }

    /// Takes note of an answer token.
    pub(crate) fn note(&mut self, id: u32) {
        self.seen.entry(id).or_default().0 += 1;
    }

    /// Takes back the note of an answer token.
    pub(crate) fn forget(&mut self, id: u32) {
        if let Some((count, _)) = self.seen.get_mut(&id) {
            *count = count.saturating_sub(1);
        }
    }

    /// As [`Self::pick_from`], with the distribution formed here.
    #[cfg(test)]
    fn pick(&mut self, logits: &mut [f32], banned: &[u32], top: usize) -> Result<Pick> {
        self.pick_from(Distribution::of(logits)?, logits, banned, top)
    }

    /// Picks a token that is none of `banned`. Changes the logits, whose distribution is given.
    pub(crate) fn pick_from(
        &mut self,
        distribution: Distribution,
        logits: &mut [f32],
        banned: &[u32],
        top: usize,
    ) -> Result<Pick> {
        self.pick_with(distribution, logits, banned, top, None)
    }

    /// Picks a token that is none of `banned` and that the grammar has next; `ends` knows the tokens that end
    /// an answer. What a greedy answer wants is looked at alone: nearly always the grammar has it, and the
    /// mask over the vocabulary is not needed.
    pub(crate) fn pick_of(
        &mut self,
        distribution: Distribution,
        logits: &mut [f32],
        banned: &[u32],
        top: usize,
        grammar: &mut Matching,
        ends: &dyn Fn(u32) -> bool,
    ) -> Result<Pick> {
        let grammar = Some((grammar, ends));
        self.pick_with(distribution, logits, banned, top, grammar)
    }

    fn pick_with(
        &mut self,
        distribution: Distribution,
        logits: &mut [f32],
        banned: &[u32],
        top: usize,
        grammar: Option<(&mut Matching, &dyn Fn(u32) -> bool)>,
    ) -> Result<Pick> {
        let top = best(logits, top)
            .into_iter()
            .map(|(id, logit)| (id, distribution.logprob(logit)))
            .collect();
        let changed = self.adjust(logits, banned);
        let greedy = self.sampling.temperature == 0.0;
        // What was the best still is, unless it was changed itself or another one came up to it.
        let most = logits.get(distribution.best as usize).copied();
        let overtaken = changed
            .iter()
            .any(|(id, _)| *id == distribution.best || logits.get(*id as usize).copied() >= most);
        let mut id = match (greedy, overtaken) {
            (false, _) => None,
            (true, false) => Some(distribution.best),
            (true, true) => likeliest(logits),
        };
        let mut free = true;
        if let Some((grammar, ends)) = grammar {
            let wanted = id.filter(|id| logits[*id as usize] > f32::NEG_INFINITY);
            free = match wanted {
                Some(id) => grammar.allows(id, ends(id))?,
                None => false,
            };
            if !free {
                grammar.mask(logits)?;
                id = likeliest(logits).filter(|_| greedy);
            }
        }
        if !greedy {
            id = self.draw(logits);
        }
        let Some(id) = id.filter(|id| logits[*id as usize] > f32::NEG_INFINITY) else {
            return Err(Error::Invalid(match free {
                true => "every token is banned".into(),
                false => "every token that the grammar has next is banned".into(),
            }));
        };
        let raw = changed
            .iter()
            .find(|(other, _)| *other == id)
            .map_or(logits[id as usize], |(_, raw)| *raw);
        Ok(Pick {
            id,
            logprob: distribution.logprob(raw),
            entropy: distribution.entropy,
            top,
        })
    }

    /// Biases, penalties and bans; gives the changed tokens with their logits before, the first change of one first.
    fn adjust(&self, logits: &mut [f32], banned: &[u32]) -> Vec<(u32, f32)> {
        let mut changed: Vec<(u32, f32)> = Vec::new();
        let mut change = |id: u32, to: &dyn Fn(f32) -> f32| {
            if let Some(logit) = logits.get_mut(id as usize) {
                changed.push((id, *logit));
                *logit = to(*logit);
            }
        };
        let s = &self.sampling;
        for (id, bias) in &s.logit_bias {
            change(*id, &|logit| {
                if *bias <= -100.0 {
                    f32::NEG_INFINITY
                } else {
                    logit + bias
                }
            });
        }
        if s.repetition_penalty != 1.0 || s.frequency_penalty != 0.0 || s.presence_penalty != 0.0 {
            for (id, (count, in_prompt)) in &self.seen {
                if *count == 0 && !in_prompt {
                    continue;
                }
                change(*id, &|mut logit| {
                    logit = if logit > 0.0 {
                        logit / s.repetition_penalty
                    } else {
                        logit * s.repetition_penalty
                    };
                    logit -= *count as f32 * s.frequency_penalty;
                    logit - if *count > 0 { s.presence_penalty } else { 0.0 }
                });
            }
        }
        for id in banned {
            change(*id, &|_| f32::NEG_INFINITY);
        }
        changed
    }

    /// A draw at the temperature, from what the filters leave.
    fn draw(&mut self, logits: &[f32]) -> Option<u32> {
        let (s, most) = (&self.sampling, largest(logits));
        // The likeliest token has weight 1.
        self.weights.clear();
        self.weights
            .extend(logits.iter().map(|logit| (logit - most) / s.temperature));
        exp_all(Level::detect(), &mut self.weights);
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(
            (0u32..)
                .zip(self.weights.iter().copied())
                .filter(|(_, weight)| *weight > 0.0),
        );
        let k = s.top_k as usize;
        if k > 0 && k < candidates.len() {
            candidates.select_nth_unstable_by(k - 1, better);
            candidates.truncate(k);
        }
        if s.top_p < 1.0 {
            keep_likeliest(candidates, s.top_p);
        }
        candidates.retain(|(_, weight)| *weight >= s.min_p);
        let mut left = self.random.random::<f64>() * sum(candidates);
        let drawn = candidates.iter().find(|(_, weight)| {
            left -= f64::from(*weight);
            left < 0.0
        });
        drawn.or(candidates.last()).map(|(id, _)| *id)
    }
}

fn sum(candidates: &[(u32, f32)]) -> f64 {
    candidates
        .iter()
        .map(|(_, weight)| f64::from(*weight))
        .sum()
}

/// Keeps the likeliest candidates whose weights reach this share of all. Sorts only as many as it needs.
fn keep_likeliest(candidates: &mut Vec<(u32, f32)>, share: f32) {
    let wanted = sum(candidates) * f64::from(share);
    let mut sorted = 64;
    loop {
        sorted = sorted.min(candidates.len());
        if sorted < candidates.len() {
            candidates.select_nth_unstable_by(sorted, better);
        }
        candidates[..sorted].sort_unstable_by(better);
        let mut reached = 0.0;
        let last = candidates[..sorted].iter().position(|(_, weight)| {
            reached += f64::from(*weight);
            reached >= wanted
        });
        match last {
            Some(last) => return candidates.truncate(last + 1),
            None if sorted == candidates.len() => return,
            None => sorted *= 8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sampler(sampling: Sampling) -> Sampler {
        Sampler::new(sampling, &[], 1000).unwrap()
    }

    fn shares(sampling: Sampling, logits: &[f32], draws: usize) -> Vec<f64> {
        let mut sampler = sampler(Sampling {
            seed: Some(7),
            ..sampling
        });
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..draws {
            counts[sampler.pick(&mut logits.to_vec(), &[], 0).unwrap().id as usize] +=
                1.0 / draws as f64;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_likeliest_and_the_lower_id_of_equals() {
        let pick = sampler(Sampling::greedy())
            .pick(&mut [0.0, 2.0, 2.0, 1.0], &[], 2)
            .unwrap();
        assert_eq!(pick.id, 1);
        assert_eq!(pick.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2]);
        assert!(
            (pick.logprob - -0.9176).abs() < 1e-3 && (pick.entropy - 1.1727).abs() < 1e-3,
            "{pick:?}"
        );
    }

    #[test]
    fn draws_follow_the_distribution_and_its_filters() {
        let logits = [0.5f32.ln(), 0.25f32.ln(), 0.15f32.ln(), 0.1f32.ln()];
        let near = |found: Vec<f64>, wanted: [f64; 4]| {
            assert!(
                found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 0.02),
                "{found:?} {wanted:?}"
            );
        };
        near(
            shares(Sampling::default(), &logits, 20_000),
            [0.5, 0.25, 0.15, 0.1],
        );
        near(
            shares(
                Sampling {
                    top_k: 2,
                    ..Default::default()
                },
                &logits,
                20_000,
            ),
            [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0],
        );
        near(
            shares(
                Sampling {
                    top_p: 0.8,
                    ..Default::default()
                },
                &logits,
                20_000,
            ),
            [5.0 / 9.0, 2.5 / 9.0, 1.5 / 9.0, 0.0],
        );
        near(
            shares(
                Sampling {
                    min_p: 0.4,
                    ..Default::default()
                },
                &logits,
                20_000,
            ),
            [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0],
        );
        near(
            shares(
                Sampling {
                    temperature: 0.5,
                    ..Default::default()
                },
                &logits,
                20_000,
            ),
            [0.7246, 0.1812, 0.0652, 0.029],
        );
    }

    #[test]
    fn penalties_biases_and_bans_move_the_choice_but_not_the_logprob() {
        let logits = [3.0, 2.5, 2.4, -1.0];
        let pick = |sampling: Sampling, seen: &[u32], banned: &[u32]| {
            let mut sampler = sampler(Sampling {
                temperature: 0.0,
                ..sampling
            });
            seen.iter().for_each(|id| sampler.note(*id));
            sampler.pick(&mut logits.to_vec(), banned, 0).unwrap()
        };
        let plain = pick(Sampling::default(), &[], &[]);
        assert_eq!(plain.id, 0);
        assert_eq!(
            pick(
                Sampling {
                    repetition_penalty: 1.5,
                    ..Default::default()
                },
                &[0],
                &[]
            )
            .id,
            1
        );
        assert_eq!(
            pick(
                Sampling {
                    frequency_penalty: 0.35,
                    ..Default::default()
                },
                &[0, 0, 1],
                &[]
            )
            .id,
            2
        );
        assert_eq!(
            pick(
                Sampling {
                    presence_penalty: 0.55,
                    ..Default::default()
                },
                &[0],
                &[]
            )
            .id,
            1
        );
        let biased = pick(
            Sampling {
                logit_bias: vec![(3, 50.0)],
                ..Default::default()
            },
            &[],
            &[],
        );
        assert_eq!(biased.id, 3);
        assert!((biased.logprob - (plain.logprob - 4.0)).abs() < 1e-5);
        assert_eq!(
            pick(
                Sampling {
                    logit_bias: vec![(0, -100.0)],
                    ..Default::default()
                },
                &[],
                &[1]
            )
            .id,
            2
        );
        assert_eq!(pick(Sampling::default(), &[], &[0]).id, 1);
    }

    #[test]
    fn a_forgotten_token_is_as_if_never_seen() {
        let mut sampler = sampler(Sampling {
            presence_penalty: 50.0,
            ..Sampling::greedy()
        });
        sampler.note(1);
        assert_eq!(sampler.pick(&mut [1.0, 2.0], &[], 0).unwrap().id, 0);
        sampler.forget(1);
        assert_eq!(sampler.pick(&mut [1.0, 2.0], &[], 0).unwrap().id, 1);
    }

    #[test]
    fn what_can_not_be_sampled_is_an_error() {
        let mut greedy = sampler(Sampling::greedy());
        assert!(greedy.pick(&mut [f32::NAN, 1.0], &[], 0).is_err());
        assert!(
            greedy
                .pick(&mut [1.0, 2.0], &[0, 1], 0)
                .unwrap_err()
                .to_string()
                .contains("banned")
        );
        for bad in [
            Sampling {
                temperature: f32::NAN,
                ..Default::default()
            },
            Sampling {
                top_p: 0.0,
                ..Default::default()
            },
            Sampling {
                min_p: 1.5,
                ..Default::default()
            },
            Sampling {
                repetition_penalty: 0.0,
                ..Default::default()
            },
            Sampling {
                frequency_penalty: f32::INFINITY,
                ..Default::default()
            },
            Sampling {
                logit_bias: vec![(1000, 1.0)],
                ..Default::default()
            },
        ] {
            assert!(Sampler::new(bad.clone(), &[], 1000).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn the_same_seed_gives_the_same_draws(
            logits in prop::collection::vec(-9f32..9.0, 2..300), seed in any::<u64>(), top_k in 0u32..50, top_p in 0.05f32..1.0,
        ) {
            let sampling = Sampling { seed: Some(seed), top_k, top_p, ..Default::default() };
            let (mut a, mut b) = (sampler(sampling.clone()), sampler(sampling));
            for _ in 0..5 {
                prop_assert_eq!(a.pick(&mut logits.clone(), &[], 3).unwrap(), b.pick(&mut logits.clone(), &[], 3).unwrap());
            }
        }

        #[test]
        fn top_p_keeps_the_smallest_set_that_reaches_the_share(
            logits in prop::collection::vec(-6f32..6.0, 1..500), share in 0.01f32..0.999,
        ) {
            let all: Vec<(u32, f32)> = (0u32..).zip(logits.iter().map(|x| x.exp())).collect();
            let mut kept = all.clone();
            keep_likeliest(&mut kept, share);
            let sum = |of: &[(u32, f32)]| sum(of) / sum(&all);
            prop_assert!(sum(&kept) >= f64::from(share) - 1e-6 || kept.len() == all.len());
            prop_assert!(sum(&kept[..kept.len() - 1]) < f64::from(share) + 1e-6);
        }
    }
}
