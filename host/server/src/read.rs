//! Reading a request's body: its media type and its size are checked before anything is kept.

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use http::{Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

use crate::answer::{closing, of_error, refusal};
use crate::body::AnswerBody;

/// The whole body of a JSON request.
///
/// # Errors
/// The answer to give: 415 for another media type or a compressed body, 413 beyond `limit` bytes,
/// 400 when the client stops half-way.
pub(crate) async fn json_body(
    headers: &HeaderMap,
    mut body: Incoming,
    limit: u64,
) -> Result<Bytes, Response<AnswerBody>> {
    if let Some(value) = headers.get(CONTENT_TYPE)
        && !is_json(value.as_bytes())
    {
        return Err(unsupported("send JSON with content-type: application/json"));
    }
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(unsupported(
            "compressed request bodies are not read; send plain JSON",
        ));
    }
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large(limit));
    }
    // The usual case is one frame, which is then the body as it lies in the read buffer.
    let mut first = Bytes::new();
    let mut rest: Option<BytesMut> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let message = format!("the request's body broke off: {error}");
            of_error(&refusal(
                StatusCode::BAD_REQUEST,
                "incomplete_body",
                message,
            ))
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let so_far = rest.as_ref().map_or(first.len(), BytesMut::len);
        if (so_far + data.len()) as u64 > limit {
            return Err(too_large(limit));
        }
        match &mut rest {
            Some(rest) => rest.extend_from_slice(&data),
            None if first.is_empty() => first = data,
            None => {
                let expected = announced.unwrap_or(0).min(limit) as usize;
                let mut both = BytesMut::with_capacity(expected.max(first.len() + data.len()));
                both.extend_from_slice(&first);
                both.extend_from_slice(&data);
                rest = Some(both);
            }
        }
        if body.is_end_stream() {
            break;
        }
    }
    Ok(rest.map_or(first, BytesMut::freeze))
}

/// `application/json`, `application/anything+json`, with any parameters.
fn is_json(value: &[u8]) -> bool {
    let essence = value.split(|&byte| byte == b';').next().unwrap_or_default();
    let essence = essence.trim_ascii();
    essence.eq_ignore_ascii_case(b"application/json")
        || essence
            .len()
            .checked_sub(5)
            .and_then(|at| essence.get(at..))
            .is_some_and(|ending| ending.eq_ignore_ascii_case(b"+json"))
}

fn unsupported(message: &str) -> Response<AnswerBody> {
    closing(of_error(&refusal(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        message,
    )))
}

fn too_large(limit: u64) -> Response<AnswerBody> {
    let message = format!(
        "the request's body is larger than {limit} bytes; `server.max-body` in the config sets the limit"
    );
    closing(of_error(&refusal(
        StatusCode::PAYLOAD_TOO_LARGE,
        "body_too_large",
        message,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_known_by_its_essence() {
        for good in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/x+json",
        ] {
            assert!(is_json(good.as_bytes()), "{good}");
        }
        for bad in [
            "text/plain",
            "application/jsonx",
            "multipart/form-data",
            "json",
            "",
        ] {
            assert!(!is_json(bad.as_bytes()), "{bad}");
        }
    }
}
