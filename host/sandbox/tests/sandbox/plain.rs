//! A plugin with its language's standard library: it runs, and reaches nothing.

use millgate_hostile::PLAIN;
use millgate_sandbox::{CallContext, Failure, Stage, StageSpec};
use serde_json::json;

use crate::common::{explanation, load, sandbox};

fn plain() -> Stage {
    load(
        &sandbox(),
        PLAIN,
        StageSpec::new("plain", json!({ "words": ["a"] })),
    )
    .0
}

fn at(stage: &Stage, text: &str, context: &CallContext) -> String {
    let mut inspection = stage.inspection(context);
    inspection.push(&[text]).unwrap();
    inspection.finish().unwrap().findings[0].explanation.clone()
}

#[test]
fn it_runs_and_sees_an_empty_world() {
    let stage = plain();
    assert_eq!(explanation(&stage, "one two two").unwrap(), "2");
    assert_eq!(explanation(&stage, "config").unwrap(), r#"{"words":["a"]}"#);
    assert_eq!(explanation(&stage, "environment").unwrap(), "0 0");
    assert_eq!(explanation(&stage, "stdin").unwrap(), "0");
    assert_eq!(explanation(&stage, "print").unwrap(), "printed");
}

#[test]
fn files_and_sockets_are_not_there() {
    let stage = plain();
    for text in ["file", "connect"] {
        match explanation(&stage, text) {
            // Either the library finds nothing to open, or the first real call is refused.
            Ok(answer) => assert!(answer.starts_with("Err("), "{answer}"),
            Err(Failure::Trap { message }) => {
                assert!(message.contains("not granted: wasi:"), "{message}");
            }
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn time_and_chance_are_those_of_the_trace() {
    let stage = plain();
    let context = CallContext {
        now_ms: 1_700_000_000_000,
        seed: 7,
        ..CallContext::default()
    };
    let time: u64 = at(&stage, "time", &context).parse().unwrap();
    assert!(
        (1_700_000_000_000..1_700_000_001_000).contains(&time),
        "{time}"
    );
    let random = at(&stage, "random", &context);
    assert_eq!(
        random,
        at(&stage, "random", &context),
        "a replay draws the same"
    );
    let other = CallContext { seed: 8, ..context };
    assert_ne!(random, at(&stage, "random", &other));
}

#[test]
fn a_panic_is_told_by_standard_error() {
    match explanation(&plain(), "panic") {
        Err(Failure::Trap { message }) => assert!(message.contains("told to panic"), "{message}"),
        other => panic!("{other:?}"),
    }
    match explanation(&plain(), "exit") {
        Err(Failure::Trap { message }) => assert!(message.contains("exit"), "{message}"),
        other => panic!("{other:?}"),
    }
}
