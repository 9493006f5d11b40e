//! `millgate.toml`: what an operator can say. The types here are the one source of truth: the JSON
//! Schema for editors comes from them ([`schema`]), and [`check`] holds a text against it and
//! reports every error with its line before anything runs.

mod canary;
mod check;
mod plugins;
mod problem;
mod references;
mod shape;
mod tree;
mod units;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use canary::{CanaryConfig, StageMode, Sticky};
pub use check::{check, check_with_plugins};
pub use plugins::{PluginCatalog, PluginFacts};
pub use problem::Problem;
pub use units::{ByteSize, Device, Time, UnitError};

/// A whole config.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[schemars(title = "millgate.toml")]
pub struct Config {
    /// Where and how the API is served.
    pub server: ServerConfig,
    /// Who may call, by the tenant's name. Without any, everyone may, as the tenant `default`.
    pub tenants: BTreeMap<String, TenantConfig>,
    /// The models, by the name that pipelines use.
    pub models: BTreeMap<String, ModelConfig>,
    /// The stages: configured plugins, by the name that pipelines use.
    pub stages: BTreeMap<String, StageConfig>,
    /// The pipelines: which stages a request passes and which model answers it.
    pub pipelines: BTreeMap<String, PipelineConfig>,
    /// What is kept of each request.
    pub traces: TracesConfig,
    /// How finished requests reach the monitors.
    pub monitoring: MonitoringConfig,
    /// How plugins are pulled from registries.
    pub registry: RegistryConfig,
    /// Whose signatures are trusted, on which plugins from registries. Nobody's by default.
    pub trust: Vec<TrustConfig>,
}

/// Where and how the API is served.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// The largest request body that is read; a larger one is answered with 413.
    pub max_body: ByteSize,
    /// How long one request may take, from its arrival to the end of its answer, streams included; one that takes longer
    /// ends with 504.
    pub request_timeout: Time,
    /// How long requests in flight may take to finish after SIGTERM.
    pub drain: Time,
    /// The environment variable that holds the operator's key, which opens `/api/v1`. Without it everyone may look at
    /// `/api/v1` where there are no tenants, and nobody where there are.
    pub operator_key_env: Option<String>,
    /// Memory for all local models together: their files and key-value caches. Models with `load = "on-use"` make room
    /// for each other within it.
    pub model_memory: Option<ByteSize>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            max_body: ByteSize(4 << 20),
            request_timeout: Time(Duration::from_secs(600)),
            drain: Time(Duration::from_secs(30)),
            operator_key_env: None,
            model_memory: None,
        }
    }
}

/// A tenant: a team or a customer, known by API keys of its own.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct TenantConfig {
    /// The environment variable that holds a key.
    pub key_env: Option<String>,
    /// SHA-256 of keys, in hexadecimal: `printf %s KEY | sha256sum`. Two at once let a key be changed without a gap.
    pub key_sha256: Vec<String>,
}

/// A model: exactly one of `pull`, `path` and `upstream`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct ModelConfig {
    /// A model of the catalogue, fetched with `millgate model pull NAME`.
    pub pull: Option<String>,
    /// A GGUF file.
    pub path: Option<PathBuf>,
    /// A remote endpoint that speaks the OpenAI API.
    pub upstream: Option<UpstreamConfig>,
    /// Which device computes: "auto" (the first GPU that can be used, else the processor), "cpu", or "cuda:0".
    /// Local models only.
    pub device: Option<Device>,
    /// CPU threads of the inference core; by default one for each core. Local models only.
    pub threads: Option<u32>,
    /// Requests that generate at the same time; the others wait. Local models only.
    pub max_sequences: Option<u32>,
    /// Requests that may wait; beyond it the answer is 429. Local models only.
    pub queue: Option<u32>,
    /// Memory for the key-value cache. Local models only.
    pub kv_cache: Option<ByteSize>,
    /// How it samples where a request does not say. Local models only.
    pub sampling: SamplingConfig,
    /// LoRA adapters beside it, by name: folders in PEFT's format, relative to this file. Local models only.
    pub adapters: BTreeMap<String, PathBuf>,
    /// When the model is read. Local models only.
    pub load: Load,
    /// A model that is loaded by use is unloaded when nobody used it for this long.
    pub unload_after: Option<Time>,
}

/// When a model is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// At the start, and it stays.
    #[default]
    Start,
    /// By the first request for it; it is unloaded to make room for another, or after `unload-after`.
    OnUse,
}

/// How a model samples where a request does not say.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct SamplingConfig {
    /// 0 always takes the likeliest token; 1, the default, is the model's own distribution.
    #[schemars(range(min = 0.0, max = 2.0))]
    pub temperature: Option<f32>,
    /// The likeliest tokens whose probabilities reach this sum stay; 1, the default, keeps all.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub top_p: Option<f32>,
    /// This many of the likeliest tokens stay; 0, the default, keeps all.
    pub top_k: Option<u32>,
    /// Tokens of at least this share of the likeliest one's probability stay; 0, the default, keeps all.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_p: Option<f32>,
    /// Above 1 what was said already becomes less likely; 1, the default, is off.
    #[schemars(range(min = 0.01, max = 10.0))]
    pub repetition_penalty: Option<f32>,
    /// The most tokens of an answer.
    #[schemars(range(min = 1))]
    pub max_tokens: Option<u32>,
}

/// A remote endpoint that speaks the OpenAI API.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct UpstreamConfig {
    /// The base URL, with its version: `http://127.0.0.1:8000/v1`.
    pub url: String,
    /// The model's name there; by default the name that the client asked for.
    #[serde(default)]
    pub model: Option<String>,
    /// The environment variable that holds the API key.
    #[serde(default)]
    pub key_env: Option<String>,
    /// How long connecting may take.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Time,
    /// How long the first byte, and each one after it, may take.
    #[serde(default = "read_timeout")]
    pub read_timeout: Time,
}

fn connect_timeout() -> Time {
    Time(Duration::from_secs(5))
}

fn read_timeout() -> Time {
    Time(Duration::from_secs(120))
}

/// A stage: a plugin, its config, its grants and its limits.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct StageConfig {
    /// A first-party plugin by name, or one in a registry: `registry.example/team/name:1.2.0`, by tag, by
    /// `@sha256:…`, or both. Either this or `path`.
    pub plugin: Option<String>,
    /// A plugin's file. Either this or `plugin`.
    pub path: Option<PathBuf>,
    /// The plugin's config, as its manifest describes it.
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub config: serde_json::Map<String, serde_json::Value>,
    /// What the plugin may use beyond its input. Nothing by default.
    pub grant: GrantConfig,
    /// Whether its verdict counts.
    pub mode: StageMode,
    /// For which share of requests a canary's verdict counts, and when it no longer does.
    pub canary: Option<CanaryConfig>,
    /// What a failed call means.
    pub on_failure: OnFailure,
    /// Whether each request gets a sandbox of its own.
    pub isolation: IsolationConfig,
    /// Bounds of one call.
    pub limits: LimitsConfig,
}

impl StageConfig {
    /// What the config calls the plugin: its name, its reference or its path.
    #[must_use]
    pub fn source(&self) -> String {
        match (&self.plugin, &self.path) {
            (Some(plugin), _) => plugin.clone(),
            (None, Some(path)) => path.to_string_lossy().into_owned(),
            (None, None) => String::new(),
        }
    }

    /// The plugin's place in a registry, if it comes from one.
    #[must_use]
    pub fn reference(&self) -> Option<&str> {
        // No first-party plugin has a slash in its name.
        self.plugin.as_deref().filter(|name| name.contains('/'))
    }
}

/// What a failed call means: a trap, a time-out, an answer that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// The request is refused.
    #[default]
    Closed,
    /// The text passes, counted as not covered.
    Open,
}

/// Whether each request gets a sandbox of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IsolationConfig {
    /// A fresh instance for each request.
    #[default]
    Fresh,
    /// Instances are reused: for guests that take long to start.
    Warm,
}

/// What a plugin may use beyond its input.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct GrantConfig {
    /// A key-value space of the stage's own.
    pub state: Option<StateGrant>,
    /// The host's own models.
    pub inference: Option<InferenceGrant>,
    /// Names of secrets.
    pub secrets: Vec<String>,
    /// Origins that may be called, such as `https://api.vendor.example`.
    pub http: Vec<String>,
}

/// A key-value space of the stage's own.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct StateGrant {
    /// The most bytes that keys and values may take together.
    pub bytes: ByteSize,
}

/// The host's own models.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct InferenceGrant {
    /// Names of models in this config.
    pub models: Vec<String>,
    /// The most tokens, prompt and answer together, in a minute.
    #[schemars(range(min = 1))]
    pub tokens_per_minute: u32,
}

/// Bounds of one call of a plugin.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Memory of one instance.
    pub memory: ByteSize,
    /// How long one call may take.
    pub deadline: Time,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            memory: ByteSize(16 << 20),
            deadline: Time(Duration::from_millis(200)),
        }
    }
}

/// Which stages a request passes and which model answers it.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct PipelineConfig {
    /// Model names that clients ask for; a `*` at the end matches any rest.
    pub serves: Vec<String>,
    /// Stages on the request, in order: validation and compliance.
    pub input: Vec<String>,
    /// Stages on the answer, in order: compliance.
    pub output: Vec<String>,
    /// The stage that picks the arm and reviews the rollout.
    pub deployment: Option<String>,
    /// Stages that watch finished requests.
    pub monitors: Vec<String>,
    /// The evaluation of live answers.
    pub evaluation: Option<EvaluationConfig>,
    /// The arms; the first one is the stable arm.
    pub arms: Vec<ArmConfig>,
    /// How the rollout is reviewed.
    pub rollout: RolloutConfig,
}

/// An arm: a candidate for the traffic of a pipeline.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ArmConfig {
    /// The arm's name. The one called `stable`, else the first, is the stable arm.
    pub name: String,
    /// A model of this config.
    pub model: String,
    /// One of the model's adapters.
    #[serde(default)]
    pub adapter: Option<String>,
    /// The share of traffic that a candidate begins with, 0 to 1. The stable arm takes the rest.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub weight: Option<f64>,
}

impl ArmConfig {
    /// The model with its adapter, as `base+support`.
    #[must_use]
    pub fn full_model(&self) -> String {
        match &self.adapter {
            None => self.model.clone(),
            Some(adapter) => format!("{}+{adapter}", self.model),
        }
    }
}

/// The evaluation of live answers that come with a reference (`metadata.reference`).
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct EvaluationConfig {
    /// The stage that scores.
    pub stage: String,
    /// The share of requests that are scored, 0 to 1; which ones follows from the trace's id.
    #[serde(default = "whole")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub share: f64,
}

fn whole() -> f64 {
    1.0
}

/// How a rollout is reviewed.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RolloutConfig {
    /// How often the deployment stage looks at the arms' records.
    pub review_interval: Time,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            review_interval: Time(Duration::from_secs(30)),
        }
    }
}

/// What is kept of each request.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct TracesConfig {
    /// When a trace must be on disk.
    pub durability: Durability,
    /// Whether prompts and answers are kept as well.
    pub texts: Texts,
    /// How long traces are kept.
    pub max_age: Time,
    /// How many traces are kept.
    #[schemars(range(min = 1))]
    pub max_count: u64,
    /// Whether the inputs of the stages are kept, sealed, so that requests can be replayed.
    pub inputs: Inputs,
    /// The share of requests whose inputs are kept, 0 to 1; which ones follows from the trace's id.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub inputs_share: f64,
    /// How long inputs are kept; never longer than their traces.
    pub inputs_max_age: Time,
    /// How much disk the inputs may take, sealed; the oldest go first.
    pub inputs_max_bytes: ByteSize,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self {
            durability: Durability::BeforeResponse,
            texts: Texts::Off,
            max_age: Time(Duration::from_secs(30 * 86_400)),
            max_count: 1_000_000,
            inputs: Inputs::Off,
            inputs_share: 1.0,
            inputs_max_age: Time(Duration::from_secs(7 * 86_400)),
            inputs_max_bytes: ByteSize(1 << 30),
        }
    }
}

/// When a trace must be on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// Before the response ends: what a client saw answered is never lost.
    #[default]
    BeforeResponse,
    /// Soon after the response: a crash may lose the last few.
    AfterResponse,
}

/// Whether prompts and answers are kept with the traces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Texts {
    /// Only numbers, verdicts and findings are kept.
    #[default]
    Off,
    /// What the model was given and what it answered, as the stages left them.
    On,
}

/// Whether the inputs of the stages are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Inputs {
    /// They are not.
    #[default]
    Off,
    /// Requests and answers from before any stage, and each call of a stage, sealed.
    On,
}

/// How plugins are pulled from registries.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// Registries (`HOST` or `HOST:PORT`) that are spoken to without TLS. This machine's own always are.
    pub insecure: Vec<String>,
    /// A PEM file of further CA certificates, for registries of one's own.
    pub ca: Option<PathBuf>,
    /// How long one request may take.
    pub timeout: Time,
    /// The largest component that is read.
    pub max_component: ByteSize,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            insecure: Vec::new(),
            ca: None,
            timeout: Time(Duration::from_secs(300)),
            max_component: ByteSize(256 << 20),
        }
    }
}

/// A signer who is trusted for some plugins.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TrustConfig {
    /// The signer's name, for messages and the lock.
    pub name: String,
    /// The signer's Ed25519 public key: its PEM text, or the name of its PEM file.
    pub key: String,
    /// The names of the plugins that the signer may sign; a `*` stands for any letters: `acme-*`.
    pub plugins: Vec<String>,
}

/// How finished requests reach the monitors.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct MonitoringConfig {
    /// The most events of one batch.
    #[schemars(range(min = 1, max = 10000))]
    pub batch: u32,
    /// How long an event may wait for its batch to fill.
    pub flush: Time,
    /// How often monitors are told that time passes.
    pub tick: Time,
}

impl Default for MonitoringConfig {
    fn default() -> Self {
        Self {
            batch: 256,
            flush: Time(Duration::from_secs(1)),
            tick: Time(Duration::from_secs(10)),
        }
    }
}

impl PipelineConfig {
    /// The index of the stable arm: the one called `stable`, else the first.
    #[must_use]
    pub fn stable_arm(&self) -> usize {
        self.arms
            .iter()
            .position(|arm| arm.name == "stable")
            .unwrap_or(0)
    }

    /// Whether this pipeline serves a model name.
    #[must_use]
    pub fn serves(&self, model: &str) -> bool {
        self.serves
            .iter()
            .any(|pattern| pattern_matches(pattern, model))
    }
}

/// Whether a `serves` pattern covers a model name.
#[must_use]
pub fn pattern_matches(pattern: &str, model: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => model.starts_with(prefix),
        None => pattern == model,
    }
}

/// The JSON Schema of `millgate.toml`, for editors and for [`check`].
#[must_use]
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Config).into()
}
