//! A canary stage: its verdict counts for a share of the requests, the same ones again and again,
//! and these are compared with the others after every request, by the always-valid tests that also
//! decide rollouts of models. As soon as one of them says that the stage fails, delays, or changes
//! how much is refused by more than the config allows, its verdict no longer counts for anybody:
//! it has fallen back to the shadow. What is known survives a restart; a fall ends with a generation
//! in which the stage is another one, or one that was applied anew.

mod state;
#[cfg(test)]
mod tests;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use millgate_store::{AuditLog, Digest, Store};
use millgate_trial::{
    sequential::holm,
    split::{self, Share},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    config::{CanaryConfig, StageConfig, Sticky},
    error::{Error, Result},
    id::{TraceId, now_ms},
    metrics::{Counter, Gauge, Metrics},
    trace::{Finish, Trace},
};
use state::{State, add};

/// Where a canary stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CanaryPhase {
    /// Its verdict counts for its share.
    Running,
    /// No request comes to one of the sides: there is nothing to judge it by. It goes on when they
    /// come again.
    Paused,
    /// Its verdict counts for nobody.
    Fallen,
}

/// What can be said of a canary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CanaryAnswer {
    /// Shown to be within everything that its config allows: it may be enforced.
    Pass,
    /// Shown to be beyond it.
    Fail,
    /// Not known yet.
    Inconclusive,
    /// There is nothing to judge it by.
    NoData,
}

/// A canary as an operator sees it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CanaryStatus {
    /// Where it stands.
    pub phase: CanaryPhase,
    /// What can be said of it.
    pub answer: CanaryAnswer,
    /// The share of requests for which its verdict counts now.
    pub share: f64,
    /// Why it stands there.
    pub reason: String,
    /// Milliseconds since 1970 since when it stands there.
    pub since_ms: u64,
    /// Requests for which its verdict counted, and the others.
    pub requests: Sides<u64>,
    /// Means of what is watched, on either side.
    pub metrics: Vec<CanaryMetric>,
    /// About how many requests on its side it takes in all to show that it does no harm; `None`:
    /// that cannot be said yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needed_requests: Option<u64>,
}

/// The same of either side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sides<T> {
    /// Of the requests for which its verdict counted.
    pub enforced: T,
    /// Of the others.
    pub shadow: T,
}

/// One thing that is watched.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CanaryMetric {
    /// `failed`, `blocked` or `latency-ms`.
    pub name: &'static str,
    /// The means.
    pub mean: Sides<f64>,
    /// The chance of seeing this if the stage were within what is allowed, whenever one looks
    /// (adjusted after Holm for all that is watched).
    pub p_value: f64,
}

/// How one request went, for a canary.
pub(crate) struct Outcome {
    enforced: bool,
    /// `None`: nobody knows.
    values: Option<[f64; 3]>,
}

impl Outcome {
    /// Of a finished trace: `failed` is whether the stage failed where its verdict counted.
    pub(crate) fn of(trace: &Trace, enforced: bool, failed: bool) -> Self {
        let flag = |set: bool| if set { 1.0 } else { 0.0 };
        // A request that was refused because the stage failed is a failure, and no verdict.
        let blocked = matches!(trace.finish, Finish::Blocked | Finish::Rejected) && !failed;
        let values = [
            flag(failed),
            flag(blocked),
            trace.timings.total as f64 / 1e3,
        ];
        Self {
            enforced,
            values: (trace.finish != Finish::Cancelled).then_some(values),
        }
    }
}

/// A canary stage's side of requests, and its record.
pub(crate) struct Canary {
    stage: Arc<str>,
    key: Vec<u8>,
    config: CanaryConfig,
    store: Arc<dyn Store>,
    fallen: AtomicBool,
    /// The state, its bytes as they stand in the store, and whether it is newer than they are.
    state: Mutex<(State, Option<Vec<u8>>, bool)>,
    requests: Sides<Counter>,
    is_fallen: Gauge,
    share: Gauge,
}

impl Canary {
    /// The canary of a stage: the stored one, if it is about the same plugin and config.
    pub(crate) fn open(
        name: &str,
        digest: &str,
        stage: &StageConfig,
        config: &CanaryConfig,
        store: Arc<dyn Store>,
        metrics: &Metrics,
    ) -> Result<Arc<Self>> {
        let identity = json!([name, digest, stage]).to_string();
        let id: String = Digest::of(identity.as_bytes())
            .hex()
            .chars()
            .take(16)
            .collect();
        let key = [b"canary/".as_slice(), name.as_bytes()].concat();
        let stored = store.get(&key)?;
        let known = stored
            .as_deref()
            .and_then(|bytes| serde_json::from_slice::<State>(bytes).ok());
        let state = known
            .filter(|state| state.id == id)
            .unwrap_or_else(|| State::new(id));
        let requests = |side| {
            metrics.counter(
                "millgate_canary_requests_total",
                "Requests by whether a canary stage's verdict counted.",
                &[("stage", name), ("side", side)],
            )
        };
        let canary = Self {
            stage: name.into(),
            key,
            fallen: AtomicBool::new(state.phase == CanaryPhase::Fallen),
            config: config.clone(),
            store,
            state: Mutex::new((state, stored, false)),
            requests: Sides {
                enforced: requests("enforced"),
                shadow: requests("shadow"),
            },
            is_fallen: metrics.gauge(
                "millgate_canary_fallen",
                "1 while a canary stage's verdict counts for nobody, because it did harm.",
                &[("stage", name)],
            ),
            share: metrics.gauge(
                "millgate_canary_share",
                "The share of requests for which a canary stage's verdict counts.",
                &[("stage", name)],
            ),
        };
        canary.show();
        Ok(Arc::new(canary))
    }

    fn show(&self) {
        let fallen = self.fallen.load(Ordering::Relaxed);
        self.is_fallen.set(if fallen { 1.0 } else { 0.0 });
        self.share.set(if fallen { 0.0 } else { self.config.share });
    }

    /// Whether its verdict counts for this request. `value` is what the request has of a key.
    pub(crate) fn enforces(
        &self,
        id: &TraceId,
        value: impl Fn(Sticky) -> Option<String>,
        tenant: &str,
    ) -> bool {
        if self.fallen.load(Ordering::Relaxed) {
            return false;
        }
        let given = self.config.sticky_by.iter().find_map(|&sticky| {
            let value = value(sticky)?;
            let name = match sticky {
                Sticky::User => "user",
                Sticky::Session => "session",
                Sticky::Tenant => "tenant",
            };
            Some((name, value))
        });
        let (name, value) = given.unwrap_or_else(|| ("trace", id.to_string()));
        let arm = |candidate: bool, weight: f64| Share {
            name: if candidate { "enforced" } else { "shadow" },
            candidate,
            weight,
        };
        let arms = [
            arm(false, 1.0 - self.config.share),
            arm(true, self.config.share),
        ];
        let placed = split::place(&self.stage, &[name, tenant, &value], &arms);
        placed.is_some_and(|placed| placed.arm == 1)
    }

    /// Notes how a request went. Whether the canary falls by it: its verdict counts no more, and
    /// [`write_fall`](Self::write_fall) is to be called.
    pub(crate) fn note(&self, outcome: &Outcome) -> bool {
        let side = if outcome.enforced {
            &self.requests.enforced
        } else {
            &self.requests.shadow
        };
        side.add(1);
        let Some(values) = outcome.values else {
            return false;
        };
        let mut guard = self.state.lock();
        let (state, _, dirty) = &mut *guard;
        if state.phase == CanaryPhase::Fallen {
            return false;
        }
        *dirty = true;
        let now = now_ms();
        if outcome.enforced {
            state.last_ms.enforced = now;
        } else {
            state.last_ms.shadow = now;
        }
        for (pair, value) in state.pairs.iter_mut().zip(values) {
            let moments = if outcome.enforced {
                &mut pair.candidate
            } else {
                &mut pair.stable
            };
            add(moments, value);
        }
        let Some(reason) = state.look(&self.config) else {
            return false;
        };
        state.phase = CanaryPhase::Fallen;
        state.since_ms = now;
        state.reason = reason;
        self.fallen.store(true, Ordering::Relaxed);
        self.show();
        true
    }

    /// Keeps a fall, and says it. Blocking.
    pub(crate) fn write_fall(&self, audit: &AuditLog) {
        let status = self.status();
        tracing::warn!(stage = %self.stage, reason = %status.reason, "a canary stage fell back to the shadow");
        self.save();
        let entry = audit.append(
            "millgate",
            "canary.fall",
            &format!("stage/{}", self.stage),
            json!({ "reason": status.reason, "requests": status.requests, "metrics": status.metrics }),
        );
        if let Err(error) = entry {
            tracing::error!(stage = %self.stage, %error, "the fall of a canary stage could not be audited");
        }
    }

    /// Pauses it where no data comes, lets it go on where some does, and keeps what is new.
    /// Blocking.
    pub(crate) fn tick(&self, audit: &AuditLog) {
        let moved = {
            let mut guard = self.state.lock();
            let now = now_ms();
            let moved = guard.0.follow(&self.config, now);
            guard.2 |= moved;
            moved.then(|| (guard.0.phase, guard.0.reason.clone()))
        };
        if let Some((phase, reason)) = moved {
            tracing::info!(stage = %self.stage, ?phase, %reason, "a canary stage moved");
            let subject = format!("stage/{}", self.stage);
            let body = json!({ "phase": phase, "reason": reason });
            if let Err(error) = audit.append("millgate", "canary.move", &subject, body) {
                tracing::error!(stage = %self.stage, %error, "a canary stage's move could not be audited");
            }
        }
        self.save();
    }

    /// Keeps what is new, so that a restart does not forget it. Blocking.
    pub(crate) fn save(&self) {
        let mut guard = self.state.lock();
        if !guard.2 {
            return;
        }
        if let Err(error) = self.swap(&mut guard) {
            tracing::error!(stage = %self.stage, %error, "a canary stage's record could not be kept");
        }
    }

    fn swap(&self, guard: &mut (State, Option<Vec<u8>>, bool)) -> Result<()> {
        let bytes = serde_json::to_vec(&guard.0).map_err(|error| Error::Record {
            key: format!("canary/{}", self.stage),
            why: error.to_string(),
        })?;
        let swapped = self
            .store
            .compare_and_swap(&self.key, guard.1.as_deref(), Some(&bytes))?;
        if swapped {
            guard.1 = Some(bytes);
            guard.2 = false;
        } else {
            // The canary of an earlier generation wrote meanwhile. It is not asked again, and this
            // one is: the next time it is this one's.
            guard.1 = self.store.get(&self.key)?;
        }
        Ok(())
    }

    /// Begins anew, as if nothing were known.
    pub(crate) fn begin_again(&self) {
        let mut guard = self.state.lock();
        guard.0 = State::new(guard.0.id.clone());
        guard.2 = true;
        self.fallen.store(false, Ordering::Relaxed);
        self.show();
        if let Err(error) = self.swap(&mut guard) {
            tracing::error!(stage = %self.stage, %error, "a canary stage's record could not be kept");
        }
    }

    /// As an operator sees it.
    pub(crate) fn status(&self) -> CanaryStatus {
        let guard = self.state.lock();
        let state = &guard.0;
        let p_values = holm(&state.within.map(|p_value| p_value.unwrap_or(1.0)));
        let p_value = |index: usize| p_values.get(index).copied().unwrap_or(1.0);
        let metrics = [
            ("failed", p_value(0)),
            ("blocked", p_value(1).min(p_value(2))),
            ("latency-ms", p_value(3)),
        ];
        let metrics = metrics.into_iter().zip(&state.pairs);
        let fallen = state.phase == CanaryPhase::Fallen;
        CanaryStatus {
            phase: state.phase,
            answer: state.answer(&self.config),
            share: if fallen { 0.0 } else { self.config.share },
            reason: state.reason.clone(),
            since_ms: state.since_ms,
            requests: state.requests(),
            metrics: metrics
                .map(|((name, p_value), pair)| CanaryMetric {
                    name,
                    mean: Sides {
                        enforced: pair.candidate.mean,
                        shadow: pair.stable.mean,
                    },
                    p_value,
                })
                .collect(),
            needed_requests: state.needed(&self.config),
        }
    }
}
