//! Refuses texts that are too long.
#![cfg_attr(target_family = "wasm", no_std)]
use millgate_sdk::prelude::*;

/// The stage's config.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Length {
    max_characters: usize,
}

impl Plugin for Length {
    type Config = Length;
    fn configure(config: Length) -> Result<Self, StageError> {
        Ok(config)
    }
}

impl Validation for Length {
    /// As many judgements as samples, in the same order.
    fn validate(&self, _: &Context<'_>, samples: &[Sample]) -> Result<Vec<Judgement>, StageError> {
        Ok(samples.iter().map(|sample| self.judge(sample)).collect())
    }
}

impl Length {
    fn judge(&self, sample: &Sample) -> Judgement {
        for segment in &sample.segments {
            let characters = segment.text.chars().count();
            if characters > self.max_characters {
                let message = format!(
                    "{} has {characters} characters, at most {} are allowed",
                    segment.path, self.max_characters
                );
                let finding = Finding::new("length", 1.0, &*message);
                return Judgement::reject(message, vec![finding]);
            }
        }
        Judgement::accept()
    }
}

millgate_sdk::plugin!(Length: Validation);
