//! Answers as OpenAI's JSON: whole ones, and the blocks of a stream.
//!
//! Written by hand into one buffer: an answer is on the path of every request, and its parts that
//! never change in a stream (`id`, `created`, `model`) are rendered once.

use std::fmt::Write as _;

use bytes::{BufMut, Bytes, BytesMut};
use millgate_ops::response::{
    Choice, Completion, Delta, Echoed, Event, FinishReason, ToolCallStart, Usage,
};
use millgate_ops::{ApiError, Endpoint, TraceId};

use crate::logprobs::logprobs;
use crate::responses::{self, ResponsesRenderer};

/// The last block of every stream.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

/// What every part of one answer repeats.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Becomes the answer's id.
    pub trace: TraceId,
    /// The model name that the client asked for.
    pub model: &'a str,
    /// Seconds since 1970.
    pub created: u64,
    /// Which API's words to use.
    pub endpoint: Endpoint,
    /// Whether a stream tells its tokens at the end: then the chunks before say `"usage":null`.
    pub include_usage: bool,
    /// What an answer of `/v1/responses` repeats of its request.
    pub echoed: Option<&'a Echoed>,
}

impl Head<'_> {
    /// Writes `"id":…,"object":…,"created":…,"model":…`.
    fn write(&self, out: &mut BytesMut, stream: bool) {
        let (prefix, object) = match (self.endpoint, stream) {
            (Endpoint::Completions, _) => ("cmpl", "text_completion"),
            (_, false) => ("chatcmpl", "chat.completion"),
            (_, true) => ("chatcmpl", "chat.completion.chunk"),
        };
        format(
            out,
            format_args!(
                "\"id\":\"{prefix}-{}\",\"object\":\"{object}\",\"created\":{},\"model\":",
                self.trace, self.created
            ),
        );
        string(out, self.model);
    }
}

/// A whole answer.
#[must_use]
pub fn completion(head: Head<'_>, answer: &Completion) -> Bytes {
    if head.endpoint == Endpoint::Responses {
        return responses::whole(head, answer);
    }
    let text: usize = answer.choices.iter().map(|choice| choice.text.len()).sum();
    let mut out = BytesMut::with_capacity(512 + text + text / 8);
    out.put_u8(b'{');
    head.write(&mut out, false);
    out.put_slice(b",\"choices\":[");
    for (place, choice) in answer.choices.iter().enumerate() {
        if place > 0 {
            out.put_u8(b',');
        }
        self::choice(&mut out, head.endpoint, choice);
    }
    out.put_slice(b"],\"usage\":");
    usage(&mut out, answer.usage);
    out.put_u8(b'}');
    out.freeze()
}

fn choice(out: &mut BytesMut, endpoint: Endpoint, choice: &Choice) {
    format(out, format_args!("{{\"index\":{},", choice.index));
    match endpoint {
        Endpoint::Completions => {
            out.put_slice(b"\"text\":");
            string(out, &choice.text);
            out.put_slice(b",\"logprobs\":");
        }
        _ => {
            out.put_slice(b"\"message\":{\"role\":\"assistant\",\"content\":");
            if choice.text.is_empty() && !choice.tool_calls.is_empty() {
                out.put_slice(b"null");
            } else {
                string(out, &choice.text);
            }
            out.put_slice(b",\"refusal\":null");
            for (place, call) in choice.tool_calls.iter().enumerate() {
                out.put_slice(if place > 0 {
                    b","
                } else {
                    b",\"tool_calls\":["
                });
                out.put_slice(b"{\"id\":");
                string(out, &call.id);
                out.put_slice(b",\"type\":\"function\",\"function\":{\"name\":");
                string(out, &call.name);
                out.put_slice(b",\"arguments\":");
                string(out, &call.arguments);
                out.put_slice(b"}}");
            }
            if !choice.tool_calls.is_empty() {
                out.put_u8(b']');
            }
            out.put_slice(b"},\"logprobs\":");
        }
    }
    logprobs(out, endpoint, choice.logprobs.as_deref(), 0);
    format(
        out,
        format_args!(",\"finish_reason\":\"{}\"}}", choice.finish.name()),
    );
}

/// Renders the events of one stream as server-sent events.
#[derive(Debug)]
pub struct StreamRenderer {
    endpoint: Endpoint,
    /// For `/v1/responses`, whose events are of another kind.
    responses: Option<ResponsesRenderer>,
    /// `data: {"id":…,"model":…,`, which each block begins with.
    prefix: Bytes,
    /// What each block but the last one ends with.
    suffix: &'static [u8],
    /// Per choice: how many characters were sent, once its first block was (chat names the role
    /// in it).
    sent: Vec<Option<usize>>,
}

impl StreamRenderer {
    /// For one stream.
    #[must_use]
    pub fn new(head: Head<'_>) -> Self {
        let mut prefix = BytesMut::with_capacity(192);
        prefix.put_slice(b"data: {");
        head.write(&mut prefix, true);
        prefix.put_slice(b",\"choices\":[");
        Self {
            endpoint: head.endpoint,
            responses: (head.endpoint == Endpoint::Responses).then(|| ResponsesRenderer::new(head)),
            prefix: prefix.freeze(),
            suffix: match head.include_usage {
                true => b"}],\"usage\":null}\n\n",
                false => b"}]}\n\n",
            },
            sent: Vec::new(),
        }
    }

    /// The blocks of one event, each ended by a blank line.
    #[must_use]
    pub fn render(&mut self, event: &Event) -> Bytes {
        if let Some(responses) = &mut self.responses {
            return responses.render(event);
        }
        match event {
            Event::Raw(blocks) => blocks.clone(),
            Event::Delta(delta) => self.delta(delta),
            Event::ToolCall(start) => self.tool_call(start),
            Event::ToolArguments {
                choice,
                index,
                text,
            } => {
                let mut inner = format!("{{\"index\":{index},\"function\":{{\"arguments\":");
                inner.push_str(&serde_json::Value::from(&**text).to_string());
                inner.push_str("}}");
                self.tool_delta(*choice, &inner)
            }
            Event::Finished { choice, reason } => self.finished(*choice, *reason),
            Event::Usage(tokens) => {
                let mut out = self.block(0);
                out.put_slice(b"],\"usage\":");
                usage(&mut out, *tokens);
                out.put_slice(b"}\n\n");
                out.freeze()
            }
            Event::Blocked { choice, error: why } => {
                // A client that raises on errors gets the reason; one that only looks at
                // `finish_reason` still sees that the answer was filtered.
                let mut out =
                    BytesMut::from(&self.finished(*choice, FinishReason::ContentFilter)[..]);
                out.put_slice(&error_block(why));
                out.freeze()
            }
            Event::Error(error) => error_block(error),
            Event::Done => Bytes::from_static(DONE),
        }
    }

    fn delta(&mut self, delta: &Delta) -> Bytes {
        let before = self.begin(delta.choice);
        let mut out = self.block(delta.text.len());
        format(&mut out, format_args!("{{\"index\":{},", delta.choice));
        match self.endpoint {
            Endpoint::Completions => {
                out.put_slice(b"\"text\":");
                string(&mut out, &delta.text);
            }
            _ => {
                out.put_slice(b"\"delta\":{");
                if before.is_none() {
                    out.put_slice(b"\"role\":\"assistant\",");
                }
                out.put_slice(b"\"content\":");
                string(&mut out, &delta.text);
                out.put_u8(b'}');
            }
        }
        out.put_slice(b",\"logprobs\":");
        let offset = before.unwrap_or(0);
        logprobs(&mut out, self.endpoint, delta.logprobs.as_deref(), offset);
        out.put_slice(b",\"finish_reason\":null");
        out.put_slice(self.suffix);
        if let Some(Some(sent)) = self.sent.get_mut(delta.choice as usize) {
            *sent += delta.text.chars().count();
        }
        out.freeze()
    }

    fn finished(&mut self, choice: u32, reason: FinishReason) -> Bytes {
        let first = self.begin(choice).is_none();
        let mut out = self.block(0);
        let inner = match (self.endpoint, first) {
            (Endpoint::Completions, _) => r#""text":"""#,
            (_, true) => r#""delta":{"role":"assistant","content":""}"#,
            (_, false) => r#""delta":{}"#,
        };
        let reason = reason.name();
        format(
            &mut out,
            format_args!(
                "{{\"index\":{choice},{inner},\"logprobs\":null,\"finish_reason\":\"{reason}\""
            ),
        );
        out.put_slice(self.suffix);
        out.freeze()
    }

    fn tool_call(&mut self, start: &ToolCallStart) -> Bytes {
        let text = |text: &str| serde_json::Value::from(text).to_string();
        let inner = format!(
            "{{\"index\":{},\"id\":{},\"type\":\"function\",\"function\":{{\"name\":{},\"arguments\":\"\"}}}}",
            start.index,
            text(&start.id),
            text(&start.name)
        );
        self.tool_delta(start.choice, &inner)
    }

    fn tool_delta(&mut self, choice: u32, inner: &str) -> Bytes {
        let role = match self.begin(choice) {
            None => "\"role\":\"assistant\",\"content\":null,",
            Some(_) => "",
        };
        let mut out = self.block(inner.len());
        format(
            &mut out,
            format_args!(
                "{{\"index\":{choice},\"delta\":{{{role}\"tool_calls\":[{inner}]}},\"logprobs\":null,\"finish_reason\":null"
            ),
        );
        out.put_slice(self.suffix);
        out.freeze()
    }

    /// Notes that a choice begins; gives what it had sent if it began before.
    fn begin(&mut self, choice: u32) -> Option<usize> {
        let place = choice as usize;
        if self.sent.len() <= place {
            self.sent.resize(place + 1, None);
        }
        let slot = self.sent.get_mut(place)?;
        slot.replace(slot.unwrap_or(0))
    }

    fn block(&self, text: usize) -> BytesMut {
        let mut out = BytesMut::with_capacity(self.prefix.len() + text + text / 8 + 128);
        out.put_slice(&self.prefix);
        out
    }
}

/// An error as a block of a stream that has already begun.
#[must_use]
pub fn error_block(error: &ApiError) -> Bytes {
    let mut out = BytesMut::with_capacity(128 + error.message.len());
    out.put_slice(b"data: ");
    write_error(&mut out, error);
    out.put_slice(b"\n\n");
    out.freeze()
}

/// An error as a body: `{"error":{"message","type","param","code"}}`.
#[must_use]
pub fn error(error: &ApiError) -> Bytes {
    let mut out = BytesMut::with_capacity(128 + error.message.len());
    write_error(&mut out, error);
    out.freeze()
}

fn write_error(out: &mut BytesMut, error: &ApiError) {
    out.put_slice(b"{\"error\":{\"message\":");
    string(out, &error.message);
    out.put_slice(b",\"type\":");
    string(out, error.kind);
    out.put_slice(b",\"param\":");
    match &error.param {
        Some(param) => string(out, param),
        None => out.put_slice(b"null"),
    }
    out.put_slice(b",\"code\":");
    string(out, &error.code);
    out.put_slice(b"}}");
}

fn usage(out: &mut BytesMut, usage: Usage) {
    let Usage {
        prompt_tokens,
        cached_tokens,
        completion_tokens,
    } = usage;
    let total = prompt_tokens.saturating_add(completion_tokens);
    format(
        out,
        format_args!(
            "{{\"prompt_tokens\":{prompt_tokens},\"completion_tokens\":{completion_tokens},\"total_tokens\":{total},\"prompt_tokens_details\":{{\"cached_tokens\":{cached_tokens}}}}}"
        ),
    );
}

/// JSON has no infinities: the least logarithm stands for "never".
pub(crate) fn number(out: &mut BytesMut, value: f32) {
    let value = if value.is_finite() { value } else { -9999.0 };
    format(out, format_args!("{value}"));
}

/// A JSON string.
pub(crate) fn string(out: &mut BytesMut, text: &str) {
    // Writing to memory cannot fail.
    let _ = serde_json::to_writer(out.writer(), text);
}

pub(crate) fn format(out: &mut BytesMut, args: std::fmt::Arguments<'_>) {
    // Writing to memory cannot fail.
    let _ = out.write_fmt(args);
}

#[cfg(test)]
mod tests {
    use super::*;
    use millgate_ops::response::{TokenLogprob, ToolCall};
    use serde_json::Value;

    fn head(endpoint: Endpoint) -> Head<'static> {
        Head {
            trace: TraceId::first_at(7),
            model: "a \"model\"",
            created: 3,
            endpoint,
            include_usage: false,
            echoed: None,
        }
    }

    fn block(bytes: &Bytes) -> Value {
        let text = std::str::from_utf8(bytes).unwrap();
        let json = text.strip_prefix("data: ").unwrap();
        serde_json::from_str(json.strip_suffix("\n\n").unwrap()).unwrap()
    }

    fn token(text: &str) -> TokenLogprob {
        TokenLogprob {
            text: text.into(),
            logprob: Some(-0.5),
            top: vec![(text.into(), -0.5), ("\"".into(), f32::NEG_INFINITY)],
        }
    }

    #[test]
    fn a_whole_answer_is_json_in_openais_shape() {
        let answer = Completion {
            choices: vec![Choice {
                index: 0,
                text: "line\n\u{1F600}\u{2028}".into(),
                tool_calls: Vec::new(),
                logprobs: Some(vec![token("line")]),
                finish: FinishReason::Stop,
            }],
            usage: Usage {
                prompt_tokens: 2,
                cached_tokens: 1,
                completion_tokens: 3,
            },
        };
        let json: Value =
            serde_json::from_slice(&completion(head(Endpoint::Chat), &answer)).unwrap();
        assert_eq!(json["object"], "chat.completion");
        assert_eq!(json["model"], "a \"model\"");
        assert_eq!(
            json["choices"][0]["message"]["content"],
            "line\n\u{1F600}\u{2028}"
        );
        assert_eq!(
            json["choices"][0]["logprobs"]["content"][0]["bytes"][0],
            108
        );
        let top = &json["choices"][0]["logprobs"]["content"][0]["top_logprobs"][1];
        assert_eq!(top["logprob"], -9999.0);
        assert_eq!(json["usage"]["total_tokens"], 5);
        let json: Value =
            serde_json::from_slice(&completion(head(Endpoint::Completions), &answer)).unwrap();
        assert_eq!(json["object"], "text_completion");
        assert_eq!(json["choices"][0]["logprobs"]["tokens"][0], "line");
        assert_eq!(json["choices"][0]["logprobs"]["text_offset"][0], 0);
    }

    #[test]
    fn calls_of_tools_and_the_absent_usage_are_where_clients_look_for_them() {
        let call = ToolCall {
            id: "call_1".into(),
            name: "weather".into(),
            arguments: "{\"city\": \"Bern\"}".into(),
        };
        let answer = Completion {
            choices: vec![Choice {
                index: 0,
                text: String::new(),
                tool_calls: vec![call.clone(), call],
                logprobs: None,
                finish: FinishReason::ToolCalls,
            }],
            usage: Usage::default(),
        };
        let json: Value =
            serde_json::from_slice(&completion(head(Endpoint::Chat), &answer)).unwrap();
        let message = &json["choices"][0]["message"];
        assert_eq!(message["content"], Value::Null);
        assert_eq!(message["tool_calls"][1]["function"]["name"], "weather");
        assert_eq!(json["choices"][0]["finish_reason"], "tool_calls");

        let mut renderer = StreamRenderer::new(Head {
            include_usage: true,
            ..head(Endpoint::Chat)
        });
        let first = block(&renderer.render(&Event::ToolCall(ToolCallStart {
            choice: 0,
            index: 0,
            id: "call_1".into(),
            name: "weather".into(),
        })));
        let delta = &first["choices"][0]["delta"];
        assert_eq!(delta["role"], "assistant");
        assert_eq!(delta["tool_calls"][0]["id"], "call_1");
        assert!(first.as_object().unwrap().contains_key("usage") && first["usage"].is_null());
        let next = block(&renderer.render(&Event::ToolArguments {
            choice: 0,
            index: 0,
            text: "{\"".into(),
        }));
        let delta = &next["choices"][0]["delta"];
        assert_eq!(delta["tool_calls"][0]["function"]["arguments"], "{\"");
        assert!(delta.get("role").is_none());
    }

    #[test]
    fn a_stream_names_the_role_once_for_each_choice() {
        let mut renderer = StreamRenderer::new(head(Endpoint::Chat));
        let mut delta = |choice, text: &str| {
            let event = Event::Delta(Delta {
                choice,
                text: text.into(),
                logprobs: None,
            });
            block(&renderer.render(&event))
        };
        let first = delta(0, "a");
        assert_eq!(first["object"], "chat.completion.chunk");
        assert_eq!(first["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(delta(0, "b")["choices"][0]["delta"]["role"], Value::Null);
        assert_eq!(delta(1, "c")["choices"][0]["delta"]["role"], "assistant");
        let end = renderer.render(&Event::Finished {
            choice: 1,
            reason: FinishReason::Length,
        });
        assert_eq!(block(&end)["choices"][0]["finish_reason"], "length");
        assert_eq!(&renderer.render(&Event::Done)[..], DONE);
    }

    #[test]
    fn offsets_of_a_text_stream_go_on_over_its_blocks() {
        let mut renderer = StreamRenderer::new(head(Endpoint::Completions));
        let event = Event::Delta(Delta {
            choice: 0,
            text: "é!".into(),
            logprobs: Some(vec![token("é"), token("!")]),
        });
        let _ = renderer.render(&event);
        let second = block(&renderer.render(&event));
        let offsets = &second["choices"][0]["logprobs"]["text_offset"];
        assert_eq!(*offsets, serde_json::json!([2, 3]));
    }

    #[test]
    fn a_refusal_in_a_stream_ends_the_choice_and_says_why() {
        let mut renderer = StreamRenderer::new(head(Endpoint::Chat));
        let bytes = renderer.render(&Event::Blocked {
            choice: 0,
            error: ApiError::blocked("card-number", "no \"cards\""),
        });
        let text = std::str::from_utf8(&bytes).unwrap();
        let blocks: Vec<&str> = text.split_terminator("\n\n").collect();
        assert_eq!(blocks.len(), 2);
        assert!(blocks[0].contains("content_filter"));
        let error: Value = serde_json::from_str(&blocks[1]["data: ".len()..]).unwrap();
        assert_eq!(error["error"]["code"], "card-number");
        assert_eq!(error["error"]["message"], "no \"cards\"");
        assert_eq!(error["error"]["param"], Value::Null);
    }
}
