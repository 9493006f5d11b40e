//! Monitors and deployment strategies: they live long, fall, and get up again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millgate_hostile::{HOSTILE, SCAN};
use millgate_sandbox::{
    Action, Arm, ArmRole, CallContext, Error, Event, Failure, Label, MemoryServices, MonitorActor,
    MonitorOptions, Rollout, Services as _, Stage, StageSpec,
};
use serde_json::json;

use crate::common::{load, sandbox, told};

const LONG: Duration = Duration::from_secs(60);

fn event(trace_id: &str) -> Event {
    Event {
        trace_id: trace_id.into(),
        at_ms: 0,
        labels: vec![],
        measures: vec![],
    }
}

fn options() -> MonitorOptions {
    MonitorOptions {
        tick: Duration::from_millis(20),
        linger: Duration::ZERO,
        save: LONG,
        ..MonitorOptions::default()
    }
}

fn monitor(behaviour: &str) -> (MonitorActor, Stage, Arc<MemoryServices>) {
    let (stage, services) = load(&sandbox(), HOSTILE, told(behaviour));
    (stage.monitor(options()).unwrap(), stage, services)
}

/// Waits until a condition holds; the tests have no other clock.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < end, "waited a minute until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn seen(services: &MemoryServices) -> u64 {
    services.gauge_value("under-test", "seen").unwrap_or(0.0) as u64
}

fn saved(services: &MemoryServices) -> Option<u64> {
    let state = services.load_actor("under-test").unwrap()?;
    Some(u64::from_le_bytes(state.try_into().unwrap()))
}

#[tokio::test]
async fn a_monitor_sees_events_reports_and_saves() {
    let (actor, stage, services) = monitor("none");
    for _ in 0..10 {
        assert!(actor.observe(event("t")));
    }
    actor.save().await.unwrap();
    assert_eq!(saved(&services), Some(10));
    until("ten are reported", || seen(&services) == 10).await;
    assert_eq!(services.reports().last().unwrap().1.alerts[0].rule, "seen");

    actor.merge(5u64.to_le_bytes().to_vec()).await.unwrap();
    assert!(matches!(actor.merge(vec![1]).await, Err(Failure::Stage(_))));
    assert!(actor.shutdown(LONG));
    assert_eq!(saved(&services), Some(15));
    assert!(!actor.observe(event("late")));

    // Another one goes on from there.
    let next = stage.monitor(options()).unwrap();
    next.observe(event("t"));
    next.save().await.unwrap();
    assert_eq!(saved(&services), Some(16));
}

#[tokio::test]
async fn a_monitor_that_traps_gets_up_with_its_saved_state() {
    let (actor, stage, services) = monitor("none");
    for _ in 0..3 {
        actor.observe(event("t"));
    }
    actor.save().await.unwrap();
    actor.observe(event("poison"));
    until("it falls", || stage.stats().traps == 1).await;
    until("it gets up", || stage.stats().restarts >= 1).await;
    until("it is itself again", || seen(&services) == 3).await;
    actor.observe(event("t"));
    until("it goes on from three", || seen(&services) == 4).await;
    assert!(
        services
            .lines()
            .iter()
            .any(|line| line.2.contains("a poisonous event"))
    );
}

#[tokio::test]
async fn a_monitor_that_always_traps_is_started_less_and_less_often() {
    let (actor, stage, _) = monitor("panic");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1200) {
        actor.observe(event("t"));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // After 0, 100, 300 and 700 ms; ticks do not trap, so they keep no pause from doubling.
    let traps = stage.stats().traps;
    assert!((1..=4).contains(&traps), "{traps}");
    assert!(stage.stats().unavailable > 0);
}

#[tokio::test]
async fn a_state_that_cannot_be_read_does_not_keep_a_monitor_down() {
    let (stage, services) = load(&sandbox(), HOSTILE, told("none"));
    services.save_actor("under-test", b"not a number").unwrap();
    let actor = stage.monitor(options()).unwrap();
    actor.observe(event("t"));
    until("it works", || seen(&services) == 1).await;
    actor.save().await.unwrap();
    assert_eq!(saved(&services), Some(1));
}

#[tokio::test]
async fn a_state_that_is_too_large_is_not_saved() {
    let (actor, stage, services) = monitor("save-large");
    actor.observe(event("t"));
    actor.save().await.unwrap();
    assert_eq!(stage.stats().oversized, 1);
    assert_eq!(services.load_actor("under-test").unwrap(), None);
}

#[tokio::test]
async fn a_full_mailbox_drops_and_counts() {
    let (stage, _) = load(&sandbox(), HOSTILE, told("none"));
    let slow = MonitorOptions {
        mailbox: 4,
        batch: 1,
        ..options()
    };
    let actor = stage.monitor(slow).unwrap();
    let taken = (0..100_000).filter(|_| actor.observe(event("t"))).count() as u64;
    assert_eq!(taken + actor.dropped(), 100_000);
    assert!(actor.dropped() > 0);
}

fn arms() -> Vec<Arm> {
    let arm = |name: &str, role, weight| Arm {
        name: name.into(),
        role,
        weight,
    };
    vec![
        arm("stable", ArmRole::Stable, 0.9),
        arm("candidate", ArmRole::Candidate, 0.1),
    ]
}

#[tokio::test]
async fn a_deployment_strategy_routes_reviews_and_remembers() {
    let (stage, services) = load(&sandbox(), HOSTILE, told("none"));
    let actor = stage.deployment().unwrap();
    let (context, arms) = (CallContext::default(), arms());
    let all = futures::future::join_all((0..50).map(|_| actor.route(&context, &[], &arms))).await;
    assert!(
        all.iter()
            .all(|choice| choice.as_ref().unwrap().arm == "stable")
    );
    assert_eq!(all[49].as_ref().unwrap().reason, "seen 50");
    let rollout = Rollout {
        id: "r".into(),
        elapsed_ms: 1,
        candidate_weight: 0.1,
        arms: vec![],
    };
    assert_eq!(actor.review(&rollout).await.unwrap().action, Action::Hold);
    actor.save().await.unwrap();
    assert_eq!(saved(&services), Some(50));

    // It falls, and until it is up again the caller takes the stable arm.
    let poison = [Label {
        name: "poison".into(),
        value: String::new(),
    }];
    assert!(matches!(
        actor.route(&context, &poison, &arms).await,
        Err(Failure::Trap { .. })
    ));
    assert!(matches!(
        actor.route(&context, &[], &arms).await,
        Err(Failure::Unavailable { .. })
    ));
    let mut choice = None;
    let end = Instant::now() + LONG;
    while choice.is_none() && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(10)).await;
        choice = actor.route(&context, &[], &arms).await.ok();
    }
    assert_eq!(choice.unwrap().reason, "seen 51");
    assert!(actor.shutdown(LONG));
    assert_eq!(saved(&services), Some(51));
}

#[tokio::test]
async fn what_a_strategy_decides_is_checked() {
    let sandbox = sandbox();
    let (context, arms) = (CallContext::default(), arms());
    let (stage, _) = load(&sandbox, HOSTILE, told("arm-unknown"));
    let actor = stage.deployment().unwrap();
    let routed = actor.route(&context, &[], &arms).await;
    assert!(matches!(routed, Err(Failure::Invalid { .. })), "{routed:?}");

    let (stage, _) = load(&sandbox, HOSTILE, told("shift-wrong"));
    let rollout = Rollout {
        id: "r".into(),
        elapsed_ms: 1,
        candidate_weight: 0.1,
        arms: vec![],
    };
    let reviewed = stage.deployment().unwrap().review(&rollout).await;
    assert!(
        matches!(reviewed, Err(Failure::Invalid { .. })),
        "{reviewed:?}"
    );
}

#[tokio::test]
async fn two_threads_route_at_once() {
    let (stage, _) = load(&sandbox(), HOSTILE, told("none"));
    let actor = stage.deployment().unwrap();
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let actor = actor.clone();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    for _ in 0..200 {
                        actor
                            .route(&CallContext::default(), &[], &arms())
                            .await
                            .unwrap();
                    }
                });
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(stage.stats().calls, 400);
}

#[test]
fn a_stage_without_the_interface_is_no_actor() {
    let (stage, _) = load(&sandbox(), SCAN, StageSpec::new("mail", json!({})));
    assert!(matches!(
        stage.monitor(options()),
        Err(Error::Missing { .. })
    ));
    assert!(matches!(stage.deployment(), Err(Error::Missing { .. })));
}
