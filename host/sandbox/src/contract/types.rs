//! `types.wit`: words that several interfaces share.

use serde::{Deserialize, Serialize};
use wasmtime::component::{ComponentType, Lift, Lower};

/// What kind of thing went wrong.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[component(enum)]
#[repr(u8)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The config given to `configure` cannot be used.
    #[component(name = "invalid-config")]
    InvalidConfig,
    /// The input of this call cannot be used.
    #[component(name = "invalid-input")]
    InvalidInput,
    /// A host function refused: the grant is missing, or its bound was reached.
    #[component(name = "denied")]
    Denied,
    /// Something that the plugin needs is not to be had at the moment.
    #[component(name = "unavailable")]
    Unavailable,
    /// A fault of the plugin's own.
    #[component(name = "internal")]
    Internal,
}

/// An error that a plugin returns, or that a host function returns to it.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[component(record)]
pub struct StageError {
    /// What kind of thing went wrong.
    pub kind: ErrorKind,
    /// A short stable word for machines, in kebab case.
    pub code: String,
    /// One sentence for people: what is wrong and what to do about it.
    pub message: String,
}

impl StageError {
    /// An error from its three parts.
    pub fn new(kind: ErrorKind, code: impl Into<String>, message: impl Into<String>) -> Self {
        StageError {
            kind,
            code: code.into(),
            message: message.into(),
        }
    }

    /// A host function refused.
    pub fn denied(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Denied, code, message)
    }

    /// Something is not to be had at the moment.
    pub fn unavailable(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, code, message)
    }
}

impl std::fmt::Display for StageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for StageError {}

/// A half-open range of byte offsets into UTF-8 text, `start <= end`, on character boundaries.
#[derive(
    ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash,
)]
#[component(record)]
pub struct Span {
    /// The first byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

/// Evidence for a verdict.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[component(record)]
pub struct Finding {
    /// The rule that fired, in kebab case.
    pub rule: String,
    /// Where in the text; `None` when the finding is about the whole.
    pub span: Option<Span>,
    /// Confidence, 0 to 1.
    pub score: f32,
    /// Why, in a few words. Never the text found.
    pub explanation: String,
}

/// A named text value.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[component(record)]
pub struct Label {
    /// The name.
    pub name: String,
    /// The value.
    pub value: String,
}

/// A named number.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[component(record)]
pub struct Measure {
    /// The name.
    pub name: String,
    /// The value.
    pub value: f64,
}
