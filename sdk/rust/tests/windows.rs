//! The streams that the SDK makes of a check of windows: the same result wherever chunks break, and
//! nothing lost at a cut.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use millgate_sdk::prelude::*;
use millgate_sdk::testing::{MockContext, assert_split_invariant, inspect, split, take_heard};
use proptest::prelude::*;

/// Masks `xx`, notes `yy`, refuses `zz`.
struct Letters(Window);

#[derive(Deserialize)]
struct Config {}

impl Plugin for Letters {
    type Config = Config;

    fn configure(_: Config) -> Result<Self, StageError> {
        Ok(Letters(Window::Whole))
    }
}

impl Windowed for Letters {
    fn window(&self) -> Window {
        self.0
    }

    fn check(&self, _: &Segment, window: &str) -> Checked {
        let mut checked = Checked::pass();
        for (at, found) in window.match_indices("xx") {
            checked.replace(
                at..at + found.len(),
                "**",
                Finding::new("x", 1.0, "two of them"),
            );
        }
        for (at, found) in window.match_indices("yy") {
            checked.note(Finding::new("y", 1.0, "two of them").at(at..at + found.len()));
        }
        if let Some(at) = window.find("zz") {
            checked.block(
                "z",
                "No.",
                Finding::new("z", 1.0, "two of them").at(at..at + 2),
            );
        }
        // Insertions at both ends, and a remark about the whole.
        checked
            .edits
            .push(Edit::new(window.len()..window.len(), "|"));
        checked.note(Finding::new("window", 0.5, "seen"));
        checked
    }
}

fn windows() -> impl Strategy<Value = Window> {
    prop_oneof![
        Just(Window::Whole),
        (4usize..40).prop_map(|max| Window::Lines { max }),
        (4usize..40).prop_map(|max| Window::Sentences { max }),
        (16usize..24).prop_map(|longest| Window::Matches { longest }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_result_does_not_depend_on_where_chunks_break(
        window in windows(),
        text in prop_oneof!["[xyz.! \n]{0,120}", "[xy.é請 \n]{0,120}", ".{0,80}"],
        chunkings in proptest::collection::vec(proptest::collection::vec(0usize..200, 0..8), 0..5),
    ) {
        assert_split_invariant(&Letters(window), &text, &chunkings);
    }

    #[test]
    fn a_match_across_the_cuts_of_matches_is_found(before in "[a-w é]{0,90}", after in "[a-w ]{0,60}", cuts in proptest::collection::vec(0usize..150, 0..8)) {
        // Without the two letters themselves in what surrounds them.
        let text = format!("{before}xx{after}");
        let plugin = Letters(Window::Matches { longest: 16 });
        let run = inspect(&plugin, &MockContext::default(), &split(&text, &cuts)).unwrap();
        prop_assert_eq!(run.findings.iter().filter(|finding| finding.rule == "x").count(), 1);
        prop_assert!(!run.text.contains("xx"));
        prop_assert!(run.most_held <= 32 + 16);
    }
}

#[test]
fn lines_leave_as_soon_as_they_end() {
    let plugin = Letters(Window::Lines { max: 100 });
    let mut held = plugin.begin(&MockContext::default().context());
    let mut settled = |text: &str| plugin.push(&mut held, &[text.to_owned()]).unwrap().settled;
    assert_eq!(settled("one\ntw"), 4);
    assert_eq!(settled("o"), 4);
    assert_eq!(settled("\nthree\nfour"), 14);
}

#[test]
fn sentences_end_before_white_space_and_not_inside_a_number() {
    let plugin = Letters(Window::Sentences { max: 100 });
    let text = "It costs 3.50 today. \"Really?\" Yes.\nGood";
    let run = inspect(&plugin, &MockContext::default(), &[text]).unwrap();
    assert_eq!(run.text, "It costs 3.50 today. |\"Really?\" |Yes.\n|Good|");
}

#[test]
fn a_refusal_stops_before_its_window_and_keeps_its_evidence() {
    let plugin = Letters(Window::Lines { max: 100 });
    let run = inspect(&plugin, &MockContext::default(), &["xx\nzz\nyy\n"]).unwrap();
    assert_eq!(run.text, "**\n|");
    assert!(run.findings.iter().any(|finding| finding.rule == "z"));
    assert!(matches!(run.decision, Decision::Block(refusal) if refusal.code == "z"));
}

/// Takes back everything behind `<` in a line, once.
struct Rewinder;

impl Plugin for Rewinder {
    type Config = Config;

    fn configure(_: Config) -> Result<Self, StageError> {
        Ok(Rewinder)
    }
}

impl Windowed for Rewinder {
    fn window(&self) -> Window {
        Window::Lines { max: 100 }
    }

    fn check(&self, _: &Segment, line: &str) -> Checked {
        let mut checked = Checked::pass();
        if let Some(at) = line.find('<') {
            log::info("taken back");
            checked.decision = Decision::Regenerate(Regeneration {
                keep: at as u32,
                ban: vec!["<".into()],
                reason: Refusal::new("bracket", "No brackets."),
            });
        }
        checked
    }
}

#[test]
fn after_a_regeneration_the_text_goes_on_from_where_it_was_kept() {
    let mut held = Rewinder.begin(&MockContext::default().context());
    let verdict = Rewinder
        .push(&mut held, &["one\ntwo <b>\n".into()])
        .unwrap();
    assert_eq!(verdict.settled, 4);
    let Decision::Regenerate(regeneration) = verdict.decision else {
        panic!()
    };
    assert_eq!(regeneration.keep, 8);
    assert_eq!(take_heard().log.len(), 1);
    let verdict = Rewinder.push(&mut held, &["three\n".into()]).unwrap();
    assert_eq!((verdict.settled, verdict.decision), (14, Decision::Pass));
    assert_eq!(Rewinder.finish(&mut held).unwrap().settled, 14);
}

/// A check that returns nonsense.
struct Wild;

impl Plugin for Wild {
    type Config = Config;

    fn configure(_: Config) -> Result<Self, StageError> {
        Ok(Wild)
    }
}

impl WholeText for Wild {
    fn check(&self, _: &Segment, text: &str) -> Checked {
        let mut checked = Checked::pass();
        checked.replace(
            0..text.len() + 1,
            "",
            Finding::new("wild", 1.0, "beyond the end"),
        );
        checked
    }
}

#[test]
fn a_span_outside_the_window_is_an_error_that_says_so() {
    let error = inspect(&Wild, &MockContext::default(), &["text"]).unwrap_err();
    assert_eq!(error.code, "span-out-of-range");
}
