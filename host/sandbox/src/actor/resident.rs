//! The instance of an actor through its failures: started, restored, called, saved, started again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::component::{ComponentExportIndex, ComponentNamedList, Lift, Lower};

use crate::call::CallContext;
use crate::contract::inference::Level;
use crate::exports::KeepExports;
use crate::failure::Failure;
use crate::instance::Live;
use crate::permits::Waiting;
use crate::stage::StageInner;
use crate::state::bump;

/// The first pause before a restart, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// An instance that lived this long had not failed at the start: the pauses begin again.
const SETTLED: Duration = Duration::from_secs(10);

/// Where an actor is between its failures.
enum Phase {
    /// Not started, or failed: to be started when the time has come.
    Down {
        until: Option<Instant>,
    },
    Up {
        live: Box<Live>,
        since: Instant,
    },
}

/// One actor's instance.
pub(super) struct Resident {
    stage: Arc<StageInner>,
    keep: KeepExports,
    phase: Phase,
    /// Failures in a row.
    failures: u32,
    /// Called since it was saved.
    dirty: bool,
    /// The saved state could not be restored, so the actor begins anew.
    forget: bool,
}

impl Resident {
    pub(super) fn new(stage: Arc<StageInner>, keep: KeepExports) -> Resident {
        Resident {
            stage,
            keep,
            phase: Phase::Down { until: None },
            failures: 0,
            dirty: false,
            forget: false,
        }
    }

    pub(super) fn stage(&self) -> &StageInner {
        &self.stage
    }

    /// Calls a function, after starting the instance if it is down and may be started.
    pub(super) async fn call<P, R>(
        &mut self,
        context: Option<&CallContext>,
        export: &ComponentExportIndex,
        params: P,
        check: impl FnOnce(&R) -> Result<(), Failure>,
    ) -> Result<R, Failure>
    where
        P: ComponentNamedList + Lower + Send,
        R: Lift + Send + Sync + 'static,
    {
        let answer = self.attempt(context, export, params, check).await;
        self.stage.count(&answer);
        answer
    }

    async fn attempt<P, R>(
        &mut self,
        context: Option<&CallContext>,
        export: &ComponentExportIndex,
        params: P,
        check: impl FnOnce(&R) -> Result<(), Failure>,
    ) -> Result<R, Failure>
    where
        P: ComponentNamedList + Lower + Send,
        R: Lift + Send + Sync + 'static,
    {
        let live = self.up().await?;
        if let Some(context) = context {
            live.set_context(context.clone());
        }
        let answer = match live.call(export, params).await {
            Ok(answer) => check(&answer).map(|()| answer),
            Err(failure) => Err(failure),
        };
        match &answer {
            Ok(_) => self.dirty = true,
            // The plugin said no, in good order: it lives on.
            Err(Failure::Stage(_)) => {}
            Err(failure) => self.down(failure),
        }
        answer
    }

    /// The instance, started and restored if need be.
    async fn up(&mut self) -> Result<&mut Live, Failure> {
        if let Phase::Down { until } = self.phase {
            if let Some(wait) = until.and_then(|t| t.checked_duration_since(Instant::now())) {
                return Err(Failure::Unavailable {
                    why: format!("it failed and is started again in {} ms", wait.as_millis()),
                });
            }
            match self.start().await {
                Ok(live) => {
                    self.phase = Phase::Up {
                        live: Box::new(live),
                        since: Instant::now(),
                    };
                }
                Err(failure) => {
                    self.down(&failure);
                    return Err(failure);
                }
            }
        }
        match &mut self.phase {
            Phase::Up { live, .. } => Ok(live),
            Phase::Down { .. } => Err(Failure::Unavailable {
                why: "it is down".into(),
            }),
        }
    }

    async fn start(&mut self) -> Result<Live, Failure> {
        if self.failures > 0 {
            bump(&self.stage.shared.counters.restarts);
        }
        let context = CallContext::default();
        let mut live = self.stage.instance(&context, Waiting::Await).await?;
        let name = &self.stage.shared.spec.name;
        let state = match self.stage.shared.services.load_actor(name) {
            Ok(Some(state)) if !self.forget => state,
            Ok(_) => return Ok(live),
            Err(error) => {
                return Err(Failure::Unavailable {
                    why: format!("its state: {error}"),
                });
            }
        };
        match live
            .call::<_, ()>(&self.keep.restore, (state.as_slice(),))
            .await
        {
            Ok(()) => Ok(live),
            Err(failure) => {
                // A state that the plugin cannot read must not keep it down for ever.
                self.forget = true;
                self.say(&format!("its saved state is left aside: {failure}"));
                match failure {
                    Failure::Stage(_) => Ok(live),
                    failure => Err(failure),
                }
            }
        }
    }

    fn down(&mut self, failure: &Failure) {
        let lived = match &self.phase {
            Phase::Up { since, .. } => since.elapsed(),
            Phase::Down { .. } => Duration::ZERO,
        };
        self.failures = if lived >= SETTLED {
            1
        } else {
            self.failures.saturating_add(1)
        };
        let pause = pause(self.failures);
        self.phase = Phase::Down {
            until: Some(Instant::now() + pause),
        };
        self.say(&format!(
            "{failure}; it is started again in {} ms",
            pause.as_millis()
        ));
    }

    fn say(&self, message: &str) {
        let shared = &self.stage.shared;
        shared
            .services
            .log(&shared.spec.name, "", Level::Error, message);
    }

    /// Saves the state, if there is anything new in it.
    pub(super) async fn save(&mut self) {
        if !self.dirty {
            return;
        }
        let Phase::Up { live, .. } = &mut self.phase else {
            return;
        };
        let limits = self.stage.shared.spec.limits;
        live.allow_output(limits.saved_state);
        let saved = live.call::<_, Vec<u8>>(&self.keep.save, ()).await;
        live.allow_output(limits.output_bytes);
        self.stage.count(&saved);
        let shared = &self.stage.shared;
        match saved {
            Ok(state) => match shared.services.save_actor(&shared.spec.name, &state) {
                Ok(()) => {
                    self.dirty = false;
                    self.forget = false;
                }
                Err(error) => self.say(&format!("its state could not be saved: {error}")),
            },
            Err(Failure::Stage(error)) => self.say(&format!("it does not save: {error}")),
            Err(failure) => self.down(&failure),
        }
    }
}

/// The pause after so many failures in a row.
fn pause(failures: u32) -> Duration {
    let (first, longest) = PAUSE;
    first
        .saturating_mul(
            1u32.checked_shl(failures.saturating_sub(1))
                .unwrap_or(u32::MAX),
        )
        .min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute() {
        let ms: Vec<u128> = [1, 2, 3, 10, 11, 40].map(|n| pause(n).as_millis()).to_vec();
        assert_eq!(ms, [100, 200, 400, 51_200, 60_000, 60_000]);
    }
}
