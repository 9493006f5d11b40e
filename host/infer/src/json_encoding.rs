//! The tokenizer of a Hugging Face folder: `tokenizer.json`, and what `tokenizer_config.json`, `config.json` and
//! `generation_config.json` say of it.
//!
//! The `tokenizers` crate runs it, but without its special tokens and without what it puts before and after a text:
//! those are this crate's affair, for a text of a user must never turn into a control token.

use std::path::Path;

use serde_json::Value;
use tokenizers::Tokenizer as Tokenizers;

use crate::folder::{file, json};
use crate::sentencepiece::SPACE;
use crate::tokenizer::{Alphabet, Encoding, Entry, Roles, Tokenizer, byte_of};
use crate::{Error, Result};

const NAME: &str = "tokenizer.json";

/// The encoding of plain text.
pub(crate) struct JsonEncoding {
    tokenizers: Tokenizers,
    prefix: Prefix,
}

/// Whether a space is put before a text, so that its first word is like the others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Prefix {
    None,
    Always,
    /// Where there is none yet.
    Missing,
}

impl JsonEncoding {
    /// Token ids of a text. `beginning`: it is not the rest of another text.
    pub(crate) fn encode(&self, text: &str, beginning: bool, out: &mut Vec<u32>) {
        let wanted = match self.prefix {
            Prefix::None => false,
            Prefix::Always => true,
            Prefix::Missing => !text.starts_with([' ', SPACE]),
        };
        let mut prefixed = String::new();
        if wanted && beginning {
            prefixed.push(SPACE);
            prefixed.push_str(text);
        }
        let text = if prefixed.is_empty() { text } else { &prefixed };
        match self.tokenizers.encode_fast(text, false) {
            Ok(encoding) => out.extend_from_slice(encoding.get_ids()),
            Err(error) => tracing::error!(%error, "a text could not be encoded"),
        }
    }

    /// Whether a space is put before a text.
    pub(crate) fn prefix(&self) -> bool {
        self.prefix != Prefix::None
    }
}

/// Reads a folder's tokenizer, for a model with `vocabulary` rows of embeddings. Ids without a token have no text.
pub(crate) fn tokenizer(folder: &Path, vocabulary: usize) -> Result<Tokenizer> {
    let invalid = |what: String| Error::Folder(format!("{NAME}: {what}"));
    let bytes = file(folder, NAME)?
        .ok_or_else(|| Error::Folder(format!("{} has no {NAME}", folder.display())))?;
    let mut source: Value =
        serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
    let added = match source["added_tokens"].take() {
        Value::Array(added) => added,
        _ => Vec::new(),
    };
    let ends = match source["post_processor"].take() {
        Value::Null => [None, None],
        processor => around(&processor),
    };
    for key in ["truncation", "padding"] {
        source[key] = Value::Null;
    }
    source["added_tokens"] = Value::Array(Vec::new());
    let prefix = take_prefix(&mut source);
    let style = Style::of(&source);
    let tokenizers: Tokenizers = Tokenizers::from_bytes(source.to_string())
        .map_err(|error| Error::Unsupported(format!("{NAME}: {error}")))?;

    let mut entries: Vec<Entry> = (0..vocabulary)
        .map(|_| Entry {
            bytes: Vec::new(),
            whole: None,
            control: false,
        })
        .collect();
    let alphabet = Alphabet::new();
    for (token, id) in tokenizers.get_vocab(false) {
        let entry = entries
            .get_mut(id as usize)
            .ok_or_else(|| invalid(format!("the token {id}, beyond the model's {vocabulary}")))?;
        entry.bytes = style.bytes(&token, &alphabet);
    }
    for token in &added {
        let (id, text) = (token["id"].as_u64(), token["content"].as_str());
        let (Some(id), Some(text)) = (id, text) else {
            return Err(invalid(format!("`added_tokens`: {token}")));
        };
        let entry = usize::try_from(id).ok().and_then(|id| entries.get_mut(id));
        let entry = entry
            .ok_or_else(|| invalid(format!("the token {id}, beyond the model's {vocabulary}")))?;
        *entry = Entry {
            bytes: text.as_bytes().to_vec(),
            whole: Some(text.to_owned()),
            control: token["special"] == Value::Bool(true),
        };
    }
    let roles = roles(folder, &entries, ends)?;
    let encoding = Encoding::Json(Box::new(JsonEncoding { tokenizers, prefix }));
    Ok(Tokenizer::new(encoding, entries, roles))
}

/// The tokens with a part to play. `ends` are those that the post-processor puts around a text.
fn roles(folder: &Path, entries: &[Entry], ends: [Option<String>; 2]) -> Result<Roles> {
    let id_of = |text: &str| {
        let found = entries
            .iter()
            .position(|entry| entry.whole.as_deref() == Some(text));
        found.and_then(|id| u32::try_from(id).ok())
    };
    let settings = json(folder, "tokenizer_config.json")?.unwrap_or_default();
    // A token is its text, or a map with its text.
    let named = |key: &str| {
        let value = &settings[key];
        value.as_str().or(value["content"].as_str()).and_then(id_of)
    };
    let (beginning, end_of_text) = (named("bos_token"), named("eos_token"));
    let mut end: Vec<u32> = end_of_text.into_iter().collect();
    for name in ["generation_config.json", "config.json"] {
        let ids = json(folder, name)?.unwrap_or_default()["eos_token_id"].take();
        let ids = match ids {
            Value::Array(ids) => ids,
            one => vec![one],
        };
        let ids = ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok());
        end.extend(ids.filter(|id| (*id as usize) < entries.len()));
    }
    let [first, last] = ends.map(|text| text.as_deref().and_then(id_of));
    let adds_first = settings["add_bos_token"] == Value::Bool(true);
    Ok(Roles {
        end,
        beginning_and_end: [beginning, end_of_text],
        first: first.or(beginning.filter(|_| adds_first)),
        last,
    })
}

/// What a post-processor puts before and after a single text.
fn around(processor: &Value) -> [Option<String>; 2] {
    match processor["type"].as_str() {
        Some("Sequence") => {
            let all = processor["processors"].as_array();
            let all = all.into_iter().flatten().map(around);
            all.reduce(|[a, b], [c, d]| [a.or(c), b.or(d)])
                .unwrap_or_default()
        }
        Some("TemplateProcessing") => {
            let parts = processor["single"].as_array();
            let parts: Vec<&Value> = parts.into_iter().flatten().collect();
            let special =
                |part: Option<&&Value>| Some(part?["SpecialToken"]["id"].as_str()?.to_owned());
            [special(parts.first()), special(parts.last())]
        }
        Some("BertProcessing" | "RobertaProcessing") => {
            ["cls", "sep"].map(|key| Some(processor[key][0].as_str()?.to_owned()))
        }
        _ => [None, None],
    }
}

/// Takes the space before a text out of a tokenizer, and says when there is to be one.
fn take_prefix(source: &mut Value) -> Prefix {
    let mut found = Prefix::None;
    for (stage, list) in [
        ("normalizer", "normalizers"),
        ("pre_tokenizer", "pretokenizers"),
    ] {
        let Some(whole) = source.get_mut(stage) else {
            continue;
        };
        let done = match whole.get_mut(list) {
            Some(Value::Array(parts)) => {
                parts.retain_mut(|part| take_from(part, &mut found));
                parts.is_empty()
            }
            _ => !take_from(whole, &mut found),
        };
        if done {
            *whole = Value::Null;
        }
    }
    found
}

/// Whether the stage still has work to do.
fn take_from(stage: &mut Value, found: &mut Prefix) -> bool {
    match stage["type"].as_str() {
        Some("Prepend") => {
            *found = Prefix::Always;
            false
        }
        Some("Metaspace") => {
            let never = stage["prepend_scheme"] == "never"
                || (stage["prepend_scheme"].is_null()
                    && stage["add_prefix_space"] == Value::Bool(false));
            if !never {
                *found = Prefix::Missing;
                stage["prepend_scheme"] = "never".into();
                if let Some(map) = stage.as_object_mut() {
                    map.remove("add_prefix_space");
                }
            }
            true
        }
        _ => true,
    }
}

/// How a vocabulary writes bytes.
#[derive(Clone, Copy)]
enum Style {
    /// GPT-2's alphabet.
    Bytes,
    /// Words and, marked, the ends of words.
    WordPiece,
    /// As text, with another character for the space, and tokens for bytes.
    Pieces,
}

impl Style {
    fn of(source: &Value) -> Self {
        if source["model"]["type"] == "WordPiece" {
            return Self::WordPiece;
        }
        let named = |value: &Value| value.to_string().contains(r#""type":"ByteLevel""#);
        if named(&source["pre_tokenizer"]) || named(&source["decoder"]) {
            return Self::Bytes;
        }
        Self::Pieces
    }

    fn bytes(self, token: &str, alphabet: &Alphabet) -> Vec<u8> {
        match self {
            Self::Bytes => alphabet.bytes(token),
            Self::WordPiece => match token.strip_prefix("##") {
                Some(end) => end.as_bytes().to_vec(),
                None => format!(" {token}").into_bytes(),
            },
            Self::Pieces => match byte_of(token) {
                Some(byte) => vec![byte],
                None => token.replace(SPACE, " ").into_bytes(),
            },
        }
    }
}
