//! Finds personal data in text, and masks it, replaces it by pseudonyms, or refuses the text:
//! e-mail addresses, phone numbers, payment cards, IBANs, US social security numbers, IP addresses
//! and cryptocurrency addresses.
//!
//! * [`entity`]: what is looked for; [`find`]: the detectors, one file each;
//! * [`scanner`]: one linear pass, with context words and thresholds;
//! * [`inspection`]: the same over a stream, holding back only what could still become a match;
//! * [`replace`]: masks and pseudonyms.
//!
//! There are no regular expressions: their caches would be written to in every fresh copy of the
//! plugin's memory. The scanner reads tables that never change and allocates nothing for a text
//! that holds nothing.
#![cfg_attr(target_family = "wasm", no_std)]

pub mod config;
mod context;
mod cursor;
pub mod entity;
mod find;
pub mod inspection;
pub mod replace;
pub mod scanner;

use millgate_sdk::prelude::*;

pub use config::{Action, Config, EntityConfig, Mask};
pub use entity::Entity;
pub use inspection::Inspection;
pub use scanner::{Found, Scanner};

use replace::{Pseudonyms, SHORTEST_KEY};

/// The plugin.
#[derive(Debug)]
pub struct Pii {
    scanner: Scanner,
    /// By entity.
    actions: [Action; Entity::ALL.len()],
    mask: Mask,
    pseudonyms: Option<Pseudonyms>,
}

impl Pii {
    fn action(&self, entity: Entity) -> Action {
        self.actions
            .get(entity as usize)
            .copied()
            .unwrap_or_default()
    }
}

impl Plugin for Pii {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, StageError> {
        let scores = core::iter::once(config.threshold)
            .chain(Entity::ALL.map(|entity| config.threshold(entity)));
        for score in scores {
            if !(0.0..=1.0).contains(&score) {
                let message = format!("`threshold` is {score}; it must be between 0 and 1");
                return Err(StageError::invalid_config("threshold", message));
            }
        }
        let pseudonyms = match &config.pseudonym_key {
            None => None,
            Some(key) => Some(Pseudonyms::new(key).ok_or_else(|| {
                let message = format!("`pseudonym-key` must have at least {SHORTEST_KEY} bytes");
                StageError::invalid_config("pseudonym-key", message)
            })?),
        };
        let needs_key = Entity::ALL
            .iter()
            .any(|&entity| config.action(entity) == Some(Action::Pseudonym));
        if needs_key && pseudonyms.is_none() {
            return Err(StageError::invalid_config(
                "pseudonym-key",
                "the action `pseudonym` needs a `pseudonym-key`: a secret text of at least 16 bytes",
            ));
        }
        Ok(Pii {
            scanner: Scanner::new(&config),
            actions: Entity::ALL.map(|entity| config.action(entity).unwrap_or_default()),
            mask: config.mask,
            pseudonyms,
        })
    }
}

impl Compliance for Pii {
    type Inspection = Inspection;

    fn begin(&self, _: &Context<'_>) -> Inspection {
        Inspection::default()
    }

    fn push(&self, inspection: &mut Inspection, chunks: &[String]) -> Result<Verdict, StageError> {
        Ok(inspection.push(self, chunks))
    }

    fn finish(&self, inspection: &mut Inspection) -> Result<Verdict, StageError> {
        Ok(inspection.finish(self))
    }
}

millgate_sdk::plugin!(Pii: Compliance);
