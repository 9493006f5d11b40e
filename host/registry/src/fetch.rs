//! Reading from a registry: every body is bounded, every step has a time-out, redirects are
//! followed with suspicion, and a challenge is answered once.
//!
//! The registry is not trusted here: what it sends is checked by digest and signature, and this file
//! sees to it that it cannot fill the memory, hold the caller for ever, or turn a download into a
//! request to a machine that only we can reach. (The client of `oci-client` reads manifests and
//! errors without a bound; it is used for pushing, where the registry is one that we log in to.)

use crate::credentials::Login;
use crate::error::{Error, Result};
use crate::outward::{Outward, judge};
use crate::reference::{Reference, host_of};
use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Response, StatusCode, Url};
use std::time::Duration;
use tokio::sync::Mutex;

/// The longest error and token answer that is read, in bytes.
pub(crate) const MAX_ANSWER: u64 = 64 << 10;

/// What a session may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// For the connection.
    pub connect: Duration,
    /// Between two pieces of an answer.
    pub idle: Duration,
    /// For one request with its answer.
    pub total: Duration,
}

/// A conversation with one repository.
pub(crate) struct Session {
    pub(crate) http: Client,
    pub(crate) base: Url,
    pub(crate) registry: String,
    pub(crate) repository: String,
    pub(crate) plain: bool,
    pub(crate) login: Option<Login>,
    /// The scope to ask for where tokens are used.
    pub(crate) push: bool,
    bounds: Bounds,
    /// The header that the registry accepted last.
    authorization: Mutex<Option<HeaderValue>>,
}

/// A whole answer.
pub(crate) struct Answer {
    pub body: Bytes,
    pub content_type: String,
    pub headers: HeaderMap,
}

impl Session {
    pub(crate) fn new(
        reference: &Reference,
        plain: bool,
        login: Option<Login>,
        push: bool,
        bounds: Bounds,
        roots: &[Certificate],
    ) -> Result<Session> {
        use_ring();
        let registry = reference.registry().to_owned();
        let scheme = if plain { "http" } else { "https" };
        let base = Url::parse(&format!(
            "{scheme}://{}/v2/{}/",
            reference.endpoint(),
            reference.repository()
        ))
        .map_err(|error| Error::Reference {
            text: reference.to_string(),
            why: error.to_string(),
        })?;
        let home = host_of(reference.endpoint()).to_owned();
        let local = reference.is_loopback();
        let mut builder = Client::builder()
            .user_agent(concat!("millgate/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(bounds.connect)
            .read_timeout(bounds.idle)
            .redirect(Policy::custom(move |attempt| judge(attempt, plain, local)))
            .tls_certs_merge(roots.iter().cloned());
        if local {
            builder = builder.no_proxy();
        } else {
            builder = builder.dns_resolver(Outward { home });
        }
        let http = builder.build().map_err(|error| Error::Tls {
            why: reasons(&error),
        })?;
        Ok(Session {
            http,
            base,
            registry,
            repository: reference.repository().to_owned(),
            plain,
            login,
            push,
            bounds,
            authorization: Mutex::new(None),
        })
    }

    /// Gets `path` of the repository; `None` where it is not there.
    pub(crate) async fn get(
        &self,
        path: &str,
        accept: &str,
        limit: u64,
        what: &str,
    ) -> Result<Option<Answer>> {
        self.within(what, async {
            let url = self.url(path)?;
            let mut response = self.send(&url, accept, what).await?;
            if response.status() == StatusCode::UNAUTHORIZED {
                let scheme = self.challenged(&response, what).await?;
                *self.authorization.lock().await = self.header(&scheme, what)?;
                response = self.send(&url, accept, what).await?;
            }
            match response.status() {
                StatusCode::NOT_FOUND => return Ok(None),
                StatusCode::OK => {}
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.denied(what)),
                // One that the client itself did not take for an address to go to.
                status if status.is_redirection() => {
                    let to = response.headers().get(LOCATION);
                    let to = to.and_then(|to| to.to_str().ok()).unwrap_or("nowhere");
                    return Err(Error::Redirect {
                        registry: self.registry.clone(),
                        what: what.to_owned(),
                        why: format!("to {}, which is not https", one_line(to)),
                    });
                }
                status => {
                    let message = self.message(response).await;
                    return Err(Error::Status {
                        registry: self.registry.clone(),
                        what: what.to_owned(),
                        status: status.as_u16(),
                        message,
                    });
                }
            }
            let headers = response.headers().clone();
            let text = |name| {
                headers
                    .get(name)
                    .and_then(|value: &HeaderValue| value.to_str().ok())
            };
            let content_type = text(CONTENT_TYPE).unwrap_or_default().to_owned();
            let body = self.body(response, limit, what).await?;
            Ok(Some(Answer {
                body,
                content_type,
                headers,
            }))
        })
        .await
    }

    fn url(&self, path: &str) -> Result<Url> {
        self.base.join(path).map_err(|error| Error::Protocol {
            registry: self.registry.clone(),
            why: format!("{path:?} is no path: {error}"),
        })
    }

    pub(crate) async fn within<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        tokio::time::timeout(self.bounds.total, work)
            .await
            .unwrap_or_else(|_| Err(self.slow(what, self.bounds.total)))
    }

    pub(crate) async fn send(&self, url: &Url, accept: &str, what: &str) -> Result<Response> {
        let mut request = self.http.get(url.clone()).header(ACCEPT, accept);
        if let Some(header) = self.authorization.lock().await.clone() {
            request = request.header(AUTHORIZATION, header);
        }
        request
            .send()
            .await
            .map_err(|error| self.failed(&error, what))
    }

    /// Reads a body of at most `limit` bytes.
    pub(crate) async fn body(
        &self,
        mut response: Response,
        limit: u64,
        what: &str,
    ) -> Result<Bytes> {
        let too_large = || Error::TooLarge {
            what: what.to_owned(),
            limit,
            how: "",
        };
        let announced = response.content_length();
        if announced.is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut body = BytesMut::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    if (body.len() + chunk.len()) as u64 > limit {
                        return Err(too_large());
                    }
                    body.extend_from_slice(&chunk);
                }
                Ok(None) => return Ok(body.freeze()),
                Err(error) if error.is_timeout() => return Err(self.failed(&error, what)),
                Err(error) => {
                    return Err(match announced {
                        Some(want) => Error::Size {
                            what: what.to_owned(),
                            want,
                            got: format!("the answer ended after {}", body.len()),
                        },
                        None => self.failed(&error, what),
                    });
                }
            }
        }
    }

    /// What an error answer says, in one short line.
    pub(crate) async fn message(&self, mut response: Response) -> String {
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = response.chunk().await {
            body.extend_from_slice(&chunk);
            if body.len() as u64 > MAX_ANSWER {
                break;
            }
        }
        let words = serde_json::from_slice::<serde_json::Value>(&body)
            .ok()
            .and_then(|json| Some(json.pointer("/errors/0/message")?.as_str()?.to_owned()))
            .unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
        one_line(&words)
    }

    pub(crate) fn denied(&self, what: &str) -> Error {
        Error::Denied {
            registry: self.registry.clone(),
            what: what.to_owned(),
            user: self.login.as_ref().map(|login| login.user.clone()),
            how: match &self.login {
                None => format!("`docker login {}` first", self.registry),
                Some(_) if self.push => {
                    "check that the password is right and that this user may push there".into()
                }
                Some(_) => "check that the password is right and that this user may read it".into(),
            },
        }
    }

    fn slow(&self, what: &str, limit: Duration) -> Error {
        Error::Slow {
            registry: self.registry.clone(),
            what: what.to_owned(),
            seconds: limit.as_secs(),
        }
    }

    pub(crate) fn failed(&self, error: &reqwest::Error, what: &str) -> Error {
        if error.is_redirect() {
            return Error::Redirect {
                registry: self.registry.clone(),
                what: what.to_owned(),
                why: reasons(error),
            };
        }
        if error.is_timeout() {
            let limit = if error.is_connect() {
                self.bounds.connect
            } else {
                self.bounds.idle
            };
            return self.slow(what, limit);
        }
        let mut why = reasons(error);
        // How a server that speaks plain http ends the greeting of TLS.
        let deaf = ["InvalidContentType", "handshake eof"];
        if error.is_connect() && !self.plain && deaf.iter().any(|words| why.contains(words)) {
            why = "it does not speak TLS; if plain http is meant, name it in `registry.insecure`"
                .into();
        }
        if why.contains("UnknownIssuer") {
            why = "its certificate is by an authority that is unknown here; if it is your own, name its file in `registry.ca`"
                .into();
        }
        Error::Unreachable {
            registry: self.registry.clone(),
            why,
        }
    }
}

/// TLS by ring, for the whole process. Another provider that is there already does as well.
pub(crate) fn use_ring() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The innermost reason, which says more than "error sending request".
pub(crate) fn reasons(error: &dyn std::error::Error) -> String {
    let mut last = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        last = inner.to_string();
        source = inner.source();
    }
    one_line(&last)
}

/// At most 200 printable characters.
pub(crate) fn one_line(text: &str) -> String {
    let words: String = text
        .chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .take(200)
        .collect();
    words.trim().to_owned()
}
