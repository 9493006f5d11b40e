//! Responses: the headers that every answer has, and OpenAI's error shape for every failure.

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER,
};
use http::{Response, StatusCode};
use millgate_ops::response::Body;
use millgate_ops::{ApiError, TraceId};

use crate::body::AnswerBody;
use crate::embeddings;
use crate::render::{self, Head, StreamRenderer};

/// The trace of the request, on every answer.
pub(crate) const TRACE_HEADER: HeaderName = HeaderName::from_static("x-millgate-trace");
/// Tells proxies of the nginx kind not to hold a stream back.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");

/// What the platform answered, as HTTP.
pub(crate) fn of_response(response: millgate_ops::Response) -> Response<AnswerBody> {
    let head = Head {
        trace: response.trace,
        model: &response.model,
        created: response.created,
        endpoint: response.endpoint,
        include_usage: response.include_usage,
        echoed: response.echoed.as_ref(),
    };
    let mut answer = match response.body {
        Body::Json(json) => json_bytes(json),
        Body::Embeddings(vectors) => json_bytes(embeddings::embeddings(head, &vectors)),
        Body::Completion(completion) => json_bytes(render::completion(head, &completion)),
        Body::Stream(stream) => {
            let body = AnswerBody::events(stream, StreamRenderer::new(head));
            let mut answer = Response::new(body);
            let headers = answer.headers_mut();
            headers.insert(CONTENT_TYPE, EVENT_STREAM);
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
            answer
        }
    };
    set_trace(&mut answer, response.trace);
    answer
}

/// A failure, as HTTP.
pub(crate) fn of_error(error: &ApiError) -> Response<AnswerBody> {
    let mut answer = json_bytes(render::error(error));
    *answer.status_mut() =
        StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Some(seconds) = error.retry_after {
        answer.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    if let Some(trace) = error.trace {
        set_trace(&mut answer, trace);
    }
    answer
}

/// A failure before the platform saw the request.
pub(crate) fn refusal(status: StatusCode, code: &str, message: impl Into<String>) -> ApiError {
    let kind = if status.is_server_error() {
        "server_error"
    } else {
        "invalid_request_error"
    };
    ApiError {
        status: status.as_u16(),
        kind,
        code: code.to_owned(),
        message: message.into(),
        param: None,
        retry_after: None,
        trace: None,
    }
}

/// 404 for a path.
pub(crate) fn no_such_path(path: &str) -> Response<AnswerBody> {
    let message = format!("there is nothing at {path}; the API is below /v1 and /api/v1");
    of_error(&refusal(StatusCode::NOT_FOUND, "not_found", message))
}

/// 405 for a path that is there, with the methods that it takes.
pub(crate) fn wrong_method(path: &str, allowed: &'static str) -> Response<AnswerBody> {
    let message = format!("{path} takes {allowed}");
    let mut answer = of_error(&refusal(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        message,
    ));
    answer
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

/// JSON that is already rendered.
pub(crate) fn json_bytes(json: Bytes) -> Response<AnswerBody> {
    with_type(json, JSON)
}

/// A value as JSON.
pub(crate) fn json(value: &impl serde::Serialize) -> Response<AnswerBody> {
    match serde_json::to_vec(value) {
        Ok(bytes) => json_bytes(bytes.into()),
        Err(error) => of_error(&ApiError::internal(format!(
            "an answer cannot be written: {error}"
        ))),
    }
}

/// Text of a media type.
pub(crate) fn text(text: impl Into<Bytes>, media_type: &'static str) -> Response<AnswerBody> {
    with_type(text.into(), HeaderValue::from_static(media_type))
}

fn with_type(bytes: Bytes, media_type: HeaderValue) -> Response<AnswerBody> {
    let mut answer = Response::new(AnswerBody::from(bytes));
    answer.headers_mut().insert(CONTENT_TYPE, media_type);
    answer
}

/// Puts the trace's id into the header, where there is none yet.
pub(crate) fn set_trace(answer: &mut Response<AnswerBody>, trace: TraceId) {
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(trace.to_string())) {
        answer.headers_mut().entry(TRACE_HEADER).or_insert(value);
    }
}

/// The rest of the request is not read: the connection cannot be used again.
pub(crate) fn closing(mut answer: Response<AnswerBody>) -> Response<AnswerBody> {
    answer
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}
