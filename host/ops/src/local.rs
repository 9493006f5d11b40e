//! The inference core behind [`LanguageModel`], and the OpenAI parameters that it understands.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::Path,
    sync::Arc,
};

use futures::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use millgate_infer::{
    self as infer, Caller, ChatMessage, Engine, EngineOptions, Error as InferError,
    GenerateRequest, Model, ModelOptions, Prompt, Sampling, TokenScore, ToolCall,
};
use serde::Deserialize;

use crate::{
    config::{ModelConfig, SamplingConfig},
    error::ApiError,
    model::LanguageModel,
    outlet::Form,
    request::{Endpoint, Request},
    segments::{SegmentPath, missing},
    told::Told,
};

/// A model file and the engine that runs it.
pub(crate) struct LocalModel {
    engine: Engine,
    sampling: SamplingConfig,
    adapters: BTreeMap<String, Arc<infer::Adapter>>,
}

impl LocalModel {
    /// Opens a model and starts its engine. Blocking.
    pub(crate) fn start(path: &Path, config: &ModelConfig) -> infer::Result<Self> {
        let model = ModelOptions {
            device: config.device.unwrap_or_default().0,
            ..ModelOptions::default()
        };
        let model = Model::open(path, &model)?;
        let mut options = EngineOptions::default();
        if let Some(threads) = config.threads {
            options.threads = threads as usize;
        }
        if let Some(sequences) = config.max_sequences {
            options.max_sequences = sequences as usize;
        }
        if let Some(queue) = config.queue {
            options.queue = queue as usize;
        }
        if let Some(bytes) = config.kv_cache {
            options.kv_bytes = usize::try_from(bytes.0).unwrap_or(usize::MAX);
        }
        let mut adapters = BTreeMap::new();
        for (name, folder) in &config.adapters {
            let adapter = model.load_adapter(folder).map_err(|error| match error {
                InferError::Adapter(why) => InferError::Adapter(format!("`{name}`: {why}")),
                other => other,
            })?;
            adapters.insert(name.clone(), adapter);
        }
        Ok(Self {
            engine: Engine::start(model, options)?,
            sampling: config.sampling.clone(),
            adapters,
        })
    }
}

impl LanguageModel for LocalModel {
    fn adapter(&self, name: &str) -> Option<Arc<infer::Adapter>> {
        self.adapters.get(name).cloned()
    }

    fn generate(
        &self,
        request: GenerateRequest,
    ) -> infer::Result<BoxStream<'static, infer::Event>> {
        let generation = self.engine.generate(request)?;
        let events = stream::unfold(generation, |mut generation| async move {
            let event = generation.next().await?;
            Some((event, generation))
        });
        Ok(events.boxed())
    }

    fn score(
        &self,
        text: String,
        top: u8,
        caller: Caller,
    ) -> BoxFuture<'_, infer::Result<Vec<TokenScore>>> {
        async move { self.engine.score(&text, top, caller).await }.boxed()
    }

    fn explain(
        &self,
        asked: infer::ExplainRequest,
    ) -> BoxFuture<'_, infer::Result<infer::Explanation>> {
        async move { self.engine.explain(asked).await }.boxed()
    }

    fn embed_tokens(
        &self,
        texts: Vec<Vec<u32>>,
        caller: Caller,
    ) -> BoxFuture<'_, infer::Result<Vec<Vec<f32>>>> {
        async move { self.engine.embed_tokens(texts, caller).await }.boxed()
    }

    fn sampling(&self) -> SamplingConfig {
        self.sampling.clone()
    }

    fn embed(
        &self,
        texts: Vec<String>,
        caller: Caller,
    ) -> BoxFuture<'_, infer::Result<(Vec<Vec<f32>>, u32)>> {
        async move {
            let model: &Arc<Model> = self.engine.model();
            let tokens: usize = texts
                .iter()
                .map(|text| model.encode(text, false).len())
                .sum();
            Ok((
                self.engine.embed(&texts, caller).await?,
                u32::try_from(tokens).unwrap_or(u32::MAX),
            ))
        }
        .boxed()
    }
}

/// What a client asked of a local model.
#[derive(Clone, Debug)]
pub(crate) struct LocalRequest {
    /// The request of the first choice; the others differ in their seed.
    pub generate: GenerateRequest,
    /// Whether tokens with their probabilities go to the client.
    pub logprobs: bool,
    /// Completions only: the prompt goes out before the answer.
    pub echo: Option<String>,
    /// Nothing is said after it (`max_tokens` is 0).
    pub only_echo: bool,
    /// What the text is.
    pub form: Form,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// What the core cannot do, and would otherwise silently not do.
const UNSUPPORTED: [(&str, &str); 9] = [
    ("functions", "use `tools`"),
    ("function_call", "use `tool_choice`"),
    ("prediction", "leave it out"),
    ("audio", "it takes and gives text only"),
    ("web_search_options", "leave it out"),
    ("suffix", "it continues a text, and fills no gap"),
    ("best_of", "use `n`, and choose"),
    ("guided_json", "use `response_format`"),
    ("guided_regex", "use `response_format`"),
];

impl LocalRequest {
    /// Reads the parameters.
    ///
    /// # Errors
    /// 400: a parameter is out of its range, or the core does not have it.
    pub(crate) fn read(request: &Request, defaults: &SamplingConfig) -> Result<Self, ApiError> {
        for (name, instead) in UNSUPPORTED {
            let harmless = match (name, request.field(name)) {
                (_, None) => true,
                ("functions", Some(json)) => json == "[]",
                ("function_call", Some(json)) => json == "\"none\"",
                ("best_of", Some(json)) => json == "1",
                ("suffix", Some(json)) => json == "\"\"",
                _ => false,
            };
            if !harmless {
                return Err(ApiError::invalid(
                    format!("`{name}` is not supported by local models: {instead}"),
                    Some(name),
                ));
            }
        }
        let told = Told::read(request)?;
        let mut generate = GenerateRequest::new(prompt(request, &told)?);
        generate.sampling = sampling(request, defaults)?;
        generate.max_tokens = match request.value::<u32>("max_completion_tokens")? {
            Some(tokens) => Some(tokens),
            None => request.value("max_tokens")?.or(defaults.max_tokens),
        };
        let echo = request.endpoint == Endpoint::Completions
            && request.value::<bool>("echo")?.unwrap_or(false);
        let echo = match request.segments.first() {
            Some(segment) => echo.then(|| segment.text.clone()),
            None if echo => {
                return Err(ApiError::invalid(
                    "`echo` needs a prompt that is a text, not token ids",
                    Some("echo"),
                ));
            }
            None => None,
        };
        let only_echo = generate.max_tokens == Some(0) && echo.is_some();
        if generate.max_tokens == Some(0) && !only_echo {
            return Err(ApiError::invalid(
                "`max_tokens` must be at least 1",
                Some("max_tokens"),
            ));
        }
        generate.stop = match request.value::<OneOrMany>("stop")? {
            Some(OneOrMany::One(text)) => vec![text],
            Some(OneOrMany::Many(texts)) => texts,
            None => Vec::new(),
        };
        generate.stop.retain(|text| !text.is_empty());
        generate.logprobs = logprobs(request)?;
        generate.tenant = Arc::clone(&request.tenant);
        generate.cache_salt = cache_salt(&request.tenant);
        let form = told.form();
        generate.grammar = told.grammar;
        Ok(Self {
            logprobs: generate.logprobs.is_some(),
            echo,
            only_echo,
            form,
            generate,
        })
    }

    /// The request of one choice.
    pub(crate) fn choice(&self, index: u32) -> GenerateRequest {
        let mut generate = self.generate.clone();
        generate.sampling.seed = generate
            .sampling
            .seed
            .map(|seed| seed.wrapping_add(u64::from(index)));
        generate
    }
}

/// Keeps tenants from learning by the time an answer takes what others have asked.
pub(crate) fn cache_salt(tenant: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    tenant.hash(&mut hasher);
    hasher.finish()
}

fn logprobs(request: &Request) -> Result<Option<u8>, ApiError> {
    let top = match request.endpoint {
        Endpoint::Chat | Endpoint::Responses => {
            let top = request.value::<u8>("top_logprobs")?;
            match request.value::<bool>("logprobs")?.unwrap_or(false) {
                true => Some(top.unwrap_or(0)),
                false if top.is_some() => {
                    return Err(ApiError::invalid(
                        "`top_logprobs` needs `logprobs`: true",
                        Some("top_logprobs"),
                    ));
                }
                false => None,
            }
        }
        Endpoint::Completions => request.value::<u8>("logprobs")?,
        Endpoint::Embeddings => None,
    };
    match top {
        Some(21..) => Err(ApiError::invalid(
            "at most 20 alternatives can be asked for",
            Some("top_logprobs"),
        )),
        top => Ok(top),
    }
}

fn number(
    request: &Request,
    name: &str,
    least: f32,
    most: f32,
    default: f32,
) -> Result<f32, ApiError> {
    let value = request.value::<f32>(name)?.unwrap_or(default);
    if !(least..=most).contains(&value) {
        return Err(ApiError::invalid(
            format!("`{name}` must be from {least} to {most}"),
            Some(name),
        ));
    }
    Ok(value)
}

fn sampling(request: &Request, defaults: &SamplingConfig) -> Result<Sampling, ApiError> {
    let bias: std::collections::BTreeMap<String, f32> =
        request.value("logit_bias")?.unwrap_or_default();
    let logit_bias = bias
        .into_iter()
        .map(|(token, bias)| match token.parse() {
            Ok(token) if (-100.0..=100.0).contains(&bias) => Ok((token, bias)),
            Ok(_) => Err(ApiError::invalid(
                "the values of `logit_bias` are from -100 to 100",
                Some("logit_bias"),
            )),
            Err(_) => Err(ApiError::invalid(
                "the keys of `logit_bias` are token ids",
                Some("logit_bias"),
            )),
        })
        .collect::<Result<_, _>>()?;
    let or = |default: Option<f32>, plain: f32| default.unwrap_or(plain);
    Ok(Sampling {
        temperature: number(
            request,
            "temperature",
            0.0,
            2.0,
            or(defaults.temperature, 1.0),
        )?,
        top_k: request.value("top_k")?.or(defaults.top_k).unwrap_or(0),
        top_p: number(request, "top_p", 0.0, 1.0, or(defaults.top_p, 1.0))?,
        min_p: number(request, "min_p", 0.0, 1.0, or(defaults.min_p, 0.0))?,
        repetition_penalty: number(
            request,
            "repetition_penalty",
            0.01,
            10.0,
            or(defaults.repetition_penalty, 1.0),
        )?,
        frequency_penalty: number(request, "frequency_penalty", -2.0, 2.0, 0.0)?,
        presence_penalty: number(request, "presence_penalty", -2.0, 2.0, 0.0)?,
        seed: request.value::<i64>("seed")?.map(i64::cast_unsigned),
        logit_bias,
    })
}

/// The end of a text of which nothing is said.
pub(crate) fn nothing(prompt_tokens: u32) -> BoxStream<'static, infer::Event> {
    let zero = std::time::Duration::ZERO;
    let finish = infer::Finish {
        reason: infer::FinishReason::Length,
        usage: infer::Usage {
            prompt_tokens,
            ..infer::Usage::default()
        },
        queue_time: zero,
        prefill_time: zero,
        decode_time: zero,
        stop_text: None,
    };
    stream::iter([infer::Event::Finished(finish)]).boxed()
}

/// The prompt as the input stages left it.
fn prompt(request: &Request, told: &Told) -> Result<Prompt, ApiError> {
    if request.endpoint == Endpoint::Completions {
        return match request.segments.as_slice() {
            [segment] => Ok(Prompt::Text(segment.text.clone())),
            [] => Ok(Prompt::Tokens(request.value("prompt")?.unwrap_or_default())),
            _ => Err(ApiError::invalid(
                "local models take one prompt a request; send several requests",
                Some("prompt"),
            )),
        };
    }
    let mut messages: Vec<ChatMessage> = request
        .roles
        .iter()
        .map(|role| ChatMessage::new(role.as_ref(), String::new()))
        .collect();
    for (message, _, name) in &request.call_names {
        if let Some(message) = messages.get_mut(*message) {
            message.tool_calls.push(ToolCall {
                name: name.clone(),
                arguments: "{}".to_owned(),
            });
        }
    }
    for segment in &request.segments {
        match segment.path {
            SegmentPath::Content { message }
            | SegmentPath::Part { message, .. }
            | SegmentPath::Refusal { message } => {
                if let Some(message) = messages.get_mut(message) {
                    message.content.push_str(&segment.text);
                }
            }
            SegmentPath::ToolArguments { message, call } => {
                let place = request
                    .call_names
                    .iter()
                    .filter(|(of, _, _)| *of == message)
                    .position(|(_, number, _)| *number == call);
                let called = messages
                    .get_mut(message)
                    .zip(place)
                    .and_then(|(message, place)| message.tool_calls.get_mut(place));
                let Some(called) = called else {
                    let param = format!("messages[{message}].tool_calls[{call}].function.name");
                    return Err(missing(&param));
                };
                called.arguments.clone_from(&segment.text);
            }
            SegmentPath::Prompt(_) | SegmentPath::PromptItem(..) => {}
        }
    }
    if request.has_media {
        return Err(ApiError::invalid(
            "this model takes text only: remove images, audio and files",
            Some("messages"),
        ));
    }
    let tools = !told.tools.is_empty()
        || messages
            .iter()
            .any(|message| message.role == "tool" || !message.tool_calls.is_empty());
    Ok(if tools {
        Prompt::Tools {
            messages,
            tools: told.tools.clone(),
        }
    } else {
        Prompt::Chat(messages)
    })
}

/// What a client is told when the core refuses or fails.
pub(crate) fn api_error(error: &InferError) -> ApiError {
    match error {
        InferError::QueueFull { retry_after, .. } => ApiError {
            retry_after: Some(retry_after.as_secs_f64().ceil() as u32),
            ..ApiError::busy(error.to_string())
        },
        InferError::DeadlineExceeded { .. } => ApiError::timeout(format!(
            "{error}; `server.request-timeout` in the config is how long a request may take"
        )),
        InferError::Unsupported(_) => ApiError::invalid(error.to_string(), Some("model")),
        InferError::ContextExceeded { .. } | InferError::KvTooSmall { .. } => ApiError {
            code: "context_length_exceeded".to_owned(),
            ..ApiError::invalid(error.to_string(), Some("messages"))
        },
        InferError::Grammar(_) => {
            let param = match error.to_string().starts_with("the tool `") {
                true => "tools",
                false => "response_format",
            };
            ApiError::invalid(format!("`{param}`: {error}"), Some(param))
        }
        InferError::Invalid(_) | InferError::Template(_) => {
            ApiError::invalid(error.to_string(), None)
        }
        InferError::BanExhausted(_) => {
            ApiError::blocked("regeneration_failed", "no allowed answer was found")
        }
        InferError::Stopped => ApiError::unavailable(error.to_string()),
        _ => ApiError::internal(error.to_string()),
    }
}
