//! A model: its file's weights, tokenizer and chat template, ready to run.

use std::path::Path;
use std::sync::Arc;

use crate::{ChatMessage, Error, Result};

/// How the weights are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// The device's fast kernels.
    #[default]
    Fast,
    /// Weights widened to f32, f32 sums, f32 KV cache: slow, for comparisons with a reference.
    Exact,
}

/// How a model is opened.
#[derive(Debug, Clone, Default)]
pub struct ModelOptions {
    /// How the weights are multiplied.
    pub precision: Precision,
    /// A context shorter than the model's own, in tokens.
    pub context: Option<u32>,
}

/// What a model's file says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// `general.name`, or the file's name.
    pub name: String,
    /// `general.architecture`.
    pub architecture: String,
    /// Number of weights.
    pub parameters: u64,
    /// Tokens that the context holds.
    pub context: u32,
    /// Length of the file.
    pub file_bytes: u64,
    /// The tensor type that most weights have, as `Q4_1`.
    pub quantisation: String,
}

/// An opened model. Shared by the engines that run it.
pub struct Model {
    info: ModelInfo,
}

impl Model {
    /// Opens a GGUF file, checks it, and loads its weights.
    pub fn open(path: &Path, options: &ModelOptions) -> Result<Arc<Self>> {
        let _ = options;
        Err(Error::Unsupported(format!(
            "{}: the reader is not built yet",
            path.display()
        )))
    }

    /// What the file says of the model.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Token ids of a text. `special` says whether special tokens written in the text (as `<|im_end|>`) are
    /// read as such; leave it off for text that a user wrote.
    pub fn encode(&self, text: &str, special: bool) -> Vec<u32> {
        let _ = (text, special);
        Vec::new()
    }

    /// The text of token ids; special tokens are left out, incomplete characters become U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let _ = tokens;
        String::new()
    }

    /// A conversation as text, by the model's chat template. For token ids use [`Self::encode_chat`], which
    /// keeps contents from forging special tokens.
    pub fn render_chat(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String> {
        let _ = (messages, add_generation_prompt);
        Ok(String::new())
    }

    /// Token ids of a conversation.
    pub fn encode_chat(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>> {
        let _ = (messages, add_generation_prompt);
        Ok(Vec::new())
    }
}
