//! The parts of a prompt that an answer may hang on: which tokens came from which words of which message.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::engine::length;
use crate::model::Spanned;
use crate::tokenizer::Tokenizer;
use crate::{Engine, Error, Prompt, Result};

/// What of a prompt is left out at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// One token.
    Token,
    /// What stands between white space, with the white space before it. Scripts without spaces have no words in this
    /// sense: take tokens or sentences there.
    #[default]
    Word,
    /// Up to a full stop, a question mark or an exclamation mark with white space after it, one of the full-width
    /// forms, or the end of a line.
    Sentence,
}

/// A part of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PromptUnit {
    /// Its message's place in a conversation, as the model is given it: from 0. `None` in a plain prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<usize>,
    /// Its text; incomplete characters are U+FFFD.
    pub text: String,
    /// Its tokens, by their places in the prompt.
    pub tokens: Range<usize>,
}

/// A prompt as tokens, and the parts of it that somebody wrote: those of a chat template are in none.
pub(crate) struct Parted {
    pub(crate) tokens: Vec<u32>,
    pub(crate) units: Vec<PromptUnit>,
}

impl Parted {
    /// Cuts a prompt.
    pub(crate) fn of(engine: &Engine, prompt: &Prompt, unit: Unit) -> Result<Self> {
        let model = engine.model();
        let tokenizer = model.tokenizer();
        let (tokens, spanned) = match prompt {
            Prompt::Tokens(tokens) => (tokens.clone(), None),
            Prompt::Text(text) => {
                let spanned = (text.clone(), vec![(0, 0..text.len())]);
                (engine.text_tokens(text)?, Some(spanned))
            }
            Prompt::Chat(messages) => {
                engine.check_length(messages.iter().map(length).sum())?;
                let spanned = model.chat_spans(messages, None)?;
                (model.encode_chat(messages, true)?, Some(spanned))
            }
            Prompt::Tools { messages, tools } => {
                engine.check_length(messages.iter().map(length).sum())?;
                let spanned = model.chat_spans(messages, Some(tools))?;
                (model.encode_tools(messages, tools)?, Some(spanned))
            }
        };
        let chat = matches!(prompt, Prompt::Chat(_) | Prompt::Tools { .. });
        let aligned = spanned.and_then(|spanned| {
            let places = align(tokenizer, &tokens, &spanned.0)?;
            Some((spanned, places))
        });
        let (spanned, places) = match aligned {
            Some(found) => found,
            None if chat => {
                return Err(Error::Unsupported(
                    "this model's tokenizer changes texts, so it is not known which tokens are of which message; give \
                     a plain prompt"
                        .into(),
                ));
            }
            None => plain(tokenizer, &tokens),
        };
        let mut units = cut(tokenizer, &tokens, &places, &spanned, unit);
        if !chat {
            units.iter_mut().for_each(|unit| unit.message = None);
        }
        Ok(Self { tokens, units })
    }
}

/// Where each token stands in the text that they are of: `None` where they do not spell it.
fn align(tokenizer: &Tokenizer, tokens: &[u32], text: &str) -> Option<Vec<Range<usize>>> {
    let (bytes, mut at) = (text.as_bytes(), 0);
    let mut places = Vec::with_capacity(tokens.len());
    for id in tokens {
        let own = tokenizer.token_bytes(*id);
        let rest = bytes.get(at..)?;
        let length = if rest.starts_with(own) {
            own.len()
        } else if let Some(own) = own.strip_prefix(b" ").filter(|own| rest.starts_with(own)) {
            own.len() // the space that some encodings put before a text
        } else if tokenizer.is_control(*id) {
            0 // one that stands before every text
        } else {
            return None;
        };
        places.push(at..at + length);
        at += length;
    }
    (at == bytes.len()).then_some(places)
}

/// Tokens as a text of their own, control tokens left out.
fn plain(tokenizer: &Tokenizer, tokens: &[u32]) -> (Spanned, Vec<Range<usize>>) {
    let mut bytes = Vec::new();
    let places: Vec<Range<usize>> = tokens
        .iter()
        .map(|id| {
            let start = bytes.len();
            if !tokenizer.is_control(*id) {
                bytes.extend_from_slice(tokenizer.token_bytes(*id));
            }
            start..bytes.len()
        })
        .collect();
    // Only a text of whole characters can be cut at its words; any other one is read byte by byte.
    let text = String::from_utf8(bytes)
        .unwrap_or_else(|error| error.into_bytes().into_iter().map(ascii).collect());
    let end = text.len();
    ((text, vec![(0, 0..end)]), places)
}

/// A byte as a character of one byte, for texts of which only the white space and the stops matter.
fn ascii(byte: u8) -> char {
    if byte.is_ascii() {
        byte.into()
    } else {
        '\u{1a}'
    }
}

/// The units of the messages' contents. A token belongs to the unit in which it begins.
fn cut(
    tokenizer: &Tokenizer,
    tokens: &[u32],
    places: &[Range<usize>],
    (text, spans): &Spanned,
    unit: Unit,
) -> Vec<PromptUnit> {
    let mut units: Vec<PromptUnit> = Vec::new();
    for (message, span) in spans {
        let cuts: Vec<usize> = starts(&text[span.clone()], unit)
            .into_iter()
            .map(|at| at + span.start)
            .collect();
        let mut last = None;
        for (index, place) in places.iter().enumerate() {
            if place.is_empty() || !span.contains(&place.start) {
                continue;
            }
            let part = cuts.partition_point(|at| *at <= place.start);
            match units.last_mut() {
                Some(open) if last == Some(part) && unit != Unit::Token => {
                    open.tokens.end = index + 1;
                }
                _ => units.push(PromptUnit {
                    message: Some(*message),
                    text: String::new(),
                    tokens: index..index + 1,
                }),
            }
            last = Some(part);
        }
    }
    for unit in &mut units {
        let bytes: Vec<u8> = tokens[unit.tokens.clone()]
            .iter()
            .flat_map(|id| tokenizer.token_bytes(*id))
            .copied()
            .collect();
        unit.text = String::from_utf8_lossy(&bytes).into_owned();
    }
    units
}

/// Where the units of a text begin.
fn starts(text: &str, unit: Unit) -> Vec<usize> {
    let mut cuts = vec![0];
    // Where the white space began that the last characters were; and whether a sentence ended before it.
    let (mut space, mut stop) = (None, false);
    for (at, c) in text.char_indices() {
        if c.is_whitespace() {
            space.get_or_insert(at);
            stop |= c == '\n';
            continue;
        }
        let begins = match (unit, space) {
            (Unit::Token, _) => false,
            (Unit::Word, space) => space.is_some(),
            (Unit::Sentence, Some(_)) => stop,
            (Unit::Sentence, None) => false,
        };
        let wide = matches!(c, '。' | '！' | '？' | '｡');
        if begins {
            cuts.push(space.unwrap_or(at));
        }
        stop = match c {
            '.' | '!' | '?' | '…' => true,
            // Marks that close what the stop ended.
            '"' | '\'' | ')' | ']' | '”' | '’' | '»' => stop && space.is_none(),
            _ => false,
        };
        space = None;
        if wide && unit == Unit::Sentence && at + c.len_utf8() < text.len() {
            cuts.push(at + c.len_utf8());
        }
    }
    cuts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str, unit: Unit) -> Vec<&str> {
        let mut cuts = starts(text, unit);
        cuts.push(text.len());
        cuts.windows(2)
            .map(|pair| &text[pair[0]..pair[1]])
            .collect()
    }

    #[test]
    fn words_take_the_white_space_before_them() {
        assert_eq!(
            parts("The cat,  sat\n\ndown. ", Unit::Word),
            ["The", " cat,", "  sat", "\n\ndown. "]
        );
        assert_eq!(parts(" a b", Unit::Word), ["", " a", " b"]);
        assert_eq!(parts("", Unit::Word), [""]);
    }

    #[test]
    fn sentences_end_at_stops_before_white_space_and_at_lines() {
        assert_eq!(
            parts(
                "Pi is 3.14. \"Really?\" Yes!\nA title\nÇa va",
                Unit::Sentence
            ),
            [
                "Pi is 3.14.",
                " \"Really?\"",
                " Yes!",
                "\nA title",
                "\nÇa va"
            ]
        );
        assert_eq!(
            parts("你好。再见！好", Unit::Sentence),
            ["你好。", "再见！", "好"]
        );
    }
}
