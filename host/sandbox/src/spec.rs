//! What an operator says about a stage: its config, its grant, its limits, how it is isolated
//! and what happens when it fails.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One stage: a plugin's config, grant and limits under a name.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StageSpec {
    /// The stage's name: `[stages.NAME]`.
    pub name: String,
    /// The plugin's config; `null` is the same as `{}`.
    pub config: serde_json::Value,
    /// What the operator lets it do.
    pub grant: Grant,
    /// What it may use up.
    pub limits: Limits,
    /// A new instance for each call, or a reused one.
    pub isolation: Isolation,
    /// What a failed call means for the request.
    pub on_failure: FailurePolicy,
}

impl StageSpec {
    /// A stage with the default limits, no grant, fresh isolation, failing closed.
    pub fn new(name: impl Into<String>, config: serde_json::Value) -> Self {
        StageSpec {
            name: name.into(),
            config,
            grant: Grant::default(),
            limits: Limits::default(),
            isolation: Isolation::default(),
            on_failure: FailurePolicy::default(),
        }
    }
}

/// Whether a call gets an instance of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// Each request (or batch) gets a new instance of the configured image, and nothing is left
    /// of the last one.
    #[default]
    Fresh,
    /// Instances are reused until they fail. For guests that are slow to start, such as
    /// interpreters; what one call leaves in memory the next one can see.
    Warm,
}

/// What a failed call means for the request. The sandbox reports it; the caller applies it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailurePolicy {
    /// The request is blocked.
    #[default]
    Closed,
    /// The request passes, and the failure is counted.
    Open,
}

/// What the operator gives a stage. Empty by default: nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Grant {
    /// A key-value space of the stage's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<StateGrant>,
    /// The host's own models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference: Option<InferenceGrant>,
    /// Secrets by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<BTreeSet<String>>,
    /// Origins such as `https://api.vendor.example`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<BTreeSet<String>>,
}

/// `state = { bytes = 65536 }`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct StateGrant {
    /// The size of the whole space in bytes, keys and values.
    pub bytes: u64,
}

/// `inference = { models = ["default"], tokens-per-minute = 20000 }`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct InferenceGrant {
    /// Names of models in the config.
    pub models: BTreeSet<String>,
    /// Prompt and completion tokens a minute, together.
    pub tokens_per_minute: u64,
}

/// What a stage may use up. Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Limits {
    /// Linear memory, summed over the plugin's memories.
    pub memory: u64,
    /// How long the guest may compute in one call (one push, one batch).
    pub deadline: Duration,
    /// How long one call of an asynchronous stage may take with its waits for host functions.
    pub call_timeout: Duration,
    /// How long `configure` may compute.
    pub configure_deadline: Duration,
    /// How long a call waits for a free instance.
    pub wait: Duration,
    /// Bytes that one call, or one host call, may copy out of the guest.
    pub output_bytes: u64,
    /// Findings in one answer.
    pub findings: u32,
    /// Edits in one verdict.
    pub edits: u32,
    /// Bytes of all replacements (or repairs) in one answer.
    pub replacement_bytes: u64,
    /// Log lines in one call; more are counted and dropped.
    pub log_lines: u32,
    /// Bytes of log in one call; more are counted and dropped.
    pub log_bytes: u32,
    /// Names of counters and gauges that the stage may use over its life.
    pub metric_names: u32,
    /// Bytes of an actor's saved state.
    pub saved_state: u64,
    /// Handles that the guest may hold at once.
    pub handles: u32,
    /// Reused instances that a warm stage keeps.
    pub warm_instances: u32,
    /// Calls after which a warm instance is thrown away.
    pub warm_calls: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            memory: 16 << 20,
            deadline: Duration::from_millis(200),
            call_timeout: Duration::from_secs(30),
            configure_deadline: Duration::from_secs(10),
            wait: Duration::from_millis(500),
            output_bytes: 1 << 20,
            findings: 1000,
            edits: 4096,
            replacement_bytes: 256 << 10,
            log_lines: 16,
            log_bytes: 4 << 10,
            metric_names: 64,
            saved_state: 4 << 20,
            handles: 64,
            warm_instances: 4,
            warm_calls: 10_000,
        }
    }
}
