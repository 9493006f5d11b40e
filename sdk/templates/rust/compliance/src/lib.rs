//! Masks the words on a list.
#![cfg_attr(target_family = "wasm", no_std)]
use millgate_sdk::prelude::*;

/// The stage's config.
#[derive(Deserialize)]
pub struct Words {
    words: Vec<String>,
}

impl Plugin for Words {
    type Config = Words;
    fn configure(config: Words) -> Result<Self, StageError> {
        Ok(config)
    }
}

impl Windowed for Words {
    fn window(&self) -> Window {
        Window::Lines { max: 4096 }
    }
    fn check(&self, _: &Segment, line: &str) -> Checked {
        let mut checked = Checked::pass();
        for word in &self.words {
            for (at, found) in line.match_indices(word.as_str()) {
                let finding = Finding::new("word", 1.0, "on the list");
                checked.replace(at..at + found.len(), "***", finding);
            }
        }
        checked
    }
}

millgate_sdk::plugin!(Words: Compliance);
