//! Canaries that do harm, canaries that do none, and what is kept of them.

use super::*;
use millgate_store::MemoryStore;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

fn config(more: &str) -> CanaryConfig {
    toml::from_str(&format!("share = 0.5\n{more}")).unwrap()
}

fn open(store: &Arc<dyn Store>, version: &str) -> Arc<Canary> {
    let config = config("");
    let stage = StageConfig {
        plugin: Some(version.to_owned()),
        canary: Some(config.clone()),
        ..StageConfig::default()
    };
    Canary::open(
        "guard",
        "sha256:0",
        &stage,
        &config,
        store.clone(),
        &Metrics::new(),
    )
    .unwrap()
}

fn outcome(enforced: bool, values: [f64; 3]) -> Outcome {
    Outcome {
        enforced,
        values: Some(values),
    }
}

/// Requests, half on either side, until it falls: how many.
fn until_it_falls(
    canary: &Canary,
    seed: u64,
    most: u64,
    of: impl Fn(&mut StdRng, bool) -> [f64; 3],
) -> Option<u64> {
    let mut random = StdRng::seed_from_u64(seed);
    (1..=most).find(|number| {
        let enforced = number % 2 == 0;
        let values = of(&mut random, enforced);
        canary.note(&outcome(enforced, values))
    })
}

fn store() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new())
}

fn flag(random: &mut StdRng, rate: f64) -> f64 {
    if random.random_bool(rate) { 1.0 } else { 0.0 }
}

#[test]
fn a_stage_that_does_harm_falls_and_says_by_what() {
    let healthy = |random: &mut StdRng| 100.0 + random.random_range(-30.0..30.0);
    /// Rates of failed and refused requests, and a factor on the time, of either side.
    type Rates = fn(bool) -> (f64, f64, f64);
    let cases: [(&str, Rates); 3] = [
        ("it fails", |on| (if on { 0.2 } else { 0.0 }, 0.01, 1.0)),
        ("more is refused", |on| {
            (0.0, if on { 0.2 } else { 0.01 }, 1.0)
        }),
        ("less is refused", |on| {
            (0.0, if on { 0.0 } else { 0.2 }, 1.0)
        }),
    ];
    for (words, rates) in cases {
        let canary = open(&store(), "a");
        let fell = until_it_falls(&canary, 7, 4000, |random, on| {
            let (failed, blocked, slow) = rates(on);
            [
                flag(random, failed),
                flag(random, blocked),
                healthy(random) * slow,
            ]
        });
        assert!(fell.is_some(), "{words}");
        let status = canary.status();
        assert!(status.reason.contains(words), "{}", status.reason);
        assert_eq!(
            (status.phase, status.answer, status.share),
            (CanaryPhase::Fallen, CanaryAnswer::Fail, 0.0)
        );
        assert!(!canary.enforces(&TraceId::new(1), |_| None, "t"));
    }
    let canary = open(&store(), "a");
    let fell = until_it_falls(&canary, 7, 4000, |random, on| {
        [0.0, 0.0, healthy(random) * if on { 2.0 } else { 1.0 }]
    });
    assert!(fell.is_some() && canary.status().reason.contains("times the others' time"));
}

#[test]
fn a_stage_that_does_no_harm_seldom_falls_and_is_shown_to_pass() {
    let (mut falls, mut passes) = (0, 0);
    for seed in 0..40 {
        let canary = open(&store(), "a");
        let fell = until_it_falls(&canary, seed, 4000, |random, _| {
            [
                0.0,
                flag(random, 0.03),
                100.0 + random.random_range(-30.0..30.0),
            ]
        });
        falls += usize::from(fell.is_some());
        passes += usize::from(canary.status().answer == CanaryAnswer::Pass);
    }
    assert!(falls <= 2, "{falls} of 40");
    assert!(passes >= 30, "{passes} of 40");
}

#[test]
fn a_fall_survives_a_restart_and_ends_with_another_stage_or_when_it_is_applied_anew() {
    let store = store();
    let folder = tempfile::tempdir().unwrap();
    let audit = AuditLog::open(store.clone(), folder.path().join("key")).unwrap();
    let canary = open(&store, "a");
    assert!(
        until_it_falls(&canary, 1, 500, |_, on| [
            if on { 1.0 } else { 0.0 },
            0.0,
            9.0
        ])
        .is_some()
    );
    canary.write_fall(&audit);
    assert_eq!(audit.entries(0..9).unwrap()[0].record.action, "canary.fall");
    assert_eq!(open(&store, "a").status().phase, CanaryPhase::Fallen);
    assert_eq!(open(&store, "b").status().phase, CanaryPhase::Running);
    let again = open(&store, "a");
    again.begin_again();
    assert_eq!(open(&store, "a").status().phase, CanaryPhase::Running);
}

#[test]
fn without_data_it_pauses_and_never_passes() {
    let canary = open(&store(), "a");
    assert_eq!(canary.status().answer, CanaryAnswer::NoData);
    let mut state = canary.state.lock().0.clone();
    let config = config("no-data = \"1m\"");
    let begin = state.since_ms;
    assert!(!state.follow(&config, begin + 59_000));
    assert!(state.follow(&config, begin + 60_000));
    assert_eq!(state.phase, CanaryPhase::Paused);
    assert_eq!(state.answer(&config), CanaryAnswer::NoData);
    state.last_ms = Sides {
        enforced: begin + 61_000,
        shadow: begin + 61_000,
    };
    assert!(state.follow(&config, begin + 62_000));
    assert_eq!(state.phase, CanaryPhase::Running);
}

#[test]
fn a_user_is_always_on_the_same_side_and_the_share_is_kept() {
    let canary = open(&store(), "a");
    let side = |user: usize| {
        let value = |sticky| (sticky == Sticky::User).then(|| user.to_string());
        canary.enforces(&TraceId::new(user as u64), value, "t")
    };
    let on = (0..4000).filter(|&user| side(user)).count();
    assert!((1800..2200).contains(&on), "{on}");
    assert!((0..50).all(|user| side(user) == side(user)));
}
