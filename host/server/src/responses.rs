//! Answers as `/v1/responses` has them: a response that holds items (a message, calls of functions), and the
//! sequence of events by which one grows.

use bytes::Bytes;
use millgate_ops::ApiError;
use millgate_ops::response::{Completion, Event, FinishReason, Usage};
use serde_json::{Map, Value, json};

use crate::render::Head;

/// The parts of a response that do not change while it grows.
#[derive(Debug)]
struct Frame {
    trace: String,
    fields: Map<String, Value>,
}

impl Frame {
    fn new(head: Head<'_>) -> Self {
        let mut fields = head
            .echoed
            .map(|echoed| echoed.0.clone())
            .unwrap_or_default();
        let trace = head.trace.to_string();
        fields.insert("id".into(), format!("resp_{trace}").into());
        fields.insert("object".into(), "response".into());
        fields.insert("created_at".into(), head.created.into());
        fields.insert("model".into(), head.model.into());
        fields.insert("error".into(), Value::Null);
        fields.insert("incomplete_details".into(), Value::Null);
        Self { trace, fields }
    }

    fn response(&self, status: &str, output: &[Value], usage: Option<Usage>) -> Map<String, Value> {
        let mut response = self.fields.clone();
        response.insert("status".into(), status.into());
        response.insert("output".into(), output.to_vec().into());
        response.insert("usage".into(), usage.map_or(Value::Null, usage_json));
        response
    }

    /// A response that has come to its end.
    fn ended(&self, finish: FinishReason, output: &[Value], usage: Usage) -> Value {
        let why = match finish {
            FinishReason::Stop | FinishReason::ToolCalls => {
                return self.response("completed", output, Some(usage)).into();
            }
            FinishReason::Length => "max_output_tokens",
            FinishReason::ContentFilter => "content_filter",
        };
        let mut response = self.response("incomplete", output, Some(usage));
        response.insert("incomplete_details".into(), json!({"reason": why}));
        response.into()
    }

    fn message(&self, status: &str, text: Option<&str>) -> Value {
        let content: Vec<Value> = text.into_iter().map(part).collect();
        json!({"id": format!("msg_{}", self.trace), "type": "message", "status": status, "role": "assistant",
            "content": content})
    }

    fn call(&self, index: usize, status: &str, id: &str, name: &str, arguments: &str) -> Value {
        json!({"id": format!("fc_{}_{index}", self.trace), "type": "function_call", "status": status,
            "call_id": id, "name": name, "arguments": arguments})
    }
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn usage_json(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens.saturating_add(usage.completion_tokens),
    })
}

/// A whole answer.
pub(crate) fn whole(head: Head<'_>, answer: &Completion) -> Bytes {
    let frame = Frame::new(head);
    let mut output = Vec::new();
    let mut finish = FinishReason::Stop;
    if let Some(choice) = answer.choices.first() {
        finish = choice.finish;
        let status = item_status(finish);
        if !choice.text.is_empty() || choice.tool_calls.is_empty() {
            output.push(frame.message(status, Some(&choice.text)));
        }
        for (index, call) in choice.tool_calls.iter().enumerate() {
            output.push(frame.call(index, status, &call.id, &call.name, &call.arguments));
        }
    }
    frame
        .ended(finish, &output, answer.usage)
        .to_string()
        .into()
}

fn item_status(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop | FinishReason::ToolCalls => "completed",
        FinishReason::Length | FinishReason::ContentFilter => "incomplete",
    }
}

/// The item that grows.
#[derive(Debug)]
enum Open {
    Message(String),
    Call {
        index: usize,
        id: String,
        name: String,
        arguments: String,
    },
}

/// Renders the events of one stream.
#[derive(Debug)]
pub(crate) struct ResponsesRenderer {
    frame: Frame,
    sequence: u64,
    /// The items that are complete.
    output: Vec<Value>,
    open: Option<Open>,
    calls: usize,
    finish: FinishReason,
    usage: Usage,
    failed: bool,
}

impl ResponsesRenderer {
    pub(crate) fn new(head: Head<'_>) -> Self {
        Self {
            frame: Frame::new(head),
            sequence: 0,
            output: Vec::new(),
            open: None,
            calls: 0,
            finish: FinishReason::Stop,
            usage: Usage::default(),
            failed: false,
        }
    }

    /// The events of ours for one event.
    pub(crate) fn render(&mut self, event: &Event) -> Bytes {
        let mut out = String::new();
        if self.sequence == 0 {
            for name in ["response.created", "response.in_progress"] {
                let response = self.frame.response("in_progress", &[], None);
                self.say(&mut out, name, json!({"response": response}));
            }
        }
        match event {
            // What an upstream streams was read as events.
            Event::Raw(_) => {}
            Event::Delta(delta) if delta.choice == 0 => self.text(&delta.text, &mut out),
            Event::ToolCall(start) if start.choice == 0 => {
                self.close("completed", &mut out);
                let index = self.calls;
                self.calls += 1;
                let item = self
                    .frame
                    .call(index, "in_progress", &start.id, &start.name, "");
                let place = self.output.len();
                self.say(
                    &mut out,
                    "response.output_item.added",
                    json!({"output_index": place, "item": item}),
                );
                self.open = Some(Open::Call {
                    index,
                    id: start.id.clone(),
                    name: start.name.clone(),
                    arguments: String::new(),
                });
            }
            Event::ToolArguments {
                choice: 0, text, ..
            } => {
                if let Some(Open::Call {
                    index, arguments, ..
                }) = &mut self.open
                {
                    arguments.push_str(text);
                    let id = format!("fc_{}_{index}", self.frame.trace);
                    let place = self.output.len();
                    self.say(
                        &mut out,
                        "response.function_call_arguments.delta",
                        json!({"item_id": id, "output_index": place, "delta": text}),
                    );
                }
            }
            Event::Finished { choice: 0, reason } => {
                self.finish = *reason;
                if self.open.is_none() && self.output.is_empty() {
                    self.text("", &mut out);
                }
                self.close(item_status(*reason), &mut out);
            }
            Event::Usage(usage) => self.usage = *usage,
            Event::Blocked { error, .. } | Event::Error(error) => self.fail(error, &mut out),
            Event::Done if !self.failed => {
                let response = self.frame.ended(self.finish, &self.output, self.usage);
                let name = match item_status(self.finish) {
                    "completed" => "response.completed",
                    _ => "response.incomplete",
                };
                self.say(&mut out, name, json!({"response": response}));
            }
            _ => {}
        }
        out.into()
    }

    fn text(&mut self, text: &str, out: &mut String) {
        let place = self.output.len();
        let id = format!("msg_{}", self.frame.trace);
        if !matches!(self.open, Some(Open::Message(_))) {
            self.close("completed", out);
            let item = self.frame.message("in_progress", None);
            self.say(
                out,
                "response.output_item.added",
                json!({"output_index": place, "item": item}),
            );
            self.say(
                out,
                "response.content_part.added",
                json!({"item_id": id, "output_index": place, "content_index": 0, "part": part("")}),
            );
            self.open = Some(Open::Message(String::new()));
        }
        if let Some(Open::Message(all)) = &mut self.open {
            all.push_str(text);
        }
        if !text.is_empty() {
            self.say(
                out,
                "response.output_text.delta",
                json!({"item_id": id, "output_index": place, "content_index": 0, "delta": text, "logprobs": []}),
            );
        }
    }

    /// The item that grows is complete.
    fn close(&mut self, status: &str, out: &mut String) {
        let place = self.output.len();
        let item = match self.open.take() {
            None => return,
            Some(Open::Message(text)) => {
                let id = format!("msg_{}", self.frame.trace);
                self.say(
                    out,
                    "response.output_text.done",
                    json!({"item_id": id, "output_index": place, "content_index": 0, "text": text, "logprobs": []}),
                );
                self.say(
                    out,
                    "response.content_part.done",
                    json!({"item_id": id, "output_index": place, "content_index": 0, "part": part(&text)}),
                );
                self.frame.message(status, Some(&text))
            }
            Some(Open::Call {
                index,
                id,
                name,
                arguments,
            }) => {
                let item_id = format!("fc_{}_{index}", self.frame.trace);
                self.say(
                    out,
                    "response.function_call_arguments.done",
                    json!({"item_id": item_id, "output_index": place, "name": name, "arguments": arguments}),
                );
                self.frame.call(index, status, &id, &name, &arguments)
            }
        };
        self.say(
            out,
            "response.output_item.done",
            json!({"output_index": place, "item": item}),
        );
        self.output.push(item);
    }

    fn fail(&mut self, error: &ApiError, out: &mut String) {
        self.failed = true;
        self.close("incomplete", out);
        let mut response = self
            .frame
            .response("failed", &self.output, Some(self.usage));
        let why = json!({"code": error.code, "message": error.message});
        response.insert("error".into(), why);
        self.say(out, "response.failed", json!({"response": response}));
        self.say(
            out,
            "error",
            json!({"code": error.code, "message": error.message, "param": error.param}),
        );
    }

    fn say(&mut self, out: &mut String, name: &str, mut fields: Value) {
        fields["type"] = name.into();
        fields["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        *out += &format!("event: {name}\ndata: {fields}\n\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millgate_ops::response::{Delta, ToolCallStart};
    use millgate_ops::{Endpoint, TraceId};

    fn renderer() -> ResponsesRenderer {
        ResponsesRenderer::new(Head {
            trace: TraceId::new(1),
            model: "m",
            created: 7,
            endpoint: Endpoint::Responses,
            include_usage: true,
            echoed: None,
        })
    }

    fn read(renderer: &mut ResponsesRenderer, events: &[Event]) -> Vec<Value> {
        let text: String = events
            .iter()
            .map(|event| String::from_utf8(renderer.render(event).to_vec()).unwrap())
            .collect();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.map(|json| serde_json::from_str(json).unwrap())
            .collect()
    }

    fn names(events: &[Value]) -> Vec<&str> {
        let full = events.iter().map(|event| event["type"].as_str().unwrap());
        full.map(|name| name.strip_prefix("response.").unwrap_or(name))
            .collect()
    }

    #[test]
    fn a_text_and_a_call_grow_in_the_order_of_the_api() {
        let delta = |text: &str| {
            Event::Delta(Delta {
                choice: 0,
                text: text.into(),
                logprobs: None,
            })
        };
        let arguments = |text: &str| Event::ToolArguments {
            choice: 0,
            index: 0,
            text: text.into(),
        };
        let found = read(
            &mut renderer(),
            &[
                delta("He"),
                delta("y"),
                Event::ToolCall(ToolCallStart {
                    choice: 0,
                    index: 0,
                    id: "call_1".into(),
                    name: "f".into(),
                }),
                arguments("{"),
                arguments("}"),
                Event::Finished {
                    choice: 0,
                    reason: FinishReason::ToolCalls,
                },
                Event::Usage(Usage {
                    prompt_tokens: 3,
                    cached_tokens: 1,
                    completion_tokens: 2,
                }),
                Event::Done,
            ],
        );
        assert_eq!(
            names(&found),
            [
                "created",
                "in_progress",
                "output_item.added",
                "content_part.added",
                "output_text.delta",
                "output_text.delta",
                "output_text.done",
                "content_part.done",
                "output_item.done",
                "output_item.added",
                "function_call_arguments.delta",
                "function_call_arguments.delta",
                "function_call_arguments.done",
                "output_item.done",
                "completed",
            ]
        );
        let numbers: Vec<u64> = found
            .iter()
            .map(|e| e["sequence_number"].as_u64().unwrap())
            .collect();
        assert!(numbers.iter().copied().eq(0..found.len() as u64));
        let response = &found.last().unwrap()["response"];
        assert_eq!(response["output"][0]["content"][0]["text"], "Hey");
        assert_eq!(response["output"][1]["arguments"], "{}");
        assert_eq!(
            response["usage"]["input_tokens_details"]["cached_tokens"],
            1
        );
        assert_eq!(response["status"], "completed");
    }

    #[test]
    fn a_refusal_fails_the_response_and_says_why() {
        let error = ApiError::blocked("card-number", "no cards");
        let found = read(
            &mut renderer(),
            &[Event::Blocked { choice: 0, error }, Event::Done],
        );
        assert_eq!(names(&found), ["created", "in_progress", "failed", "error"]);
        assert_eq!(found[2]["response"]["error"]["code"], "card-number");
    }
}
