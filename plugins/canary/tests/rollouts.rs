//! Whole rollouts, simulated with fixed seeds: a host that counts, an arm that is or is not worse.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use millgate_plugin_canary::Canary;
use millgate_sdk::prelude::*;
use millgate_sdk::testing::{MockContext, assert_manifest};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn plugin(config: &str) -> Canary {
    Canary::configure(serde_json::from_str(config).unwrap()).unwrap()
}

/// What an arm really is.
#[derive(Clone, Copy)]
struct Truth {
    error: f64,
    blocked: f64,
    /// The median of a log-normal latency.
    latency: f64,
}

const GOOD: Truth = Truth {
    error: 0.05,
    blocked: 0.02,
    latency: 400.0,
};

/// A host: counts what its arms do, and does what the reviews say.
struct Host {
    rollout: Rollout,
    random: ChaCha8Rng,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Promoted,
    RolledBack,
    Paused,
    Open,
}

impl Host {
    fn new(seed: u64) -> Self {
        let arm = |name: &str, role, weight| ArmSummary {
            arm: Arm {
                name: name.into(),
                role,
                weight,
            },
            requests: 0,
            metrics: ["error", "blocked", "latency-ms"]
                .map(|name| MetricSummary {
                    name: name.into(),
                    count: 0,
                    mean: 0.0,
                    m2: 0.0,
                })
                .to_vec(),
        };
        Host {
            rollout: Rollout {
                id: format!("rollout-{seed}"),
                elapsed_ms: 0,
                candidate_weight: 0.0,
                arms: vec![
                    arm("v1", ArmRole::Stable, 1.0),
                    arm("v2", ArmRole::Candidate, 0.0),
                ],
            },
            random: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    fn set_weight(&mut self, weight: f64) {
        self.rollout.candidate_weight = weight;
        self.rollout.arms[0].arm.weight = 1.0 - weight;
        self.rollout.arms[1].arm.weight = weight;
    }

    fn serve(&mut self, plugin: &mut Canary, requests: usize, truths: [Truth; 2]) {
        let context = MockContext::default();
        let arms: Vec<Arm> = self
            .rollout
            .arms
            .iter()
            .map(|summary| summary.arm.clone())
            .collect();
        for _ in 0..requests {
            let user = Label::new(
                "user",
                self.random.random_range(0..1_000_000_000u64).to_string(),
            );
            let choice = plugin
                .route(&Context::new(&context), &[user], &arms)
                .unwrap();
            let index = arms.iter().position(|arm| arm.name == choice.arm).unwrap();
            let truth = truths[index];
            let normal: f64 = (0..12).map(|_| self.random.random::<f64>()).sum::<f64>() - 6.0;
            let values = [
                f64::from(u8::from(self.random.random_bool(truth.error))),
                f64::from(u8::from(self.random.random_bool(truth.blocked))),
                truth.latency * (0.5 * normal).exp(),
            ];
            let summary = &mut self.rollout.arms[index];
            summary.requests += 1;
            for (metric, value) in summary.metrics.iter_mut().zip(values) {
                metric.count += 1;
                let before = value - metric.mean;
                metric.mean += before / metric.count as f64;
                metric.m2 += before * (value - metric.mean);
            }
        }
        self.rollout.elapsed_ms += 60_000;
    }

    /// A review a minute, until it ends.
    fn run(
        &mut self,
        plugin: &mut Canary,
        truths: [Truth; 2],
        requests: usize,
        reviews: usize,
    ) -> (End, String) {
        for _ in 0..reviews {
            let recommendation = plugin.review(&self.rollout).unwrap();
            match recommendation.action {
                Action::Hold => {}
                Action::Shift(weight) => self.set_weight(weight),
                Action::Promote => return (End::Promoted, recommendation.reason),
                Action::RollBack => return (End::RolledBack, recommendation.reason),
                Action::Pause => return (End::Paused, recommendation.reason),
            }
            self.serve(plugin, requests, truths);
        }
        (End::Open, String::new())
    }
}

fn ends(runs: u64, truths: [Truth; 2], wanted: End) -> u64 {
    let mut count = 0;
    for seed in 0..runs {
        let (end, _) = Host::new(seed).run(&mut plugin("{}"), truths, 400, 200);
        count += u64::from(end == wanted);
    }
    count
}

#[test]
fn five_points_more_errors_are_rolled_back_in_95_percent_of_rollouts() {
    let worse = Truth {
        error: GOOD.error + 0.05,
        ..GOOD
    };
    let back = ends(200, [GOOD, worse], End::RolledBack);
    println!("rolled back: {back} of 200");
    assert!(back >= 190, "{back} of 200");
}

#[test]
fn an_identical_candidate_is_rolled_back_in_at_most_5_percent_of_rollouts() {
    let back = ends(200, [GOOD, GOOD], End::RolledBack);
    println!("rolled back: {back} of 200");
    assert!(back <= 10, "{back} of 200");
}

#[test]
fn a_candidate_at_the_edge_of_its_tolerance_is_rolled_back_in_at_most_5_percent_of_rollouts() {
    let edge = Truth {
        error: GOOD.error + 0.01,
        blocked: GOOD.blocked + 0.02,
        latency: GOOD.latency * 1.2,
    };
    let back = ends(200, [GOOD, edge], End::RolledBack);
    println!("rolled back: {back} of 200");
    assert!(back <= 10, "{back} of 200");
}

#[test]
fn a_candidate_beyond_its_tolerance_is_promoted_in_at_most_5_percent_of_rollouts() {
    let worse = Truth {
        error: GOOD.error + 0.0101,
        ..GOOD
    };
    let promoted = ends(200, [GOOD, worse], End::Promoted);
    println!("promoted: {promoted} of 200");
    assert!(promoted <= 10, "{promoted} of 200");
}

#[test]
fn a_good_candidate_is_promoted_after_the_last_step_with_the_evidence() {
    let mut host = Host::new(1);
    let (end, reason) = host.run(&mut plugin("{}"), [GOOD, GOOD], 1000, 300);
    assert_eq!(end, End::Promoted, "{reason}");
    assert_eq!(host.rollout.candidate_weight, 0.5);
    assert!(reason.contains("within its tolerance"), "{reason}");
}

#[test]
fn half_more_latency_is_rolled_back() {
    let slow = Truth {
        latency: GOOD.latency * 1.5,
        ..GOOD
    };
    let (end, reason) = Host::new(2).run(&mut plugin("{}"), [GOOD, slow], 400, 200);
    assert_eq!(end, End::RolledBack);
    assert!(reason.contains("latency-ms"), "{reason}");
}

#[test]
fn an_outage_that_hits_both_arms_rolls_nothing_back() {
    let mut plugin = plugin("{}");
    let mut host = Host::new(3);
    let down = Truth { error: 0.6, ..GOOD };
    // Five minutes of outage while the candidate has 5 %, then a normal time with more.
    for truths in [[down; 2], [GOOD; 2]] {
        let (end, reason) = host.run(&mut plugin, truths, 2000, 8);
        assert_eq!(end, End::Open, "{reason}");
    }
}

#[test]
fn without_requests_to_the_candidate_the_rollout_pauses() {
    let mut host = Host::new(4);
    let (end, reason) = host.run(&mut plugin("{}"), [GOOD, GOOD], 0, 100);
    assert_eq!(end, End::Paused);
    assert!(reason.starts_with("no data"), "{reason}");
}

#[test]
fn a_metric_without_values_pauses_and_is_named() {
    let config = r#"{"metrics": [{"name": "score.helpful", "better": "higher", "ratio": 0.95}]}"#;
    let (end, reason) = Host::new(5).run(&mut plugin(config), [GOOD, GOOD], 400, 100);
    assert_eq!(end, End::Paused);
    assert!(reason.contains("score.helpful"), "{reason}");
}

#[test]
fn a_rollout_that_ends_its_time_is_inconclusive_and_never_promoted() {
    let config = r#"{"max-duration-hours": 1, "min-requests": 10}"#;
    let mut host = Host::new(6);
    let (end, reason) = host.run(&mut plugin(config), [GOOD, GOOD], 50, 100);
    assert_eq!(end, End::Paused);
    assert!(reason.starts_with("inconclusive"), "{reason}");
    assert!(reason.contains("takes about"), "{reason}");
}

#[test]
fn a_limit_pauses_even_when_both_arms_break_it() {
    let config = r#"{"metrics": [{"name": "error", "margin": 0.01, "limit": 0.2}]}"#;
    let bad = Truth { error: 0.4, ..GOOD };
    let (end, reason) = Host::new(7).run(&mut plugin(config), [bad, bad], 400, 100);
    assert_eq!(end, End::Paused);
    assert!(reason.contains("limit"), "{reason}");
}

#[test]
fn a_restart_in_the_middle_changes_nothing() {
    let truths = [
        GOOD,
        Truth {
            error: 0.062,
            ..GOOD
        },
    ];
    let (mut whole, mut broken) = (Host::new(8), Host::new(8));
    let mut steady = plugin("{}");
    let mut restarted = plugin("{}");
    for _ in 0..60 {
        let expected = whole.run(&mut steady, truths, 400, 1);
        let state = restarted.save().unwrap();
        restarted = plugin("{}");
        restarted.restore(&state).unwrap();
        assert_eq!(restarted.save().unwrap(), state);
        assert_eq!(broken.run(&mut restarted, truths, 400, 1), expected);
        assert_eq!(
            whole.rollout.candidate_weight,
            broken.rollout.candidate_weight
        );
    }
    assert_eq!(steady.save().unwrap(), restarted.save().unwrap());
}

#[test]
fn a_foreign_state_is_refused() {
    for state in [
        &b""[..],
        b"\x02abc",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        assert_eq!(plugin("{}").restore(state).unwrap_err().code, "state");
    }
}

#[test]
fn evidence_carries_p_values_effect_and_the_count_still_needed() {
    let mut host = Host::new(9);
    let mut plugin = plugin("{}");
    host.run(&mut plugin, [GOOD, GOOD], 2000, 4);
    let evidence = plugin.review(&host.rollout).unwrap().evidence;
    let value = |name: &str| {
        evidence
            .iter()
            .find(|measure| measure.name == name)
            .map(|measure| measure.value)
    };
    for name in [
        "p-value",
        "effect",
        "needed-requests",
        "error.p-worse",
        "error.p-no-worse",
        "error.excess",
    ] {
        assert!(value(name).is_some(), "{name} is missing: {evidence:?}");
    }
    assert!(value("needed-requests").unwrap() > 1000.0);
    assert!(evidence.iter().all(|measure| measure.value.is_finite()));
}

#[test]
fn one_arm_alone_is_a_pause() {
    let mut host = Host::new(10);
    host.rollout.arms.pop();
    assert_eq!(
        plugin("{}").review(&host.rollout).unwrap().action,
        Action::Pause
    );
}

#[test]
fn routes_stick_to_the_first_feature_present_and_else_to_the_trace() {
    let mut plugin =
        plugin(r#"{"pins": [{"feature": "tenant", "value": "testers", "arm": "candidate"}]}"#);
    let host = {
        let mut host = Host::new(11);
        host.set_weight(0.3);
        host
    };
    let arms: Vec<Arm> = host
        .rollout
        .arms
        .iter()
        .map(|summary| summary.arm.clone())
        .collect();
    let mut route = |trace: &str, features: &[Label]| {
        let context = MockContext {
            trace_id: trace.into(),
            ..MockContext::default()
        };
        plugin
            .route(&Context::new(&context), features, &arms)
            .unwrap()
    };
    let user = [Label::new("session", "s"), Label::new("user", "u")];
    let first = route("1", &user);
    assert_eq!(route("2", &user), first);
    assert!(
        first.reason.starts_with("sticky by user, bucket 0."),
        "{}",
        first.reason
    );
    assert!(first.propensity == 0.3 || first.propensity == 0.7);
    let by_trace: Vec<String> = (0..50)
        .map(|trace| route(&trace.to_string(), &[Label::new("user", "")]).arm)
        .collect();
    assert!(by_trace.iter().any(|arm| arm == "v1") && by_trace.iter().any(|arm| arm == "v2"));
    let pinned = route(
        "1",
        &[Label::new("tenant", "testers"), Label::new("user", "u")],
    );
    assert_eq!((pinned.arm.as_str(), pinned.propensity), ("v2", 1.0));
}

#[test]
fn configs_that_cannot_work_are_refused_by_key() {
    for (config, code) in [
        (r#"{"steps": [0.5, 0.1]}"#, "steps"),
        (r#"{"steps": []}"#, "steps"),
        (r#"{"alpha": 0.9}"#, "alpha"),
        (r#"{"metrics": []}"#, "metrics"),
        (r#"{"metrics": [{"name": "error"}]}"#, "metrics"),
        (
            r#"{"metrics": [{"name": "error", "ratio": 0.9}]}"#,
            "metrics",
        ),
        (
            r#"{"metrics": [{"name": "e", "margin": 1}, {"name": "e", "margin": 1}]}"#,
            "metrics",
        ),
    ] {
        let error = Canary::configure(serde_json::from_str(config).unwrap()).unwrap_err();
        assert_eq!(error.code, code, "{config}");
    }
}

#[test]
fn the_manifest_and_its_defaults_hold() {
    assert_manifest::<Canary>(&serde_json::json!({}));
    assert_manifest::<Canary>(&serde_json::json!({
        "steps": [0.01, 1],
        "pins": [{"feature": "tenant", "value": "testers", "arm": "candidate"}],
        "metrics": [{"name": "score.helpful", "better": "higher", "ratio": 0.95, "limit": 0.5}],
    }));
}
