//! Why a local model said what it said: an operator's question about a prompt, or about a past request.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use millgate_infer::{self as infer, Explanation, Unit};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json};

use crate::{
    core::Core,
    error::ApiError,
    id::TraceId,
    local::{self, LocalRequest},
    model::Ready,
    pipeline::{Generation, ReadyArm},
    request::{ApiRequest, Endpoint, Request},
};

/// The tenant of explanations: they cost none of the tenants its share.
const OPERATOR: &str = "operator";

/// What an operator asks beside the prompt.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Asked {
    messages: Option<IgnoredAny>,
    /// The arm of the pipeline; by default its first.
    arm: Option<String>,
    answer: Option<String>,
    targets: Option<Targets>,
    unit: Option<String>,
    top: Option<u8>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Targets {
    One(usize),
    Many(Vec<usize>),
}

/// Explains an answer to the prompt in the body, or what the model would say to it.
pub(crate) async fn prompt(core: &Arc<Core>, body: Bytes) -> Result<Value, ApiError> {
    let asked = read(&body)?;
    let endpoint = match asked.messages {
        Some(_) => Endpoint::Chat,
        None => Endpoint::Completions,
    };
    let request = parsed(core, endpoint, body)?;
    explain(core, &request, asked).await
}

/// Explains the answer of a past request.
pub(crate) async fn trace(core: &Arc<Core>, id: TraceId, body: Bytes) -> Result<Value, ApiError> {
    let asked = match body.trim_ascii().is_empty() {
        true => Asked::default(),
        false => read(&body)?,
    };
    if asked.answer.is_some() || asked.messages.is_some() {
        return Err(ApiError::invalid(
            "a trace has its prompt and its answer; to explain others, POST them to /api/v1/explain",
            Some(if asked.answer.is_some() {
                "answer"
            } else {
                "messages"
            }),
        ));
    }
    let traces = core.traces.clone();
    let found = tokio::task::spawn_blocking(move || {
        let Some(trace) = traces.get(id)? else {
            return Ok(None);
        };
        let texts = traces.texts(&trace)?;
        Ok::<_, crate::Error>(Some((trace, texts)))
    });
    let found = match found.await {
        Ok(found) => found.map_err(|error| ApiError::internal(error.to_string()))?,
        Err(_) => return Err(ApiError::internal("the look-up was cut off")),
    };
    let (trace, texts) = found.ok_or_else(|| ApiError {
        status: 404,
        code: "trace_not_found".to_owned(),
        ..ApiError::invalid(
            format!("there is no trace {id}; it may have been removed by the retention rules"),
            None,
        )
    })?;
    let refused = |why: &str| ApiError::invalid(format!("the trace {id} {why}"), None);
    let (input, output) = texts.ok_or_else(|| {
        refused(
            "holds no texts: `traces.texts = \"on\"` in the config keeps them of later requests",
        )
    })?;
    let endpoint = match trace.endpoint {
        // What was kept is the chat that it was to the model.
        Endpoint::Responses | Endpoint::Chat => Endpoint::Chat,
        Endpoint::Completions => Endpoint::Completions,
        Endpoint::Embeddings => return Err(refused("is of an embedding, which has no answer")),
    };
    if output.is_empty() {
        return Err(refused("has no text of an answer"));
    }
    let request = parsed(core, endpoint, input.into())?;
    let asked = Asked {
        arm: Some(asked.arm.unwrap_or_else(|| trace.arm.to_string())),
        answer: Some(String::from_utf8_lossy(&output).into_owned()),
        ..asked
    };
    explain(core, &request, asked).await
}

fn read(body: &[u8]) -> Result<Asked, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::invalid(format!("the body cannot be read: {error}"), None))
}

fn parsed(core: &Core, endpoint: Endpoint, body: Bytes) -> Result<Request, ApiError> {
    Request::parse(ApiRequest {
        endpoint,
        body,
        tenant: OPERATOR.into(),
        language: core.empty.clone(),
    })
}

async fn explain(core: &Core, request: &Request, asked: Asked) -> Result<Value, ApiError> {
    let generation = core.generation.load_full();
    let deadline = Instant::now() + generation.config.server.request_timeout.0;
    let arm = arm(&generation, &request.model, asked.arm.as_deref())?;
    let ready = tokio::time::timeout_at(deadline.into(), arm.backend.clone().ready()).await;
    let model = match ready.unwrap_or_else(|_| Err(ApiError::late()))? {
        Ready::Local(model) => model,
        Ready::Upstream(_) => {
            return Err(ApiError::invalid(
                format!(
                    "the arm `{}` of `{}` is remote; only models in this process can be explained",
                    arm.name, request.model
                ),
                Some("model"),
            ));
        }
    };
    let mut local = LocalRequest::read(request, &model.sampling())?;
    local.generate.deadline = Some(deadline);
    local.generate.adapter = arm.adapter.as_ref().and_then(|name| model.adapter(name));
    let mut ask = infer::ExplainRequest::new(local.generate);
    ask.answer = asked.answer;
    ask.targets = match asked.targets {
        None => Vec::new(),
        Some(Targets::One(target)) => vec![target],
        Some(Targets::Many(targets)) => targets,
    };
    if let Some(unit) = asked.unit {
        ask.unit = unit_named(&unit)?;
    }
    if let Some(top) = asked.top {
        ask.top = top;
    }
    let unit = ask.unit;
    let explained = model.explain(ask).await;
    let explained = explained.map_err(|error| match &error {
        infer::Error::ContextExceeded { .. } | infer::Error::KvTooSmall { .. } => ApiError {
            param: None,
            ..local::api_error(&error)
        },
        _ => local::api_error(&error),
    })?;
    Ok(rendered(&request.model, &arm.name, unit, &explained))
}

/// The arm that is meant.
fn arm<'g>(
    generation: &'g Generation,
    model: &str,
    name: Option<&str>,
) -> Result<&'g ReadyArm, ApiError> {
    let pipeline = generation
        .pipeline_for(model)
        .ok_or_else(|| ApiError::unknown_model(model))?;
    let found = match name {
        None => pipeline.arms.first(),
        Some(name) => pipeline.arms.iter().find(|arm| *arm.name == *name),
    };
    found.ok_or_else(|| {
        let names: Vec<&str> = pipeline.arms.iter().map(|arm| &*arm.name).collect();
        ApiError::invalid(
            format!(
                "`{model}` has no arm `{}`; there are: {}",
                name.unwrap_or_default(),
                names.join(", ")
            ),
            Some("arm"),
        )
    })
}

fn unit_named(name: &str) -> Result<Unit, ApiError> {
    match name {
        "token" => Ok(Unit::Token),
        "word" => Ok(Unit::Word),
        "sentence" => Ok(Unit::Sentence),
        other => Err(ApiError::invalid(
            format!("`unit` is `{other}`; it may be `token`, `word` or `sentence`"),
            Some("unit"),
        )),
    }
}

fn rendered(model: &str, arm: &str, unit: Unit, explained: &Explanation) -> Value {
    let tokens: Vec<Value> = explained
        .tokens
        .iter()
        .map(|token| {
            let top: Vec<Value> = token
                .top
                .iter()
                .map(|top| json!({ "id": top.id, "text": top.text, "logprob": top.logprob }))
                .collect();
            json!({
                "id": token.id,
                "text": token.text,
                "logprob": token.logprob,
                "entropy": token.entropy,
                "margin": token.margin,
                "top": top,
            })
        })
        .collect();
    let attributions: Vec<Value> = explained
        .attributions
        .iter()
        .map(|attribution| {
            let token = explained.tokens.get(attribution.token);
            json!({
                "token": attribution.token,
                "text": token.map(|token| token.text.as_str()),
                "scores": attribution.scores,
            })
        })
        .collect();
    let totals: Vec<f32> = (0..explained.units.len())
        .map(|unit| {
            let scores = explained.attributions.iter();
            scores.filter_map(|it| it.scores.get(unit)).sum()
        })
        .collect();
    json!({
        "model": model,
        "arm": arm,
        "unit": unit,
        "prompt_tokens": explained.prompt_tokens,
        "units": explained.units,
        "tokens": tokens,
        "attributions": attributions,
        "totals": totals,
    })
}
