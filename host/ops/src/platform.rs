//! The platform: everything below the server, started from a config. This is what the server and
//! the command line hold.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use millgate_sandbox::{Action, Recommendation, Sandbox, SandboxOptions};
use millgate_store::{AuditLog, Blobs, Digest, SledOptions, SledStore, Store};
use parking_lot::Mutex;
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    config::{self, Config, Inputs},
    core::Core,
    error::{ApiError, Error, Result},
    executor, explain,
    generations::{GenerationRecord, Generations, How},
    id::{TraceId, now_ms},
    loader::{Loader, Parts},
    metrics::Metrics,
    monitor::{AlertBook, AlertState},
    operate::{Candidate, ConfigReader, Loaded},
    pipeline::{Generation, Pipeline},
    plan::{self, Side},
    plugins::PluginSource,
    replay::{InputStore, Player, ReplayReport},
    request::ApiRequest,
    response::Response,
    rollout::RolloutStatus,
    services::HostServices,
    shelf::Shelf,
    traces::Traces,
};

/// How often old traces are removed.
const RETENTION_INTERVAL: Duration = Duration::from_secs(60);

/// How often canaries are looked after beside their requests.
const CANARY_INTERVAL: Duration = Duration::from_secs(2);

/// Finds the files of models that are named by `pull`.
pub trait ModelFiles: Send + Sync + 'static {
    /// The GGUF file of a catalogue model.
    ///
    /// # Errors
    /// One sentence: it is not there, and the command that fetches it.
    fn path(&self, pull: &str) -> Result<PathBuf, String>;
}

impl<F: Fn(&str) -> Result<PathBuf, String> + Send + Sync + 'static> ModelFiles for F {
    fn path(&self, pull: &str) -> Result<PathBuf, String> {
        self(pull)
    }
}

/// What a platform needs beside its config.
#[derive(Clone)]
pub struct Environment {
    /// The data folder: store, blobs, audit key, compiled plugins.
    pub data: PathBuf,
    /// Where plugins come from; relative paths of models and plugins are resolved against its folder.
    pub plugins: PluginSource,
    /// Where models come from.
    pub models: Arc<dyn ModelFiles>,
}

/// A running platform. A clone is the same.
#[derive(Clone)]
pub struct Platform {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) core: Arc<Core>,
    pub(crate) audit: Arc<AuditLog>,
    pub(crate) sandbox: Sandbox,
    pub(crate) services: Arc<HostServices>,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) player: Player,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) generations: Generations,
    pub(crate) environment: Environment,
    /// Who reads configs while it runs.
    pub(crate) reader: OnceLock<Arc<dyn ConfigReader>>,
    /// What the present generation is made of. The lock is held for the whole of a reload.
    pub(crate) parts: Mutex<Parts>,
    pub(crate) runtime: tokio::runtime::Handle,
    background: ArcSwap<Vec<AbortOnDropHandle<()>>>,
}

impl Platform {
    /// Opens the store, loads models and stages, starts the background work. Blocking (loads and
    /// compiles); must be called where a tokio runtime is entered.
    ///
    /// # Errors
    /// What could not be opened, loaded or started, and what to do.
    pub fn start(config: Config, environment: Environment) -> Result<Platform> {
        let data = &environment.data;
        std::fs::create_dir_all(data).map_err(|source| Error::Io {
            path: data.clone(),
            source,
        })?;
        let store: Arc<dyn Store> =
            Arc::new(SledStore::open(data.join("store"), SledOptions::default())?);
        let sandbox = Sandbox::new(SandboxOptions::new(data.join("compiled")));
        let sandbox = sandbox.map_err(|error| Error::Sandbox(error.to_string()))?;
        Self::start_with(config, environment, store, sandbox)
    }

    /// Like [`start`](Self::start), on a store and a sandbox that are there already.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(
        config: Config,
        environment: Environment,
        store: Arc<dyn Store>,
        sandbox: Sandbox,
    ) -> Result<Platform> {
        let candidate = Candidate::of(config, environment.plugins.clone())?;
        Self::start_from(candidate, environment, store, sandbox)
    }

    /// Like [`start_with`](Self::start_with), for a config that was read from a file. Where it is
    /// what was served last, the generation goes on; otherwise it is a new one.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_from(
        candidate: Candidate,
        environment: Environment,
        store: Arc<dyn Store>,
        sandbox: Sandbox,
    ) -> Result<Platform> {
        let environment = Environment {
            plugins: candidate.plugins,
            ..environment
        };
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| {
            Error::Refused("the platform must be started inside a tokio runtime".to_owned())
        })?;
        let data = &environment.data;
        let blobs = Arc::new(Blobs::open(data.join("blobs"))?);
        let audit = Arc::new(AuditLog::open(store.clone(), data.join("audit.key"))?);
        let metrics = Metrics::new();
        let traces = Traces::open(store.clone(), blobs.clone())?;
        let inputs = InputStore::serve(store.clone(), blobs, data.clone(), &metrics)?;
        let alerts = AlertBook::open(store.clone(), metrics.clone())?;
        let services = Arc::new(HostServices::new(store.clone(), metrics.clone(), alerts));

        let shelf = Shelf::new();
        let loader = Loader {
            environment: &environment,
            sandbox: &sandbox,
            services: &services,
            store: &store,
            metrics: &metrics,
            shelf: &shelf,
            inputs: &inputs,
        };
        let generations = Generations::open(store.clone(), data)?;
        let loaded = loader.load(candidate.config, &Parts::default())?;
        let (generation, mut parts) = begin(loaded, &candidate.text, &generations)?;
        loader.takes_effect(&generation.config, &parts);
        parts.reviews = reviews(&generation, &audit, &runtime);
        audit.append(
            "millgate",
            "platform.start",
            "config",
            described(&generation),
        )?;
        let player = Player::new(sandbox.clone(), inputs.clone(), environment.plugins.clone());
        let core = Core::new(generation, traces, inputs, metrics, audit.clone());
        let background = vec![
            AbortOnDropHandle::new(runtime.spawn(retention(core.clone()))),
            AbortOnDropHandle::new(runtime.spawn(sweep(shelf.clone()))),
            AbortOnDropHandle::new(runtime.spawn(canaries(core.clone()))),
        ];
        if let Some(served) = candidate.served {
            served();
        }
        Ok(Platform {
            inner: Arc::new(Inner {
                core,
                audit,
                sandbox,
                services,
                shelf,
                player,
                store,
                generations,
                environment,
                reader: OnceLock::new(),
                parts: Mutex::new(parts),
                runtime,
                background: ArcSwap::from_pointee(background),
            }),
        })
    }

    /// Answers a request. Dropping the future, or the stream in the response, cancels it; its
    /// trace is written all the same.
    ///
    /// # Errors
    /// What the client gets, with the trace's id where there is one.
    pub async fn handle(&self, request: ApiRequest) -> Result<Response, ApiError> {
        executor::handle(&self.inner.core, request).await
    }

    /// Explains an answer of a local model: `body` is a chat or a completion request with `answer`, `targets`, `unit`
    /// and `top` beside its own fields. No stage sees it, and it leaves no trace.
    ///
    /// # Errors
    /// What the operator gets, in OpenAI's shape.
    pub async fn explain(&self, body: Bytes) -> Result<serde_json::Value, ApiError> {
        explain::prompt(&self.inner.core, body).await
    }

    /// Explains the answer of a past request whose texts were kept. `body` holds `targets`, `unit` and `top`, or
    /// nothing.
    ///
    /// # Errors
    /// As [`Platform::explain`]; and 404 where there is no such trace, 400 where it has no texts.
    pub async fn explain_trace(
        &self,
        id: TraceId,
        body: Bytes,
    ) -> Result<serde_json::Value, ApiError> {
        explain::trace(&self.inner.core, id, body).await
    }

    /// Runs the stages of a past request again, whose inputs were kept, and holds what they answer
    /// against what they answered then.
    ///
    /// # Errors
    /// What the operator gets: the store cannot be read.
    pub async fn replay(&self, id: TraceId) -> Result<ReplayReport, ApiError> {
        let (inner, runtime) = (self.inner.clone(), self.inner.runtime.clone());
        // It reads from disk and may compile.
        let work = move || runtime.block_on(inner.player.replay(id));
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(report)) => Ok(report),
            Ok(Err(error)) => Err(ApiError::internal(error.to_string())),
            Err(_) => Err(ApiError::internal("the replay was cut off")),
        }
    }

    /// What is kept of requests for replays.
    #[must_use]
    pub fn inputs(&self) -> &Arc<InputStore> {
        &self.inner.core.inputs
    }

    /// Erases what is kept of the requests of a tenant, or of one of its end users. Blocking:
    /// durable and audited when it returns. Says how many keys there were.
    ///
    /// # Errors
    /// The store failed.
    pub fn erase_inputs(&self, tenant: &str, user: Option<&str>, actor: &str) -> Result<u64> {
        let keys = self.inner.core.inputs.erase(tenant, user)?;
        // Whose they were is personal itself where it is an end user.
        let body = json!({ "keys": keys, "of": if user.is_some() { "an end user" } else { "the tenant" } });
        let subject = format!("tenant:{tenant}");
        self.inner
            .audit
            .append(actor, "inputs.erased", &subject, body)?;
        Ok(keys)
    }

    /// Names and bytes of the models with `load = "on-use"` that are loaded now.
    #[must_use]
    pub fn loaded_by_use(&self) -> Vec<(String, u64)> {
        self.inner.shelf.loaded()
    }

    /// The traces.
    #[must_use]
    pub fn traces(&self) -> &Traces {
        &self.inner.core.traces
    }

    /// The audit log.
    #[must_use]
    pub fn audit(&self) -> &AuditLog {
        &self.inner.audit
    }

    /// The numbers; the server adds its own and renders them.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.inner.core.metrics
    }

    /// The sandbox.
    #[must_use]
    pub fn sandbox(&self) -> &Sandbox {
        &self.inner.sandbox
    }

    /// The config that is being served, and its generation.
    #[must_use]
    pub fn config(&self) -> (Arc<Config>, u64) {
        let generation = self.inner.core.generation.load();
        (generation.config.clone(), generation.number)
    }

    /// Whose request this is, by the key that it bears (`Authorization: Bearer KEY`).
    ///
    /// # Errors
    /// 401, where the config names tenants and the key is none of theirs.
    pub fn tenant_of(&self, key: Option<&str>) -> Result<Arc<str>, ApiError> {
        self.inner.core.generation.load().tenants.of_key(key)
    }

    /// Whether this key opens what only the operator may see: traces, alerts, rollouts.
    ///
    /// # Errors
    /// 401, where it does not.
    pub fn check_operator(&self, key: Option<&str>) -> Result<(), ApiError> {
        let generation = self.inner.core.generation.load();
        generation.tenants.check_operator(key)
    }

    /// The model names that clients may ask for (patterns with `*` left out), for `/v1/models`.
    #[must_use]
    pub fn models(&self) -> Vec<String> {
        let generation = self.inner.core.generation.load();
        let patterns = generation
            .pipelines
            .iter()
            .flat_map(|pipeline| &pipeline.config.serves);
        let mut names: Vec<String> = patterns
            .filter(|pattern| !pattern.ends_with('*'))
            .cloned()
            .collect();
        names.sort();
        names
    }

    /// The present state of all alert rules.
    #[must_use]
    pub fn alerts(&self) -> Vec<AlertState> {
        self.inner.services.alerts.all()
    }

    /// The rollouts of all pipelines that have a deployment stage.
    #[must_use]
    pub fn rollouts(&self) -> Vec<RolloutStatus> {
        let generation = self.inner.core.generation.load();
        let deployed = generation
            .pipelines
            .iter()
            .filter(|pipeline| pipeline.deployment.is_some());
        deployed.map(|pipeline| pipeline.rollout.status()).collect()
    }

    /// Moves a rollout by hand; `Action::Hold` resumes a paused one. Blocking: audited when it
    /// returns.
    ///
    /// # Errors
    /// There is no such rollout, or the store failed.
    pub fn steer(&self, pipeline: &str, action: Action, actor: &str) -> Result<RolloutStatus> {
        let generation = self.inner.core.generation.load_full();
        let found = generation
            .pipelines
            .iter()
            .find(|it| *it.name == *pipeline && it.deployment.is_some());
        let found = found.ok_or_else(|| {
            Error::Refused(format!(
                "there is no pipeline `{pipeline}` with a deployment stage"
            ))
        })?;
        let recommendation = Recommendation {
            action,
            reason: format!("by {actor}"),
            evidence: Vec::new(),
        };
        found
            .rollout
            .apply(&recommendation, actor, &self.inner.audit)
    }

    /// Stops the background work, saves the actors' states and flushes the store. Requests in
    /// flight must be finished before. Blocking.
    ///
    /// # Errors
    /// The store could not be flushed.
    pub fn shutdown(&self) -> Result<()> {
        self.inner.background.store(Arc::default());
        let mut parts = self.inner.parts.lock();
        parts.reviews.clear();
        parts.stop_actors();
        self.inner
            .audit
            .append("millgate", "platform.stop", "config", json!({}))?;
        self.inner.core.inputs.close();
        Ok(self.inner.store.flush()?)
    }
}

/// Keeps what is known of the canaries, and pauses those that no request comes to.
async fn canaries(core: Arc<Core>) {
    let mut clock = tokio::time::interval(CANARY_INTERVAL);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let generation = core.generation.load_full();
        let pipelines = generation.pipelines.iter();
        let stages = pipelines.flat_map(|it| it.input.iter().chain(&it.output));
        let canaries: Vec<_> = stages.filter_map(|stage| stage.canary.clone()).collect();
        if canaries.is_empty() {
            continue;
        }
        let audit = core.audit.clone();
        let tick = move || canaries.iter().for_each(|canary| canary.tick(&audit));
        let _ = tokio::task::spawn_blocking(tick).await;
    }
}

/// Unloads what was idle for long.
async fn sweep(shelf: Arc<Shelf>) {
    let mut clock = tokio::time::interval(Duration::from_secs(1));
    loop {
        clock.tick().await;
        let shelf = shelf.clone();
        // Freeing a model's memory takes a while.
        let _ = tokio::task::spawn_blocking(move || shelf.sweep()).await;
    }
}

/// The generation of a start: the last one, if it is the same; else a new one, which is said,
/// because the file then takes back what was applied or rolled back without it.
fn begin(loaded: Loaded, text: &str, generations: &Generations) -> Result<(Generation, Parts)> {
    let (mut generation, parts) = (loaded.generation, loaded.parts);
    let last = generations.last()?;
    if let Some(last) = &last
        && last.digest == generation.digest
    {
        generation.number = last.number;
        return Ok((generation, parts));
    }
    let pins = parts.pins(&generation.config);
    let mut changes = Vec::new();
    if let Some(last) = &last {
        let old = generations.text(last)?;
        if let Ok(old) = config::check(&old, "last".as_ref()) {
            let (old, new) = (
                Side {
                    config: &old,
                    pins: &last.stages,
                },
                Side {
                    config: &generation.config,
                    pins: &pins,
                },
            );
            changes = plan::changes(old, new)
                .iter()
                .map(ToString::to_string)
                .collect();
        }
    }
    let record = GenerationRecord {
        number: 0,
        at_ms: now_ms(),
        by: "millgate".to_owned(),
        how: How::Start,
        of: None,
        digest: generation.digest,
        text: Digest::of(text.as_bytes()),
        stages: pins,
        changes,
    };
    let plugins = loaded.plugins.iter().map(|bytes| &**bytes);
    generation.number = generations.keep(record, text, plugins)?;
    if let Some(last) = last {
        tracing::warn!(
            generation = generation.number,
            "the config file is not what was served last (generation {}, {} by {}): the file is served; `millgate rollback {}` goes back",
            last.number,
            last.how.name(),
            last.by,
            last.number
        );
    }
    Ok((generation, parts))
}

/// A generation in the audit log: what is served, by digest.
pub(crate) fn described(generation: &Generation) -> serde_json::Value {
    let stages = |pipeline: &Pipeline| {
        let mut digests = serde_json::Map::new();
        for stage in pipeline
            .input
            .iter()
            .chain(&pipeline.output)
            .chain(pipeline.deployment.iter().map(|it| &it.stage))
        {
            digests.insert(stage.name.to_string(), json!(&*stage.digest));
        }
        digests
    };
    let pipelines = generation
        .pipelines
        .iter()
        .map(|pipeline| (pipeline.name.to_string(), json!(stages(pipeline))));
    json!({
        "generation": generation.number,
        "pipelines": pipelines.collect::<serde_json::Map<_, _>>(),
        "config": serde_json::to_value(&*generation.config).unwrap_or_default(),
    })
}

/// One task for each rollout that a deployment stage reviews.
pub(crate) fn reviews(
    generation: &Generation,
    audit: &Arc<AuditLog>,
    runtime: &tokio::runtime::Handle,
) -> Vec<Arc<AbortOnDropHandle<()>>> {
    let deployed = generation
        .pipelines
        .iter()
        .filter(|pipeline| pipeline.deployment.is_some());
    deployed
        .map(|pipeline| {
            Arc::new(AbortOnDropHandle::new(
                runtime.spawn(review(pipeline.clone(), audit.clone())),
            ))
        })
        .collect()
}

/// Lets a deployment stage look at its rollout, again and again.
async fn review(pipeline: Arc<Pipeline>, audit: Arc<AuditLog>) {
    let mut clock = tokio::time::interval(
        pipeline
            .config
            .rollout
            .review_interval
            .0
            .max(Duration::from_millis(10)),
    );
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    clock.tick().await; // the first tick is now: nothing is known yet
    loop {
        clock.tick().await;
        let (Some(deployment), Some(rollout)) =
            (&pipeline.deployment, pipeline.rollout.under_review())
        else {
            continue;
        };
        let recommendation = match deployment.actor.review(&rollout).await {
            Ok(recommendation) => recommendation,
            Err(failure) => {
                tracing::warn!(pipeline = %pipeline.name, %failure, "the rollout could not be reviewed: it stays as it is");
                continue;
            }
        };
        let (pipeline, audit, stage) = (
            pipeline.clone(),
            audit.clone(),
            deployment.stage.name.clone(),
        );
        let applied = tokio::task::spawn_blocking(move || {
            pipeline
                .rollout
                .apply(&recommendation, &format!("stage/{stage}"), &audit)
        });
        if let Ok(Err(error)) = applied.await {
            tracing::error!(%error, "the rollout could not be moved");
        }
    }
}

/// Removes traces that are too old or too many, for ever.
async fn retention(core: Arc<Core>) {
    let mut clock = tokio::time::interval(RETENTION_INTERVAL);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let core = core.clone();
        let swept = tokio::task::spawn_blocking(move || {
            let config = core.generation.load().config.clone();
            let removed = core.traces.enforce(&config.traces, now_ms())?;
            if config.traces.inputs == Inputs::On {
                for stage in core.generation.load().sandboxed_stages() {
                    core.inputs.stamp(stage.identity(), now_ms())?;
                }
            }
            let oldest = core.traces.oldest()?;
            let inputs = core.inputs.enforce(&config.traces, now_ms(), oldest)?;
            Ok::<_, Error>((removed, inputs))
        });
        match swept.await {
            Ok(Ok((0, 0))) | Err(_) => {}
            Ok(Ok((removed, inputs))) => {
                tracing::info!(removed, inputs, "old traces and inputs were removed");
            }
            Ok(Err(error)) => tracing::error!(%error, "old traces could not be removed"),
        }
    }
}
