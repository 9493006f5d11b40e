//! What can go wrong: [`Error`] for whoever starts or changes the platform, [`ApiError`] for the
//! client of one request. Both say what to do.

use std::path::PathBuf;

use crate::id::TraceId;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the platform could not start, change or answer an operator's question.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A config has errors.
    #[error("{}", explained(.0))]
    Config(Vec<crate::config::Problem>),
    /// A model could not be opened or started.
    #[error("model `{model}`: {why}")]
    Model {
        /// Its name in the config.
        model: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// A stage could not be loaded.
    #[error("stage `{stage}`: {why}")]
    Stage {
        /// Its name in the config.
        stage: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] millgate_store::Error),
    /// A stored record cannot be read.
    #[error("the record {key} in the store cannot be read: {why}")]
    Record {
        /// Its key.
        key: String,
        /// Why.
        why: String,
    },
    /// The sandbox could not be made.
    #[error("the sandbox: {0}")]
    Sandbox(String),
    /// There is no such thing, or it is not in a state for this.
    #[error("{0}")]
    Refused(String),
}

/// All problems, one after the other, and how many there are.
fn explained(problems: &[crate::config::Problem]) -> String {
    let lines: String = problems
        .iter()
        .map(|problem| format!("{problem}\n"))
        .collect();
    let errors = if problems.len() == 1 {
        "error"
    } else {
        "errors"
    };
    format!(
        "the config cannot be used\n{lines}{} {errors}",
        problems.len()
    )
}

/// An answer that is an error, in OpenAI's shape: `{"error":{"message","type","param","code"}}`
/// under an HTTP status. The server renders it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The HTTP status.
    pub status: u16,
    /// `error.type`, such as `invalid_request_error`.
    pub kind: &'static str,
    /// `error.code`: a short stable word.
    pub code: String,
    /// `error.message`: what is wrong and what to do.
    pub message: String,
    /// `error.param`: the field that is wrong.
    pub param: Option<String>,
    /// Seconds for a `Retry-After` header.
    pub retry_after: Option<u32>,
    /// The request's trace, where it came to one.
    pub trace: Option<TraceId>,
}

impl ApiError {
    fn new(status: u16, kind: &'static str, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            code: code.to_owned(),
            message: message.into(),
            param: None,
            retry_after: None,
            trace: None,
        }
    }

    /// 400: the request cannot be used.
    pub fn invalid(message: impl Into<String>, param: Option<&str>) -> Self {
        let error = Self::new(400, "invalid_request_error", "invalid_request", message);
        Self {
            param: param.map(str::to_owned),
            ..error
        }
    }

    /// 400: a validation stage rejected the request.
    pub fn rejected(stage: &str, message: &str) -> Self {
        let message = if message.is_empty() {
            format!("the request was rejected by `{stage}`")
        } else {
            message.to_owned()
        };
        Self::new(400, "invalid_request_error", "rejected", message)
    }

    /// 400: a compliance stage refused the text. The code and the message are the stage's own.
    pub fn blocked(code: &str, message: &str) -> Self {
        let message = if message.is_empty() {
            "the text was refused by a policy"
        } else {
            message
        };
        Self::new(400, "content_filter", code, message)
    }

    /// 503: a stage that fails closed gave no answer.
    pub fn stage_failed(stage: &str) -> Self {
        Self::new(
            503,
            "stage_error",
            "stage_failed",
            format!(
                "the stage `{stage}` could not check this text, so it is refused; the trace says why"
            ),
        )
    }

    /// 404: no pipeline serves this model name.
    pub fn unknown_model(model: &str) -> Self {
        let message =
            format!("the model `{model}` does not exist here; GET /v1/models lists those that do");
        let error = Self::new(404, "invalid_request_error", "model_not_found", message);
        Self {
            param: Some("model".to_owned()),
            ..error
        }
    }

    /// 429: too much is waiting.
    pub fn busy(message: impl Into<String>) -> Self {
        let error = Self::new(429, "rate_limit_error", "queue_full", message);
        Self {
            retry_after: Some(1),
            ..error
        }
    }

    /// 502: the upstream cannot be reached or gave nonsense.
    pub fn upstream(message: impl Into<String>) -> Self {
        Self::new(502, "upstream_error", "upstream_failed", message)
    }

    /// 504: the upstream took too long.
    pub fn upstream_timeout(message: impl Into<String>) -> Self {
        Self::new(504, "upstream_error", "upstream_timeout", message)
    }

    /// 504: the request took longer than the config allows.
    pub fn late() -> Self {
        Self::timeout(
            "the request took too long; `server.request-timeout` in the config is how long one may take",
        )
    }

    /// 504: the request took longer than it may.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, "server_error", "deadline_exceeded", message)
    }

    /// 500: a fault of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "server_error", "internal_error", message)
    }

    /// 503: the platform is stopping, or cannot write its traces.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "server_error", "unavailable", message)
    }

    /// The same with another status, code and type: an upstream's own error passed on.
    pub(crate) fn passed_on(
        status: u16,
        kind: &'static str,
        code: String,
        message: String,
        param: Option<String>,
    ) -> Self {
        Self {
            param,
            code,
            ..Self::new(status, kind, "", message)
        }
    }

    pub(crate) fn with_trace(mut self, trace: TraceId) -> Self {
        self.trace = Some(trace);
        self
    }
}
