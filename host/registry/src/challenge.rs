//! Answering "who are you?": Basic with the login, or a token from where the challenge says
//! (distribution specification, token authentication).

use crate::error::{Error, Result};
use crate::fetch::{MAX_ANSWER, Session};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_auth::parser::ChallengeParser;
use reqwest::header::{HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// How the registry wants us to say who we are.
pub(crate) enum Scheme {
    Open,
    Basic,
    Bearer(String),
}

impl Session {
    /// What the registry wants to know of those who come to it.
    pub(crate) async fn scheme(&self) -> Result<Scheme> {
        let what = "its version";
        self.within(what, async {
            let mut url = self.base.clone();
            url.set_path("/v2/");
            let response = self.send(&url, "application/json", what).await?;
            match response.status() {
                StatusCode::UNAUTHORIZED => self.challenged(&response, what).await,
                status if status.is_success() => Ok(Scheme::Open),
                status => Err(Error::Status {
                    registry: self.registry.clone(),
                    what: what.to_owned(),
                    status: status.as_u16(),
                    message: self.message(response).await,
                }),
            }
        })
        .await
    }

    /// Reads the challenge of a 401 and gets a token where it asks for one.
    pub(crate) async fn challenged(&self, response: &Response, what: &str) -> Result<Scheme> {
        let mut basic = false;
        for value in response.headers().get_all(WWW_AUTHENTICATE) {
            let Ok(value) = value.to_str() else { continue };
            for challenge in ChallengeParser::new(value).flatten() {
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    let parameter = |name: &str| {
                        challenge
                            .params
                            .iter()
                            .find(|(key, _)| key.eq_ignore_ascii_case(name))
                            .map(|(_, value)| value.to_unescaped())
                    };
                    let realm = parameter("realm").ok_or_else(|| Error::Protocol {
                        registry: self.registry.clone(),
                        why: "its challenge names no realm".into(),
                    })?;
                    let token = self.token(&realm, parameter("service"), what).await?;
                    return Ok(Scheme::Bearer(token));
                }
                basic |= challenge.scheme.eq_ignore_ascii_case("basic");
            }
        }
        if basic && self.login.is_some() {
            return Ok(Scheme::Basic);
        }
        Err(self.denied(what))
    }

    async fn token(&self, realm: &str, service: Option<String>, what: &str) -> Result<String> {
        let protocol = |why: String| Error::Protocol {
            registry: self.registry.clone(),
            why,
        };
        let mut url = Url::parse(realm)
            .map_err(|error| protocol(format!("its realm {realm:?} is no URL: {error}")))?;
        // The password goes there: in clear only where the registry itself is reached in clear.
        if url.scheme() != "https" && !(self.plain && url.scheme() == "http") {
            return Err(protocol(format!("its realm {realm:?} is not https")));
        }
        let actions = if self.push { "pull,push" } else { "pull" };
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &service {
                query.append_pair("service", service);
            }
            query.append_pair(
                "scope",
                &format!("repository:{}:{actions}", self.repository),
            );
        }
        let mut request = self.http.get(url);
        if let Some(login) = &self.login {
            request = request.basic_auth(&login.user, Some(&login.password));
        }
        let response = request
            .send()
            .await
            .map_err(|error| self.failed(&error, "a token"))?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.denied(what)),
            status => {
                return Err(Error::Status {
                    registry: self.registry.clone(),
                    what: "a token".into(),
                    status: status.as_u16(),
                    message: self.message(response).await,
                });
            }
        }
        let body = self.body(response, MAX_ANSWER, "a token").await?;
        let token: Token = serde_json::from_slice(&body)
            .map_err(|_| protocol("its token is not the JSON of one".into()))?;
        token
            .token
            .or(token.access_token)
            .filter(|token| !token.is_empty())
            .ok_or_else(|| protocol("its token is empty".into()))
    }

    pub(crate) fn header(&self, scheme: &Scheme, what: &str) -> Result<Option<HeaderValue>> {
        let text = match (scheme, &self.login) {
            (Scheme::Open, _) => return Ok(None),
            (Scheme::Bearer(token), _) => format!("Bearer {token}"),
            (Scheme::Basic, Some(login)) => {
                let pair = format!("{}:{}", login.user, login.password);
                let pair = STANDARD.encode(pair);
                format!("Basic {pair}")
            }
            (Scheme::Basic, None) => return Err(self.denied(what)),
        };
        let mut value = HeaderValue::from_str(&text).map_err(|_| Error::Protocol {
            registry: self.registry.clone(),
            why: "its token is no text for a header".into(),
        })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}
