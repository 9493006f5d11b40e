//! Millgate's inference core: it knows models, tokens and devices, and nothing of pipelines, plugins or HTTP.
//!
//! - [`Model::open`] reads a GGUF file (weights, tokenizer, chat template) and hands its weights to a device.
//! - [`Engine::start`] runs that model on a thread of its own, many requests at once.
//! - [`Engine::generate`] gives a [`Generation`], a stream of [`Event`]s; dropping it stops the work.
//!
//! Read it in the order of a token's way: `gguf` (the file) -> `tokenizer` and `chat` (text to tokens) ->
//! `engine` and `scheduler` (who is computed next, with `fairness`, `pace` and `prefix`) -> `config` and `llama` (the graph) -> `ops` (the operations that the
//! graph needs) -> `cpu` (those operations on a processor) -> `sampling` (logits to a token) -> `output`
//! (tokens to text that may leave).

pub mod bench;
mod chat;
mod config;
mod cpu;
mod engine;
mod error;
mod fairness;
mod gguf;
mod limits;
mod llama;
mod memory;
mod model;
mod ops;
mod output;
mod pace;
mod prefix;
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

pub use engine::{Engine, EngineOptions, Generation, Stats};
pub use error::{Error, Result};
pub use model::{Model, ModelInfo, ModelOptions, Precision};
pub use request::{
    ChatMessage, Event, Finish, FinishReason, GenerateRequest, Priority, Prompt, Sampling, Token,
    TokenScore, TopToken, Usage,
};
