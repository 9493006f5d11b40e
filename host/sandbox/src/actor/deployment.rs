//! A deployment strategy: one instance behind a lock. The caller runs the guest on its own thread,
//! because a hop to another one would cost more than the call.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, oneshot};

use super::resident::Resident;
use super::{Worker, runtime, thread};
use crate::call::CallContext;
use crate::contract::deployment::{Arm, Choice, Recommendation, Rollout};
use crate::contract::types::Label;
use crate::error::Result;
use crate::failure::Failure;
use crate::imports::Context;
use crate::stage::StageInner;
use crate::verify;

/// How often the state is saved.
const SAVE: Duration = Duration::from_secs(30);

/// A running deployment strategy. When the last clone is dropped it saves its state and stops;
/// [`shutdown`](DeploymentActor::shutdown) waits for that.
#[derive(Clone)]
pub struct DeploymentActor {
    inner: Arc<Inner>,
}

struct Inner {
    stage: Arc<StageInner>,
    resident: Arc<Mutex<Resident>>,
    worker: Worker,
}

impl DeploymentActor {
    pub(crate) fn start(stage: Arc<StageInner>) -> Result<DeploymentActor> {
        let keep = stage
            .exports
            .deployment
            .as_ref()
            .map(|exports| exports.keep);
        let name = stage.shared.spec.name.clone();
        let Some(keep) = keep else {
            return Err(crate::Error::Missing {
                stage: name,
                plugin: stage.manifest.name.clone(),
                interface: crate::Interface::Deployment,
            });
        };
        let resident = Arc::new(Mutex::new(Resident::new(stage.clone(), keep)));
        let (stop, mut stopped) = oneshot::channel();
        let runtime = runtime()?;
        let saver = resident.clone();
        let thread = thread(&name, move || {
            runtime.block_on(async {
                let mut more = true;
                while more {
                    more = tokio::time::timeout(SAVE, &mut stopped).await.is_err();
                    saver.lock().await.save().await;
                }
            });
        })?;
        Ok(DeploymentActor {
            inner: Arc::new(Inner {
                stage,
                resident,
                worker: Worker::new(stop, thread),
            }),
        })
    }

    /// Picks an arm. Waits at most the stage's `limits.wait` for its turn; on a failure the
    /// caller takes the stable arm. The choice is one of the arms given, its propensity in (0, 1].
    pub async fn route(
        &self,
        context: &CallContext,
        features: &[Label],
        arms: &[Arm],
    ) -> Result<Choice, Failure> {
        let export = self.inner.stage.deployment()?.route;
        let mut resident = self.turn().await?;
        let check = |choice: &Choice| verify::choice(choice, arms);
        resident
            .call(
                Some(context),
                &export,
                (Context::lend(), features, arms),
                check,
            )
            .await
    }

    /// Looks at a rollout.
    pub async fn review(&self, rollout: &Rollout) -> Result<Recommendation, Failure> {
        let export = self.inner.stage.deployment()?.review;
        let mut resident = self.turn().await?;
        resident
            .call(None, &export, (rollout,), verify::recommendation)
            .await
    }

    async fn turn(&self) -> Result<tokio::sync::MutexGuard<'_, Resident>, Failure> {
        if let Ok(turn) = self.inner.resident.try_lock() {
            return Ok(turn);
        }
        let wait = self.inner.stage.shared.spec.limits.wait;
        tokio::time::timeout(wait, self.inner.resident.lock())
            .await
            .map_err(|_| {
                let failure = Failure::Unavailable {
                    why: format!("it was busy for {} ms", wait.as_millis()),
                };
                self.inner.stage.shared.counters.failed(&failure);
                failure
            })
    }

    /// Saves the state now.
    pub async fn save(&self) -> Result<(), Failure> {
        self.turn().await?.save().await;
        Ok(())
    }

    /// Saves the state and stops. Blocking, at most `timeout`; false when that was not enough.
    pub fn shutdown(&self, timeout: Duration) -> bool {
        self.inner.worker.shutdown(timeout)
    }
}
