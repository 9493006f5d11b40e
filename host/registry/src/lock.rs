//! `millgate.lock`: every plugin, model and prompt of a config by digest, with who signed it and
//! what it asked for when the operator said yes.

use crate::cache::Cache;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::files;
use crate::plugin::Plugin;
use crate::requests::{Change, Requests, diff};
use crate::trust::Trust;
use crate::version;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;

/// The form of lock files that this writes and reads.
const FORM: u32 = 1;
/// The largest lock file, in bytes.
const MAX_FILE: u64 = 16 << 20;
const HEAD: &str = "\
# Written by `millgate plugin update`; keep it beside the config, under version control.\n\
# `millgate serve --locked` uses nothing but what stands here.\n\n";

/// The lock of one config.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lock {
    /// The plugins, by source.
    pub plugins: Vec<LockedPlugin>,
    /// The models, by name.
    pub models: Vec<LockedFile>,
    /// The prompts, by name.
    pub prompts: Vec<LockedFile>,
}

/// A plugin in the lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LockedPlugin {
    /// Where it comes from, as the config writes it: a registry reference, a path, or the name of a
    /// first-party plugin. A reference's pin is not part of it.
    pub source: String,
    /// The name in its own manifest.
    pub name: String,
    /// The version in its own manifest.
    pub version: String,
    /// The digest of the component's bytes.
    pub component: Digest,
    /// The digest of its OCI manifest, if it comes from a registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Digest>,
    /// Who signed it, as the config's `[[trust]]` names them; absent for files and first-party
    /// plugins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
    /// What it asks for.
    #[serde(default)]
    pub requests: Requests,
}

/// A model or a prompt in the lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedFile {
    /// Its name in the config.
    pub name: String,
    /// The digest of its bytes.
    pub digest: Digest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    version: u32,
    #[serde(default, rename = "plugin")]
    plugins: Vec<LockedPlugin>,
    #[serde(default, rename = "model")]
    models: Vec<LockedFile>,
    #[serde(default, rename = "prompt")]
    prompts: Vec<LockedFile>,
}

/// What a config wants to have locked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// The plugins' sources without pins, and what each must be if the config says so: the digest
    /// of the OCI manifest for a reference, and of the component for a file.
    pub plugins: Vec<(String, Option<Digest>)>,
    /// The models' names, and their digests where they are known.
    pub models: Vec<(String, Option<Digest>)>,
    /// The prompts' names, and their digests where they are known.
    pub prompts: Vec<(String, Option<Digest>)>,
}

/// What taking a plugin into the lock changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The version that was locked; `None` for a new plugin.
    pub from: Option<String>,
    /// The version that would be.
    pub to: String,
    /// Whether its bytes change.
    pub changed: bool,
    /// What it asks for beyond what the old one did, and what it no longer does.
    pub requests: Vec<Change>,
    /// Another signer than before: `(before, now)`.
    pub signer: Option<(Option<String>, Option<String>)>,
}

impl LockedPlugin {
    /// The plugin from the cache, as `serve --locked` wants it: the very bytes that are locked,
    /// signed by who is locked, and trusted now. No registry is asked. `None` for files and
    /// first-party plugins, which have no OCI manifest: hold them against `component`.
    ///
    /// The caller holds the name and version in the plugin's own manifest against the lock's.
    pub fn load(&self, cache: &Cache, trust: &Trust) -> Result<Option<Plugin>> {
        let Some(manifest) = self.manifest else {
            return Ok(None);
        };
        let plugin = cache.plugin(&manifest)?;
        let mut differences = Vec::new();
        if plugin.component_digest != self.component {
            differences.push(format!(
                "the plugin {} has the component {}, and locked is {}",
                self.source, plugin.component_digest, self.component
            ));
        }
        // Always, whatever the lock says: taking a line out of it must not take the check away.
        let signer = plugin.verify(&self.name, trust)?;
        if self.signer.as_ref() != Some(&signer.name) {
            differences.push(format!(
                "the plugin {} is signed by {}, and locked is {}",
                self.source,
                signer.name,
                self.signer.as_deref().unwrap_or("no signer")
            ));
        }
        if differences.is_empty() {
            Ok(Some(plugin))
        } else {
            Err(Error::Disagrees { differences })
        }
    }
}

impl Update {
    /// The lines that an operator is shown, without the plugin's name; empty if nothing changes.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        match &self.from {
            None => lines.push(format!("{} is new", self.to)),
            Some(from) if *from != self.to => lines.push(format!("{from} -> {}", self.to)),
            Some(_) if self.changed => lines.push(format!("{} with other bytes", self.to)),
            Some(_) => {}
        }
        lines.extend(
            self.requests
                .iter()
                .map(|change| format!("{} {change}", self.to)),
        );
        if let Some((was, is)) = &self.signer {
            let name = |who: &Option<String>| who.clone().unwrap_or_else(|| "nobody".into());
            lines.push(format!(
                "{} is signed by {} (before: {})",
                self.to,
                name(is),
                name(was)
            ));
        }
        lines
    }

    /// Whether the operator must be asked: the plugin is new, asks for more, or is signed by
    /// somebody else.
    #[must_use]
    pub fn needs_consent(&self) -> bool {
        self.from.is_none() || self.signer.is_some() || self.requests.iter().any(Change::is_more)
    }
}

impl Lock {
    /// Reads a lock file. [`Error::NoLock`] where there is none.
    pub fn read(path: &Path) -> Result<Lock> {
        let bytes = files::read(path, MAX_FILE)?.ok_or_else(|| Error::NoLock {
            path: path.to_path_buf(),
        })?;
        let text = String::from_utf8(bytes).map_err(|_| Error::Lock {
            path: path.to_path_buf(),
            why: "it is not UTF-8".into(),
        })?;
        Lock::parse(&text).map_err(|why| Error::Lock {
            path: path.to_path_buf(),
            why,
        })
    }

    /// For `Lock::read(…).or_else(Lock::or_new)`: an empty lock where there is no file yet.
    pub fn or_new(error: Error) -> Result<Lock> {
        match error {
            Error::NoLock { .. } => Ok(Lock::default()),
            other => Err(other),
        }
    }

    /// Reads the text of a lock file; what is wrong with it otherwise.
    pub fn parse(text: &str) -> std::result::Result<Lock, String> {
        let damaged = |error: toml::de::Error| {
            format!(
                "it is no lock file: {}\nremove it and run `millgate plugin update`, or take the committed one",
                error.to_string().trim_end()
            )
        };
        // The form first: of a later one, other keys may well be unknown here.
        let table: toml::Table = text.parse().map_err(damaged)?;
        if let Some(form) = table.get("version").and_then(toml::Value::as_integer)
            && form != i64::from(FORM)
        {
            return Err(format!(
                "it has the form {form}, and this millgate reads {FORM}: use the millgate that wrote it, or run `millgate plugin update`"
            ));
        }
        let form: Form = toml::from_str(text).map_err(damaged)?;
        let lock = Lock {
            plugins: form.plugins,
            models: form.models,
            prompts: form.prompts,
        };
        let twice = duplicate(lock.plugins.iter().map(|plugin| plugin.source.as_str()))
            .or_else(|| duplicate(lock.models.iter().map(|model| model.name.as_str())))
            .or_else(|| duplicate(lock.prompts.iter().map(|prompt| prompt.name.as_str())));
        if let Some(twice) = twice {
            return Err(format!(
                "it has {twice:?} twice (a merge?): keep one, or run `millgate plugin update`"
            ));
        }
        for plugin in &lock.plugins {
            version::parse(&plugin.version).map_err(|error| error.to_string())?;
        }
        Ok(lock)
    }

    /// The text of the lock file: the same lock is the same text.
    pub fn text(&self) -> Result<String> {
        let mut form = Form {
            version: FORM,
            plugins: self.plugins.clone(),
            models: self.models.clone(),
            prompts: self.prompts.clone(),
        };
        form.plugins.sort_by(|a, b| a.source.cmp(&b.source));
        form.models.sort_by(|a, b| a.name.cmp(&b.name));
        form.prompts.sort_by(|a, b| a.name.cmp(&b.name));
        let text = toml::to_string(&form).map_err(|error| Error::Lock {
            path: "millgate.lock".into(),
            why: format!("it cannot be written: {error}"),
        })?;
        Ok(format!("{HEAD}{text}"))
    }

    /// Writes the lock file: whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        files::write(path, self.text()?.as_bytes())
    }

    /// The plugin from `source`.
    #[must_use]
    pub fn plugin(&self, source: &str) -> Option<&LockedPlugin> {
        self.plugins.iter().find(|plugin| plugin.source == source)
    }

    /// What taking `new` into the lock would change. Nothing is changed yet.
    ///
    /// # Errors
    /// [`Error::Renamed`] where another plugin is at the same place; [`Error::Backwards`] and
    /// [`Error::Republished`] unless `allow_downgrade`.
    pub fn compare(&self, new: &LockedPlugin, allow_downgrade: bool) -> Result<Update> {
        // The same plugin at another tag is an update, too: `acme/pii:1.2.0` becomes `:1.3.0`.
        let old = self.plugin(&new.source).or_else(|| {
            let place = place_of(&new.source);
            self.plugins
                .iter()
                .find(|old| old.name == new.name && place_of(&old.source) == place)
        });
        let to = version::parse(&new.version)?;
        let Some(old) = old else {
            return Ok(Update {
                from: None,
                to: new.version.clone(),
                changed: true,
                requests: diff(&Requests::default(), &new.requests),
                signer: None,
            });
        };
        if old.name != new.name {
            return Err(Error::Renamed {
                source_text: new.source.clone(),
                was: old.name.clone(),
                is: new.name.clone(),
            });
        }
        let from = version::parse(&old.version)?;
        let changed = old.component != new.component;
        if !allow_downgrade {
            if to < from {
                return Err(Error::Backwards {
                    plugin: new.name.clone(),
                    from: old.version.clone(),
                    to: new.version.clone(),
                });
            }
            // Files are rebuilt under one version all day; what is published must not be.
            if to == from && changed && new.manifest.is_some() {
                return Err(Error::Republished {
                    plugin: new.name.clone(),
                    version: new.version.clone(),
                    was: old.component,
                    is: new.component,
                });
            }
        }
        Ok(Update {
            from: Some(old.version.clone()),
            to: new.version.clone(),
            changed,
            requests: diff(&old.requests, &new.requests),
            signer: (old.signer != new.signer).then(|| (old.signer.clone(), new.signer.clone())),
        })
    }

    /// Takes `new` in, in place of what was locked for its source.
    pub fn set(&mut self, new: LockedPlugin) {
        self.plugins.retain(|plugin| plugin.source != new.source);
        self.plugins.push(new);
    }

    /// Drops what the config no longer wants.
    pub fn retain(&mut self, wishes: &Wishes) {
        let wanted = |list: &[(String, Option<Digest>)], name: &str| {
            list.iter().any(|(wish, _)| wish == name)
        };
        self.plugins
            .retain(|plugin| wanted(&wishes.plugins, &plugin.source));
        self.models
            .retain(|model| wanted(&wishes.models, &model.name));
        self.prompts
            .retain(|prompt| wanted(&wishes.prompts, &prompt.name));
    }

    /// Whether the lock is that of this config: all differences, or none.
    pub fn check(&self, wishes: &Wishes) -> Result<()> {
        let mut differences = Vec::new();
        let plugins = self.plugins.iter().map(|plugin| {
            let mut digests = vec![plugin.component];
            digests.extend(plugin.manifest);
            (plugin.source.as_str(), digests)
        });
        hold(
            "plugin",
            &wishes.plugins,
            plugins.collect(),
            &mut differences,
        );
        for (kind, wishes, locked) in [
            ("model", &wishes.models, &self.models),
            ("prompt", &wishes.prompts, &self.prompts),
        ] {
            let locked = locked
                .iter()
                .map(|file| (file.name.as_str(), vec![file.digest]))
                .collect();
            hold(kind, wishes, locked, &mut differences);
        }
        if differences.is_empty() {
            Ok(())
        } else {
            Err(Error::Disagrees { differences })
        }
    }
}

fn hold(
    kind: &str,
    wishes: &[(String, Option<Digest>)],
    locked: Vec<(&str, Vec<Digest>)>,
    differences: &mut Vec<String>,
) {
    for (name, digest) in wishes {
        match locked.iter().find(|(found, _)| found == name) {
            None => differences.push(format!(
                "the config wants the {kind} {name}, which is not locked"
            )),
            Some((_, digests)) => {
                if let Some(want) = digest
                    && !digests.contains(want)
                {
                    let have = digests.last().map(Digest::to_string).unwrap_or_default();
                    differences.push(format!("the {kind} {name} is {want}, and locked is {have}"));
                }
            }
        }
    }
    for (name, _) in &locked {
        if !wishes.iter().any(|(wish, _)| wish == name) {
            differences.push(format!(
                "the {kind} {name} is locked, and the config does not want it"
            ));
        }
    }
}

/// A reference without its tag; anything else as it is.
fn place_of(source: &str) -> String {
    match source.parse::<crate::Reference>() {
        Ok(reference) => format!("{}/{}", reference.registry(), reference.repository()),
        Err(_) => source.to_owned(),
    }
}

fn duplicate<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut seen = BTreeSet::new();
    names.into_iter().find(|name| !seen.insert(*name))
}

#[cfg(test)]
#[path = "lock_tests.rs"]
mod tests;
