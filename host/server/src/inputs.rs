//! `/api/v1/inputs` and `POST /api/v1/traces/{id}/replay`: what was kept of requests, for backtests in
//! another process; its erasure; and replays.

use http::header::HeaderValue;
use http::{HeaderMap, Method, Response, StatusCode};
use hyper::body::Incoming;
use millgate_ops::replay::{InputRange, MEDIA_TYPE, write_frame};
use millgate_ops::{ApiError, Platform, TraceId};
use serde_json::json;

use crate::answer;
use crate::body::AnswerBody;
use crate::read;
use crate::service::{Shared, bearer, loading};
use crate::traces::{blocking, pairs};

/// Where the next page begins.
const NEXT_HEADER: &str = "x-millgate-next";
/// How many records there are in the range, on the first page.
const TOTAL_HEADER: &str = "x-millgate-total";
/// The most bytes of a body that is read, and not looked at.
const MAX_BODY: u64 = 64 << 10;
/// The most bytes of a page of records; one record may be larger.
const PAGE_BYTES: usize = 8 << 20;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    /// The records.
    Records,
    /// The traces that have one.
    Ids,
    /// The replay of a trace.
    Replay(&'a str),
}

/// What a path asks for; `None` for all other paths.
pub(crate) fn target(path: &str) -> Option<Target<'_>> {
    match path {
        "/api/v1/inputs" => Some(Target::Records),
        "/api/v1/inputs/ids" => Some(Target::Ids),
        _ => {
            let id = path.strip_prefix("/api/v1/traces/")?;
            Some(Target::Replay(id.strip_suffix("/replay")?))
        }
    }
}

/// Answers one of the routes. They need no body, but what comes is read, so that the connection can be
/// used again.
pub(crate) async fn answer(
    shared: &Shared,
    method: &Method,
    path: &str,
    query: Option<&str>,
    headers: &HeaderMap,
    body: Incoming,
) -> Response<AnswerBody> {
    let Some(target) = target(path) else {
        return answer::no_such_path(path);
    };
    let allowed = match target {
        Target::Records => "GET, DELETE",
        Target::Ids => "GET",
        Target::Replay(_) => "POST",
    };
    if !allowed.split(", ").any(|known| known == method.as_str()) {
        return answer::closing(answer::wrong_method(path, allowed));
    }
    let Some(ready) = shared.ready() else {
        return answer::closing(answer::of_error(&loading()));
    };
    let platform = &ready.platform;
    if let Err(error) = platform.check_operator(bearer(headers)) {
        return answer::closing(answer::of_error(&error));
    }
    // Whatever it is called: it is not looked at.
    if let Err(answer) = read::json_body(&HeaderMap::new(), body, MAX_BODY).await {
        return answer;
    }
    let query = query.unwrap_or_default();
    let done = match target {
        Target::Replay(id) => replay(platform, id).await,
        Target::Records if *method == Method::DELETE => erase(platform, query).await,
        Target::Records => records(platform, query).await,
        Target::Ids => ids(platform, query).await,
    };
    done.unwrap_or_else(|error| answer::of_error(&error))
}

/// `POST /api/v1/traces/{id}/replay`
async fn replay(platform: &Platform, id: &str) -> Result<Response<AnswerBody>, ApiError> {
    let id: TraceId = id.parse().map_err(|error: millgate_ops::BadTraceId| {
        ApiError::invalid(error.to_string(), Some("id"))
    })?;
    let traces = platform.traces().clone();
    if blocking(move || traces.get(id)).await?.is_none() {
        return Err(answer::refusal(
            StatusCode::NOT_FOUND,
            "trace_not_found",
            format!("there is no trace {id}; it may have been removed by the retention rules"),
        ));
    }
    Ok(answer::json(&platform.replay(id).await?))
}

/// `GET /api/v1/inputs?since_ms=…&until_ms=…&limit=…&cursor=…`: newest first, as frames.
async fn records(platform: &Platform, query: &str) -> Result<Response<AnswerBody>, ApiError> {
    let asked = Asked::of(query, 1000)?;
    let inputs = platform.inputs().clone();
    let read = blocking(move || {
        let total = match asked.cursor {
            None => Some(inputs.count_in(asked.range, u64::MAX)?),
            Some(_) => None,
        };
        let page = inputs.page(asked.range, asked.cursor, asked.limit)?;
        let (mut out, mut next) = (Vec::new(), page.next);
        let mut last = None;
        for (id, sealed) in page.records {
            if out.len() > PAGE_BYTES {
                next = last;
                break;
            }
            write_frame(&mut out, id, &inputs.unseal(id, &sealed)?);
            last = Some(id);
        }
        Ok((out, next, total))
    });
    let (out, next, total) = read.await?;
    let mut answer = answer::text(out, MEDIA_TYPE);
    let mut header = |name, value: Option<String>| {
        if let Some(Ok(value)) = value.map(|value| HeaderValue::from_str(&value)) {
            answer.headers_mut().insert(name, value);
        }
    };
    header(NEXT_HEADER, next.map(|next| next.to_string()));
    header(TOTAL_HEADER, total.map(|total| total.to_string()));
    Ok(answer)
}

/// `GET /api/v1/inputs/ids`: with the same query, the traces that have a record.
async fn ids(platform: &Platform, query: &str) -> Result<Response<AnswerBody>, ApiError> {
    let asked = Asked::of(query, 10_000)?;
    let inputs = platform.inputs().clone();
    let read = blocking(move || inputs.ids(asked.range, asked.cursor, asked.limit));
    let (ids, next) = read.await?;
    Ok(answer::json(&json!({ "ids": ids, "next": next })))
}

/// `DELETE /api/v1/inputs?tenant=…&user=…`
async fn erase(platform: &Platform, query: &str) -> Result<Response<AnswerBody>, ApiError> {
    let (mut tenant, mut user) = (None, None);
    for (name, value) in pairs(query) {
        match name {
            "tenant" => tenant = Some(value),
            "user" => user = Some(value),
            _ => {
                let message = format!("`{name}` is not known here; there are: tenant, user");
                return Err(ApiError::invalid(message, Some(name)));
            }
        }
    }
    let Some(tenant) = tenant.filter(|tenant| !tenant.is_empty()) else {
        let message = "say whose inputs: `tenant=NAME`, with `&user=ID` for one of its end users";
        return Err(ApiError::invalid(message, Some("tenant")));
    };
    let platform = platform.clone();
    let keys = blocking(move || platform.erase_inputs(&tenant, user.as_deref(), "api")).await?;
    Ok(answer::json(&json!({ "keys": keys })))
}

/// Which records.
struct Asked {
    range: InputRange,
    cursor: Option<TraceId>,
    limit: usize,
}

impl Asked {
    fn of(query: &str, most: usize) -> Result<Self, ApiError> {
        let mut asked = Self {
            range: InputRange::default(),
            cursor: None,
            limit: most.min(256),
        };
        for (name, value) in pairs(query) {
            let bad = |wanted: &str| {
                let message = format!("`{name}` must be {wanted}, not `{value}`");
                ApiError::invalid(message, Some(name))
            };
            match name {
                "since_ms" | "until_ms" => {
                    let at = value.parse().map_err(|_| bad("milliseconds since 1970"))?;
                    match name {
                        "since_ms" => asked.range.since_ms = Some(at),
                        _ => asked.range.until_ms = Some(at),
                    }
                }
                "limit" => {
                    let limit = value.parse().ok();
                    let limit = limit.filter(|limit| (1..=most).contains(limit));
                    asked.limit = limit.ok_or_else(|| bad(&format!("from 1 to {most}")))?;
                }
                "cursor" => {
                    let cursor = value.parse();
                    asked.cursor = Some(cursor.map_err(|_| bad("the `next` of a page before"))?);
                }
                _ => {
                    let message = format!(
                        "`{name}` is not known here; there are: since_ms, until_ms, limit, cursor"
                    );
                    return Err(ApiError::invalid(message, Some(name)));
                }
            }
        }
        Ok(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paths_are_known() {
        assert_eq!(target("/api/v1/inputs"), Some(Target::Records));
        assert_eq!(target("/api/v1/inputs/ids"), Some(Target::Ids));
        assert_eq!(target("/api/v1/traces/t/replay"), Some(Target::Replay("t")));
        for other in [
            "/api/v1/traces/t",
            "/api/v1/traces/t/explain",
            "/api/v1/inputs/x",
        ] {
            assert_eq!(target(other), None, "{other}");
        }
    }

    #[test]
    fn a_bad_query_says_what_is_expected() {
        let said = |query| {
            Asked::of(query, 1000)
                .err()
                .map(|error| error.message)
                .unwrap_or_default()
        };
        assert!(said("limit=0").contains("1 to 1000"));
        assert!(said("since_ms=x").contains("milliseconds"));
        assert!(said("colour=red").contains("until_ms"));
        assert!(said("limit=5&since_ms=1").is_empty());
    }
}
