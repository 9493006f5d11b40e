//! Testing a plugin natively: a mock host, and the runs that a real host would make.

use std::cell::RefCell;
use std::collections::BTreeMap;

pub(crate) mod host;
#[cfg(feature = "testing")]
mod manifest;
#[cfg(feature = "testing")]
pub use manifest::{assert_manifest, configure_checked, manifest};

use crate::{Compliance, Context, Decision, Direction, Edit, Finding, Plugin, StageError};

/// A request that does not exist. Fill in what the plugin looks at.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the getters of `Context` describe them")]
pub struct MockContext {
    pub trace_id: String,
    pub tenant: String,
    pub model: String,
    pub stage: String,
    pub direction: Direction,
    pub role: String,
    pub language: String,
    pub now_ms: u64,
    pub seed: u64,
}

impl Default for MockContext {
    fn default() -> Self {
        MockContext {
            trace_id: "00000000000000000000000000000001".into(),
            tenant: "default".into(),
            model: "default".into(),
            stage: "test".into(),
            direction: Direction::Input,
            role: "user".into(),
            language: String::new(),
            now_ms: 1_700_000_000_000,
            seed: 1,
        }
    }
}

impl MockContext {
    /// The context as the plugin gets it.
    #[must_use]
    pub fn context(&self) -> Context<'_> {
        Context::new(self)
    }

    pub(crate) fn anonymous() -> &'static MockContext {
        static ANONYMOUS: std::sync::OnceLock<MockContext> = std::sync::OnceLock::new();
        ANONYMOUS.get_or_init(MockContext::default)
    }

    pub(crate) fn trace_id(&self) -> String {
        self.trace_id.clone()
    }
    pub(crate) fn tenant(&self) -> String {
        self.tenant.clone()
    }
    pub(crate) fn model(&self) -> String {
        self.model.clone()
    }
    pub(crate) fn stage(&self) -> String {
        self.stage.clone()
    }
    pub(crate) fn direction(&self) -> Direction {
        self.direction
    }
    pub(crate) fn role(&self) -> String {
        self.role.clone()
    }
    pub(crate) fn language(&self) -> String {
        self.language.clone()
    }
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms
    }
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }
}

/// Makes a plugin from its config as JSON, as the host does.
///
/// # Errors
/// Those of the plugin's `configure`, and `invalid-config` when the JSON does not fit.
pub fn configure<P: Plugin>(config: &serde_json::Value) -> Result<P, StageError> {
    crate::plugin::configure(&config.to_string())
}

/// What came of a segment.
#[derive(Debug, Clone, PartialEq)]
pub struct Inspected {
    /// The text that left, with the edits applied.
    pub text: String,
    /// All edits.
    pub edits: Vec<Edit>,
    /// All findings.
    pub findings: Vec<Finding>,
    /// The first decision that was not `pass`, or `pass`.
    pub decision: Decision,
    /// The most bytes that were held back after any push.
    pub most_held: usize,
}

/// Runs a segment through a plugin, chunk by chunk, with the checks that the host makes: offsets
/// never go back, edits lie in newly settled text, and at the end all is settled.
///
/// # Errors
/// Those of the plugin; and `invalid-verdict` for an answer that the host would discard.
pub fn inspect<P: Compliance>(
    plugin: &P,
    ctx: &MockContext,
    chunks: &[&str],
) -> Result<Inspected, StageError> {
    let whole: String = chunks.concat();
    let mut inspection = plugin.begin(&ctx.context());
    let mut run = Inspected {
        text: String::new(),
        edits: Vec::new(),
        findings: Vec::new(),
        decision: Decision::Pass,
        most_held: 0,
    };
    let mut settled = 0;
    let mut pushed = 0;
    for (number, chunk) in chunks.iter().map(Some).chain([None]).enumerate() {
        let verdict = match chunk {
            Some(chunk) => {
                pushed += chunk.len();
                plugin.push(&mut inspection, &[String::from(*chunk)])?
            }
            None => plugin.finish(&mut inspection)?,
        };
        let to = verdict.settled as usize;
        let bad = |what: &str| {
            Err(StageError::internal(
                "invalid-verdict",
                format!("answer {number}: {what}; it was {verdict:?}"),
            ))
        };
        if to < settled || to > pushed || !whole.is_char_boundary(to) {
            return bad("`settled` went back, beyond the text, or off a character boundary");
        }
        let mut at = settled;
        for edit in &verdict.edits {
            let range = edit.span.range();
            if range.start < at
                || range.end < range.start
                || range.end > to
                || whole.get(range.clone()).is_none()
            {
                return bad(
                    "an edit is out of order, off a boundary, or outside the newly settled text",
                );
            }
            run.text.push_str(&whole[at..range.start]);
            run.text.push_str(&edit.replacement);
            at = range.end;
        }
        run.text.push_str(&whole[at..to]);
        settled = to;
        run.most_held = run.most_held.max(pushed - settled);
        run.edits.extend(verdict.edits.iter().cloned());
        run.findings.extend(verdict.findings.iter().cloned());
        if verdict.decision != Decision::Pass {
            run.decision = verdict.decision;
            return Ok(run);
        }
        if chunk.is_none() && settled != whole.len() {
            return bad("`finish` left text unsettled");
        }
    }
    Ok(run)
}

/// Panics if a plugin's result depends on where the chunks break. Each chunking is a list of
/// positions to cut at; positions inside a character move to its start. The whole text at once and
/// every character by itself are always tried.
#[allow(clippy::panic, reason = "an assertion for tests")]
pub fn assert_split_invariant<P: Compliance>(plugin: &P, text: &str, chunkings: &[Vec<usize>]) {
    let ctx = MockContext::default();
    let run = |chunks: &[&str]| {
        inspect(plugin, &ctx, chunks).map(|run| Inspected {
            most_held: 0,
            ..run
        })
    };
    let whole = run(&[text]);
    if let Err(error) = &whole
        && error.code == "invalid-verdict"
    {
        panic!("{}", error.message);
    }
    let characters: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    for cuts in chunkings.iter().chain([&characters]) {
        let chunks = split(text, cuts);
        let pieces = run(&chunks);
        assert!(
            pieces == whole,
            "cut into {chunks:?}\n  {pieces:?}\nbut at once\n  {whole:?}"
        );
    }
}

/// Cuts a text at the given offsets.
#[must_use]
pub fn split<'a>(text: &'a str, cuts: &[usize]) -> Vec<&'a str> {
    let mut cuts: Vec<usize> = cuts
        .iter()
        .map(|&at| text.floor_char_boundary(at))
        .collect();
    cuts.push(text.len());
    cuts.sort_unstable();
    cuts.dedup();
    let mut from = 0;
    cuts.into_iter()
        .map(|to| &text[core::mem::replace(&mut from, to)..to])
        .collect()
}

/// What the plugin said to the mock host on this thread.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// The log lines.
    pub log: Vec<(crate::log::Level, String)>,
    /// The counters.
    pub counters: BTreeMap<String, u64>,
    /// The gauges.
    pub gauges: BTreeMap<String, f64>,
    /// The key-value space.
    pub state: BTreeMap<String, Vec<u8>>,
}

thread_local! {
    static HEARD: RefCell<Heard> = RefCell::default();
}

/// Takes what this thread's mock host has heard, and starts it anew.
#[must_use]
pub fn take_heard() -> Heard {
    HEARD.take()
}
