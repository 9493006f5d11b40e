//! `/v1/responses` as a chat: its request is rewritten into one, so that the way through the pipeline is the
//! same, and what an upstream answers to that chat is read back as events.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    error::ApiError,
    response::{Choice, Completion, Delta, Event, FinishReason, ToolCall, ToolCallStart, Usage},
};

/// What an answer repeats of its request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Echoed(pub Map<String, Value>);

/// Fields that mean the same in both.
const SAME: [&str; 18] = [
    "model",
    "stream",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "stop",
    "logit_bias",
    "user",
    "metadata",
    "parallel_tool_calls",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
];

fn wrong(message: impl Into<String>, param: &str) -> ApiError {
    ApiError::invalid(message, Some(param))
}

fn unsupported(param: &str, instead: &str) -> ApiError {
    wrong(format!("`{param}` is not supported here: {instead}"), param)
}

/// The request as a chat.
///
/// # Errors
/// 400 that names the field.
pub(crate) fn to_chat(body: &[u8]) -> Result<(Bytes, Echoed), ApiError> {
    let body: Map<String, Value> = serde_json::from_slice(body)
        .map_err(|error| ApiError::invalid(format!("the body cannot be read: {error}"), None))?;
    let mut chat = Map::new();
    let mut messages = Vec::new();
    if let Some(instructions) = body.get("instructions").filter(|it| !it.is_null()) {
        let Some(text) = instructions.as_str() else {
            return Err(wrong("`instructions` must be a text", "instructions"));
        };
        messages.push(json!({"role": "system", "content": text}));
    }
    match body.get("input") {
        None | Some(Value::Null) => return Err(wrong("`input` is missing", "input")),
        Some(Value::String(text)) => messages.push(json!({"role": "user", "content": text})),
        Some(Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                input_item(&format!("input[{index}]"), item, &mut messages)?;
            }
        }
        Some(_) => {
            return Err(wrong(
                "`input` must be a text or an array of items",
                "input",
            ));
        }
    }
    chat.insert("messages".into(), messages.into());
    for (name, value) in &body {
        let off = matches!(value, Value::Null | Value::Bool(false));
        match name.as_str() {
            "input" | "instructions" => {}
            known if SAME.contains(&known) => {
                chat.insert(name.clone(), value.clone());
            }
            _ if value.is_null() => {}
            "max_output_tokens" => {
                chat.insert("max_completion_tokens".into(), value.clone());
            }
            "tools" => {
                chat.insert("tools".into(), tools(value)?);
            }
            "tool_choice" => {
                chat.insert("tool_choice".into(), tool_choice(value)?);
            }
            "text" => {
                if let Some(format) = text_format(value)? {
                    chat.insert("response_format".into(), format);
                }
            }
            "store" | "background" if off => {}
            "truncation" if value == "disabled" => {}
            "include" if value.as_array().is_some_and(Vec::is_empty) => {}
            "stream_options" => {}
            "store" => {
                return Err(unsupported(
                    "store",
                    "answers are not kept to be fetched again",
                ));
            }
            "previous_response_id" => {
                return Err(unsupported(name, "send the whole conversation in `input`"));
            }
            _ => return Err(unsupported(name, "leave it out")),
        }
    }
    if body.get("stream") == Some(&Value::Bool(true)) {
        chat.insert("stream_options".into(), json!({"include_usage": true}));
    }
    let echoed = echoed(&body);
    let text = Value::Object(chat).to_string();
    Ok((text.into(), echoed))
}

fn echoed(body: &Map<String, Value>) -> Echoed {
    let mut out = Map::new();
    let mut repeat = |name: &str, default: Value| {
        let value = body.get(name).filter(|value| !value.is_null());
        out.insert(name.into(), value.cloned().unwrap_or(default));
    };
    repeat("instructions", Value::Null);
    repeat("max_output_tokens", Value::Null);
    repeat("metadata", json!({}));
    repeat("parallel_tool_calls", json!(true));
    repeat("temperature", Value::Null);
    repeat("top_p", Value::Null);
    repeat("tool_choice", json!("auto"));
    repeat("tools", json!([]));
    repeat("text", json!({"format": {"type": "text"}}));
    repeat("user", Value::Null);
    out.insert("previous_response_id".into(), Value::Null);
    out.insert("store".into(), json!(false));
    out.insert("background".into(), json!(false));
    out.insert("truncation".into(), json!("disabled"));
    Echoed(out)
}

/// One item of the conversation.
fn input_item(place: &str, item: &Value, messages: &mut Vec<Value>) -> Result<(), ApiError> {
    let text = |name: &str| {
        item.get(name).and_then(Value::as_str).ok_or_else(|| {
            wrong(
                format!("`{place}.{name}` must be a text"),
                &format!("{place}.{name}"),
            )
        })
    };
    match item
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or("message")
    {
        "message" => {
            let role = text("role")?;
            let content = content(place, item.get("content"))?;
            messages.push(json!({"role": role, "content": content}));
        }
        "function_call" => {
            let call = json!({"id": text("call_id")?, "type": "function",
                "function": {"name": text("name")?, "arguments": text("arguments")?}});
            // Calls that were made together are one message.
            let last = messages
                .last_mut()
                .filter(|last| last["role"] == "assistant");
            match last.and_then(Value::as_object_mut) {
                Some(last) => match last.get_mut("tool_calls").and_then(Value::as_array_mut) {
                    Some(calls) => calls.push(call),
                    None => {
                        last.insert("tool_calls".into(), json!([call]));
                    }
                },
                None => messages
                    .push(json!({"role": "assistant", "content": null, "tool_calls": [call]})),
            }
        }
        "function_call_output" => {
            let output = content(place, item.get("output"))?;
            messages
                .push(json!({"role": "tool", "tool_call_id": text("call_id")?, "content": output}));
        }
        other => {
            return Err(wrong(
                format!("`{place}` has the type `{other}`, which is not supported here"),
                &format!("{place}.type"),
            ));
        }
    }
    Ok(())
}

/// The content of an item: a text, or parts that are texts.
fn content(place: &str, content: Option<&Value>) -> Result<Value, ApiError> {
    let param = format!("{place}.content");
    match content {
        Some(Value::String(text)) => Ok(json!(text)),
        Some(Value::Array(parts)) => {
            let parts = parts.iter().enumerate().map(|(index, part)| {
                let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
                let field = if kind == "refusal" { "refusal" } else { "text" };
                let known = matches!(kind, "input_text" | "output_text" | "text" | "refusal");
                match part.get(field).and_then(Value::as_str) {
                    Some(text) if known => Ok(json!({"type": "text", "text": text})),
                    _ => Err(wrong(
                        format!("`{param}[{index}]` has the type `{kind}`; only texts are supported here"),
                        &format!("{param}[{index}]"),
                    )),
                }
            });
            parts.collect::<Result<Vec<_>, _>>().map(Value::from)
        }
        _ => Err(wrong(
            format!("`{param}` must be a text or an array of parts"),
            &param,
        )),
    }
}

fn tools(tools: &Value) -> Result<Value, ApiError> {
    let Some(tools) = tools.as_array() else {
        return Err(wrong("`tools` must be an array", "tools"));
    };
    let tools = tools.iter().enumerate().map(|(index, tool)| {
        let kind = tool.get("type").and_then(Value::as_str).unwrap_or_default();
        if kind != "function" {
            return Err(wrong(
                format!(
                    "`tools[{index}]` has the type `{kind}`; only functions are supported here"
                ),
                &format!("tools[{index}].type"),
            ));
        }
        let mut function = tool.as_object().cloned().unwrap_or_default();
        function.remove("type");
        // This API holds the arguments to their schema unless it is told not to.
        let strict = function
            .get("strict")
            .and_then(Value::as_bool)
            .unwrap_or(true);
        function.insert("strict".into(), strict.into());
        Ok(json!({"type": "function", "function": function}))
    });
    tools.collect::<Result<Vec<_>, _>>().map(Value::from)
}

fn tool_choice(choice: &Value) -> Result<Value, ApiError> {
    match (choice, choice.get("type").and_then(Value::as_str)) {
        (Value::String(_), _) => Ok(choice.clone()),
        (_, Some("function")) => {
            Ok(json!({"type": "function", "function": {"name": choice.get("name")}}))
        }
        (_, kind) => Err(wrong(
            format!(
                "`tool_choice` of the type `{}` is not supported here; name a function",
                kind.unwrap_or_default()
            ),
            "tool_choice",
        )),
    }
}

/// `text.format` as `response_format`.
fn text_format(text: &Value) -> Result<Option<Value>, ApiError> {
    if !text.is_object() {
        return Err(wrong("`text` must be an object", "text"));
    }
    let Some(format) = text.get("format").filter(|format| !format.is_null()) else {
        return Ok(None);
    };
    Ok(Some(match format.get("type").and_then(Value::as_str) {
        Some("json_schema") => {
            let mut schema = format.as_object().cloned().unwrap_or_default();
            schema.remove("type");
            json!({"type": "json_schema", "json_schema": schema})
        }
        _ => format.clone(),
    }))
}

#[derive(Default, Deserialize)]
struct RawAnswer {
    #[serde(default)]
    choices: Vec<RawChoice>,
    usage: Option<RawUsage>,
}

#[derive(Deserialize)]
struct RawChoice {
    #[serde(default)]
    index: u32,
    #[serde(alias = "delta")]
    message: Option<RawMessage>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct RawMessage {
    content: Option<String>,
    refusal: Option<String>,
    tool_calls: Option<Vec<RawCall>>,
}

#[derive(Deserialize)]
struct RawCall {
    index: Option<u32>,
    id: Option<String>,
    function: Option<RawFunction>,
}

#[derive(Default, Deserialize)]
struct RawFunction {
    name: Option<String>,
    arguments: Option<String>,
}

#[derive(Deserialize)]
struct RawDetails {
    cached_tokens: Option<u32>,
}

#[derive(Deserialize)]
struct RawUsage {
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: u32,
    prompt_tokens_details: Option<RawDetails>,
}

impl RawUsage {
    fn usage(self) -> Usage {
        let cached = self.prompt_tokens_details.and_then(|it| it.cached_tokens);
        Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: cached.unwrap_or(0),
            completion_tokens: self.completion_tokens,
        }
    }
}

fn reason(reason: &str) -> FinishReason {
    match reason {
        "length" => FinishReason::Length,
        "tool_calls" => FinishReason::ToolCalls,
        "content_filter" => FinishReason::ContentFilter,
        _ => FinishReason::Stop,
    }
}

/// An upstream's whole chat.
pub(crate) fn completion(json: &[u8]) -> Result<Completion, ApiError> {
    let answer: RawAnswer = serde_json::from_slice(json).map_err(|error| {
        ApiError::upstream(format!("the upstream's answer cannot be read: {error}"))
    })?;
    let choices = answer.choices.into_iter().map(|choice| {
        let mut text = String::new();
        let mut tool_calls = Vec::new();
        if let Some(message) = choice.message {
            text = message.content.or(message.refusal).unwrap_or_default();
            for call in message.tool_calls.unwrap_or_default() {
                let function = call.function.unwrap_or_default();
                tool_calls.push(ToolCall {
                    id: call.id.unwrap_or_default(),
                    name: function.name.unwrap_or_default(),
                    arguments: function.arguments.unwrap_or_default(),
                });
            }
        }
        Choice {
            index: choice.index,
            text,
            tool_calls,
            logprobs: None,
            finish: reason(choice.finish_reason.as_deref().unwrap_or("stop")),
        }
    });
    Ok(Completion {
        choices: choices.collect(),
        usage: answer.usage.map(RawUsage::usage).unwrap_or_default(),
    })
}

/// The chunks of an upstream's streamed chat as events.
pub(crate) fn events(blocks: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    for line in blocks.split(|byte| *byte == b'\n') {
        let Some(data) = line.strip_prefix(b"data:") else {
            continue;
        };
        let Ok(chunk) = serde_json::from_slice::<RawAnswer>(data) else {
            continue;
        };
        for choice in chunk.choices {
            let number = choice.index;
            if let Some(message) = choice.message {
                let text = message.content.or(message.refusal).unwrap_or_default();
                if !text.is_empty() {
                    events.push(Event::Delta(Delta {
                        choice: number,
                        text,
                        logprobs: None,
                    }));
                }
                for (place, call) in message
                    .tool_calls
                    .unwrap_or_default()
                    .into_iter()
                    .enumerate()
                {
                    let index = call.index.unwrap_or(place as u32);
                    let function = call.function.unwrap_or_default();
                    if let (Some(id), Some(name)) = (call.id, function.name) {
                        events.push(Event::ToolCall(ToolCallStart {
                            choice: number,
                            index,
                            id,
                            name,
                        }));
                    }
                    if let Some(text) = function.arguments.filter(|text| !text.is_empty()) {
                        events.push(Event::ToolArguments {
                            choice: number,
                            index,
                            text,
                        });
                    }
                }
            }
            if let Some(finish) = choice.finish_reason {
                events.push(Event::Finished {
                    choice: number,
                    reason: reason(&finish),
                });
            }
        }
        if let Some(usage) = chunk.usage {
            events.push(Event::Usage(usage.usage()));
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(body: Value) -> Value {
        let (chat, _) = to_chat(body.to_string().as_bytes()).unwrap();
        serde_json::from_slice(&chat).unwrap()
    }

    fn refused(body: Value) -> String {
        let error = to_chat(body.to_string().as_bytes()).unwrap_err();
        error.param.unwrap()
    }

    #[test]
    fn a_request_becomes_a_chat() {
        let found = chat(json!({
            "model": "m", "instructions": "Be brief.", "max_output_tokens": 9, "stream": true, "temperature": 0,
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
                {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}"},
                {"type": "function_call", "call_id": "b", "name": "clock", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "a", "output": "rain"},
            ],
            "tools": [{"type": "function", "name": "weather", "parameters": {"type": "object"}}],
            "tool_choice": {"type": "function", "name": "weather"},
            "text": {"format": {"type": "json_schema", "name": "x", "schema": true}},
        }));
        let roles: Vec<_> = found["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["role"].as_str().unwrap())
            .collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool"]);
        assert_eq!(
            found["messages"][2]["tool_calls"][1]["function"]["name"],
            "clock"
        );
        assert_eq!(found["messages"][3]["tool_call_id"], "a");
        assert_eq!(found["max_completion_tokens"], 9);
        assert_eq!(found["stream_options"]["include_usage"], true);
        assert_eq!(found["tools"][0]["function"]["strict"], true);
        assert_eq!(found["tool_choice"]["function"]["name"], "weather");
        assert_eq!(found["response_format"]["json_schema"]["name"], "x");
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (name, value) in [
            ("previous_response_id", json!("resp_1")),
            ("store", json!(true)),
            ("background", json!(true)),
            ("conversation", json!("c")),
            ("reasoning", json!({"effort": "low"})),
        ] {
            assert_eq!(
                refused(json!({"model": "m", "input": "x", name: value})),
                name
            );
        }
        assert_eq!(refused(json!({"model": "m"})), "input");
        assert_eq!(
            refused(json!({"input": "x", "tools": [{"type": "web_search"}]})),
            "tools[0].type"
        );
        assert_eq!(
            refused(json!({"input": [{"type": "item_reference"}]})),
            "input[0].type"
        );
    }

    #[test]
    fn an_upstreams_chunks_are_read_as_events() {
        let chunk = |delta: Value, finish: Value| {
            let chunk = json!({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
            format!("data: {chunk}\n\n")
        };
        let blocks = [
            ": wait\n\n".to_owned(),
            chunk(json!({"role": "assistant", "content": ""}), Value::Null),
            chunk(json!({"content": "Hi"}), Value::Null),
            chunk(json!({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]}), json!("tool_calls")),
            format!("data: {}\n\n", json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})),
        ]
        .concat();
        let found = events(blocks.as_bytes());
        assert!(matches!(&found[0], Event::Delta(delta) if delta.text == "Hi"));
        assert!(matches!(&found[1], Event::ToolCall(start) if start.name == "f"));
        assert!(matches!(&found[2], Event::ToolArguments { text, .. } if text == "{}"));
        assert!(matches!(
            &found[3],
            Event::Finished {
                reason: FinishReason::ToolCalls,
                ..
            }
        ));
        assert!(matches!(&found[4], Event::Usage(usage) if usage.completion_tokens == 4));
        assert_eq!(found.len(), 5);
    }
}
