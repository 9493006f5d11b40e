//! The sandbox: one engine, its pool, its cache.

use std::path::PathBuf;
use std::sync::Arc;

use crate::contract::Interface;
use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::services::Services;
use crate::spec::StageSpec;
use crate::stage::Stage;

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

/// What can be said about a plugin without configuring it.
#[derive(Clone, Debug)]
pub struct PluginInfo {
    /// Its manifest.
    pub manifest: Manifest,
    /// `sha256:HEX` of its bytes.
    pub digest: String,
    /// The names of its imports.
    pub imports: Vec<String>,
    /// The stage interfaces that it exports.
    pub interfaces: Vec<Interface>,
    /// Its size in bytes.
    pub size: u64,
}

/// Loads plugins. A clone is the same sandbox.
#[derive(Clone)]
pub struct Sandbox {}

impl Sandbox {
    /// Makes the engine and its pool, and starts the clock that enforces deadlines.
    pub fn new(_options: SandboxOptions) -> Result<Sandbox> {
        Err(Error::Load("not yet".into()))
    }

    /// Reads and checks a plugin's manifest, imports and exports.
    pub fn inspect(&self, _bytes: &[u8]) -> Result<PluginInfo> {
        Err(Error::Load("not yet".into()))
    }

    /// Loads a plugin as a stage: checks it, its config and its grant, configures it once, and
    /// compiles the image. Blocking: up to seconds on a first load, milliseconds from the cache.
    pub fn load(
        &self,
        _bytes: &[u8],
        _spec: StageSpec,
        _services: Arc<dyn Services>,
    ) -> Result<Stage> {
        Err(Error::Load("not yet".into()))
    }
}
