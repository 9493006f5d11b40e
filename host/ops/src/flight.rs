//! One request under way: its trace as it grows, its clock, and its end, which comes exactly once,
//! also when the client goes away in the middle.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use millgate_sandbox::{Answer, CallContext, Direction, Event as MonitorEvent, Label, Measure};
use millgate_store::Commit;

use crate::{
    after::After,
    canary::Outcome,
    chain::Placed,
    config::{Durability, Inputs, Sticky, Texts},
    core::Core,
    error::ApiError,
    id::{TraceId, now_ms},
    pipeline::{Generation, Pipeline},
    replay::Recorder,
    request::Request,
    response::Usage,
    shadow,
    trace::{ErrorRecord, Finish, Place, StageRecord, TextDigests, Timings, Tokens, Trace},
};

/// The most bytes of an answer that are kept for an evaluation or for `texts = "on"`.
const MAX_CAPTURE: usize = 4 << 20;

/// One request under way.
pub(crate) struct Flight {
    core: Arc<Core>,
    generation: Arc<Generation>,
    pub pipeline: Arc<Pipeline>,
    pub trace: Trace,
    pub context: CallContext,
    /// The arm that answers, once it is picked.
    arm: Option<usize>,
    started: Instant,
    /// When the answer has to be complete.
    pub deadline: Instant,
    ended: bool,
    capture: Option<Box<Capture>>,
    recorder: Option<Box<Recorder>>,
}

/// Texts that somebody wants after the end.
#[derive(Default)]
struct Capture {
    keep: bool,
    /// What the model was given, as JSON.
    body: Bytes,
    /// The last thing that the user said.
    question: String,
    references: Vec<String>,
    answer: String,
}

impl Flight {
    /// A request that has found its pipeline.
    pub(crate) fn new(
        core: Arc<Core>,
        generation: Arc<Generation>,
        pipeline: Arc<Pipeline>,
        request: &Request,
    ) -> Self {
        let at_ms = now_ms();
        let id = TraceId::new(at_ms);
        let empty: Arc<str> = core.empty.clone();
        let context = CallContext {
            trace_id: id.to_string().into(),
            tenant: request.tenant.clone(),
            model: request.model.clone(),
            direction: Direction::Input,
            role: empty.clone(),
            language: request.language.clone(),
            now_ms: at_ms,
            seed: id.seed(),
            tape: None,
        };
        let mut stages = Vec::with_capacity(pipeline.input.len() + pipeline.output.len() + 1);
        stages.extend(
            pipeline
                .input
                .iter()
                .map(|stage| stage.record(Place::Input)),
        );
        stages.extend(
            pipeline
                .output
                .iter()
                .map(|stage| stage.record(Place::Output)),
        );
        enforce(&mut stages, &pipeline, request, id);
        let trace = Trace {
            id,
            at_ms,
            tenant: request.tenant.clone(),
            endpoint: request.endpoint,
            stream: request.stream,
            model: request.model.clone(),
            pipeline: pipeline.name.clone(),
            generation: generation.number,
            arm: empty.clone(),
            arm_model: empty,
            propensity: 1.0,
            route: String::new(),
            stages,
            tokens: Tokens::default(),
            timings: Timings::default(),
            finish: Finish::Error,
            error: None,
            entropy: None,
            cost: 0.0,
            prompt_chars: request
                .segments
                .iter()
                .map(|segment| segment.text.chars().count() as u64)
                .sum(),
            completion_chars: 0,
            scores: Vec::new(),
            no_scores: None,
            texts: None,
        };
        let started = Instant::now();
        let deadline = started + generation.config.server.request_timeout.0;
        let mut flight = Self {
            core,
            generation,
            pipeline,
            trace,
            context,
            arm: None,
            started,
            deadline,
            ended: false,
            capture: None,
            recorder: None,
        };
        flight.plan_capture(request);
        flight.plan_recording(request);
        flight
    }

    /// Decides what has to be kept for after the end.
    fn plan_capture(&mut self, request: &Request) {
        let keep = self.generation.config.traces.texts == Texts::On;
        let mut references = Vec::new();
        if let Some(evaluation) = &self.pipeline.evaluation {
            if !self.trace.id.in_share(evaluation.share) {
                self.trace.no_scores = Some("not in the share that is evaluated".to_owned());
            } else {
                references = request.references();
                if references.is_empty() {
                    self.trace.no_scores =
                        Some("the request came without `metadata.reference`".to_owned());
                }
            }
        }
        if keep || !references.is_empty() {
            self.capture = Some(Box::new(Capture {
                keep,
                references,
                ..Capture::default()
            }));
        }
    }

    /// Decides whether this request is recorded.
    fn plan_recording(&mut self, request: &Request) {
        let config = &self.generation.config.traces;
        if config.inputs == Inputs::On && self.trace.id.in_share(config.inputs_share) {
            let recorder = Recorder::new(request, self.generation.digest.to_string().into());
            self.context.tape = Some(recorder.tape());
            self.recorder = Some(Box::new(recorder));
        }
    }

    /// Where the answer is recorded, if it is: as the model gives it, and as it leaves.
    pub(crate) fn recorder(&mut self) -> Option<&mut Recorder> {
        self.recorder.as_deref_mut()
    }

    /// The records of the output stages begin here.
    pub(crate) fn output_record(&self, index: usize) -> usize {
        self.pipeline.input.len() + index
    }

    /// The output stages, each with its record and whether its verdict counts.
    pub(crate) fn placed_output(&self) -> Vec<Placed> {
        let stages = self.pipeline.output.iter().enumerate();
        let placed = stages.map(|(index, stage)| {
            let record = self.output_record(index);
            Placed {
                record,
                stage: stage.clone(),
                enforced: self.enforces(record),
            }
        });
        placed.collect()
    }

    fn enforces(&self, record: usize) -> bool {
        let record = self.trace.stages.get(record);
        record.is_none_or(|record| record.enforced)
    }

    /// Whether an answer that cannot be read cannot leave: somebody whose verdict counts has to see
    /// it, or it is to be kept.
    pub(crate) fn must_read(&self) -> bool {
        let mut output = 0..self.pipeline.output.len();
        output.any(|index| self.enforces(self.output_record(index))) || self.wants_text()
    }

    /// The request as the input stages left it is about to go to the model.
    pub(crate) fn departs(&mut self, request: &Request, arm: usize) {
        self.arm = Some(arm);
        if let Some(picked) = self.pipeline.arms.get(arm) {
            self.trace.arm = picked.name.clone();
            self.trace.arm_model = picked.model.clone();
        }
        self.context.direction = Direction::Output;
        self.context.role = self.core.assistant.clone();
        if let Some(recorder) = &mut self.recorder {
            recorder.departs(request);
        }
        if let Some(capture) = &mut self.capture {
            let said = request
                .segments
                .iter()
                .rev()
                .find(|segment| *segment.role == *"user");
            capture.question = said.map(|segment| segment.text.clone()).unwrap_or_default();
            if capture.keep {
                capture.body = request.current_body();
            }
        }
    }

    /// The model's first token, or the upstream's first byte, has come.
    pub(crate) fn first_token(&mut self) {
        if self.trace.timings.ttft == 0 {
            self.trace.timings.ttft = micros(self.started).max(1);
        }
    }

    /// Text of the answer that leaves.
    pub(crate) fn leaves(&mut self, choice: u32, text: &str) {
        self.leaves_beside(text);
        if let Some(capture) = self.capture.as_mut().filter(|_| choice == 0)
            && capture.answer.len() + text.len() <= MAX_CAPTURE
        {
            capture.answer.push_str(text);
        }
    }

    /// Text beside the answer that leaves: reasoning, a tool call's arguments.
    pub(crate) fn leaves_beside(&mut self, text: &str) {
        self.trace.completion_chars += text.chars().count() as u64;
    }

    /// Whether anything reads the answer's text after the end.
    pub(crate) fn wants_text(&self) -> bool {
        self.capture.is_some() || self.recorder.is_some()
    }

    pub(crate) fn set_usage(&mut self, usage: Usage) {
        self.trace.tokens = Tokens {
            prompt: usage.prompt_tokens,
            cached: usage.cached_tokens,
            completion: usage.completion_tokens,
        };
    }

    /// The end. Resolves when the trace is as durable as the config wants it before the response
    /// may end.
    ///
    /// # Errors
    /// The trace could not be made durable: what would be acknowledged could be lost.
    pub(crate) async fn end(
        &mut self,
        finish: Finish,
        error: Option<&ApiError>,
    ) -> Result<(), ApiError> {
        if self.ended {
            return Ok(());
        }
        self.keep_texts().await;
        let commit = self.close(finish, error);
        match self.generation.config.traces.durability {
            Durability::BeforeResponse => commit.await.map_err(|error| {
                tracing::error!(trace = %self.trace.id, %error, "a trace could not be made durable");
                ApiError::unavailable("the record of this request could not be made durable; try again later")
            }),
            Durability::AfterResponse => {
                settle(self.trace.id, commit);
                Ok(())
            }
        }
    }

    /// Ends with an error for the client; gives it back with the trace's id.
    pub(crate) async fn fail(&mut self, finish: Finish, error: ApiError) -> ApiError {
        let end = self.end(finish, Some(&error)).await;
        end.err().unwrap_or(error).with_trace(self.trace.id)
    }

    async fn keep_texts(&mut self) {
        let Some(capture) = self.capture.as_ref().filter(|capture| capture.keep) else {
            return;
        };
        let (body, answer) = (capture.body.clone(), capture.answer.clone());
        let traces = self.core.traces.clone();
        let kept = tokio::task::spawn_blocking(move || {
            let input = traces.blobs().put(&body)?;
            let output = traces.blobs().put(answer.as_bytes())?;
            Ok::<_, millgate_store::Error>(TextDigests { input, output })
        });
        match kept.await {
            Ok(Ok(texts)) => self.trace.texts = Some(texts),
            Ok(Err(error)) => {
                tracing::error!(trace = %self.trace.id, %error, "the texts could not be kept")
            }
            Err(error) => {
                tracing::error!(trace = %self.trace.id, %error, "the texts could not be kept")
            }
        }
    }

    /// Completes the trace, hands it to the store, and tells everybody who counts.
    fn close(&mut self, finish: Finish, error: Option<&ApiError>) -> Commit {
        self.ended = true;
        self.trace.finish = finish;
        self.trace.timings.total = micros(self.started).max(1);
        self.trace.error = error.map(|error| ErrorRecord {
            status: error.status,
            code: error.code.clone(),
            message: error.message.clone(),
        });
        let commit = self.core.traces.append(&self.trace);
        if let Some(recorder) = self.recorder.take() {
            self.core.inputs.keep(recorder.finish(&self.trace));
        }
        self.pipeline.metrics.count(&self.trace);
        let stages = self.pipeline.input.iter().chain(&self.pipeline.output);
        for (stage, record) in stages.zip(&self.trace.stages) {
            if record.enforced {
                stage.metrics.count(record);
            }
        }
        self.note_canaries();
        if let Some(arm) = self.arm {
            self.pipeline.rollout.note(arm, &self.trace);
        }
        if !self.pipeline.monitors.is_empty() {
            let event = monitor_event(&self.trace);
            for monitor in &self.pipeline.monitors {
                if !monitor.observe(event.clone()) {
                    self.pipeline.metrics.monitor_dropped.add(1);
                }
            }
        }
        self.follow_up();
        commit
    }

    /// Tells canaries how the request went, whichever side it was on. One that falls here falls at
    /// once; that it did is written by somebody who may wait.
    fn note_canaries(&self) {
        for (index, record) in self.trace.stages.iter().enumerate() {
            let stages = || self.pipeline.input.iter().chain(&self.pipeline.output);
            let Some(canary) = stages().nth(index).and_then(|stage| stage.canary.as_ref()) else {
                continue;
            };
            let same = |other: &&StageRecord| other.stage == record.stage;
            if self.trace.stages.iter().take(index).any(|it| same(&it)) {
                continue; // it stands on both sides: one request is one value
            }
            let failed = self
                .trace
                .stages
                .iter()
                .filter(same)
                .any(|it| it.enforced && it.failure.is_some());
            if canary.note(&Outcome::of(&self.trace, record.enforced, failed)) {
                let (canary, audit) = (canary.clone(), self.core.audit.clone());
                match tokio::runtime::Handle::try_current() {
                    Ok(runtime) => drop(runtime.spawn_blocking(move || canary.write_fall(&audit))),
                    Err(_) => canary.write_fall(&audit),
                }
            }
        }
    }

    /// What is done after the answer, off its path: stages in the shadow, and the evaluation.
    fn follow_up(&mut self) {
        let stages = self.pipeline.input.iter().chain(&self.pipeline.output);
        let shadows = shadow::jobs(&mut self.trace, stages);
        let scores = self.scores();
        if shadows.is_empty() && scores.is_none() {
            return;
        }
        let after = After {
            core: self.core.clone(),
            pipeline: self.pipeline.clone(),
            trace: self.trace.clone(),
            // What is asked after the answer is no part of what is kept of it.
            context: CallContext {
                tape: None,
                ..self.context.clone()
            },
            shadows,
            scores,
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(after.run());
        }
    }

    /// The answer that is to be scored.
    fn scores(&mut self) -> Option<(usize, Answer)> {
        let capture = self
            .capture
            .take()
            .filter(|capture| !capture.references.is_empty())?;
        let arm = self.arm?;
        if self.pipeline.evaluation.is_none()
            || !matches!(self.trace.finish, Finish::Stop | Finish::Length)
        {
            return None;
        }
        let answer = Answer {
            id: self.trace.id.to_string(),
            input: capture.question,
            output: capture.answer,
            references: capture.references,
        };
        Some((arm, answer))
    }
}

/// Decides for which canaries this request counts. Its side follows from what it sticks to.
fn enforce(stages: &mut [StageRecord], pipeline: &Pipeline, request: &Request, id: TraceId) {
    let placed = pipeline.input.iter().chain(&pipeline.output);
    for (record, stage) in stages.iter_mut().zip(placed) {
        let Some(canary) = &stage.canary else {
            continue;
        };
        let user = || request.value::<String>("user").ok().flatten();
        record.enforced = canary.enforces(
            &id,
            |sticky| match sticky {
                Sticky::User => user(),
                Sticky::Session => request.session(),
                Sticky::Tenant => Some(String::new()),
            },
            &request.tenant,
        );
    }
}

impl Drop for Flight {
    /// The client went away, or the request was dropped with the server: the trace is still
    /// written.
    fn drop(&mut self) {
        if !self.ended {
            let commit = self.close(Finish::Cancelled, None);
            settle(self.trace.id, commit);
        }
    }
}

/// Sees a commit through that nobody waits for.
fn settle(trace: TraceId, commit: Commit) {
    let wait = async move {
        if let Err(error) = commit.await {
            tracing::error!(%trace, %error, "a trace could not be made durable");
        }
    };
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(wait);
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// A finished trace as monitors see it.
fn monitor_event(trace: &Trace) -> MonitorEvent {
    let label = |name: &str, value: &str| Label {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    let measure = |name: &str, value: f64| Measure {
        name: name.to_owned(),
        value,
    };
    let mut labels = vec![
        label("model", &trace.model),
        label("pipeline", &trace.pipeline),
        label("arm", &trace.arm),
        label("tenant", &trace.tenant),
        label("finish-reason", trace.finish.name()),
    ];
    let mut measures = vec![
        measure("latency-ms", trace.timings.total as f64 / 1e3),
        measure("prompt-chars", trace.prompt_chars as f64),
        measure("completion-chars", trace.completion_chars as f64),
    ];
    if trace.timings.ttft > 0 {
        measures.push(measure("ttft-ms", trace.timings.ttft as f64 / 1e3));
    }
    if trace.tokens != Tokens::default() {
        measures.push(measure("prompt-tokens", f64::from(trace.tokens.prompt)));
        measures.push(measure(
            "completion-tokens",
            f64::from(trace.tokens.completion),
        ));
    }
    if let Some(entropy) = trace.entropy {
        measures.push(measure("entropy", entropy));
    }
    // A stage may stand on both sides: the graver verdict counts.
    for (index, record) in trace.stages.iter().enumerate() {
        if !record.enforced {
            continue; // it has not run yet, and its verdict does not count
        }
        let same = |other: &&StageRecord| other.stage == record.stage;
        if trace.stages.iter().take(index).any(|other| same(&other)) {
            continue;
        }
        let gravest = trace
            .stages
            .iter()
            .filter(same)
            .map(|other| other.verdict)
            .max()
            .unwrap_or(record.verdict);
        labels.push(label(&format!("verdict.{}", record.stage), gravest.name()));
    }
    MonitorEvent {
        trace_id: trace.id.to_string(),
        at_ms: now_ms(),
        labels,
        measures,
    }
}
