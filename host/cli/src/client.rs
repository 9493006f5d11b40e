//! A client of a running server: JSON in and out, and streamed answers line by line.

use std::io::{BufRead as _, BufReader};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

/// A server and the key for it.
#[derive(Clone, Debug)]
pub struct Client {
    base: String,
    key: Option<String>,
    agent: ureq::Agent,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error(
        "there is no server at {0}; start one with `millgate serve` or name another with --server"
    )]
    NoServer(String),
    /// It answered with an error.
    #[error("{message} ({status}, {code})")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// `error.code`.
        code: String,
        /// `error.message`.
        message: String,
        /// The trace, where there is one.
        trace: Option<String>,
    },
    /// Something else.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// What a streamed answer brought.
#[derive(Debug, Default)]
pub struct Streamed {
    /// The whole text.
    pub text: String,
    /// The trace's id.
    pub trace: Option<String>,
    /// The error that ended it, if one did.
    pub error: Option<String>,
}

impl Client {
    /// For the server at this base URL, with or without `/v1`.
    pub fn new(base: &str, key: Option<String>) -> Self {
        let base = base.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base).to_owned();
        let agent = ureq::Agent::config_builder()
            .timeout_connect(Some(Duration::from_secs(5)))
            .http_status_as_error(false)
            // A server that one names is asked directly.
            .proxy(None)
            .build()
            .into();
        Self { base, key, agent }
    }

    /// The base URL.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// `GET`s JSON.
    pub fn get(&self, path: &str) -> Result<Value, ClientError> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let response = request.call().map_err(|error| self.failure(error))?;
        json_of(response)
    }

    /// `DELETE`s, and gets JSON.
    pub fn delete(&self, path: &str) -> Result<Value, ClientError> {
        let mut request = self.agent.delete(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        json_of(request.call().map_err(|error| self.failure(error))?)
    }

    /// `GET`s bytes, with the headers that came with them.
    pub fn get_bytes(&self, path: &str) -> Result<(Vec<u8>, ureq::http::HeaderMap), ClientError> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.call().map_err(|error| self.failure(error))?;
        if response.status().as_u16() >= 400 {
            json_of(response)?;
            return Err(ClientError::Other(anyhow!(
                "the server refused without a word"
            )));
        }
        let headers = response.headers().clone();
        let body = response.body_mut().with_config().limit(256 << 20);
        Ok((body.read_to_vec().map_err(anyhow::Error::from)?, headers))
    }

    /// `POST`s JSON and gets JSON.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        let mut request = self
            .agent
            .post(format!("{}{path}", self.base))
            .header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let sent = request.send(body.to_string());
        json_of(sent.map_err(|error| self.failure(error))?)
    }

    /// Posts a chat request with `"stream": true` and hands over each piece of text as it comes.
    pub fn stream_chat(
        &self,
        request: &Value,
        mut piece: impl FnMut(&str),
    ) -> Result<Streamed, ClientError> {
        let mut post = self
            .agent
            .post(format!("{}/v1/chat/completions", self.base))
            .header("content-type", "application/json");
        if let Some(key) = &self.key {
            post = post.header("authorization", format!("Bearer {key}"));
        }
        let mut response = post
            .send(request.to_string())
            .map_err(|error| self.failure(error))?;
        let status = response.status().as_u16();
        let trace = trace_of(&response);
        if status >= 400 {
            let text = response.body_mut().read_to_string().unwrap_or_default();
            return Err(refusal(status, &text, trace));
        }
        let mut streamed = Streamed {
            trace,
            ..Streamed::default()
        };
        let lines = BufReader::new(response.into_body().into_reader()).lines();
        for line in lines {
            let line = line.context("the answer broke off")?;
            let Some(data) = line.strip_prefix("data: ") else {
                continue;
            };
            if data == "[DONE]" {
                break;
            }
            let event: Value = serde_json::from_str(data).context("the stream is not JSON")?;
            if let Some(message) = event.pointer("/error/message").and_then(Value::as_str) {
                streamed.error = Some(message.to_owned());
            }
            let text = event.pointer("/choices/0/delta/content");
            if let Some(text) = text.and_then(Value::as_str) {
                piece(text);
                streamed.text.push_str(text);
            }
        }
        Ok(streamed)
    }

    fn failure(&self, error: ureq::Error) -> ClientError {
        match error {
            ureq::Error::Io(io) if io.kind() == std::io::ErrorKind::ConnectionRefused => {
                ClientError::NoServer(self.base.clone())
            }
            ureq::Error::ConnectionFailed | ureq::Error::HostNotFound => {
                ClientError::NoServer(self.base.clone())
            }
            other => ClientError::Other(anyhow!("{}: {other}", self.base)),
        }
    }
}

/// The JSON of an answer, or the error that it is.
fn json_of(mut response: ureq::http::Response<ureq::Body>) -> Result<Value, ClientError> {
    let status = response.status().as_u16();
    let trace = trace_of(&response);
    let body = response.body_mut().with_config().limit(64 << 20);
    let text = body.read_to_string().map_err(anyhow::Error::from)?;
    if status >= 400 {
        return Err(refusal(status, &text, trace));
    }
    Ok(serde_json::from_str(&text).context("the server did not answer with JSON")?)
}

/// The id in the `x-millgate-trace` header.
fn trace_of(response: &ureq::http::Response<ureq::Body>) -> Option<String> {
    let value = response.headers().get("x-millgate-trace")?;
    Some(value.to_str().ok()?.to_owned())
}

/// An error in OpenAI's shape.
fn refusal(status: u16, body: &str, trace: Option<String>) -> ClientError {
    let value: Value = serde_json::from_str(body).unwrap_or_default();
    let field = |name: &str| {
        let value = value.pointer(&format!("/error/{name}"));
        value.and_then(Value::as_str).map(str::to_owned)
    };
    ClientError::Refused {
        status,
        code: field("code").unwrap_or_else(|| "no code".into()),
        message: field("message").unwrap_or_else(|| body.trim().to_owned()),
        trace,
    }
}

/// A query string of the pairs that have a value.
pub fn query(pairs: &[(&str, Option<String>)]) -> Result<String> {
    let mut text = String::new();
    for (name, value) in pairs {
        let Some(value) = value else { continue };
        if value.chars().any(char::is_control) {
            bail!("--{name}: control characters are no value");
        }
        text.push(if text.is_empty() { '?' } else { '&' });
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                    text.push(byte.into());
                }
                other => text.push_str(&format!("%{other:02X}")),
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_only_what_is_given_and_is_escaped() {
        let pairs = [
            ("a", None),
            ("b", Some("x/y z".to_owned())),
            ("c", Some("1".into())),
        ];
        assert_eq!(query(&pairs).unwrap(), "?b=x%2Fy%20z&c=1");
        assert_eq!(query(&[("a", None)]).unwrap(), "");
    }

    #[test]
    fn a_base_url_may_end_in_v1() {
        assert_eq!(Client::new("http://h:1/v1/", None).base(), "http://h:1");
    }

    #[test]
    fn nobody_listening_is_said_in_plain_words() {
        let error = Client::new("http://127.0.0.1:1", None)
            .get("/healthz")
            .unwrap_err();
        assert!(error.to_string().contains("millgate serve"), "{error}");
    }
}
