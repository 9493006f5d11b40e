//! One pass over a text: skip to the next digit or `@`, ask the detectors, count context words,
//! go on behind what was found.

use core::ops::ControlFlow;

use millgate_sdk::prelude::*;

use crate::config::Config;
use crate::context::{REACH as CONTEXT_REACH, Words, words_before};
use crate::cursor::{Cursor, DIGIT, LOCAL, OPENING, is_continuation, next_trigger};
use crate::entity::Entity;
use crate::find::{Candidate, card, crypto, email, iban, ip, phone, ssn};

/// How much of a text that has left must be kept at hand: the scanner looks back as far for context
/// words, and a few bytes for what a match is glued to.
pub const HISTORY: usize = CONTEXT_REACH + 16;

/// How far before the first digit of a match its beginning may be.
const LONGEST_OPENING: usize = 64;

/// What a context word among the five tokens before adds to a score.
const CONTEXT_BONUS: f32 = 0.35;

/// The least score with a context word.
const CONTEXT_FLOOR: f32 = 0.4;

/// Personal data in a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// What it is.
    pub entity: Entity,
    /// Its first byte.
    pub start: usize,
    /// The byte behind its last.
    pub end: usize,
    /// 0 to 1.
    pub score: f32,
    /// Why, by its form.
    pub evidence: &'static str,
    /// Whether a context word stands before it.
    pub context: bool,
}

/// How far a scan has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Where to go on.
    pub at: usize,
    /// The end of the last match: no other begins before it.
    pub floor: usize,
    /// Up to where the text is decided.
    pub settled: usize,
}

/// What the config says about one entity.
#[derive(Debug)]
struct Rule {
    threshold: f32,
    words: Words,
}

/// A configured scanner: immutable, and the same for every text.
#[derive(Debug)]
pub struct Scanner {
    /// By entity; `None` is not looked for.
    rules: [Option<Rule>; Entity::ALL.len()],
    /// Lower case, sorted.
    allow: Vec<String>,
}

impl Scanner {
    /// Builds the tables.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let rules = Entity::ALL.map(|entity| {
            config.action(entity)?;
            let own = config
                .entities
                .get(&entity)
                .map(|own| own.context.as_slice())
                .unwrap_or_default();
            Some(Rule {
                threshold: config.threshold(entity),
                words: Words::new(entity.context_words(), own),
            })
        });
        let mut allow: Vec<String> = config
            .allow
            .iter()
            .map(|value| value.to_lowercase())
            .collect();
        allow.sort_unstable();
        Scanner { rules, allow }
    }

    /// All personal data in a text, in order, without overlaps.
    #[must_use]
    pub fn scan(&self, text: &str) -> Vec<Found> {
        let mut all = Vec::new();
        let cursor = Cursor::new(text.as_bytes(), true);
        self.advance(&cursor, Progress::default(), |found| {
            all.push(found);
            ControlFlow::Continue(())
        });
        all
    }

    /// Scans on as far as the text allows. Stops behind a match for which `each` breaks; then the
    /// text is settled up to that match's beginning.
    pub fn advance(
        &self,
        cursor: &Cursor<'_>,
        mut progress: Progress,
        mut each: impl FnMut(Found) -> ControlFlow<()>,
    ) -> Progress {
        let bytes = cursor.bytes();
        cursor.take_starved();
        while let Some(at) = next_trigger(bytes, progress.at) {
            progress.at = at;
            let verdict = self.judge(cursor, at, progress.floor);
            if cursor.take_starved() {
                // Some detector needs more text. Everything before the earliest beginning of a
                // match around here is decided.
                progress.settled = progress.settled.max(opening(cursor, at, progress.floor));
                return progress;
            }
            match verdict {
                Judged::Found(found) => {
                    progress.at = found.end;
                    progress.floor = found.end;
                    if each(found).is_break() {
                        progress.settled = progress.settled.max(found.start);
                        return progress;
                    }
                }
                Judged::Allowed { end } => {
                    progress.at = end;
                    progress.floor = end;
                }
                Judged::Nothing { resume } => progress.at = resume,
            }
        }
        progress.at = bytes.len();
        let settled = if cursor.is_complete() {
            bytes.len()
        } else {
            opening(cursor, bytes.len(), progress.floor)
        };
        progress.settled = progress.settled.max(settled);
        progress
    }

    /// What stands around the digit or `@` at `at`.
    fn judge(&self, cursor: &Cursor<'_>, at: usize, floor: usize) -> Judged {
        let sign = if cursor.at(at) == b'@' {
            Some(at)
        } else {
            email::sign_after(cursor, at)
        };
        if let Some(found) = sign.and_then(|sign| email::find(cursor, sign, floor))
            && found.start <= at
            && let Some(verdict) = self.weigh(cursor, found)
        {
            return verdict;
        }
        if cursor.at(at) == b'@' {
            return Judged::Nothing { resume: at + 1 };
        }
        let detectors: [&dyn Fn() -> Option<Candidate>; 7] = [
            &|| crypto::find(cursor, at, floor),
            &|| iban::find(cursor, at, floor),
            &|| ip::find_v6(cursor, at, floor),
            &|| ip::find_v4(cursor, at),
            &|| card::find(cursor, at),
            &|| ssn::find(cursor, at),
            &|| phone::find(cursor, at, floor),
        ];
        let mut best = None;
        for detector in detectors {
            let Some(verdict) = detector().and_then(|candidate| self.weigh(cursor, candidate))
            else {
                continue;
            };
            let Judged::Found(found) = verdict else {
                return verdict;
            };
            if best.is_none_or(|best: Found| found.score > best.score) {
                best = Some(found);
            }
            if found.score >= 1.0 {
                break;
            }
        }
        match best {
            Some(found) => Judged::Found(found),
            // The rest of a very long run of digits is behind a digit, so nothing begins there.
            None => Judged::Nothing {
                resume: cursor.run(at, DIGIT, LONGEST_OPENING),
            },
        }
    }

    /// Counts context words and holds the score against the threshold.
    fn weigh(&self, cursor: &Cursor<'_>, candidate: Candidate) -> Option<Judged> {
        let Candidate {
            entity,
            start,
            end,
            mut score,
            evidence,
        } = candidate;
        let rule = self.rules.get(entity as usize)?.as_ref()?;
        let mut context = false;
        if score < 1.0 {
            context = words_before(cursor.bytes(), start).any(|word| rule.words.contains(word));
            if context {
                score = (score + CONTEXT_BONUS).clamp(CONTEXT_FLOOR, 1.0);
            }
        }
        if score < rule.threshold {
            return None;
        }
        if !self.allow.is_empty() && self.is_allowed(entity, cursor.slice(start, end)) {
            return Some(Judged::Allowed { end });
        }
        Some(Judged::Found(Found {
            entity,
            start,
            end,
            score,
            evidence,
            context,
        }))
    }

    fn is_allowed(&self, entity: Entity, value: &[u8]) -> bool {
        let value = String::from_utf8_lossy(value).to_lowercase();
        let listed = |value: &str| {
            self.allow
                .binary_search_by(|entry| entry.as_str().cmp(value))
                .is_ok()
        };
        let domain = || {
            value
                .rfind('@')
                .and_then(|sign| value.get(sign..))
                .is_some_and(listed)
        };
        listed(&value) || (entity == Entity::Email && domain())
    }
}

/// What the scanner says about one place.
enum Judged {
    Found(Found),
    Allowed { end: usize },
    Nothing { resume: usize },
}

/// Where the earliest match could begin that has its first digit or `@` at or behind `at`, while
/// all before `at` holds none.
fn opening(cursor: &Cursor<'_>, at: usize, floor: usize) -> usize {
    let mut start = cursor.run_back(
        at,
        LOCAL | OPENING,
        floor.max(at.saturating_sub(LONGEST_OPENING)),
    );
    while start < at && is_continuation(cursor.at(start)) {
        start += 1;
    }
    start
}
