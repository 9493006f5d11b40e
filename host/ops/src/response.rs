//! What the platform answers with: typed data that the server renders. Each piece of a stream is
//! meant to be written out at once.

use std::sync::Arc;

use bytes::Bytes;

use crate::{error::ApiError, executor::ResponseStream, id::TraceId, request::Endpoint};

pub use crate::responses::Echoed;

/// The answer to one request.
pub struct Response {
    /// The request's trace: for the `x-millgate-trace` header and for ids (`chatcmpl-…`).
    pub trace: TraceId,
    /// The model name that the client asked for.
    pub model: Arc<str>,
    /// Seconds since 1970.
    pub created: u64,
    /// What was asked for.
    pub endpoint: Endpoint,
    /// Whether a stream tells its tokens at the end (`stream_options.include_usage`).
    pub include_usage: bool,
    /// What an answer of `/v1/responses` repeats of its request.
    pub echoed: Option<Echoed>,
    /// The answer.
    pub body: Body,
}

/// The body of a [`Response`].
pub enum Body {
    /// An upstream's JSON, as it came but for what stages changed. Its trace is durable already.
    Json(Bytes),
    /// A local model's answer. Its trace is durable already.
    Completion(Completion),
    /// Vectors of a local model. Their trace is durable already.
    Embeddings(Embeddings),
    /// A stream of events.
    Stream(Box<ResponseStream>),
}

/// The answer to `/v1/embeddings`.
#[derive(Clone, Debug, PartialEq)]
pub struct Embeddings {
    /// One for each input, of length 1.
    pub vectors: Vec<Vec<f32>>,
    /// Whether each is written as base64 of its little-endian numbers.
    pub base64: bool,
    /// Tokens that were read.
    pub tokens: u32,
}

/// A local model's whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// In the order of their index.
    pub choices: Vec<Choice>,
    /// Tokens.
    pub usage: Usage,
}

/// One of `n` answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// From 0.
    pub index: u32,
    /// The text, as the output stages left it.
    pub text: String,
    /// The calls of tools, in order.
    pub tool_calls: Vec<ToolCall>,
    /// Where asked for: the tokens whose text left as the model gave it.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// Why it ended.
    pub finish: FinishReason,
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// By which its result is given back.
    pub id: String,
    /// The tool.
    pub name: String,
    /// JSON, as the output stages left it.
    pub arguments: String,
}

/// A token and its probability.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Its text.
    pub text: String,
    /// Natural logarithm of its probability; `None` for a prompt's first token, which follows nothing.
    pub logprob: Option<f32>,
    /// The likeliest tokens at its place: text and logprob, best first.
    pub top: Vec<(String, f32)>,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its turn, or a stop string came.
    Stop,
    /// `max_tokens` or the context was reached.
    Length,
    /// A stage refused what came next.
    ContentFilter,
    /// The model called tools.
    ToolCalls,
}

impl FinishReason {
    /// OpenAI's word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::ContentFilter => "content_filter",
            FinishReason::ToolCalls => "tool_calls",
        }
    }
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of those, the ones taken from a cache.
    pub cached_tokens: u32,
    /// Tokens of the answers.
    pub completion_tokens: u32,
}

/// A piece of a streamed answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Server-sent events of an upstream, ready to be written as they are: whole `data: …` blocks,
    /// never the closing `[DONE]`.
    Raw(Bytes),
    /// Text of a local model that may leave.
    Delta(Delta),
    /// A call of a tool begins.
    ToolCall(ToolCallStart),
    /// Arguments of a call that has begun.
    ToolArguments {
        /// The choice's index.
        choice: u32,
        /// The call's index in the choice.
        index: u32,
        /// JSON; a piece of it.
        text: String,
    },
    /// One choice is complete.
    Finished {
        /// Its index.
        choice: u32,
        /// Why.
        reason: FinishReason,
    },
    /// Tokens of the request: once, after the last choice, where the client asked for it
    /// (`stream_options.include_usage`).
    Usage(Usage),
    /// A stage refused what came next: nothing more follows but [`Event::Done`].
    Blocked {
        /// The choice that was refused.
        choice: u32,
        /// What to tell the client.
        error: ApiError,
    },
    /// The answer broke off: nothing more follows but [`Event::Done`].
    Error(ApiError),
    /// The end: write `data: [DONE]`. The trace is durable (unless the config says otherwise).
    Done,
}

/// The beginning of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCallStart {
    /// The choice's index.
    pub choice: u32,
    /// The call's index in the choice.
    pub index: u32,
    /// By which its result is given back.
    pub id: String,
    /// The tool.
    pub name: String,
}

/// Text of one choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// The choice's index.
    pub choice: u32,
    /// The text; not empty unless tokens come with it.
    pub text: String,
    /// Where asked for: the tokens of this text.
    pub logprobs: Option<Vec<TokenLogprob>>,
}
