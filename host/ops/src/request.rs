//! A client's request, parsed once into typed segments. The bytes are kept: validators see them,
//! and upstreams get them as they came but for what a stage changed.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    error::ApiError,
    raw::RawRequest,
    responses,
    segments::{Segment, SegmentReader, from_json, missing, optional, typed},
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
    /// `/v1/embeddings`
    Embeddings,
    /// `/v1/responses`; to models it is a chat.
    Responses,
}

impl Endpoint {
    /// The path below `/v1`.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Endpoint::Chat => "/chat/completions",
            Endpoint::Completions => "/completions",
            Endpoint::Embeddings => "/embeddings",
            Endpoint::Responses => "/responses",
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
    /// Names of the tools that messages called, by message and call.
    pub call_names: Vec<(usize, usize, String)>,
    /// Bytes that go to the model and are no segment: images, audio, tool definitions, names.
    pub uncovered: u64,
    /// Whether a message holds something that is no text: an image, audio, a file.
    pub has_media: bool,
    /// What an answer of `/v1/responses` repeats of its request.
    pub echoed: Option<responses::Echoed>,
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
        // From here on `body` is a chat, also where it came as something else.
        let (body, echoed) = match endpoint {
            Endpoint::Responses => {
                let (body, echoed) = responses::to_chat(&body)?;
                (body, Some(echoed))
            }
            _ => (body, None),
        };
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
            call_names: Vec::new(),
            uncovered: 0,
            has_media: false,
        };
        match endpoint {
            Endpoint::Chat | Endpoint::Responses => {
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
                reader.prompt("prompt", field("prompt").ok_or_else(|| missing("prompt"))?)?
            }
            Endpoint::Embeddings => {
                reader.prompt("input", field("input").ok_or_else(|| missing("input"))?)?
            }
        }
        for (key, value) in &raw.fields {
            let may_hold_text = value.get().starts_with(['"', '[', '{']);
            // A prompt in a chat request, or messages in a completion, would reach an upstream unseen.
            let stray = match endpoint {
                Endpoint::Chat | Endpoint::Responses => key == "prompt",
                Endpoint::Completions => false,
                Endpoint::Embeddings => matches!(key.as_ref(), "prompt" | "messages"),
            };
            if endpoint == Endpoint::Embeddings
                && matches!(key.as_ref(), "input" | "encoding_format")
            {
                continue;
            }
            if may_hold_text && (stray || !NOT_TEXT.contains(&key.as_ref())) {
                reader.uncovered += value.get().len() as u64;
            }
        }
        if matches!(endpoint, Endpoint::Completions | Endpoint::Embeddings)
            && raw.messages.is_some()
        {
            return Err(ApiError::invalid(
                "`messages` belongs to /v1/chat/completions",
                Some("messages"),
            ));
        }

        let SegmentReader {
            segments,
            roles,
            call_names,
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
            call_names,
            uncovered,
            has_media,
            echoed,
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

    /// The body as it came; that of a chat, where it came as a response.
    pub(crate) fn original_body(&self) -> Bytes {
        self.body.clone()
    }

    /// The body as the stages left it.
    pub(crate) fn current_body(&self) -> Bytes {
        self.upstream_body(None)
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
