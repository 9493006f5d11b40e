//! A rollout: how much traffic each arm of a pipeline takes, and the record on which its deployment
//! stage decides. Every move is one compare-and-swap in the store and one entry in the audit log;
//! a restart goes on where the last one stood.

use std::sync::Arc;

use arc_swap::ArcSwap;
use millgate_sandbox::{Action, Arm, ArmRole, ArmSummary, MetricSummary, Recommendation};
use millgate_store::{AuditLog, Digest, Store};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    config::PipelineConfig,
    error::{Error, Result},
    id::now_ms,
    trace::{Finish, ScoreRecord, Trace},
};

/// Where a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RolloutPhase {
    /// Reviews go on.
    Running,
    /// Nothing moves until a person decides.
    Paused,
    /// The candidate became the stable arm.
    Promoted,
    /// All traffic went back to the stable arm.
    RolledBack,
}

/// A rollout as an operator sees it.
#[derive(Clone, Debug, Serialize)]
pub struct RolloutStatus {
    /// The pipeline.
    pub pipeline: String,
    /// Its id: changes when the arms change.
    pub id: String,
    /// Where it stands.
    pub phase: RolloutPhase,
    /// The candidates' share of the traffic, 0 to 1.
    pub candidate_weight: f64,
    /// Why it stands there.
    pub reason: String,
    /// The arms' records.
    pub arms: Vec<ArmSummary>,
}

/// What is kept of a rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    id: String,
    phase: RolloutPhase,
    started_ms: u64,
    reason: String,
    arms: Vec<ArmSummary>,
}

/// The rollout of one pipeline.
pub(crate) struct Rollout {
    pipeline: Arc<str>,
    key: Vec<u8>,
    /// The candidates' weights in the config: how they share what they are given.
    shares: Vec<f64>,
    store: Arc<dyn Store>,
    /// The state, and its bytes as they stand in the store.
    state: Mutex<(State, Option<Vec<u8>>)>,
    /// The arms with their weights, for the request path.
    arms: ArcSwap<Vec<Arm>>,
}

impl Rollout {
    /// The rollout of a pipeline's arms: the stored one, if it is about the same arms.
    pub(crate) fn open(
        pipeline: &Arc<str>,
        config: &PipelineConfig,
        store: Arc<dyn Store>,
    ) -> Result<Self> {
        let named: Vec<_> = config
            .arms
            .iter()
            .map(|arm| (&arm.name, arm.full_model()))
            .collect();
        let identity = json!([&**pipeline, named]).to_string();
        let id: String = Digest::of(identity.as_bytes())
            .hex()
            .chars()
            .take(16)
            .collect();
        let key = [b"rollout/".as_slice(), pipeline.as_bytes()].concat();
        let stable = config.stable_arm();
        let shares: Vec<f64> = config
            .arms
            .iter()
            .map(|arm| arm.weight.unwrap_or(0.0))
            .collect();
        let stored = store.get(&key)?;
        let known = stored
            .as_deref()
            .and_then(|bytes| serde_json::from_slice::<State>(bytes).ok());
        let state = known.filter(|state| state.id == id).unwrap_or_else(|| {
            let given: f64 = shares.iter().sum();
            let arm = |(index, arm): (usize, &crate::config::ArmConfig)| ArmSummary {
                arm: Arm {
                    name: arm.name.clone(),
                    role: if index == stable {
                        ArmRole::Stable
                    } else {
                        ArmRole::Candidate
                    },
                    weight: if index == stable {
                        (1.0 - given).max(0.0)
                    } else {
                        arm.weight.unwrap_or(0.0)
                    },
                },
                requests: 0,
                metrics: Vec::new(),
            };
            State {
                id,
                phase: RolloutPhase::Running,
                started_ms: now_ms(),
                reason: "as configured".to_owned(),
                arms: config.arms.iter().enumerate().map(arm).collect(),
            }
        });
        let arms = state
            .arms
            .iter()
            .map(|summary| summary.arm.clone())
            .collect();
        Ok(Self {
            pipeline: pipeline.clone(),
            key,
            shares,
            store,
            state: Mutex::new((state, stored)),
            arms: ArcSwap::from_pointee(arms),
        })
    }

    /// The arms with their weights.
    pub(crate) fn arms(&self) -> Arc<Vec<Arm>> {
        self.arms.load_full()
    }

    /// Notes how a request went.
    pub(crate) fn note(&self, arm: usize, trace: &Trace) {
        if trace.finish == Finish::Cancelled {
            return; // says nothing about the arm
        }
        let mut guard = self.state.lock();
        let Some(summary) = guard.0.arms.get_mut(arm) else {
            return;
        };
        summary.requests += 1;
        let flag = |set: bool| if set { 1.0 } else { 0.0 };
        add(summary, "error", flag(trace.finish == Finish::Error));
        add(summary, "blocked", flag(trace.finish == Finish::Blocked));
        add(summary, "latency-ms", trace.timings.total as f64 / 1e3);
        if trace.timings.ttft > 0 {
            add(summary, "ttft-ms", trace.timings.ttft as f64 / 1e3);
        }
    }

    /// Notes what an evaluation said.
    pub(crate) fn note_scores(&self, arm: usize, scores: &[ScoreRecord]) {
        let mut guard = self.state.lock();
        let Some(summary) = guard.0.arms.get_mut(arm) else {
            return;
        };
        for score in scores {
            add(summary, &format!("score.{}", score.name), score.value);
        }
    }

    /// What the deployment stage reviews; `None` when there is nothing to decide.
    pub(crate) fn under_review(&self) -> Option<millgate_sandbox::Rollout> {
        let guard = self.state.lock();
        let state = &guard.0;
        let candidates = state
            .arms
            .iter()
            .any(|summary| summary.arm.role == ArmRole::Candidate);
        (state.phase == RolloutPhase::Running && candidates).then(|| millgate_sandbox::Rollout {
            id: state.id.clone(),
            elapsed_ms: now_ms().saturating_sub(state.started_ms),
            candidate_weight: candidate_weight(&state.arms),
            arms: state.arms.clone(),
        })
    }

    /// Keeps the arms' records, so that a restart does not forget them.
    pub(crate) fn save(&self) -> Result<()> {
        let mut guard = self.state.lock();
        let next = guard.0.clone();
        self.swap(&mut guard, next)
    }

    /// Does what was recommended. `actor` is who decided. Blocking: the audit entry is durable
    /// when it returns.
    pub(crate) fn apply(
        &self,
        recommendation: &Recommendation,
        actor: &str,
        audit: &AuditLog,
    ) -> Result<RolloutStatus> {
        let change = {
            let mut guard = self.state.lock();
            let before = guard.0.clone();
            let mut next = before.clone();
            self.step(&mut next, recommendation.action);
            let moved = next.phase != before.phase || weights(&next.arms) != weights(&before.arms);
            if moved {
                next.reason.clone_from(&recommendation.reason);
            }
            self.swap(&mut guard, next.clone())?;
            moved.then_some((before, next))
        };
        if let Some((before, after)) = change {
            tracing::info!(pipeline = %self.pipeline, phase = ?after.phase, reason = %after.reason, "the rollout moved");
            let evidence: serde_json::Map<_, _> = recommendation
                .evidence
                .iter()
                .map(|measure| (measure.name.clone(), json!(measure.value)))
                .collect();
            audit.append(
                actor,
                "rollout.move",
                &format!("pipeline/{}", self.pipeline),
                json!({
                    "rollout": after.id,
                    "action": recommendation.action,
                    "from": { "phase": before.phase, "candidate-weight": candidate_weight(&before.arms) },
                    "to": { "phase": after.phase, "candidate-weight": candidate_weight(&after.arms) },
                    "reason": recommendation.reason,
                    "evidence": evidence,
                }),
            )?;
        }
        Ok(self.status())
    }

    fn step(&self, state: &mut State, action: Action) {
        match action {
            Action::Hold => state.phase = RolloutPhase::Running,
            Action::Pause => state.phase = RolloutPhase::Paused,
            Action::Shift(weight) => {
                state.phase = RolloutPhase::Running;
                self.give_candidates(state, weight.clamp(0.0, 1.0));
            }
            Action::RollBack => {
                state.phase = RolloutPhase::RolledBack;
                self.give_candidates(state, 0.0);
            }
            Action::Promote => {
                let candidates = state
                    .arms
                    .iter()
                    .enumerate()
                    .filter(|(_, it)| it.arm.role == ArmRole::Candidate);
                let best = candidates
                    .max_by(|a, b| a.1.arm.weight.total_cmp(&b.1.arm.weight))
                    .map(|(index, _)| index);
                if let Some(best) = best {
                    state.phase = RolloutPhase::Promoted;
                    for (index, summary) in state.arms.iter_mut().enumerate() {
                        summary.arm.role = if index == best {
                            ArmRole::Stable
                        } else {
                            ArmRole::Candidate
                        };
                        summary.arm.weight = if index == best { 1.0 } else { 0.0 };
                    }
                }
            }
        }
    }

    /// Shares out a weight among the candidates as the config does; the stable arm takes the rest.
    fn give_candidates(&self, state: &mut State, weight: f64) {
        let is_candidate = |summary: &ArmSummary| summary.arm.role == ArmRole::Candidate;
        let count = state
            .arms
            .iter()
            .filter(|summary| is_candidate(summary))
            .count() as f64;
        let whole: f64 = state
            .arms
            .iter()
            .zip(&self.shares)
            .filter(|(it, _)| is_candidate(it))
            .map(|(_, share)| share)
            .sum();
        for (summary, share) in state.arms.iter_mut().zip(&self.shares) {
            summary.arm.weight = match summary.arm.role {
                ArmRole::Candidate if whole > 0.0 => weight * share / whole,
                ArmRole::Candidate => weight / count,
                ArmRole::Stable => 1.0 - weight,
            };
        }
    }

    /// Puts a new state in place of the old one, in the store first.
    fn swap(&self, guard: &mut (State, Option<Vec<u8>>), next: State) -> Result<()> {
        let bytes = serde_json::to_vec(&next).map_err(|error| Error::Record {
            key: format!("rollout/{}", self.pipeline),
            why: error.to_string(),
        })?;
        if !self
            .store
            .compare_and_swap(&self.key, guard.1.as_deref(), Some(&bytes))?
        {
            return Err(Error::Refused(format!(
                "the rollout of `{}` was moved by somebody else meanwhile; look at it again",
                self.pipeline
            )));
        }
        self.arms.store(Arc::new(
            next.arms
                .iter()
                .map(|summary| summary.arm.clone())
                .collect(),
        ));
        *guard = (next, Some(bytes));
        Ok(())
    }

    /// As an operator sees it.
    pub(crate) fn status(&self) -> RolloutStatus {
        let guard = self.state.lock();
        let state = &guard.0;
        RolloutStatus {
            pipeline: self.pipeline.to_string(),
            id: state.id.clone(),
            phase: state.phase,
            candidate_weight: candidate_weight(&state.arms),
            reason: state.reason.clone(),
            arms: state.arms.clone(),
        }
    }
}

fn weights(arms: &[ArmSummary]) -> Vec<f64> {
    arms.iter().map(|summary| summary.arm.weight).collect()
}

fn candidate_weight(arms: &[ArmSummary]) -> f64 {
    arms.iter()
        .filter(|it| it.arm.role == ArmRole::Candidate)
        .map(|it| it.arm.weight)
        .sum()
}

/// Adds a value to a running mean and its squared deviations (Welford 1962).
fn add(summary: &mut ArmSummary, name: &str, value: f64) {
    let metric = match summary
        .metrics
        .iter()
        .position(|metric| metric.name == name)
    {
        Some(index) => summary.metrics.get_mut(index),
        None => {
            summary.metrics.push(MetricSummary {
                name: name.to_owned(),
                count: 0,
                mean: 0.0,
                m2: 0.0,
            });
            summary.metrics.last_mut()
        }
    };
    if let Some(metric) = metric {
        metric.count += 1;
        let before = value - metric.mean;
        metric.mean += before / metric.count as f64;
        metric.m2 += before * (value - metric.mean);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ArmConfig, RolloutConfig};
    use millgate_store::MemoryStore;

    fn config() -> PipelineConfig {
        let arm = |name: &str, weight| ArmConfig {
            name: name.into(),
            model: "m".into(),
            adapter: None,
            weight,
        };
        PipelineConfig {
            arms: vec![
                arm("stable", None),
                arm("a", Some(0.1)),
                arm("b", Some(0.3)),
            ],
            rollout: RolloutConfig::default(),
            ..PipelineConfig::default()
        }
    }

    fn open(store: &Arc<dyn Store>) -> Rollout {
        Rollout::open(&"p".into(), &config(), store.clone()).unwrap()
    }

    fn weights_of(rollout: &Rollout) -> Vec<f64> {
        rollout
            .arms()
            .iter()
            .map(|arm| (arm.weight * 1000.0).round() / 1000.0)
            .collect()
    }

    fn act(rollout: &Rollout, action: Action) {
        let mut guard = rollout.state.lock();
        let mut next = guard.0.clone();
        rollout.step(&mut next, action);
        rollout.swap(&mut guard, next).unwrap();
    }

    #[test]
    fn weights_move_as_recommended_and_always_add_up_to_one() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let rollout = open(&store);
        assert_eq!(weights_of(&rollout), [0.6, 0.1, 0.3]);
        act(&rollout, Action::Shift(0.8));
        assert_eq!(weights_of(&rollout), [0.2, 0.2, 0.6]);
        act(&rollout, Action::Pause);
        assert!(rollout.under_review().is_none());
        act(&rollout, Action::RollBack);
        assert_eq!(weights_of(&rollout), [1.0, 0.0, 0.0]);
        act(&rollout, Action::Shift(0.4));
        act(&rollout, Action::Promote);
        assert_eq!(weights_of(&rollout), [0.0, 0.0, 1.0]);
        assert_eq!(rollout.arms()[2].role, ArmRole::Stable);
        assert_eq!(rollout.status().phase, RolloutPhase::Promoted);
    }

    #[test]
    fn a_restart_goes_on_where_the_last_one_stood() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let rollout = open(&store);
        act(&rollout, Action::Shift(0.8));
        rollout.note_scores(
            1,
            &[ScoreRecord {
                name: "f1".into(),
                value: 0.5,
            }],
        );
        rollout.save().unwrap();
        let again = open(&store);
        assert_eq!(weights_of(&again), [0.2, 0.2, 0.6]);
        assert_eq!(again.status().arms[1].metrics[0].name, "score.f1");
        // The first one has not seen what the second one does.
        act(&again, Action::Pause);
        assert!(rollout.save().is_err());
    }

    #[test]
    fn a_running_mean_and_its_deviations_are_those_of_the_values() {
        let arm = Arm {
            name: "a".into(),
            role: ArmRole::Stable,
            weight: 1.0,
        };
        let mut summary = ArmSummary {
            arm,
            requests: 0,
            metrics: Vec::new(),
        };
        for value in [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0] {
            add(&mut summary, "x", value);
        }
        let metric = &summary.metrics[0];
        assert_eq!((metric.count, metric.mean, metric.m2), (8, 5.0, 32.0));
    }
}
