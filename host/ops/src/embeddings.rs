//! `/v1/embeddings` on a local model: texts as the input stages left them, to vectors.

use std::sync::Arc;

use millgate_infer as infer;
use serde_json::Value;

use crate::{
    error::ApiError,
    flight::Flight,
    local,
    model::LanguageModel,
    request::Request,
    response::{Embeddings, Usage},
    trace::Finish,
};

/// The most texts of a request.
const MOST_TEXTS: usize = 2048;

/// Embeds the texts of a request.
///
/// # Errors
/// 400 that names the field, or what the model said; the trace is written.
pub(crate) async fn local(
    mut flight: Flight,
    model: Arc<dyn LanguageModel>,
    request: &Request,
) -> Result<Embeddings, ApiError> {
    let caller = infer::Caller {
        tenant: request.tenant.clone(),
        cache_salt: local::cache_salt(&request.tenant),
        deadline: Some(flight.deadline),
        ..infer::Caller::default()
    };
    match embed(model, request, caller).await {
        Ok(embeddings) => {
            flight.first_token();
            flight.set_usage(Usage {
                prompt_tokens: embeddings.tokens,
                ..Usage::default()
            });
            match flight.end(Finish::Stop, None).await {
                Ok(()) => Ok(embeddings),
                Err(error) => Err(error.with_trace(flight.trace.id)),
            }
        }
        Err(error) => Err(flight.fail(Finish::Error, error).await),
    }
}

async fn embed(
    model: Arc<dyn LanguageModel>,
    request: &Request,
    caller: infer::Caller,
) -> Result<Embeddings, ApiError> {
    let base64 = match request.value::<String>("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            return Err(ApiError::invalid(
                format!("`encoding_format` is `{other}`; it may be `float` or `base64`"),
                Some("encoding_format"),
            ));
        }
    };
    let dimensions = request.value::<usize>("dimensions")?;
    let failed = |error: infer::Error| {
        let error = local::api_error(&error);
        let param = error.param.is_some().then(|| "input".to_owned());
        ApiError { param, ..error }
    };
    let (vectors, tokens) = if request.segments.is_empty() {
        let texts = token_texts(request)?;
        let tokens: usize = texts.iter().map(Vec::len).sum();
        (
            model.embed_tokens(texts, caller).await.map_err(failed)?,
            tokens as u32,
        )
    } else {
        let texts: Vec<String> = request
            .segments
            .iter()
            .map(|segment| segment.text.clone())
            .collect();
        let plain = request.value::<String>("input").is_ok()
            || request.value::<Vec<String>>("input").is_ok();
        if !plain {
            return Err(mixed());
        }
        check_count(texts.len())?;
        if texts.iter().any(String::is_empty) {
            return Err(ApiError::invalid(
                "`input` holds an empty text",
                Some("input"),
            ));
        }
        model.embed(texts, caller).await.map_err(failed)?
    };
    let size = vectors.first().map_or(0, Vec::len);
    if let Some(wanted) = dimensions.filter(|wanted| *wanted != size) {
        // A shorter vector is right only where the model was trained for it.
        return Err(ApiError::invalid(
            format!("`dimensions` is {wanted}, but this model's vectors have {size}; leave it out"),
            Some("dimensions"),
        ));
    }
    Ok(Embeddings {
        vectors,
        base64,
        tokens,
    })
}

fn mixed() -> ApiError {
    ApiError::invalid(
        "`input` must be a text, an array of texts, or one or more arrays of token ids",
        Some("input"),
    )
}

fn check_count(count: usize) -> Result<(), ApiError> {
    if count > MOST_TEXTS {
        return Err(ApiError::invalid(
            format!("`input` has {count} texts; at most {MOST_TEXTS} are read"),
            Some("input"),
        ));
    }
    Ok(())
}

/// Texts that came as token ids.
fn token_texts(request: &Request) -> Result<Vec<Vec<u32>>, ApiError> {
    let items: Vec<Value> = request.value("input")?.unwrap_or_default();
    let texts: Vec<Vec<u32>> = if items.iter().all(Value::is_number) {
        vec![request.value("input")?.unwrap_or_default()]
    } else {
        request
            .value("input")
            .map_err(|_| mixed())?
            .unwrap_or_default()
    };
    check_count(texts.len())?;
    if texts.iter().any(Vec::is_empty) {
        return Err(ApiError::invalid("`input` is empty", Some("input")));
    }
    Ok(texts)
}
