//! Millgate's inference core: it knows models, tokens and devices, and nothing of pipelines, plugins or HTTP.
//!
//! - [`Model::open`] reads a GGUF file or a Hugging Face folder (weights, tokenizer, chat template) and hands its
//!   weights to a device.
//! - [`Engine::start`] runs that model on a thread of its own, many requests at once.
//! - [`Engine::generate`] gives a [`Generation`], a stream of [`Event`]s; dropping it stops the work.
//!
//! Read it in the order of a token's way: `gguf` (the file), or `folder` and `safetensors` -> `tokenizer` (with
//! `sentencepiece` and `json_encoding`) and `chat` (text to tokens) -> `engine` and `scheduler` (who is computed next, with `fairness`,
//! `pace` and `prefix`)
//! -> `network` (what runs a step) -> `keys` and `config` (a decoder's numbers), `weights` (its tensors) and `decoder`
//! (its graph), or `encoder` (BERT's) -> `ops` (the operations that the graphs need) -> `cpu` (those operations on a
//! processor; `quant` knows the tensor types) or `cuda` (on a GPU; `device` chooses) -> `grammar` (which tokens may come)
//! and `sampling` (logits to a token) -> `output` (tokens to text that may leave). `explain` asks the engine what parts
//! of a prompt (`units`) an answer hangs on.

mod adapter;
pub mod bench;
mod chat;
mod config;
mod cpu;
mod cuda;
mod decoder;
mod device;
mod encoder;
mod engine;
mod error;
mod explain;
mod fairness;
mod folder;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gguf;
mod grammar;
#[cfg(test)]
mod grammar_tests;
mod json_encoding;
mod keys;
mod limits;
mod low_rank;
mod memory;
mod model;
mod network;
mod ops;
mod output;
mod pace;
mod prefix;
mod quant;
mod request;
mod safetensors;
mod sampling;
mod scheduler;
mod sentencepiece;
mod sequence;
#[cfg(any(test, fuzzing))]
mod testing;
#[cfg(test)]
mod tests;
mod tokenizer;
mod tools;
mod units;
mod weights;

pub use device::{DeviceChoice, Gpu, GpuReport, gpus};
pub use engine::{Engine, EngineOptions, Generation, Stats};
pub use error::{Error, Result};
pub use explain::{Attribution, ExplainRequest, ExplainedToken, Explanation};
pub use grammar::Grammar;
pub use model::{Adapter, Model, ModelInfo, ModelKind, ModelOptions, Precision};
pub use request::{
    Caller, ChatMessage, Event, Finish, FinishReason, GenerateRequest, Priority, Prompt, Sampling,
    Token, TokenScore, TopToken, Usage,
};
pub use tools::{CALL_BEGINS, CALL_ENDS, Tool, ToolCall};
pub use units::{PromptUnit, Unit};
