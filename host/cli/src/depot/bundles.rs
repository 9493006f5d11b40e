//! A config as a bundle carries it: every file that it names lies beside it, under names of the
//! bundle's own.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use millgate_ops::{Config, Environment, config};
use millgate_registry::bundle::{BundleFile, FileKind, LoadedFile};
use millgate_registry::{Lock, TrustConfig};
use millgate_sandbox::Sandbox;
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, Value, value};

use super::files::wanted_files;
use super::trust_sections;

/// What goes into a bundle.
#[derive(Debug)]
pub struct Carried {
    /// The config with the bundle's own names.
    pub config: String,
    /// Its lock.
    pub lock: Lock,
    /// The files of models and of plugins.
    pub files: Vec<BundleFile>,
}

/// Makes the config, the lock and the list of files of a bundle. `lock` has the plugins from
/// registries. Blocking: reads all files.
pub fn carry(
    text: &str,
    config: &Config,
    environment: &Environment,
    sandbox: &Sandbox,
    lock: &Lock,
    folder: &Path,
) -> Result<Carried> {
    let wanted = wanted_files(config, environment, sandbox)?;
    let mut document: DocumentMut = text.parse().context("the config is no TOML")?;
    let mut files = Vec::new();
    let mut lock = lock.clone();
    lock.plugins.retain(|plugin| plugin.manifest.is_some());
    for plugin in &wanted.plugins {
        lock.set(plugin.clone());
    }
    lock.models = wanted.locked_models();
    for (name, model) in &config.models {
        if model.upstream.is_some() {
            continue;
        }
        let whole = wanted.models.iter().find(|file| file.name == *name);
        let place = match whole {
            Some(file) => match file.path.extension() {
                Some(kind) => format!("models/{name}.{}", kind.to_string_lossy()),
                None => format!("models/{name}"),
            },
            None => format!("models/{name}"),
        };
        let table = entry(&mut document, "models", name)?;
        table.remove("pull");
        table.insert("path", value(place));
        for adapter in model.adapters.keys() {
            let adapters = table.get_mut("adapters").and_then(Item::as_table_like_mut);
            let adapters = adapters.context("`adapters` is no table")?;
            adapters.insert(adapter, value(format!("models/{name}+{adapter}")));
        }
    }
    for (name, stage) in &config.stages {
        let Some(path) = &stage.path else { continue };
        let source = path.display().to_string();
        let place = format!("plugins/{name}.wasm");
        entry(&mut document, "stages", name)?.insert("path", value(place.clone()));
        files.push(BundleFile {
            kind: FileKind::Plugin,
            name: place.clone(),
            path: environment.plugins.resolve(path),
        });
        // Of several stages with one file each has its own copy here; the bytes are kept once.
        let locked = wanted.plugins.iter().find(|plugin| plugin.source == source);
        if let Some(locked) = locked {
            lock.plugins.retain(|plugin| plugin.source != source);
            let mut locked = locked.clone();
            locked.source = place;
            lock.set(locked);
        }
    }
    files.extend(wanted.models.into_iter().map(|file| BundleFile {
        kind: FileKind::Model,
        name: file.name,
        path: file.path,
    }));
    let trust = trust_sections(&config.trust, folder)?;
    set_trust(&mut document, &trust);
    Ok(Carried {
        config: document.to_string(),
        lock,
        files,
    })
}

/// Writes the `[[trust]]` sections, in place of those that are there.
pub fn with_trust(text: &str, trust: &[TrustConfig]) -> Result<String> {
    let mut document: DocumentMut = text.parse().context("the config is no TOML")?;
    set_trust(&mut document, trust);
    Ok(document.to_string())
}

fn set_trust(document: &mut DocumentMut, trust: &[TrustConfig]) {
    if trust.is_empty() {
        document.remove("trust");
        return;
    }
    let mut sections = ArrayOfTables::new();
    for signer in trust {
        let mut table = Table::new();
        table.insert("name", value(&signer.name));
        table.insert("key", value(&signer.key));
        table.insert("plugins", value(signer.plugins.iter().collect::<Value>()));
        sections.push(table);
    }
    document.insert("trust", Item::ArrayOfTables(sections));
}

/// Writes other references into a config; everything else, comments too, stays as it is.
pub fn relocate(text: &str, moves: &[super::Move]) -> Result<String> {
    let mut document: DocumentMut = text.parse().context("the config is no TOML")?;
    let stages = document.get_mut("stages").and_then(Item::as_table_like_mut);
    for (_, stage) in stages.into_iter().flat_map(|stages| stages.iter_mut()) {
        let plugin = stage
            .as_table_like_mut()
            .and_then(|it| it.get_mut("plugin"));
        let Some(plugin) = plugin.and_then(Item::as_value_mut) else {
            continue;
        };
        let now = plugin.as_str().unwrap_or_default();
        if let Some(change) = moves.iter().find(|change| change.from == now) {
            let mut new = Value::from(change.to.as_str());
            *new.decor_mut() = plugin.decor().clone();
            *plugin = new;
        }
    }
    Ok(document.to_string())
}

fn entry<'d>(
    document: &'d mut DocumentMut,
    section: &str,
    name: &str,
) -> Result<&'d mut dyn toml_edit::TableLike> {
    let section = document.get_mut(section).and_then(Item::as_table_like_mut);
    let entry = section.and_then(|section| section.get_mut(name));
    entry
        .and_then(Item::as_table_like_mut)
        .with_context(|| format!("the config has no table {name}"))
}

/// A loaded bundle's config and where its files belong.
#[derive(Debug)]
pub struct Bundled {
    /// The config.
    pub config: Config,
    /// From the cache to a place relative to the config.
    pub places: Vec<(PathBuf, PathBuf)>,
}

impl Bundled {
    /// Reads a bundle's config and finds the place of each of its files.
    ///
    /// # Errors
    /// The config is faulty, or it names a place outside of its folder.
    pub fn of(text: &str, files: &[LoadedFile]) -> Result<Bundled> {
        let config = config::check(text, Path::new("millgate.toml")).map_err(|problems| {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            anyhow!("the bundle's config cannot be used\n{}", lines.join("\n"))
        })?;
        let mut places = Vec::new();
        for file in files {
            let place = match file.kind {
                FileKind::Plugin => PathBuf::from(&file.name),
                FileKind::Model => place_of(&config, &file.name).with_context(|| {
                    format!(
                        "the bundle has a model {} that its config does not",
                        file.name
                    )
                })?,
                other => bail!("the bundle has a {}, which is not used yet", other.word()),
            };
            // What a bundle says must not reach beyond the folder it is put into.
            let inside = place
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
            if !inside || place.as_os_str().is_empty() {
                bail!(
                    "the bundle wants to write {}, outside of its folder; do not use it",
                    place.display()
                );
            }
            places.push((file.path.clone(), place));
        }
        Ok(Bundled { config, places })
    }
}

/// `MODEL`, `MODEL/file` or `MODEL+ADAPTER/file` as a path of the config.
fn place_of(config: &Config, name: &str) -> Option<PathBuf> {
    let (head, file) = match name.split_once('/') {
        Some((head, file)) => (head, Some(file)),
        None => (name, None),
    };
    let base = match head.split_once('+') {
        Some((model, adapter)) => config.models.get(model)?.adapters.get(adapter)?,
        None => config.models.get(head)?.path.as_ref()?,
    };
    Some(match file {
        Some(file) => base.join(file),
        None => base.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::depot::Move;
    use millgate_registry::Digest;

    #[test]
    fn a_reference_is_changed_and_nothing_else() {
        let text = "# mine\n[stages]\na = { plugin = \"r.example/a:1.0.0\" } # why\n[stages.b]\nplugin = \"pii\" # first\n";
        let moves = [Move {
            from: "r.example/a:1.0.0".into(),
            to: "r.example/a:1.1.0".into(),
        }];
        assert_eq!(
            relocate(text, &moves).unwrap(),
            text.replace("1.0.0", "1.1.0")
        );
    }

    #[test]
    fn a_bundle_stays_in_its_folder() {
        let file = |kind, name: &str| LoadedFile {
            kind,
            name: name.into(),
            digest: Digest::of(b""),
            path: "cache".into(),
        };
        let text = "[models.m]\npath = \"models/m\"\n";
        let good = Bundled::of(text, &[file(FileKind::Model, "m/a.json")]).unwrap();
        assert_eq!(good.places[0].1, Path::new("models/m/a.json"));
        for bad in [
            file(FileKind::Model, "m/../../a.json"),
            file(FileKind::Plugin, "/etc/passwd"),
            file(FileKind::Plugin, "../a.wasm"),
            file(FileKind::Model, "other"),
        ] {
            let name = bad.name.clone();
            assert!(Bundled::of(text, &[bad]).is_err(), "{name}");
        }
        let outside = "[models.m]\npath = \"../m.gguf\"\n";
        assert!(Bundled::of(outside, &[file(FileKind::Model, "m")]).is_err());
    }

    #[test]
    fn trust_is_replaced_whole() {
        let text = "[server]\n\n[[trust]]\nname = \"theirs\"\nkey = \"k\"\nplugins = [\"*\"]\n";
        let ours = TrustConfig {
            name: "ours".into(),
            key: "one\ntwo\n".into(),
            plugins: vec!["a-*".into()],
        };
        let new = with_trust(text, std::slice::from_ref(&ours)).unwrap();
        assert!(!new.contains("theirs"), "{new}");
        let config = config::check(&new, Path::new("x.toml")).unwrap();
        assert_eq!(config.trust[0].key, "one\ntwo\n");
        assert!(!with_trust(text, &[]).unwrap().contains("trust"));
    }
}
