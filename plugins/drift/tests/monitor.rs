//! The monitor as the host uses it: events, ticks, restarts, merges; with fixed seeds.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use millgate_plugin_drift::Drift;
use millgate_plugin_drift::comparison;
use millgate_plugin_drift::sketch::Sketch;
use millgate_sdk::prelude::*;
use millgate_sdk::testing::assert_manifest;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn plugin(config: &str) -> Drift {
    Drift::configure(serde_json::from_str(config).unwrap()).unwrap()
}

fn normal(random: &mut ChaCha8Rng) -> f64 {
    (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0
}

/// An event at a time, with a latency and a verdict.
fn event(at_ms: u64, latency: f64, verdict: &str) -> Event {
    Event {
        trace_id: at_ms.to_string(),
        at_ms,
        labels: vec![
            Label::new("finish-reason", "stop"),
            Label::new("verdict.pii", verdict),
            Label::new("arm", "stable"),
        ],
        measures: vec![
            Measure::new("latency-ms", latency),
            Measure::new("secret", 1.0),
        ],
    }
}

/// Events, one a second, log-normal around a median.
fn events(random: &mut ChaCha8Rng, seconds: std::ops::Range<u64>, median: f64) -> Vec<Event> {
    seconds
        .map(|second| event(second * 1000, median * (0.5 * normal(random)).exp(), "pass"))
        .collect()
}

fn rule<'a>(report: &'a Report, rule: &str) -> &'a Alert {
    report
        .alerts
        .iter()
        .find(|alert| alert.rule == rule)
        .unwrap_or_else(|| panic!("no {rule} in {report:?}"))
}

const CONFIG: &str =
    r#"{"numbers": ["latency-ms"], "window-minutes": 10, "reference-events": 1000}"#;

#[test]
fn a_latency_step_alerts_once_and_resolves_once() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut plugin = plugin(CONFIG);
    let mut severities = Vec::new();
    for minute in 0..120u64 {
        let median = if (60..80).contains(&minute) {
            800.0
        } else {
            400.0
        };
        plugin
            .observe(events(&mut random, minute * 60..(minute + 1) * 60, median))
            .unwrap();
        let report = plugin.tick((minute + 1) * 60_000).unwrap();
        if let Some(alert) = report
            .alerts
            .iter()
            .find(|alert| alert.rule == "psi.latency-ms")
            && severities.last() != Some(&alert.severity)
        {
            severities.push(alert.severity);
        }
    }
    use Severity::{Critical, NoData, Ok, Warning};
    let steps: Vec<Severity> = severities
        .iter()
        .copied()
        .filter(|severity| *severity != Warning)
        .collect();
    assert_eq!(steps, [NoData, Ok, Critical, Ok], "{severities:?}");
    assert!(
        severities
            .iter()
            .filter(|severity| **severity == Warning)
            .count()
            <= 2,
        "{severities:?}"
    );
}

#[test]
fn no_data_is_a_state_of_its_own() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let mut plugin = plugin(CONFIG);
    let learning = plugin.tick(0).unwrap();
    assert_eq!(rule(&learning, "reference").severity, Severity::NoData);
    plugin.observe(events(&mut random, 0..2000, 400.0)).unwrap();
    let report = plugin.tick(2_000_000).unwrap();
    assert_eq!(rule(&report, "reference").severity, Severity::Ok);
    assert_eq!(rule(&report, "ks.latency-ms").severity, Severity::Ok);
    let silent = plugin.tick(20_000_000).unwrap();
    let alert = rule(&silent, "ks.latency-ms");
    assert_eq!((alert.severity, alert.value), (Severity::NoData, 0.0));
}

#[test]
fn an_alarm_survives_a_restart_and_is_not_repeated() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut first = plugin(CONFIG);
    first.observe(events(&mut random, 0..1500, 400.0)).unwrap();
    first
        .observe(events(&mut random, 1500..2300, 900.0))
        .unwrap();
    let before = first.tick(2_300_000).unwrap();
    assert_eq!(rule(&before, "js.latency-ms").severity, Severity::Critical);
    let state = first.save().unwrap();
    let mut second = plugin(CONFIG);
    second.restore(&state).unwrap();
    assert_eq!(second.save().unwrap(), state);
    assert_eq!(second.tick(2_300_000).unwrap(), before);
}

#[test]
fn verdict_rates_are_columns() {
    let mut plugin =
        plugin(r#"{"numbers": [], "window-minutes": 10, "statistics": ["psi", "ks"]}"#);
    let verdict = |second: u64, every: u64| {
        event(
            second * 1000,
            1.0,
            if second.is_multiple_of(every) {
                "block"
            } else {
                "pass"
            },
        )
    };
    plugin
        .observe((0..1500).map(|second| verdict(second, 50)).collect())
        .unwrap();
    plugin
        .observe((1500..2300).map(|second| verdict(second, 4)).collect())
        .unwrap();
    let report = plugin.tick(2_300_000).unwrap();
    assert_eq!(
        rule(&report, "psi.verdict.pii").severity,
        Severity::Critical
    );
    assert_eq!(rule(&report, "psi.finish-reason").severity, Severity::Ok);
    assert!(
        report
            .alerts
            .iter()
            .all(|alert| !alert.rule.starts_with("ks."))
    );
}

#[test]
fn only_what_is_configured_is_watched() {
    let mut plugin = plugin(r#"{"numbers": ["latency-ms"], "only": {"arm": "candidate"}}"#);
    plugin
        .observe(
            (0..2000)
                .map(|second| event(second * 1000, 1.0, "pass"))
                .collect(),
        )
        .unwrap();
    let report = plugin.tick(2_000_000).unwrap();
    assert_eq!(rule(&report, "reference").value, 0.0);
}

#[test]
fn a_given_baseline_needs_no_learning() {
    let config = r#"{"numbers": ["latency-ms"], "window-minutes": 10, "baseline": {
        "latency-ms": {"edges": [200, 400, 800], "counts": [100, 400, 400, 100]},
        "verdict.pii": {"counts": {"pass": 980, "block": 20}}}}"#;
    let mut plugin = plugin(config);
    plugin
        .observe(
            (0..200)
                .map(|second| event(second * 1000, 1000.0, "pass"))
                .collect(),
        )
        .unwrap();
    let report = plugin.tick(200_000).unwrap();
    assert_eq!(rule(&report, "psi.latency-ms").severity, Severity::Critical);
    assert_eq!(rule(&report, "js.verdict.pii").severity, Severity::Ok);
}

#[test]
fn a_foreign_state_is_refused() {
    let state = plugin(CONFIG).save().unwrap();
    let mut other = plugin(r#"{"window-minutes": 5}"#);
    assert_eq!(other.restore(&state).unwrap_err().code, "state-shape");
    assert_eq!(other.merge(b"\x01junk").unwrap_err().code, "state");
    assert_eq!(other.restore(&[]).unwrap_err().code, "state");
}

#[test]
fn configs_that_cannot_work_are_refused_by_key() {
    for (config, code) in [
        (r#"{"numbers": [], "categories": []}"#, "numbers"),
        (r#"{"window-minutes": 0}"#, "window-minutes"),
        (r#"{"reference-events": 50}"#, "min-samples"),
        (r#"{"bins": 1}"#, "bins"),
        (r#"{"statistics": []}"#, "statistics"),
        (
            r#"{"thresholds": {"psi": {"warning": 0.3, "critical": 0.2}}}"#,
            "thresholds",
        ),
        (
            r#"{"baseline": {"x": {"edges": [2, 1], "counts": [1, 1, 1]}}}"#,
            "baseline",
        ),
        (r#"{"baseline": {"x": {"counts": {}}}}"#, "baseline"),
    ] {
        let error = Drift::configure(serde_json::from_str(config).unwrap()).unwrap_err();
        assert_eq!(error.code, code, "{config}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn merged_parts_report_what_the_whole_reports(
        seed: u64, owners in prop::collection::vec(0usize..4, 400), batch in 1usize..60, order in Just([0usize, 1, 2, 3]).prop_shuffle(),
    ) {
        let config = r#"{"numbers": ["latency-ms"], "window-minutes": 2, "reference-events": 100, "min-samples": 20}"#;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let events = events(&mut random, 0..400, 400.0);
        let mut whole = plugin(config);
        whole.observe(events.clone()).unwrap();
        let mut merged = plugin(config);
        for part in order {
            let own: Vec<Event> = events.iter().zip(&owners).filter(|pair| *pair.1 == part).map(|pair| pair.0.clone()).collect();
            let mut plugin = plugin(config);
            for events in own.chunks(batch) {
                plugin.observe(events.to_vec()).unwrap();
            }
            merged.merge(&plugin.save().unwrap()).unwrap();
        }
        let statistics = |report: Report| report.metrics.into_iter().map(|m| (m.name, m.value.to_bits())).collect::<Vec<_>>();
        prop_assert_eq!(statistics(merged.tick(400_000).unwrap()), statistics(whole.tick(400_000).unwrap()));
    }
}

fn sample(random: &mut ChaCha8Rng, count: usize, shift: f64) -> Sketch {
    let mut sketch = Sketch::default();
    for _ in 0..count {
        sketch.add(400.0 * (0.5 * (normal(random) + shift)).exp());
    }
    sketch
}

#[test]
fn without_a_change_false_alarms_are_as_rare_as_promised() {
    let mut random = ChaCha8Rng::seed_from_u64(4);
    let (runs, alpha) = (1000, 0.05);
    let alarms = (0..runs)
        .filter(|_| {
            let (reference, current) = (
                sample(&mut random, 1000, 0.0),
                sample(&mut random, 300, 0.0),
            );
            comparison::numbers(&reference, &current, 10).p_value <= alpha
        })
        .count();
    let rate = alarms as f64 / f64::from(runs);
    println!("false alarms: {rate}");
    assert!((0.5 * alpha..=1.5 * alpha).contains(&rate), "{rate}");
}

#[test]
fn a_shift_of_a_third_of_a_deviation_is_found_at_500_values() {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let found = (0..200)
        .filter(|_| {
            let (reference, current) = (
                sample(&mut random, 1000, 0.0),
                sample(&mut random, 500, 0.33),
            );
            comparison::numbers(&reference, &current, 10).p_value <= 0.01
        })
        .count();
    println!("found: {found} of 200");
    assert!(found >= 190, "{found} of 200");
}

#[test]
fn the_manifest_and_its_defaults_hold() {
    assert_manifest::<Drift>(&serde_json::json!({}));
    assert_manifest::<Drift>(&serde_json::json!({
        "only": {"arm": "stable"},
        "thresholds": {"psi": {"warning": 0.2, "critical": 0.3}},
        "baseline": {
            "latency-ms": {"edges": [100, 200.5], "counts": [1, 2, 3]},
            "finish-reason": {"counts": {"stop": 9}},
        },
    }));
}

#[test]
fn a_state_stays_small_at_any_rate() {
    let mut random = ChaCha8Rng::seed_from_u64(6);
    let mut plugin = plugin(CONFIG);
    for minute in 0..20u64 {
        let events = (0..20_000).map(|n| {
            let latency = 400.0 * normal(&mut random).exp();
            event(minute * 60_000 + n * 3, latency, "pass")
        });
        plugin.observe(events.collect()).unwrap();
    }
    let bytes = plugin.save().unwrap().len();
    println!("{bytes} bytes");
    assert!(bytes < 128 * 1024, "{bytes}");
}
