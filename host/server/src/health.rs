//! What operators and clients ask before they send work: alive, ready, metrics, models, alerts.

use std::fmt::Write as _;

use http::{Response, StatusCode};
use millgate_ops::{ApiError, Platform};
use serde_json::{Value, json};

use crate::answer;
use crate::body::AnswerBody;
use crate::service::Shared;

/// `/healthz`: the process answers.
pub(crate) fn alive() -> Response<AnswerBody> {
    answer::json(&json!({ "status": "alive", "version": env!("CARGO_PKG_VERSION") }))
}

/// `/readyz`: models and plugins are loaded and the server is not stopping.
pub(crate) fn ready(shared: &Shared) -> Response<AnswerBody> {
    let status = match (shared.ready(), shared.draining()) {
        (_, true) => "draining",
        (None, false) => "loading",
        (Some(ready), false) => {
            let (_, generation) = ready.platform.config();
            return answer::json(&json!({ "status": "ready", "config_generation": generation }));
        }
    };
    let mut answer = answer::json(&json!({ "status": status }));
    *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    answer
}

/// `/metrics`, in Prometheus' text format.
pub(crate) fn metrics(platform: &Platform, in_flight: usize) -> Response<AnswerBody> {
    let mut text = platform.metrics().render();
    let mut gauge = |name: &str, kind: &str, help: &str, value: f64| {
        // Writing to memory cannot fail.
        let _ = writeln!(
            text,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
        );
    };
    gauge(
        "millgate_http_requests_in_flight",
        "gauge",
        "Requests that are being answered.",
        in_flight as f64,
    );
    if let Some(bytes) = resident_bytes() {
        gauge(
            "process_resident_memory_bytes",
            "gauge",
            "Resident memory of the process.",
            bytes,
        );
    }
    let by_use: u64 = platform
        .loaded_by_use()
        .iter()
        .map(|(_, bytes)| bytes)
        .sum();
    gauge(
        "millgate_models_loaded_by_use_bytes",
        "gauge",
        "Memory set aside for the models that are loaded by use and are loaded now.",
        by_use as f64,
    );
    answer::text(text, "text/plain; version=0.0.4; charset=utf-8")
}

/// Resident memory, where the system tells it.
fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024.0)
}

/// `/v1/models`.
pub(crate) fn models(platform: &Platform) -> Response<AnswerBody> {
    let data: Vec<Value> = platform.models().iter().map(|name| entry(name)).collect();
    answer::json(&json!({ "object": "list", "data": data }))
}

/// `/v1/models/{name}`.
pub(crate) fn model(platform: &Platform, name: &str) -> Response<AnswerBody> {
    if platform.models().iter().any(|known| known == name) {
        answer::json(&entry(name))
    } else {
        answer::of_error(&ApiError::unknown_model(name))
    }
}

fn entry(name: &str) -> Value {
    json!({ "id": name, "object": "model", "created": 0, "owned_by": "millgate" })
}

/// `/api/v1/alerts`.
pub(crate) fn alerts(platform: &Platform) -> Response<AnswerBody> {
    answer::json(&json!({ "alerts": platform.alerts() }))
}
