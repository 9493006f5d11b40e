//! Pipelines as immutable data. A generation is everything that one config makes: requests hold on
//! to the one they began with, so a reload never changes a request under way.

use std::sync::Arc;

use millgate_sandbox::{DeploymentActor, MonitorActor, Stage};
use millgate_store::Digest;

use crate::{
    config::{Config, PipelineConfig, pattern_matches},
    metrics::{
        Counter, DURATION_BUCKETS, FIRST_TOKEN_BUCKETS, Histogram, Metrics, PER_TOKEN_BUCKETS,
        TOKEN_BUCKETS,
    },
    model::Backend,
    rollout::Rollout,
    stage::LoadedStage,
    tenants::Tenants,
    trace::{Finish, Trace},
};

/// Everything that one config makes.
pub(crate) struct Generation {
    pub number: u64,
    /// Of what is served: the config and its plugins.
    pub digest: Digest,
    pub config: Arc<Config>,
    pub pipelines: Vec<Arc<Pipeline>>,
    pub tenants: Tenants,
}

/// The ordered stages that a request passes, and the rollout that picks its model.
pub(crate) struct Pipeline {
    pub name: Arc<str>,
    pub config: PipelineConfig,
    pub input: Vec<Arc<LoadedStage>>,
    pub output: Vec<Arc<LoadedStage>>,
    pub deployment: Option<Deployment>,
    pub monitors: Vec<MonitorActor>,
    pub evaluation: Option<Evaluation>,
    pub arms: Vec<ReadyArm>,
    pub rollout: Arc<Rollout>,
    pub metrics: PipelineMetrics,
}

/// The stage that picks arms.
pub(crate) struct Deployment {
    pub stage: Arc<LoadedStage>,
    pub actor: DeploymentActor,
}

/// The stage that scores answers.
pub(crate) struct Evaluation {
    pub stage: Arc<LoadedStage>,
    pub share: f64,
}

/// An arm with the model behind it.
pub(crate) struct ReadyArm {
    pub name: Arc<str>,
    /// The model's name, with its adapter's.
    pub model: Arc<str>,
    pub adapter: Option<Arc<str>>,
    pub backend: Backend,
}

impl Generation {
    /// The stages on requests and answers.
    pub(crate) fn sandboxed_stages(&self) -> impl Iterator<Item = &Stage> {
        self.pipelines.iter().flat_map(|pipeline| {
            let places = pipeline.input.iter().chain(&pipeline.output);
            places.filter_map(|stage| stage.sandboxed())
        })
    }

    /// The pipeline for a model name: an exact name before a pattern, a longer pattern before a
    /// shorter one.
    pub(crate) fn pipeline_for(&self, model: &str) -> Option<&Arc<Pipeline>> {
        let mut best: Option<(usize, &Arc<Pipeline>)> = None;
        for pipeline in &self.pipelines {
            for pattern in pipeline
                .config
                .serves
                .iter()
                .filter(|pattern| pattern_matches(pattern, model))
            {
                let weight = if pattern.ends_with('*') {
                    pattern.len()
                } else {
                    usize::MAX
                };
                if best.is_none_or(|(known, _)| weight > known) {
                    best = Some((weight, pipeline));
                }
            }
        }
        best.map(|(_, pipeline)| pipeline)
    }
}

/// The numbers of one pipeline.
pub(crate) struct PipelineMetrics {
    finishes: [(Finish, Counter); 8],
    duration: Histogram,
    first_token: Histogram,
    per_token: Histogram,
    input_tokens: Histogram,
    output_tokens: Histogram,
    pub monitor_dropped: Counter,
}

impl PipelineMetrics {
    pub(crate) fn new(metrics: &Metrics, pipeline: &str) -> Self {
        let labels = [("pipeline", pipeline)];
        let finish = |finish: Finish| {
            let counter = metrics.counter(
                "millgate_requests_total",
                "Requests by pipeline and by how they ended.",
                &[("pipeline", pipeline), ("finish", finish.name())],
            );
            (finish, counter)
        };
        let tokens = |kind| {
            metrics.histogram(
                "gen_ai_client_token_usage",
                "Tokens of a request (OpenTelemetry gen_ai.client.token.usage).",
                &[("pipeline", pipeline), ("gen_ai_token_type", kind)],
                TOKEN_BUCKETS,
            )
        };
        Self {
            finishes: [
                Finish::Stop,
                Finish::Length,
                Finish::ToolCalls,
                Finish::Blocked,
                Finish::Rejected,
                Finish::Cancelled,
                Finish::Error,
                Finish::Other,
            ]
            .map(finish),
            duration: metrics.histogram(
                "gen_ai_server_request_duration_seconds",
                "From a request's arrival to its end (OpenTelemetry gen_ai.server.request.duration).",
                &labels,
                DURATION_BUCKETS,
            ),
            first_token: metrics.histogram(
                "gen_ai_server_time_to_first_token_seconds",
                "From a request's arrival to the first token (OpenTelemetry gen_ai.server.time_to_first_token).",
                &labels,
                FIRST_TOKEN_BUCKETS,
            ),
            per_token: metrics.histogram(
                "gen_ai_server_time_per_output_token_seconds",
                "Mean time between tokens after the first (OpenTelemetry gen_ai.server.time_per_output_token).",
                &labels,
                PER_TOKEN_BUCKETS,
            ),
            input_tokens: tokens("input"),
            output_tokens: tokens("output"),
            monitor_dropped: metrics.counter(
                "millgate_monitor_events_dropped_total",
                "Events that a monitor's full mailbox did not take.",
                &labels,
            ),
        }
    }

    /// Counts a finished request.
    pub(crate) fn count(&self, trace: &Trace) {
        if let Some((_, counter)) = self
            .finishes
            .iter()
            .find(|(finish, _)| *finish == trace.finish)
        {
            counter.add(1);
        }
        let seconds = |micros: u64| micros as f64 / 1e6;
        self.duration.observe(seconds(trace.timings.total));
        if trace.timings.ttft > 0 {
            self.first_token.observe(seconds(trace.timings.ttft));
            if trace.tokens.completion > 1 {
                let rest = seconds(trace.timings.total.saturating_sub(trace.timings.ttft));
                self.per_token
                    .observe(rest / f64::from(trace.tokens.completion - 1));
            }
        }
        if trace.tokens.prompt + trace.tokens.completion > 0 {
            self.input_tokens.observe(f64::from(trace.tokens.prompt));
            self.output_tokens
                .observe(f64::from(trace.tokens.completion));
        }
    }
}
