//! Plugins from registries, as a config wants them: pulled into the data folder, held against the
//! lock and the signers that the operator trusts.

mod bundles;
mod files;
mod resolve;
mod update;

pub use bundles::{Bundled, carry, relocate, with_trust};
pub use files::lock_path;
pub use resolve::{Reach, Resolved, resolve};
pub use update::{Move, Plan, Wish};

use std::fs::Permissions;
use std::future::Future;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use millgate_ops::Config;
use millgate_ops::config::TrustConfig;
use millgate_registry::{
    Cache, Credentials, Keys, LockedPlugin, Plugin, Reference, Registry, RegistryConfig, Requests,
    Trust, version,
};
use millgate_sandbox::{Manifest, PluginInfo, Sandbox};

/// The cache of a data folder, the registries within reach and whom the config trusts.
#[derive(Clone, Debug)]
pub struct Depot {
    /// What was pulled.
    pub cache: Cache,
    /// Whose signatures count.
    pub trust: Trust,
    settings: RegistryConfig,
}

/// A plugin from a registry or the cache, read as far as its manifest.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// Its bytes and signatures.
    pub plugin: Plugin,
    /// What it says about itself.
    pub info: PluginInfo,
}

/// The cache of a data folder.
pub fn cache(data: &Path) -> Cache {
    Cache::open(data.join("registry"))
}

/// The keys of a data folder.
pub fn keys(data: &Path) -> Keys {
    Keys::open(data.join("keys"))
}

/// The sections as the registry crate reads them: keys that are files are read.
pub fn trust_sections(
    sections: &[TrustConfig],
    folder: &Path,
) -> Result<Vec<millgate_registry::TrustConfig>> {
    let read = |section: &TrustConfig| {
        let key = if section.key.contains("-----BEGIN") {
            section.key.clone()
        } else {
            let path = folder.join(&section.key);
            std::fs::read_to_string(&path).with_context(|| {
                format!(
                    "[[trust]] {:?}: `key` is neither a PEM text (-----BEGIN PUBLIC KEY-----) nor a file that can be read: {}",
                    section.name,
                    path.display()
                )
            })?
        };
        Ok(millgate_registry::TrustConfig {
            name: section.name.clone(),
            key,
            plugins: section.plugins.clone(),
        })
    };
    sections.iter().map(read).collect()
}

impl Depot {
    /// As a config wants it. `folder` is the config's own: files are relative to it.
    pub fn of(config: &Config, folder: &Path, data: &Path) -> Result<Depot> {
        let registry = &config.registry;
        Ok(Depot {
            cache: cache(data),
            trust: Trust::new(&trust_sections(&config.trust, folder)?)?,
            settings: RegistryConfig {
                insecure: registry.insecure.clone(),
                ca: registry.ca.as_ref().map(|path| folder.join(path)),
                timeout: registry.timeout.0.as_secs().max(1),
                max_component: registry.max_component.0,
            },
        })
    }

    /// The cache alone, with these signers; registries are asked with the defaults.
    pub fn trusting(trust: Trust, data: &Path) -> Depot {
        Depot {
            cache: cache(data),
            trust,
            settings: RegistryConfig::default(),
        }
    }

    /// A client of registries, with the logins of the Docker config.
    pub fn registry(&self) -> Result<Registry> {
        Ok(Registry::new(self.settings.clone(), Credentials::Docker)?)
    }

    /// Pulls a plugin. Blocking. Nobody has looked at its signatures yet.
    pub fn pull(&self, reference: &Reference, sandbox: &Sandbox) -> Result<Pulled> {
        let registry = self.registry()?;
        let plugin = wait(registry.pull(reference, &self.cache))??;
        let info = sandbox
            .inspect(&plugin.component)
            .with_context(|| format!("{reference} cannot be used"))?;
        // A registry could serve an old version under a new tag, which no signature prevents.
        if let Some(said) = reference.tag().and_then(version::of_tag)
            && said.to_string() != info.manifest.version
        {
            bail!(
                "{reference} holds {} {}: the tag and the plugin's manifest disagree; do not use it, and tell its vendor",
                info.manifest.name,
                info.manifest.version
            );
        }
        Ok(Pulled { plugin, info })
    }

    /// The plugin that is locked, from the cache: nothing is asked of a registry.
    pub fn locked(&self, locked: &LockedPlugin, sandbox: &Sandbox) -> Result<Pulled> {
        let Some(plugin) = locked.load(&self.cache, &self.trust)? else {
            bail!(
                "millgate.lock has {} without a manifest: run `millgate plugin update`",
                locked.source
            );
        };
        let info = sandbox
            .inspect(&plugin.component)
            .with_context(|| format!("{} cannot be used", locked.source))?;
        let manifest = &info.manifest;
        // The signer was asked for by the name in the lock: it must be the plugin's own.
        if manifest.name != locked.name || manifest.version != locked.version {
            bail!(
                "millgate.lock has {} as {} {}, and it is {} {}: run `millgate plugin update`",
                locked.source,
                locked.name,
                locked.version,
                manifest.name,
                manifest.version
            );
        }
        Ok(Pulled { plugin, info })
    }
}

impl Pulled {
    /// Its line in the lock, once its signature was checked.
    pub fn entry(&self, reference: &Reference, trust: &Trust) -> Result<LockedPlugin> {
        let manifest = &self.info.manifest;
        let signer = self.plugin.verify(&manifest.name, trust)?;
        Ok(LockedPlugin {
            source: reference.without_pin().to_string(),
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            component: self.plugin.component_digest,
            manifest: Some(self.plugin.digest),
            signer: Some(signer.name.clone()),
            requests: requests(manifest),
        })
    }
}

/// What a manifest asks for, as the lock keeps it.
pub fn requests(manifest: &Manifest) -> Requests {
    let asked = manifest.requests.iter();
    asked.fold(Requests::default(), |requests, capability| {
        requests.with(capability.name())
    })
}

/// What a manifest asks for, for people.
pub fn asks(manifest: &Manifest) -> String {
    let names: Vec<&str> = manifest.requests.iter().map(|it| it.name()).collect();
    if names.is_empty() {
        "nothing".to_owned()
    } else {
        names.join(", ")
    }
}

/// Waits for a registry, on a thread of its own: whoever calls may be on a thread of a runtime.
pub fn wait<T: Send>(future: impl Future<Output = T> + Send) -> Result<T> {
    let wait = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start a network thread")?;
        Ok(runtime.block_on(future))
    };
    std::thread::scope(|scope| match scope.spawn(wait).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Writes a file whole or not at all; what is there keeps its permissions.
pub fn replace(path: &Path, text: &str) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let folder = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let mut draft =
        tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).with_context(failed)?;
    draft.write_all(text.as_bytes()).with_context(failed)?;
    let mode = match std::fs::metadata(path) {
        Ok(known) => known.permissions(),
        Err(_) => Permissions::from_mode(0o644),
    };
    draft.as_file().set_permissions(mode).with_context(failed)?;
    draft.as_file().sync_all().with_context(failed)?;
    draft.persist(path).with_context(failed)?;
    Ok(())
}
