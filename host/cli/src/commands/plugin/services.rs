//! The host's services for a plugin that is run by hand: state in memory, log on standard error,
//! no models.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::future::{BoxFuture, FutureExt as _, ready};
use millgate_sandbox::{Completion, CompletionRequest, Level, Report, Services, StageError};

/// Services of one run.
pub struct RunServices {
    state: Mutex<BTreeMap<String, Vec<u8>>>,
    reports: Sender<Report>,
}

impl RunServices {
    /// What a monitor reports is sent to `reports`.
    pub fn new(reports: Sender<Report>) -> Self {
        Self {
            state: Mutex::default(),
            reports,
        }
    }

    fn state(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_models<T: Send + 'static>() -> BoxFuture<'static, Result<T, StageError>> {
    ready(Err(StageError::unavailable(
        "no-models",
        "`millgate plugin run` serves no models; put the plugin into a pipeline and use `millgate chat`",
    )))
    .boxed()
}

fn within(state: &BTreeMap<String, Vec<u8>>, limit: u64) -> Result<(), StageError> {
    let used: usize = state
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if used as u64 > limit {
        return Err(StageError::denied(
            "state-full",
            format!("the granted {limit} bytes are used up"),
        ));
    }
    Ok(())
}

impl Services for RunServices {
    fn log(&self, stage: &str, _trace_id: &str, level: Level, message: &str) {
        eprintln!("{stage} {level:?}: {message}");
    }

    fn count(&self, _stage: &str, name: &str, add: u64) {
        eprintln!("counter {name} +{add}");
    }

    fn gauge(&self, _stage: &str, name: &str, value: f64) {
        eprintln!("gauge {name} {value}");
    }

    fn state_get(&self, _stage: &str, key: &str) -> Result<Option<Vec<u8>>, StageError> {
        Ok(self.state().get(key).cloned())
    }

    fn state_set(
        &self,
        _stage: &str,
        key: &str,
        value: &[u8],
        limit: u64,
    ) -> Result<(), StageError> {
        let mut state = self.state();
        let mut next = state.clone();
        next.insert(key.to_owned(), value.to_vec());
        within(&next, limit)?;
        *state = next;
        Ok(())
    }

    fn state_compare_and_swap(
        &self,
        stage: &str,
        key: &str,
        expected: Option<&[u8]>,
        value: &[u8],
        limit: u64,
    ) -> Result<bool, StageError> {
        if self.state().get(key).map(Vec::as_slice) != expected {
            return Ok(false);
        }
        self.state_set(stage, key, value, limit)?;
        Ok(true)
    }

    fn state_delete(&self, _stage: &str, key: &str) -> Result<(), StageError> {
        self.state().remove(key);
        Ok(())
    }

    fn state_keys(
        &self,
        _stage: &str,
        prefix: &str,
        limit: u32,
    ) -> Result<Vec<String>, StageError> {
        let state = self.state();
        let keys = state.keys().filter(|key| key.starts_with(prefix)).cloned();
        Ok(keys.take(limit as usize).collect())
    }

    fn complete(
        &self,
        _: &str,
        _: CompletionRequest,
    ) -> BoxFuture<'_, Result<Completion, StageError>> {
        no_models()
    }

    fn embed(
        &self,
        _stage: &str,
        _model: &str,
        _texts: Vec<String>,
    ) -> BoxFuture<'_, Result<(Vec<Vec<f32>>, u32), StageError>> {
        no_models()
    }

    fn score(&self, _: &str, _: &str, _: String) -> BoxFuture<'_, Result<Vec<f64>, StageError>> {
        no_models()
    }

    fn save_actor(&self, _stage: &str, _state: &[u8]) -> Result<(), StageError> {
        Ok(())
    }

    fn load_actor(&self, _stage: &str) -> Result<Option<Vec<u8>>, StageError> {
        Ok(None)
    }

    fn report(&self, _stage: &str, report: Report) {
        // Nobody waits for it any more when the run is over.
        let _ = self.reports.send(report);
    }
}
