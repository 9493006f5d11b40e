//! What is asked of the engine, and what comes back: plain data.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::Adapter;
use crate::grammar::Grammar;
use crate::tools::{Tool, ToolCall};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, or whatever else the model's template knows.
    pub role: String,
    /// The text. It can not forge special tokens: they are read in the template's own text alone.
    pub content: String,
    /// The calls of tools that an assistant's message made after its text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

impl ChatMessage {
    /// A message of this role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            tool_calls: Vec::new(),
        }
    }
}

/// What the model is to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A conversation, rendered with the model's chat template and an opened assistant turn.
    Chat(Vec<ChatMessage>),
    /// A conversation in which tools may be called, or were. How a call is written: [`Grammar::Tools`].
    Tools {
        /// The messages; a result has the role `tool`.
        messages: Vec<ChatMessage>,
        /// What the model is told of; none where there are only calls of before.
        tools: Vec<Tool>,
    },
    /// Plain text; special tokens written in it are not special.
    Text(String),
    /// Token ids as they are.
    Tokens(Vec<u32>),
}

/// How the next token is picked from the logits. Applied in the order: logit bias, penalties, temperature,
/// top-k, top-p, min-p.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy; 1 samples from the model's own distribution.
    pub temperature: f32,
    /// Keep the k likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the likeliest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens of at least this share of the likeliest token's probability; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or answer (CTRL, arXiv:1909.05858); 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from a token's logit for each time the answer holds it (OpenAI); 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted from a token's logit when the answer holds it at all (OpenAI); 0 is off.
    pub presence_penalty: f32,
    /// The same seed on the same request gives the same answer, whatever else is in the batch. `None` draws one.
    pub seed: Option<u64>,
    /// Added to the logits of these tokens. -100 or less bans a token.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: None,
            logit_bias: Vec::new(),
        }
    }
}

impl Sampling {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }
}

/// Who goes first when requests wait. Within one priority the tenant that has had the least goes first, and of one
/// tenant's requests the one that came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// Work that may wait: stages' own calls, shadow arms, evaluations.
    Low,
    /// A client's request.
    #[default]
    Normal,
    /// Before all others.
    High,
}

/// Who asks for a score or an embedding, and how urgently: what a [`GenerateRequest`] says of itself in the fields of
/// the same names.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// Its place in the queue.
    pub priority: Priority,
    /// Whose request it is.
    pub tenant: Arc<str>,
    /// Who may share what was computed for equal beginnings.
    pub cache_salt: u64,
    /// When the result is worth nothing any more.
    pub deadline: Option<Instant>,
}

/// One text to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// What the model continues.
    pub prompt: Prompt,
    /// Answer text already given; the new text goes on after it. It is not repeated in the events.
    pub continuation: String,
    /// How tokens are picked.
    pub sampling: Sampling,
    /// At most this many new tokens; `None` is [`GenerateRequest::DEFAULT_MAX_TOKENS`]. Always bounded by the context.
    pub max_tokens: Option<u32>,
    /// The answer ends before the first of these strings. No part of one is ever sent before it is known not to be one.
    pub stop: Vec<String>,
    /// Strings that the new text may not contain: the engine rewinds to before one and samples another token there.
    pub ban: Vec<String>,
    /// With each token, its n likeliest alternatives (at most 20).
    pub logprobs: Option<u8>,
    /// What the answer must look like: only tokens that follow it are picked, and it ends only where it is
    /// complete, or at `max_tokens`. The continuation, where there is one, is a part of that answer.
    pub grammar: Option<Grammar>,
    /// The adapter that it is computed with, of the same model; `None` is the model itself.
    pub adapter: Option<Arc<Adapter>>,
    /// Its place in the queue.
    pub priority: Priority,
    /// Whose request it is. Tenants whose requests wait are served equally many tokens, and share the queue; the name
    /// means nothing else. Empty by default.
    pub tenant: Arc<str>,
    /// Requests share what was computed for equal beginnings of their prompts only where this number is the same.
    /// A request that finds such a beginning is answered faster, so give tenants that must not learn of each other's
    /// prompts different numbers. 0 by default.
    pub cache_salt: u64,
    /// When the answer is worth nothing any more: the request then ends with [`crate::Error::DeadlineExceeded`],
    /// whether it waits or is being answered. `None` by default: it may take any time.
    pub deadline: Option<Instant>,
}

impl GenerateRequest {
    /// What `max_tokens: None` means.
    pub const DEFAULT_MAX_TOKENS: u32 = 1024;

    /// A request with default sampling and no limits of its own.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            continuation: String::new(),
            sampling: Sampling::default(),
            max_tokens: None,
            stop: Vec::new(),
            ban: Vec::new(),
            logprobs: None,
            grammar: None,
            adapter: None,
            priority: Priority::Normal,
            tenant: Arc::default(),
            cache_salt: 0,
            deadline: None,
        }
    }

    /// Who asks for it.
    pub fn caller(&self) -> Caller {
        Caller {
            priority: self.priority,
            tenant: Arc::clone(&self.tenant),
            cache_salt: self.cache_salt,
            deadline: self.deadline,
        }
    }
}

/// What a [`crate::Generation`] yields: `Started`, then `Token`s, then `Finished`; or `Failed` at any point.
#[derive(Debug)]
pub enum Event {
    /// The request left the queue.
    Started {
        /// Tokens of the prompt, the continuation included.
        prompt_tokens: u32,
        /// How many of them were not computed, because their KV pages were at hand.
        cached_tokens: u32,
    },
    /// A token whose text may leave.
    Token(Token),
    /// The end.
    Finished(Finish),
    /// The end, with an error.
    Failed(crate::Error),
}

/// One generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id in the model's vocabulary.
    pub id: u32,
    /// Its text: whole characters, without the part that a stop string cut off. Empty where the character
    /// that it begins is completed by a later token.
    pub text: String,
    /// Its natural-log probability under the model, before temperature and filters.
    pub logprob: f32,
    /// The likeliest tokens at its place, best first; as many as asked for.
    pub top: Vec<TopToken>,
    /// Entropy of the model's distribution at its place, in nats.
    pub entropy: f32,
}

/// A token that could have been.
#[derive(Debug, Clone, PartialEq)]
pub struct TopToken {
    /// Its id.
    pub id: u32,
    /// Its bytes as text; incomplete characters are U+FFFD.
    pub text: String,
    /// Its natural-log probability.
    pub logprob: f32,
}

/// How likely a token of a given text was ([`crate::Engine::score`]).
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScore {
    /// Its id.
    pub id: u32,
    /// Its bytes as text; incomplete characters are U+FFFD.
    pub text: String,
    /// Its natural-log probability after the tokens before it; `None` for the first token, which follows nothing.
    pub logprob: Option<f32>,
    /// Entropy of the model's distribution at its place, in nats; 0 for the first token.
    pub entropy: f32,
    /// The likeliest tokens at its place, best first; as many as asked for.
    pub top: Vec<TopToken>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FinishReason {
    /// The model ended its turn, or a stop string came.
    Stop,
    /// `max_tokens` or the context was reached.
    Length,
    /// The engine was shut down.
    Cancelled,
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt, the continuation included.
    pub prompt_tokens: u32,
    /// Of those, the ones that were not computed.
    pub cached_tokens: u32,
    /// Tokens of the answer, those of a stop string and the end-of-turn token included.
    pub completion_tokens: u32,
}

/// The end of a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// Tokens.
    pub usage: Usage,
    /// From the call to the first step.
    pub queue_time: Duration,
    /// From the first step to the first token.
    pub prefill_time: Duration,
    /// From the first token to the last.
    pub decode_time: Duration,
    /// The stop string that ended it.
    pub stop_text: Option<String>,
}
