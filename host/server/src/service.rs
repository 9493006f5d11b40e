//! The routes: a path and a method to the one function that answers.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{ACCEPT_LANGUAGE, AUTHORIZATION};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::Service;
use millgate_ops::{ApiError, ApiRequest, Endpoint, Platform, TraceId};

use crate::answer;
use crate::body::AnswerBody;
use crate::counters::{Counters, Route};
use crate::{explain, health, inputs, operate, read, traces};

/// What all connections share.
#[derive(Default)]
pub(crate) struct Shared {
    ready: OnceLock<Ready>,
    draining: AtomicBool,
    in_flight: AtomicUsize,
}

/// What there is once models and plugins are loaded.
pub(crate) struct Ready {
    pub(crate) platform: Platform,
    counters: Counters,
}

impl Shared {
    pub(crate) fn attach(&self, platform: Platform) {
        let counters = Counters::new(platform.metrics());
        if self.ready.set(Ready { platform, counters }).is_err() {
            tracing::error!("a server was given a second platform; it keeps the first");
        }
    }

    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Requests that are being answered, streams that still run among them.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(crate) fn ready(&self) -> Option<&Ready> {
        self.ready.get()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("ready", &self.ready.get().is_some())
            .field("draining", &self.draining())
            .finish_non_exhaustive()
    }
}

/// Answers the requests of one connection.
#[derive(Clone)]
pub(crate) struct ConnectionService {
    shared: Arc<Shared>,
}

impl ConnectionService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl Service<Request<Incoming>> for ConnectionService {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let shared = self.shared.clone();
        Box::pin(async move {
            // Counts while the answer is made, and a stream until it ends; a client that goes away
            // drops either.
            let guard = InFlight::new(shared.clone());
            let (route, mut response) = dispatch(&shared, request).await;
            response.body_mut().hold(guard);
            if let Some(ready) = shared.ready() {
                ready.counters.count(route, response.status());
            }
            if !response.headers().contains_key(answer::TRACE_HEADER) {
                answer::set_trace(&mut response, TraceId::new(now_ms()));
            }
            Ok(response)
        })
    }
}

/// One request that is being answered.
pub(crate) struct InFlight(Arc<Shared>);

impl InFlight {
    fn new(shared: Arc<Shared>) -> Self {
        shared.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The route table.
async fn dispatch(shared: &Shared, request: Request<Incoming>) -> (Route, Response<AnswerBody>) {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let get = matches!(parts.method, Method::GET | Method::HEAD);
    match path {
        "/v1/chat/completions" | "/v1/completions" | "/v1/embeddings" | "/v1/responses" => {
            let (route, endpoint) = match path {
                "/v1/completions" => (Route::Completions, Endpoint::Completions),
                "/v1/embeddings" => (Route::Embeddings, Endpoint::Embeddings),
                "/v1/responses" => (Route::Responses, Endpoint::Responses),
                _ => (Route::Chat, Endpoint::Chat),
            };
            if parts.method != Method::POST {
                return (route, answer::wrong_method(path, "POST"));
            }
            (
                route,
                generate(shared, endpoint, &parts.headers, body).await,
            )
        }
        _ if explain::target(path).is_some() => (
            Route::Explain,
            explain::answer(shared, &parts.method, path, &parts.headers, body).await,
        ),
        _ if inputs::target(path).is_some() => (
            Route::Inputs,
            inputs::answer(
                shared,
                &parts.method,
                path,
                parts.uri.query(),
                &parts.headers,
                body,
            )
            .await,
        ),
        _ if let Some(operation) = operate::operation(path) => (
            Route::Other,
            operate::answer(shared, operation, &parts.method, path, &parts.headers, body).await,
        ),
        "/healthz"
        | "/readyz"
        | "/metrics"
        | "/v1/models"
        | "/api/v1/traces"
        | "/api/v1/alerts"
        | "/api/v1/rollouts"
        | "/api/v1/generations"
        | "/api/v1/stages"
            if !get =>
        {
            (Route::Other, answer::wrong_method(path, "GET"))
        }
        "/healthz" => (Route::Health, health::alive()),
        "/readyz" => (Route::Health, health::ready(shared)),
        _ => match shared.ready() {
            Some(ready) => match allowed(&ready.platform, path, &parts.headers) {
                Ok(()) => rest(shared, ready, path, parts.uri.query(), get).await,
                Err(error) => (Route::Other, answer::of_error(&error)),
            },
            None => (Route::Other, answer::of_error(&loading())),
        },
    }
}

/// Whether a request may see what it asks for: `/api/v1` is the operator's, `/v1` the tenants'.
fn allowed(platform: &Platform, path: &str, headers: &HeaderMap) -> Result<(), ApiError> {
    if path.starts_with("/api/v1/") {
        platform.check_operator(bearer(headers))
    } else if path.starts_with("/v1/") {
        platform.tenant_of(bearer(headers)).map(|_| ())
    } else {
        Ok(())
    }
}

/// The key that a request bears (RFC 6750).
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// The routes that only look at the platform.
async fn rest(
    shared: &Shared,
    ready: &Ready,
    path: &str,
    query: Option<&str>,
    get: bool,
) -> (Route, Response<AnswerBody>) {
    let platform = &ready.platform;
    match path {
        "/metrics" => (
            Route::Metrics,
            health::metrics(platform, shared.in_flight()),
        ),
        "/v1/models" => (Route::Models, health::models(platform)),
        "/api/v1/traces" => (Route::Traces, traces::list(platform, query).await),
        "/api/v1/alerts" => (Route::Other, health::alerts(platform)),
        "/api/v1/rollouts" => (Route::Other, answer::json(&platform.rollouts())),
        "/api/v1/stages" => (Route::Other, answer::json(&platform.stages())),
        "/api/v1/generations" => (Route::Other, operate::list(platform, query).await),
        _ if let Some(number) = path.strip_prefix("/api/v1/generations/") => match get {
            true => (Route::Other, operate::show(platform, number).await),
            false => (Route::Other, answer::wrong_method(path, "GET")),
        },
        _ => {
            let below = |prefix| {
                path.strip_prefix(prefix)
                    .filter(|rest: &&str| !rest.is_empty())
            };
            let (route, found) = if let Some(id) = below("/api/v1/traces/") {
                (Route::Traces, Some((id, true)))
            } else {
                (Route::Models, below("/v1/models/").map(|id| (id, false)))
            };
            match found {
                None => (Route::Other, answer::no_such_path(path)),
                Some(_) if !get => (route, answer::wrong_method(path, "GET")),
                Some((id, true)) => (route, traces::show(platform, id).await),
                Some((name, false)) => (route, health::model(platform, name)),
            }
        }
    }
}

/// The routes that a pipeline answers.
async fn generate(
    shared: &Shared,
    endpoint: Endpoint,
    headers: &HeaderMap,
    body: Incoming,
) -> Response<AnswerBody> {
    let Some(ready) = shared.ready() else {
        return answer::closing(answer::of_error(&loading()));
    };
    let platform = &ready.platform;
    // Before the body: whoever has no key costs no memory.
    let tenant = match platform.tenant_of(bearer(headers)) {
        Ok(tenant) => tenant,
        Err(error) => return answer::closing(answer::of_error(&error)),
    };
    let limit = platform.config().0.server.max_body.0;
    let body = match read::json_body(headers, body, limit).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let request = ApiRequest {
        endpoint,
        body,
        tenant,
        language: language_of(headers),
    };
    match platform.handle(request).await {
        Ok(response) => answer::of_response(response),
        Err(error) => answer::of_error(&error),
    }
}

static NO_LANGUAGE: LazyLock<Arc<str>> = LazyLock::new(|| "".into());

/// The language that the client likes best, where it says so.
fn language_of(headers: &HeaderMap) -> Arc<str> {
    headers
        .get(ACCEPT_LANGUAGE)
        .and_then(|value| value.to_str().ok()?.split([',', ';']).next())
        .map(str::trim)
        .filter(|tag| !tag.is_empty() && *tag != "*" && tag.len() <= 35)
        .map_or_else(|| NO_LANGUAGE.clone(), Arc::from)
}

pub(crate) fn loading() -> ApiError {
    ApiError {
        retry_after: Some(1),
        ..answer::refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            "loading",
            "models and plugins are still being loaded; try again in a moment",
        )
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis().try_into().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn the_first_language_is_taken() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_LANGUAGE, HeaderValue::from_static(value));
            language_of(&headers)
        };
        assert_eq!(&*of("de-CH, de;q=0.9"), "de-CH");
        assert_eq!(&*of("fr;q=0.8"), "fr");
        assert_eq!(&*of("*"), "");
        assert_eq!(&*language_of(&HeaderMap::new()), "");
    }
}
