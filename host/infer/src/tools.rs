//! Tools in a conversation: how a model is told of them, and how it writes a call.
//!
//! A call is written as `<tool_call>`, a line of JSON `{"name": …, "arguments": …}`, `</tool_call>`: the form
//! of Hermes, Qwen and SmolLM. A chat template that writes this form itself is given the tools; for any other
//! one they are put into the system message here, calls into the assistant's, and results into the user's.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::ChatMessage;

/// What a call begins with.
pub const CALL_BEGINS: &str = "<tool_call>";
/// What a call ends with.
pub const CALL_ENDS: &str = "</tool_call>";

/// A tool that a model may call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it does, for the model to read.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// JSON Schema of its arguments; `null` for none.
    #[serde(default)]
    pub parameters: Value,
    /// Whether a schema that can not be enforced is an error. Else the arguments are held to be an object.
    #[serde(default, skip_serializing)]
    pub strict: bool,
}

impl Tool {
    /// As OpenAI's API and the templates of models describe one.
    pub(crate) fn described(&self) -> Value {
        json!({"type": "function", "function": self})
    }

    /// With every text of it changed.
    pub(crate) fn mapped(&self, change: &impl Fn(&str) -> String) -> Self {
        let mut parameters = self.parameters.clone();
        each_text(&mut parameters, &mut |text| *text = change(text));
        Self {
            name: change(&self.name),
            description: change(&self.description),
            parameters,
            strict: self.strict,
        }
    }
}

/// A call that an assistant's message made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The tool.
    pub name: String,
    /// Its arguments, JSON as it was written.
    pub arguments: String,
}

impl ToolCall {
    /// With every text of it changed.
    pub(crate) fn mapped(&self, change: &impl Fn(&str) -> String) -> Self {
        let mut arguments = self.arguments();
        each_text(&mut arguments, &mut |text| *text = change(text));
        Self {
            name: change(&self.name),
            arguments: match arguments {
                Value::String(text) => text,
                other => other.to_string(),
            },
        }
    }

    fn arguments(&self) -> Value {
        serde_json::from_str(&self.arguments).unwrap_or_else(|_| Value::from(&*self.arguments))
    }

    /// As templates read one.
    pub(crate) fn described(&self) -> Value {
        json!({"type": "function", "function": {"name": self.name, "arguments": self.arguments()}})
    }
}

/// Visits every text of a value, names of members included.
pub(crate) fn each_text(value: &mut Value, visit: &mut impl FnMut(&mut String)) {
    match value {
        Value::String(text) => visit(text),
        Value::Array(items) => items.iter_mut().for_each(|item| each_text(item, visit)),
        Value::Object(fields) => {
            let old = std::mem::take(fields);
            for (mut name, mut field) in old {
                visit(&mut name);
                each_text(&mut field, visit);
                fields.insert(name, field);
            }
        }
        _ => {}
    }
}

/// A value as JSON with a space after `:` and `,`, as Python writes it.
pub(crate) fn spaced(value: &Value) -> String {
    let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(", ");
    match value {
        Value::Array(items) => format!("[{}]", list(&mut items.iter().map(spaced))),
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| {
                format!("{}: {}", Value::from(&**name), spaced(value))
            };
            format!("{{{}}}", list(&mut fields.iter().map(field)))
        }
        other => other.to_string(),
    }
}

/// A conversation with tools as one without, for a template that does not know them.
pub(crate) fn plain(messages: &[ChatMessage], tools: &[Tool]) -> Vec<ChatMessage> {
    let mut out: Vec<ChatMessage> = Vec::with_capacity(messages.len() + 1);
    if !tools.is_empty() {
        let list: Vec<String> = tools
            .iter()
            .map(|tool| tool.described().to_string())
            .collect();
        let told = format!(
            "You may call functions. The functions, one a line:\n{}\nTo call one, answer with nothing but:\n\
             {CALL_BEGINS}\n{{\"name\": \"NAME\", \"arguments\": {{ARGUMENTS}}}}\n{CALL_ENDS}",
            list.join("\n")
        );
        out.push(ChatMessage::new("system", told));
    }
    for message in messages {
        let mut content = message.content.clone();
        for call in &message.tool_calls {
            if !content.is_empty() {
                content.push('\n');
            }
            let name = Value::from(&*call.name);
            let arguments = call.arguments();
            content += &format!(
                "{CALL_BEGINS}\n{{\"name\": {name}, \"arguments\": {arguments}}}\n{CALL_ENDS}"
            );
        }
        let role = match message.role.as_str() {
            "tool" => {
                content = format!("<tool_response>\n{content}\n</tool_response>");
                "user"
            }
            "developer" => "system",
            other => other,
        };
        match out.last_mut() {
            // One system message, and one message for all results: templates want roles to alternate.
            Some(last) if last.role == role && (role == "system" || message.role == "tool") => {
                last.content = format!("{}\n{content}", last.content);
            }
            _ => out.push(ChatMessage::new(role, content)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_without_tools_gets_them_in_the_messages() {
        let tool = Tool {
            name: "clock".into(),
            description: "The time.".into(),
            parameters: Value::Null,
            strict: false,
        };
        let asked = ChatMessage {
            tool_calls: vec![ToolCall {
                name: "clock".into(),
                arguments: "{\"zone\":\"UTC\"}".into(),
            }],
            ..ChatMessage::new("assistant", "")
        };
        let messages = [
            ChatMessage::new("system", "Be brief."),
            ChatMessage::new("user", "What time is it?"),
            asked,
            ChatMessage::new("tool", "12:00"),
            ChatMessage::new("tool", "noon"),
        ];
        let plain = plain(&messages, &[tool]);
        let roles: Vec<&str> = plain.iter().map(|m| m.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
        assert!(
            plain[0].content.contains("\"name\":\"clock\"")
                && plain[0].content.ends_with("Be brief.")
        );
        assert!(!plain[0].content.contains("strict"));
        assert_eq!(
            plain[2].content,
            "<tool_call>\n{\"name\": \"clock\", \"arguments\": {\"zone\":\"UTC\"}}\n</tool_call>"
        );
        assert!(plain[3].content.contains("12:00") && plain[3].content.contains("noon"));
    }
}
