//! Text to token ids and back, from the vocabulary in the model's file.
//!
//! Special tokens are found here, before the byte-pair encoding, and only where the caller says that the text
//! may hold them: text from a user never turns into `<|im_end|>`, whatever it says.

use std::collections::HashMap;

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer as Bpe};

use crate::gguf::{Gguf, Value};
use crate::json_encoding::JsonEncoding;
use crate::sentencepiece::{SPACE, SentencePiece};
use crate::{Error, Result};

/// `tokenizer.ggml.token_type`: a token that only templates write.
const CONTROL: i64 = 3;
/// `tokenizer.ggml.token_type`: a token that is found in any text before the encoding.
const USER_DEFINED: i64 = 4;

/// Control tokens that end an answer in some family of models, beside the ones that the file's keys name.
const END_NAMES: [&str; 8] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "</s>",
];

/// `tokenizer.ggml.token_type`: a token that stands for a byte, written `<0x41>`.
const BYTE: i64 = 6;

/// How text becomes tokens.
pub(crate) enum Encoding {
    BytePairs(Box<Bpe>),
    SentencePiece(SentencePiece),
    /// What a Hugging Face folder's `tokenizer.json` says, without its special tokens.
    Json(Box<JsonEncoding>),
}

/// An entry of a vocabulary.
pub(crate) struct Entry {
    pub(crate) bytes: Vec<u8>,
    /// A text that is found as a whole before the encoding.
    pub(crate) whole: Option<String>,
    /// Templates alone write it.
    pub(crate) control: bool,
}

/// Tokens with a part to play, by their ids.
#[derive(Default)]
pub(crate) struct Roles {
    /// Those that end an answer.
    pub(crate) end: Vec<u32>,
    /// What templates get as the beginning and the end of a text.
    pub(crate) beginning_and_end: [Option<u32>; 2],
    /// What stands before every text, and after it.
    pub(crate) first: Option<u32>,
    pub(crate) last: Option<u32>,
}

/// A vocabulary and its encoding.
pub(crate) struct Tokenizer {
    encoding: Encoding,
    /// Each token's bytes: `bytes[ends[id - 1]..ends[id]]`.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Tokens that are found as a whole; the flag says that they are control tokens.
    whole: Vec<(String, u32, bool)>,
    /// For each first byte, the indices of those that begin with it, longest first.
    whole_by_first: Vec<Vec<usize>>,
    control: Vec<bool>,
    longest: usize,
    roles: Roles,
}

impl Tokenizer {
    /// Reads the `tokenizer.ggml.*` keys.
    pub(crate) fn read(gguf: &Gguf) -> Result<Self> {
        let tokens = strings(gguf, "tokenizer.ggml.tokens")?;
        let kinds = match gguf.get("tokenizer.ggml.token_type") {
            None => vec![1; tokens.len()],
            Some(_) => integers(gguf, "tokenizer.ggml.token_type")?,
        };
        if kinds.len() != tokens.len() || tokens.is_empty() || tokens.len() > 1 << 24 {
            return Err(Error::Gguf(format!(
                "`tokenizer.ggml.tokens` has {} entries and `tokenizer.ggml.token_type` {}",
                tokens.len(),
                kinds.len()
            )));
        }
        let (encoding, adds_first) = match gguf.string("tokenizer.ggml.model")? {
            "gpt2" => read_byte_pairs(gguf, &tokens)?,
            "llama" => (
                Encoding::SentencePiece(read_pieces(gguf, &tokens, &kinds)?),
                true,
            ),
            other => {
                return Err(Error::Unsupported(format!(
                    "the tokenizer `{other}` (`tokenizer.ggml.model`); byte-level BPE (`gpt2`) and SentencePiece \
                     (`llama`) are supported"
                )));
            }
        };
        let mut entries = Vec::with_capacity(tokens.len());
        let alphabet = Alphabet::new();
        for (token, kind) in tokens.iter().zip(&kinds) {
            let plain = !matches!(*kind, CONTROL | USER_DEFINED);
            let bytes = match &encoding {
                Encoding::BytePairs(_) if plain => alphabet.bytes(token),
                Encoding::SentencePiece(_) if *kind == BYTE => byte_of(token).into_iter().collect(),
                Encoding::SentencePiece(_) => token.replace(SPACE, " ").into_bytes(),
                _ => token.as_bytes().to_vec(),
            };
            entries.push(Entry {
                bytes,
                whole: (!plain).then(|| (*token).to_owned()),
                control: *kind == CONTROL,
            });
        }
        let id_of = |key: &str| -> Result<Option<u32>> {
            match gguf.optional_u32(key)? {
                Some(id) if id as usize >= tokens.len() => Err(Error::Gguf(format!(
                    "the key `{key}` is {id}, beyond the vocabulary of {}",
                    tokens.len()
                ))),
                id => Ok(id),
            }
        };
        let beginning = id_of("tokenizer.ggml.bos_token_id")?;
        let mut end = Vec::new();
        for key in ["eos", "eot", "eom"] {
            end.extend(id_of(&format!("tokenizer.ggml.{key}_token_id"))?);
        }
        let add_first = gguf
            .optional_bool("tokenizer.ggml.add_bos_token")?
            .unwrap_or(adds_first);
        let roles = Roles {
            end,
            beginning_and_end: [beginning, id_of("tokenizer.ggml.eos_token_id")?],
            first: beginning.filter(|_| add_first),
            last: None,
        };
        Ok(Self::new(encoding, entries, roles))
    }

    /// Puts a vocabulary together.
    pub(crate) fn new(encoding: Encoding, entries: Vec<Entry>, mut roles: Roles) -> Self {
        let (mut bytes, mut ends, mut whole) = (Vec::new(), Vec::new(), Vec::new());
        let (mut control, mut longest) = (Vec::new(), 1);
        for (id, entry) in (0u32..).zip(entries) {
            bytes.extend_from_slice(&entry.bytes);
            ends.push(bytes.len());
            longest = longest.max(entry.bytes.len());
            control.push(entry.control);
            if let Some(text) = entry.whole.filter(|text| !text.is_empty()) {
                if entry.control && END_NAMES.contains(&text.as_str()) {
                    roles.end.push(id);
                }
                whole.push((text, id, entry.control));
            }
        }
        whole.sort_by_key(|(token, _, _)| std::cmp::Reverse(token.len()));
        let mut whole_by_first = vec![Vec::new(); 256];
        for (index, (text, _, _)) in whole.iter().enumerate() {
            whole_by_first[usize::from(text.as_bytes()[0])].push(index);
        }
        roles.end.sort_unstable();
        roles.end.dedup();
        Self {
            encoding,
            bytes,
            ends,
            whole,
            whole_by_first,
            control,
            longest,
            roles,
        }
    }

    /// Number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of the longest token.
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    /// Whether the token ends an answer.
    pub(crate) fn is_end(&self, id: u32) -> bool {
        self.roles.end.binary_search(&id).is_ok()
    }

    /// The token that the model wants before every text.
    pub(crate) fn first(&self) -> Option<u32> {
        self.roles.first
    }

    /// The token that the model wants after every text that is not to go on: an encoder's.
    pub(crate) fn last(&self) -> Option<u32> {
        self.roles.last
    }

    /// The text of the beginning-of-text and end-of-text tokens, which templates may name.
    pub(crate) fn named(&self) -> (String, String) {
        let [beginning, end] = self.roles.beginning_and_end.map(|id| {
            let bytes = id.map(|id| self.token_bytes(id)).unwrap_or_default();
            String::from_utf8_lossy(bytes).into_owned()
        });
        (beginning, end)
    }

    /// The texts of all control tokens.
    pub(crate) fn control_texts(&self) -> impl Iterator<Item = &str> {
        self.whole
            .iter()
            .filter(|(_, _, control)| *control)
            .map(|(text, _, _)| text.as_str())
    }

    /// The bytes of a token; none for an id beyond the vocabulary.
    pub(crate) fn token_bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = if id == 0 {
            0
        } else {
            self.ends.get(id - 1).copied().unwrap_or(0)
        };
        self.ends
            .get(id)
            .and_then(|end| self.bytes.get(start..*end))
            .unwrap_or_default()
    }

    /// Whether templates alone write this token.
    pub(crate) fn is_control(&self, id: u32) -> bool {
        self.control.get(id as usize).copied().unwrap_or(false)
    }

    /// Token ids of a text; `special` finds control tokens in it.
    pub(crate) fn encode(&self, text: &str, special: bool) -> Vec<u32> {
        let mut out = Vec::new();
        self.encode_parts(text, special, |part| part.into(), &mut out);
        out
    }

    /// Token ids of a text that goes on after another; nothing in it is special.
    pub(crate) fn encode_rest(&self, text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        self.encode_plain(text, false, &mut out);
        out
    }

    /// Cuts a text at its whole tokens, and encodes what lies between them as `clean` gives it back.
    pub(crate) fn encode_parts<'t>(
        &self,
        text: &'t str,
        special: bool,
        clean: impl Fn(&'t str) -> std::borrow::Cow<'t, str>,
        out: &mut Vec<u32>,
    ) {
        let (mut start, mut at) = (0, 0);
        while at < text.len() {
            let rest = &text[at..];
            let candidates = &self.whole_by_first[usize::from(rest.as_bytes()[0])];
            let found = candidates
                .iter()
                .map(|index| &self.whole[*index])
                .find(|(token, _, control)| (special || !control) && rest.starts_with(token));
            match found {
                Some((token, id, _)) => {
                    self.encode_plain(&clean(&text[start..at]), true, out);
                    out.push(*id);
                    at += token.len();
                    start = at;
                }
                None => at += rest.chars().next().map_or(1, char::len_utf8),
            }
        }
        self.encode_plain(&clean(&text[start..]), true, out);
    }

    /// Encodes what holds no whole token. `beginning`: it is not the rest of another text. What follows a whole
    /// token begins anew, as in the models' own training code.
    fn encode_plain(&self, text: &str, beginning: bool, out: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        match &self.encoding {
            Encoding::SentencePiece(pieces) => pieces.encode(text, beginning, out),
            Encoding::Json(json) => json.encode(text, beginning, out),
            Encoding::BytePairs(bpe) => match bpe.encode_fast(text, false) {
                Ok(encoding) => out.extend_from_slice(encoding.get_ids()),
                // Byte-pair encoding without dropout has no way to fail; the type says that it might.
                Err(error) => tracing::error!(%error, "a text could not be encoded"),
            },
        }
    }

    /// The text of token ids, without control tokens.
    pub(crate) fn decode(&self, tokens: &[u32]) -> String {
        let plain = tokens.iter().filter(|id| !self.is_control(**id));
        let bytes: Vec<u8> = plain
            .flat_map(|id| self.token_bytes(*id))
            .copied()
            .collect();
        let text = String::from_utf8_lossy(&bytes);
        match &self.encoding {
            // The space that was put before the text.
            Encoding::SentencePiece(pieces) if pieces.prefix() => {
                text.strip_prefix(' ').unwrap_or(&text).to_owned()
            }
            Encoding::Json(json) if json.prefix() => {
                text.strip_prefix(' ').unwrap_or(&text).to_owned()
            }
            _ => text.into_owned(),
        }
    }
}

/// Byte-level BPE; and whether models with it want a token before a text when the file does not say.
fn read_byte_pairs(gguf: &Gguf, tokens: &[&str]) -> Result<(Encoding, bool)> {
    let split = gguf
        .optional_string("tokenizer.ggml.pre")?
        .unwrap_or_else(|| {
            tracing::warn!(
                "the file does not name its pre-tokenizer (`tokenizer.ggml.pre`): taking GPT-2's"
            );
            "gpt-2"
        });
    let llama3 = matches!(split, "llama-bpe" | "llama3" | "llama-v3");
    let bpe = byte_pairs(
        tokens,
        &strings(gguf, "tokenizer.ggml.merges")?,
        pre_tokenizer(split)?,
        llama3,
    )?;
    Ok((Encoding::BytePairs(Box::new(bpe)), llama3))
}

/// SentencePiece: pieces with scores, and tokens for bytes.
fn read_pieces(gguf: &Gguf, tokens: &[&str], kinds: &[i64]) -> Result<SentencePiece> {
    const KEY: &str = "tokenizer.ggml.scores";
    let scores = gguf.array(KEY)?.iter().map(|value| match value {
        Value::Float(score) if !score.is_nan() => Ok(*score as f32),
        _ => Err(Error::Gguf(format!(
            "the key `{KEY}` is not an array of numbers"
        ))),
    });
    let scores = scores.collect::<Result<Vec<f32>>>()?;
    if scores.len() != tokens.len() {
        let found = scores.len();
        return Err(Error::Gguf(format!(
            "`{KEY}` has {found} entries for {} tokens",
            tokens.len()
        )));
    }
    // Type 1: a piece that text becomes.
    let of_kind = |wanted: i64| {
        let all = (0u32..).zip(tokens.iter().zip(kinds));
        all.filter(move |(_, (_, kind))| **kind == wanted)
            .map(|(id, (token, _))| (*token, id))
    };
    let pieces = of_kind(1)
        .map(|(token, id)| (token.to_owned(), id))
        .collect();
    let bytes = of_kind(BYTE)
        .filter_map(|(token, id)| Some((byte_of(token)?, id)))
        .collect();
    let unknown = gguf.optional_u32("tokenizer.ggml.unknown_token_id")?;
    let unknown = unknown.filter(|id| (*id as usize) < tokens.len());
    let prefix = gguf
        .optional_bool("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true);
    Ok(SentencePiece::new(pieces, scores, bytes, unknown, prefix))
}

/// The byte that `<0x41>` stands for.
pub(crate) fn byte_of(token: &str) -> Option<u8> {
    u8::from_str_radix(token.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}

/// An array of strings.
fn strings<'a>(gguf: &'a Gguf, key: &str) -> Result<Vec<&'a str>> {
    let values = gguf.array(key)?.iter().map(|value| match value {
        Value::String(text) => Ok(text.as_str()),
        _ => Err(Error::Gguf(format!(
            "the key `{key}` is not an array of strings"
        ))),
    });
    values.collect()
}

/// An array of whole numbers.
fn integers(gguf: &Gguf, key: &str) -> Result<Vec<i64>> {
    let values = gguf.array(key)?.iter().map(|value| match value {
        Value::Signed(number) => Ok(*number),
        Value::Unsigned(number) => Ok(i64::try_from(*number).unwrap_or(i64::MAX)),
        _ => Err(Error::Gguf(format!(
            "the key `{key}` is not an array of whole numbers"
        ))),
    });
    values.collect()
}

fn byte_pairs(
    tokens: &[&str],
    merges: &[&str],
    split: PreTokenizerWrapper,
    ignore_merges: bool,
) -> Result<Bpe> {
    let vocabulary: tokenizers::models::bpe::Vocab = tokens
        .iter()
        .zip(0u32..)
        .map(|(token, id)| ((*token).to_owned(), id))
        .collect();
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        let Some((left, right)) = merge.split_once(' ') else {
            return Err(Error::Gguf(format!(
                "`tokenizer.ggml.merges`: `{merge}` is not two parts"
            )));
        };
        pairs.push((left.to_owned(), right.to_owned()));
    }
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, pairs)
        .ignore_merges(ignore_merges)
        .build();
    let mut bpe =
        Bpe::new(model.map_err(|error| Error::Gguf(format!("`tokenizer.ggml.merges`: {error}")))?);
    bpe.with_pre_tokenizer(Some(split));
    Ok(bpe)
}

/// How text is cut into words, by the name that converters give it (llama.cpp's `convert_hf_to_gguf_update.py`).
/// The expressions are those of the models' published tokenizers.
fn pre_tokenizer(name: &str) -> Result<PreTokenizerWrapper> {
    let digits = match name {
        "gpt-2" | "gpt2" | "default" => return Ok(ByteLevel::new(false, true, true).into()),
        "smollm" => {
            let parts = vec![
                Digits::new(true).into(),
                ByteLevel::new(false, true, true).into(),
            ];
            return Ok(Sequence::new(parts).into());
        }
        "llama-bpe" | "llama3" | "llama-v3" => r"\p{N}{1,3}",
        "qwen2" | "deepseek-r1-qwen" => r"\p{N}",
        other => {
            return Err(Error::Unsupported(format!(
                "the pre-tokenizer `{other}` (`tokenizer.ggml.pre`); supported are smollm, gpt-2, llama-bpe and qwen2"
            )));
        }
    };
    let words = format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    let split = Split::new(
        SplitPattern::Regex(words),
        SplitDelimiterBehavior::Isolated,
        false,
    )
    .map_err(|error| Error::Unsupported(format!("the pre-tokenizer `{name}`: {error}")))?;
    Ok(Sequence::new(vec![
        split.into(),
        ByteLevel::new(false, true, false).into(),
    ])
    .into())
}

/// The bytes that characters of a byte-level vocabulary stand for.
pub(crate) struct Alphabet(HashMap<char, u8>);

impl Alphabet {
    pub(crate) fn new() -> Self {
        Self(byte_alphabet().into_iter().zip(0..=255).collect())
    }

    /// The bytes of a token; a character that stands for none is itself.
    pub(crate) fn bytes(&self, token: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(token.len());
        for c in token.chars() {
            match self.0.get(&c) {
                Some(byte) => out.push(*byte),
                None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        out
    }
}

/// GPT-2's alphabet: the character that stands for each byte in a vocabulary.
pub(crate) fn byte_alphabet() -> [char; 256] {
    let mut hidden = 0x100u32;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
            return char::from(byte);
        }
        hidden += 1;
        char::from_u32(hidden - 1).unwrap_or('\u{fffd}')
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{GgufBuilder, open};

    /// A vocabulary of all bytes, two merges and two special tokens.
    fn small() -> Tokenizer {
        let mut tokens: Vec<String> = byte_alphabet().iter().map(char::to_string).collect();
        tokens.extend(["ab", "abc", "<|end|>", "<|end", "<tool>"].map(String::from));
        let mut kinds = vec![1; 258];
        kinds.extend([3, 3, 4]);
        let file = GgufBuilder::new()
            .string("tokenizer.ggml.model", "gpt2")
            .string("tokenizer.ggml.pre", "gpt-2")
            .strings("tokenizer.ggml.tokens", &tokens)
            .strings("tokenizer.ggml.merges", &["a b", "ab c"])
            .i32s("tokenizer.ggml.token_type", &kinds)
            .u32("tokenizer.ggml.eos_token_id", 258);
        Tokenizer::read(&open(&file.build()).unwrap()).unwrap()
    }

    #[test]
    fn special_tokens_are_found_only_where_they_may_be_and_the_longest_wins() {
        let tokenizer = small();
        assert_eq!(
            tokenizer.encode("abc<|end|>ab<|end", true),
            [257, 258, 256, 259]
        );
        assert_eq!(tokenizer.encode("abc<tool>", false), [257, 260]);
        let plain = tokenizer.encode("abc<|end|>", false);
        assert!(plain.len() == 8 && !plain.contains(&258));
        assert!(tokenizer.is_end(258) && !tokenizer.is_end(257));
    }

    #[test]
    fn any_text_comes_back() {
        let tokenizer = small();
        for text in ["", "abc abcab", "naïve 日本 👩‍👩‍👧", "\0\t\r\n  x", "<|end|>"]
        {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text, false)), text);
        }
        assert_eq!(tokenizer.decode(&[258, 97, 100_000]), "a");
    }

    #[derive(serde::Deserialize)]
    struct Pieces {
        tokens: Vec<String>,
        scores: Vec<f32>,
        types: Vec<i32>,
        rows: Vec<(String, Vec<u32>)>,
    }

    /// The values are SentencePiece's own: see `tests/golden/make_golden.py`.
    #[test]
    fn sentencepiece_gives_the_references_ids_on_five_hundred_strings() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/golden/pieces.json.gz"
        );
        let file = flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap());
        let golden: Pieces = serde_json::from_reader(std::io::BufReader::new(file)).unwrap();
        let file = GgufBuilder::new()
            .string("tokenizer.ggml.model", "llama")
            .strings("tokenizer.ggml.tokens", &golden.tokens)
            .f32s("tokenizer.ggml.scores", &golden.scores)
            .i32s("tokenizer.ggml.token_type", &golden.types)
            .u32("tokenizer.ggml.bos_token_id", 1)
            .u32("tokenizer.ggml.eos_token_id", 2)
            .u32("tokenizer.ggml.unknown_token_id", 0);
        let tokenizer = Tokenizer::read(&open(&file.build()).unwrap()).unwrap();
        assert!(golden.rows.len() == 500 && tokenizer.first() == Some(1));
        for (text, ids) in &golden.rows {
            assert_eq!(&tokenizer.encode(text, false), ids, "{text:?}");
            assert_eq!(&tokenizer.decode(ids), text);
        }
        assert_eq!(tokenizer.encode("<s>the", true)[0], 1);
        assert_eq!(
            tokenizer.encode_rest(" the"),
            tokenizer.encode("the", false)
        );
    }

    #[test]
    fn an_unknown_tokenizer_is_named() {
        let file = GgufBuilder::new()
            .string("tokenizer.ggml.model", "rwkv")
            .strings("tokenizer.ggml.tokens", &["a"])
            .build();
        let error = Tokenizer::read(&open(&file).unwrap())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("`rwkv`"), "{error}");
        assert!(
            pre_tokenizer("tekken")
                .unwrap_err()
                .to_string()
                .contains("`tekken`")
        );
        for known in ["llama-bpe", "qwen2", "smollm", "gpt-2"] {
            assert!(pre_tokenizer(known).is_ok());
        }
    }
}
