//! The mock behind the host calls of [`crate::host`]: logs, metrics and state are kept for the test
//! to look at; what needs a grant is denied.
#![allow(missing_docs, reason = "one for one the functions of `crate::host`")]

use super::HEARD;
use crate::{ErrorKind, StageError};

fn denied<T>(what: &str) -> Result<T, StageError> {
    Err(StageError::new(
        ErrorKind::Denied,
        "not-granted",
        format!("the mock host grants no {what}"),
    ))
}

pub mod log {
    pub fn write(level: crate::log::Level, message: &str) {
        super::HEARD.with_borrow_mut(|heard| heard.log.push((level, message.into())));
    }
}

pub mod metrics {
    pub fn count(name: &str, add: u64) {
        super::HEARD
            .with_borrow_mut(|heard| *heard.counters.entry(name.into()).or_default() += add);
    }
    pub fn gauge(name: &str, value: f64) {
        super::HEARD.with_borrow_mut(|heard| heard.gauges.insert(name.into(), value));
    }
}

pub mod state {
    use super::{HEARD, StageError};

    pub fn get(key: &str) -> Result<Option<Vec<u8>>, StageError> {
        Ok(HEARD.with_borrow(|heard| heard.state.get(key).cloned()))
    }
    pub fn set(key: &str, value: &[u8]) -> Result<(), StageError> {
        HEARD.with_borrow_mut(|heard| heard.state.insert(key.into(), value.into()));
        Ok(())
    }
    pub fn compare_and_swap(
        key: &str,
        expected: Option<&[u8]>,
        value: &[u8],
    ) -> Result<bool, StageError> {
        Ok(HEARD.with_borrow_mut(|heard| {
            let same = heard.state.get(key).map(Vec::as_slice) == expected;
            if same {
                heard.state.insert(key.into(), value.into());
            }
            same
        }))
    }
    pub fn delete(key: &str) -> Result<(), StageError> {
        HEARD.with_borrow_mut(|heard| heard.state.remove(key));
        Ok(())
    }
    pub fn keys(prefix: &str, limit: u32) -> Result<Vec<String>, StageError> {
        Ok(HEARD.with_borrow(|heard| {
            let from = heard.state.range(String::from(prefix)..);
            from.map(|(key, _)| key)
                .take_while(|key| key.starts_with(prefix))
                .take(limit as usize)
                .cloned()
                .collect()
        }))
    }
}

pub mod inference {
    use super::{StageError, denied};
    use crate::inference::{Completion, CompletionRequest};

    pub fn complete(_: &CompletionRequest) -> Result<Completion, StageError> {
        denied("inference")
    }
    pub fn embed(_: &str, _: &[String]) -> Result<Vec<Vec<f32>>, StageError> {
        denied("inference")
    }
    pub fn score(_: &str, _: &str) -> Result<Vec<f64>, StageError> {
        denied("inference")
    }
}

pub mod secrets {
    use super::{StageError, denied};

    pub fn get(_: &str) -> Result<String, StageError> {
        denied("secrets")
    }
}

pub mod http {
    use super::{StageError, denied};
    use crate::host::http::{Request, Response};

    pub fn send(_: &Request) -> Result<Response, StageError> {
        denied("http")
    }
}
