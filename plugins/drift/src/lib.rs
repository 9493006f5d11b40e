//! Is something changing? Compares the latest traffic with a reference, column by column.
//!
//! [`history`] keeps what is needed of the events, as [`sketch`]es and [`tally`]s that merge
//! exactly. [`comparison`] holds a column's window against its reference by the measures of
//! [`statistics`], and [`alarm`] turns them into levels. This file joins them: events in, report
//! out, state saved, restored and merged.
#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

pub mod alarm;
pub mod comparison;
mod config;
pub mod history;
mod report;
pub mod sketch;
pub mod statistics;
pub mod tally;

use millgate_sdk::prelude::*;

use alarm::Level;
pub use config::Config;
use history::{History, Slice};

/// The first byte of a saved state; another layout gets another number.
const STATE_VERSION: u8 = 1;

/// The plugin.
#[derive(Debug)]
pub struct Drift {
    config: Config,
    state: State,
    /// Events since the last report, and the slice that was filling then.
    unreported: u64,
    reported_slice: u64,
}

/// What survives a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct State {
    history: History,
    /// By rule, such as `psi.latency-ms`.
    levels: BTreeMap<String, Level>,
    /// The reference has been logged.
    announced: bool,
}

impl Plugin for Drift {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, StageError> {
        config.check()?;
        let history = History::new(config.shape());
        let state = State {
            history,
            levels: BTreeMap::new(),
            announced: false,
        };
        Ok(Self {
            config,
            state,
            unreported: 0,
            reported_slice: 0,
        })
    }
}

impl Monitoring for Drift {
    fn observe(&mut self, events: Vec<Event>) -> Result<Report, StageError> {
        for event in &events {
            if self.concerns(event) {
                let config = &self.config;
                self.state
                    .history
                    .add(event.at_ms, |slice| fill(slice, config, event));
                self.unreported += 1;
            } else {
                self.state.history.advance(event.at_ms);
            }
        }
        self.state.history.forget();
        // A report costs as much as a thousand events, so there is one when it could say something
        // new: a slice is full, or a sample's worth of events has come. `tick` always reports.
        let due = self.unreported >= self.config.min_samples
            || self.state.history.latest_slice() > self.reported_slice;
        Ok(if due {
            self.report()
        } else {
            Report {
                alerts: Vec::new(),
                metrics: Vec::new(),
            }
        })
    }

    fn tick(&mut self, now_ms: u64) -> Result<Report, StageError> {
        self.state.history.advance(now_ms);
        self.state.history.forget();
        Ok(self.report())
    }

    fn save(&self) -> Result<Vec<u8>, StageError> {
        let bytes = postcard::to_allocvec(&(STATE_VERSION, &self.state));
        bytes.map_err(|error| {
            StageError::internal("save", format!("the state cannot be written: {error}"))
        })
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StageError> {
        self.state = self.read(state)?;
        Ok(())
    }

    fn merge(&mut self, state: &[u8]) -> Result<(), StageError> {
        let other = self.read(state)?;
        self.state.history.merge(&other.history);
        for (rule, level) in other.levels {
            let own = self.state.levels.entry(rule).or_default();
            *own = (*own).max(level);
        }
        self.state.announced |= other.announced;
        Ok(())
    }
}

impl Drift {
    fn read(&self, state: &[u8]) -> Result<State, StageError> {
        let Ok(((STATE_VERSION, state), [])) = postcard::take_from_bytes::<(u8, State)>(state)
        else {
            return Err(StageError::invalid_input(
                "state",
                "these bytes are not a state of this version of `drift`; start without one",
            ));
        };
        if state.history.shape() != self.config.shape() {
            return Err(StageError::invalid_input(
                "state-shape",
                "the state was made with another `window-minutes`, `reference-events` or `baseline`; start without one",
            ));
        }
        Ok(state)
    }

    /// Whether the event is one of those that the config watches.
    fn concerns(&self, event: &Event) -> bool {
        self.config
            .only
            .iter()
            .all(|(name, value)| event.label(name) == Some(value.as_str()))
    }
}

fn fill(slice: &mut Slice, config: &Config, event: &Event) {
    for measure in &event.measures {
        if config
            .numbers
            .iter()
            .any(|pattern| pattern.fits(&measure.name))
        {
            slice.add_number(&measure.name, measure.value);
        }
    }
    for label in &event.labels {
        if config
            .categories
            .iter()
            .any(|pattern| pattern.fits(&label.name))
        {
            slice.add_category(&label.name, &label.value);
        }
    }
}

millgate_sdk::plugin!(Drift: Monitoring);
