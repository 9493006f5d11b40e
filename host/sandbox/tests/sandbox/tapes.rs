//! Calls on a tape, played again: on another stage, without what the host answered then.

use std::sync::Arc;

use millgate_hostile::{ASKING, PLAIN};
use millgate_sandbox::tape::{Input, Outcome, Recorded, Session, play};
use millgate_sandbox::{
    CallContext, Failure, Grant, InferenceGrant, Isolation, MemoryServices, Services, Stage,
    StageSpec, Tape,
};
use serde_json::json;

use crate::common::sandbox;
use crate::inference::Echo;

fn context() -> CallContext {
    CallContext {
        trace_id: "t".into(),
        now_ms: 1_700_000_000_000,
        seed: 7,
        role: "user".into(),
        ..CallContext::default()
    }
}

fn asking(services: Arc<dyn Services>) -> Stage {
    let mut spec = StageSpec::new("judge", json!({}));
    spec.grant = Grant {
        inference: Some(InferenceGrant {
            models: ["default".to_owned()].into(),
            tokens_per_minute: 1000,
        }),
        ..Grant::default()
    };
    sandbox().load(ASKING, spec, services).unwrap()
}

/// Inspects a text in these pieces, on a tape.
async fn recorded(stage: &Stage, pieces: &[&str]) -> Recorded {
    let tape = Tape::recording(1 << 20);
    let context = CallContext {
        tape: Some(tape.clone()),
        ..context()
    };
    let mut inspection = stage.inspection(&context);
    for piece in pieces {
        let _ = inspection.push_async(&[piece]).await;
    }
    let _ = inspection.finish_async().await;
    tape.take().unwrap()
}

fn outcomes(session: &Session) -> Vec<Outcome> {
    session
        .calls
        .iter()
        .map(|call| call.outcome.clone())
        .collect()
}

#[tokio::test]
async fn what_a_model_answered_is_on_the_tape_and_no_model_is_asked_again() {
    let recorded = recorded(&asking(Arc::new(Echo::default())), &["who ", "is it?"]).await;
    let [session] = recorded.sessions.as_slice() else {
        panic!("{recorded:?}");
    };
    let functions: Vec<&str> = session
        .asked
        .iter()
        .map(|it| it.function.as_str())
        .collect();
    assert_eq!(
        functions,
        ["inference.complete", "inference.embed", "inference.score"]
    );
    assert_eq!(session.calls.len(), 3);
    assert_eq!(session.calls[0].input, Input::Push(vec!["who ".into()]));
    assert!(
        matches!(&session.calls[2].outcome, Outcome::Verdict(verdict) if verdict.findings.len() == 1)
    );
    // A stage of another process: it has no model at all.
    let other = asking(Arc::new(MemoryServices::default()));
    assert_eq!(other.identity(), recorded.stages[0].identity);
    let played = play(&other, &context(), session).await;
    assert_eq!((played.outcomes, played.missed), (outcomes(session), None));
    // With another text it asks what is not on the tape.
    let mut changed = session.clone();
    changed.calls[0].input = Input::Push(vec!["what ".into()]);
    let played = play(&other, &context(), &changed).await;
    assert_eq!(played.missed.as_deref(), Some("inference.complete"));
    assert!(matches!(
        played.outcomes[2],
        Outcome::Failed(Failure::Trap { .. })
    ));
}

#[tokio::test]
async fn clocks_and_chance_are_the_same_also_on_instances_that_are_used_again() {
    for isolation in [Isolation::Fresh, Isolation::Warm] {
        let load = || {
            let mut spec = StageSpec::new("plain", json!({ "words": ["a"] }));
            spec.isolation = isolation;
            let services = Arc::new(MemoryServices::default());
            sandbox().load(PLAIN, spec, services).unwrap()
        };
        let stage = load();
        let mut sessions = Vec::new();
        // The second one comes to an instance that has looked at the clock already.
        for text in ["time", "time", "panic", "time"] {
            sessions.extend(recorded(&stage, &[text]).await.sessions);
        }
        assert_eq!(
            outcomes(&sessions[0]),
            outcomes(&sessions[1]),
            "{isolation:?}"
        );
        assert_eq!(
            outcomes(&sessions[0]),
            outcomes(&sessions[3]),
            "{isolation:?}"
        );
        let other = load();
        for session in sessions.iter().rev() {
            let played = play(&other, &context(), session).await;
            assert_eq!(played.outcomes, outcomes(session), "{isolation:?}");
        }
    }
}

#[test]
fn a_recipe_names_all_that_answers_depend_on() {
    let load = |name: &str, config: serde_json::Value, deadline: u64| {
        let mut spec = StageSpec::new(name, config);
        spec.limits.deadline = std::time::Duration::from_millis(deadline);
        let services = Arc::new(MemoryServices::default());
        sandbox().load(PLAIN, spec, services).unwrap()
    };
    let stage = load("a", json!({ "words": ["a"] }), 200);
    assert_eq!(
        stage.identity(),
        load("a", json!({ "words": ["a"] }), 200).identity()
    );
    for other in [
        load("b", json!({ "words": ["a"] }), 200),
        load("a", json!({ "words": ["b"] }), 200),
        load("a", json!({ "words": ["a"] }), 300),
    ] {
        assert_ne!(stage.identity(), other.identity());
    }
    let json = stage.recipe().to_json();
    let recipe: millgate_sandbox::tape::Recipe = serde_json::from_slice(&json).unwrap();
    assert_eq!(recipe.to_json(), json, "it reads back as it was written");
    assert_eq!(recipe.plugin, stage.digest());
}
