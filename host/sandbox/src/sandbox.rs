//! The sandbox: one engine, its pool, its cache.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use wasmtime::component::Instance;
use wasmtime::{Engine, Store};

use crate::budget::Budget;
use crate::cache::Cache;
use crate::contract::Interface;
use crate::contract::deployment::{Arm, Choice, Recommendation, Rollout};
use crate::contract::evaluation::{Answer, Evaluation};
use crate::contract::monitoring::{Event, Report};
use crate::contract::types::{Label, StageError};
use crate::contract::validation::{Judgement, Sample};
use crate::error::{Error, Result};
use crate::exports::{Exports, Lookup as _};
use crate::image::{self, Images};
use crate::imports::{self, Context};
use crate::instance::Mode;
use crate::permits::Permits;
use crate::plugin::{self, PluginInfo};
use crate::services::Services;
use crate::spec::StageSpec;
use crate::stage::{Stage, StageInner};
use crate::state::{CallState, Counters, Shared};
use crate::tape::{Recipe, TapedStage};
use crate::{config, engine};

/// How to set up a sandbox.
#[derive(Clone, Debug)]
pub struct SandboxOptions {
    /// Where compiled images are kept; made with mode 0700 if missing. `None` keeps none.
    pub cache_dir: Option<PathBuf>,
    /// How many instances of any plugins may live at once. All sizes of the pool follow from it.
    pub max_instances: u32,
}

impl SandboxOptions {
    /// 256 instances, images kept in `cache_dir`.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        SandboxOptions {
            cache_dir: Some(cache_dir.into()),
            max_instances: 256,
        }
    }
}

/// Loads plugins. A clone is the same sandbox; stages keep what they need of it alive.
#[derive(Clone)]
pub struct Sandbox {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Engine,
    permits: Permits,
    images: Images,
    /// What was read of plugins, by the SHA-256 of their bytes: a config is checked again and again
    /// against the same ones, and reading one takes longer than hashing it.
    known: Mutex<HashMap<[u8; 32], PluginInfo>>,
}

/// The most plugins whose reading is remembered.
const MAX_KNOWN: usize = 64;

impl Sandbox {
    /// Makes the engine and its pool, and starts the clock that enforces deadlines.
    pub fn new(options: SandboxOptions) -> Result<Sandbox> {
        let cache = options.cache_dir.as_deref().map(Cache::open).transpose()?;
        let made = engine::make(options.max_instances)?;
        let permits = Permits::new(made.instances);
        Ok(Sandbox {
            inner: Arc::new(Inner {
                images: Images::new(made.engine.clone(), permits.clone(), cache),
                permits,
                engine: made.engine,
                known: Mutex::default(),
            }),
        })
    }

    /// Reads a plugin and checks its manifest, imports and exports. Nothing of it runs.
    pub fn inspect(&self, bytes: &[u8]) -> Result<PluginInfo> {
        let digest = Sha256::digest(bytes).into();
        if let Some(known) = self.inner.known.lock().get(&digest) {
            return Ok(known.clone());
        }
        let info = plugin::inspect(bytes)?;
        let mut known = self.inner.known.lock();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(digest, info.clone());
        Ok(info)
    }

    /// Checks a config against a plugin's schema, and gives it back with its defaults.
    pub fn check_config(
        &self,
        info: &PluginInfo,
        stage: &str,
        config: &serde_json::Value,
    ) -> Result<serde_json::Value> {
        config::complete(&info.manifest.config, config).map_err(|problems| Error::Config {
            stage: stage.into(),
            problems,
        })
    }

    /// Loads a plugin as a stage: checks it, its config and its grant, configures it once, and
    /// compiles the image. Blocking: up to seconds on a first load, milliseconds from the cache.
    pub fn load(
        &self,
        bytes: &[u8],
        mut spec: StageSpec,
        services: Arc<dyn Services>,
    ) -> Result<Stage> {
        let inner = &self.inner;
        let info = self.inspect(bytes)?;
        let plugin = info.manifest.name.clone();
        plugin::check_grant(&info.manifest, &spec.name, &spec.grant)?;
        spec.config = self.check_config(&info, &spec.name, &spec.config)?;
        let tokens = spec
            .grant
            .inference
            .as_ref()
            .map_or(0, |grant| grant.tokens_per_minute);
        let shared = Arc::new(Shared {
            budget: Budget::new(tokens),
            spec,
            services,
            counters: Counters::default(),
            metric_names: Mutex::default(),
        });
        let image = inner.images.get(bytes, &info, &shared)?;
        image::check_size(&plugin, &image.component, &shared)?;
        let names = image::export_names(&image.component, &inner.engine);
        let exports = Exports::find(&image.component, &names, &info.interfaces).map_err(|why| {
            Error::Interfaces {
                plugin: plugin.clone(),
                why,
            }
        })?;
        let pre = imports::linker(&inner.engine, &image.component, &info.manifest.requests)
            .and_then(|linker| linker.instantiate_pre(&image.component))
            .map_err(|error| image::mismatch(&plugin, &error))?;
        let is_async = image::is_async(&info.manifest);
        let mode = Mode {
            is_async,
            configuring: true,
        };
        inner
            .images
            .try_out(&pre, &shared, mode, &plugin, |store, instance| {
                check_types(store, instance, &exports)
            })?;
        let recipe = Recipe {
            plugin: info.digest.clone(),
            spec: shared.spec.clone(),
        };
        let taped = TapedStage {
            name: shared.spec.name.clone(),
            identity: Recipe::identity_of(&recipe.to_json()),
            plugin: info.digest.clone(),
        };
        Ok(Stage {
            inner: Arc::new(StageInner {
                taped,
                engine: inner.engine.clone(),
                permits: inner.permits.clone(),
                shared,
                manifest: info.manifest,
                digest: info.digest,
                image,
                exports,
                pre,
                is_async,
                warm: Mutex::default(),
            }),
        })
    }
}

/// Checks the types of all functions that will be called, so that no call can fail by its type.
fn check_types(
    store: &mut Store<CallState>,
    instance: Instance,
    exports: &Exports,
) -> wasmtime::Result<()> {
    type Lent = wasmtime::component::Resource<Context>;
    type Fallible<T> = (std::result::Result<T, StageError>,);
    macro_rules! check {
        ($index:expr, $params:ty, $results:ty) => {
            instance.get_typed_func::<$params, $results>(&mut *store, $index)?
        };
    }
    check!(&exports.configure, (&str,), Fallible<()>);
    if let Some(e) = &exports.compliance {
        e.new.function(&instance, store)?;
        e.push.function(&instance, store)?;
        e.finish.function(&instance, store)?;
    }
    if let Some(e) = &exports.validate {
        check!(e, (Lent, &[Sample]), Fallible<Vec<Judgement>>);
    }
    if let Some(e) = &exports.evaluate {
        check!(e, (Lent, &[Answer]), Fallible<Evaluation>);
    }
    if let Some(e) = &exports.monitoring {
        check!(&e.observe, (&[Event],), Fallible<Report>);
        check!(&e.tick, (u64,), Fallible<Report>);
        check!(&e.merge, (&[u8],), Fallible<()>);
    }
    if let Some(e) = &exports.deployment {
        check!(&e.route, (Lent, &[Label], &[Arm]), Fallible<Choice>);
        check!(&e.review, (&Rollout,), Fallible<Recommendation>);
    }
    let keeps = [
        exports.monitoring.as_ref().map(|e| e.keep),
        exports.deployment.as_ref().map(|e| e.keep),
    ];
    for keep in keeps.into_iter().flatten() {
        check!(&keep.save, (), Fallible<Vec<u8>>);
        check!(&keep.restore, (&[u8],), Fallible<()>);
    }
    Ok(())
}

impl PluginInfo {
    /// Whether the plugin has an interface.
    #[must_use]
    pub fn has(&self, interface: Interface) -> bool {
        self.interfaces.contains(&interface)
    }
}
