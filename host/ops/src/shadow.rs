//! Stages whose verdict does not count for a request: what they would have been given is kept on the
//! request's way, they run on it after the answer, and their verdict is compared with what became of
//! the request. They never delay or change an answer.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use millgate_sandbox::{CallContext, Direction};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::{
    chain,
    checks::{self, Asked},
    metrics::{Counter, Metrics},
    segments::Segment,
    stage::LoadedStage,
    trace::{Finish, Place, StageRecord, StageVerdict, Trace},
};

/// The most bytes that are kept of what one stage would have been given by one request.
pub(crate) const MAX_TAPPED: usize = 4 << 20;
/// The most bytes that wait for their turn, over all requests; what comes beyond is dropped and
/// counted.
const MAX_WAITING: u64 = 64 << 20;

/// How a verdict that did not count compares with what became of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compared {
    /// The same: both let it pass, or both refused it.
    Agree,
    /// It would have refused what passed.
    WouldBlock,
    /// It would have let pass what was refused.
    WouldPass,
    /// It would have changed what passed.
    WouldChange,
    /// It failed: a trap, a time-out.
    Failed,
    /// Too much was waiting: it did not run.
    Dropped,
}

impl Compared {
    /// All of them.
    pub const ALL: [Compared; 6] = [
        Compared::Agree,
        Compared::WouldBlock,
        Compared::WouldPass,
        Compared::WouldChange,
        Compared::Failed,
        Compared::Dropped,
    ];

    /// Its name in traces, metrics and the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Compared::Agree => "agree",
            Compared::WouldBlock => "would-block",
            Compared::WouldPass => "would-pass",
            Compared::WouldChange => "would-change",
            Compared::Failed => "failed",
            Compared::Dropped => "dropped",
        }
    }

    /// Compares a verdict with the end of its request. `None`: the stage did not run, or nobody
    /// knows what would have become of the request.
    fn of(record: &StageRecord, finish: Finish) -> Option<Self> {
        if record.failure.is_some() {
            return Some(Compared::Failed);
        }
        if record.verdict == StageVerdict::NotRun || finish == Finish::Cancelled {
            return None;
        }
        let refused = matches!(finish, Finish::Blocked | Finish::Rejected);
        Some(match record.verdict {
            StageVerdict::Reject | StageVerdict::Block | StageVerdict::FailedClosed if refused => {
                Compared::Agree
            }
            StageVerdict::Reject | StageVerdict::Block | StageVerdict::FailedClosed => {
                Compared::WouldBlock
            }
            _ if refused => Compared::WouldPass,
            StageVerdict::Edit | StageVerdict::Repair | StageVerdict::Regenerate => {
                Compared::WouldChange
            }
            _ => Compared::Agree,
        })
    }
}

/// What a stage would have been given.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Tapped {
    /// The request as it stood before the stage.
    Request {
        body: Bytes,
        segments: Vec<Segment>,
        uncovered: u64,
    },
    /// A text of the answer.
    Text { text: String, finished: bool },
}

impl Tapped {
    fn bytes(&self) -> u64 {
        match self {
            Tapped::Request { body, segments, .. } => {
                let texts: usize = segments.iter().map(|segment| segment.text.len()).sum();
                (body.len() + texts) as u64
            }
            Tapped::Text { text, .. } => text.len() as u64,
        }
    }
}

/// The numbers of a stage's comparisons.
pub(crate) struct ShadowMetrics {
    compared: [Counter; Compared::ALL.len()],
    verdicts: [Counter; StageVerdict::ALL.len()],
}

impl ShadowMetrics {
    pub(crate) fn new(metrics: &Metrics, stage: &str) -> Self {
        Self {
            compared: Compared::ALL.map(|result| {
                metrics.counter(
                    "millgate_shadow_requests_total",
                    "Requests by how a stage's verdict that did not count compares with what became of them.",
                    &[("stage", stage), ("result", result.name())],
                )
            }),
            verdicts: StageVerdict::ALL.map(|verdict| {
                metrics.counter(
                    "millgate_shadow_verdicts_total",
                    "Requests by what a stage decided whose verdict did not count.",
                    &[("stage", stage), ("verdict", verdict.name())],
                )
            }),
        }
    }

    fn count(&self, record: &StageRecord) {
        if let Some(counter) = self.verdicts.get(record.verdict as usize) {
            counter.add(1);
        }
        if let Some(counter) = record
            .compared
            .and_then(|compared| self.compared.get(compared as usize))
        {
            counter.add(1);
        }
    }

    /// As an operator sees them.
    pub(crate) fn status(&self) -> ShadowStatus {
        let of = |compared: Compared| self.compared.get(compared as usize).map_or(0, Counter::get);
        let known: u64 = [
            Compared::Agree,
            Compared::WouldBlock,
            Compared::WouldPass,
            Compared::WouldChange,
        ]
        .map(of)
        .iter()
        .sum();
        ShadowStatus {
            agreement: (known > 0).then(|| of(Compared::Agree) as f64 / known as f64),
            agree: of(Compared::Agree),
            would_block: of(Compared::WouldBlock),
            would_pass: of(Compared::WouldPass),
            would_change: of(Compared::WouldChange),
            failed: of(Compared::Failed),
            dropped: of(Compared::Dropped),
        }
    }
}

/// How the verdicts of a stage that did not count compare, since the process started.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ShadowStatus {
    /// The share of agreement in what could be compared; `None` before there is any.
    pub agreement: Option<f64>,
    /// Requests on which it agreed.
    pub agree: u64,
    /// Requests that passed and that it would have refused.
    pub would_block: u64,
    /// Requests that were refused and that it would have let pass.
    pub would_pass: u64,
    /// Requests that passed and whose text it would have changed.
    pub would_change: u64,
    /// Requests on which it failed.
    pub failed: u64,
    /// Requests that it was not run on, because too much was waiting.
    pub dropped: u64,
}

/// Bounds what runs in the shadow at one time, and what waits.
pub(crate) struct ShadowQueue {
    running: Semaphore,
    waiting: AtomicU64,
}

impl ShadowQueue {
    /// Half of the cores at most: the answers have the others.
    pub(crate) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            running: Semaphore::new((cores / 2).max(1)),
            waiting: AtomicU64::new(0),
        }
    }
}

/// A stage's share of what is to be done after a request.
pub(crate) struct ShadowJob {
    /// Index of its record in the trace.
    record: usize,
    stage: Arc<LoadedStage>,
    tapped: Vec<Tapped>,
}

/// Takes what the stages of a request would have been given out of its trace.
pub(crate) fn jobs<'s>(
    trace: &mut Trace,
    stages: impl Iterator<Item = &'s Arc<LoadedStage>>,
) -> Vec<ShadowJob> {
    let placed = trace.stages.iter_mut().enumerate().zip(stages);
    placed
        .filter(|((_, record), _)| !record.tapped.is_empty())
        .map(|((index, record), stage)| ShadowJob {
            record: index,
            stage: stage.clone(),
            tapped: std::mem::take(&mut record.tapped),
        })
        .collect()
}

/// Runs the stages and puts their verdicts into the trace's records. Their calls block, so they run
/// on a thread that may.
pub(crate) async fn run(
    queue: &ShadowQueue,
    jobs: Vec<ShadowJob>,
    trace: &mut Trace,
    context: &CallContext,
) {
    let bytes: u64 = jobs
        .iter()
        .flat_map(|job| &job.tapped)
        .map(Tapped::bytes)
        .sum();
    let waiting = queue.waiting.fetch_add(bytes, Ordering::Relaxed);
    let permit = match waiting + bytes <= MAX_WAITING {
        true => queue.running.acquire().await.ok(),
        false => None,
    };
    for job in jobs {
        let Some(record) = trace.stages.get_mut(job.record) else {
            continue;
        };
        let stage = job.stage.clone();
        if permit.is_some() {
            let (mut own, context) = (record.clone(), context.clone());
            let runtime = tokio::runtime::Handle::current();
            let ran = tokio::task::spawn_blocking(move || {
                runtime.block_on(one(job, &mut own, &context));
                own
            });
            if let Ok(own) = ran.await {
                *record = own;
            }
            record.compared = Compared::of(record, trace.finish);
        } else {
            record.compared = Some(Compared::Dropped);
        }
        if let Some(shadow) = &stage.shadow {
            shadow.count(record);
        }
    }
    drop(permit);
    queue.waiting.fetch_sub(bytes, Ordering::Relaxed);
}

/// One stage on all that it would have been given. It stops where it would have stopped the request.
async fn one(job: ShadowJob, record: &mut StageRecord, context: &CallContext) {
    let mut context = context.clone();
    if record.place == Place::Input {
        context.direction = Direction::Input;
        context.role = "".into();
    }
    // What passed was counted on the way; here it is counted again as it is given.
    let passed = std::mem::take(&mut record.passed);
    for tapped in job.tapped {
        let stopped = match tapped {
            Tapped::Request {
                body,
                mut segments,
                uncovered,
            } => {
                let asked = Asked {
                    body,
                    segments: &mut segments,
                    uncovered,
                };
                checks::request(&job.stage, &context, asked, record)
                    .await
                    .is_err()
            }
            Tapped::Text { text, finished } => {
                chain::look_at(&job.stage, &context, &text, finished, record).await
            }
        };
        if stopped {
            break;
        }
    }
    record.passed = record.passed.max(passed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::testing::{blocking, stage};

    #[test]
    fn a_verdict_is_held_against_what_became_of_the_request() {
        let of = |verdict, finish| {
            let mut record = stage(blocking("x")).record(Place::Input);
            record.verdict = verdict;
            Compared::of(&record, finish)
        };
        use StageVerdict::{Block, Edit, NotRun, Pass, Reject};
        for (verdict, finish, expected) in [
            (Pass, Finish::Stop, Some(Compared::Agree)),
            (Block, Finish::Blocked, Some(Compared::Agree)),
            (Reject, Finish::Length, Some(Compared::WouldBlock)),
            (Pass, Finish::Rejected, Some(Compared::WouldPass)),
            (Edit, Finish::Stop, Some(Compared::WouldChange)),
            (Edit, Finish::Blocked, Some(Compared::WouldPass)),
            (NotRun, Finish::Blocked, None),
            (Block, Finish::Cancelled, None),
        ] {
            assert_eq!(of(verdict, finish), expected, "{verdict:?} {finish:?}");
        }
    }
}
