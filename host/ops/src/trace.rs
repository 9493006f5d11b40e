//! The record of one request: what each stage was given of what passed, what it decided, tokens,
//! timings, the end. Texts are not part of it; findings say where and why, never what.

use std::sync::Arc;

use millgate_sandbox::{Failure, Finding};
use millgate_store::Digest;
use serde::{Deserialize, Serialize};

use crate::{
    config::StageMode,
    id::TraceId,
    request::Endpoint,
    shadow::{Compared, Tapped},
};

/// The record of one request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct Trace {
    /// Its id; it sorts by the time of arrival.
    pub id: TraceId,
    /// Milliseconds since 1970 at which the request arrived.
    pub at_ms: u64,
    /// Who asked.
    #[serde(with = "crate::text")]
    pub tenant: Arc<str>,
    /// Which API.
    pub endpoint: Endpoint,
    /// Whether the answer was streamed.
    pub stream: bool,
    /// The model name that the client asked for.
    #[serde(with = "crate::text")]
    pub model: Arc<str>,
    /// The pipeline that served it.
    #[serde(with = "crate::text")]
    pub pipeline: Arc<str>,
    /// The config generation that it ran on.
    pub generation: u64,
    /// The arm that answered; empty where the request did not come that far.
    #[serde(with = "crate::text")]
    pub arm: Arc<str>,
    /// The arm's model in the config; empty where the request did not come that far.
    #[serde(with = "crate::text")]
    pub arm_model: Arc<str>,
    /// With what probability a request like this comes to this arm.
    pub propensity: f64,
    /// Why it came to this arm.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub route: String,
    /// The stages, in the order in which they ran.
    pub stages: Vec<StageRecord>,
    /// Tokens.
    pub tokens: Tokens,
    /// Times.
    pub timings: Timings,
    /// How it ended.
    pub finish: Finish,
    /// The code and the message that the client got, where it got an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorRecord>,
    /// Mean entropy of the answer's tokens in nats, where the model is the host's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<f64>,
    /// What it cost; 0 until prices are configured.
    pub cost: f64,
    /// Characters of the prompt's texts.
    pub prompt_chars: u64,
    /// Characters of the answer that left.
    pub completion_chars: u64,
    /// Scores of the evaluation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<ScoreRecord>,
    /// Why there are no scores, where the pipeline has an evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_scores: Option<String>,
    /// The texts, where the config keeps them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub texts: Option<TextDigests>,
}

/// What one stage did for one request, in one place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageRecord {
    /// The stage's name.
    #[serde(with = "crate::text")]
    pub stage: Arc<str>,
    /// Its plugin and version.
    #[serde(with = "crate::text")]
    pub plugin: Arc<str>,
    /// The plugin's digest.
    #[serde(with = "crate::text")]
    pub digest: Arc<str>,
    /// Where it stood.
    pub place: Place,
    /// Whether its verdicts count by its config.
    #[serde(default, skip_serializing_if = "StageMode::is_enforce")]
    pub mode: StageMode,
    /// Whether its verdict counted for this request. If not, it ran after the answer.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub enforced: bool,
    /// How a verdict that did not count compares with what became of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared: Option<Compared>,
    /// What a stage that is not enforced would have been given; it never leaves the process.
    #[serde(skip)]
    pub(crate) tapped: Vec<Tapped>,
    /// What it decided; the gravest of its verdicts.
    pub verdict: StageVerdict,
    /// Bytes of text that passed this place, whether the stage was given them or not: counted by
    /// the host. Parts that are no text (images, audio) count with their size in the request.
    pub passed: u64,
    /// Of those, the bytes that the stage was given and decided on.
    pub given: u64,
    /// Changes that it made.
    pub edits: u32,
    /// Evidence, without text; at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// Findings beyond those.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub findings_dropped: u32,
    /// Calls of the plugin.
    pub calls: u32,
    /// Microseconds in the plugin and its sandbox.
    pub micros: u64,
    /// The call that failed, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureRecord>,
}

fn yes() -> bool {
    true
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over references"
)]
fn is_true(value: &bool) -> bool {
    *value
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The most findings kept in a trace for one stage.
pub(crate) const MAX_FINDINGS: usize = 64;

impl StageRecord {
    /// Raises the verdict; a graver one stays.
    pub(crate) fn raise(&mut self, verdict: StageVerdict) {
        self.verdict = self.verdict.max(verdict);
    }

    /// Keeps findings, up to the bound.
    pub(crate) fn add_findings(&mut self, mut findings: Vec<Finding>) {
        let room = MAX_FINDINGS.saturating_sub(self.findings.len());
        let dropped = findings.len().saturating_sub(room);
        findings.truncate(room);
        self.findings_dropped += u32::try_from(dropped).unwrap_or(u32::MAX);
        self.findings.append(&mut findings);
    }

    /// Notes a failed call.
    pub(crate) fn fail(&mut self, failure: &Failure, closed: bool) {
        self.raise(if closed {
            StageVerdict::FailedClosed
        } else {
            StageVerdict::FailedOpen
        });
        if self.failure.is_none() {
            self.failure = Some(FailureRecord {
                kind: failure.kind().into(),
                message: failure.to_string(),
            });
        }
    }
}

/// Where a stage stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// On the request.
    Input,
    /// On the answer.
    Output,
    /// Between them, picking the arm.
    Deployment,
    /// After the answer, scoring it.
    Evaluation,
}

/// What a stage decided, from the lightest to the gravest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageVerdict {
    /// It was not asked: the request ended before, or there was no text.
    NotRun,
    /// Everything passed as it was.
    Pass,
    /// It changed the text.
    Edit,
    /// It corrected the request.
    Repair,
    /// It made the model say something again.
    Regenerate,
    /// A call failed, and the text passed unchecked, as its policy says.
    FailedOpen,
    /// It refused the request.
    Reject,
    /// It refused the text.
    Block,
    /// A call failed, and the request was refused, as its policy says.
    FailedClosed,
}

impl StageVerdict {
    /// All of them, in their order.
    pub const ALL: [StageVerdict; 9] = [
        StageVerdict::NotRun,
        StageVerdict::Pass,
        StageVerdict::Edit,
        StageVerdict::Repair,
        StageVerdict::Regenerate,
        StageVerdict::FailedOpen,
        StageVerdict::Reject,
        StageVerdict::Block,
        StageVerdict::FailedClosed,
    ];

    /// Its name in traces, metrics and filters.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            StageVerdict::NotRun => "not-run",
            StageVerdict::Pass => "pass",
            StageVerdict::Edit => "edit",
            StageVerdict::Repair => "repair",
            StageVerdict::Regenerate => "regenerate",
            StageVerdict::FailedOpen => "failed-open",
            StageVerdict::Reject => "reject",
            StageVerdict::Block => "block",
            StageVerdict::FailedClosed => "failed-closed",
        }
    }
}

/// A failed call of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureRecord {
    /// `trap`, `timeout`, `memory`, `oversized`, `invalid`, `error` or `unavailable`.
    pub kind: String,
    /// What happened.
    pub message: String,
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Of those, the ones taken from a cache.
    pub cached: u32,
    /// Tokens of the answers.
    pub completion: u32,
}

/// Times in microseconds from the arrival.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// How long it waited for the model.
    pub queue: u64,
    /// Until the model's first token, or the upstream's first byte.
    pub ttft: u64,
    /// Until the end.
    pub total: u64,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finish {
    /// The model ended its turn.
    Stop,
    /// `max_tokens` or the context was reached.
    Length,
    /// The model called a tool.
    ToolCalls,
    /// A compliance stage refused the text.
    Blocked,
    /// A validation stage refused the request.
    Rejected,
    /// The client went away.
    Cancelled,
    /// Something failed.
    Error,
    /// Something else that an upstream said.
    Other,
}

impl Finish {
    /// Its name in traces, metrics and filters.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::ToolCalls => "tool-calls",
            Finish::Blocked => "blocked",
            Finish::Rejected => "rejected",
            Finish::Cancelled => "cancelled",
            Finish::Error => "error",
            Finish::Other => "other",
        }
    }

    /// What an upstream's `finish_reason` means.
    pub(crate) fn of_reason(reason: &str) -> Self {
        match reason {
            "stop" => Finish::Stop,
            "length" => Finish::Length,
            "tool_calls" | "function_call" => Finish::ToolCalls,
            "content_filter" => Finish::Blocked,
            _ => Finish::Other,
        }
    }
}

/// An error that a client got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorRecord {
    /// The HTTP status; on a stream that had begun, the one it would have had.
    pub status: u16,
    /// The code.
    pub code: String,
    /// The message.
    pub message: String,
}

/// A score of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoreRecord {
    /// Such as `rouge-l`.
    pub name: String,
    /// The score.
    pub value: f64,
}

/// Where the texts of a request are kept, as blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextDigests {
    /// The request as the input stages left it.
    pub input: Digest,
    /// The answer as the output stages left it.
    pub output: Digest,
}
