//! A configured plugin as an image: `configure` runs once, the memory that it leaves behind is
//! written into a new component, and that is compiled ahead of time.

use std::collections::HashMap;
use std::hash::{Hash as _, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use wasmtime::component::{Component, Instance, InstancePre, Lift, WasmList};
use wasmtime::{Engine, Store};
use wasmtime_wizer::{ComponentInstanceState, Wizer};

use crate::cache::Cache;
use crate::call::CallContext;
use crate::engine::{MAX_MEMORIES, MAX_MEMORY, MAX_TABLE_ELEMENTS, MAX_TABLES};
use crate::error::{Error, Result};
use crate::exports::Exports;
use crate::failure::Failure;
use crate::imports;
use crate::instance::{Live, Mode};
use crate::manifest::Manifest;
use crate::permits::{Permits, Waiting};
use crate::plugin::PluginInfo;
use crate::spec::Isolation;
use crate::state::{CallState, Shared};

/// Room that a guest with an allocator of its own is given; see [`config_text`].
const ROOM: usize = 256 << 10;

/// Runs a compilation on threads that end with it. What a compiler frees stays with the thread that used it: on
/// threads that live on, the first plugin would cost 100 MiB for as long as the process runs.
fn on_own_threads<T: Send>(compile: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let threads = rayon::ThreadPoolBuilder::new()
        .thread_name(|index| format!("compile-{index}"))
        .build();
    match threads {
        Ok(threads) => threads.install(compile),
        Err(error) => {
            tracing::debug!(%error, "no threads to compile on");
            compile()
        }
    }
}

/// How long a load waits for a place in the pool.
const PATIENCE: Duration = Duration::from_secs(10);

/// A compiled component, and whether its memory is that of the configured plugin. (A plugin that
/// cannot be snapshot is configured in each instance instead; only warm stages may be such.)
pub(crate) struct Image {
    pub(crate) component: Component,
    pub(crate) configured: bool,
}

/// Makes images, and shares them between stages of the same plugin and config.
pub(crate) struct Images {
    engine: Engine,
    permits: Permits,
    cache: Option<Cache>,
    loaded: Mutex<HashMap<String, Weak<Image>>>,
}

impl Images {
    pub(crate) fn new(engine: Engine, permits: Permits, cache: Option<Cache>) -> Images {
        Images {
            engine,
            permits,
            cache,
            loaded: Mutex::new(HashMap::new()),
        }
    }

    /// The image of a plugin under a stage's config: the one that another stage has, the one in
    /// the cache, or a new one.
    pub(crate) fn get(
        &self,
        bytes: &[u8],
        info: &PluginInfo,
        shared: &Arc<Shared>,
    ) -> Result<Arc<Image>> {
        let config = shared.spec.config.to_string();
        let key = self.key(&info.digest, &config);
        if let Some(image) = self.loaded.lock().get(&key).and_then(Weak::upgrade) {
            return Ok(image);
        }
        let begun = Instant::now();
        let cached = self
            .cache
            .as_ref()
            .and_then(|cache| cache.load(&self.engine, &key));
        let was_cached = cached.is_some();
        let image = match cached {
            Some(component) => Image {
                component,
                configured: true,
            },
            None => on_own_threads(|| self.build(bytes, info, shared, &config, &key))?,
        };
        tracing::debug!(
            stage = shared.spec.name,
            plugin = info.manifest.name,
            was_cached,
            ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            "image ready"
        );
        let image = Arc::new(image);
        let mut loaded = self.loaded.lock();
        loaded.retain(|_, image| image.strong_count() > 0);
        loaded.insert(key, Arc::downgrade(&image));
        Ok(image)
    }

    /// What an image depends on: the plugin, the config, the engine with all its settings, and
    /// this crate.
    fn key(&self, digest: &str, config: &str) -> String {
        let mut engine = Sha256Hasher(Sha256::new());
        self.engine
            .precompile_compatibility_hash()
            .hash(&mut engine);
        let mut key = Sha256::new();
        for part in [
            "millgate-image-1",
            env!("CARGO_PKG_VERSION"),
            digest,
            config,
        ]
        .map(str::as_bytes)
        {
            key.update((part.len() as u64).to_le_bytes());
            key.update(part);
        }
        key.update(engine.0.finalize());
        hex::encode(key.finalize())
    }

    fn build(
        &self,
        bytes: &[u8],
        info: &PluginInfo,
        shared: &Arc<Shared>,
        config: &str,
        key: &str,
    ) -> Result<Image> {
        let plugin = &info.manifest.name;
        let snapshot = match self.snapshot(bytes, info, shared, config) {
            Ok(snapshot) => snapshot,
            Err(Error::Snapshot { why, .. }) if shared.spec.isolation == Isolation::Warm => {
                tracing::info!(
                    stage = shared.spec.name,
                    plugin,
                    why,
                    "configured in each instance"
                );
                let component = Component::new(&self.engine, bytes).map_err(not_a_component)?;
                return Ok(Image {
                    component,
                    configured: false,
                });
            }
            Err(error) => return Err(error),
        };
        let unsnappable = |error: wasmtime::Error| Error::Snapshot {
            plugin: plugin.clone(),
            why: format!("{error:#}"),
        };
        let component = match &self.cache {
            Some(cache) => {
                let image = self
                    .engine
                    .precompile_component(&snapshot)
                    .map_err(unsnappable)?;
                cache.store(&self.engine, key, &image)?
            }
            None => Component::new(&self.engine, &snapshot).map_err(unsnappable)?,
        };
        Ok(Image {
            component,
            configured: true,
        })
    }

    /// Runs `configure` and gives back the component with the memory that it left.
    fn snapshot(
        &self,
        bytes: &[u8],
        info: &PluginInfo,
        shared: &Arc<Shared>,
        config: &str,
    ) -> Result<Vec<u8>> {
        let plugin = &info.manifest.name;
        let no = |why: String| Error::Snapshot {
            plugin: plugin.clone(),
            why,
        };
        let mut wizer = Wizer::new();
        wizer.keep_init_func(true);
        // Wizer reads what a stranger wrote: should it panic, that is the plugin's misfortune.
        let instrumented = catch_unwind(AssertUnwindSafe(|| wizer.instrument_component(bytes)));
        let (outline, instrumented) = match instrumented {
            Ok(Ok(instrumented)) => instrumented,
            Ok(Err(error)) => return Err(no(format!("{error:#}"))),
            Err(_) => return Err(no("its parts are not as Wizer expects them".into())),
        };
        let engine = crate::engine::for_configuring()?;
        let component = Component::new(&engine, &instrumented).map_err(not_a_component)?;
        check_size(plugin, &component, shared)?;
        let exports =
            Exports::find(&component, &export_names(&component, &engine), &[]).map_err(|why| {
                Error::Interfaces {
                    plugin: plugin.clone(),
                    why,
                }
            })?;
        let linker =
            imports::linker(&engine, &component, &info.manifest.requests).map_err(Error::engine)?;
        let pre = linker
            .instantiate_pre(&component)
            .map_err(|error| mismatch(plugin, &error))?;
        let failed = |failure| Error::configure(&shared.spec.name, plugin, failure);
        let mode = Mode {
            is_async: is_async(&info.manifest),
            configuring: true,
        };
        let mut live = ready(self.instance(&engine, &pre, shared, mode)).map_err(failed)?;
        let config = config_text(config, info);
        ready(live.call::<_, ()>(&exports.configure, (config.as_str(),))).map_err(failed)?;

        let (store, instance) = live.parts();
        store.set_epoch_deadline(u64::MAX / 2);
        // The whole memory is read out; the limiter has bounded it already.
        store.set_hostcall_fuel(usize::MAX);
        let mut state = Access {
            store,
            instance,
            error: None,
        };
        let snapshot = catch_unwind(AssertUnwindSafe(|| {
            wizer
                .snapshot_component(&outline, &mut state)
                .now_or_never()
        }));
        if let Some(error) = state.error {
            return Err(no(error));
        }
        match snapshot {
            Ok(Some(Ok(snapshot))) => Ok(snapshot),
            Ok(Some(Err(error))) => Err(no(format!("{error:#}"))),
            Ok(None) | Err(_) => Err(no("its parts are not as Wizer expects them".into())),
        }
    }

    /// An instance for what is done at load. It takes its place in the pool like any other.
    async fn instance(
        &self,
        engine: &Engine,
        pre: &InstancePre<CallState>,
        shared: &Arc<Shared>,
        mode: Mode,
    ) -> std::result::Result<Live, Failure> {
        let permit = self.permits.acquire(PATIENCE, Waiting::Block).await?;
        let context = CallContext::default();
        Live::new(engine, pre, shared, context, mode, Some(permit)).await
    }

    /// Makes the first instance of an image and throws it away: what would fail in every call
    /// fails here, at load.
    pub(crate) fn try_out(
        &self,
        pre: &InstancePre<CallState>,
        shared: &Arc<Shared>,
        mode: Mode,
        plugin: &str,
        check: impl FnOnce(&mut Store<CallState>, Instance) -> wasmtime::Result<()>,
    ) -> Result<()> {
        let mut live = ready(self.instance(&self.engine, pre, shared, mode))
            .map_err(|failure| Error::configure(&shared.spec.name, plugin, failure))?;
        let (store, instance) = live.parts();
        check(store, instance).map_err(|error| mismatch(plugin, &error))
    }
}

/// Runs a future that does not wait: with no host function that waits, nothing in it does.
fn ready<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    future.now_or_never().unwrap_or_else(|| {
        Err(Failure::Invalid {
            why: "it waits for the host while it is configured".into(),
        })
    })
}

fn not_a_component(error: wasmtime::Error) -> Error {
    Error::NotAComponent(format!("{error:#}"))
}

/// The imports or exports are of other types than the contract's.
pub(crate) fn mismatch(plugin: &str, error: &wasmtime::Error) -> Error {
    Error::Interfaces {
        plugin: plugin.into(),
        why: format!("does not fit the contract: {error:#}"),
    }
}

/// Whether a plugin's calls may wait for the host.
pub(crate) fn is_async(manifest: &Manifest) -> bool {
    manifest
        .requests
        .contains(&crate::manifest::Capability::Inference)
}

/// The names of a component's exports.
pub(crate) fn export_names(component: &Component, engine: &Engine) -> Vec<String> {
    component
        .component_type()
        .exports(engine)
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// The config as `configure` gets it.
///
/// A call whose heap grows makes the kernel change mappings under one lock, which is what makes
/// two cores slower than one. The SDK's allocator works in an arena that is part of the snapshot.
/// A guest that brings its language's allocator (it imports WASI) is given room in
/// another way: blanks after the JSON, which mean nothing, but whose buffer the guest has to
/// allocate, and to free before the snapshot is taken.
fn config_text(config: &str, info: &PluginInfo) -> String {
    let mut text = config.to_owned();
    if info
        .imports
        .iter()
        .any(|import| import.starts_with("wasi:"))
    {
        text.extend(std::iter::repeat_n(' ', ROOM));
    }
    text
}

/// Checks that one instance fits into the pool and into the stage's limits, while the error can
/// still name the plugin.
pub(crate) fn check_size(plugin: &str, component: &Component, shared: &Shared) -> Result<()> {
    let too_large = |what: String| {
        Err(Error::TooLarge {
            plugin: plugin.into(),
            what,
        })
    };
    let limit = shared.spec.limits.memory;
    if limit > MAX_MEMORY {
        return too_large(format!(
            "limits.memory is {limit} bytes, and no instance can have more than {MAX_MEMORY}"
        ));
    }
    let Some(needs) = component.resources_required() else {
        return too_large("it imports core modules".into());
    };
    if needs.num_memories > MAX_MEMORIES {
        return too_large(format!(
            "{} memories, at most {MAX_MEMORIES}",
            needs.num_memories
        ));
    }
    if needs.num_tables > MAX_TABLES {
        return too_large(format!("{} tables, at most {MAX_TABLES}", needs.num_tables));
    }
    let elements = needs.max_initial_table_size.unwrap_or(0);
    if elements > MAX_TABLE_ELEMENTS as u64 {
        return too_large(format!(
            "a table of {elements}, at most {MAX_TABLE_ELEMENTS}"
        ));
    }
    let memory = needs
        .max_initial_memory_size
        .unwrap_or(0)
        .saturating_mul(64 << 10);
    if memory > limit {
        return too_large(format!(
            "it begins with {memory} bytes of memory, and `limits.memory` is {limit}"
        ));
    }
    Ok(())
}

/// How Wizer reads the globals and memories of the configured instance: through the functions
/// that its instrumentation added. The trait knows no errors, so the first one is kept aside.
struct Access<'a> {
    store: &'a mut Store<CallState>,
    instance: Instance,
    error: Option<String>,
}

impl Access<'_> {
    async fn read<R: Lift + Send + Sync + 'static>(
        &mut self,
        interface: &str,
        function: &str,
    ) -> Option<R> {
        let read = async {
            let missing = || wasmtime::format_err!("{interface} has no {function}");
            let index = self
                .instance
                .get_export_index(&mut *self.store, None, interface)
                .and_then(|i| {
                    self.instance
                        .get_export_index(&mut *self.store, Some(&i), function)
                })
                .ok_or_else(missing)?;
            let function = self
                .instance
                .get_typed_func::<(), (R,)>(&mut *self.store, &index)?;
            // On a stack of its own, because a store with asynchronous imports has no other calls.
            let (value,) = function.call_async(&mut *self.store, ()).await?;
            Ok::<R, wasmtime::Error>(value)
        };
        match read.await {
            Ok(value) => Some(value),
            Err(error) => {
                self.error.get_or_insert(format!("{error:#}"));
                None
            }
        }
    }
}

impl ComponentInstanceState for Access<'_> {
    async fn call_func_ret_list_u8(
        &mut self,
        instance: &str,
        func: &str,
        contents: impl FnOnce(&[u8]) + Send,
    ) {
        match self.read::<WasmList<u8>>(instance, func).await {
            Some(list) => contents(list.as_le_slice(&*self.store)),
            None => contents(&[]),
        }
    }

    async fn call_func_ret_s32(&mut self, instance: &str, func: &str) -> i32 {
        self.read(instance, func).await.unwrap_or_default()
    }

    async fn call_func_ret_s64(&mut self, instance: &str, func: &str) -> i64 {
        self.read(instance, func).await.unwrap_or_default()
    }

    async fn call_func_ret_f32(&mut self, instance: &str, func: &str) -> u32 {
        self.read::<f32>(instance, func)
            .await
            .unwrap_or_default()
            .to_bits()
    }

    async fn call_func_ret_f64(&mut self, instance: &str, func: &str) -> u64 {
        self.read::<f64>(instance, func)
            .await
            .unwrap_or_default()
            .to_bits()
    }
}

/// Feeds what is hashed to SHA-256, for a hash that is the same in every process.
struct Sha256Hasher(Sha256);

impl Hasher for Sha256Hasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}
