//! Stages whose verdict does not count, and canaries, on the way of whole requests.

use std::{sync::Arc, time::Duration};

use millgate_store::{MemoryStore, Store};

use crate::{
    canary::{Canary, CanaryPhase},
    config::StageConfig,
    core::Core,
    error::ApiError,
    executor::handle,
    metrics::Metrics,
    model::Backend,
    response::{Body, Completion},
    shadow::Compared,
    stage::testing::{blocking, canaried, regenerating, replacing, shadowed, stage, trapping},
    testing::{Scripted, block_on, chat, core},
    trace::{StageVerdict, Trace},
    traces::TraceFilter,
};

const HELLO: &str = r#"{"model":"m","messages":[{"role":"user","content":"hello"}]}"#;

fn local(model: &Arc<Scripted>) -> Backend {
    Backend::Local(model.clone())
}

async fn complete(core: &Arc<Core>, body: &str) -> Result<Completion, ApiError> {
    match handle(core, chat(body)).await?.body {
        Body::Completion(completion) => Ok(completion),
        _ => panic!("no completion"),
    }
}

/// The last trace, once all that is compared has been.
async fn compared(core: &Core, count: usize) -> Trace {
    for _ in 0..2000 {
        let trace = core.traces.list(&TraceFilter::default()).unwrap().traces;
        let trace = trace.into_iter().next().unwrap();
        let known = trace.stages.iter().filter(|it| it.compared.is_some());
        if known.count() == count {
            return trace;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("nothing was compared");
}

#[test]
fn stages_in_the_shadow_see_what_enforced_ones_would_have_seen_and_nobody_sees_them() {
    block_on(async {
        let model = Scripted::new([&["I see ", "sec", "ret", "s"]]);
        let core = core(
            vec![
                shadowed(blocking("hell")),
                stage(replacing("hell", "****")),
                shadowed(trapping("****", true)),
            ],
            vec![
                shadowed(regenerating("secret")),
                stage(replacing("secret", "***")),
                shadowed(blocking("secret")),
            ],
            local(&model),
        );
        let completion = complete(&core, HELLO).await.unwrap();
        assert_eq!(completion.choices[0].text, "I see ***s");
        assert_eq!(model.asked.lock().len(), 1);
        let trace = compared(&core, 4).await;
        let told: Vec<_> = trace
            .stages
            .iter()
            .map(|it| (it.verdict, it.given, it.passed, it.compared))
            .collect();
        assert_eq!(
            told,
            [
                // A stage that blocks has not decided on what it blocks.
                (StageVerdict::Block, 0, 5, Some(Compared::WouldBlock)),
                (StageVerdict::Edit, 5, 5, None),
                (StageVerdict::FailedClosed, 0, 5, Some(Compared::Failed)),
                (StageVerdict::Regenerate, 6, 13, Some(Compared::WouldChange)),
                (StageVerdict::Edit, 13, 13, None),
                (StageVerdict::Pass, 10, 10, Some(Compared::Agree)),
            ]
        );
    });
}

#[test]
fn json_leaves_as_the_model_wrote_it_where_only_shadows_look_at_it() {
    block_on(async {
        let said = [r#"{"a": "\u00e9 "#, r#"bad", "n": 12}"#];
        let model = Scripted::new([&said]);
        let core = core(
            Vec::new(),
            vec![shadowed(replacing("bad", "good"))],
            local(&model),
        );
        let body = r#"{"model":"m","response_format":{"type":"json_object"},"messages":[{"role":"user","content":"hello"}]}"#;
        let completion = complete(&core, body).await.unwrap();
        assert_eq!(completion.choices[0].text, said.concat());
        let trace = compared(&core, 1).await;
        assert_eq!(trace.stages[0].verdict, StageVerdict::Edit);
        assert_eq!(trace.stages[0].compared, Some(Compared::WouldChange));
    });
}

#[test]
fn a_canary_that_traps_refuses_only_its_share_and_then_nothing_more() {
    block_on(async {
        let answers = [["fine"].as_slice(); 200];
        let model = Scripted::new(answers);
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let config = toml::from_str("share = 0.5\nmin-requests = 10").unwrap();
        let canary = Canary::open(
            "hunt-hell",
            "sha256:00",
            &StageConfig::default(),
            &config,
            store,
            &Metrics::new(),
        );
        let canary = canary.unwrap();
        let guard = canaried(trapping("hell", true), canary.clone());
        let core = core(vec![guard], Vec::new(), local(&model));
        let mut refused = 0;
        for _ in 0..150 {
            refused += usize::from(complete(&core, HELLO).await.is_err());
            if canary.status().phase == CanaryPhase::Fallen {
                break;
            }
        }
        assert_eq!(canary.status().phase, CanaryPhase::Fallen);
        assert!(refused >= 10, "{refused}");
        for _ in 0..20 {
            complete(&core, HELLO).await.unwrap();
        }
        let trace = compared(&core, 1).await;
        assert!(!trace.stages[0].enforced);
        assert_eq!(trace.stages[0].compared, Some(Compared::Failed));
        // Written by then, or soon.
        for _ in 0..2000 {
            let entries = core.audit.entries(0..10).unwrap();
            if entries.iter().any(|it| it.record.action == "canary.fall") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the fall was not audited");
    });
}
