//! A stage: a configured plugin, ready to be called.

use std::sync::Arc;

use crate::actor::{DeploymentActor, MonitorActor, MonitorOptions};
use crate::call::CallContext;
use crate::contract::evaluation::{Answer, Evaluation};
use crate::contract::validation::{Judgement, Sample};
use crate::error::{Error, Result};
use crate::failure::Failure;
use crate::inspection::Inspection;
use crate::manifest::Manifest;
use crate::spec::StageSpec;

/// A configured plugin. A clone is the same stage; any thread may call it.
#[derive(Clone)]
pub struct Stage {
    pub(crate) inner: Arc<StageInner>,
}

pub(crate) struct StageInner {
    pub(crate) spec: StageSpec,
    pub(crate) manifest: Manifest,
    pub(crate) digest: String,
}

/// What a stage has done since it was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct StageStats {
    /// Calls answered or failed: a push, a finish, a batch.
    pub calls: u64,
    /// Instances made.
    pub instances: u64,
    /// Calls that trapped.
    pub traps: u64,
    /// Calls that ran too long.
    pub timeouts: u64,
    /// Calls that wanted too much memory.
    pub memory: u64,
    /// Answers that were too large.
    pub oversized: u64,
    /// Answers that broke the contract.
    pub invalid: u64,
    /// Errors that the plugin returned.
    pub errors: u64,
    /// Calls that found no free instance.
    pub unavailable: u64,
    /// Log lines dropped because there were too many.
    pub log_dropped: u64,
    /// Metric values dropped because there were too many names.
    pub metrics_dropped: u64,
    /// Actor restarts.
    pub restarts: u64,
}

impl Stage {
    /// The stage's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.spec.name
    }

    /// The plugin's manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.inner.manifest
    }

    /// `sha256:HEX` of the plugin's bytes.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.inner.digest
    }

    /// What the operator said about it; the config has its defaults filled in.
    #[must_use]
    pub fn spec(&self) -> &StageSpec {
        &self.inner.spec
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> StageStats {
        StageStats::default()
    }

    /// Whether its calls may wait for the host (it imports `inference`). Then only the `_async`
    /// methods can be used; the plain ones answer [`Failure::Invalid`]. The `_async` methods work
    /// for every stage.
    #[must_use]
    pub fn is_async(&self) -> bool {
        false
    }

    /// Begins the inspection of one segment of text. The instance is made at the first push.
    #[must_use]
    pub fn inspection(&self, context: &CallContext) -> Inspection {
        Inspection {
            stage: self.clone(),
            context: context.clone(),
        }
    }

    /// Judges a batch of samples: as many judgements, in the same order.
    pub fn validate(
        &self,
        _context: &CallContext,
        _samples: &[Sample],
    ) -> Result<Vec<Judgement>, Failure> {
        Err(Failure::Unavailable {
            why: "not yet".into(),
        })
    }

    /// [`validate`](Stage::validate) for any stage.
    pub async fn validate_async(
        &self,
        _context: &CallContext,
        _samples: &[Sample],
    ) -> Result<Vec<Judgement>, Failure> {
        Err(Failure::Unavailable {
            why: "not yet".into(),
        })
    }

    /// Scores a batch of answers.
    pub fn evaluate(
        &self,
        _context: &CallContext,
        _answers: &[Answer],
    ) -> Result<Evaluation, Failure> {
        Err(Failure::Unavailable {
            why: "not yet".into(),
        })
    }

    /// [`evaluate`](Stage::evaluate) for any stage.
    pub async fn evaluate_async(
        &self,
        _context: &CallContext,
        _answers: &[Answer],
    ) -> Result<Evaluation, Failure> {
        Err(Failure::Unavailable {
            why: "not yet".into(),
        })
    }

    /// Starts the stage as a monitor: one long-lived instance on a thread of its own.
    pub fn monitor(&self, _options: MonitorOptions) -> Result<MonitorActor> {
        Err(Error::Load("not yet".into()))
    }

    /// Starts the stage as a deployment strategy: one long-lived instance.
    pub fn deployment(&self) -> Result<DeploymentActor> {
        Err(Error::Load("not yet".into()))
    }
}
