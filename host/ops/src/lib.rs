//! Millgate's operations layer: the domain. It knows configs, pipelines, requests, traces and
//! rollouts; it joins the inference core, the sandbox and the store, which do not know each other.
//!
//! Read it in the order of a request's way: [`config`] (what an operator says) -> `pipeline` (the
//! same, loaded) -> [`request`] (what a client says) -> `executor` (stages, routing, inference,
//! stages on the stream) -> [`response`] (what the server renders) -> [`trace`] (what stays).
//! [`Platform`] is the front door.

mod after;
mod answer;
mod answer_local;
mod answer_upstream;
mod calls;
mod canary;
mod chain;
mod checks;
pub mod config;
mod core;
mod embeddings;
mod error;
mod executor;
#[cfg(test)]
mod executor_tests;
mod explain;
mod flight;
mod generations;
mod id;
mod leaves;
mod loader;
mod local;
mod measure;
pub mod metrics;
mod model;
mod monitor;
mod operate;
mod outlet;
mod pipeline;
mod plan;
mod platform;
mod plugins;
mod raw;
pub mod replay;
pub mod request;
pub mod response;
mod responses;
mod rollout;
mod segments;
mod services;
mod shadow;
#[cfg(test)]
mod shadow_tests;
mod shelf;
mod splice;
mod sse;
mod stage;
mod stages;
mod tenants;
#[cfg(test)]
mod testing;
mod text;
mod tokens;
mod told;
#[cfg(test)]
mod tools_tests;
pub mod trace;
mod traces;
mod upstream;

pub use canary::{CanaryAnswer, CanaryPhase, CanaryStatus};
pub use config::Config;
pub use error::{ApiError, Error, Result};
pub use executor::ResponseStream;
pub use generations::{GenerationRecord, Generations, How, StagePin};
pub use id::{BadTraceId, TraceId};
pub use metrics::Metrics;
pub use model::LanguageModel;
pub use monitor::AlertState;
pub use operate::{Applied, Ask, Candidate, ConfigReader};
pub use plan::{Change, ChangeKind, PipelineCost, Plan};
pub use platform::{Environment, ModelFiles, Platform};
pub use plugins::{KeptPlugins, PluginSource, PulledPlugins};
pub use request::{ApiRequest, Endpoint};
pub use response::Response;
pub use rollout::{RolloutPhase, RolloutStatus};
pub use shadow::{Compared, ShadowStatus};
pub use stages::{StagePlace, StageStatus};
pub use trace::Trace;
pub use traces::{TraceFilter, TracePage, Traces};
