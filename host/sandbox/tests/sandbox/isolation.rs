//! What one call leaves behind for the next.

use millgate_hostile::{HOSTILE, SCAN};
use millgate_sandbox::{CallContext, Held, Isolation, StageSpec};
use serde_json::json;

use crate::common::{explanation, inspect, load, sandbox, told};

#[test]
fn a_fresh_stage_remembers_nothing() {
    let (stage, _) = load(&sandbox(), HOSTILE, told("count"));
    let at_load = stage.stats().instances;
    for _ in 0..3 {
        assert_eq!(explanation(&stage, "text").unwrap(), "call 1");
    }
    assert_eq!(stage.stats().instances, at_load + 3);
}

#[test]
fn a_warm_stage_reuses_its_instance_until_it_fails() {
    let mut spec = told("count");
    spec.isolation = Isolation::Warm;
    spec.limits.warm_calls = 6;
    let (stage, _) = load(&sandbox(), HOSTILE, spec);
    let texts: Vec<String> = (0..4)
        .map(|_| explanation(&stage, "text").unwrap())
        .collect();
    // Each text is three calls: the constructor, the push, the finish.
    assert_eq!(texts, ["call 1", "call 2", "call 1", "call 2"]);

    let mut spec = told("panic");
    spec.isolation = Isolation::Warm;
    let (stage, _) = load(&sandbox(), HOSTILE, spec);
    let before = stage.stats().instances;
    for _ in 0..3 {
        inspect(&stage, "text").unwrap_err();
    }
    assert_eq!(
        stage.stats().instances,
        before + 3,
        "a failed instance is not called again"
    );
}

#[test]
fn a_stream_leaves_as_it_settles() {
    let (stage, _) = load(&sandbox(), SCAN, StageSpec::new("mail", json!({})));
    let mut inspection = stage.inspection(&CallContext::default());
    let mut held = Held::default();
    let mut out = Vec::new();
    for chunk in ["write to ", "jane@", "example.com", " or not"] {
        held.push(chunk);
        let verdict = inspection.push(&[chunk]).unwrap();
        out.push(held.settle(&verdict));
    }
    out.push(held.settle(&inspection.finish().unwrap()));
    assert_eq!(out, ["write to ", "", "", "[email] or ", "not"]);
    assert!(inspection.finish().is_err(), "it is finished once");
    assert_eq!((inspection.pushed(), inspection.settled()), (32, 32));
}

#[test]
fn many_threads_call_one_stage() {
    let (stage, _) = load(&sandbox(), SCAN, StageSpec::new("mail", json!({})));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let (push, _) = inspect(&stage, "to a@b.cd and c@d.ef now").unwrap();
                    assert_eq!(push.edits.len(), 2);
                }
            });
        }
    });
    assert_eq!(stage.stats().calls, 4 * 200 * 2);
}
