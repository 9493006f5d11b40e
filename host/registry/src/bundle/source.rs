//! The files of a bundle, in a folder or in a tar file, read in any order.

use super::{INDEX, LAYOUT};
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result};

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The most files in a tar.
const MAX_ENTRIES: usize = 100_000;

/// A bundle that is being read.
pub(super) enum Source {
    Folder(PathBuf),
    /// Where each file's bytes are: offset and size. Nothing is unpacked, so that no name in the
    /// tar ever becomes a path.
    Tar(PathBuf, HashMap<String, (u64, u64)>),
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Source> {
        if path.is_dir() {
            return Ok(Source::Folder(path.to_path_buf()));
        }
        let failed = |error| Error::io("read", path, error);
        let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        let mut archive = tar::Archive::new(file);
        let mut files = HashMap::new();
        for entry in archive.entries_with_seek().map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
            let known = name == LAYOUT || name == INDEX || name.starts_with("blobs/sha256/");
            if !known {
                continue; // Others may add files of their own.
            }
            if files.len() == MAX_ENTRIES {
                return Err(failed(io::Error::other(format!(
                    "it has more than {MAX_ENTRIES} files"
                ))));
            }
            files.insert(name, (entry.raw_file_position(), entry.size()));
        }
        Ok(Source::Tar(path.to_path_buf(), files))
    }

    /// A file of the bundle and its size; `None` where there is none.
    fn file(&self, name: &str) -> Result<Option<(io::Take<File>, u64)>> {
        match self {
            Source::Folder(dir) => {
                let path = dir.join(name);
                let file = match File::open(&path) {
                    Ok(file) => file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(Error::io("open", &path, error)),
                };
                let size = file
                    .metadata()
                    .map_err(|error| Error::io("look at", &path, error))?
                    .len();
                Ok(Some((file.take(size), size)))
            }
            Source::Tar(path, files) => {
                let Some((offset, size)) = files.get(name) else {
                    return Ok(None);
                };
                let mut file = File::open(path).map_err(|error| Error::io("open", path, error))?;
                file.seek(SeekFrom::Start(*offset))
                    .map_err(|error| Error::io("read", path, error))?;
                Ok(Some((file.take(*size), *size)))
            }
        }
    }

    /// A short text file; `Err(Ok(..))` says what is wrong with the bundle.
    pub(super) fn text(&self, name: &str, limit: u64) -> Result<Result<Vec<u8>, String>> {
        let Some((mut file, size)) = self.file(name)? else {
            return Ok(Err(format!("{name} is missing")));
        };
        if size > limit {
            return Ok(Err(format!("{name} is larger than {limit} bytes")));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .map_err(|error| Error::io("read", self.path(), error))?;
        Ok(Ok(bytes))
    }

    /// The bytes of a blob, not checked; `None` where there is none.
    pub(super) fn blob(&self, digest: &Digest) -> Result<Option<(io::Take<File>, u64)>> {
        self.file(&format!("blobs/sha256/{}", digest.hex()))
    }

    /// Reads a blob through; `Err` says what is wrong with it.
    pub(super) fn check(&self, digest: &Digest, size: u64) -> Result<Result<(), String>> {
        let Some((file, have)) = self.blob(digest)? else {
            return Ok(Err("is missing".into()));
        };
        if have != size {
            return Ok(Err(format!("has {have} bytes in place of {size}")));
        }
        let mut reader = Hashing::new(file);
        io::copy(&mut reader, &mut io::sink())
            .map_err(|error| Error::io("read", self.path(), error))?;
        let got = reader.digest();
        if got == *digest {
            Ok(Ok(()))
        } else {
            Ok(Err(format!("was changed: its bytes are {got}")))
        }
    }

    /// A checked blob of at most `limit` bytes; `Err` says what is wrong with it.
    pub(super) fn bytes(&self, digest: &Digest, limit: u64) -> Result<Result<Vec<u8>, String>> {
        let Some((mut file, size)) = self.blob(digest)? else {
            return Ok(Err("is missing".into()));
        };
        if size > limit {
            return Ok(Err(format!("is larger than {limit} bytes")));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .map_err(|error| Error::io("read", self.path(), error))?;
        let got = Digest::of(&bytes);
        if got != *digest {
            return Ok(Err(format!("was changed: its bytes are {got}")));
        }
        Ok(Ok(bytes))
    }

    fn path(&self) -> &Path {
        match self {
            Source::Folder(path) | Source::Tar(path, _) => path,
        }
    }
}

/// Whether `path` looks like a bundle at all, for a better message than the system's.
pub(super) fn exists(path: &Path) -> Result<()> {
    match path.metadata() {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::io("open the bundle", path, error)),
    }
}

/// The text of `bytes`, or what is wrong with it.
pub(super) fn utf8(name: &str, bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|_| format!("{name} is not UTF-8"))
}
