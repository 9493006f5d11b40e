//! A stage: a configured plugin, ready to be called.

use std::sync::Arc;

use parking_lot::Mutex;
use wasmtime::Engine;
use wasmtime::component::InstancePre;

use crate::actor::{DeploymentActor, MonitorActor, MonitorOptions};
use crate::call::CallContext;
use crate::contract::Interface;
use crate::contract::evaluation::{Answer, Evaluation};
use crate::contract::validation::{Judgement, Sample};
use crate::error::{Error, Result};
use crate::exports::{ComplianceExports, DeploymentExports, Exports, MonitoringExports};
use crate::failure::Failure;
use crate::image::Image;
use crate::imports::Context;
use crate::inspection::{Inspection, now};
use crate::instance::{Live, Mode};
use crate::manifest::Manifest;
use crate::permits::{Permits, Waiting};
use crate::spec::{Isolation, StageSpec};
use crate::state::{CallState, Shared, bump};
use crate::tape::{Recipe, TapedStage};
use crate::verify;

/// A configured plugin. A clone is the same stage; any thread may call it.
#[derive(Clone)]
pub struct Stage {
    pub(crate) inner: Arc<StageInner>,
}

pub(crate) struct StageInner {
    pub(crate) engine: Engine,
    pub(crate) permits: Permits,
    pub(crate) shared: Arc<Shared>,
    pub(crate) manifest: Manifest,
    pub(crate) digest: String,
    /// As it stands on a tape.
    pub(crate) taped: TapedStage,
    pub(crate) image: Arc<Image>,
    pub(crate) exports: Exports,
    pub(crate) pre: InstancePre<CallState>,
    pub(crate) is_async: bool,
    /// Instances of a warm stage that wait for a call.
    pub(crate) warm: Mutex<Vec<Live>>,
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
    /// The most linear memory that one instance has had after a call, in bytes.
    pub memory_peak: u64,
}

impl Stage {
    /// The stage's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.shared.spec.name
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
        &self.inner.shared.spec
    }

    /// All that its answers depend on beside their input.
    #[must_use]
    pub fn recipe(&self) -> Recipe {
        Recipe {
            plugin: self.inner.digest.clone(),
            spec: self.inner.shared.spec.clone(),
        }
    }

    /// `sha256:HEX` of its [`Recipe`].
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.inner.taped.identity
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> StageStats {
        self.inner.shared.counters.read()
    }

    /// Whether its calls may wait for the host (it imports `inference`). Then only the `_async`
    /// methods can be used, under a tokio runtime; the plain ones answer [`Failure::Invalid`].
    /// The `_async` methods work for every stage.
    #[must_use]
    pub fn is_async(&self) -> bool {
        self.inner.is_async
    }

    /// Begins the inspection of one segment of text. The instance is made at the first push.
    #[must_use]
    pub fn inspection(&self, context: &CallContext) -> Inspection {
        Inspection::new(self, context)
    }

    /// Judges a batch of samples: as many judgements, in the same order.
    pub fn validate(
        &self,
        context: &CallContext,
        samples: &[Sample],
    ) -> Result<Vec<Judgement>, Failure> {
        self.inner.at_once()?;
        now(self.inner.validate(context, samples, Waiting::Block))
    }

    /// [`validate`](Stage::validate) for any stage.
    pub async fn validate_async(
        &self,
        context: &CallContext,
        samples: &[Sample],
    ) -> Result<Vec<Judgement>, Failure> {
        self.inner.validate(context, samples, Waiting::Await).await
    }

    /// Scores a batch of answers.
    pub fn evaluate(
        &self,
        context: &CallContext,
        answers: &[Answer],
    ) -> Result<Evaluation, Failure> {
        self.inner.at_once()?;
        now(self.inner.evaluate(context, answers, Waiting::Block))
    }

    /// [`evaluate`](Stage::evaluate) for any stage.
    pub async fn evaluate_async(
        &self,
        context: &CallContext,
        answers: &[Answer],
    ) -> Result<Evaluation, Failure> {
        self.inner.evaluate(context, answers, Waiting::Await).await
    }

    /// Starts the stage as a monitor: one long-lived instance on a thread of its own.
    pub fn monitor(&self, options: MonitorOptions) -> Result<MonitorActor> {
        self.needs(Interface::Monitoring)?;
        MonitorActor::start(self.inner.clone(), options)
    }

    /// Starts the stage as a deployment strategy: one long-lived instance.
    pub fn deployment(&self) -> Result<DeploymentActor> {
        self.needs(Interface::Deployment)?;
        DeploymentActor::start(self.inner.clone())
    }

    fn needs(&self, interface: Interface) -> Result<()> {
        if self.inner.manifest.interfaces.contains(&interface) {
            return Ok(());
        }
        Err(Error::Missing {
            stage: self.name().into(),
            plugin: self.inner.manifest.name.clone(),
            interface,
        })
    }
}

impl StageInner {
    fn mode(&self) -> Mode {
        Mode {
            is_async: self.is_async,
            configuring: false,
        }
    }

    pub(crate) fn is_warm(&self) -> bool {
        self.shared.spec.isolation == Isolation::Warm
    }

    /// Refuses plain calls of a stage that has to be waited for.
    pub(crate) fn at_once(&self) -> Result<(), Failure> {
        if self.is_async {
            return Err(Failure::Invalid {
                why: format!(
                    "stage `{}` waits for the host; call it by the _async methods",
                    self.shared.spec.name
                ),
            });
        }
        Ok(())
    }

    /// Counts a call.
    pub(crate) fn count<T>(&self, answer: &Result<T, Failure>) {
        bump(&self.shared.counters.calls);
        if let Err(failure) = answer {
            self.shared.counters.failed(failure);
        }
    }

    /// An instance for the next call: a new one or, in a warm stage, one that waits.
    pub(crate) async fn instance(
        &self,
        context: &CallContext,
        how: Waiting,
    ) -> Result<Live, Failure> {
        if self.is_warm() {
            let waiting = self.warm.lock().pop();
            if let Some(mut live) = waiting {
                live.set_context(context.clone());
                return Ok(live);
            }
        }
        let permit = self
            .permits
            .acquire(self.shared.spec.limits.wait, how)
            .await?;
        let context = context.clone();
        if self.image.configured {
            let mode = self.mode();
            return Live::new(
                &self.engine,
                &self.pre,
                &self.shared,
                context,
                mode,
                Some(permit),
            )
            .await;
        }
        self.configured_now(context, permit).await
    }

    /// A new instance of an image that could not be snapshot: it is configured here.
    async fn configured_now(
        &self,
        context: CallContext,
        permit: crate::permits::Permit,
    ) -> Result<Live, Failure> {
        let mut mode = self.mode();
        mode.configuring = true;
        let (engine, pre) = (&self.engine, &self.pre);
        let mut live = Live::new(engine, pre, &self.shared, context, mode, Some(permit)).await?;
        let config = self.shared.spec.config.to_string();
        live.call::<_, ()>(&self.exports.configure, (config.as_str(),))
            .await?;
        live.configured();
        Ok(live)
    }

    /// Takes back an instance that may be called again.
    pub(crate) fn give_back(&self, live: Live) {
        let limits = &self.shared.spec.limits;
        if !self.is_warm() || live.calls >= limits.warm_calls {
            return;
        }
        let mut warm = self.warm.lock();
        if warm.len() < limits.warm_instances as usize {
            warm.push(live);
        }
    }

    pub(crate) fn compliance(&self) -> Result<&ComplianceExports, Failure> {
        self.exports
            .compliance
            .as_ref()
            .ok_or_else(|| self.missing(Interface::Compliance))
    }

    pub(crate) fn monitoring(&self) -> Result<&MonitoringExports, Failure> {
        self.exports
            .monitoring
            .as_ref()
            .ok_or_else(|| self.missing(Interface::Monitoring))
    }

    pub(crate) fn deployment(&self) -> Result<&DeploymentExports, Failure> {
        self.exports
            .deployment
            .as_ref()
            .ok_or_else(|| self.missing(Interface::Deployment))
    }

    fn missing(&self, interface: Interface) -> Failure {
        Failure::Invalid {
            why: format!(
                "plugin `{}` has no {interface} interface",
                self.manifest.name
            ),
        }
    }

    async fn validate(
        &self,
        context: &CallContext,
        samples: &[Sample],
        how: Waiting,
    ) -> Result<Vec<Judgement>, Failure> {
        let mut context = context.clone();
        context.tape = (context.tape.as_ref()).map(|tape| tape.begin(&self.taped, &context));
        let context = &context;
        let answer = async {
            let export = self
                .exports
                .validate
                .ok_or_else(|| self.missing(Interface::Validation))?;
            let mut live = self.instance(context, how).await?;
            let judgements: Vec<Judgement> = live.call(&export, (Context::lend(), samples)).await?;
            verify::judgements(&judgements, samples, &self.shared.spec.limits)?;
            self.give_back(live);
            Ok(judgements)
        }
        .await;
        self.count(&answer);
        if let Some(tape) = &context.tape {
            tape.validated(samples, &answer);
        }
        answer
    }

    async fn evaluate(
        &self,
        context: &CallContext,
        answers: &[Answer],
        how: Waiting,
    ) -> Result<Evaluation, Failure> {
        let answer = async {
            let export = self
                .exports
                .evaluate
                .ok_or_else(|| self.missing(Interface::Evaluation))?;
            let mut live = self.instance(context, how).await?;
            let evaluation: Evaluation = live.call(&export, (Context::lend(), answers)).await?;
            verify::evaluation(&evaluation, answers)?;
            self.give_back(live);
            Ok(evaluation)
        }
        .await;
        self.count(&answer);
        answer
    }
}
