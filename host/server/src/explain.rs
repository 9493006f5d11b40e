//! `POST /api/v1/explain` and `POST /api/v1/traces/{id}/explain`: why a local model said what it said.

use http::{HeaderMap, Method, Response};
use hyper::body::Incoming;
use millgate_ops::{ApiError, TraceId};

use crate::body::AnswerBody;
use crate::service::{Shared, bearer, loading};
use crate::{answer, read};

/// What is to be explained.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    /// What the body says.
    Prompt,
    /// The trace with this id.
    Trace(&'a str),
}

/// What a path asks to explain; `None` for all other paths.
pub(crate) fn target(path: &str) -> Option<Target<'_>> {
    if path == "/api/v1/explain" {
        return Some(Target::Prompt);
    }
    let id = path
        .strip_prefix("/api/v1/traces/")?
        .strip_suffix("/explain")?;
    Some(Target::Trace(id))
}

/// Answers one of the two routes.
pub(crate) async fn answer(
    shared: &Shared,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    body: Incoming,
) -> Response<AnswerBody> {
    let Some(target) = target(path) else {
        return answer::no_such_path(path);
    };
    if *method != Method::POST {
        return answer::wrong_method(path, "POST");
    }
    let Some(ready) = shared.ready() else {
        return answer::closing(answer::of_error(&loading()));
    };
    let platform = &ready.platform;
    if let Err(error) = platform.check_operator(bearer(headers)) {
        return answer::closing(answer::of_error(&error));
    }
    let limit = platform.config().0.server.max_body.0;
    let body = match read::json_body(headers, body, limit).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let explained = match target {
        Target::Prompt => platform.explain(body).await,
        Target::Trace(id) => match id.parse::<TraceId>() {
            Ok(id) => platform.explain_trace(id, body).await,
            Err(error) => Err(ApiError::invalid(error.to_string(), Some("id"))),
        },
    };
    match explained {
        Ok(value) => answer::json(&value),
        Err(error) => answer::of_error(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paths_are_known() {
        assert_eq!(target("/api/v1/explain"), Some(Target::Prompt));
        assert_eq!(target("/api/v1/traces/t/explain"), Some(Target::Trace("t")));
        for other in ["/api/v1/traces/t", "/api/v1/traces", "/v1/explain"] {
            assert_eq!(target(other), None, "{other}");
        }
    }
}
