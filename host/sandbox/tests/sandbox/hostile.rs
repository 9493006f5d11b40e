//! Hostile plugins: each is contained, counted under the right failure, and the next call is
//! served, by the same sandbox and by the same stage.

use std::time::Duration;

use millgate_hostile::{HOSTILE, SCAN};
use millgate_sandbox::{
    Answer, CallContext, Error, Failure, Origin, Sample, Segment, Stage, StageStats,
};

use crate::common::{filter, inspect, load, sandbox, told};

const TEXT: &str = "a text with an é";

/// Runs the behaviour twice, and a good stage after each. The failures must be alike, and counted.
fn contained(behaviour: &str, counted: fn(&StageStats) -> u64) -> Failure {
    let sandbox = sandbox();
    let (stage, _) = load(&sandbox, HOSTILE, told(behaviour));
    let (good, _) = load(&sandbox, SCAN, told_nothing());
    let mut failures = Vec::new();
    for round in 1..=2 {
        let mut inspection = stage.inspection(&CallContext::default());
        let failure = inspection
            .push(&[TEXT])
            .and_then(|_| inspection.push(&[TEXT]))
            .and_then(|_| inspection.finish())
            .expect_err("it should fail");
        assert_eq!(
            inspection.push(&[TEXT]),
            Err(failure.clone()),
            "a failed inspection is over"
        );
        assert_eq!(counted(&stage.stats()), round, "{:?}", stage.stats());
        assert_eq!(filter(&good, "to a@b.cd").unwrap(), "to [email]");
        failures.push(failure);
    }
    assert_eq!(failures[0].kind(), failures[1].kind());
    failures.remove(0)
}

fn told_nothing() -> millgate_sandbox::StageSpec {
    millgate_sandbox::StageSpec::new("good", serde_json::Value::Null)
}

macro_rules! contained {
    ($($test:ident: $behaviour:literal, $counter:ident, $failure:pat $(if $guard:expr)?,)*) => {$(
        #[test]
        fn $test() {
            let failure = contained($behaviour, |stats| stats.$counter);
            assert!(matches!(&failure, $failure $(if $guard)?), "{failure:?}");
        }
    )*};
}

contained! {
    a_loop_ends_at_its_deadline: "loop", timeouts, Failure::Timeout { .. },
    endless_allocation_ends_at_the_limit: "allocate", memory, Failure::Memory { limit: 16_777_216 },
    endless_growth_ends_at_the_limit: "grow", memory, Failure::Memory { .. },
    endless_recursion_ends_with_the_stack: "recurse", traps,
        Failure::Trap { message } if message.contains("stack"),
    a_panic_is_told_without_its_control_characters: "panic", traps,
        Failure::Trap { message } if message.contains("told to panic [31m, in red and on two lines"),
    a_trap_is_told: "trap", traps, Failure::Trap { message } if message.contains("unreachable"),
    an_error_is_passed_on: "error", errors,
        Failure::Stage(error) if error.code == "told-to-fail",
    handles_that_are_never_given_back_end_at_the_limit: "keep-handles", traps,
        Failure::Trap { .. },
    a_large_value_for_a_host_function_is_not_copied: "state-bulk", oversized,
        Failure::Oversized { .. },
    text_that_was_not_pushed_cannot_be_settled: "settle-beyond", invalid,
        Failure::Invalid { why } if why.contains("were pushed"),
    settled_text_stays_settled: "settle-back", invalid,
        Failure::Invalid { why } if why.contains("goes back"),
    text_settles_on_character_boundaries: "settle-inside", invalid,
        Failure::Invalid { why } if why.contains("inside a character"),
    all_is_settled_at_the_finish: "settle-never", invalid,
        Failure::Invalid { why } if why.contains("after finish"),
    a_finding_is_about_text_that_there_is: "finding-beyond", invalid,
        Failure::Invalid { why } if why.contains("outside"),
    a_finding_lies_on_character_boundaries: "finding-inside", invalid,
        Failure::Invalid { why } if why.contains("cuts a character"),
    a_finding_ends_after_it_starts: "finding-backwards", invalid,
        Failure::Invalid { why } if why.contains("ends before it starts"),
    an_edit_is_inside_what_is_settled: "edit-beyond", invalid,
        Failure::Invalid { why } if why.contains("beyond settled"),
    an_edit_lies_on_character_boundaries: "edit-inside", invalid,
        Failure::Invalid { why } if why.contains("cuts a character"),
    edits_do_not_overlap: "edits-overlap", invalid,
        Failure::Invalid { why } if why.contains("begins before"),
    a_score_is_a_number: "score-wrong", invalid,
        Failure::Invalid { why } if why.contains("score"),
    a_string_is_utf8: "string-wrong", invalid, Failure::Invalid { .. },
    findings_without_number_are_too_large: "findings-many", oversized, Failure::Oversized { .. },
    a_megabyte_of_findings_is_too_large: "findings-large", oversized, Failure::Oversized { .. },
    a_huge_replacement_is_too_large: "replacement-large", oversized,
        Failure::Oversized { what } if what.contains("replacements"),
}

#[test]
fn a_log_flood_is_cut_and_counted() {
    let (stage, services) = load(&sandbox(), HOSTILE, told("log-flood"));
    for round in 1..=2u64 {
        inspect(&stage, TEXT).unwrap();
        assert_eq!(services.lines().len() as u64, 16 * round);
        assert_eq!(stage.stats().log_dropped, (10_000 - 16) * round);
    }
}

#[test]
fn a_huge_log_line_is_cut() {
    let (stage, services) = load(&sandbox(), HOSTILE, told("log-bulk"));
    inspect(&stage, TEXT).unwrap();
    let lines = services.lines();
    assert_eq!(lines.len(), 1);
    assert!(lines[0].2.len() <= 1024);
}

#[test]
fn a_metric_flood_is_cut_and_counted() {
    let (stage, services) = load(&sandbox(), HOSTILE, told("metric-flood"));
    inspect(&stage, TEXT).unwrap();
    assert_eq!(services.metric_names("under-test").len(), 64);
    assert_eq!(stage.stats().metrics_dropped, 20_000 - 64);
    // The names that it has it may go on using.
    inspect(&stage, TEXT).unwrap();
    assert_eq!(services.counter("under-test", "metric-0"), 2);
}

#[test]
fn a_state_flood_ends_at_the_grant() {
    let (stage, services) = load(&sandbox(), HOSTILE, told("state-flood"));
    match inspect(&stage, TEXT) {
        Err(Failure::Stage(error)) => assert_eq!(error.code, "state-full"),
        other => panic!("{other:?}"),
    }
    assert!(services.state_bytes("under-test") <= 64 << 10);
}

fn sample(path: &str) -> Sample {
    let segment = Segment {
        path: path.into(),
        role: "user".into(),
        text: "t".into(),
    };
    Sample {
        origin: Origin::Request,
        body: "{}".into(),
        segments: vec![segment],
    }
}

#[test]
fn judgements_fit_their_samples() {
    let sandbox = sandbox();
    let context = CallContext::default();
    let samples = [sample("/a"), sample("/b")];
    let judge = |behaviour: &str| {
        let (stage, _) = load(&sandbox, HOSTILE, told(behaviour));
        stage.validate(&context, &samples)
    };
    assert_eq!(judge("none").unwrap().len(), 2);
    assert_eq!(judge("repair").unwrap().len(), 2);
    for behaviour in ["too-few", "repair-elsewhere"] {
        assert!(
            matches!(judge(behaviour), Err(Failure::Invalid { .. })),
            "{behaviour}"
        );
    }
    assert!(matches!(judge("loop"), Err(Failure::Timeout { .. })));
    assert!(matches!(judge("panic"), Err(Failure::Trap { .. })));
}

#[test]
fn scores_fit_their_answers() {
    let sandbox = sandbox();
    let context = CallContext::default();
    let answer = |id: &str| Answer {
        id: id.into(),
        input: "in".into(),
        output: "out".into(),
        references: vec!["out".into()],
    };
    let answers = [answer("1"), answer("2")];
    let evaluate = |behaviour: &str| {
        let (stage, _) = load(&sandbox, HOSTILE, told(behaviour));
        stage.evaluate(&context, &answers)
    };
    let scores = evaluate("none").unwrap();
    assert_eq!(scores.cases.len(), 2);
    assert_eq!(scores.cases[1].id, "2");
    for behaviour in ["wrong-ids", "score-wrong"] {
        assert!(
            matches!(evaluate(behaviour), Err(Failure::Invalid { .. })),
            "{behaviour}"
        );
    }
}

#[test]
fn what_goes_wrong_in_configure_fails_the_load() {
    let sandbox = sandbox();
    let try_load = |behaviour: &str| {
        let mut spec = told(&format!("configure-{behaviour}"));
        spec.limits.configure_deadline = Duration::from_millis(200);
        sandbox
            .load(
                HOSTILE,
                spec,
                std::sync::Arc::new(millgate_sandbox::MemoryServices::default()),
            )
            .map(|_: Stage| ())
            .expect_err("it should be refused")
    };
    assert!(matches!(
        try_load("loop"),
        Error::Configure {
            failure: Failure::Timeout { .. },
            ..
        }
    ));
    assert!(matches!(
        try_load("allocate"),
        Error::Configure {
            failure: Failure::Memory { .. },
            ..
        }
    ));
    let panic = try_load("panic").to_string();
    assert!(
        panic.contains("told to panic") && panic.contains("hostile"),
        "{panic}"
    );
    let refused = try_load("refuse").to_string();
    assert!(
        refused.contains("under-test") && refused.contains("told to refuse"),
        "{refused}"
    );
    let state = try_load("state").to_string();
    assert!(state.contains("not available in `configure`"), "{state}");
    // And the sandbox serves on.
    let (good, _) = load(&sandbox, SCAN, told_nothing());
    assert_eq!(filter(&good, "a@b.cd").unwrap(), "[email]");
}

#[test]
fn an_exhausted_sandbox_says_so_and_recovers() {
    let sandbox = sandbox();
    let mut spec = told_nothing();
    spec.limits.wait = Duration::from_millis(20);
    let (stage, _) = load(&sandbox, SCAN, spec);
    let mut open: Vec<_> = (0..16)
        .map(|_| stage.inspection(&CallContext::default()))
        .collect();
    for inspection in &mut open {
        inspection.push(&["text "]).unwrap();
    }
    assert!(matches!(
        inspect(&stage, "text"),
        Err(Failure::Unavailable { .. })
    ));
    assert_eq!(stage.stats().unavailable, 1);
    drop(open);
    inspect(&stage, "text").unwrap();
}
