//! Warns when too many answers are empty.
#![cfg_attr(target_family = "wasm", no_std)]
use millgate_sdk::prelude::*;

/// The stage's config.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Config {
    share: f64,
    at_least: u64,
}

/// What was seen so far.
#[derive(Default, Serialize, Deserialize)]
struct Seen {
    answers: u64,
    empty: u64,
}

pub struct Empty {
    config: Config,
    seen: Seen,
}

impl Plugin for Empty {
    type Config = Config;
    fn configure(config: Config) -> Result<Self, StageError> {
        Ok(Empty { config, seen: Seen::default() })
    }
}

impl Monitoring for Empty {
    fn observe(&mut self, events: Vec<Event>) -> Result<Report, StageError> {
        for tokens in events.iter().filter_map(|event| event.measure("completion-tokens")) {
            self.seen.answers += 1;
            self.seen.empty += u64::from(tokens == 0.0);
        }
        Ok(self.report())
    }

    fn tick(&mut self, _now_ms: u64) -> Result<Report, StageError> {
        Ok(self.report())
    }

    /// What survives a restart.
    fn save(&self) -> Result<Vec<u8>, StageError> {
        serde_json::to_vec(&self.seen)
            .map_err(|error| StageError::internal("save", format!("{error}")))
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StageError> {
        self.seen = read(state)?;
        Ok(())
    }

    fn merge(&mut self, state: &[u8]) -> Result<(), StageError> {
        let other = read(state)?;
        self.seen.answers += other.answers;
        self.seen.empty += other.empty;
        Ok(())
    }
}

fn read(state: &[u8]) -> Result<Seen, StageError> {
    serde_json::from_slice(state)
        .map_err(|error| StageError::internal("restore", format!("{error}")))
}

impl Empty {
    fn report(&self) -> Report {
        let Seen { answers, empty } = self.seen;
        let value = if answers > 0 { empty as f64 / answers as f64 } else { 0.0 };
        let severity = if answers < self.config.at_least {
            Severity::NoData
        } else if value >= self.config.share {
            Severity::Critical
        } else {
            Severity::Ok
        };
        Report {
            alerts: vec![Alert {
                rule: "empty-answers".into(),
                severity,
                value,
                threshold: self.config.share,
                message: format!("{empty} of {answers} answers were empty"),
            }],
            metrics: vec![Measure { name: "empty-share".into(), value }],
        }
    }
}

millgate_sdk::plugin!(Empty: Monitoring);
