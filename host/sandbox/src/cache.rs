//! Compiled images on disk.
#![allow(
    unsafe_code,
    reason = "a compiled image is machine code: wasmtime can only map it, not check it. It is safe \
              because the file was written by this code, into a directory that only this user may \
              enter, and its digest has been compared just before"
)]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::error::{Error, Result};

/// A directory of compiled images. Two files each: `KEY.cwasm`, and `KEY.sha256` with the digest
/// of the first. What does not fit its digest, or was made by another engine, is made again.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Opens the directory, and makes it (mode 0700) if it is not there. One that others may
    /// write to is refused, because whoever can write there can run code here.
    pub(crate) fn open(dir: &Path) -> Result<Cache> {
        let io = |doing: &str, source| Error::Io {
            doing: format!("{doing} the image cache {}", dir.display()),
            source,
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| io("making", e))?;
        let meta = fs::metadata(dir).map_err(|e| io("reading", e))?;
        let wrong = if !meta.is_dir() {
            Some("it is not a directory")
        } else if meta.mode() & 0o022 != 0 {
            Some("others may write to it; chmod 700 it, or name another directory")
        } else {
            None
        };
        match wrong {
            Some(why) => Err(io("using", std::io::Error::other(why))),
            None => Ok(Cache {
                dir: dir.to_owned(),
            }),
        }
    }

    /// The image kept under `key`, if there is one and it is sound.
    pub(crate) fn load(&self, engine: &Engine, key: &str) -> Option<Component> {
        let path = self.path(key, "cwasm");
        let bytes = fs::read(&path).ok()?;
        let digest = fs::read_to_string(self.path(key, "sha256")).ok()?;
        if digest.trim() != hex::encode(Sha256::digest(&bytes)) {
            tracing::warn!(path = %path.display(), "a cached image does not fit its digest; it is made again");
            return None;
        }
        drop(bytes);
        map(engine, &path)
            .inspect_err(|error| {
                tracing::info!(path = %path.display(), %error, "a cached image is of another engine; it is made again");
            })
            .ok()
    }

    /// Keeps an image, and gives it back mapped from its file.
    pub(crate) fn store(&self, engine: &Engine, key: &str, image: &[u8]) -> Result<Component> {
        let path = self.path(key, "cwasm");
        let digest = hex::encode(Sha256::digest(image));
        // The digest goes first: a crash between the two leaves a digest without its image, or
        // with an older one, and either is made again.
        for (path, bytes) in [
            (self.path(key, "sha256"), digest.as_bytes()),
            (path.clone(), image),
        ] {
            self.write(&path, bytes).map_err(|source| Error::Io {
                doing: format!("writing {}", path.display()),
                source,
            })?;
        }
        map(engine, &path).map_err(Error::engine)
    }

    fn path(&self, key: &str, extension: &str) -> PathBuf {
        self.dir.join(format!("{key}.{extension}"))
    }

    /// Replaces a file as a whole: readers, and processes that have the old one mapped, never
    /// see it change.
    fn write(&self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        let unique = std::process::id();
        let thread = format!("{:?}", std::thread::current().id());
        let thread: String = thread.chars().filter(char::is_ascii_digit).collect();
        let temporary = path.with_extension(format!("tmp-{unique}-{thread}"));
        let written = (|| {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            fs::File::open(&self.dir)?.sync_all()
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

/// Maps an image whose digest has been checked (or that has just been written).
fn map(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
    // SAFETY: the file holds what `Engine::precompile_component` made (see the top of the file);
    // it is replaced as a whole and never written to in place.
    unsafe { Component::deserialize_file(engine, path) }
}
