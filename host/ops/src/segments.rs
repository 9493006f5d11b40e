//! The texts of a request, each with its place in the body.

use std::{fmt, ops::Range, sync::Arc};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    error::ApiError,
    raw::{Fields, RawMessage},
    splice::{self, span_in},
};

/// Where a segment stands in the body. Written as a JSON Pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SegmentPath {
    Content {
        message: usize,
    },
    Part {
        message: usize,
        part: usize,
    },
    Refusal {
        message: usize,
    },
    ToolArguments {
        message: usize,
        call: usize,
    },
    /// The text of `prompt` or `input`.
    Prompt(&'static str),
    /// One of several.
    PromptItem(&'static str, usize),
}

impl fmt::Display for SegmentPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SegmentPath::Content { message } => write!(f, "/messages/{message}/content"),
            SegmentPath::Part { message, part } => {
                write!(f, "/messages/{message}/content/{part}/text")
            }
            SegmentPath::Refusal { message } => write!(f, "/messages/{message}/refusal"),
            SegmentPath::ToolArguments { message, call } => {
                write!(
                    f,
                    "/messages/{message}/tool_calls/{call}/function/arguments"
                )
            }
            SegmentPath::Prompt(field) => write!(f, "/{field}"),
            SegmentPath::PromptItem(field, index) => write!(f, "/{field}/{index}"),
        }
    }
}

/// A text of the request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Segment {
    pub path: SegmentPath,
    pub role: Arc<str>,
    pub text: String,
    /// Whether a stage changed it.
    pub changed: bool,
    /// Where its JSON string stands in the body, quotes included.
    pub span: Range<usize>,
}

/// 400: a field is missing.
pub(crate) fn missing(name: &str) -> ApiError {
    ApiError::invalid(format!("`{name}` is missing"), Some(name))
}

/// A field's value as a type.
pub(crate) fn from_json<'a, T: Deserialize<'a>>(json: &'a str, name: &str) -> Result<T, ApiError> {
    serde_json::from_str(json)
        .map_err(|error| ApiError::invalid(format!("`{name}` cannot be read: {error}"), Some(name)))
}

/// A raw field's value as a type.
pub(crate) fn typed<'a, T: Deserialize<'a>>(
    value: &'a RawValue,
    name: &str,
) -> Result<T, ApiError> {
    from_json(value.get(), name)
}

/// A raw field's value as a type, `null` left out.
pub(crate) fn optional<'a, T: Deserialize<'a>>(
    value: Option<&'a RawValue>,
    name: &str,
) -> Result<Option<T>, ApiError> {
    value
        .filter(|value| !splice::is_null(value))
        .map(|value| typed(value, name))
        .transpose()
}

/// Collects the texts of a request.
pub(crate) struct SegmentReader<'a> {
    pub text: &'a str,
    pub segments: Vec<Segment>,
    pub roles: Vec<Arc<str>>,
    /// Names of the tools that messages called, by message and call.
    pub call_names: Vec<(usize, usize, String)>,
    pub uncovered: u64,
    pub has_media: bool,
}

impl<'a> SegmentReader<'a> {
    fn add(&mut self, path: SegmentPath, role: &Arc<str>, raw: &RawValue) -> Result<(), ApiError> {
        let text = splice::decode(raw).map_err(|error| {
            ApiError::invalid(
                format!("`{path}` is no text: {error}"),
                Some(&path.to_string()),
            )
        })?;
        self.segments.push(Segment {
            path,
            role: role.clone(),
            text,
            changed: false,
            span: span_in(self.text, raw),
        });
        Ok(())
    }

    /// The texts of one message.
    pub(crate) fn message(&mut self, message: usize, raw: &RawMessage<'a>) -> Result<(), ApiError> {
        let place = || format!("messages[{message}]");
        let role = raw.role.as_deref().ok_or_else(|| {
            ApiError::invalid(
                format!("`{}` has no `role`", place()),
                Some(&format!("messages[{message}].role")),
            )
        })?;
        let role = role_name(role);
        self.roles.push(role.clone());
        self.uncovered += raw.uncovered;
        if let Some(content) = raw.content.filter(|content| !splice::is_null(content)) {
            if splice::is_string(content) {
                self.add(SegmentPath::Content { message }, &role, content)?;
            } else {
                self.parts(message, &role, content)?;
            }
        } else if &*role != "assistant" && raw.content.is_none() {
            // An assistant's message may be nothing but tool calls; any other says something.
            return Err(ApiError::invalid(
                format!("`{}` has no `content`", place()),
                Some(&format!("messages[{message}].content")),
            ));
        }
        if let Some(refusal) = raw.refusal.filter(|refusal| splice::is_string(refusal)) {
            self.add(SegmentPath::Refusal { message }, &role, refusal)?;
        }
        if let Some(calls) = raw.tool_calls.filter(|calls| !splice::is_null(calls)) {
            self.tool_calls(message, &role, calls)?;
        }
        Ok(())
    }

    fn parts(
        &mut self,
        message: usize,
        role: &Arc<str>,
        content: &'a RawValue,
    ) -> Result<(), ApiError> {
        let param = format!("messages[{message}].content");
        let parts: Vec<&'a RawValue> = serde_json::from_str(content.get()).map_err(|_| {
            ApiError::invalid(
                format!("`{param}` must be a text or an array of parts"),
                Some(&param),
            )
        })?;
        for (part, raw) in parts.into_iter().enumerate() {
            let fields: Fields<'a> = typed(raw, &param)?;
            let mut kind = None;
            let mut text = None;
            for (key, value) in fields.0 {
                match key.as_ref() {
                    "type" => kind = Some(typed::<String>(value, &param)?),
                    "text" => text = Some(value),
                    _ => self.uncovered += value.get().len() as u64,
                }
            }
            match text.filter(|text| splice::is_string(text)) {
                Some(text) => self.add(SegmentPath::Part { message, part }, role, text)?,
                None if kind.as_deref() == Some("text") => {
                    return Err(ApiError::invalid(
                        format!("`{param}[{part}]` has no `text`"),
                        Some(&param),
                    ));
                }
                None => self.has_media = true,
            }
        }
        Ok(())
    }

    fn tool_calls(
        &mut self,
        message: usize,
        role: &Arc<str>,
        calls: &'a RawValue,
    ) -> Result<(), ApiError> {
        let param = format!("messages[{message}].tool_calls");
        let calls: Vec<&'a RawValue> = serde_json::from_str(calls.get()).map_err(|error| {
            ApiError::invalid(format!("`{param}` cannot be read: {error}"), Some(&param))
        })?;
        for (call, raw) in calls.into_iter().enumerate() {
            let fields: Fields<'a> = typed(raw, &param)?;
            for (key, value) in fields.0 {
                match key.as_ref() {
                    "id" | "type" => {}
                    "function" => {
                        let function: Fields<'a> = typed(value, &param)?;
                        for (key, value) in function.0 {
                            if key == "arguments" && splice::is_string(value) {
                                self.add(
                                    SegmentPath::ToolArguments { message, call },
                                    role,
                                    value,
                                )?;
                            } else {
                                if key == "name" && splice::is_string(value) {
                                    self.call_names.push((message, call, typed(value, &param)?));
                                }
                                self.uncovered += value.get().len() as u64;
                            }
                        }
                    }
                    _ => self.uncovered += value.get().len() as u64,
                }
            }
        }
        Ok(())
    }

    /// The texts of `prompt` or `input`: one, several, or token ids.
    pub(crate) fn prompt(
        &mut self,
        field: &'static str,
        prompt: &'a RawValue,
    ) -> Result<(), ApiError> {
        let role: Arc<str> = role_name("user");
        if splice::is_string(prompt) {
            return self.add(SegmentPath::Prompt(field), &role, prompt);
        }
        let items: Vec<&'a RawValue> = typed(prompt, field)?;
        for (index, item) in items.into_iter().enumerate() {
            if splice::is_string(item) {
                self.add(SegmentPath::PromptItem(field, index), &role, item)?;
            } else {
                self.uncovered += item.get().len() as u64; // token ids
            }
        }
        Ok(())
    }
}

/// A role as a shared string; those of every day are made once.
fn role_name(role: &str) -> Arc<str> {
    use std::sync::LazyLock;
    static KNOWN: LazyLock<[Arc<str>; 5]> =
        LazyLock::new(|| ["system", "user", "assistant", "tool", "developer"].map(Arc::from));
    KNOWN
        .iter()
        .find(|known| ***known == *role)
        .cloned()
        .unwrap_or_else(|| role.into())
}
