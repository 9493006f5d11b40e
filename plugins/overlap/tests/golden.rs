//! Every score equals its reference implementation's, on the values that `make_golden.py` wrote.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;

use millgate_plugin_overlap::Overlap;
use millgate_sdk::prelude::*;
use millgate_sdk::testing::{MockContext, assert_manifest};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
    sets: Vec<Set>,
}

#[derive(Deserialize)]
struct Case {
    output: String,
    references: Vec<String>,
    scores: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Set {
    from: usize,
    to: usize,
    #[serde(flatten)]
    scores: BTreeMap<String, f64>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden.json")).unwrap()
}

fn plugin(config: &str) -> Overlap {
    Overlap::configure(serde_json::from_str(config).unwrap()).unwrap()
}

fn answers(cases: &[Case]) -> Vec<Answer> {
    let answer = |(index, case): (usize, &Case)| Answer {
        id: index.to_string(),
        input: String::new(),
        output: case.output.clone(),
        references: case.references.clone(),
    };
    cases.iter().enumerate().map(answer).collect()
}

fn evaluate(plugin: &Overlap, answers: &[Answer]) -> Scores {
    let context = MockContext::default();
    plugin.evaluate(&Context::new(&context), answers).unwrap()
}

/// Compares all scores with those of the same name, with `suffix` where the golden ones have it.
fn compare(plugin: &Overlap, suffix: &[(&str, &str)]) {
    let golden = golden();
    let named = |name: &str| {
        let suffix = suffix.iter().find(|(score, _)| *score == name);
        format!("{name}{}", suffix.map_or("", |(_, suffix)| suffix))
    };
    for (case, scored) in golden
        .cases
        .iter()
        .zip(evaluate(plugin, &answers(&golden.cases)).cases)
    {
        for score in scored.scores {
            let expected = case.scores[&named(&score.name)];
            assert!(
                (score.value - expected).abs() < 1e-6,
                "{}: {} is not {expected}: {:?} {:?}",
                score.name,
                score.value,
                case.output,
                case.references,
            );
        }
    }
    for set in &golden.sets {
        let scores = evaluate(plugin, &answers(&golden.cases[set.from..set.to]));
        for score in scores.aggregate {
            let expected = set.scores[&named(&score.name)];
            assert!(
                (score.value - expected).abs() < 1e-6,
                "{}: {} is not {expected}",
                score.name,
                score.value
            );
        }
    }
}

#[test]
fn the_defaults_equal_the_reference_implementations() {
    let plugin = plugin("{}");
    let golden = golden();
    assert!(golden.cases.len() > 200);
    let scored = evaluate(&plugin, &answers(&golden.cases));
    assert!(scored.cases.iter().all(|case| case.scores.len() == 7));
    assert_eq!(scored.aggregate.len(), 2);
    compare(&plugin, &[]);
}

#[test]
fn stems_and_word_orders_equal_the_reference_implementations() {
    let plugin = plugin(r#"{"rouge-stemmer": true, "chrf-word-order": 2}"#);
    compare(
        &plugin,
        &[
            ("rouge-1", "-stemmed"),
            ("rouge-2", "-stemmed"),
            ("rouge-l", "-stemmed"),
            ("chrf", "++"),
            ("corpus-chrf", "++"),
        ],
    );
}

#[test]
fn an_answer_without_references_has_no_score_and_does_not_count() {
    let plugin = plugin("{}");
    let mut answers = answers(&golden().cases[20..30]);
    let before = evaluate(&plugin, &answers).aggregate;
    answers.push(Answer {
        id: "x".into(),
        input: String::new(),
        output: "text".into(),
        references: vec![],
    });
    let after = evaluate(&plugin, &answers);
    assert!(after.cases[10].scores.is_empty());
    assert_eq!(before, after.aggregate);
    assert_eq!(
        evaluate(&plugin, &[]),
        Scores {
            cases: vec![],
            aggregate: vec![]
        }
    );
}

#[test]
fn only_the_metrics_asked_for_are_scored() {
    let plugin = plugin(r#"{"metrics": ["rouge-l", "exact-match"], "exact-match": "none"}"#);
    let answer = Answer {
        id: "1".into(),
        input: String::new(),
        output: "A".into(),
        references: vec!["a".into()],
    };
    let scored = evaluate(&plugin, &[answer]);
    let names: Vec<_> = scored.cases[0]
        .scores
        .iter()
        .map(|score| (score.name.as_str(), score.value))
        .collect();
    assert_eq!(names, [("exact-match", 0.0), ("rouge-l", 1.0)]);
    assert!(scored.aggregate.is_empty());
}

#[test]
fn the_manifest_and_its_defaults_hold() {
    assert_manifest::<Overlap>(&serde_json::json!({}));
    assert_manifest::<Overlap>(
        &serde_json::json!({"metrics": ["bleu"], "exact-match": "trim", "chrf-word-order": 2}),
    );
}
