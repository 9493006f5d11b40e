//! A stage as the executor holds it: the sandbox's stage with everything that a trace or a metric
//! needs of it made ready, so that the request path only copies handles.

use std::sync::Arc;

use millgate_sandbox::{
    CallContext, Failure, FailurePolicy, Inspection, Interface, Stage, Verdict,
};

use crate::{
    canary::Canary,
    config::StageMode,
    metrics::{Counter, Histogram, Metrics, STAGE_BUCKETS},
    shadow::ShadowMetrics,
    trace::{Place, StageRecord, StageVerdict},
};

/// A stage that is ready to be called.
pub(crate) struct LoadedStage {
    pub name: Arc<str>,
    /// The plugin's name and version.
    pub plugin: Arc<str>,
    pub digest: Arc<str>,
    /// Whether a failed call refuses the request.
    pub closed: bool,
    pub validates: bool,
    pub inspects: bool,
    pub metrics: StageMetrics,
    /// Whether its verdict counts.
    pub mode: StageMode,
    /// What its verdicts compare like where they do not count; for all but enforced stages.
    pub shadow: Option<ShadowMetrics>,
    /// For which requests a canary's verdict counts.
    pub canary: Option<Arc<Canary>>,
    made: Made,
}

/// What stands behind a stage.
enum Made {
    Sandbox(Stage),
    /// By hand, for tests of what is around it.
    #[cfg(test)]
    Hand(Box<dyn Fn() -> Box<dyn testing::HandMade> + Send + Sync>),
}

/// One inspection.
pub(crate) enum Gate {
    Sandbox {
        inspection: Box<Inspection>,
        waits: bool,
    },
    #[cfg(test)]
    Hand(Box<dyn testing::HandMade>),
}

/// The numbers of one stage.
pub(crate) struct StageMetrics {
    pub time: Histogram,
    verdicts: [Counter; StageVerdict::ALL.len()],
    passed: Counter,
    given: Counter,
    failures: Metrics,
    stage: Arc<str>,
}

impl StageMetrics {
    fn new(metrics: &Metrics, stage: &Arc<str>) -> Self {
        let bytes = |kind| {
            metrics.counter(
                "millgate_stage_bytes_total",
                "Bytes of text that passed a stage, and those that it was given.",
                &[("stage", stage), ("kind", kind)],
            )
        };
        Self {
            time: metrics.histogram(
                "millgate_stage_duration_seconds",
                "Time of one call of a stage.",
                &[("stage", stage)],
                STAGE_BUCKETS,
            ),
            verdicts: StageVerdict::ALL.map(|verdict| {
                metrics.counter(
                    "millgate_stage_verdicts_total",
                    "Requests by what a stage decided.",
                    &[("stage", stage), ("verdict", verdict.name())],
                )
            }),
            passed: bytes("passed"),
            given: bytes("given"),
            failures: metrics.clone(),
            stage: stage.clone(),
        }
    }

    /// Counts a failed call.
    pub(crate) fn failure(&self, kind: &str) {
        let labels = [("stage", self.stage.as_ref()), ("kind", kind)];
        self.failures
            .counter(
                "millgate_stage_failures_total",
                "Failed calls of a stage.",
                &labels,
            )
            .add(1);
    }

    /// Counts what a finished request's record says.
    pub(crate) fn count(&self, record: &StageRecord) {
        if let Some(counter) = self.verdicts.get(record.verdict as usize) {
            counter.add(1);
        }
        self.passed.add(record.passed);
        self.given.add(record.given);
    }
}

impl LoadedStage {
    /// Makes a loaded stage ready.
    pub(crate) fn new(
        stage: Stage,
        metrics: &Metrics,
        mode: StageMode,
        canary: Option<Arc<Canary>>,
    ) -> Arc<Self> {
        let manifest = stage.manifest();
        let name: Arc<str> = stage.name().into();
        Arc::new(Self {
            plugin: format!("{} {}", manifest.name, manifest.version).into(),
            digest: stage.digest().into(),
            closed: stage.spec().on_failure == FailurePolicy::Closed,
            validates: manifest.interfaces.contains(&Interface::Validation),
            inspects: manifest.interfaces.contains(&Interface::Compliance),
            metrics: StageMetrics::new(metrics, &name),
            mode,
            shadow: (!mode.is_enforce()).then(|| ShadowMetrics::new(metrics, &name)),
            canary,
            name,
            made: Made::Sandbox(stage),
        })
    }

    /// The sandbox's stage.
    pub(crate) fn sandboxed(&self) -> Option<&Stage> {
        match &self.made {
            Made::Sandbox(stage) => Some(stage),
            #[cfg(test)]
            Made::Hand(_) => None,
        }
    }

    /// Begins the inspection of one text.
    pub(crate) fn inspection(&self, context: &CallContext) -> Gate {
        match &self.made {
            Made::Sandbox(stage) => Gate::Sandbox {
                inspection: Box::new(stage.inspection(context)),
                waits: stage.is_async(),
            },
            #[cfg(test)]
            Made::Hand(make) => Gate::Hand(make()),
        }
    }

    /// An empty record of this stage.
    pub(crate) fn record(&self, place: Place) -> StageRecord {
        StageRecord {
            stage: self.name.clone(),
            plugin: self.plugin.clone(),
            digest: self.digest.clone(),
            place,
            mode: self.mode,
            enforced: self.mode.is_enforce(),
            compared: None,
            tapped: Vec::new(),
            verdict: StageVerdict::NotRun,
            passed: 0,
            given: 0,
            edits: 0,
            findings: Vec::new(),
            findings_dropped: 0,
            calls: 0,
            micros: 0,
            failure: None,
        }
    }
}

impl Gate {
    pub(crate) async fn push(&mut self, text: &str) -> Result<Verdict, Failure> {
        match self {
            Gate::Sandbox {
                inspection,
                waits: false,
            } => inspection.push(&[text]),
            Gate::Sandbox {
                inspection,
                waits: true,
            } => inspection.push_async(&[text]).await,
            #[cfg(test)]
            Gate::Hand(hand) => hand.push(text),
        }
    }

    pub(crate) async fn finish(&mut self) -> Result<Verdict, Failure> {
        match self {
            Gate::Sandbox {
                inspection,
                waits: false,
            } => inspection.finish(),
            Gate::Sandbox {
                inspection,
                waits: true,
            } => inspection.finish_async().await,
            #[cfg(test)]
            Gate::Hand(hand) => hand.finish(),
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Stages made by hand: word hunters that hold back what could be the beginning of their word.

    use super::*;
    use millgate_sandbox::{Decision, Edit, Refusal, Regeneration, Span};

    pub(crate) trait HandMade: Send {
        fn push(&mut self, text: &str) -> Result<Verdict, Failure>;
        fn finish(&mut self) -> Result<Verdict, Failure>;
    }

    #[derive(Clone)]
    pub(crate) enum Hunt {
        Replace(&'static str),
        Block,
        Regenerate,
        Trap,
    }

    #[derive(Clone)]
    pub(crate) struct Hunter {
        word: &'static str,
        hunt: Hunt,
        closed: bool,
        text: String,
        settled: usize,
    }

    fn hunter(word: &'static str, hunt: Hunt, closed: bool) -> Hunter {
        Hunter {
            word,
            hunt,
            closed,
            text: String::new(),
            settled: 0,
        }
    }

    pub(crate) fn replacing(word: &'static str, with: &'static str) -> Hunter {
        hunter(word, Hunt::Replace(with), true)
    }

    pub(crate) fn blocking(word: &'static str) -> Hunter {
        hunter(word, Hunt::Block, true)
    }

    pub(crate) fn regenerating(word: &'static str) -> Hunter {
        hunter(word, Hunt::Regenerate, true)
    }

    pub(crate) fn trapping(word: &'static str, closed: bool) -> Hunter {
        hunter(word, Hunt::Trap, closed)
    }

    pub(crate) fn stage(hunter: Hunter) -> Arc<LoadedStage> {
        placed(hunter, StageMode::Enforce, None)
    }

    pub(crate) fn shadowed(hunter: Hunter) -> Arc<LoadedStage> {
        placed(hunter, StageMode::Shadow, None)
    }

    pub(crate) fn canaried(hunter: Hunter, canary: Arc<Canary>) -> Arc<LoadedStage> {
        placed(hunter, StageMode::Canary, Some(canary))
    }

    fn placed(hunter: Hunter, mode: StageMode, canary: Option<Arc<Canary>>) -> Arc<LoadedStage> {
        let name: Arc<str> = format!("hunt-{}", hunter.word).into();
        let metrics = Metrics::new();
        Arc::new(LoadedStage {
            plugin: "hunter 0.1.0".into(),
            digest: "sha256:00".into(),
            closed: hunter.closed,
            validates: false,
            inspects: true,
            metrics: StageMetrics::new(&metrics, &name),
            mode,
            shadow: Some(ShadowMetrics::new(&metrics, &name)),
            canary,
            name,
            made: Made::Hand(Box::new(move || Box::new(hunter.clone()))),
        })
    }

    impl Hunter {
        fn verdict(&mut self, last: bool) -> Result<Verdict, Failure> {
            let mut verdict = Verdict::default();
            let mut at = self.settled;
            while let Some(found) = self.text[at..].find(self.word) {
                let span = Span {
                    start: (at + found) as u32,
                    end: (at + found + self.word.len()) as u32,
                };
                let reason = Refusal {
                    code: "hunted".into(),
                    message: "a word".into(),
                };
                match self.hunt {
                    Hunt::Replace(with) => verdict.edits.push(Edit {
                        span,
                        replacement: with.into(),
                    }),
                    Hunt::Trap => {
                        return Err(Failure::Trap {
                            message: "found it".into(),
                        });
                    }
                    Hunt::Block => verdict.decision = Decision::Block(reason),
                    Hunt::Regenerate => {
                        let ban = vec![self.word.to_owned()];
                        verdict.decision = Decision::Regenerate(Regeneration {
                            keep: span.start,
                            ban,
                            reason,
                        });
                    }
                }
                at = span.end as usize;
                if verdict.decision != Decision::Pass {
                    verdict.settled = span.start;
                    return Ok(verdict);
                }
            }
            let tail = &self.text[at..];
            let hold = (1..self.word.len())
                .rev()
                .find(|len| self.word.is_char_boundary(*len) && tail.ends_with(&self.word[..*len]));
            self.settled = if last {
                self.text.len()
            } else {
                self.text.len() - hold.unwrap_or(0)
            };
            verdict.settled = self.settled as u32;
            Ok(verdict)
        }
    }

    impl HandMade for Hunter {
        fn push(&mut self, text: &str) -> Result<Verdict, Failure> {
            self.text.push_str(text);
            self.verdict(false)
        }

        fn finish(&mut self) -> Result<Verdict, Failure> {
            self.verdict(true)
        }
    }
}
