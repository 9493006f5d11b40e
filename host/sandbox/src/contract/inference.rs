//! `inference.wit` and `log.wit`: what a stage asks of the host.

use serde::{Deserialize, Serialize};
use wasmtime::component::{ComponentType, Lift, Lower};

/// How to complete a prompt.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[component(record)]
pub struct CompletionRequest {
    /// A model's name in the config.
    pub model: String,
    /// The prompt.
    pub prompt: String,
    /// Whether the prompt becomes one user message of the model's chat template.
    pub chat: bool,
    /// The most tokens to generate.
    #[component(name = "max-tokens")]
    pub max_tokens: u32,
    /// 0 is greedy.
    pub temperature: f32,
    /// Texts at which to stop.
    pub stop: Vec<String>,
}

/// What the model said.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[component(record)]
pub struct Completion {
    /// The text.
    pub text: String,
    /// Tokens of the prompt.
    #[component(name = "prompt-tokens")]
    pub prompt_tokens: u32,
    /// Tokens generated.
    #[component(name = "completion-tokens")]
    pub completion_tokens: u32,
    /// The mean natural log-probability of the generated tokens.
    #[component(name = "mean-log-probability")]
    pub mean_log_probability: f64,
}

/// How grave a log line is.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[component(enum)]
#[repr(u8)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// For the plugin's author.
    #[component(name = "debug")]
    Debug,
    /// For the operator, later.
    #[component(name = "info")]
    Info,
    /// For the operator, soon.
    #[component(name = "warn")]
    Warn,
    /// For the operator, now.
    #[component(name = "error")]
    Error,
}
