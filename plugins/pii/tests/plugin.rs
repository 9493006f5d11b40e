//! The plugin as a host sees it: manifest, config, actions, findings.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not take for tests"
)]

use millgate_plugin_pii::Pii;
use millgate_sdk::prelude::*;
use millgate_sdk::testing::{Inspected, MockContext, assert_manifest, configure_checked, inspect};
use serde_json::json;

fn run(config: serde_json::Value, text: &str) -> Inspected {
    let pii: Pii = configure_checked(&config).unwrap();
    inspect(&pii, &MockContext::default(), &[text]).unwrap()
}

#[test]
fn the_manifest_describes_the_plugin() {
    assert_manifest::<Pii>(&json!({}));
}

#[test]
fn the_manifest_s_defaults_are_the_config_s() {
    let text = "Card 4111 1111 1111 1111, jo@example.com";
    let pii = Pii::configure(serde_json::from_str("{}").unwrap()).unwrap();
    assert_eq!(
        inspect(&pii, &MockContext::default(), &[text]).unwrap(),
        run(json!({}), text)
    );
}

#[test]
fn each_entity_is_masked_by_its_name() {
    let text = "Mail jo@example.com or call +44 20 7946 0958. Card 4111 1111 1111 1111, IBAN GB29 NWBK 6016 1331 9268 19, \
                SSN 308-63-0237, from 86.231.85.193, pay 1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa.";
    assert_eq!(
        run(json!({}), text).text,
        "Mail [EMAIL] or call [PHONE]. Card [PAYMENT_CARD], IBAN [IBAN], SSN [US_SSN], from [IP_ADDRESS], pay [CRYPTO_ADDRESS]."
    );
}

#[test]
fn a_blocked_entity_refuses_the_text_at_its_beginning() {
    let config = json!({ "entities": { "payment-card": { "action": "block" } } });
    let inspected = run(
        config,
        "jo@example.com has 4111111111111111, and jim@example.com",
    );
    assert_eq!(inspected.text, "[EMAIL] has ");
    let Decision::Block(refusal) = &inspected.decision else {
        panic!("{inspected:?}")
    };
    assert_eq!(refusal.code, "payment-card");
    assert!(!refusal.message.contains("4111"));
    assert_eq!(inspected.findings.len(), 2);
}

#[test]
fn context_words_raise_a_weak_match_over_the_threshold() {
    assert_eq!(
        run(json!({}), "The id is 308630237").text,
        "The id is 308630237"
    );
    let inspected = run(json!({}), "My social security number is 308630237");
    assert_eq!(inspected.text, "My social security number is [US_SSN]");
    assert_eq!(inspected.findings[0].score, 0.4);
    let config = json!({ "entities": { "us-ssn": { "context": ["Personalnummer"] } } });
    assert_eq!(
        run(config, "personalnummer: 308630237").text,
        "personalnummer: [US_SSN]"
    );
    // Six tokens away is too far.
    assert_eq!(
        run(json!({}), "ssn one two three four five 308630237").findings,
        []
    );
}

#[test]
fn what_is_allowed_passes() {
    let config = json!({ "allow": ["Support@Example.com", "@acme.example", "86.231.85.193"] });
    let text = "support@example.com, jo@acme.example, 86.231.85.193, eve@example.com";
    assert_eq!(
        run(config, text).text,
        "support@example.com, jo@acme.example, 86.231.85.193, [EMAIL]"
    );
}

#[test]
fn an_entity_that_is_off_passes_and_a_threshold_holds() {
    let config =
        json!({ "entities": { "email": { "enabled": false }, "phone": { "threshold": 0.5 } } });
    assert_eq!(run(config, "jo@example.com (415) 555-0123").findings, []);
}

#[test]
fn masks_come_in_three_styles() {
    let text = "4111 1111 1111 1234 is wrong, 4111 1111 1111 1111 is right, jo@example.com";
    let masked = |style: &str| run(json!({ "mask": style }), text).text;
    assert_eq!(
        masked("label"),
        "4111 1111 1111 1234 is wrong, [PAYMENT_CARD] is right, [EMAIL]"
    );
    assert_eq!(
        masked("last-four"),
        "4111 1111 1111 1234 is wrong, **** **** **** 1111 is right, ****@example.com"
    );
    assert_eq!(
        masked("stars"),
        "4111 1111 1111 1234 is wrong, ******** is right, ********"
    );
}

#[test]
fn a_pseudonym_is_the_same_however_the_value_is_written() {
    let config = json!({ "action": "pseudonym", "pseudonym-key": "sixteen bytes or more" });
    let text = run(config, "4111111111111111 4111-1111-1111-1111").text;
    let (first, second) = text.split_once(' ').unwrap();
    assert_eq!(first, second);
}

#[test]
fn a_config_that_cannot_work_says_what_is_missing() {
    for (config, word) in [
        (json!({ "action": "pseudonym" }), "pseudonym-key"),
        (
            json!({ "action": "pseudonym", "pseudonym-key": "short" }),
            "pseudonym-key",
        ),
        (json!({ "threshold": 2 }), "threshold"),
        (json!({ "action": "shred" }), "action"),
        (json!({ "entities": { "passport": {} } }), "passport"),
    ] {
        let error = configure_checked::<Pii>(&config).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidConfig);
        assert!(error.message.contains(word), "{config}: {}", error.message);
    }
}

#[test]
fn findings_never_repeat_what_was_found() {
    let inspected = run(json!({}), "card 4111111111111111 and jo@example.com");
    for finding in &inspected.findings {
        assert!(!finding.explanation.contains("4111") && !finding.explanation.contains("jo@"));
        assert!(finding.span.is_some() && finding.score > 0.0);
    }
}
