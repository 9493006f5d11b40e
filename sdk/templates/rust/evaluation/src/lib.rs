//! Scores 1 where the answer contains a reference.
#![cfg_attr(target_family = "wasm", no_std)]
use millgate_sdk::prelude::*;

/// The stage's config.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Contains {
    ignore_case: bool,
}

impl Plugin for Contains {
    type Config = Contains;
    fn configure(config: Contains) -> Result<Self, StageError> {
        Ok(config)
    }
}

impl Evaluation for Contains {
    fn evaluate(&self, _: &Context<'_>, answers: &[Answer]) -> Result<Scores, StageError> {
        let cases = answers.iter().map(|answer| CaseScores {
            id: answer.id.clone(),
            scores: self.scores(answer),
        });
        Ok(Scores { cases: cases.collect(), aggregate: Vec::new() })
    }
}

impl Contains {
    fn scores(&self, answer: &Answer) -> Vec<Score> {
        if answer.references.is_empty() {
            return Vec::new();
        }
        let output = self.folded(&answer.output);
        let mut references = answer.references.iter();
        let found = references.any(|reference| output.contains(&self.folded(reference)));
        vec![Score::new("contains", f64::from(u8::from(found)))]
    }

    fn folded(&self, text: &str) -> String {
        if self.ignore_case { text.to_ascii_lowercase() } else { text.to_owned() }
    }
}

millgate_sdk::plugin!(Contains: Evaluation);
