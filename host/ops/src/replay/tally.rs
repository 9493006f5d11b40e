//! What a backtest counts: how each request ended then and would end now, what each stage decided,
//! what it cost, and where the two differ.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    candidate::Ran,
    record::{Source, Then},
};
use crate::{
    answer::Channel,
    id::TraceId,
    segments::Segment,
    trace::{Finish, Place, StageRecord, StageVerdict},
};

/// Characters of an example's text.
const EXAMPLE: usize = 240;

/// What a candidate would change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BacktestReport {
    /// Requests whose stages were run.
    pub traces: u64,
    /// Requests that could not be run, by why.
    pub skipped: BTreeMap<String, u64>,
    /// When the oldest and the newest of them arrived, in milliseconds since 1970.
    pub from_ms: Option<u64>,
    /// The newest.
    pub until_ms: Option<u64>,
    /// How long it took, in seconds, and on how many threads.
    pub seconds: f64,
    /// Threads that ran stages.
    pub threads: usize,
    /// Requests by how they ended then and would end now.
    pub ends: Vec<Transition<End>>,
    /// Requests whose text would go to the model otherwise.
    pub requests_changed: u64,
    /// Answers whose text would leave otherwise.
    pub answers_changed: u64,
    /// Stage by stage.
    pub stages: Vec<StageChange>,
    /// Verdicts that flip: all of them, up to a bound.
    pub flips: Vec<Flip>,
    /// How many there are.
    pub flips_total: u64,
    /// A few of each kind.
    pub examples: Vec<Example>,
}

/// How a request ended, as far as stages decide it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// Everything passed as it was.
    Passed,
    /// It passed with changes.
    Changed,
    /// The model was made to say something again.
    Again,
    /// A validation stage refused the request.
    Rejected,
    /// A compliance stage refused a text, or a stage failed closed.
    Blocked,
}

impl End {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            End::Passed => "passed",
            End::Changed => "changed",
            End::Again => "said-again",
            End::Rejected => "rejected",
            End::Blocked => "blocked",
        }
    }
}

/// How many were the one and would be the other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transition<T> {
    /// What it was.
    pub then: T,
    /// What it would be.
    pub now: T,
    /// How many.
    pub count: u64,
}

/// One stage in one place, then and now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageChange {
    /// The stage's name.
    pub stage: String,
    /// Where it stands.
    pub place: Place,
    /// Its plugin then; the last one seen.
    pub plugin_then: Option<String>,
    /// Its plugin now.
    pub plugin_now: Option<String>,
    /// What it did then.
    pub then: Did,
    /// What it does now.
    pub now: Did,
    /// Its verdicts; `null` where the stage was, or is, not there.
    pub verdicts: Vec<Transition<Option<StageVerdict>>>,
}

/// What a stage did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Did {
    /// Requests that it ran for.
    pub ran: u64,
    /// Changes.
    pub edits: u64,
    /// Findings.
    pub findings: u64,
    /// Calls of the plugin.
    pub calls: u64,
    /// Bytes that it was given and decided on.
    pub given: u64,
    /// Microseconds for a request.
    pub micros: Spread,
}

/// A distribution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The median.
    pub p50: u64,
    /// The 99th percentile.
    pub p99: u64,
    /// The sum.
    pub total: u64,
}

/// A verdict that flips.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flip {
    /// The trace.
    pub trace: TraceId,
    /// The stage's name.
    pub stage: String,
    /// Where it stands.
    pub place: Place,
    /// What it decided; `None`: there was no such stage.
    pub then: Option<StageVerdict>,
    /// What it decides now; `None`: there is no such stage.
    pub now: Option<StageVerdict>,
}

/// A flip to look at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// Which.
    #[serde(flatten)]
    pub flip: Flip,
    /// What the stage finds now: rules with their places.
    pub findings: Vec<String>,
    /// Bytes of the text that it looks at.
    pub bytes: u64,
    /// The beginning of that text, where texts are to be shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// How much is kept beside the numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    pub flips: usize,
    pub examples: usize,
    pub text: bool,
}

/// The counts of one thread.
pub(crate) struct Tally {
    keep: Keep,
    traces: u64,
    skipped: BTreeMap<String, u64>,
    from_ms: Option<u64>,
    until_ms: Option<u64>,
    ends: BTreeMap<(End, End), u64>,
    requests_changed: u64,
    answers_changed: u64,
    stages: Vec<StageTally>,
    flips: Vec<Flip>,
    flips_total: u64,
    examples: Vec<Example>,
}

struct StageTally {
    stage: String,
    place: Place,
    plugin_then: Option<String>,
    plugin_now: Option<String>,
    then: Did,
    now: Did,
    then_micros: Vec<u32>,
    now_micros: Vec<u32>,
    verdicts: BTreeMap<(Option<StageVerdict>, Option<StageVerdict>), u64>,
}

impl Tally {
    pub(crate) fn new(keep: Keep) -> Self {
        Self {
            keep,
            traces: 0,
            skipped: BTreeMap::new(),
            from_ms: None,
            until_ms: None,
            ends: BTreeMap::new(),
            requests_changed: 0,
            answers_changed: 0,
            stages: Vec::new(),
            flips: Vec::new(),
            flips_total: 0,
            examples: Vec::new(),
        }
    }

    /// A request that could not be run.
    pub(crate) fn skip(&mut self, why: String) {
        *self.skipped.entry(why).or_default() += 1;
    }

    /// A request that was run.
    pub(crate) fn add(&mut self, trace: TraceId, source: &Source<'_>, ran: Ran) {
        self.traces += 1;
        self.from_ms = Some(
            self.from_ms
                .map_or(source.at_ms, |from| from.min(source.at_ms)),
        );
        self.until_ms = Some(
            self.until_ms
                .map_or(source.at_ms, |until| until.max(source.at_ms)),
        );

        let (then_end, now_end) = (end_then(source), end_now(&ran));
        *self.ends.entry((then_end, now_end)).or_default() += 1;
        let stopped = |end: End| matches!(end, End::Rejected | End::Blocked | End::Again);
        let input_now = ran.stopped.is_none() || source.departed && ran_output(&ran);
        if source.departed && input_now && source.changed != ran.changed {
            self.requests_changed += 1;
        }
        if let Some(heard) = source.answer.as_ref().filter(|_| !stopped(then_end)) {
            let mut left: Vec<&(u32, Channel, String)> = ran.left.iter().collect();
            left.sort_by_key(|(choice, channel, _)| (*choice, *channel));
            if !stopped(now_end) && !left.into_iter().eq(heard.left.iter()) {
                self.answers_changed += 1;
            }
        }

        for record in &ran.records {
            let then = source
                .stages
                .iter()
                .find(|then| *then.stage == *record.stage && then.place == record.place);
            self.stage(trace, source, then, Some(record));
        }
        for then in &source.stages {
            let now =
                |record: &&StageRecord| *record.stage == *then.stage && record.place == then.place;
            if !ran.records.iter().any(|record| now(&record)) {
                self.stage(trace, source, Some(then), None);
            }
        }
    }

    fn stage(
        &mut self,
        trace: TraceId,
        source: &Source<'_>,
        then: Option<&Then<'_>>,
        now: Option<&StageRecord>,
    ) {
        let (name, place) = match (then, now) {
            (_, Some(now)) => (&*now.stage, now.place),
            (Some(then), None) => (&*then.stage, then.place),
            (None, None) => return,
        };
        let known = self
            .stages
            .iter()
            .position(|stage| stage.stage == name && stage.place == place);
        let index = known.unwrap_or_else(|| {
            self.stages.push(StageTally::new(name, place));
            self.stages.len() - 1
        });
        let Some(tally) = self.stages.get_mut(index) else {
            return;
        };
        tally.add(then, now);
        let verdicts = (then.map(|then| then.verdict), now.map(|now| now.verdict));
        if !flips(verdicts.0, verdicts.1) {
            return;
        }
        self.flips_total += 1;
        let flip = Flip {
            trace,
            stage: name.to_owned(),
            place,
            then: verdicts.0,
            now: verdicts.1,
        };
        let alike = self.examples.iter().filter(|known| {
            let known = &known.flip;
            (&known.stage, known.place, known.then, known.now)
                == (&flip.stage, flip.place, flip.then, flip.now)
        });
        if alike.count() < self.keep.examples {
            let (bytes, text) = looked_at(source, place);
            self.examples.push(Example {
                flip: flip.clone(),
                findings: now.map(findings).unwrap_or_default(),
                bytes,
                text: self.keep.text.then(|| text.chars().take(EXAMPLE).collect()),
            });
        }
        if self.flips.len() < self.keep.flips {
            self.flips.push(flip);
        }
    }

    /// Takes over another thread's counts.
    pub(crate) fn absorb(&mut self, other: Tally) {
        self.traces += other.traces;
        for (why, count) in other.skipped {
            *self.skipped.entry(why).or_default() += count;
        }
        let (mine, theirs) = (self.from_ms, other.from_ms);
        self.from_ms = mine.into_iter().chain(theirs).min();
        self.until_ms = self.until_ms.max(other.until_ms);
        for (ends, count) in other.ends {
            *self.ends.entry(ends).or_default() += count;
        }
        self.requests_changed += other.requests_changed;
        self.answers_changed += other.answers_changed;
        for stage in other.stages {
            let known = self
                .stages
                .iter_mut()
                .find(|known| known.stage == stage.stage && known.place == stage.place);
            match known {
                Some(known) => known.absorb(stage),
                None => self.stages.push(stage),
            }
        }
        self.flips.extend(other.flips);
        self.flips_total += other.flips_total;
        self.examples.extend(other.examples);
    }

    /// The whole.
    pub(crate) fn report(mut self, seconds: f64, threads: usize) -> BacktestReport {
        self.flips
            .sort_by(|a, b| b.trace.cmp(&a.trace).then_with(|| a.stage.cmp(&b.stage)));
        self.flips.truncate(self.keep.flips);
        // Each thread kept a few of each kind.
        self.examples.sort_by(|a, b| {
            let kind = |flip: &Flip| (flip.place as u8, flip.stage.clone(), flip.then, flip.now);
            kind(&a.flip)
                .cmp(&kind(&b.flip))
                .then_with(|| b.flip.trace.cmp(&a.flip.trace))
        });
        let mut examples: Vec<Example> = Vec::new();
        for example in self.examples {
            let alike = examples.iter().filter(|known| {
                let (a, b) = (&known.flip, &example.flip);
                (&a.stage, a.place, a.then, a.now) == (&b.stage, b.place, b.then, b.now)
            });
            if alike.count() < self.keep.examples {
                examples.push(example);
            }
        }
        self.stages.sort_by_key(|stage| stage.place as u8);
        BacktestReport {
            traces: self.traces,
            skipped: self.skipped,
            from_ms: self.from_ms,
            until_ms: self.until_ms,
            seconds,
            threads,
            ends: transitions(self.ends),
            requests_changed: self.requests_changed,
            answers_changed: self.answers_changed,
            stages: self.stages.into_iter().map(StageTally::done).collect(),
            flips: self.flips,
            flips_total: self.flips_total,
            examples,
        }
    }
}

impl StageTally {
    fn new(stage: &str, place: Place) -> Self {
        Self {
            stage: stage.to_owned(),
            place,
            plugin_then: None,
            plugin_now: None,
            then: Did::default(),
            now: Did::default(),
            then_micros: Vec::new(),
            now_micros: Vec::new(),
            verdicts: BTreeMap::new(),
        }
    }

    fn add(&mut self, then: Option<&Then<'_>>, now: Option<&StageRecord>) {
        let micros = |micros: u64| u32::try_from(micros).unwrap_or(u32::MAX);
        if let Some(then) = then {
            if self.plugin_then.as_deref() != Some(&*then.plugin) {
                self.plugin_then = Some(then.plugin.to_string());
            }
            if then.verdict != StageVerdict::NotRun {
                let did = &mut self.then;
                did.ran += 1;
                did.edits += u64::from(then.edits);
                did.findings += u64::from(then.findings);
                did.calls += u64::from(then.calls);
                did.given += then.given;
                self.then_micros.push(micros(then.micros));
            }
        }
        if let Some(now) = now {
            if self.plugin_now.as_deref() != Some(&*now.plugin) {
                self.plugin_now = Some(now.plugin.to_string());
            }
            if now.verdict != StageVerdict::NotRun {
                let did = &mut self.now;
                did.ran += 1;
                did.edits += u64::from(now.edits);
                did.findings += now.findings.len() as u64 + u64::from(now.findings_dropped);
                did.calls += u64::from(now.calls);
                did.given += now.given;
                self.now_micros.push(micros(now.micros));
            }
        }
        let verdicts = (then.map(|then| then.verdict), now.map(|now| now.verdict));
        *self.verdicts.entry(verdicts).or_default() += 1;
    }

    fn absorb(&mut self, other: StageTally) {
        for (mine, theirs) in [(&mut self.then, &other.then), (&mut self.now, &other.now)] {
            mine.ran += theirs.ran;
            mine.edits += theirs.edits;
            mine.findings += theirs.findings;
            mine.calls += theirs.calls;
            mine.given += theirs.given;
        }
        self.then_micros.extend(other.then_micros);
        self.now_micros.extend(other.now_micros);
        self.plugin_then = self.plugin_then.take().or(other.plugin_then);
        self.plugin_now = self.plugin_now.take().or(other.plugin_now);
        for (verdicts, count) in other.verdicts {
            *self.verdicts.entry(verdicts).or_default() += count;
        }
    }

    fn done(mut self) -> StageChange {
        self.then.micros = spread(self.then_micros);
        self.now.micros = spread(self.now_micros);
        StageChange {
            stage: self.stage,
            place: self.place,
            plugin_then: self.plugin_then,
            plugin_now: self.plugin_now,
            then: self.then,
            now: self.now,
            verdicts: transitions(self.verdicts),
        }
    }
}

/// Whether two verdicts differ. A stage that did not run, because the request ended before it, has
/// none; one that is not there counts as one that lets everything pass.
pub(crate) fn flips(then: Option<StageVerdict>, now: Option<StageVerdict>) -> bool {
    let ran = |verdict: Option<StageVerdict>| verdict != Some(StageVerdict::NotRun);
    let acts = |verdict: Option<StageVerdict>| verdict.unwrap_or(StageVerdict::Pass);
    ran(then) && ran(now) && acts(then) != acts(now)
}

fn transitions<T: Copy>(counts: BTreeMap<(T, T), u64>) -> Vec<Transition<T>> {
    let all = counts.into_iter();
    all.map(|((then, now), count)| Transition { then, now, count })
        .collect()
}

fn spread(mut micros: Vec<u32>) -> Spread {
    micros.sort_unstable();
    let at = |share: usize| {
        let place = (micros.len() * share / 100).min(micros.len().saturating_sub(1));
        micros.get(place).copied().map_or(0, u64::from)
    };
    Spread {
        p50: at(50),
        p99: at(99),
        total: micros.iter().copied().map(u64::from).sum(),
    }
}

/// Whether an output stage ran.
fn ran_output(ran: &Ran) -> bool {
    let mut outputs = ran
        .records
        .iter()
        .filter(|record| record.place == Place::Output);
    outputs.any(|record| record.verdict != StageVerdict::NotRun)
}

fn end_of(gravest: StageVerdict, changed: bool) -> End {
    match gravest {
        StageVerdict::Block | StageVerdict::FailedClosed => End::Blocked,
        StageVerdict::Reject => End::Rejected,
        _ if changed => End::Changed,
        _ => End::Passed,
    }
}

fn end_then(source: &Source<'_>) -> End {
    let verdicts = || source.stages.iter().map(|then| then.verdict);
    let gravest = verdicts().max().unwrap_or(StageVerdict::Pass);
    let left = source
        .answer
        .as_ref()
        .is_some_and(|heard| !heard.left.is_empty());
    match end_of(gravest, !source.changed.is_empty() || left) {
        End::Blocked | End::Rejected if gravest > StageVerdict::Regenerate => {
            end_of(gravest, false)
        }
        // A stage that wanted it said again, and did not get it, refused it.
        _ if verdicts().any(|verdict| verdict == StageVerdict::Regenerate) => {
            match source.finish == Finish::Blocked {
                true => End::Blocked,
                false => End::Again,
            }
        }
        end => end,
    }
}

fn end_now(ran: &Ran) -> End {
    let verdicts = ran.records.iter().map(|record| record.verdict);
    let gravest = verdicts.max().unwrap_or(StageVerdict::Pass);
    match ran.stopped {
        Some(Finish::Rejected) => End::Rejected,
        Some(_) if gravest == StageVerdict::Regenerate => End::Again,
        Some(_) => End::Blocked,
        None => end_of(
            gravest.min(StageVerdict::FailedOpen),
            !ran.changed.is_empty() || !ran.left.is_empty(),
        ),
    }
}

fn findings(record: &StageRecord) -> Vec<String> {
    let shown = record
        .findings
        .iter()
        .take(8)
        .map(|finding| match finding.span {
            Some(span) => format!("{} at {}..{}", finding.rule, span.start, span.end),
            None => finding.rule.clone(),
        });
    shown.collect()
}

/// The text that a place looks at: its bytes, and all of it.
fn looked_at(source: &Source<'_>, place: Place) -> (u64, String) {
    let text = match place {
        Place::Output => source.answer.as_ref().map(|heard| heard.text.to_string()),
        _ => Some(request_text(source)),
    };
    let text = text.unwrap_or_default();
    (text.len() as u64, text)
}

/// The texts of a request, one after the other.
fn request_text(source: &Source<'_>) -> String {
    let request = crate::request::Request::parse(crate::request::ApiRequest {
        endpoint: source.endpoint,
        body: bytes::Bytes::copy_from_slice(source.body.as_bytes()),
        tenant: "".into(),
        language: "".into(),
    });
    let text = |segment: &Segment| match segment.role.is_empty() {
        true => segment.text.clone(),
        false => format!("{}: {}", segment.role, segment.text),
    };
    request.map_or_else(
        |_| String::new(),
        |request| {
            let texts: Vec<String> = request.segments.iter().map(text).collect();
            texts.join("\n")
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_run_flips_nothing_and_what_is_not_there_lets_pass() {
        use StageVerdict::{Block, Edit, NotRun, Pass};
        for (then, now, flip) in [
            (Some(Pass), Some(Block), true),
            (Some(Edit), Some(Pass), true),
            (Some(Pass), Some(Pass), false),
            (Some(NotRun), Some(Block), false),
            (Some(Block), Some(NotRun), false),
            (None, Some(Pass), false),
            (None, Some(Block), true),
            (Some(Edit), None, true),
            (None, Some(NotRun), false),
        ] {
            assert_eq!(flips(then, now), flip, "{then:?} {now:?}");
        }
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_values() {
        let spread = spread((0..1000).rev().collect());
        assert_eq!((spread.p50, spread.p99, spread.total), (500, 990, 499_500));
        assert_eq!(super::spread(Vec::new()), Spread::default());
    }
}
