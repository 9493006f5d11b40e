//! What a config uses besides registries: first-party plugins, plugin files, models. All of it is
//! in the lock by digest.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use millgate_ops::config::ModelConfig;
use millgate_ops::{Config, Environment};
use millgate_registry::{Digest, LockedFile, LockedPlugin, Reference, Wishes};
use millgate_sandbox::Sandbox;

use super::requests;
use crate::models::Library;

/// Where the lock of a config lies: `millgate.lock` beside `millgate.toml`.
#[must_use]
pub fn lock_path(config: &Path) -> PathBuf {
    config.with_extension("lock")
}

/// What the lock of a config holds besides plugins from registries.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// First-party plugins and plugin files, complete.
    pub plugins: Vec<LockedPlugin>,
    /// The files of models and adapters.
    pub models: Vec<WantedFile>,
    /// Plugins from registries: the source in the lock, and the pin if the config has one.
    pub references: Vec<(String, Option<Digest>)>,
}

/// A model's file.
#[derive(Clone, Debug)]
pub struct WantedFile {
    /// Its name in the lock: `MODEL`, `MODEL/file` in a folder, `MODEL+ADAPTER/file`.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its digest.
    pub digest: Digest,
}

impl Wanted {
    /// As the lock is asked for it.
    #[must_use]
    pub fn wishes(&self) -> Wishes {
        let own = self.plugins.iter();
        let own = own.map(|plugin| (plugin.source.clone(), Some(plugin.component)));
        let models = self.models.iter();
        Wishes {
            plugins: own.chain(self.references.iter().cloned()).collect(),
            models: models
                .map(|file| (file.name.clone(), Some(file.digest)))
                .collect(),
            prompts: Vec::new(),
        }
    }

    /// The models as the lock has them.
    #[must_use]
    pub fn locked_models(&self) -> Vec<LockedFile> {
        let models = self.models.iter();
        models
            .map(|file| LockedFile {
                name: file.name.clone(),
                digest: file.digest,
            })
            .collect()
    }
}

/// Reads everything that a config uses and that is no plugin from a registry. Blocking.
pub fn wanted_files(
    config: &Config,
    environment: &Environment,
    sandbox: &Sandbox,
) -> Result<Wanted> {
    let mut wanted = Wanted::default();
    for (name, stage) in &config.stages {
        if let Some(text) = stage.reference() {
            let reference: Reference = text.parse().with_context(|| format!("stage `{name}`"))?;
            let wish = (reference.without_pin().to_string(), reference.digest());
            if !wanted.references.contains(&wish) {
                wanted.references.push(wish);
            }
            continue;
        }
        let bytes = environment.plugins.of_stage(stage);
        let bytes = bytes.map_err(|why| anyhow!("stage `{name}`: {why}"))?;
        let info = sandbox
            .inspect(&bytes)
            .with_context(|| format!("stage `{name}`"))?;
        let path = stage.path.as_ref().map(|path| path.display().to_string());
        let Some(source) = stage.plugin.clone().or(path) else {
            continue; // of_stage has said so
        };
        if wanted.plugins.iter().all(|known| known.source != source) {
            wanted.plugins.push(LockedPlugin {
                source,
                name: info.manifest.name.clone(),
                version: info.manifest.version.clone(),
                component: Digest::of(&bytes),
                manifest: None,
                signer: None,
                requests: requests(&info.manifest),
            });
        }
    }
    let library = Library::of(&environment.data);
    for (name, path) in model_files(config, environment)? {
        let digest = format!("sha256:{}", library.sha256(&path)?).parse()?;
        wanted.models.push(WantedFile { name, path, digest });
    }
    Ok(wanted)
}

/// The files of all local models, by their names in the lock.
fn model_files(config: &Config, environment: &Environment) -> Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    for (name, model) in &config.models {
        if model.upstream.is_some() {
            continue;
        }
        let path =
            model_path(model, environment).map_err(|why| anyhow!("model `{name}`: {why}"))?;
        take(name, &path, &mut files).with_context(|| format!("model `{name}`"))?;
        for (adapter, folder) in &model.adapters {
            let folder = environment.plugins.resolve(folder);
            take(&format!("{name}+{adapter}"), &folder, &mut files)
                .with_context(|| format!("adapter `{adapter}` of model `{name}`"))?;
        }
    }
    Ok(files)
}

fn model_path(model: &ModelConfig, environment: &Environment) -> Result<PathBuf, String> {
    match (&model.path, &model.pull) {
        (Some(path), _) => Ok(environment.plugins.resolve(path)),
        (None, Some(pull)) => environment.models.path(pull),
        (None, None) => Err("it has neither `pull`, `path` nor `upstream`".to_owned()),
    }
}

/// A file by `name`; of a folder each file in it, by `name/file`.
fn take(name: &str, path: &Path, files: &mut Vec<(String, PathBuf)>) -> Result<()> {
    if !path.is_dir() {
        files.push((name.to_owned(), path.to_owned()));
        return Ok(());
    }
    let read = || format!("cannot read {}", path.display());
    let mut inner = Vec::new();
    for entry in path.read_dir().with_context(read)? {
        inner.push(entry.with_context(read)?.path());
    }
    inner.sort();
    for path in inner {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        // What editors and version control leave there is not the model's.
        if !file.starts_with('.') {
            take(&format!("{name}/{file}"), &path, files)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_locked_by_its_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("b.json"), "b").unwrap();
        std::fs::write(dir.path().join("a.safetensors"), "a").unwrap();
        std::fs::write(dir.path().join(".hidden"), "x").unwrap();
        let mut files = Vec::new();
        take("qwen", dir.path(), &mut files).unwrap();
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["qwen/a.safetensors", "qwen/b.json"]);
    }

    #[test]
    fn the_lock_lies_beside_its_config() {
        assert_eq!(
            lock_path(Path::new("etc/millgate.toml")),
            Path::new("etc/millgate.lock")
        );
    }
}
