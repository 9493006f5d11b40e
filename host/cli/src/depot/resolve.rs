//! The plugins that a config has from registries, as bytes: from the cache where the lock has them,
//! else pulled, verified and locked.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use bytes::Bytes;
use millgate_ops::{Config, Environment, PulledPlugins};
use millgate_registry::{Error, Lock, LockedPlugin, Reference, Update};
use millgate_sandbox::Sandbox;

use super::Depot;
use super::files::{lock_path, wanted_files};

/// How far a command may go for a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// What is not locked is pulled and locked.
    Network,
    /// What is locked and on this machine.
    Machine,
    /// The same, and the config and the lock agree in everything, models too.
    Locked,
}

/// What became of a config's references.
#[derive(Debug, Default)]
pub struct Resolved {
    /// By the text in the config.
    pub plugins: PulledPlugins,
    /// New lines for the lock, to be written when the whole config has been found good.
    new: Vec<LockedPlugin>,
}

/// Finds the plugins that `config` has from registries. Blocking. What cannot be had is an entry
/// with its reason, so that the check of the config says it with its line.
///
/// # Errors
/// The lock or a `[[trust]]` section cannot be used; with [`Reach::Locked`] also where the lock
/// and the config disagree.
pub fn resolve(
    config: &Config,
    path: &Path,
    environment: &Environment,
    sandbox: &Sandbox,
    reach: Reach,
) -> Result<Resolved> {
    let mut resolved = Resolved::default();
    let references: Vec<&str> = config
        .stages
        .values()
        .filter_map(|stage| stage.reference())
        .collect();
    let folder = path.parent().unwrap_or(Path::new(""));
    // Also without references: a bad key is said at once, not when the first plugin comes.
    let depot = Depot::of(config, folder, &environment.data)?;
    if reach != Reach::Locked && references.is_empty() {
        return Ok(resolved);
    }
    let lock = Lock::read(&lock_path(path));
    let lock = if reach == Reach::Locked {
        let lock = lock?;
        lock.check(&wanted_files(config, environment, sandbox)?.wishes())?;
        lock
    } else {
        lock.or_else(Lock::or_new)?
    };
    let finder = Finder {
        depot: &depot,
        lock: &lock,
        sandbox,
        reach,
    };
    for text in references {
        if !resolved.plugins.contains_key(text) {
            let found = finder.find(text, &mut resolved.new);
            let found = found.map_err(|error| format!("{error:#}"));
            resolved.plugins.insert(text.to_owned(), found);
        }
    }
    Ok(resolved)
}

impl Resolved {
    /// Writes what is new into the lock, and takes out what the config no longer names. Says
    /// which plugins are new.
    pub fn keep(&self, config: &Config, path: &Path) -> Result<Vec<String>> {
        if self.new.is_empty() {
            return Ok(Vec::new());
        }
        let path = lock_path(path);
        let mut lock = Lock::read(&path).or_else(Lock::or_new)?;
        let wanted: Vec<String> = config
            .stages
            .values()
            .filter_map(|stage| stage.reference()?.parse::<Reference>().ok())
            .map(|reference| reference.without_pin().to_string())
            .collect();
        lock.plugins
            .retain(|old| old.manifest.is_none() || wanted.contains(&old.source));
        let mut lines = Vec::new();
        for new in &self.new {
            lines.push(format!(
                "{} {} ({}), signed by {}, was pulled and written to {}",
                new.name,
                new.version,
                new.source,
                new.signer.as_deref().unwrap_or("nobody"),
                path.display()
            ));
            lock.set(new.clone());
        }
        lock.write(&path)?;
        Ok(lines)
    }
}

struct Finder<'a> {
    depot: &'a Depot,
    lock: &'a Lock,
    sandbox: &'a Sandbox,
    reach: Reach,
}

impl Finder<'_> {
    fn find(&self, text: &str, new: &mut Vec<LockedPlugin>) -> Result<Bytes> {
        let reference: Reference = text.parse()?;
        let source = reference.without_pin().to_string();
        let Some(locked) = self.lock.plugin(&source) else {
            if self.reach != Reach::Network {
                bail!("{source} is not locked: run `millgate plugin lock`");
            }
            return self.first(&reference, new);
        };
        if let (Some(pin), Some(manifest)) = (reference.digest(), locked.manifest)
            && pin != manifest
        {
            bail!(
                "{source} is pinned to {pin}, and locked is {manifest}: run `millgate plugin lock` to take the pin"
            );
        }
        match self.depot.locked(locked, self.sandbox) {
            Err(error) if self.reach == Reach::Network && is_absent(&error) => {}
            other => return Ok(other?.plugin.component),
        }
        let manifest = locked
            .manifest
            .ok_or_else(|| anyhow!("{source} is locked without a manifest"))?;
        self.depot.pull(&reference.pinned(manifest), self.sandbox)?;
        Ok(self.depot.locked(locked, self.sandbox)?.plugin.component)
    }

    /// A reference that the lock does not have.
    fn first(&self, reference: &Reference, new: &mut Vec<LockedPlugin>) -> Result<Bytes> {
        let pulled = self.depot.pull(reference, self.sandbox)?;
        let entry = pulled.entry(reference, &self.depot.trust)?;
        let update = self.lock.compare(&entry, false)?;
        if let Some(lines) = unasked(&update) {
            bail!(
                "{} {lines}: run `millgate plugin lock` to look at it and to accept it",
                entry.name
            );
        }
        new.push(entry);
        Ok(pulled.plugin.component)
    }
}

/// What only the operator can say yes to. A plugin that was never locked is one that the operator
/// has just written into the config, beside its grants and the signer's key.
fn unasked(update: &Update) -> Option<String> {
    (update.from.is_some() && update.needs_consent()).then(|| update.lines().join(", "))
}

/// Whether the bytes are only not here.
fn is_absent(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<Error>(),
        Some(Error::Absent { .. } | Error::Damaged { .. })
    )
}
