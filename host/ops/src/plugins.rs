//! Where plugins come from: those built into the binary, by name; files, by path; and those from
//! registries, by reference. The caller brings the table of first-party plugins and the bytes that
//! it pulled and verified; this crate knows of no registry.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use millgate_sandbox::Sandbox;

use crate::config::{PluginCatalog, PluginFacts, StageConfig};

/// Plugins from registries by what the config calls them: their bytes, or one sentence why they
/// cannot be used.
pub type PulledPlugins = BTreeMap<String, Result<Bytes, String>>;

/// Plugins of an earlier generation, by what its config calls them: their bytes.
pub type KeptPlugins = BTreeMap<String, Bytes>;

/// A table of plugins by name, and a folder against which paths are resolved. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct PluginSource {
    named: Arc<BTreeMap<String, &'static [u8]>>,
    folder: PathBuf,
    /// None where nobody has looked for them.
    pulled: Option<Arc<PulledPlugins>>,
    /// Those that come before all others.
    kept: Arc<KeptPlugins>,
}

impl PluginSource {
    /// Plugins by name; paths are resolved against `folder`, the config file's own.
    #[must_use]
    pub fn new<'n>(
        named: impl IntoIterator<Item = (&'n str, &'static [u8])>,
        folder: impl Into<PathBuf>,
    ) -> Self {
        let named = named
            .into_iter()
            .map(|(name, bytes)| (name.to_owned(), bytes))
            .collect();
        Self {
            named: Arc::new(named),
            folder: folder.into(),
            pulled: None,
            kept: Arc::default(),
        }
    }

    /// The same with these plugins in place of whatever is called so elsewhere.
    #[must_use]
    pub fn with_kept(self, kept: KeptPlugins) -> Self {
        Self {
            kept: Arc::new(kept),
            ..self
        }
    }

    /// The same with these plugins from registries.
    #[must_use]
    pub fn with_pulled(self, pulled: PulledPlugins) -> Self {
        Self {
            pulled: Some(Arc::new(pulled)),
            ..self
        }
    }

    /// The bytes of a plugin from a registry, by what the config calls it.
    ///
    /// # Errors
    /// One sentence: it was not pulled, or why it cannot be used.
    pub fn pulled(&self, reference: &str) -> Result<Bytes, String> {
        if let Some(kept) = self.kept.get(reference) {
            return Ok(kept.clone());
        }
        let pulled = self.pulled.as_ref();
        match pulled.and_then(|pulled| pulled.get(reference)) {
            Some(found) => found.clone(),
            None => Err(format!(
                "the plugin {reference} is not on this machine: run `millgate plugin lock`"
            )),
        }
    }

    /// The names of the first-party plugins.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.named.keys().map(String::as_str)
    }

    /// A path of the config as a path of the file system.
    #[must_use]
    pub fn resolve(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }

    /// The bytes of a first-party plugin.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&'static [u8]> {
        self.named.get(name).copied()
    }

    /// The bytes of a file.
    ///
    /// # Errors
    /// One sentence with the path and what is wrong.
    pub fn file(&self, path: &Path) -> Result<Vec<u8>, String> {
        let path = self.resolve(path);
        std::fs::read(&path)
            .map_err(|error| format!("the plugin {} cannot be read: {error}", path.display()))
    }

    /// The bytes of a stage's plugin.
    ///
    /// # Errors
    /// One sentence: there is no such plugin, or the file cannot be read.
    pub fn of_stage(&self, stage: &StageConfig) -> Result<Bytes, String> {
        if let Some(kept) = self.kept.get(&stage.source()) {
            return Ok(kept.clone());
        }
        if let Some(reference) = stage.reference() {
            return self.pulled(reference);
        }
        match (&stage.plugin, &stage.path) {
            (Some(name), _) => match self.named(name) {
                Some(bytes) => Ok(Bytes::from_static(bytes)),
                None => Err(format!(
                    "there is no first-party plugin `{name}`; for a file write path = \"…\""
                )),
            },
            (None, Some(path)) => self.file(path).map(Bytes::from),
            (None, None) => {
                Err("it names no plugin: write plugin = \"…\" or path = \"…\"".to_owned())
            }
        }
    }

    /// The catalogue for [`check_with_plugins`](crate::config::check_with_plugins): manifests are
    /// read by the sandbox, nothing is run.
    #[must_use]
    pub fn catalog<'a>(&'a self, sandbox: &'a Sandbox) -> impl PluginCatalog + 'a {
        Catalog {
            source: self,
            sandbox,
        }
    }
}

struct Catalog<'a> {
    source: &'a PluginSource,
    sandbox: &'a Sandbox,
}

impl Catalog<'_> {
    fn facts(&self, bytes: &[u8]) -> Result<PluginFacts, String> {
        let info = self
            .sandbox
            .inspect(bytes)
            .map_err(|error| error.to_string())?;
        let words = |value: serde_json::Result<serde_json::Value>| match value {
            Ok(serde_json::Value::Array(items)) => items
                .iter()
                .filter_map(|item| item.as_str().map(str::to_owned))
                .collect(),
            _ => Vec::new(),
        };
        Ok(PluginFacts {
            interfaces: info.interfaces.iter().map(ToString::to_string).collect(),
            requests: words(serde_json::to_value(&info.manifest.requests)),
            config_schema: info.manifest.config,
            name: info.manifest.name,
        })
    }
}

impl PluginCatalog for Catalog<'_> {
    fn knows_registries(&self) -> bool {
        self.source.pulled.is_some() || !self.source.kept.is_empty()
    }

    fn names(&self) -> Vec<String> {
        self.source.names().map(str::to_owned).collect()
    }

    fn by_name(&self, name: &str) -> Option<Result<PluginFacts, String>> {
        if name.contains('/') {
            let bytes = self.source.pulled(name);
            return Some(bytes.and_then(|bytes| self.facts(&bytes)));
        }
        if let Some(kept) = self.source.kept.get(name) {
            return Some(self.facts(kept));
        }
        self.source.named(name).map(|bytes| self.facts(bytes))
    }

    fn by_path(&self, path: &Path) -> Result<PluginFacts, String> {
        match self.source.kept.get(&*path.to_string_lossy()) {
            Some(kept) => self.facts(kept),
            None => self.facts(&self.source.file(path)?),
        }
    }
}
