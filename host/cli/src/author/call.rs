//! One call of a plugin on a fixture's input, and its result in short words.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use millgate_sandbox::{
    Action, Answer, Arm, ArmRole, ArmSummary, CallContext, Decision, DeploymentActor, Event,
    Finding, Interface, Label, Measure, MemoryServices, MetricSummary, MonitorOptions, Outcome,
    Rollout, Stage, invariance,
};
use serde_json::{Value, json};

use super::fixture::{ArmRecord, Case};
use crate::commands::sample_of;

/// How long a monitor's report is waited for.
const REPORT_WAIT: Duration = Duration::from_secs(10);

/// The context of all calls: what a plugin does must follow from its input, so it is always the same.
pub fn context(role: Option<&str>) -> CallContext {
    CallContext {
        trace_id: "plugin-test".into(),
        role: role.unwrap_or("user").into(),
        now_ms: 1_750_000_000_000,
        seed: 7,
        ..CallContext::default()
    }
}

/// Calls the plugin's interface on a case.
pub async fn call(
    stage: &Stage,
    services: &MemoryServices,
    interface: Interface,
    case: &Case,
) -> Result<Value> {
    let context = context(case.role.as_deref());
    match interface {
        Interface::Compliance => {
            let outcome = invariance::run(stage, &context, &case.text, &[]).await?;
            Ok(inspected(&outcome, &case.text))
        }
        Interface::Validation => {
            let sample = sample_of(&case.text);
            let judgements = stage.validate_async(&context, &[sample]).await?;
            let judgement = judgements.first().context("it gave no judgement")?;
            let findings = findings(&judgement.findings, "");
            Ok(match &judgement.outcome {
                Outcome::Accept => json!({ "outcome": "accept", "findings": findings }),
                Outcome::Repair(repairs) => {
                    json!({ "outcome": "repair", "repairs": repairs, "findings": findings })
                }
                Outcome::Reject(message) => {
                    json!({ "outcome": "reject", "message": message, "findings": findings })
                }
            })
        }
        Interface::Evaluation => {
            let answer = Answer {
                id: "1".into(),
                input: case.input.clone(),
                output: case.output.clone(),
                references: case.references.clone(),
            };
            let evaluation = stage.evaluate_async(&context, &[answer]).await?;
            let scores = evaluation.cases.iter().flat_map(|case| &case.scores);
            let scores: serde_json::Map<String, Value> = scores
                .chain(&evaluation.aggregate)
                .map(|score| (score.name.clone(), json!(score.value)))
                .collect();
            Ok(json!({ "scores": scores }))
        }
        Interface::Monitoring => observe(stage, services, events(case)).await,
        Interface::Deployment => {
            let actor = stage.deployment()?;
            let result = deploy(&actor, case).await;
            actor.shutdown(Duration::from_secs(1));
            result
        }
    }
}

fn inspected(outcome: &invariance::Outcome, text: &str) -> Value {
    let findings = findings(&outcome.findings, text);
    match &outcome.decision {
        Decision::Pass => {
            json!({ "decision": "pass", "output": outcome.text, "findings": findings })
        }
        Decision::Block(refusal) => json!({
            "decision": "block", "code": refusal.code, "message": refusal.message, "findings": findings,
        }),
        Decision::Regenerate(again) => json!({
            "decision": "regenerate", "keep": again.keep, "ban": again.ban, "code": again.reason.code,
            "message": again.reason.message, "findings": findings,
        }),
    }
}

fn findings(findings: &[Finding], source: &str) -> Vec<Value> {
    let one = |finding: &Finding| {
        let mut said = json!({
            "rule": finding.rule, "score": finding.score, "explanation": finding.explanation,
        });
        if let Some(span) = finding.span {
            said["start"] = json!(span.start);
            said["end"] = json!(span.end);
            if let Some(text) = source.get(span.start as usize..span.end as usize) {
                said["text"] = json!(text);
            }
        }
        said
    };
    findings.iter().map(one).collect()
}

/// The events of a case, a second apart.
pub fn events(case: &Case) -> Vec<Event> {
    let mut events = Vec::new();
    for described in &case.events {
        for _ in 0..described.repeat {
            let number = events.len() as u64;
            events.push(Event {
                trace_id: format!("t{number}"),
                at_ms: 1_750_000_000_000 + number * 1000,
                labels: described
                    .labels
                    .iter()
                    .map(|(name, value)| Label {
                        name: name.clone(),
                        value: value.clone(),
                    })
                    .collect(),
                measures: described
                    .measures
                    .iter()
                    .map(|(name, value)| Measure {
                        name: name.clone(),
                        value: *value,
                    })
                    .collect(),
            });
        }
    }
    events
}

/// Shows a monitor the events and gives back its last report: the severity of each rule, and the gauges.
pub async fn observe(
    stage: &Stage,
    services: &MemoryServices,
    events: Vec<Event>,
) -> Result<Value> {
    let seen = services.reports().len();
    let count = events.len();
    let monitor = stage.monitor(MonitorOptions {
        tick: Duration::from_millis(20),
        batch: count.clamp(1, 8192),
        linger: Duration::from_millis(1),
        mailbox: count.max(1),
        ..MonitorOptions::default()
    })?;
    for event in events {
        if !monitor.observe(event) {
            bail!("the monitor takes no more events");
        }
    }
    let begin = std::time::Instant::now();
    // The first report may come before the last event; the one after a further tick has seen all.
    while services.reports().len() < seen + 3 && begin.elapsed() < REPORT_WAIT {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    monitor.save().await?;
    monitor.shutdown(Duration::from_secs(5));
    let reports = services.reports();
    let (_, report) = reports
        .get(seen..)
        .and_then(<[_]>::last)
        .context("the monitor reported nothing")?;
    let alerts: serde_json::Map<String, Value> = report
        .alerts
        .iter()
        .map(|alert| (alert.rule.clone(), json!(alert.severity)))
        .collect();
    let metrics: serde_json::Map<String, Value> = report
        .metrics
        .iter()
        .map(|metric| (metric.name.clone(), json!(metric.value)))
        .collect();
    Ok(json!({ "alerts": alerts, "metrics": metrics }))
}

/// The arms of all cases.
pub fn arms() -> [Arm; 2] {
    [
        ("stable", ArmRole::Stable, 0.9),
        ("candidate", ArmRole::Candidate, 0.1),
    ]
    .map(|(name, role, weight)| Arm {
        name: name.into(),
        role,
        weight,
    })
}

/// Routes the case's users and reviews its rollout.
pub async fn deploy(actor: &DeploymentActor, case: &Case) -> Result<Value> {
    let mut result = serde_json::Map::new();
    let mut chosen = Vec::new();
    for user in &case.users {
        let features = [Label {
            name: "user".into(),
            value: user.clone(),
        }];
        chosen.push(actor.route(&context(None), &features, &arms()).await?.arm);
    }
    result.insert("arms".into(), json!(chosen));
    if let Some(rollout) = &case.rollout {
        let [stable, candidate] = arms();
        let rollout = Rollout {
            id: "test".into(),
            elapsed_ms: 3_600_000,
            candidate_weight: 0.1,
            arms: vec![
                summary(stable, &rollout.stable),
                summary(candidate, &rollout.candidate),
            ],
        };
        let said = actor.review(&rollout).await?;
        let (action, share) = match said.action {
            Action::Hold => ("hold", None),
            Action::Shift(share) => ("shift", Some(share)),
            Action::Promote => ("promote", None),
            Action::RollBack => ("roll-back", None),
            Action::Pause => ("pause", None),
        };
        result.insert("action".into(), json!(action));
        result.insert("reason".into(), json!(said.reason));
        if let Some(share) = share {
            result.insert("share".into(), json!(share));
        }
    }
    actor.save().await?;
    Ok(Value::Object(result))
}

fn summary(arm: Arm, record: &ArmRecord) -> ArmSummary {
    #[allow(clippy::cast_precision_loss, reason = "a test's numbers are small")]
    let count = record.requests as f64;
    let metrics = record.means.iter().map(|(name, mean)| MetricSummary {
        name: name.clone(),
        count: record.requests,
        mean: *mean,
        m2: if (0.0..=1.0).contains(mean) {
            count * mean * (1.0 - mean)
        } else {
            0.0
        },
    });
    ArmSummary {
        arm,
        requests: record.requests,
        metrics: metrics.collect(),
    }
}
