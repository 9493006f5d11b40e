//! The plugin without a sandbox.


use millgate_sdk::testing::{
    MockContext, assert_manifest, assert_split_invariant, configure_checked, inspect,
};
use {{crate}}::Words;
use serde_json::json;

#[test]
fn words_on_the_list_are_masked_wherever_the_chunks_break() {
    let words: Words = configure_checked(&json!({ "words": ["foo"] })).unwrap();
    let run = inspect(&words, &MockContext::default(), &["a fo", "o walks", " in"]).unwrap();
    assert_eq!(run.text, "a *** walks in");
    assert_split_invariant(&words, "a foo\nwalks in foo", &[vec![3], vec![4, 9]]);
}

#[test]
fn the_manifest_describes_the_plugin() {
    assert_manifest::<Words>(&json!({}));
}
