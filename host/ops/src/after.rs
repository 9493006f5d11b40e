//! What is done with a request after its answer, off the path: stages in the shadow look at it, and
//! an evaluation scores it. Then its trace is written once more, with what they said.

use std::{sync::Arc, time::Instant};

use millgate_sandbox::{Answer, CallContext};

use crate::{
    core::Core,
    pipeline::Pipeline,
    shadow::{self, ShadowJob},
    trace::{Place, ScoreRecord, StageVerdict, Trace},
};

/// A finished request, and who still wants to see it.
pub(crate) struct After {
    pub core: Arc<Core>,
    pub pipeline: Arc<Pipeline>,
    pub trace: Trace,
    pub context: CallContext,
    pub shadows: Vec<ShadowJob>,
    /// The arm that answered, and the answer that is to be scored.
    pub scores: Option<(usize, Answer)>,
}

impl After {
    /// Lets everybody see it, one after the other.
    pub(crate) async fn run(mut self) {
        if !self.shadows.is_empty() {
            let jobs = std::mem::take(&mut self.shadows);
            shadow::run(&self.core.shadows, jobs, &mut self.trace, &self.context).await;
        }
        if let Some((arm, answer)) = self.scores.take() {
            self.evaluate(arm, &answer).await;
        }
        if let Err(error) = self.core.traces.update(&self.trace) {
            tracing::error!(trace = %self.trace.id, %error, "what was said after the answer could not be kept");
        }
    }

    async fn evaluate(&mut self, arm: usize, answer: &Answer) {
        let Some(evaluation) = &self.pipeline.evaluation else {
            return;
        };
        let stage = evaluation.stage.clone();
        let Some(sandboxed) = stage.sandboxed() else {
            return;
        };
        let started = Instant::now();
        let mut record = stage.record(Place::Evaluation);
        let bytes = answer.output.len() as u64;
        record.passed = bytes;
        record.calls = 1;
        let answers = std::slice::from_ref(answer);
        match sandboxed.evaluate_async(&self.context, answers).await {
            Ok(evaluation) => {
                record.raise(StageVerdict::Pass);
                record.given = bytes;
                let scores = evaluation.cases.into_iter().flat_map(|case| case.scores);
                self.trace.scores = scores
                    .map(|score| ScoreRecord {
                        name: score.name,
                        value: score.value,
                    })
                    .collect();
            }
            Err(failure) => {
                record.fail(&failure, false);
                stage.metrics.failure(failure.kind());
                self.trace.no_scores = Some(format!("the evaluation failed: {failure}"));
            }
        }
        record.micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        stage.metrics.count(&record);
        self.pipeline.rollout.note_scores(arm, &self.trace.scores);
        self.trace.stages.push(record);
    }
}
