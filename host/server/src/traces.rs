//! `/api/v1/traces`: a page of traces by filters, and one trace by its id.

use http::{Response, StatusCode};
use millgate_ops::trace::StageVerdict;
use millgate_ops::{ApiError, Platform, TraceFilter, TraceId};
use serde_json::json;

use crate::answer;
use crate::body::AnswerBody;

/// `GET /api/v1/traces?model=…&stage=…&verdict=…&finish=…&since_ms=…&until_ms=…&limit=…&cursor=…`:
/// newest first. `next` in the answer is the `cursor` of the next page.
pub(crate) async fn list(platform: &Platform, query: Option<&str>) -> Response<AnswerBody> {
    let filter = match filter_of(query.unwrap_or_default()) {
        Ok(filter) => filter,
        Err(error) => return answer::of_error(&error),
    };
    let traces = platform.traces().clone();
    match blocking(move || traces.list(&filter)).await {
        Ok(page) => answer::json(&page),
        Err(error) => answer::of_error(&error),
    }
}

/// `GET /api/v1/traces/{id}`.
pub(crate) async fn show(platform: &Platform, id: &str) -> Response<AnswerBody> {
    let id: TraceId = match id.parse() {
        Ok(id) => id,
        Err(error) => return answer::of_error(&ApiError::invalid(format!("{error}"), Some("id"))),
    };
    let (traces, inputs) = (platform.traces().clone(), platform.inputs().clone());
    let found = blocking(move || {
        let Some(trace) = traces.get(id)? else {
            return Ok(None);
        };
        let texts = traces.texts(&trace)?;
        Ok(Some((trace, texts, inputs.has(id)?)))
    });
    match found.await {
        Ok(Some((trace, texts, inputs))) => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let mut value = json!(trace);
            if let Some(object) = value.as_object_mut() {
                // Whether it can be replayed.
                object.insert("inputs".into(), inputs.into());
                if let Some((input, output)) = texts {
                    object.insert("input_text".into(), text(&input).into());
                    object.insert("output_text".into(), text(&output).into());
                }
            }
            answer::json(&value)
        }
        Ok(None) => answer::of_error(&answer::refusal(
            StatusCode::NOT_FOUND,
            "trace_not_found",
            format!("there is no trace {id}; it may have been removed by the retention rules"),
        )),
        Err(error) => answer::of_error(&error),
    }
}

/// The store reads from disk: not on a thread that serves the network.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> millgate_ops::Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(ApiError::internal(error.to_string())),
        Err(_) => Err(ApiError::internal("the look-up was cut off")),
    }
}

fn filter_of(query: &str) -> Result<TraceFilter, ApiError> {
    let mut filter = TraceFilter::default();
    for (name, value) in pairs(query) {
        let bad = |wanted: &str| {
            ApiError::invalid(
                format!("`{name}` must be {wanted}, not `{value}`"),
                Some(name),
            )
        };
        match name {
            "model" => filter.model = Some(value),
            "stage" => filter.stage = Some(value),
            "finish" => filter.finish = Some(value),
            "verdict" => {
                let known = StageVerdict::ALL.into_iter().find(|v| v.name() == value);
                filter.verdict = Some(known.ok_or_else(|| {
                    let names = StageVerdict::ALL.map(StageVerdict::name);
                    bad(&format!("one of {}", names.join(", ")))
                })?);
            }
            "since_ms" | "until_ms" => {
                let at = value.parse().map_err(|_| bad("milliseconds since 1970"))?;
                match name {
                    "since_ms" => filter.since_ms = Some(at),
                    _ => filter.until_ms = Some(at),
                }
            }
            "limit" => {
                let limit = value
                    .parse()
                    .ok()
                    .filter(|limit| (1..=1000).contains(limit));
                filter.limit = limit.ok_or_else(|| bad("from 1 to 1000"))?;
            }
            "cursor" => {
                let cursor = value
                    .parse()
                    .map_err(|_| bad("the `next` of a page before"))?;
                filter.cursor = Some(cursor);
            }
            _ => {
                let message = format!(
                    "`{name}` is no filter; there are: model, stage, verdict, finish, since_ms, until_ms, limit, cursor"
                );
                return Err(ApiError::invalid(message, Some(name)));
            }
        }
    }
    Ok(filter)
}

/// The names and the values of a query string.
pub(crate) fn pairs(query: &str) -> impl Iterator<Item = (&str, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name, decode(value))
    })
}

/// A value of a query string: `+` is a space, `%41` is `A`.
fn decode(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
                match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    Some(byte) => {
                        bytes.push(byte);
                        rest = tail.get(2..).unwrap_or_default();
                    }
                    None => bytes.push(b'%'),
                }
            }
            other => bytes.push(*other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_from_the_query() {
        let filter =
            filter_of("model=a%2Fb+c&verdict=block&since_ms=5&limit=7&finish=stop&stage=pii")
                .unwrap();
        assert_eq!(filter.model.as_deref(), Some("a/b c"));
        assert_eq!(filter.verdict, Some(StageVerdict::Block));
        assert_eq!((filter.since_ms, filter.limit), (Some(5), 7));
    }

    #[test]
    fn a_bad_filter_says_what_is_expected() {
        let said = |query| filter_of(query).unwrap_err().message;
        assert!(said("verdict=blocked").contains("failed-closed"));
        assert!(said("limit=0").contains("1 to 1000"));
        assert!(said("colour=red").contains("since_ms"));
        assert!(said("cursor=x").contains("next"));
    }
}
