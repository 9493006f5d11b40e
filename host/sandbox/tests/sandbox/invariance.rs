//! The checker of split invariance, on a plugin that keeps it and on one that does not.

use futures::FutureExt as _;
use millgate_hostile::{HOSTILE, SCAN};
use millgate_sandbox::invariance::{Broken, check, cuttings};
use millgate_sandbox::{CallContext, StageSpec};
use proptest::prelude::*;
use serde_json::json;

use crate::common::{load, sandbox, told};

#[test]
fn any_cut_of_any_text_gives_the_same() {
    let (stage, _) = load(&sandbox(), SCAN, StageSpec::new("mail", json!({})));
    let context = CallContext::default();
    let text = proptest::collection::vec(
        prop_oneof![
            Just("a@b.cd".to_owned()),
            Just("@".to_owned()),
            "[a-c.@ é\u{1F600}\n-]{0,12}".boxed(),
        ],
        0..8,
    )
    .prop_map(|parts| parts.concat());
    let cuts = proptest::collection::vec(0usize..100, 0..8);
    let mut runner = proptest::test_runner::TestRunner::default();
    runner
        .run(&(text, cuts), |(text, cuts)| {
            let mut all = cuttings(&text);
            all.push(cuts);
            let checked = check(&stage, &context, &text, &all).now_or_never().unwrap();
            prop_assert!(checked.is_ok(), "{}", checked.unwrap_err());
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_plugin_that_looks_at_chunks_is_caught() {
    // A finding for each push.
    let (stage, _) = load(&sandbox(), HOSTILE, told("count"));
    let (context, cuts) = (CallContext::default(), cuttings("two words"));
    let checked = check(&stage, &context, "two words", &cuts);
    match checked.now_or_never().unwrap() {
        Err(broken @ Broken::Differs(_)) => {
            assert!(broken.to_string().contains("but whole it gives"));
        }
        other => panic!("{other:?}"),
    }
}
