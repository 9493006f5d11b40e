//! From a config to a generation: models opened, stages loaded, actors started. What did not change
//! since the last generation is taken over as it stands: no model is read twice, no monitor forgets.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use millgate_infer::EngineOptions;
use millgate_sandbox::{
    DeploymentActor, FailurePolicy, Grant, InferenceGrant, Isolation, Limits, MonitorActor,
    MonitorOptions, Sandbox, Services, Stage, StageSpec, StateGrant,
};
use millgate_store::{Digest, Store};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    canary::Canary,
    config::{
        Config, Inputs, IsolationConfig, Load, ModelConfig, MonitoringConfig, OnFailure,
        PipelineConfig, StageConfig, StageMode,
    },
    error::{Error, Result},
    generations::{self, StagePin},
    id::now_ms,
    local::LocalModel,
    metrics::Metrics,
    model::Backend,
    operate::Loaded,
    pipeline::{Deployment, Evaluation, Generation, Pipeline, PipelineMetrics, ReadyArm},
    platform::Environment,
    replay::InputStore,
    rollout::Rollout,
    services::HostServices,
    shelf::Shelf,
    stage::LoadedStage,
    tenants::Tenants,
    upstream::Upstream,
};

/// What a generation was made of, for the next one to take over.
#[derive(Clone, Default)]
pub(crate) struct Parts {
    models: BTreeMap<String, (String, Backend)>,
    stages: BTreeMap<String, (String, Arc<LoadedStage>)>,
    /// By the stage's name, with the fingerprint of the stage and of what drives it.
    monitors: BTreeMap<String, (String, MonitorActor)>,
    /// By the pipeline's name.
    deployments: BTreeMap<String, (String, DeploymentActor)>,
    rollouts: BTreeMap<String, (String, Arc<Rollout>)>,
    /// Memory of the models that stay.
    budget: u64,
    /// The review of each pipeline's rollout; ends with the last generation that holds it.
    pub reviews: Vec<Arc<AbortOnDropHandle<()>>>,
}

/// What loading needs.
pub(crate) struct Loader<'a> {
    pub environment: &'a Environment,
    pub sandbox: &'a Sandbox,
    pub services: &'a Arc<HostServices>,
    pub store: &'a Arc<dyn Store>,
    pub metrics: &'a Metrics,
    pub shelf: &'a Arc<Shelf>,
    pub inputs: &'a InputStore,
}

impl Loader<'_> {
    /// Makes a generation. Blocking. Nothing that runs is touched: on an error the old generation
    /// goes on as before.
    ///
    /// The generation has no number yet, and nobody else is told of it before
    /// [`takes_effect`](Self::takes_effect).
    pub(crate) fn load(&self, config: Config, old: &Parts) -> Result<Loaded> {
        let tenants = Tenants::of(&config)?;
        let mut parts = Parts {
            budget: self.budget(&config)?,
            ..Parts::default()
        };
        let mut plugins = Vec::with_capacity(config.stages.len());
        for (name, model) in &config.models {
            let fingerprint = format!("{model:?}");
            let backend = match old
                .models
                .get(name)
                .filter(|(known, _)| *known == fingerprint)
            {
                Some((_, backend)) => backend.clone(),
                None => self.model(name, model)?,
            };
            parts.models.insert(name.clone(), (fingerprint, backend));
        }
        for (name, stage) in &config.stages {
            let bytes = self
                .environment
                .plugins
                .of_stage(stage)
                .map_err(|why| Error::Stage {
                    stage: name.clone(),
                    why,
                })?;
            let fingerprint = format!("{} {stage:?}", Digest::of(&bytes));
            let loaded = match old
                .stages
                .get(name)
                .filter(|(known, _)| *known == fingerprint)
            {
                Some((_, loaded)) => loaded.clone(),
                None => {
                    let services: Arc<dyn Services> = self.services.clone();
                    let made = self.sandbox.load(&bytes, spec(name, stage), services);
                    let made = made.map_err(|error| Error::Stage {
                        stage: name.clone(),
                        why: error.to_string(),
                    })?;
                    let canary = match (stage.mode, &stage.canary) {
                        (StageMode::Canary, Some(config)) => {
                            let store = self.store.clone();
                            let digest = made.digest();
                            Some(Canary::open(
                                name,
                                digest,
                                stage,
                                config,
                                store,
                                self.metrics,
                            )?)
                        }
                        _ => None,
                    };
                    LoadedStage::new(made, self.metrics, stage.mode, canary)
                }
            };
            if let (Inputs::On, Some(stage)) = (config.traces.inputs, loaded.sandboxed()) {
                self.inputs.keep_recipe(&bytes, stage, now_ms())?;
            }
            parts.stages.insert(name.clone(), (fingerprint, loaded));
            plugins.push(bytes);
        }
        let mut pipelines = Vec::with_capacity(config.pipelines.len());
        for (name, pipeline) in &config.pipelines {
            pipelines.push(Arc::new(self.pipeline(
                name,
                pipeline,
                &config.monitoring,
                old,
                &mut parts,
            )?));
        }
        let pins = parts.pins(&config);
        Ok(Loaded {
            generation: Generation {
                number: 0,
                digest: generations::digest(&config, &pins),
                config: Arc::new(config),
                pipelines,
                tenants,
            },
            parts,
            plugins,
        })
    }

    /// Tells those who serve all generations at once of the new one. Nothing of it fails.
    pub(crate) fn takes_effect(&self, config: &Config, parts: &Parts) {
        self.shelf.set_budget(
            config.server.model_memory.map(|bytes| bytes.0),
            parts.budget,
        );
        self.services.set_models(
            parts
                .models
                .iter()
                .map(|(name, (_, backend))| (name.clone(), backend.clone()))
                .collect(),
        );
    }

    /// Looks for what a load would fail on beside the stages, without loading.
    pub(crate) fn examine(&self, config: &Config) -> Result<()> {
        Tenants::of(config)?;
        self.budget(config)?;
        for (name, model) in &config.models {
            if model.upstream.is_none() {
                self.model_bytes(model).map_err(|why| Error::Model {
                    model: name.clone(),
                    why,
                })?;
            }
        }
        Ok(())
    }

    fn model(&self, name: &str, config: &ModelConfig) -> Result<Backend> {
        let failed = |why: String| Error::Model {
            model: name.to_owned(),
            why,
        };
        if let Some(upstream) = &config.upstream {
            return Ok(Backend::Upstream(Arc::new(
                Upstream::new(name, upstream).map_err(failed)?,
            )));
        }
        let path = self.model_path(config).map_err(failed)?;
        let mut config = config.clone();
        for folder in config.adapters.values_mut() {
            *folder = self.environment.plugins.resolve(folder);
        }
        let config = &config;
        if config.load == Load::OnUse {
            let bytes = self.model_bytes(config).map_err(failed)?;
            let model = self.shelf.add(name, path, config.clone(), bytes);
            return Ok(Backend::OnUse(model));
        }
        let model = LocalModel::start(&path, config).map_err(|error| failed(error.to_string()))?;
        Ok(Backend::Local(Arc::new(model)))
    }

    /// Where a local model's file lies.
    fn model_path(&self, config: &ModelConfig) -> std::result::Result<PathBuf, String> {
        match (&config.path, &config.pull) {
            (Some(path), _) => Ok(self.environment.plugins.resolve(path)),
            (None, Some(pull)) => self.environment.models.path(pull),
            (None, None) => Err("it has neither `pull`, `path` nor `upstream`".to_owned()),
        }
    }

    /// The memory that a local model takes: its weights and its key-value cache.
    fn model_bytes(&self, config: &ModelConfig) -> std::result::Result<u64, String> {
        let path = self.model_path(config)?;
        let read = |path: &Path| -> std::io::Result<u64> {
            if !path.is_dir() {
                return Ok(path.metadata()?.len());
            }
            let mut bytes = 0;
            for entry in path.read_dir()? {
                bytes += entry?.metadata()?.len();
            }
            Ok(bytes)
        };
        let file = read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let cache = config
            .kv_cache
            .map_or(EngineOptions::default().kv_bytes as u64, |bytes| bytes.0);
        Ok(file + cache)
    }

    /// The memory of the models that stay. An error where they, or one that is loaded by use beside them, do not fit.
    fn budget(&self, config: &Config) -> Result<u64> {
        let Some(limit) = config.server.model_memory else {
            return Ok(0);
        };
        let (mut fixed, mut largest) = (0, (0, ""));
        for (name, model) in &config.models {
            if model.upstream.is_some() {
                continue;
            }
            let bytes = self.model_bytes(model).map_err(|why| Error::Model {
                model: name.clone(),
                why,
            })?;
            match model.load {
                Load::Start => fixed += bytes,
                Load::OnUse => largest = largest.max((bytes, name)),
            }
        }
        if fixed + largest.0 > limit.0 {
            return Err(Error::Refused(format!(
                "server.model-memory is {} bytes, but models that are loaded at the start take {fixed} (files and key-value caches){}; raise it, or lower models.NAME.kv-cache",
                limit.0,
                match largest.1 {
                    "" => String::new(),
                    name => format!(" and `{name}` {} beside them", largest.0),
                }
            )));
        }
        Ok(fixed)
    }

    fn pipeline(
        &self,
        name: &str,
        config: &PipelineConfig,
        monitoring: &MonitoringConfig,
        old: &Parts,
        parts: &mut Parts,
    ) -> Result<Pipeline> {
        let missing = |stage: &str| Error::Stage {
            stage: stage.to_owned(),
            why: "it is not defined".to_owned(),
        };
        let stage = |parts: &Parts, stage: &str| {
            let found = parts
                .stages
                .get(stage)
                .map(|(fingerprint, stage)| (fingerprint.clone(), stage.clone()));
            found.ok_or_else(|| missing(stage))
        };
        let all = |parts: &Parts, names: &[String]| -> Result<Vec<Arc<LoadedStage>>> {
            names.iter().map(|name| Ok(stage(parts, name)?.1)).collect()
        };
        let shared: Arc<str> = name.into();

        let mut monitors = Vec::with_capacity(config.monitors.len());
        for name in &config.monitors {
            let (fingerprint, loaded) = stage(parts, name)?;
            let fingerprint = format!("{fingerprint} {monitoring:?}");
            let actor = match parts.monitors.get(name).or_else(|| {
                old.monitors
                    .get(name)
                    .filter(|(known, _)| *known == fingerprint)
            }) {
                Some((_, actor)) => actor.clone(),
                None => self.monitor(&loaded, monitoring)?,
            };
            parts
                .monitors
                .insert(name.clone(), (fingerprint, actor.clone()));
            monitors.push(actor);
        }
        let deployment = match &config.deployment {
            None => None,
            Some(deployment) => {
                let (fingerprint, loaded) = stage(parts, deployment)?;
                let actor = match old
                    .deployments
                    .get(name)
                    .filter(|(known, _)| *known == fingerprint)
                {
                    Some((_, actor)) => actor.clone(),
                    None => {
                        let made = loaded
                            .sandboxed()
                            .ok_or_else(|| missing(deployment))?
                            .deployment();
                        made.map_err(|error| Error::Stage {
                            stage: deployment.clone(),
                            why: error.to_string(),
                        })?
                    }
                };
                parts
                    .deployments
                    .insert(name.to_owned(), (fingerprint, actor.clone()));
                Some(Deployment {
                    stage: loaded,
                    actor,
                })
            }
        };
        let evaluation = match &config.evaluation {
            None => None,
            Some(evaluation) => Some(Evaluation {
                stage: stage(parts, &evaluation.stage)?.1,
                share: evaluation.share,
            }),
        };
        let arms = config.arms.iter().map(|arm| {
            let backend = parts
                .models
                .get(&arm.model)
                .map(|(_, backend)| backend.clone());
            let backend = backend.ok_or_else(|| Error::Model {
                model: arm.model.clone(),
                why: "it is not defined".to_owned(),
            })?;
            Ok(ReadyArm {
                name: arm.name.as_str().into(),
                model: arm.full_model().into(),
                adapter: arm.adapter.as_deref().map(Arc::from),
                backend,
            })
        });
        let arms = arms.collect::<Result<Vec<_>>>()?;
        let fingerprint = format!("{:?}", config.arms);
        let rollout = match old
            .rollouts
            .get(name)
            .filter(|(known, _)| *known == fingerprint)
        {
            Some((_, rollout)) => rollout.clone(),
            None => Arc::new(Rollout::open(&shared, config, self.store.clone())?),
        };
        parts
            .rollouts
            .insert(name.to_owned(), (fingerprint, rollout.clone()));
        Ok(Pipeline {
            input: all(parts, &config.input)?,
            output: all(parts, &config.output)?,
            deployment,
            monitors,
            evaluation,
            arms,
            rollout,
            metrics: PipelineMetrics::new(self.metrics, name),
            name: shared,
            config: config.clone(),
        })
    }

    fn monitor(&self, stage: &LoadedStage, config: &MonitoringConfig) -> Result<MonitorActor> {
        let failed = |why: String| Error::Stage {
            stage: stage.name.to_string(),
            why,
        };
        let sandboxed = stage
            .sandboxed()
            .ok_or_else(|| failed("it is not in the sandbox".to_owned()))?;
        let options = MonitorOptions {
            tick: config.tick.0,
            batch: config.batch as usize,
            linger: config.flush.0,
            ..MonitorOptions::default()
        };
        sandboxed
            .monitor(options)
            .map_err(|error| failed(error.to_string()))
    }
}

impl Parts {
    /// A stage by its name.
    pub(crate) fn stage(&self, name: &str) -> Option<&Arc<LoadedStage>> {
        self.stages.get(name).map(|(_, stage)| stage)
    }

    /// The canaries among the stages, by name.
    pub(crate) fn canaries(&self) -> impl Iterator<Item = (&String, &Arc<Canary>)> {
        let stages = self.stages.iter();
        stages.filter_map(|(name, (_, stage))| Some((name, stage.canary.as_ref()?)))
    }

    /// The plugins behind a config's stages.
    pub(crate) fn pins(&self, config: &Config) -> BTreeMap<String, StagePin> {
        let stages = config.stages.iter().filter_map(|(name, stage)| {
            let loaded = self.stage(name)?.sandboxed()?;
            Some((name.clone(), pin(stage, loaded)))
        });
        stages.collect()
    }

    /// Saves the actors' states and stops them. Blocking.
    pub(crate) fn stop_actors(&self) {
        let timeout = Duration::from_secs(5);
        for (_, actor) in self.monitors.values() {
            actor.shutdown(timeout);
        }
        for (_, actor) in self.deployments.values() {
            actor.shutdown(timeout);
        }
        for (_, canary) in self.canaries() {
            canary.save();
        }
        for (_, rollout) in self.rollouts.values() {
            if let Err(error) = rollout.save() {
                tracing::error!(%error, "a rollout's record could not be kept");
            }
        }
    }
}

/// A stage's plugin, by digest.
pub(crate) fn pin(config: &StageConfig, stage: &Stage) -> StagePin {
    let manifest = stage.manifest();
    StagePin {
        source: config.source(),
        plugin: manifest.name.clone(),
        version: manifest.version.clone(),
        digest: stage.digest().to_owned(),
        requests: manifest
            .requests
            .iter()
            .map(|it| it.name().to_owned())
            .collect(),
    }
}

/// What the sandbox is told about a stage.
pub(crate) fn spec(name: &str, stage: &StageConfig) -> StageSpec {
    let grant = Grant {
        state: stage.grant.state.as_ref().map(|state| StateGrant {
            bytes: state.bytes.0,
        }),
        inference: stage
            .grant
            .inference
            .as_ref()
            .map(|inference| InferenceGrant {
                models: inference.models.iter().cloned().collect(),
                tokens_per_minute: u64::from(inference.tokens_per_minute),
            }),
        secrets: (!stage.grant.secrets.is_empty())
            .then(|| stage.grant.secrets.iter().cloned().collect()),
        http: (!stage.grant.http.is_empty()).then(|| stage.grant.http.iter().cloned().collect()),
    };
    StageSpec {
        grant,
        limits: Limits {
            memory: stage.limits.memory.0,
            deadline: stage.limits.deadline.0,
            ..Limits::default()
        },
        isolation: match stage.isolation {
            IsolationConfig::Fresh => Isolation::Fresh,
            IsolationConfig::Warm => Isolation::Warm,
        },
        on_failure: match stage.on_failure {
            OnFailure::Closed => FailurePolicy::Closed,
            OnFailure::Open => FailurePolicy::Open,
        },
        ..StageSpec::new(name, serde_json::Value::Object(stage.config.clone()))
    }
}
