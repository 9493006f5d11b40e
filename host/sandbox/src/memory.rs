//! Services that keep everything in memory: for tests, for trying a plugin out, for benchmarks.

use std::collections::{BTreeMap, HashMap};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::contract::inference::{Completion, CompletionRequest, Level};
use crate::contract::monitoring::Report;
use crate::contract::types::StageError;
use crate::services::Services;

/// Keeps logs, metrics, state and reports in memory, and has no models: `inference` answers
/// `unavailable`.
#[derive(Default)]
pub struct MemoryServices {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    lines: Vec<(String, Level, String)>,
    counters: HashMap<(String, String), u64>,
    gauges: HashMap<(String, String), f64>,
    state: HashMap<String, BTreeMap<String, Vec<u8>>>,
    actors: HashMap<String, Vec<u8>>,
    reports: Vec<(String, Report)>,
}

/// The most log lines and reports that are kept; older ones stay, newer ones are dropped.
const MOST: usize = 10_000;

impl MemoryServices {
    /// The log: stage, level, message.
    #[must_use]
    pub fn lines(&self) -> Vec<(String, Level, String)> {
        self.kept.lock().lines.clone()
    }

    /// A counter of a stage.
    #[must_use]
    pub fn counter(&self, stage: &str, name: &str) -> u64 {
        self.kept
            .lock()
            .counters
            .get(&(stage.into(), name.into()))
            .copied()
            .unwrap_or(0)
    }

    /// A gauge of a stage.
    #[must_use]
    pub fn gauge_value(&self, stage: &str, name: &str) -> Option<f64> {
        self.kept
            .lock()
            .gauges
            .get(&(stage.into(), name.into()))
            .copied()
    }

    /// All counters and gauges of a stage, by name.
    #[must_use]
    pub fn metric_names(&self, stage: &str) -> Vec<String> {
        let kept = self.kept.lock();
        let mut names: Vec<String> = (kept.counters.keys().chain(kept.gauges.keys()))
            .filter(|(of, _)| of == stage)
            .map(|(_, name)| name.clone())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// What monitors reported: stage, report.
    #[must_use]
    pub fn reports(&self) -> Vec<(String, Report)> {
        self.kept.lock().reports.clone()
    }

    /// The bytes of a stage's state: keys and values.
    #[must_use]
    pub fn state_bytes(&self, stage: &str) -> u64 {
        self.kept.lock().state.get(stage).map_or(0, size)
    }
}

fn size(space: &BTreeMap<String, Vec<u8>>) -> u64 {
    space
        .iter()
        .map(|(key, value)| (key.len() + value.len()) as u64)
        .sum()
}

fn set(
    space: &mut BTreeMap<String, Vec<u8>>,
    key: &str,
    value: &[u8],
    limit: u64,
) -> Result<(), StageError> {
    let old = space
        .get(key)
        .map_or(0, |old| (key.len() + old.len()) as u64);
    let new = size(space) - old + (key.len() + value.len()) as u64;
    if new > limit {
        return Err(StageError::denied(
            "state-full",
            format!("{new} bytes of state, {limit} are granted"),
        ));
    }
    space.insert(key.into(), value.into());
    Ok(())
}

fn no_model<T: Send + 'static>() -> BoxFuture<'static, Result<T, StageError>> {
    let error = StageError::unavailable("no-model", "there is no model here");
    std::future::ready(Err(error)).boxed()
}

impl Services for MemoryServices {
    fn log(&self, stage: &str, _trace_id: &str, level: Level, message: &str) {
        let mut kept = self.kept.lock();
        if kept.lines.len() < MOST {
            kept.lines.push((stage.into(), level, message.into()));
        }
    }

    fn count(&self, stage: &str, name: &str, add: u64) {
        let mut kept = self.kept.lock();
        let counter = kept
            .counters
            .entry((stage.into(), name.into()))
            .or_default();
        *counter = counter.saturating_add(add);
    }

    fn gauge(&self, stage: &str, name: &str, value: f64) {
        self.kept
            .lock()
            .gauges
            .insert((stage.into(), name.into()), value);
    }

    fn state_get(&self, stage: &str, key: &str) -> Result<Option<Vec<u8>>, StageError> {
        Ok(self
            .kept
            .lock()
            .state
            .get(stage)
            .and_then(|space| space.get(key))
            .cloned())
    }

    fn state_set(
        &self,
        stage: &str,
        key: &str,
        value: &[u8],
        limit: u64,
    ) -> Result<(), StageError> {
        set(
            self.kept.lock().state.entry(stage.into()).or_default(),
            key,
            value,
            limit,
        )
    }

    fn state_compare_and_swap(
        &self,
        stage: &str,
        key: &str,
        expected: Option<&[u8]>,
        value: &[u8],
        limit: u64,
    ) -> Result<bool, StageError> {
        let mut kept = self.kept.lock();
        let space = kept.state.entry(stage.into()).or_default();
        if space.get(key).map(Vec::as_slice) != expected {
            return Ok(false);
        }
        set(space, key, value, limit).map(|()| true)
    }

    fn state_delete(&self, stage: &str, key: &str) -> Result<(), StageError> {
        if let Some(space) = self.kept.lock().state.get_mut(stage) {
            space.remove(key);
        }
        Ok(())
    }

    fn state_keys(&self, stage: &str, prefix: &str, limit: u32) -> Result<Vec<String>, StageError> {
        let kept = self.kept.lock();
        let Some(space) = kept.state.get(stage) else {
            return Ok(Vec::new());
        };
        let from = space.range(prefix.to_owned()..).map(|(key, _)| key);
        Ok(from
            .take_while(|key| key.starts_with(prefix))
            .take(limit as usize)
            .cloned()
            .collect())
    }

    fn complete(
        &self,
        _stage: &str,
        _tenant: &str,
        _request: CompletionRequest,
    ) -> BoxFuture<'_, Result<Completion, StageError>> {
        no_model()
    }

    fn embed(
        &self,
        _stage: &str,
        _tenant: &str,
        _model: &str,
        _texts: Vec<String>,
    ) -> BoxFuture<'_, Result<(Vec<Vec<f32>>, u32), StageError>> {
        no_model()
    }

    fn score(
        &self,
        _stage: &str,
        _tenant: &str,
        _model: &str,
        _text: String,
    ) -> BoxFuture<'_, Result<Vec<f64>, StageError>> {
        no_model()
    }

    fn save_actor(&self, stage: &str, state: &[u8]) -> Result<(), StageError> {
        self.kept.lock().actors.insert(stage.into(), state.into());
        Ok(())
    }

    fn load_actor(&self, stage: &str) -> Result<Option<Vec<u8>>, StageError> {
        Ok(self.kept.lock().actors.get(stage).cloned())
    }

    fn report(&self, stage: &str, report: Report) {
        let mut kept = self.kept.lock();
        if kept.reports.len() < MOST {
            kept.reports.push((stage.into(), report));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_bounded_and_apart() {
        let services = MemoryServices::default();
        services.state_set("a", "key", b"value", 8).unwrap();
        services.state_set("a", "key", b"VALUE", 8).unwrap();
        let full = services.state_set("a", "k2", b"v", 8).unwrap_err();
        assert_eq!(full.code, "state-full");
        assert_eq!(services.state_get("b", "key").unwrap(), None);
        assert!(
            !services
                .state_compare_and_swap("a", "key", None, b"x", 8)
                .unwrap()
        );
        assert!(
            services
                .state_compare_and_swap("a", "key", Some(b"VALUE"), b"x", 8)
                .unwrap()
        );
        services.state_set("a", "kez", b"", 100).unwrap();
        assert_eq!(services.state_keys("a", "ke", 9).unwrap(), ["key", "kez"]);
        assert_eq!(services.state_keys("a", "ke", 1).unwrap(), ["key"]);
        services.state_delete("a", "key").unwrap();
        assert_eq!(services.state_bytes("a"), 3);
    }
}
