//! What a plugin may ask of the host. An import that a plugin does not call does not end up in its
//! component. Natively the calls go to the mock of [`testing`](crate::testing).

#[cfg(not(target_family = "wasm"))]
use crate::testing::host as imports;

#[cfg(target_family = "wasm")]
use crate::bindings::host::millgate::stage as imports;

/// Structured log lines, under the stage's name and the trace's id. Always granted; bounded in
/// number and size. Never log the text under inspection.
pub mod log {
    pub use crate::bindings::host::millgate::stage::log::Level;

    /// Writes a line.
    pub fn write(level: Level, message: &str) {
        super::imports::log::write(level, message);
    }

    /// Writes a line for whoever is looking closely.
    pub fn debug(message: &str) {
        write(Level::Debug, message);
    }

    /// Writes a line that says what was done.
    pub fn info(message: &str) {
        write(Level::Info, message);
    }

    /// Writes a line that somebody should read some day.
    pub fn warn(message: &str) {
        write(Level::Warn, message);
    }

    /// Writes a line that somebody should read now.
    pub fn error(message: &str) {
        write(Level::Error, message);
    }
}

/// Numbers for the operator's dashboards. Always granted; bounded in the count of names.
pub mod metrics {
    /// Adds to a counter.
    pub fn count(name: &str, add: u64) {
        super::imports::metrics::count(name, add);
    }

    /// Sets a gauge.
    pub fn gauge(name: &str, value: f64) {
        super::imports::metrics::gauge(name, value);
    }
}

/// A small key-value space of the stage's own. Grant: `state = { bytes = 65536 }`; the manifest asks
/// for it with `requests = ["state"]`.
pub mod state {
    use alloc::string::String;
    use alloc::vec::Vec;

    use crate::StageError;

    /// The value, if there is one.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn get(key: &str) -> Result<Option<Vec<u8>>, StageError> {
        super::imports::state::get(key)
    }

    /// Sets a value.
    ///
    /// # Errors
    /// `denied` with code `state-full` when the granted bytes would be exceeded.
    pub fn set(key: &str, value: &[u8]) -> Result<(), StageError> {
        super::imports::state::set(key, value)
    }

    /// Sets a value if the present one is `expected` (`None`: absent). False: it was not.
    ///
    /// # Errors
    /// As for `set`.
    pub fn compare_and_swap(
        key: &str,
        expected: Option<&[u8]>,
        value: &[u8],
    ) -> Result<bool, StageError> {
        super::imports::state::compare_and_swap(key, expected, value)
    }

    /// Removes a value; removing what is not there is no error.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn delete(key: &str) -> Result<(), StageError> {
        super::imports::state::delete(key)
    }

    /// The keys that begin with `prefix`, in byte order, at most `limit`.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn keys(prefix: &str, limit: u32) -> Result<Vec<String>, StageError> {
        super::imports::state::keys(prefix, limit)
    }
}

/// The host's own models, at low priority and within a budget. Grant:
/// `inference = { models = ["default"], tokens-per-minute = 20000 }`.
pub mod inference {
    use alloc::string::String;
    use alloc::vec::Vec;

    use crate::StageError;
    pub use crate::bindings::host::millgate::stage::inference::{Completion, CompletionRequest};

    /// Completes a prompt.
    ///
    /// # Errors
    /// `denied` without a grant or beyond its budget, `unavailable` when the model cannot answer.
    pub fn complete(request: &CompletionRequest) -> Result<Completion, StageError> {
        super::imports::inference::complete(request)
    }

    /// Embeds texts: one vector of unit length for each.
    ///
    /// # Errors
    /// As for `complete`.
    pub fn embed(model: &str, texts: &[String]) -> Result<Vec<Vec<f32>>, StageError> {
        super::imports::inference::embed(model, texts)
    }

    /// The natural log-probability of each token of `text` but the first.
    ///
    /// # Errors
    /// As for `complete`.
    pub fn score(model: &str, text: &str) -> Result<Vec<f64>, StageError> {
        super::imports::inference::score(model, text)
    }
}

/// Secrets by name. Grant: `secrets = ["vendor-token"]`.
pub mod secrets {
    use alloc::string::String;

    use crate::StageError;

    /// A secret's value.
    ///
    /// # Errors
    /// `denied` without a grant.
    pub fn get(name: &str) -> Result<String, StageError> {
        super::imports::secrets::get(name)
    }
}

/// Outgoing HTTP to allow-listed origins. Grant: `http = ["https://api.vendor.example"]`.
pub mod http {
    use crate::StageError;
    pub use crate::bindings::host::millgate::stage::http::{Request, Response};

    /// Sends a request.
    ///
    /// # Errors
    /// `denied` without a grant for the origin, `unavailable` when it does not answer.
    pub fn send(request: &Request) -> Result<Response, StageError> {
        super::imports::http::send(request)
    }
}
