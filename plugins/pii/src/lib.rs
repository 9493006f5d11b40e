//! Finds personal data in text.
#![cfg_attr(target_family = "wasm", no_std)]

use millgate_sdk::prelude::*;

/// The config.
#[derive(Deserialize)]
pub struct Config {}

/// The plugin.
pub struct Pii;

impl Plugin for Pii {
    type Config = Config;

    fn configure(_: Config) -> Result<Self, StageError> {
        Ok(Pii)
    }
}

impl WholeText for Pii {
    fn check(&self, _: &Segment, _: &str) -> Checked {
        Checked::pass()
    }
}

millgate_sdk::plugin!(Pii: Compliance);
