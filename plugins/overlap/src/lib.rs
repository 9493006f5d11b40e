//! Scores answers against references: exact match, token F1, ROUGE, chrF and BLEU, each equal to
//! its reference implementation.
//!
//! One file for each metric, none of which knows the SDK: [`squad`], [`rouge`], [`chrf`], [`bleu`],
//! over the words of [`text`] and the n-grams of [`ngrams`]. This file joins them: it reads the
//! config and names the scores.
#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

pub mod bleu;
pub mod chrf;
pub mod ngrams;
mod porter;
pub mod rouge;
pub mod squad;
pub mod text;

use millgate_sdk::prelude::*;

use bleu::BleuCounts;
use chrf::ChrfCounts;
use ngrams::Ngrams;
use rouge::Rouge;
use squad::Normalisation;
use text::Vocabulary;

/// The config, as `plugin.toml` describes it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Config {
    metrics: Vec<Metric>,
    exact_match: Normalisation,
    rouge_stemmer: bool,
    chrf_word_order: u8,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            metrics: Metric::ALL.to_vec(),
            exact_match: Normalisation::Squad,
            rouge_stemmer: false,
            chrf_word_order: 0,
        }
    }
}

/// A metric that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Metric {
    ExactMatch,
    TokenF1,
    #[serde(rename = "rouge-1")]
    Rouge1,
    #[serde(rename = "rouge-2")]
    Rouge2,
    #[serde(rename = "rouge-l")]
    RougeL,
    Chrf,
    Bleu,
}

impl Metric {
    const ALL: [Self; 7] = [
        Self::ExactMatch,
        Self::TokenF1,
        Self::Rouge1,
        Self::Rouge2,
        Self::RougeL,
        Self::Chrf,
        Self::Bleu,
    ];

    fn is_rouge(self) -> bool {
        matches!(self, Self::Rouge1 | Self::Rouge2 | Self::RougeL)
    }
}

/// The plugin.
pub struct Overlap(Config);

impl Plugin for Overlap {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, StageError> {
        if config.metrics.is_empty() {
            return Err(StageError::invalid_config(
                "no-metric",
                "`metrics` is empty: name at least one, such as `rouge-l`, or leave it out for all",
            ));
        }
        if config.chrf_word_order > 2 {
            return Err(StageError::invalid_config(
                "chrf-word-order",
                "`chrf-word-order` is 0 for chrF, or 2 for chrF++; it cannot be above 2",
            ));
        }
        Ok(Self(config))
    }
}

impl Evaluation for Overlap {
    fn evaluate(&self, _: &Context<'_>, answers: &[Answer]) -> Result<Scores, StageError> {
        let mut bleu: Option<BleuCounts> = None;
        let mut chrf: Option<ChrfCounts> = None;
        let mut cases = Vec::with_capacity(answers.len());
        for answer in answers {
            let references: Vec<&str> = answer.references.iter().map(String::as_str).collect();
            let mut scores = Vec::new();
            // Without a reference nothing can be said, and an absent score is not a zero.
            if !references.is_empty() {
                let output = answer.output.as_str();
                self.words(output, &references, &mut scores);
                self.rouge(output, &references, &mut scores);
                if self.wants(Metric::Chrf) {
                    let counts = ChrfCounts::of(output, &references, self.0.chrf_word_order.into());
                    scores.push(Score::new("chrf", counts.score()));
                    chrf.get_or_insert_default().add(&counts);
                }
                if self.wants(Metric::Bleu) {
                    let counts = BleuCounts::of(output, &references);
                    scores.push(bleu_score("bleu", &counts.score(true)));
                    bleu.get_or_insert_default().add(&counts);
                }
            }
            cases.push(CaseScores {
                id: answer.id.clone(),
                scores,
            });
        }
        let mut aggregate = Vec::new();
        if let Some(counts) = chrf {
            aggregate.push(Score::new("corpus-chrf", counts.score()));
        }
        if let Some(counts) = bleu {
            aggregate.push(bleu_score("corpus-bleu", &counts.score(false)));
        }
        Ok(Scores { cases, aggregate })
    }
}

impl Overlap {
    fn wants(&self, metric: Metric) -> bool {
        self.0.metrics.contains(&metric)
    }

    /// Exact match and token F1.
    fn words(&self, output: &str, references: &[&str], scores: &mut Vec<Score>) {
        if self.wants(Metric::ExactMatch) {
            let normal = |text: &str| self.0.exact_match.apply(text);
            let output = normal(output);
            let equal = references
                .iter()
                .any(|reference| normal(reference) == output);
            scores.push(Score::new("exact-match", f64::from(u8::from(equal))));
        }
        if self.wants(Metric::TokenF1) {
            let output = text::squad_normal(output);
            let best = references
                .iter()
                .map(|reference| squad::token_f1(&output, &text::squad_normal(reference)))
                .reduce(Rouge::better)
                .unwrap_or_default();
            scores.push(f1_score("token-f1", best));
        }
    }

    /// The kinds of ROUGE, from one tokenisation.
    fn rouge(&self, output: &str, references: &[&str], scores: &mut Vec<Score>) {
        if !self.0.metrics.iter().any(|metric| metric.is_rouge()) {
            return;
        }
        let mut vocabulary = Vocabulary::default();
        let mut tokens = |text: &str| {
            let tokens = text::rouge_tokens(text, self.0.rouge_stemmer);
            vocabulary.numbers(tokens.iter().map(|token| token.as_ref()))
        };
        let answer = tokens(output);
        let references: Vec<Vec<u32>> = references.iter().map(|text| tokens(text)).collect();
        let best = |score: &dyn Fn(&[u32]) -> Rouge| {
            let all = references.iter().map(|reference| score(reference));
            all.reduce(Rouge::better).unwrap_or_default()
        };
        let grams = Ngrams::of_words(&answer);
        for (metric, name, order) in [
            (Metric::Rouge1, "rouge-1", 1),
            (Metric::Rouge2, "rouge-2", 2),
        ] {
            if self.wants(metric) {
                let best =
                    best(&|reference| rouge::rouge_n(&grams, &Ngrams::of_words(reference), order));
                scores.push(f1_score(name, best));
            }
        }
        if self.wants(Metric::RougeL) {
            let best = best(&|reference| rouge::rouge_l(&answer, reference));
            scores.push(f1_score("rouge-l", best));
        }
    }
}

fn f1_score(name: &str, score: Rouge) -> Score {
    Score {
        name: name.into(),
        value: score.f1,
        explanation: format!(
            "precision {:.3}, recall {:.3}",
            score.precision, score.recall
        ),
    }
}

fn bleu_score(name: &str, bleu: &bleu::Bleu) -> Score {
    let [one, two, three, four] = bleu.precisions;
    Score {
        name: name.into(),
        value: bleu.score,
        explanation: format!(
            "precisions {one:.1}/{two:.1}/{three:.1}/{four:.1}, brevity penalty {:.3}",
            bleu.brevity_penalty
        ),
    }
}

millgate_sdk::plugin!(Overlap: Evaluation);
