//! The platform: everything below the server, started from a config.
use std::{path::PathBuf, sync::Arc};

use millgate_sandbox::{Action, Sandbox};
use millgate_store::AuditLog;

use crate::{
    config::Config,
    error::{ApiError, Error, Result},
    metrics::Metrics,
    monitor::AlertState,
    plugins::PluginSource,
    request::ApiRequest,
    response::Response,
    rollout::RolloutStatus,
    traces::Traces,
};

/// Finds the files of models that are named by `pull`.
pub trait ModelFiles: Send + Sync + 'static {
    /// The GGUF file of a catalogue model.
    ///
    /// # Errors
    /// One sentence: it is not there, and the command that fetches it.
    fn path(&self, pull: &str) -> Result<PathBuf, String>;
}

impl<F: Fn(&str) -> Result<PathBuf, String> + Send + Sync + 'static> ModelFiles for F {
    fn path(&self, pull: &str) -> Result<PathBuf, String> {
        self(pull)
    }
}

/// What a platform needs beside its config.
#[derive(Clone)]
pub struct Environment {
    /// The data folder: store, blobs, audit key, compiled plugins.
    pub data: PathBuf,
    /// Where plugins come from.
    pub plugins: PluginSource,
    /// Where models come from.
    pub models: Arc<dyn ModelFiles>,
}

/// A running platform. A clone is the same.
#[derive(Clone)]
pub struct Platform {
    inner: Arc<Inner>,
}

struct Inner {
    traces: Traces,
    audit: AuditLog,
    metrics: Metrics,
    sandbox: Sandbox,
}

impl Platform {
    /// Opens the store, loads models and stages, starts the background work. Blocking (loads and
    /// compiles); must be called where a tokio runtime is entered.
    ///
    /// # Errors
    /// What could not be opened, loaded or started, and what to do.
    pub fn start(_config: Config, _environment: Environment) -> Result<Platform> {
        Err(Error::Refused("not yet".into()))
    }

    /// Answers a request. Dropping the future, or the stream in the response, cancels it.
    ///
    /// # Errors
    /// What the client gets, with the trace's id where there is one.
    pub async fn handle(&self, _request: ApiRequest) -> Result<Response, ApiError> {
        Err(ApiError::internal("not yet"))
    }

    /// Takes a new config. Requests in flight finish on the one they began with; when anything of
    /// the new one cannot be loaded, the old one stays. Blocking. Returns the new generation.
    ///
    /// # Errors
    /// What could not be loaded; nothing has changed then.
    pub fn reload(&self, _config: Config, _actor: &str) -> Result<u64> {
        Err(Error::Refused("not yet".into()))
    }

    /// The traces.
    #[must_use]
    pub fn traces(&self) -> &Traces {
        &self.inner.traces
    }

    /// The audit log.
    #[must_use]
    pub fn audit(&self) -> &AuditLog {
        &self.inner.audit
    }

    /// The numbers; the server adds its own and renders them.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// The sandbox.
    #[must_use]
    pub fn sandbox(&self) -> &Sandbox {
        &self.inner.sandbox
    }

    /// The config that is being served, and its generation.
    #[must_use]
    pub fn config(&self) -> (Arc<Config>, u64) {
        (Arc::default(), 0)
    }

    /// The model names that clients may ask for (patterns with `*` left out), for `/v1/models`.
    #[must_use]
    pub fn models(&self) -> Vec<String> {
        Vec::new()
    }

    /// The present state of all alert rules.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn alerts(&self) -> Result<Vec<AlertState>> {
        Ok(Vec::new())
    }

    /// The rollouts of all pipelines that have a deployment stage.
    #[must_use]
    pub fn rollouts(&self) -> Vec<RolloutStatus> {
        Vec::new()
    }

    /// Moves a rollout by hand; `Action::Hold` resumes a paused one.
    ///
    /// # Errors
    /// There is no such rollout, or the store failed.
    pub fn steer(&self, _pipeline: &str, _action: Action, _actor: &str) -> Result<RolloutStatus> {
        Err(Error::Refused("not yet".into()))
    }

    /// Stops the background work, saves the actors' states and flushes the store. Requests in
    /// flight must be finished before.
    pub async fn shutdown(&self) {}
}
