//! Alerts: what monitors report, kept as the state of each rule. Only changes of severity are told;
//! the state survives a restart, which therefore neither loses nor repeats an alert.

use std::{collections::BTreeMap, sync::Arc};

use millgate_sandbox::{Alert, Severity};
use millgate_store::{Order, Store};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{error::Result, id::now_ms, metrics::Metrics};

const PREFIX: &[u8] = b"alert/";
/// The most rules of one monitor; a monitor that reports more is cut off there.
const MAX_RULES: usize = 256;

/// The state of one rule of one monitor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlertState {
    /// The monitor's stage.
    pub stage: String,
    /// The rule, such as `psi.completion-tokens`.
    pub rule: String,
    /// How bad it is.
    pub severity: Severity,
    /// The statistic as measured when it came to this severity.
    pub value: f64,
    /// The limit that it was held against.
    pub threshold: f64,
    /// One sentence for the person on call.
    pub message: String,
    /// Milliseconds since 1970 at which it came to this severity.
    pub since_ms: u64,
}

/// The state of all rules.
pub(crate) struct AlertBook {
    store: Arc<dyn Store>,
    metrics: Metrics,
    rules: Mutex<BTreeMap<(String, String), AlertState>>,
}

impl AlertBook {
    /// The alerts as the last process left them.
    pub(crate) fn open(store: Arc<dyn Store>, metrics: Metrics) -> Result<Self> {
        let mut rules = BTreeMap::new();
        for (_, value) in store.scan_prefix(PREFIX, Order::Ascending, usize::MAX)? {
            if let Ok(state) = serde_json::from_slice::<AlertState>(&value) {
                rules.insert((state.stage.clone(), state.rule.clone()), state);
            }
        }
        Ok(Self {
            store,
            metrics,
            rules: Mutex::new(rules),
        })
    }

    /// All rules.
    pub(crate) fn all(&self) -> Vec<AlertState> {
        self.rules.lock().values().cloned().collect()
    }

    /// Takes a monitor's report; returns what changed.
    pub(crate) fn report(&self, stage: &str, alerts: Vec<Alert>) -> Vec<AlertState> {
        let mut changes = Vec::new();
        let mut rules = self.rules.lock();
        for alert in alerts {
            let key = (stage.to_owned(), alert.rule.clone());
            let known = rules.get(&key).map(|state| state.severity);
            if known == Some(alert.severity) {
                continue;
            }
            if known.is_none()
                && rules.keys().filter(|(name, _)| name == stage).count() >= MAX_RULES
            {
                continue;
            }
            let state = AlertState {
                stage: stage.to_owned(),
                rule: alert.rule,
                severity: alert.severity,
                value: alert.value,
                threshold: alert.threshold,
                message: alert.message,
                since_ms: now_ms(),
            };
            self.keep(&state);
            rules.insert(key, state.clone());
            // A rule that begins as it should be is no news.
            if known.is_some() || state.severity != Severity::Ok {
                changes.push(state);
            }
        }
        changes
    }

    fn keep(&self, state: &AlertState) {
        let level = match state.severity {
            Severity::Ok => 0.0,
            Severity::Warning => 1.0,
            Severity::Critical => 2.0,
            Severity::NoData => -1.0,
        };
        let labels = [
            ("stage", state.stage.as_str()),
            ("rule", state.rule.as_str()),
        ];
        let help = "State of a monitor's rule: 0 ok, 1 warning, 2 critical, -1 no data.";
        self.metrics
            .gauge("millgate_alert", help, &labels)
            .set(level);
        let key = [PREFIX, state.stage.as_bytes(), b"\0", state.rule.as_bytes()].concat();
        let kept = serde_json::to_vec(state).map_err(|error| error.to_string());
        let kept = kept.and_then(|value| {
            self.store
                .put(&key, &value)
                .map_err(|error| error.to_string())
        });
        if let Err(error) = kept {
            tracing::error!(stage = %state.stage, rule = %state.rule, %error, "an alert's state could not be kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millgate_store::MemoryStore;

    fn alert(severity: Severity) -> Vec<Alert> {
        vec![Alert {
            rule: "psi".into(),
            severity,
            value: 0.3,
            threshold: 0.2,
            message: "drift".into(),
        }]
    }

    #[test]
    fn an_alert_fires_once_resolves_once_and_survives_a_restart() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let book = AlertBook::open(store.clone(), Metrics::new()).unwrap();
        assert!(
            book.report("drift", alert(Severity::Ok)).is_empty(),
            "no news"
        );
        assert_eq!(book.report("drift", alert(Severity::Critical)).len(), 1);
        assert!(
            book.report("drift", alert(Severity::Critical)).is_empty(),
            "told already"
        );
        drop(book);
        let book = AlertBook::open(store, Metrics::new()).unwrap();
        assert!(
            book.report("drift", alert(Severity::Critical)).is_empty(),
            "told before the restart"
        );
        assert_eq!(book.report("drift", alert(Severity::Ok)).len(), 1);
        assert_eq!(book.all().len(), 1);
    }
}
