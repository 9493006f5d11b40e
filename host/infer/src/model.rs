//! A model: its file's weights, tokenizer and chat template, ready to run.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::adapter::AdapterFile;
use crate::chat::ChatTemplate;
use crate::config::{Config, Family};
use crate::cpu::Cpu;
use crate::cpu::kernels::Level;
use crate::cuda::{self, Cuda};
use crate::decoder::Decoder;
use crate::encoder::{Encoder, EncoderConfig};
use crate::folder::{self, Folder};
use crate::gguf::Gguf;
use crate::json_encoding;
use crate::keys;
use crate::network::{Network, Session, SessionOptions};
use crate::ops::{Batch, Output, PAGE_TOKENS, Row};
use crate::tokenizer::Tokenizer;
use crate::weights::Source;
use crate::{ChatMessage, DeviceChoice, Error, Result};

/// A text, and ranges of its bytes that are contents of messages, with the message's place.
pub(crate) type Spanned = (String, Vec<(usize, Range<usize>)>);

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
    /// Which device it runs on.
    pub device: DeviceChoice,
    /// Do without SIMD kernels, whatever the processor has: for comparisons.
    pub plain_kernels: bool,
}

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    /// It generates text, and scores and embeds it.
    Decoder,
    /// It embeds texts alone: each token sees all others, and a text is computed in one step.
    Encoder,
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
    /// Weights that are read and multiplied for each generated token: all but an embedding table that is not also
    /// the output matrix.
    pub active_parameters: u64,
    /// Bytes of those, as the file has them.
    pub active_bytes: u64,
    /// Weights of the matrix that gives logits. A prompt's tokens but the last do without it.
    pub output_parameters: u64,
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
    kind: ModelKind,
    /// The file with the weights, or the folder.
    path: PathBuf,
}

/// A LoRA adapter beside its model's weights. It is unloaded when the last holder, a request among them, is gone.
pub struct Adapter {
    id: u32,
    network: Arc<dyn Network>,
}

impl Adapter {
    /// Its number among the adapters of its model.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }
}

impl PartialEq for Adapter {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && Arc::ptr_eq(&self.network, &other.network)
    }
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adapter")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        self.network.unload_adapter(self.id);
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

impl Model {
    /// Opens a GGUF file or a Hugging Face folder (`config.json`, `tokenizer.json`, safetensors), checks it, and loads
    /// its weights.
    pub fn open(path: &Path, options: &ModelOptions) -> Result<Arc<Self>> {
        if path.is_dir() {
            Self::open_folder(Folder::open(path)?, options)
        } else {
            Self::open_gguf(Gguf::open(path)?, path, options)
        }
    }

    fn open_gguf(gguf: Gguf, path: &Path, options: &ModelOptions) -> Result<Arc<Self>> {
        let architecture = gguf.string("general.architecture")?.to_owned();
        let family = family(&architecture)?;
        let mut config = Config::new(&keys::numbers(&gguf, &architecture, family)?, &gguf)?;
        config.context = options.limit(config.context);
        let tokenizer = Tokenizer::read(&gguf)?;
        if tokenizer.len() != config.vocabulary {
            return Err(Error::Gguf(format!(
                "the tokenizer has {} tokens, but token_embd.weight {} rows",
                tokenizer.len(),
                config.vocabulary
            )));
        }
        let template = gguf.optional_string("tokenizer.chat_template")?;
        let template = template_of(template.map(str::to_owned), &tokenizer);
        let info = ModelInfo {
            name: gguf
                .optional_string("general.name")?
                .map_or_else(|| name_of(path), str::to_owned),
            ..info(&gguf, architecture, config.context, gguf.len())
        };
        let network = decoder(&gguf, config, options)?;
        gguf.release_pages();
        Ok(Arc::new(Self {
            info,
            tokenizer,
            template,
            network,
            kind: ModelKind::Decoder,
            path: path.to_owned(),
        }))
    }

    fn open_folder(folder: Folder, options: &ModelOptions) -> Result<Arc<Self>> {
        let architecture = folder.model_type()?.to_owned();
        let (network, vocabulary, context, kind): (Arc<dyn Network>, _, _, _) =
            if architecture == "bert" {
                let mut config = EncoderConfig::read(&folder)?;
                config.context = options.limit(config.context);
                let (vocabulary, context) = (config.vocabulary, config.context);
                let network = encoder(&folder, config, options)?;
                (network, vocabulary, context, ModelKind::Encoder)
            } else {
                let family = family(&architecture)?;
                let mut config = Config::new(&folder.numbers(family)?, &folder)?;
                config.context = options.limit(config.context);
                let (vocabulary, context) = (config.vocabulary, config.context);
                let network = decoder(&folder, config, options)?;
                (network, vocabulary, context, ModelKind::Decoder)
            };
        let tokenizer = json_encoding::tokenizer(folder.path(), vocabulary)?;
        let template = template_of(folder::chat_template(folder.path())?, &tokenizer);
        let info = ModelInfo {
            name: name_of(folder.path()),
            ..info(&folder, architecture, context, folder.len())
        };
        folder.release_pages();
        Ok(Arc::new(Self {
            info,
            tokenizer,
            template,
            network,
            kind,
            path: folder.path().to_owned(),
        }))
    }

    /// Whether it generates, or embeds alone.
    pub fn kind(&self) -> ModelKind {
        self.kind
    }

    /// Loads a LoRA adapter in PEFT's format: the folder with `adapter_config.json` and `adapter_model.safetensors`.
    /// Requests name it in [`crate::GenerateRequest::adapter`]; each request of a batch may have its own.
    ///
    /// # Errors
    /// [`Error::Adapter`]: the folder is not sound, or the adapter is for another base. Where the adapter says which
    /// file its base was (`millgate.base_sha256` in its config), this model's file must be that one.
    pub fn load_adapter(&self, folder: &Path) -> Result<Arc<Adapter>> {
        let file = AdapterFile::open(folder)?;
        if let Some(wanted) = &file.base_sha256 {
            let found = self.file_sha256()?;
            if *wanted != found {
                return Err(Error::Adapter(format!(
                    "it is for the base with SHA-256 {wanted}, but {} has {found}; load it beside that base",
                    self.path.display()
                )));
            }
        }
        Ok(Arc::new(Adapter {
            id: self.network.load_adapter(file)?,
            network: Arc::clone(&self.network),
        }))
    }

    /// Whether an adapter was loaded beside this very model.
    pub(crate) fn has_adapter(&self, adapter: &Adapter) -> bool {
        Arc::ptr_eq(&self.network, &adapter.network) && self.network.has_adapter(adapter.id)
    }

    /// SHA-256 of the file with the weights, in hexadecimal. Reads all of it.
    fn file_sha256(&self) -> Result<String> {
        let path = match self.path.is_dir() {
            true => self.path.join("model.safetensors"),
            false => self.path.clone(),
        };
        let mut hasher = Sha256::new();
        std::fs::File::open(&path)
            .and_then(|mut file| std::io::copy(&mut file, &mut hasher))
            .map_err(|source| Error::Io { path, source })?;
        Ok(hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect())
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

    /// A conversation with an opened turn as text, and where the contents of its messages stand in it.
    pub(crate) fn chat_spans(
        &self,
        messages: &[ChatMessage],
        tools: Option<&[crate::Tool]>,
    ) -> Result<Spanned> {
        self.template()?.spans(messages, tools, &self.tokenizer)
    }

    /// The logits after each token of a sequence, `vocabulary()` for each: the model's answer to a given text
    /// (teacher forcing). `chunk` tokens are computed at once: 1 takes the way of decoding, more that of a prompt.
    pub fn logits(&self, tokens: &[u32], chunk: usize) -> Result<Vec<Vec<f32>>> {
        self.adapted_logits(tokens, chunk, None)
    }

    /// The same with an adapter.
    pub fn adapted_logits(
        &self,
        tokens: &[u32],
        chunk: usize,
        adapter: Option<&Adapter>,
    ) -> Result<Vec<Vec<f32>>> {
        if self.kind == ModelKind::Encoder {
            return Err(Error::Invalid("an encoder has no logits".into()));
        }
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
            let outputs = session.step(Batch {
                rows: &rows,
                tables: &[&table],
                adapters: &[adapter.map_or(0, Adapter::id)],
            })?;
            let logits = outputs.logits.chunks_exact(self.vocabulary());
            out.extend(logits.map(<[f32]>::to_vec));
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

impl ModelOptions {
    fn limit(&self, context: u32) -> u32 {
        self.context
            .map_or(context, |most| context.min(most.max(1)))
    }

    fn device(&self) -> Result<Opened> {
        let gpu = match self.device {
            DeviceChoice::Cpu => None,
            DeviceChoice::Cuda(index) => Some(index),
            DeviceChoice::Auto => cuda::first_usable(),
        };
        if let Some(index) = gpu {
            return Ok(Opened::Cuda(Cuda::open(index, self.precision)?));
        }
        let level = if self.plain_kernels {
            Level::Scalar
        } else {
            Level::detect()
        };
        Ok(Opened::Cpu(Cpu::new(self.precision, level)))
    }
}

/// The device that was chosen.
enum Opened {
    Cpu(Cpu),
    Cuda(Cuda),
}

fn decoder(
    source: &dyn Source,
    config: Config,
    options: &ModelOptions,
) -> Result<Arc<dyn Network>> {
    Ok(match options.device()? {
        Opened::Cpu(device) => Arc::new(Decoder::load(source, config, device)?),
        Opened::Cuda(device) => Arc::new(Decoder::load(source, config, device)?),
    })
}

fn encoder(
    source: &dyn Source,
    config: EncoderConfig,
    options: &ModelOptions,
) -> Result<Arc<dyn Network>> {
    Ok(match options.device()? {
        Opened::Cpu(device) => Arc::new(Encoder::load(source, config, device)?),
        Opened::Cuda(device) => Arc::new(Encoder::load(source, config, device)?),
    })
}

fn family(architecture: &str) -> Result<Family> {
    Family::named(architecture).ok_or_else(|| {
        Error::Unsupported(format!(
            "the architecture `{architecture}`; supported are llama, mistral, qwen2, qwen3 and gemma3, and bert in a \
             Hugging Face folder"
        ))
    })
}

fn template_of(
    source: Option<String>,
    tokenizer: &Tokenizer,
) -> std::result::Result<ChatTemplate, String> {
    let source =
        source.ok_or_else(|| "the model's file has none; use a plain text prompt".to_owned())?;
    let (beginning, end) = tokenizer.named();
    ChatTemplate::new(source, beginning, end).map_err(|error| error.to_string())
}

fn name_of(path: &Path) -> String {
    let name = if path.is_dir() {
        path.file_name()
    } else {
        path.file_stem()
    };
    name.map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn info(source: &dyn Source, architecture: String, context: u32, bytes: usize) -> ModelInfo {
    let mut weights: BTreeMap<_, u64> = BTreeMap::new();
    let (mut active, mut output) = ((0, 0), 0);
    let embedding = "token_embd.weight";
    let tied = source.tensor("output.weight").is_none();
    for (name, tensor) in source.tensors() {
        let count = tensor.rows as u64 * tensor.columns as u64;
        *weights.entry(tensor.kind).or_default() += count;
        if name != embedding || tied {
            let bytes = tensor.rows * tensor.kind.row_bytes(tensor.columns);
            active = (active.0 + count, active.1 + bytes as u64);
        }
        if name == if tied { embedding } else { "output.weight" } {
            output = count;
        }
    }
    ModelInfo {
        name: String::new(),
        architecture,
        parameters: weights.values().sum(),
        context,
        active_parameters: active.0,
        active_bytes: active.1,
        output_parameters: output,
        file_bytes: bytes as u64,
        quantisation: weights
            .iter()
            .max_by_key(|(_, count)| **count)
            .map(|(kind, _)| kind.to_string())
            .unwrap_or_default(),
    }
}
