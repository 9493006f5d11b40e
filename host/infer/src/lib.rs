//! Millgate's inference core: it knows models, tokens and devices, and nothing of pipelines, plugins or HTTP.
//!
//! - [`Model::open`] reads a GGUF file (weights, tokenizer, chat template) and hands its weights to a device.
//! - [`Engine::start`] runs that model on a thread of its own, many requests at once.
//! - [`Engine::generate`] gives a [`Generation`], a stream of [`Event`]s; dropping it stops the work.
//!
//! Read it in the order of a token's way: `gguf` (the file) -> `tokenizer` and `chat` (text to tokens) ->
//! `engine` and `scheduler` (who is computed next) -> `config` and `llama` (the graph) -> `ops` (the operations that the
//! graph needs) -> `cpu` (those operations on a processor) -> `grammar` (which tokens may come) and `sampling` (logits to a token) -> `output`
//! (tokens to text that may leave).

mod chat;
mod config;
mod cpu;
mod engine;
mod error;
mod gguf;
mod grammar;
#[cfg(test)]
mod grammar_tests;
mod llama;
mod memory;
mod model;
mod ops;
mod output;
mod quant;
mod request;
mod sampling;
mod scheduler;
mod sentencepiece;
mod sequence;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tokenizer;
mod tools;

pub use engine::{Engine, EngineOptions, Generation, Stats};
pub use error::{Error, Result};
pub use grammar::Grammar;
pub use model::{Model, ModelInfo, ModelOptions, Precision};
pub use request::{
    ChatMessage, Event, Finish, FinishReason, GenerateRequest, Priority, Prompt, Sampling, Token,
    TokenScore, TopToken, Usage,
};
pub use tools::{CALL_BEGINS, CALL_ENDS, Tool, ToolCall};
