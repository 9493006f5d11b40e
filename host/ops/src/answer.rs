//! The texts in an upstream's answer, whole or one chunk of a stream, with their places, so that
//! what a stage changes is put back by position and everything else stays as it came.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    raw::Fields,
    response::Usage,
    splice::{self, span_in},
};

/// Which of a choice's texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Channel {
    /// `content` of a chat message.
    Content,
    /// `text` of a completion.
    Text,
    /// `refusal`
    Refusal,
    /// `reasoning_content`, as some engines call it.
    ReasoningContent,
    /// `reasoning`, as others do.
    Reasoning,
    /// `tool_calls[].function.arguments`, by the call's index.
    ToolArguments(u32),
}

impl Channel {
    /// A choice that holds this text and nothing else, as JSON.
    pub(crate) fn alone(self, index: u32, text: &str) -> Vec<u8> {
        let mut out = format!("{{\"index\":{index},").into_bytes();
        let key = match self {
            Channel::Text => {
                out.extend_from_slice(b"\"text\":");
                splice::write_string(&mut out, text);
                out.extend_from_slice(b",\"logprobs\":null,\"finish_reason\":null}");
                return out;
            }
            Channel::ToolArguments(call) => {
                out.extend_from_slice(
                    format!("\"delta\":{{\"tool_calls\":[{{\"index\":{call},\"function\":{{\"arguments\":").as_bytes(),
                );
                splice::write_string(&mut out, text);
                out.extend_from_slice(b"}}]},\"finish_reason\":null}");
                return out;
            }
            Channel::Content => "content",
            Channel::Refusal => "refusal",
            Channel::ReasoningContent => "reasoning_content",
            Channel::Reasoning => "reasoning",
        };
        out.extend_from_slice(format!("\"delta\":{{\"{key}\":").as_bytes());
        splice::write_string(&mut out, text);
        out.extend_from_slice(b"},\"finish_reason\":null}");
        out
    }
}

/// A text in a choice.
#[derive(Debug)]
pub(crate) struct AnswerText {
    pub channel: Channel,
    pub text: String,
    /// Of the JSON string, quotes included.
    pub span: Range<usize>,
}

/// One choice of an answer or of a chunk.
#[derive(Debug, Default)]
pub(crate) struct AnswerChoice {
    pub index: u32,
    pub texts: Vec<AnswerText>,
    pub finish: Option<String>,
    pub logprobs: Option<Range<usize>>,
    /// Bytes of other things in the message that are not `null`: no stage sees them.
    pub uncovered: u64,
    /// Whether there is something beside texts in the message: a role, a tool call's name.
    pub others: bool,
}

/// An answer or a chunk.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub choices: Vec<AnswerChoice>,
    pub choices_span: Option<Range<usize>>,
    pub usage: Option<Usage>,
    pub usage_span: Option<Range<usize>>,
    /// An `error` object in place of an answer.
    pub error: Option<String>,
}

impl Answer {
    /// Reads a chunk or a whole answer.
    pub(crate) fn parse(json: &str) -> serde_json::Result<Self> {
        let fields: Fields<'_> = serde_json::from_str(json)?;
        let mut answer = Answer::default();
        for (key, value) in fields.0 {
            match key.as_ref() {
                "choices" if !splice::is_null(value) => {
                    answer.choices_span = Some(span_in(json, value));
                    let choices: Vec<&RawValue> = serde_json::from_str(value.get())?;
                    for (position, choice) in choices.into_iter().enumerate() {
                        answer.choices.push(read_choice(json, position, choice)?);
                    }
                }
                "usage" if !splice::is_null(value) => {
                    answer.usage_span = Some(span_in(json, value));
                    answer.usage = read_usage(value.get());
                }
                "error" if !splice::is_null(value) => answer.error = Some(value.get().to_owned()),
                _ => {}
            }
        }
        Ok(answer)
    }
}

/// Reads only what a trace needs of an answer that no stage looks at.
#[derive(Debug, Default)]
pub(crate) struct Glance {
    pub usage: Option<Usage>,
    pub finish: Option<String>,
}

impl Glance {
    /// Looks at a chunk or a whole answer.
    pub(crate) fn parse(json: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Choice {
            finish_reason: Option<String>,
        }
        #[derive(Deserialize)]
        struct Chunk<'a> {
            #[serde(default)]
            choices: Vec<Choice>,
            #[serde(borrow)]
            usage: Option<&'a RawValue>,
        }
        let chunk: Chunk<'_> = serde_json::from_slice(json).ok()?;
        Some(Self {
            usage: chunk.usage.and_then(|usage| read_usage(usage.get())),
            finish: chunk
                .choices
                .into_iter()
                .find_map(|choice| choice.finish_reason),
        })
    }
}

fn read_usage(json: &str) -> Option<Usage> {
    #[derive(Deserialize)]
    struct Details {
        cached_tokens: Option<u32>,
    }
    #[derive(Deserialize)]
    struct RawUsage {
        #[serde(default)]
        prompt_tokens: u32,
        #[serde(default)]
        completion_tokens: u32,
        prompt_tokens_details: Option<Details>,
    }
    let usage: RawUsage = serde_json::from_str(json).ok()?;
    Some(Usage {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        cached_tokens: usage
            .prompt_tokens_details
            .and_then(|details| details.cached_tokens)
            .unwrap_or(0),
    })
}

fn read_choice(json: &str, position: usize, raw: &RawValue) -> serde_json::Result<AnswerChoice> {
    let fields: Fields<'_> = serde_json::from_str(raw.get())?;
    let mut choice = AnswerChoice {
        index: u32::try_from(position).unwrap_or(u32::MAX),
        ..AnswerChoice::default()
    };
    for (key, value) in fields.0 {
        if splice::is_null(value) {
            continue;
        }
        match key.as_ref() {
            "index" => choice.index = serde_json::from_str(value.get())?,
            "finish_reason" => choice.finish = Some(splice::decode(value)?),
            "logprobs" => choice.logprobs = Some(span_in(json, value)),
            "text" => choice.add(json, Channel::Text, value)?,
            "delta" | "message" => read_message(json, value, &mut choice)?,
            _ => choice.uncovered += value.get().len() as u64,
        }
    }
    Ok(choice)
}

impl AnswerChoice {
    fn add(&mut self, json: &str, channel: Channel, raw: &RawValue) -> serde_json::Result<()> {
        self.texts.push(AnswerText {
            channel,
            text: splice::decode(raw)?,
            span: span_in(json, raw),
        });
        Ok(())
    }
}

fn read_message(json: &str, raw: &RawValue, choice: &mut AnswerChoice) -> serde_json::Result<()> {
    let fields: Fields<'_> = serde_json::from_str(raw.get())?;
    for (key, value) in fields.0 {
        if splice::is_null(value) {
            continue;
        }
        let channel = match key.as_ref() {
            "content" => Channel::Content,
            "refusal" => Channel::Refusal,
            "reasoning_content" => Channel::ReasoningContent,
            "reasoning" => Channel::Reasoning,
            "role" => {
                choice.others = true;
                continue;
            }
            "tool_calls" => {
                read_tool_calls(json, value, choice)?;
                continue;
            }
            _ => {
                choice.others = true;
                if value.get() != "[]" {
                    choice.uncovered += value.get().len() as u64;
                }
                continue;
            }
        };
        if splice::is_string(value) {
            choice.add(json, channel, value)?;
        } else {
            choice.others = true;
            choice.uncovered += value.get().len() as u64;
        }
    }
    Ok(())
}

fn read_tool_calls(
    json: &str,
    raw: &RawValue,
    choice: &mut AnswerChoice,
) -> serde_json::Result<()> {
    let calls: Vec<&RawValue> = serde_json::from_str(raw.get())?;
    for (position, call) in calls.into_iter().enumerate() {
        let fields: Fields<'_> = serde_json::from_str(call.get())?;
        let mut index = u32::try_from(position).unwrap_or(u32::MAX);
        if let Some((_, value)) = fields.0.iter().find(|(key, _)| key == "index") {
            index = serde_json::from_str(value.get())?;
        }
        for (key, value) in fields.0 {
            match key.as_ref() {
                "index" => {}
                "id" | "type" => choice.others = true,
                "function" if !splice::is_null(value) => {
                    let function: Fields<'_> = serde_json::from_str(value.get())?;
                    for (key, value) in function.0 {
                        if key == "arguments" && splice::is_string(value) {
                            choice.add(json, Channel::ToolArguments(index), value)?;
                        } else if !splice::is_null(value) {
                            choice.others = true;
                            choice.uncovered += value.get().len() as u64;
                        }
                    }
                }
                _ => choice.uncovered += value.get().len() as u64,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_of_an_answer_is_found_with_its_place() {
        let json = r#"{"id":"x","choices":[{"index":1,"delta":{"role":"assistant","content":"h\u00e9","refusal":null,
            "tool_calls":[{"index":2,"id":"c","function":{"name":"mail","arguments":"{\"a\":1}"}}],"audio":{"d":"x"}},
            "finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#;
        let answer = Answer::parse(json).unwrap();
        let choice = &answer.choices[0];
        assert_eq!((choice.index, choice.finish.as_deref()), (1, Some("stop")));
        let texts: Vec<_> = choice
            .texts
            .iter()
            .map(|it| (it.channel, it.text.as_str(), &json[it.span.clone()]))
            .collect();
        assert_eq!(
            texts,
            [
                (Channel::Content, "hé", "\"h\\u00e9\""),
                (Channel::ToolArguments(2), "{\"a\":1}", "\"{\\\"a\\\":1}\""),
            ]
        );
        assert_eq!(
            choice.uncovered,
            "\"mail\"".len() as u64 + "{\"d\":\"x\"}".len() as u64
        );
        assert_eq!(answer.usage.unwrap().completion_tokens, 4);
    }

    #[test]
    fn a_choice_made_for_held_text_reads_back() {
        for channel in [
            Channel::Content,
            Channel::Text,
            Channel::Refusal,
            Channel::Reasoning,
            Channel::ToolArguments(3),
        ] {
            let json = format!(
                "{{\"choices\":[{}]}}",
                String::from_utf8(channel.alone(2, "a\"b")).unwrap()
            );
            let answer = Answer::parse(&json).unwrap();
            assert_eq!(answer.choices[0].index, 2);
            assert_eq!(
                (
                    answer.choices[0].texts[0].channel,
                    answer.choices[0].texts[0].text.as_str()
                ),
                (channel, "a\"b")
            );
        }
    }
}
