//! What every request shares: the present generation of pipelines, the traces, the numbers.

use std::sync::Arc;

use arc_swap::ArcSwap;
use millgate_store::AuditLog;

use crate::{
    metrics::{Counter, Metrics},
    pipeline::Generation,
    replay::InputStore,
    shadow::ShadowQueue,
    traces::Traces,
};

/// What every request shares.
pub(crate) struct Core {
    pub generation: ArcSwap<Generation>,
    pub traces: Traces,
    pub inputs: Arc<InputStore>,
    pub metrics: Metrics,
    pub audit: Arc<AuditLog>,
    /// Stages that run after the answers.
    pub shadows: ShadowQueue,
    /// Requests that came to no pipeline: malformed, or for a model that nobody serves.
    pub refused: Counter,
    pub empty: Arc<str>,
    pub assistant: Arc<str>,
}

impl Core {
    pub(crate) fn new(
        generation: Generation,
        traces: Traces,
        inputs: Arc<InputStore>,
        metrics: Metrics,
        audit: Arc<AuditLog>,
    ) -> Arc<Self> {
        Arc::new(Self {
            audit,
            shadows: ShadowQueue::new(),
            generation: ArcSwap::from_pointee(generation),
            traces,
            inputs,
            refused: metrics.counter(
                "millgate_requests_refused_total",
                "Requests that came to no pipeline: malformed, or for an unknown model.",
                &[],
            ),
            metrics,
            empty: "".into(),
            assistant: "assistant".into(),
        })
    }
}
