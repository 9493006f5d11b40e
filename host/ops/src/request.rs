//! A client's request, parsed once into typed segments. The bytes are kept: validators see them,
//! and upstreams get them as they came but for what a stage changed.

use std::{borrow::Cow, fmt, ops::Range, sync::Arc};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    error::ApiError,
    splice::{self, Splice, span_in},
};

/// Which API a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
}

impl Endpoint {
    /// The path below `/v1`.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Endpoint::Chat => "/chat/completions",
            Endpoint::Completions => "/completions",
        }
    }
}

/// A request as the server hands it over.
#[derive(Clone, Debug)]
pub struct ApiRequest {
    /// Which API it came by.
    pub endpoint: Endpoint,
    /// The body as it came.
    pub body: Bytes,
    /// Who asks; `default` where there is nobody in particular.
    pub tenant: Arc<str>,
    /// A language tag (BCP 47) where the client gave one (`Accept-Language`), else empty.
    pub language: Arc<str>,
}

/// Where a segment stands in the body. Written as a JSON Pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SegmentPath {
    Content { message: usize },
    Part { message: usize, part: usize },
    Refusal { message: usize },
    ToolArguments { message: usize, call: usize },
    Prompt,
    PromptItem(usize),
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
            SegmentPath::Prompt => f.write_str("/prompt"),
            SegmentPath::PromptItem(index) => write!(f, "/prompt/{index}"),
        }
    }
}

/// A text of the request.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub path: SegmentPath,
    pub role: Arc<str>,
    pub text: String,
    /// Whether a stage changed it.
    pub changed: bool,
    /// Where its JSON string stands in the body, quotes included.
    span: Range<usize>,
}

/// A parsed request.
#[derive(Debug)]
pub(crate) struct Request {
    pub endpoint: Endpoint,
    pub tenant: Arc<str>,
    pub language: Arc<str>,
    pub model: Arc<str>,
    pub stream: bool,
    pub include_usage: bool,
    pub n: u32,
    pub segments: Vec<Segment>,
    /// Roles of the messages, in order; empty for completions.
    pub roles: Vec<Arc<str>>,
    /// Bytes that go to the model and are no segment: images, audio, tool definitions, names.
    pub uncovered: u64,
    /// Whether a message holds something that is no text: an image, audio, a file.
    pub has_media: bool,
    body: Bytes,
    model_span: Range<usize>,
    fields: Vec<(Box<str>, Range<usize>)>,
}

/// Fields that bring no text to the model; all others that could are counted as not covered.
const NOT_TEXT: [&str; 35] = [
    "model",
    "messages",
    "prompt",
    "stream",
    "stream_options",
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "max_completion_tokens",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "stop",
    "user",
    "metadata",
    "store",
    "service_tier",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning_effort",
    "modalities",
    "safety_identifier",
    "prompt_cache_key",
    "echo",
    "best_of",
    "verbosity",
    "function_call",
    "audio",
];

impl Request {
    /// Parses a body.
    ///
    /// # Errors
    /// 400 in OpenAI's shape: what is wrong, and where.
    pub(crate) fn parse(request: ApiRequest) -> Result<Self, ApiError> {
        let ApiRequest {
            endpoint,
            body,
            tenant,
            language,
        } = request;
        let text = std::str::from_utf8(&body)
            .map_err(|_| ApiError::invalid("the body is not UTF-8", None))?;
        let raw: RawRequest<'_> = serde_json::from_str(text).map_err(|error| {
            ApiError::invalid(format!("the body cannot be read: {error}"), None)
        })?;

        let field = |name: &str| {
            raw.fields
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| *value)
        };
        let model_value = field("model").ok_or_else(|| missing("model"))?;
        let model: Arc<str> = typed::<String>(model_value, "model")?.into();
        let stream = optional::<bool>(field("stream"), "stream")?.unwrap_or(false);
        let include_usage = match field("stream_options") {
            Some(value) if !splice::is_null(value) => {
                #[derive(Deserialize)]
                struct Options {
                    include_usage: Option<bool>,
                }
                typed::<Options>(value, "stream_options")?
                    .include_usage
                    .unwrap_or(false)
            }
            _ => false,
        };
        let n = optional::<u32>(field("n"), "n")?.unwrap_or(1);
        if !(1..=MAX_CHOICES).contains(&n) {
            return Err(ApiError::invalid(
                format!("`n` must be from 1 to {MAX_CHOICES}"),
                Some("n"),
            ));
        }

        let mut reader = SegmentReader {
            text,
            segments: Vec::new(),
            roles: Vec::new(),
            uncovered: 0,
            has_media: false,
        };
        match endpoint {
            Endpoint::Chat => {
                let messages = raw.messages.as_ref().ok_or_else(|| missing("messages"))?;
                if messages.is_empty() {
                    return Err(ApiError::invalid(
                        "`messages` is empty: send at least one message",
                        Some("messages"),
                    ));
                }
                for (index, message) in messages.iter().enumerate() {
                    reader.message(index, message)?;
                }
            }
            Endpoint::Completions => {
                reader.prompt(field("prompt").ok_or_else(|| missing("prompt"))?)?
            }
        }
        for (key, value) in &raw.fields {
            let may_hold_text = value.get().starts_with(['"', '[', '{']);
            // A prompt in a chat request, or messages in a completion, would reach an upstream unseen.
            let stray = match endpoint {
                Endpoint::Chat => key == "prompt",
                Endpoint::Completions => false,
            };
            if may_hold_text && (stray || !NOT_TEXT.contains(&key.as_ref())) {
                reader.uncovered += value.get().len() as u64;
            }
        }
        if endpoint == Endpoint::Completions && raw.messages.is_some() {
            return Err(ApiError::invalid(
                "`messages` belongs to /v1/chat/completions",
                Some("messages"),
            ));
        }

        let SegmentReader {
            segments,
            roles,
            uncovered,
            has_media,
            ..
        } = reader;
        let model_span = span_in(text, model_value);
        let fields = raw
            .fields
            .iter()
            .map(|(key, value)| (key.as_ref().into(), span_in(text, value)))
            .collect();
        let request = Self {
            endpoint,
            tenant,
            language,
            model,
            stream,
            include_usage,
            n,
            segments,
            roles,
            uncovered,
            has_media,
            model_span,
            fields,
            body,
        };
        request.check_fields()?;
        Ok(request)
    }

    /// Refuses standard fields of a wrong type or sign here, whoever serves the model, so that a
    /// client gets the same answer from every model.
    fn check_fields(&self) -> Result<(), ApiError> {
        let least_zero = |name: &str| match self.value::<f64>(name)? {
            Some(value) if value < 0.0 => Err(ApiError::invalid(
                format!("`{name}` must not be negative"),
                Some(name),
            )),
            _ => Ok(()),
        };
        least_zero("temperature")?;
        least_zero("top_p")?;
        self.value::<u32>("max_tokens")?;
        self.value::<u32>("max_completion_tokens")?;
        if self
            .field("stop")
            .is_some_and(|stop| !stop.starts_with('"'))
        {
            self.value::<Vec<String>>("stop")?;
        }
        Ok(())
    }

    /// The body as JSON text, as it came.
    pub(crate) fn body_text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap_or_default() // checked by `parse`
    }

    /// A top-level field as raw JSON, `null` left out.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let (_, span) = self.fields.iter().find(|(key, _)| **key == *name)?;
        self.body_text()
            .get(span.clone())
            .filter(|json| *json != "null")
    }

    /// A top-level field as a value of a type.
    pub(crate) fn value<'a, T: Deserialize<'a>>(
        &'a self,
        name: &str,
    ) -> Result<Option<T>, ApiError> {
        self.field(name)
            .map(|json| from_json(json, name))
            .transpose()
    }

    /// The body for an upstream: the very bytes that came, with changed segments (and the model's
    /// name, if it has another one there) put in their places.
    pub(crate) fn upstream_body(&self, model: Option<&str>) -> Bytes {
        let mut splice = Splice::default();
        for segment in self.segments.iter().filter(|segment| segment.changed) {
            splice.replace_text(segment.span.clone(), &segment.text);
        }
        if let Some(model) = model.filter(|model| **model != *self.model) {
            splice.replace_text(self.model_span.clone(), model);
        }
        splice.apply(&self.body)
    }

    /// The body as the stages left it.
    pub(crate) fn current_body(&self) -> Bytes {
        self.upstream_body(None)
    }

    /// Bytes of text that go to the model, segments or not.
    pub(crate) fn passed_bytes(&self) -> u64 {
        self.uncovered
            + self
                .segments
                .iter()
                .map(|segment| segment.text.len() as u64)
                .sum::<u64>()
    }

    /// The `reference` (a text or several) in `metadata`, for the evaluation.
    pub(crate) fn references(&self) -> Vec<String> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum OneOrMany {
            One(String),
            Many(Vec<String>),
        }
        #[derive(Deserialize)]
        struct Metadata {
            reference: Option<OneOrMany>,
        }
        let found = self
            .field("metadata")
            .and_then(|json| serde_json::from_str::<Metadata>(json).ok());
        match found.and_then(|metadata| metadata.reference) {
            Some(OneOrMany::One(text)) => vec![text],
            Some(OneOrMany::Many(texts)) => texts,
            None => Vec::new(),
        }
    }

    /// `metadata.session`, for sticky routing.
    pub(crate) fn session(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Metadata {
            session: Option<String>,
        }
        serde_json::from_str::<Metadata>(self.field("metadata")?)
            .ok()?
            .session
    }
}

/// The most answers to one request.
const MAX_CHOICES: u32 = 128;

fn missing(name: &str) -> ApiError {
    ApiError::invalid(format!("`{name}` is missing"), Some(name))
}

fn from_json<'a, T: Deserialize<'a>>(json: &'a str, name: &str) -> Result<T, ApiError> {
    serde_json::from_str(json)
        .map_err(|error| ApiError::invalid(format!("`{name}` cannot be read: {error}"), Some(name)))
}

fn typed<'a, T: Deserialize<'a>>(value: &'a RawValue, name: &str) -> Result<T, ApiError> {
    from_json(value.get(), name)
}

fn optional<'a, T: Deserialize<'a>>(
    value: Option<&'a RawValue>,
    name: &str,
) -> Result<Option<T>, ApiError> {
    value
        .filter(|value| !splice::is_null(value))
        .map(|value| typed(value, name))
        .transpose()
}

/// Collects the texts of a request.
struct SegmentReader<'a> {
    text: &'a str,
    segments: Vec<Segment>,
    roles: Vec<Arc<str>>,
    uncovered: u64,
    has_media: bool,
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

    fn message(&mut self, message: usize, raw: &RawMessage<'a>) -> Result<(), ApiError> {
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

    fn prompt(&mut self, prompt: &'a RawValue) -> Result<(), ApiError> {
        let role: Arc<str> = role_name("user");
        if splice::is_string(prompt) {
            return self.add(SegmentPath::Prompt, &role, prompt);
        }
        let items: Vec<&'a RawValue> = typed(prompt, "prompt")?;
        for (index, item) in items.into_iter().enumerate() {
            if splice::is_string(item) {
                self.add(SegmentPath::PromptItem(index), &role, item)?;
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

/// The fields of an object in order, unread. A name that comes twice is an error: two readers
/// could take different ones, and what a stage checked would not be what the model gets.
pub(crate) struct Fields<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

/// A key, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

fn push_field<'a, E: serde::de::Error>(
    fields: &mut Vec<(Cow<'a, str>, &'a RawValue)>,
    key: Cow<'a, str>,
    value: &'a RawValue,
) -> Result<(), E> {
    if fields.iter().any(|(known, _)| *known == key) {
        return Err(E::custom(format!("the field `{key}` comes twice")));
    }
    fields.push((key, value));
    Ok(())
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::with_capacity(8);
                while let Some(Key(key)) = map.next_key()? {
                    push_field(&mut fields, key, map.next_value()?)?;
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(FieldsVisitor)
    }
}

/// The top level: messages read, everything else left raw.
struct RawRequest<'a> {
    fields: Vec<(Cow<'a, str>, &'a RawValue)>,
    messages: Option<Vec<RawMessage<'a>>>,
}

impl<'de: 'a, 'a> Deserialize<'de> for RawRequest<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RequestVisitor;
        impl<'de> Visitor<'de> for RequestVisitor {
            type Value = RawRequest<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::with_capacity(12);
                let mut messages = None;
                while let Some(Key(key)) = map.next_key()? {
                    if key == "messages" {
                        if messages
                            .replace(map.next_value::<Vec<RawMessage<'de>>>()?)
                            .is_some()
                        {
                            return Err(A::Error::custom("the field `messages` comes twice"));
                        }
                    } else {
                        push_field(&mut fields, key, map.next_value()?)?;
                    }
                }
                Ok(RawRequest { fields, messages })
            }
        }
        deserializer.deserialize_map(RequestVisitor)
    }
}

/// A message, its texts left raw.
#[derive(Default)]
struct RawMessage<'a> {
    role: Option<Cow<'a, str>>,
    content: Option<&'a RawValue>,
    refusal: Option<&'a RawValue>,
    tool_calls: Option<&'a RawValue>,
    /// Bytes of its other fields.
    uncovered: u64,
}

impl<'de: 'a, 'a> Deserialize<'de> for RawMessage<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MessageVisitor;
        impl<'de> Visitor<'de> for MessageVisitor {
            type Value = RawMessage<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a message: an object with `role` and `content`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut message = RawMessage::default();
                let twice = |key: &str| A::Error::custom(format!("the field `{key}` comes twice"));
                while let Some(Key(key)) = map.next_key()? {
                    let slot = match key.as_ref() {
                        "role" => {
                            let Key(role) = map.next_value()?;
                            if message.role.replace(role).is_some() {
                                return Err(twice("role"));
                            }
                            continue;
                        }
                        "content" => &mut message.content,
                        "refusal" => &mut message.refusal,
                        "tool_calls" => &mut message.tool_calls,
                        "tool_call_id" => {
                            map.next_value::<&RawValue>()?;
                            continue;
                        }
                        _ => {
                            message.uncovered += map.next_value::<&RawValue>()?.get().len() as u64;
                            continue;
                        }
                    };
                    if slot.replace(map.next_value()?).is_some() {
                        return Err(twice(&key));
                    }
                }
                Ok(message)
            }
        }
        deserializer.deserialize_map(MessageVisitor)
    }
}
