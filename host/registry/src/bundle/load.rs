//! Reading a bundle: first all of it is checked, then it is taken into the cache.

use super::source::{Source, exists, utf8};
use super::{
    BUNDLE_TYPE, FileKind, INDEX, LAYOUT, Loaded, LoadedFile, MAX_TEXT, REF_NAME, SIGNS, Summary,
    TITLE,
};
use crate::cache::Cache;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::package::{part, read_manifest};
use crate::signature::{config_of, read_signatures};
use oci_client::manifest::{ImageIndexEntry, OciDescriptor, OciImageIndex, OciImageManifest};
use std::collections::BTreeMap;
use std::path::Path;

/// A blob that the bundle must have.
struct Needed {
    size: u64,
    what: String,
}

/// A bundle while it is checked.
struct Check<'a> {
    source: &'a Source,
    needed: BTreeMap<Digest, Needed>,
    problems: Vec<String>,
    /// Components by the digest of their manifest.
    plugins: BTreeMap<Digest, Digest>,
    signatures: BTreeMap<Digest, Digest>,
    files: Vec<(FileKind, String, Digest)>,
}

/// Takes the bundle at `path` (a folder or a tar file) into `cache`. Every blob is checked first,
/// and where one is missing or changed the error names all that are; then nothing is loaded.
pub fn load(path: &Path, cache: &Cache) -> Result<Loaded> {
    exists(path)?;
    let source = Source::open(path)?;
    let mut check = Check {
        source: &source,
        needed: BTreeMap::new(),
        problems: Vec::new(),
        plugins: BTreeMap::new(),
        signatures: BTreeMap::new(),
        files: Vec::new(),
    };
    let texts = check.all()?;
    let problems = check.problems;
    let (Some((config, lock)), true) = (texts, problems.is_empty()) else {
        return Err(Error::Bundle {
            path: path.to_path_buf(),
            problems,
        });
    };
    let mut summary = Summary {
        plugins: check.plugins.len(),
        signed: check.signatures.len(),
        ..Summary::default()
    };
    for (digest, needed) in &check.needed {
        let Some((reader, _)) = source.blob(digest)? else {
            return Err(Error::Absent {
                what: needed.what.clone(),
                digest: *digest,
            });
        };
        // Checked again on its way: the file may have changed since.
        summary.bytes += cache.import(digest, &needed.what, reader)?;
    }
    // Last: it makes the plugins ones with these signatures.
    for plugin in check.plugins.keys() {
        cache.set_signatures(plugin, check.signatures.get(plugin))?;
    }
    let files: Vec<LoadedFile> = check
        .files
        .into_iter()
        .filter(|(kind, ..)| !matches!(kind, FileKind::Config | FileKind::Lock))
        .map(|(kind, name, digest)| LoadedFile {
            kind,
            name,
            path: cache.path(&digest),
            digest,
        })
        .collect();
    summary.files = files.len();
    Ok(Loaded {
        config,
        lock,
        files,
        summary,
    })
}

impl Check<'_> {
    /// Reads the index and all that it names. Problems are collected; the config and the lock come
    /// back if they could be read.
    fn all(&mut self) -> Result<Option<(String, Lock)>> {
        let layout = self.source.text(LAYOUT, 4096)?;
        let Some(layout) = self.note(layout) else {
            return Ok(None);
        };
        let version = serde_json::from_slice::<serde_json::Value>(&layout)
            .ok()
            .and_then(|layout| Some(layout.get("imageLayoutVersion")?.as_str()?.to_owned()));
        if version.as_deref() != Some("1.0.0") {
            self.problems
                .push(format!("{LAYOUT} is not that of an OCI image layout 1.0.0"));
            return Ok(None);
        }
        let index = self.source.text(INDEX, MAX_TEXT)?;
        let Some(index) = self.note(index) else {
            return Ok(None);
        };
        let index = serde_json::from_slice::<OciImageIndex>(&index)
            .map_err(|error| format!("{INDEX} is no OCI index ({error})"));
        let Some(index) = self.note(index) else {
            return Ok(None);
        };
        for entry in &index.manifests {
            self.entry(entry)?;
        }
        // Once each: a component may be named by several manifests.
        for (digest, needed) in &self.needed {
            if let Err(why) = self.source.check(digest, needed.size)? {
                self.problems
                    .push(format!("{} {why} ({digest})", needed.what));
            }
        }
        let config = self.file_text(FileKind::Config)?;
        let lock = self.file_text(FileKind::Lock)?;
        let lock =
            lock.map(|text| Lock::parse(&text).map_err(|why| format!("millgate.lock: {why}")));
        let lock = lock.and_then(|lock| self.note(lock));
        let (Some(config), Some(lock)) = (config, lock) else {
            return Ok(None);
        };
        self.hold(&lock);
        Ok(Some((config, lock)))
    }

    fn note<T>(&mut self, result: std::result::Result<T, String>) -> Option<T> {
        result.map_err(|problem| self.problems.push(problem)).ok()
    }

    fn need(&mut self, descriptor: &OciDescriptor, what: String) -> Option<Digest> {
        let part = part(descriptor).map_err(|why| format!("{what}: {why}"));
        let part = self.note(part)?;
        self.needed.entry(part.digest).or_insert(Needed {
            size: part.size,
            what,
        });
        Some(part.digest)
    }

    fn entry(&mut self, entry: &ImageIndexEntry) -> Result<()> {
        let annotation = |key: &str| {
            let all = entry.annotations.as_ref()?;
            all.get(key).cloned()
        };
        let ours = entry.artifact_type.as_deref() == Some(BUNDLE_TYPE);
        let signs = annotation(SIGNS);
        let what = match annotation(REF_NAME) {
            Some(name) => format!("the manifest of {name}"),
            None if ours => "the manifest of the bundle".to_owned(),
            None => format!("the manifest {}", entry.digest),
        };
        let descriptor = OciDescriptor {
            media_type: entry.media_type.clone(),
            digest: entry.digest.clone(),
            size: entry.size,
            ..OciDescriptor::default()
        };
        let Some(digest) = self.need(&descriptor, what.clone()) else {
            return Ok(());
        };
        // A fault of the manifest itself is found by the check of all blobs.
        let Ok(bytes) = self.source.bytes(&digest, MAX_TEXT)? else {
            return Ok(());
        };
        let name = annotation(REF_NAME).unwrap_or_else(|| digest.to_string());
        match signs {
            _ if ours => self.ours(&bytes),
            Some(signs) => {
                self.signatures(&name, &signs, digest, &bytes);
                if let Some(config) = config_of(&bytes)
                    && self.source.blob(&config.digest)?.is_some()
                {
                    self.needed.entry(config.digest).or_insert(Needed {
                        size: config.size,
                        what: format!("the config of {name}"),
                    });
                }
            }
            None => self.plugin(&name, digest, &bytes),
        }
        Ok(())
    }

    fn plugin(&mut self, name: &str, digest: Digest, bytes: &[u8]) {
        let contents = read_manifest(name, bytes).map_err(|error| error.to_string());
        let Some(contents) = self.note(contents) else {
            return;
        };
        for (word, part) in [
            ("config", contents.config),
            ("component", contents.component),
        ] {
            self.needed.entry(part.digest).or_insert(Needed {
                size: part.size,
                what: format!("the {word} of {name}"),
            });
        }
        self.plugins.insert(digest, contents.component.digest);
    }

    fn signatures(&mut self, name: &str, signs: &str, digest: Digest, bytes: &[u8]) {
        let stored = read_signatures(bytes).map_err(|why| format!("{name}: {why}"));
        let signs = signs
            .parse::<Digest>()
            .map_err(|error| format!("{name}: {error}"));
        let (Some(stored), Some(signs)) = (self.note(stored), self.note(signs)) else {
            return;
        };
        for stored in stored {
            self.needed.entry(stored.payload).or_insert(Needed {
                size: stored.size,
                what: format!("a signature of {name}"),
            });
        }
        self.signatures.insert(signs, digest);
    }

    fn ours(&mut self, bytes: &[u8]) {
        let manifest = serde_json::from_slice::<OciImageManifest>(bytes)
            .map_err(|error| format!("the manifest of the bundle is none ({error})"));
        let Some(manifest) = self.note(manifest) else {
            return;
        };
        for layer in &manifest.layers {
            let title = layer.annotations.as_ref().and_then(|all| all.get(TITLE));
            let kind = FileKind::ALL
                .into_iter()
                .find(|kind| kind.media_type() == layer.media_type);
            let (Some(kind), Some(title)) = (kind, title) else {
                self.problems.push(format!(
                    "it holds a {:?}, which this millgate does not know: use the one that wrote it",
                    layer.media_type
                ));
                continue;
            };
            let what = match kind {
                FileKind::Config | FileKind::Lock => title.clone(),
                _ => format!("the {} {title}", kind.word()),
            };
            if let Some(digest) = self.need(layer, what) {
                self.files.push((kind, title.clone(), digest));
            }
        }
    }

    /// The config or the lock.
    fn file_text(&mut self, kind: FileKind) -> Result<Option<String>> {
        let found = self.files.iter().find(|(found, ..)| *found == kind);
        let Some((_, name, digest)) = found.cloned() else {
            // Where there is no manifest of ours, that is said already or it is no bundle.
            self.problems.push(format!(
                "it has no {}: is it a Millgate bundle?",
                kind.word()
            ));
            return Ok(None);
        };
        // A fault of the blob is found by the check of all blobs.
        let Ok(bytes) = self.source.bytes(&digest, MAX_TEXT)? else {
            return Ok(None);
        };
        Ok(self.note(utf8(&name, bytes)))
    }

    /// Whether the bundle has all that its lock names.
    fn hold(&mut self, lock: &Lock) {
        for plugin in &lock.plugins {
            let Some(manifest) = plugin.manifest else {
                continue;
            };
            match self.plugins.get(&manifest) {
                None => self.problems.push(format!(
                    "the plugin {} is locked and not in it ({manifest})",
                    plugin.source
                )),
                Some(component) if *component != plugin.component => self.problems.push(format!(
                    "the plugin {} has the component {component}, and the lock says {}",
                    plugin.source, plugin.component
                )),
                Some(_) => {}
            }
        }
        for (kind, name, digest) in &self.files {
            let locked = lock.plugin(name).map(|plugin| plugin.component);
            if *kind == FileKind::Plugin && locked != Some(*digest) {
                self.problems.push(format!(
                    "the plugin file {name} ({digest}) is not the one that is locked"
                ));
            }
        }
        for (kind, locked) in [
            (FileKind::Model, &lock.models),
            (FileKind::Prompt, &lock.prompts),
        ] {
            for file in locked {
                let wanted = (kind, file.name.clone(), file.digest);
                if !self.files.contains(&wanted) {
                    self.problems.push(format!(
                        "the {} {} is locked and not in it ({})",
                        kind.word(),
                        file.name,
                        file.digest
                    ));
                }
            }
        }
    }
}
