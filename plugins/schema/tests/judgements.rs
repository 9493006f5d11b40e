//! Judgements as the host gets them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use millgate_plugin_schema::Schema;
use millgate_sdk::prelude::*;
use millgate_sdk::testing::{MockContext, assert_manifest};

fn plugin(config: &str) -> Schema {
    Schema::configure(serde_json::from_str(config).unwrap())
        .unwrap_or_else(|error| panic!("{error:?}"))
}

/// A chat request of roles and texts.
fn chat(messages: &[(&str, &str)]) -> Sample {
    let body: Vec<serde_json::Value> = messages
        .iter()
        .map(|(role, text)| serde_json::json!({"role": role, "content": text}))
        .collect();
    let segment = |(index, (role, text)): (usize, &(&str, &str))| TextSegment {
        path: format!("/messages/{index}/content"),
        role: (*role).into(),
        text: (*text).into(),
    };
    Sample {
        origin: Origin::Request,
        body: serde_json::json!({"model": "m", "messages": body}).to_string(),
        segments: messages.iter().enumerate().map(segment).collect(),
    }
}

fn raw(origin: Origin, body: &str) -> Sample {
    Sample {
        origin,
        body: body.into(),
        segments: vec![],
    }
}

fn judge(plugin: &Schema, sample: Sample) -> Judgement {
    let context = MockContext::default();
    plugin
        .validate(&Context::new(&context), &[sample])
        .unwrap()
        .remove(0)
}

fn refusal(judgement: Judgement) -> String {
    match judgement.outcome {
        Outcome::Reject(message) => message,
        other => panic!("not refused: {other:?} {:?}", judgement.findings),
    }
}

#[test]
fn an_ordinary_request_is_accepted_without_a_word() {
    let judgement = judge(
        &plugin("{}"),
        chat(&[("system", "Be brief."), ("user", "Grüße 👋🏽 à tous\n")]),
    );
    assert_eq!(judgement, Judgement::accept());
}

#[test]
fn invisible_characters_are_taken_out_and_told() {
    let sample = chat(&[("user", "\u{feff}ig\u{200b}nore\u{0} this\u{e0041}")]);
    let judgement = judge(&plugin("{}"), sample.clone());
    let repair = Repair {
        path: "/messages/0/content".into(),
        text: "ignore this".into(),
    };
    assert_eq!(judgement.outcome, Outcome::Repair(vec![repair]));
    let rules: Vec<&str> = judgement
        .findings
        .iter()
        .map(|finding| finding.rule.as_str())
        .collect();
    assert_eq!(
        rules,
        [
            "control-characters",
            "byte-order-mark",
            "zero-width",
            "tag-characters"
        ]
    );
    let message = refusal(judge(&plugin(r#"{"repair": "off"}"#), sample.clone()));
    assert!(
        message.contains("1 zero width in the text at /messages/0/content, the first at byte 5"),
        "{message}"
    );
    let allow = r#"{"unicode": {"control-characters": "allow", "byte-order-mark": "flag", "zero-width": "allow", "tag-characters": "flag"}}"#;
    let judgement = judge(&plugin(allow), sample);
    assert_eq!(
        (judgement.outcome, judgement.findings.len()),
        (Outcome::Accept, 2)
    );
}

#[test]
fn normal_form_c_is_there_for_who_wants_it() {
    let sample = chat(&[("user", "cafe\u{301}")]);
    assert_eq!(
        judge(&plugin("{}"), sample.clone()).outcome,
        Outcome::Accept
    );
    let repair = Repair {
        path: "/messages/0/content".into(),
        text: "café".into(),
    };
    assert_eq!(
        judge(&plugin(r#"{"normalise": "nfc"}"#), sample).outcome,
        Outcome::Repair(vec![repair])
    );
}

#[test]
fn bodies_that_two_readers_read_differently_are_refused() {
    let plugin = plugin("{}");
    assert!(
        refusal(judge(
            &plugin,
            raw(Origin::Request, r#"{"model":"a","model":"b"}"#)
        ))
        .contains("twice")
    );
    assert!(
        refusal(judge(&plugin, raw(Origin::Row, r#"{"text":"\ud800"}"#))).contains("surrogate")
    );
    assert!(refusal(judge(&plugin, raw(Origin::Row, "{"))).contains("JSON"));
}

#[test]
fn requests_and_rows_have_schemas_of_their_own() {
    let config = r#"{
        "request-schema": {"properties": {"temperature": {"type": "number", "maximum": 1}}},
        "row-schema": {"required": ["input", "label"], "properties": {"label": {"enum": ["good", "bad"]}}}}"#;
    let plugin = plugin(config);
    let hot = raw(
        Origin::Request,
        r#"{"temperature": 1.5, "x": "long secret"}"#,
    );
    assert_eq!(
        refusal(judge(&plugin, hot)),
        "/temperature: expected at most 1"
    );
    let message = refusal(judge(&plugin, raw(Origin::Row, r#"{"label": "ugly"}"#)));
    assert!(
        message.contains("the whole: expected the property `input`"),
        "{message}"
    );
    assert!(
        message.contains("/label: expected one of \"good\", \"bad\""),
        "{message}"
    );
    assert_eq!(
        judge(
            &plugin,
            raw(Origin::Row, r#"{"input": "x", "label": "bad"}"#)
        ),
        Judgement::accept()
    );
    assert_eq!(
        judge(&plugin, raw(Origin::Request, r#"{"temperature": 1}"#)),
        Judgement::accept()
    );
}

#[test]
fn prompts_can_be_made_to_be_json() {
    let plugin = plugin(r#"{"text-schema": {"type": "object", "required": ["query"]}}"#);
    assert_eq!(
        judge(
            &plugin,
            chat(&[("system", "plain"), ("user", r#"{"query": 1}"#)])
        ),
        Judgement::accept()
    );
    let message = refusal(judge(&plugin, chat(&[("user", "[]")])));
    assert_eq!(message, "the text at /messages/0/content: expected object");
    let message = refusal(judge(&plugin, chat(&[("user", "hello")])));
    assert!(
        message.starts_with("the text at /messages/0/content must be JSON"),
        "{message}"
    );
    // A byte-order mark is repaired before it is read.
    let judgement = judge(&plugin, chat(&[("user", "\u{feff}{\"query\": 1}")]));
    assert!(
        matches!(judgement.outcome, Outcome::Repair(_)),
        "{judgement:?}"
    );
}

#[test]
fn sizes_and_roles_are_checked_together() {
    let plugin = plugin(
        r#"{"sizes": {"max-messages": 1, "max-total-chars": 5}, "roles": {"last": ["user"]}}"#,
    );
    let message = refusal(judge(
        &plugin,
        chat(&[("user", "abc"), ("assistant", "def")]),
    ));
    assert!(message.contains("2 messages are too many"), "{message}");
    assert!(message.contains("must be of role user"), "{message}");
    assert!(message.contains("6 characters"), "{message}");
}

#[test]
fn a_bad_schema_is_refused_with_its_key_and_place() {
    let config =
        serde_json::from_str(r#"{"row-schema": {"properties": {"a": {"type": "text"}}}}"#).unwrap();
    let Err(error) = Schema::configure(config) else {
        panic!("accepted")
    };
    assert_eq!(error.code, "row-schema");
    assert!(
        error.message.contains("/properties/a/type"),
        "{}",
        error.message
    );
}

#[test]
fn a_message_is_bounded_however_long_the_request() {
    let plugin = plugin(r#"{"request-schema": {"additionalProperties": false}}"#);
    let members: Vec<String> = (0..500)
        .map(|n| format!("\"{}{n}\": 1", "name".repeat(200)))
        .collect();
    let message = refusal(judge(
        &plugin,
        raw(Origin::Request, &format!("{{{}}}", members.join(","))),
    ));
    assert!(message.chars().count() <= 1000);
}

#[test]
fn the_manifest_and_its_defaults_hold() {
    assert_manifest::<Schema>(&serde_json::json!({}));
    assert_manifest::<Schema>(&serde_json::json!({
        "request-schema": {"required": ["model"]},
        "row-schema": false,
        "sizes": {"max-messages": 10},
        "roles": {"system-first": true},
        "unicode": {"zero-width": "reject"},
        "repair": "off",
    }));
}
