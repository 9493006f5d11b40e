//! Writing a bundle.

use super::{
    BUNDLE_TYPE, BundleFile, Contents, EMPTY, EMPTY_TYPE, FileKind, INDEX, LAYOUT, LAYOUT_TEXT,
    REF_NAME, SIGNS, Summary, TITLE,
};
use crate::cache::Cache;
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result};
use crate::files::{self, Draft};
use crate::lock::{Lock, LockedPlugin};
use crate::package::{canonical, descriptor, read_manifest};
use crate::reference::Reference;
use crate::signature::{config_of, read_signatures};
use bytes::Bytes;
use oci_client::manifest::{
    ImageIndexEntry, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OciDescriptor,
    OciImageIndex, OciImageManifest,
};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Where a blob's bytes come from.
enum Blob {
    Memory(Bytes),
    /// A file of this size; hashed while it is copied.
    File(PathBuf, u64),
}

/// What a bundle consists of, before it is written.
#[derive(Default)]
struct Plan {
    blobs: BTreeMap<Digest, Blob>,
    index: Vec<ImageIndexEntry>,
    problems: Vec<String>,
    summary: Summary,
}

/// Writes a bundle to `path`, which must not exist: one tar file if its name ends in `.tar`, a
/// folder otherwise. Plugins come from `cache`. It is there whole or not at all.
pub fn create(path: &Path, cache: &Cache, contents: &Contents) -> Result<Summary> {
    if path.exists() {
        let exists = io::Error::from(io::ErrorKind::AlreadyExists);
        return Err(Error::io("create the bundle", path, exists));
    }
    let mut plan = Plan::default();
    for plugin in &contents.lock.plugins {
        if let Some(manifest) = plugin.manifest {
            plan.plugin(cache, plugin, &manifest)?;
        }
    }
    plan.files(contents)?;
    if !plan.problems.is_empty() {
        return Err(Error::Bundle {
            path: path.to_path_buf(),
            problems: plan.problems,
        });
    }
    let index = canonical(&OciImageIndex {
        schema_version: 2,
        media_type: Some(OCI_IMAGE_INDEX_MEDIA_TYPE.to_owned()),
        manifests: std::mem::take(&mut plan.index),
        artifact_type: None,
        annotations: None,
    })?;
    if path.extension().is_some_and(|kind| kind == "tar") {
        plan.write_tar(path, &index)?;
    } else {
        plan.write_folder(path, &index)?;
    }
    Ok(plan.summary)
}

impl Plan {
    fn memory(&mut self, bytes: Bytes) -> Digest {
        let digest = Digest::of(&bytes);
        self.blobs.entry(digest).or_insert(Blob::Memory(bytes));
        digest
    }

    fn plugin(&mut self, cache: &Cache, plugin: &LockedPlugin, manifest: &Digest) -> Result<()> {
        let what = format!("the plugin {}", plugin.source);
        let bytes = cache.get(manifest, &what)?;
        let contents = read_manifest(&plugin.source, &bytes)?;
        for part in [contents.config, contents.component] {
            // Checked here, so that a damaged cache does not make a damaged bundle.
            let bytes = cache.get(&part.digest, &what)?;
            self.memory(bytes);
        }
        if contents.component.digest != plugin.component {
            self.problems.push(format!(
                "{what}: its component is {}, and the lock says {}",
                contents.component.digest, plugin.component
            ));
        }
        self.name(
            &bytes,
            BTreeMap::from([(REF_NAME.to_owned(), plugin.source.clone())]),
        );
        self.memory(bytes);
        self.summary.plugins += 1;
        let Some(list) = cache.signatures_of(manifest)? else {
            return Ok(());
        };
        let list = cache.get(&list, &what)?;
        let stored = read_signatures(&list).map_err(|why| Error::Tampered {
            plugin: plugin.source.clone(),
            digest: *manifest,
            why,
        })?;
        for stored in stored {
            let payload = cache.get(&stored.payload, &what)?;
            self.memory(payload);
        }
        // Other tools want the config of each manifest; checking does not.
        if let Some(config) = config_of(&list)
            && let Ok(bytes) = cache.get(&config.digest, &what)
        {
            self.memory(bytes);
        }
        let name = match plugin.source.parse::<Reference>() {
            Ok(reference) => reference.signatures_of(manifest).to_string(),
            Err(_) => format!("sha256-{}.sig", manifest.hex()),
        };
        self.name(
            &list,
            BTreeMap::from([
                (REF_NAME.to_owned(), name),
                (SIGNS.to_owned(), manifest.to_string()),
            ]),
        );
        self.memory(list);
        self.summary.signed += 1;
        Ok(())
    }

    /// Names a manifest in the index.
    fn name(&mut self, manifest: &[u8], annotations: BTreeMap<String, String>) {
        let descriptor = descriptor(OCI_IMAGE_MEDIA_TYPE, manifest);
        self.index.push(ImageIndexEntry {
            media_type: descriptor.media_type,
            digest: descriptor.digest,
            size: descriptor.size,
            platform: None,
            annotations: (!annotations.is_empty()).then_some(annotations),
            artifact_type: None,
        });
    }

    /// Our own manifest, with the config, the lock and the files.
    fn files(&mut self, contents: &Contents) -> Result<()> {
        let mut layers = Vec::new();
        let lock = contents.lock.text()?;
        for (kind, name, text) in [
            (FileKind::Config, "millgate.toml", &contents.config),
            (FileKind::Lock, "millgate.lock", &lock),
        ] {
            let bytes = Bytes::copy_from_slice(text.as_bytes());
            layers.push(titled(descriptor(kind.media_type(), &bytes), name));
            self.memory(bytes);
        }
        for (kind, locked) in [
            (FileKind::Model, &contents.lock.models),
            (FileKind::Prompt, &contents.lock.prompts),
        ] {
            for file in locked {
                if !contents
                    .files
                    .iter()
                    .any(|given| given.kind == kind && given.name == file.name)
                {
                    let kind = kind.word();
                    self.problems.push(format!(
                        "the {kind} {} is locked and has no file",
                        file.name
                    ));
                }
            }
        }
        for file in &contents.files {
            if let Some(layer) = self.file(file, &contents.lock)? {
                layers.push(layer);
            }
        }
        let empty = Bytes::from_static(EMPTY);
        let manifest = canonical(&OciImageManifest {
            media_type: Some(OCI_IMAGE_MEDIA_TYPE.to_owned()),
            artifact_type: Some(BUNDLE_TYPE.to_owned()),
            config: descriptor(EMPTY_TYPE, &empty),
            layers,
            ..OciImageManifest::default()
        })?;
        self.memory(empty);
        self.name(&manifest, BTreeMap::new());
        if let Some(entry) = self.index.last_mut() {
            entry.artifact_type = Some(BUNDLE_TYPE.to_owned());
        }
        self.memory(manifest);
        Ok(())
    }

    fn file(&mut self, file: &BundleFile, lock: &Lock) -> Result<Option<OciDescriptor>> {
        let by_name = |list: &[crate::lock::LockedFile]| {
            list.iter()
                .find(|locked| locked.name == file.name)
                .map(|locked| locked.digest)
        };
        let locked = match file.kind {
            FileKind::Model => by_name(&lock.models),
            FileKind::Prompt => by_name(&lock.prompts),
            FileKind::Plugin => lock.plugin(&file.name).map(|plugin| plugin.component),
            FileKind::Config | FileKind::Lock => None,
        };
        let word = file.kind.word();
        let Some(locked) = locked else {
            self.problems
                .push(format!("the {word} {} is not locked", file.name));
            return Ok(None);
        };
        let opened =
            File::open(&file.path).map_err(|error| Error::io("open", &file.path, error))?;
        let mut reader = Hashing::new(opened);
        let size = io::copy(&mut reader, &mut io::sink())
            .map_err(|error| Error::io("read", &file.path, error))?;
        let digest = reader.digest();
        if digest != locked {
            self.problems.push(format!(
                "the {word} {} ({}) is {digest}, and the lock says {locked}",
                file.name,
                file.path.display()
            ));
            return Ok(None);
        }
        self.blobs
            .entry(digest)
            .or_insert_with(|| Blob::File(file.path.clone(), size));
        self.summary.files += 1;
        let layer = OciDescriptor {
            media_type: file.kind.media_type().to_owned(),
            digest: digest.to_string(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            ..OciDescriptor::default()
        };
        Ok(Some(titled(layer, &file.name)))
    }

    fn write_folder(&mut self, path: &Path, index: &[u8]) -> Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let draft = files::folder_of(path).join(format!(".{name}.{}.part", std::process::id()));
        let _ = fs::remove_dir_all(&draft); // Of a process that died here.
        let written = self.fill(&draft, index).and_then(|()| {
            fs::rename(&draft, path).map_err(|error| Error::io("create", path, error))
        });
        if written.is_err() {
            let _ = fs::remove_dir_all(&draft);
        }
        written
    }

    fn fill(&mut self, dir: &Path, index: &[u8]) -> Result<()> {
        let blobs = Cache::open(dir);
        for (digest, blob) in &self.blobs {
            self.summary.bytes += blobs.import(digest, "a part of the bundle", blob.open()?.0)?;
        }
        files::write(&dir.join(LAYOUT), LAYOUT_TEXT)?;
        files::write(&dir.join(INDEX), index)
    }

    fn write_tar(&mut self, path: &Path, index: &[u8]) -> Result<()> {
        let mut draft = Draft::new(path, 0o644)?;
        let blobs = &self.blobs;
        let mut bytes = 0;
        let mut write = |file: &mut File| -> Result<()> {
            let mut tar = tar::Builder::new(io::BufWriter::new(file));
            let failed = |error| Error::io("write", path, error);
            for (name, text) in [(LAYOUT, LAYOUT_TEXT), (INDEX, index)] {
                let mut header = header(text.len() as u64);
                tar.append_data(&mut header, name, text).map_err(failed)?;
            }
            for (digest, blob) in blobs {
                let (reader, size) = blob.open()?;
                let mut reader = Hashing::new(reader.take(size));
                let name = format!("blobs/sha256/{}", digest.hex());
                tar.append_data(&mut header(size), name, &mut reader)
                    .map_err(failed)?;
                let got = reader.digest();
                if got != *digest {
                    return Err(Error::Mismatch {
                        what: "a file that changed while it was bundled".into(),
                        want: *digest,
                        got,
                    });
                }
                bytes += size;
            }
            let buffer = tar.into_inner().map_err(failed)?;
            buffer
                .into_inner()
                .map_err(|error| failed(error.into_error()))?;
            Ok(())
        };
        write(draft.file())?;
        draft.put_new()?;
        self.summary.bytes = bytes;
        Ok(())
    }
}

impl Blob {
    fn open(&self) -> Result<(Box<dyn Read + '_>, u64)> {
        Ok(match self {
            Blob::Memory(bytes) => (Box::new(bytes.as_ref()), bytes.len() as u64),
            Blob::File(path, size) => {
                let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
                (Box::new(file), *size)
            }
        })
    }
}

fn titled(descriptor: OciDescriptor, title: &str) -> OciDescriptor {
    OciDescriptor {
        annotations: Some(BTreeMap::from([(TITLE.to_owned(), title.to_owned())])),
        ..descriptor
    }
}

/// The same bundle is the same tar, wherever and whenever it is made.
fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header
}
