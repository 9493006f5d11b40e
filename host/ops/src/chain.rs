//! Compliance stages in a row over one text that arrives in pieces. Stage k+1 sees what stage k let
//! out; only what a stage has not settled is held back. The chain remembers which released bytes
//! are the source's own, so that nothing about a token whose text was changed can leave with it.

use std::{collections::VecDeque, ops::Range, sync::Arc, time::Instant};

use millgate_sandbox::{CallContext, Decision, Failure, Held, Refusal, Verdict};

use crate::{
    error::ApiError,
    shadow::{MAX_TAPPED, Tapped},
    stage::{Gate, LoadedStage},
    trace::{StageRecord, StageVerdict},
};

/// Stages in a row over one text.
pub(crate) struct Chain {
    links: Vec<Link>,
}

/// A stage at its place in a chain.
#[derive(Clone)]
pub(crate) struct Placed {
    /// Index of its record in the trace.
    pub record: usize,
    pub stage: Arc<LoadedStage>,
    /// Whether its verdict counts. If not, everything passes it, and what passes is kept for it.
    pub enforced: bool,
}

/// Text that may leave.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Released {
    pub text: String,
    /// Where its bytes come from, in order; replacements are left out.
    pub source: Vec<Range<u64>>,
}

/// What the stages want to happen next.
#[derive(Debug)]
pub(crate) enum Flow {
    /// Go on.
    Go,
    /// Stop; what was released before stands.
    Stop(ApiError),
    /// Take the text back to this offset of the source and say it again.
    Again {
        keep: u64,
        ban: Vec<String>,
        reason: Refusal,
    },
}

/// One stage, the text it holds, and what it did.
struct Link {
    stage: Arc<LoadedStage>,
    /// Index of its record in the trace.
    record: usize,
    gate: Gate,
    held: Held,
    runs: Runs,
    /// The stage failed and fails open: everything passes.
    open: bool,
    tally: Tally,
    /// In place of calls: the stage is not enforced.
    tap: Option<Tap>,
}

/// Keeps what passes, for a stage that looks at it after the answer.
#[derive(Default)]
struct Tap {
    text: String,
    finished: bool,
    /// Texts of other chains over the same stages.
    others: Vec<Tapped>,
}

/// What a link did so far.
#[derive(Default)]
struct Tally {
    passed: u64,
    given: u64,
    edits: u32,
    calls: u32,
    micros: u64,
    verdict: Option<StageVerdict>,
    findings: Vec<millgate_sandbox::Finding>,
    failure: Option<Failure>,
}

/// What one link let out in one step.
#[derive(Default)]
struct Step {
    text: String,
    runs: Runs,
    decision: Decision,
    /// The stage gave no answer and fails closed.
    failed: bool,
}

impl Chain {
    /// A chain over these stages.
    pub(crate) fn new(stages: impl IntoIterator<Item = Placed>, context: &CallContext) -> Self {
        let links = stages.into_iter().map(|placed| Link {
            gate: placed.stage.inspection(context),
            stage: placed.stage,
            record: placed.record,
            tap: (!placed.enforced).then(Tap::default),
            held: Held::default(),
            runs: Runs::default(),
            open: false,
            tally: Tally::default(),
        });
        Self {
            links: links.collect(),
        }
    }

    /// Whether no stage holds anything back.
    pub(crate) fn holds_nothing(&self) -> bool {
        self.links.iter().all(|link| link.held.text().is_empty())
    }

    /// More text, which begins at offset `source` of the whole. What may leave goes to `out`.
    pub(crate) async fn push(&mut self, text: &str, source: u64, out: &mut Released) -> Flow {
        let mut runs = Runs::default();
        runs.push(text.len() as u64, Some(source));
        self.run(text.to_owned(), runs, false, out).await
    }

    /// The text is complete: everything that may leave goes to `out`.
    pub(crate) async fn finish(&mut self, out: &mut Released) -> Flow {
        self.run(String::new(), Runs::default(), true, out).await
    }

    /// Runs text through the links. With `last` every link settles its rest.
    async fn run(
        &mut self,
        mut text: String,
        mut runs: Runs,
        mut last: bool,
        out: &mut Released,
    ) -> Flow {
        let mut flow = Flow::Go;
        for link in &mut self.links {
            if text.is_empty() && !last {
                return flow;
            }
            let step = link.step(text, runs, last).await;
            let decided = match step.decision {
                // Nothing of what a failed stage holds may leave.
                _ if step.failed => Flow::Stop(ApiError::stage_failed(&link.stage.name)),
                Decision::Pass => Flow::Go,
                Decision::Block(refusal) => {
                    link.raise(StageVerdict::Block);
                    Flow::Stop(ApiError::blocked(&refusal.code, &refusal.message))
                }
                Decision::Regenerate(again) => {
                    link.raise(StageVerdict::Regenerate);
                    let held_at = u64::from(again.keep.saturating_sub(link.held.start()));
                    match link.runs.source_at(held_at) {
                        Some(keep) => Flow::Again {
                            keep,
                            ban: again.ban,
                            reason: again.reason,
                        },
                        None => {
                            Flow::Stop(ApiError::blocked(&again.reason.code, &again.reason.message))
                        }
                    }
                }
            };
            // After a stop the stages behind settle their rest, so that what leaves does not
            // depend on how the text was cut.
            last |= matches!(decided, Flow::Stop(_));
            flow = first_stop(flow, decided);
            (text, runs) = (step.text, step.runs);
        }
        out.text.push_str(&text);
        for run in runs.0 {
            if let Some(start) = run.source {
                match out.source.last_mut() {
                    Some(range) if range.end == start => range.end += run.len,
                    _ => out.source.push(start..start + run.len),
                }
            }
        }
        flow
    }

    /// Adds what the stages did to their records in the trace.
    pub(crate) fn record(&mut self, records: &mut [StageRecord]) {
        for link in &mut self.links {
            let tally = std::mem::take(&mut link.tally);
            if let Some(record) = records.get_mut(link.record) {
                tally.add_to(record, link.stage.closed);
                if let Some(tap) = &mut link.tap {
                    record.tapped.extend(tap.take());
                }
            }
        }
    }

    /// Takes over the account of another chain over the same stages.
    pub(crate) fn absorb(&mut self, other: Chain) {
        for (link, other) in self.links.iter_mut().zip(other.links) {
            link.tally.absorb(other.tally);
            if let (Some(tap), Some(mut other)) = (&mut link.tap, other.tap) {
                tap.others.extend(other.take());
            }
        }
    }

    /// Bytes leave that no stage is given.
    pub(crate) fn passes_unseen(&mut self, bytes: u64) {
        for link in &mut self.links {
            link.tally.passed += bytes;
        }
    }

    /// A new chain for the same text from its beginning, which keeps the account of what the old
    /// one cost.
    pub(crate) fn restart(&mut self, context: &CallContext) {
        for link in &mut self.links {
            link.gate = link.stage.inspection(context);
            link.held = Held::default();
            link.runs = Runs::default();
            if let Some(tap) = &mut link.tap {
                *tap = Tap::default();
            }
            link.tally.passed = 0;
            link.tally.given = 0;
            link.tally.edits = 0;
            link.tally.findings.clear();
        }
    }
}

/// The first stop wins; a stop wins over a wish to go on.
fn first_stop(known: Flow, new: Flow) -> Flow {
    match (&known, &new) {
        (Flow::Go, _) => new,
        (Flow::Again { .. }, Flow::Stop(_)) => new,
        _ => known,
    }
}

impl Link {
    async fn step(&mut self, text: String, runs: Runs, last: bool) -> Step {
        self.tally.passed += text.len() as u64;
        if let Some(tap) = &mut self.tap {
            tap.see(&text, last);
            return Step {
                text,
                runs,
                ..Step::default()
            };
        }
        self.raise(StageVerdict::Pass);
        if self.open {
            return Step {
                text,
                runs,
                ..Step::default()
            };
        }
        self.held.push(&text);
        self.runs.append(runs);
        let mut step = Step::default();
        if !text.is_empty() {
            let started = Instant::now();
            let verdict = self.gate.push(&text).await;
            self.take(verdict, started, &mut step);
        }
        if last && !self.open && !step.failed && step.decision == Decision::Pass {
            let started = Instant::now();
            let verdict = self.gate.finish().await;
            self.take(verdict, started, &mut step);
        }
        step
    }

    fn raise(&mut self, verdict: StageVerdict) {
        self.tally.verdict = self.tally.verdict.max(Some(verdict));
    }

    /// Takes what a verdict settles out of the held text.
    fn take(&mut self, verdict: Result<Verdict, Failure>, started: Instant, step: &mut Step) {
        self.tally.calls += 1;
        let elapsed = started.elapsed();
        self.tally.micros += u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        self.stage.metrics.time.observe_time(elapsed);
        let verdict = match verdict {
            Ok(verdict) => verdict,
            Err(failure) => {
                self.stage.metrics.failure(failure.kind());
                tracing::warn!(stage = %self.stage.name, %failure, "a stage failed");
                self.tally.failure.get_or_insert(failure);
                if self.stage.closed {
                    step.failed = true;
                    self.raise(StageVerdict::FailedClosed);
                } else {
                    self.open = true;
                    self.raise(StageVerdict::FailedOpen);
                    step.text.push_str(self.held.text());
                    step.runs.append(std::mem::take(&mut self.runs));
                    self.held = Held::default();
                }
                return;
            }
        };
        let start = self.held.start();
        self.tally.given += u64::from(verdict.settled.saturating_sub(start));
        let mut at = start;
        for edit in &verdict.edits {
            step.runs.append(
                self.runs
                    .take(u64::from(edit.span.start.saturating_sub(at))),
            );
            self.runs
                .take(u64::from(edit.span.end.saturating_sub(edit.span.start)));
            step.runs.push(edit.replacement.len() as u64, None);
            at = edit.span.end;
        }
        step.runs.append(
            self.runs
                .take(u64::from(verdict.settled.saturating_sub(at))),
        );
        step.text.push_str(&self.held.settle(&verdict));
        if !verdict.edits.is_empty() {
            self.tally.edits += u32::try_from(verdict.edits.len()).unwrap_or(u32::MAX);
            self.raise(StageVerdict::Edit);
        }
        self.tally.findings.extend(verdict.findings);
        step.decision = verdict.decision;
    }
}

impl Tap {
    fn see(&mut self, text: &str, last: bool) {
        // Beyond the bound nothing is kept: what was given of what passed says so.
        if self.text.len() + text.len() <= MAX_TAPPED {
            self.text.push_str(text);
            self.finished = last;
        } else {
            self.finished = false;
        }
    }

    fn take(&mut self) -> impl Iterator<Item = Tapped> {
        let taken = std::mem::take(self);
        let own = (!taken.text.is_empty()).then_some(Tapped::Text {
            text: taken.text,
            finished: taken.finished,
        });
        taken.others.into_iter().chain(own)
    }
}

impl Tally {
    fn absorb(&mut self, other: Tally) {
        self.passed += other.passed;
        self.given += other.given;
        self.edits += other.edits;
        self.calls += other.calls;
        self.micros += other.micros;
        self.verdict = self.verdict.max(other.verdict);
        self.findings.extend(other.findings);
        if let Some(failure) = other.failure {
            self.failure.get_or_insert(failure);
        }
    }

    fn add_to(self, record: &mut StageRecord, closed: bool) {
        record.passed += self.passed;
        record.given += self.given;
        record.edits += self.edits;
        record.calls += self.calls;
        record.micros += self.micros;
        record.add_findings(self.findings);
        if let Some(failure) = &self.failure {
            record.fail(failure, closed);
        }
        if let Some(verdict) = self.verdict {
            record.raise(verdict);
        }
    }
}

/// Checks one whole text by one stage: a push and a finish. `Ok(Some)`: the text as it is now.
pub(crate) async fn check_text(
    stage: &Arc<LoadedStage>,
    context: &CallContext,
    text: &str,
    record: &mut StageRecord,
) -> Result<Option<String>, ApiError> {
    let mut chain = Chain::new([Placed::alone(stage)], context);
    let mut out = Released::default();
    let mut flow = chain.push(text, 0, &mut out).await;
    if matches!(flow, Flow::Go) {
        flow = chain.finish(&mut out).await;
    }
    chain.record(std::slice::from_mut(record));
    match flow {
        Flow::Go if out.text == text => Ok(None),
        Flow::Go => Ok(Some(out.text)),
        Flow::Stop(error) => Err(error),
        // A prompt cannot be said again: the wish is a refusal.
        Flow::Again { reason, .. } => {
            record.raise(StageVerdict::Block);
            Err(ApiError::blocked(&reason.code, &reason.message))
        }
    }
}

/// Looks at one text by one stage, whose verdict does not count. Whether it would have stopped there.
pub(crate) async fn look_at(
    stage: &Arc<LoadedStage>,
    context: &CallContext,
    text: &str,
    finished: bool,
    record: &mut StageRecord,
) -> bool {
    let mut chain = Chain::new([Placed::alone(stage)], context);
    let mut out = Released::default();
    let mut flow = chain.push(text, 0, &mut out).await;
    if finished && matches!(flow, Flow::Go) {
        flow = chain.finish(&mut out).await;
    }
    chain.record(std::slice::from_mut(record));
    !matches!(flow, Flow::Go)
}

impl Placed {
    /// An enforced stage whose record is the only one.
    fn alone(stage: &Arc<LoadedStage>) -> Self {
        Self {
            record: 0,
            stage: stage.clone(),
            enforced: true,
        }
    }
}

/// A run of bytes: the source's own from an offset on, or a replacement.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Run {
    len: u64,
    source: Option<u64>,
}

/// Where the bytes of a text come from.
#[derive(Debug, Default)]
struct Runs(VecDeque<Run>);

impl Runs {
    fn push(&mut self, len: u64, source: Option<u64>) {
        if len == 0 {
            return;
        }
        match self.0.back_mut() {
            Some(last)
                if last.source.map(|start| start + last.len) == source && source.is_some() =>
            {
                last.len += len
            }
            _ => self.0.push_back(Run { len, source }),
        }
    }

    fn append(&mut self, other: Runs) {
        for run in other.0 {
            self.push(run.len, run.source);
        }
    }

    /// Takes the first `len` bytes.
    fn take(&mut self, mut len: u64) -> Runs {
        let mut taken = Runs::default();
        while len > 0 {
            let Some(mut run) = self.0.pop_front() else {
                break;
            };
            let part = run.len.min(len);
            taken.push(part, run.source);
            len -= part;
            if part < run.len {
                run = Run {
                    len: run.len - part,
                    source: run.source.map(|start| start + part),
                };
                self.0.push_front(run);
            }
        }
        taken
    }

    /// The source's offset at byte `at`; `None` inside a replacement.
    fn source_at(&self, mut at: u64) -> Option<u64> {
        let mut end = None;
        for run in &self.0 {
            if at < run.len {
                return run.source.map(|start| start + at);
            }
            at -= run.len;
            end = run.source.map(|start| start + run.len);
        }
        // The end of what is held is a place as well.
        if at == 0 { end } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::testing::{self, stage};
    use proptest::prelude::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    /// What leaves two chained stages, for one way to cut the text.
    fn run(
        text: &str,
        cuts: &[usize],
        stages: &[Arc<LoadedStage>],
    ) -> (Released, String, Vec<StageRecord>) {
        block_on(async {
            let mut records: Vec<StageRecord> = stages
                .iter()
                .map(|stage| stage.record(crate::trace::Place::Output))
                .collect();
            let placed = stages.iter().cloned().enumerate();
            let placed = placed.map(|(record, stage)| Placed {
                record,
                enforced: records[record].enforced,
                stage,
            });
            let mut chain = Chain::new(placed.collect::<Vec<_>>(), &CallContext::default());
            let mut out = Released::default();
            let mut at = 0;
            let mut flow = Flow::Go;
            for cut in cuts.iter().copied().chain([text.len()]) {
                if matches!(flow, Flow::Go) && cut > at {
                    flow = chain.push(&text[at..cut], at as u64, &mut out).await;
                    at = cut;
                }
            }
            if matches!(flow, Flow::Go) {
                flow = chain.finish(&mut out).await;
            }
            chain.record(&mut records);
            let end = match flow {
                Flow::Go => "done".to_owned(),
                Flow::Stop(error) => error.code,
                Flow::Again { keep, .. } => format!("again at {keep}"),
            };
            (out, end, records)
        })
    }

    fn cuts(text: &str, picks: &[prop::sample::Index]) -> Vec<usize> {
        let places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        let mut cuts: Vec<usize> = picks
            .iter()
            .filter(|_| !places.is_empty())
            .map(|pick| places[pick.index(places.len())])
            .collect();
        cuts.sort_unstable();
        cuts
    }

    proptest! {
        #[test]
        fn however_a_text_is_cut_the_same_leaves_two_chained_stages(
            text in "([abxyz é]|secret|bad|<s>){0,30}",
            picks in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            // The first stage writes what the second one looks for.
            let stages = [stage(testing::replacing("secret", "bXad")), stage(testing::replacing("X", "x")), stage(testing::blocking("bxadbad"))];
            let whole = run(&text, &[], &stages);
            let cut = run(&text, &cuts(&text, &picks), &stages);
            prop_assert_eq!(&whole.0, &cut.0);
            prop_assert_eq!(&whole.1, &cut.1);
            prop_assert_eq!(whole.2.iter().map(|r| r.verdict).collect::<Vec<_>>(), cut.2.iter().map(|r| r.verdict).collect::<Vec<_>>());
            // What is said to be the source's own is the source's own.
            let own: String = cut.0.source.iter().map(|range| &text[range.start as usize..range.end as usize]).collect();
            prop_assert!(is_subsequence(&own, &cut.0.text));
        }
    }

    fn is_subsequence(part: &str, whole: &str) -> bool {
        let mut rest = whole.chars();
        part.chars().all(|wanted| rest.any(|found| found == wanted))
    }

    #[test]
    fn a_stage_that_fails_closed_stops_the_text_and_lets_nothing_of_its_own_out() {
        let (out, end, records) = run(
            "hello trap world",
            &[6, 10],
            &[stage(testing::trapping("trap", true))],
        );
        assert_eq!(end, "stage_failed");
        assert_eq!(out.text, "hello ");
        assert_eq!(records[0].verdict, StageVerdict::FailedClosed);
        assert_eq!((records[0].passed, records[0].given), (10, 6));
    }

    #[test]
    fn a_stage_that_fails_open_lets_the_text_pass_and_does_not_claim_it() {
        let (out, end, records) = run(
            "hello trap world",
            &[6, 10],
            &[stage(testing::trapping("trap", false))],
        );
        assert_eq!(
            (end.as_str(), out.text.as_str()),
            ("done", "hello trap world")
        );
        assert_eq!(records[0].verdict, StageVerdict::FailedOpen);
        assert_eq!((records[0].passed, records[0].given), (16, 6));
    }

    #[test]
    fn a_stage_in_the_shadow_sees_what_the_one_before_it_let_out_and_changes_nothing() {
        let stages = [
            stage(testing::replacing("secret", "bad")),
            testing::shadowed(testing::blocking("bad")),
            stage(testing::replacing("x", "y")),
        ];
        let (out, end, records) = run("a secret x", &[4, 9], &stages);
        assert_eq!((out.text.as_str(), end.as_str()), ("a bad y", "done"));
        let expected = Tapped::Text {
            text: "a bad x".into(),
            finished: true,
        };
        assert_eq!(records[1].tapped, [expected]);
        assert_eq!(records[1].verdict, StageVerdict::NotRun);
    }

    #[test]
    fn the_place_to_go_back_to_is_an_offset_of_the_source() {
        let stages = [
            stage(testing::replacing("long-name", "x")),
            stage(testing::regenerating("oops")),
        ];
        let (out, end, _) = run("a long-name oops", &[], &stages);
        assert_eq!(end, "again at 12");
        assert_eq!(out.text, "a x ");
    }
}
