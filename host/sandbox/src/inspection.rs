//! The inspection of one segment of text by one stage.

use std::sync::Arc;

use futures::FutureExt as _;
use wasmtime::component::ResourceAny;

use crate::call::CallContext;
use crate::contract::compliance::Verdict;
use crate::exports::ComplianceExports;
use crate::failure::Failure;
use crate::held::Held;
use crate::imports::Context;
use crate::instance::Live;
use crate::permits::Waiting;
use crate::stage::{Stage, StageInner};
use crate::verify;

/// One segment of text under inspection. It holds its instance from the first push until it is
/// dropped; in a stage of fresh isolation the drop is what cleans up, so drop it after what was
/// settled is on its way.
pub struct Inspection {
    stage: Arc<StageInner>,
    context: CallContext,
    state: State,
    held: Held,
}

enum State {
    /// Nothing was pushed yet, and there is no instance.
    New,
    Open(Box<Live>, ResourceAny),
    /// The last verdict was given; a fresh instance stays until the inspection is dropped.
    Finished(
        #[allow(dead_code, reason = "kept to be dropped with the inspection")] Option<Box<Live>>,
    ),
    Failed(Failure),
}

impl Inspection {
    pub(crate) fn new(stage: &Stage, context: &CallContext) -> Inspection {
        let mut context = context.clone();
        context.tape = (context.tape.as_ref()).map(|tape| tape.begin(&stage.inner.taped, &context));
        Inspection {
            stage: stage.inner.clone(),
            context,
            state: State::New,
            held: Held::default(),
        }
    }

    /// More text; chunks break anywhere between characters. The verdict has been checked against
    /// the contract; its offsets count bytes of the segment over all pushes. After a failure the
    /// inspection is over: every later push and finish gives the same failure again.
    pub fn push(&mut self, chunks: &[&str]) -> Result<Verdict, Failure> {
        self.stage.at_once()?;
        now(self.step(Some(chunks), Waiting::Block))
    }

    /// [`push`](Inspection::push) for any stage. It waits for a free instance without blocking.
    pub async fn push_async(&mut self, chunks: &[&str]) -> Result<Verdict, Failure> {
        self.step(Some(chunks), Waiting::Await).await
    }

    /// The segment is complete. Unless the verdict blocks or regenerates, all of it is settled.
    pub fn finish(&mut self) -> Result<Verdict, Failure> {
        self.stage.at_once()?;
        now(self.step(None, Waiting::Block))
    }

    /// [`finish`](Inspection::finish) for any stage.
    pub async fn finish_async(&mut self) -> Result<Verdict, Failure> {
        self.step(None, Waiting::Await).await
    }

    /// Bytes pushed so far.
    #[must_use]
    pub fn pushed(&self) -> u32 {
        self.held.end()
    }

    /// Bytes settled so far.
    #[must_use]
    pub fn settled(&self) -> u32 {
        self.held.start()
    }

    /// A push, or the finish where there are no chunks.
    async fn step(&mut self, chunks: Option<&[&str]>, how: Waiting) -> Result<Verdict, Failure> {
        match &self.state {
            State::Failed(failure) => return Err(failure.clone()),
            State::Finished(_) => {
                return Err(Failure::Invalid {
                    why: "the inspection is finished".into(),
                });
            }
            State::New | State::Open(..) => {}
        }
        let answer = self.try_step(chunks, how).await;
        self.stage.count(&answer);
        if let Some(tape) = &self.context.tape {
            tape.inspected(chunks, &answer);
        }
        if let Err(failure) = &answer {
            // The instance goes with the old state.
            self.state = State::Failed(failure.clone());
        }
        answer
    }

    async fn try_step(
        &mut self,
        chunks: Option<&[&str]>,
        how: Waiting,
    ) -> Result<Verdict, Failure> {
        let stage = self.stage.clone();
        let exports = stage.compliance()?;
        let limits = stage.shared.spec.limits;
        if let State::New = self.state {
            self.state = self.open(exports, how).await?;
        }
        let State::Open(live, inspection) = &mut self.state else {
            return Err(Failure::Invalid {
                why: "the inspection is over".into(),
            });
        };
        let verdict: Verdict = match chunks {
            Some(chunks) => {
                let more: usize = chunks.iter().map(|chunk| chunk.len()).sum();
                if more > (u32::MAX - self.held.end()) as usize {
                    return Err(Failure::Oversized {
                        what: "a segment of 4 GiB and more".into(),
                    });
                }
                for chunk in chunks {
                    self.held.push(chunk);
                }
                live.call(&exports.push, (*inspection, chunks)).await?
            }
            None => live.call(&exports.finish, (*inspection,)).await?,
        };
        verify::verdict(&verdict, &self.held, chunks.is_none(), &limits)?;
        self.held.forget(verdict.settled);
        if chunks.is_none() {
            self.close().await;
        }
        Ok(verdict)
    }

    async fn open(&self, exports: &ComplianceExports, how: Waiting) -> Result<State, Failure> {
        let mut live = self.stage.instance(&self.context, how).await?;
        let inspection: ResourceAny = live.call_plain(&exports.new, (Context::lend(),)).await?;
        Ok(State::Open(Box::new(live), inspection))
    }

    /// After the finish: a warm instance goes back to the others, a fresh one stays where it is,
    /// so that cleaning it up does not keep the last verdict waiting.
    async fn close(&mut self) {
        let State::Open(mut live, inspection) =
            std::mem::replace(&mut self.state, State::Finished(None))
        else {
            return;
        };
        if self.stage.is_warm() {
            if live.drop_resource(inspection).await.is_ok() {
                self.stage.give_back(*live);
            }
        } else {
            self.state = State::Finished(Some(live));
        }
    }
}

/// The result of a future that does not wait, as those of plain stages do not.
pub(crate) fn now<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    future.now_or_never().unwrap_or_else(|| {
        Err(Failure::Unavailable {
            why: "the call waits for the host".into(),
        })
    })
}
