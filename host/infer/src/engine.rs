//! The engine: a model that runs on a thread of its own and serves many requests at once.

use std::sync::Arc;

use crate::{Error, Event, GenerateRequest, Model, Result, TokenScore};

/// How an engine is set up.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Threads that compute; 0 takes one for each physical core.
    pub threads: usize,
    /// Requests that are computed at once.
    pub max_sequences: usize,
    /// Requests that may wait beyond those; one more is refused with [`Error::QueueFull`].
    pub queue: usize,
    /// Memory for the keys and values of all requests, in bytes.
    pub kv_bytes: usize,
    /// Prompt tokens computed in one step, so that a long prompt does not stall the other requests.
    pub prefill_chunk: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            threads: 0,
            max_sequences: 16,
            queue: 64,
            kv_bytes: 512 << 20,
            prefill_chunk: 256,
        }
    }
}

/// Counts and gauges of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Requests that wait.
    pub queued: usize,
    /// Requests that are being computed.
    pub active: usize,
    /// Requests finished since the start, cancelled ones included.
    pub finished: u64,
    /// Requests whose client went away.
    pub cancelled: u64,
    /// Requests refused because the queue was full.
    pub refused: u64,
    /// Requests set back to free KV memory for older ones.
    pub preempted: u64,
    /// Prompt tokens computed since the start.
    pub prompt_tokens: u64,
    /// Tokens generated since the start.
    pub generated_tokens: u64,
    /// KV memory in use, in bytes.
    pub kv_bytes_used: usize,
    /// KV memory in all, in bytes.
    pub kv_bytes_total: usize,
}

/// A handle to a running engine; clones share it. The engine ends when the last handle is dropped.
#[derive(Clone)]
pub struct Engine {
    model: Arc<Model>,
}

impl Engine {
    /// Starts the engine's threads and sets its KV memory aside.
    pub fn start(model: Arc<Model>, options: EngineOptions) -> Result<Self> {
        let _ = options;
        Ok(Self { model })
    }

    /// The model that it runs.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Queues a request. Fails at once with [`Error::QueueFull`], [`Error::ContextExceeded`],
    /// [`Error::Invalid`] or [`Error::Template`].
    pub fn generate(&self, request: GenerateRequest) -> Result<Generation> {
        let _ = request;
        Err(Error::Stopped)
    }

    /// How likely each token of a text is after those before it.
    pub async fn score(&self, text: &str) -> Result<Vec<TokenScore>> {
        let _ = text;
        Err(Error::Stopped)
    }

    /// One vector for each text: the mean of the last hidden states, of length 1.
    pub async fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>> {
        let _ = texts;
        Err(Error::Stopped)
    }

    /// Counts and gauges, for metrics.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }
}

/// A request under way. Dropping it cancels the request within one token.
pub struct Generation {
    events: tokio::sync::mpsc::UnboundedReceiver<Event>,
}

impl Generation {
    /// The next event; `None` after [`Event::Finished`] or [`Event::Failed`].
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The next event, for callers without an asynchronous runtime.
    pub fn next_blocking(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }
}
