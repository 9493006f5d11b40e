//! The words that several interfaces share, with the constructors that make them short to write.

use alloc::string::String;
use core::fmt;
use core::ops::Range;

pub use crate::bindings::host::millgate::stage::types::{
    ErrorKind, Finding, Label, Measure, Span, StageError,
};

impl StageError {
    /// An error of any kind. `code` is a short stable word in kebab case; `message` is one sentence
    /// that says what is wrong and what to do about it.
    pub fn new(kind: ErrorKind, code: impl Into<String>, message: impl Into<String>) -> Self {
        StageError {
            kind,
            code: code.into(),
            message: message.into(),
        }
    }

    /// The config given to `configure` cannot be used.
    pub fn invalid_config(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidConfig, code, message)
    }

    /// The input of this call cannot be used.
    pub fn invalid_input(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, code, message)
    }

    /// Something that the plugin needs is not to be had at the moment.
    pub fn unavailable(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, code, message)
    }

    /// A fault of the plugin's own.
    pub fn internal(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, code, message)
    }
}

impl Span {
    /// The span as a range for slicing.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

impl From<Range<usize>> for Span {
    /// Texts are below 4 GiB: the guest's whole memory is.
    fn from(range: Range<usize>) -> Self {
        Span {
            start: offset(range.start),
            end: offset(range.end),
        }
    }
}

/// An offset as the contract carries it.
pub(crate) fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

impl Finding {
    /// A finding about the whole. `rule` is in kebab case, `score` from 0 to 1, and the
    /// explanation never repeats the text that was found.
    pub fn new(rule: impl Into<String>, score: f32, explanation: impl Into<String>) -> Self {
        Finding {
            rule: rule.into(),
            span: None,
            score,
            explanation: explanation.into(),
        }
    }

    /// The same finding about a place in the text.
    #[must_use]
    pub fn at(mut self, span: impl Into<Span>) -> Self {
        self.span = Some(span.into());
        self
    }
}

impl Label {
    /// A named text value.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Label {
            name: name.into(),
            value: value.into(),
        }
    }
}

impl Measure {
    /// A named number.
    pub fn new(name: impl Into<String>, value: f64) -> Self {
        Measure {
            name: name.into(),
            value,
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}
