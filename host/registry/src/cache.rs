//! The blobs of pulled and loaded plugins on this machine, by digest. A blob is written whole or
//! not at all, and checked against its name whenever it is read.
//!
//! The layout is that of an OCI image layout's blobs (`blobs/sha256/…`), and `signatures/…`, which
//! names for a plugin's manifest the manifest of its signatures. Tags are not kept: what a name
//! stands for is the lock's business. All calls block; on a runtime, use `spawn_blocking`.

use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result};
use crate::files::{self, Draft};
use crate::package::{check_parts, read_manifest};
use crate::plugin::Plugin;
use crate::signature::{self, Signature};
use bytes::Bytes;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The most bytes of a blob that is read into memory.
const MAX_IN_MEMORY: u64 = 1 << 30;

/// A folder of blobs.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The cache in `dir`, which is made with its first blob.
    pub fn open(dir: impl Into<PathBuf>) -> Cache {
        Cache { dir: dir.into() }
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a blob is, or would be. Its bytes are not checked by whoever opens it there.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    /// Whether there is a blob of that name.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Stores `bytes` under their digest.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        // What is there may be damaged: compare, since these bytes are right.
        if !matches!(self.read(&digest), Ok(Some(_))) {
            files::write(&self.path(&digest), bytes)?;
        }
        Ok(digest)
    }

    /// Stores what `reader` has under `digest`, if that is its digest. Needs no memory for it.
    pub fn import(&self, digest: &Digest, what: &str, reader: impl Read) -> Result<u64> {
        let mut draft = Draft::new(&self.path(digest), 0o644)?;
        let mut reader = Hashing::new(reader);
        let copied = io::copy(&mut reader, draft.file());
        let count = copied.map_err(|error| draft.failed(error))?;
        let got = reader.digest();
        if got != *digest {
            return Err(Error::Mismatch {
                what: what.to_owned(),
                want: *digest,
                got,
            });
        }
        draft.put()?;
        Ok(count)
    }

    /// The bytes of a blob, checked. `what` is for errors.
    pub fn get(&self, digest: &Digest, what: &str) -> Result<Bytes> {
        self.read(digest)?.ok_or_else(|| Error::Absent {
            what: what.to_owned(),
            digest: *digest,
        })
    }

    fn read(&self, digest: &Digest) -> Result<Option<Bytes>> {
        let path = self.path(digest);
        let Some(bytes) = files::read(&path, MAX_IN_MEMORY)? else {
            return Ok(None);
        };
        let got = Digest::of(&bytes);
        if got != *digest {
            return Err(Error::Damaged { path, got });
        }
        Ok(Some(bytes.into()))
    }

    fn signatures_path(&self, plugin: &Digest) -> PathBuf {
        self.dir.join("signatures").join(plugin.hex())
    }

    /// The manifest of the signatures of `plugin` (the digest of its manifest), if it has some.
    pub(crate) fn signatures_of(&self, plugin: &Digest) -> Result<Option<Digest>> {
        let path = self.signatures_path(plugin);
        let Some(text) = files::read(&path, 256)? else {
            return Ok(None);
        };
        let digest = String::from_utf8_lossy(&text).trim().parse();
        digest.map(Some).map_err(|_| Error::Io {
            action: "use",
            source: io::Error::other("it holds no digest: remove it, and pull the plugin again"),
            path,
        })
    }

    pub(crate) fn set_signatures(
        &self,
        plugin: &Digest,
        signatures: Option<&Digest>,
    ) -> Result<()> {
        let path = self.signatures_path(plugin);
        let Some(signatures) = signatures else {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(Error::io("remove", &path, error))
                }
                _ => Ok(()),
            };
        };
        files::write(&path, format!("{signatures}\n").as_bytes())
    }

    /// The plugin whose OCI manifest has the digest `manifest`, with its signatures: nothing is
    /// asked of any registry.
    pub fn plugin(&self, manifest: &Digest) -> Result<Plugin> {
        let name = format!("the plugin {manifest}");
        let bytes = self.get(manifest, "the manifest of the plugin")?;
        let contents = read_manifest(&name, &bytes)?;
        let config = self.get(&contents.config.digest, "the config of the plugin")?;
        let component = self.get(&contents.component.digest, "the component of the plugin")?;
        check_parts(&name, &contents, &config, &component)?;
        let signatures = match self.signatures_of(manifest)? {
            None => Vec::new(),
            Some(list) => {
                let list = self.get(&list, "the list of signatures of the plugin")?;
                self.payloads(manifest, &list)?
            }
        };
        Ok(Plugin {
            digest: *manifest,
            component_digest: contents.component.digest,
            component,
            annotations: contents.annotations,
            signatures,
        })
    }

    fn payloads(&self, plugin: &Digest, list: &[u8]) -> Result<Vec<Signature>> {
        let stored = signature::read_signatures(list).map_err(|why| Error::Tampered {
            plugin: plugin.to_string(),
            digest: *plugin,
            why,
        })?;
        stored
            .into_iter()
            .map(|stored| {
                let payload = self.get(&stored.payload, "a signature of the plugin")?;
                Ok(stored.with(payload))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_checked_whenever_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("cache"));
        let digest = cache.put(b"bytes").unwrap();
        assert_eq!(&cache.get(&digest, "it").unwrap()[..], b"bytes");
        fs::write(cache.path(&digest), b"other").unwrap();
        let error = cache.get(&digest, "it").unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        // Storing the right bytes mends it.
        cache.put(b"bytes").unwrap();
        assert_eq!(&cache.get(&digest, "it").unwrap()[..], b"bytes");
    }

    #[test]
    fn only_the_right_bytes_are_imported() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path());
        let digest = Digest::of(b"bytes");
        let error = cache.import(&digest, "it", &b"byte"[..]).unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
        assert!(!cache.contains(&digest));
        assert_eq!(
            fs::read_dir(dir.path().join("blobs/sha256"))
                .unwrap()
                .count(),
            0
        );
        assert_eq!(cache.import(&digest, "it", &b"bytes"[..]).unwrap(), 5);
        assert!(cache.contains(&digest));
    }

    #[test]
    fn what_is_absent_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path());
        let error = cache.plugin(&Digest::of(b"x")).unwrap_err();
        assert!(
            error.to_string().contains("millgate plugin pull"),
            "{error}"
        );
    }
}
