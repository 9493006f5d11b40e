//! What can go wrong, each with what to do about it.

use std::path::PathBuf;
use std::time::Duration;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the inference core.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model file could not be opened or mapped.
    #[error("{}: {source}; check that the path names a readable GGUF file or a model folder", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The model file is truncated, or a field of it lies. Download the file again, or convert it anew.
    #[error("not a valid GGUF file: {0}")]
    Gguf(String),
    /// A Hugging Face folder lacks a file, or a field of one lies. Download the folder again.
    #[error("not a valid model folder: {0}")]
    Folder(String),
    /// The file is sound, but holds something that this version cannot run.
    #[error("unsupported model: {0}")]
    Unsupported(String),
    /// An adapter's folder is not sound, or is for another base. What it says names the field or the tensor.
    #[error("adapter: {0}")]
    Adapter(String),
    /// The chat template failed on these messages.
    #[error("chat template: {0}")]
    Template(String),
    /// A field of the request is out of its range.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// The request's grammar can not be followed, or not by this core. What it says names the keyword.
    #[error("{0}")]
    Grammar(String),
    /// The prompt (and the answer text to continue) leaves no room for a token in the model's context.
    #[error(
        "the prompt has {tokens} tokens, but the model's context holds {limit}; shorten the prompt"
    )]
    ContextExceeded {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens that the context holds.
        limit: usize,
    },
    /// The prompt leaves no room for a token in the KV memory, though the model's context would hold it.
    #[error(
        "the prompt has {tokens} tokens, but the KV memory (`kv_bytes`) holds {limit}; shorten the prompt, or give the engine more memory"
    )]
    KvTooSmall {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens that the KV memory holds.
        limit: usize,
    },
    /// Too many requests wait already, and none of them is of a tenant that has more than its share of the queue.
    /// Also what a waiting request gets that has to make room for another tenant's.
    #[error(
        "the queue is full ({waiting} requests wait); try again in {} s",
        retry_after.as_secs_f64().ceil()
    )]
    QueueFull {
        /// Requests that wait.
        waiting: usize,
        /// When half of them are expected to have left, from 1 to 60 seconds.
        retry_after: Duration,
    },
    /// The request's `deadline` passed before its answer was complete.
    #[error(
        "the deadline passed {}; allow more time, or ask for fewer tokens",
        generated.map_or("while the request waited".into(), |count| format!("after {count} tokens of the answer"))
    )]
    DeadlineExceeded {
        /// Tokens of the answer that there were; `None`: it was never begun.
        generated: Option<u32>,
    },
    /// Resampling did not find a text without the strings of `ban`.
    #[error("no text without the banned strings was found in {0} attempts")]
    BanExhausted(u32),
    /// The engine was shut down, or its thread ended.
    #[error("the inference engine has stopped")]
    Stopped,
    /// The device failed, or has no memory for what was asked.
    #[error("device: {0}")]
    Device(String),
}
