//! Blobs: bulk bytes (prompts, answers, dataset chunks, model and plugin files) named by their
//! SHA-256, compressed with zstd, one file each. A blob is written to a temporary file, synced, and
//! renamed into place, so a name either holds all of its bytes or does not exist; and it is checked
//! against its name whenever it is read.

use crate::digest::Digest;
use crate::error::{Error, Result};
use sha2::{Digest as _, Sha256};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// The level that zstd compresses at: its default, good for text at hundreds of MB/s.
const LEVEL: i32 = 3;

/// A folder of blobs: `ab/cd…` for the blob whose digest begins with `ab`, temporary files in `tmp/`.
#[derive(Debug)]
pub struct Blobs {
    dir: PathBuf,
    next_temporary: AtomicU64,
}

/// What [`Blobs::verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlobReport {
    /// How many blobs are there.
    pub count: u64,
    /// Their bytes on disk, compressed.
    pub disk_bytes: u64,
    /// Those whose bytes are not what their names say, with what was found.
    pub damaged: Vec<(Digest, String)>,
}

impl Blobs {
    /// Opens a folder of blobs and creates it where it is missing. Temporary files that a crash left
    /// behind are removed, so one process opens a folder at a time (the store's lock sees to that).
    pub fn open(dir: impl Into<PathBuf>) -> Result<Blobs> {
        let dir = dir.into();
        let temporary = dir.join("tmp");
        fs::create_dir_all(&temporary).map_err(|error| Error::io("create", &temporary, error))?;
        for path in list(&temporary)? {
            fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
        }
        Ok(Blobs {
            dir,
            next_temporary: AtomicU64::new(0),
        })
    }

    /// Stores `bytes` and returns their name. When it returns, the blob is on disk; bytes that are
    /// there already cost a look.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if self.touch(&digest)? {
            return Ok(digest);
        }
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = self
            .dir
            .join("tmp")
            .join(format!("{}-{number}", digest.hex()));
        let written = self.write(&temporary, &digest, bytes);
        if written.is_err() {
            // The error that matters is the first one; what is left behind goes at the next open.
            let _ = fs::remove_file(&temporary);
        }
        written.map(|()| digest)
    }

    /// The bytes of a blob, checked against its name.
    pub fn get(&self, digest: &Digest) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read(digest, &mut bytes)?;
        Ok(bytes)
    }

    /// Whether there is a blob of that name.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Removes a blob. Says whether it was there. The space is free at once; that it stays away
    /// after a loss of power is not promised (a blob that comes back is garbage, not harm).
    pub fn delete(&self, digest: &Digest) -> Result<bool> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("remove", &path, error)),
        }
    }

    /// The names of all blobs, in order.
    pub fn digests(&self) -> Result<Vec<Digest>> {
        let mut digests = Vec::new();
        for shard in list(&self.dir)? {
            let name = name_of(&shard);
            if name.len() != 2 || !shard.is_dir() {
                continue;
            }
            // What is not named like a blob was put there by somebody else: leave it alone.
            digests.extend(list(&shard)?.iter().filter_map(|path| {
                format!("sha256:{name}{}", name_of(path))
                    .parse::<Digest>()
                    .ok()
            }));
        }
        digests.sort_unstable();
        Ok(digests)
    }

    /// The blobs that are not in `live` and were last put more than `older_than` ago. A blob is
    /// written before the record that names it, so a collector leaves young ones alone: they may be
    /// on their way into a record.
    pub fn garbage(&self, live: &HashSet<Digest>, older_than: Duration) -> Result<Vec<Digest>> {
        let mut digests = self.digests()?;
        digests.retain(|digest| !live.contains(digest));
        let mut garbage = Vec::with_capacity(digests.len());
        for digest in digests {
            let path = self.path(&digest);
            let put = fs::metadata(&path).and_then(|data| data.modified());
            let put = put.map_err(|error| Error::io("look at", &path, error))?;
            // A time in the future counts as now: keep it.
            if put.elapsed().is_ok_and(|age| age > older_than) {
                garbage.push(digest);
            }
        }
        Ok(garbage)
    }

    /// Reads every blob and compares it with its name.
    pub fn verify(&self) -> Result<BlobReport> {
        let mut report = BlobReport::default();
        for digest in self.digests()? {
            let path = self.path(&digest);
            report.count += 1;
            report.disk_bytes += fs::metadata(&path)
                .map_err(|error| Error::io("look at", &path, error))?
                .len();
            match self.read(&digest, &mut io::sink()) {
                Err(Error::Corrupt { why, .. }) => report.damaged.push((digest, why)),
                other => other?,
            }
        }
        Ok(report)
    }

    /// The bytes of all blobs on disk, compressed.
    pub fn disk_bytes(&self) -> Result<u64> {
        let mut total = 0;
        for digest in self.digests()? {
            let path = self.path(&digest);
            total += fs::metadata(&path)
                .map_err(|error| Error::io("look at", &path, error))?
                .len();
        }
        Ok(total)
    }

    /// Makes a blob young again, so that a collector that runs now keeps it. Says whether it exists.
    fn touch(&self, digest: &Digest) -> Result<bool> {
        let path = self.path(digest);
        let touched = File::options()
            .append(true)
            .open(&path)
            .and_then(|file| file.set_modified(SystemTime::now()));
        match touched {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("touch", &path, error)),
        }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let (shard, rest) = hex.split_at(2);
        self.dir.join(shard).join(rest)
    }

    fn write(&self, temporary: &Path, digest: &Digest, bytes: &[u8]) -> Result<()> {
        let failed = |error| Error::io("write", temporary, error);
        let compressed = zstd::bulk::compress(bytes, LEVEL).map_err(failed)?;
        let mut file = File::create_new(temporary).map_err(failed)?;
        file.write_all(&compressed).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        let path = self.path(digest);
        let shard = path.parent().unwrap_or(&self.dir);
        let new_shard = !shard.is_dir();
        fs::create_dir_all(shard).map_err(|error| Error::io("create", shard, error))?;
        fs::rename(temporary, &path).map_err(|error| Error::io("write", &path, error))?;
        sync_dir(shard)?;
        if new_shard {
            sync_dir(&self.dir)
        } else {
            Ok(())
        }
    }

    /// Streams a blob into `out`, and fails at the end if it was not what its name says.
    fn read(&self, digest: &Digest, out: &mut dyn Write) -> Result<()> {
        let path = self.path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NoBlob { digest: *digest });
            }
            Err(error) => return Err(Error::io("open", &path, error)),
        };
        let corrupt = |why: String| Error::Corrupt {
            path: path.clone(),
            why,
        };
        let mut decoder = zstd::stream::read::Decoder::new(file)
            .map_err(|error| Error::io("read", &path, error))?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 128 << 10];
        loop {
            let count = match decoder.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // zstd reports damage as errors of kind Other or UnexpectedEof.
                Err(error) => return Err(corrupt(format!("it does not decompress ({error})"))),
            };
            let part = buffer.get(..count).unwrap_or_default();
            hash.update(part);
            out.write_all(part)
                .map_err(|error| Error::io("copy", &path, error))?;
        }
        let found = Digest(hash.finalize().into());
        if found == *digest {
            Ok(())
        } else {
            Err(corrupt(format!("its bytes are {found}")))
        }
    }
}

/// The paths in a folder.
pub(crate) fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| Error::io("list", dir, error);
    fs::read_dir(dir)
        .map_err(failed)?
        .map(|entry| entry.map(|entry| entry.path()).map_err(failed))
        .collect()
}

/// Makes the names in a folder durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| Error::io("sync", dir, error))
}

pub(crate) fn name_of(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}
