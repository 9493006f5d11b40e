//! `POST /api/v1/plan`, `/apply` and `/rollback`, and `GET /api/v1/generations`: an operator changes
//! what is served. What changes something is asked for by JSON alone, and never by a web page.

use http::header::{CONTENT_TYPE, HOST, ORIGIN};
use http::{HeaderMap, Method, Response, StatusCode};
use hyper::body::Incoming;
use millgate_ops::{ApiError, Ask, Error, Platform};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::body::AnswerBody;
use crate::service::{Shared, bearer, loading};
use crate::{answer, read};

/// The most generations in one answer.
const MAX_LIST: usize = 1000;
/// The longest name of whoever asks.
const MAX_NAME: usize = 64;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Plan,
    Apply,
    Rollback,
}

/// The body of all three; each takes a part of it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wish {
    /// The text of a config; without it, the server's own file.
    config: Option<String>,
    /// Make the server's own file say the same.
    write: bool,
    /// Make a new generation even where nothing changes.
    again: bool,
    /// Who asks.
    by: Option<String>,
    /// The generation to go back to.
    generation: Option<u64>,
}

/// What a path asks; `None` for all other paths.
pub(crate) fn operation(path: &str) -> Option<Operation> {
    match path {
        "/api/v1/plan" => Some(Operation::Plan),
        "/api/v1/apply" => Some(Operation::Apply),
        "/api/v1/rollback" => Some(Operation::Rollback),
        _ => None,
    }
}

/// Answers one of the three.
pub(crate) async fn answer(
    shared: &Shared,
    operation: Operation,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    body: Incoming,
) -> Response<AnswerBody> {
    if *method != Method::POST {
        return answer::wrong_method(path, "POST");
    }
    let Some(ready) = shared.ready() else {
        return answer::closing(answer::of_error(&loading()));
    };
    let platform = &ready.platform;
    let allowed = platform
        .check_operator(bearer(headers))
        .and_then(|()| no_web_page(platform, headers));
    if let Err(error) = allowed {
        return answer::closing(answer::of_error(&error));
    }
    let limit = platform.config().0.server.max_body.0;
    let body = match read::json_body(headers, body, limit).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let wish = match wish(operation, &body) {
        Ok(wish) => wish,
        Err(error) => return answer::of_error(&error),
    };
    let platform = platform.clone();
    // Loads and compiles: not on a thread that serves others.
    let done = tokio::task::spawn_blocking(move || run(&platform, operation, &wish)).await;
    match done {
        Ok(Ok(value)) => answer::json(&value),
        Ok(Err(error)) => answer::of_error(&api_error(&error)),
        Err(_) => answer::of_error(&ApiError::internal("the operation was cut off")),
    }
}

/// Without an operator's key whoever reaches the port is the operator. A web page that the operator
/// looks at reaches it too: so what it sends is refused by what browsers add to it.
fn no_web_page(platform: &Platform, headers: &HeaderMap) -> Result<(), ApiError> {
    if !headers.contains_key(CONTENT_TYPE) {
        return Err(answer::refusal(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "send JSON with content-type: application/json",
        ));
    }
    if platform.config().0.server.operator_key_env.is_some() {
        return Ok(());
    }
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    if headers.contains_key(ORIGIN) || !host.is_some_and(is_address) {
        return Err(answer::refusal(
            StatusCode::FORBIDDEN,
            "operator_key_required",
            "without an operator's key this is taken only from no web page and by the server's address (localhost or an IP address): name the key's variable in server.operator-key-env",
        ));
    }
    Ok(())
}

/// Whether a `Host` is an address and no name that somebody could point here.
fn is_address(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || bare.parse::<std::net::IpAddr>().is_ok()
}

fn wish(operation: Operation, body: &[u8]) -> Result<Wish, ApiError> {
    let wish: Wish = match body {
        [] => Wish::default(),
        body => serde_json::from_slice(body).map_err(|error| {
            ApiError::invalid(format!("the body cannot be read: {error}"), None)
        })?,
    };
    let refuse = |given: bool, field: &str| match given {
        true => Err(ApiError::invalid(
            format!("`{field}` means nothing here"),
            Some(field),
        )),
        false => Ok(()),
    };
    let (plan, rollback) = (
        operation == Operation::Plan,
        operation == Operation::Rollback,
    );
    refuse(wish.config.is_some() && rollback, "config")?;
    refuse(wish.write && operation != Operation::Apply, "write")?;
    refuse(wish.again && plan, "again")?;
    refuse(wish.by.is_some() && plan, "by")?;
    refuse(wish.generation.is_some() && !rollback, "generation")?;
    let plain = |c: char| c.is_alphanumeric() || "-_.@ ".contains(c);
    if let Some(by) = &wish.by
        && (by.is_empty() || by.chars().count() > MAX_NAME || !by.chars().all(plain))
    {
        return Err(ApiError::invalid(
            format!("`by` has 1 to {MAX_NAME} letters, digits, spaces, `-`, `_`, `.` or `@`"),
            Some("by"),
        ));
    }
    Ok(wish)
}

fn run(platform: &Platform, operation: Operation, wish: &Wish) -> Result<Value, Error> {
    // The key is one for all operators: the name is what the caller says it is.
    let ask = Ask {
        by: match &wish.by {
            Some(by) => format!("operator:{by}"),
            None => "operator".to_owned(),
        },
        again: wish.again,
    };
    let config = wish.config.as_deref();
    Ok(match operation {
        Operation::Plan => json!(platform.plan(config)?),
        Operation::Apply => json!(platform.apply(config, wish.write, &ask)?),
        Operation::Rollback => json!(platform.rollback(wish.generation, &ask)?),
    })
}

/// Why it was not done, as an answer.
fn api_error(error: &Error) -> ApiError {
    let bad = |code| answer::refusal(StatusCode::BAD_REQUEST, code, error.to_string());
    match error {
        Error::Config(_) => bad("invalid_config"),
        Error::Stage { .. } | Error::Model { .. } | Error::Refused(_) => bad("config_refused"),
        other => {
            tracing::error!(%error, "an operation failed");
            ApiError::internal(other.to_string())
        }
    }
}

/// `GET /api/v1/generations`: newest first.
pub(crate) async fn list(platform: &Platform, query: Option<&str>) -> Response<AnswerBody> {
    let limit = query
        .into_iter()
        .flat_map(|query| query.split('&'))
        .find_map(|pair| pair.strip_prefix("limit="));
    let limit = match limit.map(str::parse::<usize>) {
        None => 100,
        Some(Ok(limit)) if (1..=MAX_LIST).contains(&limit) => limit,
        Some(_) => {
            return answer::of_error(&ApiError::invalid(
                format!("`limit` is a number from 1 to {MAX_LIST}"),
                Some("limit"),
            ));
        }
    };
    let served = platform.config().1;
    let generations = platform.generations().clone();
    blocking(move || {
        let list = generations.list(limit)?;
        Ok(json!({ "served": served, "generations": list }))
    })
    .await
}

/// `GET /api/v1/generations/N`: with the text of its config.
pub(crate) async fn show(platform: &Platform, number: &str) -> Response<AnswerBody> {
    let Ok(number) = number.parse::<u64>() else {
        return answer::of_error(&ApiError::invalid(
            "a generation is named by its number",
            Some("generation"),
        ));
    };
    let generations = platform.generations().clone();
    blocking(move || {
        let record = generations.get(number)?;
        let mut value = json!(record);
        if let Some(fields) = value.as_object_mut() {
            fields.insert("config".to_owned(), generations.text(&record)?.into());
        }
        Ok(value)
    })
    .await
}

async fn blocking(
    read: impl FnOnce() -> Result<Value, Error> + Send + 'static,
) -> Response<AnswerBody> {
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(value)) => answer::json(&value),
        Ok(Err(Error::Refused(message))) => answer::of_error(&answer::refusal(
            StatusCode::NOT_FOUND,
            "generation_not_found",
            message,
        )),
        Ok(Err(error)) => answer::of_error(&ApiError::internal(error.to_string())),
        Err(_) => answer::of_error(&ApiError::internal("the operation was cut off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_is_a_host_that_nobody_else_can_name() {
        for good in ["127.0.0.1:8080", "localhost", "LOCALHOST:1", "[::1]:80"] {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "evil.example",
            "evil.example:8080",
            "",
            "127.0.0.1.evil.example",
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn a_wish_takes_only_what_it_means_something_for() {
        let read = |operation, body: &str| wish(operation, body.as_bytes());
        assert!(
            read(
                Operation::Apply,
                r#"{"config":"x","write":true,"again":true,"by":"Ann"}"#
            )
            .is_ok()
        );
        assert!(read(Operation::Rollback, r#"{"generation":3}"#).is_ok());
        assert!(read(Operation::Plan, "").is_ok());
        for (operation, body, field) in [
            (Operation::Plan, r#"{"again":true}"#, "again"),
            (Operation::Plan, r#"{"generation":1}"#, "generation"),
            (Operation::Rollback, r#"{"config":"x"}"#, "config"),
            (Operation::Apply, r#"{"by":"a\nb"}"#, "by"),
        ] {
            assert_eq!(
                read(operation, body).unwrap_err().param.as_deref(),
                Some(field)
            );
        }
        assert!(read(Operation::Apply, r#"{"cofnig":"x"}"#).is_err());
    }
}
