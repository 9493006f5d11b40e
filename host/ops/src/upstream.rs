//! An endpoint that speaks the OpenAI API, over HTTP/1.1 with kept connections and `TCP_NODELAY`.
//! The key comes from the environment, goes into one header, and is never logged.

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use serde::Deserialize;

use crate::{config::UpstreamConfig, error::ApiError, request::Endpoint};

/// The largest answer that is read whole, in bytes.
const MAX_ANSWER: usize = 64 << 20;

/// An endpoint that speaks the OpenAI API.
pub(crate) struct Upstream {
    /// The config's name of the model, for messages.
    name: String,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    chat: Uri,
    completions: Uri,
    embeddings: Uri,
    /// The model's name there.
    pub model: Option<String>,
    authorization: Option<HeaderValue>,
    read_timeout: Duration,
}

/// An answer whose head has come.
pub(crate) struct UpstreamBody {
    body: Wire,
    /// Whether it is a stream of events.
    pub events: bool,
    name: String,
    read_timeout: Duration,
    /// When the request that it answers is over.
    deadline: Instant,
}

/// Where the bytes of an answer come from.
enum Wire {
    Http(Incoming),
    #[cfg(test)]
    Pieces(std::collections::VecDeque<Bytes>),
}

impl Wire {
    async fn frame(&mut self) -> Option<Result<hyper::body::Frame<Bytes>, hyper::Error>> {
        match self {
            Wire::Http(body) => body.frame().await,
            #[cfg(test)]
            Wire::Pieces(pieces) => pieces
                .pop_front()
                .map(|piece| Ok(hyper::body::Frame::data(piece))),
        }
    }
}

impl Upstream {
    /// Makes a client for an endpoint; connects at the first request.
    ///
    /// # Errors
    /// One sentence: the URL is none, or the key cannot be had.
    pub(crate) fn new(name: &str, config: &UpstreamConfig) -> Result<Self, String> {
        let authorization = match &config.key_env {
            None => None,
            Some(variable) => {
                let key = std::env::var(variable)
                    .map_err(|_| format!("the environment variable {variable} with the key of its upstream is not set"))?;
                let mut value =
                    HeaderValue::try_from(format!("Bearer {}", key.trim())).map_err(|_| {
                        format!("the key in {variable} holds characters that a header cannot")
                    })?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let base = config.url.trim_end_matches('/');
        let uri = |endpoint: Endpoint| {
            format!("{base}{}", endpoint.path())
                .parse::<Uri>()
                .map_err(|error| format!("its upstream's URL: {error}"))
        };
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(config.connect_timeout.0));
        let connector = HttpsConnectorBuilder::new()
            .with_webpki_roots()
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(60))
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Self {
            name: name.to_owned(),
            client,
            chat: uri(Endpoint::Chat)?,
            completions: uri(Endpoint::Completions)?,
            embeddings: uri(Endpoint::Embeddings)?,
            model: config.model.clone(),
            authorization,
            read_timeout: config.read_timeout.0,
        })
    }

    /// Sends a request and waits for the head of the answer. Dropping the future, or the body that
    /// it gives, closes the connection, and with it the work at the other end.
    pub(crate) async fn send(
        &self,
        endpoint: Endpoint,
        body: Bytes,
        deadline: Instant,
    ) -> Result<UpstreamBody, ApiError> {
        let uri = match endpoint {
            Endpoint::Chat | Endpoint::Responses => &self.chat,
            Endpoint::Completions => &self.completions,
            Endpoint::Embeddings => &self.embeddings,
        };
        let mut request =
            Request::post(uri.clone()).header(header::CONTENT_TYPE, "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| ApiError::internal(error.to_string()))?;
        let sent = self.client.request(request);
        let response = match timely(&self.name, self.read_timeout, deadline, sent).await? {
            Ok(response) => response,
            Err(error) => {
                tracing::warn!(model = %self.name, error = %chain(&error), "the upstream cannot be reached");
                return Err(ApiError::upstream(format!(
                    "the upstream of the model `{}` cannot be reached",
                    self.name
                )));
            }
        };
        let status = response.status();
        let events = response
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let retry_after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse().ok());
        let body = UpstreamBody {
            body: Wire::Http(response.into_body()),
            events,
            name: self.name.clone(),
            read_timeout: self.read_timeout,
            deadline,
        };
        if status.is_success() {
            return Ok(body);
        }
        let text = match body.whole().await {
            Err(error) if error.code == "deadline_exceeded" => return Err(error),
            text => text.unwrap_or_default(),
        };
        let mut error = self.refusal(status, &text);
        error.retry_after = retry_after.or(error.retry_after);
        Err(error)
    }

    /// What a client is told of an upstream's error. What is about its request is passed on; what
    /// is about our key, or the upstream itself, is not the client's to mend.
    fn refusal(&self, status: StatusCode, body: &[u8]) -> ApiError {
        #[derive(Deserialize)]
        struct Detail {
            message: Option<String>,
            code: Option<serde_json::Value>,
            param: Option<String>,
        }
        #[derive(Deserialize)]
        struct Envelope {
            error: Detail,
        }
        let detail = serde_json::from_slice::<Envelope>(body)
            .ok()
            .map(|envelope| envelope.error);
        let message = detail.as_ref().and_then(|detail| detail.message.clone());
        let code = detail.as_ref().and_then(|detail| match &detail.code {
            Some(serde_json::Value::String(code)) => Some(code.clone()),
            Some(serde_json::Value::Number(code)) => Some(code.to_string()),
            _ => None,
        });
        let param = detail.and_then(|detail| detail.param);
        match status.as_u16() {
            429 => {
                let said = message.unwrap_or_else(|| {
                    format!("the upstream of the model `{}` is busy", self.name)
                });
                ApiError::passed_on(
                    429,
                    "rate_limit_error",
                    code.unwrap_or_else(|| "rate_limited".into()),
                    said,
                    param,
                )
            }
            status @ (400 | 404 | 409 | 413 | 415 | 422) => {
                let said = message.unwrap_or_else(|| {
                    format!(
                        "the upstream of the model `{}` refused the request",
                        self.name
                    )
                });
                let code = code.unwrap_or_else(|| "invalid_request".into());
                ApiError::passed_on(status, "invalid_request_error", code, said, param)
            }
            401 | 403 => {
                tracing::error!(model = %self.name, %status, "the upstream does not accept our key");
                ApiError::upstream(format!(
                    "the upstream of the model `{}` does not accept this server's key; its operator must mend that",
                    self.name
                ))
            }
            status => {
                tracing::warn!(model = %self.name, status, "the upstream failed");
                ApiError::upstream(format!(
                    "the upstream of the model `{}` failed with status {status}",
                    self.name
                ))
            }
        }
    }
}

/// Waits for an upstream as long as its config allows, and never beyond the request's deadline.
async fn timely<T>(
    name: &str,
    read_timeout: Duration,
    deadline: Instant,
    awaited: impl Future<Output = T>,
) -> Result<T, ApiError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        // An upstream that always has something ready is late all the same.
        return Err(ApiError::late());
    }
    let outcome = tokio::time::timeout(read_timeout.min(left), awaited).await;
    outcome.map_err(|_| match left < read_timeout {
        true => ApiError::late(),
        false => too_slow(name),
    })
}

fn too_slow(name: &str) -> ApiError {
    ApiError::upstream_timeout(format!(
        "the upstream of the model `{name}` took too long; `read-timeout` in its config is how long it may take"
    ))
}

impl UpstreamBody {
    /// A stream of events that comes in these pieces.
    #[cfg(test)]
    pub(crate) fn pieces(pieces: impl IntoIterator<Item = Bytes>, deadline: Instant) -> Self {
        Self {
            body: Wire::Pieces(pieces.into_iter().collect()),
            events: true,
            name: "test".to_owned(),
            read_timeout: Duration::from_secs(5),
            deadline,
        }
    }

    /// The next piece, as it came from the wire.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            let frame = self.body.frame();
            return match timely(&self.name, self.read_timeout, self.deadline, frame).await? {
                None => Ok(None),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => Ok(Some(data)),
                    Err(_) => continue, // trailers
                },
                Some(Err(error)) => {
                    tracing::warn!(model = %self.name, error = %chain(&error), "the upstream broke off");
                    Err(ApiError::upstream(format!(
                        "the upstream of the model `{}` broke off its answer",
                        self.name
                    )))
                }
            };
        }
    }

    /// The whole body.
    pub(crate) async fn whole(mut self) -> Result<Bytes, ApiError> {
        let Some(first) = self.next().await? else {
            return Ok(Bytes::new());
        };
        let Some(second) = self.next().await? else {
            return Ok(first);
        };
        let mut all = Vec::with_capacity(first.len() + second.len());
        all.extend_from_slice(&first);
        all.extend_from_slice(&second);
        while let Some(piece) = self.next().await? {
            if all.len() + piece.len() > MAX_ANSWER {
                return Err(ApiError::upstream(format!(
                    "the answer of the upstream of the model `{}` is larger than {} MiB",
                    self.name,
                    MAX_ANSWER >> 20
                )));
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.into())
    }
}

/// An error with its causes: hyper's own texts say little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
