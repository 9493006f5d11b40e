//! Split invariance: whatever the text and wherever its chunks break, the same text leaves, with
//! the same findings and the same decision.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not take for tests"
)]

use millgate_plugin_pii::{Config, Pii};
use millgate_sdk::prelude::*;
use millgate_sdk::testing::{MockContext, assert_split_invariant, inspect, split};
use proptest::prelude::*;

const PLANTED: [&str; 28] = [
    "jo.smith+tag@mail.example.com",
    "josé@exämple.de",
    "почта@пример.рф",
    "a@b.co.Then",
    "4111 1111 1111 1111",
    "378282246310005",
    "4111-1111-1111-1112",
    "GB29 NWBK 6016 1331 9268 19",
    "de89370400440532013000",
    "308-63-0237",
    "308630237",
    "86.231.85.193",
    "fe80::1ff:fe23:4567:890a",
    "::ffff:192.168.1.7",
    "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa",
    "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4",
    "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    "+44 (0)20 7946 0958",
    "(415) 555-0123 ext. 12",
    "415-555-0123x44",
    "785 8949 office",
    "9885 1152",
    "my card number is",
    "phone:",
    "social security",
    "2024-05-01T12:30:45",
    "a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r.s.t.u.v.w.x.y.z.a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p@x.org",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa9@",
];

fn plugin(config: serde_json::Value) -> Pii {
    millgate_sdk::testing::configure_checked(&config).unwrap()
}

/// Text that is likely to be almost something.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => proptest::sample::select(PLANTED.to_vec()).prop_map(String::from),
        2 => "[ -~]{0,12}",
        2 => "[0-9 .:()+@x-]{0,40}",
        1 => "\\PC{0,8}",
        2 => proptest::sample::select(vec![" ", " ", "\n", ".", ", ", "@", "-", "é", "请", "\u{a0}", ""]).prop_map(String::from),
        1 => "[a-z0-9.]{50,140}",
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn chunkings() -> impl Strategy<Value = Vec<Vec<usize>>> {
    proptest::collection::vec(proptest::collection::vec(0usize..400, 0..12), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn masks_do_not_depend_on_where_chunks_break(text in text(), chunkings in chunkings()) {
        assert_split_invariant(&plugin(serde_json::json!({})), &text, &chunkings);
    }

    #[test]
    fn refusals_do_not_depend_on_where_chunks_break(text in text(), chunkings in chunkings()) {
        let config = serde_json::json!({ "entities": { "payment-card": { "action": "block" }, "iban": { "action": "block" } } });
        assert_split_invariant(&plugin(config), &text, &chunkings);
    }

    #[test]
    fn any_text_at_all_is_inspected(text in ".{0,300}", chunkings in chunkings()) {
        assert_split_invariant(&plugin(serde_json::json!({ "threshold": 0.0 })), &text, &chunkings);
    }

    #[test]
    fn a_planted_value_never_leaves(before in "[a-zA-Z ,]{0,80}", after in "[a-zA-Z ,]{0,40}", cuts in proptest::collection::vec(0usize..160, 0..20)) {
        let pii = plugin(serde_json::json!({}));
        for value in ["jo.smith@example.com", "4111 1111 1111 1111", "GB29NWBK60161331926819", "308-63-0237", "86.231.85.193"] {
            let text = format!("{before} {value} {after}");
            let run = inspect(&pii, &MockContext::default(), &split(&text, &cuts)).unwrap();
            prop_assert!(!run.text.contains(value), "{} -> {}", text, run.text);
        }
    }

    #[test]
    fn no_more_is_held_back_than_a_match_could_need(text in text()) {
        let pii = plugin(serde_json::json!({}));
        let characters: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        let run = inspect(&pii, &MockContext::default(), &split(&text, &characters)).unwrap();
        prop_assert!(run.most_held <= 64 + 64 + 1 + 130, "{}", run.most_held);
    }
}

#[test]
fn prose_is_held_back_by_no_more_than_its_last_word() {
    let pii = Pii::configure(Config::default()).unwrap();
    let text =
        "In 2024 the quick brown foxes jumped over 13 lazy dogs; nobody was hurt. ".repeat(3);
    let characters: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    let run = inspect(&pii, &MockContext::default(), &split(&text, &characters)).unwrap();
    assert_eq!(run.text, text);
    assert!(run.most_held <= 8, "{}", run.most_held);
}
