//! A model: its file's weights, tokenizer and chat template, ready to run.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::chat::ChatTemplate;
use crate::config::Config;
use crate::cpu::Cpu;
use crate::cpu::kernels::Level;
use crate::gguf::Gguf;
use crate::llama::{Llama, Network, Session, SessionOptions};
use crate::ops::{Batch, Output, PAGE_TOKENS, Row};
use crate::tokenizer::Tokenizer;
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
    /// Do without SIMD kernels, whatever the processor has: for comparisons.
    pub plain_kernels: bool,
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
    tokenizer: Tokenizer,
    /// An error of the template is one of the first conversation, not of the model.
    template: std::result::Result<ChatTemplate, String>,
    network: Arc<dyn Network>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

impl Model {
    /// Opens a GGUF file, checks it, and loads its weights.
    pub fn open(path: &Path, options: &ModelOptions) -> Result<Arc<Self>> {
        let gguf = Gguf::open(path)?;
        let architecture = gguf.string("general.architecture")?.to_owned();
        if architecture != "llama" {
            return Err(Error::Unsupported(format!(
                "the architecture `{architecture}`; `llama` is supported"
            )));
        }
        let mut config = Config::read(&gguf)?;
        if let Some(context) = options.context {
            config.context = config.context.min(context.max(1));
        }
        let tokenizer = Tokenizer::read(&gguf)?;
        if tokenizer.len() != config.vocabulary {
            return Err(Error::Gguf(format!(
                "the tokenizer has {} tokens, but token_embd.weight {} rows",
                tokenizer.len(),
                config.vocabulary
            )));
        }
        let (beginning, end) = tokenizer.named(&gguf)?;
        let template = match gguf.optional_string("tokenizer.chat_template")? {
            None => Err("the model's file has none; use a plain text prompt".to_owned()),
            Some(source) => ChatTemplate::new(source.to_owned(), beginning, end)
                .map_err(|error| error.to_string()),
        };
        let info = info(&gguf, path, architecture, config.context)?;
        let level = if options.plain_kernels {
            Level::Scalar
        } else {
            Level::detect()
        };
        let network = Llama::load(&gguf, config, Cpu::new(options.precision, level))?;
        gguf.release_pages();
        Ok(Arc::new(Self {
            info,
            tokenizer,
            template,
            network: Arc::new(network),
        }))
    }

    /// What the file says of the model.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Number of tokens in the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer.len()
    }

    /// Token ids of a text. `special` says whether special tokens written in the text (as `<|im_end|>`) are
    /// read as such; leave it off for text that a user wrote.
    pub fn encode(&self, text: &str, special: bool) -> Vec<u32> {
        self.tokenizer.encode(text, special)
    }

    /// The text of token ids; special tokens are left out, incomplete characters become U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens)
    }

    /// A conversation as text, by the model's chat template. For token ids use [`Self::encode_chat`], which
    /// keeps contents from forging special tokens.
    pub fn render_chat(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String> {
        self.template()?.render(messages, add_generation_prompt)
    }

    /// Token ids of a conversation. Special tokens come from the template alone, never from a message.
    pub fn encode_chat(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>> {
        self.template()?
            .encode(messages, add_generation_prompt, &self.tokenizer)
    }

    /// Token ids of a conversation with tools ([`crate::Prompt::Tools`]).
    pub(crate) fn encode_tools(
        &self,
        messages: &[ChatMessage],
        tools: &[crate::Tool],
    ) -> Result<Vec<u32>> {
        self.template()?
            .encode_tools(messages, tools, true, &self.tokenizer)
    }

    /// The logits after each token of a sequence, `vocabulary()` for each: the model's answer to a given text
    /// (teacher forcing). `chunk` tokens are computed at once: 1 takes the way of decoding, more that of a prompt.
    pub fn logits(&self, tokens: &[u32], chunk: usize) -> Result<Vec<Vec<f32>>> {
        let chunk = chunk.clamp(1, 256);
        if tokens.len() > self.info.context as usize {
            return Err(Error::ContextExceeded {
                tokens: tokens.len(),
                limit: self.info.context as usize,
            });
        }
        let pages = tokens.len().div_ceil(PAGE_TOKENS).max(1);
        let probe = self.session(SessionOptions {
            threads: 1,
            rows: 1,
            outputs: 1,
            kv_bytes: 0,
        })?;
        let kv_bytes = pages * probe.page_bytes();
        let mut session = self.session(SessionOptions {
            threads: 0,
            rows: chunk,
            outputs: chunk,
            kv_bytes,
        })?;
        let table: Vec<u32> = (0..pages as u32).collect();
        let mut out = Vec::new();
        for (index, part) in tokens.chunks(chunk).enumerate() {
            let rows: Vec<Row> = part
                .iter()
                .zip((index * chunk) as u32..)
                .map(|(token, position)| Row {
                    token: *token,
                    position,
                    table: 0,
                    output: Output::Logits,
                })
                .collect();
            let (logits, _) = session.step(Batch {
                rows: &rows,
                tables: &[&table],
            })?;
            out.extend(logits.chunks_exact(self.vocabulary()).map(<[f32]>::to_vec));
        }
        Ok(out)
    }

    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    pub(crate) fn session(&self, options: SessionOptions) -> Result<Box<dyn Session>> {
        Arc::clone(&self.network).session(options)
    }

    fn template(&self) -> Result<&ChatTemplate> {
        self.template
            .as_ref()
            .map_err(|error| Error::Template(error.clone()))
    }
}

fn info(gguf: &Gguf, path: &Path, architecture: String, context: u32) -> Result<ModelInfo> {
    let mut weights: BTreeMap<_, u64> = BTreeMap::new();
    for (_, tensor) in gguf.tensors() {
        *weights.entry(tensor.kind).or_default() += tensor.rows as u64 * tensor.columns as u64;
    }
    let file_name = || {
        path.file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    Ok(ModelInfo {
        name: gguf
            .optional_string("general.name")?
            .map_or_else(file_name, str::to_owned),
        architecture,
        parameters: weights.values().sum(),
        context,
        file_bytes: gguf.len() as u64,
        quantisation: weights
            .iter()
            .max_by_key(|(_, count)| **count)
            .map(|(kind, _)| kind.to_string())
            .unwrap_or_default(),
    })
}
